//! What refers to a manifest: by the API, with its pages, and by the tag that stands in for it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use kiln_oci::digest::Digest;
use kiln_oci::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use kiln_registry_client::{ErrorKind, Options};

use crate::registry_process::{Kind, Registry};
use crate::scripted::{Reply, Server};
use crate::{client, layer, named, quick, reference, repository, warnings};

fn artifact(subject: &Digest, kind: &str, note: &str) -> String {
    let empty = Digest::of(b"{}");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","artifactType":"{kind}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{empty}","size":2}},"layers":[],"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":10}},"annotations":{{"note":"{note}"}}}}"#
    )
}

/// Debian's registry knows no such API: the tag is kept, by several writers at once, too.
#[test]
fn the_tag_in_place_of_the_api() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let client = client(quick());
    let repository = named(&registry.host(), "app");
    let open = |_| -> std::io::Result<Box<dyn std::io::Read + Send>> { Ok(Box::new(&b"{}"[..])) };
    client.push_blob(&repository, &layer(b"{}"), &open, &|_| {}).unwrap();
    let subject = Digest::of(b"some image");
    assert_eq!(client.referrers(&repository, &subject, None).unwrap(), []);
    let one = client.push_referrer(&repository, OCI_MANIFEST, artifact(&subject, "a/one", "1").as_bytes()).unwrap();
    std::thread::scope(|scope| {
        for note in ["2", "3", "4"] {
            let (client, repository, subject) = (&client, &repository, &subject);
            scope.spawn(move || {
                client.push_referrer(repository, OCI_MANIFEST, artifact(subject, "a/two", note).as_bytes()).unwrap()
            });
        }
    });
    let again = client.push_referrer(&repository, OCI_MANIFEST, artifact(&subject, "a/one", "1").as_bytes()).unwrap();
    assert_eq!(one, again);
    let all = client.referrers(&repository, &subject, None).unwrap();
    assert_eq!(all.len(), 4, "{all:?}");
    assert_eq!(all[0], one);
    let kept: BTreeMap<_, _> =
        all.iter().map(|entry| (entry.annotations["note"].as_str(), entry.extra["artifactType"].as_str())).collect();
    assert_eq!(kept, [("1", Some("a/one")), ("2", Some("a/two")), ("3", Some("a/two")), ("4", Some("a/two"))].into());
    assert_eq!(client.referrers(&repository, &subject, Some("a/one")).unwrap(), std::slice::from_ref(&one));
    // Others read the same tag.
    let (descriptor, _) = client.fetch_manifest(&reference(&format!("{repository}:sha256-{}", subject.hex()))).unwrap();
    assert_eq!(descriptor.media_type, OCI_INDEX);
    assert!(client.fetch_manifest(&reference(&format!("{repository}@{}", one.digest))).is_ok());
    let plain =
        format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{subject}","size":1}},"layers":[]}}"#);
    let error = client.push_referrer(&repository, OCI_MANIFEST, plain.as_bytes()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::BadManifest(_)), "{error}");
}

/// A registry with the API: it lists what was pushed (and says so), in pages, filtered or not.
#[test]
fn the_api() {
    let subject = Digest::of(b"some image");
    let entry = |note: &str, kind: &str| {
        format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":5,"artifactType":"{kind}"}}"#, Digest::of(note.as_bytes()))
    };
    let index = |entries: &str| {
        Reply::manifest(OCI_INDEX, &format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}"#))
    };
    let pages = [
        index(&format!("{},{}", entry("1", "a"), entry("2", "b"))).with("Link", "</v2/a/b/referrers/x?page=2>; rel=\"next\""),
        index(&entry("3", "a")),
    ];
    let echo = Mutex::new(subject);
    let server = Server::start(move |request| match request.method.as_str() {
        "PUT" => Reply::new(201).with("OCI-Subject", echo.lock().unwrap().to_string()),
        _ if request.target.contains("page=2") => pages[1].clone(),
        _ => pages[0].clone(),
    });
    let client = client(quick());
    let repository = repository(&server.host());
    assert_eq!(client.referrers(&repository, &subject, None).unwrap().len(), 3);
    let found = client.referrers(&repository, &subject, Some("a")).unwrap();
    assert_eq!(found.iter().map(|entry| entry.digest).collect::<Vec<_>>(), [Digest::of(b"1"), Digest::of(b"3")]);
    assert!(server.log()[2].ends_with("?artifactType=a"), "{:?}", server.log());
    let before = server.requests().len();
    client.push_referrer(&repository, OCI_MANIFEST, artifact(&subject, "a", "x").as_bytes()).unwrap();
    assert_eq!(server.requests().len() - before, 1, "no tag is written");
    // What isn't a list isn't taken for one.
    for (reply, words) in [
        (Reply::new(200).body("<html>"), "no index"),
        (Reply::new(200).body(vec![b' '; 5 << 20]), "larger"),
        (Reply::new(403), "denied"),
    ] {
        let server = Server::start(move |_| reply.clone());
        let error = client.referrers(&crate::repository(&server.host()), &subject, None).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Docker Hub's budget is told of once, when little of it is left.
#[test]
fn few_pulls_left() {
    for (remaining, told) in [("76;w=21600", 0), ("11;w=21600", 0), ("10;w=21600", 1), ("0;w=21600", 1), ("few", 0)] {
        let server = Server::start(move |_| {
            Reply::new(200).body("hello").with("ratelimit-limit", "100;w=21600").with("ratelimit-remaining", remaining)
        });
        let (listener, heard) = warnings();
        let client = client(Options { warnings: listener, ..quick() });
        for _ in 0..3 {
            crate::fetch(&client, &repository(&server.host()), &layer(b"hello")).0.unwrap();
        }
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), told, "{remaining}: {heard:?}");
        if let Some(line) = heard.first() {
            assert!(line.contains("more of 100 pulls in 360 minutes") && line.starts_with(&server.host()), "{line}");
        }
    }
}
