//! Builds on different machines that share a cache and nothing else.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::remote_cache::format::{self, Steps};
use kiln_oci::digest::Digest;
use serde_json::{Value, json};

use crate::cache::cached_steps;
use crate::support::home::{Home, Outcome};
use crate::support::lab::{self, Registry, RegistryOptions};
use crate::support::skip::skipped;

/// A registry of the test's own with the bases, so that what moves can be counted.
fn registry() -> Registry {
    Registry::start(&RegistryOptions { seeds: &["busybox"], ..RegistryOptions::default() })
}

fn home(registry: &Registry) -> Home {
    let home = Home::offline();
    home.mirror(registry.host());
    home
}

/// The id of the image that was built under a name.
fn image_id(home: &Home, name: &str) -> Value {
    home.run(["inspect", name]).ok().json()[0]["Id"].clone()
}

#[track_caller]
fn all_cached(outcome: &Outcome, steps: usize) {
    let found = cached_steps(outcome);
    assert!(found.iter().all(|(_, cached)| *cached), "{found:#?}\n{}", outcome.stderr);
    assert_eq!(found.len(), steps, "{found:#?}");
}

/// The blobs that were sent to whoever asked, by digest.
fn fetched(requests: &[String]) -> Vec<String> {
    let blobs = requests.iter().filter(|r| r.starts_with("GET ") && r.contains("/blobs/sha256:"));
    blobs.filter_map(|r| Some(r.split_once("/blobs/")?.1.split([' ', '?']).next()?.to_owned())).collect()
}

/// Bytes that were uploaded.
fn uploads(requests: &[String]) -> usize {
    requests.iter().filter(|r| r.contains("/blobs/uploads/") && (r.starts_with("PUT") || r.starts_with("PATCH"))).count()
}

/// A build of 20 steps: a stage, files from the context, files from the stage.
fn twenty_steps() -> String {
    let mut text = "FROM busybox AS tools\nRUN echo tool > /tool\nFROM busybox\nWORKDIR /w\nCOPY src /src\n".to_owned();
    for step in 0..15 {
        writeln!(text, "RUN echo {step} > /w/{step} && head -c 20000 /dev/urandom > /w/r{step}").unwrap();
    }
    text + "COPY --from=tools /tool /tool\nRUN cat /tool /src/f > /both\n"
}

/// Done when 3 of the issue.
#[test]
fn a_second_store_builds_twenty_steps_without_doing_any() {
    let registry = registry();
    let host = registry.host();
    let cache = format!("{host}/team/cache:main");
    let name = format!("{host}/team/app:1");
    let to = format!("type=registry,ref={cache},mode=max");
    let first = home(&registry);
    first.write("c/src/f", "context");
    let context = first.context("c", &twenty_steps());
    let built = first.run(["build", "--push", "-t", &name, "--cache-to", &to, context.to_str().unwrap()]).ok();
    assert!(cached_steps(&built).iter().all(|(_, cached)| !cached), "{built:?}");
    let layers = first.run(["inspect", &name]).ok().json()[0]["RootFS"]["Layers"].as_array().unwrap().len();
    assert_eq!(layers, 20);

    // Nothing but the store: no layer moves.
    let second = home(&registry);
    second.write("c/src/f", "context");
    let context = second.context("c", &twenty_steps());
    let before = registry.requests("").len();
    let built = second.run(["build", "-t", &name, "--cache-from", &cache, context.to_str().unwrap()]).ok();
    all_cached(&built, 20);
    assert_eq!(image_id(&second, &name), image_id(&first, &name));
    let moved = fetched(&registry.requests("")[before..]);
    assert_eq!(moved.len(), 2, "the configuration of the base, and the cache's document: {moved:?}");

    // To the registry that has them all: no layer moves either.
    let third = home(&registry);
    third.write("c/src/f", "context");
    let context = third.context("c", &twenty_steps());
    let before = registry.requests("").len();
    let again = format!("{host}/team/app:2");
    let built = third.run(["build", "--push", "-t", &again, "--cache-from", &cache, context.to_str().unwrap()]).ok();
    all_cached(&built, 20);
    let requests = registry.requests("").split_off(before);
    assert_eq!(fetched(&requests).len(), 2, "{requests:#?}");
    assert_eq!(uploads(&requests), 0, "{requests:#?}");
    assert_eq!(image_id(&third, &again), image_id(&first, &name));

    // Into a file: the layers of the result, once.
    let before = registry.requests("").len();
    let file = third.path("image.tar");
    let output = format!("type=oci,dest={}", file.display());
    third.run(["build", "-o", &output, "--cache-from", &cache, context.to_str().unwrap()]).ok();
    let mut moved = fetched(&registry.requests("")[before..]);
    let all = moved.len();
    moved.sort();
    moved.dedup();
    assert_eq!((moved.len(), all), (21, 21), "20 layers, the base's among them, and the document: {moved:#?}");
    // The store that got everything by name works with it.
    second.build("child", &format!("FROM {name}\nRUN test -f /both && test -f /w/r14\n")).ok();
}

/// The time that everything in these builds has, so that a step that is done again gives the same layer.
const EPOCH: &str = "1700000000";

/// Steps whose layers depend on nothing but their text.
fn steady(steps: usize) -> String {
    let mut text = "FROM busybox\n".to_owned();
    for step in 0..steps {
        writeln!(text, "RUN mkdir /d{step} && seq {step} 3000 > /d{step}/f && touch -d @{EPOCH} /d{step}/f /d{step}").unwrap();
    }
    text
}

/// A build into an archive, with flags; the digest of its manifest.
fn build_archive(home: &Home, dockerfile: &str, flags: &[&str]) -> (Outcome, Option<Value>) {
    build_as(home, dockerfile, "", flags)
}

/// The same with more fields of the output.
fn build_as(home: &Home, dockerfile: &str, form: &str, flags: &[&str]) -> (Outcome, Option<Value>) {
    let context = home.context("c", dockerfile);
    let (file, facts) = (home.path("out.tar"), home.path("facts.json"));
    let mut command = home.command();
    command.env("SOURCE_DATE_EPOCH", EPOCH).arg("build").arg("-o").arg(format!("type=oci,dest={}{form}", file.display()));
    command.arg("--metadata-file").arg(&facts).args(flags).arg(context);
    let outcome = crate::support::home::finish(&mut command);
    let digest =
        fs::read(&facts).ok().map(|text| serde_json::from_slice::<Value>(&text).unwrap()["containerimage.digest"].clone());
    (outcome, digest)
}

/// A cache in a folder, its document first.
struct Folder(PathBuf);

impl Folder {
    fn blob(&self, digest: &str) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    fn json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn manifest(&self) -> (PathBuf, Value) {
        let index = Self::json(&self.0.join("index.json"));
        let path = self.blob(index["manifests"][0]["digest"].as_str().unwrap());
        (path.clone(), Self::json(&path))
    }

    /// The files that a reader looks at: the index, the manifest, the document, the layers.
    fn files(&self) -> Vec<PathBuf> {
        let (path, manifest) = self.manifest();
        let layers = manifest["layers"].as_array().unwrap().iter();
        let blobs = std::iter::once(&manifest["config"]).chain(layers).map(|d| self.blob(d["digest"].as_str().unwrap()));
        [self.0.join("index.json"), path].into_iter().chain(blobs).collect()
    }

    fn put(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        fs::write(self.blob(&digest), bytes).unwrap();
        json!({ "digest": digest, "size": bytes.len() })
    }

    /// Writes the document anew with all checksums right, as somebody does who may write here.
    fn forge(&self, change: impl FnOnce(&mut Steps)) {
        let (_, mut manifest) = self.manifest();
        let config = fs::read(self.blob(manifest["config"]["digest"].as_str().unwrap())).unwrap();
        let mut steps = format::read(&config, None).unwrap().unwrap();
        change(&mut steps);
        let put = |value: &mut Value, bytes: &[u8]| {
            value.as_object_mut().unwrap().extend(self.put(bytes).as_object().unwrap().clone());
        };
        put(&mut manifest["config"], &format::write(&steps, None).unwrap());
        let mut index = Self::json(&self.0.join("index.json"));
        put(&mut index["manifests"][0], manifest.to_string().as_bytes());
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }

    fn copy(&self, to: PathBuf) -> Folder {
        let _ = fs::remove_dir_all(&to);
        assert!(Command::new("cp").arg("-r").arg(&self.0).arg(&to).status().unwrap().success());
        Folder(to)
    }
}

/// A folder with the cache of a build, and the digest of its image.
fn written(home: &Home, dockerfile: &str, more: &str) -> (Folder, Value) {
    let folder = Folder(home.path("cache"));
    let to = format!("type=local,dest={}{more}", folder.0.display());
    let (outcome, digest) = build_archive(home, dockerfile, &["--cache-to", &to]);
    outcome.ok();
    (folder, digest.unwrap())
}

fn from(folder: &Folder) -> String {
    format!("type=local,src={}", folder.0.display())
}

#[test]
fn what_is_before_a_change_is_taken_and_what_comes_after_is_done() {
    let home = Home::new();
    let (cache, _) = written(&home, &steady(5), ",mode=max");
    let changed = steady(5).replace("seq 3 ", "seq 4 ");
    let (outcome, digest) = build_archive(&Home::new(), &changed, &["--cache-from", &from(&cache)]);
    let steps: Vec<bool> = cached_steps(&outcome.ok()).into_iter().map(|(_, cached)| cached).collect();
    assert_eq!(steps, [true, true, true, false, false]);
    assert_eq!(digest, build_archive(&home, &changed, &[]).1);
}

/// All steps hit, so nothing is known of most of them but what the document says; and it is written as it was.
#[test]
fn the_same_steps_are_the_same_cache_wherever_it_was_read() {
    let home = Home::new();
    let text = format!("FROM busybox AS s\nRUN mkdir /s && touch -d @{EPOCH} /s\n{}COPY --from=s /s /s\n", steady(3));
    let (cache, digest) = written(&home, &text, ",mode=max");
    let manifest = |folder: &Folder| folder.manifest().1;
    let again = home.path("again");
    build_archive(&home, &text, &["--cache-to", &format!("type=local,dest={},mode=max", again.display())]).0.ok();
    assert_eq!(manifest(&Folder(again)), manifest(&cache), "of a build that was cached here");
    let other = Home::new();
    let folder = Folder(other.path("third"));
    let to = format!("type=local,dest={},mode=max", folder.0.display());
    let (outcome, theirs) = build_archive(&other, &text, &["--cache-from", &from(&cache), "--cache-to", &to]);
    all_cached(&outcome.ok(), 5);
    assert_eq!((theirs.unwrap(), manifest(&folder)), (digest, manifest(&cache)), "of a build that was cached there");
}

#[test]
fn max_has_the_steps_of_stages_and_min_has_not() {
    let text = |last: &str| {
        let stage = format!("FROM busybox AS s\nRUN mkdir /s && touch -d @{EPOCH} /s\n");
        format!("{stage}FROM busybox\nCOPY --from=s /s /s\nRUN echo {last}\n")
    };
    for (mode, changed) in [("min", [false, true, false]), ("max", [true, true, false])] {
        let home = Home::new();
        let (cache, digest) = written(&home, &text("one"), &format!(",mode={mode}"));
        let (outcome, theirs) = build_archive(&Home::new(), &text("one"), &["--cache-from", &from(&cache)]);
        all_cached(&outcome.ok(), 3);
        assert_eq!(theirs, Some(digest), "{mode}");
        let (outcome, _) = build_archive(&Home::new(), &text("two"), &["--cache-from", &from(&cache)]);
        let steps: Vec<bool> = cached_steps(&outcome.ok()).into_iter().map(|(_, cached)| cached).collect();
        // With `min` the stage is asked for nothing when its COPY hits.
        assert_eq!(steps[1..], changed[1..], "{mode}");
    }
}

/// The layers of a hit have the form that the output asks for, as if the step had been done here.
#[test]
fn the_image_is_the_same_in_every_form() {
    let text =
        "FROM busybox\nRUN mkdir /new && seq 1 2000 > /new/f\nRUN mkdir /newer && ln -s /new /newer/l && cp /new/f /newer\n";
    let home = Home::new();
    let folder = Folder(home.path("cache"));
    let to = format!("type=local,dest={},compression=gzip", folder.0.display());
    for (form, cached) in [("", 2), (",compression=zstd", 2), (",compression=uncompressed", 2), (",rewrite-timestamp=true", 2)] {
        let (outcome, digest) = build_as(&home, text, form, &["--cache-to", &to]);
        outcome.ok();
        let (outcome, theirs) = build_as(&Home::new(), text, form, &["--cache-from", &from(&folder)]);
        all_cached(&outcome.ok(), cached);
        assert_eq!(theirs, digest, "{form}");
        assert!(digest.is_some());
    }
}

#[test]
fn an_image_is_a_cache_of_itself() {
    let registry = registry();
    let name = format!("{}/team/inline:1", registry.host());
    let first = home(&registry);
    let context = first.context("c", &steady(3));
    let context = context.to_str().unwrap();
    let flag = "BUILDKIT_INLINE_CACHE=1";
    first.run(["build", "--push", "-t", &name, "--build-arg", flag, context]).ok();
    let second = home(&registry);
    let again = second.context("c", &steady(3));
    let flags = ["build", "-t", &name, "--build-arg", flag, "--cache-from", &name, again.to_str().unwrap()];
    all_cached(&second.run(flags).ok(), 3);
    assert_eq!(image_id(&second, &name), image_id(&first, &name), "with the records in it");
    // Without the argument an image tells nothing.
    let config = |home: &Home, flags: &[&str]| {
        let mut all = vec!["build", "-t", "x", context];
        all.extend(flags);
        home.run(all).ok();
        image_id(home, "x")
    };
    assert_ne!(config(&first, &[]), image_id(&first, &name));
    assert_eq!(config(&first, &["--cache-to", "type=inline"]), image_id(&first, &name));
}

/// The layers of a step that hit may be gone when something needs them.
#[test]
fn what_a_cache_has_lost_is_done_again() {
    let home = Home::new();
    let (cache, digest) = written(&home, &steady(4), "");
    let second = Home::new();
    let context = second.context("c", &steady(4));
    let args = ["build", "--cache-from", &from(&cache), context.to_str().unwrap()].map(str::to_owned);
    all_cached(&second.run(&args).ok(), 4);
    fs::remove_dir_all(&cache.0).unwrap();
    // The store believes that it knows them all, and there is no cache any more.
    let (outcome, theirs) = build_archive(&second, &steady(4), &[]);
    assert_eq!(theirs, Some(digest));
    let outcome = outcome.ok().says(&["of a shared cache can't be had", "what needs it is built again"]);
    assert!(cached_steps(&outcome).iter().any(|(_, cached)| !cached), "{outcome:?}");
    // And from now on it does.
    let (outcome, _) = build_archive(&second, &steady(4), &[]);
    all_cached(&outcome.ok(), 4);
}

#[test]
fn a_cache_that_fails_fails_no_build_unless_asked() {
    let home = Home::new();
    // Nobody listens on the port of a socket that was closed.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = format!("127.0.0.1:{port}/a/cache");
    let to = format!("type=registry,ref={place}");
    let (outcome, digest) = build_archive(&home, &steady(1), &["--cache-from", &place, "--cache-to", &to]);
    outcome.ok().says(&["the cache", "is not used", "was not written"]);
    assert!(digest.is_some());
    let must = format!("{to},ignore-error=false");
    build_archive(&home, &steady(1), &["--cache-to", &must]).0.fails(4);
    // One that isn't there yet is no cause for complaints.
    let (outcome, _) = build_archive(&home, &steady(1), &["--cache-from", "type=local,src=/none"]);
    let outcome = outcome.ok().says(&["there is no cache yet"]);
    assert!(!outcome.stderr.contains("WARN"), "{outcome:?}");
}

/// BuildKit imports what kiln wrote and kiln what BuildKit wrote, in every form, without a complaint and without a hit.
#[test]
fn buildkit_and_kiln_read_each_others_caches() {
    let test = "shared_cache::buildkit_and_kiln_read_each_others_caches";
    if std::env::var_os("KILN_TEST_FULL").is_none() {
        return skipped(test, "it takes 1.5 GB (KILN_TEST_FULL=1)");
    }
    let (client, _) = lab::newest();
    let host = lab::registry().host();
    let home = Home::new();
    let text = "FROM busybox AS s\nRUN echo a > /a\nFROM busybox\nCOPY --from=s /a /a\nRUN echo b > /b\n";
    let context = home.context("c", text);
    let docker = |flags: &[&str]| {
        let mut command = Command::new(&client);
        command.args(["buildx", "build", "--progress=plain", "--network=host"]).args(flags).arg("-");
        command.stdin(fs::File::open(context.join("Dockerfile")).unwrap());
        crate::support::home::finish(&mut command).ok().says(&["importing cache manifest from"])
    };
    let kiln = |flags: &[&str]| home.run(["build", "--no-cache"].iter().chain(flags).chain([&context.to_str().unwrap()])).ok();
    for (number, form) in ["", ",image-manifest=false", ",image-manifest=false,oci-mediatypes=false"].into_iter().enumerate() {
        let place = |who: &str| format!("type=registry,ref={host}/peers/{who}:{number}");
        kiln(&["--cache-to", &format!("{},mode=max{form}", place("kiln"))]);
        let theirs = format!("{},mode=max{form}", place("buildkit"));
        let outcome = docker(&["--no-cache", "--cache-from", &place("kiln"), "--cache-to", &theirs]);
        assert!(!outcome.stderr.contains("ERROR"), "{outcome:?}");
        let outcome = kiln(&["--cache-from", &place("buildkit")]).says(&["was not written by kiln"]);
        assert!(!outcome.stderr.contains("not used"), "{outcome:?}");
    }
    let (ours, theirs) = (format!("{host}/peers/inline:kiln"), format!("{host}/peers/inline:buildkit"));
    kiln(&["--push", "-t", &ours, "--cache-to", "type=inline"]);
    let from = format!("type=registry,ref={ours}");
    let outcome = docker(&["--no-cache", "--push", "-t", &theirs, "--cache-from", &from, "--cache-to", "type=inline"]);
    assert!(!outcome.stderr.contains("ERROR"), "{outcome:?}");
    kiln(&["--cache-from", &theirs]).says(&["was not written by kiln"]);
}

/// C78: an image that looks as if it were the result of a build is not taken for it.
#[test]
fn c78_a_crafted_image_is_no_cache() {
    let registry = registry();
    let name = format!("{}/evil/app:1", registry.host());
    let honest = "FROM busybox\nRUN echo honest > /x\n";
    // The attacker's image has the history of the honest Dockerfile, and other files.
    let attacker = home(&registry);
    let archive = attacker.path("image.tar");
    let (folder, forged) = (attacker.path("image"), attacker.path("forged.tar"));
    attacker.build(&name, "FROM busybox\nRUN echo evil > /x\n").ok();
    attacker.run([OsStr::new("save"), OsStr::new("-o"), archive.as_os_str(), OsStr::new(&name)]).ok();
    fs::create_dir(&folder).unwrap();
    assert!(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&folder).status().unwrap().success());
    let mut manifest = Folder::json(&folder.join("manifest.json"));
    let config = folder.join(manifest[0]["Config"].as_str().unwrap());
    let text = fs::read_to_string(&config).unwrap().replace("echo evil", "echo honest");
    let honest_config = format!("{}.json", Digest::of(text.as_bytes()).hex());
    fs::write(folder.join(&honest_config), &text).unwrap();
    manifest[0]["Config"] = json!(honest_config);
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    let _ = fs::remove_file(folder.join("index.json"));
    let _ = fs::remove_file(folder.join("oci-layout"));
    assert!(Command::new("tar").arg("-cf").arg(&forged).arg("-C").arg(&folder).arg(".").status().unwrap().success());

    let victim = home(&registry);
    victim.run([OsStr::new("load"), OsStr::new("-i"), forged.as_os_str()]).ok();
    let inspected = victim.run(["inspect", &name]).ok().stdout;
    assert!(inspected.contains("sha256:"), "{inspected}");
    victim.run(["push", &name]).ok();
    for flags in [vec![], vec!["--cache-from", name.as_str()]] {
        let context = victim.context("c", honest);
        let mut args = vec!["build", "-t", "mine"];
        args.extend(flags);
        let built = victim.run(args.into_iter().map(str::to_owned).chain([context.display().to_string()])).ok();
        let steps = cached_steps(&built);
        assert!(steps.iter().all(|(_, cached)| !cached) || victim.path("done").exists(), "{steps:?}");
        fs::write(victim.path("done"), "").unwrap();
        victim.build("check", "FROM mine\nRUN grep -x honest /x\n").ok();
    }
}

/// A seeded generator: the same damages each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit.max(1)
    }
}

/// C79: whatever becomes of a cache, the image is the one that a build without it gives. `KILN_TEST_DAMAGES` is how often.
#[test]
fn c79_a_damaged_cache_never_gives_a_wrong_image() {
    let writer = Home::new();
    let (clean, digest) = written(&writer, &steady(4), ",mode=max");
    let mut dice = Dice(79);
    let times = std::env::var("KILN_TEST_DAMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(24);
    let home = Home::new();
    let mut done_again = 0;
    for round in 0..times {
        let cache = clean.copy(home.path("damaged"));
        let files = cache.files();
        // The small ones, which say what is where, as often as all layers together.
        let victim = &files[if round % 2 == 0 { dice.below(3) } else { 3 + dice.below(files.len() - 3) }];
        let mut bytes = fs::read(victim).unwrap();
        let what = match dice.below(4) {
            0 => {
                bytes.truncate(dice.below(bytes.len()));
                "cut"
            }
            1 => {
                let other = &files[dice.below(files.len())];
                bytes = fs::read(other).unwrap();
                "swapped"
            }
            _ => {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
                "flipped"
            }
        };
        fs::write(victim, bytes).unwrap();
        let _ = fs::remove_dir_all(home.store());
        let (outcome, found) = build_archive(&home, &steady(4), &["--cache-from", &from(&cache)]);
        let outcome = outcome.ok();
        assert_eq!(found.as_ref(), Some(&digest), "{what} {}\n{}", victim.display(), outcome.stderr);
        done_again += usize::from(cached_steps(&outcome).iter().any(|(_, cached)| !cached));
    }
    assert!(done_again * 2 > times, "only {done_again} of {times} damages were noticed");
}

/// C79: what a writer can do who knows how checksums are made, short of lying about what a step gave.
#[test]
fn c79_a_lying_document_never_gives_a_wrong_image() {
    type Lie = fn(&mut Steps);
    let rows: [(&str, Lie); 4] = [
        ("blobs that are other tars", |steps| {
            let last = steps.layers.len() - 1;
            let other = steps.layers[last - 1].blob.clone();
            steps.layers[last].blob = other;
        }),
        ("a size that is none", |steps| steps.layers.iter_mut().for_each(|layer| layer.blob.size += 1)),
        ("blobs that aren't there", |steps| {
            steps.layers.iter_mut().for_each(|layer| layer.blob.digest = Digest::of(layer.blob.digest.to_string().as_bytes()));
        }),
        ("another form than is said", |steps| {
            steps.layers.iter_mut().for_each(|layer| layer.blob.media_type = kiln_oci::media_type::OCI_LAYER_ZSTD.to_owned());
        }),
    ];
    let writer = Home::new();
    let (clean, digest) = written(&writer, &steady(3), "");
    for (name, lie) in rows {
        let home = Home::new();
        let cache = clean.copy(home.path("cache"));
        cache.forge(lie);
        let (outcome, found) = build_archive(&home, &steady(3), &["--cache-from", &from(&cache)]);
        let outcome = outcome.ok();
        assert_eq!(found.as_ref(), Some(&digest), "{name}\n{}", outcome.stderr);
        assert!(cached_steps(&outcome).iter().any(|(_, cached)| !cached), "{name}\n{}", outcome.stderr);
    }
}

#[test]
fn c79_only_a_cache_with_the_right_signature_is_used() {
    let home = Home::new();
    let key = |name: &str| {
        let path = home.path(name);
        let openssl = |args: &[&OsStr]| assert!(Command::new("openssl").args(args).status().unwrap().success());
        let public = home.path(&format!("{name}.pub"));
        let words = |text: &'static str| text.split(' ').map(OsStr::new);
        openssl(&words("genpkey -algorithm ed25519 -out").chain([path.as_os_str()]).collect::<Vec<_>>());
        let args = words("pkey -pubout -in").chain([path.as_os_str(), OsStr::new("-out"), public.as_os_str()]);
        openssl(&args.collect::<Vec<_>>());
        path.display().to_string()
    };
    let (ours, theirs) = (key("ours"), key("theirs"));
    for (sign, verify, expected) in [
        (Some(&ours), Some(&ours), None),
        (Some(&ours), None, None),
        (Some(&ours), Some(&theirs), Some("not signed by any of the keys")),
        (None, Some(&ours), Some("not signed")),
    ] {
        let home = Home::new();
        let sign = sign.map(|key| format!(",sign={key}")).unwrap_or_default();
        let (cache, digest) = written(&home, &steady(2), &sign);
        let verify = verify.map(|key| format!(",verify={key}.pub")).unwrap_or_default();
        let (outcome, found) = build_archive(&Home::new(), &steady(2), &["--cache-from", &format!("{}{verify}", from(&cache))]);
        let outcome = outcome.ok();
        assert_eq!(found, Some(digest));
        match expected {
            None => all_cached(&outcome, 2),
            Some(text) => {
                assert!(cached_steps(&outcome).iter().all(|(_, cached)| !cached), "{outcome:?}");
                outcome.says(&["is not used", text]);
            }
        }
    }
}
