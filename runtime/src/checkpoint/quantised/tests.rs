mod blocks;

use einfuse_graph::{Builder, FileTensor, Graph, TensorId};
use half::{bf16, f16};
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::fuzz::tests::hold_seed;
use crate::checkpoint::{Checkpoint, Embedded};

/// Name, dtype, shape, data.
type Part = (&'static str, &'static str, Vec<usize>, Vec<u8>);

/// A config.json and a safetensors file.
fn files(settings: Value, parts: &[Part]) -> (String, Vec<u8>) {
    let config = json!({ "architectures": ["Test"], "quantization_config": settings }).to_string();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in parts {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert((*name).into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    (config, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat())
}

fn open(settings: Value, parts: &[Part]) -> Result<Checkpoint, Error> {
    let (config, weights) = files(settings, parts);
    Checkpoint::embedded(&Embedded {
        name: "x",
        config: config.leak().as_bytes(),
        generation_config: None,
        tokenizer: None,
        weights: weights.leak(),
    })
}

/// A graph with the weight `w[o, i]`, stored as `l.weight`, or some rows of it.
fn graph(outputs: usize, inputs: usize, rows: Option<std::ops::Range<usize>>) -> (Graph, TensorId) {
    let mut b = Builder::new("test");
    let (o, i) = (b.axis("o", outputs), b.axis("i", inputs));
    let w = b.weight("w", &[o, i], vec![FileTensor { name: "l.weight".into(), rows, each: false }]);
    let value = b.load(w);
    let out = b.define("out", None, value);
    (b.finish(out).unwrap(), w)
}

/// Checks a checkpoint's weight against its numbers, as a whole, in all pieces, and some of its rows.
fn check(settings: &Value, parts: &[Part], expected: &[Vec<f32>]) {
    let checkpoint = open(settings.clone(), parts).unwrap();
    let (outputs, inputs) = (expected.len(), expected[0].len());
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let all = bits(&expected.concat());
    let (graph_, w) = graph(outputs, inputs, None);
    let stored = checkpoint.weight(&graph_, w, None).unwrap();
    assert_eq!(bits(&stored.to_f32()), all, "{settings}");
    for at in 0..all.len() {
        for length in [1, 2, inputs - 1, inputs, inputs + 3] {
            let mut out = vec![0.0; length.min(all.len() - at)];
            stored.read(at, &mut out);
            assert_eq!(bits(&out), all[at..at + out.len()]);
        }
    }
    let used = stored.beside.iter().chain(&stored.names).cloned().collect();
    assert!(checkpoint.leftovers(&used).is_empty(), "{:?}", checkpoint.leftovers(&used));
    let (graph_, w) = graph(outputs - 2, inputs, Some(1..outputs - 1));
    let some = checkpoint.weight(&graph_, w, None).unwrap();
    assert_eq!(bits(&some.to_f32()), all[inputs..all.len() - inputs]);
}

/// Any numbers, the same each time.
fn random() -> impl FnMut(u32) -> u32 {
    let mut state = 7u32;
    move |below| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    }
}

/// The number of a byte of E4M3, by its definition.
fn e4m3(byte: u8) -> f64 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
    let magnitude = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * 2f64.powi(exponent - 7) };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn bytes_are_scaled_by_tile_by_row_or_as_a_whole() {
    let (outputs, inputs) = (7, 10);
    let mut random = random();
    let bytes: Vec<u8> = (0..outputs * inputs).map(|_| random(127) as u8 | (random(2) << 7) as u8).collect();
    let scales: Vec<f32> = (0..12).map(|_| (random(1000) + 1) as f32 / 7919.0).collect();
    let weight = ("l.weight", "F8_E4M3", vec![outputs, inputs], bytes.clone());
    let expected = |scale: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
        let number = |o: usize, i: usize| (e4m3(bytes[o * inputs + i]) * f64::from(scale(o, i))) as f32;
        (0..outputs).map(|o| (0..inputs).map(|i| number(o, i)).collect()).collect()
    };
    let f32s = |count: usize| scales[..count].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let narrow = |at: usize| bf16::from_f32(scales[at]);
    let bf16s = (0..outputs).flat_map(|at| narrow(at).to_le_bytes()).collect::<Vec<u8>>();

    // The last tiles are cut off by the end.
    let tiles =
        json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [2, 4] });
    let tiled = expected(&|o, i| scales[o / 2 * 3 + i / 4]);
    check(&tiles, &[weight.clone(), ("l.weight_scale_inv", "F32", vec![4, 3], f32s(12))], &tiled);
    let group =
        json!({ "weights": { "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [2, 4] } });
    let tiles =
        json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": { "g": group } });
    check(&tiles, &[weight.clone(), ("l.weight_scale", "F32", vec![4, 3], f32s(12))], &tiled);

    let group = json!({ "weights": { "num_bits": 8, "type": "float", "strategy": "channel" } });
    let rows = [
        json!({ "quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"] }),
        json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": { "g": group } }),
        Value::Null,
    ];
    for settings in rows {
        for shape in [vec![outputs, 1], vec![outputs]] {
            let by_row = expected(&|o, _| scales[o]);
            check(&settings, &[weight.clone(), ("l.weight_scale", "F32", shape.clone(), f32s(outputs))], &by_row);
            let by_row = expected(&|o, _| narrow(o).to_f32());
            check(&settings, &[weight.clone(), ("l.weight_scale", "BF16", shape, bf16s.clone())], &by_row);
        }
    }
    for shape in [vec![], vec![1], vec![1, 1]] {
        let whole = json!({ "quant_method": "fp8", "activation_scheme": "static" });
        check(&whole, &[weight.clone(), ("l.weight_scale", "F32", shape, f32s(1))], &expected(&|_, _| scales[0]));
    }
    check(&Value::Null, std::slice::from_ref(&weight), &expected(&|_, _| 1.0));
    // Groups of a row, with scales that are floats or exponents.
    let group = json!({ "weights": { "num_bits": 8, "type": "float", "strategy": "group", "group_size": 5 } });
    let settings = |format: &str| json!({ "quant_method": "compressed-tensors", "format": format, "config_groups": { "g": group } });
    let of_groups: Vec<f32> = (0..2 * outputs).map(|at| scales[at % 12]).collect();
    let floats = of_groups.iter().flat_map(|x| x.to_le_bytes()).collect();
    let parts = [weight.clone(), ("l.weight_scale", "F32", vec![outputs, 2], floats)];
    check(&settings("naive-quantized"), &parts, &expected(&|o, i| of_groups[2 * o + i / 5]));
    let exponents: Vec<u8> = (0..2 * outputs).map(|at| 120 + at as u8 % 12).collect();
    let parts = [weight.clone(), ("l.weight_scale", "U8", vec![outputs, 2], exponents.clone())];
    let power = |o: usize, i: usize| (f32::from(exponents[2 * o + i / 5]) - 127.0).exp2();
    check(&settings("mxfp8-quantized"), &parts, &expected(&power));

    let halves: Vec<u8> = bytes.iter().map(|byte| byte & 0xbf).collect();
    let number = |byte: &u8| f16::from_le_bytes([0, *byte]).to_f32() * scales[0];
    let e5m2: Vec<Vec<f32>> = halves.chunks(inputs).map(|row| row.iter().map(number).collect()).collect();
    let weight = ("l.weight", "F8_E5M2", vec![outputs, inputs], halves.clone());
    check(&json!({ "quant_method": "fp8" }), &[weight, ("l.weight_scale_inv", "F32", vec![1], f32s(1))], &e5m2);
}

/// A matrix of codes, with zeros and scales for each group: `[outputs][inputs]`, `[groups][outputs]` twice.
struct Matrix {
    codes: Vec<Vec<u32>>,
    zeros: Vec<Vec<u32>>,
    scales: Vec<Vec<f16>>,
}

const OUTPUTS: usize = 16;
const INPUTS: usize = 24;
const GROUP: usize = 9;

impl Matrix {
    fn random(groups: usize) -> Matrix {
        Matrix::of([OUTPUTS, INPUTS], groups)
    }

    fn of([outputs, inputs]: [usize; 2], groups: usize) -> Matrix {
        let mut random = random();
        let mut some = |count: usize| (0..count).map(|_| random(16)).collect::<Vec<u32>>();
        let codes = (0..outputs).map(|_| some(inputs)).collect();
        let zeros = (0..groups).map(|_| some(outputs)).collect();
        let scale = |x: u32| f16::from_f32((x + 1) as f32 / 333.0);
        let scales = (0..groups).map(|_| some(outputs).into_iter().map(scale).collect()).collect();
        Matrix { codes, zeros, scales }
    }

    /// Outputs and inputs.
    fn size(&self) -> [usize; 2] {
        [self.codes.len(), self.codes[0].len()]
    }

    /// The numbers, with zeros greater by `more`.
    fn expected(&self, more: f64, group: impl Fn(usize) -> usize) -> Vec<Vec<f32>> {
        let [outputs, inputs] = self.size();
        let number = |o: usize, i: usize| {
            let (zero, scale) = (self.zeros[group(i)][o], self.scales[group(i)][o]);
            ((f64::from(self.codes[o][i]) - f64::from(zero) - more) * scale.to_f64()) as f32
        };
        (0..outputs).map(|o| (0..inputs).map(|i| number(o, i)).collect()).collect()
    }

    fn scales(&self) -> Part {
        let [outputs, _] = self.size();
        let bytes = self.scales.concat().iter().flat_map(|x| x.to_le_bytes()).collect();
        ("l.scales", "F16", vec![self.scales.len(), outputs], bytes)
    }

    /// As AutoGPTQ packs: `qweight[i / 8][o] |= code << 4 (i % 8)`, `qzeros[g][o / 8] |= zero << 4 (o % 8)`.
    fn gptq(&self) -> Vec<Part> {
        let [outputs, inputs] = self.size();
        let mut codes = vec![0u32; inputs / 8 * outputs];
        for o in 0..outputs {
            for i in 0..inputs {
                codes[i / 8 * outputs + o] |= self.codes[o][i] << (4 * (i % 8));
            }
        }
        let mut zeros = vec![0u32; self.zeros.len() * outputs / 8];
        for (g, row) in self.zeros.iter().enumerate() {
            for (o, zero) in row.iter().enumerate() {
                zeros[g * outputs / 8 + o / 8] |= zero << (4 * (o % 8));
            }
        }
        vec![
            ("l.qweight", "I32", vec![inputs / 8, outputs], words(&codes)),
            ("l.qzeros", "I32", vec![self.zeros.len(), outputs / 8], words(&zeros)),
            self.scales(),
        ]
    }

    /// As AutoAWQ packs for `gemv` (`WQLinear_GEMV.from_linear`): inputs and groups in their order, groups filled up to `width`
    /// words.
    fn gemv(&self, width: usize) -> Vec<Part> {
        let [outputs, inputs] = self.size();
        let mut scales = transposed(&self.scales);
        scales.iter_mut().for_each(|row| row.resize(8 * width, f16::ZERO));
        let mut zeros = transposed(&self.zeros);
        zeros.iter_mut().for_each(|row| row.resize(8 * width, 0));
        vec![
            ("l.qweight", "I32", vec![outputs, inputs / 8], in_words(&self.codes, 4)),
            ("l.qzeros", "I32", vec![outputs, width], in_words(&zeros, 4)),
            ("l.scales", "F16", vec![outputs, 8 * width], halves(&scales)),
        ]
    }

    /// As AutoAWQ packs for `gemv_fast` (`pack_intweight`, interleave 4, kstride 64), step by step: in each 32 inputs pairs of
    /// a distance of eight together; in each eight those of even number first; 64 inputs of an output before those of the next
    /// of four; words of four. Groups are filled up to `width` words of eight.
    fn gemv_fast(&self, width: usize) -> Vec<Part> {
        let [outputs, inputs] = self.size();
        let pairs = moved(&self.codes.concat(), &[outputs, inputs / 32, 4, 4, 2], &[0, 1, 3, 2, 4]);
        let even = moved(&pairs, &[outputs, inputs / 32, 4, 4, 2], &[0, 1, 2, 4, 3]);
        let fours = moved(&even, &[outputs / 4, 4, inputs / 64, 64], &[0, 2, 1, 3]);
        let word = |four: &[u32]| (four[0] | four[1] << 4 | four[2] << 8 | four[3] << 12) as u16;
        let packed: Vec<u8> = fours.chunks(4).flat_map(|four| word(four).to_le_bytes()).collect();
        let filled = |mut rows: Vec<Vec<f16>>| {
            rows.resize(8 * width, vec![f16::ZERO; outputs]);
            halves(&rows)
        };
        vec![
            ("l.qweight", "I16", vec![outputs / 4, inputs], packed),
            ("l.scales", "F16", vec![8 * width, outputs], filled(self.scales.clone())),
            ("l.scaled_zeros", "F16", vec![8 * width, outputs], filled(self.scaled_zeros())),
        ]
    }

    /// `-scale * zero`, as halves.
    fn scaled_zeros(&self) -> Vec<Vec<f16>> {
        let of = |(zeros, scales): (&Vec<u32>, &Vec<f16>)| -> Vec<f16> {
            zeros.iter().zip(scales).map(|(zero, scale)| f16::from_f32(-(scale.to_f32() * *zero as f32))).collect()
        };
        self.zeros.iter().zip(&self.scales).map(of).collect()
    }

    /// As compressed-tensors has integers in words (`pack_to_int32` of its version 0.12), each greater by half of their range:
    /// weights by input, zeros, if they are wanted, by output.
    fn packed(&self, [outputs, inputs]: [usize; 2], bits: usize, zeros: bool) -> Vec<Part> {
        let (each, groups) = (32 / bits, self.zeros.len());
        let codes: Vec<Vec<u32>> = self.codes[..outputs].iter().map(|row| row[..inputs].to_vec()).collect();
        let scales = transposed(&self.scales)[..outputs].to_vec();
        let shape = [outputs as i64, inputs as i64].iter().flat_map(|size| size.to_le_bytes()).collect();
        let mut parts = vec![
            ("l.weight_packed", "I32", vec![outputs, inputs.div_ceil(each)], in_words(&codes, bits)),
            ("l.weight_scale", "F16", vec![outputs, groups], halves(&scales)),
            ("l.weight_shape", "I64", vec![2], shape),
        ];
        if zeros {
            let by_output: Vec<Vec<u32>> = self.zeros.iter().map(|row| row[..outputs].to_vec()).collect();
            let packed: Vec<u8> = in_words(&by_output, bits);
            let words = transposed(&packed.chunks(4 * outputs.div_ceil(each)).map(quads).collect::<Vec<_>>());
            let shape = vec![outputs.div_ceil(each), groups];
            parts.push(("l.weight_zero_point", "I32", shape, words.concat().concat()));
        }
        parts
    }

    /// As AutoAWQ packs: the outputs 0, 2, 4, 6, 1, 3, 5, 7 of each eight, from the lowest bits on.
    fn awq(&self) -> Vec<Part> {
        let [outputs, inputs] = self.size();
        let order = [0, 2, 4, 6, 1, 3, 5, 7];
        let pack = |number: &dyn Fn(usize, usize) -> u32, rows: usize| {
            let mut packed = vec![0u32; rows * outputs / 8];
            for row in 0..rows {
                for column in 0..outputs / 8 {
                    for (i, o) in order.iter().enumerate() {
                        packed[row * outputs / 8 + column] |= number(row, column * 8 + o) << (4 * i);
                    }
                }
            }
            words(&packed)
        };
        vec![
            ("l.qweight", "I32", vec![inputs, outputs / 8], pack(&|i, o| self.codes[o][i], inputs)),
            ("l.qzeros", "I32", vec![self.zeros.len(), outputs / 8], pack(&|g, o| self.zeros[g][o], self.zeros.len())),
            self.scales(),
        ]
    }
}

/// Numbers of these sizes with their axes in another order.
fn moved(numbers: &[u32], sizes: &[usize], order: &[usize]) -> Vec<u32> {
    let sizes_then: Vec<usize> = order.iter().map(|&axis| sizes[axis]).collect();
    let from = |place: usize| {
        let (mut rest, mut index) = (place, vec![0; sizes.len()]);
        for (&axis, size) in order.iter().zip(&sizes_then).rev() {
            (index[axis], rest) = (rest % size, rest / size);
        }
        numbers[index.iter().zip(sizes).fold(0, |at, (index, size)| at * size + index)]
    };
    (0..numbers.len()).map(from).collect()
}

/// Rows of numbers in words of four bytes, so many bits each, the first in the lowest.
fn in_words(rows: &[Vec<u32>], bits: usize) -> Vec<u8> {
    let each = 32 / bits;
    let word = |some: &[u32]| some.iter().enumerate().fold(0, |word, (at, number)| word | number << (bits * at));
    words(&rows.iter().flat_map(|row| row.chunks(each).map(word)).collect::<Vec<u32>>())
}

fn transposed<T: Clone>(rows: &[Vec<T>]) -> Vec<Vec<T>> {
    (0..rows[0].len()).map(|at| rows.iter().map(|row| row[at].clone()).collect()).collect()
}

/// Bytes by fours.
fn quads(bytes: &[u8]) -> Vec<[u8; 4]> {
    bytes.as_chunks().0.to_vec()
}

fn halves(rows: &[Vec<f16>]) -> Vec<u8> {
    rows.concat().iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn gptq(format: Option<&str>, group: i64) -> Value {
    let mut settings =
        json!({ "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": true, "sym": false });
    if let Some(format) = format {
        settings["checkpoint_format"] = json!(format);
    }
    settings
}

#[test]
fn gptq_s_codes_are_the_numbers_that_were_packed() {
    let matrix = Matrix::random(INPUTS.div_ceil(GROUP));
    let by_place = |input: usize| input / GROUP;
    for (format, more) in [(None, 1.0), (Some("gptq"), 1.0), (Some("gptq_v2"), 0.0)] {
        check(&gptq(format, GROUP as i64), &matrix.gptq(), &matrix.expected(more, by_place));
        // As sorted by activation: any input can be in any group.
        let listed = |input: usize| (input * 5 + 1) % 3;
        let index: Vec<u32> = (0..INPUTS).map(|input| listed(input) as u32).collect();
        let parts = [matrix.gptq(), vec![("l.g_idx", "I32", vec![INPUTS], words(&index))]].concat();
        check(&gptq(format, GROUP as i64), &parts, &matrix.expected(more, listed));
    }
    let matrix = Matrix::random(1);
    check(&gptq(None, -1), &matrix.gptq(), &matrix.expected(1.0, |_| 0));
    // What was left as it was.
    let plain = ("l.weight", "F16", vec![3, 5], vec![0x3c; 30]);
    check(&gptq(None, 128), &[plain], &vec![vec![f16::from_bits(0x3c3c).to_f32(); 5]; 3]);
}

#[test]
fn awq_s_codes_are_the_numbers_that_were_packed() {
    for group in [8, INPUTS] {
        let matrix = Matrix::random(INPUTS / group);
        let settings =
            json!({ "quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM", "zero_point": true });
        check(&settings, &matrix.awq(), &matrix.expected(0.0, |input| input / group));
    }
}

#[test]
fn awq_s_other_order_is_read_too() {
    for (group, width) in [(8, 1), (8, 2), (INPUTS, 1)] {
        let matrix = Matrix::random(INPUTS / group);
        let settings = json!({ "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemv" });
        check(&settings, &matrix.gemv(width), &matrix.expected(0.0, |input| input / group));
    }
}

#[test]
fn awq_s_scaled_zeros_are_added() {
    for (inputs, group, width) in [(64, 32, 4), (128, 64, 2), (192, 192, 1)] {
        let matrix = Matrix::of([OUTPUTS, inputs], inputs / group);
        let zeros = matrix.scaled_zeros();
        let number = |o: usize, i: usize| {
            let (scale, zero) = (matrix.scales[i / group][o], zeros[i / group][o]);
            (f64::from(matrix.codes[o][i]) * scale.to_f64() + zero.to_f64()) as f32
        };
        let expected: Vec<Vec<f32>> = (0..OUTPUTS).map(|o| (0..inputs).map(|i| number(o, i)).collect()).collect();
        let settings = json!({ "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemv_fast" });
        check(&settings, &matrix.gemv_fast(width), &expected);
    }
}

fn compressed(format: &str, kind: &str, bits: u32) -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": { "group_0": { "weights": { "type": kind, "num_bits": bits } } },
    })
}

/// `(q - zero) · scale`, as `_dequantize` of compressed-tensors 0.12 has it, where `g_idx` may list the groups.
#[test]
fn compressed_tensors_integers_are_the_numbers_that_were_packed() {
    for bits in [4u32, 8] {
        // The last words are not full.
        for (outputs, inputs, groups) in [(16, 24, 3), (13, 21, 3), (16, 24, 1), (3, 22, 11)] {
            let mut matrix = Matrix::random(groups);
            for number in matrix.codes.iter_mut().chain(&mut matrix.zeros).flatten() {
                *number = (*number * 83 + 5) % (1 << bits);
            }
            let cut = |expected: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
                expected[..outputs].iter().map(|row| row[..inputs].to_vec()).collect()
            };
            let by_place = |input: usize| (input / (inputs / groups)).min(groups - 1);
            let middle = 1 << (bits - 1);
            let mut symmetric = Matrix { zeros: vec![vec![middle; OUTPUTS]; groups], ..Matrix::random(groups) };
            symmetric.codes.clone_from(&matrix.codes);
            let settings = compressed("pack-quantized", "int", bits);
            let size = [outputs, inputs];
            let parts = symmetric.packed(size, bits as usize, false);
            check(&settings, &parts, &cut(symmetric.expected(0.0, by_place)));
            let parts = matrix.packed(size, bits as usize, true);
            check(&settings, &parts, &cut(matrix.expected(0.0, by_place)));
            check(&compressed("mixed-precision", "int", bits), &parts, &cut(matrix.expected(0.0, by_place)));

            let listed = |input: usize| (input * 5 + 1) % groups;
            let index = |of: &dyn Fn(usize) -> i32| (0..inputs).flat_map(|i| of(i).to_le_bytes()).collect::<Vec<u8>>();
            let given = ("l.weight_g_idx", "I32", vec![inputs], index(&|input| listed(input) as i32));
            check(&settings, &[parts.clone(), vec![given]].concat(), &cut(matrix.expected(0.0, listed)));
            let absent = ("l.weight_g_idx", "I32", vec![inputs], index(&|_| -1));
            check(&settings, &[parts.clone(), vec![absent]].concat(), &cut(matrix.expected(0.0, by_place)));

            // Zeros that are not packed, as older files have them.
            let mut parts = parts;
            parts.retain(|(name, ..)| *name != "l.weight_zero_point");
            let signed = |of: &u32| (*of as i32 - middle as i32) as i8 as u8;
            let zeros = transposed(&matrix.zeros)[..outputs].concat().iter().map(signed).collect();
            parts.push(("l.weight_zero_point", "I8", vec![outputs, groups], zeros));
            check(&settings, &parts, &cut(matrix.expected(0.0, by_place)));
        }
    }
}

#[test]
fn compressed_tensors_bytes_are_scaled() {
    let (outputs, inputs) = (7, 10);
    let mut random = random();
    let numbers: Vec<i8> = (0..outputs * inputs).map(|_| random(256) as u8 as i8).collect();
    let scales: Vec<bf16> = (0..14).map(|_| bf16::from_f32((random(1000) + 1) as f32 / 7919.0)).collect();
    let zeros: Vec<i8> = (0..14).map(|_| random(256) as u8 as i8).collect();
    let bytes = |numbers: &[i8]| numbers.iter().map(|number| *number as u8).collect::<Vec<u8>>();
    let weight = ("l.weight", "I8", vec![outputs, inputs], bytes(&numbers));
    let expected = |at: &dyn Fn(usize, usize) -> usize, zeros: Option<&[i8]>| -> Vec<Vec<f32>> {
        let number = |o: usize, i: usize| {
            let zero = zeros.map_or(0.0, |zeros| f64::from(zeros[at(o, i)]));
            ((f64::from(numbers[o * inputs + i]) - zero) * scales[at(o, i)].to_f64()) as f32
        };
        (0..outputs).map(|o| (0..inputs).map(|i| number(o, i)).collect()).collect()
    };
    type At<'a> = &'a dyn Fn(usize, usize) -> usize;
    let cases: [(Vec<usize>, At<'_>); 5] = [
        (vec![outputs, 1], &|o, _| o),
        (vec![outputs], &|o, _| o),
        (vec![outputs, 2], &|o, i| 2 * o + i / 5),
        (vec![1], &|_, _| 0),
        (vec![], &|_, _| 0),
    ];
    for format in ["int-quantized", "naive-quantized", "mixed-precision"] {
        let settings = compressed(format, "int", 8);
        for (shape, at) in &cases {
            let count = shape.iter().product::<usize>();
            let scale: Vec<u8> = scales[..count].iter().flat_map(|x| x.to_le_bytes()).collect();
            let parts = [weight.clone(), ("l.weight_scale", "BF16", shape.clone(), scale)];
            check(&settings, &parts, &expected(at, None));
            let zero = ("l.weight_zero_point", "I8", shape.clone(), bytes(&zeros[..count]));
            check(&settings, &[&parts[..], &[zero]].concat(), &expected(at, Some(&zeros)));
        }
    }
}

/// A float of 4 bits, by its definition.
fn e2m1(code: u8) -> f32 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

#[test]
fn compressed_tensors_floats_of_four_bits_are_scaled() {
    let (outputs, inputs) = (7, 64);
    let mut random = random();
    let packed: Vec<u8> = (0..outputs * inputs / 2).map(|_| random(256) as u8).collect();
    let float = |o: usize, i: usize| {
        let at = o * inputs + i;
        e2m1(packed[at / 2] >> (4 * (at % 2)) & 15)
    };
    let weight = ("l.weight_packed", "U8", vec![outputs, inputs / 2], packed.clone());
    let expected = |scale: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
        (0..outputs).map(|o| (0..inputs).map(|i| float(o, i) * scale(o, i)).collect()).collect()
    };
    let bytes: Vec<u8> = (0..4 * outputs).map(|_| random(0x7f) as u8).collect();
    let whole = 1234.5f32;
    let scale = ("l.weight_scale", "F8_E4M3", vec![outputs, 4], bytes.clone());
    let of_whole = ("l.weight_global_scale", "F32", vec![1], whole.to_le_bytes().to_vec());
    let nvfp4 = compressed("nvfp4-pack-quantized", "float", 4);
    let parts = [weight.clone(), scale.clone(), of_whole.clone()];
    let divided = |o: usize, i: usize| e4m3(bytes[4 * o + i / 16]) as f32 / whole;
    check(&nvfp4, &parts, &expected(&divided));
    check(&nvfp4, &parts[..2], &expected(&|o, i| e4m3(bytes[4 * o + i / 16]) as f32));

    let exponents: Vec<u8> = (0..2 * outputs).map(|_| 100 + random(40) as u8).collect();
    let powers = ("l.weight_scale", "U8", vec![outputs, 2], exponents.clone());
    let power = |o: usize, i: usize| (f32::from(exponents[2 * o + i / 32]) - 127.0).exp2();
    let mxfp4 = compressed("mxfp4-pack-quantized", "float", 4);
    check(&mxfp4, &[weight.clone(), powers.clone()], &expected(&power));
    check(&compressed("mixed-precision", "float", 4), &[weight.clone(), powers.clone()], &expected(&power));

    // Both are kept in their blocks.
    for (settings, parts, format, scale) in [
        (nvfp4, parts.to_vec(), "nvfp4", &divided as &dyn Fn(usize, usize) -> f32),
        (mxfp4, vec![weight, powers], "mxfp4", &power),
    ] {
        let checkpoint = open(settings, &parts).unwrap();
        let (graph, w) = graph(outputs, inputs, None);
        let stored = checkpoint.weight(&graph, w, None).unwrap();
        let grid = stored.grid().unwrap();
        assert_eq!(einfuse_codegen::Format::holding(&grid).unwrap().to_string(), format);
        let (mut values, mut scales) = (vec![0; outputs * inputs], vec![[0.0; 2]; outputs * inputs / grid.block]);
        stored.read_blocks(0, &mut values, &mut scales);
        for (at, value) in values.into_iter().enumerate() {
            let (o, i) = (at / inputs, at % inputs);
            assert_eq!(f32::from(value), 2.0 * float(o, i), "{format}");
            assert_eq!(scales[at / grid.block], [scale(o, i) / 2.0, 0.0], "{format}");
        }
    }
}

/// What the reference implementation makes of random blocks with every scale there is.
#[test]
fn mxfp4_is_the_reference_s_floats_bit_for_bit() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/gpt_oss_mxfp4/golden.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str| file.tensor(name).unwrap();
    let parts = [
        ("l.weight_blocks", "U8", tensor("mxfp4.blocks").shape().to_vec(), tensor("mxfp4.blocks").data().to_vec()),
        ("l.weight_scales", "U8", tensor("mxfp4.scales").shape().to_vec(), tensor("mxfp4.scales").data().to_vec()),
    ];
    let checkpoint = open(json!({ "quant_method": "mxfp4" }), &parts).unwrap();
    let expected = tensor("mxfp4.floats");
    let mut b = Builder::new("test");
    let axes = ["e", "i", "o"].iter().zip(expected.shape()).map(|(name, &size)| b.axis(name, size));
    let axes: Vec<_> = axes.collect();
    let w = b.weight("w", &axes, "l.weight");
    let value = b.load(w);
    let out = b.define("out", None, value);
    let graph = b.finish(out).unwrap();
    let stored = checkpoint.weight(&graph, w, None).unwrap();
    let expected: Vec<f32> = expected.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let same = |found: &[f32], expected: &[f32]| {
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "number {i}: {a} is not {b}");
        }
    };
    same(&stored.to_f32(), &expected);
    // In the file's order inputs come last.
    let [_, inputs, outputs] = *tensor("mxfp4.floats").shape() else { panic!() };
    let place = |at: usize| (at / inputs / outputs * inputs + at % inputs) * outputs + at / inputs % outputs;
    for (at, length) in [(0, 1), (63, 5), (4000, 200), (expected.len() - 7, 7), (70, 3)] {
        let mut out = vec![0.0; length];
        stored.read(at, &mut out);
        let wanted: Vec<f32> = (at..at + length).map(|at| expected[place(at)]).collect();
        same(&out, &wanted);
    }
    // As blocks of values with scales they are the same.
    let grid = stored.grid().unwrap();
    let (mut values, mut scales) = (vec![0; expected.len()], vec![[0.0; 2]; expected.len() / grid.block]);
    stored.read_blocks(0, &mut values, &mut scales);
    let product = |at: usize| f32::from(values[at]) * scales[at / grid.block][0];
    let is_same = |at: usize| product(at) == expected[place(at)] || expected[place(at)].is_nan();
    assert_eq!((0..expected.len()).find(|at| !is_same(*at)), None);
    assert_eq!(Some(grid), Dtype::Mxfp4.grid());
    assert_eq!(stored.bits(), 4.0 * expected.len() as f64);
    assert!(checkpoint.leftovers(&stored.beside.iter().cloned().collect()).is_empty());
}

#[test]
fn seeds_are_checkpoints_of_each_kind() {
    let hold = |name: &str, settings: Value, parts: &[Part]| {
        let (config, weights) = files(settings, parts);
        hold_seed("safetensors", name, &[config.as_bytes(), b"\n", &weights].concat());
    };
    let bytes = |count: usize| (0..count).map(|i| (i * 37 % 120) as u8).collect::<Vec<u8>>();
    let plain = [
        ("a", "F32", vec![2, 3], bytes(24)),
        ("b", "BF16", vec![4], bytes(8)),
        ("c", "F16", vec![1, 2, 1], bytes(4)),
        ("d", "F8_E5M2", vec![3], bytes(3)),
    ];
    hold("plain", Value::Null, &plain);
    let fp8 = [
        ("l.weight", "F8_E4M3", vec![5, 6], bytes(30)),
        ("l.weight_scale_inv", "F32", vec![3, 2], bytes(24)),
        ("m.weight", "F8_E4M3", vec![3, 2], bytes(6)),
        ("m.weight_scale", "BF16", vec![3, 1], bytes(6)),
    ];
    hold("fp8", json!({ "quant_method": "fp8", "weight_block_size": [2, 4] }), &fp8);
    let matrix = Matrix::random(INPUTS.div_ceil(GROUP));
    let index: Vec<u32> = (0..INPUTS).map(|input| input as u32 % 3).collect();
    let parts = [matrix.gptq(), vec![("l.g_idx", "I32", vec![INPUTS], words(&index))]].concat();
    hold("gptq", gptq(None, GROUP as i64), &parts);
    hold("awq", json!({ "quant_method": "awq", "bits": 4, "group_size": GROUP }), &matrix.awq());
    let settings = json!({ "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemv" });
    hold("gemv", settings, &matrix.gemv(1));
    let settings = json!({ "quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv_fast" });
    hold("gemv_fast", settings, &Matrix::of([OUTPUTS, 64], 2).gemv_fast(1));
    let bytes_too = [
        ("m.weight", "I8", vec![2, 4], bytes(8)),
        ("m.weight_scale", "F32", vec![2, 2], bytes(16)),
        ("m.weight_zero_point", "I8", vec![2, 2], bytes(4)),
        ("l.weight_g_idx", "I32", vec![INPUTS], words(&index)),
    ];
    let parts = [matrix.packed([OUTPUTS, INPUTS], 4, true), bytes_too.to_vec()].concat();
    hold("packed", compressed("mixed-precision", "int", 4), &parts);
    let blocks =
        [("l.weight_blocks", "U8", vec![2, 3, 1, 16], bytes(96)), ("l.weight_scales", "U8", vec![2, 3, 1], bytes(6))];
    hold("mxfp4", json!({ "quant_method": "mxfp4" }), &blocks);
    let pairs = [
        ("l.weight_packed", "U8", vec![3, 16], bytes(48)),
        ("l.weight_scale", "F8_E4M3", vec![3, 2], bytes(6)),
        ("l.weight_global_scale", "F32", vec![1], bytes(4)),
        ("m.weight_packed", "U8", vec![2, 16], bytes(32)),
        ("m.weight_scale", "U8", vec![2, 1], bytes(2)),
    ];
    hold("fp4", compressed("nvfp4-pack-quantized", "float", 4), &pairs);
}

#[test]
fn other_methods_and_broken_settings_are_named() {
    let int4 = |key: &str, value: Value| {
        let mut settings = gptq(None, 128);
        settings[key] = value;
        settings
    };
    let mut turned = compressed("pack-quantized", "int", 4);
    turned["transform_config"] = json!({ "config_groups": { "u": { "type": "hadamard" } } });
    let cases = [
        (json!({}), "quant_method` is missing"),
        (json!({ "quant_method": 3 }), "quant_method` wants a string, not 3"),
        (
            json!({ "quant_method": "bitsandbytes" }),
            "quant_method` is `bitsandbytes`; fp8, fbgemm_fp8, compressed-tensors, gptq, awq and mxfp4 can be read",
        ),
        (
            json!({ "quant_method": "fp8", "weight_block_size": [128] }),
            "weight_block_size` wants two numbers of at least 1, not [128]",
        ),
        (
            json!({ "quant_method": "fp8", "weight_block_size": [128, 0] }),
            "weight_block_size` wants two numbers of at least 1, not [128,0]",
        ),
        (int4("bits", json!(3)), "bits` is `3`; 4 can be read"),
        (int4("bits", Value::Null), "bits` is missing"),
        (int4("group_size", json!(0)), "group_size` wants a number of at least 1, or -1, not 0"),
        (int4("group_size", Value::Null), "group_size` is missing"),
        (int4("checkpoint_format", json!("marlin")), "checkpoint_format` is `marlin`; gptq and gptq_v2 can be read"),
        (
            json!({ "quant_method": "awq", "bits": 4, "group_size": 64, "version": "marlin" }),
            "version` is `marlin`; gemm, gemv and gemv_fast can be read",
        ),
        (
            compressed("marlin-24", "int", 4),
            "format` is `marlin-24`; float-quantized, mxfp8-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized, \
             int-quantized, pack-quantized, naive-quantized and mixed-precision can be read",
        ),
        (
            compressed("naive-quantized", "int", 4),
            "config_groups.group_0.weights` wants `type` float and `num_bits` 8, or int and `num_bits` 8, which is what can be read",
        ),
        (
            compressed("pack-quantized", "int", 3),
            "config_groups.group_0.weights` wants `type` int and `num_bits` 4 or 8, which is what can be read",
        ),
        (turned, "transform_config` has transforms of activations, which cannot be applied"),
    ];
    for (settings, expected) in cases {
        let error = open(settings, &[]).unwrap_err().to_string();
        assert_eq!(error, format!("embedded x/config.json: key `quantization_config.{expected}"));
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let matrix = Matrix::random(INPUTS.div_ceil(GROUP));
    let with = |mut parts: Vec<Part>, name: &'static str, dtype: &'static str, shape: &[usize]| {
        parts.retain(|(other, ..)| *other != name);
        let bits = match dtype {
            "F8_E4M3" | "I8" | "U8" => 8,
            "F16" | "BF16" | "I16" => 16,
            _ => 32,
        };
        if dtype != "absent" {
            parts.push((name, dtype, shape.to_vec(), vec![0x33; shape.iter().product::<usize>() * bits / 8]));
        }
        parts
    };
    let settings = gptq(None, GROUP as i64);
    let awq = json!({ "quant_method": "awq", "bits": 4, "group_size": GROUP });
    let fp4 = compressed("nvfp4-pack-quantized", "float", 4);
    let pairs = || {
        let codes = with(vec![], "l.weight_packed", "U8", &[OUTPUTS, INPUTS / 2]);
        with(codes, "l.weight_scale", "F8_E4M3", &[OUTPUTS, 3])
    };
    let fast = json!({ "quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv_fast" });
    let of_64 = || Matrix::of([OUTPUTS, 64], 2).gemv_fast(1);
    let fp8 = json!({ "quant_method": "fp8", "weight_block_size": [2, 4] });
    let mxfp4 = json!({ "quant_method": "mxfp4" });
    let mx = |blocks: &[usize], scales: &[usize]| {
        with(with(vec![], "l.weight_blocks", "U8", blocks), "l.weight_scales", "U8", scales)
    };
    let weight = || vec![("l.weight", "F8_E4M3", vec![OUTPUTS, INPUTS], vec![0; OUTPUTS * INPUTS])];
    let cases: Vec<(&Value, Vec<Part>, &str)> = vec![
        (
            &settings,
            with(matrix.gptq(), "l.qzeros", "absent", &[]),
            "`l.qweight` has no `l.qzeros` beside it, which was expected",
        ),
        (
            &settings,
            with(matrix.gptq(), "l.scales", "absent", &[]),
            "`l.qweight` has no `l.scales` beside it, which was expected",
        ),
        (
            &settings,
            with(matrix.gptq(), "l.qweight", "I32", &[48]),
            "`l.qweight` has the shape [48]; two dimensions were expected",
        ),
        (&settings, with(matrix.gptq(), "l.qweight", "F32", &[3, 16]), "`l.qweight` is of dtype F32; I32 was expected"),
        (
            &settings,
            with(matrix.gptq(), "l.scales", "F32", &[3, 8]),
            "`l.scales` has the shape [3, 8]; [3, 16] was expected",
        ),
        (
            &settings,
            with(matrix.gptq(), "l.scales", "F8_E4M3", &[3, 16]),
            "`l.scales` is of dtype F8_E4M3; F32, BF16 or F16 was expected",
        ),
        (
            &settings,
            with(matrix.gptq(), "l.scales", "I32", &[3, 16]),
            "`l.scales` is of dtype I32; F32, BF16, F16, F8_E4M3 and F8_E5M2 can be used",
        ),
        (
            &settings,
            with(matrix.gptq(), "l.qzeros", "I32", &[2, 2]),
            "`l.qzeros` has the shape [2, 2]; [3, 2] was expected",
        ),
        (
            &settings,
            with(with(matrix.gptq(), "l.scales", "F16", &[2, 16]), "l.qzeros", "I32", &[2, 2]),
            "`l.scales` has 2 groups; 24 inputs in groups of 9 are expected",
        ),
        (&settings, with(matrix.gptq(), "l.g_idx", "I32", &[23]), "`l.g_idx` has the shape [23]; [24] was expected"),
        (
            &settings,
            with(matrix.gptq(), "l.g_idx", "I32", &[24]),
            "`l.g_idx` has the group 858993459 for input 0; there are 3 groups",
        ),
        (
            &settings,
            with(
                with(with(matrix.gptq(), "l.qweight", "I32", &[3, 12]), "l.scales", "F16", &[3, 12]),
                "l.qzeros",
                "I32",
                &[3, 1],
            ),
            "`l.qweight` has 12 outputs for 24 inputs; multiples of 8 were expected",
        ),
        (
            &awq,
            with(matrix.awq(), "l.scales", "F16", &[3, 24]),
            "`l.scales` has the shape [3, 24]; [3, 16] was expected",
        ),
        (&fast, with(of_64(), "l.qweight", "I32", &[4, 64]), "`l.qweight` is of dtype I32; I16 was expected"),
        (
            &fast,
            with(of_64(), "l.qweight", "I16", &[4, 96]),
            "`l.qweight` has 16 outputs for 96 inputs; multiples of 8 and 64 were expected",
        ),
        (
            &fast,
            with(of_64(), "l.scaled_zeros", "absent", &[]),
            "`l.qweight` has no `l.scaled_zeros` beside it, which was expected",
        ),
        (
            &fp4,
            with(pairs(), "l.weight_scale", "absent", &[]),
            "`l.weight_packed` has no `l.weight_scale` beside it, which was expected",
        ),
        (
            &fp4,
            with(pairs(), "l.weight_packed", "U8", &[OUTPUTS]),
            "`l.weight_packed` has the shape [16]; two dimensions were expected",
        ),
        (
            &fp4,
            with(pairs(), "l.weight_scale", "F8_E4M3", &[OUTPUTS, 5]),
            "`l.weight_scale` has the shape [16, 5]; some for each of 16 rows were expected, for 24 inputs",
        ),
        (
            &fp4,
            with(pairs(), "l.weight_scale", "I32", &[OUTPUTS, 3]),
            "`l.weight_scale` is of dtype I32; F32, BF16, F16, F8_E4M3 and F8_E5M2 can be used",
        ),
        (
            &fp4,
            with(pairs(), "l.weight_global_scale", "F32", &[2]),
            "`l.weight_global_scale` has the shape [2]; one number was expected",
        ),
        (&fp8, weight(), "`l.weight` has no scale: `l.weight_scale_inv` or `l.weight_scale` was expected"),
        (
            &fp8,
            with(weight(), "l.weight_scale_inv", "F32", &[7, 6]),
            "`l.weight_scale_inv` has the shape [7, 6]; one number, some for each of 16 rows, one for each 2 × 4 were expected",
        ),
        (
            &Value::Null,
            with(weight(), "l.weight_scale", "F32", &[8, 6]),
            "`l.weight_scale` has the shape [8, 6]; one number, some for each of 16 rows were expected",
        ),
        (
            &fp8,
            with(weight(), "l.weight_scale", "I32", &[1]),
            "`l.weight_scale` is of dtype I32; F32, BF16, F16, F8_E4M3 and F8_E5M2 can be used",
        ),
        (
            &fp8,
            with(vec![], "l.weight", "I8", &[16, 24]),
            "`l.weight` is of dtype I8; F32, BF16, F16, F8_E4M3 and F8_E5M2 can be used",
        ),
        (
            &mxfp4,
            with(vec![], "l.weight_blocks", "U8", &[16, 1, 16]),
            "`l.weight_blocks` has no `l.weight_scales` beside it, which was expected",
        ),
        (
            &mxfp4,
            mx(&[16, 16], &[16]),
            "`l.weight_blocks` has the shape [16, 16]; outputs, groups of inputs and 16 bytes were expected",
        ),
        (&mxfp4, mx(&[16, 1, 16], &[16]), "`l.weight_scales` has the shape [16]; [16, 1] was expected"),
        (
            &mxfp4,
            with(mx(&[16, 1, 16], &[16, 1]), "l.weight_scales", "F8_E4M3", &[16, 1]),
            "`l.weight_scales` is of dtype F8_E4M3; U8 was expected",
        ),
    ];
    let packed = compressed("pack-quantized", "int", 4);
    let parts = || matrix.packed([OUTPUTS, INPUTS], 4, true);
    let bytes = || vec![("l.weight", "I8", vec![OUTPUTS, INPUTS], vec![0; OUTPUTS * INPUTS])];
    let gemv = json!({ "quant_method": "awq", "bits": 4, "group_size": 2, "version": "gemv" });
    let cases = [
        (
            &packed,
            with(parts(), "l.weight_shape", "absent", &[]),
            "`l.weight_packed` has no `l.weight_shape` beside it, which was expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_shape", "I32", &[3]),
            "`l.weight_shape` has the shape [3]; numbers of outputs and inputs were expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_shape", "F32", &[2]),
            "`l.weight_shape` is of dtype F32; I64 or I32 was expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_packed", "I32", &[16, 4]),
            "`l.weight_packed` has the shape [16, 4]; [16, 3] was expected for 4 bits, [16, 6] for 8, by `l.weight_shape`",
        ),
        (
            &packed,
            with(parts(), "l.weight_scale", "absent", &[]),
            "`l.weight_packed` has no `l.weight_scale` beside it, which was expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_scale", "F16", &[3, 16]),
            "`l.weight_scale` has the shape [3, 16]; one number, or some for each of 16 rows were expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_scale", "F16", &[16, 5]),
            "`l.weight_scale` has 5 groups for 24 inputs; a number that divides them was expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_zero_point", "I32", &[16, 3]),
            "`l.weight_zero_point` has the shape [16, 3]; [2, 3] was expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_zero_point", "I8", &[2, 3]),
            "`l.weight_zero_point` has the shape [2, 3]; as many as scales were expected",
        ),
        (
            &packed,
            with(parts(), "l.weight_g_idx", "I32", &[24]),
            "`l.weight_g_idx` has the group 858993459 for input 0; there are 3 groups",
        ),
        (&packed, bytes(), "`l.weight` has no `l.weight_scale` beside it, which was expected"),
        (
            &gemv,
            matrix.gemv(1),
            "`l.scales` has 8 groups; 24 inputs in groups of 2 are expected",
        ),
    ]
    .into_iter()
    .chain(cases);
    let (graph, w) = graph(OUTPUTS, INPUTS, None);
    for (settings, parts, expected) in cases {
        let error = open(settings.clone(), &parts).unwrap().weight(&graph, w, None).unwrap_err().to_string();
        assert_eq!(error, format!("embedded x/model.safetensors: tensor {expected}"));
    }
    let error = open(settings, &[]).unwrap().weight(&graph, w, None).unwrap_err().to_string();
    assert_eq!(error, "`w` wants l.weight, which embedded x does not have");
}
