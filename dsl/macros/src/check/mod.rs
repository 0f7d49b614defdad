//! From a declaration as it is written to one that was checked: names, axes, types.

mod block;
mod call;
mod config;
mod expr;
mod model;
mod scope;
mod top;
mod weights;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use proc_macro2::{Ident, TokenStream};

use crate::ast;
use crate::diagnostics::Diagnostics;
use crate::program::*;
pub(crate) use model::check;
use scope::{Axes, Entry, Type};

/// The name of the axis of this step's tokens.
const TOKENS: &str = "t";

/// An axis of the model.
struct Axis {
    name: Ident,
    kind: AxisKind,
    /// Whether it indexes anything.
    used: Cell<bool>,
    /// Whether its size is computed with.
    counted: Cell<bool>,
}

/// Where an axis comes from.
#[derive(Clone)]
enum AxisKind {
    Tokens,
    /// Of a cache, which may keep a window alone.
    Positions {
        windowed: bool,
    },
    /// Of a fixed size, a Rust expression.
    Fixed(TokenStream),
    /// A parameter of a function that is checked by itself.
    Parameter,
}

/// A value of the config.
struct Value {
    name: Ident,
    ty: ast::ConfigType,
    key: String,
    used: Cell<bool>,
}

/// A weight or a host constant: a tensor declared with axes.
struct Declared {
    name: Ident,
    axes: Axes,
    used: Cell<bool>,
    /// What it is, for messages.
    what: &'static str,
    /// The weight to emit, if it is one.
    weight: Option<Weight>,
    /// The weight that stands in for it.
    stand_in: Option<usize>,
}

/// A stack of layers, as `fn` calls it.
struct StackInfo {
    axes: Axes,
    calls: Cell<usize>,
}

/// A block that is used.
struct UseInfo<'m> {
    of: &'m ast::Use,
    axes: Axes,
    result: Axes,
    used: Cell<bool>,
}

/// Everything that is known of a declaration while it is checked.
struct Checker<'m> {
    declaration: &'m ast::Declaration,
    diagnostics: &'m Diagnostics,
    functions: Vec<ast::Function>,
    axes: Vec<Axis>,
    values: Vec<Value>,
    tensors: Vec<Declared>,
    uses: Vec<UseInfo<'m>>,
    stacks: Vec<StackInfo>,
    /// What else the number of a layer decides, in the stack that is being checked.
    layer_values: Vec<TokenStream>,
    /// The constants of that stack, by their place among the tensors: their axes, and which of the values they are.
    layer_hosts: HashMap<usize, (Vec<Ident>, usize)>,
    stack_names: HashMap<String, usize>,
    globals: HashMap<String, Entry>,
    program: Program,
}

/// A `fn` while it is checked.
struct Cx {
    /// Parameters and `let`s, the innermost last.
    locals: Vec<(String, Entry)>,
    /// What the layer declares.
    layer: HashMap<String, Entry>,
    kind: Place,
    /// The names of the `let`s that are still to come.
    later: Vec<String>,
    steps: Vec<Step>,
    scalars: usize,
    /// The axes along which scalars are masked by the position of the token.
    masked: HashMap<usize, Vec<usize>>,
    numbered: usize,
    /// The layer's weights that were used.
    weights: BTreeSet<usize>,
    /// The blocks that were called.
    blocks: BTreeSet<usize>,
    /// The `let` that is being checked, which names what is defined on its way.
    label: String,
    /// The functions that are being inlined.
    calls: Vec<usize>,
}

/// Where a `fn` stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Model,
    Layer,
    Block,
    /// A function with a name, checked by itself.
    Function,
}

impl Cx {
    fn new(kind: Place) -> Cx {
        Cx {
            locals: Vec::new(),
            layer: HashMap::new(),
            kind,
            later: Vec::new(),
            steps: Vec::new(),
            scalars: 0,
            masked: HashMap::new(),
            numbered: 0,
            weights: BTreeSet::new(),
            blocks: BTreeSet::new(),
            label: String::new(),
            calls: Vec::new(),
        }
    }
}

impl Checker<'_> {
    /// Axes for a message: `[t, n, c]`.
    fn names(&self, axes: &[usize]) -> String {
        let names: Vec<String> = axes.iter().map(|&a| self.axes[a].name.to_string()).collect();
        format!("[{}]", names.join(", "))
    }

    /// A new axis, for a name to stand for.
    fn new_axis(&mut self, name: &Ident, kind: AxisKind) -> Entry {
        let used = !matches!(kind, AxisKind::Fixed(_));
        self.axes.push(Axis { name: name.clone(), kind, used: used.into(), counted: false.into() });
        Entry::Axis(self.axes.len() - 1)
    }

    /// What a type is called in messages.
    fn type_name(ty: Type) -> &'static str {
        match ty {
            Type::Float => "a real number",
            Type::Int => "an integer",
            Type::Mask => "a mask",
            Type::Unknown => "unknown",
        }
    }
}
