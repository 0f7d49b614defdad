//! Blocks: the `fn` of one, its use in a layer, and its call there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use proc_macro2::{Ident, Span, TokenStream};

use super::call::{is_built_in, signature};
use super::scope::{Axes, Entry, Scalar, Tensor, Type};
use super::{Checker, Cx, Place, UseInfo};
use crate::ast::{self, Expr, Function};
use crate::program::{Block, Index, Local, Op, Signature, Step, Use};

impl<'m> Checker<'m> {
    /// Checks the `fn` of a block.
    pub(super) fn block(&mut self, function: &Function) -> Option<Block> {
        let mut cx = Cx::new(Place::Block);
        let given = self.declaration.given_axes().iter().map(|axis| self.axis_quietly(&cx, axis));
        let given: Axes = given.collect();
        let mut known: Vec<Axes> = Vec::new();
        for parameter in &function.parameters {
            let (ident, name) = (&parameter.name, parameter.name.to_string());
            if parameter.open {
                self.diagnostics.error(ident.span(), format!("`{name}` is given with all its axes, without `..`"));
            }
            let idents = parameter.axes.as_deref().unwrap_or_default();
            let axes = self.outer_axes(&mut cx, idents).filter(|_| !parameter.open);
            known.push(axes.clone());
            if !self.may_declare(ident.span(), &name, self.lookup(&cx, &name)) {
                continue;
            }
            let entry = if parameter.axes.is_some() {
                cx.steps.push(Step::Argument { name: ident.clone(), id: None });
                let local = Local::Named(ident.clone());
                Entry::Tensor(Tensor::new(local, axes, Type::Float))
            } else {
                let id = cx.scalars;
                cx.scalars += 1;
                cx.steps.push(Step::Argument { name: ident.clone(), id: Some(id) });
                Entry::Bound(Rc::new(RefCell::new(Scalar { id, axes, ty: Type::Float, tensor: None })))
            };
            cx.locals.push((name, entry));
        }
        self.statements(&mut cx, function);
        cx.label = "out".to_owned();
        let result = function.result.as_ref()?;
        cx.steps.push(Step::At(result.span));
        let value = self.expr(&mut cx, result);
        let order = self.result_axes(&cx, function, &value, result.span);
        if let Some(idents) = &function.result_axes {
            self.outer_axes(&mut cx, idents);
        }
        if matches!(value.ty, Type::Int | Type::Mask) {
            let message = format!("a block yields a real number, this is {}", Self::type_name(value.ty));
            self.diagnostics.error(result.span, message);
        }
        let signature = given.zip(order).and_then(|(given, order)| {
            let takes = signature(&self.declaration.name, self.declaration.given_axes(), &function.parameters);
            let written = format!("{takes} -> {}", self.names(&order));
            self.signature(written, &given, &known, &order)
        });
        let parameters = function.parameters.iter().map(|parameter| parameter.name.clone()).collect();
        Some(Block { parameters, steps: cx.steps, result: value.id, signature })
    }

    /// Axes that a block shares with its use: those that it is given, and that of the tokens.
    fn outer_axes(&self, cx: &mut Cx, idents: &[Ident]) -> Axes {
        let axes = self.axis_list(cx, idents)?;
        self.mention(cx, idents);
        let given = self.declaration.given_axes();
        match axes.iter().position(|&axis| axis != 0 && !given.contains(&self.axes[axis].name)) {
            Some(at) => {
                let message = format!("`{}` is an axis of the block alone, which its use does not know", idents[at]);
                self.diagnostics.error(idents[at].span(), message);
                None
            }
            None => Some(axes),
        }
    }

    /// What a block takes and yields, if all of it is known.
    fn signature(&self, written: String, given: &[usize], parameters: &[Axes], result: &[usize]) -> Option<Signature> {
        let name = |axis: usize| self.axes[axis].name.to_string();
        let index = |axis: &usize| match given.iter().position(|at| at == axis) {
            Some(at) => Index::Given(at),
            None => Index::Named(name(*axis)),
        };
        let over = |axes: &[usize]| axes.iter().map(index).collect();
        let parameters: Option<_> = parameters.iter().map(|axes| axes.as_deref().map(over)).collect();
        let axes = given.iter().map(|axis| name(*axis)).collect();
        Some(Signature { written, axes, parameters: parameters?, result: over(result) })
    }

    /// Declares the blocks that a section of weights uses, in a layer (with the name of its number) or in another block.
    pub(super) fn uses(&mut self, section: &'m ast::Weights, layer: Option<(&Ident, &mut HashMap<String, Entry>)>) {
        let (index, mut scope) = layer.map_or((None, None), |(index, scope)| (Some(index), Some(scope)));
        for block in &section.uses {
            if index.is_none() && !self.declaration.is_block() {
                self.diagnostics.error(block.name.span(), "a block is used in the `weights` of a layer");
                continue;
            }
            let mut cx = Cx::new(Place::Model);
            if let Some(scope) = &scope {
                cx.layer = (*scope).clone();
            }
            let name = block.name.to_string();
            let axes = self.fixed_axes(&cx, &block.axes, &block.name);
            let result = self.axis_list(&cx, &block.result_axes);
            let mut values = Vec::new();
            for (value, expr) in &block.values {
                let of = format!("`{value}` of the block `{name}`");
                values.push((value.clone(), located(self.decided(&cx, expr, None, &of), expr.span)));
            }
            let mut prefixes = Vec::new();
            for outer in section.prefixes() {
                for prefix in &block.prefixes {
                    let whole = ast::Text { value: format!("{outer}{}", prefix.value), span: prefix.span };
                    prefixes.push(self.template(&whole, index, None));
                }
            }
            let entry = Entry::Block(self.uses.len());
            let known = if axes.is_some() { block.axes.clone() } else { Vec::new() };
            let path = block.path.clone();
            self.program.uses.push(Use { name: block.name.clone(), axes: known, path, values, prefixes });
            self.uses.push(UseInfo { of: block, axes, result, used: false.into() });
            if is_built_in(&name) || self.functions.iter().any(|f| f.name.as_ref() == Some(&block.name)) {
                self.diagnostics.error(block.name.span(), format!("`{name}` is a function already"));
                self.diagnostics.mistake(&block.name);
                continue;
            }
            match &mut scope {
                None => {
                    self.declare(&block.name, entry);
                }
                Some(scope) => {
                    let earlier = scope.get(&name).or_else(|| self.globals.get(&name)).cloned();
                    if self.may_declare(block.name.span(), &name, earlier) {
                        scope.insert(name, entry);
                    }
                }
            }
        }
    }

    /// Reports a call of a block where it can't be called.
    pub(super) fn not_called_here(&self, name: &Ident) {
        let message = format!("`{name}` is a block: it is called by the `fn` of the layer that declares it");
        self.diagnostics.error(name.span(), message);
    }

    /// `name(arguments)` of a block that is used.
    pub(super) fn call_block(
        &mut self,
        cx: &mut Cx,
        of: usize,
        name: &Ident,
        axes: &[Ident],
        arguments: &[Expr],
    ) -> Scalar {
        self.uses[of].used.set(true);
        if let Some(axis) = axes.first() {
            let help = format!("call it by `{name}(…)`");
            self.diagnostics.help(axis.span(), format!("`{name}` was given its axes where it is declared"), help);
        }
        if !matches!(cx.kind, Place::Layer | Place::Block) || !cx.calls.is_empty() {
            self.not_called_here(name);
            return cx.unknown();
        }
        if !cx.blocks.insert(of) {
            let message = format!("`{name}` is called twice: its weights and caches are there once");
            self.diagnostics.error(name.span(), message);
        }
        let mut values = Vec::new();
        for argument in arguments {
            let value = self.expr(cx, argument);
            self.want_number(argument.span, "a block", &value);
            values.push(match value.ty {
                Type::Int => cx.scalar(Op::Unary("ToFloat", value.id), value.axes, Type::Float),
                _ => value,
            });
        }
        let (given, result) = (self.uses[of].axes.clone(), self.uses[of].result.clone());
        let taken: Vec<Axes> = values.iter().map(|value| value.axes.clone()).collect();
        let signature = given
            .zip(result.as_ref())
            .and_then(|(given, result)| self.signature(name.to_string(), &given, &taken, result));
        if result.is_some() {
            self.mention(cx, &self.uses[of].of.result_axes);
        }
        let arguments = values.iter().map(|value| value.id).collect();
        let id = cx.scalars;
        cx.scalars += 1;
        cx.steps.push(Step::Block { id, of, arguments, signature, name: name.clone() });
        Scalar { id, axes: result, ty: Type::Float, tensor: None }
    }
}

/// Tokens that stand, for the compiler's messages, where an expression is written.
fn located(tokens: TokenStream, at: Span) -> TokenStream {
    let tokens = tokens.into_iter().map(|mut token| {
        token.set_span(token.span().located_at(at));
        token
    });
    tokens.collect()
}
