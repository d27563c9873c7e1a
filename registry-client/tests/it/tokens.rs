//! Against Debian's `docker-registry` with token authentication: signed tokens that it checks.

use std::io::{Cursor, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_oci::media_type::OCI_LAYER_GZIP;
use kiln_registry_client::{Client, CredentialStore, Credentials, ErrorKind, Options, Pushed, Repository};

use crate::token_server::{TokenServer, User};
use crate::{client, content, fetch, layer, named, quick};

const USERS: [(&str, User); 2] = [
    ("ann", User { password: "hunter2", rights: &[("*", &["pull", "push"])] }),
    ("bob", User { password: "s3cret", rights: &[("bobs", &["pull", "push"]), ("public", &["pull"])] }),
];

fn as_user(tokens: &TokenServer, credentials: &Credentials) -> (Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    store.store(&tokens.registry.host(), credentials).unwrap();
    (client(Options { credentials: store, ..quick() }), folder)
}

fn password(username: &str, password: &str) -> Credentials {
    Credentials::Password { username: username.to_owned(), password: password.to_owned() }
}

fn push(client: &Client, repository: &Repository, bytes: &[u8], sources: &[Repository]) -> kiln_registry_client::Result<Pushed> {
    let open = |from| -> std::io::Result<Box<dyn Read + Send>> { Ok(Box::new(Cursor::new(bytes[from as usize..].to_vec()))) };
    client.push_blob_from(repository, &layer(bytes), sources, &open, &|_| {})
}

/// Passwords and identity tokens, with and without the right to do what is done; a link across repositories takes one token
/// with two scopes, and a source that may not be read is no reason to fail.
#[test]
fn rights_by_scope() {
    let Some(tokens) = TokenServer::start(&USERS) else { return };
    let host = tokens.registry.host();
    let at = |path: &str| named(&host, path);
    let bytes = content(50_000);
    let (ann, _a) = as_user(&tokens, &password("ann", "hunter2"));
    for path in ["public", "secret"] {
        assert_eq!(push(&ann, &at(path), &bytes, &[]).unwrap(), Pushed::Uploaded);
    }
    for credentials in [password("bob", "s3cret"), Credentials::IdentityToken("refresh-bob".to_owned())] {
        let (bob, _b) = as_user(&tokens, &credentials);
        fetch(&bob, &at("public"), &layer(&bytes)).0.unwrap();
        let error = fetch(&bob, &at("secret"), &layer(&bytes)).0.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unauthorized { with_credentials: true, .. }), "{error}");
        let error = push(&bob, &at("public"), &content(100), &[]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unauthorized { .. }), "{error}");
    }
    let (bob, _b) = as_user(&tokens, &password("bob", "s3cret"));
    let before = tokens.server.requests().len();
    assert_eq!(push(&bob, &at("bobs"), &bytes, &[at("secret"), at("public")]).unwrap(), Pushed::Mounted);
    let log = tokens.server.log().split_off(before);
    assert!(
        log.iter().any(|line| line.contains("scope=repository%3Abobs%3Apull%2Cpush&scope=repository%3Apublic%3Apull")),
        "{log:#?}"
    );
    let more = content(60_000);
    push(&ann, &at("secret"), &more, &[]).unwrap();
    assert_eq!(push(&bob, &at("bobs"), &more, &[at("secret")]).unwrap(), Pushed::Uploaded);

    let (wrong, _w) = as_user(&tokens, &password("bob", "hunter2"));
    assert!(matches!(fetch(&wrong, &at("public"), &layer(&bytes)).0.unwrap_err().kind(), ErrorKind::Token { .. }));
    assert!(fetch(&client(quick()), &at("public"), &layer(&bytes)).0.is_err(), "nobody may read without a name");
}

/// F19: the registry stops taking the token in the middle of an upload; the next one goes on with the same session.
#[test]
fn f19_tokens_expire_mid_push() {
    let Some(tokens) = TokenServer::start(&USERS) else { return };
    let (ann, _a) = as_user(&tokens, &password("ann", "hunter2"));
    // It takes tokens for a minute after their end, so this one is good for two seconds.
    tokens.set_life(-58);
    let bytes = content(20 << 20);
    let opened = AtomicUsize::new(0);
    // A source that takes three seconds to open, once a session is there.
    let open = |from| -> std::io::Result<Box<dyn Read + Send>> {
        if opened.fetch_add(1, Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_secs(3));
        }
        Ok(Box::new(Cursor::new(bytes[from as usize..].to_vec())))
    };
    let repository = named(&tokens.registry.host(), "long");
    let descriptor = kiln_oci::descriptor::Descriptor::of(OCI_LAYER_GZIP, &bytes);
    assert_eq!(ann.push_blob(&repository, &descriptor, &open, &|_| {}).unwrap(), Pushed::Uploaded);
    let log = std::fs::read_to_string(tokens.registry.folder().join("output")).unwrap();
    let sessions =
        log.lines().filter(|line| line.contains("\"POST /v2/long/blobs/uploads/")).filter(|line| line.contains(" 202 "));
    assert_eq!(sessions.count(), 1, "{log}");
    assert!(tokens.server.requests().len() >= 2);
    assert!(fetch(&ann, &repository, &layer(&bytes)).1 == bytes);
}
