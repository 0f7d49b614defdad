//! Numbers of 16 bits, at 512 bits or 256: the core of pairs of them, summed as whole numbers within a block, and the unpacking of
//! panels of bf16.

use iced_x86::{Code, IcedError, Instruction, Register};

use super::instructions::{ADD, AND, HALVES, LEFT, MOVE, MULTIPLY, MULTIPLY_ADD, SPREAD, TO_FLOAT, WORDS};
use super::{A, B, LINE, STEP, Shape, Writer};
use crate::format::{Format, MOST_OF_PANEL, ROUND, SMALLEST};
use crate::loops::ByteProducts;

/// Where the scales of the rows are.
const ROW_SCALES: Register = Register::R8;

/// Numbers that share a scale, and how many pairs these are.
const BLOCK: usize = Format::I16.block();
const PAIRS: usize = BLOCK / 2;

/// Writes the code of a core, of at most twelve rows at 512 bits and of six at 256. What the blocks before add up to is held in
/// registers where there are 32 of them, else in the result.
pub(super) fn write(w: &mut Writer, shape: Shape) -> Result<(), IcedError> {
    let scales = w.at(A, 2 * shape.depth);
    w.push(Instruction::with2(Code::Lea_r64_m, ROW_SCALES, scales))?;
    for (row, vector) in sums(w, &shape) {
        let place = w.result(&shape, row, vector);
        match (shape.accumulate, w.wide) {
            (true, true) => w.two(MOVE, w.total(&shape, row), place)?,
            (false, true) => w.zero(w.total(&shape, row))?,
            (true, false) => {}
            (false, false) => {
                w.zero(w.of_row())?;
                w.store(place, w.of_row())?;
            }
        }
    }
    w.times_fetching(&shape, shape.depth / BLOCK, |w| block(w, &shape))?;
    let held = if w.wide { shape.rows } else { 0 };
    for row in 0..held {
        let place = w.result(&shape, row, 0);
        w.store(place, w.total(&shape, row))?;
    }
    Ok(())
}

/// The rows, each with every vector of the columns.
fn sums(w: &Writer, shape: &Shape) -> Vec<(usize, usize)> {
    (0..shape.rows).flat_map(|row| (0..w.vectors()).map(move |vector| (row, vector))).collect()
}

/// Registers: the sums come first, then what the blocks before add up to, where it is held.
impl Writer {
    fn sum_of(&self, row: usize, vector: usize) -> Register {
        self.first() + (row * self.vectors() + vector) as u32
    }

    fn total(&self, shape: &Shape, row: usize) -> Register {
        self.first() + (shape.rows + row) as u32
    }

    fn behind(&self, nth: u32) -> Register {
        self.first() + if self.wide { 28 } else { 12 } + nth
    }

    /// A pair of rows of the panel; the scales of its columns.
    fn numbers(&self, vector: usize) -> Register {
        self.behind(vector as u32)
    }

    /// What is a row's.
    fn of_row(&self) -> Register {
        self.behind(2)
    }

    /// What is made of both.
    fn made(&self) -> Register {
        self.behind(3)
    }
}

/// Adds the products of a block, scaled.
fn block(w: &mut Writer, shape: &Shape) -> Result<(), IcedError> {
    let (bytes, vectors) = (Format::I16.rows(BLOCK), w.vectors());
    let lines = bytes.div_ceil(LINE);
    sums(w, shape).into_iter().try_for_each(|(row, vector)| w.zero(w.sum_of(row, vector)))?;
    for pair in 0..PAIRS {
        for line in pair * lines / PAIRS..(pair + 1) * lines / PAIRS {
            w.fetch(shape, line * LINE)?;
        }
        for vector in 0..vectors {
            let from = w.panel(shape, pair, vector);
            w.two(MOVE, w.numbers(vector), from)?;
        }
        for row in 0..shape.rows {
            let at = row * shape.a_stride + 4 * pair;
            if w.wide {
                let of_row = w.each(A, at);
                w.push(Instruction::with3(HALVES[0], w.sum_of(row, 0), w.numbers(0), of_row))?;
                continue;
            }
            let from = w.at(A, at);
            w.two(SPREAD, w.of_row(), from)?;
            for vector in 0..vectors {
                let (sum, numbers) = (w.sum_of(row, vector), w.numbers(vector));
                if w.products == Some(ByteProducts::Avx2) {
                    w.three(WORDS, w.made(), w.of_row(), numbers)?;
                    w.three(ADD, sum, sum, w.made())?;
                } else {
                    w.dot(HALVES, sum, numbers, w.of_row())?;
                }
            }
        }
    }
    scale(w, shape)?;
    w.advance(A, 2 * BLOCK)?;
    w.advance_panel(shape, bytes)?;
    w.advance(ROW_SCALES, 4)
}

/// Adds the sums of a block to the result, scaled.
fn scale(w: &mut Writer, shape: &Shape) -> Result<(), IcedError> {
    for vector in 0..w.vectors() {
        let from = w.at(B, Format::I16.values() + vector * w.width());
        w.two(MOVE, w.numbers(vector), from)?;
    }
    for row in 0..shape.rows {
        let (both, at) = (w.made(), row * shape.a_stride);
        if !w.wide {
            let from = w.at(ROW_SCALES, at);
            w.two(SPREAD, w.of_row(), from)?;
        }
        for vector in 0..w.vectors() {
            let (sum, scales, convert) = (w.sum_of(row, vector), w.numbers(vector), w.of(TO_FLOAT));
            w.push(Instruction::with2(convert, sum, sum))?;
            if w.wide {
                let of_row = w.each(ROW_SCALES, at);
                w.push(Instruction::with3(MULTIPLY[0], both, scales, of_row))?;
                w.three(MULTIPLY_ADD, w.total(shape, row), sum, both)?;
                continue;
            }
            let place = w.result(shape, row, vector);
            w.three(MULTIPLY, both, w.of_row(), scales)?;
            // sum * both + what is there
            w.push(Instruction::with3(Code::VEX_Vfmadd213ps_ymm_ymm_ymmm256, sum, both, place))?;
            w.store(place, sum)?;
        }
    }
    Ok(())
}

/// Registers of the unpacking of a panel.
impl Writer {
    fn of_unpacking(&self, nth: u32) -> Register {
        self.first() + 8 + nth
    }
}

/// Writes the code that unpacks a panel of bf16, from the second address to the first. Each number is rounded once: added to
/// [`ROUND`], its lowest bits are the whole number.
pub(super) fn unpack(w: &mut Writer, depth: usize) -> Result<(), IcedError> {
    let [magnitudes, upper, lower, least] = [0, 1, 2, 3].map(|nth| w.of_unpacking(nth));
    let [most, inverse, round, factor] = [4, 5, 6, 7].map(|nth| w.of_unpacking(nth));
    let constants = [
        (magnitudes, 0x7fff_7fff),
        (upper, 0xffff_0000),
        (lower, 0x0000_ffff),
        (least, SMALLEST.to_bits()),
        (most, MOST_OF_PANEL.to_bits()),
        (inverse, (1.0 / MOST_OF_PANEL).to_bits()),
        (round, ROUND.to_bits()),
    ];
    constants.into_iter().try_for_each(|(register, bits)| w.constant(register, bits))?;
    let [a, b, c, d] = [0, 1, 2, 3].map(|nth| w.first() + nth);
    // Bits of bf16 without a sign: what is no number is above all others, and stays.
    let larger = [Code::EVEX_Vpmaxuw_zmm_k1z_zmm_zmmm512, Code::VEX_Vpmaxuw_ymm_ymm_ymmm256];
    let max = [Code::EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae, Code::VEX_Vmaxps_ymm_ymm_ymmm256];
    let divide = [Code::EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vdivps_ymm_ymm_ymmm256];
    let fma = [Code::EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vfmadd213ps_ymm_ymm_ymmm256];
    w.times(depth / BLOCK, |w| {
        for vector in 0..w.vectors() {
            let at = |w: &Writer, pair: usize| w.at(B, pair * STEP + vector * w.width());
            [a, b].into_iter().try_for_each(|largest| w.zero(largest))?;
            for pair in 0..PAIRS {
                let (largest, from) = ([a, b][pair % 2], at(w, pair));
                w.push(Instruction::with3(w.of(AND), c, magnitudes, from))?;
                w.three(larger, largest, largest, c)?;
            }
            w.three(larger, a, a, b)?;
            w.shift(LEFT, b, a, 16)?;
            w.three(AND, a, a, upper)?;
            // As floats; of two the second is left where one is no number.
            w.three(larger, a, a, b)?;
            w.three(max, a, least, a)?;
            w.three(MULTIPLY, b, a, inverse)?;
            w.three(divide, factor, most, a)?;
            let scales = w.at(A, Format::I16.values() + vector * w.width());
            w.store(scales, b)?;
            for pair in 0..PAIRS {
                let [low, high] = if pair % 2 == 0 { [a, b] } else { [c, d] };
                let from = at(w, pair);
                w.two(MOVE, low, from)?;
                w.three(AND, high, low, upper)?;
                w.shift(LEFT, low, low, 16)?;
                w.three(fma, low, factor, round)?;
                w.three(fma, high, factor, round)?;
                w.shift(LEFT, high, high, 16)?;
                if w.wide {
                    // low & lower | high
                    let combine = Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8;
                    w.push(Instruction::with4(combine, low, lower, high, 0xea))?;
                } else {
                    let blend = Code::VEX_Vpblendw_ymm_ymm_ymmm256_imm8;
                    w.push(Instruction::with4(blend, low, low, high, 0xaa))?;
                }
                let to = w.at(A, pair * STEP + vector * w.width());
                w.store(to, low)?;
            }
        }
        w.advance(A, Format::I16.rows(BLOCK))?;
        w.advance(B, PAIRS * STEP)
    })
}
