//! Several processes, some of which are killed. The others are this test program, started with a role.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use super::{Fixture, add_bases, built, image, key, name, record, tree};
use crate::{CacheKey, Error, PruneOptions, Sharing, Store, Unpack};

const ROLE: &str = "KILN_STORE_TEST_ROLE";
const ROOT: &str = "KILN_STORE_TEST_ROOT";

/// Ends with the test, however that ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(role: &str, root: &Path) -> Process {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::processes::child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(ROOT, root)
        .stdout(Stdio::piped())
        .spawn();
    Process(child.unwrap())
}

/// Waits for a line on the child's standard output that has `text` in it.
fn await_line(child: &mut Process, text: &str) {
    let mut lines = BufReader::new(child.0.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(text)), "no `{text}`");
}

/// Not a test: what the other processes run.
#[test]
fn child() {
    let (Ok(role), Ok(root)) = (std::env::var(ROLE), std::env::var(ROOT)) else { return };
    let root = Path::new(&root);
    match role.as_str() {
        "umask" => {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o277));
            Store::open(root).unwrap();
        }
        "hold" => {
            let store = Store::open(root).unwrap();
            let _key = store.cache().lock(&key(1)).unwrap();
            let _mount = store.mounts().acquire::<Error>(b"id", Sharing::Locked, |_| Ok(())).unwrap();
            let base = add_bases(&store, &["a"]);
            let Unpack::Needed(prepared) = store.layers().unpack(&base[0]).unwrap() else { panic!() };
            fs::create_dir_all(prepared.upper.join("half/of/it")).unwrap();
            let mut writer = store.blobs().writer().unwrap();
            writer.write_all(b"half").unwrap();
            println!("held");
            std::thread::sleep(Duration::from_secs(60));
        }
        "once" => {
            let store = Store::open(root).unwrap();
            let _lock = store.cache().lock(&key(1)).unwrap();
            if store.cache().get(&key(1)).unwrap().is_none() {
                let mut log = fs::OpenOptions::new().append(true).create(true).open(root.with_file_name("log")).unwrap();
                log.write_all(b"run\n").unwrap();
                let layer = built(&store, None, "x");
                store.cache().put(&key(1), &record(Some(&layer))).unwrap();
            }
        }
        "work" => {
            println!("working");
            for n in 0..10_000 {
                work(root, n);
            }
        }
        "fill" => fill(root),
        "build" => (0..30).for_each(|n| build(root, n)),
        role => panic!("no role `{role}`"),
    }
}

/// Everything that a build does with the store, once.
fn work(root: &Path, n: u32) {
    let store = Store::open(root).unwrap();
    let texts = [format!("a{}", n % 5), format!("b{}", n % 5)];
    let base = add_bases(&store, &[&texts[0], &texts[1]]);
    for id in &base {
        if let Unpack::Needed(prepared) = store.layers().unpack(id).unwrap() {
            fs::create_dir_all(prepared.upper.join("a/b/c")).unwrap();
            fs::write(prepared.upper.join("a/file"), "x").unwrap();
            prepared.commit().unwrap();
        }
    }
    let layer = built(&store, base.last(), "x");
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    store.cache().put(&CacheKey(bytes), &record(Some(&layer))).unwrap();
    let mut writer = store.blobs().writer().unwrap();
    (0..10).for_each(|_| writer.write_all(&n.to_le_bytes().repeat(1000)).unwrap());
    let (digest, _) = writer.commit(None).unwrap();
    drop(store.mounts().acquire::<Error>(&n.to_le_bytes(), Sharing::Private, |_| Ok(())).unwrap());
    let mut image = image(&store, Some("app"), &n.to_string(), &[layer]);
    image.blobs.push(digest);
    store.images().set(&image).unwrap();
}

/// What `fsck` would look at.
fn assert_whole(store: &Store) {
    store.finish_sweep();
    assert_eq!(tree(&store.root().join("ingest")), [""; 0]);
    assert_eq!(tree(&store.root().join("trash")), [""; 0]);
    for entry in fs::read_dir(store.root().join("blobs/sha256")).unwrap() {
        let digest = format!("sha256:{}", entry.unwrap().file_name().into_string().unwrap()).parse().unwrap();
        store.blobs().read(&digest, u64::MAX - 1).unwrap();
    }
    for entry in fs::read_dir(store.root().join("layers")).unwrap() {
        let id = crate::LayerId::parse(entry.unwrap().file_name().to_str().unwrap()).unwrap();
        let record = store.layers().get(&id).unwrap().expect("a layer has a record");
        if record.unpacked {
            fs::read_dir(store.layers().diff_dir(&id)).unwrap();
        }
    }
    for image in store.images().list().unwrap() {
        for layer in &image.layers {
            store.layers().chain(layer).unwrap();
        }
        for blob in image.blobs.iter().chain([&image.config]) {
            store.blobs().read(blob, u64::MAX - 1).unwrap();
        }
    }
}

#[test]
fn a_fresh_root_is_closed_to_others_under_any_umask() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/b/store");
    assert!(start("umask", &root).0.wait().unwrap().success());
    for path in [root.clone(), root.join("blobs"), root.join("blobs/sha256")] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700, "{}", path.display());
    }
}

#[test]
fn what_a_killed_process_held_is_free_and_what_it_left_is_swept() {
    let fixture = Fixture::new();
    let mut child = start("hold", fixture.root());
    await_line(&mut child, "held");
    let impatient = fixture.again().on_wait(super::impatient());
    assert!(matches!(impatient.cache().lock(&key(1)), Err(Error::Interrupted { .. })));
    assert!(matches!(impatient.layers().unpack(&add_bases(&impatient, &["a"])[0]), Err(Error::Interrupted { .. })));
    assert_eq!(fs::read_dir(fixture.root().join("ingest")).unwrap().count(), 1, "a living process keeps its folder");
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    impatient.cache().lock(&key(1)).unwrap();
    impatient.mounts().acquire::<Error>(b"id", Sharing::Locked, |_| Ok(())).unwrap();
    drop(impatient);
    assert_whole(&fixture.again());
}

#[test]
fn equal_steps_of_several_processes_run_once() {
    let fixture = Fixture::new();
    let children: Vec<Process> = (0..8).map(|_| start("once", fixture.root())).collect();
    for mut child in children {
        assert!(child.0.wait().unwrap().success());
    }
    assert_eq!(fs::read_to_string(fixture.dir.path().join("log")).unwrap(), "run\n");
    assert_eq!(fs::read_dir(fixture.root().join("layers")).unwrap().count(), 1);
}

#[test]
fn a_process_may_be_killed_at_any_moment() {
    let fixture = Fixture::new();
    // Delays of up to some 20 ms that are the same in each run of the test; where they hit is up to the machine.
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..50 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = start("work", fixture.root());
        await_line(&mut child, "working");
        std::thread::sleep(Duration::from_micros(random % 20_000));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        assert_whole(&fixture.again());
    }
    let store = &fixture.store;
    store.images().remove(&name("app")).unwrap();
    store.gc().prune(&super::collection::everything()).unwrap();
    assert_eq!(store.gc().usage().unwrap(), []);
    assert_eq!(tree(&fixture.root().join("locks")), [""; 0]);
}

/// A build that uses what is cached, and that fails if anything goes away under it.
fn build(root: &Path, n: u32) {
    let store = Store::open(root).unwrap();
    let mut parent = None;
    for step in 0..5 {
        let key = key(step);
        let _lock = store.cache().lock(&key).unwrap();
        let layer = match store.cache().get(&key).unwrap() {
            Some(record) => record.layer.unwrap(),
            None => {
                let layer = built(&store, parent.as_ref(), "x");
                store.cache().put(&key, &record(Some(&layer))).unwrap();
                layer
            }
        };
        for dir in store.layers().lowers(&layer).unwrap() {
            assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "x");
        }
        parent = Some(layer);
    }
    let layers: Vec<_> = parent.into_iter().collect();
    let image = image(&store, Some(&format!("app{}", std::process::id())), &n.to_string(), &layers);
    store.images().set(&image).unwrap();
    store.blobs().read(&image.config, 100).unwrap();
    store.images().remove(&image.name.unwrap()).unwrap();
}

/// Fills a small file system with layers, and gets it free again.
fn fill(root: &Path) {
    let store = Store::open(root).unwrap();
    let kept = built(&store, None, "kept");
    store.images().set(&image(&store, Some("kept"), "kept", std::slice::from_ref(&kept))).unwrap();
    let make = |n: u8| -> Result<(), Error> {
        let prepared = store.layers().prepare(Some(&kept))?;
        let path = prepared.upper.join("file");
        fs::write(&path, vec![n; 20_000]).map_err(Error::io("write", &path))?;
        let layer = prepared.commit()?;
        store.cache().put(&key(n), &record(Some(&layer)))
    };
    let error = (0..=255).find_map(|n| make(n).err()).expect("the disk is small");
    assert!(error.is_out_of_space(), "{error}");
    // Not even one byte is left.
    let mut filler = fs::File::create(root.with_file_name("filler")).unwrap();
    while filler.write_all(&[1; 512]).is_ok() {}
    assert!(store.blobs().put_bytes(&[2; 5000]).unwrap_err().is_out_of_space());
    assert!(store.gc().usage().unwrap().len() > 4);
    let report = store.gc().prune(&super::collection::everything()).unwrap();
    assert!(report.freed > 100_000, "{}", report.freed);
    make(1).unwrap();
    assert_eq!(store.images().list().unwrap().len(), 1);
    drop(store);
    assert_whole(&Store::open(root).unwrap());
}

#[test]
fn a_full_disk_stops_a_build_but_not_prune() {
    let dir = tempfile::tempdir().unwrap();
    for options in ["size=1m", "size=64m,nr_inodes=150"] {
        // A mount namespace of its own, so that nothing is left mounted whatever happens.
        let script = r#"mount -t tmpfs -o "$1" none "$2" || exit 77; shift 2; exec "$@""#;
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh", options])
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "tests::processes::child", "--nocapture", "--test-threads=1"])
            .env(ROLE, "fill")
            .env(ROOT, dir.path().join("store"))
            .output();
        match output {
            Ok(output) if output.status.code() == Some(77) || !rustix::process::geteuid().is_root() => {
                println!("skipped: this user may not mount a small tmpfs");
            }
            Err(error) => println!("skipped: unshare(1) is not there ({error})"),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{options}: {text}");
            }
        }
    }
}

#[test]
fn prune_beside_four_builders_takes_nothing_from_them() {
    let fixture = Fixture::new();
    let Fixture { store, dir } = fixture;
    let root = store.root().to_owned();
    drop(store);
    let mut children: Vec<Process> = (0..4).map(|_| start("build", &root)).collect();
    let mut pruned = 0;
    while children.iter_mut().any(|child| child.0.try_wait().unwrap().is_none()) {
        let store = Store::open(&root).unwrap();
        let options = PruneOptions { now: SystemTime::now(), ..super::collection::everything() };
        pruned += store.gc().prune(&options).unwrap().removed.len();
    }
    for mut child in children {
        assert!(child.0.wait().unwrap().success());
    }
    assert!(pruned > 0);
    assert_whole(&Store::open(&root).unwrap());
    drop(dir);
}
