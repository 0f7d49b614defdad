//! Cores of floats: single precision, and pairs of bf16.

use std::ops::Range;

use iced_x86::{Code, IcedError, Instruction, Register};

use super::{A, COUNT, STEP, Shape, Writer};
use crate::format::Format;

/// Sums that are carried side by side, at least: what hides the latency of one on every machine so far.
const CHAINS: usize = 8;

/// Instructions of multiply and add that the loop has about.
const UNROLL: usize = 64;

/// Writes the code of a core.
pub(super) fn write(w: &mut Writer, shape: Shape) -> Result<(), IcedError> {
    let vectors = shape.panels * w.vectors();
    let registers = if w.wide { 28 } else { 12 };
    let sums = shape.rows * vectors;
    let chains = CHAINS.div_ceil(sums).next_power_of_two().min(registers / sums).max(1);
    Floats { w, shape, vectors, chains }.whole()
}

struct Floats<'w> {
    w: &'w mut Writer,
    shape: Shape,
    /// Vectors that a step of the panels fills.
    vectors: usize,
    /// How often each sum is split, so that enough are carried side by side.
    chains: usize,
}

impl Floats<'_> {
    fn whole(&mut self) -> Result<(), IcedError> {
        if (self.shape.a, self.shape.b) == (Format::F32, Format::Bf16) {
            self.upper_halves()?;
        }
        for row in 0..self.shape.rows {
            for vector in 0..self.vectors {
                let from = self.w.result(&self.shape, row, vector);
                for chain in 0..self.chains {
                    let sum = self.sum(chain, row, vector);
                    if chain == 0 && self.shape.accumulate {
                        self.w.two([Code::EVEX_Vmovups_zmm_k1z_zmmm512, Code::VEX_Vmovups_ymm_ymmm256], sum, from)?;
                    } else {
                        self.w.zero(sum)?;
                    }
                }
            }
        }
        let steps = self.shape.steps();
        // Each step multiplies for every row as often as there are sums of it, and neighbours lie together.
        let each = self.shape.rows * self.vectors * self.shape.b.together();
        let unroll = (UNROLL / each).next_power_of_two().clamp(self.chains, 16);
        let (count, each) = (steps / unroll, self.shape);
        let Floats { vectors, chains, .. } = *self;
        self.w.times_fetching(&each, count, |w| Floats { w, shape: each, vectors, chains }.steps(unroll))?;
        self.steps(steps % unroll)?;
        for row in 0..self.shape.rows {
            for vector in 0..self.vectors {
                let total = self.sum(0, row, vector);
                // In pairs, so that they do not wait for each other.
                let mut distance = self.chains / 2;
                while distance > 0 {
                    for chain in 0..distance {
                        let (sum, other) = (self.sum(chain, row, vector), self.sum(chain + distance, row, vector));
                        self.w.three(
                            [Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vaddps_ymm_ymm_ymmm256],
                            sum,
                            sum,
                            other,
                        )?;
                    }
                    distance /= 2;
                }
                let to = self.w.result(&self.shape, row, vector);
                let code = [Code::EVEX_Vmovups_zmmm512_k1z_zmm, Code::VEX_Vmovups_ymmm256_ymm];
                self.w.push(Instruction::with2(self.w.of(code), to, total))?;
            }
        }
        Ok(())
    }

    /// So many steps, one after the other; then both operands move on.
    fn steps(&mut self, count: usize) -> Result<(), IcedError> {
        for step in 0..count {
            self.step(step)?;
        }
        if count > 0 {
            self.w.advance(A, count * self.shape.a_step())?;
            self.w.advance_panel(&self.shape, count * STEP)?;
        }
        Ok(())
    }

    fn step(&mut self, step: usize) -> Result<(), IcedError> {
        self.w.fetch(&self.shape, step * STEP)?;
        let load = [Code::EVEX_Vmovups_zmm_k1z_zmmm512, Code::VEX_Vmovups_ymm_ymmm256];
        if self.shape.a == self.shape.b {
            for vector in 0..self.vectors {
                let from = self.w.panel(&self.shape, step, vector);
                self.w.two(load, self.spare(vector as u32), from)?;
            }
            return self.multiply(step, 0, 0..self.vectors, self.spare(0));
        }
        // Neighbours in bf16: first the lower ones of all vectors, then the upper ones.
        let shift = [Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, Code::VEX_Vpslld_ymm_ymm_imm8];
        let and = [Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpand_ymm_ymm_ymmm256];
        for nth in 0..self.shape.b.together() {
            for vector in 0..self.vectors {
                let (to, from) = (self.spare(vector as u32), self.w.panel(&self.shape, step, vector));
                if nth == 0 {
                    self.w.two(load, to, from)?;
                    self.w.push(Instruction::with3(self.w.of(shift), to, to, 16))?;
                } else {
                    self.w.push(Instruction::with3(self.w.of(and), to, self.spare(3), from))?;
                }
            }
            self.multiply(step, nth, 0..self.vectors, self.spare(0))?;
        }
        Ok(())
    }

    /// Multiplies vectors of the panels, which are in registers from the first on, with each row's number (of the neighbours in
    /// a step the `nth`), and adds.
    fn multiply(&mut self, step: usize, nth: usize, vectors: Range<usize>, first: Register) -> Result<(), IcedError> {
        let product = match self.shape.a {
            Format::Bf16 => [Code::EVEX_Vdpbf16ps_zmm_k1z_zmm_zmmm512b32, Code::INVALID],
            _ => [Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256],
        };
        let numbers = if self.shape.a == self.shape.b { 1 } else { self.shape.b.together() };
        let chain = (step * numbers + nth) % self.chains;
        for row in 0..self.shape.rows {
            let at = row * self.shape.a_stride + step * self.shape.a_step() + 4 * nth;
            if self.w.wide && vectors.len() == 1 {
                let (sum, number) = (self.sum(chain, row, vectors.start), self.w.each(A, at));
                self.w.push(Instruction::with3(product[0], sum, first, number))?;
                continue;
            }
            // Loaded once for all vectors.
            let (number, at) = (self.spare(2), self.w.at(A, at));
            self.w.two([Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32, Code::VEX_Vbroadcastss_ymm_m32], number, at)?;
            for (panel, vector) in vectors.clone().enumerate() {
                let sum = self.sum(chain, row, vector);
                self.w.three(product, sum, first + panel as u32, number)?;
            }
        }
        Ok(())
    }

    /// All ones in the upper halves of 32 bits.
    fn upper_halves(&mut self) -> Result<(), IcedError> {
        let mask = self.spare(3);
        let xmm = Register::XMM0 + (mask as u32 - self.w.first() as u32);
        self.w.push(Instruction::with2(Code::Mov_r32_imm32, COUNT, 0xffff_0000u32))?;
        let (to_vector, broadcast) = if self.w.wide {
            (Code::EVEX_Vmovd_xmm_rm32, Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32)
        } else {
            (Code::VEX_Vmovd_xmm_rm32, Code::VEX_Vpbroadcastd_ymm_xmmm32)
        };
        self.w.push(Instruction::with2(to_vector, xmm, COUNT))?;
        self.w.push(Instruction::with2(broadcast, mask, xmm))
    }

    fn sum(&self, chain: usize, row: usize, vector: usize) -> Register {
        self.w.first() + ((chain * self.shape.rows + row) * self.vectors + vector) as u32
    }

    /// One of the last four registers.
    fn spare(&self, nth: u32) -> Register {
        self.w.first() + if self.w.wide { 28 } else { 12 } + nth
    }
}
