//! Hides how the folders of cache mounts are packed, cut and brought to where a cache lives; what is there already is not sent, and
//! not even compressed.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_oci::digest::{Digest, Hasher};
use kiln_store::layer::compress::{Compression, EncodeOptions, Encoder};
use kiln_store::layer::{PackOptions, pack};
use kiln_store::{MountGuard, Still};

use super::chunk::Cutter;
use super::{Chunk, Packed, Stored, VERSION, sum};
use crate::engine::Engine;
use crate::error::Error;
use crate::event::Task;
use crate::remote_cache::backend::{Backend, Document, Subject};
use crate::remote_cache::causes;
use crate::remote_cache::request::{CacheRequest, CacheTarget, TargetPlace};

/// How long another build that uses a folder is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many chunks are compressed and sent at once.
const SENDERS: usize = 4;

/// Writes the folders of the build's cache mounts to the caches that want them. A failure is a warning, but where `ignore-error=false`
/// was given.
///
/// # Errors
/// Of a cache that must be written.
pub fn export(engine: &Engine, caches: &CacheRequest) -> Result<(), Error> {
    for target in &caches.to {
        let (Some(wanted), TargetPlace::Apart(place)) = (&target.mounts, &target.place) else { continue };
        let task = engine.events.start("exporting cache mounts");
        let done = place.open(engine).and_then(|backend| {
            let names = engine.mounts.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let ids = names.into_iter().filter(|(_, name)| wanted.selection.has(name)).map(|(id, _)| id);
            Exporter { engine, backend, target, largest: wanted.largest, task: &task }.run(ids.collect())
        });
        match task.end_with(done) {
            Err(error) if target.must_succeed || matches!(error, Error::Interrupted) => return Err(error),
            Err(error) => engine.events.warn(format!("the cache mounts were not exported: {error}")),
            Ok(()) => {}
        }
    }
    Ok(())
}

struct Exporter<'a> {
    engine: &'a Engine,
    backend: Arc<dyn Backend>,
    target: &'a CacheTarget,
    largest: u64,
    task: &'a Task,
}

impl Exporter<'_> {
    fn run(&self, ids: Vec<String>) -> Result<(), Error> {
        let before = self.before();
        let known: HashMap<&str, &Chunk> = before.iter().flat_map(|m| &m.chunks).map(|c| (c.raw.as_str(), c)).collect();
        let mut mounts = Vec::new();
        for id in ids {
            self.engine.check()?;
            let guard = match self.engine.store.mounts().still(id.as_bytes(), PATIENCE)? {
                Still::Here(guard) => guard,
                // No step that mounts it had to run: what the cache has of it stays.
                Still::Absent => {
                    mounts.extend(before.iter().find(|packed| packed.id == id).cloned());
                    continue;
                }
                Still::InUse => {
                    self.task.warn(format!("the cache mount `{id}` is in use by another build and was left as the cache has it"));
                    mounts.extend(before.iter().find(|packed| packed.id == id).cloned());
                    continue;
                }
            };
            let size = guard.size()?;
            if size > self.largest {
                let (size, largest) = (size >> 20, self.largest >> 20);
                self.task.warn(format!(
                    "the cache mount `{id}` was left out of the cache: it has {size} MiB, more than {largest} (`mounts-max=` allows more)"
                ));
                continue;
            }
            match self.send(id.clone(), &guard, &known) {
                Ok(packed) => mounts.push(packed),
                // A name that no tar can hold, for instance.
                Err(error @ Error::Pack(_)) => {
                    let cause = causes(&error);
                    self.task.warn(format!("the cache mount `{id}` was left out of the cache: {cause}"));
                }
                Err(error) => return Err(error),
            }
        }
        if mounts.is_empty() && before.is_empty() {
            return Ok(());
        }
        let mut layers = Vec::new();
        for descriptor in mounts.iter().flat_map(|mount| &mount.chunks).map(Chunk::descriptor) {
            if !layers.contains(&descriptor) {
                layers.push(descriptor);
            }
        }
        let stored = Stored::new(mounts, self.target.sign.as_deref())?;
        let bytes = serde_json::to_vec(&stored).map_err(Error::internal("write a document about cache mounts"))?;
        self.backend.save(Subject::Mounts, &bytes, &layers)?;
        Ok(())
    }

    /// What the place has. What can't be read is written anew, and so is what another key signed: nobody's word gets this one's
    /// signature.
    fn before(&self) -> Vec<Packed> {
        let documents = self.backend.load(Subject::Mounts).unwrap_or_default();
        let own = documents.into_iter().filter_map(|document| match document {
            Document::Cache { config, .. } => serde_json::from_slice::<Stored>(&config).ok(),
            Document::Image { .. } => None,
        });
        let key = self.target.sign.as_deref();
        let own = own.filter(|s| s.version == VERSION && key.is_none_or(|key| s.signature == key.sign(&sum(&s.mounts))));
        own.flat_map(|stored| stored.mounts).collect()
    }

    /// Packs a folder and sends what the place lacks of it.
    fn send(&self, id: String, guard: &MountGuard, known: &HashMap<&str, &Chunk>) -> Result<Packed, Error> {
        let label = format!("packing cache mount {id}");
        self.task.status(&label, 0, None);
        let tree = self.engine.store.tree(guard.path())?;
        let options = PackOptions { root_entry: true, ..self.engine.store.packing() };
        let done: Mutex<Vec<Option<Chunk>>> = Mutex::default();
        let failure: Mutex<Option<Error>> = Mutex::default();
        let (sender, receiver) = sync_channel::<(usize, Vec<u8>)>(1);
        let receiver = Mutex::new(receiver);
        let packed = std::thread::scope(|scope| {
            for _ in 0..SENDERS {
                scope.spawn(|| {
                    while let Some((index, piece)) = next(&receiver) {
                        match self.chunk(&piece, known) {
                            Ok(chunk) => put(&done, index, chunk),
                            Err(error) => {
                                // The others still empty the queue, or the packer would wait for ever.
                                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            }
                        }
                    }
                });
            }
            let mut count = 0;
            let mut hasher = Hasher::new();
            let cutter = Cutter::new(|piece| {
                let failed = failure.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                if failed || self.engine.check().is_err() || sender.send((count, piece)).is_err() {
                    return Err(io::Error::other("the export ended"));
                }
                count += 1;
                Ok(())
            });
            let mut tee = Tee { cutter, hasher: &mut hasher, total: 0, seen: |total| self.task.status(&label, total, None) };
            let packed = pack(&tree, &mut tee, &options).map_err(Error::from);
            let finished = packed.and_then(|_| tee.cutter.finish().map_err(system));
            drop(sender);
            finished.map(|()| hasher.finish())
        });
        self.engine.check()?;
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let tar = packed?;
        self.task.status_done(&label, 0, None);
        let chunks = done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect();
        Ok(Packed { id, tar, chunks })
    }

    /// Brings one piece of a tar to the place.
    fn chunk(&self, piece: &[u8], known: &HashMap<&str, &Chunk>) -> Result<Chunk, Error> {
        let raw = blake3::hash(piece).to_hex().to_string();
        if let Some(chunk) = known.get(raw.as_str())
            && self.backend.has(&chunk.descriptor())?
        {
            return Ok((*chunk).clone());
        }
        let options = EncodeOptions { level: None, threads: Some(1) };
        let mut encoder = Encoder::new(Vec::new(), Compression::Zstd, options).map_err(system)?;
        encoder.write_all(piece).map_err(system)?;
        let blob = encoder.finish().map_err(system)?;
        let chunk = Chunk { raw, blob: Digest::of(&blob), size: blob.len() as u64 };
        let open = |from: u64| {
            let rest = blob.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
            Ok(Box::new(io::Cursor::new(rest.to_vec())) as Box<dyn Read + Send>)
        };
        let name = chunk.blob.to_string();
        let progress = |sent| self.task.status(&name, sent, Some(chunk.size));
        self.backend.put_layer(&chunk.descriptor(), &[], &open, &progress)?;
        self.task.status_done(&name, chunk.size, Some(chunk.size));
        Ok(chunk)
    }
}

fn next(receiver: &Mutex<Receiver<(usize, Vec<u8>)>>) -> Option<(usize, Vec<u8>)> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn put(done: &Mutex<Vec<Option<Chunk>>>, index: usize, chunk: Chunk) {
    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
    if done.len() <= index {
        done.resize(index + 1, None);
    }
    done[index] = Some(chunk);
}

fn system(cause: io::Error) -> Error {
    Error::System { operation: "pack a cache mount", cause }
}

/// Hashes the tar on its way to where it is cut.
struct Tee<'a, W, S> {
    cutter: W,
    hasher: &'a mut Hasher,
    total: u64,
    seen: S,
}

impl<W: Write, S: Fn(u64)> Write for Tee<'_, W, S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.cutter.write(data)?;
        self.hasher.update(&data[..count]);
        self.total += count as u64;
        (self.seen)(self.total);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.cutter.flush()
    }
}
