//! Rule rows: reductions and maps along the rows of one tensor share a pass.

use einfuse_graph::{AxisId, Expr};

use super::{Kernel, Plan, Remark, Rule, Shape, is_tokens, loads_of};

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        let mut first = 0;
        while first < kernels.len() {
            match step(plan, kernels, first) {
                Ok(()) => first = 0,
                Err(refused) => {
                    kernels[first].decline(Rule::Rows, refused);
                    first += 1;
                }
            }
        }
    });
}

/// A row that is kept while it is worked on has at most this many elements.
const LONGEST: usize = 1 << 16;

/// Joins a kernel to the one at `first`; or says why none of those that follow fits.
fn step(plan: &Plan, kernels: &mut Vec<Kernel>, first: usize) -> Result<(), Vec<String>> {
    let mut refused = Vec::new();
    for second in first + 1..kernels.len() {
        let (Shape::Rows, Shape::Rows) = (&kernels[first].shape, &kernels[second].shape) else { continue };
        if !plan.depends(&kernels[second], &kernels[first]) || plan.has_between(kernels, first, second) {
            continue;
        }
        let outcome = chain(plan, &kernels[first], &kernels[second]).and_then(|rows| {
            let place = plan.meeting_place(kernels, first, second);
            place.map(|place| (rows, place)).ok_or_else(|| "it needs what comes between".to_owned())
        });
        let (rows, place) = match outcome {
            Ok(joined) => joined,
            Err(why) => {
                if !why.is_empty() {
                    refused.push(format!("`{}` follows, but {why}", kernels[second].name));
                }
                continue;
            }
        };
        let other = kernels.remove(second);
        let mut kernel = kernels.remove(first);
        let text = format!("`{}` and `{}` share a pass over {}", kernel.name, other.name, plan.graph.names(&rows));
        kernel.absorb(other, Remark { rule: Rule::Rows, text });
        kernels.insert(if place == second { second - 1 } else { first }, kernel);
        return Ok(());
    }
    Err(refused)
}

/// The axes that two kernels' equations have in common and at which they read each other's values; or why there are none.
/// An empty reason where nothing is reduced, so that there is no chain to speak of.
fn chain(plan: &Plan, first: &Kernel, second: &Kernel) -> Result<Vec<AxisId>, String> {
    let graph = &plan.graph;
    let equations: Vec<usize> = first.equations.iter().chain(&second.equations).copied().collect();
    let rows = common_rows(plan, &equations);
    let reduces = equations.iter().any(|&e| matches!(graph.expr(plan.equations[e].body), Expr::Reduce { .. }));
    if !reduces {
        return Err(String::new());
    }
    if rows.is_empty() {
        return Err("they have no axis in common".to_owned());
    }
    for &e in &equations {
        let equation = plan.equations[e];
        let mut axes = graph.tensor(equation.out).axes.clone();
        if let Expr::Reduce { axes: summed, .. } = graph.expr(equation.body) {
            axes.extend(summed);
        }
        // Only the tokens are shared out row by row; along any other axis a row is kept whole.
        let kept = |a: &&AxisId| graph.size(**a).is_none() && !(rows.contains(a) && is_tokens(graph, **a));
        if let Some(&a) = axes.iter().find(kept) {
            return Err(format!("the rows grow with `{}`", graph.axis(a).name));
        }
        let shared = rows.iter().find(|&&a| is_tokens(graph, a));
        let row: usize = graph
            .tensor(equation.out)
            .axes
            .iter()
            .filter(|a| Some(*a) != shared)
            .filter_map(|&a| graph.size(a))
            .product();
        if row > LONGEST {
            return Err(format!("a row of {} is longer than {LONGEST}", plan.quoted(equation.out)));
        }
        for &p in &equations {
            let made = plan.equations[p].out;
            plan.check_own_rows(e, made)?;
            for index in loads_of(graph, equation.body, made) {
                for (&axis, &i) in graph.tensor(made).axes.iter().zip(&index) {
                    if rows.contains(&axis) && *graph.expr(i) != Expr::Coordinate(axis) {
                        return Err(format!("it reads other rows along `{}`", graph.axis(axis).name));
                    }
                }
            }
        }
    }
    Ok(rows)
}

/// The axes that all results have: the tokens first, the others in the order of the first result.
pub(crate) fn common_rows(plan: &Plan, equations: &[usize]) -> Vec<AxisId> {
    let axes = |e: &usize| &plan.graph.tensor(plan.equations[*e].out).axes;
    let Some(first) = equations.first() else { return Vec::new() };
    let summed = |a: &AxisId| {
        equations
            .iter()
            .any(|&e| matches!(plan.graph.expr(plan.equations[e].body), Expr::Reduce { axes, .. } if axes.contains(a)))
    };
    let common = |a: &&AxisId| equations.iter().all(|e| axes(e).contains(a)) && !summed(a);
    let mut rows: Vec<AxisId> = axes(first).iter().filter(common).copied().collect();
    rows.sort_by_key(|&a| !is_tokens(&plan.graph, a));
    rows
}
