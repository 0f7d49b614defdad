//! Whether a graph is well-formed: everything that the interpreter and the compiler rely on.

use std::collections::HashSet;

use crate::graph::*;

/// Expressions nest at most this deep, so that walking them needs little stack.
pub const MAX_DEPTH: usize = 256;

/// What is wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct VerifyError {
    /// The first thing that is wrong, naming the axis or tensor.
    pub message: String,
    /// Where.
    pub site: Site,
}

/// What a [`VerifyError`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The graph as a whole.
    Graph,
    /// An axis.
    Axis(AxisId),
    /// The declaration or definition of a tensor.
    Tensor(TensorId),
    /// An expression.
    Expr(ExprId),
}

impl VerifyError {
    /// The same mistake, found here unless a closer place is known.
    fn at(self, site: Site) -> VerifyError {
        if self.site == Site::Graph { VerifyError { site, ..self } } else { self }
    }
}

type Verdict = Result<(), VerifyError>;

fn wrong<T>(message: impl Into<String>) -> Result<T, VerifyError> {
    Err(VerifyError { message: message.into(), site: Site::Graph })
}

/// Checks that a graph is well-formed:
///
/// - names are unique among axes and tensors together, axes have elements, and there is at most one tokens axis;
/// - tensors have the axes and the type that their kind wants, each axis once;
/// - expressions refer to earlier ones, are well-typed, nest at most [`MAX_DEPTH`] deep, index every axis of a tensor
///   by an integer, and reduce over axes that they have;
/// - a tensor is defined once, and before it is used: a state is there after its append, a layer's weights and values
///   within its body;
/// - an equation's axes are the free axes of its body, in any order.
///
/// # Errors
/// The first violation. Never panics, whatever the graph holds.
pub fn verify(graph: &Graph) -> Verdict {
    let tokens = axes(graph)?;
    for (at, tensor) in graph.tensors.iter().enumerate() {
        let id = TensorId(at as u32);
        declaration(graph, tensor).map_err(|e| e.at(Site::Tensor(id)))?;
    }
    names(graph)?;
    let mut exprs = Exprs { graph, types: Vec::new(), free: Vec::new(), depth: Vec::new() };
    for (at, expr) in graph.exprs.iter().enumerate() {
        exprs.check(expr).map_err(|e| e.at(Site::Expr(ExprId(at as u32))))?;
    }
    let known = |t: &Tensor| matches!(t.kind, Kind::Input | Kind::Constant(_) | Kind::Weight(_) | Kind::Made(_));
    let mut scope = Scope {
        exprs: &exprs,
        tokens,
        known: (0..graph.tensors.len()).filter(|&t| known(&graph.tensors[t])).map(|t| TensorId(t as u32)).collect(),
        defined: HashSet::new(),
        in_layer: false,
    };
    for (at, tensor) in graph.tensors.iter().enumerate() {
        if let Kind::Made(body) = tensor.kind {
            scope.made(tensor, body).map_err(|e| e.at(Site::Tensor(TensorId(at as u32))))?;
        }
    }
    for node in &graph.nodes {
        scope.node(node)?;
    }
    let output = scope.tensor(graph.output)?;
    if output.kind != Kind::Value || !scope.known.contains(&graph.output) {
        let message = format!("the output `{}` is not a value that the graph defines", output.name);
        return Err(VerifyError { message, site: Site::Tensor(graph.output) });
    }
    Ok(())
}

/// Checks the axes, and finds the one of the tokens.
fn axes(graph: &Graph) -> Result<Option<AxisId>, VerifyError> {
    let mut tokens = None;
    for (at, axis) in graph.axes.iter().enumerate() {
        let id = AxisId(at as u32);
        let message = match axis.extent {
            Extent::Fixed(0) => format!("axis `{}` has size 0", axis.name),
            Extent::Tokens if tokens.is_some() => format!("axis `{}` is a second tokens axis", axis.name),
            Extent::Tokens => {
                tokens = Some(id);
                continue;
            }
            Extent::Fixed(_) | Extent::Positions => continue,
        };
        return Err(VerifyError { message, site: Site::Axis(id) });
    }
    Ok(tokens)
}

/// Checks that names are unique, and that the text form can hold them.
fn names(graph: &Graph) -> Verdict {
    let mut seen = HashSet::new();
    let axes = graph.axes.iter().enumerate().map(|(at, a)| (&a.name, Site::Axis(AxisId(at as u32))));
    let tensors = graph.tensors.iter().enumerate().map(|(at, t)| (&t.name, Site::Tensor(TensorId(at as u32))));
    for (name, site) in axes.chain(tensors) {
        let message = if name.is_empty() || name.contains(|c: char| c == '`' || c.is_control()) {
            format!("the name {name:?} is empty or has a character that names can't have")
        } else if !seen.insert(name) {
            format!("two axes or tensors are named `{name}`")
        } else {
            continue;
        };
        return Err(VerifyError { message, site });
    }
    match graph.name.contains(|c: char| c == '`' || c.is_control()) || graph.name.is_empty() {
        true => wrong(format!("the graph's name {:?} is empty or has a character that names can't have", graph.name)),
        false => Ok(()),
    }
}

/// Checks a tensor for what its kind wants.
fn declaration(graph: &Graph, tensor: &Tensor) -> Verdict {
    let name = &tensor.name;
    let mut elements = 1usize;
    let mut fixed = true;
    for (i, &id) in tensor.axes.iter().enumerate() {
        let Some(axis) = graph.axes.get(id.index()) else {
            return wrong(format!("`{name}` has an axis that is not in the graph"));
        };
        if tensor.axes[..i].contains(&id) {
            return wrong(format!("`{name}` has the axis `{}` twice", axis.name));
        }
        match axis.extent {
            Extent::Fixed(size) => match elements.checked_mul(size).filter(|&n| n <= isize::MAX as usize / 16) {
                Some(product) => elements = product,
                None => return wrong(format!("`{name}` has more elements than memory can hold")),
            },
            Extent::Tokens | Extent::Positions => fixed = false,
        }
    }
    let extent = |at: usize| tensor.axes.get(at).map(|&axis| graph.axis(axis).extent);
    match &tensor.kind {
        Kind::Input => {
            if tensor.ty != Type::Int {
                return wrong(format!("the input `{name}` is not of integers"));
            }
            if tensor.axes.iter().any(|&axis| graph.axis(axis).extent == Extent::Positions) {
                return wrong(format!("the input `{name}` has an axis of positions"));
            }
        }
        Kind::Weight(places) => {
            if tensor.ty == Type::Mask || !fixed {
                return wrong(format!("the weight `{name}` is not of numbers over axes of fixed sizes"));
            }
            if places.is_empty() {
                return wrong(format!("the weight `{name}` has no place in a checkpoint"));
            }
            if tensor.axes.is_empty() && places.iter().any(|place| place.is_stacked() || place.each) {
                return wrong(format!(
                    "the weight `{name}` has no axis of whose coordinates each has a part of its own"
                ));
            }
            if places.iter().any(|place| place.each && (place.is_stacked() || place.rows.is_none())) {
                return wrong(format!("the weight `{name}` takes a part of each stretch without saying which"));
            }
            if places.iter().any(|place| place.rows.as_ref().is_some_and(|rows| rows.is_empty())) {
                return wrong(format!("the weight `{name}` takes no rows of a file's tensor"));
            }
            if places.iter().any(|place| place.name.contains(|c: char| c.is_control() || c == '"')) {
                return wrong(format!("the weight `{name}` comes from a name that text can't hold"));
            }
        }
        Kind::Made(_) => {
            if tensor.ty != Type::Float || !fixed {
                return wrong(format!("the weight `{name}` is not of floats over axes of fixed sizes"));
            }
        }
        Kind::Constant(values) => {
            if tensor.ty != Type::Float || !fixed || values.len() != elements {
                let have = values.len();
                return wrong(format!("the constant `{name}` has {have} values for {elements} elements of floats"));
            }
        }
        Kind::State { window } => {
            let rest = (1..tensor.axes.len()).all(|at| matches!(extent(at), Some(Extent::Fixed(_))));
            if extent(0) != Some(Extent::Positions) || !rest {
                return wrong(format!(
                    "the state `{name}` wants an axis of positions first, and others of fixed sizes"
                ));
            }
            if *window == Some(0) {
                return wrong(format!("the window of the state `{name}` is 0"));
            }
        }
        Kind::Value | Kind::Carry => {}
    }
    Ok(())
}

/// What is known of the expressions that were checked.
struct Exprs<'g> {
    graph: &'g Graph,
    types: Vec<Type>,
    free: Vec<Vec<AxisId>>,
    depth: Vec<usize>,
}

impl Exprs<'_> {
    fn check(&mut self, expr: &Expr) -> Verdict {
        let at = self.types.len();
        let children = expr.children();
        if children.iter().any(|child| child.index() >= at) {
            return wrong(format!("expression {at} refers to one that doesn't come before it"));
        }
        let depth = 1 + children.iter().map(|child| self.depth[child.index()]).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return wrong(format!("an expression is nested more than {MAX_DEPTH} deep"));
        }
        let ty = self.type_of(expr)?;
        let mut free: Vec<AxisId> = Vec::new();
        if let Expr::Coordinate(axis) = expr {
            free.push(*axis);
        }
        for axis in children.iter().flat_map(|child| &self.free[child.index()]) {
            if !free.contains(axis) {
                free.push(*axis);
            }
        }
        if let Expr::Reduce { axes, .. } = expr {
            if let Some(missing) = axes.iter().find(|axis| !free.contains(axis)) {
                let (missing, has) = (&self.graph.axis(*missing).name, self.graph.names(&free));
                return wrong(format!("the reduction is over `{missing}`, but its body has only {has}"));
            }
            free.retain(|axis| !axes.contains(axis));
        }
        self.types.push(ty);
        self.free.push(free);
        self.depth.push(depth);
        Ok(())
    }

    fn axis(&self, id: AxisId) -> Result<&Axis, VerifyError> {
        match self.graph.axes.get(id.index()) {
            Some(axis) => Ok(axis),
            None => wrong(format!("axis {} is not in the graph", id.0)),
        }
    }

    /// The type of an expression whose operands were checked.
    fn type_of(&self, expr: &Expr) -> Result<Type, VerifyError> {
        let ty = |id: &ExprId| self.types[id.index()];
        match expr {
            Expr::Float(Real(value)) if value.is_nan() => wrong("a constant is not a number (NaN)"),
            Expr::Float(_) => Ok(Type::Float),
            Expr::Int(_) => Ok(Type::Int),
            Expr::Coordinate(axis) => self.axis(*axis).map(|_| Type::Int),
            Expr::Load { tensor, index } => self.load(*tensor, index),
            Expr::Unary(op, x) => match (op, ty(x)) {
                (Unary::Neg, ty @ (Type::Float | Type::Int)) => Ok(ty),
                (Unary::Not, Type::Mask) => Ok(Type::Mask),
                (Unary::ToFloat, Type::Int) => Ok(Type::Float),
                (Unary::Neg | Unary::Not | Unary::ToFloat, ty) => wrong(format!("{op:?} of {ty:?}").to_lowercase()),
                (_, Type::Float) => Ok(Type::Float),
                (_, ty) => wrong(format!("{op:?} of {ty:?}").to_lowercase()),
            },
            Expr::Binary(op, a, b) => {
                if let (Binary::Div | Binary::Rem, &Expr::Int(divisor @ ..1)) = (op, self.graph.expr(*b)) {
                    return wrong(format!("integers are divided by {divisor}, not by 1 or more"));
                }
                let (a, b) = (ty(a), ty(b));
                let fits = a == b
                    && match op {
                        Binary::And | Binary::Or => a == Type::Mask,
                        Binary::Rem => a == Type::Int,
                        Binary::Pow => a == Type::Float,
                        _ => a != Type::Mask,
                    };
                match fits {
                    true => Ok(if op.is_arithmetic() { a } else { Type::Mask }),
                    false => wrong(format!("{op:?} of {a:?} and {b:?}").to_lowercase()),
                }
            }
            Expr::Select { mask, then, otherwise } => match (ty(mask), ty(then), ty(otherwise)) {
                (Type::Mask, a, b) if a == b => Ok(a),
                (mask, a, b) => wrong(format!("select by {mask:?} of {a:?} and {b:?}").to_lowercase()),
            },
            Expr::Reduce { op, axes, body } => {
                for (i, &axis) in axes.iter().enumerate() {
                    let name = &self.axis(axis)?.name;
                    if axes[..i].contains(&axis) {
                        return wrong(format!("a reduction is over the axis `{name}` twice"));
                    }
                }
                if axes.is_empty() || (*op == Reduction::ArgMax && axes.len() != 1) {
                    return wrong(format!("{op:?} over {} axes", axes.len()).to_lowercase());
                }
                match (op, ty(body)) {
                    (Reduction::ArgMax, Type::Float) => Ok(Type::Int),
                    (_, Type::Float) => Ok(Type::Float),
                    (_, ty) => wrong(format!("{op:?} of {ty:?}").to_lowercase()),
                }
            }
        }
    }

    fn load(&self, id: TensorId, index: &[ExprId]) -> Result<Type, VerifyError> {
        let Some(tensor) = self.graph.tensors.get(id.index()) else {
            return wrong(format!("tensor {} is not in the graph", id.0));
        };
        let name = &tensor.name;
        if index.len() != tensor.axes.len() {
            let axes = self.graph.axes_of(id);
            return wrong(format!("`{name}` over {axes} is read at {} indices", index.len()));
        }
        for (&axis, at) in tensor.axes.iter().zip(index) {
            let extent = self.axis(axis)?.extent;
            let axis = &self.axis(axis)?.name;
            if self.types[at.index()] != Type::Int {
                return wrong(format!("`{name}[{axis} = …]` wants an integer"));
            }
            match (extent, self.graph.expr(*at)) {
                (Extent::Fixed(size), &Expr::Int(at)) if at < 0 || at as usize >= size => {
                    return wrong(format!(
                        "`{name}[{axis} = {at}]`: the coordinates of `{axis}` are 0 to {}",
                        size - 1
                    ));
                }
                (Extent::Positions, expr) if matches!(tensor.kind, Kind::State { window: Some(_) }) => {
                    let position = |axis: &AxisId| self.graph.axis(*axis).extent == Extent::Positions;
                    if !matches!(expr, Expr::Coordinate(axis) if position(axis)) {
                        return wrong(format!(
                            "`{name}` keeps a window, so it is read along an axis of positions only"
                        ));
                    }
                }
                _ => {}
            }
        }
        Ok(tensor.ty)
    }
}

/// What is defined at some place among the nodes.
struct Scope<'a> {
    exprs: &'a Exprs<'a>,
    tokens: Option<AxisId>,
    known: HashSet<TensorId>,
    /// By any node up to here, in view or not.
    defined: HashSet<TensorId>,
    in_layer: bool,
}

impl Scope<'_> {
    fn tensor(&self, id: TensorId) -> Result<&Tensor, VerifyError> {
        match self.exprs.graph.tensors.get(id.index()) {
            Some(tensor) => Ok(tensor),
            None => wrong(format!("tensor {} is not in the graph", id.0)),
        }
    }

    fn used(&self, id: TensorId) -> Verdict {
        let tensor = self.tensor(id)?;
        if !self.known.contains(&id) {
            let before = if matches!(tensor.kind, Kind::State { .. }) { "appended to" } else { "defined" };
            return wrong(format!("`{}` is used where it is not yet {before}", tensor.name));
        }
        if !self.in_layer && self.exprs.graph.is_layered(id) {
            return wrong(format!("`{}` is of a layer, but is used outside of the layers", tensor.name));
        }
        Ok(())
    }

    fn define(&mut self, id: TensorId, kind: &str, fits: fn(&Kind) -> bool) -> Verdict {
        let tensor = self.tensor(id)?;
        if !fits(&tensor.kind) {
            return wrong(format!("`{}` is not {kind}", tensor.name));
        }
        if self.defined.contains(&id) {
            return wrong(format!("`{}` is defined twice", tensor.name));
        }
        self.defined.insert(id);
        self.known.insert(id);
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Verdict {
        match node {
            Node::Equation { out, body } => self.equation(*out, *body).map_err(|e| e.at(Site::Tensor(*out))),
            Node::Append { state, rows } => self.append(*state, *rows).map_err(|e| e.at(Site::Tensor(*state))),
            Node::Layers(layers) => self.layers(layers).map_err(|e| e.at(Site::Tensor(layers.out))),
        }
    }

    fn equation(&mut self, out: TensorId, body: ExprId) -> Verdict {
        let graph = self.exprs.graph;
        if body.index() >= graph.exprs.len() {
            return wrong(format!("expression {} is not in the graph", body.0));
        }
        for expr in graph.reachable(body) {
            if let Expr::Load { tensor, .. } = graph.expr(expr) {
                self.used(*tensor)?;
            }
        }
        self.define(out, "a value", |kind| *kind == Kind::Value)?;
        self.matches(self.tensor(out)?, body)
    }

    /// Checks that a tensor has the type and the axes of its definition.
    fn matches(&self, tensor: &Tensor, body: ExprId) -> Verdict {
        let graph = self.exprs.graph;
        let (name, ty) = (&tensor.name, self.exprs.types[body.index()]);
        if tensor.ty != ty {
            return wrong(format!("`{name}` is {:?}, its definition {ty:?}", tensor.ty).to_lowercase());
        }
        let free = &self.exprs.free[body.index()];
        // Each of them is in either once.
        match free.len() == tensor.axes.len() && free.iter().all(|axis| tensor.axes.contains(axis)) {
            true => Ok(()),
            false => {
                let (left, right) = (graph.names(&tensor.axes), graph.names(free));
                wrong(format!("`{name}` is declared over {left}, but the right side has {right}"))
            }
        }
    }

    /// A weight that is made of parts.
    fn made(&self, tensor: &Tensor, body: ExprId) -> Verdict {
        let (graph, name) = (self.exprs.graph, &tensor.name);
        if body.index() >= graph.exprs.len() {
            return wrong(format!("expression {} is not in the graph", body.0));
        }
        let is_part = |id: &TensorId| matches!(graph.tensor(*id).kind, Kind::Weight(_) | Kind::Constant(_));
        if let Some(other) = graph.loaded(body).into_iter().find(|id| !is_part(id)) {
            let other = &graph.tensor(other).name;
            return wrong(format!("the weight `{name}` is made of `{other}`, which no checkpoint has"));
        }
        if graph.reachable(body).iter().any(|&id| matches!(graph.expr(id), Expr::Reduce { .. })) {
            return wrong(format!("the weight `{name}` is made by a reduction"));
        }
        self.matches(tensor, body)
    }

    fn append(&mut self, state: TensorId, rows: TensorId) -> Verdict {
        self.used(rows)?;
        self.define(state, "a state", |kind| matches!(kind, Kind::State { .. }))?;
        let (state_axes, rows_axes) = (&self.tensor(state)?.axes, &self.tensor(rows)?.axes);
        let fits = self.tokens.is_some()
            && rows_axes.first() == self.tokens.as_ref()
            && rows_axes.get(1..) == state_axes.get(1..)
            && self.tensor(rows)?.ty == self.tensor(state)?.ty;
        if !fits {
            let graph = self.exprs.graph;
            let (state, rows) = (&self.tensor(state)?.name, &self.tensor(rows)?.name);
            let (to, from) = (graph.names(state_axes), graph.names(rows_axes));
            return wrong(format!("rows of `{rows}` over {from} don't fit the state `{state}` over {to}"));
        }
        Ok(())
    }

    fn layers(&mut self, layers: &Layers) -> Verdict {
        if self.in_layer {
            return wrong("layers within layers");
        }
        self.used(layers.initial)?;
        if let Some(body) = layers.order.iter().find(|&&body| body >= layers.bodies.len()) {
            return wrong(format!("a layer has the body {body}, there are {}", layers.bodies.len()));
        }
        let outer = self.known.clone();
        self.define(layers.carry, "a carry", |kind| *kind == Kind::Carry)?;
        let inner = self.known.clone();
        self.in_layer = true;
        for body in &layers.bodies {
            self.known.clone_from(&inner);
            for node in &body.nodes {
                self.node(node)?;
            }
            self.used(body.result)?;
            self.alike(layers, body.result)?;
        }
        self.in_layer = false;
        self.known = outer;
        self.define(layers.out, "a value", |kind| *kind == Kind::Value)?;
        self.alike(layers, layers.carry)?;
        self.alike(layers, layers.out)
    }

    /// Checks that a tensor has the axes and type of what the first layer gets.
    fn alike(&self, layers: &Layers, id: TensorId) -> Verdict {
        let (tensor, initial) = (self.tensor(id)?, self.tensor(layers.initial)?);
        if tensor.axes == initial.axes && tensor.ty == initial.ty {
            return Ok(());
        }
        let (axes, want) = (self.exprs.graph.axes_of(id), self.exprs.graph.axes_of(layers.initial));
        let (name, initial) = (&tensor.name, &initial.name);
        wrong(format!("`{name}` over {axes} stands in the layers for `{initial}` over {want}"))
    }
}
