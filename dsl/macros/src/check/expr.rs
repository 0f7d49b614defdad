//! Scalar expressions: which axes they have and of which type they are.

use proc_macro2::{Ident, Span};

use super::config::Kind;
use super::scope::{Axes, Entry, Scalar, Tensor, Type};
use super::{AxisKind, Checker, Cx};
use crate::ast::{ConfigType, Entry as IndexEntry, Expr, ExprKind};
use crate::program::{Branch, Local, Op, Step};

impl Cx {
    /// A scalar of the generated code.
    pub(super) fn scalar(&mut self, op: Op, axes: Axes, ty: Type) -> Scalar {
        let id = self.scalars;
        self.scalars += 1;
        let masked = match &op {
            Op::Unary(_, a) => self.masked(*a),
            Op::Binary(_, a, b) | Op::Select(_, a, b) | Op::Masked(a, b) => [self.masked(*a), self.masked(*b)].concat(),
            _ => Vec::new(),
        };
        self.masked.insert(id, masked);
        self.steps.push(Step::Scalar(id, op));
        Scalar { id, axes, ty, tensor: None }
    }

    /// The axes along which a scalar is masked by the position of the token.
    pub(super) fn masked(&self, id: usize) -> Vec<usize> {
        self.masked.get(&id).cloned().unwrap_or_default()
    }

    /// Notes that a scalar is masked: by the position of the token, if the mask depends on that.
    fn mask(&mut self, scalar: Scalar, mask: &Scalar) -> Scalar {
        let axes = mask.axes.iter().filter(|axes| axes.contains(&0)).flatten();
        self.masked.entry(scalar.id).or_default().extend(axes);
        scalar
    }

    /// What stands for a scalar that could not be understood.
    pub(super) fn unknown(&mut self) -> Scalar {
        self.scalar(Op::Float(0.0), None, Type::Unknown)
    }

    /// A tensor's variable that has no name.
    pub(super) fn numbered(&mut self) -> Local {
        self.numbered += 1;
        Local::Numbered(self.numbered)
    }

    /// An element of a tensor at the coordinates of its own axes.
    pub(super) fn load(&mut self, tensor: Tensor) -> Scalar {
        let op = Op::Load(tensor.local.clone(), Vec::new());
        let scalar = self.scalar(op, tensor.axes.clone(), tensor.ty);
        self.masked.insert(scalar.id, tensor.masked.clone());
        Scalar { tensor: Some(tensor), ..scalar }
    }
}

/// All axes of both, in order of appearance.
pub(super) fn union(a: &Axes, b: &Axes) -> Axes {
    let (mut all, b) = (a.clone()?, b.as_ref()?);
    for axis in b {
        if !all.contains(axis) {
            all.push(*axis);
        }
    }
    Some(all)
}

/// Whether both have the same axes, in any order.
pub(super) fn same(a: &[usize], b: &[usize]) -> bool {
    a.len() == b.len() && a.iter().all(|x| b.contains(x))
}

impl Checker<'_> {
    /// A scalar expression.
    pub(super) fn expr(&mut self, cx: &mut Cx, expr: &Expr) -> Scalar {
        match &expr.kind {
            ExprKind::Int(n) => cx.scalar(Op::Int(*n), Some(Vec::new()), Type::Int),
            ExprKind::Float(x) => cx.scalar(Op::Float(*x), Some(Vec::new()), Type::Float),
            ExprKind::Bool(value) => {
                let message = format!("`{value}` is no operand of an equation: a mask is a comparison");
                self.diagnostics.error(expr.span, message);
                cx.unknown()
            }
            ExprKind::Text(text) => {
                let message = format!("`{text:?}` is text, which is no operand of an equation");
                self.diagnostics.error(expr.span, message);
                cx.unknown()
            }
            ExprKind::Name(ident) => self.name(cx, ident),
            ExprKind::Group(inner) => self.expr(cx, inner),
            ExprKind::Index { of, entries } => self.index(cx, of, entries),
            ExprKind::Call { name, axes, arguments } => self.call(cx, name, axes, arguments),
            ExprKind::Reduce { op, axes, body } => self.reduce(cx, expr.span, op, axes, body),
            ExprKind::Unary { op, of: operand } => {
                let of = self.expr(cx, operand);
                match *op {
                    "!" => {
                        self.want_mask(operand.span, "`!`", &of);
                        cx.scalar(Op::Unary("Not", of.id), of.axes, Type::Mask)
                    }
                    _ => {
                        self.want_number(operand.span, "`-`", &of);
                        cx.scalar(Op::Unary("Neg", of.id), of.axes, of.ty)
                    }
                }
            }
            ExprKind::Binary { op: "^", left, right } => self.power(cx, left, right),
            ExprKind::Binary { op, left, right } => self.binary(cx, expr.span, op, left, right),
            ExprKind::Where { body: left, mask: right } => {
                let (body, mask) = (self.expr(cx, left), self.expr(cx, right));
                self.want_number(left.span, "the left side of `where`", &body);
                self.want_mask(right.span, "`where`", &mask);
                let axes = union(&body.axes, &mask.axes);
                let masked = cx.scalar(Op::Masked(body.id, mask.id), axes, body.ty);
                cx.mask(masked, &mask)
            }
            ExprKind::If { condition: test, then, otherwise } if self.is_of_config(cx, test) => {
                self.either(cx, expr.span, test, then, otherwise)
            }
            ExprKind::If { condition: test, then, otherwise } => {
                let condition = self.expr(cx, test);
                let (then, otherwise) = (self.expr(cx, then), self.expr(cx, otherwise));
                self.want_mask(test.span, "`if`", &condition);
                if (then.ty == Type::Mask) != (otherwise.ty == Type::Mask)
                    && then.ty != Type::Unknown
                    && otherwise.ty != Type::Unknown
                {
                    self.diagnostics.error(expr.span, "the two sides of `if` are a mask and a number");
                }
                let axes = union(&condition.axes, &union(&then.axes, &otherwise.axes));
                let ty = meet(then.ty, otherwise.ty);
                let selected = cx.scalar(Op::Select(condition.id, then.id, otherwise.id), axes, ty);
                cx.mask(selected, &condition)
            }
            ExprKind::Method { of, name, .. } => {
                let message = format!("`{of}.{name}` is computed by Rust, which an equation can use through a `host`");
                self.diagnostics.error(expr.span, message);
                cx.unknown()
            }
            ExprKind::Unknown => cx.unknown(),
        }
    }

    /// Whether a condition is over values of the config and the number of the layer alone.
    fn is_of_config(&self, cx: &Cx, condition: &Expr) -> bool {
        let (mut some, mut all) = (false, true);
        condition.walk(&mut |e| {
            let known = match &e.kind {
                ExprKind::Name(name) => {
                    matches!(self.lookup(cx, &name.to_string()), Some(Entry::Value(_) | Entry::Layer))
                }
                ExprKind::Method { .. } => true,
                ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Bool(_) => return,
                ExprKind::Group(_) | ExprKind::Unary { .. } | ExprKind::Binary { .. } => return,
                _ => false,
            };
            some |= known;
            all &= known;
        });
        some && all
    }

    /// `if condition then a else b` of which the config decides one side; the other is not built.
    fn either(&mut self, cx: &mut Cx, span: Span, condition: &Expr, then: &Expr, otherwise: &Expr) -> Scalar {
        let of = format!("the condition of an `if` in `{}`", cx.label);
        let condition = self.decided(cx, condition, Some(Kind::Flag), &of);
        let before = cx.blocks.clone();
        let (then, a) = self.branch(cx, then);
        let called = std::mem::replace(&mut cx.blocks, before);
        let (otherwise, b) = self.branch(cx, otherwise);
        cx.blocks.extend(called);
        if let (Some(left), Some(right)) = (&a.axes, &b.axes)
            && !same(left, right)
        {
            let (left, right) = (self.names(left), self.names(right));
            let message = format!("the config chooses between a side over {left} and one over {right}");
            self.diagnostics.help(span, message, "both sides of an `if` over the config have the same axes");
        }
        if a.ty != b.ty && a.ty != Type::Unknown && b.ty != Type::Unknown {
            let (left, right) = (Self::type_name(a.ty), Self::type_name(b.ty));
            self.diagnostics.error(span, format!("the config chooses between {left} and {right}"));
        }
        let id = cx.scalars;
        cx.scalars += 1;
        let masked = cx.masked(then.id).into_iter().filter(|axis| cx.masked(otherwise.id).contains(axis)).collect();
        cx.masked.insert(id, masked);
        cx.steps.push(Step::Either { id, condition, then, otherwise });
        let axes = if a.axes.is_some() { a.axes } else { b.axes };
        Scalar { id, axes, ty: meet(a.ty, b.ty), tensor: None }
    }

    /// A side of an `if` over the config, with what is computed for it alone.
    fn branch(&mut self, cx: &mut Cx, side: &Expr) -> (Branch, Scalar) {
        let outer = std::mem::take(&mut cx.steps);
        let bound = cx.locals.iter().filter_map(|(_, entry)| match entry {
            Entry::Bound(bound) if bound.borrow().tensor.is_none() => Some(bound.clone()),
            _ => None,
        });
        let bound: Vec<_> = bound.collect();
        let value = self.expr(cx, side);
        // A tensor that was made on this side is not there on the other.
        bound.iter().for_each(|bound| bound.borrow_mut().tensor = None);
        let steps = std::mem::replace(&mut cx.steps, outer);
        (Branch { steps, id: value.id }, value)
    }

    /// Reports a mask where a number is wanted.
    pub(super) fn want_number(&self, span: Span, by: &str, scalar: &Scalar) {
        if scalar.ty == Type::Mask {
            self.diagnostics.error(span, format!("{by} wants a number, this is a mask"));
        }
    }

    /// Reports a number where a mask is wanted.
    fn want_mask(&self, span: Span, by: &str, scalar: &Scalar) {
        if matches!(scalar.ty, Type::Int | Type::Float) {
            let this = Self::type_name(scalar.ty);
            self.diagnostics.error(span, format!("{by} wants a mask (a comparison), this is {this}"));
        }
    }

    /// Reports anything but an integer.
    pub(super) fn want_int(&self, span: Span, by: &str, scalar: &Scalar) {
        if matches!(scalar.ty, Type::Mask | Type::Float) {
            let this = Self::type_name(scalar.ty);
            self.diagnostics.error(span, format!("{by} wants an integer, this is {this}"));
        }
    }

    fn name(&mut self, cx: &mut Cx, ident: &Ident) -> Scalar {
        match self.lookup(cx, &ident.to_string()) {
            _ if self.diagnostics.is_mistaken(&ident.to_string()) => cx.unknown(),
            Some(Entry::Axis(axis)) => {
                self.axes[axis].used.set(true);
                let name = self.axis_ident(cx, axis, ident);
                cx.scalar(Op::Coordinate(name), Some(vec![axis]), Type::Int)
            }
            Some(Entry::Value(value)) => {
                self.values[value].used.set(true);
                let name = self.values[value].name.to_string();
                let field = quote::quote!(config.#ident);
                let what = match self.values[value].ty {
                    ConfigType::F32 => return cx.scalar(Op::ConfigFloat(field), Some(Vec::new()), Type::Float),
                    ConfigType::Size | ConfigType::Count => {
                        return cx.scalar(Op::ConfigInt(field), Some(Vec::new()), Type::Int);
                    }
                    ConfigType::OptionSize => "may be missing: it can only be a window",
                    ConfigType::Bool => "is a bool of the config: it chooses weights, layers, and sides of an `if`",
                    ConfigType::Rust(_) => "is of a Rust type: only `host` can use it",
                };
                self.diagnostics.error(ident.span(), format!("`{name}` {what}"));
                cx.unknown()
            }
            Some(Entry::Bound(bound)) => bound.borrow().clone(),
            Some(Entry::Layer) => {
                let message = format!("`{ident}` is the number of the layer, which is no operand of an equation");
                let help = format!("`host n = {ident} as f32;` in the layer makes a constant of it");
                self.diagnostics.help(ident.span(), message, help);
                cx.unknown()
            }
            Some(Entry::Block(_)) => {
                let help = format!("call it, as in `{ident}(x)`");
                self.diagnostics.help(ident.span(), format!("`{ident}` is a block"), help);
                cx.unknown()
            }
            Some(Entry::Declared(..) | Entry::Tensor(_)) => match self.tensor(cx, ident) {
                Some(tensor) => cx.load(tensor),
                None => cx.unknown(),
            },
            None => {
                self.unknown_name(cx, ident);
                cx.unknown()
            }
        }
    }

    /// The variable of an axis: as it is written here, or (in a function that is inlined) as it is declared.
    pub(super) fn axis_ident(&self, cx: &Cx, axis: usize, written: &Ident) -> Ident {
        let declared = &self.axes[axis].name;
        if written == declared && cx.calls.is_empty() { written.clone() } else { declared.clone() }
    }

    /// The tensor behind a name that stands for one.
    fn tensor(&mut self, cx: &mut Cx, ident: &Ident) -> Option<Tensor> {
        match self.lookup(cx, &ident.to_string())? {
            Entry::Declared(at, layered) => {
                self.mark_used(at);
                if layered {
                    cx.weights.insert(at);
                }
                let declared = &self.tensors[at];
                for &axis in declared.axes.iter().flatten() {
                    self.axes[axis].used.set(true);
                }
                let (local, axes) = (Local::Named(ident.clone()), declared.axes.clone());
                Some(Tensor::new(local, axes, Type::Float))
            }
            Entry::Tensor(tensor) => {
                let local = match tensor.local {
                    Local::Named(_) => Local::Named(ident.clone()),
                    numbered => numbered,
                };
                Some(Tensor { local, ..tensor })
            }
            Entry::Bound(bound) => {
                let value = bound.borrow().clone();
                let label = format!("{}.{ident}", cx.label);
                let tensor = self.materialise(cx, &value, &label, ident.span());
                *bound.borrow_mut() = Scalar { tensor: Some(tensor.clone()), ..value };
                Some(tensor)
            }
            _ => None,
        }
    }

    /// Notes that a declared tensor is used, and the weights that may stand in for it.
    fn mark_used(&self, at: usize) {
        let mut at = Some(at);
        while let Some(i) = at.filter(|&i| !self.tensors[i].used.replace(true)) {
            at = self.tensors[i].stand_in;
        }
    }

    /// `of[v = index]` and `of[a, b]`.
    fn index(&mut self, cx: &mut Cx, of: &Expr, entries: &[IndexEntry]) -> Scalar {
        let ExprKind::Name(ident) = &of.kind else {
            let message = "only what has a name can be indexed: give this a `let` first";
            self.diagnostics.error(of.span, message);
            return cx.unknown();
        };
        let tensor = match self.lookup(cx, &ident.to_string()) {
            _ if self.diagnostics.is_mistaken(&ident.to_string()) => None,
            Some(Entry::Axis(_) | Entry::Value(_) | Entry::Layer | Entry::Block(_)) => {
                self.diagnostics.error(ident.span(), format!("`{ident}` is not a tensor: it has no axes to index"));
                None
            }
            None => {
                self.unknown_name(cx, ident);
                None
            }
            Some(_) => self.tensor(cx, ident),
        };
        let Some(tensor) = tensor else {
            for index in entries.iter().filter_map(|e| e.index.as_ref()) {
                self.expr(cx, index);
            }
            return cx.unknown();
        };
        let named: Vec<Ident> = entries.iter().map(|e| e.axis.clone()).collect();
        let known = self.axis_list(cx, &named).is_some();
        let mut selected: Vec<(usize, Ident, Scalar)> = Vec::new();
        let mut understood = known;
        let mut spelled = Vec::new();
        for entry in entries {
            let Some(axis) = self.axis_quietly(cx, &entry.axis) else {
                if let Some(index) = &entry.index {
                    self.expr(cx, index);
                }
                continue;
            };
            let has = tensor.axes.as_ref().is_none_or(|axes| axes.contains(&axis));
            if !has {
                let axes = self.names(tensor.axes.as_deref().unwrap_or_default());
                let message = format!("`{ident}` has no axis `{}`; it is over {axes}", entry.axis);
                self.diagnostics.error(entry.axis.span(), message);
            }
            let Some(index) = &entry.index else {
                self.mention(cx, std::slice::from_ref(&entry.axis));
                spelled.push(axis);
                continue;
            };
            let scalar = self.expr(cx, index);
            self.want_int(index.span, &format!("`{ident}[{} = …]`", entry.axis), &scalar);
            if matches!(self.axes[axis].kind, AxisKind::Positions { windowed: true })
                && !matches!(&index.kind, ExprKind::Name(name) if self.axis_quietly(cx, name).is_some_and(|a| self.is_positions(a)))
            {
                let name = &entry.axis;
                let message = format!("`{ident}` keeps a window of positions: none can be selected");
                let help = format!("mask the others, as in `sum[{name}] ({ident} where {name} == …)`");
                self.diagnostics.help(name.span(), message, help);
                understood = false;
            }
            if matches!(self.axes[axis].kind, AxisKind::Tokens) {
                let message = "earlier tokens are not at hand: `cache` their values and select along the positions";
                self.diagnostics.error(entry.axis.span(), message);
                understood = false;
            }
            understood &= has;
            selected.push((axis, self.axis_ident(cx, axis, &entry.axis), scalar));
        }
        if let (true, false, Some(axes)) = (known, spelled.is_empty(), &tensor.axes) {
            let left: Vec<usize> = axes.iter().copied().filter(|a| !selected.iter().any(|s| s.0 == *a)).collect();
            if !same(&left, &spelled) && spelled.iter().all(|a| axes.contains(a)) {
                let message = format!("`{ident}` is over {}, not {}", self.names(&left), self.names(&spelled));
                self.diagnostics.error(ident.span(), message);
            }
        }
        if !understood {
            return Scalar { ty: tensor.ty, ..cx.unknown() };
        }
        if selected.is_empty() {
            return cx.load(tensor);
        }
        let axes = tensor.axes.iter().flatten().fold(tensor.axes.as_ref().map(|_| Vec::new()), |axes, axis| {
            match selected.iter().find(|s| s.0 == *axis) {
                Some((_, _, index)) => union(&axes, &index.axes),
                None => union(&axes, &Some(vec![*axis])),
            }
        });
        let selected = selected.into_iter().map(|(_, name, index)| (name, index.id)).collect();
        let scalar = cx.scalar(Op::Load(tensor.local, selected), axes, tensor.ty);
        cx.masked.insert(scalar.id, tensor.masked);
        scalar
    }

    /// The axis that a name stands for, if it stands for one.
    pub(super) fn axis_quietly(&self, cx: &Cx, ident: &Ident) -> Option<usize> {
        match self.lookup(cx, &ident.to_string()) {
            Some(Entry::Axis(axis)) => Some(axis),
            _ => None,
        }
    }

    /// An operator between two scalars.
    fn binary(&mut self, cx: &mut Cx, span: Span, op: &str, left: &Expr, right: &Expr) -> Scalar {
        let (a, b) = (self.expr(cx, left), self.expr(cx, right));
        let axes = union(&a.axes, &b.axes);
        let quoted = format!("`{op}`");
        let (name, ty) = match op {
            "&&" | "||" => {
                self.want_mask(left.span, &quoted, &a);
                self.want_mask(right.span, &quoted, &b);
                (if op == "&&" { "And" } else { "Or" }, Type::Mask)
            }
            _ => {
                self.want_number(left.span, &quoted, &a);
                self.want_number(right.span, &quoted, &b);
                let number = meet(a.ty, b.ty);
                match op {
                    "+" => ("Add", number),
                    "-" => ("Sub", number),
                    "*" => ("Mul", number),
                    "/" => {
                        let integers = a.ty == Type::Int && b.ty == Type::Int;
                        if integers {
                            self.diagnostics.help(
                                span,
                                "`/` of two integers",
                                "write `div(a, b)` for the integer, rounded down, or one of them as `1.0` for the real number",
                            );
                        }
                        ("Div", if integers { Type::Unknown } else { Type::Float })
                    }
                    "%" => {
                        self.want_int(left.span, &quoted, &a);
                        self.want_int(right.span, &quoted, &b);
                        ("Rem", Type::Int)
                    }
                    "<" => ("Lt", Type::Mask),
                    "<=" => ("Le", Type::Mask),
                    ">" => ("Gt", Type::Mask),
                    ">=" => ("Ge", Type::Mask),
                    "==" => ("Eq", Type::Mask),
                    _ => ("Ne", Type::Mask),
                }
            }
        };
        let unknown = a.ty == Type::Unknown || b.ty == Type::Unknown;
        let ty = if unknown && ty != Type::Mask { Type::Unknown } else { ty };
        cx.scalar(Op::Binary(name, a.id, b.id), axes, ty)
    }

    /// `left ^ right`; small whole powers are products.
    fn power(&mut self, cx: &mut Cx, left: &Expr, right: &Expr) -> Scalar {
        let a = self.expr(cx, left);
        self.want_number(left.span, "`^`", &a);
        if let (ExprKind::Int(n @ 2..=4), true) = (&right.bare().kind, a.ty == Type::Float) {
            let mut product = a.clone();
            for _ in 1..*n {
                product = cx.scalar(Op::Binary("Mul", product.id, a.id), a.axes.clone(), Type::Float);
            }
            return product;
        }
        let b = self.expr(cx, right);
        self.want_number(right.span, "`^`", &b);
        let axes = union(&a.axes, &b.axes);
        cx.scalar(Op::Binary("Pow", a.id, b.id), axes, Type::Float)
    }

    fn reduce(&mut self, cx: &mut Cx, span: Span, op: &'static str, idents: &[Ident], body: &Expr) -> Scalar {
        let value = self.expr(cx, body);
        self.want_number(body.span, &format!("`{op}`"), &value);
        let ty = if op == "argmax" { Type::Int } else { Type::Float };
        let Some(axes) = self.axis_list(cx, idents) else { return Scalar { ty, ..cx.unknown() } };
        let Some(has) = &value.axes else { return Scalar { ty, ..cx.unknown() } };
        let mut mistaken = Vec::new();
        for (ident, axis) in idents.iter().zip(&axes) {
            if matches!(self.axes[*axis].kind, AxisKind::Tokens) {
                self.diagnostics.help(
                    ident.span(),
                    format!("a `{op}` over the tokens of a step would depend on how a prompt is cut into steps"),
                    "`cache` the value, and reduce over the positions",
                );
                return Scalar { ty, ..cx.unknown() };
            }
            if !has.contains(axis) {
                self.not_in_body(cx, op, ident, idents, body, has);
                return Scalar { ty, ..cx.unknown() };
            }
            if self.is_positions(*axis) && !cx.masked(value.id).contains(axis) {
                self.diagnostics.help(
                    ident.span(),
                    format!("this `{op}` over the positions `{ident}` sees later tokens of the same step"),
                    format!("mask it by the position of the token: `… where {ident} <= t`"),
                );
                mistaken.push(*axis);
            }
        }
        if op == "argmax" && axes.len() != 1 {
            self.diagnostics.error(span, "`argmax` is over one axis");
        }
        let names: Vec<Ident> = axes.iter().zip(idents).map(|(&a, i)| self.axis_ident(cx, a, i)).collect();
        let left = has.iter().copied().filter(|a| !axes.contains(a)).collect();
        let op = match op {
            "mean" => {
                if axes.iter().any(|&a| !matches!(self.axes[a].kind, AxisKind::Fixed(_) | AxisKind::Parameter)) {
                    self.diagnostics.error(span, "`mean` is over axes of a fixed size");
                }
                Op::Mean(names, value.id)
            }
            "sum" => Op::Reduce("Sum", names, value.id),
            "max" => Op::Reduce("Max", names, value.id),
            "min" => Op::Reduce("Min", names, value.id),
            _ => Op::Reduce("ArgMax", names, value.id),
        };
        let mut masked = cx.masked(value.id);
        masked.retain(|axis| !axes.contains(axis));
        // What is computed from it is no further mistake.
        masked.extend(mistaken);
        let reduced = cx.scalar(op, Some(left), ty);
        cx.masked.insert(reduced.id, masked);
        reduced
    }

    /// Reports a reduction over an axis that its body does not have.
    pub(super) fn not_in_body(
        &mut self,
        cx: &Cx,
        op: &str,
        ident: &Ident,
        idents: &[Ident],
        body: &Expr,
        has: &[usize],
    ) {
        let mut operands = Vec::new();
        body.walk(&mut |e| {
            if let ExprKind::Name(name) = &e.kind
                && !operands.iter().any(|(n, _)| n == name)
                && let Some(axes) = self.axes_of(cx, name)
            {
                operands.push((name.clone(), axes));
            }
        });
        let lacks = |axes: &[usize]| self.axis_quietly(cx, ident).is_none_or(|axis| !axes.contains(&axis));
        let message = match operands.last() {
            Some((name, axes)) if operands.len() <= 2 && lacks(axes) => {
                let axes = self.names(axes);
                format!("`{name}` has no axis `{ident}`; it is declared over {axes}")
            }
            _ => format!("the body of this `{op}` has no axis `{ident}`; it is over {}", self.names(has)),
        };
        let shared = has.iter().filter(|a| operands.iter().filter(|(_, axes)| axes.contains(a)).count() > 1);
        let shared: Vec<usize> = shared.copied().filter(|&a| matches!(self.axes[a].kind, AxisKind::Fixed(_))).collect();
        let meant = idents.iter().filter(|i| self.axis_quietly(cx, i).is_none_or(|a| !has.contains(&a))).count();
        if shared.is_empty() || meant == idents.len() + 1 || op == "top" {
            self.diagnostics.error(ident.span(), message);
        } else {
            let names = self.names(&shared);
            self.diagnostics.help(ident.span(), message, format!("did you mean `{op}{names}`?"));
        }
    }

    /// The axes of the tensor that a name stands for.
    fn axes_of(&self, cx: &Cx, ident: &Ident) -> Axes {
        match self.lookup(cx, &ident.to_string())? {
            Entry::Declared(at, _) => self.tensors[at].axes.clone(),
            Entry::Tensor(tensor) => tensor.axes,
            Entry::Bound(bound) => bound.borrow().axes.clone(),
            _ => None,
        }
    }
}

/// The type of an operator between two numbers.
pub(super) fn meet(a: Type, b: Type) -> Type {
    match (a, b) {
        (Type::Unknown, _) | (_, Type::Unknown) => Type::Unknown,
        (a, b) if a == b => a,
        _ => Type::Float,
    }
}
