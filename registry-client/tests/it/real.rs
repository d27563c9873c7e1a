//! Against Debian's `docker-registry`: plain, with htpasswd, with TLS; directly and as a mirror.

use std::io::Read;
use std::sync::Mutex;

use kiln_oci::digest::Digest;
use kiln_oci::media_type::{DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use kiln_registry_client::{
    Client, CredentialStore, Credentials, ErrorKind, ManifestName, Mirror, Options, Pushed, RegistryOptions, Repository,
};

use crate::registry_process::{Kind, Registry};
use crate::{client, content, fetch, layer, named, quick, reference, warnings, with_registry};

type Opened = std::io::Result<Box<dyn Read + Send>>;

fn push(client: &Client, repository: &Repository, bytes: &[u8], sources: &[Repository]) -> kiln_registry_client::Result<Pushed> {
    let open = |from| -> Opened { Ok(Box::new(std::io::Cursor::new(bytes[from as usize..].to_vec()))) };
    client.push_blob_from(repository, &layer(bytes), sources, &open, &|_| {})
}

/// A small image, pushed under a tag; its manifest.
fn push_image(client: &Client, repository: &Repository, tag: &str, media_type: &str) -> String {
    let (config, layer_bytes) = (format!(r#"{{"tag":"{tag}"}}"#), content(3000));
    for bytes in [config.as_bytes(), &layer_bytes] {
        push(client, repository, bytes, &[]).unwrap();
    }
    let blob = |media_type: &str, bytes: &[u8]| {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
    };
    let (config_type, layer_type) = if media_type == DOCKER_MANIFEST {
        ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    } else {
        (OCI_CONFIG, kiln_oci::media_type::OCI_LAYER_GZIP)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{},"layers":[{}]}}"#,
        blob(config_type, config.as_bytes()),
        blob(layer_type, &layer_bytes)
    );
    client.push_manifest(repository, ManifestName::Tag(tag), media_type, manifest.as_bytes()).unwrap();
    manifest
}

#[test]
fn push_and_pull() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let client = client(quick());
    let repository = named(&registry.host(), "team/app");
    client.ping(&registry.host()).unwrap();

    for size in [0, 1, 70_000, 9 << 20] {
        let bytes = content(size);
        let descriptor = layer(&bytes);
        assert!(!client.has_blob(&repository, &descriptor.digest).unwrap());
        let (error, _) = fetch(&client, &repository, &descriptor);
        let error = error.unwrap_err();
        assert!(error.is_not_found() && error.to_string().contains("BLOB_UNKNOWN"), "{error}");
        assert_eq!(push(&client, &repository, &bytes, &[]).unwrap(), Pushed::Uploaded, "{size}");
        assert!(client.has_blob(&repository, &descriptor.digest).unwrap());
        assert_eq!(push(&client, &repository, &bytes, &[]).unwrap(), Pushed::Existed);
        let (result, came) = fetch(&client, &repository, &descriptor);
        result.unwrap();
        assert!(came == bytes, "{size}");
    }

    for (tag, media_type) in [("oci", OCI_MANIFEST), ("docker", DOCKER_MANIFEST)] {
        let manifest = push_image(&client, &repository, tag, media_type);
        let name = reference(&format!("{repository}:{tag}"));
        let descriptor = client.resolve(&name).unwrap();
        assert_eq!((descriptor.media_type.as_str(), descriptor.size), (media_type, manifest.len() as u64));
        assert_eq!(descriptor.digest, Digest::of(manifest.as_bytes()));
        let (fetched, bytes) = client.fetch_manifest(&name).unwrap();
        assert_eq!((&fetched, bytes.as_slice()), (&descriptor, manifest.as_bytes()));
        // The digest wins over a tag that points elsewhere, or nowhere.
        let pinned = reference(&format!("{repository}:nowhere@{}", descriptor.digest));
        assert_eq!(client.resolve(&pinned).unwrap().digest, descriptor.digest);
        assert_eq!(client.fetch_manifest(&pinned).unwrap().1, manifest.as_bytes());
        // An index over it, by digest only and by tag.
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{media_type}","digest":"{}","size":{}}}]}}"#,
            descriptor.digest, descriptor.size
        );
        let digest = client.push_manifest(&repository, ManifestName::Digest, OCI_INDEX, index.as_bytes()).unwrap();
        let (found, _) = client.fetch_manifest(&reference(&format!("{repository}@{digest}"))).unwrap();
        assert_eq!(found.media_type, OCI_INDEX);
    }

    let error = client.fetch_manifest(&reference(&format!("{repository}:absent"))).unwrap_err();
    let words = format!("pull manifest {repository}:absent at {}: not found: 404 Not Found (MANIFEST_UNKNOWN", registry.host());
    assert!(error.to_string().starts_with(&words), "{error}");
    assert!(client.resolve(&reference(&format!("{repository}:absent"))).unwrap_err().is_not_found());
    // A manifest whose blobs are missing is refused, with the registry's own words.
    let missing = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":3}},"layers":[]}}"#,
        Digest::of(b"abc")
    );
    let error = client.push_manifest(&repository, ManifestName::Tag("x"), OCI_MANIFEST, missing.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
}

#[test]
fn links_across_repositories() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let client = client(quick());
    let base = named(&registry.host(), "library/base");
    let bytes = content(5000);
    let digest = layer(&bytes).digest;
    push(&client, &base, &bytes, &[]).unwrap();

    let app = named(&registry.host(), "app");
    let elsewhere = named("127.0.0.1:1", "library/base");
    let lacking = named(&registry.host(), "library/lacking");
    assert!(!client.mount_blob(&app, &digest, &elsewhere).unwrap());
    assert!(!client.mount_blob(&app, &digest, &app).unwrap());
    assert!(!client.mount_blob(&app, &digest, &lacking).unwrap());
    assert!(!client.has_blob(&app, &digest).unwrap());
    assert!(client.mount_blob(&app, &digest, &base).unwrap());
    assert!(client.has_blob(&app, &digest).unwrap());

    let rows = [
        ("second", vec![elsewhere.clone(), base.clone()], Pushed::Mounted),
        // The registry answers 202 and the session that it opened is used.
        ("third", vec![lacking.clone(), base.clone()], Pushed::Uploaded),
        ("third", vec![base], Pushed::Existed),
    ];
    for (path, sources, expected) in rows {
        assert_eq!(push(&client, &named(&registry.host(), path), &bytes, &sources).unwrap(), expected, "{path}");
    }
}

#[test]
fn many_threads() {
    let Some(registry) = Registry::start(Kind::Htpasswd) else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    let user = Credentials::Password { username: "kiln".to_owned(), password: "s3cret:word".to_owned() };
    store.store(&registry.host(), &user).unwrap();
    let client = client(Options { credentials: store, ..quick() });
    let repository = named(&registry.host(), "x");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (client, repository) = (&client, &repository);
            scope.spawn(move || {
                let bytes = content(100_000 + number);
                assert_eq!(push(client, repository, &bytes, &[]).unwrap(), Pushed::Uploaded);
                let (result, came) = fetch(client, repository, &layer(&bytes));
                result.unwrap();
                assert!(came == bytes);
            });
        }
    });
}

#[test]
fn htpasswd() {
    let Some(registry) = Registry::start(Kind::Htpasswd) else { return };
    let host = registry.host();
    let folder = tempfile::tempdir().unwrap();
    let with = |username: &str, password: &str| {
        let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
        let user = Credentials::Password { username: username.to_owned(), password: password.to_owned() };
        store.store(&host, &user).unwrap();
        (Options { credentials: store, ..quick() }, user)
    };

    let anonymous = client(quick());
    let error = anonymous.resolve(&reference(&format!("{host}/a/b:1"))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unauthorized { with_credentials: false, .. }), "{error}");
    assert_eq!(error.hint().as_deref(), Some(format!("run `kiln login {host}`").as_str()));
    assert!(push(&anonymous, &named(&host, "a/b"), b"x", &[]).is_err());

    let (options, user) = with("kiln", "wrong");
    let error = client(options).resolve(&reference(&format!("{host}/a/b:1"))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unauthorized { with_credentials: true, .. }), "{error}");
    assert!(error.hint().unwrap().contains("out of date"), "{error}");
    assert!(!format!("{error} {error:?}").contains("wrong"));
    assert!(matches!(anonymous.check_login(&host, &user).unwrap_err().kind(), ErrorKind::Unauthorized { .. }));
    anonymous.ping(&host).unwrap_err();

    let (options, user) = with("kiln", "s3cret:word");
    anonymous.check_login(&host, &user).unwrap();
    let client = client(options);
    client.ping(&host).unwrap();
    let repository = named(&host, "a/b");
    push_image(&client, &repository, "1", OCI_MANIFEST);
    let bytes = content(3 << 20);
    assert_eq!(push(&client, &repository, &bytes, &[]).unwrap(), Pushed::Uploaded);
    assert!(client.fetch_manifest(&reference(&format!("{repository}:1"))).is_ok());
    assert!(fetch(&client, &repository, &layer(&bytes)).1 == bytes);
}

#[test]
fn tls_with_a_private_authority() {
    for kind in [Kind::Tls, Kind::SelfSigned] {
        let Some(registry) = Registry::start(kind) else { return };
        let (name, address, ca) = (registry.name(), registry.host(), registry.ca_file());
        let https = RegistryOptions { plain_http: Some(false), ..RegistryOptions::default() };
        let trusting = RegistryOptions { ca_file: Some(ca.clone()), ..RegistryOptions::default() };
        let careless = RegistryOptions { insecure_skip_verify: true, ..RegistryOptions::default() };
        let lost = RegistryOptions { ca_file: Some("/nonexistent/ca.pem".into()), ..RegistryOptions::default() };
        let empty = RegistryOptions { ca_file: Some("/dev/null".into()), ..RegistryOptions::default() };
        // The host that is asked, the settings, and a word of the error and of its hint.
        let rows: [(&str, &RegistryOptions, Option<(&str, &str)>); 7] = [
            (&name, &https, Some(("no TLS connection to localhost", "ca-file"))),
            (&name, &trusting, None),
            (&name, &careless, None),
            (&address, &careless, None),
            // A certificate for another name is not believed, even from the named file.
            (&address, &trusting, Some(("no TLS connection to 127.0.0.1", ""))),
            (&name, &lost, Some(("/nonexistent/ca.pem", ""))),
            (&name, &empty, Some(("no PEM certificate", ""))),
        ];
        for (host, settings, expected) in rows {
            let (listener, heard) = warnings();
            let client = client(Options { warnings: listener, ..with_registry(host, settings.clone()) });
            let result = client.ping(host);
            assert_eq!(*heard.lock().unwrap(), [""; 0], "a certificate is not waited for to get better");
            match (result, expected) {
                (Ok(()), None) => {
                    let bytes = content((2 << 20) + host.len());
                    let repository = named(host, "a/b");
                    push(&client, &repository, &bytes, &[]).unwrap();
                    let (result, came) = fetch(&client, &repository, &layer(&bytes));
                    result.unwrap();
                    assert!(came == bytes);
                }
                (Err(error), Some((words, hint))) => {
                    assert!(error.to_string().contains(words), "{kind:?} {host} {settings:?}: {error}");
                    assert!(error.hint().unwrap_or_default().contains(hint), "{kind:?} {host}: {error}: {:?}", error.hint());
                }
                (result, _) => panic!("{kind:?} {host} {settings:?}: {result:?}"),
            }
        }
        // Plain http to a port that speaks TLS: docker-registry says so with a 400.
        let plain = RegistryOptions { plain_http: Some(true), ..RegistryOptions::default() };
        let error = client(with_registry(&name, plain)).ping(&name).unwrap_err();
        assert!(error.to_string().contains("HTTP request to an HTTPS server"), "{error}");
    }
    // And https to a port that speaks plain http.
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let https = RegistryOptions { plain_http: Some(false), ..RegistryOptions::default() };
    let error = client(with_registry(&registry.host(), https)).ping(&registry.host()).unwrap_err();
    assert!(error.hint().unwrap_or_default().contains("plain-http"), "{error}: {:?}", error.hint());
}

#[test]
fn mirrors_serve_pulls_only() {
    let (Some(mirror), Some(registry)) = (Registry::start(Kind::Plain), Registry::start(Kind::Plain)) else { return };
    // A closed port, a mirror with a path, the same host without.
    let dead = Mirror::new("127.0.0.1:1");
    let path = Mirror::new(format!("{}/cache/hub", mirror.host()));
    let root = Mirror::new(mirror.host());
    let settings = |mirrors: &[&Mirror]| RegistryOptions {
        mirrors: mirrors.iter().map(|&m| m.clone()).collect(),
        ..RegistryOptions::default()
    };

    // Docker Hub, which these mirrors stand for, is never reached.
    let direct = client(quick());
    let manifest = push_image(&direct, &named(&mirror.host(), "cache/hub/library/busybox"), "1", OCI_MANIFEST);
    let (listener, heard) = warnings();
    let hub = client(Options { warnings: listener, ..with_registry("docker.io", settings(&[&dead, &path])) });
    for _ in 0..2 {
        let (descriptor, bytes) = hub.fetch_manifest(&reference("busybox:1")).unwrap();
        assert_eq!(bytes, manifest.as_bytes());
        assert_eq!(hub.resolve(&reference("busybox:1")).unwrap(), descriptor);
    }
    let blob = layer(&content(3000));
    fetch(&hub, &named("docker.io", "library/busybox"), &blob).0.unwrap();
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    assert_eq!(heard.len(), 1, "a mirror that isn't there is asked once: {heard:?}");
    assert!(
        heard[0].starts_with(&format!("mirror 127.0.0.1:1 passed over, asking {}/cache/hub instead: ", mirror.host())),
        "{heard:?}"
    );
    assert!(heard[0].contains("refused"), "{heard:?}");

    // What no mirror has comes from the registry; pushes go there at once.
    let host = registry.host();
    let (listener, heard) = warnings();
    let client = client(Options { warnings: listener, ..with_registry(&host, settings(&[&root])) });
    let manifest = push_image(&client, &named(&host, "app"), "1", OCI_MANIFEST);
    assert!(direct.resolve(&reference(&format!("{}/app:1", mirror.host()))).unwrap_err().is_not_found());
    assert_eq!(client.fetch_manifest(&reference(&format!("{host}/app:1"))).unwrap().1, manifest.as_bytes());
    assert!(heard.lock().unwrap()[0].contains("NAME_UNKNOWN") || heard.lock().unwrap()[0].contains("MANIFEST_UNKNOWN"));
    // An error in the end tells of all hosts that were asked.
    let error = client.fetch_manifest(&reference(&format!("{host}/none:1"))).unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains(&format!("before that, mirror {}", mirror.host())), "{error}");
}

/// C76, C77: what is stored wrong is not taken for the blob.
#[test]
fn spoiled_blobs_are_found() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let client = client(quick());
    let repository = named(&registry.host(), "a/b");
    let bytes = content(100_000);
    let descriptor = layer(&bytes);
    push(&client, &repository, &bytes, &[]).unwrap();
    let mut spoiled = bytes.clone();
    spoiled[50_000] ^= 1;
    for (stored, sort) in
        [(spoiled, "digest mismatch"), (bytes[..99_999].to_vec(), "size mismatch"), (Vec::new(), "size mismatch")]
    {
        std::fs::write(registry.stored(&descriptor.digest.hex()), &stored).unwrap();
        let error = fetch(&client, &repository, &descriptor).0.unwrap_err();
        assert!(error.to_string().contains(sort), "{} bytes: {error}", stored.len());
    }
}

#[test]
fn unreachable_registries_are_named() {
    let heard = warnings();
    let client = client(Options { warnings: heard.0, ..quick() });
    let error = client.resolve(&reference("127.0.0.1:1/a:1")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unreachable { .. }) && error.is_temporary(), "{error}");
    let words = "resolve 127.0.0.1:1/a:1 at 127.0.0.1:1: cannot reach 127.0.0.1:1: ";
    assert_eq!(error.to_string(), format!("{words}tcp connect error: Connection refused (os error 111)"));
    assert_eq!(heard.1.lock().unwrap().len(), 4);
    let error = client.resolve(&reference("no-such-host.invalid/a:1")).unwrap_err();
    assert!(error.hint().unwrap().contains("DNS"), "{error}");
}

#[test]
fn progress_counts_to_the_end() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let client = client(quick());
    let repository = named(&registry.host(), "a/b");
    let bytes = content(3 << 20);
    let seen = Mutex::new(Vec::new());
    let note = |count| seen.lock().unwrap().push(count);
    let open = |from| -> Opened { Ok(Box::new(std::io::Cursor::new(bytes[from as usize..].to_vec()))) };
    client.push_blob(&repository, &layer(&bytes), &open, &note).unwrap();
    let sent = std::mem::take(&mut *seen.lock().unwrap());
    client.fetch_blob(&repository, &layer(&bytes), &mut std::io::sink(), &note).unwrap();
    for list in [sent, seen.into_inner().unwrap()] {
        assert!(list.is_sorted() && list.last() == Some(&(3 << 20)) && list.len() > 4, "{list:?}");
    }
}
