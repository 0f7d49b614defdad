//! Rule siblings: contractions of one activation over the same axes share a kernel, so that it is read and packed once.

use super::{Contraction, Kernel, Plan, Remark, Rule, Shape};

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        let mut first = 0;
        while first < kernels.len() {
            let mut second = first + 1;
            while second < kernels.len() {
                match fits(plan, &kernels[first], &kernels[second]) {
                    None => second += 1,
                    Some(Err(why)) => {
                        let text = format!("`{}` contracts the same activation, but {why}", kernels[second].name);
                        kernels[first].declined.push(Remark { rule: Rule::Siblings, text });
                        second += 1;
                    }
                    // Both need the activation alone, so the second can come as early as the first.
                    Some(Ok(())) => {
                        let other = kernels.remove(second);
                        merge(&mut kernels[first], other);
                    }
                }
            }
            first += 1;
        }
    });
}

/// Whether two kernels that contract the same activation do it alike, or why not; `None` if they don't contract the same.
fn fits(plan: &Plan, a: &Kernel, b: &Kernel) -> Option<Result<(), String>> {
    let one = |kernel: &Kernel| -> Option<Contraction> {
        let Shape::Contract(contract) = &kernel.shape else { return None };
        Some(contract.tasks[0].contractions[0].1.clone())
    };
    let (a, b) = (one(a)?, one(b)?);
    let graph = &plan.graph;
    if a.a != b.a {
        return None;
    }
    if a.depth != b.depth {
        let (depth, other) = (graph.names(&b.depth), graph.names(&a.depth));
        return Some(Err(format!("over {depth}, not over {other}")));
    }
    if a.chosen != b.chosen {
        let by = |c: &Contraction| match c.chosen {
            Some((_, by)) => format!("chosen by {}", plan.quoted(by)),
            None => "the same for all rows".to_owned(),
        };
        return Some(Err(format!("its weight is {}, not {}", by(&b), by(&a))));
    }
    if let Some(&axis) = a.batch.iter().chain(&b.batch).next() {
        return Some(Err(format!("the weights are others for each `{}`", graph.axis(axis).name)));
    }
    Some(Ok(()))
}

fn merge(into: &mut Kernel, mut other: Kernel) {
    let text = format!("`{}` and `{}` read one activation", into.name, other.name);
    into.name = format!("{}+{}", into.name, other.name);
    if let (Shape::Contract(own), Shape::Contract(more)) = (&mut into.shape, &mut other.shape) {
        own.tasks.append(&mut more.tasks);
    }
    into.absorb(other, Remark { rule: Rule::Siblings, text });
}
