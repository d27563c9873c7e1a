//! Hides which steps of a build others are told of: what they are found by, and what they gave.

use kiln_frontend::graph::{CopyFrom, CopyOp, Graph, MountFrom, Op, VertexId};
use kiln_oci::digest::Digest;

use super::{Definition, Work, mount_sources};
use crate::cache_key::{Identity, selection_key};
use crate::error::Error;
use crate::ops::file;
use crate::remote_cache::import::content_key;
use crate::remote_cache::session::{Told, ToldStep};

/// For each vertex, whether its result is the target's, or below it.
pub(super) fn in_result(graph: &Graph, targets: &[VertexId]) -> Vec<bool> {
    let mut found = vec![false; graph.vertices.len()];
    for target in targets {
        let mut next = Some(*target);
        while let Some(id) = next {
            found[id.0] = true;
            next = graph.vertices[id.0].op.parent();
        }
    }
    found
}

/// Tells of all steps, those too that a hit stands on; gives back those of the result.
pub(super) fn tell(work: &Work<'_>, definitions: &[Definition], in_result: &[bool]) -> Result<Vec<ToldStep>, Error> {
    if !work.shared.listens() {
        return Ok(Vec::new());
    }
    let mut told = Told::default();
    let mut identities: Vec<Option<Identity>> = Vec::with_capacity(definitions.len());
    for ((vertex, definition), in_result) in work.graph.vertices.iter().zip(definitions).zip(in_result) {
        let Some(key) = &definition.key else {
            identities.push(Some(definition.identity));
            continue;
        };
        let of = |id: Option<VertexId>| id.map_or_else(|| Some(Identity::scratch()), |id| identities[id.0]);
        for (source, op) in selections(&vertex.op) {
            let Some(source) = of(source) else { continue };
            let key = selection_key(source, &op);
            if let Some(files) = work.shared.memo(work.engine, &key)? {
                told.memos.insert(Digest::from_bytes(key.0), Digest::from_bytes(files));
            }
        }
        let record = work.shared.find(work.engine, key)?;
        identities.push(record.as_ref().map(|record| Identity(record.identity)));
        let Some(record) = record else { continue };
        told.steps.push(ToldStep {
            definition: *key,
            content: content_key(&record),
            identity: record.identity,
            layer: record.layer,
            in_result: *in_result,
        });
    }
    Ok(work.shared.tell(told))
}

/// What a step takes of other stages, as selections are remembered.
fn selections(op: &Op) -> Vec<(Option<VertexId>, CopyOp)> {
    match op {
        Op::Copy(op) => match op.from {
            CopyFrom::Vertex(input) => vec![(input, op.clone())],
            CopyFrom::Context(_) => Vec::new(),
        },
        Op::Exec(op) => {
            let sources = mount_sources(op).into_iter();
            let selected = sources.filter_map(|(from, path)| match from {
                MountFrom::Vertex(input) if !path.is_root() => Some((input, file::whole(path))),
                MountFrom::Vertex(_) | MountFrom::Context(_) => None,
            });
            selected.collect()
        }
        Op::Image(_) | Op::Context(_) | Op::Workdir(_) => Vec::new(),
    }
}
