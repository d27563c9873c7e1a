//! Hides apk's database: stanzas with keys of one letter (apk-package(5)).

use super::package::{Distribution, Package, stanzas};

/// The packages of `lib/apk/db/installed`.
pub fn packages(text: &str, found: &str, distribution: &Distribution) -> Vec<Package> {
    let package = |(name, version, stanza): (&str, &str, super::package::Stanza<'_>)| Package {
        purl: distribution.purl("apk", name, version, &[("arch", stanza.get("A")), ("upstream", stanza.get("o"))]),
        name: name.to_owned(),
        version: version.to_owned(),
        license: stanza.get("L").to_owned(),
        supplier: stanza.get("m").to_owned(),
        homepage: stanza.get("U").to_owned(),
        list: "apk",
        found: found.to_owned(),
    };
    let named = stanzas(text).map(|stanza| (stanza.get("P"), stanza.get("V"), stanza));
    named.filter(|(name, version, _)| !name.is_empty() && !version.is_empty()).map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_file() {
        let text = "C:Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=\nP:alpine-baselayout\nV:3.4.3-r1\nA:x86_64\nS:8911\nI:331776\n\
                    T:Alpine base dir structure and init scripts\nU:https://git.alpinelinux.org/cgit/aports/tree/main\n\
                    L:GPL-2.0-only\no:alpine-baselayout\nm:Natanael Copa <n@a.test>\nF:dev\nF:dev/pts\nR:hosts\nZ:Q1=\n\n\
                    P:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\no:musl\n\nP:nothing\n";
        let distribution = Distribution::parse("ID=alpine\nVERSION_ID=3.18.4\n");
        let found = packages(text, "/lib/apk/db/installed", &distribution);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].purl,
            "pkg:apk/alpine/alpine-baselayout@3.4.3-r1?arch=x86_64&distro=alpine-3.18.4&upstream=alpine-baselayout"
        );
        assert_eq!((found[1].license.as_str(), found[0].supplier.as_str()), ("MIT", "Natanael Copa <n@a.test>"));
    }
}
