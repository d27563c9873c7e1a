//! Hides how the tree of a layer is proved: against the digest of its tar, or against its blob, unpacked once more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::survey::Survey;
use super::{Found, GoOn, Object};
use crate::Store;
use crate::error::Result;
use crate::layer::compress::{Compression, EncodeOptions};
use crate::layer::{PackError, pack_compressed, unpack_blob};
use crate::snapshot::{BaseLayer, Examined, LayerId, Part, Prepared, sum_of_tree};

/// What is known of a tree now.
enum Verdict {
    Whole,
    Broken(String),
    /// There is nothing to compare it with.
    Unproven(String),
}

const CHANGED: &str = "its files are not what they were";

/// Proves all trees that can be believed; answers those that nothing can be said of.
pub(super) fn check(store: &Store, survey: &Survey, go_on: GoOn<'_>, found: &mut Found) -> Result<Vec<(LayerId, String)>> {
    let with_tree = || survey.layers.iter().filter(|(_, layer)| layer.has_tree);
    let built: Vec<_> = with_tree().filter(|(_, layer)| layer.base.is_none()).collect();
    let mut verdicts: Vec<(LayerId, Verdict)> = built
        .into_par_iter()
        .filter_map(|(id, layer)| go_on(&format!("layer {id}")).is_continue().then(|| (id.clone(), built_tree(store, id, layer))))
        .collect();
    // The lowest first, because links in an upper layer's tar lead through the trees below.
    let mut bases: Vec<_> = with_tree().filter_map(|(id, layer)| Some((depth(survey, id)?, id, layer.base.as_ref()?))).collect();
    bases.sort_by_key(|(depth, id, _)| (*depth, *id));
    // In the place of those that are broken; they go away at the end.
    let mut fresh: BTreeMap<&LayerId, Prepared> = BTreeMap::new();
    for (_, id, base) in bases {
        if go_on(&format!("layer {id}")).is_break() {
            break;
        }
        let below = lowers(store, survey, id, &fresh);
        let (verdict, again) = base_tree(store, id, base, below)?;
        if let (Verdict::Broken(_), Some(again)) = (&verdict, again) {
            fresh.insert(id, again);
        }
        verdicts.push((id.clone(), verdict));
    }
    let mut unproven = Vec::new();
    for (id, verdict) in verdicts {
        match verdict {
            Verdict::Whole => {}
            Verdict::Broken(reason) => drop(found.insert(Object::Layer(id, Part::Tree), reason)),
            Verdict::Unproven(reason) => unproven.push((id, reason)),
        }
    }
    Ok(unproven)
}

fn built_tree(store: &Store, id: &LayerId, layer: &Examined) -> Verdict {
    let path = store.layers().diff_dir(id);
    if !path.is_dir() {
        return Verdict::Broken("it is missing".to_owned());
    }
    if let Some(sum) = layer.sum {
        return judge(sum_of_tree(store, &path, true).map(|now| now == sum));
    }
    let Some(diff_id) = layer.diff_id else { return Verdict::Unproven("it was in no image yet".to_owned()) };
    let tree = match store.tree(&path) {
        Ok(tree) => tree,
        Err(error) => return Verdict::Broken(error.to_string()),
    };
    let (plain, options) = (Compression::None, EncodeOptions::default());
    match pack_compressed(&tree, &mut std::io::sink(), plain, options, &store.packing()) {
        Ok(packed) => judge(Ok(packed.tar.diff_id == diff_id)),
        Err(error) => Verdict::Broken(error.to_string()),
    }
}

fn judge(is_same: std::result::Result<bool, PackError>) -> Verdict {
    match is_same {
        Ok(true) => Verdict::Whole,
        Ok(false) => Verdict::Broken(CHANGED.to_owned()),
        Err(error) => Verdict::Broken(error.to_string()),
    }
}

/// Compares the tree with what the blob unpacks to over `below`, and hands that out.
fn base_tree(store: &Store, id: &LayerId, base: &BaseLayer, below: Option<Vec<PathBuf>>) -> Result<(Verdict, Option<Prepared>)> {
    let unproven = |why: &str| Ok((Verdict::Unproven(why.to_owned()), None));
    let Some(below) = below else { return unproven("a layer below is not unpacked") };
    let Some(blob) = crate::record::open(&store.layout().blob(&base.blob.digest))? else {
        return unproven("its blob is missing");
    };
    let again = store.layers().prepare_apart(None)?;
    let tree = store.tree(&again.upper)?;
    let view = match store.view(&below) {
        Ok(view) => view,
        Err(error) => return unproven(&error.to_string()),
    };
    if let Err(error) = unpack_blob(blob, base.diff_id, &tree, &view, &store.unpacking()) {
        // Of a blob that is damaged another finding tells.
        return unproven(&format!("its blob can't be unpacked: {error}"));
    }
    // A root that the tar doesn't describe is as old as its unpacking.
    let sum = |path: &Path| sum_of_tree(store, path, false);
    let expected = match sum(&again.upper) {
        Ok(sum) => sum,
        Err(error) => return unproven(&error.to_string()),
    };
    Ok((judge(sum(&store.layers().diff_dir(id)).map(|now| now == expected)), Some(again)))
}

/// The trees below a layer, the topmost first.
fn lowers(store: &Store, survey: &Survey, id: &LayerId, fresh: &BTreeMap<&LayerId, Prepared>) -> Option<Vec<PathBuf>> {
    let mut below = Vec::new();
    let mut next = survey.layers.get(id)?.parent.as_ref();
    while let Some(id) = next {
        let layer = survey.layers.get(id).filter(|layer| layer.has_tree)?;
        below.push(fresh.get(id).map_or_else(|| store.layers().diff_dir(id), |again| again.upper.clone()));
        next = layer.parent.as_ref();
    }
    Some(below)
}

/// How many layers lie below; none if one is missing or they form a ring.
fn depth(survey: &Survey, id: &LayerId) -> Option<usize> {
    let mut depth = 0;
    let mut next = survey.layers.get(id)?.parent.as_ref();
    while let Some(id) = next {
        depth += 1;
        next = survey.layers.get(id).filter(|_| depth <= survey.layers.len())?.parent.as_ref();
    }
    Some(depth)
}
