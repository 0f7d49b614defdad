//! Formats: how the operands of a [`Core`](super::Core) lie in memory.

use super::{Elem, PANEL};

/// How a panel is stored, and the rows that it is multiplied with.
///
/// A panel has `depth` rows of [`PANEL`] columns. [`Format::together`] neighbouring rows are interleaved column by column,
/// so that a column's neighbours fill a 32-bit word (of `F32` and `Bf16` panels: element `k`, `n` is element
/// `(k / T * PANEL + n) * T + k % T`).
///
/// `Q8` and `Q4` panels are of codes, bytes and halves of bytes, with a scale for each [`Format::block`] rows of a column:
/// a weight is `scale * (code - offset)`. Each block has its codes first: of `Q8` its element `k`, `n` is byte
/// `(k / 4 * PANEL + n) * 4 + k % 4`; of `Q4` it is in byte `(k / 8 * PANEL + n) * 4 + k % 4`, the lower half where `k / 4`
/// is even. Then the scales of the columns, as bf16. So memory is read in one stretch, whose continuation the machine
/// guesses. Behind the last block, up to a multiple of 64 bytes, is nothing.
///
/// A row of the other operand has `depth` floats (`F32`, or `Bf16` where the panel is), or where the panel is of codes:
/// `depth` signed bytes, for each block a scale as `F32`, then for each block the sum of its codes times `-offset` as
/// `I32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// Upper halves of 32-bit floats.
    Bf16,
    /// 8-bit codes, a scale for 64 of them.
    Q8,
    /// 4-bit codes, a scale for 32 of them.
    Q4,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 4] = [Format::F32, Format::Bf16, Format::Q8, Format::Q4];

    /// The unit of addresses in a panel and in the rows it is multiplied with. Of codes: bytes.
    pub const fn elem(self) -> Elem {
        match self {
            Format::F32 => Elem::F32,
            Format::Bf16 => Elem::Bf16,
            Format::Q8 | Format::Q4 => Elem::U8,
        }
    }

    /// How many neighbouring rows of a panel fill a word of each column's row; what a step of a core multiplies.
    pub const fn together(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Q8 | Format::Q4 => 4,
        }
    }

    /// What a depth is a multiple of; of codes, the rows that share a scale.
    pub const fn block(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Q8 => 64,
            Format::Q4 => 32,
        }
    }

    /// What is taken from a code.
    pub const fn offset(self) -> i32 {
        match self {
            Format::F32 | Format::Bf16 => 0,
            Format::Q8 => 128,
            Format::Q4 => 8,
        }
    }

    /// Whether values are codes with scales.
    pub const fn is_coded(self) -> bool {
        matches!(self, Format::Q8 | Format::Q4)
    }

    /// Bits of an element, without its share of a scale.
    pub const fn bits(self) -> usize {
        match self {
            Format::F32 => 32,
            Format::Bf16 => 16,
            Format::Q8 => 8,
            Format::Q4 => 4,
        }
    }

    /// Bytes of an element, with its share of a scale.
    pub fn bytes(self) -> f64 {
        let scale = if self.is_coded() { 2.0 / self.block() as f64 } else { 0.0 };
        self.bits() as f64 / 8.0 + scale
    }

    /// Units of the elements of a block; behind them, of codes, are their scales.
    pub const fn values(self) -> usize {
        self.block() * PANEL * self.bits() / 8 / self.elem().bytes()
    }

    /// Units of so many rows of a panel, whole blocks.
    pub const fn rows(self, depth: usize) -> usize {
        let scales = if self.is_coded() { 2 * PANEL } else { 0 };
        depth / self.block() * (self.values() + scales)
    }

    /// Units of a panel.
    pub const fn panel(self, depth: usize) -> usize {
        if self.is_coded() { self.rows(depth).next_multiple_of(64) } else { self.rows(depth) }
    }

    /// The floats of an element.
    pub const fn of(elem: Elem) -> Format {
        match elem {
            Elem::Bf16 => Format::Bf16,
            Elem::F32 | Elem::I32 | Elem::U8 => Format::F32,
        }
    }

    /// How many elements a unit has.
    pub const fn in_unit(self) -> usize {
        self.elem().bytes() * 8 / self.bits()
    }

    /// Units of a row that such a panel is multiplied with.
    pub const fn row(self, depth: usize) -> usize {
        if self.is_coded() { depth + depth / self.block() * 8 } else { depth }
    }
}

/// What a largest number counts as where all are smaller, so that its inverse is a number.
pub const SMALLEST: f32 = 1e-30;
