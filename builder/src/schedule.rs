//! Hides which step may start next; pure.

use std::collections::BTreeSet;

use kiln_frontend::graph::{Graph, VertexId};

/// What has to be done for one target, and how far it is.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// For each vertex: how many of its inputs are still missing; `None` when it isn't to be done at all.
    missing: Vec<Option<usize>>,
    users: Vec<Vec<VertexId>>,
    ready: BTreeSet<VertexId>,
    left: usize,
}

impl Schedule {
    /// Plans `targets`: `hit` says for a vertex whether its result is there already, and is asked at most once for each,
    /// only for vertices that something missing needs.
    pub fn plan(graph: &Graph, targets: impl IntoIterator<Item = VertexId>, mut hit: impl FnMut(VertexId) -> bool) -> Self {
        let size = graph.vertices.len();
        let mut schedule = Self { missing: vec![None; size], users: vec![Vec::new(); size], ready: BTreeSet::new(), left: 0 };
        let mut asked = vec![false; size];
        let mut open: Vec<VertexId> = targets.into_iter().collect();
        let mut order = Vec::new();
        while let Some(id) = open.pop() {
            if std::mem::replace(&mut asked[id.0], true) || hit(id) {
                continue;
            }
            order.push(id);
            open.extend(graph.vertices[id.0].op.inputs());
        }
        for id in &order {
            schedule.missing[id.0] = Some(0);
        }
        for id in order {
            let inputs: Vec<VertexId> =
                graph.vertices[id.0].op.inputs().into_iter().filter(|input| schedule.missing[input.0].is_some()).collect();
            schedule.missing[id.0] = Some(inputs.len());
            if inputs.is_empty() {
                schedule.ready.insert(id);
            }
            for input in inputs {
                schedule.users[input.0].push(id);
            }
            schedule.left += 1;
        }
        schedule
    }

    /// Whether this vertex is to be done.
    pub fn needs(&self, id: VertexId) -> bool {
        self.missing[id.0].is_some()
    }

    /// How many vertices are not done yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Takes the next vertex whose inputs are all there; the lowest id first.
    pub fn take_ready(&mut self) -> Option<VertexId> {
        self.ready.pop_first()
    }

    /// Says that a vertex that [`take_ready`](Self::take_ready) gave out is done.
    pub fn done(&mut self, id: VertexId) {
        self.left -= 1;
        for user in std::mem::take(&mut self.users[id.0]) {
            if let Some(missing) = &mut self.missing[user.0] {
                *missing -= 1;
                if *missing == 0 {
                    self.ready.insert(user);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_frontend::graph::{CopyFrom, CopyOp, Op, Vertex, WorkdirOp};
    use kiln_oci::path::ImagePath;
    use kiln_oci::platform::Platform;

    /// A graph from rows of inputs: the first is the parent, the second the source of a COPY.
    fn graph(rows: &[&[usize]]) -> Graph {
        let vertices = rows.iter().map(|inputs| {
            let parent = inputs.first().map(|i| VertexId(*i));
            let op = match inputs.get(1) {
                None => Op::Workdir(WorkdirOp { parent, path: ImagePath::new("/a"), user: String::new() }),
                Some(source) => Op::Copy(CopyOp {
                    parent,
                    from: CopyFrom::Vertex(Some(VertexId(*source))),
                    sources: Vec::new(),
                    dest: ImagePath::root(),
                    dest_is_dir: true,
                    chown: None,
                    chmod: None,
                    link: false,
                    parents: false,
                    exclude: Vec::new(),
                    is_add: false,
                    unpack: None,
                    checksum: None,
                    keep_git_dir: None,
                }),
            };
            Vertex { name: String::new(), span: None, stage: String::new(), no_cache: false, platform: Platform::host(), op }
        });
        Graph { vertices: vertices.collect() }
    }

    fn order(rows: &[&[usize]], target: usize, hits: &[usize]) -> Vec<Vec<usize>> {
        let mut schedule = Schedule::plan(&graph(rows), [VertexId(target)], |id| hits.contains(&id.0));
        let mut waves = Vec::new();
        while schedule.left() > 0 {
            let wave: Vec<VertexId> = std::iter::from_fn(|| schedule.take_ready()).collect();
            wave.iter().for_each(|id| schedule.done(*id));
            waves.push(wave.iter().map(|id| id.0).collect());
        }
        waves
    }

    #[test]
    fn steps_run_in_waves() {
        let diamond: &[&[usize]] = &[&[], &[0], &[], &[2], &[1, 3]];
        for (hits, expected) in [
            (vec![], vec![vec![0, 2], vec![1, 3], vec![4]]),
            (vec![4], vec![]),
            (vec![1], vec![vec![2], vec![3], vec![4]]),
            (vec![1, 3], vec![vec![4]]),
            (vec![0, 3], vec![vec![1], vec![4]]),
        ] {
            assert_eq!(order(diamond, 4, &hits), expected, "{hits:?}");
        }
        assert_eq!(order(&[&[], &[0], &[0]], 2, &[]), vec![vec![0], vec![2]], "what the target doesn't need isn't done");
    }
}
