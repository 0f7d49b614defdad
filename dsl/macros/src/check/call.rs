//! Calls: of the built-in functions of scalars, of functions that are written in the language, of stacks of layers.

use std::cell::RefCell;
use std::rc::Rc;

use proc_macro2::{Ident, Span};

use super::expr::same;
use super::scope::{Axes, Entry, Scalar, Tensor, Type};
use super::{AxisKind, Checker, Cx, Place};
use crate::ast::{Expr, ExprKind, Function, Parameter, Statement};
use crate::program::{Op, Step};

/// The functions of one scalar, with their names in the builder.
const UNARY: [(&str, &str); 9] = [
    ("exp", "Exp"),
    ("log", "Log"),
    ("sin", "Sin"),
    ("cos", "Cos"),
    ("tanh", "Tanh"),
    ("erf", "Erf"),
    ("sqrt", "Sqrt"),
    ("rsqrt", "Rsqrt"),
    ("abs", "Abs"),
];

/// The functions of two scalars.
const BINARY: [(&str, &str); 3] = [("max", "Max"), ("min", "Min"), ("div", "Div")];

/// Whether a name is that of a function of the language itself.
pub(super) fn is_built_in(name: &str) -> bool {
    name == "size" || UNARY.iter().chain(&BINARY).any(|f| f.0 == name)
}

impl Checker<'_> {
    /// `name[axes](arguments)`
    pub(super) fn call(&mut self, cx: &mut Cx, name: &Ident, axes: &[Ident], arguments: &[Expr]) -> Scalar {
        let text = name.to_string();
        if self.diagnostics.is_mistaken(&text) {
            for argument in arguments {
                self.expr(cx, argument);
            }
            return cx.unknown();
        }
        if let Some(Entry::Block(of)) = self.lookup(cx, &text) {
            return self.call_block(cx, of, name, axes, arguments);
        }
        if let Some(at) = self.functions.iter().position(|f| f.name.as_ref().is_some_and(|n| *n == text)) {
            return self.inline(cx, at, name, axes, arguments);
        }
        let unary = UNARY.iter().find(|f| f.0 == text);
        let binary = BINARY.iter().find(|f| f.0 == text);
        let stack = self.stack_names.get(&text).copied();
        if unary.is_none() && binary.is_none() && stack.is_none() && text != "size" {
            for argument in arguments {
                self.expr(cx, argument);
            }
            if self.declaration.uses_block(name) {
                self.not_called_here(name);
                return cx.unknown();
            }
            let functions = self.functions.iter().filter_map(|f| f.name.as_ref()).map(ToString::to_string);
            let known: Vec<String> = functions.chain(UNARY.iter().chain(&BINARY).map(|f| f.0.to_owned())).collect();
            let message = match self.lookup(cx, &text) {
                Some(_) => format!("`{text}` is not a function"),
                None => format!("unknown function `{text}`"),
            };
            self.diagnostics.unknown(name.span(), message, &text, known.iter().map(String::as_str));
            return cx.unknown();
        }
        let want = if binary.is_some() { 2 } else { 1 };
        if !axes.is_empty() {
            self.diagnostics.error(axes[0].span(), format!("`{text}` takes no axes"));
        }
        if arguments.len() != want {
            self.wrong_count(name, want, arguments.len());
            return cx.unknown();
        }
        if let Some(stack) = stack {
            return self.layers(cx, stack, name, &arguments[0]);
        }
        if text == "size" {
            return self.size(cx, &arguments[0]);
        }
        let values: Vec<Scalar> = arguments.iter().map(|a| self.expr(cx, a)).collect();
        for value in &values {
            self.want_number(name.span(), &format!("`{text}`"), value);
        }
        if let Some((_, op)) = unary {
            let [x] = &values[..] else { return cx.unknown() };
            return cx.scalar(Op::Unary(op, x.id), x.axes.clone(), Type::Float);
        }
        let ([a, b], Some((_, op))) = (&values[..], binary) else { return cx.unknown() };
        let axes = super::expr::union(&a.axes, &b.axes);
        let ty = super::expr::meet(a.ty, b.ty);
        if text == "div" {
            self.want_int(name.span(), "`div`", a);
            self.want_int(name.span(), "`div`", b);
        }
        cx.scalar(Op::Binary(op, a.id, b.id), axes, ty)
    }

    fn wrong_count(&self, name: &Ident, want: usize, found: usize) {
        let arguments = if want == 1 { "argument" } else { "arguments" };
        self.diagnostics.error(name.span(), format!("`{name}` takes {want} {arguments}, {found} given"));
    }

    /// `size(axis)`
    fn size(&mut self, cx: &mut Cx, argument: &Expr) -> Scalar {
        let ExprKind::Name(ident) = &argument.bare().kind else {
            self.diagnostics.error(argument.span, "`size` is of an axis");
            return cx.unknown();
        };
        let Some(axis) = self.axis(cx, ident) else { return cx.unknown() };
        if matches!(self.axes[axis].kind, AxisKind::Tokens | AxisKind::Positions { .. }) {
            let message = format!("`{ident}` grows with the sequence: only a fixed axis has a size");
            self.diagnostics.error(ident.span(), message);
            return cx.unknown();
        }
        let name = self.axis_ident(cx, axis, ident);
        cx.scalar(Op::Size(name), Some(Vec::new()), Type::Int)
    }

    /// `layers(x)`: the stack of layers.
    fn layers(&mut self, cx: &mut Cx, stack: usize, name: &Ident, argument: &Expr) -> Scalar {
        let value = self.expr(cx, argument);
        if cx.kind != Place::Model || !cx.calls.is_empty() {
            self.diagnostics.error(name.span(), format!("`{name}` is called by the model's `fn` alone"));
            return cx.unknown();
        }
        let calls = &self.stacks[stack].calls;
        calls.set(calls.get() + 1);
        if calls.get() > 1 {
            self.diagnostics.error(name.span(), format!("`{name}` is called twice: its layers have one cache each"));
        }
        let axes = self.stacks[stack].axes.clone();
        if let (Some(want), Some(have)) = (&axes, &value.axes)
            && !same(want, have)
        {
            let message = format!("`{name}` takes {}, this is over {}", self.names(want), self.names(have));
            self.diagnostics.error(argument.span, message);
        }
        let label = format!("{}.in", cx.label);
        let initial = self.materialise(cx, &value, &label, name.span());
        let out = cx.numbered();
        cx.steps.push(Step::Layers { out: out.clone(), stack, initial: initial.local });
        cx.load(Tensor::new(out, axes, Type::Float))
    }

    /// A tensor that holds a value: the one it is an element of, or a new one.
    pub(super) fn materialise(&mut self, cx: &mut Cx, value: &Scalar, label: &str, at: Span) -> Tensor {
        if let Some(tensor) = &value.tensor {
            return tensor.clone();
        }
        let local = cx.numbered();
        let (tensor, label) = (local.clone(), label.to_owned());
        cx.steps.push(Step::Define { tensor, label, axes: None, body: value.id, at });
        Tensor { local, axes: value.axes.clone(), equation: false, masked: cx.masked(value.id), ty: value.ty }
    }

    /// A call of a function that is written in the language.
    fn inline(&mut self, cx: &mut Cx, at: usize, name: &Ident, axes: &[Ident], arguments: &[Expr]) -> Scalar {
        let function = self.functions[at].clone();
        let values: Vec<Scalar> = arguments.iter().map(|a| self.expr(cx, a)).collect();
        let given = self.axis_list(cx, axes);
        if cx.calls.contains(&at) {
            self.diagnostics.error(name.span(), format!("`{name}` calls itself"));
            return cx.unknown();
        }
        if function.axes.len() != axes.len() {
            let message = format!(
                "`{name}` takes {} in brackets, {} given",
                count(function.axes.len(), "axis", "axes"),
                axes.len()
            );
            let signature = signature(name, &function.axes, &function.parameters);
            self.diagnostics.help(name.span(), message, format!("its signature is `fn {signature}`"));
            return cx.unknown();
        }
        if function.parameters.len() != arguments.len() {
            self.wrong_count(name, function.parameters.len(), arguments.len());
            return cx.unknown();
        }
        let Some(given) = given else { return cx.unknown() };
        self.mention(cx, axes);
        let mut frame: Vec<(String, Entry)> = Vec::new();
        for (parameter, &axis) in function.axes.iter().zip(&given) {
            frame.push((parameter.to_string(), Entry::Axis(axis)));
        }
        for ((parameter, value), argument) in function.parameters.iter().zip(&values).zip(arguments) {
            if !self.bind_axes(&mut frame, parameter, value, argument, name) {
                return cx.unknown();
            }
        }
        for (parameter, value) in function.parameters.iter().zip(values) {
            let mut value = value;
            if value.tensor.is_none() && reindexes(&function, &parameter.name) {
                let label = format!("{}.{}", cx.label, parameter.name);
                let tensor = self.materialise(cx, &value, &label, name.span());
                value = cx.load(tensor);
            }
            frame.push((parameter.name.to_string(), Entry::Bound(Rc::new(RefCell::new(value)))));
        }
        let outer = std::mem::replace(&mut cx.locals, frame);
        let layer = std::mem::take(&mut cx.layer);
        let later = std::mem::take(&mut cx.later);
        cx.calls.push(at);
        let before = self.diagnostics.count();
        let result = self.function_body(cx, &function, &given);
        if function.prelude
            && let Some(first) = self.diagnostics.take_messages(before).first()
        {
            self.diagnostics.error(name.span(), format!("in `{name}`: {first}"));
        }
        cx.calls.pop();
        cx.locals = outer;
        cx.layer = layer;
        cx.later = later;
        result
    }

    /// Keeps axes that the generated code does not need for an editor, where they are written in the model.
    pub(super) fn mention(&self, cx: &mut Cx, axes: &[Ident]) {
        if cx.calls.is_empty() {
            cx.steps.extend(axes.iter().cloned().map(Step::Mention));
        }
    }

    /// Checks an argument against the axes of its parameter, and binds those that are new names. Whether it fits.
    fn bind_axes(
        &self,
        frame: &mut Vec<(String, Entry)>,
        parameter: &Parameter,
        value: &Scalar,
        argument: &Expr,
        function: &Ident,
    ) -> bool {
        let Some(names) = &parameter.axes else { return true };
        let Some(has) = &value.axes else { return false };
        let mut left = has.clone();
        let mut new = Vec::new();
        for name in names {
            let text = name.to_string();
            match frame.iter().find(|(n, _)| *n == text) {
                Some((_, Entry::Axis(axis))) => match left.iter().position(|a| a == axis) {
                    Some(at) => {
                        left.remove(at);
                    }
                    None => {
                        let (axis, has) = (&self.axes[*axis].name, self.names(has));
                        let message =
                            format!("`{function}` wants an argument with the axis `{axis}`, this is over {has}");
                        self.diagnostics.error(argument.span, message);
                        return false;
                    }
                },
                _ => new.push(text),
            }
        }
        let fits = if parameter.open { new.len() <= left.len() } else { new.len() == left.len() };
        if !fits || new.len() > 1 || (parameter.open && !new.is_empty()) {
            let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
            names.extend(parameter.open.then(|| "..".to_owned()));
            let (wanted, has) = (names.join(", "), self.names(has));
            let message = format!("`{function}` wants `{}[{wanted}]`, this is over {has}", parameter.name);
            self.diagnostics.error(argument.span, message);
            return false;
        }
        frame.extend(new.into_iter().zip(left).map(|(name, axis)| (name, Entry::Axis(axis))));
        true
    }

    /// The statements and the result of a function whose parameters are bound.
    pub(super) fn function_body(&mut self, cx: &mut Cx, function: &Function, given: &[usize]) -> Scalar {
        for statement in &function.statements {
            match statement {
                Statement::Let { name, axes, value } => {
                    let value = self.expr(cx, value);
                    if let Some(axes) = axes {
                        self.check_sides(cx, name, axes, &value.axes);
                    }
                    // The prelude's names are nobody's business.
                    let earlier = self.lookup(cx, &name.to_string()).filter(|_| !function.prelude);
                    if self.may_declare(name.span(), &name.to_string(), earlier) {
                        cx.locals.push((name.to_string(), Entry::Bound(Rc::new(RefCell::new(value)))));
                    }
                }
                Statement::Top { values, indices, axes, over, rank, value } => {
                    let results = self.top(cx, [values, indices], axes.as_deref(), over, rank, value);
                    for (name, tensor) in [values, indices].into_iter().zip(results) {
                        let earlier = self.lookup(cx, &name.to_string());
                        if self.may_declare(name.span(), &name.to_string(), earlier) {
                            let value = cx.load(tensor);
                            cx.locals.push((name.to_string(), Entry::Bound(Rc::new(RefCell::new(value)))));
                        }
                    }
                }
                Statement::Cache { span, .. } => {
                    self.diagnostics
                        .error(*span, "`cache` stands in the `fn` of a layer or a block, not in a function");
                }
            }
        }
        let Some(result) = &function.result else { return cx.unknown() };
        let value = self.expr(cx, result);
        if let (Some(idents), Some(has)) = (&function.result_axes, &value.axes)
            && let Some(want) = self.axis_list(cx, idents)
        {
            let has: Vec<usize> = has.iter().copied().filter(|a| given.contains(a)).collect();
            if !same(&want, &has) {
                let message = format!("the result has {}, `->` says {}", self.names(&has), self.names(&want));
                self.diagnostics.error(result.span, message);
            }
        }
        Scalar { tensor: None, ..value }
    }

    /// Compares the axes on the left of a `let` with those of the right side; the axes of the left.
    pub(super) fn check_sides(&self, cx: &Cx, name: &Ident, idents: &[Ident], has: &Axes) -> Axes {
        let left = self.axis_list(cx, idents)?;
        let Some(right) = has else { return Some(left) };
        if same(&left, right) {
            return Some(left);
        }
        let message =
            format!("`{name}` is declared over {}, but the right side has {}", self.names(&left), self.names(right));
        let extra: Vec<usize> = right.iter().copied().filter(|a| !left.contains(a)).collect();
        let missing: Vec<usize> = left.iter().copied().filter(|a| !right.contains(a)).collect();
        let help = match (extra.is_empty(), missing.is_empty()) {
            (false, true) => format!("sum over {0}, or declare `{name}` with {0}", self.quoted(&extra)),
            (true, false) => format!("nothing on the right side depends on {}", self.quoted(&missing)),
            _ => format!("the right side has {} in place of {}", self.quoted(&extra), self.quoted(&missing)),
        };
        self.diagnostics.help(name.span(), message, help);
        Some(left)
    }

    fn quoted(&self, axes: &[usize]) -> String {
        let names: Vec<String> = axes.iter().map(|&a| format!("`{}`", self.axes[a].name)).collect();
        names.join(" and ")
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// The signature of a function or a block, without its result.
pub(super) fn signature(name: &Ident, axes: &[Ident], parameters: &[Parameter]) -> String {
    let list = |names: &[Ident]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let brackets = |text: String| if text.is_empty() { text } else { format!("[{text}]") };
    let parameters = parameters.iter().map(|p| {
        let axes = p.axes.as_deref().map_or(String::new(), list);
        let axes = if p.open { format!("{axes}, ..") } else { axes };
        format!("{}{}", p.name, brackets(axes))
    });
    format!("{name}{}({})", brackets(list(axes)), parameters.collect::<Vec<_>>().join(", "))
}

/// Whether a function selects along an axis of a parameter, which then must be a tensor.
fn reindexes(function: &Function, parameter: &Ident) -> bool {
    let mut found = false;
    let lets = function.statements.iter().filter_map(|s| match s {
        Statement::Let { value, .. } | Statement::Top { value, .. } => Some(value),
        Statement::Cache { .. } => None,
    });
    for expr in lets.chain(&function.result) {
        expr.walk(&mut |e| {
            if let ExprKind::Index { of, entries } = &e.kind
                && matches!(&of.kind, ExprKind::Name(name) if name == parameter)
                && entries.iter().any(|entry| entry.index.is_some())
            {
                found = true;
            }
        });
    }
    found
}
