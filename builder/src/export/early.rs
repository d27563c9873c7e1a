//! Hides that layers are packed, and brought to the disk, while steps after them still run.
//!
//! An image needs the digest of each layer's tar, and most outputs the layer compressed. A layer is complete long before the last step
//! is, and a step seldom has work for every processor and the disk. What is made early is only found again later: an error here is
//! left to whoever needs the layer, and what was not begun when the last step ends is done by all processors at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use kiln_store::{LayerId, LayerKind};

use crate::engine::Engine;
use crate::event::Events;
use crate::export::form::Form;
use crate::export::pack;
use crate::request::Output;

/// What will be wanted of every new layer of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The digest of its tar.
    Digest,
    /// A blob.
    Form(Form),
}

/// Layers that are packed ahead of the outputs.
#[derive(Debug, Default)]
pub(crate) struct Early {
    state: Mutex<State>,
    changed: Condvar,
    /// The build is over: nobody wants what isn't ready.
    given_up: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    wish: Option<Wish>,
    waiting: VecDeque<LayerId>,
    /// The one that is being packed.
    at: Option<LayerId>,
    /// Bytes that may not be on the disk yet.
    unsynced: u64,
    closed: bool,
}

/// So many bytes are worth a sync of their own. What less leaves to do at the end takes some milliseconds.
const WORTH_A_SYNC: u64 = 8 << 20;

/// Ends the packing when it is dropped.
#[derive(Debug)]
pub(crate) struct Closing<'a>(&'a Early);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        self.0.given_up.store(state.wish.is_some(), Ordering::Relaxed);
        state.closed = true;
        state.waiting.clear();
        self.0.changed.notify_all();
    }
}

impl Wish {
    /// What these outputs will ask for, of an image that has attestations or not; none when they need no image.
    pub(crate) fn of(outputs: &[Output], attested: bool) -> Option<Self> {
        if outputs.is_empty() {
            return Some(if attested { Self::Form(Form::DEFAULT) } else { Self::Digest });
        }
        let mut images = outputs.iter().filter_map(|output| Some((output, output.options()?))).peekable();
        images.peek()?;
        let packed = images.find(|(output, options)| {
            let stays = matches!(output, Output::Image { push: false, .. } | Output::Daemon { .. });
            let is_plain = options.wants_nothing() && !attested && outputs.len() == 1;
            !(stays && is_plain || options.compression.force || options.rewrite_timestamp)
        });
        Some(packed.map_or(Self::Digest, |(_, options)| Self::Form(options.compression.into())))
    }
}

impl Early {
    /// Packs what is offered from now on, on threads of its own, until what is given back is dropped.
    pub(crate) fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        engine: &'scope Engine,
        wish: Option<Wish>,
    ) -> Closing<'scope> {
        self.given_up.store(false, Ordering::Relaxed);
        *self.lock() = State { wish, ..State::default() };
        if wish.is_some() {
            scope.spawn(|| self.pack(engine));
            scope.spawn(|| self.sync(engine));
        }
        Closing(self)
    }

    /// A layer of the result is complete.
    pub(crate) fn offer(&self, layer: &LayerId) {
        let mut state = self.lock();
        if state.wish.is_some() && !state.closed {
            state.waiting.push_back(layer.clone());
            self.changed.notify_all();
        }
    }

    /// So many bytes were written that have to be on the disk before the image has a name.
    pub(crate) fn wrote(&self, bytes: u64) {
        let mut state = self.lock();
        if state.wish.is_some() && !state.closed {
            state.unsynced = state.unsynced.saturating_add(bytes);
            self.changed.notify_all();
        }
    }

    /// Leaves to the caller what isn't begun, which has more threads for it.
    pub(crate) fn leave_the_rest(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        // Now the one who gives the name syncs.
        state.unsynced = 0;
    }

    /// Waits until the layer isn't being packed.
    pub(crate) fn wait_for(&self, layer: &LayerId) {
        let mut state = self.lock();
        while state.at.as_ref() == Some(layer) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether what is being packed is of no use any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self, engine: &Engine) {
        let mut state = self.lock();
        while !state.closed {
            if state.unsynced < WORTH_A_SYNC {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.unsynced = 0;
            drop(state);
            engine.store.flush_ahead();
            state = self.lock();
        }
    }

    fn pack(&self, engine: &Engine) {
        // Nobody is to see it: the export tells of each layer again.
        let task = Events::ignored().start("");
        'all: loop {
            let mut state = self.lock();
            let (layer, wish) = loop {
                let next = state.waiting.pop_front();
                match (next, state.wish) {
                    (Some(layer), Some(wish)) => break (layer, wish),
                    _ if state.closed => break 'all,
                    _ => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.at = Some(layer.clone());
            drop(state);
            if let Ok(Some(record)) = engine.store.layers().get(&layer)
                && record.kind == LayerKind::Built
            {
                let _ = match wish {
                    Wish::Digest => pack::new_diff_id(engine, &record).map(drop),
                    Wish::Form(form) => pack::packed(engine, &record, &form, false, &task).map(drop),
                };
            }
            self.lock().at = None;
            self.changed.notify_all();
        }
        self.given_up.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::form::{CompressionChoice, CompressionKind};
    use crate::request::ImageOptions;

    #[test]
    fn what_outputs_will_ask_for() {
        let gzip = Wish::Form(Form::DEFAULT);
        let zstd = CompressionChoice { kind: CompressionKind::Zstd, level: None, force: false };
        let plain = ImageOptions::default;
        let image = |push, options| Output::Image { push, store: true, options };
        let with = |compression| ImageOptions { compression, ..plain() };
        for (outputs, attested, wanted) in [
            (vec![], false, Some(Wish::Digest)),
            (vec![], true, Some(gzip)),
            (vec![Output::CacheOnly], false, None),
            (vec![image(false, plain())], false, Some(Wish::Digest)),
            (vec![image(false, plain())], true, Some(gzip)),
            (vec![image(true, plain())], false, Some(gzip)),
            (vec![image(true, with(zstd))], false, Some(Wish::Form(zstd.into()))),
            (vec![image(true, with(CompressionChoice { force: true, ..zstd }))], false, Some(Wish::Digest)),
            (vec![image(true, ImageOptions { rewrite_timestamp: true, ..plain() })], false, Some(Wish::Digest)),
            (vec![Output::CacheOnly, image(true, plain())], false, Some(gzip)),
            (vec![image(false, plain()), Output::CacheOnly], false, Some(gzip)),
        ] {
            assert_eq!(Wish::of(&outputs, attested), wanted, "{outputs:?} {attested}");
        }
    }
}
