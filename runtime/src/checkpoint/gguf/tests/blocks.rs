//! A small model of each type of blocks, computed on as they are, beside itself in 32-bit floats.

use einfuse_codegen::{Batch, Compiled, Program, Rule, Wanted};
use einfuse_graph::{Binary, Builder, Graph, Reduction};
use half::f16;

use super::*;
use crate::{Model, Precision, Quant, Settings};

pub(in crate::checkpoint) const TOKENS: u64 = 40;
pub(in crate::checkpoint) const SIZE: u64 = 256;

/// `x[t, d] = embed[tokens, d]`; twice `x[t, d] += Σ_f (Σ_d x · q[f, d]) · down[d, f]`; `Σ_d x · head`.
pub(in crate::checkpoint) fn graph() -> Graph {
    let mut b = Builder::new("test");
    let t = b.tokens("t");
    let (v, d, f) = (b.axis("v", TOKENS as usize), b.axis("d", SIZE as usize), b.axis("f", SIZE as usize));
    let ids = b.input("tokens", &[t]);
    let embed = b.weight("embed", &[v, d], "model.embed_tokens.weight");
    let head = b.weight("head", &[v, d], "lm_head.weight");
    let q = b.weight("q", &[f, d], "model.layers.{l}.self_attn.q_proj.weight");
    let down = b.weight("down", &[d, f], "model.layers.{l}.mlp.down_proj.weight");
    let id = b.load(ids);
    let x = b.load_at(embed, &[(v, id)]);
    let x = b.define("x", Some(&[t, d]), x);
    let contract = |b: &mut Builder, x, w, over| {
        let (x, w) = (b.load(x), b.load(w));
        let product = b.binary(Binary::Mul, x, w);
        b.reduce(Reduction::Sum, &[over], product)
    };
    let x = b.layers(x, &[0, 0], |b, _, x| {
        let z = contract(b, x, q, d);
        let z = b.define("z", Some(&[t, f]), z);
        let sum = contract(b, z, down, f);
        let x = b.load(x);
        let y = b.binary(Binary::Add, x, sum);
        b.define("y", Some(&[t, d]), y)
    });
    let logits = contract(&mut b, x, head, d);
    let out = b.define("logits", Some(&[t, v]), logits);
    b.finish(out).unwrap()
}

/// Random blocks of ordinary numbers.
fn some_blocks(dtype: Dtype, count: u64, state: &mut u32) -> Vec<u8> {
    let mut next = || {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 24) as u8
    };
    let halves: &[usize] = match dtype {
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
        Dtype::Q2K => &[80, 82],
        Dtype::Q3K => &[108],
        Dtype::Q6K => &[208],
        Dtype::Mxfp4 => &[],
        _ => &[0],
    };
    let mut bytes = Vec::new();
    for _ in 0..count / dtype.block_length() as u64 {
        let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| next()).collect();
        for (nth, &at) in halves.iter().enumerate() {
            let most = dtype.grid().map_or(1.0, |grid| f32::from(grid.most));
            // A minimum that is added is negative; those of the K types are subtracted.
            let sign = if nth == 1 && matches!(dtype, Dtype::Q4_1 | Dtype::Q5_1) { -most / 2.0 } else { 1.0 };
            let number = f16::from_f32(sign * 0.1 * (1.0 + f32::from(next()) / 256.0) / most);
            block[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        if dtype == Dtype::Mxfp4 {
            block[0] = 122 + block[0] % 2;
        }
        bytes.extend(block);
    }
    bytes
}

/// A file whose layers have tensors of two types.
fn file(dtypes: [Dtype; 2]) -> Vec<u8> {
    let mut state = 7;
    let mut writer = Writer::default()
        .text("general.architecture", "llama")
        .u32("llama.embedding_length", SIZE as u32)
        .u32("llama.feed_forward_length", SIZE as u32)
        .u32("llama.block_count", 2)
        .u32("llama.attention.head_count", 4)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "none");
    let mut tensor = |writer: Writer, name: &str, rows: u64, dtype: Dtype| {
        writer.tensor(name, &[SIZE, rows], dtype, some_blocks(dtype, SIZE * rows, &mut state))
    };
    writer = tensor(writer, "token_embd.weight", TOKENS, dtypes[0]);
    writer = tensor(writer, "output.weight", TOKENS, dtypes[0]);
    for (layer, dtype) in dtypes.into_iter().enumerate() {
        writer = tensor(writer, &format!("blk.{layer}.attn_q.weight"), SIZE, dtype);
        writer = tensor(writer, &format!("blk.{layer}.ffn_down.weight"), SIZE, dtype);
    }
    writer.file()
}

fn logits(dtypes: [Dtype; 2], precision: Precision) -> (Vec<String>, Vec<f32>) {
    logits_by(dtypes, Settings { precision, ..Settings::default() })
}

fn logits_by(dtypes: [Dtype; 2], settings: Settings) -> (Vec<String>, Vec<f32>) {
    logits_of(&Checkpoint::of_gguf(open(file(dtypes)).unwrap()).unwrap(), settings)
}

/// What the model's weights are kept as, in their order, and its logits.
pub(in crate::checkpoint) fn logits_of(checkpoint: &Checkpoint, settings: Settings) -> (Vec<String>, Vec<f32>) {
    let settings = Settings { threads: Some(1), rows: Wanted::All, chunk: 16, ..settings };
    let model = Model::load(checkpoint, &graph(), settings).unwrap();
    let mut session = model.session();
    // Many rows, a few, one.
    let mut logits = session.feed_all(&[1, 39, 7, 20, 11, 30, 2, 3, 17, 21, 33]).unwrap();
    logits.extend(session.feed_all(&[5, 6, 8]).unwrap());
    logits.extend(session.feed_all(&[38]).unwrap());
    let mut kept: Vec<String> = model.program().weights().iter().map(|packed| packed.storage.to_string()).collect();
    kept.sort();
    kept.dedup();
    (kept, logits)
}

/// The root of the mean square of the difference, where that of the wanted is 1.
pub(in crate::checkpoint) fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    let sum = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
    let difference = sum(&mut found.iter().zip(wanted).map(|(a, b)| a - b));
    (difference / sum(&mut wanted.iter().copied())).sqrt()
}

#[test]
fn every_type_of_blocks_is_computed_on_as_it_is() {
    let kinds = [
        (Dtype::Q4_0, "q4_32"),
        (Dtype::Q4_1, "q4_min"),
        (Dtype::Q5_0, "q5"),
        (Dtype::Q5_1, "q5_min"),
        (Dtype::Q8_0, "q8_32"),
        (Dtype::Q2K, "q2_16_min"),
        (Dtype::Q3K, "q4_16"),
        (Dtype::Q4K, "q4_min"),
        (Dtype::Q5K, "q5_min"),
        (Dtype::Q6K, "q6_16"),
        (Dtype::Iq4Nl, "iq4"),
        (Dtype::Iq4Xs, "iq4"),
        (Dtype::Mxfp4, "mxfp4"),
    ];
    assert_eq!(kinds.len(), Dtype::all().filter(|dtype| dtype.grid().is_some()).count());
    for (dtype, format) in kinds {
        let (_, wanted) = logits([dtype; 2], Precision::F32);
        let (kept, found) = logits([dtype; 2], Precision::Stored);
        assert_eq!(kept, [format], "{dtype:?}");
        let distance = distance(&found, &wanted);
        assert!(distance < 0.02, "{dtype:?}: {distance}");
    }
}

#[test]
fn layers_of_different_types_keep_their_own_blocks() {
    for (dtypes, formats) in [
        ([Dtype::Q4K, Dtype::Q6K], ["q4_min", "q6_16"]),
        ([Dtype::Q5_0, Dtype::Q8_0], ["q5", "q8_32"]),
        ([Dtype::Iq4Nl, Dtype::Q2K], ["iq4", "q2_16_min"]),
    ] {
        let (_, wanted) = logits(dtypes, Precision::F32);
        let (kept, found) = logits(dtypes, Precision::Stored);
        assert_eq!(kept, formats, "{dtypes:?}");
        let distance = distance(&found, &wanted);
        assert!(distance < 0.02, "{dtypes:?}: {distance}");
    }
}

/// Blocks with minima, blocks of levels, and codes that are made when weights are packed: with each rule off, and with all.
#[test]
fn codes_mean_the_same_whatever_rules_are_off() {
    let each_off = Rule::ALL.iter().map(std::slice::from_ref);
    for (dtypes, quant) in [
        ([Dtype::Q4K; 2], None),
        ([Dtype::Iq4Nl; 2], None),
        ([Dtype::Q8_0; 2], Some(Quant::Q8)),
        ([Dtype::Q8_0; 2], Some(Quant::Q4)),
        ([Dtype::Q4K, Dtype::Q6K], None),
    ] {
        let by =
            |without: &[Rule]| logits_by(dtypes, Settings { quant, without: without.to_vec(), ..Settings::default() });
        // Numbers that codes stand for, computed when they are packed.
        let (kept, wanted) = by(&[Rule::Prologue]);
        assert_eq!(kept, ["f32"], "{dtypes:?} {quant:?}");
        for without in [&[], Rule::ALL].into_iter().chain(each_off.clone()) {
            let (kept, found) = by(without);
            assert_eq!(kept == ["f32"], without.contains(&Rule::Prologue), "{dtypes:?} {quant:?}: {kept:?}");
            let distance = distance(&found, &wanted);
            assert!(distance < 0.02, "{dtypes:?} {quant:?} without {without:?}: {distance}");
        }
    }
}

#[test]
fn kernels_differ_only_where_their_weights_do() {
    let settings = || Settings { threads: Some(1), chunk: 16, ..Settings::default() };
    let load = |dtypes| Model::load(&Checkpoint::of_gguf(open(file(dtypes)).unwrap()).unwrap(), &graph(), settings());
    let (mixed, plain) = (load([Dtype::Q4K, Dtype::Q6K]).unwrap(), load([Dtype::Q4K; 2]).unwrap());
    let (mixed, plain) = (mixed.program(), plain.program());
    for batch in [Batch::One, Batch::Many] {
        // Each kernel of the layers reads one of the weights that differ; there are as many calls as ever, but for those that
        // encode rows for one way alone.
        let is_prepared = |compiled: &Compiled| compiled.loops.name.ends_with("_rows");
        let calls = |program: &Program| {
            program.sequence(batch).filter(|&number| !is_prepared(&program.kernels()[number])).count()
        };
        assert_eq!(calls(mixed), calls(plain));
        let plan = mixed.plan(batch);
        let scopes = plan.scopes();
        let formats: Vec<Vec<(String, String)>> = scopes[1]
            .iter()
            .map(|kernel| {
                let kept = mixed.weights_of(batch, kernel).into_iter();
                kept.map(|kept| (kept.format.to_string(), format!("{:?}", kept.layers))).collect()
            })
            .collect();
        let own = [("q4_min".to_owned(), "{Some(0)}".to_owned()), ("q6_16".to_owned(), "{Some(1)}".to_owned())];
        assert_eq!(formats, [own.clone(), own]);
        for (kernel, weight) in scopes[1].iter().zip(["q", "down"]) {
            // What the weight is made of, in each of its ways.
            let text = plan.kernel_text(kernel);
            for equation in ["q4_min.scale", "q4_min.minimum", "q6_16.scale"].map(|part| format!("{weight}.{part}[")) {
                assert!(text.contains(&equation), "{equation} is not in {text}");
            }
        }
        let number = |program: &Program, scope| {
            // The last layer's own are of one way alone.
            let own = |kernel: &&Compiled| kernel.batch == batch && kernel.scope == scope && !kernel.last_layer;
            program.kernels().iter().filter(own).filter(|kernel| !is_prepared(kernel)).count()
        };
        assert_eq!(number(mixed, 1), 2 * number(plain, 1));
        assert_eq!([0, 2].map(|scope| number(mixed, scope)), [0, 2].map(|scope| number(plain, scope)));
    }
}
