//! What the compiler makes of each architecture: how many kernels, and how much memory.

mod common;

use common::repository;
use einfuse::codegen::{Batch, Format, Options, Program};
use einfuse::{Checkpoint, Graph, Rule, graph_of};

fn graph(name: &str) -> Graph {
    graph_of(&Checkpoint::open(repository("tests/golden").join(name)).unwrap(), None).unwrap()
}

fn compile(graph: &Graph, options: &Options) -> Program {
    Program::compile(graph, &|_| Format::F32, options).unwrap()
}

/// Kernels before the layers, in each layer, and after them. Fewer is better: change a number here with that in mind.
const KERNELS: [(&str, [usize; 3]); 19] = [
    ("gpt2", [1, 5, 1]),
    ("opt", [1, 5, 1]),
    ("llama3", [3, 5, 1]),
    ("mistral", [3, 5, 1]),
    ("qwen3", [3, 5, 1]),
    ("qwen2", [3, 5, 1]),
    ("gemma", [3, 5, 1]),
    ("gemma2", [3, 5, 1]),
    ("gemma3", [3, 5, 1]),
    ("phi3", [3, 5, 1]),
    ("olmo2", [3, 5, 1]),
    ("gpt_neox", [3, 5, 1]),
    ("gptj", [3, 5, 1]),
    ("stablelm", [3, 5, 1]),
    ("stablelm_parallel", [3, 5, 1]),
    ("bloom", [3, 5, 1]),
    ("starcoder2", [3, 5, 1]),
    ("cohere", [3, 5, 1]),
    ("granite", [3, 5, 1]),
];

#[test]
fn kernels_are_few() {
    for (name, expected) in KERNELS {
        let program = compile(&graph(name), &Options::default());
        let counts: Vec<usize> = program.plan().scopes().iter().map(|kernels| kernels.len()).collect();
        assert_eq!(counts, expected, "{name}: kernels before, in and after the layers\n{}", program.plan());
        // for one token the positions are shared out, and one more kernel merges what was found along each share;
        // for many the rows behind each norm are computed once for all workers
        for (batch, more) in [(Batch::One, 1), (Batch::Many, 2)] {
            let layer = program.kernels().iter().filter(|kernel| kernel.batch == batch && kernel.scope == 1);
            assert_eq!(layer.count(), expected[1] + more, "{name}: in a layer, {batch:?}");
        }
    }
}

/// Scores over all positions are never in memory: what a step keeps grows with its tokens, not with their square.
#[test]
fn memory_grows_with_the_tokens() {
    for (name, _) in KERNELS {
        let graph = graph(name);
        let bytes = |chunk: usize, without: &[Rule]| {
            let options = Options { chunk, positions: chunk, without: without.to_vec(), ..Options::default() };
            compile(&graph, &options).arena_bytes()
        };
        let (short, long) = (bytes(1024, &[]), bytes(4096, &[]));
        assert!(long <= 4 * short, "{name}: {short} bytes for 1024 tokens, {long} for 4096");
        // one float for each pair of a token and a position, of one head
        let scores = 4 * 4096 * 4096;
        assert!(long < scores, "{name}: {long} bytes");
        let kept = bytes(4096, &[Rule::OnlineSoftmax]);
        assert!(kept > scores, "{name}: {kept} bytes without the rule, which then has no point");
    }
}

/// Layers that are alike are compiled once: all three call the same kernels.
#[test]
fn equal_layers_share_their_kernels() {
    for (name, _) in KERNELS {
        let program = compile(&graph(name), &Options::default());
        for batch in [Batch::One, Batch::Many] {
            let count = |layer: bool| {
                let kernels = program.kernels().iter().filter(|kernel| kernel.batch == batch);
                kernels.filter(|kernel| (kernel.scope == 1) == layer).count()
            };
            assert_eq!(program.calls(batch), count(false) + 3 * count(true), "{name}");
        }
    }
}
