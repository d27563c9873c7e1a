//! Hides how all blobs are read at once.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use kiln_oci::digest::{Digest, Hasher};
use rayon::prelude::*;

use super::survey::names;
use super::{Found, GoOn, Object, Present};
use crate::Store;
use crate::error::Result;

/// What is read at once.
const PIECE: usize = 256 << 10;

/// Proves every blob; the digests of all files that are there, whole or not.
pub(super) fn check(store: &Store, go_on: GoOn<'_>, found: &mut Found) -> Result<Present> {
    let present = present(store)?;
    let broken: Vec<(Digest, String)> = present
        .par_iter()
        .filter_map(|digest| {
            go_on(&format!("blob {digest}")).is_continue().then(|| Some((*digest, damage(store, digest)?))).flatten()
        })
        .collect();
    found.extend(broken.into_iter().map(|(digest, reason)| (Object::Blob(digest), reason)));
    Ok(present)
}

/// The digests of all files that are there, whole or not.
pub(super) fn present(store: &Store) -> Result<Present> {
    let names = names(&store.layout().blobs())?;
    Ok(names.iter().filter_map(|name| Digest::from_hex(name)).collect())
}

/// What is wrong with the file of a blob; nothing, too, if it is gone.
pub(super) fn damage(store: &Store, digest: &Digest) -> Option<String> {
    // Somebody who notices as well may put a good one in its place while the bad one is read.
    let first = read(&store.layout().blob(digest), digest)?;
    read(&store.layout().blob(digest), digest).map(|_| first)
}

fn read(path: &Path, digest: &Digest) -> Option<String> {
    let unreadable = |error: std::io::Error| Some(format!("it can't be read: {error}"));
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return unreadable(error),
    };
    let (mut hasher, mut piece, mut size) = (Hasher::new(), vec![0; PIECE], 0);
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&piece[..count]);
                size += count;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return unreadable(error),
        }
    }
    match hasher.finish() == *digest {
        true => None,
        false if size == 0 => Some("it is empty".to_owned()),
        false => Some("its digest is wrong".to_owned()),
    }
}
