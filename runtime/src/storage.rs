//! How each weight is to be kept in memory.

use std::collections::{BTreeSet, HashMap};

use einfuse_codegen::{Format, Kept};
use einfuse_graph::{AxisId, Binary, Expr, ExprId, Extent, Graph, Node, Reduction, TensorId};

use crate::checkpoint::{Numbers, Stored};
use crate::model::{Place, Precision, Quant, Settings};

/// How each weight is to be kept, in each layer as its file tensors there allow it.
pub(crate) fn storage(graph: &Graph, found: &HashMap<Place, Stored<'_>>, settings: &Settings) -> HashMap<Place, Kept> {
    let outputs = &graph.tensor(graph.output).axes;
    let is_last = |tensor: TensorId| graph.tensor(tensor).axes.iter().any(|axis| outputs.contains(axis));
    let decisive = decisive(graph);
    let kept = |tensor: TensorId, stored: &Stored<'_>| -> Kept {
        let (order, is_matrix) = (stored.order, stored.rank >= 2);
        let own = stored.grid().and_then(|grid| Format::holding(&grid));
        let format = match (settings.quant, settings.precision, own) {
            (Some(Quant::Q4), ..) if is_matrix && !is_last(tensor) && !decisive.contains(&tensor) => Format::Q4,
            (Some(_), ..) if is_matrix => Format::Q8,
            (_, Precision::Stored, Some(format)) => return Kept { format, own: true, order },
            (_, Precision::Bf16, _) if is_matrix => Format::Bf16,
            (_, Precision::Stored | Precision::Bf16, _) if stored.parts.iter().all(Numbers::is_narrow) => Format::Bf16,
            _ => Format::F32,
        };
        Kept { format, own: false, order }
    };
    found.iter().map(|(&(tensor, layer), stored)| ((tensor, layer), kept(tensor, stored))).collect()
}

/// The weights of which few bits cost most: those that make nothing but rows of a cache that are added up over positions, as
/// attention's values are, and those that make nothing but the numbers of which the largest is chosen, as the scores of experts
/// are. Of what 4 bits cost SmolLM2 and Gemma 3 270M, the values' 3 % of the weights make 20 to 30 %.
fn decisive(graph: &Graph) -> BTreeSet<TensorId> {
    let is_tokens = |axis: &AxisId| graph.axis(*axis).extent == Extent::Tokens;
    let mut added: BTreeSet<TensorId> = BTreeSet::new();
    let mut chosen: BTreeSet<AxisId> = BTreeSet::new();
    for id in graph.equations().flat_map(|(_, body)| graph.reachable(body)) {
        match graph.expr(id) {
            Expr::Reduce { op: Reduction::Sum, axes, body }
                if axes.iter().any(|&axis| graph.axis(axis).extent == Extent::Positions) =>
            {
                let factors = factors(graph, *body).into_iter();
                added.extend(factors.filter(|&tensor| !graph.tensor(tensor).axes.iter().any(is_tokens)));
            }
            Expr::Reduce { op: Reduction::ArgMax, axes, .. } => chosen.extend(axes),
            _ => {}
        }
    }
    let rows: BTreeSet<TensorId> = graph
        .all_nodes()
        .filter_map(|node| match node {
            Node::Append { state, rows } if added.contains(state) => Some(*rows),
            _ => None,
        })
        .collect();
    let is_decisive = |out: TensorId| {
        added.contains(&out) || rows.contains(&out) || graph.tensor(out).axes.iter().any(|axis| chosen.contains(axis))
    };
    let read = |decisive: bool| -> BTreeSet<TensorId> {
        let those = graph.equations().filter(|(out, _)| is_decisive(*out) == decisive);
        those.flat_map(|(_, body)| graph.loaded(body)).collect()
    };
    read(true).difference(&read(false)).copied().filter(|&tensor| graph.is_weight(tensor)).collect()
}

/// The tensors that an expression multiplies, wherever a mask lets it.
fn factors(graph: &Graph, id: ExprId) -> Vec<TensorId> {
    match graph.expr(id) {
        Expr::Binary(Binary::Mul, a, b) => [*a, *b].into_iter().flat_map(|id| factors(graph, id)).collect(),
        Expr::Select { then, otherwise, .. } => {
            [*then, *otherwise].into_iter().flat_map(|id| factors(graph, id)).collect()
        }
        Expr::Load { tensor, .. } => vec![*tensor],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_scores_of_experts_are_decisive() {
        let graph = einfuse_graph::parse(
            r#"
graph experts_after_attention

axis t = tokens
axis d = 8
axis n = 2
axis c = 4
axis e = 4
axis f = 16
axis v = 16
axis s = positions

input tokens[t]
weight embed[v, d] = "embed"
weight wq[n, c, d] = "q"
weight wk[n, c, d] = "k"
weight wv[n, c, d] = "v"
weight wo[d, n, c] = "o"
weight router[e, d] = "router"
weight up[e, f, d] = "up"
weight down[e, d, f] = "down"
state k.cache[s, n, c]
state u.cache[s, n, c] within 8

x[t, d] = embed[v = tokens]
q[t, n, c] = sum[d] x * wq
k[t, n, c] = sum[d] x * wk
u[t, n, c] = sum[d] x * wv
append k.cache = k
append u.cache = u
score = sum[c] q * k.cache
%1 = exp(score - max[s] score where s > t - 8)
p[t, n, s] = if s <= t then %1 / (sum[s] %1 where s > t - 8) else 0
o[t, n, c] = sum[s] p * u.cache where s > t - 8
y[t, d] = x + sum[n, c] o * wo
scores[t, e] = sum[d] y * router
i[t] = argmax[e] scores
z[t, f] = sum[d] y * up[e = i]
out[t, v] = sum[d] (sum[f] z * down[e = i]) * embed

output out
"#,
        );
        let graph = graph.unwrap();
        let names: Vec<_> = decisive(&graph).into_iter().map(|id| graph.tensor(id).name.as_str()).collect();
        assert_eq!(names, ["wv", "router"]);
    }

    #[test]
    fn a_matrix_that_makes_more_than_values_is_not() {
        let graph = einfuse_graph::parse(
            r#"
graph merged

axis t = tokens
axis d = 8
axis j = 3
axis v = 16
axis s = positions

input tokens[t]
weight embed[v, d] = "embed"
weight w[j, d] = "w"
state k.cache[s]
state u.cache[s]

x[t, d] = embed[v = tokens]
q[t] = sum[d] x * w[j = 0]
k[t] = sum[d] x * w[j = 1]
u[t] = sum[d] x * w[j = 2]
append k.cache = k
append u.cache = u
p[t, s] = if s <= t then q * k.cache else 0
o[t] = sum[s] p * u.cache where s <= t
out[t, v] = sum[d] (x + o) * embed

output out
"#,
        );
        assert_eq!(decisive(&graph.unwrap()), BTreeSet::new());
    }
}
