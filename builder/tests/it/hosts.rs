//! How kiln finds credentials, certificates and registries where docker and podman keep them; and images that are refused.

use kiln_oci::digest::Digest;
use serde_json::{Value, json};

use crate::support::home::{Home, finish};
use crate::support::lab::{self, Registry, RegistryOptions};
use crate::support::skip::needs;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Podman's files, by repository and in their order; what `login` and `logout` do with them.
#[test]
fn credentials_where_podman_keeps_them() {
    if !needs("hosts::credentials_where_podman_keeps_them", "htpasswd") {
        return;
    }
    let registry = Registry::start(&RegistryOptions { auth: Some("kiln:secret"), ..RegistryOptions::default() });
    let host = registry.host();
    let name = format!("{host}/team/app:1");
    let home = Home::new();
    home.build(&name, "FROM busybox\nRUN echo x > /x\n").ok();
    home.run(["push", &name]).fails(4);
    // `kiln:secret` and `kiln:wrong`.
    let (right, wrong) = ("a2lsbjpzZWNyZXQ=", "a2lsbjp3cm9uZw==");
    let auths = |key: &str, auth: &str| json!({ "auths": { key: { "auth": auth } } }).to_string();
    home.write("config/containers/auth.json", auths(host, right));
    home.run(["push", &name]).ok();
    // Docker's file comes first, but an entry for the repository is more specific than one for the host.
    home.write(".docker/config.json", auths(host, wrong));
    home.run(["push", &name]).fails(4).says(&["out of date"]);
    home.write("config/containers/auth.json", auths(&format!("{host}/team"), right));
    home.run(["push", &name]).ok();
    let other = name.replace("team", "other");
    home.run(["tag", &name, &other]).ok();
    home.run(["push", &other]).fails(4).says(&["out of date"]);
    // A file that is named is alone, for reading and for writing.
    let file = home.write("own.json", "");
    let with_file = |args: &[&str]| finish(home.command().env("REGISTRY_AUTH_FILE", &file).args(args));
    with_file(&["push", &name]).fails(4);
    finish(home.command().env("REGISTRY_AUTH_FILE", &file).args(["login", "-u", "kiln", "-p", "secret", host])).ok();
    with_file(&["push", &name]).ok();
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["auths"][host]["auth"], right);
    with_file(&["logout", host]).ok();
    with_file(&["push", &name]).fails(4);
    // `logout` says so when somebody else's file still has them.
    home.write("config/containers/auth.json", auths(host, right));
    let outcome = home.run(["logout", host]).ok();
    assert!(outcome.stderr.contains("auth.json"), "{outcome:?}");
}

/// `registries.conf` gives names other places, and none; `certs.d` has the authority of a host.
#[test]
fn registries_where_podman_finds_them() {
    if !needs("hosts::registries_where_podman_finds_them", "openssl") {
        return;
    }
    let tls = Registry::start(&RegistryOptions { seeds: &["busybox"], tls: true, ..RegistryOptions::default() });
    let host = tls.host();
    let home = Home::offline();
    let conf = format!(
        "unqualified-search-registries = ['nowhere.invalid']\n[[registry]]\nprefix = 'docker.io/library'\nlocation = '{host}/library'\n\
         [[registry]]\nlocation = 'blocked.invalid'\nblocked = true\n"
    );
    home.write("config/containers/registries.conf", conf);
    // On loopback plain http is the default, so that the host's folder is what makes it TLS.
    home.build("x", "FROM busybox\nRUN true\n").fails(4);
    let certs = format!("config/containers/certs.d/{host}/ca.crt");
    home.write(&certs, std::fs::read(tls.ca()).unwrap());
    home.build("x", "FROM busybox\nRUN true\n").ok();
    home.run(["pull", "blocked.invalid/x:1"]).fails(4).says(&["blocked"]);
    home.run(["tag", "x", "blocked.invalid/x:1"]).ok();
    home.run(["push", "blocked.invalid/x:1"]).fails(4).says(&["blocked"]);
    // Without a certificate that could be checked, because the name says so.
    let insecure = Home::offline();
    insecure
        .write("config/containers/registries.conf.d/own.conf", format!("[[registry]]\nlocation = '{host}'\ninsecure = true\n"));
    insecure.build("x", &format!("FROM {host}/library/busybox\nRUN true\n")).ok();
    // A mistake has its file and line.
    home.write("config/containers/registries.conf", "\n[[registry]]\nlocation = 5\n");
    home.run(["pull", "busybox"]).fails(125).says(&["registries.conf:3"]);
}

/// A layer that is large enough for chunks arrives whole, in several requests of one session.
#[test]
fn large_layers_go_in_chunks() {
    let registry = lab::registry();
    let name = format!("{}/push/large:1", registry.host());
    let home = Home::new();
    home.build(&name, "FROM busybox\nRUN head -c 30000000 /dev/urandom > /r && sha256sum /r > /sum\n").ok();
    home.run(["push", &name]).ok();
    let requests = registry.requests("push/large");
    let patches = requests.iter().filter(|request| request.starts_with("PATCH") && request.ends_with(" 202")).count();
    assert!((3..=6).contains(&patches), "{requests:#?}");
    Home::new().build("child", &format!("FROM {name}\nRUN sha256sum -c /sum\n")).ok();
}

/// C75, C80: an index in an index, an index that lies about its manifests, too many layers, a configuration that is too large.
#[test]
fn c80_images_beyond_measure_are_refused() {
    let host = lab::registry().host();
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let repository = format!("http://{host}/v2/hostile/images");
    let put = |tag: &str, kind: &str, body: &Value| {
        let response = client
            .put(format!("{repository}/manifests/{tag}"))
            .header("content-type", kind)
            .body(body.to_string())
            .send()
            .unwrap();
        assert!(response.status().is_success(), "{tag}: {:?}", response.text());
        json!({ "mediaType": kind, "digest": Digest::of(body.to_string().as_bytes()).to_string(), "size": body.to_string().len() })
    };
    let blob = |bytes: &[u8], kind: &str| {
        let opened = client.post(format!("{repository}/blobs/uploads/")).send().unwrap();
        let place = opened.headers()["location"].to_str().unwrap().to_owned();
        let digest = Digest::of(bytes).to_string();
        let response = client.put(format!("{place}&digest={digest}")).body(bytes.to_vec()).send().unwrap();
        assert!(response.status().is_success(), "{:?}", response.text());
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    };
    let platform = |mut entry: Value| {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let config_type = "application/vnd.oci.image.config.v1+json";
    let config = blob(br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#, config_type);
    let layer = blob(b"layer", "application/vnd.oci.image.layer.v1.tar");
    let image = |config: &Value, layers: usize| json!({ "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": vec![layer.clone(); layers] });
    let index = |entries: &[Value]| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let small = platform(put("small", OCI, &image(&config, 0)));
    let inner = platform(put("inner", INDEX, &index(std::slice::from_ref(&small))));
    let mut lie = small.clone();
    lie["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
    let mut size = small.clone();
    size["size"] = json!(7);
    let large = blob(&vec![b' '; 9 << 20], config_type);
    put("nested", INDEX, &index(&[inner]));
    put("lie", INDEX, &index(&[lie]));
    put("size", INDEX, &index(&[size]));
    put("layers", OCI, &image(&config, 1001));
    put("config", OCI, &image(&large, 0));
    let rows = [
        ("nested", "index points to another index"),
        ("lie", "its index says"),
        ("size", "its index says"),
        ("layers", "1001 layers"),
        ("config", "its configuration has"),
    ];
    let home = Home::offline();
    for (tag, words) in rows {
        home.run(["pull", &format!("{host}/hostile/images:{tag}")]).fails(4).says(&[words]);
    }
    home.run(["pull", &format!("{host}/hostile/images:small")]).ok();
}

/// C81: what a name stands for is printed, and a digest is never looked for by its tag.
#[test]
fn c81_a_digest_is_what_it_says() {
    let host = lab::registry().host();
    let home = Home::offline();
    let name = format!("{host}/library/busybox");
    let outcome = home.run(["pull", &format!("{name}:latest")]).ok();
    let digest = outcome.stdout.lines().find_map(|line| line.strip_prefix("Digest: ")).unwrap().to_owned();
    home.run(["pull", &format!("{name}:nonsense@{digest}")]).ok();
    let other = Digest::of(b"another image").to_string();
    home.run(["pull", &format!("{name}:latest@{other}")]).fails(4).says(&["not found"]);
    for wrong in ["sha256:abc", "sha256:../../etc/passwd", "md5:0", "sha256:"] {
        home.run(["pull", &format!("{name}@{wrong}")]).fails(125);
    }
}
