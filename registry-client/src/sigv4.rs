//! Hides how a request to S3 is signed (AWS Signature Version 4, the form with an `Authorization` header).

use std::time::SystemTime;

use aws_lc_rs::hmac;
use kiln_oci::digest::Digest;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::error::ErrorKind;

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct AwsCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for AwsCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AwsCredentials(..)")
    }
}

/// Adds the headers that sign a request. All headers that are there already and begin with `x-amz-` are signed, and `range`;
/// `payload` is the SHA-256 of the body.
pub(crate) fn sign(
    credentials: &AwsCredentials,
    region: &str,
    (method, url, headers): (&Method, &Url, &mut HeaderMap),
    payload: &Digest,
    now: SystemTime,
) -> Result<(), ErrorKind> {
    let time = timestamp(now);
    let mut set = |name: &'static str, value: &str| -> Result<(), ErrorKind> {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| ErrorKind::Setting(format!("the credentials have characters that `{name}` can't hold")))?;
        value.set_sensitive(name == "x-amz-security-token");
        headers.insert(HeaderName::from_static(name), value);
        Ok(())
    };
    set("x-amz-date", &time)?;
    set("x-amz-content-sha256", &payload.hex())?;
    if let Some(token) = &credentials.session_token {
        set("x-amz-security-token", token)?;
    }
    let (names, canonical) = canonical_request(method, url, headers, payload);
    let scope = format!("{}/{region}/s3/aws4_request", &time[..8]);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", Digest::of(canonical.as_bytes()).hex());
    let mut key = format!("AWS4{}", credentials.secret_access_key).into_bytes();
    for part in [&time[..8], region, "s3", "aws4_request"] {
        key = mac(&key, part);
    }
    let signature: String = mac(&key, &text).iter().map(|byte| format!("{byte:02x}")).collect();
    let value =
        format!("AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}", credentials.access_key_id);
    let mut value =
        HeaderValue::from_str(&value).map_err(|_| ErrorKind::Setting("the access key id can't stand in a header".to_owned()))?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    Ok(())
}

/// The names of the signed headers, and the text that is signed.
fn canonical_request(method: &Method, url: &Url, headers: &HeaderMap, payload: &Digest) -> (String, String) {
    let mut signed: Vec<(&str, String)> = vec![(HOST.as_str(), host_of(url))];
    for (name, value) in headers {
        if name.as_str().starts_with("x-amz-") || name == reqwest::header::RANGE {
            signed.push((name.as_str(), value.to_str().unwrap_or_default().trim().to_owned()));
        }
    }
    signed.sort();
    let mut query: Vec<(String, String)> =
        url.query_pairs().map(|(key, value)| (encode(&key, false), encode(&value, false))).collect();
    query.sort();
    let query: Vec<String> = query.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = format!("{method}\n{}\n{}\n{lines}\n{names}\n{}", url.path(), query.join("&"), payload.hex());
    (names, canonical)
}

/// The `Host` header that the HTTP library will send.
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Percent-encodes what is not unreserved, as AWS wants it; slashes stay in paths.
pub(crate) fn encode(text: &str, is_path: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if is_path => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// `20130524T000000Z`, made of `Fri, 24 May 2013 00:00:00 GMT`.
fn timestamp(time: SystemTime) -> String {
    let text = httpdate::fmt_http_date(time);
    let mut parts = text.split(' ').skip(1);
    let (day, month, year) = (parts.next(), parts.next(), parts.next());
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|name| Some(*name) == month).unwrap_or_default() + 1;
    let clock: String = parts.next().unwrap_or_default().split(':').collect();
    format!("{}{month:02}{}T{clock}Z", year.unwrap_or_default(), day.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use kiln_oci::digest::Digest;
    use reqwest::Method;
    use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

    use super::{AwsCredentials, sign};

    /// The examples of Amazon's documentation of S3 ("Authenticating Requests: Using the Authorization Header").
    #[test]
    fn documented_examples() {
        let credentials = AwsCredentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let rows = [
            (
                "/test.txt",
                Some(("range", "bytes=0-9")),
                "host;range;x-amz-content-sha256;x-amz-date",
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "/?lifecycle",
                None,
                "host;x-amz-content-sha256;x-amz-date",
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "/?max-keys=2&prefix=J",
                None,
                "host;x-amz-content-sha256;x-amz-date",
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ];
        for (path, header, names, signature) in rows {
            let url = format!("https://examplebucket.s3.amazonaws.com{path}").parse().unwrap();
            let mut headers = HeaderMap::new();
            if let Some((name, value)) = header {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            sign(&credentials, "us-east-1", (&Method::GET, &url, &mut headers), &Digest::of(b""), now).unwrap();
            let found = headers[AUTHORIZATION].to_str().unwrap();
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders={names},Signature={signature}"
            );
            assert_eq!(found, expected, "{path}");
        }
        assert_eq!(format!("{credentials:?}"), "AwsCredentials(..)");
    }
}
