//! Tokens: how they are asked for, kept, renewed, and where credentials never go (C71, C73, F19).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kiln_registry_client::{CredentialStore, Credentials, ErrorKind, Options, RegistryOptions};

use crate::scripted::{Reply, Request, Server};
use crate::{client, content, fetch, layer, named, quick, reference, repository, with_registry};

/// A token service and a registry that takes only its tokens. Tokens are numbered; `good` says which is good now.
struct Realm {
    tokens: Server,
    registry: Server,
}

fn challenge(realm: &str) -> Reply {
    let text = format!("Bearer realm=\"{realm}\",service=\"the registry\",scope=\"repository:a/b:pull\"");
    Reply::error(401, "UNAUTHORIZED", "authentication required").with("WWW-Authenticate", text)
}

impl Realm {
    /// `answer` is the token service's, by the request's number; `good` decides whether a token is taken; `serve` is what then
    /// comes.
    fn start(
        answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
        good: impl Fn(&str, &Request) -> bool + Send + Sync + 'static,
        serve: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let count = AtomicUsize::new(0);
        let tokens = Server::start(move |request| answer(count.fetch_add(1, Ordering::Relaxed), request));
        let realm = tokens.url("/token?keep=this");
        let registry =
            Server::start(move |request| match request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
                Some(token) if good(token, request) => serve(request),
                _ => challenge(&realm),
            });
        Self { tokens, registry }
    }

    fn options(&self, credentials: Option<&Credentials>) -> (Options, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
        if let Some(credentials) = credentials {
            store.store(&self.registry.host(), credentials).unwrap();
        }
        (Options { credentials: store, ..quick() }, folder)
    }
}

fn user() -> Credentials {
    Credentials::Password { username: "user".to_owned(), password: "hunter2".to_owned() }
}

#[test]
fn tokens_are_asked_for() {
    let identity = Credentials::IdentityToken("refresh me".to_owned());
    // `user:hunter2` in base64.
    let basic = Some("Basic dXNlcjpodW50ZXIy");
    let get = "GET /token?keep=this&service=the+registry&scope=repository%3Aa%2Fb%3Apull";
    let rows = [
        (None, get, None, "", r#"{"token":"t"}"#),
        (Some(user()), get, basic, "", r#"{"access_token":"t","expires_in":300}"#),
        (Some(user()), get, basic, "", r#"{"token":"t","access_token":"t","expires_in":300.5,"issued_at":"?"}"#),
        (
            Some(identity),
            "POST /token?keep=this",
            None,
            "grant_type=refresh_token&refresh_token=refresh+me&client_id=kiln&scope=repository%3Aa%2Fb%3Apull&service=the+registry",
            r#"{"access_token":"t","refresh_token":"another"}"#,
        ),
    ];
    for (credentials, line, authorization, body, answer) in rows {
        let realm =
            Realm::start(move |_, _| Reply::new(200).body(answer), |token, _| token == "t", |_| Reply::new(200).body("hello"));
        let (options, _folder) = realm.options(credentials.as_ref());
        let client = client(options);
        for _ in 0..3 {
            fetch(&client, &repository(&realm.registry.host()), &layer(b"hello")).0.unwrap();
        }
        assert_eq!(realm.tokens.log(), [line], "one token for three blobs");
        assert_eq!(realm.registry.requests().len(), 4);
        let request = realm.tokens.requests().pop().unwrap();
        assert_eq!(request.header("authorization"), authorization);
        assert_eq!(String::from_utf8_lossy(&request.body), body);
    }
}

/// A service that knows only OAuth2's `POST` gets the password by it; one that hands out a new refresh token with each access
/// token is asked with the newest.
#[test]
fn services_that_want_a_post() {
    let answer = |_: usize, request: &Request| match request.method.as_str() {
        "GET" => Reply::new(405),
        _ => Reply::new(200).body(r#"{"access_token":"t"}"#),
    };
    let realm = Realm::start(answer, |token, _| token == "t", |_| Reply::new(200).body("hello"));
    let (options, _folder) = realm.options(Some(&user()));
    fetch(&client(options), &repository(&realm.registry.host()), &layer(b"hello")).0.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&realm.tokens.requests()[1].body),
        "grant_type=password&username=user&password=hunter2&client_id=kiln&scope=repository%3Aa%2Fb%3Apull&service=the+registry"
    );

    let answer = |count: usize, request: &Request| {
        let expected = format!("refresh_token=r{count}&");
        match String::from_utf8_lossy(&request.body).contains(&expected) {
            true => Reply::new(200).body(format!(r#"{{"access_token":"t","refresh_token":"r{}"}}"#, count + 1)),
            false => Reply::new(401),
        }
    };
    let realm = Realm::start(answer, |token, _| token == "t", |_| Reply::new(200).body("hello"));
    let (options, _folder) = realm.options(Some(&Credentials::IdentityToken("r0".to_owned())));
    let client = client(options);
    for path in ["a", "b", "c"] {
        fetch(&client, &named(&realm.registry.host(), path), &layer(b"hello")).0.unwrap();
    }
    assert_eq!(realm.tokens.requests().len(), 3);
}

/// Podman's entries for a repository: each gets its own, and the registry's is for the rest.
#[test]
fn repositories_have_their_own_credentials() {
    let server = Server::start(|request| match request.header("authorization") {
        None => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => Reply::new(200).body("hello"),
    });
    let host = server.host();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth.json");
    let text = format!(
        r#"{{"auths":{{"{host}":{{"auth":"dTpw"}},"{host}/team":{{"auth":"YTpi"}},"{host}/team/app":{{"auth":"Yzpk"}}}}}}"#
    );
    std::fs::write(&file, text).unwrap();
    let client = client(Options { credentials: CredentialStore::from_files([file]), ..quick() });
    for (path, auth) in [("team/app", "Yzpk"), ("team/x", "YTpi"), ("teams", "dTpw"), ("team/app", "Yzpk"), ("a", "dTpw")] {
        fetch(&client, &named(&host, path), &layer(b"hello")).0.unwrap();
        let last = server.requests().pop().unwrap();
        assert_eq!(last.header("authorization"), Some(format!("Basic {auth}").as_str()), "{path}");
    }
}

/// A token for one repository isn't asked to be good for the one before, too.
#[test]
fn tokens_have_the_scope_of_their_call() {
    let realm = Realm::start(|_, _| Reply::new(200).body(r#"{"token":"t"}"#), |_, _| true, |_| Reply::new(200).body("hello"));
    let client = client(realm.options(None).0);
    for path in ["a/b", "c", "a/b"] {
        fetch(&client, &named(&realm.registry.host(), path), &layer(b"hello")).0.unwrap();
    }
    let scope = |path: &str| format!("GET /token?keep=this&service=the+registry&scope=repository%3A{path}%3Apull");
    assert_eq!(realm.tokens.log(), [scope("a%2Fb"), scope("c")]);
}

#[test]
fn a_registry_token_is_sent_as_it_is() {
    let realm = Realm::start(|_, _| Reply::new(500), |token, _| token == "mine", |_| Reply::new(200).body("hello"));
    let (options, _folder) = realm.options(Some(&Credentials::RegistryToken("mine".to_owned())));
    fetch(&client(options), &repository(&realm.registry.host()), &layer(b"hello")).0.unwrap();
    assert!(realm.tokens.requests().is_empty());
}

#[test]
fn many_threads_ask_for_one_token() {
    let slow = |_: usize, _: &Request| {
        std::thread::sleep(Duration::from_millis(100));
        Reply::new(200).body(r#"{"token":"t"}"#)
    };
    let realm = Realm::start(slow, |token, _| token == "t", |_| Reply::new(200).body("hello"));
    let client = client(realm.options(None).0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| fetch(&client, &repository(&realm.registry.host()), &layer(b"hello")).0.unwrap());
        }
    });
    assert_eq!(realm.tokens.requests().len(), 1);
}

/// F19: a token that is no longer good is replaced in the middle of a transfer.
#[test]
fn tokens_expire_between_ranges() {
    let bytes = content(500_000);
    let whole = bytes.clone();
    let used = Mutex::new(Vec::<String>::new());
    // Each token is good for one answer, and each answer breaks off.
    let good = move |token: &str, _: &Request| {
        let mut used = used.lock().unwrap();
        let fresh = !used.iter().any(|old| old == token);
        used.push(token.to_owned());
        fresh
    };
    let serve = move |request: &Request| {
        let from = request.range_start().unwrap_or(0);
        let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
        Reply::new(if from == 0 { 200 } else { 206 }).with("Content-Range", range).body(&whole[from..]).cut(130_000)
    };
    let realm = Realm::start(|count, _| Reply::new(200).body(format!(r#"{{"token":"{count}"}}"#)), good, serve);
    let (result, came) = fetch(&client(realm.options(None).0), &repository(&realm.registry.host()), &layer(&bytes));
    result.unwrap();
    assert!(came == bytes);
    assert!(realm.tokens.requests().len() >= 4, "{:?}", realm.tokens.log());
}

/// A token that says that it lives for a second isn't sent after it.
#[test]
fn stale_tokens_are_not_sent() {
    let answer = |count: usize, _: &Request| Reply::new(200).body(format!(r#"{{"token":"{count}","expires_in":1}}"#));
    let realm = Realm::start(answer, |_, _| true, |_| Reply::new(200).body("hello"));
    let client = client(realm.options(None).0);
    for _ in 0..2 {
        fetch(&client, &repository(&realm.registry.host()), &layer(b"hello")).0.unwrap();
        std::thread::sleep(Duration::from_millis(1050));
    }
    let sent: Vec<_> =
        realm.registry.requests().iter().map(|request| request.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some("Bearer 0".to_owned()), Some("Bearer 1".to_owned())]);
}

#[test]
fn token_services_that_fail() {
    let rows = [
        (Reply::new(401).body(r#"{"details":"incorrect username or password"}"#), 1, "incorrect username or password"),
        (Reply::error(403, "DENIED", "no"), 1, "403 Forbidden (DENIED: no)"),
        (Reply::new(503), 5, "503"),
        (Reply::new(200).body("{}"), 1, "has no token"),
        (Reply::new(200).body(r#"{"token":""}"#), 1, "has no token"),
        (Reply::new(200).body("hunter2"), 1, "not a token"),
        (Reply::new(200).body("{\"token\":\"a\\nb\"}"), 1, "no header can have"),
        (Reply::new(200).body(vec![b' '; 2 << 20]), 1, "the token is larger"),
        // C71: the service may not send the credentials on.
        (Reply::new(307).with("Location", "/elsewhere"), 1, "307"),
        // A fresh token that isn't taken: no endless round.
        (Reply::new(200).body(r#"{"token":"bad"}"#), 2, "not allowed with the stored credentials: 401"),
    ];
    for (reply, requests, words) in rows {
        let shown = format!("{reply:?}");
        let realm = Realm::start(move |_, _| reply.clone(), |_, _| false, |_| Reply::new(500));
        let (options, _folder) = realm.options(Some(&user()));
        let error = client(options).fetch_manifest(&reference(&format!("{}/a/b:1", realm.registry.host()))).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
        assert!(realm.tokens.requests().len() <= requests, "{shown:.80}: {:?}", realm.tokens.log());
        assert!(realm.tokens.log().iter().all(|line| !line.contains("elsewhere")));
    }
}

/// C71: a registry can't have the credentials sent to wherever it likes.
#[test]
fn realms_are_refused() {
    let rows = [
        ("http://169.254.169.254/token", "plain http at another host"),
        ("https://169.254.169.254/token", "link-local"),
        ("https://[fd00:ec2::254]/token", "link-local"),
        ("http://auth.example/token", "plain http at another host"),
        ("https://user:pw@auth.example/token", "user name"),
        ("file:///etc/passwd", "neither https nor http"),
        ("/token", "not a URL"),
    ];
    for (realm, words) in rows {
        let server = Server::start(move |_| challenge(realm));
        let folder = tempfile::tempdir().unwrap();
        let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
        store.store(&server.host(), &user()).unwrap();
        let error =
            fetch(&client(Options { credentials: store, ..quick() }), &repository(&server.host()), &layer(b"x")).0.unwrap_err();
        assert!(error.to_string().contains(words), "{realm}: {error}");
        assert_eq!((server.requests().len(), server.authorized()), (1, 0), "{realm}");
    }
}

/// C71: an identity token isn't shown to a token service of another domain than the registry's; the settings can say otherwise.
#[test]
fn identity_tokens_stay_at_home() {
    let service = "https://auth.invalid/token";
    let server = Server::start(move |_| challenge(service));
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    store.store(&server.host(), &Credentials::IdentityToken("refresh me".to_owned())).unwrap();
    for (named, words) in [(None, "another domain"), (Some("auth.invalid"), "cannot reach auth.invalid")] {
        let settings = RegistryOptions { token_service: named.map(str::to_owned), ..RegistryOptions::default() };
        let options = Options { credentials: store.clone(), ..with_registry(&server.host(), settings) };
        let error = fetch(&client(options), &repository(&server.host()), &layer(b"x")).0.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("refresh me"), "{error}");
    }
}

/// C73: a helper that doesn't work ends the call; the registry hears no second request.
#[test]
fn broken_helpers_end_the_call() {
    let server = Server::start(|_| Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, r#"{"credsStore":"surely-not-installed"}"#).unwrap();
    let options = Options { credentials: CredentialStore::from_docker_config(&file), ..quick() };
    let error = fetch(&client(options), &repository(&server.host()), &layer(b"x")).0.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Credentials(_)), "{error}");
    assert!(error.to_string().contains("docker-credential-surely-not-installed") && error.hint().is_some(), "{error}");
    assert_eq!((server.requests().len(), server.authorized()), (1, 0));
}

/// Credentials of one registry are not offered to another, though it asks in the same words.
#[test]
fn each_host_has_its_own_credentials() {
    let ask = |_: &Request| Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\"");
    let (one, two) = (Server::start(ask), Server::start(ask));
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    store.store(&one.host(), &user()).unwrap();
    let client = client(Options { credentials: store, ..quick() });
    for server in [&one, &two, &one, &two] {
        fetch(&client, &repository(&server.host()), &layer(b"x")).0.unwrap_err();
    }
    assert!(one.authorized() > 0);
    assert_eq!(two.authorized(), 0);
}

#[test]
fn logins_are_checked_against_the_token_service() {
    let right = AtomicBool::new(false);
    let answer = move |_: usize, request: &Request| {
        right.store(request.header("authorization") == Some("Basic dXNlcjpodW50ZXIy"), Ordering::Relaxed);
        if right.load(Ordering::Relaxed) { Reply::new(200).body(r#"{"token":"t"}"#) } else { Reply::new(401) }
    };
    let realm = Realm::start(answer, |token, _| token == "t", |_| Reply::new(200).body("{}"));
    let host = realm.registry.host();
    let client = client(quick());
    client.check_login(&host, &user()).unwrap();
    let wrong = Credentials::Password { username: "user".to_owned(), password: "x".to_owned() };
    let error = client.check_login(&host, &wrong).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Token { .. }) && error.hint().unwrap().contains("user name"), "{error}");
}
