//! Transfers over lines that break, and uploads to registries that take them in their own ways (F16, F19, F20).

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_oci::digest::Digest;
use kiln_registry_client::{Client, Options, Pushed, RegistryOptions, Repository, RetryPolicy};

use crate::cutter::Cutter;
use crate::nginx::{Front, Nginx};
use crate::registry_process::{Kind, Registry};
use crate::scripted::{Reply, Request, Server};
use crate::{client, content, fetch, layer, named, quick, repository, with_registry};

const MIB: usize = 1 << 20;

fn push(client: &Client, repository: &Repository, bytes: &[u8]) -> kiln_registry_client::Result<Pushed> {
    let shared = Arc::new(bytes.to_vec());
    let open =
        |from| -> std::io::Result<Box<dyn Read + Send>> { Ok(Box::new(Rest { bytes: shared.clone(), at: from as usize })) };
    client.push_blob(repository, &layer(bytes), &open, &|_| {})
}

/// Reads from a position on, without a copy of a gigabyte for each chunk.
struct Rest {
    bytes: Arc<Vec<u8>>,
    at: usize,
}

impl Read for Rest {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = (&self.bytes[self.at..]).read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// What a registry's sessions are like.
#[derive(Debug, Clone, Default)]
struct Manner {
    /// Bytes of a request that broke off are kept.
    keeps_parts: bool,
    /// A session is forgotten when a request breaks off.
    forgets: bool,
    /// The answer to `PATCH`.
    patch: Option<u16>,
    /// The answer to a `PUT` with bytes.
    put: Option<u16>,
    /// A larger body is refused with 413.
    limit: Option<usize>,
    /// `OCI-Chunk-Min-Length`.
    least: Option<usize>,
    /// Takes no more than this of each chunk.
    takes: Option<usize>,
    /// Puts chunks together in a wrong way.
    garbles: bool,
    /// The session is lost at the `PATCH` of this number.
    lost_at: Option<usize>,
    /// The answer to the first closing `PUT` is lost.
    mute: bool,
    /// A token is good for so many requests.
    token_life: Option<usize>,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    opened: usize,
    patches: usize,
    /// Bytes of all bodies.
    came: usize,
    token: usize,
    used: usize,
    muted: bool,
}

/// A registry's uploads, as distribution-spec has them, with a manner.
fn registry(manner: Manner) -> (Server, Arc<Mutex<State>>) {
    let state = Arc::new(Mutex::new(State::default()));
    let own = state.clone();
    let server = Server::start(move |request| answer(&manner, &mut own.lock().unwrap(), request));
    (server, state)
}

fn answer(manner: &Manner, state: &mut State, request: &Request) -> Reply {
    if request.target.starts_with("/token") {
        (state.token, state.used) = (state.token + 1, 0);
        return Reply::new(200).body(format!(r#"{{"token":"{}"}}"#, state.token));
    }
    if let Some(life) = manner.token_life {
        state.used += 1;
        let good = request.header("authorization") == Some(format!("Bearer {}", state.token).as_str());
        if !good || state.used > life {
            let realm = format!("http://{}/token", request.header("host").unwrap_or_default());
            return Reply::new(401).with("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"s\""));
        }
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let at = |state: &State, name: &str| {
        let has = state.sessions[name].len();
        Reply::new(202)
            .with("Location", format!("/v2/a/b/blobs/uploads/{name}?at={has}"))
            .with("Range", format!("0-{}", has.saturating_sub(1)))
    };
    let unknown = || Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    state.came += request.body.len();
    match request.method.as_str() {
        "HEAD" => match state.blobs.get(&name.replace("%3A", ":")) {
            Some(blob) => Reply::new(200).with("Content-Length", blob.len().to_string()),
            None => Reply::new(404),
        },
        "POST" => {
            state.opened += 1;
            let name = format!("s{}", state.opened);
            state.sessions.insert(name.clone(), Vec::new());
            let reply = at(state, &name);
            manner.least.iter().fold(reply, |reply, least| reply.with("OCI-Chunk-Min-Length", least.to_string()))
        }
        "GET" if state.sessions.contains_key(&name) => at(state, &name),
        "PATCH" => {
            state.patches += 1;
            if Some(state.patches) == manner.lost_at || (request.cut && manner.forgets) {
                state.sessions.remove(&name);
            }
            if let Some(status) = manner.patch {
                return Reply::new(status);
            }
            if manner.limit.is_some_and(|limit| request.body.len() > limit) {
                return Reply::new(413);
            }
            let Some(session) = state.sessions.get_mut(&name) else { return unknown() };
            let from = request.header("content-range").and_then(|range| range.split_once('-')?.0.parse().ok());
            if from != Some(session.len()) {
                return Reply::new(416);
            }
            let taken = manner.takes.unwrap_or(usize::MAX).min(request.body.len());
            if !request.cut || manner.keeps_parts {
                session.extend_from_slice(&request.body[..taken]);
                if manner.garbles {
                    session[0] = session[0].wrapping_add(1);
                }
            }
            at(state, &name)
        }
        "PUT" => {
            if let Some(status) = manner.put.filter(|_| !request.body.is_empty()) {
                return Reply::new(status);
            }
            if manner.limit.is_some_and(|limit| request.body.len() > limit) {
                return Reply::new(413);
            }
            let Some(session) = state.sessions.get_mut(&name) else { return unknown() };
            if !request.cut || manner.keeps_parts {
                session.extend_from_slice(&request.body);
            }
            if request.cut {
                return Reply::new(500);
            }
            let bytes = state.sessions.remove(&name).unwrap_or_default();
            let digest = Digest::of(&bytes).to_string();
            if !query.replace("%3A", ":").contains(&digest) {
                return Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
            }
            state.blobs.insert(digest.clone(), bytes);
            if manner.mute && !std::mem::replace(&mut state.muted, true) {
                return Reply::hang_up();
            }
            Reply::new(201).with("Docker-Content-Digest", digest)
        }
        _ => unknown(),
    }
}

/// F20, F19: registries that refuse one way get the other, sessions that are lost are opened anew, tokens that expire are
/// replaced within the session. What counts is how much was sent, and in how many sessions.
#[test]
fn f20_each_registry_gets_what_it_takes() {
    let plain = Manner::default;
    let small = 3 * MIB;
    let large = 20 * MIB;
    // The manner, the blob's size, sessions, and how many bytes come at most.
    let rows: [(&str, Manner, usize, usize, usize); 14] = [
        ("small", plain(), small, 1, small),
        ("large", plain(), large, 1, large),
        ("empty", plain(), 0, 1, 0),
        ("no chunks", Manner { patch: Some(405), ..plain() }, large, 2, large + 2 * MIB),
        ("no chunks, said with 400", Manner { patch: Some(400), ..plain() }, large, 2, large + 2 * MIB),
        ("no chunks, said with 404", Manner { patch: Some(404), ..plain() }, large, 4, large + 6 * MIB),
        ("nothing but chunks", Manner { put: Some(405), ..plain() }, small, 2, 2 * small),
        ("chunks in disorder", Manner { garbles: true, ..plain() }, large, 2, 2 * large),
        ("small bodies", Manner { limit: Some(MIB), ..plain() }, small, 2, 2 * small + 2 * MIB),
        ("bodies that are not too large", Manner { limit: Some(3 * MIB), ..plain() }, large, 1, large + 4 * MIB),
        ("large chunks", Manner { least: Some(7 * MIB), ..plain() }, large, 1, large),
        ("takes less than was sent", Manner { takes: Some(3 * MIB), ..plain() }, large, 1, 6 * large),
        ("lost at the third", Manner { lost_at: Some(3), ..plain() }, large, 2, large + 14 * MIB),
        ("the last answer is lost", Manner { mute: true, ..plain() }, large, 1, large),
    ];
    for (case, manner, size, sessions, most) in rows {
        let (server, state) = registry(manner.clone());
        let bytes = content(size);
        let pushed = push(&client(quick()), &repository(&server.host()), &bytes);
        assert_eq!(pushed.unwrap_or_else(|error| panic!("{case}: {error}")), Pushed::Uploaded, "{case}");
        let state = state.lock().unwrap();
        assert!(state.blobs[&Digest::of(&bytes).to_string()] == bytes, "{case}");
        assert_eq!(state.opened, sessions, "{case}: {:#?}", server.log());
        assert!(state.came <= most, "{case}: {} of {most}: {:#?}", state.came, server.log());
        if let Some(least) = manner.least {
            let chunks: Vec<usize> = server.requests().iter().filter(|r| r.method == "PATCH").map(|r| r.body.len()).collect();
            assert!(chunks[..chunks.len() - 1].iter().all(|len| *len >= least), "{chunks:?}");
        }
    }
    // F19: a token for every second request; one session, nothing sent that isn't needed but what a 401 refused.
    let (server, state) = registry(Manner { token_life: Some(2), ..plain() });
    let bytes = content(large);
    assert_eq!(push(&client(quick()), &repository(&server.host()), &bytes).unwrap(), Pushed::Uploaded);
    let state = state.lock().unwrap();
    assert!(state.opened == 1 && state.token >= 4, "{} {}", state.opened, state.token);
}

/// An upload's place on another host may be signed for one request and nothing else.
#[test]
fn f20_places_that_take_one_request() {
    let bytes = content(20 * MIB);
    let digest = Digest::of(&bytes).to_string();
    let there = Arc::new(Mutex::new(false));
    let arrived = there.clone();
    let storage = Server::start(move |request| match request.method.as_str() {
        "PUT" => {
            *arrived.lock().unwrap() = request.body.len() == 20 * MIB;
            Reply::new(201).with("Docker-Content-Digest", digest.clone())
        }
        _ => Reply::new(403).body("<Error><Code>SignatureDoesNotMatch</Code></Error>"),
    });
    let place = storage.url("/bucket?signature=x");
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" if *there.lock().unwrap() => Reply::new(200).with("Content-Length", (20 * MIB).to_string()),
        "HEAD" => Reply::new(404),
        _ => Reply::new(202).with("Location", place.clone()),
    });
    assert_eq!(push(&client(quick()), &repository(&server.host()), &bytes).unwrap(), Pushed::Uploaded);
    let methods: Vec<String> = storage.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["PATCH", "PUT"]);
}

/// What no registry can mend ends.
#[test]
fn f20_uploads_that_never_work_end() {
    let rows = [
        ("refuses all", Manner { patch: Some(405), put: Some(405), ..Manner::default() }, 20 * MIB, "405"),
        ("refuses all, small", Manner { patch: Some(405), put: Some(405), ..Manner::default() }, MIB, "405"),
        ("takes nothing", Manner { limit: Some(1000), ..Manner::default() }, 20 * MIB, "413"),
        ("no session lives", Manner { patch: Some(404), put: Some(404), ..Manner::default() }, 20 * MIB, "404"),
    ];
    for (case, manner, size, words) in rows {
        let (server, state) = registry(manner);
        let error = push(&client(quick()), &repository(&server.host()), &content(size)).unwrap_err();
        assert!(error.to_string().contains(words), "{case}: {error}");
        assert!(state.lock().unwrap().opened <= 6, "{case}: {:?}", server.log());
    }
}

/// F20: after a cut, an upload goes on with what the registry kept: bytes, whole requests, or nothing.
#[test]
fn f20_cut_uploads_go_on() {
    let part = |keeps_parts, forgets| Manner { keeps_parts, forgets, ..Manner::default() };
    let size = 12 * MIB;
    // The manner, the blob's size, how often the line breaks, sessions, and how many bytes go at most.
    let rows = [
        ("keeps bytes, one request", part(true, false), size, 3, 1, size + size / 10),
        ("keeps bytes, chunks", part(true, false), 2 * size, 5, 1, 2 * size + size / 10),
        ("keeps requests, chunks", part(false, false), 2 * size, 5, 1, 2 * size + 4 * MIB),
        ("keeps requests, one request", part(false, false), size, 1, 1, 2 * size),
        ("keeps nothing", part(false, true), 2 * size, 3, 4, 5 * size),
    ];
    for (case, manner, size, cuts, sessions, most) in rows {
        let (server, state) = registry(manner);
        let line = Cutter::start(&server.host(), (size / (cuts + 1)) as u64, cuts as u64);
        let bytes = content(size);
        let pushed = push(&client(quick()), &repository(&line.host()), &bytes);
        assert_eq!(pushed.unwrap_or_else(|error| panic!("{case}: {error}: {:#?}", server.log())), Pushed::Uploaded, "{case}");
        assert_eq!(line.cuts(), cuts as u64, "{case}");
        let state = state.lock().unwrap();
        assert!(state.blobs[&Digest::of(&bytes).to_string()] == bytes, "{case}");
        assert!(state.opened <= sessions, "{case}: {} {:#?}", state.opened, server.log());
        assert!(line.moved() <= most as u64, "{case}: {} of {most}: {:#?}", line.moved(), server.log());
    }
}

/// A line that breaks each time before a session gets any further is given up.
#[test]
fn f20_a_hopeless_line_is_given_up() {
    let (server, _state) = registry(Manner { forgets: true, ..Manner::default() });
    let line = Cutter::start(&server.host(), 3 << 20, u64::MAX);
    let error = push(&client(quick()), &repository(&line.host()), &content(24 * MIB)).unwrap_err();
    assert!(error.is_temporary(), "{error}");
    assert!(line.cuts() < 20, "{}", line.cuts());
}

/// Debian's registry itself forgets a session of which a request broke off; it takes the blob in the end.
#[test]
fn cut_uploads_to_a_real_registry() {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let line = Cutter::start(&registry.host(), 9 << 20, 2);
    let bytes = content(24 * MIB);
    assert_eq!(push(&client(quick()), &named(&line.host(), "x"), &bytes).unwrap(), Pushed::Uploaded);
    assert_eq!(line.cuts(), 2);
    assert!(fetch(&client(quick()), &named(&registry.host(), "x"), &layer(&bytes)).1 == bytes);
}

/// A gigabyte's worth of blobs (`KILN_TEST_CUT_MB`, else 50 MB), pushed and pulled over a line that breaks twenty times, moves at
/// most a tenth more than it is.
#[test]
fn twenty_cuts_cost_a_tenth() {
    #[allow(clippy::disallowed_methods, reason = "how much is the caller's choice")]
    let size = std::env::var("KILN_TEST_CUT_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(50) * MIB;
    cuts(size, false);
}

/// F17: the same over TLS and HTTP/2, where a cut takes all streams of a connection and looks like an attack.
#[test]
fn f17_cuts_of_tls() {
    cuts(50 * MIB, true);
}

fn cuts(size: usize, tls: bool) {
    let Some(registry) = Registry::start(Kind::Plain) else { return };
    let Some(certified) = Registry::start(if tls { Kind::Tls } else { Kind::Plain }) else { return };
    let front = Front { tls: tls.then(|| certified.folder()), ..Front::default() };
    let Some(front) = Nginx::start(&registry.host(), front) else { return };
    let line = |each| Cutter::start(&front.host(), each, 20);
    let client = |line: &Cutter| {
        let ca_file = tls.then(|| certified.ca_file());
        let settings = RegistryOptions { ca_file, plain_http: Some(!tls), ..RegistryOptions::default() };
        let retry = RetryPolicy { attempts: 5, ..quick().retry };
        client(Options { retry, stall_timeout: Duration::from_secs(60), ..with_registry(&line.name(), settings) })
    };
    let layers: Vec<Vec<u8>> = [size / 10 * 7, size / 10 * 2, size / 10].map(content).into();
    let whole: u64 = layers.iter().map(|layer| layer.len() as u64).sum();
    let each = whole / 21;
    let upward = line(each);
    for bytes in &layers {
        assert_eq!(push(&client(&upward), &named(&upward.name(), "cut"), bytes).unwrap(), Pushed::Uploaded);
    }
    let downward = line(each);
    for bytes in &layers {
        let (result, came) = fetch(&client(&downward), &named(&downward.name(), "cut"), &layer(bytes));
        result.unwrap();
        assert!(came == *bytes);
    }
    for (line, what) in [(&upward, "push"), (&downward, "pull")] {
        println!("{what}: {} bytes moved for {whole}, {} cuts", line.moved(), line.cuts());
        assert_eq!(line.cuts(), 20, "{what}");
        assert!(line.moved() <= whole + whole / 10, "{what}: {} bytes moved for {whole}", line.moved());
    }
}
