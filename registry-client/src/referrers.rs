//! Hides how registries tell what refers to a manifest: the API of distribution-spec 1.1, or a tag in its place.

use kiln_oci::descriptor::Descriptor;
use kiln_oci::digest::Digest;
use kiln_oci::manifest::Index;
use kiln_oci::media_type::OCI_INDEX;
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue, LINK};
use serde_json::{Map, Value};
use url::Url;

use crate::error::{Error, ErrorKind};
use crate::exchange::{Ask, Exchange, Fault, Patience, resolve_location};
use crate::{ManifestName, Repository, manifest};

/// More pages of a list aren't read.
const MAX_PAGES: usize = 100;
/// How often an entry is added anew that another writer's took the place of.
const TRIES: u32 = 5;
const ARTIFACT_TYPE: &str = "artifactType";

/// The descriptors of what refers to `subject`.
pub(crate) fn list(
    exchange: &Exchange<'_>,
    repository: &Repository,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, Error> {
    let mut url = exchange.endpoint.url(repository.path(), &format!("referrers/{subject}"));
    if let Some(wanted) = artifact_type {
        url.query_pairs_mut().append_pair(ARTIFACT_TYPE, wanted);
    }
    let mut found = match pages(exchange, url)? {
        Some(found) => found,
        None => tagged(exchange, repository, subject)?.map(|index| index.manifests).unwrap_or_default(),
    };
    // A registry may filter or not, and not everything that lists an entry twice means it.
    found.retain(|entry| {
        artifact_type.is_none_or(|wanted| entry.extra.get(ARTIFACT_TYPE).and_then(Value::as_str) == Some(wanted))
    });
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|entry| seen.insert(entry.digest));
    Ok(found)
}

/// All pages of the API's answer; `None` where there is no API.
fn pages(exchange: &Exchange<'_>, first: Url) -> Result<Option<Vec<Descriptor>>, Error> {
    let mut found = Vec::new();
    let mut next = Some(first);
    for page in 0..MAX_PAGES {
        let Some(url) = next.take() else { break };
        let Some((index, link)) = get_index(exchange, url)? else {
            return if page == 0 {
                Ok(None)
            } else {
                Err(exchange.error(ErrorKind::Protocol("a page of referrers is gone".to_owned())))
            };
        };
        found.extend(index.manifests);
        next = link;
    }
    Ok(Some(found))
}

/// An index, and where its next page is; `None` when there is none.
fn get_index(exchange: &Exchange<'_>, url: Url) -> Result<Option<(Index, Option<Url>)>, Error> {
    let mut ask = Ask::new(Method::GET, url);
    ask.headers.insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
    let mut patience = Patience::new(&exchange.options.retry);
    loop {
        let mut incoming = exchange.patiently(&ask)?;
        match incoming.status.as_u16() {
            200 => {}
            // Docker's registry 2 doesn't know the path; others have it switched off.
            404 | 405 | 501 => return Ok(None),
            _ => return Err(exchange.error(exchange.refusal(incoming).kind)),
        }
        let link = incoming.header(LINK).and_then(next_page).map(str::to_owned);
        let bytes = match incoming.body("list of referrers", manifest::LIMIT) {
            Ok(bytes) => bytes,
            Err(kind) => {
                exchange.pause(&mut patience, kind.into())?;
                continue;
            }
        };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| exchange.error(ErrorKind::BadManifest(format!("the list of referrers is no index: {error}"))))?;
        let next = link.map(|link| resolve_location(&incoming.url, &link)).transpose().map_err(|kind| exchange.error(kind))?;
        return Ok(Some((index, next)));
    }
}

/// `</v2/…?n=…>; rel="next"`
fn next_page(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    parameters.replace(['"', ' '], "").contains("rel=next").then_some(target)
}

fn tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

fn tagged(exchange: &Exchange<'_>, repository: &Repository, subject: &Digest) -> Result<Option<Index>, Error> {
    let url = exchange.endpoint.url(repository.path(), &format!("manifests/{}", tag(subject)));
    Ok(get_index(exchange, url)?.map(|(index, _)| index))
}

/// Pushes a manifest with a `subject`, and lists it where the registry doesn't.
pub(crate) fn push(
    exchange: &Exchange<'_>,
    repository: &Repository,
    media_type: &str,
    bytes: &[u8],
) -> Result<Descriptor, Error> {
    let bad = |reason: &str| exchange.error(ErrorKind::BadManifest(reason.to_owned()));
    let document: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| bad(&format!("it is not JSON: {error}")))?;
    let subject = document.get("subject").and_then(|subject| subject.get("digest")).and_then(Value::as_str);
    let subject = subject.and_then(|digest| Digest::parse(digest).ok()).ok_or_else(|| bad("it has no `subject`"))?;
    let mut entry = Descriptor::of(media_type, bytes);
    // distribution-spec, "Pushing Manifests with Subject": its own type, else that of its configuration.
    let own = document.get(ARTIFACT_TYPE).filter(|own| own.as_str().is_some_and(|text| !text.is_empty()));
    if let Some(kind) = own.or_else(|| document.get("config")?.get("mediaType")) {
        entry.extra.insert(ARTIFACT_TYPE.to_owned(), kind.clone());
    }
    if let Some(Ok(annotations)) = document.get("annotations").map(|found| serde_json::from_value(found.clone())) {
        entry.annotations = annotations;
    }
    let (_, listed) = manifest::push(exchange, repository, ManifestName::Digest, media_type, bytes)?;
    if !listed {
        add_to_tag(exchange, repository, &subject, &entry)?;
    }
    Ok(entry)
}

/// Adds an entry to the index under the tag. Two writers at once may each overwrite what the other wrote, and the specification
/// has nothing against that but to look again.
fn add_to_tag(exchange: &Exchange<'_>, repository: &Repository, subject: &Digest, entry: &Descriptor) -> Result<(), Error> {
    let has = |index: &Index| index.manifests.iter().any(|known| known.digest == entry.digest);
    let mut patience = Patience::new(&exchange.options.retry);
    for _ in 0..TRIES {
        let mut index = match tagged(exchange, repository, subject)? {
            Some(index) if has(&index) => return Ok(()),
            Some(index) => index,
            None => {
                let empty = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
                serde_json::from_value(empty).map_err(|error| exchange.error(ErrorKind::BadManifest(error.to_string())))?
            }
        };
        index.manifests.push(entry.clone());
        let bytes = serde_json::to_vec(&index).map_err(|error| exchange.error(ErrorKind::BadManifest(error.to_string())))?;
        manifest::push(exchange, repository, ManifestName::Tag(&tag(subject)), OCI_INDEX, &bytes)?;
        if tagged(exchange, repository, subject)?.is_some_and(|index| has(&index)) {
            return Ok(());
        }
        let lost = ErrorKind::Interrupted { received: 0, cause: "another writer replaced the list of referrers".to_owned() };
        exchange.pause(&mut patience, Fault::from(lost))?;
    }
    Err(exchange
        .error(ErrorKind::Protocol(format!("the list of referrers under the tag {} doesn't keep an entry", tag(subject)))))
}

#[cfg(test)]
mod tests {
    use super::next_page;

    #[test]
    fn links() {
        let rows = [
            ("</v2/a/referrers/x?n=2>; rel=\"next\"", Some("/v2/a/referrers/x?n=2")),
            ("<https://r.io/x>;rel=next", Some("https://r.io/x")),
            ("</x>; rel=\"prev\"", None),
            ("/x; rel=next", None),
            ("", None),
        ];
        for (link, expected) in rows {
            assert_eq!(next_page(link), expected, "{link}");
        }
    }
}
