//! Handing values on: where one buffer cannot serve for two tensors, an equation copies.
//!
//! What enters the layers, what each layer hands on and what leaves them share one buffer. That is right as long as nobody
//! still needs the old content when the new is written.

use einfuse_graph::{Expr, Kind, TensorId, Type, Unary};

use super::edit::Edit;
use super::{EqId, Equation, Kernel, Plan, Segment, Shape, is_identity, is_tokens, loads_of};

impl Plan {
    /// Adds the copies that are needed at the borders of the layers and at the output.
    pub(super) fn settle(&mut self) {
        for at in 0..self.segments.len() {
            let Segment::Layers { carry, initial, bodies, .. } = &self.segments[at] else { continue };
            let (carry, initial) = (*carry, *initial);
            let results: Vec<(usize, TensorId)> = bodies.iter().map(|(_, r)| *r).enumerate().collect();
            if !self.can_hand_over(initial, at) {
                let copy = self.copy(initial, self.graph.tensor(initial).ty);
                if let Segment::Once(kernels) = &mut self.segments[at - 1] {
                    kernels.push(copy.1);
                }
                if let Segment::Layers { initial, .. } = &mut self.segments[at] {
                    *initial = copy.0;
                }
            }
            for (which, result) in results {
                let Segment::Layers { bodies, .. } = &self.segments[at] else { continue };
                if self.can_replace(&bodies[which].0, carry, result) {
                    continue;
                }
                let copy = self.copy(result, self.graph.tensor(result).ty);
                if let Segment::Layers { bodies, .. } = &mut self.segments[at] {
                    bodies[which].0.push(copy.1);
                    bodies[which].1 = copy.0;
                }
            }
        }
        let output = self.graph.output;
        let is_value = matches!(self.graph.tensor(output).kind, Kind::Value);
        let axes = &self.graph.tensor(output).axes;
        let tokens = axes.iter().position(|&a| is_tokens(&self.graph, a));
        if !is_value
            || tokens.is_some_and(|at| at > 0)
            || self.graph.tensor(output).ty != Type::Float
            || self.states.contains_key(&output)
        {
            let (tensor, mut kernel) = self.copy(output, Type::Float);
            if let Some(at) = tokens {
                self.graph.tensors[tensor.index()].axes[..=at].rotate_right(1);
            }
            kernel.name = self.graph.tensor(tensor).name.clone();
            self.graph.output = tensor;
            if let Some(Segment::Once(kernels)) = self.segments.last_mut() {
                kernels.push(kernel);
            }
        }
    }

    /// A kernel that copies a tensor, integers as floats where those are wanted, and the copy.
    fn copy(&mut self, of: TensorId, ty: Type) -> (TensorId, Kernel) {
        let mut edit = Edit::new(self.graph.clone());
        let tensor = edit.graph.tensor(of).clone();
        let mut body = edit.load(of);
        if tensor.ty != ty {
            body = edit.intern(Expr::Unary(Unary::ToFloat, body));
        }
        let out = edit.value(&tensor.name, tensor.axes, ty);
        self.graph = edit.graph;
        let id: EqId = self.equations.len();
        self.equations.push(Equation { out, body });
        (out, Kernel::of(self, id, Shape::Rows))
    }

    /// Whether what enters the layers is a value that nobody needs afterwards.
    fn can_hand_over(&self, initial: TensorId, segment: usize) -> bool {
        let before = match &self.segments[segment - 1] {
            Segment::Once(kernels) => kernels,
            Segment::Layers { .. } => return false,
        };
        let made = before.iter().flat_map(|k| &k.equations).any(|&e| self.equations[e].out == initial);
        let read_later = self.consumers(initial).iter().any(|e| !before.iter().any(|k| k.equations.contains(e)));
        let enters_later = self.segments[segment + 1..]
            .iter()
            .any(|s| matches!(s, Segment::Layers { initial: other, .. } if *other == initial));
        made && !read_later && !enters_later && self.graph.output != initial && !self.states.contains_key(&initial)
    }

    /// Whether a layer's result can be written over what the layer got.
    fn can_replace(&self, kernels: &[Kernel], carry: TensorId, result: TensorId) -> bool {
        let reads = |e: &EqId| self.reads(*e).contains(&carry);
        let Some(at) = kernels.iter().position(|k| k.equations.iter().any(|&e| self.equations[e].out == result)) else {
            return false;
        };
        if self.states.contains_key(&result) || kernels[at + 1..].iter().any(|k| k.equations.iter().any(reads)) {
            return false;
        }
        let kernel = &kernels[at];
        let own: &[EqId] = match &kernel.shape {
            Shape::Rows => &kernel.equations,
            Shape::Contract(contract) => {
                let tasks = &contract.tasks;
                match tasks.iter().find(|t| t.equations().iter().any(|&e| self.equations[e].out == result)) {
                    Some(task) => &task.epilogue,
                    None => return false,
                }
            }
            Shape::Stream(_) => return !kernel.equations.iter().any(reads),
        };
        // Only at the element that is written, and not after it was: what cores leave is written before all that follows.
        let written = own.iter().position(|&e| self.equations[e].out == result);
        let pointwise = |e: &EqId| {
            loads_of(&self.graph, self.equations[*e].body, carry)
                .iter()
                .all(|index| is_identity(&self.graph, carry, index))
                && !matches!(self.graph.expr(self.equations[*e].body), Expr::Reduce { .. })
        };
        let elsewhere = kernel.equations.iter().filter(|e| !own.contains(e)).any(reads);
        let same_layout = self.graph.tensor(carry).axes == self.graph.tensor(result).axes;
        !elsewhere
            && same_layout
            && own.iter().enumerate().all(|(i, e)| !reads(e) || (pointwise(e) && written.is_some_and(|w| i <= w)))
    }
}
