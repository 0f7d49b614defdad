//! Rule prologue: what computes a contraction's activation row by row joins its kernel; and the equation of a weight that is
//! made of codes joins the kernels that read it, whose cores multiply the codes, or who look up rows.

use einfuse_graph::{Expr, TensorId};

use super::{Blocks, Contraction, EqId, Kernel, Plan, Remark, Rule, Shape, is_tokens, loads_of};

/// A row that a kernel computes for itself has at most this many elements.
const LONGEST: usize = 1 << 15;

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        let mut at = 0;
        while at < kernels.len() {
            let producer = producer(plan, kernels, at);
            let Some(p) = producer else {
                at += 1;
                continue;
            };
            let made = plan.names(&plan.outputs(&kernels[p]));
            match fits(plan, &kernels[p], &kernels[at]) {
                Err(why) => {
                    let text = format!("`{made}` could be computed here, but {why}");
                    kernels[at].declined.push(Remark { rule: Rule::Prologue, text });
                    at += 1;
                }
                Ok(()) => {
                    let other = kernels.remove(p);
                    at -= 1;
                    let kernel = &mut kernels[at];
                    let text = format!("`{made}` is computed row by row before it is contracted");
                    if let Shape::Contract(contract) = &mut kernel.shape {
                        contract.prologue.extend(&other.equations);
                        contract.prologue.sort();
                    }
                    kernel.absorb(other, Remark { rule: Rule::Prologue, text });
                    at += 1;
                }
            }
        }
        kernels.iter_mut().for_each(|kernel| take_weights(plan, kernel));
    });
}

/// Takes the equations of weights into a kernel that reads them: where each of its contractions of a weight sums along the
/// weight's blocks.
fn take_weights(plan: &Plan, kernel: &mut Kernel) {
    let contractions: Vec<&Contraction> = match &kernel.shape {
        Shape::Contract(contract) => contract.tasks.iter().flat_map(|t| &t.contractions).map(|(_, c)| c).collect(),
        Shape::Stream(stream) => stream.expansions().map(|(_, c)| c).collect(),
        Shape::Rows => Vec::new(),
    };
    let mut read: Vec<TensorId> =
        kernel.equations.iter().flat_map(|&e| plan.graph.loaded(plan.equations[e].body)).collect();
    read.sort();
    read.dedup();
    let mut made: Vec<(EqId, TensorId)> = Vec::new();
    for weight in read {
        let mut ways: Vec<(EqId, Blocks)> =
            plan.made.iter().filter(|((of, _), _)| *of == weight).map(|(_, way)| *way).collect();
        ways.sort_by_key(|(eq, _)| *eq);
        for (eq, blocks) in ways {
            // Element by element, codes are read out of panels along the weight's last axes.
            let axes = &plan.graph.tensor(weight).axes;
            let are_last = blocks.first > 0 && blocks.dims().end == axes.len();
            let mut of = contractions.iter().filter(|c| c.b == weight).peekable();
            match if of.peek().is_some() { of.all(|c| blocks.suit(&plan.graph, c)) } else { are_last } {
                true => made.push((eq, weight)),
                false => {
                    let along = axes[blocks.dims()].iter().map(|&axis| plan.graph.axis(axis).name.as_str());
                    let along = along.collect::<Vec<_>>().join("·");
                    let text = format!("{} has its blocks along `{along}`, which is not summed", plan.quoted(weight));
                    if !kernel.declined.iter().any(|remark| remark.text == text) {
                        kernel.declined.push(Remark { rule: Rule::Prologue, text });
                    }
                }
            }
        }
    }
    if made.is_empty() {
        return;
    }
    let mut names: Vec<String> = made.iter().map(|(_, weight)| plan.quoted(*weight)).collect();
    names.dedup();
    let how = if contractions.is_empty() { "read" } else { "multiplied" };
    let text = format!("{} {how} as codes, scaled block by block", names.join(", "));
    kernel.applied.push(Remark { rule: Rule::Prologue, text });
    kernel.weights = made.into_iter().map(|(eq, _)| eq).collect();
}

/// The kernel that computes the activation of the contraction kernel at `at`.
fn producer(plan: &Plan, kernels: &[Kernel], at: usize) -> Option<usize> {
    let Shape::Contract(contract) = &kernels[at].shape else { return None };
    let a = contract.tasks[0].contractions[0].1.a;
    (0..at).find(|&p| kernels[p].equations.iter().any(|&e| plan.equations[e].out == a))
}

fn fits(plan: &Plan, producer: &Kernel, kernel: &Kernel) -> Result<(), String> {
    let graph = &plan.graph;
    let Shape::Contract(contract) = &kernel.shape else { return Err(String::new()) };
    match producer.shape {
        Shape::Rows => {}
        Shape::Contract(_) => return Err("it is a contraction, which each tile of columns would repeat".to_owned()),
        Shape::Stream(_) => return Err("it is a stream, which each tile of columns would repeat".to_owned()),
    }
    if let Some((_, by)) = contract.tasks[0].contractions[0].1.chosen {
        return Err(format!("the rows are grouped by {}", plan.quoted(by)));
    }
    let Some(&tokens) = contract.tasks[0].contractions[0].1.rows.iter().find(|&&a| is_tokens(graph, a)) else {
        return Err("the contraction has no tokens' axis".to_owned());
    };
    let outputs = plan.outputs(producer);
    for &out in &outputs {
        if let Some(elsewhere) = plan.needed_outside(out, &kernel.equations) {
            let which = if outputs.len() == 1 { "it".to_owned() } else { plan.quoted(out) };
            return Err(format!("{which} {elsewhere}"));
        }
    }
    for &e in &producer.equations {
        let equation = plan.equations[e];
        let axes = &graph.tensor(equation.out).axes;
        if !axes.contains(&tokens) {
            return Err(format!("{} has no tokens' axis", plan.quoted(equation.out)));
        }
        let size = axes.iter().filter(|&&a| a != tokens).try_fold(1usize, |n, &a| Some(n * graph.size(a)?));
        if size.is_none_or(|n| n > LONGEST) {
            return Err(format!("a row of {} is longer than {LONGEST}", plan.quoted(equation.out)));
        }
    }
    for &e in producer.equations.iter().chain(&kernel.equations) {
        for &p in &producer.equations {
            let made = plan.equations[p].out;
            for index in loads_of(graph, plan.equations[e].body, made) {
                let at = graph.tensor(made).axes.iter().position(|&a| a == tokens);
                if at.is_some_and(|at| *graph.expr(index[at]) != Expr::Coordinate(tokens)) {
                    return Err(format!("other rows of {} are read", plan.quoted(made)));
                }
            }
            if let Expr::Reduce { axes, .. } = graph.expr(plan.equations[e].body)
                && axes.contains(&tokens)
            {
                return Err(format!("{} is reduced over the tokens", plan.quoted(made)));
            }
        }
    }
    Ok(())
}
