//! Hides that git repositories are the affair of the host's `git`: from an address to the files of one commit.
//!
//! Which commit an address means is asked first, and costs one look at the server's references; the files are fetched only
//! when a step needs them. The commit's id stands for them in cache keys.

mod address;
mod checkout;
mod command;

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_frontend::ignore::PatternMatcher;
use kiln_runner::Cancel;
use kiln_store::Store;
use kiln_store::rootdir::FsError;

use crate::context::{Context, ContextError};
use crate::event::{Events, Task};
use crate::grant::{Grants, Secret};
use crate::ops::agent::{Agent, Forward};
use crate::pins::{PinError, Pins, Sort};

pub use address::redact;
pub use address::{GitAddress, Origin};
pub use checkout::Checkout;
pub use command::{GIVE_AGENT, GitEnvironment, PASSED_ON};

use address::{Transport, Wanted};
use checkout::Found;
use command::{Git, Received};

/// Why a git repository could not be fetched. No message holds a password of the address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// The address can't be used.
    #[error("invalid git address `{url}`: {reason}")]
    Address {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// This host has no git.
    #[error("cannot fetch `{url}`: there is no `git` on this host (Debian, Alpine, Fedora: the package `git`)")]
    NoGit {
        /// The address.
        url: String,
    },
    /// git can't be started.
    #[error("cannot run `git`")]
    Start {
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// git failed.
    #[error("cannot {operation} `{url}`: {said}")]
    Failed {
        /// What it was to do.
        operation: &'static str,
        /// The address.
        url: String,
        /// What it said.
        said: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("the repository `{url}` does not contain {wanted}")]
    NoReference {
        /// The address.
        url: String,
        /// What was looked for.
        wanted: String,
    },
    /// The commit isn't the one that was expected.
    #[error("commit mismatch for `{url}`: expected {expected}, got {actual}")]
    Checksum {
        /// The address.
        url: String,
        /// How its id should begin.
        expected: String,
        /// Its id.
        actual: String,
    },
    /// The folder that the address names can't be used.
    #[error("cannot use the folder `{subdir}` of `{url}`: {reason}")]
    Subdir {
        /// The address.
        url: String,
        /// The folder.
        subdir: String,
        /// Why.
        reason: &'static str,
    },
    /// The address needs an ssh agent, and the build was given none.
    #[error("cannot fetch `{url}`: the build has no ssh agent or key `default`")]
    NoAgent {
        /// The address.
        url: String,
    },
    /// The ssh agent can't be reached.
    #[error("cannot reach the ssh agent `default`")]
    Agent {
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file system refused.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// It is not in the lock file.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The build was stopped by a signal.
    #[error("the build was interrupted")]
    Interrupted,
}

impl GitError {
    /// What to do about it, where that can be said.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            GitError::NoAgent { .. } => Some(GIVE_AGENT),
            GitError::Failed { said, .. }
                if said.contains("could not read Username") || said.contains("Authentication failed") =>
            {
                Some("give a token with `--secret id=GIT_AUTH_TOKEN.HOST,src=FILE`, or a whole header as GIT_AUTH_HEADER.HOST")
            }
            GitError::Failed { said, .. } if said.contains("Permission denied (") => {
                Some("the server takes none of the keys: give others with `--ssh default=KEYFILE`")
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Head => f.write_str("a default branch"),
            Wanted::Name(name) => write!(f, "the reference `{name}`"),
            Wanted::Branch(name) => write!(f, "the branch `{name}`"),
            Wanted::Tag(name) => write!(f, "the tag `{name}`"),
            Wanted::Commit(name) => write!(f, "the commit {name}"),
        }
    }
}

/// A repository at one commit, whose files are fetched when they are first asked for.
#[derive(Debug)]
pub struct Fetched {
    url: String,
    address: GitAddress,
    found: Found,
    keep_git_dir: bool,
    origin: Origin,
    environment: GitEnvironment,
    authorization: Option<Secret>,
    agent: Option<Agent>,
    cancel: Cancel,
    store: Store,
    events: Events,
    checkout: OnceLock<Checkout>,
    context: OnceLock<Context>,
    fetching: std::sync::Mutex<()>,
}

/// What an address is fetched with.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// Where the files will be.
    pub store: &'a Store,
    /// Who hears of progress.
    pub events: &'a Events,
    /// What git sees of the process's environment.
    pub environment: &'a GitEnvironment,
    /// Ends git early.
    pub cancel: &'a Cancel,
    /// Who wrote the address.
    pub origin: Origin,
    /// May hold credentials.
    pub grants: &'a Grants,
    /// What addresses stand for, where that is settled.
    pub pins: &'a Pins,
}

impl Fetched {
    /// Finds out which commit the address `url` stands for; its id must begin with `checksum`. `keep_git_dir` beats what the
    /// address says.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn find(url: &str, checksum: Option<&str>, keep_git_dir: Option<bool>, setting: &Setting<'_>) -> Result<Self, GitError> {
        let mut address = GitAddress::parse(url, setting.origin)?;
        if let Some(commit) = checksum {
            address.expect(commit).map_err(|reason| GitError::Address { url: redact(url), reason })?;
        }
        let agent = setting.grants.agents.get("default").filter(|_| address.transport == Transport::Ssh).cloned();
        if address.transport == Transport::Ssh && setting.origin == Origin::Dockerfile && agent.is_none() {
            return Err(GitError::NoAgent { url: redact(url) });
        }
        let mut fetched = Self {
            url: url.to_owned(),
            keep_git_dir: keep_git_dir.or(address.keep_git_dir).unwrap_or(false),
            authorization: setting.grants.git_authorization(address.host()),
            agent,
            address,
            found: Found::default(),
            origin: setting.origin,
            environment: setting.environment.clone(),
            cancel: setting.cancel.clone(),
            store: setting.store.clone(),
            events: setting.events.clone(),
            checkout: OnceLock::new(),
            context: OnceLock::new(),
            fetching: std::sync::Mutex::new(()),
        };
        if matches!(fetched.address.reference, Wanted::Commit(_)) {
            fetched.found = checkout::find(&fetched.git(&checkout::draft(setting.store)?.work)?)?;
            return Ok(fetched);
        }
        fetched.found = match setting.pins.pin(Sort::Git, url)? {
            Some(commit) => checkout::at(&fetched.address, &commit)?,
            None => checkout::find(&fetched.git(&checkout::draft(setting.store)?.work)?)?,
        };
        setting.pins.found(Sort::Git, url, &fetched.found.commit);
        Ok(fetched)
    }

    /// A git with `home` for its home.
    fn git<'a>(&'a self, home: &'a Path) -> Result<Git<'a>, GitError> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let forward = self.agent.as_ref().map(|agent| Forward::start(home, agent, 0o600, uid, gid));
        Ok(Git {
            address: &self.address,
            origin: self.origin,
            environment: &self.environment,
            cancel: &self.cancel,
            home,
            authorization: self.authorization.as_ref(),
            agent: forward.transpose().map_err(|cause| GitError::Agent { cause })?,
            progress: None,
        })
    }

    /// The address as the Dockerfile has it; may hold a password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address without one, for messages.
    pub fn shown(&self) -> &str {
        self.address.shown()
    }

    /// The whole id of the commit.
    pub fn commit(&self) -> &str {
        &self.found.commit
    }

    /// What says all that there is to say about the files: equal keys, equal files.
    pub fn key(&self) -> String {
        let submodules = if self.address.submodules { "" } else { " without submodules" };
        // The folder of git knows the remote.
        let kept = if self.keep_git_dir { format!(" with .git of {}", self.address.shown()) } else { String::new() };
        format!("{} {:?}{submodules}{kept}", self.found.commit, self.address.subdir)
    }

    /// The files, as a source of copies.
    ///
    /// # Errors
    /// [`ContextError::Git`], [`ContextError::Open`].
    pub fn context(&self) -> Result<&Context, ContextError> {
        let _one = self.fetching.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(context) = self.context.get() {
            return Ok(context);
        }
        let task = self.events.start(format!("fetching {}", self.shown()));
        let checkout = self.check_out(&task);
        let checkout = task.end_with(checkout)?;
        let context = Context::open(checkout.folder(), PatternMatcher::default(), None)?;
        let _ = self.checkout.set(checkout);
        Ok(self.context.get_or_init(|| context))
    }

    /// The files, in a folder.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn check_out(&self, task: &Task) -> Result<Checkout, GitError> {
        let name = format!("fetching {}", self.found.commit);
        let received = Received { task, name: &name, bytes: AtomicU64::new(0) };
        let home = checkout::draft(&self.store)?;
        let git = Git { progress: Some(&received), ..self.git(&home.work)? };
        task.status(&name, 0, None);
        let checkout = checkout::check_out(&git, &self.found, self.keep_git_dir, checkout::draft(&self.store)?);
        task.status_done(&name, received.bytes.load(Ordering::Relaxed), None);
        checkout
    }
}
