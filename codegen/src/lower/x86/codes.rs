//! The core of codes: products of bytes, four at once, summed as whole numbers within a block. And codes as bytes.

use std::cmp::Ordering;

use iced_x86::{Code, IcedError, Instruction, Register};

use super::{A, B, STEP, Shape, Writer};
use crate::loops::{Codes, Format, PANEL};

/// Where the scales of the rows are.
const ROW_SCALES: Register = Register::R8;

/// Where the sums of their bytes are.
const ROW_SUMS: Register = Register::R9;

/// Sums of a block that are carried side by side, at least.
const CHAINS: usize = 4;

/// Writes the code of a core: at 512 bits only, of at most eight rows.
pub(super) fn write(w: &mut Writer, shape: Shape, codes: Codes) -> Result<(), IcedError> {
    let Shape { rows, depth, .. } = shape;
    let chains = (CHAINS / rows).max(1);
    let blocks = depth / codes.block;
    for (register, at) in [(ROW_SCALES, depth), (ROW_SUMS, depth + 4 * blocks)] {
        let at = w.at(A, at);
        w.push(Instruction::with2(Code::Lea_r64_m, register, at))?;
    }
    constants(w, codes)?;
    let core = Rows { w, shape, codes, chains };
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
    core.w.times(blocks, |w| Rows { w, shape, codes, chains }.block())?;
    let core = Rows { w, shape, codes, chains };
    for row in 0..rows {
        let to = core.w.result(&shape, row, 0);
        core.w.push(Instruction::with2(Code::EVEX_Vmovups_zmmm512_k1z_zmm, to, core.total(row)))?;
    }
    Ok(())
}

/// Writes the code that unpacks a panel, from the second address to the first.
pub(super) fn unpack(w: &mut Writer, depth: usize, format: Format) -> Result<(), IcedError> {
    let (block, to) = (format.block(), format.unpacked());
    let Some(codes) = format.codes() else { return Ok(()) };
    constants(w, codes)?;
    for (register, half) in [(LOWER, 15), (OFFSET, 128), (TWICE, 0x0101)] {
        w.constant(register, half << 16 | half)?;
    }
    w.times(depth / block, |w| {
        for step in 0..block / format.together() {
            if (step * format.together()).is_multiple_of(codes.summed()) {
                steps(w, codes.parts_at() + step * format.together() / codes.summed() * PANEL)?;
            }
            let bytes = bytes(w, codes, step)?;
            // Two products of four bits each fit into a half: the bytes don't meet.
            w.push(Instruction::with3(Code::EVEX_Vpmullw_zmm_k1z_zmm_zmmm512, bytes, bytes, STEPS))?;
            w.push(Instruction::with3(Code::EVEX_Vpaddb_zmm_k1z_zmm_zmmm512, bytes, bytes, ZEROS))?;
            let at = w.at(A, step * STEP);
            w.push(Instruction::with2(Code::EVEX_Vmovdqu32_zmmm512_k1z_zmm, at, bytes))?;
        }
        let (from, at) = (w.at(B, format.values()), w.at(A, to.values()));
        w.push(Instruction::with2(Code::VEX_Vmovups_ymm_ymmm256, Register::YMM0, from))?;
        w.push(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, at, Register::YMM0))?;
        w.advance(A, to.rows(block))?;
        w.advance(B, format.rows(block))
    })
}

/// The steps and zeros of a part's columns: where they are unpacked, steps in each half of a word, and in each byte what the zeros
/// add to it.
const STEPS: Register = Register::ZMM16;
const ZEROS: Register = Register::ZMM17;

/// Numbers for these: the lower four bits; what bytes are taken to be more than they stand for; and one in each byte.
const LOWER: Register = Register::ZMM18;
const OFFSET: Register = Register::ZMM19;
const TWICE: Register = Register::ZMM20;

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

/// Loads what [`bytes`] reads of registers.
fn constants(w: &mut Writer, codes: Codes) -> Result<(), IcedError> {
    for (nth, plane) in codes.planes().into_iter().enumerate().filter(|(_, plane)| plane.bits < 8) {
        w.constant(mask(nth), u32::from_le_bytes([plane.mask() << plane.shift; 4]))?;
    }
    if codes.steps.is_some() {
        w.constant(LOWER, 15)?;
    }
    if codes.levels.is_some() {
        levels(w, codes)?;
    }
    Ok(())
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

/// Makes what a step multiplies out of the block's words. To be called for one step after the other.
fn bytes(w: &mut Writer, codes: Codes, step: usize) -> Result<Register, IcedError> {
    for (nth, plane) in codes.planes().iter().enumerate() {
        let word = WORDS + nth as u32;
        if step.is_multiple_of(plane.steps()) {
            let from = w.at(B, plane.at + step / plane.steps() * STEP);
            w.push(Instruction::with2(Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512, word, from))?;
        }
        if plane.bits == 8 {
            return Ok(word);
        }
        let (from, to) = (step % plane.steps() * plane.bits, plane.shift);
        let to_place = if nth == 0 { BYTES } else { OTHERS };
        let shifted = match from.cmp(&to) {
            Ordering::Equal => word,
            order => {
                let shift = match order {
                    Ordering::Greater => Code::EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8,
                    _ => Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8,
                };
                w.push(Instruction::with3(shift, to_place, word, from.abs_diff(to) as i32))?;
                to_place
            }
        };
        if nth == 0 {
            let and = Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32;
            w.push(Instruction::with3(and, BYTES, shifted, mask(nth)))?;
        } else {
            // BYTES | shifted & mask
            let combine = Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8;
            w.push(Instruction::with4(combine, BYTES, shifted, mask(nth), 0xf8))?;
        }
    }
    if codes.levels.is_some() {
        w.push(Instruction::with3(Code::EVEX_Vpshufb_zmm_k1z_zmm_zmmm512, BYTES, LEVELS, BYTES))?;
    }
    Ok(BYTES)
}

/// Loads the steps and zeros of a part: its byte of each column, in both halves of the column's word.
fn steps(w: &mut Writer, at: usize) -> Result<(), IcedError> {
    let from = w.at(B, at);
    w.push(Instruction::with2(Code::EVEX_Vpmovzxbd_zmm_k1z_xmmm128, ZEROS, from))?;
    w.push(Instruction::with3(Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, STEPS, ZEROS, 16))?;
    w.push(Instruction::with3(Code::EVEX_Vpord_zmm_k1z_zmm_zmmm512b32, ZEROS, ZEROS, STEPS))?;
    w.push(Instruction::with3(Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32, STEPS, ZEROS, LOWER))?;
    w.push(Instruction::with3(Code::EVEX_Vpsrlw_zmm_k1z_zmmm512_imm8, ZEROS, ZEROS, 4))?;
    // offset - step * zero, of which a byte is enough, twice.
    w.push(Instruction::with3(Code::EVEX_Vpmullw_zmm_k1z_zmm_zmmm512, ZEROS, ZEROS, STEPS))?;
    w.push(Instruction::with3(Code::EVEX_Vpsubb_zmm_k1z_zmm_zmmm512, ZEROS, OFFSET, ZEROS))?;
    w.push(Instruction::with3(Code::EVEX_Vpmullw_zmm_k1z_zmm_zmmm512, ZEROS, ZEROS, TWICE))
}

struct Rows<'w> {
    w: &'w mut Writer,
    shape: Shape,
    codes: Codes,
    /// How often each sum is split.
    chains: usize,
}

impl Rows<'_> {
    fn block(&mut self) -> Result<(), IcedError> {
        let format = self.shape.b;
        let parts = format.block() / self.codes.summed();
        for part in 0..parts {
            if self.codes.steps.is_some() {
                let from = self.w.at(B, self.codes.parts_at() + part * PANEL);
                self.w.push(Instruction::with2(Code::EVEX_Vpmovzxbd_zmm_k1z_xmmm128, STEPS, from))?;
                self.w.push(Instruction::with3(Code::EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8, ZEROS, STEPS, 4))?;
            }
            self.start(part)?;
            let steps = self.codes.summed() / format.together();
            for step in part * steps..(part + 1) * steps {
                let bytes = bytes(self.w, self.codes, step)?;
                self.multiply(step, bytes)?;
            }
            self.scale(part)?;
        }
        self.w.advance(A, format.block())?;
        self.w.advance(B, format.rows(format.block()))?;
        self.w.advance(ROW_SCALES, 4)?;
        self.w.advance(ROW_SUMS, 4 * parts)
    }

    /// Begins the sums of a part with what the offset of the codes, or their zeros, take away.
    fn start(&mut self, part: usize) -> Result<(), IcedError> {
        let Shape { rows, a_stride, .. } = self.shape;
        let from_sum = !self.codes.minimum && self.codes.steps.is_none();
        for row in 0..rows {
            let at = row * a_stride + 4 * part;
            if from_sum {
                let (start, sum) = (self.w.at(ROW_SUMS, at), self.sum(0, row));
                self.w.push(Instruction::with2(Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32, sum, start))?;
            }
            for chain in usize::from(from_sum)..self.chains {
                let sum = self.sum(chain, row);
                self.w.zero(sum)?;
            }
            if self.codes.steps.is_some() {
                // The upper halves of the zeros are 0, and the sums fit into the lower ones.
                let (start, sum) = (self.w.each(ROW_SUMS, at), self.sum(0, row));
                self.w.push(Instruction::with3(Code::EVEX_Vpdpwssd_zmm_k1z_zmm_zmmm512b32, sum, ZEROS, start))?;
            }
        }
        Ok(())
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

    /// Adds a part's sums, scaled, to the result.
    fn scale(&mut self, part: usize) -> Result<(), IcedError> {
        let halves = [SCALE, MINIMUM].into_iter().enumerate().take(1 + usize::from(self.codes.minimum));
        for (nth, register) in halves {
            let from = self.w.at(B, self.shape.b.values() + nth * 2 * PANEL);
            self.w.push(Instruction::with2(Code::EVEX_Vpmovzxwd_zmm_k1z_ymmm256, register, from))?;
            self.w.push(Instruction::with3(Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, register, register, 16))?;
        }
        if self.codes.steps.is_some() {
            self.w.push(Instruction::with3(Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32, STEPS, STEPS, LOWER))?;
            self.w.push(Instruction::with2(Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, STEPS, STEPS))?;
            self.w.push(Instruction::with3(Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er, SCALE, SCALE, STEPS))?;
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
                let sum_of_row = self.w.each(ROW_SUMS, row * self.shape.a_stride + 4 * part);
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
