//! Compiled code against the interpreter, on random graphs.

mod common;

use common::{Runner, hold, interpreted};
use einfuse_codegen::{Format, Options, Rule, Wanted};
use einfuse_graph::random::{self, random_graph, random_weights};
use einfuse_graph::{Extent, Graph, Tensor, Type};
use proptest::prelude::*;

/// With each kernel scheduled by the alternative of this number, counted round, or its default.
fn compare(
    graph: &Graph,
    seed: u64,
    without: Vec<Rule>,
    steps: &[usize],
    workers: usize,
    alternative: usize,
) -> Result<(), String> {
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, graph);
    let options = Options { without, chunk: 19, positions: 256, rows: Wanted::All, ..Options::default() };
    let mut runner = Runner::new(graph, &weights, Format::F32, &options, 128)?;
    let others = runner.program.schedules().iter().filter_map(|kernel| {
        let tiling = kernel.alternatives.get(alternative % (kernel.alternatives.len() + 1))?;
        Some((kernel.identity.clone(), *tiling))
    });
    let others = others.collect();
    runner.program = runner.program.reschedule(others).map_err(|e| e.to_string())?;
    hold(&mut runner, workers, &interpreted(graph, seed, steps)?)
}

/// Whether a program can return the output: not over positions, no mask.
fn is_returned(graph: &Graph) -> bool {
    let output = graph.tensor(graph.output);
    output.ty != Type::Mask && output.axes.iter().all(|&a| graph.axis(a).extent != Extent::Positions)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_code_means_what_the_interpreter_says(seed in any::<u64>(), workers in 1usize..4, off in 0u32..1 << Rule::ALL.len(), alternative in 0usize..64) {
        let graph = random_graph(seed, random::Options::default());
        prop_assume!(is_returned(&graph));
        let without = Rule::ALL.iter().enumerate().filter(|(i, _)| off & (1 << i) != 0).map(|(_, r)| *r).collect();
        let outcome = compare(&graph, seed, without, &[3, 1, 19, 7, 1], workers, alternative);
        prop_assert!(outcome.is_ok(), "seed {seed}: {}\n{graph}", outcome.unwrap_err());
    }
}

/// Graphs that once were computed wrongly, with all rules and each of them off.
const WRONG_ONCE: [u64; 1] = [12_733_340_405_512_554_019];

#[test]
fn graphs_that_were_wrong_once_are_right() {
    for seed in WRONG_ONCE {
        let graph = random_graph(seed, random::Options::default());
        let off = Rule::ALL.iter().map(|rule| vec![*rule]).chain([Vec::new()]);
        for without in off {
            let outcome = compare(&graph, seed, without.clone(), &[3, 1, 19, 7, 1], 2, 0);
            assert!(outcome.is_ok(), "seed {seed}, without {without:?}: {}", outcome.unwrap_err());
        }
    }
}
