//! Rows of words at 128 bits, on every machine: their products with bytes, and their encoding.

use cranelift::codegen::ir::types::{I16X8, I32, I32X4, I64X2};
use cranelift::codegen::ir::{InstBuilder, Value};

use super::codes::{Blocks, LITTLE, factor, nearest, stretch};
use super::emit::{Emitter, memory};
use crate::format::{BYTE_OFFSET, MOST_WORD};
use crate::loops::LANES;

/// Adds the products of four words with four bytes to each lane: of the first and the third byte, then of the others.
pub(super) fn dot(e: &mut Emitter, mut sum: Value, (pointer, offset): (Value, i32), bytes: Value) -> Value {
    let bytes = e.ins().bitcast(I16X8, LITTLE, bytes);
    let lower = e.int_of(I32X4, 0x00ff_00ff);
    let lower = e.ins().bitcast(I16X8, LITTLE, lower);
    for (nth, halves) in [e.ins().band(bytes, lower), e.ushr(bytes, 8)].into_iter().enumerate() {
        let two = e.ins().load(I32, memory(), pointer, offset + 4 * nth as i32);
        let two = e.ins().splat(I32X4, two);
        let two = e.ins().bitcast(I16X8, LITTLE, two);
        sum = add_pairs(e, sum, two, halves);
    }
    sum
}

/// Adds the products of pairs of words to each lane. Written so that the products and their sum become one instruction on x86.
pub(super) fn add_pairs(e: &mut Emitter, sum: Value, a: Value, b: Value) -> Value {
    let low = (e.ins().swiden_low(a), e.ins().swiden_low(b));
    let low = e.ins().imul(low.0, low.1);
    let high = (e.ins().swiden_high(a), e.ins().swiden_high(b));
    let high = e.ins().imul(high.0, high.1);
    let pairs = e.ins().iadd_pairwise(low, high);
    e.ins().iadd(sum, pairs)
}

/// Emits the encoding of a row of floats as words, here.
pub(super) fn encode(e: &mut Emitter, from: (Value, i32), to: (Value, i32), blocks: &Blocks, block: usize) {
    blocks.each(e, |e, nth, own| {
        let (source, target) = (stretch(e, from, nth, 4 * block), stretch(e, to, own, 2 * block));
        let (factor, scale) = factor(e, source, block, MOST_WORD);
        let mut sum = e.int_of(I32X4, 0);
        for vector in 0..block / LANES {
            let four = nearest(e, source, vector, factor);
            sum = e.ins().iadd(sum, four);
            // Of each four the second and the third change places.
            let four = e.swizzle(four, [0, 2, 1, 3]);
            let words = e.ins().snarrow(four, four);
            let words = e.ins().bitcast(I64X2, LITTLE, words);
            let words = e.ins().extractlane(words, 0);
            e.ins().store(memory(), words, target.0, target.1 + 8 * vector as i32);
        }
        for lanes in [[2, 3, 0, 1], [1, 0, 3, 2]] {
            let other = e.swizzle(sum, lanes);
            sum = e.ins().iadd(sum, other);
        }
        let sum = e.ins().extractlane(sum, 0);
        let sum = e.ins().imul_imm_s(sum, i64::from(-BYTE_OFFSET));
        let (pointer, offset) = stretch(e, to, own, 4);
        let scales = offset + 2 * blocks.of as i32;
        e.ins().store(memory(), scale, pointer, scales);
        e.ins().store(memory(), sum, pointer, scales + 4 * (blocks.of / block) as i32);
    });
}
