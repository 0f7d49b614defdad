//! Changing a graph: new expressions, new tensors, loads replaced.

use std::collections::HashMap;

use einfuse_graph::{AxisId, Binary, Expr, ExprId, Extent, Graph, Kind, Real, Tensor, TensorId, Type, Unary};

/// A graph that is being rewritten. Equal expressions stay one, what is made of constants alone is one, and
/// a choice between integers that becomes a float is a choice between floats, so that masks have one form.
pub(crate) struct Edit {
    pub(crate) graph: Graph,
    known: HashMap<Expr, ExprId>,
}

impl Edit {
    pub(crate) fn new(graph: Graph) -> Edit {
        let known = graph.exprs.iter().enumerate().map(|(i, e)| (e.clone(), ExprId(i as u32))).collect();
        Edit { graph, known }
    }

    pub(crate) fn intern(&mut self, expr: Expr) -> ExprId {
        let expr = self.folded(&expr).unwrap_or(expr);
        if let Expr::Unary(Unary::ToFloat, choice) = expr
            && let Expr::Select { mask, then, otherwise } = *self.graph.expr(choice)
        {
            let [then, otherwise] = [then, otherwise].map(|x| self.intern(Expr::Unary(Unary::ToFloat, x)));
            return self.intern(Expr::Select { mask, then, otherwise });
        }
        if let Some(&id) = self.known.get(&expr) {
            return id;
        }
        let id = ExprId(self.graph.exprs.len() as u32);
        self.graph.exprs.push(expr.clone());
        self.known.insert(expr, id);
        id
    }

    /// The constant that an expression of constants is.
    fn folded(&self, expr: &Expr) -> Option<Expr> {
        let float = |x: f64| x.is_finite().then_some(Expr::Float(Real(x)));
        match *expr {
            Expr::Unary(op, x) => match (op, self.graph.expr(x)) {
                (Unary::ToFloat, Expr::Int(x)) => float(*x as f64),
                (op, Expr::Float(x)) if op != Unary::Not => float(op.of(x.0)),
                _ => None,
            },
            Expr::Binary(op, a, b) if op.is_arithmetic() => match (self.graph.expr(a), self.graph.expr(b)) {
                (Expr::Float(a), Expr::Float(b)) => float(op.of(a.0, b.0)),
                (Expr::Int(a), Expr::Int(b)) => op.of_ints(*a, *b).map(Expr::Int),
                _ => None,
            },
            _ => None,
        }
    }

    /// The element of a tensor at the coordinates of its own axes.
    pub(crate) fn load(&mut self, tensor: TensorId) -> ExprId {
        let axes = self.graph.tensor(tensor).axes.clone();
        let index = axes.into_iter().map(|a| self.intern(Expr::Coordinate(a))).collect();
        self.intern(Expr::Load { tensor, index })
    }

    pub(crate) fn product(&mut self, factors: &[ExprId]) -> ExprId {
        let mut factors = factors.iter().copied();
        let first = factors.next().unwrap_or_else(|| self.intern(Expr::Float(Real(1.0))));
        factors.fold(first, |a, b| self.intern(Expr::Binary(Binary::Mul, a, b)))
    }

    /// A new value under a name that no other tensor has.
    pub(crate) fn value(&mut self, name: &str, axes: Vec<AxisId>, ty: Type) -> TensorId {
        let taken = |name: &str| self.graph.tensors.iter().any(|t| t.name == name);
        let name = match taken(name) {
            false => name.to_owned(),
            true => (2..).map(|n| format!("{name}.{n}")).find(|n| !taken(n)).unwrap_or_default(),
        };
        let id = TensorId(self.graph.tensors.len() as u32);
        self.graph.tensors.push(Tensor { name, axes, ty, kind: Kind::Value, location: None });
        id
    }

    /// The same expression with each child passed through `f`.
    pub(crate) fn map_children(&mut self, id: ExprId, mut f: impl FnMut(&mut Edit, ExprId) -> ExprId) -> ExprId {
        let expr = match self.graph.expr(id).clone() {
            leaf @ (Expr::Float(_) | Expr::Int(_) | Expr::Coordinate(_)) => leaf,
            Expr::Load { tensor, index } => {
                Expr::Load { tensor, index: index.into_iter().map(|i| f(self, i)).collect() }
            }
            Expr::Unary(op, x) => Expr::Unary(op, f(self, x)),
            Expr::Binary(op, a, b) => Expr::Binary(op, f(self, a), f(self, b)),
            Expr::Select { mask, then, otherwise } => {
                Expr::Select { mask: f(self, mask), then: f(self, then), otherwise: f(self, otherwise) }
            }
            Expr::Reduce { op, axes, body } => Expr::Reduce { op, axes, body: f(self, body) },
        };
        self.intern(expr)
    }

    /// The expression with each load of `tensor` replaced by `body`, the tensor's axes by the load's indices. `body` has
    /// no reduction.
    pub(crate) fn inline(&mut self, id: ExprId, tensor: TensorId, body: ExprId) -> ExprId {
        self.inline_memo(id, tensor, body, &mut HashMap::new())
    }

    fn inline_memo(
        &mut self,
        id: ExprId,
        tensor: TensorId,
        body: ExprId,
        memo: &mut HashMap<ExprId, ExprId>,
    ) -> ExprId {
        if let Some(&done) = memo.get(&id) {
            return done;
        }
        let changed = self.map_children(id, |edit, child| edit.inline_memo(child, tensor, body, memo));
        let result = match self.graph.expr(changed).clone() {
            Expr::Load { tensor: of, index } if of == tensor => {
                let axes = self.graph.tensor(tensor).axes.clone();
                let at: HashMap<AxisId, ExprId> = axes.into_iter().zip(index).collect();
                self.substitute(body, &at, &mut HashMap::new())
            }
            _ => changed,
        };
        memo.insert(id, result);
        result
    }

    /// The expression with coordinates replaced. It has no reduction.
    fn substitute(&mut self, id: ExprId, at: &HashMap<AxisId, ExprId>, memo: &mut HashMap<ExprId, ExprId>) -> ExprId {
        if let Some(&done) = memo.get(&id) {
            return done;
        }
        let result = match self.graph.expr(id) {
            Expr::Coordinate(axis) => at.get(axis).copied().unwrap_or(id),
            _ => self.map_children(id, |edit, child| edit.substitute(child, at, memo)),
        };
        memo.insert(id, result);
        result
    }
}

/// The axes with the tokens first and positions last, otherwise in the order given: how values that the compiler makes lie
/// in memory.
pub(super) fn layout_order(graph: &Graph, axes: &[AxisId]) -> Vec<AxisId> {
    let mut axes = axes.to_vec();
    axes.sort_by_key(|&a| match graph.axis(a).extent {
        Extent::Tokens => 0,
        Extent::Fixed(_) => 1,
        Extent::Positions => 2,
    });
    axes
}

/// The loads of one tensor in an expression: their indices.
pub(crate) fn loads_of(graph: &Graph, id: ExprId, wanted: TensorId) -> Vec<Vec<ExprId>> {
    let index = |at| match graph.expr(at) {
        Expr::Load { tensor, index } if *tensor == wanted => Some(index.clone()),
        _ => None,
    };
    graph.reachable(id).into_iter().filter_map(index).collect()
}

/// Whether every index of a load is the coordinate of the tensor's own axis.
pub(crate) fn is_identity(graph: &Graph, tensor: TensorId, index: &[ExprId]) -> bool {
    let axes = &graph.tensor(tensor).axes;
    axes.iter().zip(index).all(|(&axis, &i)| *graph.expr(i) == Expr::Coordinate(axis))
}
