//! Codes at 128 bits, on every machine: the contraction core of coded operands, the unpacking of
//! panels, and the encoding of rows.

use std::array;
use std::cmp::Ordering;

use cranelift::codegen::ir::types::{F32, F32X4, I8X16, I16X8, I32, I32X4};
use cranelift::codegen::ir::{Endianness, InstBuilder, MemFlagsData, Value};

use super::core::Operands;
use super::emit::{Emitter, Range, memory, repeat};
use super::words;
use crate::format::{Codes, Format, PANEL, Plane, ROUND, SMALLEST};
use crate::loops::LANES;

/// Rows that are taken at once.
const ROWS: usize = 2;

/// Vectors of the panel's columns.
const VECTORS: usize = PANEL / LANES;

/// Emits the unpacking of a panel, here.
pub(super) fn unpack(e: &mut Emitter, from: (Value, i32), to: (Value, i32), depth: usize, format: Format) {
    let unpacked = format.unpacked();
    let (Some(codes), Some(bytes)) = (format.codes(), unpacked.codes()) else { return };
    let length = format.block();
    let (start, end, step) = (e.int(0), e.int((depth / length) as i64), e.int(1));
    repeat(e, Range { start, end, step, runs: depth > 0 }, &[], |e, block, _| {
        let (from, to) = (stretch(e, from, block, format.rows(length)), stretch(e, to, block, unpacked.rows(length)));
        let panel = Panel { at: from, codes };
        for part in 0..length / codes.summed() {
            let parts: Vec<Option<(Value, Value)>> =
                (0..VECTORS).map(|vector| panel.as_bytes(e, part, vector, bytes.offset)).collect();
            panel.each(e, part, &[], |e, at, vector, nth, mut bytes, _| {
                if let Some(part) = parts[vector] {
                    bytes = in_steps(e, bytes, part);
                }
                let wide = e.int(PANEL as i64);
                let further = e.ins().imul(at, wide);
                let target = e.ins().iadd(to.0, further);
                e.ins().store(memory(), bytes, target, to.1 + (nth * 4 * PANEL + vector * 16) as i32);
            });
        }
        for vector in 0..2 {
            let scales = e.ins().load(I8X16, memory(), from.0, from.1 + (format.values() + 16 * vector) as i32);
            e.ins().store(memory(), scales, to.0, to.1 + (unpacked.values() + 16 * vector) as i32);
        }
        Vec::new()
    });
}

/// Emits the same to bf16, here.
pub(super) fn unpack_floats(e: &mut Emitter, from: (Value, i32), to: (Value, i32), depth: usize, format: Format) {
    let (Some(codes), Some(bytes)) = (format.codes(), format.unpacked().codes()) else { return };
    let length = format.block();
    let (start, end, step) = (e.int(0), e.int((depth / length) as i64), e.int(1));
    repeat(e, Range { start, end, step, runs: depth > 0 }, &[], |e, block, _| {
        let (from, to) =
            (stretch(e, from, block, format.rows(length)), stretch(e, to, block, 2 * Format::Bf16.rows(length)));
        let panel = Panel { at: from, codes };
        // scale * byte + what the byte is too much of, or the minimum: one rounding in all.
        let lines: Vec<(Value, Value)> = (0..VECTORS)
            .map(|vector| {
                let scale = panel.halves(e, vector * 8);
                let added = match codes.minimum {
                    true => panel.halves(e, 2 * PANEL + vector * 8),
                    false => {
                        let offset = e.float_of(F32X4, -bytes.offset as f32);
                        e.ins().fmul(scale, offset)
                    }
                };
                (scale, added)
            })
            .collect();
        for part in 0..length / codes.summed() {
            let parts: Vec<Option<(Value, Value)>> =
                (0..VECTORS).map(|vector| panel.as_bytes(e, part, vector, bytes.offset)).collect();
            panel.each(e, part, &[], |e, at, vector, nth, mut bytes, _| {
                if let Some(part) = parts[vector] {
                    bytes = in_steps(e, bytes, part);
                }
                let words = e.ins().bitcast(I32X4, LITTLE, bytes);
                let wide = e.int(2 * PANEL as i64);
                let further = e.ins().imul(at, wide);
                let target = e.ins().iadd(to.0, further);
                let mask = e.int_of(I32X4, 0xff);
                let number = |e: &mut Emitter, nth: u32| {
                    let byte = e.ushr(words, 8 * nth);
                    let byte = e.ins().band(byte, mask);
                    let byte = e.ins().fcvt_from_sint(F32X4, byte);
                    let number = e.ins().fma(byte, lines[vector].0, lines[vector].1);
                    e.upper_half(number)
                };
                for pair in 0..2 {
                    let (lower, upper) = (number(e, 2 * pair), number(e, 2 * pair + 1));
                    let upper = e.shl(upper, 16);
                    let both = e.ins().bor(lower, upper);
                    let at = (nth * 4 + 2 * pair as usize) * 2 * PANEL + vector * 16;
                    e.ins().store(memory(), both, target, to.1 + at as i32);
                }
            });
        }
        Vec::new()
    });
}

/// Where one of many stretches of so many bytes begins.
pub(super) fn stretch(e: &mut Emitter, (pointer, offset): (Value, i32), number: Value, each: usize) -> (Value, i32) {
    let each = e.int(each as i64);
    let further = e.ins().imul(number, each);
    (e.ins().iadd(pointer, further), offset)
}

/// Bytes times the steps of their columns, moved by their zeros. Two products of four bits each fit into a half: the bytes
/// don't meet.
fn in_steps(e: &mut Emitter, bytes: Value, (steps, zeros): (Value, Value)) -> Value {
    let halves = e.ins().bitcast(I16X8, LITTLE, bytes);
    let halves = e.ins().imul(halves, steps);
    let bytes = e.ins().bitcast(I8X16, LITTLE, halves);
    e.ins().iadd(bytes, zeros)
}

/// A block of a panel.
struct Panel {
    at: (Value, i32),
    codes: Codes,
}

impl Panel {
    /// Does something with the codes of a part, four rows after the other, of each vector of columns: from which row on (of a
    /// group of steps), of which vector, which of the group, and the codes. Sums are carried along.
    fn each(
        &self,
        e: &mut Emitter,
        part: usize,
        sums: &[Value],
        mut with: impl FnMut(&mut Emitter, Value, usize, usize, Value, &mut [Value]),
    ) -> Vec<Value> {
        let Panel { at: panel, codes } = self;
        let (planes, rows) = (codes.planes(), codes.summed());
        let together = 4 * codes.group();
        let [start, end, step] = [part * rows, (part + 1) * rows, together].map(|row| e.int(row as i64));
        let range = Range { start, end, step, runs: true };
        repeat(e, range, sums, |e, at, sums| {
            let mut sums = sums.to_vec();
            // Of each plane four rows take so many bytes more.
            let pointers: Vec<Value> = planes
                .iter()
                .map(|plane| {
                    let wide = e.int((PANEL / plane.steps()) as i64);
                    let further = e.ins().imul(at, wide);
                    e.ins().iadd(panel.0, further)
                })
                .collect();
            for vector in 0..VECTORS {
                let first = panel.1 + vector as i32 * 16;
                let mut words = vec![at; planes.len()];
                for nth in 0..codes.group() {
                    let each = words.iter_mut().zip(&planes).zip(&pointers);
                    for ((word, plane), pointer) in each.filter(|((_, plane), _)| nth % plane.steps() == 0) {
                        let at = first + (plane.at + nth / plane.steps() * 4 * PANEL) as i32;
                        *word = e.ins().load(I8X16, memory(), *pointer, at);
                    }
                    let bytes = self.step(e, &planes, &words, nth);
                    with(e, at, vector, nth, bytes, &mut sums);
                }
            }
            sums
        })
    }

    /// Four of the numbers beside a block's codes, so many bytes from the first.
    fn halves(&self, e: &mut Emitter, at: usize) -> Value {
        let values = Format::Codes(self.codes).values();
        let bits = e.ins().uload16x4(memory(), self.at.0, self.at.1 + (values + at) as i32);
        let bits = e.shl(bits, 16);
        e.as_floats(bits)
    }

    /// The steps and the zeros of four columns of a part.
    fn steps(&self, e: &mut Emitter, part: usize, vector: usize) -> Option<(Value, Value)> {
        self.codes.steps?;
        let at = self.at.1 + (self.codes.parts_at() + part * PANEL + vector * LANES) as i32;
        let four = e.ins().load(I32, memory(), self.at.0, at);
        let four = e.ins().splat(I32X4, four);
        let four = e.ins().bitcast(I8X16, LITTLE, four);
        // Each column's byte in its lane; 0 where there is no byte of that number.
        let lanes = e.vector(I32X4, [0x8080_8000, 0x8080_8001, 0x8080_8002, 0x8080_8003]);
        let lanes = e.ins().bitcast(I8X16, LITTLE, lanes);
        let bytes = e.ins().swizzle(four, lanes);
        let bytes = e.ins().bitcast(I32X4, LITTLE, bytes);
        let lower = e.int_of(I32X4, 15);
        let steps = e.ins().band(bytes, lower);
        Some((steps, e.ushr(bytes, 4)))
    }

    /// The steps in both halves of each lane, and what the zeros add to a byte, in each byte.
    fn as_bytes(&self, e: &mut Emitter, part: usize, vector: usize, offset: i32) -> Option<(Value, Value)> {
        let (steps, zeros) = self.steps(e, part, vector)?;
        let twice = e.int_of(I32X4, 0x0001_0001);
        let halves = e.ins().imul(steps, twice);
        // offset - step * zero, of which a byte is enough.
        let product = e.ins().imul(steps, zeros);
        let offset = e.int_of(I32X4, offset);
        let added = e.ins().isub(offset, product);
        let byte = e.int_of(I32X4, 0xff);
        let added = e.ins().band(added, byte);
        let four = e.int_of(I32X4, 0x0101_0101);
        let added = e.ins().imul(added, four);
        Some((e.ins().bitcast(I16X8, LITTLE, halves), e.ins().bitcast(I8X16, LITTLE, added)))
    }

    /// What four rows are multiplied as, a byte each, out of the words of the planes; `nth` of a group.
    fn step(&self, e: &mut Emitter, planes: &[Plane], words: &[Value], nth: usize) -> Value {
        let mut word = None;
        for (plane, bytes) in planes.iter().zip(words) {
            if plane.bits == 8 {
                return *bytes;
            }
            let bits = e.ins().bitcast(I32X4, LITTLE, *bytes);
            let (from, to) = (nth % plane.steps() * plane.bits, plane.shift);
            let bits = match from.cmp(&to) {
                Ordering::Greater => e.ushr(bits, (from - to) as u32),
                Ordering::Less => e.shl(bits, (to - from) as u32),
                Ordering::Equal => bits,
            };
            let mask = e.int_of(I32X4, i32::from_le_bytes([plane.mask() << to; 4]));
            let bits = e.ins().band(bits, mask);
            word = Some(word.map_or(bits, |word| e.ins().bor(word, bits)));
        }
        let word = word.unwrap_or_else(|| e.int_of(I32X4, 0));
        let codes = e.ins().bitcast(I8X16, LITTLE, word);
        let Some(_) = self.codes.levels else { return codes };
        let levels: [u8; 16] = array::from_fn(|code| self.codes.byte(code as u8) as u8);
        let levels = e.vector(I32X4, array::from_fn(|i| u32::from_le_bytes(array::from_fn(|j| levels[4 * i + j]))));
        let levels = e.ins().bitcast(I8X16, LITTLE, levels);
        e.ins().swizzle(levels, codes)
    }
}

/// Emits a core of codes by codes or of words by codes, here.
pub(super) fn emit(e: &mut Emitter, operands: &Operands, codes: Codes, depth: usize) {
    for (a, c) in operands.a.chunks(ROWS).zip(operands.c.chunks(ROWS)) {
        let words = operands.a_format != operands.b_format;
        Rows { a, b: operands.b, c, format: operands.b_format, codes, depth, words }.emit(e, operands.accumulate);
    }
}

/// Some rows of a core.
struct Rows<'a> {
    a: &'a [(Value, i32)],
    b: (Value, i32),
    c: &'a [(Value, i32)],
    format: Format,
    codes: Codes,
    depth: usize,
    /// Whether they are words, not bytes.
    words: bool,
}

impl Rows<'_> {
    fn emit(&self, e: &mut Emitter, accumulate: bool) {
        let mut sums = Vec::new();
        for (pointer, offset) in self.c {
            for vector in 0..VECTORS {
                sums.push(match accumulate {
                    true => e.ins().load(F32X4, memory(), *pointer, offset + vector as i32 * 16),
                    false => e.float_of(F32X4, 0.0),
                });
            }
        }
        let (start, end, step) = (e.int(0), e.int((self.depth / self.format.block()) as i64), e.int(1));
        let range = Range { start, end, step, runs: self.depth > 0 };
        let sums = repeat(e, range, &sums, |e, block, sums| self.block(e, block, sums));
        let mut sums = sums.iter();
        for (pointer, offset) in self.c {
            for (vector, sum) in (0..VECTORS as i32).zip(&mut sums) {
                e.ins().store(memory(), *sum, *pointer, offset + vector * 16);
            }
        }
    }

    /// Bytes of a number of a row.
    fn width(&self) -> usize {
        if self.words { 2 } else { 1 }
    }

    /// Adds the products of a block to the sums.
    fn block(&self, e: &mut Emitter, block: Value, sums: &[Value]) -> Vec<Value> {
        let length = self.format.block();
        let codes: Vec<(Value, i32)> =
            self.a.iter().map(|row| stretch(e, *row, block, self.width() * length)).collect();
        let panel = Panel { at: stretch(e, self.b, block, self.format.rows(length)), codes: self.codes };
        let mut results = sums.to_vec();
        for part in 0..length / self.codes.summed() {
            self.part(e, block, part, &panel, &codes, &mut results);
        }
        results
    }

    /// Adds the products of a part of a block.
    fn part(
        &self,
        e: &mut Emitter,
        block: Value,
        part: usize,
        panel: &Panel,
        codes: &[(Value, i32)],
        results: &mut [Value],
    ) {
        let length = self.format.block();
        let parts = length / self.codes.summed();
        let first = (self.codes.sums_of_row(self.depth) - self.depth) as i32;
        let beside = |e: &mut Emitter, row: (Value, i32), each: usize| {
            let (pointer, offset) = stretch(e, row, block, 4 * each);
            (pointer, offset + (self.width() * self.depth) as i32)
        };
        let sums: Vec<(Value, i32)> = self
            .a
            .iter()
            .map(|row| {
                let (pointer, at) = beside(e, *row, parts);
                (pointer, at + first + 4 * part as i32)
            })
            .collect();
        let steps: Vec<Option<(Value, Value)>> = (0..VECTORS).map(|vector| panel.steps(e, part, vector)).collect();
        let mut products = Vec::new();
        for (pointer, at) in &sums {
            let start = match self.codes.minimum {
                true => e.int_of(I32X4, 0),
                false => {
                    let from = if self.words { 0 } else { self.codes.summed_from() };
                    let start = e.ins().load(I32, memory(), *pointer, *at);
                    let start = e.ins().iadd_imm_s(start, i64::from(-from));
                    e.ins().splat(I32X4, start)
                }
            };
            for steps in &steps {
                products.push(match steps {
                    Some((_, zeros)) => e.ins().imul(start, *zeros),
                    None => start,
                });
            }
        }
        let products = panel.each(e, part, &products, |e, at, vector, nth, weights, products| {
            for (row, (pointer, offset)) in codes.iter().enumerate() {
                let sum = &mut products[row * VECTORS + vector];
                let (pointer, _) = stretch(e, (*pointer, 0), at, self.width());
                let at = (pointer, offset + (self.width() * 4 * nth) as i32);
                if self.words {
                    *sum = words::dot(e, *sum, at, weights);
                    continue;
                }
                let four = e.ins().load(I32, memory(), at.0, at.1);
                let four = e.ins().splat(I32X4, four);
                let four = e.ins().bitcast(I8X16, LITTLE, four);
                *sum = dot(e, *sum, four, weights);
            }
        });
        let rows = results.chunks_mut(VECTORS).zip(products.chunks(VECTORS)).zip(self.a).zip(&sums);
        for (((result, products), row), sum) in rows {
            let (pointer, at) = beside(e, *row, 1);
            let of_row = e.ins().load(F32, memory(), pointer, at);
            let of_row = e.ins().splat(F32X4, of_row);
            let sum = self.codes.minimum.then(|| {
                let sum = e.ins().load(F32, memory(), sum.0, sum.1);
                e.ins().splat(F32X4, sum)
            });
            for (vector, (result, product)) in result.iter_mut().zip(products).enumerate() {
                let mut scale = panel.halves(e, 2 * LANES * vector);
                if let Some((steps, _)) = steps[vector] {
                    let steps = e.ins().fcvt_from_sint(F32X4, steps);
                    scale = e.ins().fmul(scale, steps);
                }
                let scale = e.ins().fmul(scale, of_row);
                let product = e.ins().fcvt_from_sint(F32X4, *product);
                *result = e.ins().fma(scale, product, *result);
                if let Some(sum) = sum {
                    let minimum = panel.halves(e, 2 * LANES * vector + 2 * PANEL);
                    *result = e.ins().fma(minimum, sum, *result);
                }
            }
        }
    }
}

/// The order of bytes in vectors.
pub(super) const LITTLE: MemFlagsData = MemFlagsData::new().with_endianness(Endianness::Little);

/// Adds the products of four signed bytes with four unsigned ones to each lane. Written so that it becomes one instruction
/// where the machine has it: Cranelift looks for the products first, then the sum.
fn dot(e: &mut Emitter, sum: Value, signed: Value, unsigned: Value) -> Value {
    let (a, b) = (e.ins().swiden_low(signed), e.ins().uwiden_low(unsigned));
    let lower = e.ins().imul(a, b);
    let (a, b) = (e.ins().swiden_high(signed), e.ins().uwiden_high(unsigned));
    let upper = e.ins().imul(a, b);
    let [lower, upper] = [lower, upper].map(|products| {
        let (a, b) = (e.ins().swiden_low(products), e.ins().swiden_high(products));
        e.ins().iadd_pairwise(a, b)
    });
    let all = e.ins().iadd_pairwise(lower, upper);
    e.ins().iadd(all, sum)
}

/// The blocks of a row that are encoded.
pub(super) struct Blocks {
    pub(super) count: usize,
    /// Numbers of the whole row.
    pub(super) of: usize,
    /// The first of them, if it is not the row's.
    pub(super) first: Option<Value>,
}

impl Blocks {
    /// Emits what is done for each: it is told the number among these, and in the row.
    pub(super) fn each(&self, e: &mut Emitter, mut with: impl FnMut(&mut Emitter, Value, Value)) {
        let (start, end, step) = (e.int(0), e.int(self.count as i64), e.int(1));
        repeat(e, Range { start, end, step, runs: self.count > 0 }, &[], |e, nth, _| {
            let block = self.first.map_or(nth, |first| e.ins().iadd(first, nth));
            with(e, nth, block);
            Vec::new()
        });
    }
}

/// Emits the encoding of a row of floats as codes, here.
pub(super) fn encode(e: &mut Emitter, from: (Value, i32), to: (Value, i32), blocks: &Blocks, codes: Codes) {
    let (length, depth) = (codes.block, blocks.of);
    blocks.each(e, |e, nth, block| {
        let within = |e: &mut Emitter, pointer: Value, each: usize| stretch(e, (pointer, 0), block, each).0;
        let source = (stretch(e, (from.0, 0), nth, 4 * length).0, from.1);
        let (factor, scale) = factor(e, source, length, 127.0);
        let target = within(e, to.0, length);
        let (parts, summed) = (length / codes.summed(), codes.summed());
        let sums = within(e, to.0, 4 * parts);
        let at = to.1 + codes.sums_of_row(depth) as i32;
        let mut total: Option<Value> = None;
        for part in 0..parts {
            let mut sum = e.int_of(I32X4, 0);
            for i in part * summed / 16..(part + 1) * summed / 16 {
                let four = [0, 1, 2, 3].map(|nth| {
                    let code = nearest(e, source, 4 * i + nth, factor);
                    sum = e.ins().iadd(sum, code);
                    code
                });
                let (a, b) = (e.ins().snarrow(four[0], four[1]), e.ins().snarrow(four[2], four[3]));
                let bytes = e.ins().snarrow(a, b);
                e.ins().store(memory(), bytes, target, to.1 + 16 * i as i32);
            }
            for lanes in [[2, 3, 0, 1], [1, 0, 3, 2]] {
                let other = e.swizzle(sum, lanes);
                sum = e.ins().iadd(sum, other);
            }
            let sum = e.ins().extractlane(sum, 0);
            total = Some(total.map_or(sum, |total| e.ins().iadd(total, sum)));
            let sum = match codes.minimum {
                true => {
                    let sum = e.ins().fcvt_from_sint(F32, sum);
                    e.ins().fmul(scale, sum)
                }
                false => sum_of_row(e, sum, codes),
            };
            e.ins().store(memory(), sum, sums, at + 4 * part as i32);
        }
        let target = within(e, to.0, 4);
        e.ins().store(memory(), scale, target, to.1 + depth as i32);
        if let (Some(total), Some(unpacked)) = (total.filter(|_| codes.steps.is_some()), unpacked(codes)) {
            let total = sum_of_row(e, total, unpacked);
            e.ins().store(memory(), total, target, to.1 + unpacked.sums_of_row(depth) as i32);
        }
    });
}

/// What a row has of the sum of some of its bytes, without minima.
fn sum_of_row(e: &mut Emitter, sum: Value, codes: Codes) -> Value {
    let sum = e.ins().imul_imm_s(sum, i64::from(-codes.summed_as()));
    e.ins().iadd_imm_s(sum, i64::from(codes.summed_from()))
}

/// What the numbers of a block of a row are multiplied with, in each lane, for the largest to become `most`; and the block's scale.
pub(super) fn factor(e: &mut Emitter, (pointer, offset): (Value, i32), length: usize, most: f32) -> (Value, Value) {
    // Magnitudes as whole numbers: what is no number is above all others, and stays.
    let mut largest = e.int_of(I32X4, SMALLEST.to_bits() as i32);
    for i in 0..length / LANES {
        let x = e.ins().load(I32X4, memory(), pointer, offset + 16 * i as i32);
        largest = larger(e, x, largest);
    }
    for lanes in [[2, 3, 0, 1], [1, 0, 3, 2]] {
        let other = e.swizzle(largest, lanes);
        largest = e.ins().smax(other, largest);
    }
    let largest = e.as_floats(largest);
    let to = e.float_of(F32X4, most);
    let factor = e.ins().fdiv(to, largest);
    let inverse = e.float_of(F32X4, 1.0 / most);
    let scale = e.ins().fmul(largest, inverse);
    (factor, e.ins().extractlane(scale, 0))
}

/// Four numbers of a row, taken times something and rounded.
pub(super) fn nearest(e: &mut Emitter, (pointer, offset): (Value, i32), vector: usize, factor: Value) -> Value {
    let round = e.float_of(F32X4, ROUND);
    let bits = e.bits(round);
    let x = e.ins().load(F32X4, memory(), pointer, offset + 16 * vector as i32);
    let x = e.ins().fmul(x, factor);
    let x = e.ins().fadd(x, round);
    let x = e.bits(x);
    e.ins().isub(x, bits)
}

/// What panels of such codes are unpacked to.
fn unpacked(codes: Codes) -> Option<Codes> {
    Format::Codes(codes).unpacked().codes()
}

/// The larger of a number's magnitude and another, as whole numbers.
pub(super) fn larger(e: &mut Emitter, x: Value, largest: Value) -> Value {
    let magnitude = e.int_of(I32X4, i32::MAX);
    let x = e.ins().band(x, magnitude);
    e.ins().smax(largest, x)
}
