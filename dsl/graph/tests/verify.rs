//! The verifier finds what is wrong, and holds whatever it is given: what it accepts prints, parses and runs.

use einfuse_graph::random::{Options, random_graph, random_inputs, random_weights};
use einfuse_graph::*;
use proptest::prelude::*;

const TEXT: &str = "graph g
axis t = tokens
axis s = positions
axis c = 5
axis d = 3
input i[t]
weight a[c] = \"a\"
weight w[d] = \"{l}\"
state k.cache[s, d] within 2
x[t, d] = i * 1.0 + d
layers z from x as h order 0
  body
    k[t, d] = h + w
    append k.cache = k
    r[t, d] = sum[s] k.cache where s <= t
    result r
end
y[t, d] = a[c = d] * z
output y
";

fn tensor(graph: &Graph, name: &str) -> TensorId {
    TensorId(graph.tensors.iter().position(|t| t.name == name).unwrap() as u32)
}

fn expr(graph: &Graph, is: impl Fn(&Expr) -> bool) -> usize {
    graph.exprs.iter().position(is).unwrap()
}

#[test]
fn each_mistake_is_found() {
    type Break = fn(&mut Graph);
    let cases: [(Break, &str); 39] = [
        (|g| g.name.clear(), "the graph's name \"\" is empty or has a character that names can't have"),
        (|g| g.axes[3].name = "c".into(), "two axes or tensors are named `c`"),
        (|g| g.axes[3].name = "a".into(), "two axes or tensors are named `a`"),
        (|g| g.axes[3].name = "a`".into(), "the name \"a`\" is empty or has a character that names can't have"),
        (|g| g.tensors[0].name = "\n".into(), "the name \"\\n\" is empty or has a character that names can't have"),
        (|g| g.axes[3].extent = Extent::Fixed(0), "axis `d` has size 0"),
        (|g| g.axes[3].extent = Extent::Tokens, "axis `d` is a second tokens axis"),
        (|g| g.axes[2].extent = Extent::Fixed(usize::MAX), "`a` has more elements than memory can hold"),
        (|g| g.tensors[1].axes[0] = AxisId(9), "`a` has an axis that is not in the graph"),
        (|g| g.tensors[0].axes.push(AxisId(0)), "`i` has the axis `t` twice"),
        (|g| g.tensors[0].ty = Type::Float, "the input `i` is not of integers"),
        (|g| g.tensors[0].axes[0] = AxisId(1), "the input `i` has an axis of positions"),
        (|g| g.tensors[1].ty = Type::Mask, "the weight `a` is not of numbers over axes of fixed sizes"),
        (|g| g.tensors[1].kind = Kind::Weight(vec![]), "the weight `a` has no place in a checkpoint"),
        (
            |g| g.tensors[1].kind = Kind::Weight(vec!["\"".into()]),
            "the weight `a` comes from a name that text can't hold",
        ),
        (|g| g.tensors[1].kind = Kind::Constant(vec![1.0]), "the constant `a` has 1 values for 5 elements of floats"),
        (
            |g| g.tensors[3].axes.reverse(),
            "the state `k.cache` wants an axis of positions first, and others of fixed sizes",
        ),
        (|g| g.tensors[3].kind = Kind::State { window: Some(0) }, "the window of the state `k.cache` is 0"),
        (|g| g.tensors[1].kind = Kind::Value, "`a` is used where it is not yet defined"),
        (|g| g.tensors[4].kind = Kind::Input, "the input `x` is not of integers"),
        (|g| g.tensors[4].kind = Kind::Carry, "`x` is not a value"),
        (|g| g.exprs[0] = Expr::Unary(Unary::Neg, ExprId(0)), "expression 0 refers to one that doesn't come before it"),
        (|g| g.exprs.push(Expr::Coordinate(AxisId(9))), "axis 9 is not in the graph"),
        (|g| g.exprs.push(Expr::Float(Real(f64::NAN))), "a constant is not a number (NaN)"),
        (|g| g.exprs.push(Expr::Load { tensor: TensorId(99), index: vec![] }), "tensor 99 is not in the graph"),
        (|g| g.exprs.push(Expr::Load { tensor: TensorId(1), index: vec![] }), "`a` over [c] is read at 0 indices"),
        (
            |g| {
                let float = expr(g, |e| matches!(e, Expr::Float(_)));
                g.exprs.push(Expr::Load { tensor: TensorId(1), index: vec![ExprId(float as u32)] });
            },
            "`a[c = …]` wants an integer",
        ),
        (
            |g| {
                let at = ExprId(g.exprs.len() as u32);
                g.exprs.push(Expr::Int(0));
                let d = ExprId(expr(g, |e| *e == Expr::Coordinate(AxisId(3))) as u32);
                g.exprs.push(Expr::Load { tensor: TensorId(3), index: vec![at, d] });
            },
            "`k.cache` keeps a window, so it is read along an axis of positions only",
        ),
        (
            |g| {
                let mask = expr(g, |e| matches!(e, Expr::Binary(Binary::Le, ..)));
                g.exprs.push(Expr::Unary(Unary::Exp, ExprId(mask as u32)));
            },
            "exp of mask",
        ),
        (
            |g| {
                let divisor = ExprId(g.exprs.len() as u32);
                g.exprs.push(Expr::Int(0));
                g.exprs.push(Expr::Binary(Binary::Rem, divisor, divisor));
            },
            "integers are divided by 0, not by 1 or more",
        ),
        (
            |g| {
                let reduce = expr(g, |e| matches!(e, Expr::Reduce { .. }));
                if let Expr::Reduce { axes, .. } = &mut g.exprs[reduce] {
                    axes.push(AxisId(2));
                }
            },
            "the reduction is over `c`, but its body has only [s, t, d]",
        ),
        (
            |g| {
                let reduce = expr(g, |e| matches!(e, Expr::Reduce { .. }));
                if let Expr::Reduce { axes, .. } = &mut g.exprs[reduce] {
                    axes.push(AxisId(1));
                }
            },
            "a reduction is over the axis `s` twice",
        ),
        (
            |g| {
                let mut last = ExprId(expr(g, |e| matches!(e, Expr::Float(_))) as u32);
                for _ in 0..MAX_DEPTH {
                    g.exprs.push(Expr::Unary(Unary::Neg, last));
                    last = ExprId(g.exprs.len() as u32 - 1);
                }
            },
            "an expression is nested more than 256 deep",
        ),
        (|g| g.nodes.swap(0, 1), "`x` is used where it is not yet defined"),
        (|g| g.nodes.push(g.nodes[0].clone()), "`x` is defined twice"),
        (|g| g.output = TensorId(0), "the output `i` is not a value that the graph defines"),
        (|g| g.output = tensor(g, "r"), "the output `r` is not a value that the graph defines"),
        (
            |g| {
                let y = tensor(g, "y");
                g.tensors[y.index()].axes.pop();
            },
            "`y` is declared over [t], but the right side has [d, t]",
        ),
        (
            |g| {
                let Node::Layers(layers) = &g.nodes[1] else { return };
                let inner = Node::Layers(layers.clone());
                if let Node::Layers(layers) = &mut g.nodes[1] {
                    layers.bodies[0].nodes.insert(0, inner);
                }
            },
            "layers within layers",
        ),
    ];
    for (i, (mistake, expected)) in cases.into_iter().enumerate() {
        let mut graph = parse(TEXT).unwrap();
        mistake(&mut graph);
        let message = verify(&graph).err().map(|e| e.message);
        assert_eq!(message.as_deref(), Some(expected), "case {i}");
    }
}

/// Puts some other value in one place of a graph.
fn disturb(graph: &mut Graph, what: u8, at: prop::sample::Index, to: u32) {
    let count = graph.exprs.len();
    let expr = at.index(count);
    let tensor = at.index(graph.tensors.len());
    match what {
        0 => graph.exprs[expr].for_each_child_mut(|child| child.0 = to),
        1 => graph.exprs[expr] = Expr::Coordinate(AxisId(to)),
        2 => graph.exprs[expr] = Expr::Int(to as i64 - 2),
        3 => match &mut graph.exprs[expr] {
            Expr::Load { tensor, .. } => tensor.0 = to,
            Expr::Reduce { axes, .. } => axes.push(AxisId(to)),
            Expr::Binary(op, ..) => *op = if to.is_multiple_of(2) { Binary::Rem } else { Binary::Div },
            Expr::Unary(op, _) => *op = if to.is_multiple_of(2) { Unary::Not } else { Unary::ToFloat },
            _ => {}
        },
        4 => graph.tensors[tensor].axes.push(AxisId(to)),
        5 => drop(graph.tensors[tensor].axes.pop()),
        6 => graph.tensors[tensor].kind = Kind::Value,
        7 => graph.tensors[tensor].kind = Kind::Input,
        8 => graph.tensors[tensor].kind = Kind::State { window: Some(to as usize) },
        9 => graph.tensors[tensor].ty = [Type::Float, Type::Int, Type::Mask][to as usize % 3],
        10 => graph.output = TensorId(to),
        11 => {
            let node = at.index(graph.nodes.len());
            graph.nodes.remove(node);
        }
        12 => {
            let axis = at.index(graph.axes.len());
            graph.axes[axis].extent = [Extent::Fixed(to as usize), Extent::Tokens, Extent::Positions][to as usize % 3];
        }
        _ => {
            let node = at.index(graph.nodes.len());
            match &mut graph.nodes[node] {
                Node::Equation { out, body } => {
                    if to.is_multiple_of(2) {
                        out.0 = to
                    } else {
                        body.0 = to
                    }
                }
                Node::Append { state, rows } => {
                    if to.is_multiple_of(2) {
                        state.0 = to
                    } else {
                        rows.0 = to
                    }
                }
                Node::Layers(layers) => match to % 5 {
                    0 => layers.carry.0 = to,
                    1 => layers.initial.0 = to,
                    2 => layers.out.0 = to,
                    3 => layers.order.push(to as usize),
                    _ => layers.bodies.iter_mut().for_each(|body| body.result.0 = to),
                },
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_works(
        seed: u64, changes in prop::collection::vec((0..14u8, any::<prop::sample::Index>(), 0..60u32), 1..3),
    ) {
        let mut graph = random_graph(seed, Options { pieces: 1, ..Options::default() });
        for (what, at, to) in changes {
            disturb(&mut graph, what, at, to);
        }
        let text = graph.to_string();
        if verify(&graph).is_ok() {
            prop_assert_eq!(parse(&text).map_err(|e| e.to_string()).map(|g| g.to_string()), Ok(text));
            let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, &graph);
            let mut interpreter = Interpreter::new(&graph, &weights).unwrap();
            let inputs = random_inputs(&graph, 2, seed);
            let inputs: Vec<(&str, &[i64])> = inputs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            if let Ok(output) = interpreter.step(&inputs) {
                prop_assert_eq!(output.output.len(), output.bound.len());
            }
        } else {
            prop_assert!(text.starts_with("// ill-formed: "));
            prop_assert!(parse(&text).is_err());
        }
    }
}
