//! Rule select-contract: a contraction whose weight each row chooses by an integer, as the experts of a mixture are chosen.
//!
//! One token reads the weights that it chose, and no others. The rows of several are grouped by what they chose, so that each
//! weight in use is read once and multiplied with all rows that want it. Nothing is gathered but rows.

use einfuse_graph::{Expr, ExprId, Reduction, TensorId};

use super::contraction::Along;
use super::{Contract, Contraction, EqId, Plan, Remark, Rule, Shape, factors, is_tokens};

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        for kernel in kernels {
            let (Shape::Rows, [eq]) = (&kernel.shape, &kernel.equations[..]) else { continue };
            let Some((weight, index)) = chosen(plan, *eq) else { continue };
            match fits(plan, *eq, weight, &index) {
                Ok((contraction, by)) => {
                    let (weight, by) = (plan.quoted(weight), plan.quoted(by));
                    let text = format!("only what {by} chooses of {weight} is read; many rows are grouped by it");
                    kernel.shape = Shape::Contract(Contract::of(*eq, contraction));
                    kernel.applied.push(Remark { rule: Rule::SelectContract, text });
                }
                Err(why) => kernel.declined.push(Remark { rule: Rule::SelectContract, text: why }),
            }
        }
    });
}

/// The weight in a sum of products one of whose indices is another tensor's element, or made of some, and its indices.
fn chosen(plan: &Plan, eq: EqId) -> Option<(TensorId, Vec<ExprId>)> {
    let graph = &plan.graph;
    let Expr::Reduce { op: Reduction::Sum, body, .. } = graph.expr(plan.equations[eq].body) else { return None };
    factors(graph, *body).into_iter().find_map(|factor| {
        let Expr::Load { tensor, index } = graph.expr(factor) else { return None };
        let is_chosen = graph.is_weight(*tensor) && index.iter().any(|&i| !graph.loaded(i).is_empty());
        is_chosen.then(|| (*tensor, index.clone()))
    })
}

/// The contraction and what chooses, or why there is none.
fn fits(plan: &Plan, eq: EqId, weight: TensorId, index: &[ExprId]) -> Result<(Contraction, TensorId), String> {
    let graph = &plan.graph;
    let name = plan.quoted(weight);
    let mut along = Vec::new();
    for (&axis, &i) in graph.tensor(weight).axes.iter().zip(index) {
        match Along::of(graph, axis, i) {
            Some(Along::Axis { .. } | Along::Fixed(_)) => {}
            Some(Along::Chosen(_)) => along.push(format!("`{}`", graph.axis(axis).name)),
            None => {
                let axis = &graph.axis(axis).name;
                return Err(format!("`{axis}` of {name} is chosen by an expression, not by a tensor of integers"));
            }
        }
    }
    if along.len() > 1 {
        return Err(format!("{name} is chosen along {}, not along one axis", along.join(" and ")));
    }
    let equation = plan.equations[eq];
    let Some(c) = Contraction::of(graph, equation.out, equation.body) else {
        return Err(format!("{name} is chosen, but this is no contraction of it with one activation"));
    };
    let Some((_, by)) = c.chosen else {
        return Err(format!("{name} is chosen, but the sum is over another stored operand"));
    };
    if let Some(&axis) = c.batch.first() {
        let axis = &graph.axis(axis).name;
        return Err(format!("{name} is chosen, but of each `{axis}` another part is contracted"));
    }
    if !c.rows.first().is_some_and(|&a| is_tokens(graph, a)) {
        return Err(format!("{name} is chosen, but the tokens are not the first axis of the result"));
    }
    match c.has_core(graph) {
        true => Ok((c, by)),
        false => Err(format!("{name} is chosen, but its activation does not lie row by row")),
    }
}
