//! What graphs mean, case by case, and what the interpreter refuses.

use einfuse_graph::{Graph, InterpretError, Interpreter, Output, Tensor, parse};

/// Weights by name: of a layered one, the layer's number in every element; else 1, 2, 3, …
fn weights(tensor: &Tensor, layer: Option<usize>) -> Result<Vec<f32>, String> {
    match (tensor.name.as_str(), layer) {
        ("missing", _) => Err("the file has no such tensor".to_owned()),
        ("short", _) => Ok(vec![1.0]),
        (_, Some(layer)) => Ok(vec![layer as f32; 3]),
        _ => Ok((1..=5).map(|v| v as f32).collect()),
    }
}

fn graph(text: &str) -> Graph {
    let head =
        "graph g\naxis t = tokens\naxis s = positions\naxis c = 5\naxis d = 3\ninput i[t]\nweight a[c] = \"a\"\n";
    parse(&format!("{head}{text}\noutput y\n")).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn run(text: &str, ids: &[i64]) -> Result<Output, InterpretError> {
    let graph = graph(text);
    let mut interpreter = Interpreter::new(&graph, &weights)?;
    interpreter.step(&[("i", ids)])
}

fn values(text: &str, ids: &[i64]) -> Vec<f64> {
    run(text, ids).unwrap_or_else(|e| panic!("{e}\n{text}")).output
}

fn refusal(text: &str, ids: &[i64]) -> String {
    match run(text, ids) {
        Err(error) => error.to_string(),
        Ok(output) => panic!("{text}: {:?}", output.output),
    }
}

#[test]
fn expressions_mean_what_they_say() {
    for (text, expected) in [
        ("y[c] = a * 2 - c", vec![2.0, 3.0, 4.0, 5.0, 6.0]),
        ("y = sum[c] a", vec![15.0]),
        ("y = sum[c] a * a where c > 2", vec![41.0]),
        ("y = max[c] (3 - abs(a - 3))", vec![3.0]),
        ("y = argmax[c] (3 - abs(a - 3))", vec![2.0]),
        ("y = argmax[c] 0 * a", vec![0.0]),
        ("y = min[c] a where c > 9", vec![f64::INFINITY]),
        ("y = sum[c, d] a * d", vec![45.0]),
        ("y[c] = a[c = 4 - c]", vec![5.0, 4.0, 3.0, 2.0, 1.0]),
        ("y[d] = sum[c] a * (if c == d then 1 else 0)", vec![1.0, 2.0, 3.0]),
        ("y = (-7) / 2 * 10 + (-7) % 3", vec![-38.0]),
        ("y[d] = 7 / d * 10 + 7 % (d + d)", vec![70.0, 71.0, 33.0]),
        ("y[d] = 7 / (-d) * 10 + 7 % (-d)", vec![70.0, 70.0, 70.0]),
        ("y[d, c] = d * 10 + c", (0..3).flat_map(|d| (0..5).map(move |c| f64::from(d * 10 + c))).collect()),
        // The axis that a reduction binds is another one than outside.
        ("y[c] = a / (sum[c] a)", (1..=5).map(|v| f64::from(v) / 15.0).collect()),
        ("z[c, d] = a * d\ny[d] = sum[c] z", vec![0.0, 15.0, 30.0]),
        (
            "weight q[c] of int = \"q\"\nweight w[c] = a[c = c / 2] * float(q - 3)\ny = w",
            vec![-2.0, -1.0, 0.0, 2.0, 6.0],
        ),
    ] {
        assert_eq!(values(text, &[0]), expected, "{text}");
    }
}

#[test]
fn only_the_chosen_side_of_a_selection_is_evaluated() {
    assert_eq!(values("y[t] = if i < 5 then a[c = i] else -1", &[1, 99, 4]), [2.0, -1.0, 5.0]);
    assert_eq!(values("y[t] = sum[d] (if i < 5 then a[c = i] * d else 0)", &[1, 99]), [6.0, 0.0]);
}

#[test]
fn positions_count_on_from_step_to_step() {
    let graph =
        graph("state k.cache[s]\nk[t] = i * 1.0\nappend k.cache = k\ny[t] = t * 100 + (sum[s] k.cache where s <= t)");
    let mut interpreter = Interpreter::new(&graph, &weights).unwrap();
    assert_eq!(interpreter.step(&[("i", &[1, 2])]).unwrap().output, [1.0, 103.0]);
    assert!(interpreter.step(&[("i", &[])]).unwrap().output.is_empty());
    assert_eq!(interpreter.step(&[("i", &[4])]).unwrap().output, [207.0]);
    assert_eq!(interpreter.past(), 3);
}

#[test]
fn a_failed_step_appends_nothing() {
    let graph = graph("state k.cache[s]\nk[t] = i * 1.0\nappend k.cache = k\nz = sum[s] k.cache\ny[t] = a[c = i] + z");
    let mut interpreter = Interpreter::new(&graph, &weights).unwrap();
    assert_eq!(interpreter.step(&[("i", &[1])]).unwrap().output, [3.0]);
    assert!(interpreter.step(&[("i", &[7])]).is_err());
    assert_eq!(interpreter.past(), 1);
    assert_eq!(interpreter.step(&[("i", &[2])]).unwrap().output, [6.0]);
}

#[test]
fn layers_have_their_own_weights_and_states() {
    let text = "weight w[d] = \"{l}\"\nstate k.cache[s, d]\nx[t, d] = 1.0 * (i + d * 0)\nlayers z from x as h order 0 1 0\n\
                body\nk[t, d] = h + w\nappend k.cache = k\nr[t, d] = sum[s] k.cache where s <= t\nresult r\n\
                body\nq[t, d] = -h\nresult q\nend\ny[t] = sum[d] z / 3";
    let graph = graph(text);
    let mut interpreter = Interpreter::new(&graph, &weights).unwrap();
    // Layer 0 sums what came before, layer 1 negates, layer 2 adds 2 and sums again.
    let output = interpreter.step(&[("i", &[5])]).unwrap();
    assert_eq!(output.output, [-3.0]);
    assert_eq!(output.hidden, [[5.0; 3], [5.0; 3], [-5.0; 3], [-3.0; 3]]);
    let output = interpreter.step(&[("i", &[1])]).unwrap();
    assert_eq!(output.output, [-3.0 + (-6.0 + 2.0)]);
    let value = |name, layer| output.value(name, layer).map(|v: &[einfuse_graph::Number]| v[0].value);
    assert_eq!(value("h", Some(2)), Some(-6.0));
    assert_eq!(value("q", Some(1)), Some(-6.0));
    assert_eq!(value("q", Some(0)), None);
    assert_eq!(value("z", None), Some(-7.0));
}

#[test]
fn refusals_name_the_thing() {
    for (text, ids, expected) in [
        ("y[t] = a[c = i]", &[1i64, 5][..], "`y`: `a[c = 5]` is outside the coordinates of `c`: they are 0 to 4"),
        ("y[t] = a[c = i]", &[-1], "`y`: `a[c = -1]` is outside the coordinates of `c`: they are 0 to 4"),
        ("y[t] = i * i", &[1 << 40], "`y`: `mul` of the integers 1099511627776 and 1099511627776 has no value"),
        ("y[t] = i * i", &[1 << 30], "`y`: the integer 1152921504606847000 is beyond 2^53"),
        ("y[t] = i", &[i64::MIN], "the input `i` has the value -9223372036854775808, beyond 2^53"),
        ("weight short[c] = \"s\"\ny = short", &[0], "weight `short` has 1 elements, its axes [c] want 5"),
        ("weight missing[c] = \"m\"\ny = missing", &[0], "weight `missing`: the file has no such tensor"),
        ("x[t] = i * 1.0\ny = x[t = 3]", &[0], "`y`: `x[t = 3]` is outside the coordinates of `t`: they are 0 to 0"),
        (
            "weight short[d] = \"{l}\"\nx[d] = d * 1.0\nlayers y from x as h order 0\nbody\nr = h + short\nresult r\nend",
            &[0],
            "weight `short` of layer 0 has 1 elements, its axes [d] want 3",
        ),
        (
            "x[t] = i\nlayers y from x as h order 0 0\nbody\nr[t] = h - 1 + (i - h) * 4503599627370496 * 4\nresult r\nend",
            &[5],
            "`r` of layer 1: the integer 18014398509481984 is beyond 2^53",
        ),
        (
            "axis huge = 1000000\naxis wide = 1000000\ny[huge, wide] = huge * wide",
            &[0],
            "`y`: [1000000, 1000000] are more than 67108864 elements, too many to interpret",
        ),
    ] {
        assert_eq!(refusal(text, ids), expected, "{text}");
    }
}

#[test]
fn inputs_are_checked() {
    let graph =
        parse("graph g\naxis t = tokens\naxis d = 3\ninput i[t]\ninput j[t, d]\ninput k[d]\ny = i + j + k\noutput y")
            .unwrap();
    let mut interpreter = Interpreter::new(&graph, &weights).unwrap();
    let mut refusal = |inputs: &[(&str, &[i64])]| match interpreter.step(inputs) {
        Err(error) => error.to_string(),
        Ok(output) => panic!("{:?}", output.output),
    };
    assert_eq!(refusal(&[]), "the input `i` is missing");
    assert_eq!(refusal(&[("i", &[1]), ("k", &[1, 2, 3])]), "the input `j` is missing");
    let uneven = refusal(&[("i", &[1]), ("j", &[1, 2]), ("k", &[1, 2, 3])]);
    assert_eq!(uneven, "the input `j` over [t, d] has 2 elements for 1 tokens");
    let long = refusal(&[("i", &[1]), ("j", &[0; 6]), ("k", &[1, 2, 3])]);
    assert_eq!(long, "the input `j` over [t, d] has 6 elements for 1 tokens");
    let fixed = refusal(&[("i", &[1]), ("j", &[0; 3]), ("k", &[1, 2])]);
    assert_eq!(fixed, "the input `k` over [d] has 2 elements for 1 tokens");
    let unknown = refusal(&[("i", &[1]), ("j", &[0; 3]), ("k", &[1, 2, 3]), ("l", &[0])]);
    assert_eq!(unknown, "the graph has no input `l`");

    let graph = parse("graph g\naxis t = tokens\ny[t] = t\noutput y").unwrap();
    let error = Interpreter::new(&graph, &weights).unwrap().step(&[]).err().map(|e| e.to_string());
    assert_eq!(error.as_deref(), Some("no input has the tokens axis, so the number of tokens is unknown"));
}

#[test]
fn an_ill_formed_graph_is_refused() {
    let mut graph = graph("y = a");
    graph.exprs.clear();
    let error = Interpreter::new(&graph, &weights).err().map(|e| e.to_string());
    assert_eq!(error.as_deref(), Some("expression 1 is not in the graph"));
}

#[test]
fn bounds_are_infinite_where_rounding_decides() {
    let bound = |text: &str| run(text, &[0]).unwrap().bound[0];
    // Which of these is the larger is for rounding to say.
    let close = "x[c] = if c == 0 then 0.3 else 0.1 * 3";
    assert_eq!(bound(&format!("{close}\ny = argmax[c] x")), f64::INFINITY);
    assert_eq!(bound(&format!("{close}\ny = a[c = argmax[c] x]")), f64::INFINITY);
    assert_eq!(bound("y = argmax[c] a"), 0.0);
    assert_eq!(bound("y = exp(sum[c] a * 10)"), f64::INFINITY);
    assert_eq!(bound("y = 1 / (sum[c] a - 15)"), f64::INFINITY);
    // Near a threshold both sides count.
    let jump = bound("y = if (sum[c] a * 0.1) > 1.5 then 7 else 5");
    assert!((2.0..2.1).contains(&jump), "{jump}");
    let smooth = bound("x = (sum[c] a * 0.1) - 1.5\ny = if x > 0 then x else 0");
    assert!(smooth < 1e-5, "{smooth}");
    // A masked maximum has no error of its own.
    assert_eq!(bound("y = max[c] a where c < 2"), 0.0);
}

#[test]
fn the_deepest_expression_runs() {
    let mut text = "%0 = a[c = 0]\n".to_owned();
    // Two levels for each: a sum of one element, and the negation.
    for i in 0..126 {
        text.push_str(&format!("%{} = -(sum[d] %{i} * (if d == 0 then 1 else 0))\n", i + 1));
    }
    let message =
        match parse(&format!("graph g\naxis c = 2\naxis d = 3\nweight a[c] = \"a\"\n{text}y = %126\noutput y")) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.message,
        };
    assert_eq!(message, "an expression is nested more than 256 deep");
    let text: String = text.lines().take(84).map(|line| format!("{line}\n")).collect();
    let graph =
        parse(&format!("graph g\naxis c = 2\naxis d = 3\nweight a[c] = \"a\"\n{text}y = %83\noutput y")).unwrap();
    let weights = |_: &Tensor, _: Option<usize>| Ok(vec![7.0, 8.0]);
    assert_eq!(Interpreter::new(&graph, &weights).unwrap().step(&[]).unwrap().output, [-7.0]);
    assert_eq!(parse(&graph.to_string()).unwrap().to_string(), graph.to_string());
}
