//! Hides how the records of files that can hold none themselves are kept: in a file beside their tree, by path.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::Xattrs;

/// The records beside one tree. Read once, when the first is asked for; written by [`Table::save`].
#[derive(Debug)]
pub(super) struct Table {
    file: PathBuf,
    rows: RwLock<Option<Rows>>,
}

#[derive(Debug, Default)]
struct Rows {
    by_path: BTreeMap<Vec<u8>, Xattrs>,
    changed: bool,
}

/// What the file begins with; the checksum of the rest comes after it.
const TITLE: &str = "kiln owners 1 blake3:";

impl Table {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, rows: RwLock::new(None) }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// One record of `path`.
    pub(super) fn get(&self, path: &[u8], key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.read(|rows| rows.by_path.get(path).and_then(|row| row.get(key)).cloned())
    }

    /// Every path that has records.
    pub(super) fn paths(&self) -> io::Result<Vec<Vec<u8>>> {
        self.read(|rows| rows.by_path.keys().cloned().collect())
    }

    /// All records of `path`.
    pub(super) fn row(&self, path: &[u8]) -> io::Result<Xattrs> {
        self.read(|rows| rows.by_path.get(path).cloned().unwrap_or_default())
    }

    /// Sets or takes away one record.
    pub(super) fn set(&self, path: &[u8], key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        if value.is_none() && self.get(path, key)?.is_none() {
            return Ok(());
        }
        self.change(|rows| match value {
            Some(value) => {
                rows.entry(path.to_vec()).or_default().insert(key.to_vec(), value.to_vec());
            }
            None => {
                if let Some(row) = rows.get_mut(path) {
                    row.remove(key);
                    if row.is_empty() {
                        rows.remove(path);
                    }
                }
            }
        })
    }

    /// Gives `path` the records `row` and no others.
    pub(super) fn replace(&self, path: &[u8], row: Xattrs) -> io::Result<()> {
        if row == self.row(path)? {
            return Ok(());
        }
        self.change(|rows| match row.is_empty() {
            true => drop(rows.remove(path)),
            false => drop(rows.insert(path.to_vec(), row)),
        })
    }

    /// Takes away the records of `path` and of all below it, and gives them with the rest of their paths.
    pub(super) fn take(&self, path: &[u8]) -> io::Result<Vec<(Vec<u8>, Xattrs)>> {
        if self.read(|rows| rows.by_path.is_empty())? {
            return Ok(Vec::new());
        }
        let below = [path, b"/"].concat();
        let mut taken = Vec::new();
        self.change(|rows| {
            let inside = rows.range::<[u8], _>((Bound::Included(&below[..]), Bound::Unbounded));
            let mut paths: Vec<_> = inside.map(|(at, _)| at.clone()).take_while(|at| at.starts_with(&below)).collect();
            paths.push(path.to_vec());
            for at in paths {
                taken.extend(rows.remove(&at).map(|row| (at[path.len()..].to_vec(), row)));
            }
        })?;
        Ok(taken)
    }

    /// Writes the file anew if anything changed; as a whole, or not at all.
    pub(super) fn save(&self) -> io::Result<()> {
        let mut guard = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let Some(rows) = guard.as_mut().filter(|rows| rows.changed) else { return Ok(()) };
        if rows.by_path.is_empty() {
            match std::fs::remove_file(&self.file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        } else {
            let mut draft = self.file.clone().into_os_string();
            draft.push(".new");
            let mut file = std::fs::File::create(&draft)?;
            file.write_all(&encode(&rows.by_path))?;
            std::fs::rename(&draft, &self.file)?;
        }
        rows.changed = false;
        Ok(())
    }

    fn read<T>(&self, ask: impl FnOnce(&Rows) -> T) -> io::Result<T> {
        let guard: RwLockReadGuard<'_, _> = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = &*guard {
            return Ok(ask(rows));
        }
        drop(guard);
        let mut guard = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(self.load()?);
        }
        Ok(ask(guard.get_or_insert_with(Rows::default)))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Vec<u8>, Xattrs>)) -> io::Result<()> {
        self.read(|_| ())?;
        let mut guard = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let rows = guard.get_or_insert_with(Rows::default);
        change(&mut rows.by_path);
        rows.changed = true;
        Ok(())
    }

    fn load(&self) -> io::Result<Rows> {
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Rows::default()),
            Err(e) => return Err(e),
        };
        let by_path = decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not whole"))?;
        Ok(Rows { by_path, changed: false })
    }
}

/// Rows of path, key and value, each behind its length: any of them may hold any byte.
fn encode(rows: &BTreeMap<Vec<u8>, Xattrs>) -> Vec<u8> {
    let mut body = Vec::new();
    for (path, row) in rows {
        for (key, value) in row {
            for field in [path, key, value] {
                body.extend_from_slice(&(field.len() as u64).to_le_bytes());
                body.extend_from_slice(field);
            }
        }
    }
    let mut file = format!("{TITLE}{}\n", seal(&body)).into_bytes();
    file.append(&mut body);
    file
}

fn decode(file: &[u8]) -> Option<BTreeMap<Vec<u8>, Xattrs>> {
    let rest = file.strip_prefix(TITLE.as_bytes())?;
    let end = rest.iter().position(|b| *b == b'\n')?;
    let (sum, mut body) = (&rest[..end], &rest[end + 1..]);
    if sum != seal(body).as_bytes() {
        return None;
    }
    let mut rows: BTreeMap<Vec<u8>, Xattrs> = BTreeMap::new();
    let field = |body: &mut &[u8]| {
        let (length, rest) = body.split_first_chunk::<8>()?;
        let (field, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        *body = rest;
        Some(field.to_vec())
    };
    while !body.is_empty() {
        let (path, key, value) = (field(&mut body)?, field(&mut body)?, field(&mut body)?);
        rows.entry(path).or_default().insert(key, value);
    }
    Some(rows)
}

fn seal(body: &[u8]) -> String {
    blake3::hash(body).to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: &[u8]) -> Xattrs {
        Xattrs::from([(b"k".to_vec(), value.to_vec())])
    }

    #[test]
    fn rows_of_any_bytes_come_back_and_a_torn_file_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("owners");
        let table = Table::new(file.clone());
        table.save().unwrap();
        assert!(!file.exists(), "nothing was recorded");
        table.set(b"a/\xff\n\0b", b"user.kiln.owner", Some(b"1:2")).unwrap();
        table.set(b"a/\xff\n\0b", b"x", Some(b"")).unwrap();
        table.set(b"", b"root", Some(&[0; 300])).unwrap();
        table.save().unwrap();
        let again = Table::new(file.clone());
        assert_eq!(again.get(b"a/\xff\n\0b", b"user.kiln.owner").unwrap().as_deref(), Some(&b"1:2"[..]));
        assert_eq!(again.row(b"a/\xff\n\0b").unwrap().len(), 2);
        assert_eq!(again.get(b"", b"root").unwrap().unwrap().len(), 300);
        assert_eq!(again.get(b"a", b"root").unwrap(), None);
        for cut in [0, 5, 60, std::fs::metadata(&file).unwrap().len() - 1] {
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(temp.path().join("torn"), &bytes[..cut as usize]).unwrap();
            assert!(Table::new(temp.path().join("torn")).row(b"").is_err(), "{cut}");
        }
        again.take(b"").unwrap();
        again.take(b"a").unwrap();
        again.save().unwrap();
        assert!(!file.exists(), "the last record is gone");
    }

    #[test]
    fn taking_a_path_takes_what_lies_below_it_and_no_neighbour() {
        let temp = tempfile::tempdir().unwrap();
        let table = Table::new(temp.path().join("owners"));
        for path in ["a", "a/b", "a/b/c", "a b", "a-", "ab", "b"] {
            table.replace(path.as_bytes(), row(path.as_bytes())).unwrap();
        }
        let mut taken = table.take(b"a").unwrap();
        taken.sort();
        assert_eq!(taken, [(vec![], row(b"a")), (b"/b".to_vec(), row(b"a/b")), (b"/b/c".to_vec(), row(b"a/b/c"))]);
        for (path, left) in [("a", 0), ("a/b", 0), ("a b", 1), ("a-", 1), ("ab", 1), ("b", 1)] {
            assert_eq!(table.row(path.as_bytes()).unwrap().len(), left, "{path}");
        }
    }
}
