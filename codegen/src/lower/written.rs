//! What a loop writes: a load of anything else may leave it.

use std::collections::{HashMap, HashSet};

use super::affine::Affine;
use super::expr::Yield;
use super::stmt::collect_set;
use crate::format::{Elem, PANEL};
use crate::loops::{Address, Binary, Buffer, Encode, Expr, Exps, LANES, Stmt, Unary, Unpack, Var};

/// The kinds of buffers, which do not overlap; and where one begins, as those do not that begin elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Arena(usize),
    Scratch(usize),
    Frame(usize),
    Layer(usize),
    Page,
}

impl Kind {
    pub(super) fn of(buffer: &Buffer) -> Self {
        match buffer {
            Buffer::Arena(start) => Kind::Arena(*start),
            Buffer::Scratch(start) => Kind::Scratch(*start),
            Buffer::Frame(slot) => Kind::Frame(*slot),
            Buffer::Layer(slot) => Kind::Layer(*slot),
            Buffer::Page { .. } => Kind::Page,
        }
    }
}

/// `base + low ..= base + high`, of integers or of bytes.
#[derive(Clone, Debug)]
pub(super) struct Span {
    base: Affine,
    low: i64,
    high: i64,
}

impl Span {
    fn exactly(base: Affine) -> Self {
        Span { base, low: 0, high: 0 }
    }

    fn plus(self, other: &Span) -> Option<Self> {
        let (low, high) = (self.low.checked_add(other.low)?, self.high.checked_add(other.high)?);
        Some(Span { base: self.base.plus(&other.base), low, high })
    }

    fn times(self, factor: i64) -> Option<Self> {
        let (a, b) = (self.low.checked_mul(factor)?, self.high.checked_mul(factor)?);
        Some(Span { base: self.base.times(factor), low: a.min(b), high: a.max(b) })
    }

    fn as_constant(&self) -> Option<i64> {
        self.base.as_constant().filter(|_| self.low == 0 && self.high == 0)
    }

    /// Its bounds as numbers.
    fn bounds(&self) -> Option<(i64, i64)> {
        let base = self.base.as_constant()?;
        Some((base.checked_add(self.low)?, base.checked_add(self.high)?))
    }

    fn between(low: i64, high: i64) -> Self {
        Span { base: Affine::constant(0), low, high }
    }
}

/// What a block writes, as bytes from the start of a kind of buffer where that is known.
pub(super) struct Written(Vec<(Kind, Option<Span>)>);

impl Written {
    /// Of a loop's body, before it is lowered, with the variables as they are there.
    pub(super) fn by(body: &[Stmt], counter: (Var, Option<Span>), vars: &[Option<Yield>]) -> Self {
        let mut set = Vec::new();
        collect_set(body, &mut set);
        let inside = HashMap::from([counter]);
        let mut walk = Walk { vars, set: set.into_iter().collect(), inside, written: Vec::new() };
        walk.block(body);
        Written(walk.written)
    }

    /// Whether it may write some of the `size` bytes at an address.
    pub(super) fn touches(&self, kind: Kind, at: &Affine, size: i64) -> bool {
        self.0.iter().filter(|(written, _)| *written == kind).any(|(_, span)| {
            let distance = span.as_ref().and_then(|span| {
                let base = span.base.clone().plus(&at.clone().times(-1)).as_constant()?;
                Some((base.checked_add(span.low)?, base.checked_add(span.high)?))
            });
            distance.is_none_or(|(low, high)| low < size && high >= 0)
        })
    }
}

/// The values of a counter.
pub(super) fn counted(from: &Affine, to: &Affine) -> Option<Span> {
    let extent = to.clone().plus(&from.clone().times(-1)).as_constant()?;
    Some(Span { base: from.clone(), low: 0, high: (extent - 1).max(0) })
}

struct Walk<'a> {
    vars: &'a [Option<Yield>],
    /// The variables that the loop sets: they may have any value.
    set: HashSet<Var>,
    /// What is known of those that it defines.
    inside: HashMap<Var, Option<Span>>,
    written: Vec<(Kind, Option<Span>)>,
}

impl Walk<'_> {
    fn block(&mut self, body: &[Stmt]) {
        for stmt in body {
            match stmt {
                Stmt::Let(var, value) => {
                    let span = self.span(value);
                    self.inside.insert(*var, span);
                }
                Stmt::Store { elem, at, value: _ } => self.write(at, *elem, Some((0, 4 * elem.bytes() as i64))),
                Stmt::Spread(spread) => {
                    let size = Elem::Bf16.bytes();
                    self.write(&spread.at, Elem::Bf16, Some((0, (size * (spread.places()[LANES - 1] + 1)) as i64)));
                }
                Stmt::Core(core) => {
                    let rows = core.rows as i64 - 1;
                    let stride = self.span(&core.c_stride).and_then(|span| span.as_constant());
                    let last = if rows == 0 { Some(0) } else { stride.and_then(|s| s.checked_mul(4 * rows)) };
                    self.write(
                        &core.c,
                        Elem::F32,
                        last.map(|last| (last.min(0), last.max(0) + (4 * PANEL * core.panels) as i64)),
                    );
                }
                Stmt::Exps(Exps { to, depth, format, .. }) => {
                    let elem = format.elem();
                    self.write(to, elem, Some((0, (depth * elem.bytes()) as i64)));
                }
                Stmt::Unpack(Unpack { to, depth, into, .. }) => {
                    let elem = into.elem();
                    self.write(to, elem, Some((0, (into.rows(*depth) * elem.bytes()) as i64)));
                }
                Stmt::Encode(Encode { to, depth, format, part, .. }) => {
                    let (elem, whole) = (format.elem(), part.as_ref().map_or(*depth, |part| part.of));
                    self.write(to, elem, Some((0, (format.row(whole) * elem.bytes()) as i64)));
                }
                Stmt::For { var, from, to, body, .. } => {
                    let counter = self.span(from).zip(self.span(to)).and_then(|(from, to)| {
                        let extent = to.plus(&from.clone().times(-1)?)?.bounds()?.1;
                        from.plus(&Span::between(0, (extent - 1).max(0)))
                    });
                    self.inside.insert(*var, counter);
                    self.block(body);
                }
                Stmt::Parallel { var, count, body, .. } => {
                    let count = self.span(count).and_then(|span| span.bounds());
                    self.inside.insert(*var, count.map(|(_, count)| Span::between(0, (count - 1).max(0))));
                    self.block(body);
                }
                Stmt::If { then, otherwise, .. } => {
                    self.block(then);
                    self.block(otherwise);
                }
                Stmt::Set(..) | Stmt::Note(_) => {}
            }
        }
    }

    /// Notes a write of the bytes `from..to` at an address.
    fn write(&mut self, at: &Address, elem: Elem, bytes: Option<(i64, i64)>) {
        let start = match &at.buffer {
            Buffer::Arena(start) | Buffer::Scratch(start) => Some(*start as i64),
            _ => None,
        };
        let span = self.span(&at.offset).and_then(|span| {
            let (from, to) = bytes?;
            let span = span.times(elem.bytes() as i64)?.plus(&Span::between(from, to.checked_sub(1)?))?;
            span.plus(&Span::exactly(Affine::constant(start?)))
        });
        self.written.push((Kind::of(&at.buffer), span));
    }

    /// The values that an integer may have.
    fn span(&self, expr: &Expr) -> Option<Span> {
        match expr {
            Expr::Int(x) => Some(Span::exactly(Affine::constant(*x))),
            Expr::Var(var) if self.set.contains(var) => None,
            Expr::Var(var) => match self.inside.get(var) {
                Some(span) => span.clone(),
                None => match self.vars.get(var.0 as usize)? {
                    Some(Yield::Int(x)) => Some(Span::exactly(x.clone())),
                    _ => None,
                },
            },
            Expr::Unary(Unary::Neg, x) => self.span(x)?.times(-1),
            Expr::Load { elem: Elem::I32, .. } => None,
            Expr::Binary(function, a, b) => {
                let (a, b) = (self.span(a), self.span(b)?);
                match (function, b.as_constant()) {
                    (Binary::Add, _) => a?.plus(&b),
                    (Binary::Sub, _) => a?.plus(&b.times(-1)?),
                    (Binary::Mul, Some(factor)) => a?.times(factor),
                    (Binary::Mul, None) => b.times(a?.as_constant()?),
                    (Binary::Div, Some(divisor)) if divisor >= 1 => {
                        let (low, high) = a?.bounds()?;
                        Some(Span::between(low.div_euclid(divisor), high.div_euclid(divisor)))
                    }
                    (Binary::Rem, Some(divisor)) if divisor >= 1 => Some(Span::between(0, divisor - 1)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}
