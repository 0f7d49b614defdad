//! A model or a block as it is written.

use proc_macro2::{Ident, Span, TokenStream};

/// A string in the source.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) value: String,
    pub(crate) span: Span,
}

/// A model, or a block that models share: a head, `{ items }`.
pub(crate) struct Declaration {
    /// Where the generated code finds `einfuse-graph`.
    pub(crate) graph: TokenStream,
    /// Doc comments and other attributes.
    pub(crate) attributes: TokenStream,
    pub(crate) visibility: TokenStream,
    pub(crate) name: Ident,
    pub(crate) head: Head,
    pub(crate) config: Vec<Value>,
    pub(crate) requires: Vec<Require>,
    pub(crate) items: Vec<Item>,
    /// The `fn` without a name.
    pub(crate) main: Option<Function>,
    pub(crate) context: Option<(Span, Expr)>,
}

/// What is declared.
pub(crate) enum Head {
    /// `pub Name for "Architecture", …`: a model, whose config is read, and whose `fn` is run for the tokens of a step.
    Model { architectures: Vec<Text> },
    /// `pub Name[axes]`: a block, whose axes and config its use gives, and whose `fn` is called there.
    Block { axes: Vec<Ident> },
}

impl Declaration {
    /// The axes that a block is given.
    pub(crate) fn given_axes(&self) -> &[Ident] {
        match &self.head {
            Head::Model { .. } => &[],
            Head::Block { axes } => axes,
        }
    }

    pub(crate) fn is_block(&self) -> bool {
        matches!(self.head, Head::Block { .. })
    }

    /// Whether a block is used under this name, in whatever layer.
    pub(crate) fn uses_block(&self, name: &Ident) -> bool {
        let sections = self.items.iter().flat_map(|item| match item {
            Item::Weights(section) => std::slice::from_ref(section),
            Item::Layer(layer) => &layer.weights[..],
            _ => &[],
        });
        sections.flat_map(|section| &section.uses).any(|block| block.name == *name)
    }
}

/// A value of the config: `name: type = "key", "key" null value else default;`
pub(crate) struct Value {
    pub(crate) docs: TokenStream,
    pub(crate) name: Ident,
    pub(crate) ty: ConfigType,
    pub(crate) keys: Keys,
    /// What null means, where it is not the same as a missing key.
    pub(crate) null: Option<Expr>,
    pub(crate) default: Option<Expr>,
}

/// What a value of the config is.
#[derive(Clone)]
pub(crate) enum ConfigType {
    /// An axis size.
    Size,
    /// A number of things.
    Count,
    /// A real number.
    F32,
    /// A truth value.
    Bool,
    /// An axis size that may be missing.
    OptionSize,
    /// A type of Rust, which serde reads.
    Rust(TokenStream),
}

/// The keys of a value of the config.
pub(crate) enum Keys {
    /// The first that is there.
    First(Vec<Text>),
    /// An object of those that are there.
    Gathered(Vec<Text>),
    /// All that config.json has.
    All,
}

impl Keys {
    /// The keys that are named.
    pub(crate) fn texts(&self) -> &[Text] {
        match self {
            Keys::First(keys) | Keys::Gathered(keys) => keys,
            Keys::All => &[],
        }
    }
}

/// `require "key" == a | b;`
pub(crate) struct Require {
    pub(crate) key: Text,
    pub(crate) allowed: Vec<Expr>,
}

/// What a declaration is made of, beside its config.
pub(crate) enum Item {
    /// `axis name = extent;`
    Axis { name: Ident, extent: Expr },
    /// `axis name = alias of;`
    Alias { name: Ident, of: Ident },
    /// `host name[axes] = rust;`
    Host(Host),
    /// `weights "prefix" { … }`
    Weights(Weights),
    /// `layer l in count { … }`
    Layer(Layer),
    /// `fn name[axes](parameters) { … }`
    Function(Function),
}

/// `host name[axes] = rust;`
pub(crate) struct Host {
    pub(crate) name: Ident,
    pub(crate) axes: Vec<Ident>,
    pub(crate) rust: TokenStream,
}

/// `weights "prefix" else "prefix" { … }`
pub(crate) struct Weights {
    pub(crate) prefixes: Vec<Text>,
    pub(crate) weights: Vec<Weight>,
    pub(crate) uses: Vec<Use>,
}

impl Weights {
    /// What stands in front of a name, in order of preference.
    pub(crate) fn prefixes(&self) -> Vec<&str> {
        match &self.prefixes[..] {
            [] => vec![""],
            prefixes => prefixes.iter().map(|prefix| prefix.value.as_str()).collect(),
        }
    }
}

/// `block name[axes] -> [axes] = path { values } in "prefix" else "prefix";`
pub(crate) struct Use {
    pub(crate) name: Ident,
    pub(crate) axes: Vec<Ident>,
    pub(crate) result_axes: Vec<Ident>,
    pub(crate) path: syn::Path,
    pub(crate) values: Vec<(Ident, Expr)>,
    pub(crate) prefixes: Vec<Text>,
}

/// `name[axes] = source else source;`
pub(crate) struct Weight {
    pub(crate) name: Ident,
    pub(crate) axes: Vec<Ident>,
    pub(crate) sources: Vec<Source>,
}

/// One place from which a weight may come, and when.
pub(crate) struct Source {
    pub(crate) place: Place,
    pub(crate) condition: Option<Expr>,
}

/// A place from which a weight may come.
pub(crate) enum Place {
    /// A tensor of the checkpoint, or a part of its first dimension, or of each of an axis' stretches of it.
    File { name: Text, rows: Option<Box<(Expr, Expr, Option<Ident>)>> },
    /// Another weight.
    Weight(Ident),
    /// A number, which each element is.
    Number(Span, f64),
}

/// `layer index in count { host … weights … fn … choice }`
pub(crate) struct Layer {
    pub(crate) index: Ident,
    pub(crate) count: Ident,
    pub(crate) hosts: Vec<Host>,
    pub(crate) weights: Vec<Weights>,
    pub(crate) bodies: Vec<Function>,
    /// Where bodies are chosen, and how if that could be read.
    pub(crate) choice: Option<(Span, Option<Choice>)>,
}

/// Which body a layer has.
pub(crate) enum Choice {
    /// A body by its name.
    Body(Ident),
    /// `if condition { a } else { b }`
    If { condition: Expr, then: Box<Choice>, otherwise: Box<Choice> },
    /// `match subject { 0 | 1 => a, _ => b }`: the arms and the last.
    Match { subject: Expr, arms: Vec<(Vec<usize>, Choice)>, otherwise: Box<Choice> },
}

/// `fn name[axes](parameters) -> [axes] { lets; result }`
#[derive(Clone)]
pub(crate) struct Function {
    /// The name; at `fn` if it has none.
    pub(crate) span: Span,
    pub(crate) name: Option<Ident>,
    pub(crate) axes: Vec<Ident>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) result_axes: Option<Vec<Ident>>,
    pub(crate) statements: Vec<Statement>,
    pub(crate) result: Option<Expr>,
    /// Signature and body as they are written.
    pub(crate) source: String,
    /// Whether it is part of the language rather than of the model.
    pub(crate) prelude: bool,
}

/// `name`, `name[a, b]`, or `name[a, ..]`: exactly these axes, or at least these.
#[derive(Clone)]
pub(crate) struct Parameter {
    pub(crate) name: Ident,
    pub(crate) axes: Option<Vec<Ident>>,
    pub(crate) open: bool,
}

/// A statement of a function.
#[derive(Clone)]
pub(crate) enum Statement {
    /// `let name[axes] = value;`
    Let { name: Ident, axes: Option<Vec<Ident>>, value: Expr },
    /// `let (values, indices)[axes] = top[over -> rank](value);`
    Top { values: Ident, indices: Ident, axes: Option<Vec<Ident>>, over: Ident, rank: Ident, value: Expr },
    /// `cache names over axis within window;`
    Cache { span: Span, names: Vec<Ident>, over: Ident, within: Option<Expr> },
}

/// An expression, and its most telling token.
#[derive(Clone)]
pub(crate) struct Expr {
    pub(crate) span: Span,
    pub(crate) kind: ExprKind,
}

/// What an expression is.
#[derive(Clone)]
pub(crate) enum ExprKind {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Name(Ident),
    /// `of[v = index]` and `of[a, b]`.
    Index {
        of: Box<Expr>,
        entries: Vec<Entry>,
    },
    /// `name[axes](arguments)`
    Call {
        name: Ident,
        axes: Vec<Ident>,
        arguments: Vec<Expr>,
    },
    /// `of.name(arguments)`, of a value of the config.
    Method {
        of: Ident,
        name: Ident,
        arguments: Vec<Expr>,
    },
    /// `op[axes] body`
    Reduce {
        op: &'static str,
        axes: Vec<Ident>,
        body: Box<Expr>,
    },
    /// `-x` or `!x`
    Unary {
        op: &'static str,
        of: Box<Expr>,
    },
    Binary {
        op: &'static str,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    /// `body where mask`
    Where {
        body: Box<Expr>,
        mask: Box<Expr>,
    },
    If {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Box<Expr>,
    },
    /// In parentheses.
    Group(Box<Expr>),
    /// Something that could not be read, and was reported.
    Unknown,
}

/// An entry in an operand's brackets: an axis it has, or one that is selected by an index.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) axis: Ident,
    pub(crate) index: Option<Expr>,
}

impl Expr {
    /// The expression without the parentheses around it.
    pub(crate) fn bare(&self) -> &Expr {
        match &self.kind {
            ExprKind::Group(inner) => inner.bare(),
            _ => self,
        }
    }

    /// The expressions directly inside this one.
    pub(crate) fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            ExprKind::Index { of, entries } => {
                std::iter::once(&**of).chain(entries.iter().filter_map(|e| e.index.as_ref())).collect()
            }
            ExprKind::Call { arguments, .. } | ExprKind::Method { arguments, .. } => arguments.iter().collect(),
            ExprKind::Reduce { body, .. } => vec![body],
            ExprKind::Unary { of, .. } | ExprKind::Group(of) => vec![of],
            ExprKind::Binary { left, right, .. } => vec![left, right],
            ExprKind::Where { body, mask } => vec![body, mask],
            ExprKind::If { condition, then, otherwise } => vec![condition, then, otherwise],
            _ => Vec::new(),
        }
    }

    /// Calls `visit` for this expression and all inside it.
    pub(crate) fn walk<'e>(&'e self, visit: &mut impl FnMut(&'e Expr)) {
        visit(self);
        for child in self.children() {
            child.walk(visit);
        }
    }
}
