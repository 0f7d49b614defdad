//! What the builder makes of masks, means and uniform tensors.

use einfuse_graph::{
    AxisId, Binary, Builder, ExprId, Graph, Interpreter, Reduction, Tensor, TensorId, Unary, print_expr, verify,
};

/// A builder with an axis `c` of 4 and `d` of 3, and a weight over `c` with the values 1 to 4.
fn builder() -> (Builder, AxisId, AxisId, ExprId) {
    let mut b = Builder::new("g");
    let (c, d) = (b.axis("c", 4), b.axis("d", 3));
    let a = b.weight("a", &[c], "a");
    let a = b.load(a);
    (b, c, d, a)
}

fn below(b: &mut Builder, axis: AxisId, limit: i64) -> ExprId {
    let (at, limit) = (b.coordinate(axis), b.int(limit));
    b.binary(Binary::Lt, at, limit)
}

fn values(b: Builder, y: TensorId) -> Vec<f64> {
    let graph: Graph = b.finish(y).unwrap();
    verify(&graph).unwrap();
    let weights = |_: &Tensor, _: Option<usize>| Ok(vec![1.0, 2.0, 3.0, 4.0]);
    Interpreter::new(&graph, &weights).unwrap().step(&[]).unwrap().output
}

#[test]
fn what_is_masked_is_skipped_by_reductions_and_by_functions_before_them() {
    let (mut b, c, _, a) = builder();
    let mask = below(&mut b, c, 2);
    let masked = b.masked(a, mask);
    let exp = b.unary(Unary::Exp, masked);
    let sum = b.reduce(Reduction::Sum, &[c], exp);
    let y = b.define("y", None, sum);
    assert_eq!(values(b, y), [1f64.exp() + 2f64.exp()]);
}

#[test]
fn a_value_that_leaves_its_equation_reads_as_0_where_it_is_absent() {
    let (mut b, c, _, a) = builder();
    let mask = below(&mut b, c, 2);
    let masked = b.masked(a, mask);
    let y = b.define("y", None, masked);
    assert_eq!(values(b, y), [1.0, 2.0, 0.0, 0.0]);
}

#[test]
fn a_selection_that_is_written_out_is_nowhere_absent() {
    let (mut b, c, _, a) = builder();
    let mask = below(&mut b, c, 2);
    let minus = b.unary(Unary::Neg, a);
    let masked = b.masked(minus, mask);
    let zero = b.float(0.0);
    let written = b.select(mask, minus, zero);
    let (of_masked, of_written) = (b.reduce(Reduction::Max, &[c], masked), b.reduce(Reduction::Max, &[c], written));
    let both = b.binary(Binary::Sub, of_written, of_masked);
    let y = b.define("y", None, both);
    assert_eq!(values(b, y), [1.0]);
}

#[test]
fn a_comparison_is_false_where_it_is_absent() {
    let (mut b, c, _, a) = builder();
    let mask = below(&mut b, c, 2);
    let masked = b.masked(a, mask);
    let limit = b.float(10.0);
    let small = b.binary(Binary::Lt, masked, limit);
    let (one, two) = (b.float(1.0), b.float(2.0));
    let chosen = b.select(small, one, two);
    let y = b.define("y", None, chosen);
    assert_eq!(values(b, y), [1.0, 1.0, 2.0, 2.0]);
}

#[test]
fn a_mean_counts_what_is_present() {
    for (limit, expected) in [(4, 2.5), (2, 1.5)] {
        let (mut b, c, d, a) = builder();
        let at = b.coordinate(d);
        let product = b.binary(Binary::Mul, a, at);
        // Masked along one of two axes: over the other one, all are counted.
        let mask = below(&mut b, c, limit);
        let masked = b.masked(product, mask);
        let mean = b.mean(&[d, c], masked);
        let y = b.define("y", None, mean);
        assert_eq!(values(b, y), [expected]);
    }
    let (mut b, c, _, a) = builder();
    let mean = b.mean(&[c], a);
    let text = print_expr(b.graph(), mean);
    assert_eq!(text, "(sum[c] a) / 4.0");
}

#[test]
fn what_was_shared_costs_no_more_than_once() {
    let (mut b, c, _, a) = builder();
    let mut x = a;
    for _ in 0..200 {
        x = b.binary(Binary::Mul, x, x);
    }
    let largest = b.reduce(Reduction::Max, &[c], x);
    let y = b.define("y", None, largest);
    assert_eq!(values(b, y), [f64::INFINITY]);
}

/// The values and coordinates that `top` takes of these elements, two of them.
fn chosen(elements: &[f32], hidden: impl Fn(&mut Builder, AxisId, ExprId) -> ExprId) -> Vec<f64> {
    let mut b = Builder::new("g");
    let (e, j) = (b.axis("e", elements.len()), b.axis("j", 2));
    let x = b.weight("x", &[e], "x");
    let x = b.load(x);
    let x = hidden(&mut b, e, x);
    let (w, i) = b.top(("w", "i"), Some(&[j]), x, e, j);
    let (w, i, ten) = (b.load(w), b.load(i), b.float(10.0));
    let i = b.binary(Binary::Mul, ten, i);
    let both = b.binary(Binary::Add, w, i);
    let y = b.define("y", None, both);
    let graph = b.finish(y).unwrap();
    let weights = |_: &Tensor, _: Option<usize>| Ok(elements.to_vec());
    Interpreter::new(&graph, &weights).unwrap().step(&[]).unwrap().output
}

#[test]
fn the_largest_come_first_and_of_equals_the_first() {
    assert_eq!(chosen(&[1.0, 3.0, 2.0], |_, _, x| x), [13.0, 22.0]);
    assert_eq!(chosen(&[2.0, 2.0, 2.0], |_, _, x| x), [2.0, 12.0]);
    assert_eq!(chosen(&[-1.0, -3.0], |_, _, x| x), [-1.0, 7.0]);
    // What is absent comes last, as if it were less than anything.
    let masked = |b: &mut Builder, e: AxisId, x: ExprId| {
        let mask = below(b, e, 1);
        b.masked(x, mask)
    };
    assert_eq!(chosen(&[1.0, 3.0, 2.0], masked), [1.0, f64::NEG_INFINITY]);
}

#[test]
fn a_choice_of_more_than_there_are_is_refused() {
    let mut b = Builder::new("g");
    let (e, j) = (b.axis("e", 2), b.axis("j", 3));
    let x = b.weight("x", &[e], "x");
    let x = b.load(x);
    let (w, _) = b.top(("w", "i"), None, x, e, j);
    let error = b.finish(w).unwrap_err();
    assert_eq!(error.message, "`top[e -> j]` wants 3 of the 2 coordinates of `e`");
}

#[test]
fn a_bias_of_zeros_is_not_in_the_graph() {
    let (mut b, c, _, a) = builder();
    let (zeros, ones) = (b.uniform("bias", &[c], 0.0), b.uniform("scale", &[c], 2.0));
    let (zeros, ones) = (b.load(zeros), b.load(ones));
    let biased = b.binary(Binary::Add, a, zeros);
    let y = b.binary(Binary::Mul, biased, ones);
    let y = b.define("y", None, y);
    let graph = b.finish(y).unwrap();
    let names: Vec<&str> = graph.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "scale", "y"]);
    assert_eq!(graph.tensor(graph.output).name, "y");
    assert_eq!(einfuse_graph::parse(&graph.to_string()).unwrap(), graph);
}
