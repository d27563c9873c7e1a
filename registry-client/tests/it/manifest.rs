//! Manifests from a server that lies about them (C75, C76, C80, C81).

use kiln_oci::digest::Digest;
use kiln_oci::media_type::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use kiln_registry_client::ManifestName;

use crate::scripted::{Reply, Server};
use crate::{client, quick, reference, repository};

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;

#[test]
fn manifests_are_believed_or_refused() {
    let digest = Digest::of(MANIFEST.as_bytes());
    let ok = || Reply::manifest(OCI_MANIFEST, MANIFEST);
    let header = "Docker-Content-Digest";
    let both = r#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#;
    let zeros = Digest::from_bytes([0; 32]).to_string();
    let (right, wrong) = (format!("@{digest}"), format!("@{zeros}"));
    let rows: Vec<(&str, &str, Reply, Result<(), &str>)> = vec![
        ("plain", ":1", ok(), Ok(())),
        ("with charset", ":1", Reply::manifest(&format!("{OCI_MANIFEST}; charset=utf-8"), MANIFEST), Ok(())),
        ("right header", ":1", ok().with(header, digest.to_string()), Ok(())),
        ("C76 lying header", ":1", ok().with(header, zeros.clone()), Err("the Docker-Content-Digest header is")),
        ("C76 path in header", ":1", ok().with(header, "sha256:../../../etc/passwd"), Err("makes no sense")),
        ("C76 no algorithm", ":1", ok().with(header, "abc"), Err("makes no sense")),
        ("another algorithm", ":1", ok().with(header, format!("sha512:{}", "0".repeat(128))), Ok(())),
        ("right digest", &right, ok(), Ok(())),
        ("wrong digest", &wrong, ok(), Err("digest mismatch: the content is")),
        ("wrong digest, lying header", &wrong, ok().with(header, zeros.clone()), Err("digest mismatch")),
        ("C75 both", ":1", Reply::manifest(OCI_MANIFEST, both), Err("both `layers` and `manifests`")),
        ("C75 manifest as index", ":1", Reply::manifest(OCI_INDEX, MANIFEST), Err("but it has `layers`")),
        (
            "C75 types differ",
            ":1",
            Reply::manifest(DOCKER_MANIFEST, &MANIFEST.replace("{\"s", &format!("{{\"mediaType\":\"{OCI_MANIFEST}\",\"s"))),
            Err("but the Content-Type is"),
        ),
        ("a page", ":1", Reply::manifest("text/html", "<html>log in</html>"), Err("not JSON")),
        ("C80 too large", ":1", Reply::manifest(OCI_MANIFEST, &" ".repeat((4 << 20) + 1)), Err("larger than 4194304 bytes")),
        (
            "C80 too large, unannounced",
            ":1",
            Reply::manifest(OCI_MANIFEST, &" ".repeat(5 << 20)).no_length(),
            Err("larger than 4194304 bytes"),
        ),
        ("C80 deep", ":1", Reply::manifest(OCI_MANIFEST, &"[".repeat(1 << 20)), Err("not JSON")),
    ];
    for (name, suffix, reply, expected) in rows {
        let server = Server::start(move |_| reply.clone());
        let result = client(quick()).fetch_manifest(&reference(&format!("{}/a/b{suffix}", server.host())));
        match (result, expected) {
            (Ok((descriptor, bytes)), Ok(())) => {
                assert_eq!((descriptor.digest, bytes.as_slice()), (digest, MANIFEST.as_bytes()), "{name}");
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (result, _) => panic!("{name}: {result:?}"),
        }
        assert_eq!(server.requests().len(), 1, "{name}");
        let accept = server.requests()[0].header("accept").unwrap_or_default().to_owned();
        assert!(accept.contains(OCI_INDEX) && accept.contains(DOCKER_MANIFEST), "{accept}");
    }
}

/// C81: `name@digest` is asked for by digest, and a missing one isn't looked for by tag.
#[test]
fn a_digest_is_never_a_tag() {
    let digest = Digest::of(MANIFEST.as_bytes());
    let server =
        Server::start(
            |request| {
                if request.target.ends_with("/1") { Reply::manifest(OCI_MANIFEST, MANIFEST) } else { Reply::new(404) }
            },
        );
    let client = client(quick());
    let name = reference(&format!("{}/a/b:1@{digest}", server.host()));
    assert!(client.fetch_manifest(&name).unwrap_err().is_not_found());
    assert!(client.resolve(&name).unwrap_err().is_not_found());
    assert!(server.log().iter().all(|line| line.ends_with(&digest.to_string())), "{:?}", server.log());
}

/// A truncated manifest comes again; a registry that can't do `HEAD` is asked by `GET`.
#[test]
fn manifests_come_by_detours() {
    let server = Server::script(vec![Reply::manifest(OCI_MANIFEST, MANIFEST).cut(10), Reply::manifest(OCI_MANIFEST, MANIFEST)]);
    client(quick()).fetch_manifest(&reference(&format!("{}/a/b:1", server.host()))).unwrap();
    let digest = Digest::of(MANIFEST.as_bytes());
    // What a `HEAD` answers, and whether it is enough.
    let head = |with_digest: bool, media_type: &str| {
        let reply = Reply::manifest(media_type, MANIFEST);
        if with_digest { reply.with("Docker-Content-Digest", digest.to_string()) } else { reply }
    };
    let rows = [
        (head(true, OCI_MANIFEST), 1),
        (head(false, OCI_MANIFEST), 2),
        (head(true, "text/plain"), 2),
        (Reply::new(405), 2),
        (Reply::new(400), 2),
        (head(true, OCI_MANIFEST).no_length(), 2),
    ];
    for (reply, requests) in rows {
        let server = Server::script(vec![reply.clone(), Reply::manifest(OCI_MANIFEST, MANIFEST)]);
        let found = client(quick()).resolve(&reference(&format!("{}/a/b:1", server.host()))).unwrap();
        assert_eq!((found.digest, found.size), (digest, MANIFEST.len() as u64), "{reply:?}");
        assert_eq!(server.requests().len(), requests, "{reply:?}");
    }
}

#[test]
fn pushed_manifests_are_compared() {
    let digest = Digest::of(MANIFEST.as_bytes());
    let zeros = Digest::from_bytes([0; 32]).to_string();
    let rows = [
        (vec![Reply::new(201)], Ok(())),
        (vec![Reply::new(503), Reply::new(201).with("Docker-Content-Digest", digest.to_string())], Ok(())),
        // F21
        (vec![Reply::new(201).with("Docker-Content-Digest", zeros)], Err("digest mismatch")),
        (vec![Reply::error(400, "MANIFEST_INVALID", "no such layer")], Err("MANIFEST_INVALID: no such layer")),
    ];
    for (script, expected) in rows {
        let server = Server::script(script);
        let client = client(quick());
        let result =
            client.push_manifest(&repository(&server.host()), ManifestName::Tag("v1"), OCI_MANIFEST, MANIFEST.as_bytes());
        match (result, expected) {
            (Ok(found), Ok(())) => assert_eq!(found, digest),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (result, _) => panic!("{result:?}"),
        }
        let request = server.requests().pop().unwrap();
        assert!(request.is("PUT", "/v2/a/b/manifests/v1"));
        assert_eq!((request.header("content-type"), request.body.as_slice()), (Some(OCI_MANIFEST), MANIFEST.as_bytes()));
    }
}
