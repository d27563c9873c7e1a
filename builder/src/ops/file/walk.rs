//! Hides the order in which a selection is gone over, what `--exclude` leaves out of it, and which files are one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_frontend::ignore::{PatternMatcher, State};
use kiln_store::rootdir::Kind;

use super::FileError;
use super::select::Selected;
use super::source::{Place, Reader};

/// A directory that is selected, with what in it isn't a directory; or a single file.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    /// The path below the match; empty for the match itself.
    pub(super) rel: Vec<u8>,
    /// `None` when the match is a file.
    pub(super) dir: Option<Place<'a>>,
    /// Whether the directory itself is placed and not just what's in it.
    pub(super) placed: bool,
    pub(super) leaves: Vec<Leaf<'a>>,
    pub(super) reader: Reader<'a>,
}

#[derive(Debug)]
pub(super) struct Leaf<'a> {
    pub(super) place: Place<'a>,
    /// Counted over the whole walk.
    pub(super) number: usize,
    /// The number of the first leaf that is another name of the same file.
    pub(super) link_to: Option<usize>,
}

/// Goes over one match: directories before what's in them, names in order.
pub(super) struct Walk<'a, 'x> {
    exclude: &'x PatternMatcher,
    /// With `--parents` the patterns count from the pivot.
    prefix: Vec<u8>,
    placed_root: bool,
    /// The last is next.
    waiting: Vec<Waiting<'a>>,
    /// Excluded directories above something that isn't, which are now due.
    due: Vec<Visit<'a>>,
    single: Option<Visit<'a>>,
    inodes: HashMap<(u64, u64), usize>,
    count: usize,
}

struct Waiting<'a> {
    rel: Vec<u8>,
    place: Place<'a>,
    state: State,
    /// Set if the directory is excluded: the chain of excluded directories down to it.
    excluded: Option<Arc<Excluded<'a>>>,
}

/// An excluded directory, which is placed after all if something below it is.
struct Excluded<'a> {
    rel: Vec<u8>,
    place: Place<'a>,
    above: Option<Arc<Excluded<'a>>>,
    emitted: AtomicBool,
}

impl<'a, 'x> Walk<'a, 'x> {
    pub(super) fn new(selected: &Selected<'a>, exclude: &'x PatternMatcher, parents: bool) -> Result<Self, FileError> {
        let mut prefix = Vec::new();
        if parents {
            let names: Vec<&[u8]> = selected.under.iter().map(Place::name).chain([&selected.name[..]]).collect();
            prefix = names.join(&b'/');
        }
        let mut walk = Self {
            exclude,
            prefix,
            placed_root: parents && !selected.name.is_empty(),
            waiting: Vec::new(),
            due: Vec::new(),
            single: None,
            inodes: HashMap::new(),
            count: 0,
        };
        let place = selected.place.clone();
        if place.kind() == Kind::Dir {
            place.expand();
            let (ignored, state) = match walk.prefix.is_empty() {
                true => (false, State::default()),
                false => exclude.step(&State::default(), &walk.prefix),
            };
            if !(ignored && exclude.can_skip(&walk.prefix, &state)) {
                let excluded = ignored.then(|| Arc::new(Excluded::new(Vec::new(), place.clone(), None)));
                walk.waiting.push(Waiting { rel: Vec::new(), place, state, excluded });
            }
        } else {
            let path = if parents { &walk.prefix } else { &selected.name };
            if exclude.is_empty() || !exclude.matches(path) {
                let reader = place.reader();
                let leaves = vec![walk.leaf(place)];
                walk.single = Some(Visit { rel: Vec::new(), dir: None, placed: true, leaves, reader });
            }
        }
        Ok(walk)
    }

    fn leaf(&mut self, place: Place<'a>) -> Leaf<'a> {
        let meta = place.meta();
        let number = self.count;
        self.count += 1;
        let mut link_to = None;
        if meta.nlink > 1 && meta.kind != Kind::Socket {
            let first = *self.inodes.entry((meta.dev, meta.ino)).or_insert(number);
            link_to = (first != number).then_some(first);
        }
        Leaf { place, number, link_to }
    }

    fn placed(&self, rel: &[u8]) -> bool {
        !rel.is_empty() || self.placed_root
    }

    /// Goes into one directory; `None` if it turns out that nothing of it is selected.
    fn enter(&mut self, at: Waiting<'a>) -> Result<Option<Visit<'a>>, FileError> {
        let Waiting { rel, place, state, excluded } = at;
        let children = place.children()?;
        let mut leaves = Vec::with_capacity(children.len());
        let mut dirs = Vec::new();
        for child in children {
            let is_dir = child.kind() == Kind::Dir;
            let mut below = rel.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(child.name());
            let (mut ignored, mut child_state) = (false, State::default());
            if !self.exclude.is_empty() {
                let path = match self.prefix.is_empty() {
                    true => below.clone(),
                    false => [&self.prefix[..], &below].join(&b'/'),
                };
                (ignored, child_state) = self.exclude.step(&state, &path);
                if ignored && (!is_dir || self.exclude.can_skip(&path, &child_state)) {
                    continue;
                }
            }
            if is_dir {
                let excluded = ignored.then(|| Arc::new(Excluded::new(below.clone(), child.clone(), excluded.clone())));
                dirs.push(Waiting { rel: below, place: child, state: child_state, excluded });
            } else {
                leaves.push(self.leaf(child));
            }
        }
        let wanted = !leaves.is_empty() || dirs.iter().any(|dir| dir.excluded.is_none());
        if wanted && let Some(excluded) = &excluded {
            self.bring(excluded.above.as_ref());
            excluded.emitted.store(true, Ordering::Relaxed);
        }
        dirs.reverse();
        self.waiting.append(&mut dirs);
        let placed = excluded.as_ref().is_none_or(|e| e.emitted.load(Ordering::Relaxed));
        if !placed && self.placed(&rel) {
            return Ok(None);
        }
        let reader = place.reader();
        Ok(Some(Visit { placed: self.placed(&rel), rel, dir: Some(place), leaves, reader }))
    }

    /// Makes excluded directories due that something below needs, topmost first.
    fn bring(&mut self, chain: Option<&Arc<Excluded<'a>>>) {
        let mut missing = Vec::new();
        let mut at = chain;
        while let Some(excluded) = at {
            if excluded.emitted.swap(true, Ordering::Relaxed) {
                break;
            }
            missing.push(Arc::clone(excluded));
            at = excluded.above.as_ref();
        }
        // `due` is taken from its end, and the deepest comes first here.
        for excluded in missing {
            let (rel, place) = (excluded.rel.clone(), excluded.place.clone());
            let reader = place.reader();
            self.due.push(Visit { placed: self.placed(&rel), rel, dir: Some(place), leaves: Vec::new(), reader });
        }
    }
}

impl<'a> Excluded<'a> {
    fn new(rel: Vec<u8>, place: Place<'a>, above: Option<Arc<Excluded<'a>>>) -> Self {
        Self { rel, place, above, emitted: AtomicBool::new(false) }
    }
}

impl<'a> Iterator for Walk<'a, '_> {
    type Item = Result<Visit<'a>, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(single) = self.single.take() {
            return Some(Ok(single));
        }
        loop {
            if let Some(visit) = self.due.pop() {
                return Some(Ok(visit));
            }
            let at = self.waiting.pop()?;
            match self.enter(at) {
                Ok(None) => {}
                Ok(Some(visit)) if self.due.is_empty() => return Some(Ok(visit)),
                Ok(Some(visit)) => {
                    // Those above it come first.
                    self.due.insert(0, visit);
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}
