//! What the builder makes of masks and means.

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
