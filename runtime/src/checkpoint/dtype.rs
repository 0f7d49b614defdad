//! How files store numbers: plain floats, and the blocks of ggml, which share scales among neighbours in a row.
//!
//! A format is a line in [`FORMATS`], which says what its blocks hold, and a reader of the bits of one block. The layouts of
//! ggml's blocks, and the order of the operations, are those of its reference (`ggml-quants.c`, and `quants.py` of the package
//! `gguf`): the floats are the same bit for bit.

use einfuse_codegen::format::{E2M1, Grid, IQ4};
use half::{bf16, f16};

/// How a file stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of a single.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// 4 bits, a scale for 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32.
    Q4_1,
    /// 5 bits, a scale for 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32.
    Q5_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 2 bits, 4-bit scales and minima for 16, two scales for 256.
    Q2K,
    /// 3 bits, 6-bit scales for 16, a scale for 256.
    Q3K,
    /// 4 bits, 6-bit scales and minima for 32, two scales for 256.
    Q4K,
    /// 5 bits, 6-bit scales and minima for 32, two scales for 256.
    Q5K,
    /// 6 bits, 8-bit scales for 16, a scale for 256.
    Q6K,
    /// 4 bits that choose one of 16 uneven levels, a scale for 32.
    Iq4Nl,
    /// 4 bits that choose one of 16 uneven levels, 6-bit scales for 32, a scale for 256.
    Iq4Xs,
    /// 4-bit floats (E2M1), a power of two for 32: the MX format of the Open Compute Project.
    Mxfp4,
    /// 8-bit floats, 4 of them for the exponent, without infinities (<https://arxiv.org/abs/2209.05433>).
    F8E4M3,
    /// The upper half of a half precision number.
    F8E5M2,
    /// A power of two, by its exponent: the scales of the MX formats. It is read as half of it, which is a single for every
    /// exponent.
    F8E8M0,
    /// 4-bit floats, two in a byte, the first in its lower half. They are read as twice what they are, as their scales are read
    /// as half.
    F4E2M1,
}

/// One format.
struct Format {
    dtype: Dtype,
    /// Its name in the field.
    name: &'static str,
    /// Its number in GGUF files (`ggml_type`), if they can have it.
    code: Option<u32>,
    /// How many numbers a block holds.
    length: usize,
    /// How many bytes a block takes.
    bytes: usize,
    read: Reader,
}

/// How the bytes of a block are read.
#[derive(Clone, Copy)]
enum Reader {
    /// As floats.
    Floats(fn(&[u8], &mut [f32])),
    /// The numbers are `scale * value + minimum`: yields the values, and the scale and minimum of each of the grid's blocks, of
    /// which a block has one or more.
    Blocks(Grid, fn(&[u8], &mut [i8], &mut [[f32; 2]])),
}

/// The numbers of a block, at most.
const LONGEST: usize = 256;

/// The blocks of a grid in it, at most.
const MOST_SCALES: usize = LONGEST / 16;

/// Every format, in the order of [`Dtype`].
#[rustfmt::skip]
static FORMATS: [Format; 20] = [
    Format { dtype: Dtype::F32,   name: "F32",    code: Some(0),  length: 1,   bytes: 4,   read: Reader::Floats(f32_) },
    Format { dtype: Dtype::Bf16,  name: "BF16",   code: Some(30), length: 1,   bytes: 2,   read: Reader::Floats(bf16_) },
    Format { dtype: Dtype::F16,   name: "F16",    code: Some(1),  length: 1,   bytes: 2,   read: Reader::Floats(f16_) },
    Format { dtype: Dtype::Q4_0,  name: "Q4_0",   code: Some(2),  length: 32,  bytes: 18,  read: Reader::Blocks(grid(32, -8, 7), q4_0) },
    Format { dtype: Dtype::Q4_1,  name: "Q4_1",   code: Some(3),  length: 32,  bytes: 20,  read: Reader::Blocks(with_minima(32, 15), q4_1) },
    Format { dtype: Dtype::Q5_0,  name: "Q5_0",   code: Some(6),  length: 32,  bytes: 22,  read: Reader::Blocks(grid(32, -16, 15), q5_0) },
    Format { dtype: Dtype::Q5_1,  name: "Q5_1",   code: Some(7),  length: 32,  bytes: 24,  read: Reader::Blocks(with_minima(32, 31), q5_1) },
    Format { dtype: Dtype::Q8_0,  name: "Q8_0",   code: Some(8),  length: 32,  bytes: 34,  read: Reader::Blocks(grid(32, -128, 127), q8_0) },
    Format { dtype: Dtype::Q2K,   name: "Q2_K",   code: Some(10), length: 256, bytes: 84,  read: Reader::Blocks(with_minima(16, 3), q2_k) },
    Format { dtype: Dtype::Q3K,   name: "Q3_K",   code: Some(11), length: 256, bytes: 110, read: Reader::Blocks(grid(16, -4, 3), q3_k) },
    Format { dtype: Dtype::Q4K,   name: "Q4_K",   code: Some(12), length: 256, bytes: 144, read: Reader::Blocks(with_minima(32, 15), q4_k) },
    Format { dtype: Dtype::Q5K,   name: "Q5_K",   code: Some(13), length: 256, bytes: 176, read: Reader::Blocks(with_minima(32, 31), q5_k) },
    Format { dtype: Dtype::Q6K,   name: "Q6_K",   code: Some(14), length: 256, bytes: 210, read: Reader::Blocks(grid(16, -32, 31), q6_k) },
    Format { dtype: Dtype::Iq4Nl, name: "IQ4_NL", code: Some(20), length: 32,  bytes: 18,  read: Reader::Blocks(of_levels(&IQ4, -127, 113), iq4_nl) },
    Format { dtype: Dtype::Iq4Xs, name: "IQ4_XS", code: Some(23), length: 256, bytes: 136, read: Reader::Blocks(of_levels(&IQ4, -127, 113), iq4_xs) },
    Format { dtype: Dtype::Mxfp4, name: "MXFP4",  code: Some(39), length: 32,  bytes: 17,  read: Reader::Blocks(of_levels(&E2M1, -12, 12), mxfp4) },
    Format { dtype: Dtype::F8E4M3, name: "F8_E4M3", code: None,   length: 1,   bytes: 1,   read: Reader::Floats(f8_e4m3) },
    Format { dtype: Dtype::F8E5M2, name: "F8_E5M2", code: None,   length: 1,   bytes: 1,   read: Reader::Floats(f8_e5m2) },
    Format { dtype: Dtype::F8E8M0, name: "F8_E8M0", code: None,   length: 1,   bytes: 1,   read: Reader::Floats(f8_e8m0) },
    Format { dtype: Dtype::F4E2M1, name: "F4_E2M1", code: None,   length: 2,   bytes: 1,   read: Reader::Floats(f4_e2m1) },
];

impl Dtype {
    /// Every dtype.
    pub fn all() -> impl Iterator<Item = Dtype> {
        FORMATS.iter().map(|format| format.dtype)
    }

    /// Every dtype that GGUF files can have.
    pub(crate) fn all_of_gguf() -> impl Iterator<Item = Dtype> {
        FORMATS.iter().filter(|format| format.code.is_some()).map(|format| format.dtype)
    }

    /// The dtype of a number in GGUF files.
    pub(crate) fn of_code(code: u32) -> Option<Dtype> {
        FORMATS.iter().find(|format| format.code == Some(code)).map(|format| format.dtype)
    }

    fn format(self) -> &'static Format {
        &FORMATS[self as usize]
    }

    /// Its name in the field: `BF16`, `Q4_K`.
    pub fn name(self) -> &'static str {
        self.format().name
    }

    /// How many neighbours in a row make a block; 1 for plain floats.
    pub fn block_length(self) -> usize {
        self.format().length
    }

    /// The bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.format().bytes
    }

    /// What its blocks hold, if they are not floats.
    pub fn grid(self) -> Option<Grid> {
        match self.format().read {
            Reader::Blocks(grid, _) => Some(grid),
            Reader::Floats(_) => None,
        }
    }

    /// The numbers of whole blocks, each exactly as the format defines it, but for half of each [`Dtype::F8E8M0`] and twice each
    /// [`Dtype::F4E2M1`]: as many as `out` holds and `bytes` has.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let Format { length, bytes: size, read, .. } = self.format();
        let blocks = bytes.chunks_exact(*size).zip(out.chunks_exact_mut(*length));
        let (mut values, mut scales) = ([0; LONGEST], [[0.0; 2]; MOST_SCALES]);
        match read {
            Reader::Floats(read) => blocks.for_each(|(block, out)| read(block, out)),
            Reader::Blocks(grid, read) => blocks.for_each(|(block, out)| {
                read(block, &mut values[..*length], &mut scales[..*length / grid.block]);
                let parts = out.chunks_mut(grid.block).zip(values.chunks(grid.block)).zip(&scales);
                for ((out, values), [scale, minimum]) in parts {
                    for (out, value) in out.iter_mut().zip(values) {
                        let scaled = scale * f32::from(*value);
                        // A zero keeps its sign.
                        *out = if grid.minimum { scaled + minimum } else { scaled };
                    }
                }
            }),
        }
    }

    /// The values of whole blocks, with scale and minimum of each of the grid's blocks: as many as `values` holds and `bytes`
    /// has. Nothing of floats.
    pub fn decode_blocks(self, bytes: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
        let Format { length, bytes: size, read, .. } = self.format();
        let Reader::Blocks(grid, read) = read else { return };
        let parts = values.chunks_exact_mut(*length).zip(scales.chunks_exact_mut(*length / grid.block));
        for (block, (values, scales)) in bytes.chunks_exact(*size).zip(parts) {
            read(block, values, scales);
        }
    }
}

/// The values from `least` to `most`, so many of which share a scale.
const fn grid(block: usize, least: i8, most: i8) -> Grid {
    Grid { block, least, most, minimum: false, levels: None }
}

/// The values from 0 on, so many of which share scale and minimum.
const fn with_minima(block: usize, most: i8) -> Grid {
    Grid { block, least: 0, most, minimum: true, levels: None }
}

/// Uneven values, 32 of which share a scale.
const fn of_levels(levels: &'static [i8; 16], least: i8, most: i8) -> Grid {
    Grid { block: 32, least, most, minimum: false, levels: Some(levels) }
}

fn f32_(b: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
}

fn bf16_(b: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32();
}

fn f16_(b: &[u8], out: &mut [f32]) {
    out[0] = half(b, 0);
}

/// As a half precision number, of which the exponent has a bias greater by 8, and a bit more.
fn f8_e4m3(b: &[u8], out: &mut [f32]) {
    let (sign, rest) = (u16::from(b[0] & 0x80) << 8, u16::from(b[0] & 0x7f));
    out[0] = match rest {
        0x7f => f32::NAN,
        rest => f16::from_bits(sign | rest << 7).to_f32() * 256.0,
    };
}

fn f8_e5m2(b: &[u8], out: &mut [f32]) {
    out[0] = f16::from_le_bytes([0, b[0]]).to_f32();
}

fn f8_e8m0(b: &[u8], out: &mut [f32]) {
    out[0] = half_power(b[0]);
}

fn f4_e2m1(b: &[u8], out: &mut [f32]) {
    each(out, |i| {
        let code = code(b, 1, 4, i);
        let magnitude = f32::from(E2M1[usize::from(code & 7)]);
        if code & 8 == 0 { magnitude } else { -magnitude }
    });
}

/// Half of the power of two whose exponent, biased by 127, this is; the two smallest are subnormal.
fn half_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0..2 => 0x0020_0000 << exponent,
        _ => (u32::from(exponent) - 1) << 23,
    })
}

/// The half precision number at byte `at`.
fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Sets each value or scale by its index.
fn each<T>(out: &mut [T], value: impl Fn(usize) -> T) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = value(i);
    }
}

/// Code `i` of codes of `bits` bits, where each run of `lanes` bytes holds first the codes in the lowest bits of its bytes,
/// then those in the next higher bits, until the bytes are used up.
fn code(q: &[u8], lanes: usize, bits: usize, i: usize) -> u8 {
    let steps = 8 / bits;
    let (run, step, lane) = (i / lanes / steps, i / lanes % steps, i % lanes);
    q[run * lanes + lane] >> (step * bits) & ((1 << bits) - 1)
}

/// Code `i` of a block of 32 codes of four bits.
fn nibble(q: &[u8], i: usize) -> u8 {
    code(q, 16, 4, i)
}

/// Scale; 32 codes.
fn q4_0(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let q = &b[2..];
    scales[0] = [half(b, 0), 0.0];
    each(values, |i| nibble(q, i) as i8 - 8);
}

/// Scale, minimum; 32 codes.
fn q4_1(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let q = &b[4..];
    scales[0] = [half(b, 0), half(b, 2)];
    each(values, |i| nibble(q, i) as i8);
}

/// Scale; the fifth bits of 32 codes; their lower bits.
fn q5_0(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let (high, q) = (&b[2..6], &b[6..]);
    scales[0] = [half(b, 0), 0.0];
    each(values, |i| (nibble(q, i) | code(high, 1, 1, i) << 4) as i8 - 16);
}

/// Scale, minimum; the fifth bits of 32 codes; their lower bits.
fn q5_1(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let (high, q) = (&b[4..8], &b[8..]);
    scales[0] = [half(b, 0), half(b, 2)];
    each(values, |i| (nibble(q, i) | code(high, 1, 1, i) << 4) as i8);
}

/// Scale; 32 signed bytes.
fn q8_0(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    scales[0] = [half(b, 0), 0.0];
    each(values, |i| b[2 + i] as i8);
}

/// 16 scales and minima, in the halves of a byte each; 256 codes; the scale of the scales, the scale of the minima.
fn q2_k(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let (packed, q, d, least) = (&b[..16], &b[16..80], half(b, 80), half(b, 82));
    each(scales, |i| [d * (packed[i] & 15) as f32, -(least * (packed[i] >> 4) as f32)]);
    each(values, |i| code(q, 32, 2, i) as i8);
}

/// The third bits of 256 codes, inverted; their lower bits; 16 scales of six bits, lower four and upper two apart; the
/// scale of the scales.
fn q3_k(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let (high, q, low_scales, high_scales, d) = (&b[..32], &b[32..96], &b[96..104], &b[104..108], half(b, 108));
    each(scales, |i| {
        let scale = code(low_scales, 8, 4, i) | code(high_scales, 4, 2, i) << 4;
        [d * (scale as i8 - 32) as f32, 0.0]
    });
    each(values, |i| code(q, 32, 2, i) as i8 - 4 * (1 - code(high, 32, 1, i) as i8));
}

/// Scale and minimum `i` of eight, six bits each in 12 bytes: the first four of both are the lower bits of bytes 0 to 3 and
/// 4 to 7, the last four have their lower bits in the halves of bytes 8 to 11, their upper bits in those of the others.
fn scale_and_least(s: &[u8], i: usize) -> (f32, f32) {
    let (scale, least) = match i {
        0..4 => (s[i] & 63, s[4 + i] & 63),
        _ => (s[4 + i] & 15 | s[i - 4] >> 6 << 4, s[4 + i] >> 4 | s[i] >> 6 << 4),
    };
    (scale as f32, least as f32)
}

/// The scale of the scales, the scale of the minima; eight scales and minima.
fn scales_k(b: &[u8], scales: &mut [[f32; 2]]) {
    let (d, m) = (half(b, 0), half(b, 2));
    each(scales, |i| {
        let (scale, least) = scale_and_least(&b[4..16], i);
        [d * scale, -(m * least)]
    });
}

/// Scales; 256 codes.
fn q4_k(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    scales_k(b, scales);
    each(values, |i| code(&b[16..], 32, 4, i) as i8);
}

/// As [`q4_k`], with the fifth bits of the codes before their lower bits.
fn q5_k(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let (high, q) = (&b[16..48], &b[48..]);
    scales_k(b, scales);
    each(values, |i| (code(q, 32, 4, i) | code(high, 32, 1, i) << 4) as i8);
}

/// The lower four bits of 256 codes; their upper two; 16 scales; the scale of the scales.
fn q6_k(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let (low, high, packed, d) = (&b[..128], &b[128..192], &b[192..208], half(b, 208));
    each(scales, |i| [d * (packed[i] as i8) as f32, 0.0]);
    each(values, |i| (code(low, 64, 4, i) | code(high, 32, 2, i) << 4) as i8 - 32);
}

/// Scale; 32 codes.
fn iq4_nl(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    scales[0] = [half(b, 0), 0.0];
    each(values, |i| IQ4[nibble(&b[2..], i) as usize]);
}

/// The scale of the scales; eight scales of six bits, the upper two of all before the lower four; 256 codes.
fn iq4_xs(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    let (d, high, low, q) = (half(b, 0), &b[2..4], &b[4..8], &b[8..]);
    each(scales, |i| {
        let scale = code(low, 1, 4, i) | code(high, 1, 2, i) << 4;
        [d * (scale as i8 - 32) as f32, 0.0]
    });
    each(values, |i| IQ4[code(q, 16, 4, i) as usize]);
}

/// The exponent of the scale; 32 codes.
fn mxfp4(b: &[u8], values: &mut [i8], scales: &mut [[f32; 2]]) {
    scales[0] = [half_power(b[0]), 0.0];
    each(values, |i| E2M1[nibble(&b[1..], i) as usize]);
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn formats_are_in_the_order_of_the_dtypes() {
        for (at, format) in FORMATS.iter().enumerate() {
            assert_eq!(format.dtype as usize, at, "{}", format.name);
            assert!(format.code.is_none_or(|code| Dtype::of_code(code) == Some(format.dtype)));
        }
        assert_eq!(Dtype::of_code(4), None);
    }

    #[test]
    fn random_blocks_are_the_reference_s_floats_bit_for_bit() {
        let file = include_bytes!("../../tests/data/blocks.safetensors");
        let file = SafeTensors::deserialize(file).unwrap();
        for dtype in Dtype::all_of_gguf() {
            let bytes = file.tensor(&format!("{}.blocks", dtype.name())).unwrap();
            let floats = file.tensor(&format!("{}.floats", dtype.name())).unwrap();
            let expected = floats.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let expected: Vec<u32> = expected.collect();
            assert_eq!(bytes.data().len() / dtype.block_bytes() * dtype.block_length(), expected.len());
            assert!(expected.len() >= 1024);
            let mut found = vec![0.0; expected.len()];
            dtype.decode(bytes.data(), &mut found);
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let wanted = f32::from_bits(expected);
                assert_eq!(found.to_bits(), expected, "{dtype:?}, number {i}: {found} is not {wanted}");
            }
        }
        assert_eq!((file.len(), Dtype::all_of_gguf().count()), (2 * 16, 16));
    }

    #[test]
    fn bytes_are_floats_as_their_definition_has_them() {
        for (dtype, mantissa, bias) in [(Dtype::F8E4M3, 3, 7), (Dtype::F8E5M2, 2, 15)] {
            for byte in 0..=u8::MAX {
                let (exponent, fraction) = (i32::from(byte & 0x7f) >> mantissa, byte & ((1 << mantissa) - 1));
                let share = f32::from(fraction) / (1 << mantissa) as f32;
                let magnitude = match (dtype, exponent, fraction) {
                    (Dtype::F8E4M3, 15, 7) => f32::NAN,
                    (Dtype::F8E5M2, 31, 0) => f32::INFINITY,
                    (Dtype::F8E5M2, 31, _) => f32::NAN,
                    (_, 0, _) => share * 2f32.powi(1 - bias),
                    _ => (1.0 + share) * 2f32.powi(exponent - bias),
                };
                let expected = if byte >= 0x80 { -magnitude } else { magnitude };
                let mut found = [0.0];
                dtype.decode(&[byte], &mut found);
                let same = found[0].to_bits() == expected.to_bits() || found[0].is_nan() && expected.is_nan();
                assert!(same, "{dtype:?} {byte:#x}: {} is not {expected}", found[0]);
            }
        }
    }
}
