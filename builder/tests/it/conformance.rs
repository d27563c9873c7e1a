//! Every case of `testdata/conformance` gives the image that BuildKit makes of it.
//!
//! What BuildKit made is recorded in the case's `expected.txt`, by `make record`, which has a newer one (Debian sid's) at
//! hand. A few cases depend on what Debian serves today, and are built by the BuildKit of this machine beside kiln.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::support::archive::Image;
use crate::support::case::{self, Case};
use crate::support::compare::{self, Rules};
use crate::support::expected;
use crate::support::home::{Home, finish};
use crate::support::lab::{self, Dockerd};
use crate::support::skip::skipped;

/// All cases, or those whose name contains `KILN_CASE`, by the user of `KILN_TEST_MODE` (`rootless`, `one-id`) or by root. With `KILN_KEEP` set to a folder the archives are kept there.
#[test]
fn every_case_is_what_buildkit_makes() {
    let Some(home) = Home::in_mode("conformance::every_case_is_what_buildkit_makes") else { return };
    report(|case, started| {
        if let Some(reason) = apart(&case.name) {
            skipped(&format!("conformance::{}", case.name), reason);
            return Ok(Vec::new());
        }
        if case.live {
            return live(&home, case, started);
        }
        if let (Some(why), Ok("rootless")) = (&case.not_rootless, std::env::var("KILN_TEST_MODE").as_deref()) {
            skipped(&format!("conformance::{}", case.name), why);
            return Ok(Vec::new());
        }
        let Some(image) = kiln(&home, case)? else { return Ok(Vec::new()) };
        let path = case.expected();
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e} (make record writes it)", path.display()))?;
        let wanted: Vec<String> = text.lines().filter(|l| !l.starts_with("# ")).map(str::to_owned).collect();
        let found = expected::lines(&image, &case.replace, &case.ignore)?;
        Ok(expected::differences(&wanted, &found, 40))
    });
}

/// Writes `expected.txt` of the cases that `KILN_CASE` names, or of all, from the image that a newer BuildKit makes of each.
/// Nothing of kiln takes part.
#[test]
#[ignore = "writes testdata; make record runs it"]
fn record() {
    let (peer, name) = lab::newest();
    report(|case, _| {
        if case.live || case.by_hand.is_some() {
            return Ok(Vec::new());
        }
        let header = format!("# recorded from {name}\n");
        let text = match newest(&peer, case) {
            Ok(image) if case.fails.is_none() => expected::lines(&image, &case.replace, &case.ignore)?.join("\n") + "\n",
            Ok(_) => return Err("the peer builds it, but the case says that it fails".to_owned()),
            Err(said) if case.fails.is_some() => {
                let error = said.lines().rev().find(|l| l.starts_with("ERROR")).unwrap_or_default();
                let error = case.replace.iter().fold(error.to_owned(), |text, (found, written)| text.replace(found, written));
                format!("# the peer fails too: {}\n", steady(&error))
            }
            Err(said) => return Err(said),
        };
        std::fs::write(case.expected(), header + &text).map_err(|e| e.to_string())?;
        Ok(Vec::new())
    });
}

/// The peer's error without what is another word each time: names of its snapshots, and where it mounted them.
fn steady(error: &str) -> String {
    let word = |word: &str| match word.split_once("/cachemounts/") {
        Some((_, below)) => below.split_once('/').map_or("/", |(_, path)| path).to_owned(),
        None if word.contains("::") => "SNAPSHOT:".to_owned(),
        None => word.to_owned(),
    };
    error.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// What the BuildKit of this machine and kiln make of each case, compared path by path, whatever is recorded. Where an old one
/// agrees, too, `expected.txt` gets a line that says so. Many cases are of what it doesn't know yet, so this fails.
#[test]
#[ignore = "minutes; run it with KILN_CASE after changing a case"]
fn every_case_is_what_this_machines_buildkit_makes() {
    let home = Home::new();
    let dockerd = lab::dockerd().expect("Debian's docker.io");
    let version = finish(dockerd.docker().args(["version", "--format", "{{.Server.Version}}"])).stdout;
    let agrees = format!("# docker.io {} agrees", version.split('+').next().unwrap_or_default().trim());
    report(|case, started| {
        if case.fails.is_some() {
            return Ok(Vec::new());
        }
        let differences = live(&home, case, started)?;
        if let (true, Ok(text)) = (differences.is_empty(), std::fs::read_to_string(case.expected()))
            && let Some((header, rest)) = text.split_once('\n')
            && !rest.starts_with(&agrees)
        {
            std::fs::write(case.expected(), format!("{header}\n{agrees}\n{rest}")).map_err(|e| e.to_string())?;
        }
        Ok(differences)
    });
}

/// Why a case can't give BuildKit's image in the way that the variables of [`WAYS`](crate::support::home::WAYS) ask for.
fn apart(name: &str) -> Option<&'static str> {
    const LINKS: &str = "the names of a file stay together where there is no overlay to part them";
    const NETWORK: &str = "a network namespace can't be made";
    const READ_ONLY: &str = "nothing can be mounted read-only, or at all";
    const HOSTNAME: &str = "the host's name can't be changed";
    const PROC: &str = "there is no /proc of the processes, and so no /dev/fd";
    const TABLE: &[(&str, bool, &str)] = &[
        ("capabilities", false, LINKS),
        ("copy-hard-links", false, LINKS),
        ("hard-links", false, LINKS),
        ("metadata-only-changes", false, LINKS),
        ("arg-sandbox-hostname", true, HOSTNAME),
        ("run-hostname-argument", true, HOSTNAME),
        ("run-hosts-file", true, HOSTNAME),
        ("cli-network-none", true, NETWORK),
        ("network-host", true, NETWORK),
        ("network-none", true, NETWORK),
        ("network-none-secret", true, NETWORK),
        ("parser-flags-continued", true, NETWORK),
        ("cli-shm-size", true, READ_ONLY),
        ("heredoc-run-shebang-and-shell", true, READ_ONLY),
        ("mount-bind-empty-stage", true, READ_ONLY),
        ("mount-bind-read-only", true, READ_ONLY),
        ("mount-cache-read-only", true, READ_ONLY),
        ("mount-exec", true, READ_ONLY),
        ("mount-keys", true, READ_ONLY),
        ("mount-secret", true, READ_ONLY),
        ("mount-tmpfs", true, READ_ONLY),
        ("mounts-bind", true, READ_ONLY),
        ("run-dev", true, READ_ONLY),
        ("run-leftovers", true, READ_ONLY),
        ("mount-cache-shared-private", true, "one step at a time has a cache"),
        ("debian-packages", true, PROC),
        ("heredoc-blank-before-the-delimiter", true, PROC),
        ("heredoc-run-several", true, PROC),
        ("run-capabilities-user", true, PROC),
        ("run-proc-masked", true, PROC),
        ("run-processes", true, PROC),
        ("run-sandbox", true, PROC),
        ("run-signals", true, PROC),
    ];
    let is = |variable: &str, value: &str| std::env::var(variable).is_ok_and(|found| found == value);
    let chroot = is("KILN_TEST_ISOLATION", "chroot");
    let copies = chroot || is("KILN_TEST_SNAPSHOTS", "copy");
    let found = TABLE.iter().find(|(case, unmounted, _)| *case == name && if *unmounted { chroot } else { copies });
    found.map(|(.., reason)| *reason)
}

/// Two workers take the cases one by one; the test fails with all that any of them found.
fn report(check: impl Fn(&Case, SystemTime) -> Result<Vec<String>, String> + Sync) {
    let only = std::env::var("KILN_CASE").unwrap_or_default();
    let names: Vec<String> = case::names().into_iter().filter(|n| n.contains(&only)).collect();
    assert!(!names.is_empty(), "no case has {only:?} in its name");
    let started = SystemTime::now();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = case::prepare(name).and_then(|case| check(&case, started));
                    let found = match found {
                        Ok(differences) if differences.is_empty() => continue,
                        Ok(differences) => differences,
                        Err(error) => vec![error],
                    };
                    let shown: Vec<String> = found.iter().take(40).map(|d| format!("    {d}")).collect();
                    let line = format!("{name}:\n{}", shown.join("\n"));
                    failures.lock().expect("no worker panicked").push(line);
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no worker panicked");
    failures.sort();
    let failed = failures.len();
    assert!(failures.is_empty(), "{failed} of {} cases differ (-: BuildKit's, +: kiln's)\n{}", names.len(), failures.join("\n"));
    println!("{} cases, no difference", names.len());
}

/// kiln's image held against that of Debian 12's BuildKit, path by path.
fn live(home: &Home, case: &Case, started: SystemTime) -> Result<Vec<String>, String> {
    let dockerd = match lab::dockerd() {
        Ok(dockerd) => dockerd,
        Err(reason) => {
            skipped(&format!("conformance::{}", case.name), reason);
            return Ok(Vec::new());
        }
    };
    let peer = debian(dockerd, case)?;
    let Some(own) = kiln(home, case)? else { return Ok(Vec::new()) };
    let seconds = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let rules = Rules { built_after: seconds as i64, ignore: case.ignore.clone(), only_capabilities: true };
    Ok(compare::differences(&own, &peer, &rules))
}

/// What `docker build` and `docker save` of Debian 12 make of the case.
fn debian(dockerd: &Dockerd, case: &Case) -> Result<Image, String> {
    let tag = format!("conformance/{}:peer", case.name);
    let mut build = dockerd.docker();
    // Without a bridge there is only the host's network.
    build.args(["build", "--no-cache", "--network=host", "--progress=plain", "-t", &tag]);
    build.args(&case.args).arg(&case.context);
    let outcome = finish(&mut build);
    if !outcome.status.success() {
        return Err(format!("BuildKit can't build it:\n{}", tail(&outcome.stderr)));
    }
    let archive = case.folder.path().join("peer.tar");
    let outcome = finish(dockerd.docker().arg("save").arg("-o").arg(&archive).arg(&tag));
    if !outcome.status.success() {
        return Err(format!("docker save: {}", outcome.stderr));
    }
    keep(case, "peer");
    Image::read(&archive)
}

/// What a newer BuildKit makes of the case, by its own exporter.
fn newest(client: &Path, case: &Case) -> Result<Image, String> {
    let archive = case.folder.path().join("peer.tar");
    let mut build = Command::new(client);
    build.args(["buildx", "build", "--no-cache", "--network=host", "--progress=plain", "--provenance=false", "--output"]);
    build.arg(format!("type=oci,dest={}", archive.display())).args(&case.args).arg(&case.context).stdin(Stdio::null());
    let outcome = finish(&mut build);
    if !outcome.status.success() {
        return Err(format!("BuildKit can't build it:\n{}", tail(&outcome.stderr)));
    }
    keep(case, "peer");
    Image::read(&archive)
}

/// What kiln makes of it; nothing when it must fail, and did as it should.
fn kiln(home: &Home, case: &Case) -> Result<Option<Image>, String> {
    let archive = case.folder.path().join("kiln.tar");
    let mut args: Vec<OsString> = ["build", "--progress=plain", "--output"].map(OsString::from).to_vec();
    args.push(format!("type=oci,dest={}", archive.display()).into());
    args.extend(case.args.iter().map(OsString::from));
    args.push(case.context.clone().into());
    home.adopt(case.folder.path());
    let outcome = home.run(args);
    match (&case.fails, outcome.status.success()) {
        (None, true) => {}
        (None, false) => return Err(format!("kiln can't build it, {}:\n{}", outcome.status, tail(&outcome.stderr))),
        (Some(_), true) => return Err("kiln builds it, but the case says that it fails".to_owned()),
        (Some(said), false) if outcome.stderr.contains(said) => return Ok(None),
        (Some(said), false) => return Err(format!("kiln's error doesn't say {said:?}:\n{}", tail(&outcome.stderr))),
    }
    keep(case, "kiln");
    Image::read(&archive).map(Some)
}

fn keep(case: &Case, side: &str) {
    if let Some(folder) = std::env::var_os("KILN_KEEP") {
        let to = Path::new(&folder).join(format!("{}.{side}.tar", case.name));
        std::fs::copy(case.folder.path().join(format!("{side}.tar")), to).expect("KILN_KEEP is a folder");
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
