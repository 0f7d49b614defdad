//! What the compiler makes of each architecture: how many kernels, and how much memory.

mod common;

use common::repository;
use einfuse::codegen::{Batch, Format, Options, Program};
use einfuse::graph::Node;
use einfuse::{Checkpoint, Graph, Rule, graph_of};

fn graph(name: &str) -> Graph {
    graph_of(&Checkpoint::open(repository("tests/golden").join(name)).unwrap()).unwrap()
}

fn compile(graph: &Graph, options: &Options) -> Program {
    Program::compile(graph, &|_| Format::F32, options).unwrap()
}

/// Kernels before the layers, in each layer, and after them; and the calls that a layer takes for one token and for many. Fewer
/// is better: change a number here with that in mind.
///
/// For one token the positions are shared out, and one more call merges what was found along each share. For many, the rows
/// behind each norm are computed once for all workers; and where rows choose their weights they are sorted, gathered, and
/// put together at the end.
const KERNELS: [(&str, [usize; 3], [usize; 2]); 6] = [
    ("gpt2", [1, 5, 1], [6, 7]),
    ("opt", [1, 5, 1], [6, 7]),
    ("llama3", [3, 5, 1], [6, 7]),
    ("mistral", [3, 5, 1], [6, 7]),
    ("mixtral", [3, 8, 1], [9, 14]),
    ("qwen3", [3, 5, 1], [6, 7]),
];

#[test]
fn kernels_are_few() {
    for (name, expected, calls) in KERNELS {
        let program = compile(&graph(name), &Options::default());
        let counts: Vec<usize> = program.plan().scopes().iter().map(|kernels| kernels.len()).collect();
        assert_eq!(counts, expected, "{name}: kernels before, in and after the layers\n{}", program.plan());
        for (batch, calls) in [Batch::One, Batch::Many].into_iter().zip(calls) {
            let layer = program.kernels().iter().filter(|kernel| kernel.batch == batch && kernel.scope == 1);
            assert_eq!(layer.count(), calls, "{name}: in a layer, {batch:?}");
        }
    }
}

/// Scores over all positions are never in memory: what a step keeps grows with its tokens, not with their square.
#[test]
fn memory_grows_with_the_tokens() {
    for (name, ..) in KERNELS {
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

/// Layers that are alike are compiled once: all call the same kernels.
#[test]
fn equal_layers_share_their_kernels() {
    for (name, ..) in KERNELS {
        let graph = graph(name);
        let layers = graph.nodes.iter().find_map(|node| match node {
            Node::Layers(layers) => Some(layers.order.len()),
            _ => None,
        });
        let program = compile(&graph, &Options::default());
        for batch in [Batch::One, Batch::Many] {
            let count = |layer: bool| {
                let kernels = program.kernels().iter().filter(|kernel| kernel.batch == batch);
                kernels.filter(|kernel| (kernel.scope == 1) == layer).count()
            };
            assert_eq!(program.calls(batch), count(false) + layers.unwrap() * count(true), "{name}");
        }
    }
}
