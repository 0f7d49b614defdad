//! The contraction core at 128 bits, on every machine.
//!
//! On x86 Cranelift's multiply-add overwrites a multiplicand (never the addend), and there are sixteen registers. So the
//! shape of a tile is chosen with care: each panel vector is overwritten by the last row that needs it, and there are no
//! more sums than leave registers for the operands.

use cranelift::codegen::ir::condcodes::IntCC;
use cranelift::codegen::ir::types::{F32, F32X4, I32, I32X4};
use cranelift::codegen::ir::{InstBuilder, Value};

use super::affine::Affine;
use super::emit::{Emitter, Range, memory, repeat};
use crate::format::{Format, PANEL};
use crate::loops::{Cores, LANES};

/// A core's operands, by address: a pointer, and the bytes to add to it.
pub(super) struct Operands {
    /// Each row of the first operand.
    pub(super) a: Vec<(Value, i32)>,
    /// The panel.
    pub(super) b: (Value, i32),
    /// Each row of the result.
    pub(super) c: Vec<(Value, i32)>,
    /// How the first operand is stored.
    pub(super) a_format: Format,
    /// How the panel is stored.
    pub(super) b_format: Format,
    /// Whether to add to the result.
    pub(super) accumulate: bool,
}

/// How many steps are unrolled.
const UNROLL: i64 = 4;

/// How many steps a tile goes before its neighbour takes over the same rows of the panel, while they are in the nearest
/// cache.
const CHUNK: i64 = 64;

/// Bytes of the panel that a step takes: of each column as many neighbours as fill 32 bits.
const STEP: i64 = 4 * PANEL as i64;

/// Rows that are taken at once.
const ROWS: usize = Cores::PORTABLE.rows();

/// Emits the core, here.
pub(super) fn emit(e: &mut Emitter, operands: &Operands, depth: Affine) {
    let depth = match depth.as_constant() {
        Some(depth) => Affine::constant(depth.max(0)),
        None => {
            let (depth, zero) = (depth.emit(e), e.int(0));
            let positive = e.icmp(IntCC::SignedGreaterThan, depth, zero);
            Affine::value(e.select(positive, depth, zero))
        }
    };
    let steps = match (operands.together(), depth.as_constant()) {
        (1, _) => depth,
        (together, Some(depth)) => Affine::constant(depth / together),
        (together, None) => {
            let depth = depth.emit(e);
            Affine::value(e.ushr(depth, together.trailing_zeros()))
        }
    };
    for (a, c) in operands.a.chunks(ROWS).zip(operands.c.chunks(ROWS)) {
        let operands = Operands { a: a.to_vec(), c: c.to_vec(), ..*operands };
        if a.len() < 3 {
            let tile = Tile { operands: &operands, first: 0, vectors: PANEL / LANES };
            let sums = tile.start(e, operands.accumulate);
            let (_, sums) = tile.products(e, operands.b.0, None, &steps, sums);
            tile.finish(e, &sums);
        } else {
            halves(e, &operands, &steps);
        }
    }
}

impl Operands {
    /// Products of each sum in a step.
    fn together(&self) -> i64 {
        self.b_format.together() as i64
    }

    /// Bytes of a row of the first operand that a step takes.
    fn a_step(&self) -> i64 {
        self.together() * self.a_format.elem().bytes() as i64
    }
}

/// Three or four rows, half of the columns at a time: all would take too many registers.
fn halves(e: &mut Emitter, operands: &Operands, steps: &Affine) {
    let tiles = [0, 2].map(|first| Tile { operands, first, vectors: 2 });
    let constant = steps.as_constant();
    if constant.is_some_and(|steps| steps <= CHUNK) {
        for tile in &tiles {
            let sums = tile.start(e, operands.accumulate);
            let (_, sums) = tile.products(e, operands.b.0, None, steps, sums);
            tile.finish(e, &sums);
        }
        return;
    }
    if !operands.accumulate {
        for tile in &tiles {
            let zeros = tile.start(e, false);
            tile.finish(e, &zeros);
        }
    }
    let chunk = |e: &mut Emitter, panel: Value, at: Value, steps: &Affine| {
        for tile in &tiles {
            let sums = tile.start(e, true);
            let (_, sums) = tile.products(e, panel, Some(at), steps, sums);
            tile.finish(e, &sums);
        }
    };
    // In bytes of a row of the first operand: whole chunks, and what is left.
    let a_step = operands.a_step();
    let (whole, rest) = match constant {
        Some(steps) => (e.int(steps / CHUNK * CHUNK * a_step), Affine::constant(steps % CHUNK)),
        None => {
            let steps = steps.clone().emit(e);
            let mask = e.int(-CHUNK);
            let whole = e.ins().band(steps, mask);
            (e.shl(whole, a_step.trailing_zeros()), Affine::value(e.ins().isub(steps, whole)))
        }
    };
    let (start, step) = (e.int(0), e.int(CHUNK * a_step));
    let range = Range { start, end: whole, step, runs: constant.is_some() };
    let times = (STEP / a_step).trailing_zeros();
    repeat(e, range, &[], |e, at, _| {
        let further = e.shl(at, times);
        let panel = e.ins().iadd(operands.b.0, further);
        chunk(e, panel, at, &Affine::constant(CHUNK));
        Vec::new()
    });
    if rest != Affine::constant(0) {
        let further = e.shl(whole, times);
        let panel = e.ins().iadd(operands.b.0, further);
        chunk(e, panel, whole, &rest);
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
    /// How many chains of additions each sum has: two where one for each would be so few that they wait for each other, and
    /// where all still fit into registers.
    fn chains(&self) -> usize {
        if self.operands.c.len() * self.vectors <= 4 { 2 } else { 1 }
    }

    /// What is added to, chain by chain.
    fn start(&self, e: &mut Emitter, accumulate: bool) -> Vec<Value> {
        let mut sums = Vec::new();
        for (pointer, offset) in &self.operands.c {
            for vector in self.first..self.first + self.vectors {
                sums.push(if accumulate {
                    e.ins().load(F32X4, memory(), *pointer, offset + (vector * 16) as i32)
                } else {
                    e.float_of(F32X4, 0.0)
                });
            }
        }
        let zero = e.float_of(F32X4, 0.0);
        sums.resize(self.chains() * sums.len(), zero);
        sums
    }

    fn finish(&self, e: &mut Emitter, sums: &[Value]) {
        let count = self.operands.c.len() * self.vectors;
        let sums: Vec<Value> = match sums.split_at(count) {
            (sums, []) => sums.to_vec(),
            (even, odd) => even.iter().zip(odd).map(|(a, b)| e.ins().fadd(*a, *b)).collect(),
        };
        let mut sums = sums.iter();
        for (pointer, offset) in &self.operands.c {
            for (vector, sum) in (self.first..self.first + self.vectors).zip(&mut sums) {
                e.ins().store(memory(), *sum, *pointer, offset + (vector * 16) as i32);
            }
        }
    }

    /// Adds the products of so many steps, from a place of the panel and `from` bytes into the rows on.
    fn products(
        &self,
        e: &mut Emitter,
        panel: Value,
        from: Option<Value>,
        steps: &Affine,
        sums: Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let start = from.unwrap_or_else(|| e.int(0));
        let from = Affine::value(start);
        let (whole, rest) = match steps.as_constant() {
            Some(steps) => (Affine::constant(steps - steps % UNROLL), Some(steps % UNROLL)),
            None => {
                let steps = steps.clone().emit(e);
                let mask = e.int(-UNROLL);
                (Affine::value(e.ins().band(steps, mask)), None)
            }
        };
        let a_step = self.operands.a_step();
        let middle = whole.times(a_step).plus(&from).emit(e);
        let (panel, sums) = self.run(e, (start, middle), rest.is_some(), UNROLL, panel, sums);
        match rest {
            Some(rest) => {
                let mut sums = sums;
                for k in 0..rest {
                    self.step(e, middle, panel, k, &mut sums);
                }
                (panel, sums)
            }
            None => {
                let end = steps.clone().times(a_step).plus(&from).emit(e);
                self.run(e, (middle, end), false, 1, panel, sums)
            }
        }
    }

    /// A loop over the steps between two places in the rows, `unroll` at a time.
    fn run(
        &self,
        e: &mut Emitter,
        (start, end): (Value, Value),
        runs: bool,
        unroll: i64,
        panel: Value,
        mut sums: Vec<Value>,
    ) -> (Value, Vec<Value>) {
        if runs && start == end {
            return (panel, sums);
        }
        let step = e.int(unroll * self.operands.a_step());
        sums.insert(0, panel);
        let mut carried = repeat(e, Range { start, end, step, runs }, &sums, |e, at, carried| {
            let panel = carried[0];
            let mut sums = carried[1..].to_vec();
            for k in 0..unroll {
                self.step(e, at, panel, k, &mut sums);
            }
            let bytes = e.int(unroll * STEP);
            sums.insert(0, e.ins().iadd(panel, bytes));
            sums
        });
        let panel = carried.remove(0);
        (panel, carried)
    }

    /// Adds the products of the step number `k` from `at` on.
    fn step(&self, e: &mut Emitter, at: Value, panel: Value, k: i64, sums: &mut [Value]) {
        let rows = self.operands.a.len();
        let offset = self.operands.b.1 + (k * STEP) as i32;
        let add = |e: &mut Emitter, sums: &mut [Value], nth: usize, row: usize, vector: usize, a: Value, b: Value| {
            let chain = (k as usize * self.operands.together() as usize + nth) % self.chains();
            let sum = &mut sums[(chain * rows + row) * self.vectors + vector];
            *sum = if row + 1 == rows { e.ins().fma(b, a, *sum) } else { e.ins().fma(a, b, *sum) };
        };
        // Whichever are fewer, the broadcasts or the panel's vectors, are held while the others pass.
        if rows < 3 {
            let a: Vec<Vec<Value>> = (0..rows).map(|row| self.broadcasts(e, at, row, k)).collect();
            for vector in 0..self.vectors {
                for (nth, b) in self.panel_vectors(e, panel, offset, vector).into_iter().enumerate() {
                    for (row, a) in a.iter().enumerate() {
                        add(e, sums, nth, row, vector, a[nth], b);
                    }
                }
            }
        } else {
            let b: Vec<Vec<Value>> =
                (0..self.vectors).map(|vector| self.panel_vectors(e, panel, offset, vector)).collect();
            for row in 0..rows {
                for (nth, a) in self.broadcasts(e, at, row, k).into_iter().enumerate() {
                    for (vector, b) in b.iter().enumerate() {
                        add(e, sums, nth, row, vector, a, b[nth]);
                    }
                }
            }
        }
    }

    /// The numbers of a row that a step multiplies with, each in every lane.
    fn broadcasts(&self, e: &mut Emitter, at: Value, row: usize, k: i64) -> Vec<Value> {
        let (pointer, offset) = self.operands.a[row];
        let pointer = e.ins().iadd(pointer, at);
        let offset = offset + (k * self.operands.a_step()) as i32;
        match self.operands.a_format {
            Format::Bf16 => {
                let pair = e.ins().load(I32, memory(), pointer, offset);
                let pairs = e.ins().splat(I32X4, pair);
                self.apart(e, pairs)
            }
            _ => (0..self.operands.together() as i32)
                .map(|nth| {
                    let a = e.ins().load(F32, memory(), pointer, offset + 4 * nth);
                    e.ins().splat(F32X4, a)
                })
                .collect(),
        }
    }

    /// Four columns of the panel: of each of its rows that lie together.
    fn panel_vectors(&self, e: &mut Emitter, panel: Value, offset: i32, vector: usize) -> Vec<Value> {
        let offset = offset + (self.first + vector) as i32 * 16;
        if self.operands.b_format != Format::Bf16 {
            return vec![e.ins().load(F32X4, memory(), panel, offset)];
        }
        let pairs = e.ins().load(I32X4, memory(), panel, offset);
        self.apart(e, pairs)
    }

    /// The lower and the upper halves of 32 bits as floats.
    fn apart(&self, e: &mut Emitter, pairs: Value) -> Vec<Value> {
        let lower = e.shl(pairs, 16);
        let mask = e.int_of(I32X4, 0xffff_0000u32 as i32);
        let upper = e.ins().band(pairs, mask);
        vec![e.as_floats(lower), e.as_floats(upper)]
    }
}
