//! SLSA provenance against what BuildKit 0.25 wrote for the same Dockerfile (`testdata/attest`), and against what it must never hold.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::{Layout, build};
use crate::support::home::{Home, same_bytes};
use crate::support::lab::{self, FolderServer, workspace};

const V1: &str = "https://slsa.dev/provenance/v1";
const V02: &str = "https://slsa.dev/provenance/v0.2";

/// The flags that the recordings were made with.
const FLAGS: [&str; 10] = [
    "--network=none",
    "--build-arg",
    "TOKEN=arg1",
    "--label",
    "l=v",
    "--secret",
    "id=s,src=/etc/hostname",
    "--add-host",
    "h:1.2.3.4",
    "--quiet",
];

fn recorded(name: &str) -> Value {
    serde_json::from_slice(&fs::read(workspace().join("testdata/attest").join(name)).unwrap()).unwrap()
}

fn made(home: &Home, flags: &[&str]) -> Layout {
    let dockerfile = fs::read_to_string(workspace().join("testdata/attest/Dockerfile")).unwrap();
    let context = home.context("recorded", &dockerfile);
    home.write("recorded/f", "f\n");
    build(home, &context, &[&FLAGS, flags].concat())
}

/// What a step does, in the fields that mean something.
fn meaning(step: &Value) -> Value {
    let op = &step["op"]["Op"];
    if let Some(exec) = op.get("exec") {
        let mounts: BTreeSet<String> =
            exec["mounts"].as_array().unwrap().iter().map(|mount| format!("{} {}", mount["dest"], mount["mountType"])).collect();
        let meta = &exec["meta"];
        json!([meta["args"], meta["env"], meta["cwd"], meta["extraHosts"], exec["network"], mounts, step["op"]["platform"]])
    } else if let Some(file) = op.get("file") {
        let actions = file["actions"].as_array().unwrap().iter().map(|action| {
            let what = &action["Action"];
            let (copy, mkdir) = (&what["copy"], &what["mkdir"]);
            let made = json!([mkdir["path"], mkdir["mode"], mkdir["makeParents"]]);
            json!([action["input"], action["secondaryInput"], copy["src"], copy["dest"], copy["mode"], made])
        });
        actions.collect()
    } else if let Some(source) = op.get("source") {
        json!([source["identifier"], step["op"]["platform"]])
    } else {
        json!("result")
    }
}

/// The steps with the meaning of their inputs, in any order.
fn steps(config: &Value) -> BTreeSet<String> {
    let steps = config["llbDefinition"].as_array().unwrap();
    let by_name = |name: &str| steps.iter().find(|step| step["id"] == name).map(meaning).unwrap_or_default();
    let one = |step: &Value| {
        let inputs = step["inputs"].as_array().into_iter().flatten();
        let inputs: Vec<Value> = inputs.map(|input| by_name(input.as_str().unwrap().trim_end_matches(":0"))).collect();
        json!([meaning(step), inputs]).to_string()
    };
    steps.iter().map(one).collect()
}

/// For each step that is of the Dockerfile: what it does, and of which lines it is.
fn lines(config: &Value, source: &Value) -> BTreeSet<String> {
    let steps = config["llbDefinition"].as_array().unwrap().iter();
    let placed = steps.filter_map(|step| {
        let place = source["locations"].get(step["id"].as_str()?)?.get("locations")?;
        // Where two instructions gave one step, BuildKit names both, the first last.
        Some(json!([meaning(step), place.as_array()?.last()]).to_string())
    });
    placed.collect()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[test]
fn max_says_what_buildkit_says() {
    let home = Home::new();
    for (version, kind, file) in [("v1", V1, "buildkit-v1-max.json"), ("v0.2", V02, "buildkit-v0.2-max.json")] {
        let theirs = recorded(file);
        let statement = made(&home, &[&format!("--provenance=mode=max,version={version}")]).statements(kind).remove(0);
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v0.1");
        let ours = &statement["predicate"];
        let at =
            |value: &Value, v1: &str, v02: &str| value.pointer(if kind == V1 { v1 } else { v02 }).cloned().unwrap_or_default();
        let both = |v1: &str, v02: &str| (at(ours, v1, v02), at(&theirs, v1, v02));

        for (v1, v02) in [
            ("/buildDefinition", ""),
            ("/runDetails/metadata", "/metadata"),
            ("/buildDefinition/externalParameters", "/invocation"),
        ] {
            let (mine, other) = both(v1, v02);
            assert_eq!(keys(&mine), keys(&other), "{v1} {v02}");
        }
        for (v1, v02) in [
            ("/buildDefinition/buildType", "/buildType"),
            ("/buildDefinition/externalParameters/configSource", "/invocation/configSource"),
            ("/buildDefinition/internalParameters/builderPlatform", "/invocation/environment/platform"),
            ("/runDetails/metadata/buildkit_completeness", "/metadata/completeness"),
        ] {
            let (mine, other) = both(v1, v02);
            assert_eq!(mine, other, "{v1} {v02}");
        }
        let (mine, other) = both("/buildDefinition/resolvedDependencies", "/materials");
        assert_eq!(mine[0]["uri"], other[0]["uri"]);
        assert_eq!(mine.as_array().map(Vec::len), Some(1));
        let (mine, mut other) = both("/buildDefinition/externalParameters/request", "/invocation/parameters");
        // What that command line had besides, and what only the two halves of BuildKit have to tell one another.
        for gone in ["context:extra", "frontend.caps"] {
            other["args"].as_object_mut().unwrap().remove(gone);
        }
        assert_eq!(mine, other);

        let config = ("/buildDefinition/internalParameters/buildConfig", "/buildConfig");
        let about = ("/runDetails/metadata/buildkit_metadata", "/metadata/https:~1~1mobyproject.org~1buildkit@v1#metadata");
        let (mine, other) = both(config.0, config.1);
        let digest =
            |value: &Value| at(value, "/buildDefinition/resolvedDependencies", "/materials")[0]["digest"]["sha256"].clone();
        let (own, their) = (digest(ours), digest(&theirs));
        // Their base was the same but for its digest, if the test's bases were made anew since.
        let moved: Value =
            serde_json::from_str(&other.to_string().replace(their.as_str().unwrap(), own.as_str().unwrap())).unwrap();
        assert_eq!(steps(&mine), steps(&moved));
        let (my_about, their_about) = both(about.0, about.1);
        assert_eq!(keys(&my_about), keys(&their_about));
        assert_eq!(lines(&mine, &my_about["source"]), lines(&moved, &their_about["source"]));
        let (mine, other) = (&my_about["source"]["infos"][0], &their_about["source"]["infos"][0]);
        assert_eq!((keys(mine), &mine["data"], &mine["filename"]), (keys(other), &other["data"], &other["filename"]));
        let depth = |about: &Value| -> BTreeSet<usize> {
            about["layers"].as_object().unwrap().values().map(|chains| chains[0].as_array().unwrap().len()).collect()
        };
        assert_eq!(depth(&my_about), depth(&their_about));
    }
}

#[test]
fn min_says_what_buildkit_says_and_no_value() {
    let home = Home::new();
    let ours = made(&home, &["--provenance=mode=min"]).statements(V1).remove(0);
    let (ours, theirs) = (&ours["predicate"], recorded("buildkit-v1-min.json"));
    for place in ["/buildDefinition", "/buildDefinition/internalParameters", "/runDetails/metadata/buildkit_metadata"] {
        assert_eq!(keys(ours.pointer(place).unwrap()), keys(theirs.pointer(place).unwrap()), "{place}");
    }
    let request = &ours["buildDefinition"]["externalParameters"]["request"];
    assert_eq!(keys(&request["args"]), BTreeSet::from(["add-hosts", "force-network-mode"]));
    assert_eq!(keys(request), BTreeSet::from(["frontend", "args", "locals"]));
    assert_eq!(
        ours["runDetails"]["metadata"]["buildkit_completeness"],
        json!({ "request": false, "resolvedDependencies": false })
    );
    let text = ours.to_string();
    assert!(!text.contains("arg1") && !text.contains("\"s\""), "{text}");
}

/// Reliability C90 and C91: no secret, and no credential of an address, in anything that is said.
#[test]
fn c90_c91_nothing_that_is_said_holds_a_secret() {
    const CANARY: &str = "canary-4f1b";
    let files = lab::temp_dir();
    fs::write(files.path().join("a.txt"), "hello\n").unwrap();
    let server = FolderServer::files(files.path());
    let home = Home::new();
    let secret = home.write("secret", CANARY);
    let address = format!("http://me:{CANARY}@{}/a.txt", server.host());
    let dockerfile = format!(
        "FROM busybox\nARG INDEX\nADD {address} /a\nRUN --network=none --mount=type=secret,id=s --mount=type=secret,id=e,env=E true\n\
         RUN <<EOF\n# {address}\ntrue\nEOF\nCOPY <<EOF /h\n# {address}\nEOF\n"
    );
    let context = home.context("c", &dockerfile);
    let file = format!("id=s,src={}", secret.display());
    let index = format!("INDEX={address}");
    let flags = ["--secret", &file, "--secret", &format!("id=e,src={}", secret.display()), "--build-arg", &index];
    let metadata = home.path("meta.json");
    for mode in ["mode=min", "mode=max", "mode=max,version=v0.2"] {
        let provenance = format!("--provenance={mode}");
        let tell = format!("--metadata-file={}", metadata.display());
        let layout = build(&home, &context, &[&flags[..], &[&provenance, &tell, "--sbom", "--network=none"]].concat());
        let mut said: Vec<Vec<u8>> = Vec::new();
        for manifest in layout.attached() {
            said.push(manifest.to_string().into_bytes());
            for layer in manifest["layers"].as_array().unwrap() {
                let statement = layout.json(&layer["digest"]);
                // What is packed in text is looked at unpacked.
                let mut packed = Vec::new();
                unpack(&statement, &mut packed);
                said.extend(packed);
                said.push(layout.bytes(&layer["digest"]));
            }
        }
        said.push(fs::read(&metadata).unwrap());
        assert!(said.len() > 3);
        for bytes in &said {
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.contains(CANARY), "{mode}: {text}");
        }
        let kind = if mode.ends_with("v0.2") { V02 } else { V1 };
        let predicate = &layout.statements(kind)[0]["predicate"];
        let materials = predicate.pointer("/buildDefinition/resolvedDependencies").or(predicate.pointer("/materials")).unwrap();
        let shown = format!("http://xxxxx:xxxxx@{}/a.txt", server.host());
        assert!(materials.as_array().unwrap().iter().any(|material| material["uri"] == shown), "{materials}");
    }
}

/// All texts of a document that are base64.
fn unpack(value: &Value, out: &mut Vec<Vec<u8>>) {
    use base64::Engine as _;
    match value {
        Value::String(text) => out.extend(base64::engine::general_purpose::STANDARD.decode(text)),
        Value::Array(all) => all.iter().for_each(|one| unpack(one, out)),
        Value::Object(map) => map.values().for_each(|one| unpack(one, out)),
        _ => {}
    }
}

#[test]
fn a_context_that_is_a_repository_is_named_with_its_commit() {
    let repository = lab::temp_dir();
    let git = |args: &[&str]| {
        let mut git = std::process::Command::new("git");
        git.args(["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"]).args(args);
        let out = git.current_dir(repository.path().join("r.git")).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    fs::create_dir(repository.path().join("r.git")).unwrap();
    git(&["init", "-q"]);
    fs::write(repository.path().join("r.git/Dockerfile"), "FROM busybox\nCOPY Dockerfile /\n").unwrap();
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    let commit = git(&["rev-parse", "HEAD"]);
    git(&["update-server-info"]);
    fs::rename(repository.path().join("r.git/.git"), repository.path().join("bare.git")).unwrap();
    let server = FolderServer::files(repository.path());
    let home = Home::new();
    let address = format!("http://me:pw-canary@{}/bare.git#main", server.host());
    let layout = build(&home, address.as_ref(), &["--provenance=mode=max"]);
    let predicate = &layout.statements(V1)[0]["predicate"];
    let source = &predicate["buildDefinition"]["externalParameters"]["configSource"];
    let shown = format!("http://xxxxx:xxxxx@{}/bare.git#main", server.host());
    assert_eq!(*source, json!({ "uri": shown, "digest": { "sha1": commit }, "path": "Dockerfile" }));
    // Everything is known, and nothing was fetched but that: nobody's folder is in it, and no command had a network.
    let metadata = &predicate["runDetails"]["metadata"];
    assert_eq!(metadata["buildkit_completeness"], json!({ "request": true, "resolvedDependencies": true }));
    assert_eq!(metadata["buildkit_hermetic"], true);
    assert!(!predicate.to_string().contains("pw-canary"));
}

/// The image doesn't know what is said of it, and with `SOURCE_DATE_EPOCH` what is said is the same each time, in any store.
#[test]
fn the_same_build_says_the_same() {
    let dockerfile = "FROM busybox\nRUN --network=none echo x > /x\n";
    let flags = ["--provenance=mode=max", "--sbom", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
    let (one, other) = (Home::new(), Home::new());
    for home in [&one, &other] {
        let context = home.context("c", dockerfile);
        build(home, &context, &[&flags[..], &["--output=type=oci,rewrite-timestamp=true,dest=again.tar"]].concat());
    }
    assert!(same_bytes(&one.path("again.tar"), &other.path("again.tar")));
    let context = one.context("c", dockerfile);
    let with = build(&one, &context, &["--provenance=true", "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"]);
    let layout = Layout::of(&one.path("again.tar"));
    let times = &layout.statements(V1)[0]["predicate"]["runDetails"]["metadata"];
    assert_eq!(times["startedOn"], "2023-11-14T22:13:20Z");
    assert_eq!(times["finishedOn"], times["startedOn"]);
    assert_eq!(layout.statements("https://spdx.dev/Document")[0]["predicate"]["creationInfo"]["created"], "2023-11-14T22:13:20Z");
    // Without an epoch, the image of a build that was all cached stays what it was; only what is said of it differs.
    let first = build(&one, &context, &["--provenance=true"]).index();
    let second = build(&one, &context, &["--provenance=true"]).index();
    assert_eq!(first["manifests"][0], second["manifests"][0]);
    assert_ne!(first["manifests"][1]["digest"], second["manifests"][1]["digest"]);
    assert_eq!(with.index()["manifests"][0]["digest"].as_str().map(str::len), Some(71));
}

#[test]
fn the_metadata_file_tells_as_much_as_is_wanted() {
    let home = Home::new();
    let context = home.context("c", "FROM busybox\nCOPY Dockerfile /d\n");
    let metadata = home.path("meta.json");
    let tell = format!("--metadata-file={}", metadata.display());
    let key = "buildx.build.provenance";
    for (wanted, flags, expected) in [
        (None, vec![], None),
        (Some("min"), vec![], Some(false)),
        (Some("max"), vec![], Some(true)),
        (Some("disabled"), vec![], None),
        (None, vec!["--provenance=mode=max"], Some(false)),
    ] {
        let mut command = home.command();
        command.arg("build").arg(&tell).args(["-t", "told"]).args(&flags).arg(&context);
        if let Some(wanted) = wanted {
            command.env("BUILDX_METADATA_PROVENANCE", wanted);
        }
        crate::support::home::finish(&mut command).ok();
        let told: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
        let steps = told.get(key).map(|told| told.pointer("/buildDefinition/internalParameters/buildConfig").is_some());
        assert_eq!(steps, expected, "{wanted:?} {flags:?}");
    }
    let both = home.context("both", "FROM scratch\nCOPY Dockerfile /d\n");
    build(&home, &both, &[&tell, "--provenance=true", "--platform=linux/amd64,linux/arm64"]);
    let told: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
    for platform in ["linux/amd64", "linux/arm64"] {
        let told = &told[format!("{key}/{platform}")];
        assert_eq!(told["buildDefinition"]["externalParameters"]["configSource"]["path"], "Dockerfile", "{platform}");
    }
}

/// As files beside files: every one of them is a subject.
#[test]
fn what_is_said_of_files_lies_beside_them() {
    let home = Home::new();
    let context = home.context("c", "FROM scratch\nCOPY a /dir/a\nCOPY a /b\n");
    home.write("c/a", "hello\n");
    let hello = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    let platforms = "--platform=linux/amd64,linux/arm64";
    for (output, flags, files) in [
        ("type=local,dest=one", vec!["--provenance=true", "--sbom"], vec!["one/provenance.json", "one/sbom.spdx.json"]),
        ("type=local,dest=two,attestation-prefix=x-", vec!["--provenance=mode=min,filename=p.json"], vec!["two/x-p.json"]),
        (
            "type=local,dest=split",
            vec!["--provenance=true", platforms],
            vec!["split/linux_amd64/provenance.json", "split/linux_arm64/provenance.json"],
        ),
    ] {
        let mut args = vec!["build", "-o", output];
        args.extend(flags);
        args.push(context.to_str().unwrap());
        home.run(args).ok();
        for file in files {
            let statement: Value = serde_json::from_slice(&fs::read(home.path(file)).unwrap()).unwrap();
            let subject = json!([
                { "name": "b", "digest": { "sha256": hello } },
                { "name": "dir/a", "digest": { "sha256": hello } },
            ]);
            assert_eq!(statement["subject"], subject, "{file}");
            assert_eq!(statement["_type"], "https://in-toto.io/Statement/v0.1", "{file}");
        }
    }
    // Docker's own archive has no place for it.
    let refused = home.run(["build", "--provenance=true", "-o", "type=docker,dest=d.tar", context.to_str().unwrap()]);
    refused.fails(125).says(&["an archive of `type=docker` can't hold attestations", "type=oci"]);
}
