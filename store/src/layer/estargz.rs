//! Hides where the gzip members of an eStargz layer begin (stargz-snapshotter, docs/estargz.md): a tar.gz of which every file can
//! be fetched and proved by itself.
//!
//! The table of contents and the landmark are files of the tar, so it is another tar than that of the plain layer.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln_oci::digest::{DiffId, Digest, Hasher};
use serde::Serialize;

use super::compress::EncodeOptions;
use super::compress::gzip::Deflater;
use super::compress::ordered::Ordered;
use crate::rootdir::Kind;
use crate::tar::{self, Entry, EntryKind, WriteError};

/// Longest piece of a file that is a member of its own, as the reference implementation has it.
const CHUNK: usize = 4 << 20;
const TOC_NAME: &[u8] = b"stargz.index.json";
/// Says that no file is to be fetched before it is asked for.
const LANDMARK: &[u8] = b".no.prefetch.landmark";
const OTHER_LANDMARK: &[u8] = b".prefetch.landmark";
const LANDMARK_CONTENT: &[u8] = &[0x0f];

/// What [`Writer::finish`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The digest of the tar.
    pub diff_id: DiffId,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// The digest of the table of contents.
    pub toc: Digest,
}

#[derive(Serialize)]
struct Toc {
    version: u32,
    entries: Vec<TocEntry>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    time: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    mode: u32,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_none")]
    dev_major: u32,
    #[serde(skip_serializing_if = "is_none")]
    dev_minor: u32,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    xattrs: std::collections::BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

/// A member to be compressed: the piece of a file that it begins with, and padding and headers of what follows.
struct Job {
    data: Vec<u8>,
    /// Which entry of the table the piece belongs to, and its length.
    piece: Option<(usize, usize)>,
}

struct Done {
    member: io::Result<Vec<u8>>,
    piece: Option<(usize, String)>,
}

/// Takes the entries of a tar and writes an eStargz blob, with threads of its own.
pub struct Writer<W: Write> {
    out: Out<W>,
    tar: tar::Writer<Vec<u8>>,
    members: Ordered<Job, Done>,
    hash: SyncSender<Vec<u8>>,
    hashed: std::thread::JoinHandle<DiffId>,
    tar_size: u64,
    /// The piece that the member being filled begins with.
    piece: Option<(usize, usize)>,
    file: Option<File>,
    /// The content of an entry that is left out.
    skipping: bool,
}

/// A file whose content is being written.
struct File {
    entry: usize,
    name: String,
    left: u64,
    /// Of the whole file, when it has more than one piece.
    hasher: Option<Hasher>,
}

struct Out<W> {
    sink: W,
    at: u64,
    toc: Toc,
}

impl<W: Write> Out<W> {
    fn take(&mut self, done: Done) -> io::Result<()> {
        let member = done.member?;
        if let Some((entry, digest)) = done.piece {
            let entry = &mut self.toc.entries[entry];
            entry.offset = self.at;
            if entry.digest.is_empty() && entry.kind == "reg" && entry.chunk_size == 0 {
                entry.digest.clone_from(&digest);
            }
            entry.chunk_digest = digest;
        }
        self.put(&member)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.sink.write_all(bytes)
    }
}

impl<W: Write> Writer<W> {
    /// Begins a blob in `sink`, with its landmark.
    pub fn new(sink: W, options: EncodeOptions) -> Result<Self, WriteError> {
        let level = options.gzip_level();
        let members = Ordered::new(options.threads(), || {
            let mut deflater = Deflater::new(level);
            move |job: Job| Done {
                piece: job.piece.map(|(entry, length)| (entry, Digest::of(&job.data[..length]).to_string())),
                member: deflater.member(&job.data),
            }
        })?;
        let (hash, pieces) = sync_channel(4);
        let hashed = std::thread::Builder::new().name("hash".into()).spawn(move || digest(&pieces))?;
        let out = Out { sink, at: 0, toc: Toc { version: 1, entries: Vec::new() } };
        let tar = tar::Writer::new(Vec::new());
        let mut writer = Self { out, tar, members, hash, hashed, tar_size: 0, piece: None, file: None, skipping: false };
        writer.add(&Entry::file(LANDMARK, LANDMARK_CONTENT.len() as u64))?;
        writer.content(LANDMARK_CONTENT)?;
        Ok(writer)
    }

    /// Begins an entry: as many bytes as `entry.size` says must be written next.
    pub fn start(&mut self, entry: &Entry) -> Result<(), WriteError> {
        // What an earlier conversion left is made anew.
        let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        self.skipping = [TOC_NAME, LANDMARK, OTHER_LANDMARK].contains(&name);
        if self.skipping { Ok(()) } else { self.add(entry) }
    }

    fn add(&mut self, entry: &Entry) -> Result<(), WriteError> {
        self.tar.start(entry)?;
        let described = describe(entry)?;
        let number = self.out.toc.entries.len();
        self.file = None;
        if described.kind == "reg" && entry.size > 0 {
            self.send()?;
            self.piece = Some((number, 0));
            let hasher = (entry.size > CHUNK as u64).then(Hasher::new);
            self.file = Some(File { entry: number, name: described.name.clone(), left: entry.size, hasher });
        } else if self.tar.get_mut().len() > CHUNK {
            self.send()?;
        }
        self.out.toc.entries.push(described);
        Ok(())
    }

    /// Writes content of the entry begun last.
    pub fn content(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        if self.skipping {
            return Ok(());
        }
        while !bytes.is_empty() {
            let Some((_, filled)) = self.piece else { break };
            let room = CHUNK - filled;
            if room == 0 {
                self.next_piece()?;
                continue;
            }
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.tar.content(now)?;
            if let Some(file) = &mut self.file {
                file.left = file.left.saturating_sub(now.len() as u64);
                if let Some(hasher) = &mut file.hasher {
                    hasher.update(now);
                    if file.left == 0 {
                        let digest = std::mem::replace(hasher, Hasher::new()).finish().to_string();
                        self.out.toc.entries[file.entry].digest = digest;
                    }
                }
            }
            self.piece = self.piece.map(|(entry, filled)| (entry, filled + now.len()));
            bytes = rest;
        }
        // More than was announced: the archive says so.
        if bytes.is_empty() { Ok(()) } else { self.tar.content(bytes) }
    }

    /// Ends the piece of a file and begins the next one.
    fn next_piece(&mut self) -> io::Result<()> {
        let (Some(file), Some((entry, filled))) = (&self.file, self.piece) else { return Ok(()) };
        let offset = self.out.toc.entries[entry].chunk_offset + filled as u64;
        let chunk_size = if file.left > CHUNK as u64 { CHUNK as u64 } else { 0 };
        let next = TocEntry { name: file.name.clone(), kind: "chunk", chunk_offset: offset, chunk_size, ..TocEntry::default() };
        let number = self.out.toc.entries.len();
        self.out.toc.entries.push(next);
        self.send()?;
        self.piece = Some((number, 0));
        Ok(())
    }

    /// Hands the member that was filled to the threads.
    fn send(&mut self) -> io::Result<()> {
        let data = std::mem::take(self.tar.get_mut());
        let piece = self.piece.take();
        if data.is_empty() {
            return Ok(());
        }
        self.tar_size += data.len() as u64;
        self.hash.send(data.clone()).map_err(|_| lost())?;
        let out = &mut self.out;
        self.members.send(Job { data, piece }, &mut |done| out.take(done))
    }

    /// Writes table and footer.
    pub fn finish(mut self) -> Result<(W, Made), WriteError> {
        // Padding of the last file; the end marks come after the table.
        self.tar.end_entry()?;
        self.send()?;
        let out = &mut self.out;
        self.members.finish(&mut |done| out.take(done))?;
        let json = serde_json::to_vec(&self.out.toc).map_err(io::Error::other)?;
        let toc_at = self.out.at;
        self.tar.append(&Entry { mode: 0o444, ..Entry::file(TOC_NAME, json.len() as u64) }, &json)?;
        let (table, _) = self.tar.finish()?;
        self.tar_size += table.len() as u64;
        // One member, however long it is: it is read as a whole.
        self.out.put(&Deflater::new(9).member(&table)?)?;
        self.hash.send(table).map_err(|_| lost())?;
        drop(self.hash);
        self.out.put(&footer(toc_at))?;
        let diff_id = self.hashed.join().map_err(|_| lost())?;
        Ok((self.out.sink, Made { diff_id, tar_size: self.tar_size, toc: Digest::of(&json) }))
    }
}

fn describe(entry: &Entry) -> Result<TocEntry, WriteError> {
    let unfit = |reason| WriteError::Unfit { path: entry.path.clone(), reason };
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| unfit("an eStargz table can't say its name, which isn't UTF-8"))
    };
    let kind = match entry.kind {
        EntryKind::HardLink => "hardlink",
        EntryKind::Node(Kind::Dir) => "dir",
        EntryKind::Node(Kind::File) => "reg",
        EntryKind::Node(Kind::Symlink) => "symlink",
        EntryKind::Node(Kind::Char) => "char",
        EntryKind::Node(Kind::Block) => "block",
        EntryKind::Node(Kind::Fifo) => "fifo",
        EntryKind::Node(Kind::Socket) => return Err(unfit("it is a socket")),
    };
    let mut xattrs = std::collections::BTreeMap::new();
    for (key, value) in &entry.xattrs {
        xattrs.insert(text(key)?, BASE64_STANDARD.encode(value));
    }
    let size = if kind == "reg" { entry.size } else { 0 };
    Ok(TocEntry {
        name: text(&entry.path)?,
        kind,
        size,
        time: rfc3339(entry.mtime.secs),
        link_name: text(&entry.link)?,
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        dev_major: entry.rdev.0,
        dev_minor: entry.rdev.1,
        xattrs,
        // The digest of what is empty is known; that of a file in several pieces when its last one is written.
        digest: if kind == "reg" && size == 0 { Digest::of(b"").to_string() } else { String::new() },
        chunk_size: if size > CHUNK as u64 { CHUNK as u64 } else { 0 },
        ..TocEntry::default()
    })
}

/// An empty gzip member with the place of the table in its extra field: 51 bytes.
fn footer(toc_at: u64) -> Vec<u8> {
    let field = format!("{toc_at:016x}STARGZ");
    let mut out = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
    out.extend_from_slice(field.as_bytes());
    // A stored last block of nothing, its checksum and its size.
    out.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    out
}

/// UTC to the second; nothing for the time 0, which the format takes for unknown, and for years that it can't say.
fn rfc3339(secs: i64) -> String {
    if secs == 0 {
        return String::new();
    }
    let (days, second) = (secs.div_euclid(86400), secs.rem_euclid(86400));
    // Civil from days, with years that begin in March (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    if !(0..=9999).contains(&year) {
        return String::new();
    }
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

fn digest(pieces: &Receiver<Vec<u8>>) -> DiffId {
    let mut hasher = Hasher::new();
    while let Ok(piece) = pieces.recv() {
        hasher.update(&piece);
    }
    DiffId::new(hasher.finish())
}

fn lost() -> io::Error {
    io::Error::other("the hashing thread ended unexpectedly")
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("tar_size", &self.tar_size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
