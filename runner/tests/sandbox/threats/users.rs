//! Users and groups that an image makes up.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::Step;

/// C17: an error or the number itself, whatever the passwd file says; never root.
pub fn c17_numbers_are_never_root() {
    let hostile = "root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n-1:x:0:0::/:/bin/sh\n4294967295:x:0:0::/:/bin/sh\n\
                   4294967296:x:0:0::/:/bin/sh\nwrap:x:4294967296:0::/:/bin/sh\nminus:x:-4294967296:0::/:/bin/sh\n\
                   blank:x::0::/:/bin/sh\nhex:x:0x0:0::/:/bin/sh\n";
    let out_of_range = "is out of range";
    let unknown = "unable to find user";
    let rows: &[(&str, Result<&str, &str>)] = &[
        ("1000", Ok("1000 0")),
        ("1000:1000", Ok("1000 1000")),
        ("4294967295", Err(out_of_range)),
        ("4294967296", Err(out_of_range)),
        ("2147483648", Err(out_of_range)),
        ("18446744073709551616", Err(out_of_range)),
        ("-1", Err(out_of_range)),
        ("+0x0", Err(unknown)),
        ("wrap", Err(unknown)),
        ("minus", Err(unknown)),
        ("blank", Err(unknown)),
        ("hex", Err(unknown)),
        ("1:4294967296", Err(out_of_range)),
        ("1:-1", Err(out_of_range)),
    ];
    for (user, expected) in rows {
        let mut step = Step::new().with(|spec| spec.user = (*user).into());
        std::fs::write(step.subdir("upper/etc").join("passwd"), hostile).unwrap();
        let ran = step.sh("echo $(id -u) $(id -g)");
        match expected {
            Ok(ids) => assert_eq!(ran.ok().trim(), *ids, "USER {user}"),
            Err(words) => {
                let error = ran.error();
                assert!(error.contains(words), "USER {user}: {error}");
            }
        }
    }
}

/// What a step takes, at best of three.
fn least(step: &mut Step) -> Duration {
    let one = |step: &mut Step| {
        let begin = Instant::now();
        let _ = step.sh("true");
        begin.elapsed()
    };
    (0..3).map(|_| one(step)).min().unwrap()
}

/// C18: a passwd and a group file of 1 GB cost less than 50 ms, and what lies behind the first megabyte is not seen.
pub fn c18_large_files_are_bounded() {
    let mut plain = Step::new().with(|spec| spec.user = "12".into());
    let mut step = Step::new().with(|spec| spec.user = "12".into());
    let etc = step.subdir("upper/etc");
    for name in ["passwd", "group"] {
        let line = if name == "passwd" { "u:x:5:5::/:/bin/sh\n" } else { "g:x:5:u\n" };
        let text = line.repeat((2 << 20) / line.len());
        std::fs::write(etc.join(name), &text).unwrap();
        std::fs::File::options().write(true).open(etc.join(name)).unwrap().set_len(1 << 30).unwrap();
    }
    // Whatever the machine is doing otherwise: the better of three pairs.
    let extra = (0..3).map(|_| least(&mut step).saturating_sub(least(&mut plain))).min().unwrap();
    assert!(extra < Duration::from_millis(50), "{extra:?}");
    let mut late = "x:x:5:5::/:/bin/sh\n".repeat((1 << 20) / 19 + 1);
    late.push_str("late:x:6:6::/:/bin/sh\n");
    std::fs::write(etc.join("passwd"), late).unwrap();
    step.spec.user = "late".into();
    assert!(step.sh("true").error().contains("unable to find user late"));
}

/// What to put in the place of a file.
type Maker = (&'static str, fn(&Path));

/// C19: both files as every kind of thing that can block or lead out; under a second.
pub fn c19_odd_files_end_at_once() {
    fn node(path: &Path, kind: rustix::fs::FileType, major: u32, minor: u32) {
        let device = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o666.into(), device) {
            // Only the machine's root makes devices; then a link to one has to do.
            Err(rustix::io::Errno::PERM) => symlink("/dev/zero", path).unwrap(),
            made => made.unwrap(),
        }
    }
    let makers: [Maker; 6] = [
        ("fifo", |path| node(path, rustix::fs::FileType::Fifo, 0, 0)),
        ("socket", |path| node(path, rustix::fs::FileType::Socket, 0, 0)),
        ("device", |path| node(path, rustix::fs::FileType::CharacterDevice, 1, 5)),
        ("terminal", |path| node(path, rustix::fs::FileType::CharacterDevice, 5, 0)),
        ("link to a fifo", |path| {
            node(&path.with_file_name("pipe"), rustix::fs::FileType::Fifo, 0, 0);
            symlink("pipe", path).unwrap();
        }),
        ("link to the host's", |path| symlink("../../../../../../../../../etc/shadow", path).unwrap()),
    ];
    for (what, make) in makers {
        for name in ["passwd", "group"] {
            let mut step = Step::new().with(|spec| spec.user = "root:daemon".into());
            let etc = step.subdir("upper/etc");
            make(&etc.join(name));
            let begin = Instant::now();
            let error = step.sh("id").error();
            assert!(error.starts_with("unable to find"), "{what} {name}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(1), "{what} {name}: {:?}", begin.elapsed());
        }
    }
}
