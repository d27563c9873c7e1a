//! A token service as distribution's `spec/auth` describes it, with tokens that a real registry checks the signature of.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use tempfile::TempDir;

use crate::registry_process::{Kind, Registry, openssl};
use crate::scripted::{Reply, Request, Server};
use crate::serving::on_path;

/// Who the service knows: a password, and the actions on each repository (`*` is any).
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) password: &'static str,
    pub(crate) rights: &'static [(&'static str, &'static [&'static str])],
}

/// The service and its registry.
pub(crate) struct TokenServer {
    pub(crate) server: Server,
    pub(crate) registry: Registry,
    state: Arc<State>,
}

struct State {
    folder: TempDir,
    certificate: String,
    users: BTreeMap<&'static str, User>,
    /// Seconds that tokens still live when they are handed out, whatever the answer says.
    life: AtomicI64,
    count: AtomicUsize,
    /// The refresh tokens that may be used, with their user.
    refresh: Mutex<BTreeMap<String, &'static str>>,
}

impl TokenServer {
    /// Starts both; `None` when this machine can't.
    pub(crate) fn start(users: &[(&'static str, User)]) -> Option<Self> {
        if !on_path("openssl") {
            eprintln!("skipped: {}: `openssl` is not installed", std::thread::current().name().unwrap_or_default());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let make = [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=tokens",
            "-keyout",
            "key",
            "-out",
            "crt",
        ];
        openssl(folder.path(), &make);
        let pem = std::fs::read_to_string(folder.path().join("crt")).unwrap();
        let certificate = pem.lines().filter(|line| !line.starts_with("--")).collect();
        let state = Arc::new(State {
            certificate,
            users: users.iter().cloned().collect(),
            life: AtomicI64::new(300),
            count: AtomicUsize::new(0),
            refresh: Mutex::new(users.iter().map(|(name, _)| (format!("refresh-{name}"), *name)).collect()),
            folder,
        });
        let own = state.clone();
        let server = Server::start(move |request| own.answer(request));
        let bundle = state.folder.path().join("crt");
        let auth = format!(
            "auth:\n  token:\n    realm: {}\n    service: the-registry\n    issuer: kiln-tests\n    rootcertbundle: {}\n",
            server.url("/token"),
            bundle.display()
        );
        let registry = Registry::start_with(Kind::Plain, &auth)?;
        Some(Self { server, registry, state })
    }

    /// How long tokens live from now on. A registry takes them for a minute more.
    pub(crate) fn set_life(&self, seconds: i64) {
        self.state.life.store(seconds, Ordering::Relaxed);
    }
}

impl State {
    fn answer(&self, request: &Request) -> Reply {
        let (query, form) =
            (request.target.split_once('?').map_or("", |(_, query)| query), String::from_utf8_lossy(&request.body));
        let text = if request.method == "POST" { &form } else { query };
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        let get = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        if get("service") != Some("the-registry") {
            return Reply::new(400).body("which service?");
        }
        let user = if request.method == "POST" {
            let refresh = self.refresh.lock().unwrap();
            match get("refresh_token").and_then(|token| refresh.get(token)) {
                Some(user) => Some(*user),
                None => return Reply::new(401).body("no such refresh token"),
            }
        } else if let Some(basic) = request.header("authorization").and_then(|value| value.strip_prefix("Basic ")) {
            let text = String::from_utf8(BASE64_STANDARD.decode(basic).unwrap()).unwrap();
            let (name, password) = text.split_once(':').unwrap();
            match self.users.iter().find(|(known, user)| **known == name && user.password == password) {
                Some((name, _)) => Some(*name),
                None => return Reply::new(401).body("incorrect username or password"),
            }
        } else {
            None
        };
        let mut access = Vec::new();
        for scope in pairs.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' ')) {
            let [kind, name, actions] = scope.split(':').collect::<Vec<_>>()[..] else { continue };
            let rights = user.map_or(&[][..], |user| self.users[user].rights);
            let allowed: Vec<&str> = actions
                .split(',')
                .filter(|action| rights.iter().any(|(path, may)| (*path == "*" || *path == name) && may.contains(action)))
                .collect();
            access.push(serde_json::json!({ "type": kind, "name": name, "actions": allowed }));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let header = serde_json::json!({ "typ": "JWT", "alg": "RS256", "x5c": [self.certificate] });
        let claims = serde_json::json!({
            "iss": "kiln-tests", "sub": user.unwrap_or_default(), "aud": "the-registry", "iat": now - 600, "nbf": now - 600,
            "exp": now + self.life.load(Ordering::Relaxed), "jti": self.count.fetch_add(1, Ordering::Relaxed).to_string(),
            "access": access,
        });
        let token = self.signed(&header, &claims);
        // The answer promises an hour, so that it takes a 401 to find out that a token is no longer good.
        Reply::new(200).body(serde_json::json!({ "token": token, "access_token": token, "expires_in": 3600 }).to_string())
    }

    fn signed(&self, header: &serde_json::Value, claims: &serde_json::Value) -> String {
        let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let mut child = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign", "key"])
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let signature = child.wait_with_output().unwrap().stdout;
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}
