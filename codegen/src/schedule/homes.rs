//! Homes: where every tensor of a plan lives, decided before any loop is written.
//!
//! Values share one arena by their lifetimes. The stored operand of a contraction is packed into panels, in the order in
//! which its kernel reads them; contractions whose results are used together are interleaved unit by unit, so that each
//! worker reads one sequential stream. States lie in pages, each page holding so many positions of all layers.

use std::collections::{BTreeMap, HashMap};

use einfuse_graph::{AxisId, Extent, Graph, Kind, TensorId, Type};

use super::layout::Layout;
use super::panels::{self, Part, Stored, Strides};
use super::place::{Coded, Place};
use crate::fuse::{Along, Blocks, Contraction, EqId, Kernel, Plan, Segment, Shape, Task};
use crate::loops::{Arg, Buffer, Codes, Elem, Format, MAX_ROWS, PANEL};

/// How many positions a stream visits at once.
pub(crate) const RUN: usize = 64;

/// How many positions a page of a cache holds: several runs, so that memory is read in long stretches, which the processor
/// foresees (of a head of 64 components, 32 KiB of keys at bf16).
pub(crate) const PAGE: usize = 4 * RUN;

/// Slots of the frame that every program has: tokens, past, arena, first.
const FIXED_SLOTS: usize = 4;

/// The columns of a task, cut into units: each unit is a tile's width and one worker's.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    /// Axes that number the units, with their counts; the lane axis, counted in panels, is last where it is not whole.
    pub(crate) digits: Vec<(AxisId, usize)>,
    /// Column axes that a unit has whole, other than the lane axis.
    pub(crate) whole: Vec<AxisId>,
    /// The column axis along which a panel's columns lie.
    pub(crate) lane: AxisId,
    pub(crate) lane_size: usize,
    pub(crate) lane_whole: bool,
    /// Panels of one contraction in a unit.
    pub(crate) panels: usize,
    /// How many units there are.
    pub(crate) count: usize,
}

impl Units {
    pub(crate) fn of(graph: &Graph, task: &Task) -> Units {
        let c = &task.contractions[0].1;
        let size = |a: AxisId| graph.size(a).unwrap_or(1);
        let lane = c.cols[c.cols.len() - 1];
        let (lane_size, lane_whole) = (size(lane), task.whole.contains(&lane));
        let outer = c.batch.iter().chain(c.cols.iter().filter(|a| !task.whole.contains(a) && **a != lane));
        let mut digits: Vec<(AxisId, usize)> = outer.map(|&a| (a, size(a))).collect();
        let lane_panels = lane_size.div_ceil(PANEL);
        let whole: Vec<AxisId> = c.cols.iter().filter(|a| task.whole.contains(a) && **a != lane).copied().collect();
        let mut panels = whole.iter().map(|&a| size(a)).product();
        match lane_whole {
            true => panels *= lane_panels,
            false => digits.push((lane, lane_panels)),
        }
        let count = digits.iter().map(|(_, n)| n).product();
        Units { digits, whole, lane, lane_size, lane_whole, panels, count }
    }
}

/// Where the panels of a contraction are.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    pub(crate) buffer: Buffer,
    pub(crate) format: Format,
    /// Units before the first unit's first panel.
    pub(crate) base: usize,
    /// Units from unit to unit.
    pub(crate) unit_stride: usize,
    /// Units from one coordinate of the axis that rows choose to the next; all of them, where there is none.
    pub(crate) choice_stride: usize,
    /// Units of a panel.
    pub(crate) panel: usize,
    pub(crate) depth: usize,
}

/// One tensor's part of a region of packed weights.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) tensor: TensorId,
    /// For each axis where along it the part is. That of a choice has all coordinates.
    pub(crate) along: Vec<Along>,
    /// Where the elements are; of codes those of the first plane.
    pub(crate) layout: Layout,
    /// Where all of codes is.
    pub(crate) coded: Option<Coded>,
    /// What the numbers are made of, where they are computed from codes when they are packed.
    pub(crate) made: Option<Blocks>,
}

/// How a weight is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// In which format, if it is summed over an axis that has whole blocks; else as bf16 or f32.
    pub format: Format,
    /// Whether codes are the stored weight's own, whose blocks are along its last axis: where another is summed over, they
    /// cannot be kept.
    pub own: bool,
}

impl From<Format> for Kept {
    fn from(format: Format) -> Kept {
        Kept { format, own: false }
    }
}

/// A stretch of packed weights, of one layer or of all.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) storage: Format,
    /// Units.
    pub(crate) len: usize,
    /// Rows of its panels; 0 without.
    pub(crate) depth: usize,
    pub(crate) views: Vec<View>,
    pub(crate) layered: bool,
}

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
    /// For each stretch where tensors are read and written.
    pub(crate) places: Vec<HashMap<TensorId, Place>>,
    pub(crate) panels: HashMap<EqId, Panels>,
    /// For each state and layer: its group and its offset in a page, in bytes.
    pub(crate) states: HashMap<(TensorId, Option<usize>), (usize, usize)>,
    /// The states that lie in panels over positions, with the axes that a panel's rows are.
    pub(crate) scores: HashMap<TensorId, Vec<AxisId>>,
    /// The states that lie in panels over columns, with those columns.
    pub(crate) columns: HashMap<TensorId, Vec<AxisId>>,
    /// Bytes of the arena.
    pub(crate) arena: usize,
    /// Most tokens of a step, with the rows that cores read beyond.
    pub(crate) tokens: usize,
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
    pub(crate) fn of(plan: &Plan, storage: &dyn Fn(TensorId) -> Kept, extents: Extents, like: Option<&Homes>) -> Homes {
        let mut homes = Homes {
            inputs: Vec::new(),
            constants: Vec::new(),
            frame_len: FIXED_SLOTS,
            groups: Vec::new(),
            regions: like.map_or(Vec::new(), |like| like.regions.clone()),
            tables: vec![Vec::new(); plan.scopes().len()],
            places: vec![HashMap::new(); plan.scopes().len()],
            panels: HashMap::new(),
            states: HashMap::new(),
            scores: HashMap::new(),
            columns: HashMap::new(),
            arena: 0,
            tokens: extents.tokens,
        };
        homes.frame(plan);
        homes.pack(plan, storage);
        homes.plain_weights(plan, storage);
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
            let sizes: Vec<usize> = tensor.axes.iter().map(|&a| plan.graph.size(a).unwrap_or(1)).collect();
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

    // ---- weights

    /// Packs the stored operands of contractions.
    fn pack(&mut self, plan: &Plan, storage: &dyn Fn(TensorId) -> Kept) {
        for (scope, kernels) in plan.scopes().into_iter().enumerate() {
            for kernel in kernels {
                match &kernel.shape {
                    Shape::Rows => {}
                    Shape::Contract(contract) => {
                        for task in &contract.tasks {
                            self.pack_task(plan, kernel, storage, scope, task);
                        }
                    }
                    Shape::Stream(stream) => {
                        let outer = super::stream::outer(&plan.graph, stream);
                        for (eq, c) in stream.expansions() {
                            self.pack_task(plan, kernel, storage, scope, &expansion(eq, c, &outer));
                        }
                    }
                }
            }
        }
    }

    fn pack_task(
        &mut self,
        plan: &Plan,
        kernel: &Kernel,
        storage: &dyn Fn(TensorId) -> Kept,
        scope: usize,
        task: &Task,
    ) {
        let graph = &plan.graph;
        let units = Units::of(graph, task);
        let kept = storage;
        let storage = |c: &Contraction| match plan.made.get(&c.b) {
            Some((_, blocks)) if plan.reads_codes(kernel, c.b) => Format::Codes(blocks.codes),
            Some((_, blocks)) if blocks.suit(c) => Format::F32,
            Some(_) => fitting(graph, c, Format::Bf16),
            None => {
                let Kept { format, own } = storage(c.b);
                fitting(graph, c, if own && format.is_coded() { Format::Bf16 } else { format })
            }
        };
        let alike = |a: &Contraction, b: &Contraction| {
            storage(a) == storage(b) && graph.is_layered(a.b) == graph.is_layered(b.b) && a.chosen == b.chosen
        };
        // Each group of like contractions shares a region, interleaved unit by unit.
        let mut groups: Vec<Vec<&(EqId, Contraction)>> = Vec::new();
        for one in &task.contractions {
            match groups.iter_mut().find(|g| alike(&g[0].1, &one.1)) {
                Some(group) => group.push(one),
                None => groups.push(vec![one]),
            }
        }
        for group in groups {
            let depth = group[0].1.depth_size(graph).unwrap_or(1);
            let storage = storage(&group[0].1);
            let panel = storage.panel(depth);
            let unit_stride = panel * units.panels * group.len();
            let choice_stride = unit_stride * units.count;
            let choices = group[0].1.chosen.map_or(1, |(axis, _)| graph.size(axis).unwrap_or(1));
            let views: Vec<View> = group
                .iter()
                .enumerate()
                .map(|(nth, (_, c))| {
                    let base = nth * panel * units.panels;
                    let strides = Strides { base, panel, unit: unit_stride };
                    let stored = Stored { along: &c.along, depth: &c.depth };
                    let coded = storage.codes().map(|codes| panels::coded(graph, &stored, &units, &strides, codes));
                    let layout = match &coded {
                        Some(coded) => coded.planes[0].clone(),
                        None => panels::layout(graph, &stored, &units, &strides, storage, Part::Floats),
                    };
                    let made = made(plan, kept(c.b), c.b, storage);
                    View { tensor: c.b, along: c.along.clone(), layout, coded, made }
                })
                .collect();
            let layered = graph.is_layered(group[0].1.b);
            let region = self.region(Region { storage, len: choice_stride * choices, depth, views, layered });
            let slot = self.slot(scope, Entry::Region(region));
            for (nth, (eq, _)) in group.iter().enumerate() {
                let panels = Panels {
                    buffer: Buffer::Layer(slot),
                    format: storage,
                    base: nth * panel * units.panels,
                    unit_stride,
                    choice_stride,
                    panel,
                    depth,
                };
                self.panels.insert(*eq, panels);
            }
        }
    }

    /// Keeps one of equal regions.
    fn region(&mut self, region: Region) -> usize {
        let same = |r: &Region| {
            r.storage == region.storage
                && r.len == region.len
                && r.views.len() == region.views.len()
                && r.views.iter().zip(&region.views).all(|(a, b)| {
                    a.tensor == b.tensor && a.along == b.along && a.layout == b.layout && a.made == b.made
                })
        };
        self.regions.iter().position(same).unwrap_or_else(|| {
            self.regions.push(region);
            self.regions.len() - 1
        })
    }

    /// Gives each weight that is loaded element by element a home: a packed one that has it whole, or its own.
    fn plain_weights(&mut self, plan: &Plan, storage: &dyn Fn(TensorId) -> Kept) {
        let graph = &plan.graph;
        for (scope, kernels) in plan.scopes().into_iter().enumerate() {
            let mut wanted: Vec<TensorId> = Vec::new();
            let in_codes = |tensor: TensorId| kernels.iter().any(|kernel| plan.reads_codes(kernel, tensor));
            for kernel in kernels {
                for &e in &kernel.equations {
                    let stored = match &kernel.shape {
                        Shape::Contract(c) => {
                            let mut all = c.tasks.iter().flat_map(|t| &t.contractions);
                            all.find(|(eq, _)| *eq == e).map(|(_, c)| c.b)
                        }
                        Shape::Stream(stream) => stream.expansions().find(|(eq, _)| *eq == e).map(|(_, c)| c.b),
                        Shape::Rows => None,
                    };
                    for tensor in crate::fuse::loads(graph, plan.equations[e].body) {
                        if Some(tensor) != stored && graph.is_weight(tensor) && !wanted.contains(&tensor) {
                            wanted.push(tensor);
                        }
                    }
                }
            }
            for tensor in wanted {
                let axes = &graph.tensor(tensor).axes;
                let sizes: Vec<usize> = axes.iter().map(|&a| graph.size(a).unwrap_or(1)).collect();
                let all = |v: &View| v.along.iter().zip(axes).all(|(along, &axis)| along.is_all(axis));
                let codes = plan.made.get(&tensor).map(|(_, blocks)| blocks.codes).filter(|_| in_codes(tensor));
                let serves = |r: &Region| r.storage.codes() == codes || !plan.made.contains_key(&tensor);
                let holds = |r: &Region| serves(r) && r.views.iter().any(|v| v.tensor == tensor && all(v));
                let whole = self.regions.iter().position(holds);
                let looked_up = |homes: &mut Homes| Some(homes.looked_up(graph, tensor, codes?));
                let region = whole.or_else(|| looked_up(self)).unwrap_or_else(|| {
                    let len = sizes.iter().product::<usize>();
                    let small = len <= 1 << 16;
                    let kept = storage(tensor);
                    let storage = match kept.format {
                        _ if small || plan.made.contains_key(&tensor) => Format::F32,
                        // Scales are those of panels.
                        coded if coded.is_coded() => Format::Bf16,
                        plain => plain,
                    };
                    let made = made(plan, kept, tensor, storage);
                    let along = axes.iter().map(|&axis| Along::Axis { axis, from: 0 }).collect();
                    let layout = Layout::row_major(&sizes);
                    let layered = graph.is_layered(tensor);
                    self.region(Region {
                        storage,
                        len,
                        depth: 0,
                        views: vec![View { tensor, along, layout, coded: None, made }],
                        layered,
                    })
                });
                let slot = self.slot(scope, Entry::Region(region));
                let region = &self.regions[region];
                if let Some(view) = region.views.iter().find(|v| v.tensor == tensor && all(v)) {
                    let mut place = Place::flat(Buffer::Layer(slot), view.layout.clone(), sizes.len());
                    place.elem = region.storage.elem();
                    place.coded = view.coded.clone();
                    self.places[scope].insert(tensor, place);
                }
            }
        }
    }

    /// Gives a weight of which elements are read one by one a home in panels of codes, whose rows are along its last axis.
    fn looked_up(&mut self, graph: &Graph, tensor: TensorId, codes: Codes) -> usize {
        let storage = Format::Codes(codes);
        let axes = &graph.tensor(tensor).axes;
        let (outer, [lane, last]) = axes.split_at(axes.len() - 2) else { return 0 };
        let size = |a: AxisId| graph.size(a).unwrap_or(1);
        let (lane_size, depth) = (size(*lane), size(*last));
        let panel = storage.panel(depth);
        let digits: Vec<(AxisId, usize)> =
            outer.iter().map(|&a| (a, size(a))).chain([(*lane, lane_size.div_ceil(PANEL))]).collect();
        let count = digits.iter().map(|(_, n)| n).product();
        let units = Units { digits, whole: Vec::new(), lane: *lane, lane_size, lane_whole: false, panels: 1, count };
        let along: Vec<Along> = graph.tensor(tensor).axes.iter().map(|&axis| Along::Axis { axis, from: 0 }).collect();
        let stored = Stored { along: &along, depth: std::slice::from_ref(last) };
        let coded = panels::coded(graph, &stored, &units, &Strides { base: 0, panel, unit: panel }, codes);
        let view = View { tensor, along, layout: coded.planes[0].clone(), coded: Some(coded), made: None };
        let layered = graph.is_layered(tensor);
        self.region(Region { storage, len: panel * count, depth, views: vec![view], layered })
    }

    // ---- values

    fn values(&mut self, plan: &Plan, extents: Extents) {
        let graph = &plan.graph;
        let lives = lifetimes(plan);
        let mut taken: Vec<(Life, usize, usize)> = Vec::new();
        let mut homes: BTreeMap<TensorId, Place> = BTreeMap::new();
        let mut slack = 0;
        for (tensor, life) in &lives {
            let mut last_row = false;
            let sizes: Vec<usize> = graph
                .tensor(*tensor)
                .axes
                .iter()
                .map(|&a| match graph.axis(a).extent {
                    Extent::Fixed(size) => size,
                    Extent::Tokens if life.last_rows => {
                        last_row = true;
                        1
                    }
                    Extent::Tokens => extents.tokens,
                    Extent::Positions => extents.positions,
                })
                .collect();
            let len = sizes.iter().product::<usize>();
            let row = len / sizes.first().copied().unwrap_or(1).max(1);
            slack = slack.max(MAX_ROWS * row);
            let bytes = (len * 4).next_multiple_of(64);
            let mut at = 0;
            let mut clashes: Vec<(usize, usize)> =
                taken.iter().filter(|(l, ..)| l.overlaps(life)).map(|&(_, from, to)| (from, to)).collect();
            clashes.sort();
            for (from, to) in clashes {
                if at + bytes <= from {
                    break;
                }
                at = at.max(to);
            }
            taken.push((*life, at, at + bytes));
            self.arena = self.arena.max(at + bytes);
            let mut place = Place::flat(Buffer::Arena(at), Layout::row_major(&sizes), sizes.len());
            if graph.tensor(*tensor).ty == Type::Int {
                place.elem = Elem::I32;
            }
            if last_row {
                let dim = graph.tensor(*tensor).axes.iter().position(|&a| crate::fuse::is_tokens(graph, a));
                place = place.with_origin(dim.unwrap_or(0), Arg::First.into());
            }
            homes.insert(*tensor, place);
        }
        // Cores read whole groups of rows, beyond the last.
        self.arena += slack * 4;
        for segment in &plan.segments {
            if let Segment::Layers { carry, initial, out, bodies, .. } = segment
                && let Some(place) = homes.get(carry).cloned()
            {
                for tensor in [initial, out].into_iter().chain(bodies.iter().map(|(_, result)| result)) {
                    homes.insert(*tensor, place.clone());
                }
            }
        }
        for (tensor, place) in homes {
            self.everywhere(tensor, place);
        }
    }
}

/// What a weight's numbers are made of where they are stored as such: those of a checkpoint that has them in codes are what they
/// are, of others the codes are the compiler's.
fn made(plan: &Plan, kept: Kept, weight: TensorId, storage: Format) -> Option<Blocks> {
    let (_, blocks) = plan.made.get(&weight)?;
    (!kept.own && !storage.is_coded()).then_some(*blocks)
}

/// The contraction of a stream's operand as a task: the columns that a tile reads, at its coordinates of the outer axes, are
/// computed together.
pub(crate) fn expansion(eq: EqId, c: &Contraction, outer: &[AxisId]) -> Task {
    let lane = c.cols.last();
    let whole = c.cols.iter().filter(|&a| !outer.contains(a) || Some(a) == lane).copied().collect();
    Task { contractions: vec![(eq, c.clone())], epilogue: Vec::new(), whole }
}

/// A format in which a contraction's panels can be: as wanted, if the rows that then lie together, or share a scale, are there.
pub(super) fn fitting(graph: &Graph, c: &Contraction, wanted: Format) -> Format {
    let rows = c.depth.last().and_then(|&a| graph.size(a)).unwrap_or(1);
    let wanted = wanted.fitting(rows);
    match (rows.is_multiple_of(wanted.block()), rows.is_multiple_of(Format::Bf16.block())) {
        (true, _) => wanted,
        (false, true) => Format::Bf16,
        (false, false) => Format::F32,
    }
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
