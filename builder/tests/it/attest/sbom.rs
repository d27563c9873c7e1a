//! SPDX documents against what the image's own package managers say.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{Layout, build};
use crate::support::home::{Home, finish};
use crate::support::lab;
use crate::support::skip::{needs, skipped};

const SPDX: &str = "https://spdx.dev/Document";

fn document(layout: &Layout) -> Value {
    layout.statements(SPDX).remove(0)["predicate"].take()
}

/// Name and version of the packages of one kind of list.
fn listed(document: &Value, list: &str) -> BTreeSet<(String, String)> {
    let prefix = format!("SPDXRef-Package-{list}-");
    let packages = document["packages"].as_array().unwrap().iter();
    let packages = packages.filter(|package| package["SPDXID"].as_str().unwrap().starts_with(&prefix));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    packages.map(|package| (text(&package["name"]), text(&package["versionInfo"]))).collect()
}

fn purls(document: &Value) -> BTreeSet<String> {
    let references = document["packages"].as_array().unwrap().iter().filter_map(|package| package.get("externalRefs"));
    references.map(|all| all[0]["referenceLocator"].as_str().unwrap().to_owned()).collect()
}

/// What SPDX 2.3 wants of every document, as far as a reader without its schema can check it.
fn check(document: &Value) {
    for key in ["spdxVersion", "dataLicense", "SPDXID", "name", "documentNamespace", "creationInfo", "packages", "relationships"]
    {
        assert!(document.get(key).is_some(), "{key}");
    }
    let packages = document["packages"].as_array().unwrap();
    let ids: BTreeSet<&str> = packages.iter().map(|package| package["SPDXID"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), packages.len(), "an id occurs twice");
    let plain = |id: &&str| id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    assert!(ids.iter().all(plain), "{ids:?}");
    for relationship in document["relationships"].as_array().unwrap() {
        assert!(ids.contains(relationship["relatedSpdxElement"].as_str().unwrap()));
    }
    let referred: BTreeSet<&str> = document["hasExtractedLicensingInfos"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|license| license["licenseId"].as_str().unwrap())
        .collect();
    for package in packages {
        let license = package["licenseDeclared"].as_str().unwrap();
        for word in license.split([' ', '(', ')']).filter(|word| word.starts_with("LicenseRef-")) {
            assert!(referred.contains(word), "{word} of {license} is not explained");
        }
    }
}

#[test]
fn the_packages_of_debian_are_those_that_dpkg_lists() {
    let home = Home::new();
    let context = home.context(
        "c",
        "FROM debian:bookworm\nRUN --network=none dpkg-query -W -f='${db:Status-Status} ${Package} ${Version}\\n' > /list\n\
         RUN --network=none dpkg --remove --force-all tzdata && dpkg-query -W -f='${db:Status-Status} ${Package} ${Version}\\n' > /list\n",
    );
    let layout = build(&home, &context, &["--sbom", "-t", "attest-debian"]);
    let document = document(&layout);
    check(&document);
    let list = home.run(["run", "--rm", "attest-debian", "cat", "/list"]);
    let list = if list.status.success() { list } else { home.run(["run", "attest-debian", "cat", "/list"]) }.ok().stdout;
    let expected: BTreeSet<(String, String)> = list
        .lines()
        .filter_map(|line| line.strip_prefix("installed ")?.split_once(' '))
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect();
    assert!(expected.len() > 50 && expected.len() < list.lines().count(), "{list}");
    assert_eq!(listed(&document, "dpkg"), expected);
    // One of each sort: from the same source, from another, with an epoch.
    let purls = purls(&document);
    for start in ["pkg:deb/debian/bash@5.2", "pkg:deb/debian/libc6@2.36", "pkg:deb/debian/passwd@1:4.13"] {
        let found = purls.iter().find(|purl| purl.starts_with(start)).unwrap_or_else(|| panic!("{start}: {purls:?}"));
        assert!(found.contains("?arch=amd64&distro=debian-12"), "{found}");
    }
    let licensed = document["packages"].as_array().unwrap().iter().filter(|package| package["licenseDeclared"] != "NOASSERTION");
    assert!(licensed.count() > 40, "the copyright files say too little");
    validate(&home, &document);
}

/// SPDX's own tool, where it is installed.
fn validate(home: &Home, document: &Value) {
    if needs("attest::sbom::validate", "pyspdxtools") {
        let file = home.write("made.spdx.json", document.to_string());
        finish(Command::new("pyspdxtools").arg("-i").arg(file)).ok();
    }
}

/// Files as pip, npm, cargo and apk write them: apk's database is laid out here as apk-tools does it, for there is no apk to be had.
#[test]
fn packages_of_languages_and_of_apk() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nCOPY app /app\nCOPY root /\n");
    let workspace = lab::workspace();
    fs::create_dir_all(context.join("app")).unwrap();
    fs::copy(workspace.join("Cargo.lock"), context.join("app/Cargo.lock")).unwrap();
    home.write(
        "c/root/lib/apk/db/installed",
        "C:Q1abc=\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:ld-musl-x86_64.so.1\na:0:0:755\nZ:Q1x=\n\nP:zlib\nV:1.3-r0\nA:x86_64\nL:Zlib\no:zlib\n",
    );
    home.write("c/root/etc/os-release", "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.19.0\n");
    home.write("c/app/node_modules/left-pad/package.json", r#"{"name":"left-pad","version":"1.3.0","license":"WTFPL"}"#);
    home.write(
        "c/app/lib/python3/six-1.16.0.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: six\nVersion: 1.16.0\nLicense: MIT\n\nName: x\n",
    );
    // Nothing of these may end or hold up a build.
    home.write("c/root/var/lib/rpm/Packages", "no database");
    home.write("c/app/package-lock.json", "[".repeat(100_000));
    home.write("c/app/x.jar", "PK\x05\x06");
    std::os::unix::fs::symlink("loop", context.join("app/loop")).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", context.join("app/go.mod")).unwrap();
    let archive = home.path("made.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let run = home.run(["build", "--sbom", "-o", &output, context.to_str().unwrap()]).ok();
    run.says(&["cannot read /var/lib/rpm/Packages: it is in none of the formats sqlite, ndb and Berkeley DB"]);
    let document = document(&Layout::of(&archive));
    check(&document);
    let found = purls(&document);
    for purl in [
        "pkg:apk/alpine/musl@1.2.4-r2?arch=x86_64&distro=alpine-3.19.0&upstream=musl",
        "pkg:apk/alpine/zlib@1.3-r0?arch=x86_64&distro=alpine-3.19.0&upstream=zlib",
        "pkg:npm/left-pad@1.3.0",
        "pkg:pypi/six@1.16.0",
    ] {
        assert!(found.contains(purl), "{purl}: {found:?}");
    }
    let lock: toml::Value = toml::from_str(&fs::read_to_string(workspace.join("Cargo.lock")).unwrap()).unwrap();
    let locked: BTreeSet<(String, String)> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["name"].as_str().unwrap().to_owned(), package["version"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(listed(&document, "cargo-lock"), locked);
    assert!(document["comment"].as_str().unwrap().contains("/var/lib/rpm/Packages"), "{}", document["comment"]);
    validate(&home, &document);
}

/// What pip and npm themselves installed, against their own lists.
#[test]
fn what_pip_installed_is_what_pip_lists() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nCOPY py /py\n");
    let pip = |args: &[&str]| Command::new("python3").args(["-m", "pip", "--disable-pip-version-check"]).args(args).output();
    let target = context.join("py");
    let installed = pip(&["install", "-q", "--root-user-action=ignore", "--target", target.to_str().unwrap(), "flask==3.0.3"]);
    if !installed.as_ref().is_ok_and(|done| done.status.success()) {
        return skipped("attest::sbom::what_pip_installed_is_what_pip_lists", "pip can't install flask");
    }
    let list = pip(&["list", "--format=json", "--path", target.to_str().unwrap()]).unwrap();
    let list: Vec<Value> = serde_json::from_slice(&list.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let expected: BTreeSet<_> = list.iter().map(|package| (text(&package["name"]), text(&package["version"]))).collect();
    assert!(expected.len() > 5, "{list:?}");
    let document = document(&build(&home, &context, &["--sbom"]));
    assert_eq!(listed(&document, "python"), expected);
}
