//! Paths that an image or a neighbour makes up: mount points, sources, and the standard places.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kiln_runner::{Mount, MountSource, RootFs};
use rustix::fs::{CWD, RenameFlags};

use super::{full, tree};
use crate::support::Step;

fn bind(target: &str, path: &Path, subpath: &str) -> Mount {
    Mount { target: target.into(), source: MountSource::Bind { path: path.to_owned() }, subpath: subpath.into(), readonly: false }
}

/// A folder of the host's that nobody may touch.
fn canary() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("kiln-canary-").tempdir().unwrap();
    for name in ["etc", "dev", "proc", "run/secrets", "deep/er"] {
        std::fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    for name in ["f", "etc/hosts", "etc/resolv.conf", "deep/f", "dev/null"] {
        std::fs::write(folder.path().join(name), "canary\n").unwrap();
    }
    folder
}

/// Exchanges two names again and again while `act` runs, and at least so often; answers how often.
fn swapping(one: &Path, other: &Path, act: impl FnOnce()) -> u64 {
    let least = if full() { 10_000 } else { 1000 };
    let (done, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) || swaps.load(Ordering::Relaxed) < least {
                rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        // The swapper has to end also when an assertion fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        done.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    swaps.into_inner()
}

/// How many steps a race is tried with.
fn rounds() -> usize {
    if full() { 200 } else { 20 }
}

/// C02 (CVE-2024-23651): two steps mount a sub-path of one cache while it turns into a link to the host and back.
pub fn c02_subpath_swapped_under_two_steps() {
    let canary = canary();
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("sub/deep")).unwrap();
    std::fs::write(cache.path().join("sub/deep/f"), "inside\n").unwrap();
    let up = "../".repeat(12);
    for link in [canary.path().display().to_string(), format!("{up}{}", canary.path().display()), "/proc/self/root".to_owned()] {
        let other = cache.path().join("other");
        symlink(&link, &other).unwrap();
        let before = tree(canary.path());
        let mounted = AtomicU64::new(0);
        let one = || {
            for _ in 0..rounds() {
                let mut step = Step::new();
                step.spec.mounts = vec![bind("/m", cache.path(), "sub/deep")];
                let ran = step.sh("cat /m/f; touch /m/touched");
                match &ran.result {
                    Ok(_) => {
                        assert_eq!(ran.out, "inside\n", "{link}");
                        mounted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => assert!(ran.error().starts_with("could not mount"), "{link}"),
                }
            }
        };
        let swaps = swapping(&cache.path().join("sub"), &other, || {
            std::thread::scope(|scope| {
                let second = scope.spawn(one);
                one();
                second.join().unwrap();
            });
        });
        assert!(swaps >= 1000 && mounted.into_inner() > 0, "{swaps}");
        assert_eq!(tree(canary.path()), before, "{link}");
        let (a, b) = (cache.path().join("sub"), cache.path().join("other"));
        let link = if a.is_symlink() { &a } else { &b };
        std::fs::remove_file(link).unwrap();
        if b.exists() {
            std::fs::rename(&b, &a).unwrap();
        }
    }
}

/// C11 (CVE-2024-45310): mount points made below a shared cache while a directory on the way is swapped for a link.
pub fn c11_mount_points_raced() {
    let canary = canary();
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("a")).unwrap();
    symlink(canary.path(), cache.path().join("b")).unwrap();
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("f"), "source\n").unwrap();
    let before = tree(canary.path());
    let swaps = swapping(&cache.path().join("a"), &cache.path().join("b"), || {
        for round in 0..rounds() {
            let mut step = Step::new();
            let target = format!("/c/a/new{round}/deep");
            step.spec.mounts = vec![
                bind("/c", cache.path(), ""),
                bind(&target, source.path(), ""),
                bind(&format!("/c/a/file{round}"), &source.path().join("f"), ""),
            ];
            let ran = step.sh("true");
            if let Err(error) = &ran.result {
                assert!(!format!("{error:?}").contains("Cleanup"), "{ran:?}");
            }
        }
    });
    assert!(swaps >= 1000, "{swaps}");
    assert_eq!(tree(canary.path()), before);
}

/// C20 (CVE-2024-11218): the source itself is swapped for a link to the root of the host.
pub fn c20_source_swapped_for_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    std::fs::create_dir(&one).unwrap();
    std::fs::write(one.join("inside"), "").unwrap();
    symlink("/", &other).unwrap();
    let swaps = swapping(&one, &other, || {
        for _ in 0..rounds() {
            let mut step = Step::new();
            step.spec.mounts = vec![bind("/m", &one, "")];
            let ran = step.sh("ls -A /m");
            match &ran.result {
                Ok(_) => assert_eq!(ran.out, "inside\n"),
                Err(_) => assert!(ran.error().contains("symbolic link")),
            }
        }
    });
    assert!(swaps >= 1000, "{swaps}");
}

/// C03 (CVE-2024-23652): stubs and each of their parents become links to what must not be removed.
pub fn c03_every_parent_of_a_stub_replaced() {
    let source = tempfile::tempdir().unwrap();
    for depth in 0..3 {
        let canary = canary();
        let before = tree(canary.path());
        let mut step = Step::new();
        step.spec.mounts = vec![bind("/deep/er/est", source.path(), "")];
        // The mount can't be taken away, but what is above it can be moved, and something else be put in its place.
        let (from, to) = [("/deep", "/moved"), ("/deep/er", "/deep/moved"), ("/deep/er/est", "/deep/er/moved")][depth];
        let ran = step.sh(&format!("mv {from} {to}; ln -s {} {from}; ls -la /", canary.path().display()));
        assert_eq!(tree(canary.path()), before, "{from}: {ran:?}");
        assert!(std::fs::read_dir(source.path()).is_ok());
    }
    // The layer's directory is all that the clean-up sees: a link of the layer is not followed on the host.
    let canary = canary();
    let before = tree(canary.path());
    let mut step = Step::new();
    let etc = step.subdir("upper/etc");
    for name in ["hosts", "resolv.conf"] {
        symlink(canary.path().join("etc").join(name), etc.join(name)).unwrap();
    }
    step.sh("true").ok();
    assert_eq!(tree(canary.path()), before);
}

/// What is in the place of a directory.
enum Thing {
    Link(String),
    File,
    Fifo,
    Loop,
}

/// C10 (CVE-2026-41579) and its kin: six places of an image as links to six places of the host, as a file, a pipe and a loop. Either
/// the step says so or it runs; the host's tree is as before.
pub fn c10_places_as_links_files_and_loops() {
    let canary = canary();
    let at = canary.path().display().to_string();
    let up = "../".repeat(12);
    let links = [
        at.clone(),
        format!("{up}{at}"),
        "/".to_owned(),
        "/proc/self/root".to_owned(),
        format!("/proc/1/root{at}"),
        "/nowhere/at/all".to_owned(),
    ];
    let secret = || MountSource::File { data: b"secret".to_vec(), mode: 0o400, uid: 0, gid: 0 };
    let before = tree(canary.path());
    for place in ["dev", "proc", "sys", "etc", "run", "tmp"] {
        let things = links.iter().map(|link| Thing::Link(link.clone())).chain([Thing::File, Thing::Fifo, Thing::Loop]);
        for thing in things {
            // An image with nothing but this and busybox in a place that is none of the six.
            let image = tempfile::tempdir().unwrap();
            std::fs::create_dir(image.path().join("bin")).unwrap();
            std::fs::copy("/bin/busybox", image.path().join("bin/busybox")).unwrap();
            let path = image.path().join(place);
            let what = match thing {
                Thing::Link(to) => {
                    symlink(&to, &path).unwrap();
                    to
                }
                Thing::File => std::fs::write(&path, "").map(|()| "a file".to_owned()).unwrap(),
                Thing::Fifo => {
                    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
                    "a pipe".to_owned()
                }
                Thing::Loop => symlink(place, &path).map(|()| "a loop".to_owned()).unwrap(),
            };
            let mut step = Step::new().with(|spec| {
                let RootFs::Overlay { lowers, .. } = &mut spec.root else { panic!() };
                *lowers = vec![image.path().to_owned()];
            });
            let file = |target: &str| Mount { target: target.into(), source: secret(), subpath: "".into(), readonly: true };
            step.spec.mounts = vec![file("/run/secrets/key"), file("/tmp/x/y"), file("/dev/pipes/EOF"), file("/etc/z")];
            let begin = std::time::Instant::now();
            let ran = step.args(&["/bin/busybox", "sh", "-c", "busybox cat /run/secrets/key; echo x > /tmp/made; exit 0"]);
            assert!(begin.elapsed().as_secs_f64() < 2.0, "/{place} is {what}");
            match &ran.result {
                // What was put below the place of /proc is covered by it.
                Ok(_) => {
                    let covered = place == "run" && what.starts_with("/proc/");
                    assert!(ran.out.starts_with("secret") || covered, "/{place} is {what}: {ran:?}");
                }
                Err(_) => {
                    let error = ran.error();
                    assert!(error.starts_with("cannot mount on `"), "/{place} is {what}: {error}");
                }
            }
            assert_eq!(tree(canary.path()), before, "/{place} is {what}");
        }
    }
}

/// C08 (CVE-2025-31133): masks are empty, read-only and kiln's own, whatever the image puts at `/dev/null`.
pub fn c08_masks_are_kilns_own() {
    for image in ["a file", "a link", "a pipe"] {
        let mut step = Step::new();
        let null = step.subdir("upper/dev").join("null");
        match image {
            "a file" => std::fs::write(&null, "not empty\n").unwrap(),
            "a link" => symlink("/proc/sys/kernel/core_pattern", &null).unwrap(),
            _ => rustix::fs::mknodat(CWD, &null, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap(),
        }
        let out = step.sh("stat -c %F:%t:%T /dev/null; for f in kcore keys interrupts timer_list; do [ ! -e /proc/$f ] || [ -d /proc/$f ] || head -c 9 /proc/$f; done; echo x > /dev/null; echo end").ok();
        assert_eq!(out, "character special file:1:3\nend\n", "{image}");
        // What masks is a regular file that can't be written, of a file system that nobody else has.
        let out = step.sh("stat -c %F:%s:%a /proc/interrupts; (: > /proc/interrupts) 2>&1 | grep -c 'Read-only'").ok();
        assert_eq!(out, "regular empty file:0:444\n1\n", "{image}");
    }
}

/// C12 (CVE-2023-27561): there is one proc file system, it is where it should be, and it is of the sandbox's own processes.
pub fn c12_proc_is_the_real_one() {
    let out = Step::new()
        .sh("stat -f -c %t /proc; grep -c ' /proc [^-]* - proc ' /proc/self/mountinfo; ls -d /proc/[0-9]* | wc -l")
        .ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[1]), ("9fa0", "1"), "{out}");
    assert!(lines[2].parse::<u32>().unwrap() < 6, "{out}");
    // A mount of the request's that covers it, or is below it, is refused; by way of a link it ends inside.
    let canary = canary();
    let before = tree(canary.path());
    let mut step = Step::new();
    symlink("/proc", step.upper().join("p")).unwrap();
    step.spec.mounts = vec![bind("/p/self", canary.path(), "")];
    let _ = step.sh("true");
    let mut step = Step::new();
    symlink("/proc", step.upper().join("p")).unwrap();
    step.spec.mounts = vec![bind("/p", canary.path(), "")];
    let ran = step.sh("stat -f -c %t /proc");
    if ran.result.is_ok() {
        assert_eq!(ran.ok(), "9fa0\n", "the real one is on top");
    }
    assert_eq!(tree(canary.path()), before);
}

/// C23: what is mounted is this list, and what was asked for; no distribution's secrets, whatever links the image has for them.
pub fn c23_no_other_mounts() {
    let mut step = Step::new();
    for (from, to) in [("run/secrets", "/etc"), ("usr/share/rhel/secrets", "/"), ("etc/system-fips", "/etc/shadow")] {
        let path = step.upper().join(from);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }
    let out = step.sh("cut -d' ' -f5 /proc/self/mountinfo | sort -u").ok();
    let expected = ["/", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/etc/hosts", "/etc/resolv.conf", "/proc", "/sys"];
    let masks = |path: &&str| !path.starts_with("/proc/") && !path.starts_with("/sys/");
    // Where nodes can't be made, the devices are binds.
    let devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
    let seen: Vec<&str> = out.lines().filter(masks).filter(|path| !devices.contains(path)).collect();
    let expected: Vec<&str> = expected.into_iter().filter(|path| *path != "/dev/mqueue" || seen.contains(path)).collect();
    assert_eq!(seen, expected);
}
