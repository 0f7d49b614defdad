//! Integers that stay in their codes: read in blocks, and computed on.

use einfuse_codegen::Format;

use super::*;
use crate::checkpoint::gguf::tests::blocks::{SIZE, TOKENS, distance, logits_of};
use crate::{Precision, Settings};

const INPUTS: usize = 256;

/// Codes of so many bits, with zeros and scales of any mantissa for groups.
fn matrix(groups: usize, bits: usize) -> Matrix {
    let mut matrix = Matrix::of([OUTPUTS, INPUTS], groups);
    let mut random = random();
    matrix.codes.iter_mut().chain(&mut matrix.zeros).flatten().for_each(|number| *number = random(1 << bits));
    matrix.scales.iter_mut().flatten().for_each(|scale| *scale = f16::from_f32((random(4000) + 1000) as f32 / 1e5));
    matrix
}

fn symmetric(groups: usize, bits: usize, zero: u32) -> Matrix {
    Matrix { zeros: vec![vec![zero; OUTPUTS]; groups], ..matrix(groups, bits) }
}

fn awq(group: i64, version: &str) -> Value {
    json!({ "quant_method": "awq", "bits": 4, "group_size": group, "version": version })
}

/// GPTQ's groups as a list.
fn listed(group: impl Fn(usize) -> usize) -> Vec<Part> {
    let index: Vec<u32> = (0..INPUTS).map(|input| group(input) as u32).collect();
    vec![("l.g_idx", "I32", vec![INPUTS], words(&index))]
}

/// What a checkpoint's weight is kept as, if as codes.
fn kept(settings: &Value, parts: &[Part]) -> Option<String> {
    let checkpoint = open(settings.clone(), parts).unwrap();
    let (graph, w) = graph(OUTPUTS, INPUTS, None);
    let stored = checkpoint.weight(&graph, w, None).unwrap();
    stored.grid().and_then(|grid| Format::holding(&grid)).map(|format| format.to_string())
}

/// Wants the numbers that blocks mean to be those that are read one by one. Yields how far they are off where scales and minima are
/// rounded as panels have them, and where each number is, relative to what its rounding to a code has cost: scale / √12.
fn rounding(settings: &Value, parts: &[Part], rows: std::ops::Range<usize>) -> [f64; 2] {
    let checkpoint = open(settings.clone(), parts).unwrap();
    let (graph, w) = graph(rows.len(), INPUTS, Some(rows.clone()));
    let stored = checkpoint.weight(&graph, w, None).unwrap();
    let (grid, wanted) = (stored.grid().unwrap(), stored.to_f32());
    let narrow = |x: f32| bf16::from_f32(x).to_f32();
    let mut squares = [0.0; 2];
    for (at, count) in [(INPUTS - grid.block, 2 * grid.block), (INPUTS, INPUTS), (0, wanted.len())] {
        let (mut values, mut scales) = (vec![0i8; count], vec![[0.0; 2]; count / grid.block]);
        stored.read_blocks(at, &mut values, &mut scales);
        squares = [0.0; 2];
        for (i, value) in values.iter().enumerate() {
            assert!((grid.least..=grid.most).contains(value));
            let [scale, minimum] = scales[i / grid.block];
            assert!(grid.minimum || minimum == 0.0);
            let number = |[scale, minimum]: [f32; 2]| f64::from(scale) * f64::from(*value) + f64::from(minimum);
            let exact = number([scale, minimum]);
            assert_eq!(exact as f32, wanted[at + i], "{settings}: {i} from {at} on");
            let rounded = [number([scale, minimum].map(narrow)), f64::from(narrow(exact as f32))];
            for (squares, rounded) in squares.iter_mut().zip(rounded) {
                *squares += ((rounded - exact) / f64::from(scale)).powi(2) / count as f64;
            }
        }
    }
    squares.map(|squares| (12.0 * squares).sqrt())
}

#[test]
fn integers_are_read_in_blocks() {
    let words = |bits| compressed("pack-quantized", "int", bits);
    let size = [OUTPUTS, INPUTS];
    let zeros = || matrix(2, 4);
    let bytes = |shape: Vec<usize>| {
        let numbers = matrix(1, 8).codes.concat().iter().map(|code| *code as u8).collect();
        let scales = matrix(shape[1], 8).scales;
        vec![("l.weight", "I8", size.to_vec(), numbers), ("l.weight_scale", "F16", shape, halves(&transposed(&scales)))]
    };
    let cases = [
        (gptq(None, 128), symmetric(2, 4, 7).gptq(), "q4_32"),
        (gptq(Some("gptq_v2"), 128), symmetric(2, 4, 8).gptq(), "q4_32"),
        (gptq(None, -1), symmetric(1, 4, 7).gptq(), "q4_32"),
        (gptq(None, 16), symmetric(16, 4, 7).gptq(), "q4_16"),
        (gptq(None, 128), [symmetric(2, 4, 7).gptq(), listed(|input| input / 128)].concat(), "q4_32"),
        (gptq(None, 128), symmetric(2, 4, 8).gptq(), "q4_min"),
        (gptq(None, 128), zeros().gptq(), "q4_min"),
        (gptq(Some("gptq_v2"), 128), zeros().gptq(), "q4_min"),
        (gptq(None, 96), matrix(3, 4).gptq(), "q4_min"),
        (gptq(None, -1), [matrix(1, 4).gptq(), listed(|_| 0)].concat(), "q4_min"),
        (awq(128, "gemm"), zeros().awq(), "q4_min"),
        (awq(-1, "gemm"), matrix(1, 4).awq(), "q4_min"),
        (awq(32, "gemv"), matrix(8, 4).gemv(1), "q4_min"),
        (awq(64, "gemv_fast"), matrix(4, 4).gemv_fast(1), "q4_min"),
        (words(4), symmetric(2, 4, 8).packed(size, 4, false), "q4_32"),
        (words(4), symmetric(2, 4, 8).packed(size, 4, true), "q4_32"),
        (words(4), zeros().packed(size, 4, true), "q4_min"),
        (words(8), symmetric(2, 8, 128).packed(size, 8, false), "q8"),
        (words(8), symmetric(8, 8, 128).packed(size, 8, false), "q8_32"),
        (words(8), symmetric(1, 8, 128).packed(size, 8, true), "q8"),
        (compressed("int-quantized", "int", 8), bytes(vec![OUTPUTS, 1]), "q8"),
        (compressed("int-quantized", "int", 8), bytes(vec![OUTPUTS, 8]), "q8_32"),
    ];
    for (settings, parts, format) in cases {
        assert_eq!(kept(&settings, &parts).as_deref(), Some(format), "{settings}");
        for rows in [0..OUTPUTS, 1..OUTPUTS - 1] {
            let [in_blocks, each] = rounding(&settings, &parts, rows);
            assert!(in_blocks < 0.1 || in_blocks < 1.25 * each, "{settings}: {in_blocks}, {each}");
        }
    }
}

#[test]
fn integers_without_blocks_are_expanded() {
    let words = |bits| compressed("pack-quantized", "int", bits);
    let size = [OUTPUTS, INPUTS];
    let cases = [
        // By activation.
        (gptq(None, 128), [symmetric(2, 4, 7).gptq(), listed(|input| input % 2)].concat()),
        (gptq(None, 128), [symmetric(2, 4, 7).gptq(), listed(|input| 1 - input / 128)].concat()),
        (gptq(None, 24), symmetric(11, 4, 7).gptq()),
        (gptq(None, 16), matrix(16, 4).gptq()),
        (words(8), matrix(2, 8).packed(size, 8, true)),
    ];
    for (settings, parts) in cases {
        assert_eq!(kept(&settings, &parts), None, "{settings}");
    }
}

/// A model whose layers are integers, and whose vocabulary is BF16: the head is kept so, embeddings, which are added, as F32.
fn model(settings: &Value, layer: impl Fn(&Matrix) -> Vec<Part>, zero: Option<u32>) -> Checkpoint {
    let (tokens, size) = (TOKENS as usize, SIZE as usize);
    let mut random = random();
    let mut parts: Vec<Part> = Vec::new();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let number = |_| bf16::from_f32(random(2001) as f32 / 1000.0 - 1.0);
        let bytes = (0..tokens * size).map(number).flat_map(|x| x.to_le_bytes()).collect();
        parts.push((name, "BF16", vec![tokens, size], bytes));
    }
    for (at, name) in [0, 1].into_iter().flat_map(|at| ["self_attn.q_proj", "mlp.down_proj"].map(|name| (at, name))) {
        let mut matrix = Matrix::of([size, size], size / 128);
        matrix.codes.iter_mut().flatten().for_each(|code| *code = random(16));
        matrix.zeros.iter_mut().flatten().for_each(|of_group| *of_group = zero.unwrap_or(5 + random(5)));
        parts.extend(layer(&matrix).into_iter().map(|(part, dtype, shape, bytes)| {
            let name: &str = format!("model.layers.{at}.{name}{}", part.strip_prefix('l').unwrap()).leak();
            (name, dtype, shape, bytes)
        }));
    }
    open(settings.clone(), &parts).unwrap()
}

#[test]
fn integers_are_computed_on_as_they_are() {
    let size = [SIZE as usize; 2];
    let words = || compressed("pack-quantized", "int", 4);
    for (checkpoint, format) in [
        (model(&gptq(None, 128), Matrix::gptq, Some(7)), "q4_32"),
        (model(&gptq(None, 128), Matrix::gptq, None), "q4_min"),
        (model(&awq(128, "gemm"), Matrix::awq, None), "q4_min"),
        (model(&words(), |matrix| matrix.packed(size, 4, false), Some(8)), "q4_32"),
        (model(&words(), |matrix| matrix.packed(size, 4, true), None), "q4_min"),
    ] {
        let by = |precision| logits_of(&checkpoint, Settings { precision, ..Settings::default() });
        let (kept, found) = by(Precision::Stored);
        assert_eq!(kept, ["bf16", "f32", format]);
        let (expanded, wanted) = by(Precision::Bf16);
        assert_eq!(expanded, ["bf16", "f32"]);
        let distance = distance(&found, &wanted);
        assert!(distance < 0.02, "{format}: {distance}");
    }
}
