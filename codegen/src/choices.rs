//! What a step's rows choose: the integers by which parts of weights are selected, for who wants to look at them.

use std::collections::HashMap;

use einfuse_graph::{AxisId, Expr, Extent, Kind, TensorId, Type};

use crate::compile::{Base, Batch, Compiled};
use crate::fuse::Plan;
use crate::loops::Buffer;
use crate::schedule::place::Memory;

/// A tensor of integers that chooses parts of weights, as a router chooses experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The tensor.
    pub by: TensorId,
    /// The axis of which it has coordinates.
    pub axis: AxisId,
}

/// Is told what the tokens of a step choose: the choice, the layer that makes it, and the coordinates, `[t, …]` in the order
/// of the tensor's axes. What is chosen behind the last layer is told of the tokens whose output is wanted.
pub type ChoiceObserver<'a> = &'a mut (dyn FnMut(Choice, Option<usize>, &[i32]) + Send);

/// Where a choice is after a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    pub(crate) choice: Choice,
    /// Bytes from the start of the arena.
    pub(crate) at: usize,
    /// Coordinates of a token.
    pub(crate) row: usize,
    /// Whether the tokens before the first whose output is wanted are left out.
    pub(crate) from_first: bool,
}

impl Plan {
    /// The tensors that choose parts of weights, each once. Those that are computed on the way are not among them.
    pub fn choices(&self) -> Vec<Choice> {
        let graph = &self.graph;
        let mut all: Vec<Choice> = Vec::new();
        for expr in self.equations.iter().flat_map(|equation| graph.reachable(equation.body)) {
            let Expr::Load { tensor, index } = graph.expr(expr) else { continue };
            if !graph.is_weight(*tensor) {
                continue;
            }
            for (&axis, &i) in graph.tensor(*tensor).axes.iter().zip(index) {
                let Expr::Load { tensor: by, .. } = *graph.expr(i) else { continue };
                let is_value = graph.tensor(by).kind == Kind::Value && graph.tensor(by).ty == Type::Int;
                if is_value && !all.iter().any(|choice| choice.by == by) {
                    all.push(Choice { by, axis });
                }
            }
        }
        all
    }
}

/// For each kernel the choices that it makes, where they lie token by token. A choice has the name that it has in the plan for
/// one token.
pub(crate) fn watched(base: &Base, compiled: &[Compiled]) -> HashMap<usize, Vec<Watched>> {
    let mut all: HashMap<usize, Vec<Watched>> = HashMap::new();
    let names = &base.planned(Batch::One).plan.graph.tensors;
    for planned in base.all() {
        let (plan, homes) = (&planned.plan, &planned.homes);
        let choices = plan.choices();
        let own = |c: &Compiled| std::ptr::eq(base.planned(c.batch), planned);
        for (number, kernel) in compiled.iter().enumerate().filter(|(_, c)| own(c)) {
            let outputs = plan.outputs(&plan.scopes()[kernel.scope][kernel.index]);
            for choice in choices.iter().filter(|choice| outputs.contains(&choice.by)) {
                let tensor = plan.graph.tensor(choice.by);
                let Some(place) = homes.places[kernel.scope].get(&choice.by) else { continue };
                let Memory::Flat(Buffer::Arena(at)) = place.memory else { continue };
                let Some(by) = names.iter().position(|named| named.name == tensor.name) else { continue };
                if tensor.axes.first().is_some_and(|&a| plan.graph.axis(a).extent == Extent::Tokens) {
                    let row = tensor.axes.iter().filter_map(|&a| plan.graph.size(a)).product();
                    let choice = Choice { by: TensorId(by as u32), axis: choice.axis };
                    let from_first = place.is_from_first();
                    all.entry(number).or_default().push(Watched { choice, at, row, from_first });
                }
            }
        }
    }
    all
}
