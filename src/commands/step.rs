//! What a step of a loaded model takes.

use std::collections::HashSet;

use einfuse::Model;
use einfuse::codegen::cost::{Cost, Work};
use einfuse::codegen::fuse::{Kernel, Plan};
use einfuse::codegen::{Batch, Compiled, Format, Scheduled};
use einfuse::graph::TensorId;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) tokens: usize,
    /// How many positions come before.
    pub(crate) past: usize,
    /// Of how many tokens the logits are wanted.
    pub(crate) wanted: usize,
}

impl Step {
    pub(crate) fn batch(self, model: &Model) -> Batch {
        model.program().batch(self.tokens, self.past)
    }
}

/// What a step takes.
pub(crate) fn cost(model: &Model, step: Step) -> Cost {
    let of = costs(model, step);
    let kernels = model.program().plan(step.batch(model)).runs().into_iter();
    kernels.map(|(kernel, runs)| of(kernel, runs)).fold(Cost::default(), |a, b| a + b)
}

/// What all runs of a kernel take in a step, so many; nothing, if it is of another plan.
pub(crate) fn costs(model: &Model, step: Step) -> impl Fn(&Kernel, usize) -> Cost {
    costs_by(model, step, Plan::cost_of_runs)
}

/// What one run of a kernel takes in a step.
pub(crate) fn costs_of_one(model: &Model, step: Step) -> impl Fn(&Kernel) -> Cost {
    let of = costs_by(model, step, |plan, kernel, _, work| plan.cost(kernel, work));
    move |kernel| of(kernel, 1)
}

fn costs_by(
    model: &Model,
    step: Step,
    of: impl Fn(&Plan, &Kernel, usize, &Work<'_>) -> Cost,
) -> impl Fn(&Kernel, usize) -> Cost {
    let Step { tokens, past, wanted } = step;
    let program = model.program();
    let batch = step.batch(model);
    let plan = program.plan(batch);
    move |kernel, runs| {
        let element = |tensor| program.element(batch, kernel, tensor);
        let own = plan.scopes().into_iter().flatten().any(|of_plan| std::ptr::eq(of_plan, kernel));
        if own { of(plan, kernel, runs, &Work { tokens, past, wanted, element: &element }) } else { Cost::default() }
    }
}

/// The numbers, among the program's kernels, of those that run a kernel for so many tokens: in each layer those of the variant
/// that its weights want.
pub(crate) fn parts(model: &Model, kernel: &Kernel, batch: Batch) -> impl Iterator<Item = usize> {
    let program = model.program();
    let numbered = program.kernels().iter().enumerate();
    let of = move |c: &Compiled, batch| {
        c.batch == batch && std::ptr::eq(&program.plan(batch).scopes()[c.scope][c.index], kernel)
    };
    // What has no kernels of its own for a few has others'.
    let own = program.kernels().iter().any(|compiled| of(compiled, batch));
    let batch = if own { batch } else { program.like_few() };
    numbered.filter(move |(_, compiled)| of(compiled, batch)).map(|(number, _)| number)
}

/// How a kernel is scheduled for so many tokens.
pub(crate) fn schedule<'m>(model: &'m Model, kernel: &Kernel, batch: Batch) -> Option<&'m Scheduled> {
    let of = |batch: Batch| {
        let scopes = model.program().plan(batch).scopes();
        let mut all = model.program().schedules().iter();
        all.find(|s| s.batch == batch && std::ptr::eq(&scopes[s.scope][s.index], kernel))
    };
    // What has no schedule of its own for a few has another's.
    of(batch).or_else(|| of(model.program().like_few()))
}

/// How many numbers the model has learnt.
pub(crate) fn parameters(model: &Model) -> usize {
    let graph = &model.program().plan(Batch::One).graph;
    let packed = model.program().weights().iter();
    // a weight may be packed in more than one way
    let weights: HashSet<(TensorId, Option<usize>)> =
        packed.flat_map(|packed| packed.tensors.iter().map(|&tensor| (tensor, packed.layer))).collect();
    let elements =
        |tensor: TensorId| -> usize { graph.tensor(tensor).axes.iter().filter_map(|&axis| graph.size(axis)).product() };
    weights.into_iter().map(|(tensor, _)| elements(tensor)).sum()
}

/// How most of the model's weights are stored, which says what multiplies them.
pub(crate) fn storage(model: &Model) -> Format {
    let count = |storage: Format| -> f64 {
        let packed = model.program().weights().iter().filter(|packed| packed.storage == storage);
        packed.map(|packed| packed.bytes as f64 / storage.bytes()).sum()
    };
    Format::ALL.into_iter().max_by(|&a, &b| count(a).total_cmp(&count(b))).unwrap_or(Format::F32)
}

/// How most weights are stored, and the caches.
pub(crate) fn storages(model: &Model) -> [Format; 2] {
    [storage(model), model.program().options().cache]
}

/// How the weights are stored that have the fewest bits.
pub(crate) fn coarsest(model: &Model) -> Format {
    let storages = model.program().weights().iter().map(|packed| packed.storage);
    storages.min_by_key(|storage| storage.bits()).unwrap_or(Format::F32)
}
