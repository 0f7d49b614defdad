//! What cores a machine has, and which of them serve what.

use super::{GROUP, MAX_PANELS, MAX_ROWS};
use crate::format::{Codes, Format, PANEL};

/// Which contraction cores a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The width of their vectors: 128 (the portable core alone), 256 or 512.
    pub bits: u32,
    /// Whether pairs of bf16 are multiplied and added at once, by vectors or by tiles, faster than floats.
    pub bf16: bool,
    /// How products of four bytes are added at once, if they are.
    pub bytes: Option<ByteProducts>,
    /// Whether pairs of numbers of 16 bits are multiplied and added faster than floats are, and nothing multiplies bf16 as fast: then
    /// many rows are multiplied with bf16 as [`Format::I16`]. By the instructions that multiply bytes.
    pub i16: bool,
    /// Whether tiles of sixteen rows by sixteen columns of both are multiplied at once (AMX).
    pub tiles: bool,
    /// Whether a core of many rows is faster by two panels than by one, where it takes both: a number of a row is loaded once for
    /// them, which is worth it where loads hold up products.
    pub by_two: bool,
    /// How cores fetch panels ahead, if they had better, since the machine's own guesses come too late.
    pub fetch: Option<Fetch>,
}

/// How panels are fetched ahead, by cores of few rows where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Cores of one row do so with elements of fewer bits than this. Through others one row goes so quickly that reading what lies
    /// behind them runs ahead by itself.
    pub bits: usize,
    /// How many bytes ahead: cores of one row, and of several.
    pub ahead: [usize; 2],
    /// Into which caches.
    pub into: FetchInto,
    /// Whether cores of many rows, of vectors or tiles, fetch what the next unit reads, each its share, into the second cache.
    pub many: bool,
}

/// Into which caches panels are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchInto {
    /// All.
    All,
    /// The first, past all others: they are read once.
    First,
    /// The second, and so many bytes ahead the first.
    Both(usize),
}

/// Which instructions of x86 add products of four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteProducts {
    /// Several, at 256 bits, where vectors have more too: the products of pairs are added in halves of a word, these in words.
    /// Where halves have room for all of a block or part, once for all of it: see
    /// [`Codes::fit_halves`].
    Avx2,
    /// One, encoded as those of AVX: at 256 bits.
    AvxVnni,
    /// The same, encoded as those of AVX-512: at 256 and 512 bits.
    Avx512Vnni,
}

impl Cores {
    /// The portable core alone.
    pub const PORTABLE: Cores =
        Cores { bits: 128, bf16: false, bytes: None, i16: false, tiles: false, by_two: false, fetch: None };

    /// Whether a machine that has these has such ones too.
    pub fn have(&self, others: &Cores) -> bool {
        let bytes = match (self.bytes, others.bytes) {
            (Some(own), Some(bytes)) => own == bytes || bytes == ByteProducts::Avx2,
            (_, bytes) => bytes.is_none(),
        };
        // Numbers of 16 bits are multiplied by the instructions of bytes.
        let i16 = !others.i16 || others.bytes.is_some();
        bytes && i16 && others.bits <= self.bits && others.bf16 <= self.bf16 && others.tiles <= self.tiles
    }

    /// The most rows that a core of vectors takes at once. The last of several may take rows beyond, fewer than these.
    pub const fn rows(&self) -> usize {
        match self.bits {
            512 => GROUP,
            256 => 6,
            _ => 4,
        }
    }

    /// The most rows that any core takes at once.
    pub const fn most_rows(&self) -> usize {
        if self.tiles { MAX_ROWS } else { self.rows() }
    }

    /// What cores multiply panels stored so with. Without an instruction that adds products of four bytes, those are multiplied at
    /// 256 bits at most.
    #[must_use]
    pub fn by(self, b: Format) -> Cores {
        let by_pairs = b.is_coded() && self.adds_pairs();
        Cores { bits: if by_pairs { self.bits.min(256) } else { self.bits }, ..self }
    }

    /// The most rows that a core of vectors takes at once by so many panels, of operands stored so; 0 if there is none by so many.
    /// Of codes, sums of products of both kinds are held.
    pub fn rows_by(&self, a: Format, b: Format, panels: usize) -> usize {
        let cores = self.by(b);
        let one = match b {
            Format::Codes(codes) if codes.are_bytes() && cores.bits == 512 => 12,
            Format::I16 if cores.bits == 512 => 12,
            Format::I16 => cores.rows(),
            Format::Codes(_) | Format::Words(_) => cores.rows().min(8),
            Format::F32 | Format::Bf16 => cores.rows(),
        };
        match (panels, b) {
            (1, _) => one,
            _ if cores.bits < 512 || a != b => 0,
            (_, Format::Codes(codes)) if codes.are_bytes() => 6,
            (_, Format::Codes(_) | Format::Words(_) | Format::I16) => 0,
            _ => 12,
        }
    }

    /// Whether tiles multiply rows and panels of so many rows that are stored so: as bf16 or bytes that fill tiles.
    pub fn tiles_serve(&self, a: Format, b: Format, depth: usize) -> bool {
        let tile = GROUP * b.together();
        let serve = match b {
            Format::F32 | Format::Words(_) | Format::I16 => false,
            Format::Bf16 => depth.is_multiple_of(tile),
            Format::Codes(codes) => codes.are_bytes() && codes.block.is_multiple_of(tile),
        };
        self.tiles && serve && a == b && depth > 0
    }

    /// Whether only several instructions together add products of bytes.
    pub(crate) fn adds_pairs(&self) -> bool {
        self.bytes == Some(ByteProducts::Avx2)
    }

    /// The words that several rows had better be where such panels are multiplied with them, if so: where products of bytes take
    /// several instructions, those of words take fewer for each, and the rows are rounded less.
    pub fn words_by(&self, panels: Format) -> Option<Format> {
        panels.words().filter(|_| self.bits > 128 && self.adds_pairs())
    }

    /// Whether the products of such codes are added in halves of a word.
    pub fn sums_halves(&self, format: Format) -> bool {
        self.adds_pairs() && format.codes().is_some_and(Codes::fit_halves)
    }

    /// How the panels of a weight are multiplied with many rows; if otherwise than they are stored, they are unpacked first, see
    /// [`Unpack`](super::Unpack). Codes in steps are multiplied as bytes, but where they have fewer instructions as they are; what
    /// tiles don't multiply as bytes, or not fast, they do as bf16. What is stored as bf16 is multiplied as numbers of 16 bits where
    /// these are faster, see [`Cores::i16`].
    pub fn unpacked(&self, format: Format, depth: usize) -> Format {
        let (bytes, floats) = (format.unpacked(), Format::Bf16);
        if format == floats && self.i16 && depth.is_multiple_of(Format::I16.block()) && depth > 0 {
            return Format::I16;
        }
        let as_floats = format.is_coded() && self.tiles_serve(floats, floats, depth);
        // The sums of a block are scaled by vectors, which takes longer than the products of a single tile of steps.
        let few_sums = bytes.block() > GROUP * bytes.together();
        match as_floats && !(few_sums && self.tiles_serve(bytes, bytes, depth)) {
            true => floats,
            false if self.sums_halves(format) => format,
            false => bytes,
        }
    }

    /// The same of the panels of a cache, or of what a stream holds: as numbers of 16 bits, or as they are.
    pub fn unpacked_run(&self, format: Format, depth: usize) -> Format {
        if self.unpacked(format, depth) == Format::I16 { Format::I16 } else { format }
    }

    /// How much of a depth a core of many rows has better at once: tiles multiply as fast as the first cache gives them panels, so
    /// only as much as stays in it.
    pub fn depth_at_once(&self, a: Format, b: Format, depth: usize) -> usize {
        const NEAR: usize = 40 << 10;
        if b.is_coded() || !self.tiles_serve(a, b, depth) {
            return depth;
        }
        let most = NEAR / (self.panels(a, b, depth) * PANEL * b.elem().bytes());
        let whole = |part: &usize| depth.is_multiple_of(*part) && part.is_multiple_of(GROUP * b.together());
        (most / 2..=most).rev().find(whole).unwrap_or(depth)
    }

    /// How many panels a core of many rows is best made for: by two, less is loaded for a product. Tiles of bytes have more to
    /// do with the sums of blocks.
    pub fn panels(&self, a: Format, b: Format, depth: usize) -> usize {
        let two = match self.tiles_serve(a, b, depth) {
            true => !b.is_coded(),
            false => self.by_two && self.rows_by(a, b, MAX_PANELS) > 0,
        };
        if two { MAX_PANELS } else { 1 }
    }
}
