//! Compiled code against the interpreter, on random graphs.

mod common;

use common::{Runner, Threads};
use einfuse_codegen::{Options, Rule, Storage, Wanted};
use einfuse_graph::random::{self, random_graph, random_inputs, random_weights};
use einfuse_graph::{Extent, Graph, Interpreter, Tensor, Type};
use proptest::prelude::*;

/// How many times the interpreter's error bound a difference may be.
const SLACK: f64 = 4.0;

fn compare(graph: &Graph, seed: u64, without: Vec<Rule>, steps: &[usize], workers: usize) -> Result<(), String> {
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, graph);
    let mut interpreter = Interpreter::new(graph, &weights).map_err(|e| e.to_string())?;
    let options = Options { without, chunk: 8, positions: 256, rows: Wanted::All, keep_text: false };
    let mut runner = Runner::new(graph, &weights, Storage::F32, &options, 128, workers);
    for &tokens in steps {
        let inputs = random_inputs(graph, tokens, seed);
        let inputs: Vec<(&str, &[i64])> = inputs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        let want = interpreter.step(&inputs).map_err(|e| e.to_string())?;
        let ids: Vec<i32> = match inputs.first() {
            Some((_, ids)) => ids.iter().map(|&i| i as i32).collect(),
            None => vec![0; tokens],
        };
        let (got, _) = runner.step(&ids, &Threads(workers));
        let order = tokens_first(graph, tokens);
        let want_output: Vec<f64> = order.iter().map(|&i| want.output[i]).collect();
        let want_bound: Vec<f64> = order.iter().map(|&i| want.bound[i]).collect();
        if got.len() != want.output.len() {
            return Err(format!("{} elements, not {}", got.len(), want.output.len()));
        }
        for (i, (got, (want, bound))) in got.iter().zip(want_output.iter().zip(&want_bound)).enumerate() {
            let error = (*got as f64 - want).abs();
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

/// Whether a program can return the output: not over positions, no mask.
fn is_returned(graph: &Graph) -> bool {
    let output = graph.tensor(graph.output);
    output.ty != Type::Mask && output.axes.iter().all(|&a| graph.axis(a).extent != Extent::Positions)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_code_means_what_the_interpreter_says(seed in any::<u64>(), workers in 1usize..4, off in 0u32..1024) {
        let graph = random_graph(seed, random::Options::default());
        prop_assume!(is_returned(&graph));
        let without = Rule::ALL.iter().enumerate().filter(|(i, _)| off & (1 << i) != 0).map(|(_, r)| *r).collect();
        let outcome = compare(&graph, seed, without, &[3, 1, 2, 7, 1], workers);
        prop_assert!(outcome.is_ok(), "seed {seed}: {}\n{graph}", outcome.unwrap_err());
    }
}
