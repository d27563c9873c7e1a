//! Blobs from a server that cuts, lies, stalls and redirects (C70, C74, C76, F16–F18).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiln_oci::descriptor::Descriptor;
use kiln_oci::media_type::OCI_LAYER_GZIP;
use kiln_registry_client::{CredentialStore, Credentials, ErrorKind, Options, RegistryOptions, RetryPolicy};

use crate::scripted::{Reply, Server};
use crate::{client, content, fetch, layer, quick, repository, warnings, with_registry};

fn partial(bytes: &[u8], from: usize) -> Reply {
    Reply::new(206).with("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())).body(&bytes[from..])
}

/// F16: cut at any offset, the download goes on where it broke, whether the server knows `Range` or not.
#[test]
fn cut_downloads_go_on() {
    const SIZE: usize = 200_000;
    let bytes = content(SIZE);
    for ranges in [true, false] {
        for at in [0, 1, 8191, 8192, 65_536, 100_000, SIZE - 1] {
            for announced in [true, false] {
                let (whole, tries) = (bytes.clone(), AtomicUsize::new(0));
                let server = Server::start(move |request| {
                    let from = request.range_start().filter(|_| ranges);
                    let reply = from.map_or_else(|| Reply::new(200).body(whole.clone()), |from| partial(&whole, from));
                    let reply = if announced { reply } else { reply.no_length() };
                    if tries.fetch_add(1, Ordering::Relaxed) == 0 { reply.cut(at) } else { reply }
                });
                let (result, came) = fetch(&client(quick()), &repository(&server.host()), &layer(&bytes));
                result.unwrap_or_else(|error| panic!("ranges {ranges}, cut at {at}, announced {announced}: {error}"));
                assert!(came == bytes, "ranges {ranges}, cut at {at}, announced {announced}");
                let requests = server.requests();
                assert_eq!(requests.len(), 2);
                // The client may lose what was on the way when the connection broke, but asks for nothing that it has.
                let asked = requests[1].range_start();
                assert!(asked.unwrap_or(0) <= at && (announced || asked == (at > 0).then_some(at)), "{asked:?} after {at}");
            }
        }
    }
}

/// Twenty cuts move the content once, with as many tries as make progress.
#[test]
fn progress_renews_patience() {
    let bytes = content(20 * 100_000);
    let whole = bytes.clone();
    let server = Server::start(move |request| match request.range_start() {
        Some(from) => partial(&whole, from).cut(100_000),
        None => Reply::new(200).body(whole.clone()).cut(100_000),
    });
    let (result, came) = fetch(&client(quick()), &repository(&server.host()), &layer(&bytes));
    result.unwrap();
    assert!(came == bytes);
    assert!((20..=24).contains(&server.requests().len()), "{:?}", server.log());
    // Without progress there is an end.
    let server = Server::start(|_| Reply::new(200).body(content(10)).cut(0));
    let (result, _) = fetch(&client(quick()), &repository(&server.host()), &layer(&content(10)));
    assert!(matches!(result.unwrap_err().kind(), ErrorKind::Interrupted { .. }));
    assert_eq!(server.requests().len(), 5);
}

/// C76, F16: what isn't the descriptor's content is never a success, and is not asked for again in vain.
#[test]
fn lies_are_found() {
    let bytes = content(10_000);
    let mut other = bytes.clone();
    other[9_999] ^= 0x80;
    let longer = [&bytes[..], b"x"].concat();
    let rows = [
        ("another content", Reply::new(200).body(other), "digest mismatch"),
        ("announced too long", Reply::new(200).body(longer.clone()), "size mismatch: 10001"),
        ("too long, unannounced", Reply::new(200).body(longer).no_length(), "size mismatch: 10001"),
        ("announced too short", Reply::new(200).body(&bytes[..9_000]), "size mismatch: 9000"),
        ("endless", Reply::new(200).body(vec![0; 5 << 20]).no_length(), "size mismatch"),
        ("empty", Reply::new(200), "size mismatch: 0"),
        ("a range that nobody asked for", partial(&bytes, 5_000), "range"),
        ("no content", Reply::new(204), "204"),
        ("a page", Reply::new(403).body("<html>\x1b[31mno\u{7}</html>"), "denied access: 403 Forbidden (<html> [31mno </html>)"),
    ];
    for (name, reply, words) in rows {
        let server = Server::start(move |_| reply.clone());
        let mut sink = Vec::new();
        let error = client(quick()).fetch_blob(&repository(&server.host()), &layer(&bytes), &mut sink, &|_| {}).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert!(sink.len() <= bytes.len(), "{name}");
        assert_eq!(server.requests().len(), 1, "{name}");
    }
    // After a cut, the other half may be of something else.
    let whole = bytes.clone();
    let server = Server::start(move |request| match request.range_start() {
        None => Reply::new(200).body(whole.clone()).cut(5_000),
        Some(from) => partial(&vec![0; whole.len()], from),
    });
    let error = fetch(&client(quick()), &repository(&server.host()), &layer(&bytes)).0.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::DigestMismatch { .. }), "{error}");
}

/// F17: what may pass is tried again, a bounded number of times; a `no` is not.
#[test]
fn retries_by_script() {
    let ok = || Reply::new(200).body("hello");
    let busy = |status| Reply::error(status, "TOOMANYREQUESTS", "slow down");
    let rows: Vec<(&str, Vec<Reply>, Result<(), &str>, usize)> = vec![
        ("at once", vec![ok()], Ok(()), 1),
        ("500", vec![Reply::new(500), ok()], Ok(()), 2),
        ("502 503 504", vec![Reply::new(502), Reply::new(503), Reply::new(504), ok()], Ok(()), 4),
        ("408", vec![Reply::new(408), ok()], Ok(()), 2),
        ("429", vec![busy(429), ok()], Ok(()), 2),
        ("429 and a date", vec![busy(429).with("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"), ok()], Ok(()), 2),
        ("hang up", vec![Reply::hang_up(), Reply::hang_up(), ok()], Ok(()), 3),
        ("nonsense", vec![Reply::new(200).with("Content-Length", "a lot"), ok()], Ok(()), 2),
        ("429 to the end", vec![busy(429); 6], Err("too many requests: 429 Too Many Requests (TOOMANYREQUESTS: slow down)"), 5),
        ("500 to the end", vec![Reply::new(500).body("oops"); 6], Err("answered 500 Internal Server Error (oops)"), 5),
        ("an hour", vec![busy(429).with("Retry-After", "3600"), ok()], Err("too many requests"), 1),
        ("400", vec![Reply::new(400), ok()], Err("400"), 1),
        ("401", vec![Reply::error(401, "UNAUTHORIZED", "who?"), ok()], Err("without credentials: 401"), 1),
        ("403", vec![Reply::error(403, "DENIED", "no"), ok()], Err("denied access: 403 Forbidden (DENIED: no)"), 1),
        ("404", vec![Reply::error(404, "BLOB_UNKNOWN", "none"), ok()], Err("not found"), 1),
        ("405", vec![Reply::new(405), ok()], Err("405"), 1),
        ("410", vec![Reply::new(410), ok()], Err("410"), 1),
        ("416", vec![Reply::new(416), ok()], Err("416"), 1),
        ("451", vec![Reply::new(451), ok()], Err("451"), 1),
        ("501", vec![Reply::new(501), ok()], Err("501"), 1),
    ];
    for (name, script, expected, requests) in rows {
        let server = Server::script(script);
        let (listener, heard) = warnings();
        let client = client(Options { warnings: listener, ..quick() });
        let (result, came) = fetch(&client, &repository(&server.host()), &layer(b"hello"));
        match (result, expected) {
            (Ok(()), Ok(())) => assert_eq!(came, b"hello", "{name}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (result, _) => panic!("{name}: {result:?}"),
        }
        assert_eq!(server.requests().len(), requests, "{name}: {:?}", server.log());
        assert_eq!(heard.lock().unwrap().len(), requests - 1, "{name}: each retry is told of");
    }
}

#[test]
fn retry_after_is_honoured() {
    for header in ["1", "Wed, 21 Oct 2015 07:28:01 GMT"] {
        let later = Reply::new(503).with("Retry-After", header).with("Date", "Wed, 21 Oct 2015 07:28:00 GMT");
        let server = Server::script(vec![later, Reply::new(200).body("hello")]);
        let started = Instant::now();
        fetch(&client(quick()), &repository(&server.host()), &layer(b"hello")).0.unwrap();
        let waited = started.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&waited), "{header}: {waited:?}");
    }
}

/// F18: a transfer that stands still ends; one that is slow does not.
#[test]
fn stalls_end_and_slowness_does_not() {
    let options = || Options {
        stall_timeout: Duration::from_millis(400),
        retry: RetryPolicy { attempts: 1, ..RetryPolicy::default() },
        ..quick()
    };
    let long = Duration::from_secs(20);
    let rows = [
        ("after some bytes", Reply::new(200).body("hello").cut(2).hold(long)),
        ("before the first", Reply::new(200).body("hello").cut(0).hold(long)),
        ("no answer", Reply::new(200).body("hello").drip(long)),
    ];
    for (name, reply) in rows {
        let server = Server::start(move |_| reply.clone());
        let started = Instant::now();
        let error = fetch(&client(options()), &repository(&server.host()), &layer(b"hello")).0.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Stalled(_)) && error.is_temporary(), "{name}: {error}");
        assert!(started.elapsed() < Duration::from_secs(3), "{name}");
    }
    let slow = Server::start(|_| Reply::new(200).body("hello world").drip(Duration::from_millis(100)));
    fetch(&client(options()), &repository(&slow.host()), &layer(b"hello world")).0.unwrap();
}

#[test]
fn cancelling_ends_a_call() {
    let server = Server::start(|_| Reply::new(200).body("hello").cut(2).hold(Duration::from_secs(20)));
    let options = quick();
    let cancelled = options.cancelled.clone();
    let client = client(options);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| fetch(&client, &repository(&server.host()), &layer(b"hello")).0.unwrap_err());
        std::thread::sleep(Duration::from_millis(200));
        cancelled.store(true, Ordering::Relaxed);
        assert!(matches!(call.join().unwrap().kind(), ErrorKind::Cancelled));
    });
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_failing_sink_ends_a_call() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let server = Server::start(|_| Reply::new(200).body("hello"));
    let error = client(quick()).fetch_blob(&repository(&server.host()), &layer(b"hello"), &mut Full, &|_| {}).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Local(cause) if cause.kind() == std::io::ErrorKind::StorageFull), "{error}");
    assert_eq!(server.requests().len(), 1);
}

/// A registry that asks for a password, with one in `config.json`; what it serves depends on the path.
fn guarded(target: String) -> (Server, Options, tempfile::TempDir) {
    let server = Server::start(move |request| match request.header("authorization") {
        None => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => Reply::new(307).with("Location", target.clone()),
    });
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    let user = Credentials::Password { username: "user".to_owned(), password: "hunter2".to_owned() };
    store.store(&server.host(), &user).unwrap();
    (server, Options { credentials: store, ..quick() }, folder)
}

/// C70: credentials don't follow a redirect to another host, whatever it asks for.
#[test]
fn redirects_carry_no_credentials() {
    let challenges = [
        "Bearer realm=\"http://127.0.0.1:1/token\",service=\"x\"",
        "Basic realm=\"x\"",
        "Bearer realm=\"https://evil.example/\"",
    ];
    for challenge in challenges {
        let other = Server::start(move |_| Reply::new(401).with("WWW-Authenticate", challenge));
        let (server, options, _folder) = guarded(other.url("/elsewhere?sig=secret"));
        let error = fetch(&client(options), &repository(&server.host()), &layer(b"hello")).0.unwrap_err();
        assert_eq!(other.authorized(), 0, "{challenge}");
        assert_eq!(other.requests().len(), 1, "{challenge}");
        assert!(matches!(error.kind(), ErrorKind::Elsewhere { .. }), "{error}");
        assert!(error.to_string().contains(&other.url("/elsewhere")) && !error.to_string().contains("secret"), "{error}");
    }
    // The same host on another port is another host, and so is the same address by another name.
    let storage = Server::start(|_| Reply::new(200).body("hello"));
    let (server, options, _folder) = guarded(storage.url("/blob").replace("127.0.0.1", "localhost"));
    fetch(&client(options), &repository(&server.host()), &layer(b"hello")).0.unwrap();
    assert_eq!((storage.authorized(), storage.requests().len()), (0, 1));
}

#[test]
fn redirects_are_followed_so_far() {
    // Where the first answer points, and how it ends. `{self}` is the registry.
    let rows: [(&str, Result<(), &str>); 7] = [
        ("/0", Ok(())),
        ("{self}/0", Ok(())),
        ("/4", Ok(())),
        ("/5", Err("too many redirects")),
        ("http://169.254.169.254/latest/meta-data/", Err("link-local")),
        ("http://[fe80::1]/", Err("link-local")),
        ("ftp://127.0.0.1/", Err("neither https nor http")),
    ];
    for (location, expected) in rows {
        let server = Server::start(move |request| {
            let host = request.header("host").unwrap_or_default().to_owned();
            match request.target.trim_start_matches('/').parse::<usize>() {
                // So many more redirects to the end.
                Ok(0) => Reply::new(200).body("hello"),
                Ok(left) => Reply::new(302).with("Location", format!("/{}", left - 1)),
                Err(_) => Reply::new(307).with("Location", location.replace("{self}", &format!("http://{host}"))),
            }
        });
        match (fetch(&client(quick()), &repository(&server.host()), &layer(b"hello")).0, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{location}: {error}"),
            (result, _) => panic!("{location}: {result:?} {:?}", server.log()),
        }
    }
}

/// C74: where nobody said that a host is to be spoken to without TLS, nothing is said to it without TLS.
#[test]
fn no_plain_http_unasked() {
    let rows = [
        (RegistryOptions::default(), true),
        (RegistryOptions { plain_http: Some(false), ..RegistryOptions::default() }, false),
        (RegistryOptions { insecure_skip_verify: true, ..RegistryOptions::default() }, false),
        (RegistryOptions { plain_http: Some(true), insecure_skip_verify: true, ..RegistryOptions::default() }, true),
    ];
    for (settings, reached) in rows {
        let server = Server::start(|_| Reply::new(200).body("hello"));
        let options = Options {
            retry: RetryPolicy { attempts: 1, ..RetryPolicy::default() },
            ..with_registry(&server.host(), settings.clone())
        };
        let (result, _) = fetch(&client(options), &repository(&server.host()), &layer(b"hello"));
        assert_eq!((result.is_ok(), server.log().iter().any(|line| line.starts_with("GET"))), (reached, reached), "{settings:?}");
    }
}

/// C72: the URLs of a foreign layer are nobody's business but their author's.
#[test]
fn foreign_urls_are_not_fetched() {
    let trap = Server::start(|_| Reply::new(200).body("hello"));
    let server = Server::start(|_| Reply::error(404, "BLOB_UNKNOWN", ""));
    let mut descriptor: Descriptor = layer(b"hello");
    descriptor.urls = vec![trap.url("/layer")];
    assert_eq!(descriptor.media_type, OCI_LAYER_GZIP);
    let error = fetch(&client(quick()), &repository(&server.host()), &descriptor).0.unwrap_err();
    assert!(error.is_not_found());
    assert!(trap.requests().is_empty());
}
