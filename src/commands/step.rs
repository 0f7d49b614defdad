//! What a step of a loaded model takes.

use std::collections::{HashMap, HashSet};

use einfuse::Model;
use einfuse::codegen::cost::{Cost, Work};
use einfuse::graph::TensorId;

/// Bytes in which an element of each weight is kept.
pub(crate) fn weight_elements(model: &Model) -> HashMap<TensorId, usize> {
    let weights = model.program().weights().iter();
    weights.flat_map(|packed| packed.tensors.iter().map(|&tensor| (tensor, packed.storage.bytes()))).collect()
}

/// What a step of so many tokens takes, after so many positions.
pub(crate) fn cost(model: &Model, tokens: usize, past: usize) -> Cost {
    let elements = weight_elements(model);
    let work = Work { tokens, past, weight_element: &|tensor| elements.get(&tensor).copied().unwrap_or(4) };
    let plan = model.program().plan();
    let kernels = plan.runs().into_iter();
    kernels.map(|(kernel, times)| plan.cost(kernel, &work) * times).fold(Cost::default(), |a, b| a + b)
}

/// How many numbers the model has learnt.
pub(crate) fn parameters(model: &Model) -> usize {
    let graph = &model.program().plan().graph;
    let packed = model.program().weights().iter();
    // a weight may be packed in more than one way
    let weights: HashSet<(TensorId, Option<usize>)> =
        packed.flat_map(|packed| packed.tensors.iter().map(|&tensor| (tensor, packed.layer))).collect();
    let elements =
        |tensor: TensorId| -> usize { graph.tensor(tensor).axes.iter().filter_map(|&axis| graph.size(axis)).product() };
    weights.into_iter().map(|(tensor, _)| elements(tensor)).sum()
}
