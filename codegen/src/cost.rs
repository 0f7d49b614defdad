//! What a kernel has to do at least: the arithmetic of its equations, and each byte it touches moved once.

use std::collections::{HashMap, HashSet};

use einfuse_graph::{AxisId, Expr, ExprId, Extent, Graph, Kind, TensorId, Type};

use crate::fuse::{Bounds, Equation, Kernel, Plan, Segment, Shape};
use crate::loops::FEW;

/// A step whose cost is asked for.
pub struct Work<'a> {
    /// How many tokens it has.
    pub tokens: usize,
    /// How many positions came before.
    pub past: usize,
    /// Of how many tokens the output is wanted.
    pub wanted: usize,
    /// Bytes in which an element of a weight or a cache is kept.
    pub element: &'a dyn Fn(TensorId) -> f64,
}

/// What one run of a kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Operations on floats; each function counts as one, a multiplication with an addition as two.
    pub flops: f64,
    /// Bytes of weights and caches: what comes from main memory in every step.
    pub stored: f64,
    /// Bytes that other kernels of the step have written, or the caller.
    pub read: f64,
    /// Bytes written for other kernels, and into caches.
    pub written: f64,
}

impl Cost {
    /// All bytes moved.
    pub fn bytes(&self) -> f64 {
        self.stored + self.read + self.written
    }

    /// Operations per byte moved.
    pub fn intensity(&self) -> f64 {
        self.flops / self.bytes()
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            stored: self.stored + other.stored,
            read: self.read + other.read,
            written: self.written + other.written,
        }
    }
}

impl std::ops::Mul<usize> for Cost {
    type Output = Cost;

    fn mul(self, times: usize) -> Cost {
        let times = times as f64;
        Cost {
            flops: self.flops * times,
            stored: self.stored * times,
            read: self.read * times,
            written: self.written * times,
        }
    }
}

impl Plan {
    /// The kernels of a step with how often each runs, in order.
    pub fn runs(&self) -> Vec<(&Kernel, usize)> {
        let mut all = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Once(kernels) => all.extend(kernels.iter().map(|k| (k, 1))),
                Segment::Layers { bodies, order, .. } => {
                    for (at, (kernels, _)) in bodies.iter().enumerate() {
                        let times = order.iter().filter(|&&body| body == at).count();
                        all.extend(kernels.iter().map(|k| (k, times)));
                    }
                }
            }
        }
        all
    }

    /// What all of so many runs of the kernel take: in the last layer perhaps less than in others.
    pub fn cost_of_runs(&self, kernel: &Kernel, runs: usize, work: &Work<'_>) -> Cost {
        let cost = self.cost(kernel, work);
        if !kernel.last_layer || work.tokens <= FEW {
            return cost * runs;
        }
        let last = Kernel { last_rows: true, ..kernel.clone() };
        cost * runs.saturating_sub(1) + self.cost(&last, work)
    }

    /// What one run of the kernel takes; where the last layer's differs, in another one.
    pub fn cost(&self, kernel: &Kernel, work: &Work<'_>) -> Cost {
        let sizes = Sizes::of(self, kernel, work);
        let mut cost = Cost::default();
        let mut loads: HashSet<ExprId> = HashSet::new();
        let mut touched: HashMap<TensorId, f64> = HashMap::new();
        for &e in &kernel.equations {
            let equation = self.equations[e];
            cost.flops += sizes.flops(equation);
            for expr in self.graph.reachable(equation.body) {
                // equal expressions are one: two loads of a tensor are of different elements, as far as it has them
                if let Expr::Load { tensor, index } = self.graph.expr(expr)
                    && loads.insert(expr)
                {
                    *touched.entry(*tensor).or_default() += sizes.touched(*tensor, index);
                }
            }
        }
        for (&tensor, elements) in &mut touched {
            let axes = &self.graph.tensor(tensor).axes;
            *elements = elements.min(axes.iter().map(|&a| sizes.extent(a)).product());
        }
        let own: HashSet<TensorId> = kernel.equations.iter().map(|&e| self.equations[e].out).collect();
        for (&tensor, elements) in touched.iter().filter(|(tensor, _)| !own.contains(tensor)) {
            match self.graph.tensor(tensor).kind {
                Kind::Weight(_) | Kind::Made(_) | Kind::State { .. } => {
                    cost.stored += elements * (work.element)(tensor)
                }
                _ => cost.read += elements * 4.0,
            }
        }
        for tensor in self.outputs(kernel) {
            let axes = &self.graph.tensor(tensor).axes;
            let bytes = self.states.get(&tensor).map_or(4.0, |&cache| (work.element)(cache));
            cost.written += bytes * axes.iter().map(|&a| sizes.extent(a)).product::<f64>();
        }
        cost
    }
}

/// How many coordinates axes have in a kernel.
struct Sizes<'a> {
    graph: &'a Graph,
    tokens: f64,
    /// All positions that the kernel needs.
    positions: f64,
    /// The positions that one token visits, on average.
    visited: f64,
}

impl<'a> Sizes<'a> {
    fn of(plan: &'a Plan, kernel: &Kernel, work: &Work<'_>) -> Sizes<'a> {
        let all = (work.past + work.tokens) as i64;
        let mut reduced = kernel.equations.iter().filter_map(|&eq| plan.bounds.get(&plan.equations[eq].out));
        let Bounds { lower, upper } = match &kernel.shape {
            Shape::Stream(stream) => stream.bounds,
            _ => reduced.next().map_or(Bounds::default(), |&(_, bounds)| bounds),
        };
        let range = |token: usize| {
            let at = (work.past + token) as i64;
            let from = lower.map_or(0, |l| (at + l).clamp(0, all));
            let to = upper.map_or(all, |u| (at + u + 1).clamp(from, all));
            (from, to)
        };
        let first = if kernel.last_rows { work.tokens.saturating_sub(work.wanted) } else { 0 };
        let tokens = work.tokens - first;
        let visited: i64 = (first..work.tokens).map(|token| range(token).1 - range(token).0).sum();
        let span = range(work.tokens.saturating_sub(1)).1 - range(first).0;
        Sizes {
            graph: &plan.graph,
            tokens: tokens as f64,
            positions: span as f64,
            visited: visited as f64 / tokens.max(1) as f64,
        }
    }

    fn extent(&self, axis: AxisId) -> f64 {
        match self.graph.axis(axis).extent {
            Extent::Fixed(size) => size as f64,
            Extent::Tokens => self.tokens,
            Extent::Positions => self.positions,
        }
    }

    /// How often something over these axes is computed.
    fn visits(&self, axes: &[AxisId]) -> f64 {
        let by_token = axes.iter().any(|&a| self.graph.axis(a).extent == Extent::Tokens);
        let visits = axes.iter().map(|&a| match self.graph.axis(a).extent {
            Extent::Positions if by_token => self.visited,
            _ => self.extent(a),
        });
        visits.product()
    }

    fn flops(&self, equation: Equation) -> f64 {
        let out = self.graph.tensor(equation.out).axes.clone();
        let Expr::Reduce { axes, body, .. } = self.graph.expr(equation.body) else {
            return self.visits(&out) * operations(self.graph, equation.body);
        };
        let all: Vec<AxisId> = out.iter().chain(axes).copied().collect();
        self.visits(&all) * (operations(self.graph, *body) + 1.0)
    }

    /// How many elements of a tensor a load touches over all its coordinates.
    fn touched(&self, tensor: TensorId, index: &[ExprId]) -> f64 {
        let axes = self.graph.tensor(tensor).axes.iter().zip(index);
        let along = axes.map(|(&axis, &index)| {
            let free = self.graph.free_axes(index);
            self.extent(axis).min(free.iter().map(|&a| self.extent(a)).product())
        });
        along.product()
    }
}

/// Operations on floats in an expression, equal ones once.
fn operations(graph: &Graph, root: ExprId) -> f64 {
    let counts = graph.reachable(root).into_iter().filter(|&e| match graph.expr(e) {
        Expr::Unary(..) | Expr::Binary(..) => graph.type_of(e) == Type::Float,
        _ => false,
    });
    counts.count() as f64
}

#[cfg(test)]
mod tests {
    use einfuse_graph::parse;

    use super::*;
    use crate::Format;
    use crate::fuse::{Rule, Typical, Wanted, fuse};

    const MODEL: &str = r#"graph small
        axis t = tokens
        axis s = positions
        axis v = 100
        axis d = 16
        axis f = 8
        input tokens[t]
        weight embed[v, d] = "embed"
        weight up[f, d] = "up"
        state x.cache[s, d]
        x[t, d] = embed[v = tokens]
        append x.cache = x
        e[t, s] = sum[d] x * x.cache where s <= t
        y[t, d] = sum[s] e * x.cache where s <= t
        z[t, f] = sum[d] y * up
        output z"#;

    #[test]
    fn counts_each_part_of_a_weight_once() {
        let text = r#"graph parts
            axis t = tokens
            axis j = 3
            axis d = 16
            axis f = 8
            axis v = 100
            input tokens[t]
            weight embed[v, d] = "embed"
            weight w[j, f, d] = "w"
            x[t, d] = embed[v = tokens]
            y[t, f] = (sum[d] x * w[j = 0]) * (sum[d] x * w[j = 2]) * (sum[d] x * w[j = 2])
            output y"#;
        let plan = fuse(&parse(text).unwrap(), &[], Wanted::All, Typical::DECODE, &|_, _| Format::F32.into());
        let work = Work { tokens: 1, past: 0, wanted: 1, element: &|_| 4.0 };
        let all: f64 = plan.runs().iter().map(|(kernel, _)| plan.cost(kernel, &work).stored).sum();
        assert_eq!(all, (16.0 + 2.0 * 8.0 * 16.0) * 4.0);
    }

    fn costs(tokens: usize, past: usize, element: f64) -> HashMap<String, Cost> {
        let graph = parse(MODEL).unwrap();
        let plan = fuse(&graph, Rule::ALL, Wanted::All, Typical::DECODE, &|_, _| Format::F32.into());
        let work = Work { tokens, past, wanted: 1, element: &|_| element };
        let cost = |k: &Kernel| plan.cost(k, &work);
        plan.runs().into_iter().map(|(k, _)| (k.name.clone(), cost(k))).collect()
    }

    #[test]
    fn counts_what_a_contraction_does() {
        // 3 rows, 8 columns, 16 products and as many sums each; weights of two bytes
        let cost = costs(3, 5, 2.0)["z"];
        assert_eq!(cost.flops, 3.0 * 8.0 * 16.0 * 2.0);
        assert_eq!((cost.stored, cost.read), (8.0 * 16.0 * 2.0, 3.0 * 16.0 * 4.0));
        assert_eq!(cost.written, 3.0 * 8.0 * 4.0);
        assert_eq!(cost.intensity(), 768.0 / (192.0 + 256.0 + 96.0));
    }

    #[test]
    fn sums_are_taken_in_the_cheaper_order() {
        let text = r#"graph latent
            axis t = tokens
            axis s = positions
            axis v = 100
            axis h = 4
            axis c = 8
            axis r = 64
            input tokens[t]
            weight embed[v, r] = "embed"
            weight wq[h, c, r] = "q"
            weight wk[h, c, r] = "k"
            weight wv[h, c, r] = "v"
            state x.cache[s, r]
            x[t, r] = embed[v = tokens]
            append x.cache = x
            q[t, h, c] = sum[r] x * wq
            k[s, h, c] = sum[r] x.cache * wk
            u[s, h, c] = sum[r] x.cache * wv
            e[t, h, s] = sum[c] q * k
            o[t, h, c] = sum[s] e * u
            output o"#;
        let graph = parse(text).unwrap();
        let made_for = |tokens: usize| {
            fuse(&graph, &[], Wanted::All, Typical { tokens, positions: 512 }, &|_, _| Format::F32.into())
        };
        let flops = |plan: &Plan, tokens: usize| -> f64 {
            let work = Work { tokens, past: 512 - tokens, wanted: 1, element: &|_| 4.0 };
            plan.runs().iter().map(|(kernel, times)| plan.cost(kernel, &work).flops * *times as f64).sum()
        };
        let [one, many] = [1, 512].map(made_for);
        // The cache is multiplied with the weights for every position, or with 64 numbers of each query and result.
        assert!(flops(&one, 1) < 0.2 * flops(&many, 1), "{} and {}", flops(&one, 1), flops(&many, 1));
        assert!(flops(&many, 512) < 0.5 * flops(&one, 512), "{} and {}", flops(&many, 512), flops(&one, 512));
        let declared =
            fuse(&graph, &[Rule::Path], Wanted::All, Typical { tokens: 1, positions: 512 }, &|_, _| Format::F32.into());
        assert_eq!(flops(&declared, 512), flops(&many, 512));
    }

    #[test]
    fn counts_what_a_cache_keeps() {
        assert_eq!([2.0, 4.0].map(|element| costs(3, 5, element)["x.2"].written), [3.0 * 16.0 * 2.0, 3.0 * 16.0 * 4.0]);
    }

    #[test]
    fn counts_one_row_of_the_last_layer() {
        let text = r#"graph deep
            axis t = tokens
            axis v = 100
            axis d = 16
            input tokens[t]
            weight embed[v, d] = "embed"
            weight mix[d, v] = "{l}.mix"
            weight wide[v, d] = "{l}.wide"
            x[t, d] = embed[v = tokens]
            layers y from x as h order 0 0 0
            body
            m[t, v] = sum[d] h * wide
            z[t, d] = sum[v] m * mix
            result z
            end
            o[t, d] = y + 1.0
            output o"#;
        let plan = fuse(&parse(text).unwrap(), &[], Wanted::Last, Typical::DECODE, &|_, _| Format::F32.into());
        let flops = |tokens: usize| -> f64 {
            let work = Work { tokens, past: 0, wanted: 1, element: &|_| 4.0 };
            let products = plan.runs().into_iter().filter(|(kernel, _)| matches!(kernel.shape, Shape::Contract(_)));
            products.map(|(kernel, runs)| plan.cost_of_runs(kernel, runs, &work).flops).sum()
        };
        let row = 2.0 * 2.0 * 16.0 * 100.0;
        assert_eq!(flops(12), (2.0 * 12.0 + 1.0) * row);
        // Of a few all rows are computed.
        assert_eq!(flops(8), 3.0 * 8.0 * row);
    }

    #[test]
    fn counts_only_selected_rows() {
        let cost = costs(3, 5, 4.0)["x"];
        assert_eq!((cost.flops, cost.stored, cost.read), (0.0, 3.0 * 16.0 * 4.0, 3.0 * 4.0));
    }

    #[test]
    fn counts_all_positions() {
        // 8 positions for each of 3 rows
        let cost = costs(3, 5, 4.0)["e"];
        assert_eq!(cost.flops, 3.0 * 8.0 * 16.0 * 2.0);
        assert_eq!((cost.stored, cost.read), (8.0 * 16.0 * 4.0, 3.0 * 16.0 * 4.0));
    }
}
