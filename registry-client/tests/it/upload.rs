//! Pushing blobs to a registry that loses, moves and forgets (F19–F21).

use std::io::{Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_oci::digest::Digest;
use kiln_registry_client::{Client, CredentialStore, Credentials, ErrorKind, Options, Pushed, Repository};

use crate::scripted::{Reply, Request, Server};
use crate::{client, content, layer, named, quick, repository};

fn push(client: &Client, repository: &Repository, bytes: &[u8], sources: &[Repository]) -> kiln_registry_client::Result<Pushed> {
    let open = |from| -> std::io::Result<Box<dyn Read + Send>> { Ok(Box::new(Cursor::new(bytes[from as usize..].to_vec()))) };
    client.push_blob_from(repository, &layer(bytes), sources, &open, &|_| {})
}

/// A registry's answer to `HEAD`: what was uploaded is there.
fn head(uploaded: &AtomicBool, size: usize) -> Reply {
    match uploaded.load(Ordering::Relaxed) {
        true => Reply::new(200).with("Content-Length", size.to_string()),
        false => Reply::new(404),
    }
}

fn created(bytes: &[u8]) -> Reply {
    Reply::new(201).with("Docker-Content-Digest", Digest::of(bytes).to_string())
}

fn opened(location: &str) -> Reply {
    Reply::new(202).with("Location", location)
}

/// `Location` may be relative or absolute and have a query, which is kept.
#[test]
fn locations_of_uploads() {
    let digest = Digest::of(b"hello").to_string().replace(':', "%3A");
    let rows = [
        ("/v2/a/b/blobs/uploads/1", "/v2/a/b/blobs/uploads/1?digest="),
        ("/up?_state=x%3D%3D&y=z", "/up?_state=x%3D%3D&y=z&digest="),
        ("2", "/v2/a/b/blobs/uploads/2?digest="),
        ("{self}/abs?s=1", "/abs?s=1&digest="),
    ];
    for (location, target) in rows {
        let there = AtomicBool::new(false);
        let server = Server::start(move |request| match request.method.as_str() {
            "HEAD" => head(&there, 5),
            "POST" => opened(&location.replace("{self}", &format!("http://{}", request.header("host").unwrap_or_default()))),
            _ => {
                there.store(true, Ordering::Relaxed);
                created(b"hello")
            }
        });
        assert_eq!(push(&client(quick()), &repository(&server.host()), b"hello", &[]).unwrap(), Pushed::Uploaded);
        let log = server.log();
        assert_eq!(log[1], "POST /v2/a/b/blobs/uploads/");
        assert_eq!(log[2], format!("PUT {target}{digest}"), "{location}");
        assert_eq!(server.requests()[2].header("content-length"), Some("5"), "{location}");
        assert_eq!(log.len(), 4, "{log:?}");
    }
}

/// An upload location on another host gets the bytes and no credentials.
#[test]
fn uploads_elsewhere_carry_no_credentials() {
    let there = Arc::new(AtomicBool::new(false));
    let arrived = there.clone();
    let storage = Server::start(move |_| {
        arrived.store(true, Ordering::Relaxed);
        created(b"hello")
    });
    let location = storage.url("/bucket?sig=1");
    let server = Server::start(move |request| match (request.header("authorization"), request.method.as_str()) {
        (None, _) => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        (_, "HEAD") => head(&there, 5),
        _ => opened(&location),
    });
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    let user = Credentials::Password { username: "user".to_owned(), password: "hunter2".to_owned() };
    store.store(&server.host(), &user).unwrap();
    let client = client(Options { credentials: store, ..quick() });
    assert_eq!(push(&client, &repository(&server.host()), b"hello", &[]).unwrap(), Pushed::Uploaded);
    assert!(server.authorized() >= 2);
    assert_eq!((storage.authorized(), storage.requests().len()), (0, 1));
    assert_eq!(storage.requests()[0].body, b"hello");
}

/// F20: a session that is lost is opened anew, that blob alone is sent again; other refusals are final.
#[test]
fn sessions_are_lost() {
    let unknown = || Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    let rows: Vec<(&str, Vec<Reply>, Result<(), &str>, usize)> = vec![
        ("at once", vec![], Ok(()), 1),
        ("404", vec![unknown()], Ok(()), 2),
        ("404 twice", vec![unknown(), unknown()], Ok(()), 3),
        ("404 ever", vec![unknown(); 9], Err("BLOB_UPLOAD_UNKNOWN"), 3),
        ("416", vec![Reply::new(416)], Ok(()), 2),
        ("500", vec![Reply::new(500), Reply::new(502)], Ok(()), 3),
        ("hang up", vec![Reply::hang_up(), Reply::hang_up()], Ok(()), 3),
        ("500 ever", vec![Reply::new(500); 9], Err("500"), 5),
        (
            "quota",
            vec![Reply::error(403, "DENIED", "quota exceeded")],
            Err("denied access: 403 Forbidden (DENIED: quota exceeded)"),
            1,
        ),
        ("too large", vec![Reply::new(413).body("nginx says no")], Err("413 Payload Too Large (nginx says no)"), 1),
        ("wrong digest", vec![Reply::error(400, "DIGEST_INVALID", "it differs")], Err("DIGEST_INVALID"), 1),
    ];
    let bytes = content(300_000);
    for (name, script, expected, puts) in rows {
        let (next, whole, there) = (AtomicUsize::new(0), bytes.clone(), AtomicBool::new(false));
        let server = Server::start(move |request| match request.method.as_str() {
            "HEAD" => head(&there, whole.len()),
            // It forgets a session of which a request broke off.
            "GET" => Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry"),
            "POST" => opened(&format!("/upload/{}", next.load(Ordering::Relaxed))),
            _ => script.get(next.fetch_add(1, Ordering::Relaxed)).cloned().unwrap_or_else(|| {
                there.store(true, Ordering::Relaxed);
                created(&whole)
            }),
        });
        match (push(&client(quick()), &repository(&server.host()), &bytes, &[]), expected) {
            (Ok(pushed), Ok(())) => assert_eq!(pushed, Pushed::Uploaded, "{name}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (result, _) => panic!("{name}: {result:?}"),
        }
        let sent: Vec<Request> = server.requests().into_iter().filter(|request| request.method == "PUT").collect();
        assert_eq!(sent.len(), puts, "{name}: {:?}", server.log());
        for (number, request) in sent.iter().enumerate() {
            assert!(
                request.target.starts_with(&format!("/upload/{number}?")) && request.body == bytes,
                "{name}: {}",
                request.target
            );
        }
    }
}

/// A registry that answers before it has read everything is heard, not taken for a broken line.
#[test]
fn early_answers_are_heard() {
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => opened("/early"),
        _ => Reply::error(403, "DENIED", "quota exceeded"),
    });
    let error = push(&client(quick()), &repository(&server.host()), &content(24 << 20), &[]).unwrap_err();
    assert!(error.to_string().contains("quota exceeded"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

/// F19: the token runs out between opening the session and closing it; the same session goes on.
#[test]
fn tokens_expire_before_the_bytes() {
    let tokens = AtomicUsize::new(0);
    let service =
        Server::start(move |_| Reply::new(200).body(format!(r#"{{"token":"{}"}}"#, tokens.fetch_add(1, Ordering::Relaxed))));
    let realm = format!("Bearer realm=\"{}\",service=\"s\"", service.url("/token"));
    let bytes = content(100_000);
    let whole = bytes.clone();
    let there = AtomicBool::new(false);
    let server = Server::start(move |request| match (request.method.as_str(), request.header("authorization")) {
        ("HEAD", Some(_)) => head(&there, whole.len()),
        ("POST", Some("Bearer 0")) => opened("/session"),
        ("PUT", Some("Bearer 1")) => {
            there.store(true, Ordering::Relaxed);
            created(&whole)
        }
        _ => Reply::new(401).with("WWW-Authenticate", realm.clone()),
    });
    assert_eq!(push(&client(quick()), &repository(&server.host()), &bytes, &[]).unwrap(), Pushed::Uploaded);
    let sent: Vec<String> = server.log().into_iter().filter(|line| !line.starts_with("HEAD")).collect();
    assert_eq!(sent.iter().filter(|line| line.starts_with("POST")).count(), 1, "{sent:?}");
    assert_eq!(service.requests()[0].target, "/token?service=s&scope=repository%3Aa%2Fb%3Apull%2Cpush");
}

/// F20, F21: links that are declined, and registries that store something else than was sent.
#[test]
fn links_and_lies() {
    let digest = Digest::of(b"hello").to_string();
    let zeros = Digest::from_bytes([0; 32]).to_string();
    let head = |length: &str| Reply::new(200).with("Content-Length", length);
    let gone = || Reply::new(404);
    let ok = || created(b"hello");
    let rows: Vec<(&str, Vec<Reply>, Result<Pushed, &str>, usize)> = vec![
        ("existed", vec![head("5")], Ok(Pushed::Existed), 1),
        ("existed with another size", vec![head("4")], Err("size mismatch: 4 bytes, expected 5"), 1),
        ("linked", vec![gone(), Reply::new(201)], Ok(Pushed::Mounted), 2),
        ("declined, session open", vec![gone(), opened("/1"), ok(), head("5")], Ok(Pushed::Uploaded), 4),
        ("never heard of links", vec![gone(), Reply::new(405), opened("/1"), ok(), head("5")], Ok(Pushed::Uploaded), 5),
        ("source forbidden", vec![gone(), Reply::new(403), opened("/1"), ok(), head("5")], Ok(Pushed::Uploaded), 5),
        ("no Location", vec![gone(), Reply::new(202)], Err("without Location"), 2),
        (
            "another digest",
            vec![gone(), opened("/1"), Reply::new(201).with("Docker-Content-Digest", zeros)],
            Err("digest mismatch"),
            3,
        ),
        ("no digest, but there", vec![gone(), opened("/1"), Reply::new(201), head("5")], Ok(Pushed::Uploaded), 4),
        ("the digest, another size", vec![gone(), opened("/1"), ok(), head("3")], Err("size mismatch"), 4),
        ("the digest, not there", vec![gone(), opened("/1"), ok(), gone()], Err("isn't there"), 4),
        ("no digest, another size", vec![gone(), opened("/1"), Reply::new(201), head("3")], Err("size mismatch"), 4),
        ("no digest, not there", vec![gone(), opened("/1"), Reply::new(201), gone()], Err("isn't there"), 4),
        (
            "no right to push",
            vec![gone(), Reply::error(401, "UNAUTHORIZED", ""), Reply::error(401, "UNAUTHORIZED", "")],
            Err("without credentials"),
            3,
        ),
    ];
    for (name, script, expected, requests) in rows {
        let server = Server::script(script);
        let sources = [named(&server.host(), "base")];
        match (push(&client(quick()), &repository(&server.host()), b"hello", &sources), expected) {
            (Ok(pushed), Ok(expected)) => assert_eq!(pushed, expected, "{name}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (result, _) => panic!("{name}: {result:?} {:?}", server.log()),
        }
        let log = server.log();
        assert_eq!(log.len(), requests, "{name}: {log:?}");
        if requests > 1 {
            assert_eq!(log[1], format!("POST /v2/a/b/blobs/uploads/?mount={}&from=base", digest.replace(':', "%3A")));
        }
    }
}

#[test]
fn sources_that_fail() {
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => opened("/1"),
        _ => created(b"hello"),
    });
    let client = client(quick());
    let descriptor = layer(b"hello");
    type Opened = std::io::Result<Box<dyn Read + Send>>;
    let rows: [(&str, fn(u64) -> Opened, &str); 4] = [
        ("too short", |_| Ok(Box::new(Cursor::new(b"hell"))), "size mismatch: 4 bytes, expected 5"),
        ("too long", |_| Ok(Box::new(Cursor::new(b"hello!"))), "size mismatch: 6 bytes, expected 5"),
        ("not there", |_| Err(std::io::Error::from(std::io::ErrorKind::NotFound)), "entity not found"),
        ("empty", |_| Ok(Box::new(std::io::empty())), "size mismatch: 0 bytes, expected 5"),
    ];
    for (name, open, words) in rows {
        let error = client.push_blob(&repository(&server.host()), &descriptor, &open, &|_| {}).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Local(_) | ErrorKind::SizeMismatch { .. }), "{name}");
    }
}
