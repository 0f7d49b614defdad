//! The core of codes: products of bytes, four at once, summed as whole numbers within a block.

use iced_x86::{Code, IcedError, Instruction, Register};

use super::{A, B, STEP, Shape, Writer};
use crate::loops::Format;

/// Where the scales of the rows are.
const ROW_SCALES: Register = Register::R8;

/// Sums of a block that are carried side by side, at least.
const CHAINS: usize = 4;

/// Writes the code of a core: at 512 bits only, of at most eight rows.
pub(super) fn write(w: &mut Writer, shape: Shape) -> Result<(), IcedError> {
    let Shape { rows, depth, b: format, .. } = shape;
    let chains = (CHAINS / rows).max(1);
    let blocks = depth / format.block();
    let scales = w.at(A, depth);
    w.push(Instruction::with2(Code::Lea_r64_m, ROW_SCALES, scales))?;
    if format == Format::Q4 {
        w.constant(MASK, 0x0f0f_0f0f)?;
    }
    let core = Codes { w, shape, chains, blocks };
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
    core.w.times(blocks, |w| Codes { w, shape, chains, blocks }.block())?;
    let core = Codes { w, shape, chains, blocks };
    for row in 0..rows {
        let to = core.w.result(&shape, row, 0);
        core.w.push(Instruction::with2(Code::EVEX_Vmovups_zmmm512_k1z_zmm, to, core.total(row)))?;
    }
    Ok(())
}

/// Registers that hold what passes by.
const LOWER: Register = Register::ZMM28;
const UPPER: Register = Register::ZMM29;
const SCALE: Register = Register::ZMM30;
const MASK: Register = Register::ZMM31;

struct Codes<'w> {
    w: &'w mut Writer,
    shape: Shape,
    /// How often each sum is split.
    chains: usize,
    blocks: usize,
}

impl Codes<'_> {
    fn block(&mut self) -> Result<(), IcedError> {
        let Shape { rows, a_stride, b: format, .. } = self.shape;
        for row in 0..rows {
            // What the offset of the codes takes away comes first.
            let start = self.w.at(ROW_SCALES, row * a_stride + self.blocks * 4);
            let sum = self.sum(0, row);
            self.w.push(Instruction::with2(Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32, sum, start))?;
            for chain in 1..self.chains {
                let sum = self.sum(chain, row);
                self.w.zero(sum)?;
            }
        }
        let steps = format.block() / format.together();
        let load = Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512;
        if format == Format::Q4 {
            for pair in 0..steps / 2 {
                let from = self.w.at(B, pair * STEP);
                self.w.push(Instruction::with2(load, LOWER, from))?;
                self.w.push(Instruction::with3(Code::EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8, UPPER, LOWER, 4))?;
                for codes in [LOWER, UPPER] {
                    let and = Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32;
                    self.w.push(Instruction::with3(and, codes, codes, MASK))?;
                }
                self.multiply(2 * pair, LOWER)?;
                self.multiply(2 * pair + 1, UPPER)?;
            }
        } else {
            for step in 0..steps {
                let from = self.w.at(B, step * STEP);
                self.w.push(Instruction::with2(load, LOWER, from))?;
                self.multiply(step, LOWER)?;
            }
        }
        self.scale()?;
        self.w.advance(A, format.block())?;
        self.w.advance(B, format.rows(format.block()))?;
        self.w.advance(ROW_SCALES, 4)
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
        let scales = self.w.at(B, self.shape.b.values());
        self.w.push(Instruction::with2(Code::EVEX_Vpmovzxwd_zmm_k1z_ymmm256, SCALE, scales))?;
        self.w.push(Instruction::with3(Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, SCALE, SCALE, 16))?;
        for row in 0..self.shape.rows {
            let sum = self.sum(0, row);
            for chain in 1..self.chains {
                let other = self.sum(chain, row);
                self.w.push(Instruction::with3(Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32, sum, sum, other))?;
            }
            self.w.push(Instruction::with2(Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, sum, sum))?;
            let factor = if row % 2 == 0 { LOWER } else { UPPER };
            let of_row = self.w.each(ROW_SCALES, row * self.shape.a_stride);
            self.w.push(Instruction::with3(Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er, factor, SCALE, of_row))?;
            let add = Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er;
            self.w.push(Instruction::with3(add, self.total(row), sum, factor))?;
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
