//! Rule tail: in the last layer, behind what goes into its caches, and after it only the rows whose output is wanted are computed.

use einfuse_graph::{AxisId, Expr, Graph, TensorId};

use super::{EqId, Kernel, Plan, Remark, Rule, Segment, Shape, Wanted, is_positions, is_tokens, loads_of};

pub(super) fn apply(plan: &mut Plan, wanted: Wanted) {
    if let Err(why) = check(plan, wanted) {
        return plan.remarks.push(Remark { rule: Rule::Tail, text: why });
    }
    if let Some(Segment::Once(kernels)) = plan.segments.last_mut() {
        for kernel in kernels {
            kernel.last_rows = true;
            let text = "only the wanted rows are computed".to_owned();
            kernel.applied.push(Remark { rule: Rule::Tail, text });
        }
    }
    let Some((mut kernels, result)) = plan.last_body().map(|(kernels, result)| (std::mem::take(kernels), *result))
    else {
        return;
    };
    // Of those that come after, what may be read of the wanted rows alone.
    let mut after: Vec<EqId> = Vec::new();
    for kernel in kernels.iter_mut().rev() {
        if is_for_own_rows(plan, kernel, result, &after) {
            after.extend(&kernel.equations);
            kernel.last_layer = true;
            let text = "in the last layer only the wanted rows are computed".to_owned();
            kernel.applied.push(Remark { rule: Rule::Tail, text });
        }
    }
    if let Some(body) = plan.last_body() {
        body.0 = kernels;
    }
}

fn check(plan: &Plan, wanted: Wanted) -> Result<(), String> {
    if wanted == Wanted::All {
        return Err("declined: all rows are wanted".to_owned());
    }
    let graph = &plan.graph;
    if plan.segments.len() < 2 {
        return Err("declined: there are no layers".to_owned());
    }
    let Some(Segment::Once(kernels)) = plan.segments.last() else { return Ok(()) };
    if !graph.tensor(graph.output).axes.iter().any(|&a| is_tokens(graph, a)) {
        return Err(format!("declined: {} has no tokens' axis", plan.quoted(graph.output)));
    }
    for kernel in kernels {
        if let Shape::Stream(_) = kernel.shape {
            return Err(format!("declined: `{}` streams over positions after the layers", kernel.name));
        }
        for &e in &kernel.equations {
            let equation = plan.equations[e];
            if plan.states.contains_key(&equation.out) {
                return Err(format!("declined: {} goes into a cache after the layers", plan.quoted(equation.out)));
            }
            if reduces(plan, e, |a| is_tokens(graph, a) || is_positions(graph, a)) {
                return Err(format!("declined: {} is reduced over the tokens", plan.quoted(equation.out)));
            }
            if let Some(tensor) = graph.loaded(equation.body).into_iter().find(|&t| !reads_own_row(plan, e, t)) {
                return Err(format!("declined: other rows of {} are read", plan.quoted(tensor)));
            }
        }
    }
    Ok(())
}

/// Whether a kernel of the layers' body is read row by row alone: by itself, and by such equations after it.
fn is_for_own_rows(plan: &Plan, kernel: &Kernel, result: TensorId, after: &[EqId]) -> bool {
    let graph = &plan.graph;
    kernel.equations.iter().all(|&e| {
        let out = plan.equations[e].out;
        let by_tokens = graph.tensor(out).axes.iter().any(|&a| is_tokens(graph, a));
        let kept = plan.states.contains_key(&out) || (out != result && plan.escapes(out));
        let mut readers = plan.consumers(out).into_iter();
        by_tokens
            && !kept
            && readers.all(|reader| {
                (kernel.equations.contains(&reader) || after.contains(&reader))
                    && reads_own_row(plan, reader, out)
                    && !reduces(plan, reader, |a| is_tokens(graph, a))
            })
    })
}

/// Whether an equation reads a tensor at its own token alone.
fn reads_own_row(plan: &Plan, eq: EqId, tensor: TensorId) -> bool {
    let graph: &Graph = &plan.graph;
    loads_of(graph, plan.equations[eq].body, tensor).iter().all(|index| {
        let mut along = graph.tensor(tensor).axes.iter().zip(index);
        along.all(|(&axis, &i)| !is_tokens(graph, axis) || *graph.expr(i) == Expr::Coordinate(axis))
    })
}

/// Whether an equation reduces over such an axis.
fn reduces(plan: &Plan, eq: EqId, such: impl Fn(AxisId) -> bool) -> bool {
    matches!(plan.graph.expr(plan.equations[eq].body), Expr::Reduce { axes, .. } if axes.iter().any(|&a| such(a)))
}
