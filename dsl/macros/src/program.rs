//! A declaration that was checked: what is left to do is writing it down as Rust.

use proc_macro2::{Ident, Span, TokenStream};

/// A checked declaration. Token streams in it are Rust expressions over `config`.
#[derive(Default)]
pub(crate) struct Program {
    /// Whether mistakes were reported: then the rest is for editors.
    pub(crate) mistaken: bool,
    /// Reading the config: one statement per value, in order.
    pub(crate) values: Vec<ConfigField>,
    /// The keys that must have one of some values, given as JSON values.
    pub(crate) requires: Vec<(String, Vec<TokenStream>)>,
    /// Axes with their sizes; `None` is the axis of the tokens.
    pub(crate) axes: Vec<(Ident, Option<TokenStream>)>,
    /// Statements that compute sizes and conditions before anything is built.
    pub(crate) prologue: Vec<TokenStream>,
    pub(crate) hosts: Vec<Host>,
    /// The weights outside of layers.
    pub(crate) weights: Vec<Weight>,
    /// The blocks that it uses.
    pub(crate) uses: Vec<Use>,
    pub(crate) stacks: Vec<Stack>,
    /// What a model computes for the tokens of a step.
    pub(crate) main: Option<Body>,
    /// What a block computes where it is used.
    pub(crate) block: Option<Block>,
    /// The number of positions the model was made for.
    pub(crate) context: Option<TokenStream>,
}

/// A field of the config.
pub(crate) struct ConfigField {
    pub(crate) name: Ident,
    pub(crate) docs: TokenStream,
    pub(crate) ty: TokenStream,
    /// A Rust expression over `source` and the fields before.
    pub(crate) read: TokenStream,
}

/// A constant that the host computes.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) name: Ident,
    pub(crate) axes: Vec<Ident>,
    /// Bindings of the names that occur in `rust`.
    pub(crate) bindings: Vec<TokenStream>,
    pub(crate) rust: TokenStream,
}

/// A weight.
#[derive(Clone)]
pub(crate) struct Weight {
    pub(crate) name: Ident,
    pub(crate) axes: Vec<Ident>,
    pub(crate) places: Vec<FileTensor>,
    /// What is taken if none of the places counts.
    pub(crate) otherwise: Option<Otherwise>,
}

/// What stands in for a weight.
#[derive(Clone)]
pub(crate) enum Otherwise {
    /// Another weight.
    Weight(Ident),
    /// A number, which each element is.
    Number(f64),
}

/// A tensor of the checkpoint.
#[derive(Clone)]
pub(crate) struct FileTensor {
    pub(crate) name: String,
    pub(crate) rows: Option<TokenStream>,
    /// Whether the rows are a part of each coordinate of the weight's first axis.
    pub(crate) each: bool,
    /// When this place counts.
    pub(crate) condition: Option<TokenStream>,
}

/// A block that is used: `path { values }` under these prefixes and with these axes.
pub(crate) struct Use {
    pub(crate) name: Ident,
    pub(crate) axes: Vec<Ident>,
    pub(crate) path: syn::Path,
    pub(crate) values: Vec<(Ident, TokenStream)>,
    pub(crate) prefixes: Vec<String>,
}

/// What a block takes and yields, as it declares it or as it is used.
#[derive(Default)]
pub(crate) struct Signature {
    /// As it is declared, or what the block is called where it is used.
    pub(crate) written: String,
    /// The axes of the block, or those that it is given.
    pub(crate) axes: Vec<String>,
    pub(crate) parameters: Vec<Vec<Index>>,
    pub(crate) result: Vec<Index>,
}

/// An axis in a signature: one of the block's, by its place among them, or another.
pub(crate) enum Index {
    Given(usize),
    Named(String),
}

/// What a block's `fn` computes: a scalar.
pub(crate) struct Block {
    pub(crate) parameters: Vec<Ident>,
    pub(crate) steps: Vec<Step>,
    pub(crate) result: usize,
    /// Unless a mistake was reported.
    pub(crate) signature: Option<Signature>,
}

/// A stack of layers.
pub(crate) struct Stack {
    /// The config's key and the number of layers.
    pub(crate) key: String,
    pub(crate) count: TokenStream,
    /// The layer's number, and the position of its body as a Rust expression over it.
    pub(crate) index: Ident,
    pub(crate) choice: TokenStream,
    /// What else the number of a layer decides, as Rust expressions over it; layers in which all are equal share a body. The
    /// variable of each is [`layer_value`].
    pub(crate) values: Vec<TokenStream>,
    pub(crate) bodies: Vec<Body>,
}

/// What a `fn` computes.
pub(crate) struct Body {
    pub(crate) parameter: Ident,
    pub(crate) parameter_axes: Vec<Ident>,
    /// The weights of the layer that it uses.
    pub(crate) weights: Vec<Weight>,
    /// The constants of the layer that it uses: the name, the axes, and which of the stack's values it is.
    pub(crate) hosts: Vec<(Ident, Vec<Ident>, usize)>,
    pub(crate) steps: Vec<Step>,
    pub(crate) result: Local,
}

/// A tensor's variable in the generated code: under the name that the user gave it, or a number.
#[derive(Clone)]
pub(crate) enum Local {
    Named(Ident),
    Numbered(usize),
}

/// A statement of the generated code.
pub(crate) enum Step {
    /// `let e1 = …;`
    Scalar(usize, Op),
    /// `let e1 = if … { …; e2 } else { …; e3 };`, decided when the graph is built.
    Either { id: usize, condition: TokenStream, then: Branch, otherwise: Branch },
    /// An equation.
    Define { tensor: Local, label: String, axes: Option<Vec<Ident>>, body: usize, at: Span },
    /// The largest elements along an axis: two equations.
    Top {
        values: Local,
        indices: Local,
        labels: [String; 2],
        axes: Option<Vec<Ident>>,
        body: usize,
        over: Ident,
        rank: Ident,
        at: Span,
    },
    /// Another name for a tensor.
    Rename { name: Ident, tensor: Local },
    /// A new axis over the positions.
    Positions { name: Ident, window: TokenStream },
    /// A cache of rows, under their name.
    Append { name: Ident, rows: Ident, over: Ident },
    /// A stack of layers.
    Layers { out: Local, stack: usize, initial: Local },
    /// A call of a block that is used, a position in the program's list.
    Block { id: usize, of: usize, name: Ident, arguments: Vec<usize>, signature: Option<Signature> },
    /// What the argument of a block's parameter is: a tensor under the parameter's name, or a scalar.
    Argument { name: Ident, id: Option<usize> },
    /// What follows belongs to the declaration that stands here.
    At(Span),
    /// An axis that is written here and does nothing in the generated code: an editor shall find it all the same.
    Mention(Ident),
}

/// Statements, and the scalar that they are about.
pub(crate) struct Branch {
    pub(crate) steps: Vec<Step>,
    pub(crate) id: usize,
}

/// The variable of what the number of a layer decides.
pub(crate) fn layer_value(at: usize) -> Ident {
    Ident::new(&format!("of_layer{at}"), Span::mixed_site())
}

/// A scalar expression; numbers stand for the scalars of earlier steps.
pub(crate) enum Op {
    Float(f64),
    Int(i64),
    /// A real number or a count of the config.
    ConfigFloat(TokenStream),
    ConfigInt(TokenStream),
    Coordinate(Ident),
    Size(Ident),
    Load(Local, Vec<(Ident, usize)>),
    Unary(&'static str, usize),
    Binary(&'static str, usize, usize),
    Select(usize, usize, usize),
    Masked(usize, usize),
    Reduce(&'static str, Vec<Ident>, usize),
    Mean(Vec<Ident>, usize),
}
