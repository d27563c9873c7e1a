//! What the image says: users, working directory, and things in the place of mount points.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use crate::support::Step;

/// The kernel sorts supplementary groups.
pub fn users() {
    let rows: &[(&str, &str)] = &[
        ("", "0 0 0 10"),
        ("root", "0 0 0 10"),
        ("bob", "1000 1001 10 50 1001"),
        ("1000", "1000 1001 10 50 1001"),
        ("bob:staff", "1000 50 50"),
        ("33", "33 0 0"),
        ("33:44", "33 44 44"),
    ];
    for (user, expected) in rows {
        let out = Step::new()
            .with(|spec| spec.user = (*user).into())
            .sh("id -u; id -g; sed -n 's/^Groups://p' /proc/self/status | tr -s ' \\t' '\\n' | sort -n")
            .ok();
        assert_eq!(out.split_whitespace().collect::<Vec<_>>().join(" "), *expected, "USER {user}");
    }
}

pub fn unknown_users() {
    let rows = [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("bob:none", "unable to find group none: no matching entries in group file"),
        ("4294967295", "user or group id 4294967295 is out of range, 0 to 2147483647 are possible"),
        ("-1", "user or group id -1 is out of range, 0 to 2147483647 are possible"),
    ];
    for (user, expected) in rows {
        assert_eq!(Step::new().with(|spec| spec.user = user.into()).sh("id").error(), expected);
    }
}

/// What to put in the place of a passwd file.
type Maker<'a> = (&'a str, &'a dyn Fn(&Path));

/// C18, C19: a passwd file that is something else ends at once.
pub fn hostile_passwd_files() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "spy:x:0:0::/spy:/bin/sh\n").unwrap();
    let fifo = |path: &Path| rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let outside = |path: &Path| symlink(secret.path(), path).unwrap();
    let endless = |path: &Path| symlink("/dev/zero", path).unwrap();
    let magic = |path: &Path| symlink("/proc/self/fd/0", path).unwrap();
    let directory = |path: &Path| std::fs::create_dir(path).unwrap();
    let looping = |path: &Path| symlink("passwd", path).unwrap();
    let large = |path: &Path| std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    let makers: [Maker<'_>; 7] = [
        ("fifo", &fifo),
        ("a link to a host file", &outside),
        ("a link to an endless device", &endless),
        ("a magic link", &magic),
        ("a directory", &directory),
        ("a loop", &looping),
        ("a file of a terabyte", &large),
    ];
    for (what, make) in makers {
        let mut step = Step::new();
        let etc = step.subdir("upper/etc");
        make(&etc.join("passwd"));
        let begin = Instant::now();
        step.spec.user = "spy".into();
        assert_eq!(step.sh("id").error(), "unable to find user spy: no matching entries in passwd file", "{what}");
        step.spec.user = "1234".into();
        assert_eq!(step.sh("echo $HOME").ok(), "/\n", "{what}");
        assert!(begin.elapsed().as_secs_f64() < 2.0, "{what}");
    }
}

pub fn working_directories() {
    let rows = [
        ("/", "/"),
        ("/home/bob", "/home/bob"),
        ("/new/deep/dir", "/new/deep/dir"),
        ("/home/../tmp/.", "/tmp"),
        ("/link", "/home/bob"),
    ];
    for (cwd, expected) in rows {
        let mut step = Step::new().with(|spec| spec.cwd = cwd.into());
        symlink("/home/bob", step.upper().join("link")).unwrap();
        assert_eq!(step.args(&["pwd"]).ok(), format!("{expected}\n"));
    }
    // A directory that only root may enter, as another user.
    let out = Step::new().with(|spec| (spec.user, spec.cwd) = ("bob".into(), "/root".into())).sh("pwd; ls");
    assert!(out.out.starts_with("/root\n") && out.err.contains("Permission denied"), "{out:?}");
    let mut step = Step::new().with(|spec| spec.cwd = "/made/here".into());
    assert_eq!(step.sh("stat -c '%a %u:%g' /made /made/here").ok(), "755 0:0\n755 0:0\n");
    assert!(step.changes().contains(&"d made/here".to_owned()), "a working directory is part of the layer");
}

/// C01 (CVE-2024-21626): no descriptor of kiln's can be entered.
pub fn forbidden_working_directories() {
    for number in (0..24).chain([63, 255, 1023]) {
        for cwd in [format!("/proc/self/fd/{number}"), format!("/proc/1/fd/{number}"), format!("/proc/self/fd/{number}/../..")] {
            let error = Step::new().with(|spec| spec.cwd = cwd.clone().into()).sh("pwd; ls").error();
            assert!(error.starts_with(&format!("cannot use `{cwd}` as the working directory: ")), "{error}");
        }
    }
    let mut step = Step::new().with(|spec| spec.cwd = "/link".into());
    symlink("/proc/self/fd/7", step.upper().join("link")).unwrap();
    assert!(step.sh("pwd").error().starts_with("cannot use `/link` as the working directory: "));
    let mut step = Step::new().with(|spec| spec.cwd = "/etc/passwd".into());
    assert_eq!(step.sh("pwd").error(), "cannot use `/etc/passwd` as the working directory: Not a directory (os error 20)");
}

/// C08, C10, C12: the standard places are real directories, or there is a clear error and the host is as it was.
pub fn standard_places_that_are_no_directories() {
    let canary = tempfile::tempdir().unwrap();
    for place in ["proc", "dev", "sys"] {
        for (kind, reason) in
            [("link", "it is a symbolic link"), ("file", "it is not a directory"), ("dangling", "it is a symbolic link")]
        {
            let mut step = Step::new();
            let path = step.upper().join(place);
            match kind {
                "link" => symlink(canary.path(), &path).unwrap(),
                "dangling" => symlink("/nowhere/at/all", &path).unwrap(),
                _ => std::fs::write(&path, "").unwrap(),
            }
            assert_eq!(step.sh("true").error(), format!("cannot mount on `/{place}` in the image: {reason}"), "{kind}");
        }
    }
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0, "nothing was made outside");
    // /etc/hosts as something that a file can't be mounted on.
    for (name, reason) in [("hosts", "it is a directory"), ("resolv.conf", "it is a directory")] {
        let mut step = Step::new();
        step.subdir(&format!("upper/etc/{name}"));
        assert_eq!(step.sh("true").error(), format!("cannot mount on `/etc/{name}` in the image: {reason}"));
    }
    // /etc itself as a link that leads outside, or in a loop: it is followed inside the root.
    for (target, expected) in [("/../../../x", "ok"), ("etc", "cannot mount on `/etc` in the image: too many symbolic links")] {
        let dir = tempfile::tempdir().unwrap();
        let busybox = crate::support::base().join("bin");
        std::os::unix::fs::symlink(target, dir.path().join("etc")).unwrap();
        let root = kiln_runner::RootFs::Dir(dir.path().to_owned());
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let mut step = Step::new().with(|spec| {
            spec.root = root;
            spec.mounts.push(kiln_runner::Mount {
                target: "/bin".into(),
                source: kiln_runner::MountSource::Bind { path: busybox },
                subpath: "".into(),
                readonly: true,
            });
        });
        let ran = step.sh("test -e /etc/hosts && echo ok");
        let seen = if ran.result.is_ok() { ran.ok().trim().to_owned() } else { ran.error() };
        assert_eq!(seen, expected);
    }
}
