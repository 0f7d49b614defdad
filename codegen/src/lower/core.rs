//! The contraction core: emitters of one contract.

use cranelift::codegen::ir::condcodes::IntCC;
use cranelift::codegen::ir::types::{F32, F32X4, I32X4};
use cranelift::codegen::ir::{InstBuilder, Value};

use super::affine::Affine;
use super::emit::{Emitter, Range, memory, repeat};
use crate::loops::{Elem, LANES, PANEL};

/// A core's operands, by address: a pointer, and the bytes to add to it.
pub(super) struct Operands {
    /// Each row of the first operand.
    pub(super) a: Vec<(Value, i32)>,
    /// The panel.
    pub(super) b: (Value, i32),
    /// Each row of the result.
    pub(super) c: Vec<(Value, i32)>,
    /// How the panel is stored.
    pub(super) b_elem: Elem,
    /// Whether to add to the result.
    pub(super) accumulate: bool,
}

/// A way to emit a contraction core.
pub(super) trait CoreEmitter {
    /// Emits the core, here.
    fn emit(&self, e: &mut Emitter, operands: &Operands, depth: Affine);
}

/// The emitter that serves best.
pub(super) fn emitter() -> &'static dyn CoreEmitter {
    &Clif
}

/// 128 bits wide, on every machine.
///
/// Cranelift's multiply-add overwrites a multiplicand, so an operand that several share has to be copied or loaded again
/// for each: the first operand is broadcast anew for each product, and the panel's vectors are shared.
struct Clif;

/// How many products are unrolled.
const UNROLL: i64 = 4;

impl CoreEmitter for Clif {
    fn emit(&self, e: &mut Emitter, operands: &Operands, depth: Affine) {
        // As many accumulators as leave registers for the operands: four rows take half of the columns at a time.
        let vectors = if operands.a.len() == 4 { 2 } else { PANEL / LANES };
        for first in (0..PANEL / LANES).step_by(vectors) {
            Tile { operands, first, vectors }.emit(e, &depth);
        }
    }
}

/// All rows of some columns.
struct Tile<'a> {
    operands: &'a Operands,
    /// The first vector of columns.
    first: usize,
    /// How many vectors.
    vectors: usize,
}

impl Tile<'_> {
    fn emit(&self, e: &mut Emitter, depth: &Affine) {
        let mut sums = Vec::new();
        for (pointer, offset) in &self.operands.c {
            for vector in self.first..self.first + self.vectors {
                sums.push(if self.operands.accumulate {
                    e.ins().load(F32X4, memory(), *pointer, offset + (vector * 16) as i32)
                } else {
                    e.float_of(F32X4, 0.0)
                });
            }
        }
        let panel = self.operands.b.0;
        let sums = match depth.as_constant() {
            Some(depth) => {
                let depth = depth.max(0);
                let whole = depth - depth % UNROLL;
                let zero = e.int(0);
                let (panel, mut sums) = if whole > 0 {
                    let end = e.int(whole * 4);
                    self.run(e, zero, end, true, UNROLL, panel, sums)
                } else {
                    (panel, sums)
                };
                let at = e.int(whole * 4);
                for k in 0..depth - whole {
                    self.product(e, at, panel, k, &mut sums);
                }
                sums
            }
            None => {
                let depth = depth.clone().emit(e);
                let zero = e.int(0);
                let positive = e.icmp(IntCC::SignedGreaterThan, depth, zero);
                let depth = e.select(positive, depth, zero);
                let mask = e.int(-UNROLL);
                let whole = e.ins().band(depth, mask);
                let whole = e.shl(whole, 2);
                let end = e.shl(depth, 2);
                let (panel, sums) = self.run(e, zero, whole, false, UNROLL, panel, sums);
                self.run(e, whole, end, false, 1, panel, sums).1
            }
        };
        let mut sums = sums.iter();
        for (pointer, offset) in &self.operands.c {
            for (vector, sum) in (self.first..self.first + self.vectors).zip(&mut sums) {
                e.ins().store(memory(), *sum, *pointer, offset + (vector * 16) as i32);
            }
        }
    }

    /// A loop over the products `from..to` (in bytes of the first operand), `unroll` at a time.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        e: &mut Emitter,
        start: Value,
        end: Value,
        runs: bool,
        unroll: i64,
        panel: Value,
        mut sums: Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let step = e.int(unroll * 4);
        sums.insert(0, panel);
        let mut carried = repeat(e, Range { start, end, step, runs }, &sums, |e, at, carried| {
            let panel = carried[0];
            let mut sums = carried[1..].to_vec();
            for k in 0..unroll {
                self.product(e, at, panel, k, &mut sums);
            }
            let bytes = e.int(unroll * i64::from(self.row_bytes()));
            sums.insert(0, e.ins().iadd(panel, bytes));
            sums
        });
        let panel = carried.remove(0);
        (panel, carried)
    }

    fn row_bytes(&self) -> i32 {
        PANEL as i32 * if self.operands.b_elem == Elem::Bf16 { 2 } else { 4 }
    }

    /// Adds the product number `k` from `at` on.
    fn product(&self, e: &mut Emitter, at: Value, panel: Value, k: i64, sums: &mut [Value]) {
        let panels = self.panel_vectors(e, panel, self.operands.b.1 + k as i32 * self.row_bytes());
        let mut sums = sums.iter_mut();
        let last = self.operands.a.len() - 1;
        for (i, (pointer, offset)) in self.operands.a.iter().enumerate() {
            let row = e.ins().iadd(*pointer, at);
            let a = e.ins().load(F32, memory(), row, offset + k as i32 * 4);
            let a = e.ins().splat(F32X4, a);
            for (panel, sum) in panels.iter().zip(&mut sums) {
                *sum = if i == last { e.ins().fma(*panel, a, *sum) } else { e.ins().fma(a, *panel, *sum) };
            }
        }
    }

    /// One row of the panel.
    fn panel_vectors(&self, e: &mut Emitter, panel: Value, offset: i32) -> Vec<Value> {
        let columns = self.first..self.first + self.vectors;
        if self.operands.b_elem != Elem::Bf16 {
            return columns.map(|v| e.ins().load(F32X4, memory(), panel, offset + v as i32 * 16)).collect();
        }
        let mut vectors = Vec::new();
        for group in columns.step_by(2) {
            let pairs = e.ins().load(I32X4, memory(), panel, offset + group as i32 * 8);
            let lower = e.shl(pairs, 16);
            let mask = e.int_of(I32X4, 0xffff_0000u32 as i32);
            let upper = e.ins().band(pairs, mask);
            vectors.push(e.from_bits(lower));
            vectors.push(e.from_bits(upper));
        }
        vectors
    }
}
