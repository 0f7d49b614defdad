//! Random graphs: all of them verify, print, parse and run, and mean what a naive evaluation of the definitions says.

mod naive;

use einfuse_graph::random::{Options, random_graph, random_inputs, random_weights};
use std::collections::{HashMap, HashSet};

use einfuse_graph::{AxisId, Expr, Graph, Interpreter, Kind, Node, Number, Tensor, TensorId, parse, verify};
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

/// The features of the language that a graph uses.
fn features(graph: &Graph) -> HashSet<String> {
    let extent = |axis: &AxisId| format!("{:?}", graph.axis(*axis).extent).replace(char::is_numeric, "");
    let mut all = HashSet::new();
    for expr in &graph.exprs {
        match expr {
            Expr::Unary(op, _) => drop(all.insert(format!("{op:?}"))),
            Expr::Binary(op, a, _) => drop(all.insert(format!("{op:?} of {:?}", graph.type_of(*a)))),
            Expr::Reduce { op, axes, body } => {
                all.extend(axes.iter().map(|axis| format!("{op:?} over {}", extent(axis))));
                all.insert(format!("{op:?} over {} axes", axes.len()));
                let inner = graph.reachable(*body).iter().any(|&id| matches!(graph.expr(id), Expr::Reduce { .. }));
                if inner {
                    all.insert("nested reductions".to_owned());
                }
            }
            Expr::Load { tensor, index } => {
                for (axis, at) in graph.tensor(*tensor).axes.iter().zip(index) {
                    if *graph.expr(*at) != Expr::Coordinate(*axis) {
                        let at = format!("{:?}", graph.expr(*at));
                        all.insert(format!("index by {}", at.split(['(', ' ']).next().unwrap_or_default()));
                    }
                }
            }
            _ => {}
        }
    }
    all.extend(graph.axes.iter().map(|axis| format!("{:?}", axis.extent)));
    for (at, tensor) in graph.tensors.iter().enumerate() {
        let kind = match &tensor.kind {
            Kind::Weight(_) if graph.is_layered(TensorId(at as u32)) => "layered weight".to_owned(),
            Kind::State { window } => format!("state, window: {}", window.is_some()),
            kind => format!("{kind:?}").split(['(', ' ']).next().unwrap_or_default().to_owned(),
        };
        all.insert(format!("{kind} of {:?}", tensor.ty));
    }
    for node in &graph.nodes {
        if let Node::Layers(layers) = node {
            all.insert(format!("{} layers, {} bodies", layers.order.len(), layers.bodies.len()));
        }
    }
    all
}

#[test]
fn everything_happens_often_enough() {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for seed in 0..500 {
        for feature in features(&random_graph(seed, Options::default())) {
            *counts.entry(feature).or_insert(0) += 1;
        }
    }
    let wanted = "Neg Not Abs Exp Log Sin Cos Tanh Erf Sqrt Rsqrt ToFloat \
        |Add of Float|Sub of Float|Mul of Float|Div of Float|Pow of Float|Min of Float|Max of Float|Lt of Float\
        |Add of Int|Sub of Int|Div of Int|Rem of Int|Lt of Int|Le of Int|Gt of Int|Ge of Int|Eq of Int|Ne of Int\
        |And of Mask|Or of Mask|Sum over Fixed()|Sum over Positions|Sum over Tokens|Max over Fixed()\
        |Max over Positions|Min over Fixed()|Min over Positions|ArgMax over Fixed()|Sum over 1 axes|Sum over 2 axes\
        |nested reductions|index by Binary|index by Int|index by Load|Fixed(1)|Fixed(2)|Fixed(7)|Fixed(16)\
        |Weight of Float|layered weight of Float|Constant of Float|Value of Int\
        |state, window: true of Float|state, window: false of Float\
        |1 layers, 1 bodies|2 layers, 1 bodies|2 layers, 2 bodies|3 layers, 1 bodies|3 layers, 2 bodies";
    let (functions, rest) = wanted.split_once(" |").unwrap();
    for feature in functions.split(' ').chain(rest.split('|')) {
        let count = counts.get(feature).copied().unwrap_or(0);
        assert!(count >= 8, "{count} graphs of 500 have `{feature}`");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_interpreter_agrees_with_the_definitions(seed: u64, tokens in 1..4usize, pieces in 1..3usize) {
        let graph = random_graph(seed, Options { pieces, ..Options::default() });
        prop_assume!(naive::cost(&graph, tokens) < 1e5);
        let inputs = random_inputs(&graph, tokens, seed);
        let exact = Naive::run(&graph, |x| x, tokens, &inputs);
        let rounded = Naive::run(&graph, |x| x as f32 as f64, tokens, &inputs);
        for ((number, exact), rounded) in run(&graph, &[tokens], seed)[0].iter().zip(exact).zip(rounded) {
            prop_assert!((number.value - exact).abs() <= 1e-9 * exact.abs().max(1.0), "{number:?}, {exact}\n{graph}");
            prop_assert!((number.value - rounded).abs() <= number.bound, "{number:?}, {rounded}\n{graph}");
        }
    }
}
