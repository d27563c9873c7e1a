//! A small HTTP/1.1 server that answers what a test tells it to, and writes down what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection broke before all of the body had come. Nobody hears the answer, and it isn't written down.
    pub(crate) cut: bool,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The first byte that a `Range` asks for.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    pub(crate) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.target.contains(part)
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Only so many bytes of the body are sent.
    cut: Option<usize>,
    /// Pause before each byte of the body.
    drip: Option<Duration>,
    /// After the (cut) body the connection stays open for so long.
    hold: Option<Duration>,
    no_length: bool,
    /// Not even a status line.
    hang_up: bool,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn hang_up() -> Self {
        Self { hang_up: true, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }

    pub(crate) fn drip(mut self, pause: Duration) -> Self {
        self.drip = Some(pause);
        self
    }

    pub(crate) fn hold(mut self, time: Duration) -> Self {
        self.hold = Some(time);
        self
    }

    pub(crate) fn no_length(mut self) -> Self {
        self.no_length = true;
        self
    }

    /// A manifest's answer.
    pub(crate) fn manifest(media_type: &str, body: &str) -> Self {
        Self::new(200).with("Content-Type", media_type).body(body)
    }

    /// An error document of the distribution specification.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::new(status)
            .with("Content-Type", "application/json")
            .body(format!(r#"{{"errors":[{{"code":"{code}","message":"{message}","detail":null}}]}}"#))
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on loopback, until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Answers each request as `handler` says.
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (list, end) = (requests.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (handler, list) = (handler.clone(), list.clone());
                std::thread::spawn(move || serve(stream.ok()?, &*handler, &list));
            }
        });
        Self { address, requests, stop }
    }

    /// Answers by a list, one row a request; what comes after its end gets 500.
    pub(crate) fn script(replies: Vec<Reply>) -> Self {
        let replies = Mutex::new(replies.into_iter());
        Self::start(move |_| replies.lock().unwrap().next().unwrap_or_else(|| Reply::new(500).body("the script is at its end")))
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests as `METHOD /target`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.requests().iter().map(|request| format!("{} {}", request.method, request.target)).collect()
    }

    /// How many requests carried credentials.
    pub(crate) fn authorized(&self) -> usize {
        self.requests().iter().filter(|request| request.header("authorization").is_some()).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

fn serve(mut stream: TcpStream, handler: &Handler, list: &Mutex<Vec<Request>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let mut request = Request {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
        cut: false,
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length: usize = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    // A place with `early` in it answers before it has read the body.
    let early = request.target.contains("early");
    if !early {
        let read = (&mut reader).take(length as u64).read_to_end(&mut request.body);
        request.cut = read.is_err() || request.body.len() < length;
    }
    if request.cut {
        handler(&request);
        return None;
    }
    // Written down before it is answered, so that a test that has its answer sees it here.
    list.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    if reply.hang_up {
        return None;
    }
    let mut head = format!("HTTP/1.1 {} Scripted\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.no_length && !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    if request.method != "HEAD" {
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
        match reply.drip {
            None => stream.write_all(body).ok()?,
            Some(pause) => {
                for byte in body {
                    std::thread::sleep(pause);
                    stream.write_all(&[*byte]).ok()?;
                }
            }
        }
    }
    stream.flush().ok()?;
    if let Some(time) = reply.hold {
        std::thread::sleep(time);
    }
    if early {
        // Closing with unread bytes would reset the connection and could take the answer with it.
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        std::io::copy(&mut reader.take(64 << 20), &mut std::io::sink()).ok()?;
    }
    Some(())
}
