//! What the compiler makes of each architecture: how many kernels, and how much memory.

mod common;

use std::collections::BTreeSet;

use common::{json, repository};
use einfuse::codegen::fuse::{Segment, Shape};
use einfuse::codegen::lower::Target;
use einfuse::codegen::{Batch, Compiled, Format, Options, Program};
use einfuse::{Checkpoint, Graph, Rule, graph_of};

fn graph(name: &str) -> Graph {
    graph_of(&Checkpoint::open(repository("tests/golden").join(name)).unwrap(), None).unwrap()
}

fn compile(graph: &Graph, options: &Options) -> Program {
    compile_as(Format::F32, graph, options)
}

fn compile_as(weights: Format, graph: &Graph, options: &Options) -> Program {
    Program::compile(graph, &|_, _| weights.into(), options).unwrap()
}

/// The folders of golden models, by name.
fn models() -> Vec<String> {
    let folders = std::fs::read_dir(repository("tests/golden")).unwrap().map(|entry| entry.unwrap().path());
    let models = folders.filter(|folder| folder.join("config.json").exists());
    let mut names: Vec<String> =
        models.map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What stands above the table of architectures.
const ABOUT: &str = "\
# Architectures

What is declared in `models/src/`, one file each, and what the compiler makes of it. Nothing below that folder knows any of
these names: that each attention is one streamed pass over the positions, for instance, is found by the rule `online-softmax`
in the equations of each. A test makes this page from the registry and the models in `tests/golden/`, of which each
architecture has at least one (`BLESS=1 cargo test --test plans` writes it). Fewer kernels are better.

Kernels are counted before the layers, in a layer, and behind them; most of those before are tables of rotary positions. Then
come the calls that a layer takes: for one token the positions are shared out, and one more call merges what was found along
each share; for many, the rows behind each norm are computed once for all workers, and where rows choose their weights they are
sorted, gathered, and put together at the end; not those for many of the last layer, which computes one of their rows. Where
there are several numbers, some models of the architecture have layers of several kinds, or other parts than others, or the
rule `path` takes sums in another order for many tokens than for one.

| architecture | in config.json | before | in a layer | behind | calls for one | for many | rules |
| --- | --- | --: | --: | --: | --: | --: | --- |
";

#[test]
fn the_table_of_architectures_is_right() {
    let models = models();
    let mut rows: Vec<String> = Vec::new();
    for architecture in einfuse::models::ARCHITECTURES {
        let of = |name: &&String| {
            let config = json(&repository("tests/golden").join(name).join("config.json"));
            architecture.names.iter().any(|known| config["architectures"][0] == *known)
        };
        let models: Vec<&String> = models.iter().filter(of).collect();
        let mut name = String::new();
        assert!(!models.is_empty(), "tests/golden has no model of {}", architecture.names.join(", "));
        let (mut counts, mut fired) = ([const { BTreeSet::new() }; 5], BTreeSet::new());
        for model in models {
            let graph = graph(model);
            name.clone_from(&graph.name);
            let program = compile(&graph, &Options::default());
            for (at, batch) in [(3, Batch::One), (4, Batch::Many)] {
                let (plan, scopes) = (program.plan(batch), program.plan(batch).scopes());
                let last = scopes.len() - 1;
                for (at, kernels) in scopes.iter().enumerate() {
                    counts[usize::from(at > 0) + usize::from(at == last)].insert(kernels.len());
                    fired.extend(kernels.iter().flat_map(|kernel| &kernel.applied).map(|remark| remark.rule));
                }
                fired.extend(plan.remarks.iter().map(|remark| remark.rule));
                let own = |k: &&Compiled| k.batch == batch && !k.last_layer;
                let calls = |scope| program.kernels().iter().filter(own).filter(|k| k.scope == scope).count();
                counts[at].extend((1..last).map(calls));
            }
        }
        let names: Vec<String> = architecture.names.iter().map(|name| format!("`{name}`")).collect();
        let counts = counts.map(|counts| counts.iter().map(usize::to_string).collect::<Vec<_>>().join(" or "));
        let rules: Vec<&str> = fired.iter().map(|rule| rule.name()).collect();
        let (names, counts, rules) = (names.join(", "), counts.join(" | "), rules.join(", "));
        rows.push(format!("| {name} | {names} | {counts} | {rules} |\n"));
    }
    let (file, page) = (repository("docs/architectures.md"), format!("{ABOUT}{}", rows.concat()));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written, page, "BLESS=1 writes what is found");
}

/// Where keys and values come out of a cached latent, a token's query goes into the latent, and for many tokens the latent is
/// brought out, run by run, by cores.
#[test]
fn latents_are_expanded_for_many_tokens_alone() {
    for name in ["deepseek_v2", "deepseek_v2_lite", "deepseek_v3"] {
        let graph = graph(name);
        let expansions = |without: &[Rule], batch| -> Vec<usize> {
            let program = compile(&graph, &Options { without: without.to_vec(), ..Options::default() });
            let kernels = program.plan(batch).scopes().into_iter().flatten();
            let streams = kernels.filter_map(|kernel| match &kernel.shape {
                Shape::Stream(stream) => Some(stream.expansions().count()),
                _ => None,
            });
            streams.collect()
        };
        let bodies = expansions(&[], Batch::One).len();
        for batch in [Batch::One, Batch::Few] {
            assert_eq!(expansions(&[], batch), vec![0; bodies], "{name}");
        }
        assert_eq!(expansions(&[], Batch::Many), vec![2; bodies], "{name}");
        let program = compile(&graph, &Options::default());
        let batches = [(1, 0), (8, 0), (16, 0), (512, 0), (16, 1000), (512, 1000)];
        let batches = batches.map(|(tokens, past)| program.batch(tokens, past));
        let wanted = [Batch::One, Batch::Few, Batch::Many, Batch::Many, Batch::Deep, Batch::Many];
        assert_eq!(batches, wanted, "{name}: few tokens deep in a sequence are absorbed too");
        // as it is declared
        assert_eq!(expansions(&[Rule::Path], Batch::One), vec![2; bodies], "{name}");
    }
}

/// Scores over all positions are never in memory: what a step keeps grows with its tokens, not with their square.
#[test]
fn memory_grows_with_the_tokens() {
    for name in models() {
        let graph = graph(&name);
        let bytes = |chunk: usize, without: &[Rule]| {
            let options = Options { chunk, positions: chunk, without: without.to_vec(), ..Options::default() };
            compile(&graph, &options).arena_bytes()
        };
        let (short, long) = (bytes(1024, &[]), bytes(4096, &[]));
        assert!(long <= 4 * short, "{name}: {short} bytes for 1024 tokens, {long} for 4096");
        // one float for each pair of a token and a position, of one head
        let scores = 4 * 4096 * 4096;
        assert!(long < scores, "{name}: {long} bytes");
        let kept = bytes(4096, &[Rule::OnlineSoftmax]);
        assert!(kept > scores, "{name}: {kept} bytes without the rule, which then has no point");
    }
}

/// Where cores multiply pairs of bf16, a value that they alone read is rounded where it is computed, once for all; but not a single
/// token's, which is multiplied as it is.
#[test]
fn what_cores_multiply_in_pairs_is_rounded_where_it_is_computed() {
    let graph = graph("llama3");
    let pairs = Target::host().unwrap().cores().bf16;
    for (weights, rounds) in [(Format::Bf16, pairs), (Format::F32, false)] {
        let program = compile_as(weights, &graph, &Options { cache: Format::F32, ..Options::default() });
        for batch in [Batch::One, Batch::Many] {
            let stores = |text: String| text.lines().any(|line| line.trim_start().starts_with("bf16 arena"));
            let kernels = program.kernels().iter().filter(|kernel| kernel.batch == batch && !kernel.last_layer);
            let rounded = kernels.filter(|kernel| stores(kernel.loops.to_string()));
            let rounded: Vec<&str> = rounded.map(|kernel| kernel.loops.name.as_str()).collect();
            let wanted: &[&str] = if rounds && batch == Batch::Many { &["attend_o", "x_out_sum_3_in"] } else { &[] };
            assert_eq!(rounded, wanted, "{weights}, {batch:?}");
        }
    }
}

/// Layers that are alike are compiled once: they call the same kernels. In the last one, many tokens call those for one row.
#[test]
fn equal_layers_share_their_kernels() {
    for name in models() {
        let program = compile(&graph(&name), &Options::default());
        for batch in [Batch::One, Batch::Many] {
            let plan = program.plan(batch);
            let count = |scope: usize, for_one_row: bool| {
                let own = program.kernels().iter().filter(|kernel| kernel.batch == batch && kernel.scope == scope);
                let is_called = |kernel: &&Compiled| {
                    kernel.last_layer == (for_one_row && plan.scopes()[scope][kernel.index].last_layer)
                };
                own.filter(is_called).count()
            };
            let (mut scope, mut calls) = (0, 0);
            for segment in &plan.segments {
                match segment {
                    Segment::Once(_) => {
                        calls += count(scope, false);
                        scope += 1;
                    }
                    Segment::Layers { bodies, order, .. } => {
                        for (layer, body) in order.iter().enumerate() {
                            calls += count(scope + body, batch == Batch::Many && layer + 1 == order.len());
                        }
                        scope += bodies.len();
                    }
                }
            }
            assert_eq!(program.sequence(batch).len(), calls, "{name}");
        }
    }
}
