//! A network of the command's own that reaches what the host reaches: hides `pasta`, the program that is the way out of it, which
//! addresses there are, and who answers for names.
//!
//! pasta is started by the supervisor, in the supervisor's outer pid namespace: it ends with the run, also when kiln is killed. It has
//! to stay in the network that kiln is in, so that the process that becomes it is forked off before the supervisor leaves that.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::wire::Failure;

/// The command's own address, and the length of its network's prefix. They are those of other such networks (slirp4netns, QEMU), so
/// that what a build sees is the same on each machine.
const ADDRESS: &str = "10.0.2.100";
const PREFIX: &str = "24";
/// The way out; where the host's loopback can be reached, when that is asked for.
pub(crate) const GATEWAY: &str = "10.0.2.2";
/// Answers for names where the host's own resolver is on its loopback.
const RESOLVER: &str = "10.0.2.3";

/// Where the program is.
pub(crate) fn find_program() -> Option<PathBuf> {
    ["/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta", "/usr/sbin/pasta"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
}

/// The program that connects the command's network with kiln's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uplink {
    pub(crate) program: std::ffi::OsString,
    pub(crate) args: Vec<String>,
}

/// Decides how `pasta` is started. `to_host`: the host's loopback can be reached at [`GATEWAY`].
pub(crate) fn uplink(program: &Path, to_host: bool, forwards_names: bool) -> Uplink {
    let mut args: Vec<String> = ["--config-net", "--quiet", "--netns-only", "--runas", "0"].map(str::to_owned).into();
    for (flag, value) in [("--address", ADDRESS), ("--netmask", PREFIX), ("--gateway", GATEWAY)] {
        args.extend([flag.to_owned(), value.to_owned()]);
    }
    // No port of either side becomes one of the other's.
    for flag in ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"] {
        args.extend([flag.to_owned(), "none".to_owned()]);
    }
    if !to_host {
        args.push("--no-map-gw".to_owned());
    }
    if forwards_names {
        args.extend(["--dns-forward".to_owned(), RESOLVER.to_owned()]);
    }
    Uplink { program: program.as_os_str().to_owned(), args }
}

/// The `/etc/resolv.conf` of the command, and whether names have to be forwarded to the host's own resolver. `upstream` is what that
/// one asks (systemd-resolved's `/run/systemd/resolve/resolv.conf`).
pub(crate) fn resolver(host: &[u8], upstream: &[u8]) -> (Vec<u8>, bool) {
    if !servers(host).any(is_loopback) {
        return (host.to_vec(), false);
    }
    if servers(upstream).next().is_some() && !servers(upstream).any(is_loopback) {
        return (upstream.to_vec(), false);
    }
    let others = host.split_inclusive(|byte| *byte == b'\n').filter(|line| server(line).is_none());
    let mut text = others.collect::<Vec<_>>().concat();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(format!("nameserver {RESOLVER}\n").as_bytes());
    (text, true)
}

fn servers(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|byte| *byte == b'\n').filter_map(server)
}

fn server(line: &[u8]) -> Option<&str> {
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

fn is_loopback(address: &str) -> bool {
    address
        .split('%')
        .next()
        .and_then(|address| address.parse::<std::net::IpAddr>().ok())
        .is_some_and(|address| address.is_loopback())
}

/// A process that waits for the word to become `pasta`.
pub(crate) struct Waiting {
    process: Pid,
    go: OwnedFd,
    complaints: OwnedFd,
}

/// Forks it off, still in kiln's network.
pub(crate) fn wait(uplink: &Uplink, host_proc: BorrowedFd<'_>) -> Result<Waiting, Failure> {
    let failed = |error: io::Error| crate::supervise::setup("start `pasta`, the way out of a private network", &error);
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()));
    let ((wait, go), (complaints, complaints_end)) = (pipe()?, pipe()?);
    // By the number that the host's proc file system knows it by.
    let own = rustix::fs::readlinkat(host_proc, "self", Vec::new()).map_err(|errno| failed(errno.into()))?;
    match sys::fork_alone().map_err(failed)? {
        Some(process) => Ok(Waiting { process, go, complaints }),
        None => {
            drop((go, complaints));
            let error = become_uplink(uplink, wait, complaints_end, &own.to_string_lossy(), host_proc);
            // Nobody may read it.
            let _ = rustix::io::write(rustix::stdio::stderr(), error.to_string().as_bytes());
            crate::leave(1)
        }
    }
}

fn become_uplink(uplink: &Uplink, wait: OwnedFd, complaints: OwnedFd, supervisor: &str, host_proc: BorrowedFd<'_>) -> io::Error {
    let prepare = || -> io::Result<OwnedFd> {
        rustix::stdio::dup2_stderr(&complaints)?;
        let mut word = [0];
        if std::fs::File::from(wait).read(&mut word)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // By descriptor, for pasta lets go of the right to look at another's processes before it opens the namespace.
        let network =
            rustix::fs::openat(host_proc, format!("{supervisor}/ns/net"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::io::dup(&network)?)
    };
    match prepare() {
        Err(error) => error,
        Ok(network) => Command::new(&uplink.program)
            .args(&uplink.args)
            .arg("--netns")
            .arg(format!("/proc/self/fd/{}", network.as_raw_fd()))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .exec(),
    }
}

impl Waiting {
    /// This process is in the new network, so that it can be connected.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        rustix::io::write(&self.go, &[1])
            .map(drop)
            .map_err(|errno| crate::supervise::setup("connect the private network", &errno.into()))
    }

    /// Waits until it is connected; the program goes on in the background.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let failed = |error: io::Error| crate::supervise::setup("connect the private network", &error);
        let status = loop {
            match rustix::process::waitpid(Some(self.process), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
                Ok(ended) => break ended,
            }
        };
        if status.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
            return Ok(());
        }
        // Whoever holds the other end may live on.
        let mut words = vec![0; 4096];
        let _ = rustix::io::ioctl_fionbio(&self.complaints, true);
        let length = rustix::io::read(&self.complaints, &mut words[..]).unwrap_or(0);
        let words = String::from_utf8_lossy(&words[..length]).into_owned();
        let words: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("syslog")).collect();
        Err(Failure::Network { words: words.join("; ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_for_names() {
        let stub = "# stub\nnameserver 127.0.0.53\noptions edns0\nsearch example.org\n";
        let upstream = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n";
        let forwarded = "# stub\noptions edns0\nsearch example.org\nnameserver 10.0.2.3\n";
        let rows = [
            ("nameserver 10.1.1.1\n", "", "nameserver 10.1.1.1\n", false),
            ("", upstream, "", false),
            (stub, upstream, upstream, false),
            (stub, "", forwarded, true),
            (stub, stub, forwarded, true),
            ("nameserver ::1", "", "nameserver 10.0.2.3\n", true),
            ("options x\nnameserver 127.0.0.1", "# nothing\n", "options x\nnameserver 10.0.2.3\n", true),
            ("nameserver fe80::1%eth0\n", "", "nameserver fe80::1%eth0\n", false),
        ];
        for (host, upstream, expected, forwards) in rows {
            let (text, forwarded) = resolver(host.as_bytes(), upstream.as_bytes());
            assert_eq!((String::from_utf8(text).unwrap().as_str(), forwarded), (expected, forwards), "{host:?} {upstream:?}");
        }
    }

    #[test]
    fn how_the_way_out_is_started() {
        let line = |to_host, forwards| uplink(Path::new("/p"), to_host, forwards).args.join(" ");
        let common = "--config-net --quiet --netns-only --runas 0 --address 10.0.2.100 --netmask 24 --gateway 10.0.2.2 \
                      --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none";
        assert_eq!(line(false, false), format!("{common} --no-map-gw"));
        assert_eq!(line(true, false), common);
        assert_eq!(line(false, true), format!("{common} --no-map-gw --dns-forward 10.0.2.3"));
    }
}
