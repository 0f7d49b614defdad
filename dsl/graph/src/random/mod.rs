//! Random graphs, with weights and inputs for them: for tests and fuzzers, that hold what the compiler makes of a graph
//! against what it means.
//!
//! The graphs are well-formed and well-conditioned: every float has a known largest magnitude, exponentials are of small
//! numbers, denominators are away from 0, roots and logarithms are of positive numbers. So `f32` code can be compared
//! with the interpreter's bounds.

mod pieces;
mod routes;
mod terms;

use crate::builder::Builder;
use crate::graph::*;

/// What a random graph may hold.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// At most so many pieces (contractions, norms, softmaxes, maps) one after the other, at least 1.
    pub pieces: usize,
    /// Whether rows are appended to states.
    pub states: bool,
    /// Whether there are layers.
    pub layers: bool,
    /// Whether tensors are indexed by ids and by expressions of coordinates.
    pub selections: bool,
    /// Whether there are equations of integers: arg-maxima, shifted ids and choices of the largest, by which tables and
    /// weights are indexed.
    pub routes: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { pieces: 4, states: true, layers: true, selections: true, routes: true }
    }
}

/// Random numbers: SplitMix64 (Steele, Lea and Flood, 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Of `0..n`; `n` is not 0.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// Between -1 and 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Weights for a random graph: uniform between -1 and 1, the same for the same tensor and layer.
///
/// # Errors
/// Never: the type is that of [`Weights::weight`](crate::Weights::weight).
pub fn random_weights(tensor: &Tensor, layer: Option<usize>, graph: &Graph) -> Result<Vec<f32>, String> {
    let seed = tensor.name.bytes().fold(layer.map_or(0, |l| l as u64 + 1), |h, b| h.wrapping_mul(31) ^ b as u64);
    let mut rng = Rng(seed);
    let count: usize = tensor.axes.iter().map(|&axis| graph.size(axis).unwrap_or(0)).product();
    Ok((0..count).map(|_| rng.unit()).collect())
}

/// The inputs of a step of `tokens` tokens: values that are in range wherever the graph selects by them.
pub fn random_inputs(graph: &Graph, tokens: usize, seed: u64) -> Vec<(String, Vec<i64>)> {
    let mut rng = Rng(seed);
    let mut inputs = Vec::new();
    for (id, tensor) in graph.tensors.iter().enumerate().filter(|(_, t)| t.kind == Kind::Input) {
        let mut values = 16;
        for expr in &graph.exprs {
            let Expr::Load { tensor: of, index } = expr else { continue };
            for (axis, at) in graph.tensor(*of).axes.iter().zip(index) {
                if let (Expr::Load { tensor, .. }, Some(size)) = (graph.expr(*at), graph.size(*axis))
                    && tensor.index() == id
                {
                    values = values.min(size);
                }
            }
        }
        let count: usize = tensor.axes.iter().map(|&axis| graph.size(axis).unwrap_or(tokens)).product();
        inputs.push((tensor.name.clone(), (0..count).map(|_| rng.below(values) as i64).collect()));
    }
    inputs
}

/// A random graph, the same for the same seed and options.
pub fn random_graph(seed: u64, options: Options) -> Graph {
    let mut generator = Generator::new(seed, options);
    let first = generator.embedding();
    for _ in 0..1 + generator.rng.below(options.pieces.max(1)) {
        generator.piece(first);
    }
    let mut carry = first;
    if options.layers && !generator.rng.once_in(3) {
        carry = generator.layers(first);
        for _ in 0..generator.rng.below(3) {
            generator.piece(carry);
        }
    }
    let output = generator.gather(carry);
    let graph = generator.b.graph().clone();
    // A mistake of the generator is one that the tests see: they verify every graph.
    generator.b.finish(output).unwrap_or(Graph { output, ..graph })
}

/// A scalar expression and the largest magnitude that it may have.
#[derive(Clone, Copy)]
struct Term {
    id: ExprId,
    magnitude: f64,
}

/// A tensor to compute with.
#[derive(Clone)]
struct Operand {
    tensor: TensorId,
    magnitude: f64,
}

/// How large the outcome of a piece may be.
const LARGE: f64 = 16.0;

/// How many elements an equation may range over.
const VOLUME: usize = 600;

/// How many elements a reduction with all its axes may range over.
const WORK: usize = 6000;

struct Generator {
    b: Builder,
    rng: Rng,
    options: Options,
    fixed: Vec<AxisId>,
    tokens: AxisId,
    positions: Vec<AxisId>,
    ids: TensorId,
    /// The axis along which `ids` select.
    vocabulary: AxisId,
    /// In view, the latest last.
    values: Vec<Operand>,
    states: Vec<Operand>,
    in_layer: bool,
    count: usize,
}

impl Generator {
    fn new(seed: u64, options: Options) -> Generator {
        let mut rng = Rng(seed);
        let mut b = Builder::new("random");
        let tokens = b.tokens("t");
        let sizes = [1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 8, 11, 16];
        let fixed: Vec<AxisId> =
            (0..3 + rng.below(3)).map(|i| b.axis(["c", "d", "e", "f", "g"][i], rng.pick(&sizes))).collect();
        let vocabulary = b.axis("v", rng.pick(&[1, 2, 7, 16, 31]));
        let mut positions = Vec::new();
        if options.states {
            for name in &["s", "z"][..1 + rng.below(2)] {
                let window = if rng.once_in(3) { Some(1 + rng.below(6)) } else { None };
                positions.push(b.positions(name, window));
            }
        }
        let ids = b.input("ids", &[tokens]);
        let (values, states) = (Vec::new(), Vec::new());
        let (in_layer, count) = (false, 0);
        Generator { b, rng, options, fixed, tokens, positions, ids, vocabulary, values, states, in_layer, count }
    }

    // ---- axes

    fn volume(&self, axes: &[AxisId]) -> usize {
        axes.iter().map(|&axis| self.b.graph().size(axis).unwrap_or(8)).product()
    }

    fn axes_of(&self, tensor: TensorId) -> Vec<AxisId> {
        self.b.graph().tensor(tensor).axes.clone()
    }

    fn size(&self, axis: AxisId) -> usize {
        self.b.graph().size(axis).unwrap_or(8)
    }

    /// Some axes: the tokens mostly, and up to `most` of fixed size.
    fn some_axes(&mut self, most: usize) -> Vec<AxisId> {
        let mut axes = if self.rng.once_in(8) { Vec::new() } else { vec![self.tokens] };
        let mut others = self.fixed.clone();
        self.rng.shuffle(&mut others);
        for axis in others.into_iter().take(self.rng.below(most + 1)) {
            axes.push(axis);
            if self.volume(&axes) > VOLUME {
                axes.pop();
            }
        }
        axes
    }

    /// Some of these that have a fixed size.
    fn some_of(&mut self, axes: &[AxisId]) -> Vec<AxisId> {
        let fixed = axes.iter().copied().filter(|&axis| self.b.graph().size(axis).is_some());
        let mut fixed: Vec<AxisId> = fixed.collect();
        self.rng.shuffle(&mut fixed);
        fixed.truncate(self.rng.below(3));
        fixed
    }
}
