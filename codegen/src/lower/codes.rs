//! Codes at 128 bits, on every machine: the contraction core of coded operands, and the encoding of rows.

use std::array;
use std::cmp::Ordering;

use cranelift::codegen::ir::condcodes::FloatCC;
use cranelift::codegen::ir::types::{F32, F32X4, I8X16, I32, I32X4};
use cranelift::codegen::ir::{Endianness, InstBuilder, MemFlagsData, Value};

use super::core::Operands;
use super::emit::{Emitter, Range, memory, repeat};
use crate::loops::{Codes, Format, LANES, PANEL, Plane, SMALLEST};

/// Rows that are taken at once.
const ROWS: usize = 2;

/// Vectors of the panel's columns.
const VECTORS: usize = PANEL / LANES;

/// Emits a core of codes, here.
pub(super) fn emit(e: &mut Emitter, operands: &Operands, codes: Codes, depth: usize) {
    for (a, c) in operands.a.chunks(ROWS).zip(operands.c.chunks(ROWS)) {
        Rows { a, b: operands.b, c, format: operands.b_format, codes, depth }.emit(e, operands.accumulate);
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

    /// Adds the products of a block to the sums.
    fn block(&self, e: &mut Emitter, block: Value, sums: &[Value]) -> Vec<Value> {
        let length = self.format.block();
        let blocks = self.depth / length;
        let within = |e: &mut Emitter, (pointer, offset): (Value, i32), each: usize| {
            let each = e.int(each as i64);
            let further = e.ins().imul(block, each);
            (e.ins().iadd(pointer, further), offset)
        };
        let mut products = Vec::new();
        for row in self.a {
            let start = match self.codes.minimum {
                true => e.int_of(I32X4, 0),
                false => {
                    let (pointer, offset) = within(e, *row, 4);
                    let start = e.ins().load(I32, memory(), pointer, offset + (self.depth + blocks * 4) as i32);
                    e.ins().splat(I32X4, start)
                }
            };
            products.extend([start; VECTORS]);
        }
        let codes: Vec<(Value, i32)> = self.a.iter().map(|row| within(e, *row, length)).collect();
        let panel = within(e, self.b, self.format.rows(length));
        let planes = self.codes.planes();
        let together = self.format.together() * self.codes.group();
        let (start, end, step) = (e.int(0), e.int(length as i64), e.int(together as i64));
        let range = Range { start, end, step, runs: true };
        let products = repeat(e, range, &products, |e, at, products| {
            let mut products = products.to_vec();
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
                let mut words = vec![products[0]; planes.len()];
                for nth in 0..self.codes.group() {
                    let parts = words.iter_mut().zip(&planes).zip(&pointers);
                    for ((word, plane), pointer) in parts.filter(|((_, plane), _)| nth % plane.steps() == 0) {
                        let at = first + (plane.at + nth / plane.steps() * 4 * PANEL) as i32;
                        *word = e.ins().load(I8X16, memory(), *pointer, at);
                    }
                    let weights = self.step(e, &planes, &words, nth);
                    for (row, (pointer, offset)) in codes.iter().enumerate() {
                        let pointer = e.ins().iadd(*pointer, at);
                        let four = e.ins().load(I32, memory(), pointer, offset + 4 * nth as i32);
                        let four = e.ins().splat(I32X4, four);
                        let four = e.ins().bitcast(I8X16, little(), four);
                        let sum = &mut products[row * VECTORS + vector];
                        *sum = dot(e, *sum, four, weights);
                    }
                }
            }
            products
        });
        let (scales, offset) = (panel.0, panel.1 + self.format.values() as i32);
        let mut results = sums.to_vec();
        for (row, (result, products)) in results.chunks_mut(VECTORS).zip(products.chunks(VECTORS)).enumerate() {
            let (pointer, at) = within(e, self.a[row], 4);
            let of_row = e.ins().load(F32, memory(), pointer, at + self.depth as i32);
            let of_row = e.ins().splat(F32X4, of_row);
            let sum = self.codes.minimum.then(|| {
                let sum = e.ins().load(F32, memory(), pointer, at + (self.depth + blocks * 4) as i32);
                e.ins().splat(F32X4, sum)
            });
            let halves = |e: &mut Emitter, at: i32| {
                let bits = e.ins().uload16x4(memory(), scales, at);
                let bits = e.shl(bits, 16);
                e.as_floats(bits)
            };
            for (vector, (result, product)) in result.iter_mut().zip(products).enumerate() {
                let offset = offset + vector as i32 * 8;
                let scale = halves(e, offset);
                let scale = e.ins().fmul(scale, of_row);
                let product = e.ins().fcvt_from_sint(F32X4, *product);
                *result = e.ins().fma(scale, product, *result);
                if let Some(sum) = sum {
                    let minimum = halves(e, offset + 2 * PANEL as i32);
                    *result = e.ins().fma(minimum, sum, *result);
                }
            }
        }
        results
    }

    /// What four rows are multiplied as, a byte each, out of the words of the planes; `nth` of a group.
    fn step(&self, e: &mut Emitter, planes: &[Plane], words: &[Value], nth: usize) -> Value {
        let mut word = None;
        for (plane, bytes) in planes.iter().zip(words) {
            if plane.bits == 8 {
                return *bytes;
            }
            let bits = e.ins().bitcast(I32X4, little(), *bytes);
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
        let codes = e.ins().bitcast(I8X16, little(), word);
        let Some(_) = self.codes.levels else { return codes };
        let levels: [u8; 16] = array::from_fn(|code| self.codes.byte(code as u8) as u8);
        let levels = e.vector(I32X4, array::from_fn(|i| u32::from_le_bytes(array::from_fn(|j| levels[4 * i + j]))));
        let levels = e.ins().bitcast(I8X16, little(), levels);
        e.ins().swizzle(levels, codes)
    }
}

fn little() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

/// Adds the products of four signed bytes with four unsigned ones to each lane. Written so that it becomes one instruction
/// where the machine has it.
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
    e.ins().iadd(sum, all)
}

/// Emits the encoding of a row of floats as codes, here.
pub(super) fn encode(e: &mut Emitter, from: (Value, i32), to: (Value, i32), depth: usize, codes: Codes) {
    let length = codes.block;
    let blocks = (depth / length) as i64;
    let (start, end, step) = (e.int(0), e.int(blocks), e.int(1));
    repeat(e, Range { start, end, step, runs: blocks > 0 }, &[], |e, block, _| {
        let within = |e: &mut Emitter, pointer: Value, each: usize| {
            let each = e.int(each as i64);
            let further = e.ins().imul(block, each);
            e.ins().iadd(pointer, further)
        };
        let source = within(e, from.0, 4 * length);
        let row: Vec<Value> =
            (0..length / LANES).map(|i| e.ins().load(F32X4, memory(), source, from.1 + 16 * i as i32)).collect();
        let mut largest = e.float_of(F32X4, SMALLEST);
        for x in &row {
            let x = e.ins().fabs(*x);
            largest = larger(e, x, largest);
        }
        for lanes in [[2, 3, 0, 1], [1, 0, 3, 2]] {
            let other = e.swizzle(largest, lanes);
            largest = larger(e, other, largest);
        }
        let most = e.float_of(F32X4, 127.0);
        let factor = e.ins().fdiv(most, largest);
        let inverse = e.float_of(F32X4, 1.0 / 127.0);
        let scale = e.ins().fmul(largest, inverse);
        let scale = e.ins().extractlane(scale, 0);
        // Added to this number, a smaller one is rounded to a whole one, which its last bits then are.
        let magic = e.float_of(F32X4, 12_582_912.0);
        let magic_bits = e.bits(magic);
        let mut sum = e.int_of(I32X4, 0);
        let bytes: Vec<Value> = row
            .iter()
            .map(|x| {
                let x = e.ins().fmul(*x, factor);
                let x = e.ins().fadd(x, magic);
                let x = e.bits(x);
                let code = e.ins().isub(x, magic_bits);
                sum = e.ins().iadd(sum, code);
                code
            })
            .collect();
        let target = within(e, to.0, length);
        for (i, four) in bytes.chunks(4).enumerate() {
            let (a, b) = (e.ins().snarrow(four[0], four[1]), e.ins().snarrow(four[2], four[3]));
            let bytes = e.ins().snarrow(a, b);
            e.ins().store(memory(), bytes, target, to.1 + 16 * i as i32);
        }
        for lanes in [[2, 3, 0, 1], [1, 0, 3, 2]] {
            let other = e.swizzle(sum, lanes);
            sum = e.ins().iadd(sum, other);
        }
        let sum = e.ins().extractlane(sum, 0);
        let sum = match codes.minimum {
            true => {
                let sum = e.ins().fcvt_from_sint(F32, sum);
                e.ins().fmul(scale, sum)
            }
            false => e.ins().imul_imm_s(sum, i64::from(-codes.offset)),
        };
        let target = within(e, to.0, 4);
        e.ins().store(memory(), scale, target, to.1 + depth as i32);
        e.ins().store(memory(), sum, target, to.1 + depth as i32 + 4 * blocks as i32);
        Vec::new()
    });
}

/// The larger of two numbers in each lane; the second where the first is none.
fn larger(e: &mut Emitter, a: Value, b: Value) -> Value {
    let above = e.fcmp(FloatCC::GreaterThan, a, b);
    let above = e.ins().bitcast(F32X4, MemFlagsData::new(), above);
    e.ins().bitselect(above, a, b)
}
