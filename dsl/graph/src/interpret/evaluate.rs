//! The evaluation of one expression for all coordinates of some axes: a tree walk.
//!
//! An expression is compiled into operations that find a tensor's element by strides. What a tree walk would compute
//! again and again is kept: a reduction, or an expression that is used twice, is evaluated once for each coordinate of
//! its free axes, when it is first asked for. The side of a selection that is not chosen is never asked for.

use std::collections::HashMap;
use std::rc::Rc;

use super::number::{Accumulator, Number};
use crate::graph::*;

/// Tensors and values under way may have this many elements, so that an absurd graph is refused and doesn't exhaust memory.
const LARGEST_COUNT: usize = 1 << 26;

/// Larger integers are not exact in `f64`.
pub(crate) const LARGEST_INT: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;

/// What went wrong, in words. Boxed, so that the result of an evaluation stays small.
pub(crate) type Failure = Box<String>;

/// The elements of a tensor, row-major in its axes.
pub(crate) enum Data {
    /// From a checkpoint or the host.
    Given(Vec<f32>),
    /// Computed.
    Computed(Vec<Number>),
}

impl Data {
    pub(crate) fn numbers(&self) -> Vec<Number> {
        match self {
            Data::Given(values) => values.iter().map(|&v| Number::exact(v as f64)).collect(),
            Data::Computed(values) => values.clone(),
        }
    }

    #[inline]
    fn get(&self, at: usize) -> Number {
        match self {
            Data::Given(values) => Number::exact(values[at] as f64),
            Data::Computed(values) => values[at],
        }
    }
}

/// The lengths that one step gives to the axes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    pub(crate) past: usize,
    pub(crate) tokens: usize,
}

impl Lengths {
    pub(crate) fn of(self, axis: &Axis) -> usize {
        match axis.extent {
            Extent::Fixed(size) => size,
            Extent::Tokens => self.tokens,
            Extent::Positions => self.past + self.tokens,
        }
    }

    /// The coordinate of an axis' first element.
    fn first(self, axis: &Axis) -> usize {
        if axis.extent == Extent::Tokens { self.past } else { 0 }
    }

    pub(crate) fn shape(self, graph: &Graph, axes: &[AxisId]) -> Vec<usize> {
        axes.iter().map(|&axis| self.of(graph.axis(axis))).collect()
    }
}

/// The distances between neighbours along each axis of a row-major layout.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// `(axis, stride)` of each axis along which an address moves with the axis' own coordinate.
type Address = Vec<(AxisId, usize)>;

/// An index other than the coordinate of the axis itself.
struct Selected {
    axis: AxisId,
    index: usize,
    stride: usize,
}

/// An operand that is aligned by its axes' names.
#[derive(Clone)]
struct Aligned {
    data: Rc<Data>,
    address: Address,
}

impl Aligned {
    fn stride(&self, axis: AxisId) -> usize {
        self.address.iter().find(|(a, _)| *a == axis).map_or(0, |&(_, stride)| stride)
    }
}

enum Op {
    Literal(Number),
    Coordinate(AxisId),
    Load {
        tensor: TensorId,
        operand: Aligned,
        selected: Vec<Selected>,
    },
    Unary {
        op: Unary,
        x: usize,
    },
    Binary {
        op: Binary,
        integers: bool,
        a: usize,
        b: usize,
    },
    Select {
        mask: usize,
        then: usize,
        otherwise: usize,
    },
    Reduce {
        op: Reduction,
        axes: Vec<AxisId>,
        lengths: Vec<usize>,
        body: usize,
    },
    /// A sum of products of aligned operands: what [`Op::Reduce`] would do, with less ado.
    Contract {
        axes: Vec<AxisId>,
        lengths: Vec<usize>,
        factors: Vec<Aligned>,
    },
}

/// The values of an operation that were asked for already, by the coordinates of its free axes.
struct Kept {
    address: Address,
    values: Vec<Option<Number>>,
}

/// Where an evaluation stands.
struct Frame {
    /// Of each axis: how many elements come before the current one.
    at: Vec<usize>,
    /// Of each operation that is worth it: its values so far.
    kept: Vec<Option<Kept>>,
}

impl Frame {
    #[inline]
    fn address(&self, address: &[(AxisId, usize)]) -> usize {
        address.iter().map(|&(axis, stride)| self.at[axis.index()] * stride).sum()
    }

    /// Calls `visit` for all coordinates of `axes`, the last of them fastest; afterwards they are where they were.
    fn each(
        &mut self,
        axes: &[AxisId],
        lengths: &[usize],
        mut visit: impl FnMut(&mut Frame) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if lengths.contains(&0) {
            return Ok(());
        }
        let outer: Vec<usize> = axes.iter().map(|axis| self.at[axis.index()]).collect();
        for axis in axes {
            self.at[axis.index()] = 0;
        }
        'all: loop {
            visit(self)?;
            for (axis, length) in axes.iter().zip(lengths).rev() {
                let at = &mut self.at[axis.index()];
                *at += 1;
                if *at < *length {
                    continue 'all;
                }
                *at = 0;
            }
            break;
        }
        for (axis, at) in axes.iter().zip(outer) {
            self.at[axis.index()] = at;
        }
        Ok(())
    }
}

/// An expression as operations, each of which refers to earlier ones; the last is the whole.
struct Code<'g> {
    graph: &'g Graph,
    lengths: Lengths,
    ops: Vec<Op>,
}

/// The values of the expression `root` for all coordinates of `axes`, the last of them fastest. `data` are the elements
/// of the tensors that are known at this place. The graph has been verified.
pub(crate) fn evaluate(
    graph: &Graph,
    root: ExprId,
    axes: &[AxisId],
    lengths: Lengths,
    data: &[Option<Rc<Data>>],
) -> Result<Vec<Number>, Failure> {
    let order = graph.reachable(root);
    let place: HashMap<ExprId, usize> = order.iter().enumerate().map(|(at, &id)| (id, at)).collect();
    let mut uses = vec![0; order.len()];
    for &id in &order {
        for child in graph.expr(id).children() {
            uses[place[&child]] += 1;
        }
    }
    let mut code = Code { graph, lengths, ops: Vec::new() };
    let mut frame = Frame { at: vec![0; graph.axes.len()], kept: Vec::new() };
    for (&id, &uses) in order.iter().zip(&uses) {
        let op = code.compile(id, &place, data)?;
        let worth = match op {
            Op::Literal(_) | Op::Coordinate(_) => false,
            Op::Load { ref selected, .. } => uses > 1 && !selected.is_empty(),
            Op::Reduce { .. } | Op::Contract { .. } => true,
            Op::Unary { .. } | Op::Binary { .. } | Op::Select { .. } => uses > 1,
        };
        let mut kept = None;
        if worth && id != root {
            let axes = graph.free_axes(id);
            let shape = lengths.shape(graph, &axes);
            let values = vec![None; count(&shape)?];
            kept = Some(Kept { address: axes.into_iter().zip(strides(&shape)).collect(), values });
        }
        code.ops.push(op);
        frame.kept.push(kept);
    }
    let shape = lengths.shape(graph, axes);
    let mut values = Vec::with_capacity(count(&shape)?);
    frame.each(axes, &shape, |frame| {
        values.push(code.compute(frame, order.len() - 1)?);
        Ok(())
    })?;
    Ok(values)
}

impl Code<'_> {
    fn compile(&self, id: ExprId, place: &HashMap<ExprId, usize>, data: &[Option<Rc<Data>>]) -> Result<Op, Failure> {
        Ok(match self.graph.expr(id) {
            Expr::Float(Real(value)) => Op::Literal(Number::literal(*value)),
            Expr::Int(value) => Op::Literal(integer(*value as f64, 0.0)?),
            Expr::Coordinate(axis) => Op::Coordinate(*axis),
            Expr::Load { tensor, index } => {
                let Some(elements) = &data[tensor.index()] else {
                    return fail(format!("`{}` is used before it is known", self.graph.tensor(*tensor).name));
                };
                let axes = &self.graph.tensor(*tensor).axes;
                let strides = strides(&self.lengths.shape(self.graph, axes));
                let (mut address, mut selected) = (Vec::new(), Vec::new());
                for ((&axis, &index), stride) in axes.iter().zip(index).zip(strides) {
                    if *self.graph.expr(index) == Expr::Coordinate(axis) {
                        address.push((axis, stride));
                    } else {
                        selected.push(Selected { axis, index: place[&index], stride });
                    }
                }
                Op::Load { tensor: *tensor, operand: Aligned { data: Rc::clone(elements), address }, selected }
            }
            Expr::Unary(op, x) => Op::Unary { op: *op, x: place[x] },
            Expr::Binary(op, a, b) => {
                let integers = self.graph.type_of(*a) == Type::Int;
                Op::Binary { op: *op, integers, a: place[a], b: place[b] }
            }
            Expr::Select { mask, then, otherwise } => {
                Op::Select { mask: place[mask], then: place[then], otherwise: place[otherwise] }
            }
            Expr::Reduce { op, axes, body } => {
                let mut factors = Vec::new();
                let lengths = self.lengths.shape(self.graph, axes);
                if *op == Reduction::Sum && self.factors(place[body], &mut factors) {
                    Op::Contract { axes: axes.clone(), lengths, factors }
                } else {
                    Op::Reduce { op: *op, axes: axes.clone(), lengths, body: place[body] }
                }
            }
        })
    }

    /// Collects the factors of a product of aligned operands; false if it is anything else.
    fn factors(&self, id: usize, factors: &mut Vec<Aligned>) -> bool {
        match &self.ops[id] {
            Op::Load { operand, selected, .. } if selected.is_empty() => {
                factors.push(operand.clone());
                true
            }
            Op::Binary { op: Binary::Mul, integers: false, a, b } => {
                self.factors(*a, factors) && matches!(self.ops[*b], Op::Load { .. }) && self.factors(*b, factors)
            }
            _ => false,
        }
    }

    /// The value of an operation at the current coordinates.
    fn value(&self, frame: &mut Frame, id: usize) -> Result<Number, Failure> {
        let Some(kept) = &frame.kept[id] else { return self.compute(frame, id) };
        let at = frame.address(&kept.address);
        if let Some(value) = kept.values[at] {
            return Ok(value);
        }
        let value = self.compute(frame, id)?;
        if let Some(kept) = &mut frame.kept[id] {
            kept.values[at] = Some(value);
        }
        Ok(value)
    }

    fn compute(&self, frame: &mut Frame, id: usize) -> Result<Number, Failure> {
        match &self.ops[id] {
            Op::Literal(value) => Ok(*value),
            Op::Coordinate(axis) => Ok(Number::exact(self.coordinate(frame, *axis) as f64)),
            Op::Load { tensor, operand, selected } => {
                let mut at = frame.address(&operand.address);
                let mut sure = true;
                for Selected { axis, index, stride } in selected {
                    let index = self.value(frame, *index)?;
                    at += self.element(*tensor, *axis, index.value)? * stride;
                    sure &= index.is_sure();
                }
                Ok(operand.data.get(at).if_sure(sure))
            }
            Op::Unary { op, x } => Ok(Number::unary(*op, self.value(frame, *x)?)),
            Op::Binary { op, integers, a, b } => {
                let (a, b) = (self.value(frame, *a)?, self.value(frame, *b)?);
                if op.is_logical() {
                    Ok(Number::logical(*op, a, b))
                } else if !op.is_arithmetic() {
                    Ok(Number::compare(*op, a, b))
                } else if *integers {
                    self.integers(*op, a, b)
                } else {
                    Ok(Number::binary(*op, a, b))
                }
            }
            Op::Select { mask, then, otherwise } => {
                let mask = self.value(frame, *mask)?;
                let (chosen, other) = if mask.holds() { (then, otherwise) } else { (otherwise, then) };
                let value = self.value(frame, *chosen)?;
                // Where rounding may turn the mask, compiled code may be at the other side.
                Ok(if mask.is_sure() { value } else { value.or_other(self.value(frame, *other).ok()) })
            }
            Op::Reduce { op, axes, lengths, body } => {
                let mut all = Accumulator::new(*op);
                frame.each(axes, lengths, |frame| {
                    let x = self.value(frame, *body)?;
                    all.add(x, self.coordinate(frame, axes[0]));
                    Ok(())
                })?;
                Ok(all.result())
            }
            Op::Contract { axes, lengths, factors } => {
                let mut all = Accumulator::new(Reduction::Sum);
                let Some((&inner, outer)) = axes.split_last() else { return Ok(all.result()) };
                let (length, lengths) = (lengths[outer.len()], &lengths[..outer.len()]);
                let before = std::mem::replace(&mut frame.at[inner.index()], 0);
                let steps: Vec<usize> = factors.iter().map(|f| f.stride(inner)).collect();
                let mut starts = vec![0; factors.len()];
                frame.each(outer, lengths, |frame| {
                    for (start, factor) in starts.iter_mut().zip(factors) {
                        *start = frame.address(&factor.address);
                    }
                    for i in 0..length {
                        let mut product = factors[0].data.get(starts[0] + i * steps[0]);
                        for f in 1..factors.len() {
                            product = product * factors[f].data.get(starts[f] + i * steps[f]);
                        }
                        all.add(product, 0);
                    }
                    Ok(())
                })?;
                frame.at[inner.index()] = before;
                Ok(all.result())
            }
        }
    }

    fn coordinate(&self, frame: &Frame, axis: AxisId) -> usize {
        self.lengths.first(self.graph.axis(axis)) + frame.at[axis.index()]
    }

    /// Where the coordinate of an axis lies in the tensor.
    fn element(&self, tensor: TensorId, axis: AxisId, coordinate: f64) -> Result<usize, Failure> {
        let (first, length) = (self.lengths.first(self.graph.axis(axis)), self.lengths.of(self.graph.axis(axis)));
        let at = coordinate - first as f64;
        if at >= 0.0 && at < length as f64 {
            return Ok(at as usize);
        }
        let (tensor, axis) = (&self.graph.tensor(tensor).name, &self.graph.axis(axis).name);
        let range = match length {
            0 => "there are none".to_owned(),
            _ => format!("they are {first} to {}", first + length - 1),
        };
        fail(format!("`{tensor}[{axis} = {coordinate}]` is outside the coordinates of `{axis}`: {range}"))
    }

    fn integers(&self, op: Binary, a: Number, b: Number) -> Result<Number, Failure> {
        match op.of_ints(a.value as i64, b.value as i64) {
            Some(value) => integer(value as f64, a.bound + b.bound),
            None => {
                let op = format!("{op:?}").to_lowercase();
                fail(format!("`{op}` of the integers {} and {} has no value", a.value, b.value))
            }
        }
    }
}

/// The number of elements.
fn count(shape: &[usize]) -> Result<usize, Failure> {
    let all = shape.iter().try_fold(1usize, |n, &length| n.checked_mul(length));
    match all.filter(|&n| n <= LARGEST_COUNT) {
        Some(n) => Ok(n),
        None => fail(format!("{shape:?} are more than {LARGEST_COUNT} elements, too many to interpret")),
    }
}

fn integer(value: f64, bound: f64) -> Result<Number, Failure> {
    match value.abs() <= LARGEST_INT {
        true => Ok(Number { value, bound }),
        false => fail(format!("the integer {value} is beyond 2^53")),
    }
}

fn fail<T>(message: String) -> Result<T, Failure> {
    Err(Box::new(message))
}
