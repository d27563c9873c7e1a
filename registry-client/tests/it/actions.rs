//! The cache of GitHub Actions, against a server of the tests' own (testdata/tools/actions_cache.py says what it is like).

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_registry_client::actions_cache::{ActionsCache, ActionsCacheOptions};
use kiln_registry_client::{Options, Result};

use crate::cutter::Cutter;
use crate::serving::Serving;
use crate::{client, content, layer, quick};

struct Service {
    serving: Serving,
    said: serde_json::Value,
}

impl Service {
    fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/tools/actions_cache.py");
        let serving = Serving::start(&["python3"], |_, port| {
            let mut command = Command::new("python3");
            command.arg(&script).arg("serve").arg(port.to_string());
            command
        })?;
        let started = Instant::now();
        loop {
            let text = fs::read_to_string(serving.folder().join("output")).unwrap();
            if let Ok(said) = serde_json::from_str(&text) {
                return Some(Self { serving, said });
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn token(&self, name: &str) -> String {
        self.said[name].as_str().unwrap().to_owned()
    }

    fn cache(&self, is_v2: bool, token: &str) -> ActionsCache {
        self.cache_at(&self.serving.host(), is_v2, token, quick())
    }

    fn cache_at(&self, host: &str, is_v2: bool, token: &str, options: Options) -> ActionsCache {
        let options_of = ActionsCacheOptions {
            url: format!("http://{host}"),
            token: self.token(token),
            is_v2,
            timeout: Duration::from_secs(5),
        };
        ActionsCache::new(&Arc::new(client(options)), &options_of).unwrap()
    }

    /// Has the service answer 429 for a while.
    fn refuse(&self, times: u32, after: &str) {
        let url = format!("http://{}/refuse?times={times}&after={after}", self.serving.host());
        let asked = format!("import urllib.request as r; r.urlopen(r.Request('{url}', method='POST'))");
        assert!(Command::new("python3").args(["-c", &asked]).status().unwrap().success());
    }
}

fn save(cache: &ActionsCache, key: &str, bytes: &[u8]) -> Result<bool> {
    let open = |from: u64| Ok(Box::new(Cursor::new(bytes[from as usize..].to_vec())) as Box<dyn Read + Send>);
    cache.save(key, bytes.len() as u64, &open, &|_| {})
}

fn fetch(cache: &ActionsCache, key: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut sink = Vec::new();
    cache.fetch(key, &layer(bytes), &mut sink, &|_| {}).map(|()| sink)
}

#[test]
fn entries_of_both_versions() {
    let Some(service) = Service::start() else { return };
    for is_v2 in [false, true] {
        let (cache, name) = (service.cache(is_v2, "branch"), format!("v{is_v2}"));
        for size in [0, 5000, (70 << 20) + 3] {
            let (bytes, key) = (content(size), format!("{name}-blob-sha256:{size}!"));
            assert!(cache.find(&key).unwrap().is_none());
            assert!(fetch(&cache, &key, &bytes).unwrap_err().is_not_found());
            assert!(save(&cache, &key, &bytes).unwrap(), "{key}");
            assert!(!save(&cache, &key, b"other").unwrap(), "an entry can't be changed");
            assert!(fetch(&cache, &key, &bytes).unwrap() == bytes, "{key}");
        }
        let error = fetch(&cache, &format!("{name}-blob-sha256:5000!"), b"something else").unwrap_err();
        assert!(error.to_string().contains("mismatch"), "{error}");
        // The youngest of the numbered keys counts; a number that somebody reserved and never wrote is left out.
        let key = format!("index-{name}");
        for text in ["one", "two", "three"] {
            cache.replace(&key, text.as_bytes()).unwrap();
            let entry = cache.find(&key).unwrap().unwrap();
            assert_eq!(cache.read(&entry, 100).unwrap(), text.as_bytes());
        }
        assert_eq!(cache.find(&key).unwrap().unwrap().key, format!("{key}#3"));
        let open = |_: u64| Err(std::io::Error::other("the source is gone"));
        let error = cache.save(&format!("{key}#4"), 10, &open, &|_| {}).unwrap_err();
        assert!(error.to_string().contains("the source is gone"), "{error}");
        cache.replace(&key, b"five").unwrap();
        assert_eq!(cache.find(&key).unwrap().unwrap().key, format!("{key}#5"));
    }
}

/// A branch sees what the branch that it came from has, and not the other way round.
#[test]
fn branches_and_rights() {
    let Some(service) = Service::start() else { return };
    for is_v2 in [false, true] {
        let name = |what: &str| format!("{what}-{is_v2}");
        let [branch, main, reader] = ["branch", "main", "reader"].map(|token| service.cache(is_v2, token));
        assert!(save(&main, &name("of-main"), b"x").unwrap());
        assert!(save(&branch, &name("of-branch"), b"x").unwrap());
        assert!(branch.find(&name("of-main")).unwrap().is_some());
        assert!(main.find(&name("of-branch")).unwrap().is_none());
        assert!(reader.find(&name("of-main")).unwrap().is_some());
        let error = save(&reader, &name("more"), b"x").unwrap_err();
        assert!(error.to_string().contains("403 Forbidden (permission_denied: the token may not write)"), "{error}");
        let scopes: Vec<_> = branch.scopes().iter().map(|scope| (scope.name.as_str(), scope.permission)).collect();
        assert_eq!(scopes, [("refs/heads/feature", 3), ("refs/heads/main", 1)]);
    }
    let mut forged = service.token("main");
    forged.replace_range(forged.len() - 4.., "AAAA");
    let options = ActionsCacheOptions {
        url: format!("http://{}", service.serving.host()),
        token: forged.clone(),
        is_v2: true,
        timeout: Duration::ZERO,
    };
    let cache = ActionsCache::new(&Arc::new(client(quick())), &options).unwrap();
    let error = cache.find("a").unwrap_err();
    assert!(
        error.to_string().contains("401") && error.hint().is_some_and(|hint| hint.contains("ACTIONS_RUNTIME_TOKEN")),
        "{error}"
    );
    assert!(!format!("{error:?} {cache:?} {options:?}").contains(&forged));
    let nonsense = ActionsCacheOptions { token: "x".to_owned(), ..options };
    assert!(ActionsCache::new(&Arc::new(client(quick())), &nonsense).unwrap_err().to_string().contains("names no scopes"));
}

#[test]
fn patience_with_the_service() {
    let Some(service) = Service::start() else { return };
    let cache = service.cache(true, "main");
    let started = Instant::now();
    service.refuse(2, "1");
    assert!(save(&cache, "a", b"x").unwrap());
    assert!(started.elapsed() >= Duration::from_secs(2));
    service.refuse(1000, "3600");
    let error = cache.find("a").unwrap_err().to_string();
    assert!(error.contains("too many requests") && error.contains("exceeding usage"), "{error}");
    service.refuse(0, "");
    // Half of the entry comes, again and again; the rest is asked for by range, at a fresh address.
    let bytes = content(8 << 20);
    assert!(save(&cache, "large", &bytes).unwrap());
    let line = Cutter::start(&service.serving.host(), 3 << 20, 2);
    let through = service.cache_at(&line.host(), true, "main", quick());
    assert!(fetch(&through, "large", &bytes).unwrap() == bytes);
    assert_eq!(line.cuts(), 2);
    assert!(line.moved() < 9 << 20, "{}", line.moved());
}
