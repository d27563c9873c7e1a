//! Hides how the fingerprints of files are remembered from build to build: one small file of fixed records, believed only whole.
//!
//! A record says: the file with this device, inode, size, mtime and ctime had this fingerprint. A program can set a file's
//! mtime but not its ctime, so a file that was written since has another record. The one gap is the clock's grain: a file
//! that was written, fingerprinted and written again within one tick looks the same. So what was changed less than
//! [`GRAIN`] before it was read is not remembered (git calls such an entry "racily clean").
//!
//! The file is `kiln-memo2\n`, the BLAKE3 of the rest, the machine's boot id (hashed) and the time (seconds) of the last reading, then
//! records sorted by their bytes: device, inode, size, mtime, ctime (big-endian), fingerprint, and the number of times it was saved
//! without having been asked for. There's no `fsync`: a torn file fails its checksum and counts as empty.
//!
//! When the power fails, a file that was overwritten in place can keep its new times and its old bytes. So what was changed within
//! [`FLUSH`] before the last reading is believed only until the machine starts anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use crate::record;
use crate::rootdir::{Meta, Timestamp};
use crate::session;

/// Changes younger than this when the file was read are not trusted: coarser than the times of any file system but FAT's, whose
/// grain it is.
pub const GRAIN: Duration = Duration::from_secs(2);

/// After so long what was written is on the disk: the kernel begins with it after 30 seconds (`vm.dirty_expire_centisecs`).
const FLUSH: Duration = Duration::from_mins(3);

/// A private digest: BLAKE3, never an OCI digest.
pub type Fingerprint = [u8; 32];

/// What tells a file apart from what it was before it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId([u8; KEY]);

impl FileId {
    /// The identity of the file that `meta` describes.
    pub fn of(meta: &Meta) -> Self {
        let mut key = [0; KEY];
        key[0..8].copy_from_slice(&meta.ino.to_be_bytes());
        key[8..16].copy_from_slice(&meta.dev.to_be_bytes());
        key[16..24].copy_from_slice(&meta.size.to_be_bytes());
        key[24..36].copy_from_slice(&time_bytes(meta.mtime));
        key[36..48].copy_from_slice(&time_bytes(meta.ctime));
        Self(key)
    }
}

fn time_bytes(time: Timestamp) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&time.secs.to_be_bytes());
    bytes[8..].copy_from_slice(&time.nanos.to_be_bytes());
    bytes
}

const MAGIC: &[u8] = b"kiln-memo2\n";
/// What the seal covers begins here.
const BODY: usize = MAGIC.len() + 32;
const BOOT: usize = 16;
const HEADER: usize = BODY + BOOT + 8;
const KEY: usize = 48;
/// Where the seconds of the change time stand in a key.
const CHANGED: usize = 36;
const VALUE: usize = 32;
const RECORD: usize = KEY + VALUE + 1;
/// A record that was of no use this many times is dropped: its file is gone, or was written since.
const MAX_AGE: u8 = 8;

/// Remembered fingerprints; threads may ask and add at once.
#[derive(Debug, Default)]
pub struct Memo {
    path: Option<PathBuf>,
    /// The records as they are on disk.
    records: Vec<u8>,
    used: Vec<AtomicBool>,
    fresh: Mutex<Fresh>,
}

/// What was learnt since the file was read.
#[derive(Debug, Default)]
struct Fresh {
    records: Vec<(FileId, Fingerprint)>,
    /// When the last of it was read, in seconds since 1970.
    read_at: u64,
}

impl Memo {
    /// Reads what is remembered at `path`. A file that is absent, damaged or of another version is an empty one: all that
    /// is lost is time.
    pub fn open(path: &Path) -> Self {
        let mut records = fs::read(path).ok().and_then(verified).unwrap_or_default();
        if !records.is_empty() {
            // Collected when it wasn't used for long.
            record::touch_path(path);
        }
        records.truncate(records.len() / RECORD * RECORD);
        let used = (0..records.len() / RECORD).map(|_| AtomicBool::new(false)).collect();
        Self { path: Some(path.to_owned()), records, used, fresh: Mutex::default() }
    }

    /// Whether what is remembered at `path` can be read.
    pub(crate) fn is_whole(path: &Path) -> bool {
        match fs::read(path) {
            Ok(bytes) => verified(bytes).is_some_and(|records| records.len() % RECORD == 0),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// A memo that forgets.
    pub fn forgetful() -> Self {
        Self::default()
    }

    /// What the file had when it was last fingerprinted, if that can be trusted.
    pub fn get(&self, id: &FileId) -> Option<Fingerprint> {
        let (mut low, mut high) = (0, self.used.len());
        while low < high {
            let middle = low.midpoint(high);
            let record = &self.records[middle * RECORD..][..RECORD];
            match record[..KEY].cmp(&id.0[..]) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    self.used[middle].store(true, Ordering::Relaxed);
                    return record[KEY..KEY + VALUE].try_into().ok();
                }
            }
        }
        None
    }

    /// Remembers what the file that `meta` describes has. `read_at` is a moment before the reading began and before `meta`
    /// was taken; if the file was changed shortly before it, nothing is remembered.
    pub fn put(&self, meta: &Meta, fingerprint: Fingerprint, read_at: SystemTime) {
        if self.path.is_some() && is_settled(meta, read_at) {
            let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            fresh.records.push((FileId::of(meta), fingerprint));
            fresh.read_at = fresh.read_at.max(read_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        }
    }

    /// Writes what was learnt, if anything. While another process writes, nothing is done: it's only a memo.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh.records.is_empty() {
            return Ok(());
        }
        let mut records: Vec<[u8; RECORD]> = Vec::with_capacity(self.used.len() + fresh.records.len());
        for (old, used) in self.records.chunks_exact(RECORD).zip(&self.used) {
            let mut record = [0; RECORD];
            record.copy_from_slice(old);
            record[RECORD - 1] = if used.load(Ordering::Relaxed) { 0 } else { old[RECORD - 1].saturating_add(1) };
            if record[RECORD - 1] <= MAX_AGE {
                records.push(record);
            }
        }
        for (id, fingerprint) in &fresh.records {
            let mut record = [0; RECORD];
            record[..KEY].copy_from_slice(&id.0);
            record[KEY..KEY + VALUE].copy_from_slice(fingerprint);
            records.push(record);
        }
        // Of two records of one file the one just learnt (age 0) stays.
        records.sort_unstable_by(|a, b| a[..KEY].cmp(&b[..KEY]).then(a[RECORD - 1].cmp(&b[RECORD - 1])));
        records.dedup_by(|a, b| a[..KEY] == b[..KEY]);
        write(path, &[&this_boot()[..], &fresh.read_at.to_be_bytes(), records.as_flattened()].concat())?;
        fresh.records.clear();
        Ok(())
    }
}

/// Whether a later write would show in the times of `meta`. An mtime of long ago or of the future says nothing either way.
fn is_settled(meta: &Meta, read_at: SystemTime) -> bool {
    let now = read_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
    let grain = i128::try_from(GRAIN.as_nanos()).unwrap_or(i128::MAX);
    let nanos = |time: Timestamp| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    nanos(meta.ctime) + grain <= now && (now - nanos(meta.mtime)).abs() >= grain
}

/// The boot id as it stands in the file; of a kernel that says none, zeros.
fn this_boot() -> [u8; BOOT] {
    let mut short = [0; BOOT];
    if let Some(id) = session::boot_id() {
        short.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..BOOT]);
    }
    short
}

/// The records of an undamaged file that can be believed.
fn verified(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let body = bytes.get(BODY..)?;
    if !bytes.starts_with(MAGIC) || bytes[MAGIC.len()..BODY] != *blake3::hash(body).as_bytes() {
        return None;
    }
    let (boot, read_at) = body.get(..HEADER - BODY)?.split_at(BOOT);
    let read_at = u64::from_be_bytes(read_at.try_into().ok()?);
    let is_of_now = *boot == this_boot() && *boot != [0; BOOT];
    bytes.drain(..HEADER);
    if is_of_now {
        return Some(bytes);
    }
    let on_disk = i64::try_from(read_at.saturating_sub(FLUSH.as_secs())).unwrap_or(i64::MAX);
    let is_on_disk = |record: &&[u8]| {
        let changed = record.get(CHANGED..CHANGED + 8).and_then(|secs| secs.try_into().ok());
        changed.is_some_and(|secs| i64::from_be_bytes(secs) < on_disk)
    };
    Some(bytes.chunks(RECORD).filter(is_on_disk).flatten().copied().collect())
}

/// Replaces `path` by a rename. Of several processes one writes, so that a draft is never two people's.
fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&draft)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_at(&file, &draft)? => {}
        // Someone else is writing, or has just renamed what was opened here.
        Ok(()) | Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
        Err(e) => return Err(e.into()),
    }
    file.set_len(0)?;
    (&file).write_all(MAGIC)?;
    (&file).write_all(blake3::hash(body).as_bytes())?;
    (&file).write_all(body)?;
    fs::rename(&draft, path)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (here, there) = (file.metadata()?, fs::symlink_metadata(path));
    Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootdir::RootDir;

    fn meta(dir: &Path, name: &str) -> Meta {
        RootDir::open(dir).unwrap().stat(name.as_bytes()).unwrap().unwrap()
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(10)
    }

    #[test]
    fn what_was_learnt_is_there_the_next_time() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("memo");
        for i in 0..100 {
            fs::write(temp.path().join(format!("f{i}")), format!("{i}")).unwrap();
        }
        let metas: Vec<Meta> = (0..100).map(|i| meta(temp.path(), &format!("f{i}"))).collect();
        let memo = Memo::open(&path);
        for (i, meta) in (0..).zip(&metas) {
            assert_eq!(memo.get(&FileId::of(meta)), None);
            memo.put(meta, [i; 32], later());
        }
        memo.save().unwrap();
        let memo = Memo::open(&path);
        for (i, meta) in (0..).zip(&metas) {
            assert_eq!(memo.get(&FileId::of(meta)), Some([i; 32]));
        }
        // Any change of the file makes it another one, even with size and mtime put back.
        let changed = temp.path().join("f7");
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&changed, "8").unwrap();
        let file = File::options().write(true).open(&changed).unwrap();
        let mtime = UNIX_EPOCH + Duration::new(metas[7].mtime.secs.try_into().unwrap(), metas[7].mtime.nanos);
        file.set_modified(mtime).unwrap();
        let now = meta(temp.path(), "f7");
        assert_eq!((now.size, now.mtime), (metas[7].size, metas[7].mtime));
        assert_eq!(memo.get(&FileId::of(&now)), None);
    }

    #[test]
    fn fresh_files_are_not_trusted() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("f"), "x").unwrap();
        let mut m = meta(temp.path(), "f");
        m.ctime = Timestamp::from_secs(1_000_000);
        let at = |nanos: u64| UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_nanos(nanos);
        const SECOND: u64 = 1_000_000_000;
        for (mtime, read_at, settled) in [
            (1_000_000, at(0), false),
            (1_000_000, at(2 * SECOND - 1), false),
            (1_000_000, at(2 * SECOND), true),
            (5, at(SECOND), false),
            (5, at(3 * SECOND), true),
            (-5, at(3 * SECOND), true),
            (1_000_004, at(3 * SECOND), false),
            (2_000_000, at(3 * SECOND), true),
        ] {
            m.mtime = Timestamp::from_secs(mtime);
            assert_eq!(is_settled(&m, read_at), settled, "{mtime} {read_at:?}");
        }
    }

    #[test]
    fn after_a_start_only_what_had_time_to_reach_the_disk_is_believed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("memo");
        fs::write(temp.path().join("f"), "x").unwrap();
        let now = SystemTime::now();
        let secs = i64::try_from(now.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let flush = i64::try_from(FLUSH.as_secs()).unwrap();
        let ages = [5, flush - 1, flush, flush + 1, 100_000];
        let metas = ages.map(|age| Meta {
            ctime: Timestamp::from_secs(secs - age),
            mtime: Timestamp::from_secs(5),
            ..meta(temp.path(), "f")
        });
        let memo = Memo::open(&path);
        for meta in &metas {
            memo.put(meta, [1; 32], now);
        }
        memo.save().unwrap();
        let known = || metas.map(|meta| Memo::open(&path).get(&FileId::of(&meta)).is_some());
        assert_eq!(known(), [true; 5]);
        let mut bytes = fs::read(&path).unwrap();
        bytes[BODY] ^= 1;
        let seal = *blake3::hash(&bytes[BODY..]).as_bytes();
        bytes[MAGIC.len()..BODY].copy_from_slice(&seal);
        fs::write(&path, bytes).unwrap();
        assert_eq!(known(), [false, false, false, true, true]);
    }

    #[test]
    fn damage_is_emptiness_and_disuse_forgetting() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("memo");
        let m = meta(temp.path().parent().unwrap(), temp.path().file_name().unwrap().to_str().unwrap());
        let memo = Memo::open(&path);
        memo.put(&m, [1; 32], later());
        memo.save().unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in [0, 5, HEADER, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(Memo::open(&path).get(&FileId::of(&m)), None, "cut at {cut}");
        }
        let mut flipped = whole.clone();
        flipped[HEADER + KEY] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(Memo::open(&path).get(&FileId::of(&m)), None);

        fs::write(&path, &whole).unwrap();
        for i in 0..=u64::from(MAX_AGE) {
            let memo = Memo::open(&path);
            let other = Meta { ino: m.ino + 1 + i, ..m };
            memo.put(&other, [2; 32], later());
            memo.save().unwrap();
            assert_eq!(Memo::open(&path).get(&FileId::of(&m)).is_some(), i < u64::from(MAX_AGE), "save {i}");
        }
        assert!(!temp.path().join("memo.draft").exists());
    }
}
