//! Hides how a folder that another machine packed comes into a draft of the store: its chunks are fetched a few at a time, in order,
//! and unpacked while they come, by the code that unpacks layers.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use kiln_oci::digest::{DiffId, Digest};
use kiln_store::layer::unpack_blob;
use kiln_store::view::View;

use super::{Packed, Source, TravellingMounts, load};
use crate::engine::Engine;
use crate::error::{Error, StepError};
use crate::event::Task;
use crate::remote_cache::backend::Backend;
use crate::remote_cache::causes;

/// How many chunks are fetched ahead of the one that is unpacked.
const AHEAD: usize = 4;

impl TravellingMounts {
    /// Fills a new folder with what a cache has of it; `false`, and the folder is empty, when there is nothing that could be used.
    pub(crate) fn restore(&self, engine: &Engine, (name, id): (&str, &str), folder: &Path, task: &Task) -> Result<bool, Error> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for source in sources.iter().filter(|source| source.selection.has(name)) {
            let Some(packed) = source.mounts(task).iter().find(|packed| packed.id == id) else { continue };
            let Err(error) = unpack(engine, &*source.backend, packed, folder, task) else { return Ok(true) };
            engine.check()?;
            let cause = causes(&error);
            task.warn(format!("the cache mount `{id}` could not be taken from {}: {cause}", source.backend.locator()));
            empty(folder).map_err(|cause| Error::Output { path: folder.to_owned(), cause })?;
        }
        Ok(false)
    }
}

impl Source {
    fn mounts(&self, task: &Task) -> &[Packed] {
        self.found.get_or_init(|| {
            load(&*self.backend, self.verify.as_deref()).unwrap_or_else(|error| {
                task.warn(format!("no cache mounts are taken from {}: {}", self.backend.locator(), causes(&error)));
                Vec::new()
            })
        })
    }
}

fn unpack(engine: &Engine, backend: &dyn Backend, packed: &Packed, folder: &Path, task: &Task) -> Result<(), Error> {
    let label = format!("restoring cache mount {}", packed.id);
    let total = packed.chunks.iter().map(|chunk| chunk.size).sum();
    task.status(&label, 0, Some(total));
    let queue = Queue { state: Mutex::default(), changed: Condvar::new() };
    let tree = engine.store.tree(folder)?;
    let outcome = std::thread::scope(|scope| {
        for _ in 0..AHEAD.min(packed.chunks.len()) {
            scope.spawn(|| queue.fetch(engine, backend, packed));
        }
        let stream = Stream { queue: &queue, chunk: io::Cursor::default(), count: packed.chunks.len() };
        let done = unpack_blob(stream, DiffId::new(packed.tar), &tree, &View::empty(), &engine.store.unpacking());
        queue.stop();
        done
    });
    outcome.map_err(|cause| Box::new(StepError::Unpack { digest: format!("of the cache mount `{}`", packed.id), cause }))?;
    task.status_done(&label, total, Some(total));
    Ok(())
}

/// The chunks on their way.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next that nobody fetches yet.
    next: usize,
    /// The next to be unpacked.
    wanted: usize,
    come: Vec<(usize, io::Result<Vec<u8>>)>,
    is_over: bool,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches one chunk after another until there is none or nobody wants more.
    fn fetch(&self, engine: &Engine, backend: &dyn Backend, packed: &Packed) {
        loop {
            let index = {
                let mut state = self.lock();
                while !state.is_over && state.next < packed.chunks.len() && state.next >= state.wanted + AHEAD {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.is_over || state.next >= packed.chunks.len() {
                    return;
                }
                state.next += 1;
                state.next - 1
            };
            let chunk = packed.chunks[index].descriptor();
            let mut bytes = Vec::new();
            let fetched = engine.check().and_then(|()| backend.fetch_layer(&chunk, &mut bytes, &|_| {}));
            let proved = match fetched {
                Ok(()) if Digest::of(&bytes) == chunk.digest => Ok(bytes),
                Ok(()) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} has another digest", chunk.digest))),
                Err(error) => Err(io::Error::other(causes(&error))),
            };
            self.lock().come.push((index, proved));
            self.changed.notify_all();
        }
    }

    /// The next chunk in order.
    fn take(&self) -> io::Result<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(at) = state.come.iter().position(|(index, _)| *index == state.wanted) {
                state.wanted += 1;
                self.changed.notify_all();
                return state.come.swap_remove(at).1;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }
}

/// The chunks one after the other: frames of zstd, which together are one stream.
struct Stream<'a> {
    queue: &'a Queue,
    chunk: io::Cursor<Vec<u8>>,
    count: usize,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.chunk.read(buffer)?;
            if count > 0 || self.count == 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.count -= 1;
            self.chunk = io::Cursor::new(self.queue.take()?);
        }
    }
}

/// Takes away what a failed try left.
fn empty(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::remove_dir_all(folder)?;
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}
