//! Rule factor: what a sum does not run over leaves it.
//!
//! `Σ_d x[t, d] · w[f, d] · g[f]` is `g · Σ_d x · w`, a contraction whose tile is multiplied with `g`.
//!
//! The condition: without such factors it is a sum of products with a stored operand, with them it is none.

use std::collections::HashMap;

use einfuse_graph::{AxisId, Expr, ExprId, Graph, Node, Reduction, print_expr};

use super::contraction::{factors, stored_factor};
use super::edit::Edit;
use super::{Remark, Rule};

/// Takes such factors out of all sums.
pub(super) fn apply(graph: &Graph, remarks: &mut Vec<Remark>) -> Graph {
    let edit = Edit::new(Graph { nodes: Vec::new(), ..graph.clone() });
    let mut factor = Factor { edit, done: HashMap::new(), remarks };
    let nodes = factor.nodes(&graph.nodes);
    Graph { nodes, ..factor.edit.graph }
}

struct Factor<'a> {
    edit: Edit,
    done: HashMap<ExprId, ExprId>,
    remarks: &'a mut Vec<Remark>,
}

impl Factor<'_> {
    fn nodes(&mut self, nodes: &[Node]) -> Vec<Node> {
        let mut nodes = nodes.to_vec();
        for node in &mut nodes {
            match node {
                Node::Equation { out, body } => {
                    let name = self.edit.graph.tensor(*out).name.clone();
                    *body = self.rewrite(*body, &name);
                }
                Node::Append { .. } => {}
                Node::Layers(layers) => {
                    layers.bodies.iter_mut().for_each(|body| body.nodes = self.nodes(&body.nodes));
                }
            }
        }
        nodes
    }

    fn rewrite(&mut self, id: ExprId, name: &str) -> ExprId {
        if let Some(&done) = self.done.get(&id) {
            return done;
        }
        let children = self.edit.graph.expr(id).children();
        let new: HashMap<ExprId, ExprId> = children.into_iter().map(|c| (c, self.rewrite(c, name))).collect();
        let mut result = self.edit.map_children(id, |_, child| new[&child]);
        if let Expr::Reduce { op: Reduction::Sum, axes, body } = self.edit.graph.expr(result).clone() {
            result = self.apart(&axes, body, name).unwrap_or(result);
        }
        self.done.insert(id, result);
        result
    }

    /// `Σ axes body` as a sum times what leaves it.
    fn apart(&mut self, axes: &[AxisId], body: ExprId, name: &str) -> Option<ExprId> {
        let graph = &self.edit.graph;
        let all = factors(graph, body);
        if stored_factor(graph, axes, &all).is_some() {
            return None;
        }
        let (within, mut out): (Vec<ExprId>, Vec<ExprId>) =
            all.into_iter().partition(|&f| graph.free_axes(f).iter().any(|a| axes.contains(a)));
        stored_factor(graph, axes, &within)?;
        let outside = self.edit.product(&out);
        let (outside, over) = (print_expr(&self.edit.graph, outside), self.edit.graph.names(axes));
        let text = format!("`{outside}` leaves the sum over {over} in `{name}`");
        self.remarks.push(Remark { rule: Rule::Factor, text });
        let body = self.edit.product(&within);
        out.push(self.edit.intern(Expr::Reduce { op: Reduction::Sum, axes: axes.to_vec(), body }));
        Some(self.edit.product(&out))
    }
}
