//! Rule siblings: contractions of one activation over the same axes share a kernel, so that it is read and packed once.

use super::{Contract, Kernel, Plan, Remark, Rule, Shape};

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        let mut first = 0;
        while first < kernels.len() {
            let mut second = first + 1;
            while second < kernels.len() {
                if !same_activation(&kernels[first], &kernels[second]) {
                    second += 1;
                    continue;
                }
                let Some(place) = plan.meeting_place(kernels, first, second) else {
                    let other = kernels[second].name.clone();
                    let text = format!("`{other}` contracts the same activation, but needs what comes between");
                    kernels[first].declined.push(Remark { rule: Rule::Siblings, text });
                    second += 1;
                    continue;
                };
                let other = kernels.remove(second);
                merge(&mut kernels[first], other);
                if place == second {
                    let merged = kernels.remove(first);
                    kernels.insert(second - 1, merged);
                    first = 0;
                    second = 1;
                }
            }
            first += 1;
        }
    });
}

fn same_activation(a: &Kernel, b: &Kernel) -> bool {
    let (Shape::Contract(a), Shape::Contract(b)) = (&a.shape, &b.shape) else { return false };
    let (a, b) = (&a.tasks[0].contractions[0].1, &b.tasks[0].contractions[0].1);
    a.a == b.a && a.rows == b.rows && a.depth == b.depth && a.batch.is_empty() && b.batch.is_empty()
}

fn merge(into: &mut Kernel, other: Kernel) {
    let text = format!("`{}` and `{}` read one activation", into.name, other.name);
    into.name = format!("{}+{}", into.name, other.name);
    into.equations.extend(other.equations);
    into.equations.sort();
    into.applied.extend(other.applied);
    into.applied.push(Remark { rule: Rule::Siblings, text });
    into.declined.extend(other.declined);
    if let (Shape::Contract(Contract { tasks, .. }), Shape::Contract(more)) = (&mut into.shape, other.shape) {
        tasks.extend(more.tasks);
    }
}
