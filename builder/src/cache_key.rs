//! Hides how the identity of a step is computed; pure.
//!
//! A step has two keys, made by the same function from two kinds of input (ARCHITECTURE.md, "Two keys"):
//!
//! * the *definition* key, from the definition keys of its inputs: known before anything runs, so a build with nothing to
//!   do reads one record for the target;
//! * the *content* key, from the [`Identity`] of its inputs' results: a step that was rebuilt with the same result leaves
//!   the steps after it cached.
//!
//! | value | in the key of | why |
//! |---|---|---|
//! | [`FORMAT`] | every step | a change of kiln that changes results must miss |
//! | definition or content | every step | the two key spaces never mix |
//! | platform | RUN | another processor gives another result |
//! | parent | every step | what the step builds on |
//! | arguments, in order | RUN | what is run |
//! | environment, in order, with ARGs in scope | RUN | a command may read any of it |
//! | working folder | RUN, WORKDIR | where it runs; what is made |
//! | user | RUN, WORKDIR | as whom it runs; who owns what is made |
//! | network mode | RUN | a command may see it |
//! | security mode | RUN | likewise |
//! | host name | RUN | likewise |
//! | names of extra hosts, not their addresses | RUN | as BuildKit: addresses are the machine's |
//! | mounts, in order: kind, target, writable, size | RUN | what the command finds there |
//! | a bind mount's files | RUN | likewise; by content where the content is known, wherever they come from |
//! | a cache mount's seed, and mode and owner of a new one | RUN | likewise |
//! | a secret's or agent's id, target, variable, mode, owner, `required` | RUN | which one the command finds there; never its value |
//! | here-document files: path, bytes, mode | RUN | they are input |
//! | the selected files: path below the source, type, mode, owner, size, link, xattrs, bytes | COPY, ADD | exactly what is copied |
//! | destination and whether it is a folder | COPY, ADD | where it goes |
//! | `--chown` | COPY, ADD | how it arrives |
//! | `--chmod` | COPY, ADD | likewise |
//! | `--link` | COPY, ADD | likewise |
//! | `--parents` | COPY | likewise |
//! | `--unpack` | ADD | likewise |
//! | ADD or COPY | COPY, ADD | likewise |
//! | in-line files: name and bytes | COPY, ADD | what is written |
//! | of an http address: the file's name, bytes and the time the server gives it | ADD | likewise |
//! | of a git repository: the commit, the folder in it, whether submodules and `.git` come too | ADD | what is copied |
//! | all files of a named context | FROM of one | what the stage starts from |
//!
//! | in no key | why |
//! |---|---|
//! | what only the configuration holds | no file depends on it |
//! | the platform of a step that runs nothing | files are files |
//! | names of stages and of images | the layers' digests count |
//! | a context's folder and its parents | the same files are the same |
//! | modification times and owners in a context | as BuildKit: a checkout changes them |
//! | proxy variables that were not declared | they are the machine's |
//! | id and sharing mode of a cache mount | what it holds is in no result |
//! | a secret's value, and whether an optional one was given | a key must tell nothing about it |
//! | credentials of ADD | likewise |
//! | the size of `/dev/shm`, limits of processes and of all of them together | they are the machine's |
//! | the form of the text: blanks, comments, case of keywords | what counts is what is meant |
//!
//! `builder/tests/it/cache_rows.rs` has a test for each row that a build can show; the others are tested beside this file.

use std::fmt;

use kiln_frontend::graph::{CopyOp, CopySource, ExecOp, MountKind, NetworkMode, Op, SecurityMode, WorkdirOp};
use kiln_oci::digest::ChainId;
use kiln_oci::platform::Platform;
use kiln_store::cache::CacheKey;

/// Raised by one when the same key may stand for another result than before.
const FORMAT: &str = "kiln-1";

/// What a result is, as far as later steps can tell: equal identities stand for equal file trees (times aside).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(pub [u8; 32]);

impl Identity {
    /// The empty root.
    pub fn scratch() -> Self {
        Fields::new("scratch").identity()
    }

    /// The layers of an image.
    pub fn image(chain: Option<ChainId>) -> Self {
        match chain {
            None => Self::scratch(),
            Some(chain) => Fields::new("image").bytes("chain", chain.digest().as_bytes()).identity(),
        }
    }

    /// `parent` with a layer on top whose files have the fingerprint `diff`.
    pub fn layer(parent: Identity, diff: [u8; 32]) -> Self {
        Fields::new("layer").bytes("parent", &parent.0).bytes("diff", &diff).identity()
    }

    /// What a key says about its own result, where the key covers every byte of it (COPY and WORKDIR).
    pub fn of_key(key: &CacheKey) -> Self {
        Fields::new("by key").bytes("key", &key.0).identity()
    }
}

/// All of it, in hexadecimal.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Which of the two keys is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// From definitions.
    Definition,
    /// From results.
    Content,
}

/// What stands for a step's inputs: definition keys or identities, as the flavour says.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// The file system that the step changes.
    pub parent: Identity,
    /// For each bind mount, and each cache mount that is seeded, in order: what it shows, which covers the path in its source.
    pub mounts: Vec<Identity>,
    /// For COPY and ADD: the fingerprint of the selected files.
    pub selection: Option<[u8; 32]>,
    /// The platform of the step.
    pub platform: &'a Platform,
}

/// The key of a step. An image has none: it is what its layers' digests say ([`Identity::image`]).
pub fn step_key(flavour: Flavour, op: &Op, inputs: &Inputs<'_>) -> CacheKey {
    let mut fields = Fields::new(match flavour {
        Flavour::Definition => "definition",
        Flavour::Content => "content",
    });
    fields = fields.bytes("parent", &inputs.parent.0);
    fields = match op {
        Op::Image(_) => fields.text("op", "image"),
        Op::Exec(op) => exec(fields.text("op", "exec").text("platform", &inputs.platform.to_string()), op, &inputs.mounts),
        Op::Copy(op) => copy(fields.text("op", "copy"), op, inputs.selection),
        Op::Context(_) => fields.text("op", "context").bytes("selection", &inputs.selection.unwrap_or_default()),
        Op::Workdir(op) => workdir(fields.text("op", "workdir"), op),
    };
    CacheKey(fields.identity().0)
}

/// The key under which the fingerprint of a selection from a stage is remembered.
pub fn selection_key(source: Identity, op: &CopyOp) -> CacheKey {
    let mut fields = Fields::new("selection").bytes("source", &source.0);
    for source in &op.sources {
        if let CopySource::Path(path) = source {
            fields = fields.text("path", path);
        }
    }
    for pattern in &op.exclude {
        fields = fields.text("exclude", pattern);
    }
    let fields = fields.flag("parents", op.parents).flag("add", op.is_add);
    CacheKey(fields.identity().0)
}

/// The definition of a selection from a stage: what the stage is, and what is taken from it.
pub fn selection_definition(source: Identity, op: &CopyOp) -> [u8; 32] {
    Fields::new("selection by definition").bytes("key", &selection_key(source, op).0).identity().0
}

/// A key for something that is remembered about `text`, in a name space of its own.
pub fn memo_key(space: &str, text: &str) -> CacheKey {
    CacheKey(Fields::new("memo").text("space", space).text("text", text).identity().0)
}

fn exec(mut fields: Fields, op: &ExecOp, mounts: &[Identity]) -> Fields {
    for arg in &op.args {
        fields = fields.text("arg", arg);
    }
    for (name, value) in &op.env {
        fields = fields.text("env name", name).text("env value", value);
    }
    fields = fields.bytes("cwd", op.cwd.as_bytes()).text("user", &op.user).text("hostname", &op.hostname);
    fields = fields.text(
        "network",
        match op.network {
            NetworkMode::Default => "default",
            NetworkMode::Host => "host",
            NetworkMode::None => "none",
            NetworkMode::Private => "private",
        },
    );
    fields = fields.text(
        "security",
        match op.security {
            SecurityMode::Sandbox => "sandbox",
            SecurityMode::Insecure => "insecure",
        },
    );
    for (name, _) in &op.extra_hosts {
        fields = fields.text("extra host", name);
    }
    for mount in &op.mounts {
        fields = fields.bytes("mount target", mount.target.as_bytes());
        fields = match &mount.kind {
            MountKind::Bind(bind) => fields.text("mount", "bind").flag("writable", bind.writable),
            MountKind::Cache(cache) => fields
                .text("mount", "cache")
                .flag("seeded", cache.from.is_some())
                .text("attributes", &format!("{:o} {} {}", cache.mode, cache.uid, cache.gid))
                .flag("readonly", cache.readonly),
            MountKind::Tmpfs { size } => fields.text("mount", "tmpfs").text("size", &format!("{size:?}")),
            MountKind::Secret(secret) => fields
                .text("mount", "secret")
                .text("id", &secret.id)
                .flag("file", secret.file)
                .text("env", &format!("{:?}", secret.env))
                .text("attributes", &format!("{:o} {} {}", secret.mode, secret.uid, secret.gid))
                .flag("required", secret.required),
            MountKind::Ssh(ssh) => fields
                .text("mount", "ssh")
                .text("id", &ssh.id)
                .text("attributes", &format!("{:o} {} {}", ssh.mode, ssh.uid, ssh.gid))
                .flag("required", ssh.required),
        };
    }
    for mount in mounts {
        fields = fields.bytes("mounted", &mount.0);
    }
    for file in &op.files {
        fields = fields.bytes("file", file.path.as_bytes()).bytes("data", &file.data).text("mode", &format!("{:o}", file.mode));
    }
    fields
}

fn copy(mut fields: Fields, op: &CopyOp, selection: Option<[u8; 32]>) -> Fields {
    fields = fields.bytes("selection", &selection.unwrap_or_default());
    for source in &op.sources {
        if let CopySource::Inline { name, data } = source {
            fields = fields.text("inline", name).bytes("data", data);
        }
    }
    fields = fields.bytes("dest", op.dest.as_bytes()).flag("dest is a folder", op.dest_is_dir);
    fields = fields.text("chown", &format!("{:?}", op.chown)).text("chmod", &format!("{:?}", op.chmod));
    fields = fields.flag("link", op.link).flag("parents", op.parents).flag("add", op.is_add);
    fields.text("unpack", &format!("{:?}", op.unpack)).text("keep git dir", &format!("{:?}", op.keep_git_dir))
}

fn workdir(fields: Fields, op: &WorkdirOp) -> Fields {
    fields.bytes("path", op.path.as_bytes()).text("user", &op.user)
}

/// An unambiguous list of named values: each name and value is preceded by its length.
struct Fields(blake3::Hasher);

impl Fields {
    fn new(what: &str) -> Self {
        Self::of(FORMAT, what)
    }

    fn of(format: &str, what: &str) -> Self {
        Self(blake3::Hasher::new()).text("format", format).text("what", what)
    }

    fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        for part in [name.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        self.bytes(name, value.as_bytes())
    }

    fn flag(self, name: &str, value: bool) -> Self {
        self.bytes(name, &[u8::from(value)])
    }

    fn identity(self) -> Identity {
        Identity(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests;
