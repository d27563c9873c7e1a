//! Lock files and metadata as their tools write them, and the packages that are found in them.

use super::*;

#[test]
fn files_are_told_by_their_place() {
    for (path, expected) in [
        ("usr/lib/python3/dist-packages/a-1.dist-info/METADATA", Some(Format::PythonMetadata)),
        ("METADATA", None),
        ("x/a.egg-info/PKG-INFO", Some(Format::PythonMetadata)),
        ("app/node_modules/left-pad/package.json", Some(Format::NodePackage)),
        ("app/node_modules/@types/node/package.json", Some(Format::NodePackage)),
        ("app/package.json", None),
        ("app/node_modules/a/test/package.json", None),
        ("app/Cargo.lock", Some(Format::CargoLock)),
        ("usr/lib/ruby/gems/3.1.0/specifications/default/rake-1.gemspec", Some(Format::Gemspec)),
        ("src/rake.gemspec", None),
        ("app/vendor/composer/installed.json", Some(Format::Composer)),
    ] {
        assert_eq!(Format::of(path), expected, "{path}");
    }
}

#[test]
fn what_the_files_say() {
    let rows: [(Format, &str, &[&str]); 17] = [
        (
            Format::PythonMetadata,
            "Metadata-Version: 2.1\nName: Flask_Login\nVersion: 0.6.3\nLicense: MIT\n\nName: not me\nVersion: 1\n",
            &["pkg:pypi/flask-login@0.6.3"],
        ),
        (Format::PythonLock, "[[package]]\nname = \"idna\"\nversion = \"3.6\"\n", &["pkg:pypi/idna@3.6"]),
        (
            Format::Pipfile,
            r#"{"default":{"six":{"version":"==1.16.0"},"local":{"path":"."}},"develop":{"x":{"version":"==2"}}}"#,
            &["pkg:pypi/six@1.16.0", "pkg:pypi/x@2"],
        ),
        (Format::NodePackage, r#"{"name":"@types/node","version":"20.1.0"}"#, &["pkg:npm/%40types/node@20.1.0"]),
        (Format::NodePackage, r#"{"name":"x"}"#, &[]),
        (Format::NodePackage, "{", &[]),
        (
            Format::NodeLock,
            r#"{"lockfileVersion":3,"packages":{"":{"name":"app","version":"1.0.0"},"node_modules/a":{"version":"1.2.3"},
                "node_modules/a/node_modules/@s/b":{"version":"2.0.0"},"node_modules/c":{"resolved":"lib","link":true}}}"#,
            &["pkg:npm/a@1.2.3", "pkg:npm/%40s/b@2.0.0"],
        ),
        (
            Format::NodeLock,
            r#"{"lockfileVersion":1,"dependencies":{"a":{"version":"1.0.0","dependencies":{"b":{"version":"2.0.0"}}}}}"#,
            &["pkg:npm/a@1.0.0", "pkg:npm/b@2.0.0"],
        ),
        (
            Format::YarnLock,
            "# yarn lockfile v1\n\n\n\"@babel/core@^7.0.0\", \"@babel/core@^7.1\":\n  version \"7.23.0\"\n  resolved \"x\"\n  dependencies:\n    version \"1\"\n\nleft-pad@1.3.0:\n  version \"1.3.0\"\n",
            &["pkg:npm/%40babel/core@7.23.0", "pkg:npm/left-pad@1.3.0"],
        ),
        (
            Format::YarnLock,
            "__metadata:\n  version: 6\n\n\"app@workspace:.\":\n  version: 0.0.0-use.local\n\n\"ms@npm:^2.1.1\":\n  version: 2.1.3\n",
            &["pkg:npm/ms@2.1.3"],
        ),
        (
            Format::PnpmLock,
            "lockfileVersion: '9.0'\n\nimporters:\n\n  .:\n    dependencies:\n\npackages:\n\n  '@s/a@1.0.0':\n    resolution: {}\n\n  ms@2.1.3:\n    resolution: {}\n\nsnapshots:\n\n  x@1.0.0: {}\n",
            &["pkg:npm/%40s/a@1.0.0", "pkg:npm/ms@2.1.3"],
        ),
        (
            Format::PnpmLock,
            "packages:\n\n  /@s/a@1.0.0(react@18.0.0):\n    dev: true\n\n  /b/2.0.0_peer@1:\n    dev: true\n\n  /c@3.0.0:\n",
            &["pkg:npm/%40s/a@1.0.0", "pkg:npm/b@2.0.0", "pkg:npm/c@3.0.0"],
        ),
        (
            Format::CargoLock,
            "version = 3\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nsource = \"registry\"\n",
            &["pkg:cargo/serde@1.0.0"],
        ),
        (
            Format::GoMod,
            "module a.test/m\n\ngo 1.21\n\nrequire github.com/pkg/errors v0.9.1 // indirect\n\nrequire (\n\tgolang.org/x/sys v0.1.0\n)\n\nreplace (\n\ta => b v1.0.0\n)\n",
            &["pkg:golang/github.com/pkg/errors@v0.9.1", "pkg:golang/golang.org/x/sys@v0.1.0"],
        ),
        (
            Format::GemLock,
            "GEM\n  remote: https://rubygems.org/\n  specs:\n    rack (2.2.3)\n    rails (7.0.0)\n      rack (>= 2)\n\nPLATFORMS\n  ruby (1)\n",
            &["pkg:gem/rack@2.2.3", "pkg:gem/rails@7.0.0"],
        ),
        (
            Format::Gemspec,
            "Gem::Specification.new do |s|\n  s.name = \"rake\".freeze\n  s.version = \"13.0.6\"\n  s.licenses = [\"MIT\".freeze]\nend\n",
            &["pkg:gem/rake@13.0.6"],
        ),
        (
            Format::Composer,
            r#"{"packages":[{"name":"Monolog/monolog","version":"3.4.0","license":["MIT"]}],"packages-dev":[]}"#,
            &["pkg:composer/monolog/monolog@3.4.0"],
        ),
    ];
    for (format, text, expected) in rows {
        let found: Vec<String> = format.packages(text, "/x").into_iter().map(|package| package.purl).collect();
        assert_eq!(found, expected, "{format:?} {text}");
    }
}

#[test]
fn licenses_in_all_their_forms() {
    for (text, expected) in [
        (r#"{"name":"a","version":"1","license":"MIT"}"#, "MIT"),
        (r#"{"name":"a","version":"1","license":{"type":"BSD-3-Clause"}}"#, "BSD-3-Clause"),
        (r#"{"name":"a","version":"1","licenses":[{"type":"MIT"},{"type":"GPL-2.0"}]}"#, "(MIT OR GPL-2.0)"),
        (r#"{"name":"a","version":"1"}"#, ""),
    ] {
        assert_eq!(Format::NodePackage.packages(text, "/x")[0].license, expected, "{text}");
    }
}
