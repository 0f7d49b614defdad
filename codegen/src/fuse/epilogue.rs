//! Rule epilogue: what is computed from a contraction's result tile by tile joins its kernel.

use std::collections::BTreeSet;

use einfuse_graph::{AxisId, Expr};

use super::{Contract, EqId, Kernel, Plan, Remark, Rule, Shape, Task, is_tokens, loads_of};

/// A tile holds at most this many columns.
const WIDEST: usize = 512;

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        let mut at = 0;
        while at < kernels.len() {
            match step(plan, kernels, at) {
                Ok(()) => at = 0,
                Err(refused) => {
                    kernels[at].decline(Rule::Epilogue, refused);
                    at += 1;
                }
            }
        }
    });
}

/// Joins one equation to the contraction kernel at `k`; or says why none of those that follow fits.
fn step(plan: &Plan, kernels: &mut Vec<Kernel>, k: usize) -> Result<(), Vec<String>> {
    let mut refused = Vec::new();
    let Shape::Contract(contract) = &kernels[k].shape else { return Err(refused) };
    for j in k + 1..kernels.len() {
        if !plan.depends(&kernels[j], &kernels[k]) || plan.has_between(kernels, k, j) {
            continue;
        }
        let follows = format!("`{}` follows", kernels[j].name);
        let eq = match (&kernels[j].shape, &kernels[j].equations[..]) {
            (Shape::Rows, [eq]) => *eq,
            (Shape::Stream(stream), _) => {
                let s = &plan.graph.axis(stream.positions).name;
                refused.push(format!("{follows}, but it reads other rows, along all of `{s}`"));
                continue;
            }
            _ => continue,
        };
        let joined = join(plan, contract, eq).and_then(|task| match plan.meeting_place(kernels, k, j) {
            Some(place) => Ok((task, place)),
            None => Err("it needs what comes between".to_owned()),
        });
        let ((touched, task), place) = match joined {
            Ok(joined) => joined,
            Err(why) => {
                refused.push(format!("{follows}, but {why}"));
                continue;
            }
        };
        let other = kernels.remove(j);
        let mut kernel = kernels.remove(k);
        if let Shape::Contract(contract) = &mut kernel.shape {
            let mut at = 0;
            contract.tasks.retain(|_| {
                at += 1;
                !touched.contains(&(at - 1))
            });
            contract.tasks.insert(touched[0].min(contract.tasks.len()), task);
        }
        let text = format!("`{}` is computed from the tile", other.name);
        kernel.absorb(other, Remark { rule: Rule::Epilogue, text });
        kernels.insert(if place == j { j - 1 } else { k }, kernel);
        return Ok(());
    }
    Err(refused)
}

/// The task that computes `eq` from its tile, made of those that it reads; or why there can be none.
fn join(plan: &Plan, contract: &Contract, eq: EqId) -> Result<(Vec<usize>, Task), String> {
    let graph = &plan.graph;
    let equation = plan.equations[eq];
    let name = |a: &AxisId| format!("`{}`", graph.axis(*a).name);
    let reads = plan.reads(eq);
    let touched: Vec<usize> = (0..contract.tasks.len())
        .filter(|&t| contract.tasks[t].equations().iter().any(|&e| reads.contains(&plan.equations[e].out)))
        .collect();
    let first = &contract.tasks[touched[0]].contractions[0].1;
    let mut task = Task { contractions: Vec::new(), epilogue: vec![eq], whole: Vec::new() };
    let mut whole = BTreeSet::new();
    for &t in &touched {
        let other = &contract.tasks[t];
        let c = &other.contractions[0].1;
        if c.cols != first.cols || c.batch != first.batch {
            let (a, b) = (graph.names(&first.cols), graph.names(&c.cols));
            return Err(format!("it joins results over the columns {a} and {b}"));
        }
        task.contractions.extend(other.contractions.iter().cloned());
        task.epilogue.extend(&other.epilogue);
        whole.extend(&other.whole);
    }
    task.contractions.sort_by_key(|(e, _)| *e);
    task.epilogue.sort();

    let summed: &[AxisId] = match graph.expr(equation.body) {
        Expr::Reduce { axes, .. } => axes,
        _ => &[],
    };
    // The rows of a token stay together, so that other axes of rows than the tokens can be reduced.
    let tokens = |a: &&AxisId| is_tokens(graph, **a);
    let fixed: Vec<AxisId> = first.rows.iter().filter(tokens).chain(&first.batch).copied().collect();
    if let Some(a) = summed.iter().find(|a| fixed.contains(a)) {
        return Err(format!("it reduces over the rows' axis {}", name(a)));
    }
    whole.extend(summed.iter().filter(|a| first.cols.contains(a)));
    for &t in &touched {
        for tile in contract.tasks[t].equations().iter().map(|&e| plan.equations[e].out) {
            for index in loads_of(graph, equation.body, tile) {
                for (&axis, &i) in graph.tensor(tile).axes.iter().zip(&index) {
                    if *graph.expr(i) == Expr::Coordinate(axis) {
                        continue;
                    }
                    if !first.cols.contains(&axis) {
                        return Err(format!("it reads other rows along {}", name(&axis)));
                    }
                    whole.insert(axis);
                }
            }
        }
    }
    let out_axes = &graph.tensor(equation.out).axes;
    let of_tile = |a: &AxisId| first.rows.contains(a) || first.batch.contains(a) || first.cols.contains(a);
    if let Some(a) = out_axes.iter().chain(summed).find(|a| !of_tile(a)) {
        return Err(format!("it has the axis {}, which the tile has not", name(a)));
    }
    let per_tile = fixed.iter().chain(first.cols.iter().filter(|a| !whole.contains(a)));
    if let Some(a) = per_tile.clone().find(|a| !out_axes.contains(a)) {
        return Err(format!("it does not have the axis {}", name(a)));
    }
    let mut tiles = touched.iter().flat_map(|&t| contract.tasks[t].equations());
    tiles.try_for_each(|e| plan.check_own_rows(eq, plan.equations[e].out))?;
    if !whole.is_empty() && first.cols.iter().all(|a| whole.contains(a)) {
        return Err("it needs the result's whole rows in one tile".to_owned());
    }
    let columns: usize = whole.iter().filter_map(|&a| graph.size(a)).product();
    if columns > WIDEST {
        return Err(format!("it needs {columns} columns in one tile, more than {WIDEST}"));
    }
    task.whole = whole.into_iter().collect();
    Ok((touched, task))
}

impl Task {
    /// All its equations.
    pub fn equations(&self) -> Vec<EqId> {
        self.contractions.iter().map(|(e, _)| *e).chain(self.epilogue.iter().copied()).collect()
    }
}
