//! Debian's nginx on loopback, as it stands before registries: it ends TLS, buffers, and does harm when it is told to.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::serving::Serving;

/// A running nginx, until it is dropped.
pub(crate) struct Nginx(Serving);

impl Deref for Nginx {
    type Target = Serving;

    fn deref(&self) -> &Serving {
        &self.0
    }
}

/// How it listens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Front<'a> {
    /// A folder with `cert.pem` and `key.pem`: TLS and HTTP/2; with `ca.pem` for client certificates, which it may do without.
    pub(crate) tls: Option<&'a Path>,
    /// Passes an upload on as it comes, and not once it is whole.
    pub(crate) unbuffered: bool,
}

impl Nginx {
    /// Starts one before `backend`; `None`, and a line that says why, when this machine can't.
    pub(crate) fn start(backend: &str, front: Front<'_>) -> Option<Self> {
        Serving::start(&["nginx"], |folder, port| command(backend, front, folder, port)).map(Self)
    }

    /// The file that makes it do harm: `429`, `500`, `502`, `503`, `slow`.
    pub(crate) fn harm(&self, what: &str) -> PathBuf {
        self.folder().join(what)
    }

    /// Kills the processes that hold its connections; it starts new ones.
    pub(crate) fn kill_workers(&self) {
        let workers = Command::new("ps").args(["-o", "pid=", "--ppid", &self.child.id().to_string()]).output().unwrap();
        for pid in String::from_utf8_lossy(&workers.stdout).split_whitespace() {
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// What it served: method, URI, status, protocol, whether a client certificate was shown, and the `Authorization` header.
    /// A line is written when the answer is gone, so at least `count` of them are waited for.
    pub(crate) fn log(&self, count: usize) -> Vec<String> {
        let started = Instant::now();
        loop {
            let text = fs::read_to_string(self.folder().join("log")).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count || started.elapsed() > Duration::from_secs(5) {
                return lines;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What starts it, with its configuration written.
fn command(backend: &str, front: Front<'_>, folder: &Path, port: u16) -> Command {
    let dir = folder.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let (listen, tls) = match front.tls {
        None => ("", String::new()),
        Some(tls) => (
            " ssl http2",
            format!(
                "ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem; ssl_verify_client optional; ssl_client_certificate {0}/ca.pem;",
                tls.display()
            ),
        ),
    };
    let buffering = if front.unbuffered { "proxy_request_buffering off;" } else { "" };
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {dir}/{name};")).concat();
    // What harms is a file of the status' name in the folder.
    let harm: String =
        ["429", "500", "502", "503"].map(|status| format!("if (-f {dir}/{status}) {{ return {status}; }}\n")).concat();
    let config = format!(
        "{user} daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error error;
            events {{}}
            http {{
              log_format facts '$request_method $request_uri $status $server_protocol $ssl_client_verify $http_authorization';
              access_log {dir}/log facts;
              {temporary}
              client_max_body_size 0; {buffering} proxy_http_version 1.1; keepalive_timeout 5;
              server {{
                listen 127.0.0.1:{port}{listen}; {tls}
                add_header Retry-After 1 always;
                location / {{
                  {harm}
                  if (-f {dir}/slow) {{ set $limit_rate 400k; }}
                  proxy_pass http://{backend};
                  proxy_set_header Host $http_host;
                  proxy_set_header X-Forwarded-Proto $scheme;
                }}
              }}
            }}"
    );
    fs::write(folder.join("nginx.conf"), config).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var_os("PATH").unwrap_or_default().to_string_lossy());
    let mut command = Command::new("sh");
    command.args(["-c", "exec nginx -p \"$0\" -c nginx.conf -e error"]).arg(folder).env("PATH", path).current_dir(folder);
    command
}
