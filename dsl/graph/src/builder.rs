//! Making graphs from Rust: what the `model!` macro expands to, and what tests, fuzzers and metaprograms call.

use std::collections::HashMap;

use crate::config::ModelError;
use crate::graph::*;
use crate::sweep::sweep;
use crate::verify::{Site, VerifyError, verify};

/// A graph that was put together wrongly: the first mistake, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// What is wrong, naming the axis or tensor.
    pub message: String,
    /// The declaration at which it was noticed.
    pub location: Option<Location>,
}

/// Builds a [`Graph`].
///
/// Operands align by axis name: `binary(Mul, a, w)` broadcasts over the union of their axes. Equal expressions are kept
/// once. Integers become floats where they meet floats.
///
/// A masked expression ([`Builder::masked`]) is *absent* where its mask is false: functions of it are absent there too, a
/// reduction skips what is absent, and a value that leaves its equation reads as 0 there.
///
/// A mistake is remembered and reported by [`Builder::finish`]: the calls between need no error handling.
///
/// ```
/// use einfuse_graph::{Binary, Builder, Reduction};
/// let mut b = Builder::new("linear");
/// let (t, d, f) = (b.tokens("t"), b.axis("d", 4), b.axis("f", 3));
/// let v = b.axis("v", 7);
/// let ids = b.input("tokens", &[t]);
/// let embed = b.weight("embed", &[v, d], "embed.weight");
/// let w = b.weight("w", &[f, d], "w.weight");
/// let id = b.load(ids);
/// let x = b.load_at(embed, &[(v, id)]);
/// let w = b.load(w);
/// let product = b.binary(Binary::Mul, x, w);
/// let sum = b.reduce(Reduction::Sum, &[d], product);
/// let y = b.define("y", Some(&[t, f]), sum);
/// let graph = b.finish(y).unwrap();
/// assert_eq!(graph.axes_of(graph.output), "[t, f]");
/// ```
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    known: HashMap<Expr, ExprId>,
    masks: HashMap<ExprId, (ExprId, ExprId)>,
    masked: HashMap<(ExprId, ExprId), ExprId>,
    names: HashMap<String, u32>,
    windows: HashMap<AxisId, usize>,
    /// For an axis of which elements were compared with each other, a second index over the same extent.
    others: HashMap<AxisId, AxisId>,
    /// Tensors of which each element is the same number.
    uniform: HashMap<TensorId, f64>,
    location: Option<Location>,
    error: Option<BuildError>,
}

/// The whole of the file tensor of this name.
impl From<&str> for FileTensor {
    fn from(name: &str) -> FileTensor {
        FileTensor { name: name.to_owned(), rows: None, each: false }
    }
}

/// Where a weight may come from: one name, or several alternatives.
#[derive(Clone, Debug)]
pub struct Places(pub Vec<FileTensor>);

impl From<&str> for Places {
    fn from(name: &str) -> Places {
        Places(vec![name.into()])
    }
}

impl From<Vec<FileTensor>> for Places {
    fn from(places: Vec<FileTensor>) -> Places {
        Places(places)
    }
}

impl Builder {
    /// An empty graph of this name.
    pub fn new(name: &str) -> Builder {
        Builder {
            graph: Graph {
                name: name.to_owned(),
                axes: Vec::new(),
                tensors: Vec::new(),
                exprs: Vec::new(),
                nodes: Vec::new(),
                output: TensorId(0),
            },
            known: HashMap::new(),
            masks: HashMap::new(),
            masked: HashMap::new(),
            names: HashMap::new(),
            windows: HashMap::new(),
            others: HashMap::new(),
            uniform: HashMap::new(),
            location: None,
            error: None,
        }
    }

    /// What was built so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The place in the model's source of the declarations that follow.
    pub fn at(&mut self, file: &str, line: u32, column: u32) {
        self.location = Some(Location { file: file.to_owned(), line, column });
    }

    /// Remembers a mistake; the first one is returned by [`Builder::finish`].
    pub fn fail(&mut self, message: impl Into<String>) {
        let location = self.location.clone();
        self.error.get_or_insert_with(|| BuildError { message: message.into(), location });
    }

    // ---- axes

    /// An axis of a fixed size.
    pub fn axis(&mut self, name: &str, size: usize) -> AxisId {
        if size == 0 {
            self.fail(format!("axis `{name}` has size 0"));
        }
        self.push_axis(name, Extent::Fixed(size))
    }

    /// The axis of this step's tokens. A graph has at most one.
    pub fn tokens(&mut self, name: &str) -> AxisId {
        if self.tokens_axis().is_some() {
            self.fail(format!("axis `{name}`: the graph has a tokens axis already"));
        }
        self.push_axis(name, Extent::Tokens)
    }

    /// An axis over all positions of a sequence, cached and new; with a window `w`, reductions over it see, at position
    /// `t`, only what lies above `t - w`.
    pub fn positions(&mut self, name: &str, window: Option<usize>) -> AxisId {
        let axis = self.push_axis(name, Extent::Positions);
        match window {
            Some(0) => self.fail(format!("the window of axis `{name}` is 0: no position would be seen")),
            Some(w) => {
                self.windows.insert(axis, w);
            }
            None => {}
        }
        axis
    }

    fn push_axis(&mut self, name: &str, extent: Extent) -> AxisId {
        let id = AxisId(self.graph.axes.len() as u32);
        let name = self.unique(name);
        self.graph.axes.push(Axis { name, extent });
        id
    }

    /// The axis of this step's tokens.
    pub(crate) fn tokens_axis(&self) -> Option<AxisId> {
        let at = self.graph.axes.iter().position(|a| a.extent == Extent::Tokens)?;
        Some(AxisId(at as u32))
    }

    // ---- tensors

    fn unique(&mut self, name: &str) -> String {
        let uses = self.names.entry(name.to_owned()).or_insert(0);
        *uses += 1;
        match *uses {
            1 => name.to_owned(),
            n => {
                let name = format!("{name}.{n}");
                self.unique(&name)
            }
        }
    }

    fn push_tensor(&mut self, name: &str, axes: &[AxisId], ty: Type, kind: Kind) -> TensorId {
        for (i, axis) in axes.iter().enumerate() {
            if axes[..i].contains(axis) {
                let twice = &self.graph.axis(*axis).name;
                self.fail(format!("`{name}` has the axis `{twice}` twice"));
            }
        }
        let id = TensorId(self.graph.tensors.len() as u32);
        let name = self.unique(name);
        let location = self.location.clone();
        self.graph.tensors.push(Tensor { name, axes: axes.to_vec(), ty, kind, location });
        id
    }

    /// A tensor of integers that the caller gives at each step.
    pub fn input(&mut self, name: &str, axes: &[AxisId]) -> TensorId {
        self.push_tensor(name, axes, Type::Int, Kind::Input)
    }

    /// A tensor of floats from the checkpoint, axes in the order in which the file stores them.
    pub fn weight(&mut self, name: &str, axes: &[AxisId], places: impl Into<Places>) -> TensorId {
        let Places(places) = places.into();
        if places.is_empty() {
            self.fail(format!("weight `{name}` has no place in a checkpoint"));
        }
        for &axis in axes {
            if self.graph.size(axis).is_none() {
                let axis = self.graph.axis(axis).name.clone();
                self.fail(format!("weight `{name}` has the axis `{axis}`, whose size no checkpoint can know"));
            }
        }
        self.push_tensor(name, axes, Type::Float, Kind::Weight(places))
    }

    /// A tensor of floats computed by the host, in the order of `axes`.
    pub fn constant(&mut self, name: &str, axes: &[AxisId], values: Vec<f32>) -> TensorId {
        let want: usize = axes.iter().map(|&a| self.graph.size(a).unwrap_or(0)).product();
        if want != values.len() {
            let axes = self.graph.names(axes);
            self.fail(format!("`{name}` wants {want} values for its axes {axes}, the host gives {}", values.len()));
        }
        let alone = values.first().filter(|_| axes.is_empty()).map(|&value| f64::from(value));
        let tensor = self.push_tensor(name, axes, Type::Float, Kind::Constant(values));
        self.uniform.extend(alone.map(|value| (tensor, value)));
        tensor
    }

    /// A tensor of which each element is the same number. It is not added where it is 0, nor multiplied by where it is 1.
    pub fn uniform(&mut self, name: &str, axes: &[AxisId], value: f64) -> TensorId {
        let size = axes.iter().map(|&a| self.graph.size(a).unwrap_or(0)).product();
        let tensor = self.constant(name, axes, vec![value as f32; size]);
        self.uniform.insert(tensor, value);
        tensor
    }

    // ---- expressions

    fn intern(&mut self, expr: Expr) -> ExprId {
        if let Some(&id) = self.known.get(&expr) {
            return id;
        }
        let id = self.push_expr(expr.clone());
        self.known.insert(expr, id);
        id
    }

    fn push_expr(&mut self, expr: Expr) -> ExprId {
        let id = ExprId(self.graph.exprs.len() as u32);
        self.graph.exprs.push(expr);
        id
    }

    /// A real constant.
    pub fn float(&mut self, value: f64) -> ExprId {
        self.intern(Expr::Float(Real(value)))
    }

    /// An integer constant.
    pub fn int(&mut self, value: i64) -> ExprId {
        self.intern(Expr::Int(value))
    }

    /// The coordinate of an axis.
    pub fn coordinate(&mut self, axis: AxisId) -> ExprId {
        self.intern(Expr::Coordinate(axis))
    }

    /// The extent of a fixed axis, as an integer.
    pub fn size(&mut self, axis: AxisId) -> ExprId {
        match self.graph.size(axis) {
            Some(size) => self.int(size as i64),
            None => {
                let name = self.graph.axis(axis).name.clone();
                self.fail(format!("`size({name})`: only a fixed axis has a size, `{name}` grows with the sequence"));
                self.int(1)
            }
        }
    }

    /// An element of a tensor at the coordinates of its own axes.
    pub fn load(&mut self, tensor: TensorId) -> ExprId {
        self.load_at(tensor, &[])
    }

    /// An element of a tensor, with some of its axes indexed by integer expressions: `x[v = tokens]`.
    pub fn load_at(&mut self, tensor: TensorId, selected: &[(AxisId, ExprId)]) -> ExprId {
        let axes = self.graph.tensor(tensor).axes.clone();
        for &(axis, index) in selected {
            let (name, of) = (self.graph.axis(axis).name.clone(), self.graph.tensor(tensor).name.clone());
            if !axes.contains(&axis) {
                let axes = self.graph.axes_of(tensor);
                self.fail(format!("`{of}` has no axis `{name}` to select; it is declared over {axes}"));
            }
            if self.graph.type_of(index) != Type::Int {
                self.fail(format!("`{of}[{name} = …]` wants an integer"));
            }
            if let (Some(size), Expr::Int(at)) = (self.graph.size(axis), self.graph.expr(index))
                && !(0..size as i64).contains(at)
            {
                let at = *at;
                self.fail(format!("`{of}[{name} = {at}]`: the coordinates of `{name}` are 0 to {}", size - 1));
            }
        }
        if let Some(&value) = self.uniform.get(&tensor).filter(|_| axes.is_empty()) {
            return self.float(value);
        }
        let index = axes
            .iter()
            .map(|&axis| match selected.iter().find(|(a, _)| *a == axis) {
                Some(&(_, index)) => index,
                None => self.coordinate(axis),
            })
            .collect();
        self.intern(Expr::Load { tensor, index })
    }

    /// `body` where `mask` holds, absent elsewhere: `body where mask`.
    pub fn masked(&mut self, body: ExprId, mask: ExprId) -> ExprId {
        if self.graph.type_of(mask) != Type::Mask {
            self.fail("`where` wants a mask (a comparison), this is a number");
            return body;
        }
        let (body, mask) = match self.masks.get(&body) {
            Some(&(inner, earlier)) => (inner, self.intern(Expr::Binary(Binary::And, earlier, mask))),
            None => (body, mask),
        };
        if let Some(&id) = self.masked.get(&(body, mask)) {
            return id;
        }
        let absent = match self.graph.type_of(body) {
            Type::Float => Expr::Select { mask, then: body, otherwise: self.float(0.0) },
            Type::Int => Expr::Select { mask, then: body, otherwise: self.int(0) },
            Type::Mask => Expr::Binary(Binary::And, mask, body),
        };
        // Not interned: an equal expression that was written out is nowhere absent.
        let id = self.push_expr(absent);
        self.masked.insert((body, mask), id);
        self.masks.insert(id, (body, mask));
        id
    }

    /// Splits a masked expression into what it is where it is present, and its mask.
    fn present(&self, id: ExprId) -> (ExprId, Option<ExprId>) {
        match self.masks.get(&id) {
            Some(&(body, mask)) => (body, Some(mask)),
            None => (id, None),
        }
    }

    fn with_masks(&mut self, result: ExprId, masks: &[Option<ExprId>]) -> ExprId {
        let mut result = result;
        let mut seen = Vec::new();
        for mask in masks.iter().flatten() {
            if !seen.contains(mask) {
                seen.push(*mask);
                result = self.masked(result, *mask);
            }
        }
        result
    }

    fn as_float(&mut self, id: ExprId) -> ExprId {
        match *self.graph.expr(id) {
            Expr::Int(value) => self.float(value as f64),
            _ if self.graph.type_of(id) == Type::Int => self.intern(Expr::Unary(Unary::ToFloat, id)),
            _ => id,
        }
    }

    /// A function of one scalar. An integer becomes a float where the function wants one.
    pub fn unary(&mut self, op: Unary, x: ExprId) -> ExprId {
        let (x, mask) = self.present(x);
        let ty = self.graph.type_of(x);
        if (op == Unary::Not) != (ty == Type::Mask) {
            self.fail(format!("{op:?} of a {ty:?}").to_lowercase());
            return x;
        }
        let x = if matches!(op, Unary::Neg | Unary::Not) { x } else { self.as_float(x) };
        let folded = match (op, self.graph.expr(x)) {
            (Unary::ToFloat, _) => Some(x),
            (Unary::Neg, &Expr::Int(v)) => v.checked_neg().map(|v| self.int(v)),
            (Unary::Not, _) => None,
            (_, &Expr::Float(Real(v))) => Some(self.float(op.of(v))),
            _ => None,
        };
        let result = folded.unwrap_or_else(|| self.intern(Expr::Unary(op, x)));
        self.with_masks(result, &[mask])
    }

    /// A function of two scalars, over the union of their axes.
    pub fn binary(&mut self, op: Binary, a: ExprId, b: ExprId) -> ExprId {
        let ((a, mask_a), (b, mask_b)) = (self.present(a), self.present(b));
        let (ty_a, ty_b) = (self.graph.type_of(a), self.graph.type_of(b));
        if op.is_logical() != (ty_a == Type::Mask) || op.is_logical() != (ty_b == Type::Mask) {
            self.fail(format!("{op:?} of a {ty_a:?} and a {ty_b:?}").to_lowercase());
            return a;
        }
        let float = ty_a == Type::Float || ty_b == Type::Float || op == Binary::Pow;
        if float && op == Binary::Rem {
            self.fail("`%` is of integers");
        }
        let (a, b) = if float { (self.as_float(a), self.as_float(b)) } else { (a, b) };
        let folded = match (self.graph.expr(a), self.graph.expr(b)) {
            (&Expr::Float(Real(x)), &Expr::Float(Real(y))) if op.is_arithmetic() => {
                let value = op.of(x, y);
                if value.is_nan() {
                    self.fail(format!("`{op}` of {x} and {y} is not a number"));
                }
                Some(Expr::Float(Real(value)))
            }
            (&Expr::Int(x), &Expr::Int(y)) if op.is_arithmetic() => op.of_ints(x, y).map(Expr::Int),
            _ => None,
        };
        let without = match op {
            Binary::Add if self.changes_nothing(b, 0.0, a) => Some(a),
            Binary::Add if self.changes_nothing(a, 0.0, b) => Some(b),
            Binary::Sub if self.changes_nothing(b, 0.0, a) => Some(a),
            Binary::Mul if self.changes_nothing(b, 1.0, a) => Some(a),
            Binary::Mul if self.changes_nothing(a, 1.0, b) => Some(b),
            Binary::Div if self.changes_nothing(b, 1.0, a) => Some(a),
            _ => None,
        };
        let result = without.unwrap_or_else(|| self.intern(folded.unwrap_or(Expr::Binary(op, a, b))));
        self.with_masks(result, &[mask_a, mask_b])
    }

    /// Whether each element of an operand is this number, and it has no axis that the other has not.
    fn changes_nothing(&self, operand: ExprId, number: f64, other: ExprId) -> bool {
        match self.graph.expr(operand) {
            Expr::Float(Real(value)) => *value == number,
            Expr::Load { tensor, .. } if self.uniform.get(tensor) == Some(&number) => {
                let axes = self.graph.free_axes(other);
                self.graph.free_axes(operand).iter().all(|axis| axes.contains(axis))
            }
            _ => false,
        }
    }

    /// `then` where the mask holds, else `otherwise`.
    pub fn select(&mut self, mask: ExprId, then: ExprId, otherwise: ExprId) -> ExprId {
        if self.graph.type_of(mask) != Type::Mask {
            self.fail("`if` wants a mask (a comparison), this is a number");
            return then;
        }
        let ((then, mask_a), (otherwise, mask_b)) = (self.present(then), self.present(otherwise));
        let (ty_a, ty_b) = (self.graph.type_of(then), self.graph.type_of(otherwise));
        let (then, otherwise) = match (ty_a, ty_b) {
            (Type::Float, Type::Int) | (Type::Int, Type::Float) => (self.as_float(then), self.as_float(otherwise)),
            _ if ty_a == ty_b => (then, otherwise),
            _ => {
                self.fail("the two sides of `if` are a mask and a number");
                return then;
            }
        };
        let result = match self.holds_everywhere(mask) {
            true => then,
            false => self.intern(Expr::Select { mask, then, otherwise }),
        };
        self.with_masks(result, &[mask_a, mask_b])
    }

    /// Whether a mask is `c < n` where the coordinate `c` of a fixed axis never reaches `n`.
    fn holds_everywhere(&self, mask: ExprId) -> bool {
        let &Expr::Binary(Binary::Lt, a, b) = self.graph.expr(mask) else { return false };
        match (self.graph.expr(a), self.graph.expr(b)) {
            (&Expr::Coordinate(axis), &Expr::Int(n)) => self.graph.size(axis).is_some_and(|size| size as i64 <= n),
            _ => false,
        }
    }

    /// A reduction over `axes`; what is masked away is skipped.
    pub fn reduce(&mut self, op: Reduction, axes: &[AxisId], body: ExprId) -> ExprId {
        let (mut body, mut mask) = self.present(body);
        match self.graph.type_of(body) {
            Type::Mask => {
                self.fail("a reduction of a mask");
                return body;
            }
            Type::Int => body = self.as_float(body),
            Type::Float => {}
        }
        if op == Reduction::ArgMax && axes.len() != 1 {
            self.fail("`argmax` is over one axis");
        }
        let free = self.graph.free_axes(body);
        for &axis in axes {
            let name = self.graph.axis(axis).name.clone();
            if !free.contains(&axis) && !mask.is_some_and(|m| self.graph.free_axes(m).contains(&axis)) {
                let has = self.graph.names(&free);
                self.fail(format!("the reduction is over `{name}`, but its body has only {has}"));
            }
            let Some(&window) = self.windows.get(&axis) else { continue };
            let Some(t) = self.tokens_axis() else {
                self.fail(format!("a reduction over the windowed axis `{name}` wants a tokens axis"));
                continue;
            };
            let (s, t, w) = (self.coordinate(axis), self.coordinate(t), self.int(window as i64));
            let oldest = self.binary(Binary::Sub, t, w);
            let inside = self.binary(Binary::Gt, s, oldest);
            mask = Some(match mask {
                Some(mask) => self.binary(Binary::And, mask, inside),
                None => inside,
            });
        }
        if let Some(mask) = mask {
            let neutral = self.float(op.neutral());
            body = self.intern(Expr::Select { mask, then: body, otherwise: neutral });
        }
        self.intern(Expr::Reduce { op, axes: axes.to_vec(), body })
    }

    /// The mean over `axes`: the sum divided by the number of coordinates (of those that are present, if masked).
    pub fn mean(&mut self, axes: &[AxisId], body: ExprId) -> ExprId {
        let (_, mask) = self.present(body);
        let sum = self.reduce(Reduction::Sum, axes, body);
        let masked = mask.map_or(Vec::new(), |mask| self.graph.free_axes(mask));
        let (counted, whole): (Vec<AxisId>, Vec<AxisId>) = axes.iter().partition(|&axis| masked.contains(axis));
        let mut count = whole.iter().fold(self.int(1), |n, &axis| {
            let size = self.size(axis);
            self.binary(Binary::Mul, n, size)
        });
        if let Some(mask) = mask {
            let one = self.float(1.0);
            let mut present = self.masked(one, mask);
            if !counted.is_empty() {
                present = self.reduce(Reduction::Sum, &counted, present);
            }
            count = if whole.is_empty() { present } else { self.binary(Binary::Mul, present, count) };
        }
        self.binary(Binary::Div, sum, count)
    }

    /// The tensor of which an expression is an element, at the coordinates of the tensor's own axes; if there is none, a new
    /// one with this name.
    pub fn tensor(&mut self, name: &str, value: ExprId) -> TensorId {
        if let Expr::Load { tensor, .. } = *self.graph.expr(value)
            && self.load(tensor) == value
        {
            return tensor;
        }
        self.define(name, None, value)
    }

    /// What a block's function yields. Its mistakes are those of the graph, at the block's own declarations.
    pub fn block(&mut self, build: impl FnOnce(&mut Builder) -> Result<ExprId, ModelError>) -> ExprId {
        let location = self.location.clone();
        let result = match build(self) {
            Ok(result) => result,
            Err(error) => {
                self.fail(error.to_string());
                self.float(0.0)
            }
        };
        self.location = location;
        result
    }

    // ---- nodes

    /// `let name[axes] = body`: an equation. With `axes` given they must be exactly those of the body, and their order is
    /// the layout; without, they are inferred in order of appearance.
    pub fn define(&mut self, name: &str, axes: Option<&[AxisId]>, body: ExprId) -> TensorId {
        let free = self.graph.free_axes(body);
        let axes = match axes {
            Some(axes) => {
                let (mut left, mut right) = (axes.to_vec(), free.clone());
                left.sort();
                right.sort();
                if left != right {
                    let (left, right) = (self.graph.names(axes), self.graph.names(&free));
                    self.fail(format!("`{name}` is declared over {left}, but the right side has {right}"));
                }
                axes.to_vec()
            }
            None => free,
        };
        let ty = self.graph.type_of(body);
        let out = self.push_tensor(name, &axes, ty, Kind::Value);
        self.graph.nodes.push(Node::Equation { out, body });
        out
    }

    /// `let (values, indices)[axes] = top[over -> rank](x)`: the largest elements of `x` along `over`, the largest first and
    /// of equals the first, numbered along `rank`; and their coordinates. What is masked away comes last.
    ///
    /// An element's place is the number of those that come before it, so this is made of equations as any other: the
    /// places (named after the indices, `.rank`), and for each place the coordinate that has it.
    pub fn top(
        &mut self,
        (values, indices): (&str, &str),
        axes: Option<&[AxisId]>,
        x: ExprId,
        over: AxisId,
        rank: AxisId,
    ) -> (TensorId, TensorId) {
        let (body, mask) = self.present(x);
        let mut body = self.as_float(body);
        if let Some(mask) = mask {
            let last = self.float(f64::NEG_INFINITY);
            body = self.intern(Expr::Select { mask, then: body, otherwise: last });
        }
        let (name, of) = (self.graph.axis(rank).name.clone(), self.graph.axis(over).name.clone());
        let free = self.graph.free_axes(body);
        match (self.graph.size(over), self.graph.size(rank)) {
            _ if !free.contains(&over) || free.contains(&rank) => {
                let has = self.graph.names(&free);
                self.fail(format!("`top[{of} -> {name}]` is of a value with `{of}` and without `{name}`, not {has}"));
            }
            (Some(all), Some(some)) if some <= all => {}
            (Some(all), Some(some)) => {
                self.fail(format!("`top[{of} -> {name}]` wants {some} of the {all} coordinates of `{of}`"));
            }
            _ => self.fail(format!("`top[{of} -> {name}]` is along axes of fixed sizes")),
        }
        let x = self.tensor(&format!("{values}.of"), body);
        let other = match self.others.get(&over) {
            Some(&other) => other,
            None => {
                let other = self.push_axis(&format!("{of}.other"), self.graph.axis(over).extent);
                self.others.insert(over, other);
                other
            }
        };
        let (at, at_other) = (self.coordinate(over), self.coordinate(other));
        let (mine, theirs) = (self.load(x), self.load_at(x, &[(over, at_other)]));
        // Of equals the first: one that stands before is ahead if it is as large, one behind if it is larger.
        let stands_before = self.binary(Binary::Lt, at_other, at);
        let as_large = self.binary(Binary::Ge, theirs, mine);
        let first = self.binary(Binary::And, stands_before, as_large);
        let stands_behind = self.binary(Binary::Gt, at_other, at);
        let larger = self.binary(Binary::Gt, theirs, mine);
        let second = self.binary(Binary::And, stands_behind, larger);
        let before = self.binary(Binary::Or, first, second);
        let (one, zero) = (self.float(1.0), self.float(0.0));
        let counted = self.select(before, one, zero);
        let count = self.reduce(Reduction::Sum, &[other], counted);
        let place = self.define(&format!("{indices}.rank"), None, count);
        // Whole numbers, told apart by less than one.
        let (place, wanted, half) = (self.load(place), self.coordinate(rank), self.float(0.5));
        let apart = self.binary(Binary::Sub, place, wanted);
        let apart = self.unary(Unary::Abs, apart);
        let here = self.binary(Binary::Lt, apart, half);
        let found = self.select(here, one, zero);
        let index = self.reduce(Reduction::ArgMax, &[over], found);
        let indices = self.define(indices, axes, index);
        let index = self.load(indices);
        let value = self.load_at(x, &[(over, index)]);
        (self.define(values, axes, value), indices)
    }

    /// `cache rows over s`: appends this step's rows and returns the state that holds them all, with the tokens axis
    /// replaced by `over` (made by [`Builder::positions`]).
    pub fn append(&mut self, rows: TensorId, over: AxisId) -> TensorId {
        let tensor = self.graph.tensor(rows).clone();
        let Some(at) = tensor.axes.iter().position(|&a| Some(a) == self.tokens_axis()) else {
            self.fail(format!("`cache {}`: it has no tokens axis", tensor.name));
            return rows;
        };
        let mut rows = rows;
        if at != 0 {
            let mut axes = tensor.axes.clone();
            axes[..=at].rotate_right(1);
            let row = self.load(rows);
            rows = self.define(&tensor.name, Some(&axes), row);
        }
        let mut axes = self.graph.tensor(rows).axes.clone();
        axes[0] = over;
        let window = self.windows.get(&over).copied();
        let state = self.push_tensor(&format!("{}.cache", tensor.name), &axes, tensor.ty, Kind::State { window });
        self.graph.nodes.push(Node::Append { state, rows });
        state
    }

    /// A stack of layers: `order[l]` is the body of layer `l`. `body(builder, which, carry)` is called once for each
    /// distinct body and returns what the layer hands on; its axes are brought into the carry's order.
    pub fn layers(
        &mut self,
        initial: TensorId,
        order: &[usize],
        mut body: impl FnMut(&mut Builder, usize, TensorId) -> TensorId,
    ) -> TensorId {
        let tensor = self.graph.tensor(initial).clone();
        let carry = self.push_tensor(&tensor.name, &tensor.axes, tensor.ty, Kind::Carry);
        let mut bodies = Vec::new();
        for which in 0..order.iter().max().map_or(0, |m| m + 1) {
            let outer = std::mem::take(&mut self.graph.nodes);
            let mut result = body(self, which, carry);
            if self.graph.tensor(result).axes != tensor.axes || !matches!(self.graph.tensor(result).kind, Kind::Value) {
                let value = self.load(result);
                result = self.define(&tensor.name, Some(&tensor.axes), value);
            }
            let nodes = std::mem::replace(&mut self.graph.nodes, outer);
            if nodes.iter().any(|n| matches!(n, Node::Layers(_))) {
                self.fail("layers within layers");
            }
            bodies.push(Body { nodes, result });
        }
        let out = self.push_tensor(&tensor.name, &tensor.axes, tensor.ty, Kind::Value);
        let order = order.to_vec();
        self.graph.nodes.push(Node::Layers(Layers { carry, initial, out, bodies, order }));
        out
    }

    /// The finished graph, whose result is `output`; or the first mistake that was made, else what [`verify`] finds.
    pub fn finish(self, output: TensorId) -> Result<Graph, BuildError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let graph = Graph { output, ..self.graph };
        match verify(&graph) {
            Ok(()) => Ok(sweep(graph)),
            Err(VerifyError { message, site: Site::Tensor(tensor) }) => {
                let location = graph.tensors.get(tensor.index()).and_then(|tensor| tensor.location.clone());
                Err(BuildError { message, location })
            }
            Err(VerifyError { message, .. }) => Err(BuildError { message, location: None }),
        }
    }
}
