//! Buckets: against an S3 server that checks signatures, through a line that breaks, and against answers that no server should give.

use std::io::{Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_oci::descriptor::Descriptor;
use kiln_registry_client::ErrorKind;
use kiln_registry_client::s3::{AwsCredentials, Bucket, BucketOptions};

use crate::bucket::S3Server;
use crate::cutter::Cutter;
use crate::scripted::{Reply, Server};
use crate::{client, content, layer, quick};

fn bucket(options: &BucketOptions) -> Bucket {
    Bucket::new(&Arc::new(client(quick())), options).unwrap()
}

fn write(bucket: &Bucket, key: &str, layer: &Descriptor, bytes: &[u8]) -> kiln_registry_client::Result<()> {
    let open = |from: u64| Ok(Box::new(Cursor::new(bytes[from as usize..].to_vec())) as Box<dyn Read + Send>);
    bucket.write_blob(key, layer, &open, &|_| {})
}

fn fetch(bucket: &Bucket, key: &str, layer: &Descriptor) -> kiln_registry_client::Result<Vec<u8>> {
    let mut sink = Vec::new();
    bucket.fetch(key, layer, &mut sink, &|_| {}).map(|()| sink)
}

#[test]
fn a_bucket() {
    let Some(server) = S3Server::start() else { return };
    objects_of_all_sizes_go_and_come(&server);
    sources_are_checked(&server);
    what_was_spoiled_is_not_believed(&server);
    who_may_not_is_told_so_without_secrets(&server);
    transfers_go_on_after_cuts(&server);
}

fn objects_of_all_sizes_go_and_come(server: &S3Server) {
    let bucket = bucket(&server.options(None));
    // One request, the largest that is one, and three parts.
    for (index, size) in [0, 1, 100_000, 16 << 20, (33 << 20) + 5].into_iter().enumerate() {
        let bytes = content(size);
        let (layer, key) = (layer(&bytes), format!("pre fix/ä+{index}/sha256:x"));
        assert_eq!(bucket.look(&key).unwrap(), None, "{size}");
        assert_eq!(bucket.read(&key, 10).unwrap(), None, "{size}");
        let sent = AtomicU64::new(0);
        let open = |from: u64| Ok(Box::new(Cursor::new(bytes[from as usize..].to_vec())) as Box<dyn Read + Send>);
        bucket.write_blob(&key, &layer, &open, &|gone| sent.store(gone, Ordering::Relaxed)).unwrap();
        assert_eq!(sent.load(Ordering::Relaxed), size as u64);
        let found = bucket.look(&key).unwrap().unwrap();
        assert_eq!(found.size, size as u64);
        assert!(found.age.is_some_and(|age| age < Duration::from_secs(100)), "{found:?}");
        assert_eq!(fetch(&bucket, &key, &layer).unwrap(), bytes, "{size}");
        bucket.touch(&key, size as u64).unwrap();
        assert_eq!(fetch(&bucket, &key, &layer).unwrap(), bytes, "{size} after it was touched");
    }
    bucket.write("manifests/a", b"{}").unwrap();
    bucket.write("manifests/a", b"[1]").unwrap();
    assert_eq!(bucket.read("manifests/a", 3).unwrap().unwrap(), b"[1]");
    assert!(bucket.read("manifests/a", 2).is_err());
    assert!(bucket.read("manifests/../a", 2).unwrap_err().to_string().contains("can't be the name"));
}

/// What a source gives is what its descriptor says, or nothing appears.
fn sources_are_checked(server: &S3Server) {
    let bucket = bucket(&server.options(None));
    for size in [1000, 20 << 20] {
        let bytes = content(size);
        let mut other = bytes.clone();
        other[size / 2] ^= 1;
        let longer = [&bytes[..], b"x"].concat();
        for (name, given) in [("other", &other[..]), ("short", &bytes[..size - 1]), ("long", &longer[..])] {
            write(&bucket, name, &layer(&bytes), given).unwrap_err();
            assert_eq!(bucket.look(name).unwrap(), None, "{name} {size}");
        }
    }
}

fn what_was_spoiled_is_not_believed(server: &S3Server) {
    let bucket = bucket(&server.options(None));
    let bytes = content(200_000);
    let layer = layer(&bytes);
    let mut changed = bytes.clone();
    changed[77] ^= 1;
    for (key, spoiled, expected) in [
        ("changed", &changed[..], "digest mismatch"),
        ("cut", &bytes[..100_000], "size mismatch"),
        ("empty", &[], "size mismatch"),
    ] {
        bucket.write(key, spoiled).unwrap();
        let error = fetch(&bucket, key, &layer).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(fetch(&bucket, "none", &layer).unwrap_err().is_not_found());
}

fn who_may_not_is_told_so_without_secrets(server: &S3Server) {
    let right = server.options(None);
    let of = |key: &str, secret: &str| AwsCredentials {
        access_key_id: key.to_owned(),
        secret_access_key: secret.to_owned(),
        session_token: Some("a-session-token".to_owned()),
    };
    for (credentials, hint) in [
        (of(&right.credentials.access_key_id, "wrong-secret"), "AWS_SECRET_ACCESS_KEY"),
        (of("AKIANOBODY", "wrong-secret"), "AWS_"),
    ] {
        let bucket = bucket(&BucketOptions { credentials, ..right.clone() });
        let errors = [bucket.read("a", 10).unwrap_err(), bucket.look("a").unwrap_err(), bucket.write("a", b"x").unwrap_err()];
        for error in errors {
            assert!(error.to_string().contains("answered 40"), "{error}");
            assert!(error.hint().is_some_and(|text| text.contains(hint)), "{error}: {:?}", error.hint());
            let all = format!("{error} {error:?} {bucket:?}");
            assert!(!all.contains("wrong-secret") && !all.contains("a-session-token"), "{all}");
        }
    }
}

/// A line that cuts each time that 3 MB have gone costs what was on its way, and no more.
fn transfers_go_on_after_cuts(server: &S3Server) {
    let bytes = content(40 << 20);
    let layer = layer(&bytes);
    write(&bucket(&server.options(None)), "blob", &layer, &bytes).unwrap();
    let line = Cutter::start(&server.host(), 3 << 20, 8);
    assert!(fetch(&bucket(&server.options(Some(&line.host()))), "blob", &layer).unwrap() == bytes);
    assert_eq!(line.cuts(), 8);
    assert!(line.moved() < (44 << 20), "{}", line.moved());
    let line = Cutter::start(&server.host(), 20 << 20, 2);
    write(&bucket(&server.options(Some(&line.host()))), "again", &layer, &bytes).unwrap();
    assert_eq!(line.cuts(), 2);
    assert_eq!(fetch(&bucket(&server.options(None)), "again", &layer).unwrap().len(), bytes.len());
}

/// Answers on a script: what is tried again, and how the rest is told.
#[test]
fn answers_on_a_script() {
    let bytes = content(3000);
    let layer = layer(&bytes);
    let xml = |status, code: &str| {
        Reply::new(status).body(format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>why</Message></Error>"))
    };
    let whole = || Reply::new(200).body(bytes.clone());
    let rows: Vec<(&str, Vec<Reply>, Result<(), &str>)> = vec![
        ("throttled", vec![xml(503, "SlowDown"), Reply::new(429), whole()], Ok(())),
        ("asked to wait", vec![Reply::new(429).with("Retry-After", "1"), whole()], Ok(())),
        ("asked for too long", vec![Reply::new(429).with("Retry-After", "3600")], Err("too many requests")),
        ("failing", vec![xml(500, "InternalError"); 5], Err("500 Internal Server Error (InternalError: why)")),
        ("hanging up", vec![Reply::hang_up(), whole()], Ok(())),
        (
            "cut",
            vec![whole().cut(1000), Reply::new(206).with("Content-Range", "bytes 1000-2999/3000").body(&bytes[1000..])],
            Ok(()),
        ),
        ("refused", vec![xml(403, "AccessDenied")], Err("403 Forbidden (AccessDenied: why)")),
        ("moved", vec![xml(301, "PermanentRedirect")], Err("PermanentRedirect")),
        ("gone", vec![xml(404, "NoSuchKey")], Err("not found: 404 Not Found (NoSuchKey: why)")),
        ("another", vec![Reply::new(200).body(content(3001)[..3000].to_vec())], Err("digest mismatch")),
        ("longer", vec![Reply::new(200).body(content(3001))], Err("size mismatch")),
    ];
    for (name, replies, expected) in rows {
        let asked = replies.len();
        let server = Server::script(replies);
        let credentials =
            AwsCredentials { access_key_id: "AKIAX".to_owned(), secret_access_key: "secret-x".to_owned(), session_token: None };
        let options = BucketOptions {
            bucket: "b".to_owned(),
            region: "r".to_owned(),
            endpoint: Some(server.url("")),
            path_style: true,
            credentials,
            attempts: None,
        };
        let started = Instant::now();
        let found = fetch(&bucket(&options), "k", &layer);
        match expected {
            Ok(()) => assert!(found.unwrap() == bytes, "{name}"),
            Err(words) => {
                let error = found.unwrap_err();
                assert!(error.to_string().contains(words), "{name}: {error}");
                assert!(!matches!(error.kind(), ErrorKind::Denied(_)), "{name}");
            }
        }
        assert_eq!(server.requests().len(), asked, "{name}");
        if name == "asked to wait" {
            assert!(started.elapsed() >= Duration::from_secs(1));
        }
    }
}

/// S3 may say 200 and then that it failed; what was sent is thrown away.
#[test]
fn parts_that_can_not_be_put_together() {
    let bytes = content(17 << 20);
    let server = Server::start(|request| match (request.method.as_str(), request.target.contains("uploads=")) {
        ("POST", true) => {
            Reply::new(200).body("<InitiateMultipartUploadResult><UploadId>u/1</UploadId></InitiateMultipartUploadResult>")
        }
        ("PUT", _) => Reply::new(200).with("ETag", "\"tag\""),
        ("POST", false) => Reply::new(200).body("<Error><Code>InternalError</Code><Message>later</Message></Error>"),
        _ => Reply::new(204),
    });
    let credentials = AwsCredentials { access_key_id: "A".to_owned(), secret_access_key: "S".to_owned(), session_token: None };
    let (bucket_name, region, endpoint) = ("b".to_owned(), "r".to_owned(), Some(server.url("")));
    let options = BucketOptions { bucket: bucket_name, region, endpoint, path_style: true, credentials, attempts: None };
    let error = write(&bucket(&options), "k", &layer(&bytes), &bytes).unwrap_err();
    assert!(error.to_string().contains("InternalError: later"), "{error}");
    let log = server.log();
    let expected = [
        "POST /b/k?uploads=",
        "PUT /b/k?partNumber=1&uploadId=u%2F1",
        "PUT /b/k?partNumber=2&uploadId=u%2F1",
        "POST /b/k?uploadId=u%2F1",
        "DELETE /b/k?uploadId=u%2F1",
    ];
    assert_eq!(log, expected);
}
