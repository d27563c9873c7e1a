//! Hides dpkg's database: a file of stanzas, or one file a package as in images without dpkg itself (deb822(5), dpkg-query(1)).

use super::license;
use super::package::{Distribution, Package, Stanza, stanzas};

/// The installed packages of a status file, or of a file of `status.d`.
pub fn packages(text: &str, found: &str, distribution: &Distribution) -> Vec<Package> {
    stanzas(text).filter(is_installed).filter_map(|stanza| package(&stanza, found, distribution)).collect()
}

/// `Status: want ok state`; the files of `status.d` have none. What was removed but for its configuration isn't there.
fn is_installed(stanza: &Stanza<'_>) -> bool {
    let state = stanza.find("Status").map(|status| status.split_whitespace().last().unwrap_or_default());
    !matches!(state, Some("not-installed" | "config-files" | "half-installed"))
}

fn package(stanza: &Stanza<'_>, found: &str, distribution: &Distribution) -> Option<Package> {
    let (name, version) = (stanza.get("Package"), stanza.get("Version"));
    if name.is_empty() || version.is_empty() {
        return None;
    }
    // `Source: glibc (2.36-9)`; a package is its own source unless it says otherwise.
    let source = stanza.get("Source");
    let upstream = match source.split_once(" (") {
        Some((source, version)) => format!("{source}@{}", version.trim_end_matches(')')),
        None => source.to_owned(),
    };
    Some(Package {
        purl: distribution.purl("deb", name, version, &[("arch", stanza.get("Architecture")), ("upstream", &upstream)]),
        name: name.to_owned(),
        version: version.to_owned(),
        license: String::new(),
        supplier: stanza.get("Maintainer").to_owned(),
        homepage: stanza.get("Homepage").to_owned(),
        list: "dpkg",
        found: found.to_owned(),
    })
}

/// The licenses that a machine-readable `copyright` file names (DEP 5), joined in one expression in SPDX's words where those are
/// known; empty for a file that is plain prose.
pub fn licenses(copyright: &str) -> String {
    if !copyright.lines().take(5).any(|line| line.starts_with("Format:")) {
        return String::new();
    }
    // One name that is prose must not make prose of all.
    let names = stanzas(copyright).filter_map(|stanza| stanza.find("License").map(spdx)).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| license::expression(&name).0).collect();
    names.sort();
    names.dedup();
    let grouped = |name: &String| if names.len() > 1 && name.contains(" OR ") { format!("({name})") } else { name.clone() };
    names.iter().map(grouped).collect::<Vec<_>>().join(" AND ")
}

/// `GPL-2+ or MIT` in the words of SPDX. What isn't known there stays, and becomes a reference in the document.
fn spdx(text: &str) -> String {
    let words = text.replace(',', " ");
    let mut out: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        out.push(match word {
            "and" => "AND".to_owned(),
            "or" => "OR".to_owned(),
            "with" => "WITH".to_owned(),
            "Expat" => "MIT".to_owned(),
            "public-domain" => "LicenseRef-public-domain".to_owned(),
            other => gnu(other).unwrap_or_else(|| other.to_owned()),
        });
    }
    out.join(" ")
}

/// Debian writes `GPL-2+` for what SPDX calls `GPL-2.0-or-later`.
fn gnu(word: &str) -> Option<String> {
    let (family, version) = word.split_once('-')?;
    if !matches!(family, "GPL" | "LGPL" | "AGPL" | "GFDL") {
        return None;
    }
    let (version, suffix) = match version.strip_suffix('+') {
        Some(version) => (version, "or-later"),
        None => (version, "only"),
    };
    let plain = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let dot = if version.contains('.') { "" } else { ".0" };
    plain.then(|| format!("{family}-{version}{dot}-{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_file() {
        let text = "Package: libc6\nStatus: install ok installed\nMaintainer: GNU Libc <l@d.test>\nArchitecture: amd64\n\
                    Source: glibc (2.36-9)\nVersion: 2.36-9+deb12u4\nDescription: a\n b\n .\n Package: x\n\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Package: half\nStatus: install ok unpacked\nVersion: 1:2\nArchitecture: all\n\n\
                    Package: broken\nStatus: install ok installed\n";
        let distribution = Distribution::parse("PRETTY_NAME=x\nID=debian\nVERSION_ID=\"12\"\n");
        let found = packages(text, "/var/lib/dpkg/status", &distribution);
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12&upstream=glibc%402.36-9",
                "pkg:deb/debian/half@1:2?arch=all&distro=debian-12",
            ]
        );
        assert_eq!(found[0].supplier, "GNU Libc <l@d.test>");
        // As in images without dpkg: no status.
        assert_eq!(packages("Package: tzdata\nVersion: 2024a-0\n", "/d", &Distribution::default()).len(), 1);
    }

    #[test]
    fn licenses_of_copyright_files() {
        for (text, expected) in [
            ("This is prose.\nLicense: GPL\n", ""),
            ("Format: https://x/\n\nFiles: *\nLicense: GPL-2+\n text\n\nFiles: a\nLicense: Expat\n", "GPL-2.0-or-later AND MIT"),
            (
                "Format: x\n\nFiles: *\nLicense: GPL-3 or Artistic\n\nLicense: LGPL-2.1+\n t\n",
                "(GPL-3.0-only OR LicenseRef-Artistic) AND LGPL-2.1-or-later",
            ),
        ] {
            assert_eq!(licenses(text), expected);
        }
    }
}
