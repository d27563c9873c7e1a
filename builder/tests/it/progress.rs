//! What kiln tells while it works: logs that are whole however long, transfers with their speed, and JSON as BuildKit writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;

use crate::support::home::{self, Home};
use crate::support::lab;

/// Many lines (20 MB in 20 000) and then 60 MB in one.
const LOUD: &str = "FROM busybox\n\
    RUN yes $(head -c 999 /dev/zero | tr '\\0' 'm') | head -n 20000\n\
    RUN head -c 60000000 /dev/zero | tr '\\0' 'o'; echo\n";

/// Keys that Go leaves out when they are empty, and that the recorded builds had no reason for.
const UNSEEN: [&str; 1] = ["vertexes.error"];
/// What is in every object of its kind.
const REQUIRED: [(&str, &[&str]); 4] = [
    ("vertexes", &["digest", "name"]),
    ("statuses", &["id", "vertex", "current", "timestamp", "started"]),
    ("logs", &["vertex", "stream", "data", "timestamp"]),
    ("warnings", &["vertex", "level", "short"]),
];

fn recorded() -> String {
    let path = lab::workspace().join("testdata/progress/buildkit-0.25.jsonl");
    std::fs::read_to_string(path).expect("the recorded progress is there")
}

/// The objects of the lines that are JSON; an error that is told to a person comes after them, as with buildx.
fn objects(text: &str) -> Vec<Value> {
    let lines = text.lines().take_while(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Which keys there are where, and of which type their values are.
fn keys(objects: &[Value]) -> BTreeSet<String> {
    fn walk(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(&format!("{path}.{key}"), value, found)),
            Value::Array(items) => items.iter().for_each(|item| walk(path, item, found)),
            Value::Null => drop(found.insert(format!("{path} null"))),
            Value::Bool(_) => drop(found.insert(format!("{path} bool"))),
            Value::Number(_) => drop(found.insert(format!("{path} number"))),
            Value::String(_) => drop(found.insert(format!("{path} string"))),
        }
    }
    let mut found = BTreeSet::new();
    objects.iter().for_each(|object| walk("", object, &mut found));
    found
}

/// A reader that takes nothing on trust: every vertex is announced before something is said of it, begins before it ends, and has the
/// same name for ever; what is base64 is. Gives the log of each vertex by its name.
fn read_strictly(objects: &[Value]) -> BTreeMap<String, Vec<u8>> {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}")).to_owned();
    let bytes = |value: &Value, key: &str| base64::engine::general_purpose::STANDARD.decode(text(value, key)).expect("base64");
    let time = |value: &Value, key: &str| {
        let time = text(value, key);
        assert!(time.len() == "2026-11-22T14:44:55.415306791Z".len() && time.ends_with('Z'), "{time}");
        time
    };
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut ended = BTreeSet::new();
    let mut logs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for object in objects {
        for (kind, entries) in object.as_object().expect("an object a line") {
            let (_, required) = REQUIRED.iter().find(|(known, _)| known == kind).unwrap_or_else(|| panic!("what is {kind}?"));
            for entry in entries.as_array().expect("a list") {
                assert!(required.iter().all(|key| entry.get(key).is_some()), "{kind}: {entry}");
                if kind == "vertexes" {
                    let (digest, name) = (text(entry, "digest"), text(entry, "name"));
                    assert!(digest.len() == 71 && digest.starts_with("sha256:"), "{digest}");
                    assert_eq!(*names.entry(digest.clone()).or_insert_with(|| name.clone()), name);
                    let started = time(entry, "started");
                    if entry.get("completed").is_some() {
                        assert!(time(entry, "completed") >= started && ended.insert(digest), "{entry}");
                    }
                    continue;
                }
                let name = names.get(&text(entry, "vertex")).unwrap_or_else(|| panic!("of no known vertex: {entry}"));
                match kind.as_str() {
                    "logs" => {
                        time(entry, "timestamp");
                        assert!(matches!(entry["stream"].as_u64(), Some(1 | 2)));
                        logs.entry(name.clone()).or_default().extend(bytes(entry, "data"));
                    }
                    "statuses" => assert!(time(entry, "timestamp") >= time(entry, "started")),
                    _ => assert!(!bytes(entry, "short").is_empty()),
                }
            }
        }
    }
    assert_eq!(ended.len(), names.len(), "all that began ended");
    logs
}

#[test]
fn raw_json_is_what_buildkit_writes() {
    let home = Home::new();
    let known = keys(&objects(&recorded()));
    // The reader reads BuildKit's own, but for vertices that were announced without a time, or for ever.
    assert!(known.contains(".statuses.total number") && known.contains(".warnings.short string"), "{known:?}");
    let good = home.context(
        "good",
        "FROM debian:bookworm AS big\nRUN ls / > /list\nfrom busybox\nARG X\nCOPY Dockerfile /f\nCOPY --from=big /list /list\n\
         RUN echo out; echo err >&2; echo \"$X\"\n",
    );
    let failing = home.context("failing", "FROM busybox\nRUN echo before; echo why >&2; exit 3\n");
    let run = |args: &[&str], context| home::finish(home.command().args(["build", "--progress=rawjson"]).args(args).arg(context));
    let archive = format!("type=oci,dest={}", home.path("o.tar").display());
    // The second finds all cached.
    let first = run(&["-t", "x", "-o", &archive], &good).ok();
    let outputs = [first.stderr, run(&[], &good).ok().stderr, run(&[], &failing).fails(1).stderr];
    for (index, text) in outputs.iter().enumerate() {
        let objects = objects(text);
        let unknown: Vec<String> = keys(&objects).difference(&known).cloned().collect();
        assert!(unknown.iter().all(|key| UNSEEN.iter().any(|unseen| key.contains(unseen))), "{index}: {unknown:?}");
        let logs = read_strictly(&objects);
        match index {
            0 => {
                // Two pipes have no common order.
                let log = logs.iter().find(|(name, _)| name.contains("echo out")).unwrap().1;
                assert!(log == b"out\nerr\n\n" || log == b"out\n\nerr\n", "{logs:?}");
            }
            1 => assert!(logs.is_empty(), "{logs:?}"),
            _ => assert_eq!(logs.values().next().unwrap(), b"before\nwhy\n"),
        }
        let has = |key: &str| keys(&objects).iter().any(|known| known.starts_with(key));
        assert_eq!((has(".vertexes.cached"), has(".vertexes.error")), (index == 1, index == 2));
        assert_eq!(has(".warnings.sourceInfo.filename"), index < 2);
    }
}

#[test]
fn a_loud_step_arrives_whole_and_costs_no_memory() {
    let home = Home::new();
    let context = home.context("loud", LOUD);
    let many = [vec![b'm'; 999], b"\n".to_vec()].concat().repeat(20_000);
    let one = [vec![b'o'; 60_000_000], b"\n".to_vec()].concat();
    for mode in ["plain", "rawjson", "tty"] {
        let mut child = home.command();
        child.args(["build", "--no-cache", "--progress", mode]).arg(&context).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = child.spawn().unwrap();
        let (status, mut most) = (format!("/proc/{}/status", child.id()), 0);
        // A reader that is slow at first: what it doesn't read must not pile up.
        std::thread::sleep(Duration::from_millis(1500));
        let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
        let mut stderr = child.stderr.take().unwrap();
        loop {
            let peak = std::fs::read_to_string(&status).unwrap_or_default();
            let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().trim_end_matches(" kB").parse().ok());
            most = most.max(peak.unwrap_or(0));
            match stderr.read(&mut buffer).unwrap() {
                0 => break,
                n => text.extend_from_slice(&buffer[..n]),
            }
        }
        assert!(child.wait().unwrap().success(), "{mode}");
        // The terminal's picture is over before anybody looks.
        assert!(most < 85_000 && (most > 0 || mode == "tty"), "{mode}: {most} kB");
        match mode {
            "plain" => {
                let lines: Vec<&[u8]> =
                    text.split(|byte| *byte == b'\n').filter_map(|line| line.splitn(3, |b| *b == b' ').nth(2)).collect();
                let long = lines.iter().filter(|line| **line == &one[..60_000_000]).count();
                let short = lines.iter().filter(|line| **line == &many[..999]).count();
                assert_eq!((long, short), (1, 20_000));
            }
            "rawjson" => {
                let logs = read_strictly(&objects(&String::from_utf8(text).unwrap()));
                assert!(
                    logs.values().eq([&many, &one]),
                    "{:?}",
                    logs.iter().map(|(name, log)| (name, log.len())).collect::<Vec<_>>()
                );
            }
            _ => assert!(text.len() < 1_000_000, "{mode}: {}", text.len()),
        }
    }
}

#[test]
fn every_transfer_tells_its_bytes() {
    let home = Home::new();
    let folder = home.path("served");
    std::fs::create_dir_all(&folder).unwrap();
    let noise = "head -c 3000000 /dev/urandom";
    crate::contexts::sh(
        &folder,
        &format!("git init -q -b main repo && {noise} > repo/g && {noise} > f && cd repo && git add . && git commit -qm g"),
    );
    let (files, git) = (lab::FolderServer::files(&folder), lab::FolderServer::git(&folder));
    let dockerfile = format!("FROM busybox\nADD http://{}/f /f\nADD git://{}/repo /r/\nRUN true\n", files.host(), git.host());
    home.context("c", &dockerfile);
    let archive = crate::contexts::sh(&home.path("c"), &format!("{noise} > more && tar -cf ../c.tar . && realpath ../c.tar"));
    let name = format!("{}/progress/bytes:1", lab::registry().host());
    let out = format!("type=oci,dest={}", home.path("o.tar").display());
    let mut command = home.command();
    command.args(["build", "--progress=rawjson", "-o", &out, "-o", &format!("type=image,name={name},push=true"), "-"]);
    let told = finish_with(command.stdin(std::fs::File::open(archive).unwrap()));
    let mut ended: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for status in objects(&told).iter().flat_map(|object| object["statuses"].as_array().cloned().unwrap_or_default()) {
        if status["completed"].is_string() {
            let number = |key: &str| status[key].as_u64().unwrap_or_default();
            ended.insert(status["id"].as_str().unwrap().to_owned(), (number("current"), number("total")));
        }
    }
    let length = std::fs::metadata(home.path("o.tar")).unwrap().len();
    assert_eq!(ended["sending tarball"], (length, length), "{ended:?}");
    assert_eq!(ended["downloading"], (3_000_000, 3_000_000), "{ended:?}");
    assert!(ended["transferring context:"].0 >= 3_000_000, "{ended:?}");
    assert!(ended.keys().any(|name| name.starts_with("fetching ")), "{ended:?}");
    assert!(
        ended.iter().any(|(name, (bytes, total))| name.starts_with("sha256:") && bytes == total && *bytes > 500_000),
        "{ended:?}"
    );
}

fn finish_with(command: &mut std::process::Command) -> String {
    home::finish(command).ok().stderr
}
