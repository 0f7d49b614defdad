//! Random graphs: all of them verify, print, parse and run, and mean what a naive evaluation of the definitions says.

mod naive;

use einfuse_graph::random::{Options, random_graph, random_inputs, random_weights};
use einfuse_graph::{Graph, Interpreter, Number, Tensor, parse, verify};
use naive::Naive;
use proptest::prelude::*;

/// The outputs of steps of these many tokens.
fn run(graph: &Graph, steps: &[usize], seed: u64) -> Vec<Vec<Number>> {
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, graph);
    let mut interpreter = Interpreter::new(graph, &weights).unwrap();
    let mut outputs = Vec::new();
    for &tokens in steps {
        let inputs = random_inputs(graph, tokens, seed);
        let inputs: Vec<(&str, &[i64])> = inputs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        let output = interpreter.step(&inputs).unwrap();
        let numbers = output.output.iter().zip(&output.bound).map(|(&value, &bound)| Number { value, bound });
        outputs.push(numbers.collect());
    }
    outputs
}

#[test]
fn every_graph_verifies_prints_parses_and_runs() {
    let (mut promised, mut all) = (0, 0);
    for seed in 0..400 {
        let graph = random_graph(seed, Options::default());
        verify(&graph).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let text = graph.to_string();
        let parsed = parse(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
        assert_eq!(parsed.to_string(), text, "seed {seed}");
        let outputs = run(&graph, &[3, 1, 2], seed);
        assert_eq!(run(&parsed, &[3, 1, 2], seed), outputs, "seed {seed}\n{text}");
        for number in outputs.iter().flatten() {
            assert!(number.value.is_finite(), "seed {seed}\n{text}");
            promised += (number.bound < 0.01) as usize;
            all += 1;
        }
    }
    // A bound that promises nothing would make every comparison with it empty.
    assert!(promised * 100 > all * 95, "{promised} of {all} elements have a useful bound");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_interpreter_agrees_with_the_definitions(seed: u64, tokens in 1..4usize, pieces in 1..3usize) {
        let graph = random_graph(seed, Options { pieces, ..Options::default() });
        let inputs = random_inputs(&graph, tokens, seed);
        let exact = Naive::run(&graph, |x| x, tokens, &inputs);
        let rounded = Naive::run(&graph, |x| x as f32 as f64, tokens, &inputs);
        for ((number, exact), rounded) in run(&graph, &[tokens], seed)[0].iter().zip(exact).zip(rounded) {
            prop_assert!((number.value - exact).abs() <= 1e-9 * exact.abs().max(1.0), "{number:?}, {exact}\n{graph}");
            prop_assert!((number.value - rounded).abs() <= number.bound, "{number:?}, {rounded}\n{graph}");
        }
    }
}
