//! Weights in codes: what a weight is that is kept in fewer bits, as an equation over its parts.
//!
//! `w[d, f] = w.scale[d, f / 32] * (w.code[d, f] - 8)`, as its [`Codes`] declare it. Blocks may reach over the ends of an axis,
//! where neighbours are counted on as one: `w[d, n, c] = w.scale[d, (n * 80 + c) / 32] * (w.code[d, n, c] - 8)`. [`apply`]
//! writes these equations into a graph whose weights' formats are known, where any interpreter of the graph may evaluate them;
//! [`recognised`] finds the declaration that an equation has the form of, by which rule prologue lets cores multiply the codes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use einfuse_graph::{Axis, AxisId, Binary, Expr, ExprId, Extent, Graph, Kind, Node, Tensor, TensorId, Type, Unary};

use super::Contraction;
use super::edit::Edit;
use crate::format::{Codes, Format};

/// How a weight of a graph is to be kept in a layer; `None` for one that all layers share.
pub type Storage<'a> = dyn Fn(TensorId, Option<usize>) -> Kept + 'a;

/// How a weight is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kept {
    /// In which format, if it is summed over axes that have whole blocks; else as bf16 or f32.
    pub format: Format,
    /// Whether codes are the stored weight's own, whose blocks are along the axes that are last in its order: where others are
    /// summed over, they cannot be kept.
    pub own: bool,
    /// The order of the stored weight's axes.
    pub order: Order,
}

impl From<Format> for Kept {
    fn from(format: Format) -> Kept {
        Kept { format, own: false, order: Order::default() }
    }
}

/// In which order a checkpoint has the axes of a weight: as they are declared, but that some neighbours come after all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Order {
    first: usize,
    count: usize,
}

impl Order {
    /// These dimensions come last.
    pub fn with_last(dims: Range<usize>) -> Order {
        Order { first: dims.start, count: dims.len() }
    }

    /// So many dimensions, the outermost first.
    pub(crate) fn dims(self, count: usize) -> impl DoubleEndedIterator<Item = usize> {
        let end = self.first + self.count;
        (0..self.first).chain(end..count).chain(self.first..end)
    }

    /// How far apart in the checkpoint the neighbours along each dimension are.
    pub fn strides(self, sizes: &[usize]) -> Vec<usize> {
        let mut strides = vec![1; sizes.len()];
        let mut stride = 1;
        for dim in self.dims(sizes.len()).rev() {
            strides[dim] = stride;
            stride *= sizes[dim];
        }
        strides
    }
}

/// What a weight's equation was found to be: codes in blocks along one of its axes, or along neighbours that are counted on as one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blocks {
    /// How the weight is made of its parts.
    pub codes: Codes,
    /// The place of the first of these axes among the weight's.
    pub first: usize,
    /// How many they are.
    pub count: usize,
}

impl Blocks {
    /// The places of the axes among the weight's.
    pub(crate) fn dims(self) -> Range<usize> {
        self.first..self.first + self.count
    }

    /// Whether the rows that a contraction sums last are those of whole blocks.
    pub(crate) fn suit(self, graph: &Graph, c: &Contraction) -> bool {
        summed_last(graph, c, self.dims()).is_some_and(|rows| rows.is_multiple_of(self.codes.block))
    }
}

/// If these axes of its weight are what a contraction sums last, as one: what the rows that it takes of them, and those before
/// them, are multiples of.
fn summed_last(graph: &Graph, c: &Contraction, dims: Range<usize>) -> Option<usize> {
    let (along, own) = (&c.along[dims.clone()], &graph.tensor(c.b).axes[dims]);
    let axes = along.iter().map(|along| along.axis()).collect::<Option<Vec<_>>>()?;
    let is_whole = |nth: usize| along[nth].first() == 0 && graph.size(axes[nth]) == graph.size(own[nth]);
    let before = along.first()?.first() * product(graph, &own[1..])?;
    let alike = c.depth.ends_with(&axes) && (1..axes.len()).all(is_whole);
    alike.then_some(common(before, product(graph, &axes)?))
}

/// The greatest number that both are multiples of.
fn common(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common(b, a % b) }
}

fn product(graph: &Graph, axes: &[AxisId]) -> Option<usize> {
    axes.iter().map(|&axis| graph.size(axis)).product()
}

/// The tensors that a weight is made of, each over the weight's axes, of blocks in place of elements where `blocks` says.
struct Parts {
    code: TensorId,
    scale: TensorId,
    minimum: Option<TensorId>,
    /// Step and zero.
    steps: Option<[TensorId; 2]>,
    levels: Option<TensorId>,
}

/// The ways in which the layers that read a weight keep it, each once, by weight.
pub(super) type Ways = BTreeMap<TensorId, Vec<Kept>>;

/// In which ways the weights of a graph are kept.
pub(super) fn ways(graph: &Graph, kept: &Storage) -> Ways {
    let mut ways = Ways::new();
    let mut read = |node: &Node, layer: Option<usize>| {
        let Node::Equation { body, .. } = node else { return };
        for weight in graph.loaded(*body).into_iter().filter(|&tensor| graph.is_weight(tensor)) {
            let own = kept(weight, layer.filter(|_| graph.is_layered(weight)));
            let all = ways.entry(weight).or_default();
            if !all.contains(&own) {
                all.push(own);
            }
        }
    };
    for node in &graph.nodes {
        match node {
            Node::Layers(layers) => {
                for (layer, &body) in layers.order.iter().enumerate() {
                    layers.bodies[body].nodes.iter().for_each(|node| read(node, Some(layer)));
                }
            }
            node => read(node, None),
        }
    }
    ways
}

/// An equation of a weight: what it is where it is kept so.
pub(super) struct Way {
    weight: TensorId,
    kept: Kept,
    body: ExprId,
}

/// Makes each weight that is kept in codes an equation over its parts. Blocks are along the axes along which the checkpoint
/// has them, else along those that contractions sum last. What has no whole blocks there, or is summed along one axis here and
/// along another there, is not kept in codes. A weight that layers keep in several ways stays what it is in
/// the graph, which has one equation for all layers: its equations, one for each way in codes, are beside it.
pub(super) fn apply(graph: Graph, ways: &Ways) -> (Graph, Vec<Way>) {
    let mut several = Vec::new();
    if !ways.values().flatten().any(|kept| kept.format.is_coded()) {
        return (graph, several);
    }
    let summed = summed(&graph);
    let mut edit = Edit::new(graph);
    for (&weight, all) in ways {
        let contractions = summed.get(&weight).map_or(&[][..], Vec::as_slice);
        for &kept in all {
            let Some(blocks) = blocks_of(&edit.graph, weight, kept, contractions) else { continue };
            let prefix = if all.len() > 1 { format!("{}.", blocks.codes.name) } else { String::new() };
            let parts = parts(&mut edit, weight, blocks, &prefix);
            let body = equation(&mut edit, blocks, &parts);
            match all.len() {
                1 => edit.graph.tensors[weight.index()].kind = Kind::Made(body),
                _ => several.push(Way { weight, kept, body }),
            }
        }
    }
    (edit.graph, several)
}

/// The blocks of a weight that is kept so: the longest, along as few axes as have whole ones. `None` if it is in no codes, or
/// has no whole blocks.
fn blocks_of(graph: &Graph, weight: TensorId, kept: Kept, contractions: &[Contraction]) -> Option<Blocks> {
    let axes = &graph.tensor(weight).axes;
    let sizes = axes.iter().map(|&axis| graph.size(axis)).collect::<Option<Vec<_>>>()?;
    let strides = kept.order.strides(&sizes);
    let last = match kept.own {
        true => kept.order.dims(axes.len()).next_back()?,
        false => {
            let c = contractions.first()?;
            c.along.iter().position(|along| along.axis().as_ref() == c.depth.last())?
        }
    };
    let summed = if kept.own { &[] } else { contractions };
    let joined = |first: usize| {
        let all = sizes[first..=last].iter().product();
        let both = |rows, c| Some(common(rows, summed_last(graph, c, first..last + 1)?));
        let rows = summed.iter().try_fold(all, both)?;
        let codes = kept.format.fitting(rows).codes()?;
        rows.is_multiple_of(codes.block).then_some(Blocks { codes, first, count: last + 1 - first })
    };
    let counts_on = |first: &usize| *first == last || strides[*first] == strides[first + 1] * sizes[first + 1];
    let all = (0..=last).rev().take_while(counts_on).filter_map(joined);
    all.min_by_key(|blocks| Reverse(blocks.codes.block))
}

/// The contractions of each weight.
fn summed(graph: &Graph) -> HashMap<TensorId, Vec<Contraction>> {
    let mut all: HashMap<TensorId, Vec<Contraction>> = HashMap::new();
    for contraction in graph.equations().filter_map(|(out, body)| Contraction::of(graph, out, body)) {
        all.entry(contraction.b).or_default().push(contraction);
    }
    all
}

/// Declares the parts of a weight, which come from where it comes from, with a prefix to the name of each.
fn parts(edit: &mut Edit, weight: TensorId, blocks: Blocks, prefix: &str) -> Parts {
    let codes = blocks.codes;
    let of = edit.graph.tensor(weight).clone();
    let along = &of.axes[blocks.dims()];
    let names: Vec<&str> = along.iter().map(|&axis| edit.graph.axis(axis).name.as_str()).collect();
    let (name, size) = (names.join("."), product(&edit.graph, along).unwrap_or(1));
    let in_blocks_of = |edit: &mut Edit, rows: usize| {
        let axis = axis_named(edit, format!("{name}.{rows}"), size / rows);
        let mut axes = of.axes.clone();
        axes.splice(blocks.dims(), [axis]);
        axes
    };
    let in_blocks = in_blocks_of(edit, codes.block);
    let part = |edit: &mut Edit, name: &str, axes: &[AxisId], ty: Type| {
        let id = edit.value(&format!("{}.{prefix}{name}", of.name), axes.to_vec(), ty);
        let tensor = &mut edit.graph.tensors[id.index()];
        (tensor.kind, tensor.location) = (of.kind.clone(), of.location.clone());
        id
    };
    let code = part(edit, "code", &of.axes, Type::Int);
    let scale = part(edit, "scale", &in_blocks, Type::Float);
    let minimum = codes.minimum.then(|| part(edit, "minimum", &in_blocks, Type::Float));
    let steps = codes.steps.map(|rows| {
        let axes = in_blocks_of(edit, rows);
        ["step", "zero"].map(|name| part(edit, name, &axes, Type::Int))
    });
    let levels = codes.levels.map(|levels| {
        let axis = axis_named(edit, format!("{}.code", codes.name), levels.len());
        let name = format!("{}.level", codes.name);
        let known = edit.graph.tensors.iter().position(|tensor| tensor.name == name);
        known.map_or_else(
            || {
                let kind = Kind::Constant(levels.iter().map(|&level| level.into()).collect());
                edit.graph.tensors.push(Tensor { name, axes: vec![axis], ty: Type::Float, kind, location: None });
                TensorId(edit.graph.tensors.len() as u32 - 1)
            },
            |at| TensorId(at as u32),
        )
    });
    Parts { code, scale, minimum, steps, levels }
}

fn axis_named(edit: &mut Edit, name: String, size: usize) -> AxisId {
    let axes = &mut edit.graph.axes;
    let at = axes.iter().position(|axis| axis.name == name).unwrap_or_else(|| {
        axes.push(Axis { name, extent: Extent::Fixed(size) });
        axes.len() - 1
    });
    AxisId(at as u32)
}

/// What a weight is in such blocks: the one place that says what codes mean.
fn equation(edit: &mut Edit, blocks: Blocks, parts: &Parts) -> ExprId {
    let codes = blocks.codes;
    let code = edit.load(parts.code);
    let own = edit.graph.tensor(parts.code).axes.clone();
    let coordinates: Vec<ExprId> = own.iter().map(|&axis| edit.intern(Expr::Coordinate(axis))).collect();
    // Row by row, along one axis after the other.
    let mut row = coordinates[blocks.first];
    for dim in blocks.dims().skip(1) {
        let size = edit.graph.fixed_size(own[dim]);
        let size = edit.intern(Expr::Int(size as i64));
        let before = edit.intern(Expr::Binary(Binary::Mul, row, size));
        row = edit.intern(Expr::Binary(Binary::Add, before, coordinates[dim]));
    }
    let in_blocks = |edit: &mut Edit, tensor: TensorId, rows: usize| {
        let length = edit.intern(Expr::Int(rows as i64));
        let block = edit.intern(Expr::Binary(Binary::Div, row, length));
        let mut index = coordinates.clone();
        index.splice(blocks.dims(), [block]);
        edit.intern(Expr::Load { tensor, index })
    };
    let scale = in_blocks(edit, parts.scale, codes.block);
    let value = match parts.levels {
        _ if let (Some([step, zero]), Some(rows)) = (parts.steps, codes.steps) => {
            let [step, zero] = [step, zero].map(|part| in_blocks(edit, part, rows));
            let above = edit.intern(Expr::Binary(Binary::Sub, code, zero));
            let value = edit.intern(Expr::Binary(Binary::Mul, step, above));
            edit.intern(Expr::Unary(Unary::ToFloat, value))
        }
        Some(levels) => edit.intern(Expr::Load { tensor: levels, index: vec![code] }),
        None => {
            let offset = edit.intern(Expr::Int(codes.offset.into()));
            let value = if codes.offset == 0 { code } else { edit.intern(Expr::Binary(Binary::Sub, code, offset)) };
            edit.intern(Expr::Unary(Unary::ToFloat, value))
        }
    };
    let scaled = edit.intern(Expr::Binary(Binary::Mul, scale, value));
    match parts.minimum {
        Some(minimum) => {
            let minimum = in_blocks(edit, minimum, codes.block);
            edit.intern(Expr::Binary(Binary::Add, scaled, minimum))
        }
        None => scaled,
    }
}

/// The weights whose equations are those of codes, of as many bits as their codes are kept in: for each way that has such an
/// equation the right side, and what it is.
pub(super) fn recognised(graph: &mut Graph, ways: &Ways, several: Vec<Way>) -> Vec<(TensorId, Kept, ExprId, Blocks)> {
    let made = ways.iter().flat_map(|(&weight, all)| match graph.tensor(weight).kind {
        Kind::Made(body) => all.iter().map(|&kept| Way { weight, kept, body }).collect(),
        _ => Vec::new(),
    });
    let all: Vec<Way> = made.chain(several).collect();
    if all.is_empty() {
        return Vec::new();
    }
    let mut edit = Edit::new(graph.clone());
    let found = all.into_iter().filter_map(|Way { weight, kept, body }| {
        let blocks = blocks(&mut edit, weight, body, kept.format.bits())?;
        Some((weight, kept, body, blocks))
    });
    let found = found.collect();
    *graph = edit.graph;
    found
}

/// The declaration that the equation of a weight has the form of: of its parts, in their order, it makes the same expression.
fn blocks(edit: &mut Edit, weight: TensorId, body: ExprId, bits: usize) -> Option<Blocks> {
    let graph = &edit.graph;
    let own = graph.tensor(weight).axes.clone();
    let is_constant = |part: &TensorId| matches!(graph.tensor(*part).kind, Kind::Constant(_));
    let (constants, parts): (Vec<TensorId>, Vec<TensorId>) = graph.loaded(body).into_iter().partition(is_constant);
    let levels = constants.first().copied();
    let (code, scale, minimum, steps) = match parts[..] {
        [code, scale] => (code, scale, None, None),
        [code, scale, minimum] => (code, scale, Some(minimum), None),
        [code, scale, step, zero] => (code, scale, None, Some([step, zero])),
        _ => return None,
    };
    let parts = Parts { code, scale, minimum, steps, levels };
    let of_scale = &graph.tensor(scale).axes;
    let first = own.iter().zip(of_scale).position(|(a, b)| a != b)?;
    let count = own.len().checked_sub(of_scale.len())? + 1;
    let values = levels.and_then(|levels| match &graph.tensor(levels).kind {
        Kind::Constant(values) => Some(values.clone()),
        _ => None,
    });
    let alike = |codes: &Codes| {
        codes.bits == bits
            && codes.minimum == parts.minimum.is_some()
            && codes.steps.is_some() == parts.steps.is_some()
            && codes.levels.map(|levels| levels.map(f32::from).to_vec()) == values
    };
    let all = Format::ALL.into_iter().filter_map(Format::codes);
    let mut alike = all.filter(alike).map(|codes| Blocks { codes, first, count });
    alike.find(|&blocks| equation(edit, blocks, &parts) == body)
}
