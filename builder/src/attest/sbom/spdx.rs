//! Hides the form of an SPDX 2.3 document in JSON (spdx.github.io/spdx-spec/v2.3): ids, relationships, what must be there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::license;
use super::package::{Distribution, Package};

/// The type of a statement that holds one.
pub const PREDICATE_TYPE: &str = "https://spdx.dev/Document";
const NOASSERTION: &str = "NOASSERTION";

/// What a document is about.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// `sbom`, or with the stage behind it.
    pub name: &'a str,
    /// The digest of the image's configuration, which no other tree of files has.
    pub digest: &'a str,
    /// The time to write, RFC 3339.
    pub created: &'a str,
    /// Which distribution it is of.
    pub distribution: &'a Distribution,
    /// What could not be read.
    pub notes: &'a [String],
}

/// The document. Packages come in the order of their addresses.
pub fn document(subject: &Subject<'_>, packages: &[Package]) -> Value {
    let mut licenses: BTreeMap<String, String> = BTreeMap::new();
    let mut entries = vec![root(subject)];
    let mut relationships = vec![related("SPDXRef-DOCUMENT", "DESCRIBES", ROOT)];
    for package in packages {
        let (expression, references) = license::expression(&package.license);
        licenses.extend(references);
        let id = id(package);
        relationships.push(related(ROOT, "CONTAINS", &id));
        entries.push(entry(package, &id, &expression));
    }
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": subject.name,
        "documentNamespace": format!("https://github.com/kiln-build/kiln/spdx/{}/{}", subject.name, subject.digest.replace(':', "-")),
        "creationInfo": {
            "creators": ["Organization: kiln", format!("Tool: kiln-{}", env!("CARGO_PKG_VERSION"))],
            "created": seconds(subject.created),
        },
        "packages": entries,
        "relationships": relationships,
    });
    if !subject.notes.is_empty() {
        document["comment"] = json!(format!("not everything could be read: {}", subject.notes.join("; ")));
    }
    if !licenses.is_empty() {
        let infos = licenses.into_iter().map(|(id, text)| json!({ "licenseId": id, "name": text, "extractedText": text }));
        document["hasExtractedLicensingInfos"] = infos.collect();
    }
    document
}

const ROOT: &str = "SPDXRef-Image";

/// The image itself.
fn root(subject: &Subject<'_>) -> Value {
    let mut root = json!({
        "SPDXID": ROOT,
        "name": match subject.distribution.id.as_str() { "" => "image", id => id },
        "downloadLocation": NOASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NOASSERTION,
        "licenseDeclared": NOASSERTION,
        "copyrightText": NOASSERTION,
        "supplier": NOASSERTION,
        "primaryPackagePurpose": "CONTAINER",
    });
    if !subject.distribution.version.is_empty() {
        root["versionInfo"] = json!(subject.distribution.version);
    }
    root
}

fn entry(package: &Package, id: &str, license: &str) -> Value {
    let mut entry = json!({
        "SPDXID": id,
        "name": package.name,
        "versionInfo": package.version,
        "supplier": supplier(&package.supplier),
        "downloadLocation": NOASSERTION,
        "filesAnalyzed": false,
        "sourceInfo": format!("found by its entry in a {} list: {}", package.list, package.found),
        "licenseConcluded": NOASSERTION,
        "licenseDeclared": license,
        "copyrightText": NOASSERTION,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": package.purl,
        }],
    });
    let plain = |url: &&str| url.bytes().all(|byte| byte.is_ascii_graphic());
    let homepage = Some(package.homepage.as_str()).filter(|url| url.starts_with("http://") || url.starts_with("https://"));
    if let Some(homepage) = homepage.filter(plain) {
        entry["homepage"] = json!(homepage);
    }
    entry
}

/// `Organization: NAME (ADDRESS)`. Nobody can tell a person from a group, and most packages are made by groups.
fn supplier(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let (name, address) = match text.split_once('<') {
        Some((name, address)) => (name.trim().trim_matches('"'), address.split('>').next().unwrap_or_default().trim()),
        None => (text.trim(), ""),
    };
    // A bracket in the name would look like the address.
    let name = name.split('(').next().unwrap_or(name).trim();
    match (name, address) {
        ("", _) => NOASSERTION.to_owned(),
        (name, address) if address.contains('@') && !address.contains(['(', ')', ' ']) => {
            format!("Organization: {name} ({address})")
        }
        (name, _) => format!("Organization: {name}"),
    }
}

/// A readable id that no other package has.
fn id(package: &Package) -> String {
    let plain = |text: &str| -> String {
        text.chars().take(60).map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' }).collect()
    };
    let hash = blake3::hash(package.purl.as_bytes()).to_hex();
    format!("SPDXRef-Package-{}-{}-{}", plain(package.list), plain(&package.name), &hash[..16])
}

fn related(from: &str, how: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": how, "relatedSpdxElement": to })
}

/// SPDX knows no parts of a second.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppliers() {
        for (text, expected) in [
            (
                "GNU Libc Maintainers <debian-glibc@lists.debian.org>",
                "Organization: GNU Libc Maintainers (debian-glibc@lists.debian.org)",
            ),
            ("Isaac Z. Schlueter", "Organization: Isaac Z. Schlueter"),
            ("me <x> (http://h)", "Organization: me"),
            ("a (b) <c@d>", "Organization: a (c@d)"),
            ("", "NOASSERTION"),
            ("<a@b>", "NOASSERTION"),
        ] {
            assert_eq!(supplier(text), expected);
        }
    }

    #[test]
    fn the_same_packages_give_the_same_document() {
        let package = |name: &str| Package {
            purl: format!("pkg:npm/{name}@1"),
            name: name.to_owned(),
            version: "1".to_owned(),
            license: "Some License".to_owned(),
            list: "node",
            ..Package::default()
        };
        let distribution = Distribution::default();
        let subject = Subject {
            name: "sbom",
            digest: "sha256:0",
            created: "2023-11-14T22:13:20.5Z",
            distribution: &distribution,
            notes: &[],
        };
        let packages = [package("a"), package("a+")];
        let made = document(&subject, &packages);
        assert_eq!(made.to_string(), document(&subject, &packages).to_string());
        assert_eq!(made["creationInfo"]["created"], "2023-11-14T22:13:20Z");
        assert_ne!(made["packages"][1]["SPDXID"], made["packages"][2]["SPDXID"]);
        assert_eq!(made["hasExtractedLicensingInfos"].as_array().map(Vec::len), Some(1));
        assert_eq!(made["relationships"].as_array().map(Vec::len), Some(3));
    }
}
