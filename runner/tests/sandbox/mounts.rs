//! Mounts that a step asks for.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_runner::{Mount, MountSource, OverlayUpper};

use crate::support::Step;

fn mount(target: &str, source: MountSource) -> Mount {
    Mount { target: target.into(), source, subpath: "".into(), readonly: false }
}

fn bind(target: &str, path: &Path) -> Mount {
    mount(target, MountSource::Bind { path: path.to_owned() })
}

pub fn binds() {
    let mut step = Step::new();
    let source = step.subdir("source");
    std::fs::write(source.join("f"), "data\n").unwrap();
    step.spec.mounts = vec![
        bind("/cache", &source),
        Mount { readonly: true, ..bind("/ro", &source) },
        Mount { readonly: true, ..bind("/one/file", &source.join("f")) },
    ];
    assert_eq!(step.sh("cat /cache/f /ro/f /one/file; echo new > /cache/made; cat /ro/made").ok(), "data\ndata\ndata\nnew\n");
    let ran = step.sh("echo x > /ro/f; echo x > /one/file; echo x > /ro/new");
    assert_eq!(ran.err.matches("Read-only file system").count(), 3, "{ran:?}");
    assert_eq!(std::fs::read_to_string(source.join("made")).unwrap(), "new\n");
    let ran = step.sh("mknod /cache/zero c 1 5; cat /cache/zero");
    assert!(ran.err.contains("Permission denied"), "{ran:?}");
    // A link in the source's place is not followed.
    symlink("/etc", step.dir.path().join("link")).unwrap();
    step.spec.mounts = vec![bind("/x", &step.dir.path().join("link"))];
    assert!(step.sh("ls /x").error().contains("symbolic link"));
    step.spec.mounts = vec![bind("/x", Path::new("/no/such/source"))];
    assert!(step.sh("ls /x").error().starts_with("could not mount `/no/such/source` of the host"));
}

pub fn overlays() {
    let mut step = Step::new();
    let (one, two) = (step.subdir("one"), step.subdir("two"));
    std::fs::write(one.join("a"), "one\n").unwrap();
    std::fs::write(two.join("a"), "two\n").unwrap();
    std::fs::create_dir_all(two.join("sub/dir")).unwrap();
    std::fs::write(two.join("sub/dir/b"), "deep\n").unwrap();
    let writable = OverlayUpper { upper: step.subdir("up"), work: step.subdir("wk") };
    let lowers = vec![one.clone(), two.clone()];
    step.spec.mounts = vec![
        Mount { readonly: true, ..mount("/ro", MountSource::Overlay { lowers: lowers.clone(), upper: None }) },
        mount("/single", MountSource::Overlay { lowers: vec![two.clone()], upper: None }),
        mount("/rw", MountSource::Overlay { lowers: lowers.clone(), upper: Some(writable) }),
        Mount { subpath: "/sub/dir".into(), readonly: true, ..mount("/sub", MountSource::Overlay { lowers, upper: None }) },
    ];
    assert_eq!(step.sh("cat /ro/a /single/a /sub/b; ls /sub; echo x > /rw/a; cat /rw/a").ok(), "one\ntwo\ndeep\nb\nx\n");
    step.spec.mounts.remove(2);
    let ran = step.sh("echo x > /ro/a; echo x > /single/a; echo x > /sub/b");
    assert_eq!(ran.err.matches("Read-only file system").count(), 3, "{ran:?}");
    // C22: what is written goes nowhere but to the upper directory.
    assert_eq!(std::fs::read_to_string(one.join("a")).unwrap(), "one\n");
    assert_eq!(std::fs::read_to_string(step.dir.path().join("up/a")).unwrap(), "x\n");
}

pub fn tmpfs() {
    let mut step = Step::new();
    step.spec.mounts =
        vec![mount("/big", MountSource::Tmpfs { size: None }), mount("/tmp/small", MountSource::Tmpfs { size: Some(1 << 20) })];
    let ran = step.sh(
        "stat -c %a /big; stat -f -c %T /big; head -c 2000000 /dev/zero > /tmp/small/f; ls -l /tmp/small/f | awk '{print $5}'",
    );
    assert_eq!(ran.out, "1777\ntmpfs\n1048576\n", "{ran:?}");
    assert_eq!(step.changes(), [""; 0]);
    let out = Step::new().with(|spec| spec.shm_size = 1 << 20).sh("df -k /dev/shm | awk 'NR==2{print $2}'").ok();
    assert_eq!(out, "1024\n");
}

pub fn inline_files() {
    let mut step = Step::new();
    let file = |data: &str, mode| MountSource::File { data: data.as_bytes().to_vec(), mode, uid: 7, gid: 8 };
    step.spec.mounts = vec![
        mount("/dev/pipes/EOF", file("#!/bin/sh\necho from a pipe\n", 0o755)),
        Mount { readonly: true, ..mount("/run/secrets/key", file("secret\n", 0o400)) },
    ];
    assert_eq!(
        step.sh("/dev/pipes/EOF; cat /run/secrets/key; stat -c '%a %u:%g' /run/secrets/key").ok(),
        "from a pipe\nsecret\n400 7:8\n"
    );
    assert_eq!(step.changes(), [""; 0]);
}

/// C90: what is in such a file does not get to the disk by way of swap.
pub fn inline_files_are_not_swapped() {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(4)) {
        return println!("skipped: Linux {release} can't keep a memory file system from swap");
    }
    let mut step = Step::new();
    let file = MountSource::File { data: b"secret".to_vec(), mode: 0o400, uid: 0, gid: 0 };
    step.spec.mounts = vec![Mount { readonly: true, ..mount("/run/secrets/key", file) }];
    let mounts = step.sh("grep ' /run/secrets/key ' /proc/mounts").ok();
    // In a user namespace it is another file system, which knows no swap.
    assert!(mounts.contains(" ro,") && (mounts.contains(",noswap") || mounts.starts_with("ramfs ")), "{mounts}");
}

/// C02, C20: a path below the source never leads out of it.
pub fn subpaths_stay_inside() {
    let mut step = Step::new();
    let source = step.subdir("source");
    std::fs::create_dir_all(source.join("in/side")).unwrap();
    std::fs::write(source.join("in/side/f"), "inside\n").unwrap();
    symlink("/in/side", source.join("absolute")).unwrap();
    symlink("/etc", source.join("out")).unwrap();
    symlink("/proc/self/fd/3", source.join("magic")).unwrap();
    for (subpath, expected) in [
        ("in/side", Some("inside\n")),
        ("/absolute", Some("inside\n")),
        ("../../source/in/side", None),
        ("out", None),
        ("magic", None),
        ("none", None),
    ] {
        step.spec.mounts = vec![Mount { subpath: subpath.into(), ..bind("/m", &source) }];
        let ran = step.sh("cat /m/f");
        match expected {
            Some(text) => assert_eq!(ran.ok(), text),
            None => assert!(ran.error().starts_with("could not mount `"), "{subpath}"),
        }
    }
    // `..` stops at the source.
    step.spec.mounts = vec![Mount { subpath: "../../..".into(), ..bind("/m", &source) }];
    assert_eq!(step.sh("cat /m/in/side/f").ok(), "inside\n");
}

pub fn targets_behind_links() {
    let canary = tempfile::tempdir().unwrap();
    let mut step = Step::new();
    let source = step.subdir("source");
    std::fs::write(source.join("f"), "x\n").unwrap();
    symlink(canary.path(), step.upper().join("out")).unwrap();
    symlink("/tmp/real", step.upper().join("soft")).unwrap();
    step.spec.mounts = vec![bind("/out/deep", &source), bind("/soft", &source), bind("/../../up", &source)];
    assert_eq!(step.sh("cat /out/deep/f /tmp/real/f /up/f").ok(), "x\nx\nx\n");
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0, "C11: nothing was made on the host");
    assert_eq!(step.changes(), ["l out", "l soft"]);
}

pub fn targets_that_are_refused() {
    let mut step = Step::new();
    let source = step.subdir("source");
    std::fs::write(source.join("f"), "").unwrap();
    let rows = [
        ("/", "cannot mount on `/`: it has to be an absolute path below `/`"),
        ("relative", "cannot mount on `relative`: it has to be an absolute path below `/`"),
        ("/proc/sys", "cannot mount on `/proc/sys`: nothing can be mounted below `/proc`"),
        ("/x/../proc", "cannot mount on `/x/../proc`: nothing can be mounted below `/proc`"),
        ("/etc/passwd", "cannot mount on `/etc/passwd` in the image: it is not a directory"),
        ("/etc/passwd/x", "cannot mount on `/etc/passwd` in the image: not a directory"),
    ];
    for (target, expected) in rows {
        step.spec.mounts = vec![bind(target, &source)];
        assert_eq!(step.sh("true").error(), expected);
    }
    step.spec.mounts = vec![bind("/tmp", &source.join("f"))];
    assert_eq!(step.sh("true").error(), "cannot mount on `/tmp` in the image: it is a directory");
}

pub fn nothing_is_left_in_the_layer() {
    let mut step = Step::new();
    let source = step.subdir("source");
    std::fs::set_permissions(&source, PermissionsExt::from_mode(0o700)).unwrap();
    step.spec.mounts = vec![bind("/root/.cache/pip/deep", &source), bind("/root/.cache/pip/deep/er", &source)];
    step.sh("ls /root/.cache/pip/deep > /dev/null; stat -c '%a %u' /root/.cache").ok();
    assert_eq!(step.changes(), [""; 0]);
    // A parent that the command used as well stays, with what it put there.
    step.sh("echo x > /root/.cache/mine").ok();
    assert_eq!(step.changes(), ["- root/.cache/mine", "d root", "d root/.cache"]);
}
