//! Rule tail: after the last layer only the rows whose output is wanted are computed.

use einfuse_graph::Expr;

use super::{Plan, Remark, Rule, Segment, Shape, Wanted, is_positions, is_tokens, loads_of};

pub(super) fn apply(plan: &mut Plan, wanted: Wanted) {
    match check(plan, wanted) {
        Err(why) => plan.remarks.push(Remark { rule: Rule::Tail, text: why }),
        Ok(()) => {
            if let Some(Segment::Once(kernels)) = plan.segments.last_mut() {
                for kernel in kernels {
                    kernel.last_rows = true;
                    let text = "only the wanted rows are computed".to_owned();
                    kernel.applied.push(Remark { rule: Rule::Tail, text });
                }
            }
        }
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
            if let Expr::Reduce { axes, .. } = graph.expr(equation.body)
                && axes.iter().any(|&a| is_tokens(graph, a) || is_positions(graph, a))
            {
                return Err(format!("declined: {} is reduced over the tokens", plan.quoted(equation.out)));
            }
            for tensor in graph.loaded(equation.body) {
                for index in loads_of(graph, equation.body, tensor) {
                    for (&axis, &i) in graph.tensor(tensor).axes.iter().zip(&index) {
                        if is_tokens(graph, axis) && *graph.expr(i) != Expr::Coordinate(axis) {
                            return Err(format!("declined: other rows of {} are read", plan.quoted(tensor)));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
