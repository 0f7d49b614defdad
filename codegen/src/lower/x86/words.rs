//! The core of rows of words by panels of bytes, at 256 bits: products of pairs, summed as whole numbers within a block.

use iced_x86::{Code, IcedError, Instruction, Register};

use super::codes::halves;
use super::instructions::{ADD, SPREAD, TO_FLOAT, WORDS};
use super::{A, B, LINE, Shape, Writer};
use crate::format::PANEL;

/// Where the scales of the rows are.
const ROW_SCALES: Register = Register::R8;

/// Where the sums of their words are.
const ROW_SUMS: Register = Register::R9;

/// The bytes of all columns of a panel, two of each, widened. There are two sums for each of up to six rows.
const BYTES: [Register; 2] = [Register::YMM12, Register::YMM13];

/// What a row is multiplied with, then is scaled with.
const OF_ROW: Register = Register::YMM14;

/// What is made of that.
const PRODUCT: Register = Register::YMM15;

/// The first and the third of four bytes.
const LOWER: u32 = 0x00ff_00ff;

/// Writes the code of a core. What the blocks before add up to is held in the result.
pub(super) fn write(w: &mut Writer, shape: Shape) -> Result<(), IcedError> {
    let (depth, block) = (shape.depth, shape.b.block());
    for (register, at) in [(ROW_SCALES, 2 * depth), (ROW_SUMS, 2 * depth + depth / block * 4)] {
        let at = w.at(A, at);
        w.push(Instruction::with2(Code::Lea_r64_m, register, at))?;
    }
    w.words([LOWER; 16])?;
    if !shape.accumulate {
        w.zero(PRODUCT)?;
        for (row, vector) in sums(&shape) {
            let place = w.result(&shape, row, vector);
            w.store(place, PRODUCT)?;
        }
    }
    w.times(depth / block, |w| {
        products(w, &shape)?;
        scale(w, &shape)?;
        w.advance(A, 2 * block)?;
        w.advance_panel(&shape, shape.b.rows(block))?;
        w.advance(ROW_SCALES, 4)?;
        w.advance(ROW_SUMS, 4)
    })
}

/// The rows, each with both halves of the columns.
fn sums(shape: &Shape) -> impl Iterator<Item = (usize, usize)> + use<> {
    (0..shape.rows).flat_map(|row| [(row, 0), (row, 1)])
}

/// Where the sum of a row's products with half of the columns is.
fn sum(row: usize, vector: usize) -> Register {
    Register::YMM0 + (2 * row + vector) as u32
}

/// Sums up the products of a block, and what the offset of the bytes takes away.
fn products(w: &mut Writer, shape: &Shape) -> Result<(), IcedError> {
    for (row, vector) in sums(shape) {
        let from = w.at(ROW_SUMS, row * shape.a_stride);
        w.two(SPREAD, sum(row, vector), from)?;
    }
    let (steps, lines) = (shape.b.block() / shape.b.together(), shape.b.rows(shape.b.block()).div_ceil(LINE));
    for step in 0..steps {
        for line in step * lines / steps..(step + 1) * lines / steps {
            w.fetch(shape, line * LINE)?;
        }
        for upper in [false, true] {
            for (vector, bytes) in BYTES.into_iter().enumerate() {
                let from = w.panel(shape, step, vector);
                w.push(Instruction::with2(Code::VEX_Vmovdqu_ymm_ymmm256, bytes, from))?;
                w.push(match upper {
                    false => Instruction::with3(Code::VEX_Vpand_ymm_ymm_ymmm256, bytes, bytes, w.word_below(0)),
                    true => Instruction::with3(Code::VEX_Vpsrlw_ymm_ymm_imm8, bytes, bytes, 8),
                })?;
            }
            for row in 0..shape.rows {
                let from = w.at(A, row * shape.a_stride + 8 * step + 4 * usize::from(upper));
                w.two(SPREAD, OF_ROW, from)?;
                w.three(WORDS, PRODUCT, OF_ROW, BYTES[0])?;
                w.three(WORDS, OF_ROW, OF_ROW, BYTES[1])?;
                w.three(ADD, sum(row, 0), sum(row, 0), PRODUCT)?;
                w.three(ADD, sum(row, 1), sum(row, 1), OF_ROW)?;
            }
        }
    }
    Ok(())
}

/// Adds the sums of a block, scaled, to the result.
fn scale(w: &mut Writer, shape: &Shape) -> Result<(), IcedError> {
    for (vector, scale) in BYTES.into_iter().enumerate() {
        halves(w, (B, shape.b.values() + vector * PANEL), scale)?;
    }
    for row in 0..shape.rows {
        let from = w.at(ROW_SCALES, row * shape.a_stride);
        w.two(SPREAD, OF_ROW, from)?;
        for (vector, scale) in BYTES.into_iter().enumerate() {
            let (sum, place) = (sum(row, vector), w.result(shape, row, vector));
            let convert = w.of(TO_FLOAT);
            w.push(Instruction::with2(convert, sum, sum))?;
            w.push(Instruction::with3(Code::VEX_Vmulps_ymm_ymm_ymmm256, PRODUCT, OF_ROW, scale))?;
            // sum * product + what is there
            w.push(Instruction::with3(Code::VEX_Vfmadd213ps_ymm_ymm_ymmm256, sum, PRODUCT, place))?;
            w.store(place, sum)?;
        }
    }
    Ok(())
}
