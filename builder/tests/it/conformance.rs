//! Every case of `testdata/conformance` gives the same image as the BuildKit of Debian's `docker.io`.

use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::support::archive::Image;
use crate::support::case::{self, Case};
use crate::support::compare::{Rules, differences};
use crate::support::home::{Home, finish};
use crate::support::lab::{self, Dockerd};
use crate::support::skip::skipped;

/// All cases, or those whose name contains `KILN_CASE`. With `KILN_KEEP` set to a folder the archives of both sides
/// are kept there.
#[test]
fn every_case_is_what_buildkit_makes() {
    let dockerd = match lab::dockerd() {
        Ok(dockerd) => dockerd,
        Err(reason) => return skipped("conformance::every_case_is_what_buildkit_makes", reason),
    };
    let home = Home::new();
    report(|case, started| {
        let peer = buildkit(dockerd, case, "peer")?;
        let own = kiln(&home, case)?;
        Ok(differences(&own, &peer, &rules(case, started)))
    });
}

/// The comparer and the cases themselves: two builds by BuildKit, from nothing each, must not differ.
#[test]
#[ignore = "only tells whether the cases are deterministic; run it after changing one"]
fn cases_are_deterministic() {
    let dockerd = lab::dockerd().expect("dockerd");
    report(|case, started| {
        let (first, second) = (buildkit(dockerd, case, "first")?, buildkit(dockerd, case, "second")?);
        Ok(differences(&first, &second, &rules(case, started)))
    });
}

/// Two workers take the cases one by one; the test fails with all that any of them found.
fn report(check: impl Fn(&Case, SystemTime) -> Result<Vec<String>, String> + Sync) {
    let only = std::env::var("KILN_CASE").unwrap_or_default();
    let names: Vec<String> = case::names().into_iter().filter(|n| n.contains(&only)).collect();
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
                    let shown: Vec<String> = found.iter().take(25).map(|d| format!("    {d}")).collect();
                    let line = format!("{name}: {} differences\n{}", found.len(), shown.join("\n"));
                    failures.lock().expect("no worker panicked").push(line);
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no worker panicked");
    failures.sort();
    let failed = failures.len();
    assert!(failures.is_empty(), "{failed} of {} cases differ (kiln's != BuildKit's)\n{}", names.len(), failures.join("\n"));
    println!("{} cases, no difference", names.len());
}

fn rules(case: &Case, started: SystemTime) -> Rules {
    let seconds = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    Rules { built_after: seconds as i64, ignore: case.ignore.clone(), only_capabilities: true }
}

/// What `docker build` and `docker save` make of the case.
fn buildkit(dockerd: &Dockerd, case: &Case, side: &str) -> Result<Image, String> {
    let tag = format!("conformance/{}:{side}", case.name);
    let mut build = dockerd.docker();
    // Without a bridge there is only the host's network.
    build.args(["build", "--no-cache", "--network=host", "--progress=plain", "-t", &tag]);
    build.args(&case.args).arg(&case.context);
    let outcome = finish(&mut build);
    if !outcome.status.success() {
        return Err(format!("BuildKit can't build it:\n{}", tail(&outcome.stderr)));
    }
    let archive = case.folder.path().join(format!("{side}.tar"));
    let outcome = finish(dockerd.docker().arg("save").arg("-o").arg(&archive).arg(&tag));
    if !outcome.status.success() {
        return Err(format!("docker save: {}", outcome.stderr));
    }
    keep(case, side);
    Image::read(&archive)
}

/// What kiln makes of it.
fn kiln(home: &Home, case: &Case) -> Result<Image, String> {
    let archive = case.folder.path().join("kiln.tar");
    let mut args: Vec<OsString> = ["build", "--progress=plain", "--output"].map(OsString::from).to_vec();
    args.push(format!("type=docker,dest={}", archive.display()).into());
    args.extend(case.args.iter().map(OsString::from));
    args.push(case.context.clone().into());
    let outcome = home.run(args);
    if !outcome.status.success() {
        return Err(format!("kiln can't build it, {}:\n{}", outcome.status, tail(&outcome.stderr)));
    }
    keep(case, "kiln");
    Image::read(&archive)
}

fn keep(case: &Case, side: &str) {
    if let Some(folder) = std::env::var_os("KILN_KEEP") {
        let to = std::path::Path::new(&folder).join(format!("{}.{side}.tar", case.name));
        std::fs::copy(case.folder.path().join(format!("{side}.tar")), to).expect("KILN_KEEP is a folder");
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
