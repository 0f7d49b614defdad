//! Caches in codes of 8 bits beside caches in floats, and these against the interpreter.

mod common;

use common::{Runner, Threads, hold, interpreted};
use einfuse_codegen::{Format, Options, Program, Wanted};
use einfuse_graph::random::random_weights;
use einfuse_graph::{Graph, Tensor, parse};

/// Grouped queries over keys and values of so many components, which may only look so far back.
fn grouped(keys: usize, values: usize, window: Option<usize>) -> Graph {
    let (kept, mask) = match window {
        Some(window) => (format!(" within {window}"), format!("s <= t && s > t - {window}")),
        None => (String::new(), "s <= t".to_owned()),
    };
    let text = format!(
        "
graph grouped
axis d = 16
axis n = 2
axis g = 3
axis c = {keys}
axis e = {values}
axis v = 20
axis t = tokens
axis s = positions
input tokens[t]
weight embed[v, d] = \"embed\"
weight places[v, d] = \"places\"
weight wq[n, g, c, d] = \"q\"
weight wk[n, c, d] = \"k\"
weight wu[n, e, d] = \"u\"
state k.cache[s, n, c]{kept}
state u.cache[s, n, e]{kept}
x[t, d] = embed[v = tokens]
q[t, n, g, c] = sum[d] x * wq
k[t, n, c] = sum[d] x * wk
u[t, n, e] = sum[d] x * wu
append k.cache = k
append u.cache = u
a = sum[c] q * k.cache
%1 = exp(a - max[s] a where {mask})
w = if {mask} then %1 / (sum[s] %1 where {mask}) else 0
o[t, n, g, e] = sum[s] w * u.cache
output o
"
    );
    parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// One cached latent, the key and the value of all heads: in panels over positions, and read element by element for the sum.
const LATENT: &str = "
graph latent
axis d = 16
axis n = 4
axis c = 64
axis v = 20
axis t = tokens
axis s = positions
input tokens[t]
weight embed[v, d] = \"embed\"
weight wq[n, c, d] = \"q\"
weight wz[c, d] = \"z\"
state z.cache[s, c]
x[t, d] = embed[v = tokens]
q[t, n, c] = sum[d] x * wq
z[t, c] = sum[d] x * wz
append z.cache = z
e = 0.1 * sum[c] q * z.cache
%1 = exp(e - max[s] e where s <= t)
w = if s <= t then %1 / (sum[s] %1 where s <= t) else 0
o[t, n, c] = sum[s] w * z.cache
output o
";

fn runner(graph: &Graph, cache: Format, chunk: usize) -> Runner {
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, graph);
    let options = Options { cache, chunk, positions: 640, rows: Wanted::All, ..Options::default() };
    Runner::new(graph, &weights, Format::F32, &options, 640).unwrap()
}

/// What steps of so many tokens, one after the other, yield.
fn run(runner: &mut Runner, workers: usize, ids: &[i32], steps: &[usize]) -> Vec<f32> {
    runner.restart(workers);
    let mut rest = ids;
    let mut all = Vec::new();
    for &tokens in steps {
        let (step, after) = rest.split_at(tokens);
        all.extend(runner.step(step, &Threads(workers)));
        rest = after;
    }
    assert!(rest.is_empty());
    all
}

/// The root of the mean square of differences, of that of the numbers.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let differences: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    // A NaN is no distance.
    let distance = (differences / want.iter().map(|x| square(*x)).sum::<f64>()).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// Holds caches of codes against floats: in one piece, in pieces of several sizes, and token by token, over several pages.
fn check(graph: &Graph, bound: f64) {
    let ids: Vec<i32> = (0..530).map(|i| (i * i + 3 * i) % 20).collect();
    let mut plain = runner(graph, Format::F32, 530);
    hold(&mut plain, 2, &interpreted(graph, 7, &[70, 1, 3]).unwrap()).unwrap();
    let want = run(&mut plain, 1, &ids, &[530]);
    let mut coded = runner(graph, Format::Q8, 530);
    let (mut first, mut few) = (vec![1; 70], vec![5; 26]);
    first.push(460);
    few.extend([1, 399]);
    let mut whole = Vec::new();
    for (workers, steps) in [(1, &[530][..]), (3, &[530]), (2, &[63, 1, 1, 300, 7, 158]), (3, &first), (2, &few)] {
        let got = run(&mut coded, workers, &ids, steps);
        let far = distance(&got, &want);
        assert!(far < bound, "{workers} workers, {steps:?}: {far:.4} from floats, at most {bound} is allowed");
        // Something was rounded.
        assert!(far > 1e-4, "{far}");
        if whole.is_empty() {
            whole = got;
        } else {
            let apart = distance(&got, &whole);
            assert!(apart < 0.2 * bound, "{workers} workers, {steps:?}: {apart:.5} from one piece");
        }
    }
    let bytes = |runner: &Runner| runner.program.caches().iter().map(|group| group.page_bytes).sum::<usize>();
    assert!(2 * bytes(&coded) <= bytes(&plain), "{} bytes, of floats {}", bytes(&coded), bytes(&plain));
}

#[test]
fn keys_and_values() {
    check(&grouped(64, 64, None), 0.03);
}

#[test]
fn keys_of_several_blocks_and_values_that_fill_no_panel() {
    check(&grouped(128, 20, None), 0.03);
}

#[test]
fn keys_that_fill_no_block_are_halves() {
    check(&grouped(12, 36, None), 0.03);
}

#[test]
fn values_that_fill_no_vector_are_halves() {
    check(&grouped(64, 7, None), 0.03);
}

#[test]
fn a_window() {
    check(&grouped(64, 64, Some(100)), 0.03);
}

#[test]
fn keys_that_are_values() {
    check(&parse(LATENT).unwrap(), 0.03);
}

#[test]
fn other_formats_are_refused() {
    for cache in Format::ALL.into_iter().filter(|format| ![Format::F32, Format::Bf16, Format::Q8].contains(format)) {
        let options = Options { cache, ..Options::default() };
        let refused = Program::compile(&grouped(64, 64, None), &|_, _| Format::F32.into(), &options).err();
        let message = refused.map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(message, format!("caches are kept as f32, bf16 or q8, not as {cache}"));
    }
}
