//! The encoding of rows, at 512 bits or 256.

use std::ops::Range;

use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

use super::instructions::{ADD, AND, MULTIPLY};
use super::{A, B, C, Writer};
use crate::format::{BYTE_OFFSET, Codes, Format, MOST_OF_ROW, MOST_WORD, PANEL, SMALLEST};

/// Where the scales go.
const SCALES: Register = Register::R8;

/// Where the sums go.
const SUMS: Register = Register::R9;

/// The sum of a block of codes in steps, whose parts have sums of their own.
const TOTAL: Register = Register::EAX;

/// Words below the end of the stack: what a largest number is at least, what it becomes, the inverse of that, what sums are taken
/// from, and from the eighth on the order of [`Writer::order`].
const LEAST: usize = 0;
const MOST: usize = 1;
const INVERSE: usize = 2;
const FROM: usize = 3;
const ORDER: usize = 8;

/// In which order the bytes of words are, in each quarter of a vector: of each four words the second and the third change places.
const IN_FOURS: [u32; 8] = {
    let [a, b, c, d] = [0x05_04_01_00, 0x07_06_03_02, 0x0d_0c_09_08, 0x0f_0e_0b_0a];
    [a, b, c, d, a, b, c, d]
};

/// How many vectors are folded at the end.
const FOLDED: usize = 8;

/// How many vectors' codes are packed into one.
const PACKED: usize = 4;

/// The largest of a block over what it becomes.
const SCALE: Register = Register::XMM4;

/// Writes the code that encodes a row of whole panels: from the first address to the second. Or so many blocks of a row of others,
/// from one on, whose number comes third.
pub(super) fn write(w: &mut Writer, depth: usize, format: Format, of: Option<usize>) -> Result<(), IcedError> {
    let row = of.unwrap_or(depth);
    let (behind, most, order) = match format {
        Format::Codes(_) => (row, 127.0, Some([0, 4, 1, 5, 2, 6, 3, 7])),
        Format::Words(_) => (2 * row, MOST_WORD, Some(IN_FOURS)),
        Format::I16 => (2 * row, MOST_OF_ROW, None),
        Format::F32 | Format::Bf16 => return rounded(w, depth),
    };
    let scales = w.at(B, behind);
    w.push(Instruction::with2(Code::Lea_r64_m, SCALES, scales))?;
    let from = format.codes().map_or(0, Codes::summed_from) as u32;
    let numbers =
        [(LEAST, SMALLEST.to_bits()), (MOST, most.to_bits()), (INVERSE, (1.0 / most).to_bits()), (FROM, from)];
    // A row may be short: no more is written than is read.
    let order = order.filter(|_| !w.wide);
    let of_order = order.iter().flatten().enumerate().map(|(nth, word)| (ORDER + nth, *word));
    for (at, word) in numbers.into_iter().chain(of_order) {
        w.push(Instruction::with2(Code::Mov_rm32_imm32, w.word_below(at), word))?;
    }
    w.constant(w.magnitude(), 0x7fff_ffff)?;
    let (blocks, of_row) = (depth / format.block(), row / format.block());
    let sums = w.at(B, format.codes().map_or(behind + 4 * of_row, |codes| codes.sums_of_row(row)));
    w.push(Instruction::with2(Code::Lea_r64_m, SUMS, sums))?;
    if of.is_some() {
        let parts = format.codes().map_or(1, |codes| codes.block / codes.summed());
        for (pointer, bytes) in [(B, behind / of_row), (SCALES, 4), (SUMS, 4 * parts)] {
            w.push(Instruction::with3(Code::Imul_r64_rm64_imm32, Register::RAX, C, bytes as i32))?;
            w.push(Instruction::with2(Code::Add_r64_rm64, pointer, Register::RAX))?;
        }
    }
    if order.is_some() {
        w.push(Instruction::with2(Code::VEX_Vmovups_ymm_ymmm256, w.order(), w.word_below(ORDER)))?;
    }
    w.times(blocks, |w| match format {
        Format::Codes(codes) => block(w, codes, row),
        Format::I16 => block_of_i16(w),
        _ => block_of_words(w, format.block()),
    })
}

/// A block of numbers of 16 bits.
fn block_of_i16(w: &mut Writer) -> Result<(), IcedError> {
    let block = Format::I16.block();
    scale(w, block)?;
    let bytes = w.width();
    for pair in 0..block / (2 * w.lanes()) {
        let both = [0, 1].map(|nth| w.folded(2 * pair + nth));
        for (nth, number) in both.into_iter().enumerate() {
            whole(w, number, (2 * pair + nth) * bytes)?;
            if w.wide {
                let to = w.at(B, (2 * pair + nth) * bytes / 2);
                w.push(Instruction::with2(Code::EVEX_Vpmovsdw_ymmm256_k1z_zmm, to, number))?;
            }
        }
        if !w.wide {
            let packed = w.passing(pair);
            halves(w, packed, both)?;
            let to = w.at(B, pair * bytes);
            w.store(to, packed)?;
        }
    }
    w.advance(A, 4 * block)?;
    w.advance(B, 2 * block)?;
    w.advance(SCALES, 4)
}

/// Packs the words of two vectors into halves, at 256 bits.
fn halves(w: &mut Writer, to: Register, [lower, upper]: [Register; 2]) -> Result<(), IcedError> {
    w.push(Instruction::with3(Code::VEX_Vpackssdw_ymm_ymm_ymmm256, to, lower, upper))?;
    // Each of two halves of a vector was packed on its own.
    w.push(Instruction::with3(Code::VEX_Vpermq_ymm_ymmm256_imm8, to, to, 0b11_01_10_00))
}

/// Writes the code that rounds to bf16, at 512 bits.
fn rounded(w: &mut Writer, depth: usize) -> Result<(), IcedError> {
    let vectors = depth / PANEL;
    let unroll = [4, 2, 1].into_iter().find(|n| vectors.is_multiple_of(*n)).unwrap_or(1);
    w.times(vectors / unroll, |w| {
        for i in 0..unroll {
            let (from, to) = (w.at(A, i * 4 * PANEL), w.at(B, i * 2 * PANEL));
            w.push(Instruction::with2(Code::EVEX_Vcvtneps2bf16_ymm_k1z_zmmm512b32, Register::YMM0, from))?;
            w.push(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, to, Register::YMM0))?;
        }
        w.advance(A, unroll * 4 * PANEL)?;
        w.advance(B, unroll * 2 * PANEL)
    })
}

impl Writer {
    /// Registers for vectors that pass by.
    fn passing(&self, i: usize) -> Register {
        self.first() + (i % PACKED) as u32
    }

    /// Those that are folded.
    fn folded(&self, i: usize) -> Register {
        self.first() + (8 + i % FOLDED) as u32
    }

    fn factors(&self) -> Register {
        self.first() + 5
    }

    /// In which order the fours of bytes are that were packed at 256 bits; or the bytes of words.
    fn order(&self) -> Register {
        self.first() + 6
    }

    /// All bits but the sign.
    fn magnitude(&self) -> Register {
        self.first() + 7
    }
}

/// What rounds to whole numbers.
const TO_WHOLE: [Code; 2] = [Code::EVEX_Vcvtps2dq_zmm_k1z_zmmm512b32_er, Code::VEX_Vcvtps2dq_ymm_ymmm256];

/// Stores the scale of so many numbers, and loads what they are multiplied with.
fn scale(w: &mut Writer, block: usize) -> Result<(), IcedError> {
    let bytes = w.width();
    let vectors = block / w.lanes();
    // As whole numbers: what is no number is above all others, and stays.
    let max = [Code::EVEX_Vpmaxsd_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpmaxsd_ymm_ymm_ymmm256];
    for i in 0..vectors {
        let magnitude = if i < FOLDED { w.folded(i) } else { w.passing(i) };
        let from = w.at(A, i * bytes);
        w.push(Instruction::with3(w.of(AND), magnitude, w.magnitude(), from))?;
        if i >= FOLDED {
            w.three(max, w.folded(i), w.folded(i), magnitude)?;
        }
    }
    let largest = w.fold(vectors.min(FOLDED), [max[0], max[1], Code::VEX_Vpmaxsd_xmm_xmm_xmmm128])?;
    let passing = w.quarter(w.passing(0));
    // The second operand is what is left where one is no number.
    w.push(Instruction::with2(Code::VEX_Vmovss_xmm_m32, passing, w.word_below(LEAST)))?;
    w.push(Instruction::with3(Code::VEX_Vmaxss_xmm_xmm_xmmm32, largest, passing, largest))?;
    w.push(Instruction::with3(Code::VEX_Vmulss_xmm_xmm_xmmm32, SCALE, largest, w.word_below(INVERSE)))?;
    let to = w.at(SCALES, 0);
    w.push(Instruction::with2(Code::VEX_Vmovss_m32_xmm, to, SCALE))?;
    w.push(Instruction::with2(Code::VEX_Vmovss_xmm_m32, passing, w.word_below(MOST)))?;
    w.push(Instruction::with3(Code::VEX_Vdivss_xmm_xmm_xmmm32, passing, passing, largest))?;
    let broadcast = w.of([Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32, Code::VEX_Vbroadcastss_ymm_xmm]);
    w.push(Instruction::with2(broadcast, w.factors(), passing))
}

/// Loads a vector of numbers as whole ones.
fn whole(w: &mut Writer, to: Register, bytes: usize) -> Result<(), IcedError> {
    let from = w.at(A, bytes);
    w.push(Instruction::with3(w.of(MULTIPLY), to, w.factors(), from))?;
    w.push(Instruction::with2(w.of(TO_WHOLE), to, to))
}

/// A block of words, at 256 bits.
fn block_of_words(w: &mut Writer, block: usize) -> Result<(), IcedError> {
    scale(w, block)?;
    let bytes = w.width();
    for pair in 0..block / (2 * w.lanes()) {
        let [lower, upper] = [0, 1].map(|nth| w.folded(2 * pair + nth));
        whole(w, lower, 2 * pair * bytes)?;
        whole(w, upper, (2 * pair + 1) * bytes)?;
        let packed = w.passing(pair);
        halves(w, packed, [lower, upper])?;
        w.push(Instruction::with3(Code::VEX_Vpshufb_ymm_ymm_ymmm256, packed, packed, w.order()))?;
        let to = w.at(B, pair * bytes);
        w.store(to, packed)?;
    }
    let sum = w.fold(block / w.lanes(), [ADD[0], ADD[1], Code::VEX_Vpaddd_xmm_xmm_xmmm128])?;
    less(w, BYTE_OFFSET, sum)?;
    let to = w.at(SUMS, 0);
    w.push(Instruction::with2(Code::VEX_Vmovd_rm32_xmm, to, sum))?;
    w.advance(A, 4 * block)?;
    w.advance(B, 2 * block)?;
    w.advance(SCALES, 4)?;
    w.advance(SUMS, 4)
}

fn block(w: &mut Writer, codes: Codes, depth: usize) -> Result<(), IcedError> {
    scale(w, codes.block)?;
    let (each, bytes) = (w.lanes(), w.width());
    let vectors = codes.block / each;
    if codes.steps.is_some() {
        w.push(Instruction::with2(Code::Mov_r32_imm32, TOTAL, 0))?;
    }
    let parts = codes.block / codes.summed();
    for part in 0..parts {
        let vectors = codes.summed() / each;
        for i in 0..vectors {
            let code = if i < FOLDED { w.folded(i) } else { w.passing(i) };
            whole(w, code, (part * vectors + i) * bytes)?;
            if w.wide {
                let to = w.at(B, (part * vectors + i) * each);
                w.push(Instruction::with2(Code::EVEX_Vpmovsdb_xmmm128_k1z_zmm, to, code))?;
            }
            if i >= FOLDED {
                w.three(ADD, w.folded(i), w.folded(i), code)?;
            }
            if !w.wide && (i % PACKED == PACKED - 1 || i == vectors - 1) {
                let first = i / PACKED * PACKED;
                let to = w.at(B, (part * vectors + first) * each);
                pack(w, first..i + 1, to)?;
            }
        }
        let sum = w.fold(vectors.min(FOLDED), [ADD[0], ADD[1], Code::VEX_Vpaddd_xmm_xmm_xmmm128])?;
        sum_of_row(w, codes, sum)?;
        let to = w.at(SUMS, 4 * part);
        w.push(Instruction::with2(Code::VEX_Vmovd_rm32_xmm, to, sum))?;
        if codes.steps.is_some() {
            w.push(Instruction::with2(Code::Add_r32_rm32, TOTAL, to))?;
        }
    }
    if let (Some(_), Some(unpacked)) = (codes.steps, Format::Codes(codes).unpacked().codes()) {
        let to = w.at(SCALES, unpacked.sums_of_row(depth) - depth);
        let shift = unpacked.summed_as().trailing_zeros() as i32;
        w.push(Instruction::with2(Code::Shl_rm32_imm8, TOTAL, shift))?;
        w.push(Instruction::with2(Code::Add_rm32_imm32, TOTAL, unpacked.summed_from()))?;
        w.push(Instruction::with2(Code::Mov_rm32_r32, to, TOTAL))?;
    }
    w.advance(A, vectors * bytes)?;
    w.advance(B, codes.block)?;
    w.advance(SCALES, 4)?;
    w.advance(SUMS, 4 * parts)
}

/// Packs the codes of two or four vectors into bytes, at 256 bits.
fn pack(w: &mut Writer, vectors: Range<usize>, to: MemoryOperand) -> Result<(), IcedError> {
    let code = |w: &Writer, i: usize| if i < FOLDED { w.folded(i) } else { w.passing(i) };
    // Each of two halves of a vector on its own.
    let halves = Code::VEX_Vpackssdw_ymm_ymm_ymmm256;
    let pairs = vectors.clone().step_by(2).map(|i| (w.passing(i), [code(w, i), code(w, i + 1)]));
    let pairs: Vec<_> = pairs.collect();
    for (pair, [lower, upper]) in &pairs {
        w.push(Instruction::with3(halves, *pair, *lower, *upper))?;
    }
    let (packed, last) = (pairs[0].0, pairs[pairs.len() - 1].0);
    w.push(Instruction::with3(Code::VEX_Vpacksswb_ymm_ymm_ymmm256, packed, packed, last))?;
    w.push(Instruction::with3(Code::VEX_Vpermd_ymm_ymm_ymmm256, packed, w.order(), packed))?;
    if pairs.len() == 2 {
        return w.store(to, packed);
    }
    w.push(Instruction::with2(Code::VEX_Vmovups_xmmm128_xmm, to, w.quarter(packed)))
}

/// Makes what a row has of the sum of some of its codes, in place.
fn sum_of_row(w: &mut Writer, codes: Codes, sum: Register) -> Result<(), IcedError> {
    if codes.minimum {
        w.push(Instruction::with2(Code::VEX_Vcvtdq2ps_xmm_xmmm128, sum, sum))?;
        return w.push(Instruction::with3(Code::VEX_Vmulss_xmm_xmm_xmmm32, sum, sum, SCALE));
    }
    less(w, codes.summed_as(), sum)
}

/// Takes a sum times an offset, a power of two, from what sums are taken from.
fn less(w: &mut Writer, offset: i32, sum: Register) -> Result<(), IcedError> {
    let shift = offset.trailing_zeros() as i32;
    w.push(Instruction::with3(Code::VEX_Vpslld_xmm_xmm_imm8, sum, sum, shift))?;
    let from = w.quarter(w.passing(0));
    w.push(Instruction::with2(Code::VEX_Vmovd_xmm_rm32, from, w.word_below(FROM)))?;
    w.push(Instruction::with3(Code::VEX_Vpsubd_xmm_xmm_xmmm128, sum, from, sum))
}
