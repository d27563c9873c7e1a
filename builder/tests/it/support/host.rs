//! The people of this machine without any rights, whom `testdata/tools/setup.sh test` made: kiln is run as one of them.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use super::skip::skipped;

/// A user of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) name: &'static str,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Person {
    /// One with 65536 ids besides their own; says that the test is skipped when there is none.
    pub(crate) fn with_ids(test: &str) -> Option<Person> {
        Person::find(test, "kiln-subids", 65_536)
    }

    /// One with no id but their own; says that the test is skipped when there is none.
    pub(crate) fn plain(test: &str) -> Option<Person> {
        Person::find(test, "kiln-plain", 0)
    }

    fn find(test: &str, name: &'static str, ids: u32) -> Option<Person> {
        let found = match (find(name), own_uid()) {
            (_, uid) if uid != 0 => Err("only root can run kiln as another user".to_owned()),
            (None, _) => Err(format!("there is no user {name} (`testdata/tools/setup.sh test` makes it)")),
            (Some(person), _) => match ["/etc/subuid", "/etc/subgid"].iter().find(|file| given(file, name) != ids) {
                Some(file) => Err(format!("{name} should have {ids} ids in {file}")),
                None => Ok(person),
            },
        };
        found.map_err(|reason| skipped(test, &reason)).ok()
    }

    /// The program, run as this person: no group, no right and nothing of the environment of who runs the tests.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={}", self.uid))
            .arg(format!("--regid={}", self.gid))
            .args(["--clear-groups", "--inh-caps=-all", "--ambient-caps=-all", "--"])
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("USER", self.name)
            .env("LOGNAME", self.name);
        command
    }

    /// Gives them this folder or file.
    pub(crate) fn give(self, path: &Path) {
        chown(path, Some(self.uid), Some(self.gid)).expect("root can give files away");
    }
}

/// The user id of this process.
pub(crate) fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").expect("/proc is mounted").uid()
}

fn find(name: &'static str) -> Option<Person> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(Person { name, uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

/// How many ids the file gives the person.
fn given(file: &str, name: &str) -> u32 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_once(':'));
    lines.filter_map(|(_, count)| count.parse::<u32>().ok()).sum()
}
