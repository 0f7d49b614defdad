//! The schedule: from the kernels of a plan to loops over tiles.
//!
//! [`homes`] decides where everything lives; then each kernel is written in the skeleton of its shape: [`rows`], [`contract`]
//! (of which [`select`] is a variant) or [`stream`], all of which write their equations through [`emit`]. A plan is scheduled
//! for one token (decode) and for many (prefill); what streams a cache for a few, too, and what is computed of a step's last
//! rows alone.

use std::collections::{BTreeMap, HashMap};

use einfuse_graph::{Binary, Expr as GraphExpr, ExprId, Extent, Real, TensorId};

mod append;
mod contract;
mod cores;
pub(crate) mod emit;
mod encoded;
pub(crate) mod homes;
pub(crate) mod layout;
mod operands;
mod pages;
mod panels;
pub(crate) mod place;
mod rows;
mod segments;
mod select;
mod stream;
pub(crate) mod tiling;
pub(crate) mod weights;

use crate::format::Format;
use crate::fuse::{Contraction, EqId, Fold, Kernel, Plan, Shape, holds_at_own};
use crate::loops::{self, Arg, Cores, Expr, FEW};
use cores::Count;
use emit::{Emitter, Span};
use encoded::Left;
use homes::Homes;
use place::Place;
pub use tiling::{Sizes, Tiling};
use weights::Variant;

/// The number of this way to write kernels: another one where a kernel's best tiling may be another than it was.
pub const REVISION: u32 = 26;

/// The most positions that a sequence can have: kernels compute with them in 32-bit floats, which count no further, and with
/// differences and sums of some in lanes of 32 bits.
pub const MOST_POSITIONS: usize = 1 << 24;

/// How many rows a program's kernels are made for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mode {
    /// One token, at this place among the step's.
    One(Expr),
    /// A few, at most [`FEW`](crate::loops::FEW).
    Few,
    /// As many as there are.
    Many,
}

/// Expressions that the schedule needs beside those of the equations.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// For each tensor its element at its own coordinates.
    loads: HashMap<TensorId, ExprId>,
    /// For each streamed sum its result out of what was summed.
    finished: HashMap<EqId, ExprId>,
}

impl Prepared {
    /// Adds the expressions to the plan's graph.
    pub(crate) fn of(plan: &mut Plan) -> Prepared {
        let mut edit = crate::fuse::Edit::new(plan.graph.clone());
        let mut prepared = Prepared::default();
        for i in 0..plan.graph.tensors.len() {
            let tensor = TensorId(i as u32);
            prepared.loads.insert(tensor, edit.load(tensor));
        }
        for kernel in plan.scopes().into_iter().flatten() {
            let Shape::Stream(stream) = &kernel.shape else { continue };
            for fold in &stream.folds {
                let Fold::Sum { eq, weight, scale, divisor, .. } = fold else { continue };
                let sum = prepared.loads[&plan.equations[*eq].out];
                let mut body = sum;
                for (op, list) in [(Binary::Mul, scale), (Binary::Div, divisor)] {
                    for &factor in list {
                        body = edit.intern(GraphExpr::Binary(op, body, factor));
                    }
                }
                // A sum of nothing stays 0, be it divided by another one.
                let always = |mask| holds_at_own(&edit.graph, mask, stream.positions);
                if body != sum && weight.mask.is_some_and(|mask| !always(mask)) {
                    let none = edit.intern(GraphExpr::Float(Real(0.0)));
                    let mask = edit.intern(GraphExpr::Binary(Binary::Eq, sum, none));
                    body = edit.intern(GraphExpr::Select { mask, then: none, otherwise: body });
                }
                prepared.finished.insert(*eq, body);
            }
        }
        plan.graph = edit.graph;
        prepared
    }
}

/// What a skeleton needs to know.
pub(crate) struct Context<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) homes: &'a Homes,
    pub(crate) prepared: &'a Prepared,
    /// The stretch that the kernel stands in.
    pub(crate) scope: usize,
    /// Where its weights are.
    pub(crate) variant: &'a Variant,
    /// How many tokens a step has.
    pub(crate) step: Mode,
    /// What cores there are.
    pub(crate) cores: &'a Cores,
    /// The numbers of the kernel at hand.
    pub(crate) tiling: Tiling,
    /// Where the kernel leaves what is then encoded into states.
    pub(crate) staged: BTreeMap<TensorId, Place>,
}

impl<'a> Context<'a> {
    /// How many rows the kernel computes. Where the last are wanted alone, that is one of many tokens, and of a few any number.
    fn mode(&self, kernel: &Kernel) -> Mode {
        match &self.step {
            Mode::Few if kernel.last_rows => Mode::Many,
            _ if kernel.last_rows => Mode::One(Arg::First.into()),
            mode => mode.clone(),
        }
    }

    /// The first token that a kernel computes, how many, and the most that there can be, if that is known.
    fn tokens(&self, kernel: &Kernel) -> (Expr, Count) {
        match self.mode(kernel) {
            Mode::One(at) => (at, Count { rows: 1.into(), most: Some(1) }),
            Mode::Many if kernel.last_rows => {
                (Arg::First.into(), Count { rows: Expr::from(Arg::Tokens) - Arg::First, most: Some(FEW) })
            }
            Mode::Few | Mode::Many => (0.into(), Count::of(Arg::Tokens.into())),
        }
    }

    /// Confines the tokens' axis to what a kernel computes of it.
    fn bind_tokens(&self, kernel: &Kernel, e: &mut Emitter) {
        let (from, Count { rows, .. }) = self.tokens(kernel);
        if rows == Arg::Tokens.into() {
            return;
        }
        for (i, axis) in self.plan.graph.axes.iter().enumerate() {
            if axis.extent == Extent::Tokens {
                let (to, len) = (from.clone() + rows.clone(), rows.as_int().map(|rows| rows as usize));
                let span = Span { from: from.clone(), to, aligned: false, len };
                e.spans.insert(einfuse_graph::AxisId(i as u32), span);
            }
        }
    }

    fn load(&self, tensor: TensorId) -> ExprId {
        self.prepared.loads[&tensor]
    }

    /// Where the kernel finds a tensor, or leaves it.
    fn home(&self, tensor: TensorId) -> Place {
        let own =
            self.staged.get(&tensor).or_else(|| self.variant.places.get(&tensor)).or_else(|| self.rounded(tensor));
        own.unwrap_or_else(|| &self.homes.places[self.scope][&tensor]).clone()
    }

    /// How a value that other kernels computed is stored.
    fn stored(&self, tensor: TensorId) -> Format {
        match self.left(tensor) {
            Left::Floats => Format::F32,
            Left::Rounded(_) => Format::Bf16,
            Left::Encoded(encoded) => encoded.format,
        }
    }

    fn emitter(&self) -> Emitter<'a> {
        let mut places = self.homes.places[self.scope].clone();
        let own = self.variant.places.iter().chain(&self.staged);
        places.extend(own.map(|(&tensor, place)| (tensor, place.clone())));
        let rounded =
            self.homes.multiplied.iter().filter_map(|value| Some((value.tensor, self.rounded(value.tensor)?)));
        places.extend(rounded.map(|(tensor, place)| (tensor, place.clone())));
        Emitter::new(self.plan, places)
    }

    fn close(&self, name: &str, e: Emitter) -> loops::Kernel {
        let (vars, scratch, body) = e.finish();
        loops::Kernel { name: identifier(name), vars, scratch, body }
    }

    /// Whether the state lies in panels over positions, as the contraction's scores want them.
    fn has_score_panels(&self, c: &Contraction) -> bool {
        homes::streams_scores(self.plan, c) && self.homes.scores.get(&c.b) == Some(&c.depth)
    }

    /// Whether the state lies in panels over the contraction's columns.
    fn has_column_panels(&self, c: &Contraction) -> bool {
        homes::sums_columns(c) && self.homes.columns.get(&c.b) == Some(&c.cols)
    }
}

/// The loops of a kernel: one kernel, or more where rows are prepared, partial results merged or states encoded. And the
/// bytes of the arena, from `partial` on, that pass between them.
pub(crate) fn schedule(cx: &Context, kernel: &Kernel, partial: usize) -> (Vec<loops::Kernel>, usize) {
    let (staged, end) = append::staged(cx, kernel, partial);
    let cx = &Context { staged, step: cx.step.clone(), ..*cx };
    let (mut kernels, bytes) = match &kernel.shape {
        Shape::Rows => {
            let mut e = cx.emitter();
            rows::schedule(cx, kernel, &mut e);
            (vec![cx.close(&kernel.name, e)], 0)
        }
        Shape::Contract(contract) => contract::schedule(cx, kernel, contract, end),
        Shape::Stream(stream) => stream::schedule(cx, kernel, stream, end),
    };
    if !cx.staged.is_empty() {
        kernels.push(append::append(cx, kernel));
    }
    (kernels, end - partial + bytes)
}

/// A name with only letters, digits and underscores of ASCII, and no digit first.
fn identifier(name: &str) -> String {
    let mut text: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        text.insert(0, '_');
    }
    text
}
