//! Formats: how values lie in memory, weights and caches in panels, and the rows that a [`Core`](crate::loops::Core) multiplies
//! with them.

/// How many columns a panel has: the width at which the second operand of a [`Core`](crate::loops::Core) is interleaved.
pub const PANEL: usize = 16;

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// A 32-bit float.
    F32,
    /// A 32-bit float's upper half; stored rounded to nearest, ties to even.
    Bf16,
    /// A 32-bit integer.
    I32,
    /// A byte. Loaded as an integer; of a float the nearest whole number that it holds is stored, ties to even (of what is no
    /// number, any).
    U8,
}

impl Elem {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Elem::F32 | Elem::I32 => 4,
            Elem::Bf16 => 2,
            Elem::U8 => 1,
        }
    }
}

/// How a panel is stored, and the rows that it is multiplied with.
///
/// A panel has `depth` rows of [`PANEL`] columns. [`Format::together`] neighbouring rows are interleaved column by column,
/// so that a column's neighbours fill a 32-bit word (of `F32` and `Bf16` panels: element `k`, `n` is element
/// `(k / T * PANEL + n) * T + k % T`).
///
/// A panel of codes has blocks of [`Format::block`] rows: of each first the codes, plane by plane (see [`Codes::planes`]), then
/// as bf16 the scales of the columns, then, where there are, their minima, then, where there are, the steps and zeros of the
/// columns, a byte for both: part by part, the step in the lower half. So memory is read in one stretch, whose continuation
/// the machine guesses. Behind the last block, up to a multiple of 64 bytes, is nothing.
///
/// A row of the other operand has `depth` floats (`F32`, or `Bf16` where the panel is), or where the panel is of codes:
/// `depth` signed bytes, for each block a scale as `F32`, then for each block the sum of its bytes as `F32`: times `offset` and
/// taken from [`ROUND`], or where there are minima times the row's scale. Where there are steps, the offset is that of the bytes
/// that panels are unpacked to, and behind these sums are those of the parts: the sum of a part's bytes, times -1, as `I32`. So a
/// row goes with panels of both kinds.
///
/// Of `I16` a block of a panel has its numbers, then the columns' scales as `F32`; a row has `depth` numbers, then for each block a
/// scale as `F32`.
///
/// A sum that is taken from [`ROUND`] is where the sum of a block's products begins, added up as whole numbers: in the end its bits
/// are those of a float, which is [`ROUND`] more than what the block adds up to. So it needs no conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// Upper halves of 32-bit floats.
    Bf16,
    /// Codes with scales.
    Codes(Codes),
    /// A row of words, no panel: whole numbers of 16 bits, of which so many share a scale. See [`Format::words`].
    Words(usize),
    /// Whole numbers of 16 bits, of which [`Format::block`] neighbours share a scale: block floating point. As what is stored as
    /// bf16 is multiplied where pairs of such numbers are multiplied faster than floats are, and bf16 is not. Those of a panel are
    /// at most [`MOST_OF_PANEL`], those of a row [`MOST_OF_ROW`], so that 32 bits hold what a block adds up to.
    I16,
}

/// Codes of a few bits, of which the rows of a block share a scale for each column. A weight is
///
/// ```text
/// w[k, n] = scale[k / block, n] * (level[code[k, n]] - offset) + minimum[k / block, n]
/// ```
///
/// where `level` is the identity if there are no `levels`, and `minimum` is 0 if there are none. With `steps` it is
///
/// ```text
/// w[k, n] = scale[k / block, n] * step[k / steps, n] * (code[k, n] - zero[k / steps, n])
/// ```
///
/// This is an equation of the graph, which the rule `prologue` takes into the kernels that read the weight. The cores, the packing
/// and the cost follow from this declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Codes {
    /// The format's name in texts.
    pub name: &'static str,
    /// Bits of a code: a power of two, or a sum of two.
    pub bits: usize,
    /// How many neighbouring rows of a column share a scale: a multiple of 16, at most 256.
    pub block: usize,
    /// What is taken from a level. A power of two; 0 where there are minima.
    pub offset: i32,
    /// Whether each block has a minimum.
    pub minimum: bool,
    /// What the codes, of four bits, stand for. Level and `offset` together are at least 0 and fit into a byte.
    pub levels: Option<&'static [i8; 16]>,
    /// How many neighbouring rows of a column share a step and a zero, two numbers of four bits, if they do: a part of a block.
    /// `step * (code - zero)` is at least -128 and at most 127.
    pub steps: Option<usize>,
}

/// An element in codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Element {
    /// Its code.
    pub code: u8,
    /// The byte of its step and zero, the step in the lower half; 0 where there are none.
    pub part: u8,
    /// The scale of its block.
    pub scale: f32,
    /// The minimum of its block; 0 where there are none.
    pub minimum: f32,
}

/// Some bits of each code: two planes of 4 and 2 bits have the lower and the upper bits of codes of 6.
///
/// A plane has words, a word for each column in turn, whose bytes are of four neighbouring rows. The lowest bits of a byte are of
/// the first such four, the next of the second, until the byte is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// How many.
    pub bits: usize,
    /// Which: those from this one on.
    pub shift: usize,
    /// Where the plane begins in a block, in bytes.
    pub at: usize,
}

/// What the blocks of a stored weight hold: `scale * value + minimum`, the value a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// How many neighbours share a scale.
    pub block: usize,
    /// The least value.
    pub least: i8,
    /// The greatest.
    pub most: i8,
    /// Whether there are minima. Then no value is negative.
    pub minimum: bool,
    /// The values, where they are uneven.
    pub levels: Option<&'static [i8; 16]>,
}

/// The levels of the IQ4 formats of ggml.
pub const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of a float of four bits, one of them the mantissa's (E2M1).
pub const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

const fn codes(name: &'static str, bits: usize, block: usize, offset: i32) -> Format {
    Format::Codes(Codes { name, bits, block, offset, minimum: false, levels: None, steps: None })
}

const fn with_minima(name: &'static str, bits: usize, block: usize) -> Format {
    Format::Codes(Codes { name, bits, block, offset: 0, minimum: true, levels: None, steps: None })
}

const fn of_levels(name: &'static str, levels: &'static [i8; 16], block: usize, offset: i32) -> Format {
    Format::Codes(Codes { name, bits: 4, block, offset, minimum: false, levels: Some(levels), steps: None })
}

const fn in_steps(name: &'static str, block: usize) -> Format {
    Format::Codes(Codes { name, bits: 4, block, offset: 0, minimum: false, levels: None, steps: Some(32) })
}

impl Format {
    /// 8-bit codes, a scale for 64 of them: 8.25 bits. With a scale for 192 or 256, activations lose more than weights: a small
    /// model's perplexity rose by 2.65 % in place of 0.12 %.
    pub const Q8: Format = codes("q8", 8, 64, 128);
    /// 4-bit codes, a step and a zero for 32 of them, a scale for as many as there can be (see [`Format::fitting`]): 4.31 bits,
    /// with 256 of them.
    pub const Q4: Format = Self::IN_STEPS[0].0;

    /// Codes in steps, the longest blocks first; and what they are unpacked to.
    const IN_STEPS: [(Format, Format); 4] = [
        (in_steps("q4", 256), codes("q8_256", 8, 256, 128)),
        (in_steps("q4_192", 192), codes("q8_192", 8, 192, 128)),
        (in_steps("q4_128", 128), codes("q8_128", 8, 128, 128)),
        (in_steps("q4_64", 64), Self::Q8),
    ];

    /// All of them.
    pub const ALL: [Format; 24] = [
        Format::F32,
        Format::Bf16,
        Format::Q8,
        Format::Q4,
        Self::IN_STEPS[1].0,
        Self::IN_STEPS[2].0,
        Self::IN_STEPS[3].0,
        Self::IN_STEPS[0].1,
        Self::IN_STEPS[1].1,
        Self::IN_STEPS[2].1,
        codes("q4_32", 4, 32, 8),
        of_levels("iq4", &IQ4, 32, 128),
        of_levels("mxfp4", &E2M1, 32, 16),
        of_levels("nvfp4", &E2M1, 16, 16),
        with_minima("q2_16_min", 2, 16),
        codes("q4_16", 4, 16, 8),
        with_minima("q4_min", 4, 32),
        codes("q5", 5, 32, 16),
        with_minima("q5_min", 5, 32),
        codes("q6_16", 6, 16, 32),
        codes("q8_32", 8, 32, 128),
        Format::Words(32),
        Format::Words(64),
        Format::I16,
    ];

    /// The format of the fewest bits whose codes can be the values of this grid. `None` if there is none.
    pub fn holding(grid: &Grid) -> Option<Format> {
        let holds = |format: &&Format| format.codes().is_some_and(|codes| codes.holds(grid));
        Self::ALL.iter().filter(holds).min_by(|a, b| a.bytes().total_cmp(&b.bytes())).copied()
    }

    /// The same with other blocks, where that serves so many rows: the longest that they are a multiple of.
    pub fn fitting(self, rows: usize) -> Format {
        let fits = |format: &Format| self != self.unpacked() && rows.is_multiple_of(format.block());
        Self::IN_STEPS.into_iter().map(|(format, _)| format).find(fits).unwrap_or(self)
    }

    /// Whether any numbers can be stored so, as the nearest: `Q8`, and `Q4` in blocks of any length.
    pub fn is_nearest(self) -> bool {
        self == Self::Q8 || self != self.unpacked()
    }

    /// The bytes that panels are unpacked to, see [`Unpack`](crate::loops::Unpack): those of codes in steps; others are what they are.
    pub fn unpacked(self) -> Format {
        Self::IN_STEPS.into_iter().find(|(format, _)| *format == self).map_or(self, |(_, unpacked)| unpacked)
    }

    /// The rows of words that panels of bytes can be multiplied with: `depth` words, of each four the first, the third, the
    /// second and the fourth, as the halves of a panel's words come; for each block a scale as `F32`, then for each block the
    /// sum of its words times `-`[`BYTE_OFFSET`] as `I32`.
    pub fn words(self) -> Option<Format> {
        let bytes = self.codes().filter(|codes| codes.are_bytes() && codes.are_signed())?;
        Self::ALL.into_iter().find(|format| *format == Format::Words(bytes.block))
    }

    /// The unit of addresses in a panel and in the rows it is multiplied with. Of codes and words: bytes.
    pub const fn elem(self) -> Elem {
        match self {
            Format::F32 => Elem::F32,
            Format::Bf16 => Elem::Bf16,
            Format::Codes(_) | Format::Words(_) | Format::I16 => Elem::U8,
        }
    }

    /// How many neighbouring rows of a panel fill a word of each column's row; what a step of a core multiplies.
    pub const fn together(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 | Format::Words(_) | Format::I16 => 2,
            Format::Codes(_) => 4,
        }
    }

    /// What a depth is a multiple of; of whole numbers, those that share a scale.
    pub const fn block(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Codes(codes) => codes.block,
            Format::Words(block) => block,
            Format::I16 => 64,
        }
    }

    /// How values are codes with scales, if they are.
    pub const fn codes(self) -> Option<Codes> {
        match self {
            Format::Codes(codes) => Some(codes),
            Format::F32 | Format::Bf16 | Format::Words(_) | Format::I16 => None,
        }
    }

    /// Whether values are whole numbers with scales.
    pub const fn is_coded(self) -> bool {
        matches!(self, Format::Codes(_) | Format::Words(_) | Format::I16)
    }

    /// Bits of an element, without its share of a scale.
    pub const fn bits(self) -> usize {
        match self {
            Format::F32 => 32,
            Format::Bf16 | Format::Words(_) | Format::I16 => 16,
            Format::Codes(codes) => codes.bits,
        }
    }

    /// Bytes of an element, with its share of scale and minimum.
    pub fn bytes(self) -> f64 {
        self.rows(self.block()) as f64 * self.elem().bytes() as f64 / (self.block() * PANEL) as f64
    }

    /// Units of the elements of a block; behind them, of whole numbers, are their scales.
    pub const fn values(self) -> usize {
        self.block() * PANEL * self.bits() / 8 / self.elem().bytes()
    }

    /// Units of so many rows of a panel, whole blocks.
    pub const fn rows(self, depth: usize) -> usize {
        let block = match self {
            Format::Codes(codes) => codes.bytes(),
            Format::I16 => self.values() + 4 * PANEL,
            Format::F32 | Format::Bf16 | Format::Words(_) => self.values(),
        };
        depth / self.block() * block
    }

    /// Units of a panel.
    pub const fn panel(self, depth: usize) -> usize {
        if self.is_coded() { self.rows(depth).next_multiple_of(64) } else { self.rows(depth) }
    }

    /// The floats that such elements are multiplied as.
    pub const fn of(elem: Elem) -> Format {
        match elem {
            Elem::Bf16 => Format::Bf16,
            Elem::F32 | Elem::I32 | Elem::U8 => Format::F32,
        }
    }

    /// Units of a row that such a panel is multiplied with.
    pub fn row(self, depth: usize) -> usize {
        match self {
            Format::F32 | Format::Bf16 => depth,
            Format::Codes(codes) => codes.sums_of_row(depth) + depth / codes.summed() * 4,
            Format::Words(block) => 2 * depth + depth / block * 8,
            Format::I16 => 2 * depth + depth / self.block() * 4,
        }
    }
}

impl Codes {
    /// Bytes of a block of all columns.
    const fn bytes(self) -> usize {
        let parts = match self.steps {
            Some(rows) => self.block / rows,
            None => 0,
        };
        self.parts_at() + parts * PANEL
    }

    /// Where the steps and zeros of a block begin, in bytes: behind codes, scales and minima.
    pub const fn parts_at(self) -> usize {
        let numbers = if self.minimum { 2 } else { 1 };
        self.block * PANEL * self.bits / 8 + numbers * 2 * PANEL
    }

    /// Whether the codes are the bytes that are multiplied, a scale for each block and nothing else.
    pub const fn are_bytes(self) -> bool {
        self.bits == 8 && !self.minimum && self.levels.is_none() && self.steps.is_none()
    }

    /// The planes of the codes: one for each power of two that `bits` is the sum of, the largest first.
    pub fn planes(self) -> Vec<Plane> {
        let mut planes = Vec::new();
        let mut shift = 0;
        for bits in [8, 4, 2, 1].into_iter().filter(|bits| self.bits & bits != 0) {
            planes.push(Plane { bits, shift, at: self.block * PANEL * shift / 8 });
            shift += bits;
        }
        planes
    }

    /// Of how many neighbouring rows the products are summed as whole numbers: those of a block, or of a part with a step.
    pub const fn summed(self) -> usize {
        match self.steps {
            Some(rows) => rows,
            None => self.block,
        }
    }

    /// Where in a row the sums begin that go with such a panel, in bytes.
    pub const fn sums_of_row(self, depth: usize) -> usize {
        let before = if self.steps.is_some() { 2 } else { 1 };
        depth + before * 4 * (depth / self.block)
    }

    /// The greatest byte that is multiplied.
    fn most(self) -> i32 {
        let codes = 0..=u8::MAX >> (8 - self.bits);
        codes.map(|code| self.byte(code)).max().unwrap_or(0)
    }

    /// Whether 16 bits with a sign have room for all sums of products that are added up: of such bytes, in pairs, and of a row's.
    pub fn fit_halves(self) -> bool {
        let pairs = self.summed() as i32 / 4;
        2 * pairs * self.most() * i32::from(i8::MAX) <= i32::from(i16::MAX)
    }

    /// Whether the bytes that are multiplied, less the offset, are signed ones.
    pub fn are_signed(self) -> bool {
        self.offset == BYTE_OFFSET
    }

    /// What the sum of a row's bytes is taken times, less than 0: without minima.
    pub const fn summed_as(self) -> i32 {
        if self.steps.is_some() { 1 } else { self.offset }
    }

    /// What it is added to then, as whole numbers: the bits of [`ROUND`], or of parts nothing.
    pub const fn summed_from(self) -> i32 {
        if self.steps.is_some() { 0 } else { ROUND.to_bits() as i32 }
    }

    /// How many times four rows it takes until all planes begin a new word.
    pub fn group(self) -> usize {
        self.planes().iter().map(|plane| plane.steps()).max().unwrap_or(1)
    }

    /// An element of a block of a panel: its row in the block, its column.
    pub fn read(self, block: &[u8], k: usize, n: usize) -> Element {
        let mut code = 0;
        for plane in self.planes() {
            let (at, shift) = plane.place(k, n);
            code |= (block[at] >> shift & plane.mask()) << plane.shift;
        }
        let beside = |nth: usize| {
            let at = Format::Codes(self).values() + (nth * PANEL + n) * 2;
            f32::from_bits(u32::from_le_bytes([0, 0, block[at], block[at + 1]]))
        };
        let part = self.steps.map_or(0, |rows| block[self.parts_at() + k / rows * PANEL + n]);
        Element { code, part, scale: beside(0), minimum: if self.minimum { beside(1) } else { 0.0 } }
    }

    /// The number that an element is.
    pub fn number(self, element: Element) -> f64 {
        let Element { code, part, scale, minimum } = element;
        f64::from(scale) * f64::from(self.value(code, part)) + f64::from(minimum)
    }

    /// What a code stands for, with the byte of its step and zero if it has them.
    pub fn value(self, code: u8, part: u8) -> i32 {
        match self.steps {
            Some(_) => i32::from(part & 15) * (i32::from(code) - i32::from(part >> 4)),
            None => self.byte(code) - self.offset,
        }
    }

    /// What a code without a step is multiplied as: no negative number.
    pub fn byte(self, code: u8) -> i32 {
        self.levels.map_or(i32::from(code), |levels| i32::from(levels[usize::from(code & 15)]) + self.offset)
    }

    /// Whether there is a code for each of a grid's values.
    pub(crate) fn holds(self, grid: &Grid) -> bool {
        let codes = -self.offset..(1 << self.bits) - self.offset;
        let values = match self.levels {
            Some(_) => self.levels == grid.levels,
            None => codes.contains(&grid.least.into()) && codes.contains(&grid.most.into()),
        };
        let alike = grid.block.is_multiple_of(self.block) && self.block <= 64 && self.steps.is_none();
        alike && values && (self.minimum || !grid.minimum)
    }
}

impl Plane {
    /// How many times four rows a word has.
    pub const fn steps(self) -> usize {
        8 / self.bits
    }

    /// The bits of a byte that are of its first row.
    pub const fn mask(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// The byte of the block that has the code's bits, and the first of them there.
    pub const fn place(self, k: usize, n: usize) -> (usize, usize) {
        let step = k / 4;
        (self.at + (step / self.steps() * PANEL + n) * 4 + k % 4, step % self.steps() * self.bits)
    }
}

/// 1.5 · 2^23. Added to it, a float below 2^22 is rounded to a whole number, which its lowest bits then are: its bits are those of
/// this one and that number more. All that a block adds up to is below that: 256 products of bytes, 128 times 127 each.
pub const ROUND: f32 = 12_582_912.0;

/// What is taken from bytes that stand for signed ones.
pub const BYTE_OFFSET: i32 = 128;

/// What the largest of a block of a row becomes as a word.
pub const MOST_WORD: f32 = 32767.0;

/// What the largest of a block of a panel becomes as a number of 16 bits: 64 products with those of a row are below 2^31.
pub const MOST_OF_PANEL: f32 = 4095.0;

/// The same of a block of a row.
pub const MOST_OF_ROW: f32 = 8191.0;

/// What a largest number counts as where all are smaller, so that its inverse is a number.
pub const SMALLEST: f32 = 1e-30;
