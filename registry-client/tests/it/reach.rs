//! How hosts are reached: certificates by folder, rules for names, proxies, HTTP/2.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln_registry_client::{
    Client, CredentialStore, Credentials, ErrorKind, Mirror, Options, Proxies, RegistryOptions, Repository, Rule, Serves,
};

use crate::nginx::{Front, Nginx};
use crate::registry_process::{Kind, Registry};
use crate::scripted::{Reply, Server};
use crate::{client, content, fetch, layer, named, quick, reference, with_registry};

fn push(client: &Client, repository: &Repository, bytes: &[u8]) -> kiln_registry_client::Result<()> {
    let open = |from| -> std::io::Result<Box<dyn std::io::Read + Send>> {
        Ok(Box::new(std::io::Cursor::new(bytes[from as usize..].to_vec())))
    };
    client.push_blob(repository, &layer(bytes), &open, &|_| {}).map(drop)
}

/// A folder of certificates for a host, with these files of `from`.
fn certs(folder: &Path, host: &str, from: &Path, names: &[(&str, &str)]) -> PathBuf {
    let certs = folder.join(host);
    fs::create_dir_all(&certs).unwrap();
    for (name, source) in names {
        fs::copy(from.join(source), certs.join(name)).unwrap();
    }
    folder.to_owned()
}

/// `certs.d/HOST:PORT` as docker and podman have it: authorities, and a certificate that is shown.
#[test]
fn certificates_by_folder() {
    let Some(registry) = Registry::start(Kind::ClientCertificates) else { return };
    let (name, from) = (registry.name(), registry.folder());
    let ca = ("own.crt", "ca.pem");
    let (cert, key) = (("me.cert", "client.cert"), ("me.key", "client.key"));
    let rows: [(&str, &[(&str, &str)], Option<&str>); 6] = [
        ("whole", &[ca, cert, key], None),
        ("no certificate is shown", &[ca], Some("connection")),
        ("the authority isn't known", &[cert, key], Some("no TLS connection")),
        ("no key", &[ca, cert], Some("me.key")),
        ("a key that doesn't fit", &[ca, cert, ("me.key", "key.pem")], Some("me.cert")),
        ("no certificate in it", &[("own.crt", "ca.key")], Some("own.crt")),
    ];
    for (case, files, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        // A folder without anything for this host is passed over, one after the first that has something isn't looked at.
        let folders = vec![
            other.path().to_owned(),
            certs(folder.path(), &name, from, files),
            certs(other.path(), "localhost:1", from, &[("bad.crt", "ca.key")]),
        ];
        let client = client(Options { certs_folders: folders, ..quick() });
        match (client.ping(&name), expected) {
            (Ok(()), None) => {
                let bytes = content(1 << 20);
                push(&client, &named(&name, "a/b"), &bytes).unwrap();
                assert!(fetch(&client, &named(&name, "a/b"), &layer(&bytes)).1 == bytes);
            }
            (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{case}: {error}"),
            (result, _) => panic!("{case}: {result:?}"),
        }
    }
    // The same from the settings.
    let at = |name: &str| from.join(name);
    let settings = RegistryOptions {
        ca_file: Some(at("ca.pem")),
        client_certificate: Some((at("client.cert"), at("client.key"))),
        ..RegistryOptions::default()
    };
    client(with_registry(&name, settings)).ping(&name).unwrap();
}

/// C70 for certificates: a host that the registry redirects to isn't shown what proves who is asking, though it asks for it.
/// And HTTP/2 is spoken where it is offered.
#[test]
fn c70_certificates_are_shown_to_the_registry_alone() {
    let Some(registry) = Registry::start(Kind::ClientCertificates) else { return };
    let storage = Server::start(|_| Reply::new(200).body("hello"));
    let Some(elsewhere) = Nginx::start(&storage.host(), Front { tls: Some(registry.folder()), ..Front::default() }) else {
        return;
    };
    let target = format!("https://{}/blob", elsewhere.name());
    let redirecting = Server::start(move |_| Reply::new(307).with("Location", target.clone()));
    let Some(front) = Nginx::start(&redirecting.host(), Front { tls: Some(registry.folder()), ..Front::default() }) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let files = [("own.crt", "ca.pem"), ("me.cert", "client.cert"), ("me.key", "client.key")];
    let folders = vec![certs(folder.path(), &front.name(), registry.folder(), &files)];
    let client = client(Options { certs_folders: folders, ..quick() });
    for _ in 0..2 {
        fetch(&client, &named(&front.name(), "a"), &layer(b"hello")).0.unwrap();
    }
    let (shown, not_shown) = (front.log(2), elsewhere.log(2));
    assert!(shown.iter().all(|line| line.contains("HTTP/2.0 SUCCESS")), "{shown:?}");
    assert!(not_shown.iter().all(|line| line.contains("HTTP/2.0 NONE")), "{not_shown:?}");
    assert_eq!((shown.len(), not_shown.len()), (2, 2));
}

/// Many transfers at once over HTTP/2, which share one connection.
#[test]
fn http2_carries_many_transfers() {
    let Some(tls) = Registry::start(Kind::Tls) else { return };
    let Some(backend) = Registry::start(Kind::Plain) else { return };
    let Some(front) = Nginx::start(&backend.host(), Front { tls: Some(tls.folder()), ..Front::default() }) else { return };
    let settings = RegistryOptions { ca_file: Some(tls.ca_file()), ..RegistryOptions::default() };
    let client = client(with_registry(&front.name(), settings));
    let repository = named(&front.name(), "x");
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (client, repository) = (&client, &repository);
            scope.spawn(move || {
                let bytes = content((3 << 20) + number);
                push(client, repository, &bytes).unwrap();
                assert!(fetch(client, repository, &layer(&bytes)).1 == bytes);
            });
        }
    });
    let log = front.log(18);
    assert!(log.len() >= 18 && log.iter().all(|line| line.contains(" HTTP/2.0 ")), "{log:?}");
}

#[test]
fn rules_for_names() {
    let (Some(one), Some(two)) = (Registry::start(Kind::Plain), Registry::start(Kind::Plain)) else { return };
    let Some(tls) = Registry::start(Kind::Tls) else { return };
    let bytes = content(2000);
    push(&client(quick()), &named(&one.host(), "mirror/base"), &bytes).unwrap();
    push(&client(quick()), &named(&two.host(), "team/app"), &bytes).unwrap();
    let rule = |prefix: String, location: String| Rule { prefix, location, ..Rule::default() };
    let blocked = format!("{}/blocked", two.host());
    let rules = vec![
        rule("docker.io/library".to_owned(), format!("{}/mirror", one.host())),
        rule(format!("{}/renamed", two.host()), format!("{}/team", two.host())),
        Rule { blocked: true, ..rule(blocked.clone(), String::new()) },
        // No TLS there, and TLS without a certificate that could be checked.
        Rule { insecure: true, ..rule(two.name(), String::new()) },
        Rule { insecure: true, ..rule(tls.name(), String::new()) },
        Rule {
            mirrors: vec![
                Mirror { serves: Serves::Tags, ..Mirror::new(one.host()) },
                Mirror { insecure: true, ..Mirror::new(two.name()) },
            ],
            ..rule("mirrored.invalid".to_owned(), String::new())
        },
    ];
    let client = client(Options { rules, ..quick() });
    fetch(&client, &named("docker.io", "library/base"), &layer(&bytes)).0.unwrap();
    fetch(&client, &named(&two.host(), "renamed/app"), &layer(&bytes)).0.unwrap();
    fetch(&client, &named("mirrored.invalid", "team/app"), &layer(&bytes)).0.unwrap();
    for host in [two.name(), tls.name()] {
        client.ping(&host).unwrap();
        push(&client, &named(&host, "insecure"), &bytes).unwrap();
        fetch(&client, &named(&host, "insecure"), &layer(&bytes)).0.unwrap();
    }
    // A push goes to the name itself, whatever stands in its place for pulls.
    push(&client, &named(&two.host(), "renamed/other"), &bytes).unwrap();
    assert!(client.has_blob(&named(&two.host(), "renamed/other"), &layer(&bytes).digest).unwrap());
    for name in [format!("{blocked}/x:1"), format!("{blocked}:1")] {
        let error = client.fetch_manifest(&reference(&name)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Blocked { .. }) && error.to_string().contains(&blocked), "{error}");
    }
    let error = push(&client, &named(&two.host(), "blocked/x"), &bytes).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Blocked { .. }), "{error}");
}

/// C74: credentials aren't sent in plain text by a rule for another name, and are by one that says so.
#[test]
fn c74_plain_text_needs_the_hosts_name() {
    let server = Server::start(|request| match request.header("authorization") {
        None => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => Reply::new(200).body("hello"),
    });
    let host = server.host().replace("127.0.0.1", "localhost");
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    store.store(&host, &Credentials::Password { username: "user".to_owned(), password: "hunter2".to_owned() }).unwrap();
    // On loopback plain http is the default; where https is asked for it is as with any other host.
    let https = RegistryOptions { plain_http: Some(false), ..RegistryOptions::default() };
    let rows = [("other.lan", Some(https.clone()), false), (&host, Some(https), false), (&host, None, true)];
    for (prefix, settings, reached) in rows {
        let insecure = Rule { prefix: prefix.to_owned(), insecure: true, ..Rule::default() };
        let mut options = Options { rules: vec![insecure], credentials: store.clone(), ..quick() };
        options.retry.attempts = 1;
        options.registries.extend(settings.map(|settings| (host.clone(), settings)));
        let before = server.authorized();
        let result = fetch(&client(options), &named(&host, "a"), &layer(b"hello")).0;
        assert_eq!((result.is_ok(), server.authorized() > before), (reached, reached), "{prefix}: {result:?}");
    }
}

/// A proxy that knows `CONNECT` alone and sends everything to one place.
struct Tunnel {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Tunnel {
    fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let list = heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, to, list) = (stream.unwrap(), to.clone(), list.clone());
                std::thread::spawn(move || -> std::io::Result<()> {
                    let mut reader = BufReader::new(stream.try_clone()?);
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
                    list.lock().unwrap().push(head);
                    let mut behind = TcpStream::connect(to)?;
                    stream.write_all(b"HTTP/1.1 200 tunnel\r\n\r\n")?;
                    let (mut there, mut back) = (behind.try_clone()?, stream.try_clone()?);
                    std::thread::spawn(move || std::io::copy(&mut reader, &mut there));
                    std::io::copy(&mut behind, &mut back).map(drop)
                });
            }
        });
        Self { port, heads }
    }
}

/// https goes through the proxy by `CONNECT`, which gets the proxy's own password and none of the registry's.
#[test]
fn https_through_a_proxy() {
    let Some(registry) = Registry::start(Kind::Tls) else { return };
    let tunnel = Tunnel::start(registry.host());
    let address = format!("http://proxy:pass@127.0.0.1:{}", tunnel.port);
    for (no_proxy, reached) in
        [("", true), ("10.0.0.0/8,other.invalid:443", true), ("registry.invalid:443", false), ("invalid", false)]
    {
        let proxies = Proxies::from_environment(|name| match name {
            "HTTPS_PROXY" => Some(address.clone()),
            "NO_PROXY" => Some(no_proxy.to_owned()),
            _ => None,
        });
        let settings = RegistryOptions { insecure_skip_verify: true, ..RegistryOptions::default() };
        let mut options = Options { proxies, ..with_registry("registry.invalid", settings) };
        options.retry.attempts = 1;
        let before = tunnel.heads.lock().unwrap().len();
        assert_eq!(client(options).ping("registry.invalid").is_ok(), reached, "{no_proxy}");
        assert_eq!(tunnel.heads.lock().unwrap().len() - before, usize::from(reached), "{no_proxy}");
    }
    let head = tunnel.heads.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("connect registry.invalid:443 ") && !head.contains("\nauthorization:"), "{head}");
    // `proxy:pass` in base64.
    assert!(head.contains("proxy-authorization: basic chjvehk6cgfzcw=="), "{head}");
    let socks = Proxies::from_environment(|name| (name == "ALL_PROXY").then(|| "socks5://x:secret@y".to_owned()));
    let error = client(Options { proxies: socks, ..quick() }).ping("registry.invalid").unwrap_err();
    assert!(error.to_string().contains("HTTP") && !error.to_string().contains("secret"), "{error}");
}
