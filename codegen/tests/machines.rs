//! Programs for machines with fewer instructions than this one: their schedules copy, round and unpack other operands.

mod common;

use common::{Runner, Threads, distance, interpreted};
use einfuse_codegen::loops::{ByteProducts, Cores};
use einfuse_codegen::lower::Target;
use einfuse_codegen::{Batch, Format, Options, Program, Wanted};
use einfuse_graph::random::random_weights;
use einfuse_graph::{Graph, Tensor, parse};

/// Many tokens, which several blocks of rows take, one, and a few.
const STEPS: [usize; 3] = [70, 1, 5];

/// Layers of norms, attention, a gated network, and a sum of which a token has many rows, and a product before them that is read
/// behind them, in sizes that every kind of core takes.
fn graph() -> Graph {
    let text = "
graph layer
axis t = tokens
axis s = positions
axis v = 48
axis d = 512
axis n = 2
axis g = 2
axis c = 64
axis f = 512
axis j = 20
input tokens[t]
weight embed[v, d] = \"embed\"
weight gain[d] = \"{l}.gain\"
weight wq[n, g, c, d] = \"{l}.q\"
weight wk[n, c, d] = \"{l}.k\"
weight wu[n, c, d] = \"{l}.u\"
weight wo[d, n, g, c] = \"{l}.o\"
weight gate[f, d] = \"{l}.gate\"
weight up[f, d] = \"{l}.up\"
weight down[d, f] = \"{l}.down\"
weight mix[j, c] = \"{l}.mix\"
weight wide[d, c] = \"{l}.wide\"
state k.cache[s, n, c]
state u.cache[s, n, c]
weight before[f, d] = \"before\"
weight behind[v, f] = \"behind\"
x[t, d] = embed[v = tokens]
p[t, f] = max(sum[d] x * before, 0)
layers y from x as h order 0 0
  body
    a[t, d] = h * rsqrt((sum[d] h * h) / 512 + 0.00001) * gain
    q[t, n, g, c] = sum[d] a * wq
    k[t, n, c] = sum[d] a * wk
    u[t, n, c] = sum[d] a * wu
    append k.cache = k
    append u.cache = u
    %1 = 0.125 * sum[c] q * k.cache
    %2 = exp(%1 - max[s] %1 where s <= t)
    w = if s <= t then %2 / (sum[s] %2 where s <= t) else 0
    o[t, n, g, c] = sum[s] w * u.cache
    r[t, j, c] = mix * sum[n] k
    m[t, d] = h + sum[n, g, c] o * wo + max[j] sum[c] r * wide
    b[t, d] = m * rsqrt((sum[d] m * m) / 512 + 0.00001)
    e[t, f] = sum[d] b * gate
    z[t, d] = m + sum[f] (e / (1 + exp(-e)) * sum[d] b * up) * down
    result z
end
logits[t, v] = sum[d] (y * rsqrt((sum[d] y * y) / 512 + 0.00001)) * embed + sum[f] p * behind
output logits
";
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The portable cores, and those of this machine and of every narrower one.
fn machines() -> Vec<Cores> {
    let host = *Target::host().unwrap().cores();
    let of_bytes = |bits, bytes| Cores { bits, bytes: Some(bytes), ..Cores::PORTABLE };
    let mut all = vec![Cores::PORTABLE, Cores { bits: 256, ..Cores::PORTABLE }];
    all.extend([ByteProducts::Avx2, ByteProducts::AvxVnni].map(|bytes| of_bytes(256, bytes)));
    let of_pairs = |bits, bytes| Cores { i16: true, ..of_bytes(bits, bytes) };
    all.extend([ByteProducts::Avx2, ByteProducts::AvxVnni].map(|bytes| of_pairs(256, bytes)));
    all.extend([of_bytes(512, ByteProducts::Avx2), of_pairs(512, ByteProducts::Avx512Vnni)]);
    all.extend([Cores { tiles: false, ..host }, host]);
    let has = |cores: &Cores| {
        let bytes = match cores.bytes {
            Some(ByteProducts::Avx2) | None => true,
            bytes => host.bytes == bytes,
        };
        cores.bits <= host.bits && bytes
    };
    all.retain(has);
    all.dedup();
    all
}

/// What so many workers make of the steps, each by itself.
fn run(runner: &mut Runner, workers: usize) -> Vec<Vec<f32>> {
    runner.restart(workers);
    let ids = |tokens: usize| (0..tokens).map(|i| (i * 7 % 48) as i32).collect::<Vec<_>>();
    STEPS.iter().map(|&tokens| runner.step(&ids(tokens), &Threads(workers))).collect()
}

/// How far the last rows are from others, which may be more: the root of the mean square, where that of these is 1.
fn apart(got: &[Vec<f32>], want: &[Vec<f32>]) -> f64 {
    let (mut apart, mut whole) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        for (got, want) in got.iter().zip(&want[want.len() - got.len()..]) {
            apart += f64::from(got - want).powi(2);
            whole += f64::from(*want).powi(2);
        }
    }
    f64::sqrt(apart / whole)
}

#[test]
fn every_machine_computes_the_same() {
    let graph = graph();
    let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, &graph);
    let expected = interpreted(&graph, 3, &STEPS).unwrap();
    // How far apart machines may be that round rows to bf16, to bytes, to words, or to none of these.
    for (format, cache, bound) in [
        (Format::F32, Format::F32, 2e-5),
        (Format::Bf16, Format::Bf16, 0.1),
        (Format::Q8, Format::Q8, 0.2),
        (Format::Q4, Format::Bf16, 0.15),
    ] {
        let mut portable = None;
        for (cores, rows) in machines().into_iter().flat_map(|cores| [(cores, Wanted::All), (cores, Wanted::Last)]) {
            let options = Options { chunk: 70, cache, rows, cores: Some(cores), ..Options::default() };
            let mut runner = Runner::new(&graph, &weights, format, &options, 80).unwrap();
            if format == Format::F32 && rows == Wanted::All {
                let apart = distance(&mut runner, 1, &expected);
                assert!(apart < bound, "{apart} from the interpreter, of {cores:?}");
            }
            for workers in [1, 2] {
                let got = run(&mut runner, workers);
                let apart = apart(&got, portable.get_or_insert_with(|| got.clone()));
                assert!(apart < bound, "{format} by {workers} workers: {apart} apart of {cores:?}, {rows:?} rows");
            }
        }
    }
}

/// What cores multiply as codes, and nothing else reads, is encoded where it is computed, of many rows as of a few; but not a single
/// token's, which is multiplied as it is.
#[test]
fn what_cores_multiply_as_codes_is_encoded_where_it_is_computed() {
    let graph = graph();
    // Tiles multiply many rows of codes as bf16.
    let cores = Some(Cores { tiles: false, ..*Target::host().unwrap().cores() });
    let options = Options { chunk: 70, rows: Wanted::Last, cores, ..Options::default() };
    let program = Program::compile(&graph, &|_, _| Format::Q8.into(), &options).unwrap();
    let encoding = |batch: Batch| -> Vec<&str> {
        let all = program.kernels().iter().filter(|kernel| kernel.batch == batch && !kernel.last_layer);
        let encode = all.filter(|kernel| kernel.loops.to_string().contains("encode arena("));
        encode.map(|kernel| kernel.loops.name.as_str()).collect()
    };
    // The rows of norms, and what is read behind the layers, are encoded by who multiplies them.
    let others = |batch| -> Vec<&str> { encoding(batch).into_iter().filter(|name| !name.ends_with("_rows")).collect() };
    assert_eq!(others(Batch::One), [""; 0]);
    assert_eq!(others(Batch::Few), ["o_merge"]);
    assert_eq!(others(Batch::Many), ["o", "z_sum_2_in"]);
}
