//! The core of codes: products of bytes, four at once, summed as whole numbers within a block.

use std::cmp::Ordering;

use iced_x86::{Code, IcedError, Instruction, Register};

use super::{A, B, STEP, Shape, Writer};
use crate::loops::{Codes, PANEL, Plane};

/// Where the scales of the rows are.
const ROW_SCALES: Register = Register::R8;

/// Sums of a block that are carried side by side, at least.
const CHAINS: usize = 4;

/// Writes the code of a core: at 512 bits only, of at most eight rows.
pub(super) fn write(w: &mut Writer, shape: Shape, codes: Codes) -> Result<(), IcedError> {
    let Shape { rows, depth, .. } = shape;
    let chains = (CHAINS / rows).max(1);
    let blocks = depth / codes.block;
    let scales = w.at(A, depth);
    w.push(Instruction::with2(Code::Lea_r64_m, ROW_SCALES, scales))?;
    for (nth, plane) in codes.planes().into_iter().enumerate().filter(|(_, plane)| plane.bits < 8) {
        w.constant(mask(nth), u32::from_le_bytes([plane.mask() << plane.shift; 4]))?;
    }
    if codes.levels.is_some() {
        levels(w, codes)?;
    }
    let core = Rows { w, shape, codes, chains, blocks };
    for row in 0..rows {
        let total = core.total(row);
        match shape.accumulate {
            true => {
                let from = core.w.result(&shape, row, 0);
                core.w.push(Instruction::with2(Code::EVEX_Vmovups_zmm_k1z_zmmm512, total, from))?;
            }
            false => core.w.zero(total)?,
        }
    }
    core.w.times(blocks, |w| Rows { w, shape, codes, chains, blocks }.block())?;
    let core = Rows { w, shape, codes, chains, blocks };
    for row in 0..rows {
        let to = core.w.result(&shape, row, 0);
        core.w.push(Instruction::with2(Code::EVEX_Vmovups_zmmm512_k1z_zmm, to, core.total(row)))?;
    }
    Ok(())
}

/// What the codes stand for, in each quarter.
const LEVELS: Register = Register::ZMM22;

/// Registers that hold what passes by: the words of the planes, what rows are multiplied with, or are scaled with in turn.
const WORDS: Register = Register::ZMM24;
const BYTES: Register = Register::ZMM26;
const OTHERS: Register = Register::ZMM27;
const MINIMUM: Register = Register::ZMM28;
const SCALE: Register = Register::ZMM29;

/// The bits of a plane, where they are in a code.
fn mask(plane: usize) -> Register {
    Register::ZMM30 + plane as u32
}

/// Loads the table of the levels.
fn levels(w: &mut Writer, codes: Codes) -> Result<(), IcedError> {
    let table = Register::XMM22;
    let bytes: [u8; 16] = std::array::from_fn(|code| codes.byte(code as u8) as u8);
    for (lane, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
        w.push(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, u32::from_le_bytes(*bytes)))?;
        let insert = Code::EVEX_Vpinsrd_xmm_xmm_rm32_imm8;
        w.push(Instruction::with4(insert, table, table, Register::EAX, lane as i32))?;
    }
    w.push(Instruction::with4(Code::EVEX_Vshufi32x4_zmm_k1z_zmm_zmmm512b32_imm8, LEVELS, LEVELS, LEVELS, 0))
}

struct Rows<'w> {
    w: &'w mut Writer,
    shape: Shape,
    codes: Codes,
    /// How often each sum is split.
    chains: usize,
    blocks: usize,
}

impl Rows<'_> {
    fn block(&mut self) -> Result<(), IcedError> {
        let Shape { rows, a_stride, b: format, .. } = self.shape;
        for row in 0..rows {
            // What the offset of the codes takes away comes first.
            if !self.codes.minimum {
                let start = self.w.at(ROW_SCALES, row * a_stride + self.blocks * 4);
                let sum = self.sum(0, row);
                self.w.push(Instruction::with2(Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32, sum, start))?;
            }
            for chain in usize::from(!self.codes.minimum)..self.chains {
                let sum = self.sum(chain, row);
                self.w.zero(sum)?;
            }
        }
        let planes = self.codes.planes();
        for step in 0..format.block() / format.together() {
            let bytes = self.bytes(&planes, step)?;
            self.multiply(step, bytes)?;
        }
        self.scale()?;
        self.w.advance(A, format.block())?;
        self.w.advance(B, format.rows(format.block()))?;
        self.w.advance(ROW_SCALES, 4)
    }

    /// Makes what a step multiplies out of the words of the planes.
    fn bytes(&mut self, planes: &[Plane], step: usize) -> Result<Register, IcedError> {
        for (nth, plane) in planes.iter().enumerate() {
            let word = WORDS + nth as u32;
            if step.is_multiple_of(plane.steps()) {
                let from = self.w.at(B, plane.at + step / plane.steps() * STEP);
                self.w.push(Instruction::with2(Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512, word, from))?;
            }
            if plane.bits == 8 {
                return Ok(word);
            }
            let (from, to) = (step % plane.steps() * plane.bits, plane.shift);
            let to_place = if nth == 0 { BYTES } else { OTHERS };
            let shifted = match from.cmp(&to) {
                Ordering::Equal => word,
                order => {
                    let right = order == Ordering::Greater;
                    let shift = match right {
                        true => Code::EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8,
                        false => Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8,
                    };
                    self.w.push(Instruction::with3(shift, to_place, word, from.abs_diff(to) as i32))?;
                    to_place
                }
            };
            if nth == 0 {
                let and = Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32;
                self.w.push(Instruction::with3(and, BYTES, shifted, mask(nth)))?;
            } else {
                // BYTES | shifted & mask
                let combine = Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8;
                self.w.push(Instruction::with4(combine, BYTES, shifted, mask(nth), 0xf8))?;
            }
        }
        if self.codes.levels.is_some() {
            self.w.push(Instruction::with3(Code::EVEX_Vpshufb_zmm_k1z_zmm_zmmm512, BYTES, LEVELS, BYTES))?;
        }
        Ok(BYTES)
    }

    /// Multiplies a step's codes with each row's, and adds.
    fn multiply(&mut self, step: usize, codes: Register) -> Result<(), IcedError> {
        for row in 0..self.shape.rows {
            let sum = self.sum(step % self.chains, row);
            let four = self.w.each(A, row * self.shape.a_stride + 4 * step);
            self.w.push(Instruction::with3(Code::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32, sum, codes, four))?;
        }
        Ok(())
    }

    /// Adds the block's sums, scaled, to the result.
    fn scale(&mut self) -> Result<(), IcedError> {
        let halves = [SCALE, MINIMUM].into_iter().enumerate().take(1 + usize::from(self.codes.minimum));
        for (nth, register) in halves {
            let from = self.w.at(B, self.shape.b.values() + nth * 2 * PANEL);
            self.w.push(Instruction::with2(Code::EVEX_Vpmovzxwd_zmm_k1z_ymmm256, register, from))?;
            self.w.push(Instruction::with3(Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, register, register, 16))?;
        }
        for row in 0..self.shape.rows {
            let sum = self.sum(0, row);
            for chain in 1..self.chains {
                let other = self.sum(chain, row);
                self.w.push(Instruction::with3(Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32, sum, sum, other))?;
            }
            self.w.push(Instruction::with2(Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, sum, sum))?;
            let factor = if row % 2 == 0 { BYTES } else { OTHERS };
            let of_row = self.w.each(ROW_SCALES, row * self.shape.a_stride);
            self.w.push(Instruction::with3(Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er, factor, SCALE, of_row))?;
            let add = Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er;
            self.w.push(Instruction::with3(add, self.total(row), sum, factor))?;
            if self.codes.minimum {
                let sum_of_row = self.w.each(ROW_SCALES, row * self.shape.a_stride + self.blocks * 4);
                self.w.push(Instruction::with3(add, self.total(row), MINIMUM, sum_of_row))?;
            }
        }
        Ok(())
    }

    fn sum(&self, chain: usize, row: usize) -> Register {
        Register::ZMM0 + (chain * self.shape.rows + row) as u32
    }

    /// What the blocks before add up to.
    fn total(&self, row: usize) -> Register {
        self.sum(self.chains, row)
    }
}
