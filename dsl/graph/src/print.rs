//! The text form of a graph, written: `Display` for [`Graph`], and [`print_expr`] for one expression.
//!
//! The grammar stands with the parser, at [`parse`](crate::parse()).

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter, Write};

use crate::graph::*;
use crate::verify::verify;

/// Words that a name can't be without backticks.
pub(crate) const RESERVED: [&str; 24] = [
    "append", "argmax", "as", "axis", "body", "constant", "else", "end", "from", "graph", "if", "inf", "input",
    "layers", "max", "min", "order", "output", "result", "state", "sum", "then", "weight", "where",
];

/// Expressions deeper than this are printed as locals, so that the text nests no deeper than the parser goes.
const DEEP: usize = 24;

/// [`print_expr`] gives at most about this many characters.
const LONG: usize = 600;

/// Whether a character can begin a plain name.
pub(crate) fn begins_name(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

/// Whether a character can go on in a plain name.
pub(crate) fn continues_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '.'
}

/// A name as it is written: in backticks where it would be read as something else.
struct Name<'a>(&'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plain = self.0.starts_with(begins_name) && self.0.chars().all(continues_name);
        match plain && !RESERVED.contains(&self.0) {
            true => f.write_str(self.0),
            false => write!(f, "`{}`", self.0),
        }
    }
}

/// `[t, n, c]`, or nothing for no axes.
struct Axes<'a>(&'a Graph, &'a [AxisId]);

impl Display for Axes<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, &axis) in self.1.iter().enumerate() {
            f.write_str(if i == 0 { "[" } else { ", " })?;
            Name(&self.0.axis(axis).name).fmt(f)?;
        }
        f.write_str(if self.1.is_empty() { "" } else { "]" })
    }
}

impl Display for FileTensor {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.name)?;
        match &self.rows {
            Some(rows) => write!(f, "[{} .. {}{}]", rows.start, rows.end, if self.each { " each" } else { "" }),
            None => Ok(()),
        }
    }
}

/// The text form, which [`parse`](crate::parse) reads back. Of a graph that is not well-formed, only what is wrong.
impl Display for Graph {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Err(error) = verify(self) {
            return writeln!(f, "// ill-formed: {error}");
        }
        let graph = &merged(self);
        writeln!(f, "graph {}", Name(&self.name))?;
        for (i, axis) in self.axes.iter().enumerate() {
            let extent = match axis.extent {
                Extent::Fixed(size) => size.to_string(),
                Extent::Tokens => "tokens".to_owned(),
                Extent::Positions => "positions".to_owned(),
            };
            writeln!(f, "{}axis {} = {extent}", if i == 0 { "\n" } else { "" }, Name(&axis.name))?;
        }
        let mut first = true;
        for tensor in &self.tensors {
            let (name, axes) = (Name(&tensor.name), Axes(self, &tensor.axes));
            let mut declare = |kind: &str| {
                let blank = if std::mem::take(&mut first) { "\n" } else { "" };
                write!(f, "{blank}{kind} {name}{axes}")
            };
            match &tensor.kind {
                Kind::Value | Kind::Carry | Kind::Made(_) => continue,
                Kind::Input => declare("input")?,
                Kind::Weight(places) => {
                    declare("weight")?;
                    if tensor.ty == Type::Int {
                        f.write_str(" of int")?;
                    }
                    for (i, place) in places.iter().enumerate() {
                        write!(f, " {} {place}", if i == 0 { "=" } else { "|" })?;
                    }
                }
                Kind::Constant(values) => {
                    declare("constant")?;
                    f.write_str(" = [")?;
                    for (i, value) in values.iter().enumerate() {
                        let value = format!("{value:?}").to_lowercase();
                        write!(f, "{}{value}", if i == 0 { "" } else { ", " })?;
                    }
                    f.write_str("]")?;
                }
                Kind::State { window } => {
                    declare("state")?;
                    match tensor.ty {
                        Type::Float => {}
                        Type::Int => f.write_str(" of int")?,
                        Type::Mask => f.write_str(" of mask")?,
                    }
                    if let Some(window) = window {
                        write!(f, " within {window}")?;
                    }
                }
            }
            f.write_str("\n")?;
        }
        for tensor in &graph.tensors {
            if let Kind::Made(body) = tensor.kind {
                let (name, axes) = (Name(&tensor.name), Axes(graph, &tensor.axes));
                writeln!(f, "weight {name}{axes} = {}", Printer::new(graph).top(body))?;
            }
        }
        f.write_str("\n")?;
        for node in &graph.nodes {
            write_node(f, graph, node, "")?;
        }
        writeln!(f, "\noutput {}", Name(&self.tensor(self.output).name))
    }
}

fn write_node(f: &mut Formatter<'_>, graph: &Graph, node: &Node, indent: &str) -> fmt::Result {
    let name = |id: TensorId| Name(&graph.tensor(id).name);
    match node {
        Node::Equation { out, body } => {
            let mut printer = Printer::new(graph);
            for local in locals(graph, *body) {
                let text = printer.top(local);
                let number = printer.locals.len() + 1;
                writeln!(f, "{indent}%{number} = {text}")?;
                printer.locals.insert(local, number);
            }
            let axes = Axes(graph, &graph.tensor(*out).axes);
            writeln!(f, "{indent}{}{axes} = {}", name(*out), printer.top(*body))
        }
        Node::Append { state, rows } => writeln!(f, "{indent}append {} = {}", name(*state), name(*rows)),
        Node::Layers(layers) => {
            let (out, from, carry) = (name(layers.out), name(layers.initial), name(layers.carry));
            write!(f, "{indent}layers {out} from {from} as {carry} order")?;
            for which in &layers.order {
                write!(f, " {which}")?;
            }
            f.write_str("\n")?;
            for body in &layers.bodies {
                writeln!(f, "{indent}  body")?;
                for node in &body.nodes {
                    write_node(f, graph, node, &format!("{indent}    "))?;
                }
                writeln!(f, "{indent}    result {}", name(body.result))?;
            }
            writeln!(f, "{indent}end")
        }
    }
}

/// The parts of an expression that are printed in lines of their own, the inner ones first: what is used more than once
/// and isn't short, and what lies deep. Their order depends on the structure alone, not on the numbering.
fn locals(graph: &Graph, root: ExprId) -> Vec<ExprId> {
    let mut uses: HashMap<ExprId, usize> = HashMap::new();
    for child in graph.reachable(root).iter().flat_map(|&id| graph.expr(id).children()) {
        *uses.entry(child).or_insert(0) += 1;
    }
    let mut walk = Walk { graph, uses, depth: HashMap::new(), locals: Vec::new() };
    for child in graph.expr(root).children() {
        walk.visit(child);
    }
    walk.locals
}

struct Walk<'g> {
    graph: &'g Graph,
    uses: HashMap<ExprId, usize>,
    /// How deep the text of what was visited is nested.
    depth: HashMap<ExprId, usize>,
    locals: Vec<ExprId>,
}

impl Walk<'_> {
    fn visit(&mut self, id: ExprId) -> usize {
        if let Some(&depth) = self.depth.get(&id) {
            return depth;
        }
        let inner = self.graph.expr(id).children().into_iter().map(|child| self.visit(child)).max().unwrap_or(0);
        let shared = self.uses.get(&id).is_some_and(|&n| n > 1) && !is_short(self.graph, id);
        let local = shared || inner >= DEEP;
        if local {
            self.locals.push(id);
        }
        let depth = if local { 0 } else { inner + 1 };
        self.depth.insert(id, depth);
        depth
    }
}

/// The same graph with equal expressions kept once, as the parser would make it.
fn merged(graph: &Graph) -> Graph {
    let mut known: HashMap<Expr, ExprId> = HashMap::new();
    let mut first = Vec::with_capacity(graph.exprs.len());
    let mut merged = graph.clone();
    for (at, expr) in merged.exprs.iter_mut().enumerate() {
        expr.for_each_child_mut(|child| *child = first[child.index()]);
        first.push(*known.entry(expr.clone()).or_insert(ExprId(at as u32)));
    }
    let bodies = merged.nodes.iter_mut().flat_map(|node| match node {
        Node::Layers(layers) => layers.bodies.iter_mut().flat_map(|body| &mut body.nodes).collect(),
        node => vec![node],
    });
    for node in bodies {
        if let Node::Equation { body, .. } = node {
            *body = first[body.index()];
        }
    }
    for tensor in &mut merged.tensors {
        if let Kind::Made(body) = &mut tensor.kind {
            *body = first[body.index()];
        }
    }
    merged
}

fn is_short(graph: &Graph, id: ExprId) -> bool {
    match graph.expr(id) {
        Expr::Float(_) | Expr::Int(_) | Expr::Coordinate(_) => true,
        Expr::Load { tensor, .. } => is_aligned(graph, *tensor, id),
        _ => false,
    }
}

/// Whether a load takes the tensor at the coordinates of all its own axes.
fn is_aligned(graph: &Graph, tensor: TensorId, id: ExprId) -> bool {
    let Expr::Load { index, .. } = graph.expr(id) else { return false };
    let axes = &graph.tensor(tensor).axes;
    axes.iter().zip(index).all(|(&axis, &at)| *graph.expr(at) == Expr::Coordinate(axis))
}

/// An expression in one line, operands that are merely aligned by name without their axes: `sum[d] a * wq`. What is too
/// long for a line ends in `…`.
pub fn print_expr(graph: &Graph, expr: ExprId) -> String {
    let mut printer = Printer { brief: true, ..Printer::new(graph) };
    printer.top(expr)
}

/// How tightly parts of an expression hold together, the loosest first.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Tie {
    /// `if … then … else …`, `sum[s] … where …`: nothing can follow.
    Open,
    Or,
    And,
    Compare,
    Sum,
    /// `sum[d] …`: ends where a sum goes on, so it can stand in one, but not in a product.
    Reduce,
    Product,
    Prefix,
    Power,
    Atom,
}

struct Printer<'g> {
    graph: &'g Graph,
    /// Parts that have a line of their own, by its number.
    locals: HashMap<ExprId, usize>,
    /// Whether aligned operands go without brackets, and long ones end early.
    brief: bool,
    text: String,
}

impl<'g> Printer<'g> {
    fn new(graph: &'g Graph) -> Printer<'g> {
        Printer { graph, locals: HashMap::new(), brief: false, text: String::new() }
    }

    fn top(&mut self, id: ExprId) -> String {
        self.part(id, Tie::Open);
        std::mem::take(&mut self.text)
    }

    /// Writes a part where nothing looser than `tie` can stand.
    fn part(&mut self, id: ExprId, tie: Tie) {
        if self.brief && self.text.len() > LONG {
            if !self.text.ends_with('…') {
                self.text.push('…');
            }
            return;
        }
        if let Some(&number) = self.locals.get(&id) {
            self.put(format_args!("%{number}"));
            return;
        }
        let parentheses = self.tie(id) < tie;
        if parentheses {
            self.text.push('(');
        }
        self.expr(id);
        if parentheses {
            self.text.push(')');
        }
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a string never fails.
        let _ = self.text.write_fmt(text);
    }

    /// The body of a reduction that is masked, with its mask.
    fn masked(&self, op: Reduction, body: ExprId) -> Option<(ExprId, ExprId)> {
        if self.locals.contains_key(&body) {
            return None;
        }
        match *self.graph.expr(body) {
            Expr::Select { mask, then, otherwise }
                if *self.graph.expr(otherwise) == Expr::Float(Real(op.neutral())) =>
            {
                Some((then, mask))
            }
            _ => None,
        }
    }

    fn tie(&self, id: ExprId) -> Tie {
        match self.graph.expr(id) {
            Expr::Float(Real(value)) if value.is_sign_negative() => Tie::Prefix,
            Expr::Int(..0) => Tie::Prefix,
            Expr::Float(_) | Expr::Int(_) | Expr::Coordinate(_) | Expr::Load { .. } => Tie::Atom,
            Expr::Unary(Unary::Neg | Unary::Not, _) => Tie::Prefix,
            Expr::Unary(..) => Tie::Atom,
            Expr::Binary(op, ..) => match op {
                Binary::Or => Tie::Or,
                Binary::And => Tie::And,
                Binary::Add | Binary::Sub => Tie::Sum,
                Binary::Mul | Binary::Div | Binary::Rem => Tie::Product,
                Binary::Pow => Tie::Power,
                Binary::Min | Binary::Max => Tie::Atom,
                _ => Tie::Compare,
            },
            Expr::Select { .. } => Tie::Open,
            Expr::Reduce { op, body, .. } if self.masked(*op, *body).is_some() => Tie::Open,
            Expr::Reduce { .. } => Tie::Reduce,
        }
    }

    fn expr(&mut self, id: ExprId) {
        let graph = self.graph;
        match graph.expr(id) {
            Expr::Float(Real(value)) => self.put(format_args!("{value:?}")),
            Expr::Int(value) => self.put(format_args!("{value}")),
            Expr::Coordinate(axis) => self.put(format_args!("{}", Name(&graph.axis(*axis).name))),
            Expr::Load { tensor, index } => self.load(id, *tensor, index),
            Expr::Unary(op, x) => {
                match op {
                    Unary::Neg => self.text.push('-'),
                    Unary::Not => self.text.push('!'),
                    op => self.put(format_args!("{op}")),
                }
                // `-1` is read as a constant, so the negation of 1 is `-(1)`.
                let constant = matches!(graph.expr(*x), Expr::Float(_) | Expr::Int(_));
                if matches!(op, Unary::Neg | Unary::Not) && !constant {
                    self.part(*x, Tie::Prefix);
                } else {
                    self.text.push('(');
                    self.part(*x, Tie::Open);
                    self.text.push(')');
                }
            }
            Expr::Binary(op @ (Binary::Min | Binary::Max), a, b) => {
                self.put(format_args!("{op}("));
                self.part(*a, Tie::Open);
                self.text.push_str(", ");
                self.part(*b, Tie::Open);
                self.text.push(')');
            }
            Expr::Binary(op, a, b) => {
                let (sign, left, right) = match op {
                    Binary::Or => ("||", Tie::Or, Tie::And),
                    Binary::And => ("&&", Tie::And, Tie::Compare),
                    Binary::Add => ("+", Tie::Sum, Tie::Reduce),
                    Binary::Sub => ("-", Tie::Sum, Tie::Reduce),
                    Binary::Mul => ("*", Tie::Product, Tie::Prefix),
                    Binary::Div => ("/", Tie::Product, Tie::Prefix),
                    Binary::Rem => ("%", Tie::Product, Tie::Prefix),
                    Binary::Pow => ("^", Tie::Atom, Tie::Prefix),
                    Binary::Lt => ("<", Tie::Sum, Tie::Sum),
                    Binary::Le => ("<=", Tie::Sum, Tie::Sum),
                    Binary::Gt => (">", Tie::Sum, Tie::Sum),
                    Binary::Ge => (">=", Tie::Sum, Tie::Sum),
                    Binary::Eq => ("==", Tie::Sum, Tie::Sum),
                    Binary::Ne => ("!=", Tie::Sum, Tie::Sum),
                    Binary::Min | Binary::Max => return,
                };
                self.part(*a, left);
                self.put(format_args!(" {sign} "));
                self.part(*b, right);
            }
            Expr::Select { mask, then, otherwise } => {
                self.text.push_str("if ");
                self.part(*mask, Tie::Or);
                self.text.push_str(" then ");
                self.part(*then, Tie::Or);
                self.text.push_str(" else ");
                self.part(*otherwise, Tie::Or);
            }
            Expr::Reduce { op, axes, body } => {
                let name = match op {
                    Reduction::Sum => "sum",
                    Reduction::Max => "max",
                    Reduction::Min => "min",
                    Reduction::ArgMax => "argmax",
                };
                self.put(format_args!("{name}{} ", Axes(graph, axes)));
                match self.masked(*op, *body) {
                    // An inner reduction would take the mask for its own.
                    Some((body, mask)) => {
                        self.part(body, Tie::Product);
                        self.text.push_str(" where ");
                        self.part(mask, Tie::Or);
                    }
                    None => self.part(*body, Tie::Reduce),
                }
            }
        }
    }

    fn load(&mut self, id: ExprId, tensor: TensorId, index: &[ExprId]) {
        let graph = self.graph;
        self.put(format_args!("{}", Name(&graph.tensor(tensor).name)));
        let axes = &graph.tensor(tensor).axes;
        let aligned = |axis: AxisId, at: ExprId| *graph.expr(at) == Expr::Coordinate(axis);
        if self.brief && is_aligned(graph, tensor, id) {
            return;
        }
        let mut open = "[";
        for (&axis, &at) in axes.iter().zip(index) {
            let own = aligned(axis, at);
            if self.brief && own {
                continue;
            }
            self.put(format_args!("{open}{}", Name(&graph.axis(axis).name)));
            open = ", ";
            if !own {
                self.text.push_str(" = ");
                self.part(at, Tie::Open);
            }
        }
        if open == ", " {
            self.text.push(']');
        }
    }
}
