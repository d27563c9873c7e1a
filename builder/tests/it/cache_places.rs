//! Where shared caches live, and the folders of cache mounts that travel with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cache::cached_steps;
use crate::support::home::{Home, Outcome, finish, outcome};
use crate::support::lab::{self, CacheServer, registry};
use crate::support::skip;

/// kiln with a store of its own within a home.
fn kiln(home: &Home, store: &str, args: &[&str]) -> Command {
    let mut command = home.command();
    command.env("KILN_ROOT", home.path(store)).args(args);
    command
}

/// Builds a Dockerfile in the store of this name.
fn build(home: &Home, store: &str, dockerfile: &str, args: &[&str]) -> Outcome {
    let context = home.context(&format!("context-{store}"), dockerfile);
    home.adopt(&context);
    let context = context.to_str().unwrap().to_owned();
    finish(kiln(home, store, &["build", "--progress=plain", "-t", "x"]).args(args).arg(context))
}

/// A place, as `--cache-from` and `--cache-to` name it, and variables that it needs.
struct Place {
    name: &'static str,
    from: String,
    to: String,
    environment: Vec<(&'static str, String)>,
}

fn places(home: &Home, services: &[(&str, &CacheServer)]) -> Vec<Place> {
    let cache = |name: &str| format!("{}/places/{name}-{}", registry().host(), std::process::id());
    let local = |name: &str| home.path(name).display().to_string();
    let plain = |name, from, to| Place { name, from, to, environment: Vec::new() };
    let mut places = vec![
        plain("a manifest", format!("type=registry,ref={}", cache("m")), format!("type=registry,ref={},mode=max", cache("m"))),
        plain(
            "an index in Docker's words",
            format!("type=registry,ref={}", cache("i")),
            format!("type=registry,ref={},mode=max,oci-mediatypes=false,image-manifest=false", cache("i")),
        ),
        plain(
            "a folder",
            format!("type=local,src={},tag=one", local("place")),
            format!("type=local,dest={},tag=one,mode=max", local("place")),
        ),
        plain(
            "a folder with an index",
            format!("type=local,src={}", local("place")),
            format!("type=local,dest={},mode=max,image-manifest=false", local("place")),
        ),
    ];
    for (kind, server) in services {
        if *kind == "s3" {
            let key = [("AWS_ACCESS_KEY_ID", server.fact("key")), ("AWS_SECRET_ACCESS_KEY", server.fact("secret"))];
            let spec =
                format!("type=s3,bucket=caches,region=us-east-1,endpoint_url={},use_path_style=true", server.fact("endpoint"));
            let environment = key.map(|(name, value)| (name, value.to_owned())).to_vec();
            let to = format!("{spec},mode=max,name=one;two,prefix=p/");
            places.push(Place { name: "a bucket", from: format!("{spec},name=two,prefix=p/"), to, environment });
        } else {
            for (name, version, url) in [("GitHub, 1", "0", "ACTIONS_CACHE_URL"), ("GitHub, 2", "1", "ACTIONS_RESULTS_URL")] {
                let environment = vec![
                    ("ACTIONS_CACHE_SERVICE_V2", version.to_owned()),
                    (url, server.fact("url").to_owned()),
                    ("ACTIONS_RUNTIME_TOKEN", server.fact("main").to_owned()),
                ];
                let spec = format!("type=gha,scope=v{version}");
                places.push(Place { name, from: spec.clone(), to: format!("{spec},mode=max"), environment });
            }
        }
    }
    places
}

const COUNTED: &str = "FROM busybox\nRUN head -c 3000000 /dev/urandom > /random\nRUN echo two > /two\nARG N\n\
    RUN --mount=type=cache,target=/c,id=runs echo run $N >> /c/runs && cat /c/runs | tr '\\n' ' '\n";

/// Two stores share a place and nothing else: the second does no step, has the same image, and a step that it does itself finds what
/// the first one's left in its cache mount.
#[test]
fn every_place_serves_a_second_store() {
    let home = Home::new();
    let mut servers = Vec::new();
    for (kind, script) in [("s3", "bucket.py"), ("gha", "actions_cache.py")] {
        match CacheServer::start(script) {
            Ok(server) => servers.push((kind, server)),
            Err(error) => skip::skipped(&format!("every_place_serves_a_second_store ({kind})"), &error),
        }
    }
    let services: Vec<_> = servers.iter().map(|(kind, server)| (*kind, server)).collect();
    for (number, place) in places(&home, &services).iter().enumerate() {
        let name = place.name;
        let (from, to) = (format!("{},mounts=true", place.from), format!("{},mounts=true,ignore-error=false", place.to));
        let in_store = |store: &str, args: &[&str]| {
            let context = home.context("c", COUNTED).display().to_string();
            let mut command = kiln(&home, &format!("{store}{number}"), &["build", "--progress=plain", "-t", "x"]);
            finish(command.envs(place.environment.iter().cloned()).args(args).arg(context))
        };
        let first = in_store("a", &["--build-arg", "N=1", "--cache-to", &to]).ok();
        assert!(first.stderr.contains("run 1 \n"), "{name}: {first:?}");
        // It writes the cache, too, with the mount that it didn't need and doesn't have.
        let second = in_store("b", &["--build-arg", "N=1", "--cache-from", &from, "--cache-to", &to]).ok();
        let steps = cached_steps(&second);
        assert_eq!(steps.iter().filter(|(_, cached)| *cached).count(), 3, "{name}: {second:?}");
        let id =
            |store: &str| finish(&mut kiln(&home, &format!("{store}{number}"), &["inspect", "x"])).ok().json()[0]["Id"].clone();
        assert_eq!(id("a"), id("b"), "{name}");
        // Layers move when they are needed, and the mount when a command runs.
        let file = format!("type=oci,dest={}", home.path("image.tar").display());
        let third = in_store("c", &["--build-arg", "N=2", "--cache-from", &from, "--cache-to", &to, "-o", &file]).ok();
        third.says(&["restoring cache mount runs", "run 1 run 2 \n"]);
        // What was written last counts, with both runs; in the store that has its own, its own does.
        in_store("b", &["--build-arg", "N=3", "--cache-from", &from]).ok().says(&["run 1 run 2 run 3 \n"]);
        if number == 0 {
            in_store("a", &["--build-arg", "N=4", "--cache-from", &from]).ok().says(&["run 1 run 4 \n"]);
        }
        let secrets = place.environment.iter().filter(|(key, _)| key.contains("SECRET") || key.contains("TOKEN"));
        for (_, secret) in secrets {
            for store in ["a", "b", "c"] {
                let found = Command::new("grep").args(["-rqF", secret]).arg(home.path(&format!("{store}{number}"))).status();
                assert_eq!(found.unwrap().code(), Some(1), "{name}: a secret in a store");
            }
        }
    }
    let mut tags: Vec<String> = index(&home.path("place")).iter().map(|m| m["annotations"][REF_NAME].to_string()).collect();
    tags.sort();
    assert_eq!(tags, ["\"latest\"", "\"latest-mounts\"", "\"one\"", "\"one-mounts\""], "neither takes the other's place");
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn index(place: &Path) -> Vec<Value> {
    let index: Value = serde_json::from_slice(&fs::read(place.join("index.json")).unwrap()).unwrap();
    index["manifests"].as_array().unwrap().clone()
}

fn blobs(place: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(place.join("blobs/sha256")).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())).collect()
}

/// A folder with what a tar can hold comes back in the mode that the tests run in, and one changed file moves little.
#[test]
fn cache_mounts_come_back_and_move_little() {
    let Some(home) = Home::in_mode("cache_mounts_come_back_and_move_little") else { return };
    let place = home.path("place");
    let (from, to) =
        (format!("type=local,src={},mounts=true", place.display()), format!("type=local,dest={},mounts=true", place.display()));
    let mount = "--mount=type=cache,target=/c,id=tree,sharing=locked";
    let list = "cd /c && ls -lnR --full-time . | md5sum && find . -type f | sort | xargs cat | md5sum";
    let fill = format!(
        "FROM busybox\nRUN {mount} cd /c && for i in $(seq 40); do head -c 500000 /dev/urandom > f$i; done \
         && mkdir -p d/e && echo x > d/e/x && ln d/e/x d/hard && ln -s nowhere d/soft && mkfifo d/fifo \
         && chown 7:8 d/e/x && chmod 4751 d/e/x && chmod 1770 d && chown 9:9 . && touch -d @1000000000 f1 . && {list}\n"
    );
    let sums = |outcome: &Outcome| -> Vec<String> {
        let lines = outcome.stderr.lines().filter(|line| line.ends_with("  -"));
        lines.filter_map(|line| Some(line.rsplit(' ').nth(2)?.to_owned())).collect()
    };
    let first = build(&home, "a", &fill, &["--cache-to", &to]).ok();
    let found = sums(&first);
    assert_eq!(found.len(), 2, "{first:?}");
    let before = blobs(&place);
    let read = format!("FROM busybox\nRUN {mount} {list} && stat -c '%n %u:%g %a' . d d/e/x d/hard\n");
    let second = build(&home, "b", &read, &["--cache-from", &from]).ok();
    assert_eq!(sums(&second), found, "{second:?}");
    second.says(&[". 9:9 755\n", "d 0:0 1770\n", "d/e/x 7:8 4751\n", "d/hard 7:8 4751\n"]);
    // The same again costs nothing, and one file about a chunk or two of the twenty.
    build(&home, "a", &fill, &["--cache-to", &to]).ok();
    assert_eq!(blobs(&place), before);
    let change = format!("FROM busybox\nRUN {mount} head -c 500 /dev/urandom >> /c/f7\n");
    build(&home, "b", &change, &["--cache-to", &to]).ok();
    let more: u64 = blobs(&place).iter().filter(|(name, _)| !before.contains_key(*name)).map(|(_, size)| size).sum();
    let all: u64 = before.values().sum();
    assert!(all > 20_000_000 && more < all / 4, "{more} of {all}");
    // `reset` drops what is not listed any more.
    build(&home, "b", &change, &["--cache-to", &format!("{to},reset=true")]).ok();
    assert!(blobs(&place).values().sum::<u64>() < all + 100_000);
    let again = build(&home, "e", &read, &["--cache-from", &from]).ok();
    assert_eq!(sums(&again).len(), 2);
}

/// Which mounts go, and which come.
#[test]
fn some_cache_mounts_stay() {
    let home = Home::new();
    let place = home.path("place").display().to_string();
    let (from, to) = (format!("type=local,src={place}"), format!("type=local,dest={place}"));
    let fill = "FROM busybox\nRUN --mount=type=cache,target=/a --mount=type=cache,target=/b,sharing=private \
        --mount=type=cache,target=/o,uid=5,mode=0700 --mount=type=cache,target=/large \
        echo a > /a/f; echo b > /b/f; echo o > /o/f; head -c 3000000 /dev/zero > /large/f\n";
    let show = "FROM busybox\nRUN --mount=type=cache,target=/a --mount=type=cache,target=/b,sharing=private \
        --mount=type=cache,target=/o,uid=5,mode=0700 --mount=type=cache,target=/large echo $(cd / && ls -d */f | tr '\\n' ' ') end\n";
    let exported = build(&home, "a", fill, &["--cache-to", &format!("{to},mounts=true,mounts-max=2mb")]).ok();
    exported.says(&["the cache mount `/large` was left out of the cache: it has 2 MiB, more than 2 (`mounts-max=` allows more)"]);
    let rows = [
        (",mounts=true", "a/f b/f o/f end"),
        (",mounts=/b;/o", "b/f o/f end"),
        (",mounts=/large", "end"),
        (",mounts=false", "end"),
        ("", "end"),
    ];
    for (row, (selection, expected)) in rows.iter().enumerate() {
        let outcome = build(&home, &format!("r{row}"), show, &["--cache-from", &format!("{from}{selection}")]).ok();
        assert!(
            outcome.stderr.lines().any(|line| line.ends_with(&format!(" {expected}")) && !line.contains("RUN")),
            "{outcome:?}"
        );
    }
    // Steps that are cached here have mounts all the same, and an export has those that were asked for.
    build(&home, "a", fill, &["--cache-to", &format!("{to},\"mounts=/a,/b\",tag=two")]).ok();
    let outcome = build(&home, "s", show, &["--cache-from", &format!("{from},tag=two,mounts=true")]).ok();
    assert!(outcome.stderr.contains(" a/f b/f end"), "{outcome:?}");
}

/// Whatever a place gives, a build goes on with an empty folder, and nothing outside of it changes.
#[test]
fn c78_spoiled_and_hostile_cache_mounts() {
    let home = Home::new();
    let place = home.path("place");
    let (from, to) =
        (format!("type=local,src={},mounts=true", place.display()), format!("type=local,dest={},mounts=true", place.display()));
    let fill = "FROM busybox\nRUN --mount=type=cache,target=/c,id=m head -c 9000000 /dev/urandom > /c/f && echo 1 > /c/g\n";
    let show = "FROM busybox\nRUN --mount=type=cache,target=/c,id=m echo has $(ls -A /c) end\n";
    build(&home, "a", fill, &["--cache-to", &to]).ok();
    let whole = home.path("whole");
    copy(&place, &whole);
    let largest = blobs(&place).into_iter().max_by_key(|(_, size)| *size).unwrap().0;
    let spoil: [(&str, &dyn Fn(&Path), &str); 5] = [
        (
            "changed",
            &|blob| {
                fs::write(blob, {
                    let mut b = fs::read(blob).unwrap();
                    b[1000] ^= 1;
                    b
                })
                .unwrap()
            },
            "has another digest",
        ),
        ("cut", &|blob| fs::write(blob, &fs::read(blob).unwrap()[..1000]).unwrap(), "doesn't hold sha256:"),
        ("empty", &|blob| fs::write(blob, "").unwrap(), "doesn't hold sha256:"),
        ("gone", &|blob| fs::remove_file(blob).unwrap(), "doesn't hold sha256:"),
        (
            "a folder",
            &|blob| {
                fs::remove_file(blob).unwrap();
                fs::create_dir(blob).unwrap()
            },
            "doesn't hold sha256:",
        ),
    ];
    for (name, spoil, expected) in spoil {
        let _ = fs::remove_dir_all(&place);
        copy(&whole, &place);
        spoil(&place.join("blobs/sha256").join(&largest));
        let outcome = build(&home, &format!("spoiled-{}", &name[..3]), show, &["--cache-from", &from]).ok();
        outcome.says(&["the cache mount `m` could not be taken from local:", expected, " has end\n"]);
    }
    // Archives that want out of the folder, or say that they are another one.
    fs::write(home.path("victim"), "untouched").unwrap();
    for (name, expected) in
        [("dotdot", "could not be taken"), ("link", "could not be taken"), ("absolute", ""), ("other", "unpacks to")]
    {
        let made = Command::new("python3").args(["-c", HOSTILE]).arg(&place).arg(name).arg(home.path("")).status();
        assert!(made.unwrap().success());
        let outcome = build(&home, &format!("hostile-{name}"), show, &["--cache-from", &from]).ok();
        assert!(outcome.stderr.contains(expected), "{name}: {outcome:?}");
        assert_eq!(fs::read_to_string(home.path("victim")).unwrap(), "untouched", "{name}");
    }
    home.left_nothing();
}

/// Writes a place with one mount `m`, whose archive is hostile in a way.
const HOSTILE: &str = r#"
import hashlib, io, json, os, shutil, sys, tarfile
place, how, home = sys.argv[1:]
shutil.rmtree(place, ignore_errors=True)
os.makedirs(place + "/blobs/sha256")
out = io.BytesIO()
with tarfile.open(fileobj=out, mode="w") as tar:
    def add(name, kind=tarfile.REGTYPE, data=b"", link=""):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.mode = kind, len(data), link, 0o755
        tar.addfile(info, io.BytesIO(data))
    if how == "dotdot":
        add("../../../../../../../../../.." + home + "victim", data=b"changed")
    elif how == "link":
        add("away", tarfile.SYMTYPE, link=home)
        add("away/victim", data=b"changed")
        add("../x", data=b"")
    elif how == "absolute":
        add(home + "victim", data=b"changed")
    else:
        add("f", data=b"x")
tar = out.getvalue()
def put(data):
    digest = hashlib.sha256(data).hexdigest()
    open(place + "/blobs/sha256/" + digest, "wb").write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}
chunk = put(tar)
said = "0" * 64 if how == "other" else hashlib.sha256(tar).hexdigest()
mount = {"id": "m", "tar": "sha256:" + said, "chunks": [{"raw": "", "blob": chunk["digest"], "size": chunk["size"]}]}
config = put(json.dumps({"version": 1, "mounts": [mount]}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.kiln.cachemounts.v0+json", **config},
    "layers": [{"mediaType": "application/vnd.kiln.cachemount.chunk.v1.tar+zstd", **chunk}]}).encode())
index = {"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest,
    "annotations": {"org.opencontainers.image.ref.name": "latest-mounts"}}]}
json.dump(index, open(place + "/index.json", "w"))
"#;

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// A build that is killed while it restores a folder leaves all of it or nothing.
#[test]
fn a_killed_restore_leaves_no_half_folder() {
    let home = Home::new();
    let place = home.path("place").display().to_string();
    let fill = "FROM busybox\nRUN --mount=type=cache,target=/c,id=m cd /c && for i in $(seq 2000); do echo $i > f$i; done && head -c 60000000 /dev/urandom > z\n";
    let show = "FROM busybox\nRUN --mount=type=cache,target=/c,id=m echo has $(ls /c | wc -l) end\n";
    build(&home, "a", fill, &["--cache-to", &format!("type=local,dest={place},mounts=true")]).ok();
    // The base is there already, so that the restore begins at once.
    build(&home, "b", "FROM busybox\nRUN true\n", &[]).ok();
    let context: PathBuf = home.context("show", show);
    let mut seen = BTreeMap::<bool, u32>::new();
    for pause in [30, 60, 90, 120, 160, 200, 260, 340] {
        let mut command =
            kiln(&home, "b", &["build", "--cache-from", &format!("type=local,src={place},mounts=true"), "--no-cache"]);
        let mut child = command.arg(&context).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        let _ = child.kill();
        child.wait().unwrap();
        let after = build(&home, "b", &format!("{show}# {pause}\nRUN echo {pause}\n"), &["--no-cache"]).ok();
        let whole = after.stderr.contains(" has 2001 end\n");
        assert!(whole || after.stderr.contains(" has 0 end\n"), "{pause}: {after:?}");
        *seen.entry(whole).or_default() += 1;
        if whole {
            break;
        }
        // An empty folder counts as one that is there.
        let mounts = home.path("b").join("mounts");
        fs::remove_dir_all(&mounts).unwrap();
        fs::create_dir(&mounts).unwrap();
    }
    assert!(seen.contains_key(&false), "every build ended before it was killed");
    home.left_nothing();
}

/// BuildKit of today finds in each place what it wrote there (which also says that the tests' server of GitHub's cache is one for it),
/// kiln reads that, and BuildKit what kiln writes in its stead. Neither finds the other's steps (`remote_cache::format` says why).
#[test]
fn buildkit_uses_the_same_places() {
    let test = "cache_places::buildkit_uses_the_same_places";
    if std::env::var_os("KILN_TEST_FULL").is_none() {
        return skip::skipped(test, "it takes 1.5 GB (KILN_TEST_FULL=1)");
    }
    let (home, github) = (Home::new(), CacheServer::start("actions_cache.py").unwrap());
    let (docker, _) = lab::newest();
    let context =
        home.context("c", "FROM busybox\nRUN --network=none head -c 100000 /dev/urandom > /r\nRUN --network=none date > /d\n");
    let docker = |args: &[&str]| {
        let output = Command::new(&docker).arg("buildx").args(args).stdin(Stdio::null()).output().unwrap();
        outcome("docker buildx", output).ok()
    };
    let build = |args: &[&str]| docker(&[&["build", "--progress=plain"], args, &[context.to_str().unwrap()]].concat());
    let (url, token, place) = (github.fact("url"), github.fact("main"), home.path("place"));
    let name = format!("{}/places/buildkit-{}", registry().host(), std::process::id());
    let rows = [
        (format!("type=local,src={}", place.display()), format!("type=local,dest={}", place.display())),
        (format!("type=registry,ref={name}"), format!("type=registry,ref={name}")),
        (format!("type=registry,ref={name}:i"), format!("type=registry,ref={name}:i,image-manifest=false,oci-mediatypes=false")),
        (format!("type=gha,url={url},token={token},scope=1"), format!("type=gha,url={url},token={token},scope=1")),
        (format!("type=gha,url_v2={url},token={token},scope=2"), format!("type=gha,url_v2={url},token={token},scope=2")),
    ];
    for (row, (from, to)) in rows.iter().enumerate() {
        let to = format!("{to},mode=max");
        docker(&["prune", "-af"]);
        build(&["--cache-to", &to]);
        docker(&["prune", "-af"]);
        let again = build(&["--cache-from", from]);
        assert_eq!(again.stderr.matches(" CACHED").count(), 2, "{from}: {again:?}");
        let read = super::cache_places::build(
            &home,
            &format!("s{row}"),
            &fs::read_to_string(context.join("Dockerfile")).unwrap(),
            &["--cache-from", from, "--cache-to", &format!("{to},ignore-error=false")],
        )
        .ok();
        assert!(
            !read.stderr.contains("is not used") && cached_steps(&read).iter().all(|(_, cached)| !cached),
            "{from}: {read:?}"
        );
        let imported = build(&["--no-cache", "--cache-from", from]);
        assert!(!imported.stderr.contains("WARN") && !imported.stderr.contains("rror"), "{from}: {imported:?}");
    }
}
