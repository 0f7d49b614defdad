//! Names, and what they stand for.

use std::cell::RefCell;
use std::rc::Rc;

use proc_macro2::{Ident, Span};

use super::{AxisKind, Checker, Cx};
use crate::ast::{ConfigType, Item};
use crate::parse::REDUCTIONS;
use crate::program::Local;

/// The axes of a value; `None` where a mistake was reported already.
pub(super) type Axes = Option<Vec<usize>>;

/// What a scalar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Float,
    Int,
    Mask,
    /// A mistake was reported already.
    Unknown,
}

/// A tensor that can be loaded.
#[derive(Clone)]
pub(super) struct Tensor {
    pub(super) local: Local,
    pub(super) axes: Axes,
    /// Whether it is an equation of this `fn`, laid out in the order of `axes`.
    pub(super) equation: bool,
    /// The axes along which it is masked by the position of the token.
    pub(super) masked: Vec<usize>,
    pub(super) ty: Type,
}

impl Tensor {
    /// One that is no equation, and that nothing masks.
    pub(super) const fn new(local: Local, axes: Axes, ty: Type) -> Tensor {
        Tensor { local, axes, equation: false, masked: Vec::new(), ty }
    }
}

/// A scalar of the generated code.
#[derive(Clone)]
pub(super) struct Scalar {
    pub(super) id: usize,
    pub(super) axes: Axes,
    pub(super) ty: Type,
    /// The tensor that this is an element of, at the coordinates of its own axes.
    pub(super) tensor: Option<Tensor>,
}

/// What a name stands for.
#[derive(Clone)]
pub(super) enum Entry {
    /// A position in the list of axes.
    Axis(usize),
    /// A position in the list of the config's values.
    Value(usize),
    /// A position in the list of declared tensors; whether it belongs to the layer.
    Declared(usize, bool),
    /// A `let` or a parameter of a model's, layer's or block's `fn`.
    Tensor(Tensor),
    /// A `let` or a parameter of a function that is inlined.
    Bound(Rc<RefCell<Scalar>>),
    /// The number of the layer.
    Layer,
    /// A position in the list of blocks that are used.
    Block(usize),
}

impl Checker<'_> {
    /// What a name stands for.
    pub(super) fn lookup(&self, cx: &Cx, name: &str) -> Option<Entry> {
        let local = cx.locals.iter().rev().find(|(n, _)| n == name).map(|(_, entry)| entry);
        local.or_else(|| cx.layer.get(name)).or_else(|| self.globals.get(name)).cloned()
    }

    /// All names that are known.
    fn known<'c>(&'c self, cx: &'c Cx) -> impl Iterator<Item = &'c str> {
        let locals = cx.locals.iter().map(|(n, _)| n.as_str());
        locals.chain(cx.layer.keys().map(String::as_str)).chain(self.globals.keys().map(String::as_str))
    }

    /// Reports a name that stands for nothing.
    pub(super) fn unknown_name(&self, cx: &Cx, ident: &Ident) {
        let name = ident.to_string();
        if cx.later.contains(&name) {
            self.diagnostics.error(ident.span(), format!("`{name}` is used before its `let`"));
        } else if self.functions.iter().any(|f| f.name.as_ref().is_some_and(|n| *n == name)) {
            self.diagnostics.help(
                ident.span(),
                format!("`{name}` is a function"),
                format!("call it, as in `{name}(x)`"),
            );
        } else {
            let mut known: Vec<&str> = self.known(cx).collect();
            known.sort_unstable();
            self.diagnostics.unknown(ident.span(), format!("unknown name `{name}`"), &name, known);
        }
    }

    /// Whether an axis of this name is declared anywhere in the model.
    fn declared_below(&self, name: &str) -> bool {
        self.declaration.items.iter().any(|item| match item {
            Item::Axis { name: axis, .. } | Item::Alias { name: axis, .. } => axis == name,
            _ => false,
        })
    }

    /// The axis that a name stands for; anything else is reported.
    pub(super) fn axis(&self, cx: &Cx, ident: &Ident) -> Option<usize> {
        let name = ident.to_string();
        match self.lookup(cx, &name) {
            Some(Entry::Axis(axis)) => {
                self.axes[axis].used.set(true);
                return Some(axis);
            }
            _ if self.diagnostics.is_mistaken(&name) => {}
            Some(Entry::Value(value)) => {
                let what = match self.values[value].ty {
                    ConfigType::Count => "a count",
                    ConfigType::OptionSize => "a size that may be missing",
                    _ => "a value of the config",
                };
                self.diagnostics.error(ident.span(), format!("`{name}` is {what}, not an axis: only a `size` is one"));
            }
            Some(_) => self.diagnostics.error(ident.span(), format!("`{name}` is not an axis")),
            None if self.declared_below(&name) => {
                self.diagnostics.error(ident.span(), format!("the axis `{name}` is declared further below"));
            }
            None => {
                let mut axes: Vec<&str> =
                    self.known(cx).filter(|n| matches!(self.lookup(cx, n), Some(Entry::Axis(_)))).collect();
                axes.sort_unstable();
                self.diagnostics.unknown(ident.span(), format!("unknown axis `{name}`"), &name, axes);
            }
        }
        None
    }

    /// The axes that a list of names stands for; a mistake makes them unknown, and an axis that stands there twice is one.
    pub(super) fn axis_list(&self, cx: &Cx, idents: &[Ident]) -> Axes {
        self.distinct_axes(cx, idents, |_| "leave one of them out".to_owned())
    }

    fn distinct_axes(&self, cx: &Cx, idents: &[Ident], help: impl Fn(&Ident) -> String) -> Axes {
        let mut axes = Vec::new();
        let mut known = true;
        for ident in idents {
            match self.axis(cx, ident) {
                Some(axis) if axes.contains(&axis) => {
                    let message = format!("the axis `{ident}` stands twice in this list");
                    self.diagnostics.help(ident.span(), message, help(ident));
                    known = false;
                }
                Some(axis) => axes.push(axis),
                None => known = false,
            }
        }
        known.then_some(axes)
    }

    /// The axes of a weight or a constant, whose sizes must be fixed.
    pub(super) fn fixed_axes(&self, cx: &Cx, idents: &[Ident], of: &Ident) -> Axes {
        let alias = |axis: &Ident| format!("`axis o = alias {axis};` declares a second index over the same extent");
        let axes = self.distinct_axes(cx, idents, alias)?;
        let grows =
            axes.iter().position(|&a| matches!(self.axes[a].kind, AxisKind::Tokens | AxisKind::Positions { .. }));
        if let Some(at) = grows {
            let message = format!("`{of}` can't have the axis `{}`, which grows with the sequence", idents[at]);
            self.diagnostics.error(idents[at].span(), message);
            return None;
        }
        Some(axes)
    }

    /// Declares a name of the model. Whether that succeeded.
    pub(super) fn declare(&mut self, ident: &Ident, entry: Entry) -> bool {
        let name = ident.to_string();
        if !self.may_declare(ident.span(), &name, self.globals.get(&name).cloned()) {
            return false;
        }
        self.globals.insert(name, entry);
        true
    }

    /// Whether a name may be given to something new, where it stands for `earlier` so far.
    pub(super) fn may_declare(&self, span: Span, name: &str, earlier: Option<Entry>) -> bool {
        let what = match earlier {
            _ if REDUCTIONS.contains(&name) => "a reduction",
            None | Some(Entry::Tensor(_) | Entry::Bound(_)) => return true,
            Some(Entry::Axis(axis)) if matches!(self.axes[axis].kind, AxisKind::Tokens) => "the axis of the tokens",
            Some(Entry::Axis(_)) => "an axis",
            Some(Entry::Value(_)) => "a value of the config",
            Some(Entry::Declared(tensor, _)) => self.tensors[tensor].what,
            Some(Entry::Layer) => "the number of the layer",
            Some(Entry::Block(_)) => "a block",
        };
        self.diagnostics.error(span, format!("`{name}` is {what} already"));
        self.diagnostics.mistake(name);
        false
    }
}
