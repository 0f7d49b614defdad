//! The numbers of a tensor, however its file has them: in blocks, with scales in another tensor, as codes of four or eight bits
//! with scales and zeros in others, or row by row in two tensors.

use std::array;
use std::ops::Range;

use einfuse_codegen::format::Grid;

use super::Dtype;

/// The numbers of a tensor, or of some of its rows, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// Blocks of neighbours in a row; a plain float is a block of one.
    Blocks(Blocks<'a>),
    /// The same, to be multiplied by the scale of the tile in which they are.
    Scaled {
        /// The factors.
        blocks: Blocks<'a>,
        /// The scales.
        scales: Tiles<'a>,
        /// The place of the first number in the tensor that the scales are for.
        first: usize,
    },
    /// Codes with zeros and scales.
    Coded {
        /// The tensor.
        codes: Codes<'a>,
        /// The place of the first number in it.
        first: usize,
        /// How many numbers.
        len: usize,
    },
    /// Rows of two tensors.
    Woven {
        /// The tensors.
        rows: Woven<'a>,
        /// The place of the first number in all rows.
        first: usize,
        /// How many numbers.
        len: usize,
    },
}

/// The rows of two tensors in turn: some of one, some of the other, until both are at their end.
#[derive(Clone, Copy, Debug)]
pub struct Woven<'a> {
    pub(super) strands: [Strand<'a>; 2],
    pub(super) columns: usize,
}

/// One of two tensors whose rows are woven together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strand<'a> {
    pub(super) blocks: Blocks<'a>,
    /// How many rows are next to each other.
    pub(super) rows: usize,
    /// Whether these are the columns of a matrix in the file.
    pub(super) turned: bool,
}

/// Numbers in blocks.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// How they are stored.
    pub dtype: Dtype,
    /// The bytes of whole blocks, without alignment.
    pub bytes: &'a [u8],
}

/// Scales for the tiles of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Tiles<'a> {
    /// The scales, row by row.
    pub(super) scales: Blocks<'a>,
    /// The columns of the matrix.
    pub(super) columns: usize,
    /// Rows and columns of a tile; the last ones may be cut off by the matrix's end.
    pub(super) tile: [usize; 2],
    /// By what each is divided.
    pub(super) divisor: f32,
}

/// A matrix `[outputs, inputs]` of codes of four or eight bits: the number is `scale · (code - zero)`, where groups of inputs
/// share scale and zero for each output.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    pub(super) inputs: usize,
    pub(super) codes: Packed<'a>,
    pub(super) zeros: Zeros<'a>,
    pub(super) scales: Blocks<'a>,
    /// How far apart the scales of two outputs are, and of two groups.
    pub(super) apart: [usize; 2],
    pub(super) groups: Groups<'a>,
}

/// The zeros of codes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Zeros<'a> {
    /// One for all.
    Same(i16),
    /// By output and group, each so much greater than stored.
    Packed(Packed<'a>, i16),
    /// As what is added to a scaled code: `-scale · zero`, which are so far apart as scales are.
    Scaled(Blocks<'a>),
}

/// Codes of a matrix, one after the other from the lowest bits on: the place of one is that of its row and that of its column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) bits: usize,
    pub(super) rows: Digits,
    pub(super) columns: Digits,
    /// The bits of a code that are stored inverted.
    pub(super) inverted: u8,
}

/// How the place of a row, or of a column, follows from its number: what each digit of the number adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digits {
    /// The lowest, some of them without values.
    low: [Digit; 4],
    /// What is left of the number beyond so many bits, and what one of it adds.
    shift: u8,
    apart: usize,
}

/// So many bits of a number, from one on, and what one of them adds.
#[derive(Clone, Copy, Debug, Default)]
struct Digit {
    shift: u8,
    mask: u8,
    apart: u8,
}

impl<'a> Zeros<'a> {
    /// Those that are packed, each so much greater.
    pub(super) fn of(zeros: Packed<'a>, more: i16) -> Zeros<'a> {
        match zeros.same() {
            Some(zero) => Zeros::Same(zero + more),
            None => Zeros::Packed(zeros, more),
        }
    }
}

impl Digits {
    /// The lowest digits, each with how many values it has, a power of two, and how far apart two neighbours are that differ in it
    /// alone; and how far apart those are that differ in the rest alone.
    pub(super) fn of(low: &[(u8, u8)], apart: usize) -> Digits {
        let (mut digits, mut shift) = ([Digit::default(); 4], 0);
        for (digit, &(values, apart)) in digits.iter_mut().zip(low) {
            *digit = Digit { shift, mask: values - 1, apart };
            shift += values.trailing_zeros() as u8;
        }
        Digits { low: digits, shift, apart }
    }

    fn place(&self, number: usize) -> usize {
        let of = |digit: &Digit| (number >> digit.shift & usize::from(digit.mask)) * usize::from(digit.apart);
        self.low.iter().map(of).sum::<usize>() + (number >> self.shift) * self.apart
    }
}

/// The inputs of the longest blocks in which codes are read.
const LONGEST: usize = 64;

/// The group of each input.
#[derive(Clone, Copy, Debug)]
pub enum Groups<'a> {
    /// So many neighbours are a group.
    Of(usize),
    /// Each input's, little endian.
    Listed(&'a [[u8; 4]]),
}

impl<'a> Numbers<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Numbers::Blocks(blocks) | Numbers::Scaled { blocks, .. } => blocks.len(),
            Numbers::Coded { len, .. } | Numbers::Woven { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How they are stored, and their bytes, if that is all there is.
    pub fn blocks(&self) -> Option<Blocks<'a>> {
        match self {
            Numbers::Blocks(blocks) => Some(*blocks),
            Numbers::Scaled { .. } | Numbers::Coded { .. } | Numbers::Woven { .. } => None,
        }
    }

    /// Whether BF16 is enough for them: they are stored so, or in fewer bits.
    pub fn is_narrow(&self) -> bool {
        match self {
            Numbers::Blocks(blocks) => blocks.is_narrow(),
            Numbers::Woven { rows, .. } => rows.strands.iter().all(|strand| strand.blocks.is_narrow()),
            Numbers::Scaled { .. } | Numbers::Coded { .. } => self.bits() < 16.0,
        }
    }

    /// What the blocks hold, if they are blocks of values with scales.
    pub fn grid(&self) -> Option<Grid> {
        match self {
            Numbers::Woven { rows: Woven { strands: [one, other], .. }, .. } => {
                let grid = one.blocks.dtype.grid().filter(|_| !one.turned && !other.turned);
                grid.filter(|grid| other.blocks.dtype.grid() == Some(*grid))
            }
            Numbers::Scaled { blocks: Blocks { dtype: Dtype::F4E2M1, .. }, scales, .. } => match scales.tile {
                [1, block @ (16 | 32)] => Dtype::Mxfp4.grid().map(|grid| Grid { block, ..grid }),
                _ => None,
            },
            Numbers::Scaled { .. } => None,
            Numbers::Coded { codes, .. } => codes.grid(),
            Numbers::Blocks(blocks) => blocks.dtype.grid(),
        }
    }

    /// Reads whole blocks of the grid, from the number `at` on: the values, and of each block scale and minimum. Nothing where
    /// there is no grid.
    ///
    /// # Panics
    /// If there are fewer than `values` wants.
    pub fn read_blocks(&self, at: usize, values: &mut [i8], scales: &mut [[f32; 2]]) {
        match self {
            Numbers::Blocks(blocks) => blocks.read_blocks(at, values, scales),
            Numbers::Woven { rows, first, .. } => {
                let Some(each) = self.grid().map(|grid| grid.block) else { return };
                rows.each_row(first + at, values.len(), |strand, place, done| {
                    let of_row = done.start / each..done.end / each;
                    strand.blocks.read_blocks(place, &mut values[done], &mut scales[of_row]);
                });
            }
            Numbers::Scaled { blocks, scales: tiles, first } => {
                // Where there is a grid, factors are whole numbers, and tiles are in the order of blocks.
                let mut factors = vec![0.0; values.len()];
                blocks.read(at, &mut factors);
                values.iter_mut().zip(factors).for_each(|(value, factor)| *value = factor as i8);
                let from = (first + at) / tiles.tile[1];
                scales.iter_mut().zip(from..).for_each(|(scale, tile)| *scale = [tiles.scale(tile), 0.0]);
            }
            Numbers::Coded { codes, first, .. } => codes.read_blocks(first + at, values, scales),
        }
    }

    /// How many bits a number takes, but for scales in other tensors.
    pub fn bits(&self) -> f64 {
        match self {
            Numbers::Blocks(blocks) | Numbers::Scaled { blocks, .. } => blocks.bits(),
            Numbers::Coded { codes, .. } => codes.codes.bits as f64,
            Numbers::Woven { rows: Woven { strands, .. }, .. } => {
                let rows = strands.iter().map(|strand| strand.rows as f64);
                let bits = strands.iter().map(|strand| strand.rows as f64 * strand.blocks.bits()).sum::<f64>();
                bits / rows.sum::<f64>()
            }
        }
    }

    /// Some of them, and whether rows and columns are exchanged there; `None` if the range is not of whole blocks.
    pub fn some(&self, range: Range<usize>) -> Option<(Numbers<'a>, bool)> {
        let some = match *self {
            Numbers::Blocks(blocks) => Numbers::Blocks(blocks.some(range)?),
            Numbers::Scaled { blocks, scales, first } => {
                Numbers::Scaled { first: first + range.start, blocks: blocks.some(range)?, scales }
            }
            Numbers::Coded { codes, first, .. } => {
                Numbers::Coded { codes, first: first + range.start, len: range.len() }
            }
            Numbers::Woven { rows, first, .. } => return Some(rows.some(first + range.start, range.len())),
        };
        Some((some, false))
    }

    /// Reads neighbours, from the number `at` on, each exactly as its format defines it (products of scales in single
    /// precision).
    ///
    /// # Panics
    /// If there are fewer than `out` wants.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Numbers::Blocks(blocks) => blocks.read(at, out),
            Numbers::Scaled { blocks, scales, first } => {
                blocks.read(at, out);
                scales.multiply(first + at, out);
            }
            Numbers::Coded { codes, first, .. } => codes.read(first + at, out),
            Numbers::Woven { rows, first, .. } => rows.read(first + at, out),
        }
    }
}

impl<'a> Woven<'a> {
    /// How many numbers there are.
    pub(super) fn len(&self) -> usize {
        self.strands.iter().map(|strand| strand.blocks.len()).sum()
    }

    /// Some of the numbers: of one tensor alone, where they are neighbours in it, and whether it has them column by column.
    fn some(self, first: usize, len: usize) -> (Numbers<'a>, bool) {
        if let Some(turned) = self.turned(first, len) {
            return (Numbers::Blocks(turned), true);
        }
        let (mut alone, mut together) = (None, true);
        self.each_row(first, len, |strand, place, done| {
            let (blocks, start) = *alone.get_or_insert((strand.blocks, place));
            together &=
                !strand.turned && std::ptr::eq(strand.blocks.bytes, blocks.bytes) && place == start + done.start;
        });
        let neighbours = alone.filter(|_| together).and_then(|(blocks, start)| blocks.some(start..start + len));
        (neighbours.map_or(Numbers::Woven { rows: self, first, len }, Numbers::Blocks), false)
    }

    /// The numbers of one turn's rows of the tensor that has them as columns, if these are all of them.
    fn turned(&self, first: usize, len: usize) -> Option<Blocks<'a>> {
        let [one, other] = &self.strands;
        let size = self.columns * (one.rows + other.rows);
        let (turn, within) = (first.checked_div(size)?, first.checked_rem(size)?);
        let strand = if within == 0 { one } else { other };
        let starts = within == 0 || within == one.rows * self.columns;
        let start = turn * len;
        let all = strand.turned && starts && len == strand.rows * self.columns;
        strand.blocks.some(start..start + len).filter(|_| all)
    }

    fn read(&self, at: usize, out: &mut [f32]) {
        self.each_row(at, out.len(), |strand, place, done| match strand.turned {
            false => strand.blocks.read(place, &mut out[done]),
            true => {
                let apart = strand.rows;
                out[done].iter_mut().enumerate().for_each(|(i, out)| *out = strand.blocks.one(place + i * apart));
            }
        });
    }

    /// Walks through so many numbers from `at` on, row by row: the strand that they are of, where they are there (of columns: the
    /// first of them), and which of those wanted they are.
    fn each_row(&self, at: usize, count: usize, mut read: impl FnMut(&Strand<'a>, usize, Range<usize>)) {
        let [one, other] = &self.strands;
        let mut done = 0;
        while done < count {
            let (row, column) = ((at + done) / self.columns, (at + done) % self.columns);
            let (turn, within) = (row / (one.rows + other.rows), row % (one.rows + other.rows));
            let (strand, row) = if within < one.rows { (one, within) } else { (other, within - one.rows) };
            let some = (self.columns - column).min(count - done);
            let place = match strand.turned {
                false => (turn * strand.rows + row) * self.columns + column,
                true => (turn * self.columns + column) * strand.rows + row,
            };
            read(strand, place, done..done + some);
            done += some;
        }
    }
}

impl<'a> Blocks<'a> {
    fn bits(&self) -> f64 {
        8.0 * self.dtype.block_bytes() as f64 / self.dtype.block_length() as f64
    }

    fn is_narrow(&self) -> bool {
        self.dtype == Dtype::Bf16 || self.bits() < 16.0
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() / self.dtype.block_bytes() * self.dtype.block_length()
    }

    fn some(self, range: Range<usize>) -> Option<Blocks<'a>> {
        let (length, size) = (self.dtype.block_length(), self.dtype.block_bytes());
        let whole = range.start.is_multiple_of(length) && range.end.is_multiple_of(length);
        let bytes = self.bytes.get(range.start / length * size..range.end / length * size).filter(|_| whole)?;
        Some(Blocks { bytes, ..self })
    }

    fn read(&self, at: usize, out: &mut [f32]) {
        let (length, size) = (self.dtype.block_length(), self.dtype.block_bytes());
        let blocks = &self.bytes[at / length * size..];
        let skip = at % length;
        if skip == 0 && out.len().is_multiple_of(length) {
            return self.dtype.decode(blocks, out);
        }
        // Parts of blocks: whole ones are read on the side.
        let mut whole = vec![0.0; (skip + out.len()).next_multiple_of(length)];
        self.dtype.decode(blocks, &mut whole);
        out.copy_from_slice(&whole[skip..skip + out.len()]);
    }

    fn read_blocks(&self, at: usize, values: &mut [i8], scales: &mut [[f32; 2]]) {
        let (length, size) = (self.dtype.block_length(), self.dtype.block_bytes());
        let Some(each) = self.dtype.grid().map(|grid| grid.block) else { return };
        let blocks = &self.bytes[at / length * size..];
        let skip = at % length;
        if skip == 0 && values.len().is_multiple_of(length) {
            return self.dtype.decode_blocks(blocks, values, scales);
        }
        let count = (skip + values.len()).next_multiple_of(length);
        let (mut whole, mut of_whole) = (vec![0; count], vec![[0.0; 2]; count / each]);
        self.dtype.decode_blocks(blocks, &mut whole, &mut of_whole);
        values.copy_from_slice(&whole[skip..skip + values.len()]);
        scales.copy_from_slice(&of_whole[skip / each..skip / each + scales.len()]);
    }

    /// One of plain floats.
    pub(super) fn one(&self, at: usize) -> f32 {
        let mut one = [0.0];
        self.read(at, &mut one);
        one[0]
    }
}

impl Tiles<'_> {
    /// The scale of a tile.
    fn scale(&self, tile: usize) -> f32 {
        self.scales.one(tile) / self.divisor
    }

    /// Multiplies neighbours, of which the first is the matrix's number `at`.
    fn multiply(&self, at: usize, out: &mut [f32]) {
        let [rows, columns] = self.tile;
        let across = self.columns.div_ceil(columns);
        let mut done = 0;
        while done < out.len() {
            let (row, column) = ((at + done) / self.columns, (at + done) % self.columns);
            let end = ((column / columns + 1) * columns).min(self.columns);
            let some = (end - column).min(out.len() - done);
            let scale = self.scale(row / rows * across + column / columns);
            out[done..done + some].iter_mut().for_each(|number| *number *= scale);
            done += some;
        }
    }
}

impl Codes<'_> {
    /// Reads neighbours.
    fn read(&self, at: usize, out: &mut [f32]) {
        let inputs = self.inputs.max(1);
        let (mut output, mut input) = (at / inputs, at % inputs);
        let (mut known, mut row) = (None, self.codes.rows.place(output));
        for out in out {
            let group = self.group(input);
            let (scale, zero, added) = match known {
                Some((same, of_group)) if same == group => of_group,
                _ => self.of_group(group, output),
            };
            known = Some((group, (scale, zero, added)));
            let scaled = f32::from(self.codes.at(row + self.codes.columns.place(input)) - zero) * scale;
            *out = added.map_or(scaled, |added| scaled + added);
            input += 1;
            if input == self.inputs {
                (output, input, known) = (output + 1, 0, None);
                row = self.codes.rows.place(output);
            }
        }
    }

    /// What blocks hold, each in one group: codes less the middle of their range, where every zero is there; else codes of 4
    /// bits as they are, with what zeros add as minima. A minimum of 8 bits is far from 0: rounded, it would be off by as much
    /// as codes are.
    fn grid(&self) -> Option<Grid> {
        let Groups::Of(size) = self.groups else { return None };
        let block = 1 << (size | self.inputs).trailing_zeros().min(LONGEST.ilog2());
        let middle = 1 << (self.codes.bits - 1);
        let (from, minimum) = match self.zeros {
            Zeros::Same(zero) if zero == middle => (middle, false),
            _ if self.codes.bits == 4 => (0, true),
            _ => return None,
        };
        let [least, most] = [-from, 2 * middle - 1 - from].map(|value| value as i8);
        Some(Grid { block, least, most, minimum, levels: None })
    }

    /// Reads whole blocks of the grid.
    fn read_blocks(&self, at: usize, values: &mut [i8], scales: &mut [[f32; 2]]) {
        let Some(grid) = self.grid() else { return };
        // From the first code of a block, which is at a multiple of a power of two, the others are as far as from the first of all.
        let places: [usize; LONGEST] = array::from_fn(|input| self.codes.columns.place(input));
        for (nth, (values, scales)) in values.chunks_mut(grid.block).zip(scales).enumerate() {
            let at = at + nth * grid.block;
            let (output, input) = (at / self.inputs, at % self.inputs);
            let (scale, zero, added) = self.of_group(self.group(input), output);
            *scales = [scale, if grid.minimum { added.unwrap_or(-scale * f32::from(zero)) } else { 0.0 }];
            let first = self.codes.rows.place(output) + self.codes.columns.place(input);
            for (value, place) in values.iter_mut().zip(places) {
                *value = (self.codes.at(first + place) + i16::from(grid.least)) as i8;
            }
        }
    }

    fn group(&self, input: usize) -> usize {
        match self.groups {
            Groups::Of(size) => input / size,
            Groups::Listed(groups) => u32::from_le_bytes(groups[input]) as usize,
        }
    }

    /// Scale and zero of an output's group, and what is added to what is scaled, if something is.
    fn of_group(&self, group: usize, output: usize) -> (f32, i16, Option<f32>) {
        let at = output * self.apart[0] + group * self.apart[1];
        let scale = self.scales.one(at);
        match &self.zeros {
            Zeros::Same(zero) => (scale, *zero, None),
            Zeros::Packed(zeros, more) => {
                (scale, zeros.at(zeros.rows.place(output) + zeros.columns.place(group)) + more, None)
            }
            Zeros::Scaled(added) => (scale, 0, Some(added.one(at))),
        }
    }
}

impl Packed<'_> {
    /// The code that all are, if they fill their bytes and those are alike.
    fn same(&self) -> Option<i16> {
        let (first, others) = self.bytes.split_first()?;
        let alike = first.rotate_left(self.bits as u32) == *first && others.iter().all(|byte| byte == first);
        alike.then(|| self.at(0))
    }

    /// The code at a place.
    fn at(&self, place: usize) -> i16 {
        let bit = place * self.bits;
        let byte = self.bytes[bit / 8] >> (bit % 8);
        i16::from((byte & (u8::MAX >> (8 - self.bits))) ^ self.inverted)
    }
}
