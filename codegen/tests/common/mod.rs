//! Running compiled programs beside the interpreter.

#![allow(dead_code, reason = "each test has its own way to make weights")]

use einfuse_codegen::loops::FEW;
use einfuse_codegen::{Format, Observer, Options, Packed, PageTable, Program, Step, Team, Values, Wanted, Workspace};
use einfuse_graph::random::{random_inputs, random_weights};
use einfuse_graph::{Extent, Graph, Interpreter, Tensor, TensorId, Weights};

/// How many times the interpreter's error bound a difference may be.
const SLACK: f64 = 4.0;

/// A step, and what the interpreter says of it.
pub(crate) struct Expected {
    ids: Vec<i32>,
    /// Each element of the output and its bound, the tokens first as programs put them.
    output: Vec<(f64, f64)>,
    /// How many of them each token has; all, where the output has no tokens' axis.
    row: usize,
}

/// What the interpreter says of steps of so many tokens, one after the other.
pub(crate) fn interpreted(graph: &Graph, seed: u64, steps: &[usize]) -> Result<Vec<Expected>, String> {
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, graph);
    interpreted_with(graph, &weights, seed, steps)
}

/// The same with these weights.
pub(crate) fn interpreted_with(
    graph: &Graph,
    weights: &dyn Weights,
    seed: u64,
    steps: &[usize],
) -> Result<Vec<Expected>, String> {
    let mut interpreter = Interpreter::new(graph, weights).map_err(|e| e.to_string())?;
    let step = |&tokens: &usize| {
        let inputs = random_inputs(graph, tokens, seed);
        let inputs: Vec<(&str, &[i64])> = inputs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        let out = interpreter.step(&inputs).map_err(|e| e.to_string())?;
        let ids: Vec<i32> = match inputs.first() {
            Some((_, ids)) => ids.iter().map(|&i| i as i32).collect(),
            None => vec![0; tokens],
        };
        let output: Vec<_> = tokens_first(graph, tokens).into_iter().map(|i| (out.output[i], out.bound[i])).collect();
        let axes = &graph.tensor(graph.output).axes;
        let per_token = axes.iter().any(|&a| graph.axis(a).extent == Extent::Tokens);
        Ok(Expected { ids, row: if per_token { output.len() / tokens } else { output.len() }, output })
    };
    steps.iter().map(step).collect()
}

/// How far a program is from what the interpreter says: the root of the mean square, where that of the latter is 1.
pub(crate) fn distance(runner: &mut Runner, workers: usize, steps: &[Expected]) -> f64 {
    runner.restart(workers);
    let (mut apart, mut whole) = (0.0, 0.0);
    for step in steps {
        let got = runner.step(&step.ids, &Threads(workers));
        assert_eq!(got.len(), step.output.len());
        for (got, (want, _)) in got.iter().zip(&step.output) {
            apart += (f64::from(*got) - want).powi(2);
            whole += want.powi(2);
        }
    }
    (apart / whole).sqrt()
}

/// Runs a program from the start of a sequence, and holds it against what the interpreter says.
pub(crate) fn hold(runner: &mut Runner, workers: usize, steps: &[Expected]) -> Result<(), String> {
    runner.restart(workers);
    for step in steps {
        let wanted = step.ids.len() - runner.first(step.ids.len());
        let got = runner.step(&step.ids, &Threads(workers));
        let want = &step.output[step.output.len().saturating_sub(wanted * step.row)..];
        if got.len() != want.len() {
            return Err(format!("{} elements, not {}", got.len(), want.len()));
        }
        for (i, (got, (want, bound))) in got.iter().zip(want).enumerate() {
            let error = (*got as f64 - want).abs();
            // A NaN is not within.
            let within = error <= SLACK * bound + 1e-30;
            if !within {
                let past = runner.past;
                return Err(format!("element {i} before position {past} is {got}, not {want} ± {bound:e}"));
            }
        }
    }
    Ok(())
}

/// For each element of the compiled output its place in the interpreter's: programs put the tokens first.
fn tokens_first(graph: &Graph, tokens: usize) -> Vec<usize> {
    let axes = &graph.tensor(graph.output).axes;
    let sizes: Vec<usize> = axes.iter().map(|&a| graph.size(a).unwrap_or(tokens)).collect();
    let at = axes.iter().position(|&a| graph.axis(a).extent == Extent::Tokens).unwrap_or(0);
    let inner: usize = sizes.iter().skip(at + 1).product();
    let (middle, total) = (sizes.get(at).copied().unwrap_or(1), sizes.iter().product::<usize>());
    let outer = total / inner / middle;
    let all =
        (0..middle).flat_map(|t| (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * middle + t) * inner + i)));
    all.collect()
}

/// A program with its weights and the caches of one sequence.
pub(crate) struct Runner {
    pub(crate) program: Program,
    weights: Aligned,
    workspace: Workspace,
    caches: Vec<(Aligned, Vec<u32>)>,
    pub(crate) past: usize,
}

/// Bytes that begin at a multiple of 64.
struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0u8; len + 64];
        let from = bytes.as_ptr().align_offset(64);
        Aligned { bytes, from, len }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.len]
    }
}

/// Workers that are threads of their own, for one step.
pub(crate) struct Threads(pub(crate) usize);

// SAFETY: there is a thread for each number, all end with the scope, and the barrier is for as many.
unsafe impl Team for Threads {
    fn workers(&self) -> usize {
        self.0
    }

    fn run(&self, work: &(dyn Fn(usize, &dyn Fn()) + Sync)) {
        let barrier = std::sync::Barrier::new(self.0);
        std::thread::scope(|scope| {
            for worker in 0..self.0 {
                let barrier = &barrier;
                scope.spawn(move || {
                    work(worker, &|| {
                        barrier.wait();
                    })
                });
            }
        });
    }
}

impl Runner {
    /// Compiles a graph and packs its weights; the cache holds `positions`.
    pub(crate) fn new(
        graph: &Graph,
        weights: &dyn Weights,
        storage: Format,
        options: &Options,
        positions: usize,
    ) -> Result<Runner, String> {
        let program = Program::compile(graph, &|_, _| storage.into(), options).map_err(|e| e.to_string())?;
        let pack = |packed: &Packed, out: &mut [u8]| {
            let bytes: Vec<Vec<u8>> = packed
                .tensors
                .iter()
                .map(|&t: &TensorId| {
                    let values = weights.weight(graph.tensor(t), packed.layer).unwrap();
                    values.iter().flat_map(|v| v.to_le_bytes()).collect()
                })
                .collect();
            let values: Vec<Values<'_>> = bytes.iter().map(|b| Values::F32(b)).collect();
            packed.pack(&values, 0, out).unwrap();
        };
        Ok(Runner::of(program, pack, positions))
    }

    /// A program whose weights `pack` writes, stretch by stretch; the cache holds `positions`.
    pub(crate) fn of(program: Program, mut pack: impl FnMut(&Packed, &mut [u8]), positions: usize) -> Runner {
        let mut memory = Aligned::new(program.weight_bytes());
        for packed in program.weights() {
            pack(packed, &mut memory.get_mut()[packed.offset..packed.offset + packed.bytes]);
        }
        let caches = program
            .caches()
            .iter()
            .map(|g| {
                let pages = positions.div_ceil(g.page_positions).max(1);
                // Backwards, so that a page's number is not its place.
                (Aligned::new(pages * g.page_bytes), (0..pages as u32).rev().collect())
            })
            .collect();
        let workspace = program.workspace(1);
        Runner { program, weights: memory, workspace, caches, past: 0 }
    }

    /// Begins another sequence, for so many workers. The caches keep what the one before left there.
    pub(crate) fn restart(&mut self, workers: usize) {
        self.past = 0;
        self.workspace = self.program.workspace(workers);
    }

    /// The first of so many tokens whose output is wanted: of a few any of them, if not all are.
    fn first(&self, tokens: usize) -> usize {
        match self.program.options().rows {
            Wanted::Last if tokens <= FEW => self.past / 2 % tokens,
            Wanted::Last => tokens - 1,
            Wanted::All => 0,
        }
    }

    /// The output of the wanted rows.
    pub(crate) fn step(&mut self, tokens: &[i32], team: &dyn Team) -> Vec<f32> {
        self.observed(tokens, team, None)
    }

    /// The same, and the activations between layers.
    pub(crate) fn traced(&mut self, tokens: &[i32], team: &dyn Team) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut hidden = Vec::new();
        let mut observe = |_: usize, values: &[f32]| hidden.push(values.to_vec());
        let output = self.observed(tokens, team, Some(&mut observe));
        (output, hidden)
    }

    fn observed<'s>(&'s mut self, tokens: &'s [i32], team: &dyn Team, observe: Option<Observer<'s>>) -> Vec<f32> {
        let first = self.first(tokens.len());
        let caches =
            self.caches.iter_mut().map(|(memory, pages)| PageTable { memory: memory.get_mut(), pages }).collect();
        let step = Step { tokens, past: self.past, first, caches, observe, choices: None };
        self.program.step(self.weights.get(), &mut self.workspace, step, team).unwrap();
        self.past += tokens.len();
        self.program.output(&self.workspace).to_vec()
    }
}
