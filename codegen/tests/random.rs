//! Compiled code against the interpreter, on random graphs.

mod common;

use common::{Runner, hold, interpreted};
use einfuse_codegen::loops::MAX_ROWS;
use einfuse_codegen::{Format, Options, Rule, Tiling, Wanted};
use einfuse_graph::random::{self, random_graph, random_weights};
use einfuse_graph::{Extent, Graph, Tensor, Type, parse};
use proptest::prelude::*;

/// How many numbers stand for an alternative of a kernel, counted round, or its default; those behind them for numbers that a file
/// of schedules may have, however strange.
const ALTERNATIVES: usize = 48;

/// One of the largest, smallest and oddest schedules.
fn strange(mut choice: usize) -> Tiling {
    let mut number = |most: usize| {
        let number = [1, 3, most][choice % 3];
        choice /= 3;
        number
    };
    let [block, core, prepared, tile, parts] = [1024, MAX_ROWS, 1024, 1024, 64].map(&mut number);
    let tiling = Tiling { block, core, prepared, tile, parts };
    assert_eq!(tiling.check(), Ok(()));
    tiling
}

/// With each kernel scheduled by what this number stands for.
fn compare(
    graph: &Graph,
    seed: u64,
    without: Vec<Rule>,
    rows: Wanted,
    steps: &[usize],
    workers: usize,
    alternative: usize,
) -> Result<(), String> {
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, graph);
    let options = Options { without, chunk: 19, positions: 256, rows, ..Options::default() };
    let mut runner = Runner::new(graph, &weights, Format::F32, &options, 128)?;
    let others = runner.program.schedules().iter().filter_map(|kernel| {
        let tiling = match alternative.checked_sub(ALTERNATIVES) {
            None => *kernel.alternatives.get(alternative % (kernel.alternatives.len() + 1))?,
            Some(choice) => strange(choice),
        };
        Some((kernel.identity.clone(), tiling))
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
    fn compiled_code_means_what_the_interpreter_says(seed in any::<u64>(), workers in 1usize..4, off in 0u32..1 << Rule::ALL.len(), last in any::<bool>(), alternative in prop_oneof![0..ALTERNATIVES, ALTERNATIVES..ALTERNATIVES + 243]) {
        let graph = random_graph(seed, random::Options::default());
        prop_assume!(is_returned(&graph));
        let without = Rule::ALL.iter().enumerate().filter(|(i, _)| off & (1 << i) != 0).map(|(_, r)| *r).collect();
        let rows = if last { Wanted::Last } else { Wanted::All };
        let outcome = compare(&graph, seed, without, rows, &[3, 1, 19, 7, 1], workers, alternative);
        prop_assert!(outcome.is_ok(), "seed {seed}: {}\n{graph}", outcome.unwrap_err());
    }
}

/// A graph that once was computed wrongly, with all rules and each of them off.
#[test]
fn a_graph_that_was_wrong_once_is_right() {
    let graph = parse(include_str!("wrong_once.graph")).unwrap();
    let off = Rule::ALL.iter().map(|rule| vec![*rule]).chain([Vec::new()]);
    for without in off {
        let outcome =
            compare(&graph, 12_733_340_405_512_554_019, without.clone(), Wanted::All, &[3, 1, 19, 7, 1], 2, 0);
        assert!(outcome.is_ok(), "without {without:?}: {}", outcome.unwrap_err());
    }
}
