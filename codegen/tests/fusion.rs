//! Runs the files under `filetests/fuse`: a graph as text, then the plans that become of it.
//!
//! A section begins with a line of `----` and is `plan`, the plan made by all rules, or `plan without RULE, …`, that made by
//! the others; `plan for N tokens` is that for steps of so many. Whatever the sections, the graph is compiled with all rules,
//! with each switched off in turn and with none, and held against the interpreter.
//!
//! `BLESS=1` writes what is found into the files.

mod common;
mod support;

use common::{Expected, Runner, hold, interpreted};
use einfuse_codegen::fuse::{Typical, fuse};
use einfuse_codegen::lower::{Target, compile_text};
use einfuse_codegen::{Format, Options, Program, Rule, Wanted};
use einfuse_graph::random::random_weights;
use einfuse_graph::{Extent, Graph, Tensor, parse};

/// Tokens of each step: short ones, and some that cross the border of a page.
const STEPS: [&[usize]; 2] = [&[5, 1, 1, 8, 1], &[40, 40, 1, 1]];

#[test]
fn plans() {
    support::filetests("fuse", |source, kinds| {
        let graph = parse(source).map_err(|e| e.to_string())?;
        means_what_the_interpreter_says(&graph)?;
        kinds.iter().map(|kind| plan(&graph, kind)).collect()
    });
}

/// The plan that a section asks for.
fn plan(graph: &Graph, kind: &str) -> Result<String, String> {
    let (what, names) = kind.split_once(" without ").unwrap_or((kind, ""));
    let tokens = what.strip_prefix("plan for ").and_then(|rest| rest.strip_suffix(" tokens")).map(str::parse);
    let step = match (what, tokens) {
        ("plan", _) => Typical::DECODE,
        (_, Some(Ok(tokens))) => Typical { tokens, ..Typical::DECODE },
        _ => return Err(format!("no section is `{kind}`")),
    };
    let names = names.split(", ").filter(|name| !name.is_empty());
    let without = names.map(|name| name.parse::<Rule>().map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
    Ok(fuse(graph, &without, Wanted::Last, step, &|_, _| Format::F32.into()).to_string())
}

fn means_what_the_interpreter_says(graph: &Graph) -> Result<(), String> {
    let expected = STEPS.iter().map(|steps| interpreted(graph, 7, steps)).collect::<Result<Vec<_>, _>>()?;
    let each_off = Rule::ALL.iter().map(std::slice::from_ref);
    for without in [&[], Rule::ALL].into_iter().chain(each_off) {
        holds(graph, without, Wanted::All, &expected).map_err(|e| format!("without {without:?}: {e}"))?;
    }
    holds(graph, &[], Wanted::Last, &expected).map_err(|e| format!("the last rows alone: {e}"))
}

fn holds(graph: &Graph, without: &[Rule], rows: Wanted, expected: &[Vec<Expected>]) -> Result<(), String> {
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, graph);
    let options = Options {
        without: without.to_vec(),
        chunk: 40,
        positions: 128,
        cache: Format::F32,
        rows,
        ..Options::default()
    };
    let mut runner = Runner::new(graph, &weights, Format::F32, &options, 128)?;
    if without.is_empty() {
        compiles_for_others(&runner.program)?;
    }
    for workers in [1, 3] {
        for steps in expected {
            hold(&mut runner, workers, steps).map_err(|e| format!("{workers} workers: {e}"))?;
        }
    }
    Ok(())
}

/// There is code for machines that this one isn't.
fn compiles_for_others(program: &Program) -> Result<(), String> {
    let other = Target::named(if cfg!(target_arch = "x86_64") { "aarch64" } else { "x86_64" });
    let other = other.map_err(|e| e.to_string())?;
    program.kernels().iter().try_for_each(|kernel| {
        compile_text(&kernel.loops, &other).map(|_| ()).map_err(|e| format!("{}: {e}", kernel.loops.name))
    })
}

#[test]
fn expressions_nest_as_deep_as_graphs_allow() {
    let head = "graph deep\naxis d = 16\naxis v = 7\naxis t = tokens\ninput tokens[t]\nweight embed[v, d] = \"embed\"\n\
                x[t, d] = embed[v = tokens]\n";
    let nested = (0..120).fold("x".to_owned(), |inner, _| format!("({inner} * 0.5 + 1.0)"));
    let nested = format!("{head}y[t, d] = {nested}\noutput y\n");
    let steps = (0..300).map(|i| {
        format!("x.{}[t, d] = x{} * 0.5 + 1.0\n", i + 2, if i > 0 { format!(".{}", i + 1) } else { String::new() })
    });
    let chained = format!("{head}{}output x.301\n", steps.collect::<String>());
    for text in [nested, chained] {
        means_what_the_interpreter_says(&parse(&text).unwrap()).unwrap();
    }
}

/// Two layers, in the sizes of a small model.
const LAYERS: &str = include_str!("filetests/fuse/two_layers.graph");

/// The sizes of a larger one.
const SIZES: [(&str, usize); 5] = [("d", 576), ("n", 3), ("g", 3), ("f", 1536), ("v", 49152)];

/// Bytes that a token may take between kernels: floats of the activation, of the queries, of what they return, and of the
/// wide layer; twice, for what is read and written at once. And the normalised activation, with a line between rows.
const PER_TOKEN: usize = 2 * 4 * (576 + 36 + 36 + 1536) + 4 * (576 + 16);

#[test]
fn no_kernel_keeps_scores() {
    let mut graph = parse(LAYERS.split("\n---- ").next().unwrap_or_default()).expect("a graph");
    for (name, size) in SIZES {
        let axis = graph.axes.iter_mut().find(|axis| axis.name == name).expect("an axis");
        axis.extent = Extent::Fixed(size);
    }
    let arena = |tokens: usize, without: &[Rule]| {
        let options = Options { without: without.to_vec(), chunk: tokens, positions: tokens, ..Options::default() };
        Program::compile(&graph, &|_, _| Format::F32.into(), &options).expect("a program").arena_bytes()
    };
    let (short, long) = (arena(4096, &[]), arena(8192, &[]));
    assert!(short <= 4096 * PER_TOKEN, "{short} bytes for 4096 tokens, {} each", short / 4096);
    assert!(long as f64 <= 2.05 * short as f64, "{short} bytes for 4096 tokens, {long} for 8192");

    // What would be there without the rule: a float for each head, token and position.
    let scores = |tokens: usize| 4 * 9 * tokens * tokens;
    let (short, long) = (arena(4096, &[Rule::OnlineSoftmax]), arena(8192, &[Rule::OnlineSoftmax]));
    assert!(short >= scores(4096) && long >= scores(8192), "{short} and {long} bytes without the rule");
    assert!(long as f64 >= 3.5 * short as f64, "{short} and {long} bytes without the rule");
}
