//! Numbers of 16 bits at 128 bits, on every machine: the contraction core of them, the unpacking of panels of bf16, and the
//! encoding of rows.

use cranelift::codegen::ir::types::{F32, F32X4, I16X8, I32, I32X4};
use cranelift::codegen::ir::{InstBuilder, Value};

use super::codes::{Blocks, LITTLE, factor, larger, nearest, stretch};
use super::core::Operands;
use super::emit::{Emitter, Range, memory, repeat};
use super::words::add_pairs;
use crate::format::{Format, MOST_OF_PANEL, MOST_OF_ROW, PANEL, ROUND, SMALLEST};
use crate::loops::LANES;

/// Rows that are taken at once.
const ROWS: usize = 2;

/// Vectors of the panel's columns.
const VECTORS: usize = PANEL / LANES;

/// Numbers that share a scale.
const BLOCK: usize = Format::I16.block();

/// Pairs of rows of a block.
const PAIRS: usize = BLOCK / 2;

/// Bytes of a panel that a pair of rows takes.
const STEP: usize = 4 * PANEL;

/// Emits a core, here.
pub(super) fn emit(e: &mut Emitter, operands: &Operands, depth: usize) {
    for (a, c) in operands.a.chunks(ROWS).zip(operands.c.chunks(ROWS)) {
        let places = c.iter().flat_map(|(pointer, at)| (0..VECTORS as i32).map(move |v| (*pointer, at + 16 * v)));
        let sums: Vec<Value> = places
            .clone()
            .map(|(pointer, at)| match operands.accumulate {
                true => e.ins().load(F32X4, memory(), pointer, at),
                false => e.float_of(F32X4, 0.0),
            })
            .collect();
        let sums = times(e, depth / BLOCK, &sums, |e, block, sums| add_block(e, (a, operands.b), depth, block, sums));
        for ((pointer, at), sum) in places.zip(sums) {
            e.ins().store(memory(), sum, pointer, at);
        }
    }
}

/// Does something so many times.
fn times(
    e: &mut Emitter,
    turns: usize,
    carried: &[Value],
    body: impl FnOnce(&mut Emitter, Value, &[Value]) -> Vec<Value>,
) -> Vec<Value> {
    let [start, end, step] = [0, turns, 1].map(|turn| e.int(turn as i64));
    repeat(e, Range { start, end, step, runs: turns > 0 }, carried, body)
}

/// Adds the products of some rows' block with a panel's to sums.
fn add_block(
    e: &mut Emitter,
    (a, b): (&[(Value, i32)], (Value, i32)),
    depth: usize,
    block: Value,
    sums: &[Value],
) -> Vec<Value> {
    let rows: Vec<(Value, i32)> = a.iter().map(|row| stretch(e, *row, block, 2 * BLOCK)).collect();
    let panel = stretch(e, b, block, Format::I16.rows(BLOCK));
    let zero = e.int_of(I32X4, 0);
    let products = times(e, PAIRS, &vec![zero; sums.len()], |e, step, sums| {
        let (panel, mut sums) = (stretch(e, panel, step, STEP), sums.to_vec());
        for (row, sums) in rows.iter().zip(sums.chunks_mut(VECTORS)) {
            let (pointer, at) = stretch(e, *row, step, 4);
            let two = e.ins().load(I32, memory(), pointer, at);
            let two = e.ins().splat(I32X4, two);
            let two = e.ins().bitcast(I16X8, LITTLE, two);
            for (vector, sum) in sums.iter_mut().enumerate() {
                let numbers = e.ins().load(I16X8, memory(), panel.0, panel.1 + 16 * vector as i32);
                *sum = add_pairs(e, *sum, two, numbers);
            }
        }
        sums
    });
    let mut results = Vec::new();
    for (row, (sums, products)) in a.iter().zip(sums.chunks(VECTORS).zip(products.chunks(VECTORS))) {
        let (pointer, at) = stretch(e, *row, block, 4);
        let of_row = e.ins().load(F32, memory(), pointer, at + 2 * depth as i32);
        let of_row = e.ins().splat(F32X4, of_row);
        for (vector, (sum, product)) in sums.iter().zip(products).enumerate() {
            let at = panel.1 + (Format::I16.values() + 16 * vector) as i32;
            let scale = e.ins().load(F32X4, memory(), panel.0, at);
            let scale = e.ins().fmul(scale, of_row);
            let product = e.ins().fcvt_from_sint(F32X4, *product);
            results.push(e.ins().fma(scale, product, *sum));
        }
    }
    results
}

/// Emits the unpacking of a panel of bf16, here.
pub(super) fn unpack(e: &mut Emitter, from: (Value, i32), to: (Value, i32), depth: usize) {
    times(e, depth / BLOCK, &[], |e, block, _| {
        let from = stretch(e, from, block, PAIRS * STEP);
        let to = stretch(e, to, block, Format::I16.rows(BLOCK));
        for vector in 0..VECTORS {
            let at = 16 * vector as i32;
            let least = e.int_of(I32X4, SMALLEST.to_bits() as i32);
            let largest = times(e, PAIRS, &[least], |e, step, largest| {
                let both = both(e, from, step, at);
                vec![both.into_iter().fold(largest[0], |largest, x| larger(e, x, largest))]
            });
            let largest = e.as_floats(largest[0]);
            let (most, inverse) = (e.float_of(F32X4, MOST_OF_PANEL), e.float_of(F32X4, 1.0 / MOST_OF_PANEL));
            let factor = e.ins().fdiv(most, largest);
            times(e, PAIRS, &[], |e, step, _| {
                let round = e.float_of(F32X4, ROUND);
                let [lower, upper] = both(e, from, step, at).map(|x| {
                    let x = e.as_floats(x);
                    let number = e.ins().fma(x, factor, round);
                    e.bits(number)
                });
                let mask = e.int_of(I32X4, 0xffff);
                let lower = e.ins().band(lower, mask);
                let upper = e.shl(upper, 16);
                let numbers = e.ins().bor(lower, upper);
                let (pointer, first) = stretch(e, to, step, STEP);
                e.ins().store(memory(), numbers, pointer, first + at);
                Vec::new()
            });
            let scale = e.ins().fmul(largest, inverse);
            e.ins().store(memory(), scale, to.0, to.1 + Format::I16.values() as i32 + at);
        }
        Vec::new()
    });
}

/// Two neighbouring rows of a panel of bf16, as the bits of floats: of four columns, from a byte of the step on.
fn both(e: &mut Emitter, panel: (Value, i32), step: Value, at: i32) -> [Value; 2] {
    let (pointer, first) = stretch(e, panel, step, STEP);
    let two = e.ins().load(I32X4, memory(), pointer, first + at);
    let upper = e.int_of(I32X4, 0xffff_0000_u32 as i32);
    [e.shl(two, 16), e.ins().band(two, upper)]
}

/// Emits the encoding of a row of floats, here.
pub(super) fn encode(e: &mut Emitter, from: (Value, i32), to: (Value, i32), blocks: &Blocks) {
    blocks.each(e, |e, nth, block| {
        let (source, target) = (stretch(e, from, nth, 4 * BLOCK), stretch(e, to, block, 2 * BLOCK));
        let (factor, scale) = factor(e, source, BLOCK, MOST_OF_ROW);
        for eight in 0..BLOCK / 8 {
            let [lower, upper] = [0, 1].map(|nth| nearest(e, source, 2 * eight + nth, factor));
            let numbers = e.ins().snarrow(lower, upper);
            e.ins().store(memory(), numbers, target.0, target.1 + 16 * eight as i32);
        }
        let (pointer, at) = stretch(e, to, block, 4);
        e.ins().store(memory(), scale, pointer, at + 2 * blocks.of as i32);
    });
}
