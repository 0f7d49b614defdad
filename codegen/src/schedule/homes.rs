//! Homes: where every tensor of a plan lives, decided before any loop is written.
//!
//! Values share one arena by their lifetimes. Weights are packed (`schedule/weights.rs`), states lie in pages, each page holding
//! so many positions of all layers (`schedule/pages.rs`).

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use einfuse_graph::{AxisId, Extent, Kind, TensorId, Type};

use super::cores::odd_lines;
use super::layout::Layout;
use super::place::{Memory, Place};
use super::weights::{Region, Variant};
use crate::format::{Elem, Format, PANEL};
use crate::fuse::{Contraction, EqId, Fold, Kernel, Plan, Segment, Shape, Storage};
use crate::loops::{Arg, Buffer, FEW, GROUP, frame};

/// How many positions a stream visits at once.
pub(crate) const RUN: usize = 64;

/// How many positions a page of a cache holds: several runs, so that memory is read in long stretches, which the processor
/// foresees (of a head of 64 components, 32 KiB of keys at bf16).
pub(crate) const PAGE: usize = 4 * RUN;

/// What a slot of a stretch's table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    /// The address of a region of weights.
    Region(usize),
    /// The offset of a state in its page.
    State(TensorId),
}

/// States that share pages.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) window: Option<usize>,
    pub(crate) page_bytes: usize,
    /// The slot of the frame with the sequence's pages.
    pub(crate) slot: usize,
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Homes {
    /// Slots of the frame: inputs and constants.
    pub(crate) inputs: Vec<(TensorId, usize)>,
    pub(crate) constants: Vec<(TensorId, usize)>,
    pub(crate) frame_len: usize,
    pub(crate) groups: Vec<Group>,
    pub(crate) regions: Vec<Region>,
    /// For each stretch the slots of its table.
    pub(crate) tables: Vec<Vec<Entry>>,
    /// For each stretch where tensors are read and written, but for weights.
    pub(crate) places: Vec<HashMap<TensorId, Place>>,
    /// For each kernel of each stretch where its weights are, in which layers.
    pub(crate) variants: Vec<Vec<Vec<Variant>>>,
    /// For each state and layer: its group and its offset in a page, in bytes.
    pub(crate) states: HashMap<(TensorId, Option<usize>), (usize, usize)>,
    /// The states that lie in panels over positions, with the axes that a panel's rows are.
    pub(crate) scores: HashMap<TensorId, Vec<AxisId>>,
    /// The states that lie in panels over columns, with those columns.
    pub(crate) columns: HashMap<TensorId, Vec<AxisId>>,
    /// The values that contractions alone read.
    pub(crate) multiplied: Vec<Multiplied>,
    /// Bytes of the arena.
    pub(crate) arena: usize,
    /// Most tokens of a step, with the rows that cores read beyond.
    pub(crate) tokens: usize,
}

/// A value that contractions alone read, all of it row by row.
#[derive(Debug)]
pub(crate) struct Multiplied {
    pub(crate) tensor: TensorId,
    /// Where it lies.
    pub(crate) buffer: Buffer,
    /// Its rows of bf16 there, if it is not too short for them.
    pub(crate) rounded: Option<Place>,
    /// Numbers of a row.
    pub(crate) row: usize,
    /// Neighbours of a row that a worker has all of when it computes some; 0 if they may be any.
    pub(crate) neighbours: usize,
    /// The panels that the rows are multiplied with: how they are stored, and their depth.
    pub(crate) panels: Vec<(Format, usize)>,
}

/// What a program is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    /// How states keep floats, where it fits them.
    pub(crate) cache: Format,
    /// Most tokens of a step.
    pub(crate) tokens: usize,
    /// Most positions of a sequence; bounds values that have a positions' axis.
    pub(crate) positions: usize,
}

impl Homes {
    /// Decides where everything in a plan is. Of another plan for the same graph it takes over what the two share: the frame,
    /// the caches and the packed weights.
    pub(crate) fn of(plan: &Plan, storage: &Storage, extents: Extents, like: Option<&Homes>) -> Homes {
        let mut homes = Homes {
            inputs: Vec::new(),
            constants: Vec::new(),
            frame_len: frame::POINTERS,
            groups: Vec::new(),
            regions: like.map_or(Vec::new(), |like| like.regions.clone()),
            tables: vec![Vec::new(); plan.scopes().len()],
            places: vec![HashMap::new(); plan.scopes().len()],
            variants: Vec::new(),
            states: HashMap::new(),
            scores: HashMap::new(),
            columns: HashMap::new(),
            multiplied: Vec::new(),
            arena: 0,
            tokens: extents.tokens,
        };
        homes.frame(plan);
        let slots =
            |homes: &Homes| homes.inputs.iter().chain(&homes.constants).map(|(_, slot)| *slot).collect::<Vec<_>>();
        debug_assert!(like.is_none_or(|like| slots(like) == slots(&homes)), "two plans for one graph, and two frames");
        homes.weights(plan, storage);
        homes.pages(plan, extents.cache, like);
        homes.values(plan, extents);
        homes
    }

    fn everywhere(&mut self, tensor: TensorId, place: Place) {
        for places in &mut self.places {
            places.insert(tensor, place.clone());
        }
    }

    fn frame(&mut self, plan: &Plan) {
        for (i, tensor) in plan.graph.tensors.iter().enumerate() {
            let id = TensorId(i as u32);
            if !matches!(tensor.kind, Kind::Input | Kind::Constant(_)) {
                continue;
            }
            let slot = self.frame_len;
            self.frame_len += 1;
            let sizes: Vec<usize> = tensor.axes.iter().map(|&a| plan.graph.fixed_size(a)).collect();
            let mut place = Place::flat(Buffer::Frame(slot), Layout::row_major(&sizes), sizes.len());
            match tensor.kind {
                Kind::Input => {
                    place.elem = Elem::I32;
                    self.inputs.push((id, slot));
                }
                _ => self.constants.push((id, slot)),
            }
            self.everywhere(id, place);
        }
    }

    pub(super) fn slot(&mut self, scope: usize, entry: Entry) -> usize {
        let table = &mut self.tables[scope];
        table.iter().position(|e| *e == entry).unwrap_or_else(|| {
            table.push(entry);
            table.len() - 1
        })
    }

    // ---- values

    fn values(&mut self, plan: &Plan, extents: Extents) {
        let graph = &plan.graph;
        let lives = lifetimes(plan);
        let mut arena = Arena::default();
        let mut homes: BTreeMap<TensorId, Place> = BTreeMap::new();
        let mut slack = 0;
        for (tensor, life) in &lives {
            let axes = &graph.tensor(*tensor).axes;
            let last_rows = axes.iter().position(|&a| life.last_rows && crate::fuse::is_tokens(graph, a));
            let size = |&a: &AxisId| match graph.axis(a).extent {
                Extent::Fixed(size) => size,
                Extent::Tokens if life.last_rows => FEW,
                Extent::Tokens => extents.tokens,
                Extent::Positions => extents.positions,
            };
            let sizes: Vec<usize> = axes.iter().map(size).collect();
            let len = sizes.iter().product::<usize>();
            let row = len / sizes.first().copied().unwrap_or(1).max(1);
            slack = slack.max(GROUP * row);
            let bytes = (len * 4).next_multiple_of(64);
            let at = arena.take(*life, bytes);
            let mut place = Place::flat(Buffer::Arena(at), Layout::row_major(&sizes), sizes.len());
            if graph.tensor(*tensor).ty == Type::Int {
                place.elem = Elem::I32;
            }
            if let Some(dim) = last_rows {
                place = place.with_origin(dim, Arg::First.into());
            }
            homes.insert(*tensor, place);
        }
        // Cores read whole groups of rows, beyond the last.
        self.arena = arena.end() + slack * 4;
        let mut handed = vec![graph.output];
        for segment in &plan.segments {
            if let Segment::Layers { carry, initial, out, bodies, .. } = segment
                && let Some(place) = homes.get(carry).cloned()
            {
                handed.push(*carry);
                for tensor in [initial, out].into_iter().chain(bodies.iter().map(|(_, result)| result)) {
                    homes.insert(*tensor, place.clone());
                    handed.push(*tensor);
                }
            }
        }
        for (tensor, place) in homes {
            if let Memory::Flat(buffer) = &place.memory
                && let Some(panels) = self.multiplied(plan, tensor).filter(|_| !handed.contains(&tensor))
            {
                let own = graph.tensor(tensor).axes.iter().skip(1);
                self.multiplied.push(Multiplied {
                    tensor,
                    buffer: buffer.clone(),
                    rounded: in_rows(plan, tensor, &place),
                    row: own.map(|&a| graph.fixed_size(a)).product(),
                    neighbours: neighbours(plan, tensor),
                    panels,
                });
            }
            self.everywhere(tensor, place);
        }
    }

    /// The panels that a value's rows are multiplied with, if that is all that is done with it.
    fn multiplied(&self, plan: &Plan, tensor: TensorId) -> Option<Vec<(Format, usize)>> {
        let mut all = Vec::new();
        let producer = producer(plan, tensor)?;
        for (kernels, variants) in plan.scopes().into_iter().zip(&self.variants) {
            for (kernel, variants) in kernels.iter().zip(variants) {
                for q in kernel.equations.iter().filter(|q| plan.reads(**q).contains(&tensor)) {
                    let Shape::Contract(contract) = &kernel.shape else { return None };
                    let (_, c) = contract.tasks.iter().flat_map(|task| &task.contractions).find(|(of, _)| of == q)?;
                    let [rows, depth @ ..] = &plan.graph.tensor(tensor).axes[..] else { return None };
                    let in_order = c.a == tensor && c.rows == [*rows] && c.depth == depth;
                    // Who computes the wanted rows alone reads floats, if not what others of these kernels have left.
                    if (kernel.last_layer && !producer.last_layer) || (kernel.last_rows && !producer.last_rows) {
                        return None;
                    }
                    if !in_order || c.chosen.is_some() || !crate::fuse::is_tokens(&plan.graph, *rows) {
                        return None;
                    }
                    all.extend(variants.iter().map(|own| (own.panels[q].format, own.panels[q].depth)));
                }
            }
        }
        (!all.is_empty()).then_some(all)
    }
}

/// The kernel that computes a value.
fn producer(plan: &Plan, tensor: TensorId) -> Option<&Kernel> {
    let computes = |kernel: &&Kernel| kernel.equations.iter().any(|&q| plan.equations[q].out == tensor);
    plan.scopes().into_iter().flatten().find(computes)
}

/// The neighbours of a row that a worker has at once: along the columns of a unit, or of a stream's sum.
fn neighbours(plan: &Plan, tensor: TensorId) -> usize {
    let graph = &plan.graph;
    let axes = &graph.tensor(tensor).axes;
    let Some(kernel) = producer(plan, tensor).filter(|kernel| !kernel.last_rows) else { return 0 };
    let is_own = |q: &EqId| plan.equations[*q].out == tensor;
    let columns = match &kernel.shape {
        Shape::Rows => None,
        Shape::Contract(contract) => contract.tasks.iter().find_map(|task| {
            let (_, c) = task.contractions.first().filter(|_| task.equations().iter().any(is_own))?;
            let is_by_tokens = c.rows.len() == 1 && c.chosen.is_none();
            let only_lane = task.whole.iter().all(|a| c.cols.last() == Some(a));
            (is_by_tokens && only_lane).then(|| &c.cols[c.cols.len() - 1..])
        }),
        Shape::Stream(stream) => stream.folds.iter().find_map(|fold| match fold {
            Fold::Sum { eq, over: Some(c), .. } if is_own(eq) => Some(&c.cols[..]),
            _ => None,
        }),
    };
    let columns = columns.filter(|columns| axes.ends_with(columns));
    let sizes = columns.unwrap_or_default().iter().map(|&a| graph.fixed_size(a));
    let whole = columns.and_then(|columns| columns.last()).is_some_and(|&a| graph.fixed_size(a).is_multiple_of(PANEL));
    if whole { sizes.product() } else { 0 }
}

/// A value's rows as bf16 in the memory of its floats, kept apart in the caches.
fn in_rows(plan: &Plan, tensor: TensorId, place: &Place) -> Option<Place> {
    let Memory::Flat(buffer) = &place.memory else { return None };
    let mut layout = Layout::default();
    let mut row = 1;
    for (dim, &a) in plan.graph.tensor(tensor).axes.iter().enumerate().skip(1).rev() {
        layout.push(dim, row);
        row *= plan.graph.fixed_size(a);
    }
    let stride = odd_lines(row, Format::Bf16);
    layout.push(0, stride);
    // Of short rows the padding would be too much.
    (stride <= 2 * row).then(|| Place {
        elem: Elem::Bf16,
        layout,
        memory: Memory::Flat(buffer.clone()),
        ..place.clone()
    })
}

/// Whether a contraction yields scores from panels over positions: its only column axis is the positions'.
pub(crate) fn streams_scores(plan: &Plan, c: &Contraction) -> bool {
    matches!(c.cols[..], [s] if crate::fuse::is_positions(&plan.graph, s)) && c.is_over_positions(&plan.graph)
}

/// Whether a sum over positions can be taken from panels over its columns.
pub(crate) fn sums_columns(c: &Contraction) -> bool {
    !c.cols.is_empty()
}

/// For each stretch the layers that run it; `[None]` where there are none.
pub(crate) fn scope_layers(plan: &Plan) -> Vec<Vec<Option<usize>>> {
    let mut all = Vec::new();
    for segment in &plan.segments {
        match segment {
            Segment::Once(_) => all.push(vec![None]),
            Segment::Layers { bodies, order, .. } => {
                for body in 0..bodies.len() {
                    all.push((0..order.len()).filter(|&l| order[l] == body).map(Some).collect());
                }
            }
        }
    }
    all
}

/// From which kernel to which a value is needed, counted through all stretches.
#[derive(Clone, Copy, Debug)]
struct Life {
    from: usize,
    to: usize,
    last_rows: bool,
}

impl Life {
    fn overlaps(&self, other: &Life) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// Stretches of memory that are taken for a while, in bytes.
#[derive(Default)]
struct Arena {
    taken: Vec<(Life, Range<usize>)>,
}

impl Arena {
    /// The first room of so many bytes that is free all that time.
    fn take(&mut self, life: Life, bytes: usize) -> usize {
        let clashes = self.taken.iter().filter(|(other, _)| other.overlaps(&life));
        let mut clashes: Vec<Range<usize>> = clashes.map(|(_, range)| range.clone()).collect();
        clashes.sort_by_key(|range| (range.start, range.end));
        let mut at = 0;
        for range in clashes {
            if at + bytes <= range.start {
                break;
            }
            at = at.max(range.end);
        }
        self.taken.push((life, at..at + bytes));
        at
    }

    fn end(&self) -> usize {
        self.taken.iter().map(|(_, range)| range.end).max().unwrap_or(0)
    }
}

/// The lifetimes of the values that pass from kernel to kernel, largest stretch first. Of the values that layers hand on,
/// only the carry is listed: the others live in its home.
fn lifetimes(plan: &Plan) -> Vec<(TensorId, Life)> {
    let scopes = plan.scopes();
    let mut start = vec![0];
    for kernels in &scopes {
        start.push(start[start.len() - 1] + kernels.len().max(1));
    }
    let mut scope_end: Vec<usize> = start[1..].iter().map(|s| s - 1).collect();
    let mut lives: BTreeMap<TensorId, Life> = BTreeMap::new();
    let mut handed: Vec<(TensorId, TensorId)> = Vec::new();
    let mut at = 0;
    for segment in &plan.segments {
        match segment {
            Segment::Once(_) => at += 1,
            Segment::Layers { carry, initial, out, bodies, .. } => {
                // What a layer reads from outside is needed until the last layer is done.
                let end = scope_end[at + bodies.len() - 1];
                scope_end[at..at + bodies.len()].fill(end);
                lives.insert(*carry, Life { from: start[at], to: end, last_rows: false });
                handed.extend([(*initial, *carry), (*out, *carry)]);
                handed.extend(bodies.iter().map(|(_, result)| (*result, *carry)));
                at += bodies.len();
            }
        }
    }
    let home = |t: TensorId| handed.iter().find(|(x, _)| *x == t).map_or(t, |(_, carry)| *carry);
    for (scope, kernels) in scopes.iter().enumerate() {
        for (k, kernel) in kernels.iter().enumerate() {
            for out in plan.outputs(kernel) {
                if plan.states.contains_key(&out) {
                    continue;
                }
                let now = start[scope] + k;
                let out = home(out);
                let life = lives.entry(out).or_insert(Life { from: now, to: now, last_rows: kernel.last_rows });
                life.from = life.from.min(now);
            }
        }
    }
    for (scope, kernels) in scopes.iter().enumerate() {
        for (k, kernel) in kernels.iter().enumerate() {
            for read in kernel.equations.iter().flat_map(|&e| plan.reads(e)).map(home) {
                if let Some(life) = lives.get_mut(&read) {
                    let inside = life.from >= start[scope];
                    let until = if inside { start[scope] + k } else { scope_end[scope].max(start[scope] + k) };
                    life.to = life.to.max(until);
                }
            }
        }
    }
    if let Some(life) = lives.get_mut(&home(plan.graph.output)) {
        life.to = usize::MAX;
    }
    lives.into_iter().collect()
}
