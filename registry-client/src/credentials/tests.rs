//! Real files and real helper programs (shell scripts).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::helper::Helper;
use super::{CredentialError, CredentialStore, Credentials, Kept};

fn password(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() })
}

fn token(token: &str) -> Option<Credentials> {
    Some(Credentials::IdentityToken(token.to_owned()))
}

/// Written by another process: while this one has a file open for writing, a fork in some other test's thread would inherit it,
/// and the kernel starts no program that is open for writing (`ETXTBSY`).
fn script(path: &Path, body: &str) {
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let status = std::process::Command::new("sh").arg("-c").arg(write).arg(path).arg(body).status().unwrap();
    assert!(status.success());
}

#[test]
fn inline_credentials_by_registry() {
    // `dTpw` is `u:p`, `dTpwOng=` is `u:p:x`, `dTpwAAAA` is `u:p` and three zero bytes.
    let rows: &[(&str, &str, Option<Credentials>)] = &[
        (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#, "docker.io", password("u", "p")),
        (r#"{"auths":{"docker.io":{"auth":"dTpw"}}}"#, "docker.io", password("u", "p")),
        (r#"{"auths":{"registry-1.docker.io":{"auth":"dTpw"}}}"#, "docker.io", password("u", "p")),
        (r#"{"auths":{"ghcr.io":{"auth":"dTpwOng="}}}"#, "ghcr.io", password("u", "p:x")),
        (r#"{"auths":{"ghcr.io":{"auth":"dTpwAAAA"}}}"#, "ghcr.io", password("u", "p")),
        (r#"{"auths":{"https://ghcr.io/v2/":{"auth":"dTpw"}}}"#, "ghcr.io", password("u", "p")),
        (r#"{"auths":{"ghcr.io":{"username":"a","password":"b"}}}"#, "ghcr.io", password("a", "b")),
        (r#"{"auths":{"x.io":{"auth":"dTpw","identitytoken":"t"}}}"#, "x.io", token("t")),
        (r#"{"auths":{"x.io":{"registrytoken":"t"}}}"#, "x.io", Some(Credentials::RegistryToken("t".to_owned()))),
        // C73: no other host's credentials, however alike.
        (r#"{"auths":{"ghcr.io":{"auth":"dTpw"}}}"#, "docker.io", None),
        (r#"{"auths":{"ghcr.io":{"auth":"dTpw"}}}"#, "ghcr.io:8443", None),
        (r#"{"auths":{"ghcr.io:8443":{"auth":"dTpw"}}}"#, "ghcr.io", None),
        (r#"{"auths":{"ghcr.io/some/path":{"auth":"dTpw"}}}"#, "ghcr.io", None),
        (r#"{"auths":{"evil-ghcr.io":{"auth":"dTpw"}}}"#, "ghcr.io", None),
        (r#"{"auths":{"ghcr.io":{}}}"#, "ghcr.io", None),
        (r#"{"HttpHeaders":{}}"#, "ghcr.io", None),
        ("", "ghcr.io", None),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    for (text, registry, expected) in rows {
        fs::write(&file, text).unwrap();
        let found = CredentialStore::from_docker_config(&file).lookup(registry).unwrap();
        assert_eq!(found, *expected, "{text} for {registry}");
    }
    for text in ["[]", "{", r#"{"auths":{"ghcr.io":{"auth":"!"}}}"#, r#"{"auths":{"ghcr.io":{"auth":"dQ=="}}}"#] {
        fs::write(&file, text).unwrap();
        let error = CredentialStore::from_docker_config(&file).lookup("ghcr.io").unwrap_err();
        assert!(matches!(error, CredentialError::Malformed { .. }), "{text}: {error}");
    }
    assert_eq!(CredentialStore::from_docker_config(folder.path().join("none")).lookup("ghcr.io").unwrap(), None);
    assert_eq!(CredentialStore::anonymous().lookup("ghcr.io").unwrap(), None);
}

/// Podman's keys may have a path; the most specific wins, then the first file.
#[test]
fn credentials_by_repository() {
    // `dTpw` is `u:p`, `YTpi` `a:b`, `Yzpk` `c:d`.
    let docker = r#"{"auths":{"x.io":{"auth":"dTpw"},"y.io":{"auth":"dTpw"},"x.io/team/app":{"auth":"YTpi"}}}"#;
    let podman = r#"{"auths":{"x.io/team":{"auth":"Yzpk"},"x.io":{"auth":"Yzpk"},"z.io":{"auth":"Yzpk"},
        "docker.io/library/busybox":{"auth":"Yzpk"},"w.io/":{"auth":"Yzpk"}}}"#;
    let folder = tempfile::tempdir().unwrap();
    let files = [folder.path().join("config.json"), folder.path().join("none"), folder.path().join("auth.json")];
    fs::write(&files[0], docker).unwrap();
    fs::write(&files[2], podman).unwrap();
    let store = CredentialStore::from_files(files.clone());
    let rows = [
        ("x.io", "team/app", password("a", "b")),
        ("x.io", "team/app/deep", password("a", "b")),
        ("x.io", "team/other", password("c", "d")),
        ("x.io", "teams", None),
        ("x.io", "teams/app", None),
        ("y.io", "team/app", None),
        ("docker.io", "library/busybox", password("c", "d")),
        ("x.io:443", "team/app", None),
    ];
    for (registry, path, expected) in rows {
        assert_eq!(store.lookup_repository(registry, path).unwrap(), expected, "{registry}/{path}");
    }
    for (registry, expected, file) in [("x.io", "u", 0), ("y.io", "u", 0), ("z.io", "c", 2)] {
        let (found, path) = store.find(registry).unwrap().unwrap();
        assert!(matches!(&found, Credentials::Password { username, .. } if username == expected), "{registry}: {found:?}");
        assert_eq!(path, files[file], "{registry}");
    }
    // Logins change the first file alone.
    store.store("z.io", &password("u", "p").unwrap()).unwrap();
    assert!(store.erase("z.io").unwrap());
    assert_eq!(store.find("z.io").unwrap().unwrap().1, files[2]);
    assert_eq!(fs::read_to_string(&files[2]).unwrap(), podman);
    // A broken file isn't passed over for the next one.
    fs::write(&files[0], "{oops").unwrap();
    assert!(store.find("z.io").is_err() && store.lookup_repository("x.io", "team").is_err());
}

#[test]
fn login_and_logout_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new/.docker/config.json");
    let store = CredentialStore::from_docker_config(&file);
    let user = password("user", "päss:word").unwrap();
    assert!(!store.erase("ghcr.io").unwrap());
    assert_eq!(store.store("ghcr.io", &user).unwrap(), Kept::File(file.clone()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);

    // What others keep in the file stays, in its order; the mode is tightened.
    fs::write(&file, r#"{"z":1,"auths":{"a.io":{"auth":"dTpw"}},"currentContext":"x"}"#).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    store.store("docker.io", &user).unwrap();
    store.store("b.io", &Credentials::IdentityToken("t".to_owned())).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.find("\"z\"") < text.find("\"auths\"") && text.find("\"auths\"") < text.find("currentContext"), "{text}");
    assert!(text.contains("\t\t\"https://index.docker.io/v1/\""), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(store.lookup("docker.io").unwrap(), Some(user));
    assert_eq!(store.lookup("b.io").unwrap(), token("t"));
    assert_eq!(store.lookup("a.io").unwrap(), password("u", "p"));
    assert!(store.erase("docker.io").unwrap());
    assert!(!store.erase("docker.io").unwrap());
    assert_eq!(store.lookup("docker.io").unwrap(), None);
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");

    // A broken file is not overwritten.
    fs::write(&file, "{oops").unwrap();
    assert!(store.store("c.io", &password("u", "p").unwrap()).is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "{oops");
}

#[test]
fn two_logins_at_once_both_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = CredentialStore::from_docker_config(folder.path().join("config.json"));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let store = &store;
            scope.spawn(move || store.store(&format!("r{number}.io"), &password("u", "p").unwrap()).unwrap());
        }
    });
    for number in 0..8 {
        assert!(store.lookup(&format!("r{number}.io")).unwrap().is_some(), "r{number}.io");
    }
}

/// A helper given by its full path, so that the test needn't change `PATH`.
fn helper(folder: &Path, body: &str) -> Helper<'static> {
    let program = folder.join("docker-credential-test");
    script(&program, body);
    let mut helper = Helper::new("test", Path::new("config.json"));
    helper.program = program.display().to_string();
    helper.limit = Duration::from_secs(1);
    helper
}

/// C73: a helper that doesn't work ends the request; nothing is sent, and least of all to another host.
#[test]
fn helpers_answer_or_end_the_request() {
    let folder = tempfile::tempdir().unwrap();
    let rows: &[(&str, Result<Option<Credentials>, &str>)] = &[
        (
            r#"read s; [ "$1 $s" = "get x.io" ] && echo '{"ServerURL":"x.io","Username":"u","Secret":"p"}'"#,
            Ok(password("u", "p")),
        ),
        (r#"cat >&2; echo '{"Username":"<token>","Secret":"t"}'"#, Ok(token("t"))),
        (r#"echo '{"Username":"","Secret":""}'"#, Ok(None)),
        ("echo 'credentials not found in native keychain'; exit 1", Ok(None)),
        ("echo 'the keychain is locked'; exit 1", Err("the keychain is locked")),
        ("exit 3", Err("exit status: 3")),
        ("kill -9 $$", Err("signal: 9")),
        ("echo Secret=hunter2", Err("not a JSON object")),
        ("exec sleep 30", Err("no answer within")),
        ("exec >&-; exec sleep 30", Err("no answer within")),
        ("sleep 30 & wait", Err("no answer within")),
    ];
    for (body, expected) in rows {
        let started = Instant::now();
        match (helper(folder.path(), body).get("x.io"), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, *expected, "{body}"),
            (Err(error), Err(words)) => {
                assert!(error.to_string().contains(words), "{body}: {error}");
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
            (found, _) => panic!("{body}: {found:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{body}");
    }
    let file = folder.path().join("config.json");
    fs::write(&file, r#"{"credHelpers":{"x.io":"surely-not-installed"},"auths":{"x.io":{"auth":"dTpw"}}}"#).unwrap();
    let store = CredentialStore::from_docker_config(&file);
    let error = store.lookup("x.io").unwrap_err();
    assert!(matches!(error, CredentialError::HelperMissing { .. }), "{error}");
    assert!(error.hint().unwrap().contains("docker-credential-surely-not-installed"));
    assert_eq!(store.lookup("y.io").unwrap(), None);
    fs::write(&file, r#"{"credsStore":"surely-not-installed"}"#).unwrap();
    assert!(store.lookup("y.io").is_err());
}

#[test]
fn helpers_keep_and_forget() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let body = format!("case $1 in store) cat > {0};; erase) rm {0};; esac", kept.display());
    let helper = helper(folder.path(), &body);
    helper.store("x.io", &password("u", "p").unwrap()).unwrap();
    assert_eq!(fs::read_to_string(&kept).unwrap(), r#"{"ServerURL":"x.io","Username":"u","Secret":"p"}"#);
    helper.erase("x.io").unwrap();
    assert!(!kept.exists());
    assert!(helper.erase("x.io").is_err());
}
