//! The text form: what is written is read back, and mistakes are told with their place.

use einfuse_graph::random::{Options, random_graph};
use einfuse_graph::{Expr, Kind, Node, Real, Type, Unary, parse, print_expr};
use proptest::prelude::*;

const ATTENTION: &str = "\
graph attention

axis t = tokens
axis s = positions
axis v = 5
axis d = 4
axis c = 2
axis n = 2

input tokens[t]
weight embed[v, d] = \"embed\"
weight wk[n, c, d] = \"{l}.k\" | \"{l}.qkv\"[4 .. 8]
constant freq[c] = [1.0, -0.5]
state k.cache[s, n, c] within 3

x[t, d] = embed[v = tokens[t], d]
layers y from x as h order 0 1 0
  body
    k[t, n, c] = (sum[d] h[t, d] * wk[n, c, d]) * freq[c]
    append k.cache = k
    e[t, n, s] = sum[c] k[t, n, c] * k.cache[s, n, c] - abs(float(t - s)) * 0.5
    %1 = s <= t && s > t - 3
    %2 = if %1 then exp(e[t, n, s] - (max[s] e[t, n, s] where %1)) else 0.0
    o[t, n, c] = (sum[s] %2 * k.cache[s, n, c]) / (sum[s] %2)
    z[t, d] = h[t, d] + sum[n, c] o[t, n, c] * wk[n, c, d]
    result z
  body
    r[t, d] = h[t, d] * rsqrt((sum[d] h[t, d] ^ 2.0) / 4.0 + 1e-5)
    result r
end
best[t] = argmax[d] -y[t, d]

output best
";

/// A graph of one equation, `y = …`, over axes `c` (5) and `d` (3) and tensors `a[c]`, `b[d]` and `i[t, c]`.
fn with(equation: &str) -> String {
    format!(
        "graph g\naxis t = tokens\naxis c = 5\naxis d = 3\ninput i[t, c]\n\
         weight a[c] = \"a\"\nweight b[d] = \"b\"\nweight `max`[c] = \"m\"\n{equation}\noutput y\n"
    )
}

/// The right side of the last equation as it is printed.
fn printed(equation: &str) -> String {
    let graph = parse(&with(equation)).unwrap_or_else(|e| panic!("{equation}: {e}"));
    let text = graph.to_string();
    assert_eq!(parse(&text).unwrap().to_string(), text);
    let line = text.lines().rev().find(|line| line.contains(" = ")).unwrap();
    line.split_once(" = ").unwrap().1.to_owned()
}

#[test]
fn a_text_is_printed_as_it_was_written() {
    assert_eq!(parse(ATTENTION).unwrap().to_string(), ATTENTION);
}

#[test]
fn operators_bind_as_they_are_written() {
    for (written, expected) in [
        ("y = a * b + a / b - a", "a[c] * b[d] + a[c] / b[d] - a[c]"),
        ("y = a - (b - a)", "a[c] - (b[d] - a[c])"),
        ("y = (a - b) - a", "a[c] - b[d] - a[c]"),
        ("y = a / (b * a)", "a[c] / (b[d] * a[c])"),
        ("y = sum[d] a * b + a", "sum[d] a[c] * b[d] + a[c]"),
        ("y = a + sum[d] a * b", "a[c] + sum[d] a[c] * b[d]"),
        ("y = a * sum[d] a * b", "a[c] * (sum[d] a[c] * b[d])"),
        ("y = (sum[d] b) * a", "(sum[d] b[d]) * a[c]"),
        ("y = sum[c] sum[d] a * b", "sum[c] sum[d] a[c] * b[d]"),
        ("y = max[c] a where c < 3 && c != 1", "max[c] a[c] where c < 3 && c != 1"),
        ("y = max[c] (sum[d] a * b where d > 0) where c < 3", "max[c] (sum[d] a[c] * b[d] where d > 0) where c < 3"),
        ("y = max[c] sum[d] a * b where d > 0", "max[c] (sum[d] a[c] * b[d] where d > 0)"),
        ("y = (max[c] a where c < 3) + 1", "(max[c] a[c] where c < 3) + 1.0"),
        ("y = sum[c] (if c < 3 then a else 1)", "sum[c] (if c < 3 then a[c] else 1.0)"),
        ("y = -a ^ 2", "-a[c] ^ 2.0"),
        ("y = (-a) ^ 2", "(-a[c]) ^ 2.0"),
        ("y = 2 ^ a ^ -0.5", "2.0 ^ a[c] ^ -0.5"),
        ("y = (2 ^ a) ^ b", "(2.0 ^ a[c]) ^ b[d]"),
        ("y = -2 ^ a", "-2.0 ^ a[c]"),
        ("y = (-2) ^ a", "(-2.0) ^ a[c]"),
        ("y = a - -1", "a[c] - -1.0"),
        ("y = a * -(1.5)", "a[c] * -(1.5)"),
        ("y = --a", "--a[c]"),
        ("y = size(c) ^ -0.5 * a", "5.0 ^ -0.5 * a[c]"),
        ("y = (c + 2 * d) % 3 / 2", "(c + 2 * d) % 3 / 2"),
        ("y = a[c = 4 - c] + b[d = c % 3]", "a[c = 4 - c] + b[d = c % 3]"),
        ("y = a[c = i] * i", "a[c = i[t, c]] * float(i[t, c])"),
        ("y = min(a, max(b, 0))", "min(a[c], max(b[d], 0.0))"),
        ("y = `max` + (max[c] `max`)", "`max`[c] + max[c] `max`[c]"),
        ("y = if !(c < 2 || d == 1) && c >= d then a else inf", "if !(c < 2 || d == 1) && c >= d then a[c] else inf"),
        ("y = if c < 1 then a else if c < 2 then 1 else -inf", "if c < 1 then a[c] else (if c < 2 then 1.0 else -inf)"),
        ("y = a +\n  b", "a[c] + b[d]"),
        ("y = (a\n  + b)  // a sum", "a[c] + b[d]"),
        ("y = 1e-5 * a + 1e300", "1e-5 * a[c] + 1e300"),
        (
            "y = abs(a) + log(a) + sqrt(a) + erf(sin(cos(a)))",
            "abs(a[c]) + log(a[c]) + sqrt(a[c]) + erf(sin(cos(a[c])))",
        ),
    ] {
        assert_eq!(printed(written), expected, "{written}");
    }
    // The negation of a constant, and the negative constant.
    for (written, expected) in [("y = -(1)", "-(1)"), ("y = -9223372036854775808", "-9223372036854775808")] {
        assert_eq!(printed(written), expected);
    }
}

#[test]
fn integers_become_floats_where_they_meet_floats() {
    let graph = parse(&with("y = c * a + 2")).unwrap();
    let Some(Node::Equation { out, .. }) = graph.nodes.last() else { panic!("no equation") };
    assert_eq!(graph.tensor(*out).ty, Type::Float);
    assert!(graph.exprs.contains(&Expr::Float(Real(2.0))));
    assert!(graph.exprs.iter().any(|expr| matches!(expr, Expr::Unary(Unary::ToFloat, _))));
}

#[test]
fn a_part_that_is_used_often_is_printed_once() {
    let mut text = String::new();
    text.push_str("%0 = a + 1\n");
    for i in 0..100 {
        text.push_str(&format!("%{} = %{i} * %{i}\n", i + 1));
    }
    let graph = parse(&with(&format!("{text}y = %100"))).unwrap();
    let text = graph.to_string();
    assert!(text.lines().count() < 120, "{text}");
    let again = parse(&text).unwrap();
    assert_eq!(again.to_string(), text);
    let Some(Node::Equation { body, .. }) = graph.nodes.last() else { panic!("no equation") };
    assert_eq!(graph.reachable(*body).len(), 104);
    let line = print_expr(&graph, *body);
    assert!(line.len() < 2000 && line.contains('…'), "{line}");
}

#[test]
fn a_deep_expression_is_printed_in_parts() {
    let mut text = "a".to_owned();
    for _ in 0..40 {
        text = format!("exp(-({text}))");
    }
    let graph = parse(&with(&format!("y = {text}"))).unwrap();
    let text = graph.to_string();
    assert!(text.contains("%3 = "), "{text}");
    assert_eq!(parse(&text).unwrap().to_string(), text);
}

#[test]
fn one_expression_is_printed_in_the_words_of_the_model() {
    let graph = parse(&with("y = (sum[c] a * `max` where c < 3) + b[d = 2]")).unwrap();
    let Some(Node::Equation { body, .. }) = graph.nodes.last() else { panic!("no equation") };
    assert_eq!(print_expr(&graph, *body), "(sum[c] a * `max` where c < 3) + b[d = 2]");
}

#[test]
fn names_of_any_kind_survive() {
    let mut graph = parse(&with("y = a * b")).unwrap();
    for (i, name) in ["sum", "größe", "with space", "9", "k.cache.2", "inf", "%1"].iter().enumerate() {
        graph.tensors[i % 4].name = (*name).to_owned();
        graph.axes[1].name = format!("{name}'");
        let text = graph.to_string();
        let again = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(again.to_string(), text);
        assert!(again.tensors.iter().any(|t| t.name == *name));
    }
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (written, expected) in [
        ("y = a + q", "9:9: there is no `q` up to here"),
        ("y = a[e]", "9:7: there is no axis `e`"),
        ("y = a[d]", "9:7: `a` has no axis `d`; it is declared over [c]"),
        ("y = a[c = b]", "9:7: an index wants an integer"),
        ("y = a[c = 5]", "9:1: `a[c = 5]`: the coordinates of `c` are 0 to 4"),
        ("y = sum[d] a", "9:12: the reduction is over `d`, but its body has only [c]"),
        ("y[c] = a * b", "9:1: `y` is declared over [c], but the right side has [c, d]"),
        ("y[c, d] = sum[d] a * b", "9:1: `y` is declared over [c, d], but the right side has [c]"),
        ("y = a +", "10:1: expected an expression, found `output`"),
        ("y = a b", "9:7: expected the end of the line, found `b`"),
        ("y = (a", "10:1: expected `)`, found `output`"),
        ("y = a)", "9:6: expected the end of the line, found `)`"),
        ("y = a $ b", "9:7: '$' means nothing here"),
        ("y = a && b", "9:7: expected masks, these are numbers"),
        ("y = a * (c < 1)", "9:7: a mask and a number meet"),
        ("y = (c < 1) + (d < 1)", "9:13: expected numbers, these are masks"),
        ("y = c < d < 2", "9:11: comparisons don't chain: join them by `&&`"),
        ("y = !a", "9:5: `!` of a number"),
        ("y = -(c < 1)", "9:5: `-` of a mask"),
        ("y = exp(c < 1)", "9:5: `exp` of a mask"),
        ("y = float(a)", "9:5: `float` of a float"),
        ("y = a % 2", "9:7: `%` is of integers"),
        ("y = gelu(a)", "9:5: there is no function `gelu`"),
        ("y = if a then 1 else 2", "9:8: expected a mask (a comparison), this is a number"),
        ("y = 1 + if c < 1 then a else 2", "9:9: an `if` inside wants parentheses"),
        ("y = sum[c] (c < 1)", "9:12: a reduction of a mask"),
        ("y = argmax[c, d] a * b", "9:1: argmax over 2 axes"),
        ("y = size(t) * a", "9:5: only an axis of a fixed size has a size"),
        ("y = %1", "9:5: there is no `%1` before this equation"),
        ("%1 = a\n%1 = b\ny = %1", "10:1: `%1` is made twice before its equation"),
        ("a = b", "9:1: the name `a` is taken"),
        ("axis y = 3", "10:8: there is no tensor `y` up to here"),
        ("axis e = 0\ny = a", "9:6: axis `e` has size 0"),
        ("axis e = -1", "9:10: expected a size, `tokens` or `positions`, found `-`"),
        ("axis e = tokens\ny = a", "9:6: axis `e` is a second tokens axis"),
        ("constant k[c] = [1, 2]\ny = k", "9:10: the constant `k` has 2 values for 5 elements of floats"),
        ("constant k[c] = [1, x]\ny = k", "9:21: expected a number, found `x`"),
        ("weight w[t] = \"w\"\ny = w", "9:8: the weight `w` is not of numbers over axes of fixed sizes"),
        ("weight w[c] = w", "9:15: there is no `w` up to here"),
        ("weight w[c] = \"w\" | w", "9:21: expected the name of a file's tensor in quotes, found `w`"),
        ("weight w[c] of mask = \"w\"", "9:16: expected `int`, found `mask`"),
        ("q[c] = a\nweight w[c] = q\ny = w", "10:8: the weight `w` is made of `q`, which no checkpoint has"),
        ("weight w[c] = b\ny = w", "9:8: `w` is declared over [c], but the right side has [d]"),
        ("weight w[c] = sum[d] a * b\ny = w", "9:8: the weight `w` is made by a reduction"),
        ("weight w[c] = c\ny = w", "9:8: `w` is float, its definition int"),
        ("weight w[c] = \"w", "9:15: a text in quotes doesn't end in its line"),
        ("weight w[c] = \"w\"[3 .. 3]\ny = w", "9:8: the weight `w` takes no rows of a file's tensor"),
        ("state k[c]\ny = a", "9:7: the state `k` wants an axis of positions first, and others of fixed sizes"),
        ("axis s = positions\nstate k[s, c]\ny = k", "11:1: `k` is used where it is not yet appended to"),
        (
            "axis s = positions\nstate k[s, c]\nappend k = a\ny = a",
            "10:7: rows of `a` over [c] don't fit the state `k` over [s, c]",
        ),
        ("append a = b\ny = a", "6:8: `a` is not a state"),
        ("weight w[c] = \"{l}\"\ny = w", "10:1: `w` is of a layer, but is used outside of the layers"),
        ("layers y from a as h order 0\nend\nq = a", "9:8: a layer has the body 0, there are 0"),
        (
            "layers y from a as h order 0\nbody\nresult b\nend\nq = a",
            "9:8: `b` over [d] stands in the layers for `a` over [c]",
        ),
        (
            "layers y from a as h order 0\nbody\nz = h\nresult z\nend\nq = z\ny2 = q",
            "14:1: `z` is used where it is not yet defined",
        ),
        ("layers y from a as h order 0\nbody\nlayers", "11:1: expected an equation or a declaration, found `layers`"),
        ("= a", "9:1: expected an equation or a declaration, found `=`"),
        ("y = a\noutput y\nz = a", "11:1: expected nothing after the output, found `z`"),
        ("y = 99999999999999999999", "9:5: 99999999999999999999 is not an integer of 64 bits"),
    ] {
        let message = match parse(&with(written)) {
            Err(error) => error.to_string(),
            Ok(graph) => panic!("{written} was accepted:\n{graph}"),
        };
        assert_eq!(message, expected, "{written}");
    }
    assert_eq!(parse("").unwrap_err().to_string(), "1:1: expected `graph`, found the end");
    assert_eq!(parse("graph g\n").unwrap_err().message, "expected an equation or a declaration, found the end");
}

#[test]
fn nesting_is_bounded() {
    for (open, close) in [("(", ")"), ("-", ""), ("exp(", ")"), ("a[c = ", "]"), ("2 ^ ", ""), ("sum[c] ", "")] {
        let text = with(&format!("y = {}a{}", open.repeat(100_000), close.repeat(100_000)));
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.contains("nested more than 128 deep"), "{open}: {message}");
    }
    let text = with(&format!("y = a{}", " + a".repeat(1000)));
    assert!(parse(&text).unwrap_err().to_string().contains("nested more than 256 deep"));
}

#[test]
fn an_ill_formed_graph_prints_what_is_wrong() {
    let mut graph = parse(ATTENTION).unwrap();
    graph.tensors[0].kind = Kind::Carry;
    assert_eq!(graph.to_string(), "// ill-formed: `tokens` is used where it is not yet defined\n");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic(
        seed: u64, at: prop::sample::Index, length in 0..20usize, put in "[a-z0-9%()\\[\\],=<.\"` \n*+-]{0,8}",
    ) {
        let text: Vec<char> = random_graph(seed, Options { pieces: 1, ..Options::default() }).to_string().chars().collect();
        let start = at.index(text.len());
        let end = (start + length).min(text.len());
        let text: String = text[..start].iter().copied().chain(put.chars()).chain(text[end..].iter().copied()).collect();
        if let Ok(graph) = parse(&text) {
            prop_assert_eq!(parse(&graph.to_string()).unwrap().to_string(), graph.to_string());
        }
    }
}
