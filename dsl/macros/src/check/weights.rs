//! Weights: their axes, and where in a checkpoint they may be found.

use std::collections::HashMap;

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;

use super::config::{At, Kind};
use super::scope::Entry;
use super::{Checker, Cx, Declared};
use crate::ast::{self, Expr, Text};
use crate::program::{FileTensor, Otherwise, Weight};

/// What stands in for a weight.
enum StandIn {
    /// Another, a position among the tensors.
    Weight(usize, Ident),
    Number(f64),
}

impl Checker<'_> {
    /// Declares the weights of a section, in the model or (with the name of its number) in a layer.
    pub(super) fn weights(&mut self, section: &ast::Weights, layer: Option<(&Ident, &mut HashMap<String, Entry>)>) {
        let index = layer.as_ref().map(|(index, _)| (*index).clone());
        let mut scope = layer.map(|(_, scope)| scope);
        for weight in &section.weights {
            let mut cx = Cx::new(super::Place::Model);
            if let Some(scope) = &scope {
                cx.layer = (*scope).clone();
            }
            let at = self.tensors.len();
            let name = weight.name.to_string();
            let axes = self.fixed_axes(&cx, &weight.axes, &weight.name);
            let (places, stand_in) = self.sources(&cx, section, weight, index.as_ref());
            if let Some(StandIn::Weight(other, _)) = &stand_in
                && let other = &self.tensors[*other]
                && let (Some(axes), Some(others)) = (&axes, &other.axes)
                && axes != others
            {
                let message = format!(
                    "`{name}` is declared over {}, but `{}` is over {}",
                    self.names(axes),
                    other.name,
                    self.names(others)
                );
                self.diagnostics.error(weight.name.span(), message);
            }
            let emitted = Weight {
                name: weight.name.clone(),
                axes: if axes.is_some() { weight.axes.clone() } else { Vec::new() },
                places,
                otherwise: stand_in.as_ref().map(|other| match other {
                    StandIn::Weight(_, name) => Otherwise::Weight(name.clone()),
                    StandIn::Number(number) => Otherwise::Number(*number),
                }),
            };
            self.tensors.push(Declared {
                name: weight.name.clone(),
                axes,
                used: false.into(),
                what: "a weight",
                weight: Some(emitted),
                stand_in: match stand_in {
                    Some(StandIn::Weight(other, _)) => Some(other),
                    _ => None,
                },
            });
            let entry = Entry::Declared(at, scope.is_some());
            match &mut scope {
                None => {
                    self.declare(&weight.name, entry);
                }
                Some(scope) => {
                    let earlier = scope.get(&name).or_else(|| self.globals.get(&name)).cloned();
                    if self.may_declare(weight.name.span(), &name, earlier) {
                        scope.insert(name, entry);
                    }
                }
            }
        }
    }

    /// The places of a weight, and what stands in for it where none of them counts.
    fn sources(
        &mut self,
        cx: &Cx,
        section: &ast::Weights,
        weight: &ast::Weight,
        index: Option<&Ident>,
    ) -> (Vec<FileTensor>, Option<StandIn>) {
        let mut places = Vec::new();
        let mut stand_in = None;
        let mut certain = false;
        for (i, source) in weight.sources.iter().enumerate() {
            let of = format!("weight `{}`", weight.name);
            match &source.place {
                ast::Place::File { name, rows } => {
                    certain |= source.condition.is_none();
                    let condition = source.condition.as_ref().filter(|condition| self.is_of_all_layers(cx, condition));
                    let condition = condition.map(|condition| self.hoist(cx, condition, Some(Kind::Flag), &of));
                    let axis = rows.as_ref().and_then(|rows| rows.2.as_ref());
                    if let Some(axis) = axis
                        && weight.axes.first() != Some(axis)
                    {
                        let message = format!("`{axis}` is not the first axis of `{}`", weight.name);
                        let help = "`[0 .. c in n]` is a part of each coordinate of a weight's first axis, `n`";
                        self.diagnostics.help(axis.span(), message, help);
                    }
                    let each = axis.is_some();
                    let rows =
                        rows.as_ref().filter(|rows| [&rows.0, &rows.1].iter().all(|r| self.is_of_all_layers(cx, r)));
                    let rows = rows.map(|rows| self.rows(cx, &rows.0, &rows.1, &of));
                    for prefix in section.prefixes() {
                        let whole = Text { value: format!("{prefix}{}", name.value), span: name.span };
                        let name = self.template(&whole, index, Some(weight));
                        places.push(FileTensor { name, rows: rows.clone(), each, condition: condition.clone() });
                    }
                }
                ast::Place::Number(span, number) => {
                    self.check_stand_in(weight, i, certain, *span, &number.to_string());
                    stand_in = Some(StandIn::Number(*number));
                }
                ast::Place::Weight(other) => {
                    if let Some(condition) = &source.condition {
                        let message = "another weight stands in where no tensor before it counts, without a condition";
                        self.diagnostics.error(condition.span, message);
                    } else {
                        self.check_stand_in(weight, i, certain, other.span(), &other.to_string());
                    }
                    match self.lookup(cx, &other.to_string()) {
                        _ if self.diagnostics.is_mistaken(&other.to_string()) => {}
                        Some(Entry::Declared(at, _)) if self.tensors[at].what == "a weight" => {
                            stand_in = Some(StandIn::Weight(at, other.clone()));
                        }
                        Some(_) => self.diagnostics.error(other.span(), format!("`{other}` is not a weight")),
                        None => self.unknown_name(cx, other),
                    }
                }
            }
        }
        (places, stand_in)
    }

    /// Whether an expression is without the number of the layer, which is reported.
    fn is_of_all_layers(&self, cx: &Cx, expr: &Expr) -> bool {
        let number = self.layer_number(cx, expr);
        if let Some(number) = number {
            let message =
                format!("`{number}` is the number of the layer: a weight's conditions and parts are the same in all");
            self.diagnostics.error(number.span(), message);
        }
        number.is_none()
    }

    /// Checks that what stands in for a weight, its source number `at`, is the last and can be needed.
    fn check_stand_in(&self, weight: &ast::Weight, at: usize, certain: bool, span: Span, other: &str) {
        if at + 1 < weight.sources.len() {
            self.diagnostics.error(span, format!("nothing comes behind `{other}`: it is always there"));
        } else if certain || at == 0 {
            self.diagnostics.help(
                span,
                format!("`{other}` would never stand in: what a file holds is not known when the graph is built"),
                "give the tensors before it a condition, as in `\"lm_head.weight\" if !tied else embed`",
            );
        }
    }

    /// A part of a tensor's first dimension, computed before anything is built.
    fn rows(&mut self, cx: &Cx, from: &Expr, to: &Expr, of: &str) -> TokenStream {
        let from = self.config_expr(cx, from, Some(Kind::Number), At::Building, of);
        let to = self.config_expr(cx, to, Some(Kind::Number), At::Building, of);
        let graph = &self.declaration.graph;
        let rows = quote!(#graph::__private::rows(#of, #from, #to)?);
        self.prologue(rows)
    }

    /// The name of a tensor in the file, with `{l}` for the number of the layer, and `{e}` for the coordinate along the
    /// weight's first axis, whatever they are called here; or a prefix of names.
    pub(super) fn template(&self, name: &Text, index: Option<&Ident>, weight: Option<&ast::Weight>) -> String {
        let mut result = String::new();
        let mut rest = name.value.as_str();
        let mut layered = false;
        while let Some((before, behind)) = rest.split_once('{') {
            let Some((word, after)) = behind.split_once('}') else {
                self.diagnostics.error(name.span, "`{` without `}` in the name of a tensor");
                return name.value.clone();
            };
            let mut stacked = false;
            match index {
                Some(index) if *index == word => layered = true,
                _ if weight.is_some() && matches!(self.globals.get(word), Some(Entry::Axis(_))) => {
                    stacked = true;
                    if let Some(weight) = weight
                        && weight.axes.first().is_none_or(|first| first != word)
                    {
                        self.diagnostics.help(
                            name.span,
                            format!(
                                "`{{{word}}}` names a tensor for each `{word}`, which is not the first axis of `{}`",
                                weight.name
                            ),
                            format!("tensors are stacked along the first axis: `{}[{word}, …]`", weight.name),
                        );
                    }
                }
                Some(index) => {
                    layered = true;
                    self.diagnostics.help(
                        name.span,
                        format!("unknown `{{{word}}}` in the name of a tensor"),
                        format!("`{{{index}}}` is the number of the layer"),
                    );
                }
                None => {
                    let message = format!("`{{{word}}}` in the name of a tensor outside of `layer`");
                    self.diagnostics.error(name.span, message);
                }
            }
            result += before;
            result += if stacked { "{e}" } else { "{l}" };
            rest = after;
        }
        if let Some(index) = index
            && !layered
        {
            self.diagnostics.help(
                name.span,
                format!("the name `{}` is the same in every layer", name.value),
                format!("name the layer by `{{{index}}}`, or declare the weight outside of `layer`"),
            );
        }
        result + rest
    }

    /// The weights of a layer that a body wants, those they fall back to among them, in order of declaration.
    pub(super) fn wanted(&self, used: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut wanted: Vec<usize> = Vec::new();
        let mut open: Vec<usize> = used.collect();
        while let Some(at) = open.pop() {
            if !wanted.contains(&at) {
                wanted.push(at);
                open.extend(self.tensors[at].stand_in);
            }
        }
        wanted.sort_unstable();
        wanted
    }
}
