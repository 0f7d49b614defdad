//! The data of a graph.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            /// The position in the graph's list.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

ids! {
    /// An axis of a [`Graph`]: a position in [`Graph::axes`].
    AxisId,
    /// A tensor of a [`Graph`]: a position in [`Graph::tensors`].
    TensorId,
    /// A scalar expression of a [`Graph`]: a position in [`Graph::exprs`].
    ExprId
}

/// A named index with an extent. Axes are nominal: two axes of equal size are still two axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// The name in the model.
    pub name: String,
    /// How many coordinates the axis has.
    pub extent: Extent,
}

/// How many coordinates an axis has, and what a coordinate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// A size known when the graph is built; coordinates are `0..size`.
    Fixed(usize),
    /// The tokens of this step. A coordinate is the token's absolute position in its sequence: row `i` of a step that
    /// follows `past` earlier positions has the coordinate `past + i`.
    Tokens,
    /// All positions of the sequence, cached and new: coordinates are `0..past + tokens`.
    Positions,
}

/// What a scalar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A real number: `f32` in compiled code, `f64` in the interpreter.
    Float,
    /// An integer: a token id or a coordinate.
    Int,
    /// A truth value.
    Mask,
}

/// Where a declaration stands in the model's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The source file, as the compiler names it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
}

/// One place in a checkpoint where a weight may be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTensor {
    /// The tensor's name in the file; `{l}` stands for the layer's number, `{e}` for the coordinate along the weight's first
    /// axis: then there is a file tensor for each, over the other axes.
    pub name: String,
    /// The part of the file tensor's first dimension that is meant; all of it if `None`.
    pub rows: Option<Range<usize>>,
    /// Whether that is a part of each of as many equal stretches of the dimension as the weight's first axis has coordinates.
    pub each: bool,
}

impl FileTensor {
    /// Whether there is a file tensor for each coordinate along the weight's first axis.
    pub fn is_stacked(&self) -> bool {
        self.name.contains("{e}")
    }

    /// The names in the file, in a layer: one, or as many as the weight's first axis has coordinates.
    pub fn names(&self, layer: Option<usize>, coordinates: usize) -> Vec<String> {
        let name = match layer {
            Some(layer) => self.name.replace("{l}", &layer.to_string()),
            None => self.name.clone(),
        };
        match self.is_stacked() {
            true => (0..coordinates).map(|at| name.replace("{e}", &at.to_string())).collect(),
            false => vec![name],
        }
    }
}

/// What a tensor is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Given by the caller at every step (token ids).
    Input,
    /// Read from a checkpoint. The alternatives are tried in order; the first that the checkpoint has is taken. A weight
    /// whose names contain `{l}` is another tensor in every layer.
    Weight(Vec<FileTensor>),
    /// A weight that is kept in parts, as codes and scales: what each of its elements is, an expression over the tensor's own
    /// axes that loads other weights and constants alone. It holds everywhere, and is no step of the graph.
    Made(ExprId),
    /// Computed once by the host when the graph was built, in the tensor's axis order.
    Constant(Vec<f32>),
    /// Rows kept from step to step along a [`Extent::Positions`] axis, which is the tensor's first axis. With a window
    /// `w`, a position `t` sees only the rows `s > t - w`, so that older ones need not be kept.
    State {
        /// The window `w` in positions.
        window: Option<usize>,
    },
    /// The left side of an equation, or the result of [`Node::Layers`].
    Value,
    /// What a layer gets from the one before it.
    Carry,
}

/// A tensor: a name, axes in the order in which it lies in memory (last fastest), and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The name in the model; unique in its graph.
    pub name: String,
    /// The axes, in the order of the layout.
    pub axes: Vec<AxisId>,
    /// The type of the elements.
    pub ty: Type,
    /// What the tensor is.
    pub kind: Kind,
    /// Where it was declared.
    pub location: Option<Location>,
}

/// A floating-point constant that compares and hashes by its bits.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Real) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl Hash for Real {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// A scalar expression: what one element is, given the coordinates of its free axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A real constant.
    Float(Real),
    /// An integer constant.
    Int(i64),
    /// The coordinate of an axis, an integer (for positions: absolute in the sequence).
    Coordinate(AxisId),
    /// An element of a tensor. There is one integer expression for each of its axes, in its axis order; an operand that
    /// is merely aligned by name has `Coordinate(axis)` there. Along a [`Extent::Tokens`] axis of the tensor the index
    /// is an absolute position of this step.
    Load {
        /// The tensor.
        tensor: TensorId,
        /// One integer expression per axis of the tensor.
        index: Vec<ExprId>,
    },
    /// A function of one scalar.
    Unary(Unary, ExprId),
    /// A function of two scalars of the same type.
    Binary(Binary, ExprId, ExprId),
    /// `then` where the mask holds, else `otherwise`.
    Select {
        /// The condition.
        mask: ExprId,
        /// The value where it holds.
        then: ExprId,
        /// The value elsewhere. Not evaluated by the side that is not chosen: either may be undefined there.
        otherwise: ExprId,
    },
    /// A reduction of `body` over all coordinates of `axes`, which are bound here.
    Reduce {
        /// How the elements are combined.
        op: Reduction,
        /// The axes that disappear. `ArgMax` has exactly one.
        axes: Vec<AxisId>,
        /// What is combined.
        body: ExprId,
    },
}

/// Functions of one scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-x`, of a float or an integer.
    Neg,
    /// `!x`, of a mask.
    Not,
    /// The absolute value, of a float.
    Abs,
    /// `e^x`.
    Exp,
    /// The natural logarithm.
    Log,
    /// The sine of an angle in radians.
    Sin,
    /// The cosine of an angle in radians.
    Cos,
    /// The hyperbolic tangent.
    Tanh,
    /// The error function.
    Erf,
    /// The square root.
    Sqrt,
    /// `1 / sqrt(x)`.
    Rsqrt,
    /// The float nearest to an integer.
    ToFloat,
}

/// Functions of two scalars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`, of floats or integers.
    Add,
    /// `a - b`, of floats or integers.
    Sub,
    /// `a * b`, of floats or integers.
    Mul,
    /// `a / b`: of floats; of integers, rounded down.
    Div,
    /// `a % b`, of integers: the remainder of the division rounded down, with the sign of `b`.
    Rem,
    /// `a ^ b`, of floats.
    Pow,
    /// The smaller, of floats or integers.
    Min,
    /// The larger, of floats or integers.
    Max,
    /// `a < b`, of floats or integers, a mask; so the five below.
    Lt,
    /// `a <= b`.
    Le,
    /// `a > b`.
    Gt,
    /// `a >= b`.
    Ge,
    /// `a == b`.
    Eq,
    /// `a != b`.
    Ne,
    /// Both, of masks.
    And,
    /// Either, of masks.
    Or,
}

/// How a reduction combines its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// The sum, of floats; 0 of nothing.
    Sum,
    /// The largest, of floats; `-inf` of nothing.
    Max,
    /// The smallest, of floats; `+inf` of nothing.
    Min,
    /// The coordinate (an integer) of the largest, the first of equals; of floats.
    ArgMax,
}

/// A step of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `out[its axes] = body`: the axes are the free ones of `body`.
    Equation {
        /// A [`Kind::Value`] tensor, defined here and only here.
        out: TensorId,
        /// What each of its elements is.
        body: ExprId,
    },
    /// Appends this step's rows to a state, which from here on holds the positions `0..past + tokens`. The axes of
    /// `rows` are those of the state with its first, the positions, replaced by the tokens axis.
    Append {
        /// A [`Kind::State`] tensor.
        state: TensorId,
        /// The rows, with a tokens axis first.
        rows: TensorId,
    },
    /// A body repeated once per layer.
    Layers(Layers),
}

/// A stack of layers, each of which turns the carry into the next layer's.
#[derive(Clone, Debug, PartialEq)]
pub struct Layers {
    /// The [`Kind::Carry`] tensor: in layer 0 the value of `initial`, afterwards the result of the layer before.
    pub carry: TensorId,
    /// What the first layer gets.
    pub initial: TensorId,
    /// The [`Kind::Value`] tensor that the last layer's result becomes.
    pub out: TensorId,
    /// The distinct bodies.
    pub bodies: Vec<Body>,
    /// For each layer, its body: positions in `bodies`.
    pub order: Vec<usize>,
}

/// What one kind of layer computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// Equations and appends, in order. No layers within layers.
    pub nodes: Vec<Node>,
    /// The tensor handed to the next layer, with the axes of the carry.
    pub result: TensorId,
}

/// Equations over named axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// The model's name.
    pub name: String,
    /// All axes.
    pub axes: Vec<Axis>,
    /// All tensors.
    pub tensors: Vec<Tensor>,
    /// All expressions: each refers only to earlier ones.
    pub exprs: Vec<Expr>,
    /// What is computed in a step, in order.
    pub nodes: Vec<Node>,
    /// The result of a step.
    pub output: TensorId,
}

impl Graph {
    /// The axis behind an id.
    pub fn axis(&self, id: AxisId) -> &Axis {
        &self.axes[id.index()]
    }

    /// The tensor behind an id.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.index()]
    }

    /// The expression behind an id.
    pub fn expr(&self, id: ExprId) -> &Expr {
        &self.exprs[id.index()]
    }

    /// All equations and appends, those of the layers' bodies too.
    pub fn all_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flat_map(|node| match node {
            Node::Layers(layers) => layers.bodies.iter().flat_map(|body| &body.nodes).collect(),
            node => vec![node],
        })
    }

    /// All equations: what they define, and as what.
    pub fn equations(&self) -> impl Iterator<Item = (TensorId, ExprId)> {
        self.all_nodes().filter_map(|node| match node {
            Node::Equation { out, body } => Some((*out, *body)),
            Node::Append { .. } | Node::Layers(_) => None,
        })
    }

    /// The size of a fixed axis; `None` for tokens and positions.
    pub fn size(&self, id: AxisId) -> Option<usize> {
        match self.axis(id).extent {
            Extent::Fixed(size) => Some(size),
            Extent::Tokens | Extent::Positions => None,
        }
    }

    /// The size of a fixed axis; 1 for tokens and positions, so that products count what is fixed: the elements of a row.
    pub fn fixed_size(&self, id: AxisId) -> usize {
        self.size(id).unwrap_or(1)
    }

    /// The tensor's axes for a message: `[t, n, c]`.
    pub fn axes_of(&self, id: TensorId) -> String {
        self.names(&self.tensor(id).axes)
    }

    /// Axes for a message: `[t, n, c]`.
    pub fn names(&self, axes: &[AxisId]) -> String {
        let names: Vec<&str> = axes.iter().map(|&a| self.axis(a).name.as_str()).collect();
        format!("[{}]", names.join(", "))
    }

    /// Whether the tensor is another one in each layer.
    pub fn is_layered(&self, id: TensorId) -> bool {
        match &self.tensor(id).kind {
            Kind::Weight(places) => places.iter().any(|p| p.name.contains("{l}")),
            Kind::Made(body) => self.loaded(*body).into_iter().any(|part| self.is_layered(part)),
            _ => false,
        }
    }

    /// Whether the tensor is read from a checkpoint, whole or in parts.
    pub fn is_weight(&self, id: TensorId) -> bool {
        matches!(self.tensor(id).kind, Kind::Weight(_) | Kind::Made(_))
    }

    /// The tensors that an expression loads, each once, in order.
    pub fn loaded(&self, id: ExprId) -> Vec<TensorId> {
        let mut all = BTreeSet::new();
        for at in self.reachable(id) {
            if let Expr::Load { tensor, .. } = self.expr(at) {
                all.insert(*tensor);
            }
        }
        all.into_iter().collect()
    }

    /// What an expression yields.
    pub fn type_of(&self, id: ExprId) -> Type {
        let mut id = id;
        loop {
            return match self.expr(id) {
                Expr::Float(_) => Type::Float,
                Expr::Int(_) | Expr::Coordinate(_) => Type::Int,
                Expr::Load { tensor, .. } => self.tensor(*tensor).ty,
                Expr::Unary(Unary::Not, _) => Type::Mask,
                Expr::Binary(op, ..) if !op.is_arithmetic() => Type::Mask,
                Expr::Unary(Unary::Neg, x) | Expr::Binary(_, x, _) | Expr::Select { then: x, .. } => {
                    id = *x;
                    continue;
                }
                Expr::Unary(..) => Type::Float,
                Expr::Reduce { op: Reduction::ArgMax, .. } => Type::Int,
                Expr::Reduce { .. } => Type::Float,
            };
        }
    }

    /// The value of an integer, or of a mask, as 0 or 1, of coordinates and elements that `leaf` knows; `None` where it depends on
    /// others, or an operation has no result.
    pub fn integer(&self, id: ExprId, leaf: &dyn Fn(&Expr) -> Option<i64>) -> Option<i64> {
        let of = |id: &ExprId| self.integer(*id, leaf);
        match self.expr(id) {
            Expr::Int(x) => Some(*x),
            expr @ (Expr::Coordinate(_) | Expr::Load { .. }) => leaf(expr),
            Expr::Unary(Unary::Neg, x) => of(x)?.checked_neg(),
            Expr::Unary(Unary::Not, x) => Some(1 - of(x)?),
            Expr::Binary(op, a, b) if self.type_of(*a) != Type::Float => {
                let (a, b) = (of(a)?, of(b)?);
                match op {
                    Binary::Lt => Some((a < b).into()),
                    Binary::Le => Some((a <= b).into()),
                    Binary::Gt => Some((a > b).into()),
                    Binary::Ge => Some((a >= b).into()),
                    Binary::Eq => Some((a == b).into()),
                    Binary::Ne => Some((a != b).into()),
                    Binary::And => Some(a & b),
                    Binary::Or => Some(a | b),
                    op => op.of_ints(a, b),
                }
            }
            Expr::Select { mask, then, otherwise } => of(if of(mask)? != 0 { then } else { otherwise }),
            _ => None,
        }
    }

    /// The axes whose coordinates the expression depends on, in order of first appearance.
    pub fn free_axes(&self, id: ExprId) -> Vec<AxisId> {
        let mut free: HashMap<ExprId, Vec<AxisId>> = HashMap::new();
        for at in self.reachable(id) {
            let mut axes = Vec::new();
            match self.expr(at) {
                Expr::Coordinate(axis) => axes.push(*axis),
                expr => {
                    for axis in expr.children().iter().flat_map(|child| &free[child]) {
                        if !axes.contains(axis) {
                            axes.push(*axis);
                        }
                    }
                }
            }
            if let Expr::Reduce { axes: bound, .. } = self.expr(at) {
                axes.retain(|axis| !bound.contains(axis));
            }
            free.insert(at, axes);
        }
        free.remove(&id).unwrap_or_default()
    }

    /// The expression and all inside it, each once, the inner ones first.
    pub fn reachable(&self, id: ExprId) -> Vec<ExprId> {
        let mut found = BTreeSet::from([id]);
        let mut open = vec![id];
        while let Some(at) = open.pop() {
            open.extend(self.expr(at).children().into_iter().filter(|&child| found.insert(child)));
        }
        found.into_iter().collect()
    }
}

impl Expr {
    /// The expressions directly inside this one, in the order in which they are written.
    pub fn children(&self) -> Vec<ExprId> {
        match self {
            Expr::Float(_) | Expr::Int(_) | Expr::Coordinate(_) => Vec::new(),
            Expr::Load { index, .. } => index.clone(),
            Expr::Unary(_, x) => vec![*x],
            Expr::Binary(_, a, b) => vec![*a, *b],
            Expr::Select { mask, then, otherwise } => vec![*mask, *then, *otherwise],
            Expr::Reduce { body, .. } => vec![*body],
        }
    }

    /// Visits the same children, to put others in their place.
    pub fn for_each_child_mut(&mut self, mut visit: impl FnMut(&mut ExprId)) {
        match self {
            Expr::Float(_) | Expr::Int(_) | Expr::Coordinate(_) => {}
            Expr::Load { index, .. } => index.iter_mut().for_each(visit),
            Expr::Unary(_, x) => visit(x),
            Expr::Binary(_, a, b) => {
                visit(a);
                visit(b);
            }
            Expr::Select { mask, then, otherwise } => {
                visit(mask);
                visit(then);
                visit(otherwise);
            }
            Expr::Reduce { body, .. } => visit(body),
        }
    }
}

impl Binary {
    /// Whether the result has the type of the operands (else it is a mask).
    pub fn is_arithmetic(self) -> bool {
        use Binary::*;
        matches!(self, Add | Sub | Mul | Div | Rem | Pow | Min | Max)
    }

    /// Whether it compares numbers.
    pub fn compares(self) -> bool {
        !self.is_arithmetic() && !self.is_logical()
    }

    /// Whether the operands are masks.
    pub fn is_logical(self) -> bool {
        matches!(self, Binary::And | Binary::Or)
    }
}

impl Reduction {
    /// The value that a reduction of nothing has, and that changes nothing when it is combined.
    pub fn neutral(self) -> f64 {
        match self {
            Reduction::Sum => 0.0,
            Reduction::Max | Reduction::ArgMax => f64::NEG_INFINITY,
            Reduction::Min => f64::INFINITY,
        }
    }
}

impl Unary {
    /// The function on floats, in `f64`. `Not` is of masks and yields its argument here.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Unary::Neg => -x,
            Unary::Not | Unary::ToFloat => x,
            Unary::Abs => x.abs(),
            Unary::Exp => x.exp(),
            Unary::Log => x.ln(),
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Tanh => x.tanh(),
            Unary::Erf => erf(x),
            Unary::Sqrt => x.sqrt(),
            Unary::Rsqrt => 1.0 / x.sqrt(),
        }
    }
}

impl Binary {
    /// An arithmetic function on floats, in `f64`; NaN for one that is not of floats.
    pub fn of(self, a: f64, b: f64) -> f64 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Pow => a.powf(b),
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            _ => f64::NAN,
        }
    }

    /// An arithmetic function on integers; `None` on overflow, or one that is not of integers. Quotients are rounded down, so
    /// that no remainder is negative. A divisor below 1 counts as 1.
    pub fn of_ints(self, a: i64, b: i64) -> Option<i64> {
        match self {
            Binary::Add => a.checked_add(b),
            Binary::Sub => a.checked_sub(b),
            Binary::Mul => a.checked_mul(b),
            Binary::Div => Some(a.div_euclid(b.max(1))),
            Binary::Rem => Some(a.rem_euclid(b.max(1))),
            Binary::Min => Some(a.min(b)),
            Binary::Max => Some(a.max(b)),
            _ => None,
        }
    }
}

/// The error function, to `f64` precision: its Maclaurin series below 3, the continued fraction of `erfc` above
/// (Abramowitz and Stegun, 7.1.5 and 7.1.14).
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    if a < 3.0 {
        let mut term = a;
        let mut sum = a;
        for n in 1..200 {
            term *= -a * a / n as f64;
            let next = sum + term / (2 * n + 1) as f64;
            if next == sum {
                break;
            }
            sum = next;
        }
        return (sum * 2.0 / std::f64::consts::PI.sqrt()).copysign(x);
    }
    if a > 6.0 {
        return 1f64.copysign(x);
    }
    let mut fraction = a;
    for k in (1..=60).rev() {
        fraction = a + k as f64 / 2.0 / fraction;
    }
    (1.0 - (-a * a).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
}

/// The function's name.
impl fmt::Display for Unary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unary::Neg => "neg",
            Unary::Not => "not",
            Unary::Abs => "abs",
            Unary::Exp => "exp",
            Unary::Log => "log",
            Unary::Sin => "sin",
            Unary::Cos => "cos",
            Unary::Tanh => "tanh",
            Unary::Erf => "erf",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::ToFloat => "float",
        })
    }
}

/// The operator's sign or the function's name.
impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Binary::Add => "+",
            Binary::Sub => "-",
            Binary::Mul => "*",
            Binary::Div => "/",
            Binary::Rem => "%",
            Binary::Pow => "pow",
            Binary::Min => "min",
            Binary::Max => "max",
            Binary::Lt => "<",
            Binary::Le => "<=",
            Binary::Gt => ">",
            Binary::Ge => ">=",
            Binary::Eq => "==",
            Binary::Ne => "!=",
            Binary::And => "&&",
            Binary::Or => "||",
        })
    }
}
