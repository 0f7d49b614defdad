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
/// On x86 Cranelift's multiply-add overwrites a multiplicand (never the addend), and there are sixteen registers. So the
/// shape of a tile is chosen with care: each panel vector is overwritten by the last row that needs it, and there are no
/// more sums than leave registers for the operands.
struct Clif;

/// How many products are unrolled.
const UNROLL: i64 = 4;

/// How deep a tile goes before its neighbour takes over the same rows of the panel, while they are in the nearest cache.
const CHUNK: i64 = 64;

impl CoreEmitter for Clif {
    fn emit(&self, e: &mut Emitter, operands: &Operands, depth: Affine) {
        let depth = match depth.as_constant() {
            Some(depth) => Affine::constant(depth.max(0)),
            None => {
                let (depth, zero) = (depth.emit(e), e.int(0));
                let positive = e.icmp(IntCC::SignedGreaterThan, depth, zero);
                Affine::value(e.select(positive, depth, zero))
            }
        };
        if operands.a.len() < 3 {
            let tile = Tile { operands, first: 0, vectors: PANEL / LANES };
            let sums = tile.start(e, operands.accumulate);
            let (_, sums) = tile.products(e, operands.b.0, None, &depth, sums);
            return tile.finish(e, &sums);
        }
        halves(e, operands, &depth);
    }
}

/// Three or four rows, half of the columns at a time: all would take too many registers.
fn halves(e: &mut Emitter, operands: &Operands, depth: &Affine) {
    let tiles = [0, 2].map(|first| Tile { operands, first, vectors: 2 });
    let constant = depth.as_constant();
    if constant.is_some_and(|depth| depth <= CHUNK) {
        for tile in &tiles {
            let sums = tile.start(e, operands.accumulate);
            let (_, sums) = tile.products(e, operands.b.0, None, depth, sums);
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
    let row_bytes = tiles[0].row_bytes();
    let chunk = |e: &mut Emitter, panel: Value, at: Value, depth: &Affine| {
        for tile in &tiles {
            let sums = tile.start(e, true);
            let (_, sums) = tile.products(e, panel, Some(at), depth, sums);
            tile.finish(e, &sums);
        }
    };
    // The panel's rows and, in bytes of the first operand, how far it has come.
    let (whole, rest) = match constant {
        Some(depth) => (e.int(depth / CHUNK * CHUNK * 4), Affine::constant(depth % CHUNK)),
        None => {
            let depth = depth.clone().emit(e);
            let mask = e.int(-CHUNK);
            let whole = e.ins().band(depth, mask);
            (e.shl(whole, 2), Affine::value(e.ins().isub(depth, whole)))
        }
    };
    let (start, step) = (e.int(0), e.int(CHUNK * 4));
    let range = Range { start, end: whole, step, runs: constant.is_some() };
    let times = (row_bytes / 4).trailing_zeros();
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

    /// Adds `depth` products, from a place of the panel and `from` bytes into the rows on.
    fn products(
        &self,
        e: &mut Emitter,
        panel: Value,
        from: Option<Value>,
        depth: &Affine,
        sums: Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let start = from.unwrap_or_else(|| e.int(0));
        let from = Affine::value(start);
        let (whole, rest) = match depth.as_constant() {
            Some(depth) => (Affine::constant(depth - depth % UNROLL), Some(depth % UNROLL)),
            None => {
                let depth = depth.clone().emit(e);
                let mask = e.int(-UNROLL);
                (Affine::value(e.ins().band(depth, mask)), None)
            }
        };
        let middle = whole.times(4).plus(&from).emit(e);
        let (panel, sums) = self.run(e, (start, middle), rest.is_some(), UNROLL, panel, sums);
        match rest {
            Some(rest) => {
                let mut sums = sums;
                for k in 0..rest {
                    self.product(e, middle, panel, k, &mut sums);
                }
                (panel, sums)
            }
            None => {
                let end = depth.clone().times(4).plus(&from).emit(e);
                self.run(e, (middle, end), false, 1, panel, sums)
            }
        }
    }

    /// A loop over the products between two places in the rows, `unroll` at a time.
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
        let offset = self.operands.b.1 + k as i32 * self.row_bytes();
        let rows = self.operands.a.len();
        let broadcast = |e: &mut Emitter, row: usize| {
            let (pointer, offset) = self.operands.a[row];
            let pointer = e.ins().iadd(pointer, at);
            let a = e.ins().load(F32, memory(), pointer, offset + k as i32 * 4);
            e.ins().splat(F32X4, a)
        };
        let chain = k as usize % self.chains();
        let sums = &mut sums[chain * rows * self.vectors..][..rows * self.vectors];
        let add = |e: &mut Emitter, sum: &mut Value, row: usize, a: Value, b: Value| {
            *sum = if row + 1 == rows { e.ins().fma(b, a, *sum) } else { e.ins().fma(a, b, *sum) };
        };
        let pair = if self.operands.b_elem == Elem::Bf16 { 2 } else { 1 };
        let groups = (0..self.vectors).step_by(pair);
        // Whichever are fewer, the broadcasts or the panel's vectors, are held while the others pass.
        if rows < 3 {
            let a: Vec<Value> = (0..rows).map(|row| broadcast(e, row)).collect();
            for group in groups {
                for (i, b) in self.panel_vectors(e, panel, offset, self.first + group).into_iter().enumerate() {
                    for (row, a) in a.iter().enumerate() {
                        add(e, &mut sums[row * self.vectors + group + i], row, *a, b);
                    }
                }
            }
        } else {
            let b: Vec<Value> =
                groups.flat_map(|group| self.panel_vectors(e, panel, offset, self.first + group)).collect();
            for (row, sums) in sums.chunks_mut(self.vectors).enumerate() {
                let a = broadcast(e, row);
                for (sum, b) in sums.iter_mut().zip(&b) {
                    add(e, sum, row, a, *b);
                }
            }
        }
    }

    /// One vector of a row of the panel, or the two that are stored together.
    fn panel_vectors(&self, e: &mut Emitter, panel: Value, offset: i32, vector: usize) -> Vec<Value> {
        if self.operands.b_elem != Elem::Bf16 {
            return vec![e.ins().load(F32X4, memory(), panel, offset + vector as i32 * 16)];
        }
        let pairs = e.ins().load(I32X4, memory(), panel, offset + vector as i32 * 8);
        let lower = e.shl(pairs, 16);
        let mask = e.int_of(I32X4, 0xffff_0000u32 as i32);
        let upper = e.ins().band(pairs, mask);
        vec![e.as_floats(lower), e.as_floats(upper)]
    }
}
