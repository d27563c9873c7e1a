//! A disk whose power can be cut, and which then says that the machine was started anew. `testdata/tools/power.py` has it in a
//! mount namespace of its own, so nothing stays mounted however a test ends.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::lab::workspace;

/// A file system in a file.
#[derive(Debug)]
pub(crate) struct Disk {
    child: Child,
    talk: Mutex<(Option<ChildStdin>, Lines<BufReader<ChildStdout>>)>,
    pid: String,
    folder: PathBuf,
}

impl Disk {
    /// A fresh file system of this kind in `file`, to be mounted at `folder`; or why there can be none here.
    pub(crate) fn make(file: &Path, folder: &Path, kind: &str) -> Result<Disk, String> {
        let size = if kind == "xfs" { "320" } else { "256" };
        let mut child = Command::new("python3")
            .arg(workspace().join("testdata/tools/power.py"))
            .args([file, folder])
            .args([kind, size])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("python3: {e}"))?;
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let Some(Ok(first)) = lines.next() else {
            drop(stdin);
            let output = child.wait_with_output().map_err(|e| e.to_string())?;
            return Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned());
        };
        let facts: serde_json::Value = serde_json::from_str(&first).map_err(|e| e.to_string())?;
        let pid = facts["pid"].as_str().expect("it says its process id").to_owned();
        Ok(Disk { child, talk: Mutex::new((stdin, lines)), pid, folder: folder.to_owned() })
    }

    fn ask(&self, line: &str) {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(talk.0.as_mut().expect("it is open until the end"), "{line}").expect("the disk listens");
        let answer = talk.1.next().expect("the disk answers").expect("the answer is text");
        assert_eq!(answer, "done", "{line}");
    }

    /// Mounts it; the machine has started anew.
    pub(crate) fn mount(&self, options: &str) {
        self.ask(&format!("mount {options}"));
    }

    /// The power fails; `commit`: just after another program's `fsync`, which brought the journal to the disk.
    pub(crate) fn cut(&self, commit: bool) {
        self.ask(if commit { "cut commit" } else { "cut" });
    }

    /// Takes it away.
    pub(crate) fn umount(&self) {
        self.ask("umount");
    }

    /// The folder where it is mounted, for this process, which isn't in its namespace.
    pub(crate) fn seen(&self) -> PathBuf {
        Path::new("/proc").join(&self.pid).join("root").join(self.folder.strip_prefix("/").expect("it is absolute"))
    }

    /// The command, run where the disk is mounted, with its store there, below `before` (another program with its arguments).
    pub(crate) fn command(&self, command: &Command, before: &[&str]) -> Command {
        let mut inside = Command::new("nsenter");
        let here = command.get_current_dir().expect("kiln's tests have a folder").display().to_string();
        inside.args(["-t", &self.pid, "-m", &format!("--wdns={here}"), "--"]).args(before);
        inside.arg(command.get_program()).args(command.get_args()).env_clear();
        inside.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.env("KILN_ROOT", self.folder.join("store")).current_dir(here).stdin(Stdio::null());
        inside
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // At the end of its input it ends, and what it mounted goes with it.
        self.talk.get_mut().unwrap_or_else(PoisonError::into_inner).0.take();
        let _ = self.child.wait();
    }
}
