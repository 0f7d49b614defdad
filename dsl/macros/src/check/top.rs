//! `let (values, indices)[axes] = top[over -> rank](value);`: the choice of the largest along an axis.

use proc_macro2::Ident;

use super::expr::same;
use super::scope::{Axes, Scalar, Tensor, Type};
use super::{AxisKind, Checker, Cx};
use crate::ast::Expr;
use crate::program::{Local, Step};

impl Checker<'_> {
    /// The values and their coordinates, as two equations under their names.
    pub(super) fn top(
        &mut self,
        cx: &mut Cx,
        names: [&Ident; 2],
        axes: Option<&[Ident]>,
        over: &Ident,
        rank: &Ident,
        value: &Expr,
    ) -> [Tensor; 2] {
        let scalar = self.expr(cx, value);
        self.want_number(value.span, "`top`", &scalar);
        let along = self.chosen(cx, over, rank, value, &scalar);
        let result: Axes = along.and_then(|(over, rank)| {
            let left = scalar.axes.as_ref()?.iter().copied().filter(|axis| *axis != over);
            Some(left.chain([rank]).collect())
        });
        let declared = axes.map(|idents| self.check_sides(cx, names[0], idents, &result));
        let locals = names.map(|name| match cx.calls.is_empty() {
            true => Local::Named(name.clone()),
            false => cx.numbered(),
        });
        let understood = match (&declared, &result) {
            (None, Some(_)) => true,
            (Some(Some(left)), Some(right)) => same(left, right),
            _ => false,
        };
        if let (true, Some((over_axis, rank_axis))) = (understood, along) {
            let labels = names.map(|name| match cx.calls.is_empty() {
                true => name.to_string(),
                false => format!("{}.{name}", cx.label),
            });
            let idents = axes.map(|idents| {
                let known = self.axis_list(cx, idents).unwrap_or_default();
                known.iter().zip(idents).map(|(&axis, ident)| self.axis_ident(cx, axis, ident)).collect()
            });
            let [values, indices] = locals.clone();
            let (over, rank) = (self.axis_ident(cx, over_axis, over), self.axis_ident(cx, rank_axis, rank));
            let (body, at) = (scalar.id, names[0].span());
            cx.steps.push(Step::Top { values, indices, labels, axes: idents, body, over, rank, at });
        }
        let equation = declared.is_some() && understood;
        let axes = if understood { declared.unwrap_or(result) } else { None };
        let [values, indices] = locals;
        let tensor = |local, ty| Tensor { equation, ..Tensor::new(local, axes.clone(), ty) };
        [tensor(values, Type::Float), tensor(indices, Type::Int)]
    }

    /// The axes of a choice, if it can be made of this value.
    fn chosen(&mut self, cx: &Cx, over: &Ident, rank: &Ident, value: &Expr, scalar: &Scalar) -> Option<(usize, usize)> {
        let (along, numbers) = (self.axis(cx, over), self.axis(cx, rank));
        let (along, numbers) = (along?, numbers?);
        for (axis, ident) in [(along, over), (numbers, rank)] {
            if matches!(self.axes[axis].kind, AxisKind::Tokens | AxisKind::Positions { .. }) {
                let message = format!("`{ident}` grows with the sequence: `top` is along axes of fixed sizes");
                self.diagnostics.error(ident.span(), message);
                return None;
            }
        }
        let has = scalar.axes.as_ref()?;
        if !has.contains(&along) {
            self.not_in_body(cx, "top", over, std::slice::from_ref(over), value, has);
            return None;
        }
        if has.contains(&numbers) {
            let message = format!("`{rank}` would number what is chosen, but the value is over {}", self.names(has));
            self.diagnostics.error(rank.span(), message);
            return None;
        }
        Some((along, numbers))
    }
}
