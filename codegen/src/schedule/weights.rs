//! Weights: how they lie in memory, layer by layer.
//!
//! The stored operand of a contraction is packed into panels, in the order in which its kernel reads them; contractions whose
//! results are used together are interleaved unit by unit, so that each worker reads one sequential stream.
//!
//! A weight may be kept in another format in each layer. A kernel has a [`Variant`] for each way in which layers keep the
//! weights that it reads; layers that keep them alike share its code. The table of a stretch has slots for all its variants,
//! so that a kernel that reads none of these weights is the same in all layers.

use std::collections::{BTreeSet, HashMap};

use einfuse_graph::{AxisId, Graph, TensorId};

use super::cores::Panelled;
use super::homes::{Entry, Homes, scope_layers};
use super::layout::Layout;
use super::panels::{self, Part, Stored, Strides};
use super::place::{Coded, Place};
use crate::format::{Format, PANEL};
use crate::fuse::{Along, Blocks, Contraction, EqId, Kept, Kernel, Order, Plan, Shape, Storage, Task};
use crate::loops::{Address, Buffer, Expr, Next};

/// The most elements of a weight that is loaded element by element for which it is worth while to keep floats as `F32`.
const SMALL: usize = 1 << 16;

/// Layers that keep what a kernel reads alike, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// `[None]` of a stretch without layers.
    pub(crate) layers: Vec<Option<usize>>,
    /// For each contraction where its stored operand is, if it is a weight.
    pub(crate) panels: HashMap<EqId, Panels>,
    /// The weights that are loaded element by element.
    pub(crate) places: HashMap<TensorId, Place>,
}

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
    /// How many of the units in which the weights are stored each of these is. Those of more have one panel.
    pub(crate) joined: usize,
}

impl Units {
    pub(crate) fn of(graph: &Graph, task: &Task) -> Units {
        let c = &task.contractions[0].1;
        let size = |a: AxisId| graph.fixed_size(a);
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
        Units { digits, whole, lane, lane_size, lane_whole, panels, count, joined: 1 }
    }

    /// So many neighbours as one, where that goes without a rest.
    pub(crate) fn joined(mut self, by: usize) -> Units {
        if let Some((axis, count)) = self.digits.last_mut()
            && (*axis, self.panels) == (self.lane, 1)
            && count.is_multiple_of(by)
        {
            *count /= by;
            self.count /= by;
            (self.panels, self.joined) = (by, by);
        }
        self
    }

    /// The panels of a contraction in a unit, where its weight begins at `from`, in units.
    pub(super) fn panelled(&self, panels: &Panels, unit: &Expr, from: Expr) -> Panelled {
        let apart = if self.joined == 1 { panels.panel } else { panels.unit_stride };
        let at = from + unit.clone() * (self.joined * panels.unit_stride) + panels.base;
        let at = Address::new(panels.buffer.clone(), at);
        let (format, depth, count) = (panels.format, panels.depth, self.panels);
        Panelled { at, format, depth, count, wanted: None, apart, next: None, spread: None }
    }

    /// What the next unit reads of a weight, a panel's share of it. Where the panels of several weights take turns, each has as
    /// much of the unit, in their order.
    pub(super) fn next(&self, panels: &Panels, unit: &Expr) -> Next {
        let within = panels.base % panels.unit_stride;
        let at =
            (unit.clone() + 1) * (self.joined * panels.unit_stride) + (panels.base - within + self.joined * within);
        Next::panel(Address::new(panels.buffer.clone(), at), panels.format, panels.depth)
    }
}

/// Where the panels of a contraction are.
#[derive(Clone, Debug, PartialEq)]
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
    /// In which order the checkpoint has the axes.
    pub(crate) order: Order,
    /// Where the elements are; of codes those of the first plane.
    pub(crate) layout: Layout,
    /// Where all of codes is.
    pub(crate) coded: Option<Coded>,
    /// What the numbers are made of, where they are computed from codes when they are packed.
    pub(crate) made: Option<Blocks>,
}

/// A stretch of packed weights, in each of some layers or of all.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) storage: Format,
    /// Units.
    pub(crate) len: usize,
    /// Rows of its panels; 0 without.
    pub(crate) depth: usize,
    pub(crate) views: Vec<View>,
    /// The layers that have it; `None` if they share it.
    pub(crate) layers: BTreeSet<Option<usize>>,
}

impl Homes {
    /// Packs the weights that kernels read, and decides which variants there are of these.
    pub(super) fn weights(&mut self, plan: &Plan, storage: &Storage) {
        let layers = scope_layers(plan);
        let of = |(kernels, layers): (&[Kernel], &Vec<Option<usize>>)| -> Vec<Vec<Variant>> {
            kernels.iter().map(|kernel| alike(plan, kernel, layers, storage)).collect()
        };
        let mut all: Vec<Vec<Vec<Variant>>> = plan.scopes().into_iter().zip(&layers).map(of).collect();
        // What is in panels is there when others look for an element.
        for look in [Self::pack, Self::plain] {
            for (scope, kernels) in plan.scopes().into_iter().enumerate() {
                for (kernel, variants) in kernels.iter().zip(&mut all[scope]) {
                    for variant in variants {
                        look(self, plan, storage, scope, kernel, variant);
                    }
                }
            }
        }
        for variants in all.iter_mut().flatten() {
            // What is kept may be less than what is wanted.
            let mut merged: Vec<Variant> = Vec::new();
            for variant in variants.drain(..) {
                match merged.iter_mut().find(|m| (&m.panels, &m.places) == (&variant.panels, &variant.places)) {
                    Some(same) => same.layers.extend(variant.layers),
                    None => merged.push(variant),
                }
            }
            *variants = merged;
        }
        self.variants = all;
    }

    /// Packs the stored operands of a kernel's contractions.
    fn pack(&mut self, plan: &Plan, storage: &Storage, scope: usize, kernel: &Kernel, variant: &mut Variant) {
        match &kernel.shape {
            Shape::Rows => {}
            Shape::Contract(contract) => {
                for task in &contract.tasks {
                    self.pack_task(plan, kernel, storage, scope, task, variant);
                }
            }
            Shape::Stream(stream) => {
                let outer = super::stream::outer(&plan.graph, stream);
                for (eq, c) in stream.expansions() {
                    self.pack_task(plan, kernel, storage, scope, &expansion(eq, c, &outer), variant);
                }
            }
        }
    }

    fn pack_task(
        &mut self,
        plan: &Plan,
        kernel: &Kernel,
        storage: &Storage,
        scope: usize,
        task: &Task,
        variant: &mut Variant,
    ) {
        let graph = &plan.graph;
        let units = Units::of(graph, task);
        let kept: HashMap<TensorId, Kept> =
            task.contractions.iter().map(|(_, c)| (c.b, variant.kept(graph, c.b, storage))).collect();
        let storage = |c: &Contraction| {
            let kept @ Kept { format, .. } = kept[&c.b];
            match plan.made.get(&(c.b, kept)) {
                Some((_, blocks)) if plan.reads_codes(kernel, c.b, kept) => Format::Codes(blocks.codes),
                Some((_, blocks)) if blocks.suit(graph, c) => Format::F32,
                Some(_) => fitting(graph, c, Format::Bf16),
                None => fitting(graph, c, if format.is_coded() { Format::Bf16 } else { format }),
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
        let mut all = HashMap::new();
        for group in groups {
            let depth = group[0].1.depth_size(graph).unwrap_or(1);
            let storage = storage(&group[0].1);
            let panel = storage.panel(depth);
            let unit_stride = panel * units.panels * group.len();
            let choice_stride = unit_stride * units.count;
            let choices = group[0].1.chosen.map_or(1, |(axis, _)| graph.fixed_size(axis));
            let views: Vec<View> = group
                .iter()
                .enumerate()
                .map(|(nth, (_, c))| {
                    let base = nth * panel * units.panels;
                    let strides = Strides { base, panel, unit: unit_stride };
                    let blocks = plan.made.get(&(c.b, kept[&c.b])).filter(|_| storage.is_coded());
                    let together = blocks.map_or(1, |(_, blocks)| blocks.count);
                    let stored = Stored { along: &c.along, depth: &c.depth, together };
                    let coded = storage.codes().map(|codes| panels::coded(graph, &stored, &units, &strides, codes));
                    let layout = match &coded {
                        Some(coded) => coded.planes[0].clone(),
                        None => panels::layout(graph, &stored, &units, &strides, storage, Part::Floats),
                    };
                    let made = made(plan, kept[&c.b], c.b, storage);
                    let (along, order) = (c.along.clone(), kept[&c.b].order);
                    View { tensor: c.b, along, order, layout, coded, made }
                })
                .collect();
            let layers = variant.layers_of(graph, group[0].1.b);
            let region = self.region(Region { storage, len: choice_stride * choices, depth, views, layers });
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
                all.insert(*eq, panels);
            }
        }
        variant.panels.extend(all);
    }

    /// Keeps one of equal regions.
    fn region(&mut self, region: Region) -> usize {
        let same = |r: &Region| {
            r.storage == region.storage
                && r.len == region.len
                && r.views.len() == region.views.len()
                && r.views.iter().zip(&region.views).all(|(a, b)| {
                    (a.tensor, &a.along, a.order) == (b.tensor, &b.along, b.order)
                        && (&a.layout, a.made) == (&b.layout, b.made)
                })
        };
        match self.regions.iter().position(same) {
            Some(known) => {
                self.regions[known].layers.extend(region.layers);
                known
            }
            None => {
                self.regions.push(region);
                self.regions.len() - 1
            }
        }
    }

    /// Gives each weight that a kernel loads element by element a home: a packed one that has it whole, or its own.
    fn plain(&mut self, plan: &Plan, storage: &Storage, scope: usize, kernel: &Kernel, variant: &mut Variant) {
        let graph = &plan.graph;
        let loaded = weights(plan, kernel).into_iter().filter(|(_, stored)| stored.is_none());
        for (tensor, _) in loaded {
            let kept = variant.kept(graph, tensor, storage);
            let layers = variant.layers_of(graph, tensor);
            let axes = &graph.tensor(tensor).axes;
            let sizes: Vec<usize> = axes.iter().map(|&a| graph.fixed_size(a)).collect();
            let all =
                |v: &View| v.tensor == tensor && v.along.iter().zip(axes).all(|(along, &axis)| along.is_all(axis));
            let is_made = plan.made.get(&(tensor, kept));
            let blocks = is_made.map(|(_, blocks)| *blocks).filter(|_| plan.reads_codes(kernel, tensor, kept));
            let codes = blocks.map(|blocks| blocks.codes);
            let serves = |region: &Region| is_made.is_none() || region.storage.codes() == codes;
            let has =
                |region: &Region| serves(region) && region.layers.is_superset(&layers) && region.views.iter().any(all);
            let whole = self.regions.iter().position(has);
            let looked_up = |homes: &mut Homes| homes.looked_up(graph, tensor, blocks?, kept.order, &layers);
            let region = whole.or_else(|| looked_up(self)).unwrap_or_else(|| {
                let len = sizes.iter().product::<usize>();
                let storage = match kept.format {
                    _ if len <= SMALL || is_made.is_some() => Format::F32,
                    // Scales are those of panels.
                    coded if coded.is_coded() => Format::Bf16,
                    plain => plain,
                };
                let along = axes.iter().map(|&axis| Along::Axis { axis, from: 0 }).collect();
                let made = made(plan, kept, tensor, storage);
                let (layout, order) = (Layout::row_major(&sizes), kept.order);
                let views = vec![View { tensor, along, order, layout, coded: None, made }];
                self.region(Region { storage, len, depth: 0, views, layers: layers.clone() })
            });
            let slot = self.slot(scope, Entry::Region(region));
            let region = &self.regions[region];
            if let Some(view) = region.views.iter().find(|v| all(v)) {
                let mut place = Place::flat(Buffer::Layer(slot), view.layout.clone(), sizes.len());
                place.elem = region.storage.elem();
                place.coded = view.coded.clone();
                variant.places.insert(tensor, place);
            }
        }
    }

    /// Gives a weight of which elements are read one by one a home in panels of codes, whose rows are along its last axes.
    fn looked_up(
        &mut self,
        graph: &Graph,
        tensor: TensorId,
        blocks: Blocks,
        order: Order,
        layers: &BTreeSet<Option<usize>>,
    ) -> Option<usize> {
        let storage = Format::Codes(blocks.codes);
        let (columns, rows) = graph.tensor(tensor).axes.split_at(blocks.first);
        let (lane, outer) = columns.split_last()?;
        let size = |a: AxisId| graph.fixed_size(a);
        let (lane_size, depth) = (size(*lane), rows.iter().map(|&a| size(a)).product());
        let panel = storage.panel(depth);
        let digits: Vec<(AxisId, usize)> =
            outer.iter().map(|&a| (a, size(a))).chain([(*lane, lane_size.div_ceil(PANEL))]).collect();
        let count = digits.iter().map(|(_, n)| n).product();
        let units =
            Units { digits, whole: Vec::new(), lane: *lane, lane_size, lane_whole: false, panels: 1, count, joined: 1 };
        let along: Vec<Along> = graph.tensor(tensor).axes.iter().map(|&axis| Along::Axis { axis, from: 0 }).collect();
        let stored = Stored { along: &along, depth: rows, together: blocks.count };
        let coded = panels::coded(graph, &stored, &units, &Strides { base: 0, panel, unit: panel }, blocks.codes);
        let view = View { tensor, along, order, layout: coded.planes[0].clone(), coded: Some(coded), made: None };
        let (len, layers) = (panel * count, layers.clone());
        Some(self.region(Region { storage, len, depth, views: vec![view], layers }))
    }
}

impl Variant {
    /// How a weight is to be kept in these layers.
    fn kept(&self, graph: &Graph, tensor: TensorId, storage: &Storage) -> Kept {
        storage(tensor, self.layers.first().copied().flatten().filter(|_| graph.is_layered(tensor)))
    }

    /// Those of these layers that have a weight of their own.
    fn layers_of(&self, graph: &Graph, tensor: TensorId) -> BTreeSet<Option<usize>> {
        self.layers.iter().map(|layer| layer.filter(|_| graph.is_layered(tensor))).collect()
    }
}

/// The layers of a stretch, those together that want the weights of a kernel kept alike.
fn alike(plan: &Plan, kernel: &Kernel, layers: &[Option<usize>], storage: &Storage) -> Vec<Variant> {
    let weights = weights(plan, kernel);
    let mut variants: Vec<(Vec<Kept>, Variant)> = Vec::new();
    for &layer in layers {
        let one = Variant { layers: vec![layer], panels: HashMap::new(), places: HashMap::new() };
        let kept = weights.iter().map(|&(tensor, _)| one.kept(&plan.graph, tensor, storage)).collect();
        match variants.iter_mut().find(|(other, _)| *other == kept) {
            Some((_, same)) => same.layers.push(layer),
            None => variants.push((kept, one)),
        }
    }
    variants.into_iter().map(|(_, variant)| variant).collect()
}

/// The weights that a kernel's equations read, with the equation of whose contraction one is the stored operand.
pub(crate) fn weights(plan: &Plan, kernel: &Kernel) -> Vec<(TensorId, Option<EqId>)> {
    let stored: Vec<(EqId, TensorId)> = match &kernel.shape {
        Shape::Contract(contract) => {
            let all = contract.tasks.iter().flat_map(|task| &task.contractions);
            all.map(|(eq, c)| (*eq, c.b)).collect()
        }
        Shape::Stream(stream) => stream.expansions().map(|(eq, c)| (eq, c.b)).collect(),
        Shape::Rows => Vec::new(),
    };
    let mut weights = Vec::new();
    for &eq in &kernel.equations {
        for tensor in plan.graph.loaded(plan.equations[eq].body) {
            let of = Some(eq).filter(|_| stored.contains(&(eq, tensor)));
            if plan.graph.is_weight(tensor) && !weights.contains(&(tensor, of)) {
                weights.push((tensor, of));
            }
        }
    }
    weights
}

/// What a weight's numbers are made of where they are stored as such: those of a checkpoint that has them in codes are what they
/// are, of others the codes are the compiler's.
fn made(plan: &Plan, kept: Kept, weight: TensorId, storage: Format) -> Option<Blocks> {
    let (_, blocks) = plan.made.get(&(weight, kept))?;
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
