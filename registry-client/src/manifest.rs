//! Hides when a manifest is to be believed: its digest, its size, and that its shape, its own `mediaType` and the
//! `Content-Type` say the same.

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::media_type::{self, OCI_INDEX, OCI_MANIFEST};
use kiln_oci::reference::Reference;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};

use crate::error::{Error, ErrorKind, printable};
use crate::exchange::{Ask, Exchange};
use crate::transport::Incoming;
use crate::{ManifestName, Repository};

/// No manifest is larger (distribution-spec, "Pushing manifests": registries may stop at 4 MiB).
pub(crate) const LIMIT: u64 = 4 << 20;
const DIGEST_HEADER: &str = "Docker-Content-Digest";
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

fn ask(exchange: &Exchange<'_>, reference: &Reference, method: Method) -> Ask {
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    let mut ask = Ask::new(method, exchange.endpoint.url(reference.path(), &format!("manifests/{name}")));
    ask.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
    ask
}

/// The descriptor by a `HEAD`; `None` when the registry doesn't tell enough and the manifest has to be fetched.
pub(crate) fn resolve(exchange: &Exchange<'_>, reference: &Reference) -> Result<Option<Descriptor>, Error> {
    let incoming = exchange.patiently(&ask(exchange, reference, Method::HEAD))?;
    match incoming.status.as_u16() {
        200 => {}
        // These answers have no body to say why: a `GET` gets one.
        400..=403 | 405 => return Ok(None),
        _ => return Err(exchange.error(exchange.refusal(incoming).kind)),
    }
    let Some(media_type) = content_type(&incoming).filter(|found| media_type::is_index(found) || media_type::is_manifest(found))
    else {
        return Ok(None);
    };
    let Some(size) = incoming.content_length().filter(|size| *size > 0) else { return Ok(None) };
    if size > LIMIT {
        return Err(exchange.error(ErrorKind::TooLarge { what: "manifest", limit: LIMIT }));
    }
    let claimed = claimed_digest(&incoming).map_err(|kind| exchange.error(kind))?;
    match (reference.digest(), claimed) {
        (Some(expected), Some(actual)) if expected != actual => {
            Err(exchange.error(ErrorKind::DigestMismatch { source_of: HEADER, expected, actual: actual.to_string() }))
        }
        (None, None) => Ok(None),
        (Some(digest), _) | (None, Some(digest)) => Ok(Some(Descriptor::new(&media_type, digest, size))),
    }
}

const HEADER: &str = "the Docker-Content-Digest header";

/// The manifest itself, verified.
pub(crate) fn fetch(exchange: &Exchange<'_>, reference: &Reference) -> Result<(Descriptor, Vec<u8>), Error> {
    let ask = ask(exchange, reference, Method::GET);
    let mut patience = crate::exchange::Patience::new(&exchange.options.retry);
    loop {
        let mut incoming = exchange.patiently(&ask)?;
        if incoming.status.as_u16() != 200 {
            return Err(exchange.error(exchange.refusal(incoming).kind));
        }
        let result =
            incoming.body("manifest", LIMIT).and_then(|bytes| Ok((check(&incoming, reference.digest(), &bytes)?, bytes)));
        match result {
            Ok(found) => return Ok(found),
            Err(kind) => exchange.pause(&mut patience, kind.into())?,
        }
    }
}

fn check(incoming: &Incoming<'_>, expected: Option<Digest>, bytes: &[u8]) -> Result<Descriptor, ErrorKind> {
    let actual = Digest::of(bytes);
    if let Some(expected) = expected
        && expected != actual
    {
        return Err(ErrorKind::DigestMismatch { source_of: "the content", expected, actual: actual.to_string() });
    }
    if let Some(claimed) = claimed_digest(incoming)?
        && claimed != actual
    {
        return Err(ErrorKind::DigestMismatch { source_of: HEADER, expected: actual, actual: claimed.to_string() });
    }
    let media_type = media_type_of(content_type(incoming).as_deref(), bytes)?;
    Ok(Descriptor::new(&media_type, actual, bytes.len() as u64))
}

/// The digest that an answer claims to be of. One of another algorithm says nothing that could be checked.
pub(crate) fn claimed_digest(incoming: &Incoming<'_>) -> Result<Option<Digest>, ErrorKind> {
    let Some(text) = incoming.header(DIGEST_HEADER) else { return Ok(None) };
    match Digest::parse(text) {
        Ok(digest) => Ok(Some(digest)),
        Err(kiln_oci::digest::DigestError::UnsupportedAlgorithm(_)) => Ok(None),
        Err(_) => Err(ErrorKind::Protocol(format!("{HEADER} is `{}`", printable(text, 100)))),
    }
}

fn content_type(incoming: &Incoming<'_>) -> Option<String> {
    let text = incoming.header(CONTENT_TYPE)?;
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The media type of a manifest. A document that could be taken for both a manifest and an index has two meanings, and whoever
/// looked at it first may have seen the other one (CVE-2021-41190).
fn media_type_of(content_type: Option<&str>, bytes: &[u8]) -> Result<String, ErrorKind> {
    let bad = |reason: &str| Err(ErrorKind::BadManifest(reason.to_owned()));
    let document: serde_json::Value = match serde_json::from_slice(bytes) {
        Ok(document) => document,
        Err(error) => return bad(&format!("it is not JSON: {error}")),
    };
    let has = |key: &str| document.get(key).is_some_and(|value| !value.is_null());
    let own = document.get("mediaType").and_then(serde_json::Value::as_str);
    if document.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) || has("fsLayers") {
        return bad("it is in Docker's schema 1, which was given up in 2019; the image has to be pushed anew");
    }
    if has("manifests") && (has("layers") || has("config")) {
        return bad("it has both `layers` and `manifests`, so that it could be read as two different images");
    }
    let is_index = has("manifests");
    if !is_index && !has("config") {
        return bad("it has neither `manifests` nor `config`");
    }
    let known = |name: &str| media_type::is_index(name) || media_type::is_manifest(name);
    // Servers without an idea of what they serve say so in one of these ways.
    let header =
        content_type.filter(|name| !matches!(*name, "" | "application/json" | "text/plain" | "application/octet-stream"));
    let media_type = match (own, header) {
        (Some(own), Some(header)) if own != header => {
            let (own, header) = (printable(own, 100), printable(header, 100));
            return bad(&format!("its `mediaType` is `{own}`, but the Content-Type is `{header}`"));
        }
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) if is_index => OCI_INDEX,
        (None, None) => OCI_MANIFEST,
    };
    if !known(media_type) {
        return bad(&format!("its media type `{}` is none of an image", printable(media_type, 100)));
    }
    if media_type::is_index(media_type) != is_index {
        return bad(&format!(
            "its media type is `{media_type}`, but it has {}",
            if is_index { "`manifests`" } else { "`layers`" }
        ));
    }
    Ok(media_type.to_owned())
}

/// Pushes a manifest and checks that the registry understood the same bytes; says whether it lists the manifest as a referrer.
pub(crate) fn push(
    exchange: &Exchange<'_>,
    repository: &Repository,
    name: ManifestName<'_>,
    media_type: &str,
    bytes: &[u8],
) -> Result<(Digest, bool), Error> {
    let digest = Digest::of(bytes);
    let name = match name {
        ManifestName::Tag(tag) => tag.to_owned(),
        ManifestName::Digest => digest.to_string(),
    };
    let mut ask = Ask::new(Method::PUT, exchange.endpoint.url(repository.path(), &format!("manifests/{name}")));
    let content_type = HeaderValue::from_str(media_type)
        .map_err(|_| exchange.error(ErrorKind::BadManifest(format!("`{}` is no media type", printable(media_type, 100)))))?;
    ask.headers.insert(CONTENT_TYPE, content_type);
    ask.body = bytes.to_vec().into();
    let incoming = exchange.patiently(&ask)?;
    if !incoming.status.is_success() {
        return Err(exchange.error(exchange.refusal(incoming).kind));
    }
    match claimed_digest(&incoming).map_err(|kind| exchange.error(kind))? {
        Some(actual) if actual != digest => {
            Err(exchange.error(ErrorKind::DigestMismatch { source_of: HEADER, expected: digest, actual: actual.to_string() }))
        }
        _ => Ok((digest, incoming.header("OCI-Subject").is_some())),
    }
}

#[cfg(test)]
mod tests {
    use kiln_oci::media_type::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_INDEX, OCI_MANIFEST};

    use super::{ACCEPTED, media_type_of};

    #[test]
    fn all_kinds_are_accepted() {
        for name in [OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_MANIFEST] {
            assert!(ACCEPTED.contains(name), "{name}");
        }
    }

    /// C75: what a document is has one answer, or it is refused.
    #[test]
    fn media_types_agree() {
        let manifest = r#""config":{},"layers":[]"#;
        let rows: &[(Option<&str>, &str, Result<&str, &str>)] = &[
            (Some(OCI_MANIFEST), manifest, Ok(OCI_MANIFEST)),
            (Some(DOCKER_MANIFEST), manifest, Ok(DOCKER_MANIFEST)),
            (Some("application/json"), manifest, Ok(OCI_MANIFEST)),
            (None, r#""manifests":[]"#, Ok(OCI_INDEX)),
            (Some(DOCKER_MANIFEST_LIST), r#""manifests":[]"#, Ok(DOCKER_MANIFEST_LIST)),
            (Some(OCI_INDEX), r#""manifests":[],"config":null"#, Ok(OCI_INDEX)),
            (Some(OCI_INDEX), manifest, Err("has `layers`")),
            (Some(OCI_MANIFEST), r#""manifests":[]"#, Err("has `manifests`")),
            (Some(OCI_MANIFEST), r#""manifests":[],"layers":[]"#, Err("both")),
            (Some(OCI_INDEX), r#""manifests":[],"config":{}"#, Err("both")),
            (Some(OCI_MANIFEST), r#""mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]"#, Err("Content-Type")),
            (
                Some("application/json"),
                r#""mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{}"#,
                Ok(DOCKER_MANIFEST),
            ),
            (Some(OCI_MANIFEST), r#""schemaVersion":1,"fsLayers":[]"#, Err("schema 1")),
            (Some("text/html"), manifest, Err("none of an image")),
            (Some(OCI_MANIFEST), r#""artifactType":"x""#, Err("neither")),
        ];
        for (content_type, members, expected) in rows {
            let found = media_type_of(*content_type, format!("{{{members}}}").as_bytes());
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error} has {words}"),
                _ => panic!("{content_type:?} {members}: {found:?}"),
            }
        }
        assert!(media_type_of(Some(OCI_MANIFEST), b"<html>").is_err());
    }
}
