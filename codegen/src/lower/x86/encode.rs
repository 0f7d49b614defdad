//! The encoding of rows, at 512 bits.

use iced_x86::{Code, IcedError, Instruction, Register};

use super::{A, B, COUNT, Writer};
use crate::loops::{Codes, Format, PANEL, SMALLEST};

/// Where the scales go.
const SCALES: Register = Register::R8;

/// Where the sums go.
const SUMS: Register = Register::R9;

/// Bytes of a vector of floats.
const VECTOR: usize = 4 * PANEL;

const MAGNITUDE: Register = Register::ZMM31;
const LEAST: Register = Register::XMM30;
const MOST: Register = Register::XMM29;
const INVERSE: Register = Register::XMM28;

/// Writes the code that encodes a row of whole vectors: from the first address to the second.
pub(super) fn write(w: &mut Writer, depth: usize, format: Format) -> Result<(), IcedError> {
    let Some(codes) = format.codes() else {
        let vectors = depth / PANEL;
        let unroll = [4, 2, 1].into_iter().find(|n| vectors.is_multiple_of(*n)).unwrap_or(1);
        return w.times(vectors / unroll, |w| {
            for i in 0..unroll {
                let (from, to) = (w.at(A, i * VECTOR), w.at(B, i * VECTOR / 2));
                w.push(Instruction::with2(Code::EVEX_Vcvtneps2bf16_ymm_k1z_zmmm512b32, Register::YMM0, from))?;
                w.push(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, to, Register::YMM0))?;
            }
            w.advance(A, unroll * VECTOR)?;
            w.advance(B, unroll * VECTOR / 2)
        });
    };
    let scales = w.at(B, depth);
    w.push(Instruction::with2(Code::Lea_r64_m, SCALES, scales))?;
    w.constant(MAGNITUDE, 0x7fff_ffff)?;
    for (register, bits) in
        [(LEAST, SMALLEST.to_bits()), (MOST, 127f32.to_bits()), (INVERSE, (1.0f32 / 127.0).to_bits())]
    {
        w.push(Instruction::with2(Code::Mov_r32_imm32, COUNT, bits))?;
        w.push(Instruction::with2(Code::EVEX_Vmovd_xmm_rm32, register, COUNT))?;
    }
    let blocks = depth / codes.block;
    let sums = w.at(B, codes.sums_of_row(depth));
    w.push(Instruction::with2(Code::Lea_r64_m, SUMS, sums))?;
    w.times(blocks, |w| block(w, codes, depth))
}

/// Registers for vectors that pass by.
fn passing(i: usize) -> Register {
    Register::ZMM0 + (i % FOLDED) as u32
}

/// Those that are folded.
fn folded(i: usize) -> Register {
    Register::ZMM8 + (i % FOLDED) as u32
}

/// How many vectors are folded at the end.
const FOLDED: usize = 8;

fn block(w: &mut Writer, codes: Codes, depth: usize) -> Result<(), IcedError> {
    let vectors = codes.block / PANEL;
    let [max, add] = [Code::EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae, Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32];
    for i in 0..vectors {
        let magnitude = if i < FOLDED { folded(i) } else { passing(i) };
        let from = w.at(A, i * VECTOR);
        w.push(Instruction::with3(Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32, magnitude, MAGNITUDE, from))?;
        if i >= FOLDED {
            w.push(Instruction::with3(max, folded(i), folded(i), magnitude))?;
        }
    }
    let largest =
        w.fold(vectors.min(FOLDED), [max, Code::VEX_Vmaxps_ymm_ymm_ymmm256, Code::VEX_Vmaxps_xmm_xmm_xmmm128])?;
    w.push(Instruction::with3(Code::EVEX_Vmaxss_xmm_k1z_xmm_xmmm32_sae, largest, LEAST, largest))?;
    let (scale, factor) = (Register::XMM16, Register::XMM17);
    w.push(Instruction::with3(Code::EVEX_Vmulss_xmm_k1z_xmm_xmmm32_er, scale, largest, INVERSE))?;
    let to = w.at(SCALES, 0);
    w.push(Instruction::with2(Code::EVEX_Vmovss_m32_k1_xmm, to, scale))?;
    w.push(Instruction::with3(Code::EVEX_Vdivss_xmm_k1z_xmm_xmmm32_er, factor, MOST, largest))?;
    let factors = Register::ZMM17;
    w.push(Instruction::with2(Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32, factors, factor))?;
    let parts = codes.block / codes.summed();
    let total = Register::XMM18;
    w.push(Instruction::with3(Code::EVEX_Vpxord_xmm_k1z_xmm_xmmm128b32, total, total, total))?;
    for part in 0..parts {
        let vectors = codes.summed() / PANEL;
        for i in 0..vectors {
            let code = if i < FOLDED { folded(i) } else { passing(i) };
            let from = w.at(A, (part * vectors + i) * VECTOR);
            w.push(Instruction::with3(Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er, code, factors, from))?;
            w.push(Instruction::with2(Code::EVEX_Vcvtps2dq_zmm_k1z_zmmm512b32_er, code, code))?;
            let to = w.at(B, (part * vectors + i) * PANEL);
            w.push(Instruction::with2(Code::EVEX_Vpmovsdb_xmmm128_k1z_zmm, to, code))?;
            if i >= FOLDED {
                w.push(Instruction::with3(add, folded(i), folded(i), code))?;
            }
        }
        let codes_of_add = [add, Code::VEX_Vpaddd_ymm_ymm_ymmm256, Code::VEX_Vpaddd_xmm_xmm_xmmm128];
        let sum = w.fold(vectors.min(FOLDED), codes_of_add)?;
        sum_of_row(w, codes, sum, scale)?;
        let to = w.at(SUMS, 4 * part);
        w.push(Instruction::with2(Code::VEX_Vmovd_rm32_xmm, to, sum))?;
        if codes.steps.is_some() {
            w.push(Instruction::with3(Code::EVEX_Vpaddd_xmm_k1z_xmm_xmmm128b32, total, total, sum))?;
        }
    }
    if let (Some(_), Some(unpacked)) = (codes.steps, Format::Codes(codes).unpacked().codes()) {
        let to = w.at(SCALES, unpacked.sums_of_row(depth) - depth);
        let shift = unpacked.summed_as().trailing_zeros() as i32;
        w.push(Instruction::with3(Code::EVEX_Vpslld_xmm_k1z_xmmm128b32_imm8, total, total, shift))?;
        w.push(Instruction::with2(Code::EVEX_Vmovd_rm32_xmm, to, total))?;
    }
    w.advance(A, vectors * VECTOR)?;
    w.advance(B, codes.block)?;
    w.advance(SCALES, 4)?;
    w.advance(SUMS, 4 * parts)
}

/// Makes what a row has of the sum of some of its codes, in place.
fn sum_of_row(w: &mut Writer, codes: Codes, sum: Register, scale: Register) -> Result<(), IcedError> {
    if codes.minimum {
        w.push(Instruction::with2(Code::VEX_Vcvtdq2ps_xmm_xmmm128, sum, sum))?;
        w.push(Instruction::with3(Code::EVEX_Vmulss_xmm_k1z_xmm_xmmm32_er, sum, sum, scale))?;
    } else {
        // The offsets are powers of two.
        let shift = codes.summed_as().trailing_zeros() as i32;
        w.push(Instruction::with3(Code::VEX_Vpslld_xmm_xmm_imm8, sum, sum, shift))?;
        let zero = Register::XMM9;
        w.push(Instruction::with3(Code::VEX_Vpxor_xmm_xmm_xmmm128, zero, zero, zero))?;
        w.push(Instruction::with3(Code::VEX_Vpsubd_xmm_xmm_xmmm128, sum, zero, sum))?;
    }
    Ok(())
}
