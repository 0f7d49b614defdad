//! Running compiled programs beside the interpreter.

use einfuse_codegen::{Options, PageTable, Program, Step, Storage, Team, Values, Wanted, Workspace};
use einfuse_graph::{Graph, TensorId, Weights};

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

impl Team for Threads {
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
        storage: Storage,
        options: &Options,
        positions: usize,
        workers: usize,
    ) -> Runner {
        let program = Program::compile(graph, &|_| storage, options).unwrap();
        let mut memory = Aligned::new(program.weight_bytes());
        for packed in program.weights() {
            let bytes: Vec<Vec<u8>> = packed
                .tensors
                .iter()
                .map(|&t: &TensorId| {
                    let values = weights.weight(graph.tensor(t), packed.layer).unwrap();
                    values.iter().flat_map(|v| v.to_le_bytes()).collect()
                })
                .collect();
            let values: Vec<Values<'_>> = bytes.iter().map(|b| Values::F32(b)).collect();
            packed.pack(&values, &mut memory.get_mut()[packed.offset..packed.offset + packed.bytes]).unwrap();
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
        let workspace = program.workspace(workers);
        Runner { program, weights: memory, workspace, caches, past: 0 }
    }

    /// The output of the wanted rows, and the activations between layers.
    pub(crate) fn step(&mut self, tokens: &[i32], team: &dyn Team) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut hidden = Vec::new();
        let mut observe = |_: usize, values: &[f32]| hidden.push(values.to_vec());
        let first = match self.program.options().rows {
            Wanted::Last => tokens.len() - 1,
            Wanted::All => 0,
        };
        let caches =
            self.caches.iter_mut().map(|(memory, pages)| PageTable { memory: memory.get_mut(), pages }).collect();
        let step = Step { tokens, past: self.past, first, caches, observe: Some(&mut observe) };
        self.program.step(self.weights.get(), &mut self.workspace, step, team).unwrap();
        self.past += tokens.len();
        (self.program.output(&self.workspace).to_vec(), hidden)
    }
}
