//! ADD of addresses against a small server that answers as each row says.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;

/// A server on loopback: answers each path from a table, and remembers what it was asked.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Answer = Box<dyn Fn(&str, &str) -> String + Send>;

impl Server {
    /// `answer` gets the path and the header lines of a request, and gives the whole response.
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut first = String::new();
                reader.read_line(&mut first).unwrap();
                let mut head = String::new();
                while reader.read_line(&mut head).unwrap() > 2 {}
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                log.lock().unwrap().push(format!("{path} {}", head.to_lowercase().contains("if-")));
                let _ = stream.write_all(answer(&path, &head).as_bytes());
            }
        });
        Self { address, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn store() -> (tempfile::TempDir, Store) {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(&temp.path().join("store")).unwrap();
    (temp, store)
}

fn get(url: &str, store: &Store) -> Result<Fetched, HttpError> {
    fetch(url, store, None, &Grants::default(), &|_, _| {})
}

#[test]
fn what_did_not_change_is_not_sent_again() {
    let server = Server::start(Box::new(|path, head| {
        let head = head.to_lowercase();
        match path {
            "/etag" if head.contains("if-none-match: \"1\"") => response("304 Not Modified", "ETag: \"1\"\r\n", ""),
            "/etag" => response("200 OK", "ETag: \"1\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "one"),
            "/date" if head.contains("if-modified-since: sun, 06 nov") => response("304 Not Modified", "", ""),
            "/date" => response("200 OK", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "two"),
            _ => response("200 OK", "", "three"),
        }
    }));
    let (_temp, store) = store();
    let date = UNIX_EPOCH + Duration::from_secs(784_111_777);
    for (path, content, modified, again) in [
        ("/etag", "one", Some(date), "/etag true"),
        // A server may say "not modified since" of another file.
        ("/date", "two", Some(date), "/date false"),
        ("/plain", "three", None, "/plain false"),
    ] {
        for expected in [format!("{path} false"), again.to_owned()] {
            let fetched = get(&server.url(path), &store).unwrap();
            assert_eq!(std::io::read_to_string(fetched.open().unwrap()).unwrap(), content);
            assert_eq!((fetched.digest, fetched.size), (Digest::of(content.as_bytes()), content.len() as u64));
            assert_eq!((fetched.last_modified, &fetched.name[..]), (modified, &path.as_bytes()[1..]));
            assert_eq!(server.asked(), [expected]);
        }
    }
    // With its digest known there's nothing to ask.
    let digest = Digest::of(b"one");
    fetch(&server.url("/etag"), &store, Some(&digest), &Grants::default(), &|_, _| {}).unwrap();
    assert_eq!(server.asked(), Vec::<String>::new());
    // What was forgotten is fetched anew.
    store.blobs().discard(&digest).unwrap();
    get(&server.url("/etag"), &store).unwrap();
    assert_eq!(server.asked(), ["/etag false"]);
}

#[test]
fn what_goes_wrong_is_named() {
    let server = Server::start(Box::new(|path, _| match path {
        "/gone" => response("404 Not Found", "", "no"),
        "/loop" => response("302 Found", "Location: /loop\r\n", ""),
        "/file" => response("302 Found", "Location: file:///etc/passwd\r\n", ""),
        "/short" => "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nfour".to_owned(),
        _ => response("200 OK", "", "x"),
    }));
    let (_temp, store) = store();
    let host = &server.address;
    for (url, message) in [
        (server.url("/gone"), format!("cannot fetch `http://{host}/gone`: the server answered 404 Not Found")),
        (server.url("/loop"), format!("cannot fetch `http://{host}/loop`: it was redirected more than 5 times")),
        (server.url("/file"), format!("cannot fetch `http://{host}/file`: it was redirected to `file:///etc/passwd`")),
        (server.url("/short"), format!("cannot fetch `http://{host}/short`")),
        (
            format!("http://me:canary@{host}/gone"),
            format!("cannot fetch `http://{host}/gone`: the server answered 404 Not Found"),
        ),
        ("http://me:canary@127.0.0.1:1/x".to_owned(), "cannot fetch `http://127.0.0.1:1/x`".to_owned()),
        ("ftp://me:canary@h/x".to_owned(), "`ftp://h/x` is not an http or https address".to_owned()),
        ("http://me:canary@".to_owned(), "`…@` is not an http or https address".to_owned()),
    ] {
        let error = get(&url, &store).unwrap_err();
        assert_eq!(error.to_string(), message, "{url}");
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(at) = cause {
            assert!(!format!("{at} {at:?}").contains("canary"), "{at:?}");
            cause = at.source();
        }
    }
    let wrong = Digest::of(b"something else");
    let error = fetch(&server.url("/x"), &store, Some(&wrong), &Grants::default(), &|_, _| {}).unwrap_err();
    assert!(matches!(error, HttpError::Checksum { .. }), "{error}");
}

#[test]
fn redirects_are_followed_and_progress_is_told() {
    let server = Server::start(Box::new(|path, _| match path {
        "/1" => response("301 Moved Permanently", "Location: /2\r\n", ""),
        "/2" => response("307 Temporary Redirect", "Location: /3/real\r\n", ""),
        _ => response("200 OK", "", "content"),
    }));
    let (_temp, store) = store();
    let seen = Mutex::new(Vec::new());
    let fetched =
        fetch(&server.url("/1"), &store, None, &Grants::default(), &|done, total| seen.lock().unwrap().push((done, total)))
            .unwrap();
    assert_eq!((&fetched.name[..], fetched.size), (&b"1"[..], 7));
    assert_eq!(*seen.lock().unwrap(), [(0, Some(7)), (7, Some(7))]);
}

#[test]
fn names_come_from_the_path() {
    for (url, name) in [
        ("http://h/a/b.tar", &b"b.tar"[..]),
        ("http://h/a/b/", b"b"),
        ("http://h/a%20b?c/d#e/f", b"a b"),
        ("http://h/a%2Fb", b"b"),
        ("http://h/%ff", b"\xff"),
        ("http://h/100%", b"100%"),
        ("http://h/", b"__unnamed__"),
        ("http://h", b"__unnamed__"),
        ("http://h/a%2F..", b"__unnamed__"),
        ("http://h/%00", b"__unnamed__"),
    ] {
        assert_eq!(name_of(&Url::parse(url).unwrap()), name, "{url}");
    }
}

#[test]
fn private_addresses_are_known() {
    for (address, private) in [
        ("127.0.0.1", true),
        ("10.1.2.3", true),
        ("172.16.0.1", true),
        ("192.168.1.1", true),
        ("169.254.169.254", true),
        ("100.64.0.1", true),
        ("0.0.0.0", true),
        ("8.8.8.8", false),
        ("100.128.0.1", false),
        ("::1", true),
        ("fe80::1", true),
        ("fd00::1", true),
        ("::ffff:10.0.0.1", true),
        ("64:ff9b::a00:1", true),
        ("2606:4700::1111", false),
    ] {
        assert_eq!(is_private(address.parse().unwrap()), private, "{address}");
    }
}

#[test]
fn dates_are_read() {
    for (text, expected) in [
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
        ("Sunday, 06-Nov-94 08:49:37 GMT", None),
        ("yesterday", None),
        ("", None),
    ] {
        assert_eq!(http_date(text), expected.map(|s| UNIX_EPOCH + Duration::from_secs(s)), "{text}");
    }
}

/// A secret reaches the server that it is for, and none that this one leads to.
#[test]
fn secrets_are_credentials_for_one_server() {
    let (_temp, store) = store();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let remember = |name: &'static str, location: String| {
        let heads = Arc::clone(&heads);
        Server::start(Box::new(move |path, head| {
            let line = head.lines().find(|line| line.to_lowercase().starts_with("authorization:")).unwrap_or("none");
            heads.lock().unwrap().push(format!("{name}{path} {line}"));
            match path {
                "/same" => response("302 Found", "Location: /end\r\n", ""),
                "/away" => response("302 Found", &format!("Location: {location}\r\n"), ""),
                _ => response("200 OK", "", path),
            }
        }))
    };
    let other = remember("other", String::new());
    let first = remember("first", other.url("/end"));
    let id = format!("HTTP_AUTH_TOKEN_{}", first.address);
    let grants = Grants { secrets: [(id, Secret::new(b"tok\n".to_vec()))].into(), ..Grants::default() };
    let user = first.url("/user").replace("http://", "http://me:pw@");
    for url in [first.url("/same"), first.url("/away"), other.url("/plain"), user] {
        fetch(&url, &store, None, &grants, &|_, _| {}).unwrap();
    }
    let heads = heads.lock().unwrap();
    let lower: Vec<String> = heads.iter().map(|line| line.replace("Authorization", "authorization")).collect();
    assert_eq!(
        lower,
        [
            "first/same authorization: Bearer tok",
            "first/end authorization: Bearer tok",
            "first/away authorization: Bearer tok",
            "other/end none",
            "other/plain none",
            "first/user authorization: Basic bWU6cHc=",
        ]
    );
}
