//! Hides S3's protocol: objects of a bucket are read, looked at, written and kept young.
//!
//! Requests are signed by our own code ([`sigv4`](crate::sigv4), over aws-lc's HMAC): it is shorter than what a crate for it would
//! need around it, and brings no second SHA-256, XML parser or clock.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use reqwest::Method;
use reqwest::header::{DATE, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED, RANGE};
use url::Url;

use crate::blob::{Download, Source};
use crate::error::{Answer, Error, ErrorKind, Operation};
use crate::exchange::{Fault, Patience};
use crate::service::{self, Request, Service};
pub use crate::sigv4::AwsCredentials;
use crate::sigv4::{encode, sign};
use crate::transport::{Body, Incoming};
use crate::{Client, Result, RetryPolicy};

/// What is not larger goes in one request; S3 takes parts from 5 MiB on, and each is in memory while it goes.
const PART: u64 = 16 << 20;
/// S3 takes no more parts.
const MOST_PARTS: u64 = 10_000;
/// S3 copies no more in one request.
const LARGEST_COPY: u64 = 5 << 30;

/// Which bucket, and how it is reached.
#[derive(Debug, Clone)]
pub struct BucketOptions {
    /// Its name.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// Where the service is, when it isn't Amazon's.
    pub endpoint: Option<String>,
    /// The bucket's name stands in the path and not in the host's name. Always so where it can't be part of a host's name.
    pub path_style: bool,
    /// Who asks.
    pub credentials: AwsCredentials,
    /// How often a request is tried, if not as often as one to a registry.
    pub attempts: Option<u32>,
}

/// A bucket. Share one among all threads.
#[derive(Debug)]
pub struct Bucket {
    service: Service,
    base: Url,
    name: String,
    region: String,
    credentials: AwsCredentials,
    /// By how many seconds the server's clock differs from this machine's, once it complained.
    skew: AtomicI64,
}

/// An object that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// How many bytes it has.
    pub size: u64,
    /// How long ago it was written, by the server's own clock.
    pub age: Option<Duration>,
}

impl Bucket {
    /// A bucket; nothing is asked yet.
    ///
    /// # Errors
    /// The name or the endpoint can't be part of a URL.
    pub fn new(client: &Arc<Client>, options: &BucketOptions) -> Result<Self> {
        let operation = Operation {
            action: "use bucket",
            subject: String::new(),
            registry: options.bucket.clone(),
            host: options.bucket.clone(),
        };
        let base = base(options).map_err(|kind| Error::new(operation, kind))?;
        let mut policy = client.options().retry.clone();
        policy.attempts = options.attempts.unwrap_or(policy.attempts);
        Ok(Self {
            service: Service::new(client, base.clone(), policy, answer),
            base,
            name: options.bucket.clone(),
            region: options.region.clone(),
            credentials: options.credentials.clone(),
            skew: AtomicI64::default(),
        })
    }

    /// A whole object that isn't larger than `limit`; `None` when there is none.
    ///
    /// # Errors
    /// The service can't be reached or refuses.
    pub fn read(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let call = self.call("read", key)?;
        let found =
            self.clocked(&call, |call| self.service.document(&call.operation, limit, &|| call.request(Method::GET, "")))?;
        Ok(found.map(|(_, body)| body))
    }

    /// Whether there is an object.
    ///
    /// # Errors
    /// The service can't be reached or refuses. It answers 403 for an object that isn't there to those who may not list the bucket.
    pub fn look(&self, key: &str) -> Result<Option<Object>> {
        let call = self.call("look for", key)?;
        let incoming = self.clocked(&call, |call| {
            let incoming = self.service.patiently(&call.operation, &|| call.request(Method::HEAD, ""))?;
            match incoming.status.as_u16() {
                // What was wrong stands in a body, which only a GET has.
                400 | 403 => {
                    self.service.document(&call.operation, u64::MAX, &|| {
                        let mut request = call.request(Method::GET, "")?;
                        request.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
                        call.signed(request, &Digest::of(b""))
                    })?;
                    Err(Error::new(call.operation.clone(), self.service.refusal(incoming).kind))
                }
                _ => Ok(incoming),
            }
        })?;
        if incoming.status == 404 {
            return Ok(None);
        }
        if !incoming.status.is_success() {
            return Err(Error::new(call.operation, self.service.refusal(incoming).kind));
        }
        let date = |name| incoming.header(name).and_then(|text| httpdate::parse_http_date(text).ok());
        let age = match (date(DATE), date(LAST_MODIFIED)) {
            (Some(now), Some(then)) => now.duration_since(then).ok(),
            _ => None,
        };
        Ok(incoming.content_length().map(|size| Object { size, age }))
    }

    /// Fetches an object whose bytes are a descriptor's, with retries that go on where the last one broke.
    ///
    /// # Errors
    /// As [`Client::fetch_blob`].
    pub fn fetch(&self, key: &str, descriptor: &Descriptor, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<()> {
        let call = self.call("fetch", key)?;
        Download::new(descriptor, sink, progress).fetch_from(&call)
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// The service can't be reached or refuses.
    pub fn write(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let call = self.call("write", key)?;
        let (body, digest) = (Bytes::copy_from_slice(bytes), Digest::of(bytes));
        self.clocked(&call, |call| {
            let make = || call.with_body(Method::PUT, "", service::bytes(&body, &|_| {}), &digest);
            self.accepted(call, self.service.patiently(&call.operation, &make)?).map(drop)
        })
    }

    /// Writes an object whose bytes `open` gives from a position on; they are checked on the way. A large one goes in parts.
    ///
    /// # Errors
    /// The service can't be reached or refuses, or the source fails or is another one than the descriptor says.
    pub fn write_blob(
        &self,
        key: &str,
        descriptor: &Descriptor,
        open: &dyn Fn(u64) -> io::Result<Box<dyn Read + Send>>,
        progress: &dyn Fn(u64),
    ) -> Result<()> {
        let call = self.call("write", key)?;
        if descriptor.size <= PART {
            let mut body = Vec::new();
            let read = open(0).and_then(|source| source.take(PART + 1).read_to_end(&mut body));
            read.map_err(|error| Error::new(call.operation.clone(), ErrorKind::Local(error)))?;
            self.check(&call, descriptor, body.len() as u64, Digest::of(&body))?;
            let body = Bytes::from(body);
            return self.clocked(&call, |call| {
                let make = || call.with_body(Method::PUT, "", service::bytes(&body, progress), &descriptor.digest);
                self.accepted(call, self.service.patiently(&call.operation, &make)?).map(drop)
            });
        }
        let upload = self.begin(&call)?;
        let done = self.parts(&call, &upload, descriptor, open, progress).and_then(|parts| self.complete(&call, &upload, &parts));
        if done.is_err() {
            // What was sent would be kept, and paid for.
            let _: Result<_, Fault> =
                call.request(Method::DELETE, &upload).map_err(Fault::from).and_then(|r| self.service.once(r));
        }
        done
    }

    /// Makes an object young again, for buckets that throw old ones away.
    ///
    /// # Errors
    /// The service can't be reached or refuses.
    pub fn touch(&self, key: &str, size: u64) -> Result<()> {
        let call = self.call("touch", key)?;
        let source = format!("{}/{}", self.name, encode(key, true));
        let header =
            |name, text: &str| Ok((HeaderName::from_static(name), HeaderValue::from_str(text).map_err(|_| bad_key(key))?));
        let copy = |query: &str, more: Vec<(HeaderName, HeaderValue)>| {
            let mut request = call.bare(Method::PUT, query)?;
            request.headers.extend(more);
            call.signed(request, &Digest::of(b""))
        };
        if size < LARGEST_COPY {
            let now = httpdate::fmt_http_date(SystemTime::now());
            let headers = [
                ("x-amz-copy-source", source.as_str()),
                ("x-amz-metadata-directive", "REPLACE"),
                ("x-amz-meta-updated-at", now.as_str()),
            ];
            let make = || copy("", headers.iter().map(|(n, v)| header(n, v)).collect::<Result<_, ErrorKind>>()?);
            return self.accepted(&call, self.service.patiently(&call.operation, &make)?).map(drop);
        }
        let upload = self.begin(&call)?;
        let mut parts = Vec::new();
        let mut from = 0;
        while from < size {
            let to = (from + LARGEST_COPY).min(size);
            let range = format!("bytes={from}-{}", to - 1);
            let query = format!("partNumber={}&{upload}", parts.len() + 1);
            let make = || {
                let headers = [("x-amz-copy-source", source.as_str()), ("x-amz-copy-source-range", range.as_str())];
                copy(&query, headers.iter().map(|(n, v)| header(n, v)).collect::<Result<_, ErrorKind>>()?)
            };
            let (_, body) = self.accepted(&call, self.service.patiently(&call.operation, &make)?)?;
            parts.push(element(&body, "ETag").unwrap_or_default().replace("&quot;", "\""));
            from = to;
        }
        self.complete(&call, &upload, &parts)
    }

    /// Opens an upload in parts; the query that names it.
    fn begin(&self, call: &Call<'_>) -> Result<String> {
        self.clocked(call, |call| {
            let make = || call.request(Method::POST, "uploads=");
            let (_, body) = self.accepted(call, self.service.patiently(&call.operation, &make)?)?;
            let Some(id) = element(&body, "UploadId") else {
                return Err(Error::new(call.operation.clone(), ErrorKind::Protocol("no UploadId".to_owned())));
            };
            Ok(format!("uploadId={}", encode(&id, false)))
        })
    }

    /// Sends the parts; their tags.
    fn parts(
        &self,
        call: &Call<'_>,
        upload: &str,
        descriptor: &Descriptor,
        open: &dyn Fn(u64) -> io::Result<Box<dyn Read + Send>>,
        progress: &dyn Fn(u64),
    ) -> Result<Vec<String>> {
        let fail = |kind: ErrorKind| Error::new(call.operation.clone(), kind);
        let size = descriptor.size;
        let part = PART.max(size.div_ceil(MOST_PARTS));
        let mut source = open(0).map_err(|error| fail(ErrorKind::Local(error)))?;
        let mut hasher = kiln_oci::digest::Hasher::new();
        let mut tags = Vec::new();
        let mut from = 0;
        while from < size {
            let len = part.min(size - from);
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
            (&mut source).take(len).read_to_end(&mut bytes).map_err(|error| fail(ErrorKind::Local(error)))?;
            if (bytes.len() as u64) < len {
                return Err(fail(ErrorKind::SizeMismatch { expected: size, actual: from + bytes.len() as u64 }));
            }
            hasher.update(&bytes);
            let (digest, bytes) = (Digest::of(&bytes), Bytes::from(bytes));
            let query = format!("partNumber={}&{upload}", tags.len() + 1);
            let gone = |sent| progress(from + sent);
            let make = || call.with_body(Method::PUT, &query, service::bytes(&bytes, &gone), &digest);
            let (headers, _) = self.accepted(call, self.service.patiently(&call.operation, &make)?)?;
            tags.push(headers.get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned());
            from += len;
        }
        let more = source.read(&mut [0]).map_err(|error| fail(ErrorKind::Local(error)))? as u64;
        self.check(call, descriptor, size + more, hasher.finish())?;
        Ok(tags)
    }

    /// Whether what a source gave is what its descriptor says.
    fn check(&self, call: &Call<'_>, descriptor: &Descriptor, actual: u64, digest: Digest) -> Result<()> {
        let (source_of, expected) = ("the source", descriptor.digest);
        let kind = if actual != descriptor.size {
            ErrorKind::SizeMismatch { expected: descriptor.size, actual }
        } else if digest != expected {
            ErrorKind::DigestMismatch { source_of, expected, actual: digest.to_string() }
        } else {
            return Ok(());
        };
        Err(Error::new(call.operation.clone(), kind))
    }

    /// Puts the parts together. S3 may begin its answer with 200 and say only then that it failed.
    fn complete(&self, call: &Call<'_>, upload: &str, tags: &[String]) -> Result<()> {
        let parts: String = tags
            .iter()
            .enumerate()
            .map(|(index, tag)| format!("<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>", index + 1, escape(tag)))
            .collect();
        let body = Bytes::from(format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"));
        let digest = Digest::of(&body);
        let make = || call.with_body(Method::POST, upload, service::bytes(&body, &|_| {}), &digest);
        self.accepted(call, self.service.patiently(&call.operation, &make)?).map(drop)
    }

    /// Headers and body of an answer that says yes.
    fn accepted(&self, call: &Call<'_>, mut incoming: Incoming<'_>) -> Result<(HeaderMap, Vec<u8>)> {
        let fail = |kind: ErrorKind| Error::new(call.operation.clone(), kind);
        if !incoming.status.is_success() {
            return Err(fail(self.service.refusal(incoming).kind));
        }
        let body = incoming.body("document", 1 << 20).map_err(fail)?;
        if element(&body, "Error").is_some() {
            return Err(fail(ErrorKind::Service(answer(500, &body))));
        }
        Ok((incoming.headers.clone(), body))
    }

    fn call(&self, action: &'static str, key: &str) -> Result<Call<'_>> {
        let operation = self.service.operation(action, &format!("{}/{key}", self.name));
        if key.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(Error::new(operation, bad_key(key)));
        }
        Ok(Call { bucket: self, path: encode(key, true), operation })
    }

    /// Does a call, and once more by the server's clock if it says that this machine's is wrong.
    fn clocked<T>(&self, call: &Call<'_>, work: impl Fn(&Call<'_>) -> Result<T>) -> Result<T> {
        match work(call) {
            Err(error) if self.learn_clock(call, &error) => work(call),
            outcome => outcome,
        }
    }

    fn learn_clock(&self, call: &Call<'_>, error: &Error) -> bool {
        let skewed = matches!(error.kind(), ErrorKind::Service(answer) if answer.has_code("RequestTimeTooSkewed"));
        if !skewed {
            return false;
        }
        let incoming = call.request(Method::HEAD, "").map_err(Fault::from).and_then(|request| self.service.once(request));
        let Ok(incoming) = incoming else { return false };
        let theirs = incoming.header(DATE).and_then(|text| httpdate::parse_http_date(text).ok());
        let Some(theirs) = theirs else { return false };
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs().cast_signed());
        self.skew.store(seconds(theirs) - seconds(SystemTime::now()), Ordering::Relaxed);
        true
    }

    fn now(&self) -> SystemTime {
        let skew = self.skew.load(Ordering::Relaxed);
        let by = Duration::from_secs(skew.unsigned_abs());
        if skew >= 0 { SystemTime::now() + by } else { SystemTime::now() - by }
    }
}

/// One operation on one object.
struct Call<'b> {
    bucket: &'b Bucket,
    path: String,
    operation: Operation,
}

impl Call<'_> {
    fn bare<'r>(&self, method: Method, query: &str) -> Result<Request<'r>, ErrorKind> {
        let mut url = Url::parse(&format!("{}{}", self.bucket.base, self.path)).map_err(|_| bad_key(&self.path))?;
        url.set_query((!query.is_empty()).then_some(query));
        Ok(Request { method, url, headers: HeaderMap::new(), body: Body::None })
    }

    fn request<'r>(&self, method: Method, query: &str) -> Result<Request<'r>, ErrorKind> {
        self.signed(self.bare(method, query)?, &Digest::of(b""))
    }

    fn with_body<'r>(&self, method: Method, query: &str, body: Body<'r>, digest: &Digest) -> Result<Request<'r>, ErrorKind> {
        self.signed(Request { body, ..self.bare(method, query)? }, digest)
    }

    fn signed<'r>(&self, mut request: Request<'r>, payload: &Digest) -> Result<Request<'r>, ErrorKind> {
        let bucket = self.bucket;
        let parts = (&request.method, &request.url, &mut request.headers);
        sign(&bucket.credentials, &bucket.region, parts, payload, bucket.now())?;
        Ok(request)
    }
}

impl Source for Call<'_> {
    fn open(&self, range: Option<HeaderValue>) -> Result<Incoming<'_>, Fault> {
        let mut request = self.bare(Method::GET, "")?;
        if let Some(range) = range {
            request.headers.insert(RANGE, range);
        }
        self.bucket.service.once(self.signed(request, &Digest::of(b""))?)
    }

    fn refusal(&self, incoming: Incoming<'_>) -> Fault {
        self.bucket.service.refusal(incoming)
    }

    fn pause(&self, patience: &mut Patience<'_>, fault: Fault) -> Result<(), Error> {
        self.bucket.service.pause(&self.operation, patience, fault)
    }

    fn policy(&self) -> &RetryPolicy {
        &self.bucket.service.policy
    }
}

/// Where the bucket's objects are: a URL that ends in a slash.
fn base(options: &BucketOptions) -> Result<Url, ErrorKind> {
    let BucketOptions { bucket, region, endpoint, .. } = options;
    let named =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if !named(bucket) || !named(region) {
        return Err(ErrorKind::Setting(format!("`{bucket}` in region `{region}` is no bucket")));
    }
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let endpoint = endpoint.clone().unwrap_or_else(|| format!("https://s3.{region}.{domain}"));
    let bad = || ErrorKind::Setting(format!("`{endpoint}` is no URL of a service"));
    let mut url = Url::parse(&endpoint).map_err(|_| bad())?;
    let is_plain_url = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    if !is_plain_url || url.query().is_some() || url.fragment().is_some() {
        return Err(bad());
    }
    // A name with a dot has no certificate below the service's, and an address has no names below it.
    let is_address = !matches!(url.host(), Some(url::Host::Domain(_)));
    let path = url.path().trim_end_matches('/').to_owned();
    if options.path_style || is_address || (url.scheme() == "https" && bucket.contains('.')) || bucket.contains('_') {
        url.set_path(&format!("{path}/{bucket}/"));
    } else {
        let host = format!("{bucket}.{}", url.host_str().unwrap_or_default());
        url.set_host(Some(&host)).map_err(|_| bad())?;
        url.set_path(&format!("{path}/"));
    }
    Ok(url)
}

fn bad_key(key: &str) -> ErrorKind {
    ErrorKind::Setting(format!("`{key}` can't be the name of an object"))
}

/// What an error document of S3 says.
fn answer(status: u16, body: &[u8]) -> Answer {
    match element(body, "Code") {
        Some(code) => Answer::told(status, &code, &element(body, "Message").unwrap_or_default()),
        None => Answer::new(status, body),
    }
}

/// The text of the first element of a name. S3's documents are flat enough for that.
fn element(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let rest = text.split_once(&format!("<{name}>"))?.1;
    Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{AwsCredentials, BucketOptions, base};

    #[test]
    fn where_buckets_are() {
        let rows = [
            ("b", "us-east-1", None, false, Some("https://b.s3.us-east-1.amazonaws.com/")),
            ("b.c", "eu-west-1", None, false, Some("https://s3.eu-west-1.amazonaws.com/b.c/")),
            ("b", "cn-north-1", None, false, Some("https://b.s3.cn-north-1.amazonaws.com.cn/")),
            ("b", "r", Some("https://minio.lan:9000"), false, Some("https://b.minio.lan:9000/")),
            ("b", "r", Some("https://minio.lan:9000/"), true, Some("https://minio.lan:9000/b/")),
            ("b", "r", Some("http://127.0.0.1:9000/x/"), false, Some("http://127.0.0.1:9000/x/b/")),
            ("b/../c", "r", None, false, None),
            ("b", "", None, false, None),
            ("b", "r", Some("https://user:pass@minio.lan"), true, None),
            ("b", "r", Some("file:///etc"), true, None),
        ];
        for (bucket, region, endpoint, path_style, expected) in rows {
            let credentials =
                AwsCredentials { access_key_id: "a".to_owned(), secret_access_key: "s".to_owned(), session_token: None };
            let (bucket, region, endpoint) = (bucket.to_owned(), region.to_owned(), endpoint.map(str::to_owned));
            let options = BucketOptions { bucket, region, endpoint, path_style, credentials, attempts: None };
            assert_eq!(base(&options).ok().map(|url| url.to_string()).as_deref(), expected, "{options:?}");
        }
    }
}
