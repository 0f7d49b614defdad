//! The core of codes: products of bytes, four at once, summed as whole numbers within a block. And codes as bytes.

use std::cmp::Ordering;

use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

use super::instructions::*;
use super::{A, B, LINE, STEP, Shape, Writer};
use crate::format::{Codes, Format, PANEL, ROUND};
use crate::loops::ByteProducts;

/// Where the scales of the rows are.
const ROW_SCALES: Register = Register::R8;

/// Where the sums of their bytes are.
const ROW_SUMS: Register = Register::R9;

/// What lies beside the codes of a block, where its parts are a loop.
const BESIDE: Register = Register::R11;

/// Which part that is at, times [`PANEL`].
const PART: Register = Register::RAX;

/// Sums of a block that are carried side by side, at least.
const CHAINS: usize = 4;

/// How AVX2 adds the products of a part's bytes. It multiplies numbers without a sign by numbers with one, and adds pairs of
/// products in 16 bits. So of a panel's byte with a sign the magnitude is multiplied, and the row's byte gets its sign.
#[derive(Clone, Copy)]
struct Pairs {
    /// Whether the sums are those of pairs, in halves of a word, until the part ends; else each word's are added at once.
    in_halves: bool,
    /// Whether bytes of the panel have signs.
    signed: bool,
}

impl Pairs {
    fn of(w: &Writer, codes: Codes) -> Option<Pairs> {
        let pairs = Pairs { in_halves: codes.fit_halves(), signed: codes.are_signed() };
        (w.products == Some(ByteProducts::Avx2)).then_some(pairs)
    }
}

/// Writes the code of a core, of at most eight rows at 512 bits (of bytes twelve, or six by two panels) and of six at 256. What the
/// blocks before add up to is held in registers where there are 32 of them, else in the result.
pub(super) fn write(w: &mut Writer, shape: Shape, codes: Codes) -> Result<(), IcedError> {
    let Shape { rows, panels, depth, .. } = shape;
    let pairs = Pairs::of(w, codes);
    // What adds sums of pairs takes a cycle.
    let chains = if pairs.is_some() { 1 } else { (CHAINS / (rows * panels)).max(1) };
    let blocks = depth / codes.block;
    for (register, at) in [(ROW_SCALES, depth), (ROW_SUMS, codes.sums_of_row(depth))] {
        let at = w.at(A, at);
        w.push(Instruction::with2(Code::Lea_r64_m, register, at))?;
    }
    w.push(Instruction::with2(Code::Mov_rm32_imm32, w.word_below(0), ROUND.to_bits()))?;
    constants(w, codes, pairs.is_some_and(|pairs| pairs.signed))?;
    match pairs {
        Some(_) if codes.steps.is_some() => {}
        Some(pairs) => {
            w.constant(w.ones(), ONES)?;
            if pairs.signed && codes.levels.is_none() {
                w.constant(w.signs(), SIGNS)?;
            }
        }
        None if codes.steps.is_some() => w.constant(w.lower(), 15 << 16 | 15)?,
        None => {}
    }
    let core = Rows { w, shape, codes, chains, pairs };
    for row in 0..rows {
        for vector in 0..panels * core.w.vectors() {
            let place = core.w.result(&shape, row, vector);
            let total = core.total(row, vector);
            match (shape.accumulate, total) {
                (true, Some(total)) => core.w.two(MOVE, total, place)?,
                (true, None) => {}
                (false, Some(total)) => core.w.zero(total)?,
                (false, None) => {
                    let zero = core.w.bytes();
                    core.w.zero(zero)?;
                    core.w.store(place, zero)?;
                }
            }
        }
    }
    core.w.times_fetching(&shape, blocks, |w| Rows { w, shape, codes, chains, pairs }.block())?;
    let core = Rows { w, shape, codes, chains, pairs };
    for row in 0..rows {
        for panel in 0..panels {
            if let Some(total) = core.total(row, panel) {
                let to = core.w.result(&shape, row, panel);
                core.w.store(to, total)?;
            }
        }
    }
    Ok(())
}

/// Writes the code that unpacks a panel, from the second address to the first.
pub(super) fn unpack(w: &mut Writer, depth: usize, format: Format) -> Result<(), IcedError> {
    let (block, to) = (format.block(), format.unpacked());
    let (Some(codes), Some(unpacked)) = (format.codes(), to.codes()) else { return Ok(()) };
    constants(w, codes, false)?;
    of_steps(w, unpacked)?;
    w.times(depth / block, |w| {
        for vector in 0..w.vectors() {
            for step in 0..block / format.together() {
                let bytes = in_steps(w, codes, step, vector)?;
                let at = w.at(A, step * STEP + vector * HALF);
                w.store(at, bytes)?;
            }
        }
        let (from, at) = (w.at(B, format.values()), w.at(A, to.values()));
        w.push(Instruction::with2(Code::VEX_Vmovups_ymm_ymmm256, Register::YMM0, from))?;
        w.push(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, at, Register::YMM0))?;
        w.advance(A, to.rows(block))?;
        w.advance(B, format.rows(block))
    })
}

/// Writes the code that unpacks a panel to bf16, from the second address to the first, at 512 bits.
pub(super) fn unpack_floats(w: &mut Writer, depth: usize, format: Format) -> Result<(), IcedError> {
    let (block, to) = (format.block(), Format::Bf16);
    let (Some(codes), Some(unpacked)) = (format.codes(), format.unpacked().codes()) else { return Ok(()) };
    let [order, byte, offset] = [Register::ZMM8, Register::ZMM9, Register::ZMM10];
    let numbers = [Register::ZMM0, Register::ZMM1, Register::ZMM2, Register::ZMM3];
    constants(w, codes, false)?;
    of_steps(w, unpacked)?;
    // Of two vectors of sixteen halves, one after the other, one of each in turn.
    let from = w.words(std::array::from_fn(|lane| ((PANEL + lane) << 16 | lane) as u32))?;
    w.push(Instruction::with2(Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512, order, from))?;
    w.constant(byte, 0xff)?;
    w.constant(offset, (-unpacked.offset as f32).to_bits())?;
    w.times(depth / block, |w| {
        let (scale, added) = (w.scale(), w.minimum());
        halves(w, (B, format.values()), scale)?;
        match codes.minimum {
            true => halves(w, (B, format.values() + 2 * PANEL), added)?,
            false => {
                w.push(Instruction::with3(MULTIPLY[0], added, scale, offset))?;
            }
        }
        for step in 0..block / format.together() {
            let bytes = match codes.steps {
                Some(_) => in_steps(w, codes, step, 0)?,
                None => bytes(w, codes, step, 0)?,
            };
            for (nth, number) in numbers.into_iter().enumerate() {
                let from = if nth == 0 { bytes } else { number };
                if nth > 0 {
                    w.shift(RIGHT, number, bytes, 8 * nth)?;
                }
                if nth < 3 {
                    w.three(AND, number, from, byte)?;
                }
                w.push(Instruction::with2(Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, number, number))?;
                let line = Code::EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er;
                w.push(Instruction::with3(line, number, scale, added))?;
            }
            for (nth, [lower, upper]) in numbers.as_chunks::<2>().0.iter().enumerate() {
                let code = Code::EVEX_Vcvtne2ps2bf16_zmm_k1z_zmm_zmmm512b32;
                w.push(Instruction::with3(code, *lower, *upper, *lower))?;
                w.push(Instruction::with3(Code::EVEX_Vpermw_zmm_k1z_zmm_zmmm512, *lower, order, *lower))?;
                let at = w.at(A, (2 * step + nth) * STEP);
                w.store(at, *lower)?;
            }
        }
        w.advance(A, to.rows(block) * 2)?;
        w.advance(B, format.rows(block))
    })
}

/// Loads what [`in_steps`] reads of registers.
fn of_steps(w: &mut Writer, unpacked: Codes) -> Result<(), IcedError> {
    for (register, half) in [(w.offset(), unpacked.offset as u32), (w.twice(), 0x0101), (w.lower(), 15)] {
        w.constant(register, half << 16 | half)?;
    }
    Ok(())
}

/// The bytes of a step of codes in steps. To be called for one step after the other.
fn in_steps(w: &mut Writer, codes: Codes, step: usize, vector: usize) -> Result<Register, IcedError> {
    let row = step * Format::Codes(codes).together();
    if row.is_multiple_of(codes.summed()) {
        as_bytes(w, codes, row / codes.summed(), vector)?;
    }
    let bytes = bytes(w, codes, step, vector)?;
    // Two products of four bits each fit into a half: the bytes don't meet.
    w.three(TIMES, bytes, bytes, w.steps())?;
    let add = [Code::EVEX_Vpaddb_zmm_k1z_zmm_zmmm512, Code::VEX_Vpaddb_ymm_ymm_ymmm256];
    w.three(add, bytes, bytes, w.zeros())?;
    Ok(bytes)
}

/// Loads numbers beside a block's codes, as many as a vector holds.
pub(super) fn halves(w: &mut Writer, (base, at): (Register, usize), to: Register) -> Result<(), IcedError> {
    let from = w.at(base, at);
    w.two([Code::EVEX_Vpmovzxwd_zmm_k1z_ymmm256, Code::VEX_Vpmovzxwd_ymm_xmmm128], to, from)?;
    w.shift(LEFT, to, to, 16)
}

/// One in each half of a word.
pub(super) const ONES: u32 = 0x0001_0001;

/// The bit of each of four bytes that tells one less 128 from it.
const SIGNS: u32 = 0x8080_8080;

/// Bytes of a step that a vector of 256 bits takes.
const HALF: usize = STEP / 2;

/// Registers that hold what passes by, and numbers, with 32 registers and with 16. The sums come first.
impl Writer {
    fn held(&self, wide: u32, narrow: u32) -> Register {
        self.first() + if self.wide { wide } else { narrow }
    }

    /// The words of a plane.
    fn word(&self, plane: usize) -> Register {
        self.held(24, 6) + plane as u32
    }

    /// What rows are multiplied with, or are scaled with in turn with the next.
    fn bytes(&self) -> Register {
        self.held(26, 8)
    }

    fn others(&self) -> Register {
        self.held(27, 9)
    }

    /// A word of a row in every lane, where it is not read with each product.
    fn word_of_row(&self) -> Register {
        self.held(31, 10)
    }

    /// The minima of a block. With 16 registers, they and the scales take the place of words that have passed by.
    fn minimum(&self) -> Register {
        self.held(28, 7)
    }

    fn scale(&self) -> Register {
        self.held(29, 6)
    }

    /// The bits of a plane, where they are in a code.
    fn mask(&self, plane: usize) -> Register {
        self.held(30, 11) + plane as u32
    }

    /// What the codes stand for, in each quarter.
    fn levels(&self) -> Register {
        self.held(22, 13)
    }

    /// The steps of a part's columns: where they are unpacked, in each half of their words. Codes with them have one plane and
    /// no levels.
    fn steps(&self) -> Register {
        self.held(16, 13)
    }

    /// The zeros of a part's columns: where they are unpacked, what they add to a byte, in each byte.
    fn zeros(&self) -> Register {
        self.held(17, 12)
    }

    /// The lower four bits of each half.
    fn lower(&self) -> Register {
        self.held(18, 15)
    }

    /// What unpacked bytes are taken to be more than they stand for, in each half.
    fn offset(&self) -> Register {
        self.held(19, 14)
    }

    /// The sums of the parts of a block, of up to six rows: what the other codes that AVX2 multiplies leave free of 16 registers.
    fn total_of_parts(&self, row: usize) -> Register {
        self.first() + [7, 9, 12, 13, 14, 15][row]
    }

    /// [`ONES`], in place of that.
    pub(super) fn ones(&self) -> Register {
        self.offset()
    }

    /// [`SIGNS`], of codes of 8 bits, which need no mask.
    fn signs(&self) -> Register {
        self.mask(0)
    }

    /// One in each byte of a half.
    fn twice(&self) -> Register {
        self.held(20, 7)
    }

    /// Adds the products with a word of a row to each lane.
    fn dot_word(
        &mut self,
        code: [Code; 3],
        sum: Register,
        by: Register,
        row: (Register, usize),
    ) -> Result<(), IcedError> {
        if self.wide {
            let word = self.each(row.0, row.1);
            return self.push(Instruction::with3(code[0], sum, by, word));
        }
        let (word, from) = (self.word_of_row(), self.at(row.0, row.1));
        self.two(SPREAD, word, from)?;
        self.dot(code, sum, by, word)
    }

    /// Adds the products of bytes with those of a row, which are lost and get other signs before where there are some: to halves,
    /// or to words.
    pub(super) fn add_pairs(
        &mut self,
        sum: Register,
        by: Register,
        word: Register,
        signs: Option<Register>,
        in_halves: bool,
    ) -> Result<(), IcedError> {
        if let Some(signs) = signs {
            self.push(Instruction::with3(Code::VEX_Vpsignb_ymm_ymm_ymmm256, word, word, signs))?;
        }
        self.push(Instruction::with3(Code::VEX_Vpmaddubsw_ymm_ymm_ymmm256, word, by, word))?;
        if in_halves {
            return self.push(Instruction::with3(Code::VEX_Vpaddw_ymm_ymm_ymmm256, sum, sum, word));
        }
        self.three(WORDS, word, word, self.ones())?;
        self.three(ADD, sum, sum, word)
    }
}

/// Loads what [`bytes`] reads of registers; levels as numbers without a sign, or with one.
fn constants(w: &mut Writer, codes: Codes, signed: bool) -> Result<(), IcedError> {
    for (nth, plane) in codes.planes().into_iter().enumerate().filter(|(_, plane)| plane.bits < 8) {
        w.constant(w.mask(nth), u32::from_le_bytes([plane.mask() << plane.shift; 4]))?;
    }
    if codes.levels.is_some() {
        levels(w, codes, if signed { SIGNS } else { 0 })?;
    }
    Ok(())
}

/// Loads the table of the levels, with some bits of each four changed.
fn levels(w: &mut Writer, codes: Codes, changed: u32) -> Result<(), IcedError> {
    let (all, table) = (w.levels(), w.quarter(w.levels()));
    let bytes: [u8; 16] = std::array::from_fn(|code| codes.byte(code as u8) as u8);
    for (lane, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
        w.push(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, u32::from_le_bytes(*bytes) ^ changed))?;
        let insert = w.of([Code::EVEX_Vpinsrd_xmm_xmm_rm32_imm8, Code::VEX_Vpinsrd_xmm_xmm_rm32_imm8]);
        w.push(Instruction::with4(insert, table, table, Register::EAX, lane as i32))?;
    }
    w.repeat_quarter(all)
}

/// Makes what a step multiplies out of the block's words, of all columns or of half of them. To be called for one step after the
/// other.
fn bytes(w: &mut Writer, codes: Codes, step: usize, vector: usize) -> Result<Register, IcedError> {
    let (bytes, others) = (w.bytes(), w.others());
    for (nth, plane) in codes.planes().iter().enumerate() {
        let (word, mask) = (w.word(nth), w.mask(nth));
        if step.is_multiple_of(plane.steps()) {
            let from = w.at(B, plane.at + step / plane.steps() * STEP + vector * HALF);
            w.two([Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512, Code::VEX_Vmovdqu_ymm_ymmm256], word, from)?;
        }
        if plane.bits == 8 {
            return Ok(word);
        }
        let (from, to) = (step % plane.steps() * plane.bits, plane.shift);
        let to_place = if nth == 0 { bytes } else { others };
        let shifted = match from.cmp(&to) {
            Ordering::Equal => word,
            order => {
                let code = if order == Ordering::Greater { RIGHT } else { LEFT };
                w.shift(code, to_place, word, from.abs_diff(to))?;
                to_place
            }
        };
        if nth == 0 {
            w.three(AND, bytes, shifted, mask)?;
        } else if w.wide {
            // bytes | shifted & mask
            let combine = Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8;
            w.push(Instruction::with4(combine, bytes, shifted, mask, 0xf8))?;
        } else {
            w.three(AND, others, shifted, mask)?;
            w.three(OR, bytes, bytes, others)?;
        }
    }
    if codes.levels.is_some() {
        let code = [Code::EVEX_Vpshufb_zmm_k1z_zmm_zmmm512, Code::VEX_Vpshufb_ymm_ymm_ymmm256];
        w.three(code, bytes, w.levels(), bytes)?;
    }
    Ok(bytes)
}

/// Loads the byte of each column of a part, where its steps and zeros are, into a lane.
fn both(w: &mut Writer, codes: Codes, part: usize, vector: usize, to: Register) -> Result<(), IcedError> {
    let from = w.at(B, codes.parts_at() + part * PANEL + vector * PANEL / 2);
    w.two(EACH_BYTE, to, from)
}

/// Makes of the steps and zeros of a part what unpacks it.
fn as_bytes(w: &mut Writer, codes: Codes, part: usize, vector: usize) -> Result<(), IcedError> {
    let (steps, zeros) = (w.steps(), w.zeros());
    both(w, codes, part, vector, zeros)?;
    w.shift(LEFT, steps, zeros, 16)?;
    w.three(OR, zeros, zeros, steps)?;
    w.three(AND, steps, zeros, w.lower())?;
    w.shift([Code::EVEX_Vpsrlw_zmm_k1z_zmmm512_imm8, Code::VEX_Vpsrlw_ymm_ymm_imm8], zeros, zeros, 4)?;
    // offset - step * zero, of which a byte is enough, twice.
    w.three(TIMES, zeros, zeros, steps)?;
    w.three([Code::EVEX_Vpsubb_zmm_k1z_zmm_zmmm512, Code::VEX_Vpsubb_ymm_ymm_ymmm256], zeros, w.offset(), zeros)?;
    w.three(TIMES, zeros, zeros, w.twice())
}

struct Rows<'w> {
    w: &'w mut Writer,
    shape: Shape,
    codes: Codes,
    /// How often each sum is split.
    chains: usize,
    /// How products are added by AVX2 alone.
    pairs: Option<Pairs>,
}

impl Rows<'_> {
    fn block(&mut self) -> Result<(), IcedError> {
        let format = self.shape.b;
        let parts = format.block() / self.codes.summed();
        if let Some(pairs) = self.pairs.filter(|_| parts > 1) {
            return self.parts(parts, pairs);
        }
        let steps = self.codes.summed() / format.together();
        for part in 0..parts {
            for vector in 0..self.w.vectors() {
                if self.codes.steps.is_some() {
                    let (both_of, zeros) = (self.w.steps(), self.w.zeros());
                    both(self.w, self.codes, part, vector, both_of)?;
                    self.w.shift(RIGHT, zeros, both_of, 4)?;
                }
                self.start(part)?;
                for step in part * steps..(part + 1) * steps {
                    let (turns, lines) = (self.w.vectors() * steps, format.rows(format.block()).div_ceil(LINE));
                    self.fetch(part * turns + vector * steps + step % steps, parts * turns, lines)?;
                    if let Some(pairs) = self.pairs {
                        self.multiply_pairs(pairs, step, vector)?;
                        continue;
                    }
                    let panels = match self.shape.panels {
                        1 => vec![bytes(self.w, self.codes, step, vector)?],
                        panels => (0..panels).map(|panel| self.load(step, panel)).collect::<Result<_, _>>()?,
                    };
                    self.multiply(step, &panels)?;
                }
                if let Some(pairs) = self.pairs {
                    self.end_pairs(pairs, part)?;
                }
                for panel in 0..self.shape.panels {
                    let values = (B, panel * self.shape.b_stride + format.values());
                    self.scale(part, panel, vector, values)?;
                }
            }
        }
        self.w.advance(A, format.block())?;
        self.w.advance_panel(&self.shape, format.rows(format.block()))?;
        self.w.advance(ROW_SCALES, 4)?;
        self.w.advance(ROW_SUMS, 4 * parts)
    }

    /// A block of codes in steps by AVX2, of half a panel after the other, part after part in a loop: the sums of a part, times
    /// its step, are added up as whole numbers, which a block's fit into.
    fn parts(&mut self, parts: usize, pairs: Pairs) -> Result<(), IcedError> {
        let (format, rows) = (self.shape.b, self.codes.summed());
        let (steps, words) = (rows / format.together(), format.values() / parts);
        let beside = self.w.at(B, format.values());
        self.w.push(Instruction::with2(Code::Lea_r64_m, BESIDE, beside))?;
        for vector in 0..self.w.vectors() {
            for row in 0..self.shape.rows {
                self.w.zero(self.w.total_of_parts(row))?;
            }
            self.w.push(Instruction::with2(Code::Mov_rm64_imm32, PART, 0))?;
            let mut again = self.w.code.create_label();
            self.w.code.set_label(&mut again)?;
            self.start(0)?;
            for step in 0..steps {
                self.fetch(vector * steps + step, self.w.vectors() * steps, words / LINE)?;
                self.multiply_pairs(pairs, step, vector)?;
            }
            self.end_part(vector)?;
            self.w.advance(A, rows)?;
            self.w.advance_panel(&self.shape, words)?;
            self.w.advance(ROW_SUMS, 4)?;
            self.w.advance(PART, PANEL)?;
            self.w.push(Instruction::with2(Code::Cmp_rm64_imm32, PART, (parts * PANEL) as i32))?;
            self.w.code.jne(again)?;
            for row in 0..self.shape.rows {
                let (sum, total) = (self.sum(0, row, 0), self.w.total_of_parts(row));
                self.w.push(Instruction::with2(Code::VEX_Vmovdqu_ymm_ymmm256, sum, total))?;
            }
            self.scale(0, 0, vector, (BESIDE, 0))?;
            if vector + 1 < self.w.vectors() {
                self.w.retreat(A, parts * rows)?;
                self.w.retreat_panel(&self.shape, parts * words)?;
                self.w.retreat(ROW_SUMS, 4 * parts)?;
            }
        }
        let left = format.rows(format.block()) - format.values();
        (0..left.div_ceil(LINE)).try_for_each(|line| self.w.fetch(&self.shape, line * LINE))?;
        self.w.advance_panel(&self.shape, left)?;
        self.w.advance(ROW_SCALES, 4)
    }

    /// Adds the sums of a part in steps, and what its zeros take away, times the step, to those of the parts before.
    fn end_part(&mut self, vector: usize) -> Result<(), IcedError> {
        let (rows, a_stride) = (self.shape.rows, self.shape.a_stride);
        let w = &mut *self.w;
        let (steps, zeros, word) = (w.bytes(), w.word(0), w.word_of_row());
        let at = self.codes.parts_at() - self.shape.b.values() + vector * PANEL / 2;
        let both = MemoryOperand::with_base_index_scale_displ_size(BESIDE, PART, 1, at as i64, 1);
        w.two(EACH_BYTE, zeros, both)?;
        // The mask of the codes, of whose four bytes three are 0 here.
        w.three(AND, steps, zeros, w.mask(0))?;
        w.shift(RIGHT, zeros, zeros, 4)?;
        w.three(TIMES, zeros, zeros, steps)?;
        w.shift(LEFT, word, steps, 16)?;
        w.three(OR, steps, steps, word)?;
        for row in 0..rows {
            let (sum, total) = (w.first() + row as u32, w.total_of_parts(row));
            let of_row = w.at(ROW_SUMS, row * a_stride);
            w.two(SPREAD, word, of_row)?;
            w.three(WORDS, sum, sum, steps)?;
            // The upper halves of the zeros are 0, and the sums of the row fit into the lower ones.
            w.three(WORDS, word, word, zeros)?;
            w.three(ADD, total, total, sum)?;
            w.three(ADD, total, total, word)?;
        }
        Ok(())
    }

    /// Fetches the share of some lines ahead that a turn has, of so many.
    fn fetch(&mut self, turn: usize, turns: usize, lines: usize) -> Result<(), IcedError> {
        for line in turn * lines / turns..(turn + 1) * lines / turns {
            self.w.fetch(&self.shape, line * LINE)?;
        }
        Ok(())
    }

    /// Whether the sums of a part end as the bits of floats, see [`ROUND`]. By AVX2 they do where sums of rows are added.
    fn are_floats(&self) -> bool {
        let with_sums = |pairs: Pairs| !pairs.signed && !self.codes.minimum && self.codes.steps.is_none();
        self.pairs.is_none_or(with_sums)
    }

    /// Begins the sums of a part with what the offset of the codes, or their zeros, take away; by AVX2 that comes last.
    fn start(&mut self, part: usize) -> Result<(), IcedError> {
        let from_sum = !self.codes.minimum && self.codes.steps.is_none();
        for row in 0..self.shape.rows {
            let at = row * self.shape.a_stride + 4 * part;
            for panel in 0..self.shape.panels {
                let first = self.sum(0, row, panel);
                if self.pairs.is_none() {
                    let start = if from_sum { self.w.at(ROW_SUMS, at) } else { self.w.word_below(0) };
                    self.w.two(SPREAD, first, start)?;
                }
                for chain in usize::from(self.pairs.is_none())..self.chains {
                    let sum = self.sum(chain, row, panel);
                    self.w.zero(sum)?;
                }
                if self.codes.steps.is_some() && self.pairs.is_none() {
                    // The upper halves of the zeros are 0, and the sums fit into the lower ones.
                    let zeros = self.w.zeros();
                    self.w.dot_word(HALVES, first, zeros, (ROW_SUMS, at))?;
                }
            }
        }
        Ok(())
    }

    /// Multiplies a step's codes, of half a panel, with each row's by AVX2, and adds.
    fn multiply_pairs(&mut self, pairs: Pairs, step: usize, vector: usize) -> Result<(), IcedError> {
        let w = &mut *self.w;
        let (mut by, word, magnitudes) = (bytes(w, self.codes, step, vector)?, w.word_of_row(), w.others());
        if pairs.signed {
            if self.codes.levels.is_none() {
                w.three(XOR, w.bytes(), by, w.signs())?;
                by = w.bytes();
            }
            w.push(Instruction::with2(Code::VEX_Vpabsb_ymm_ymmm256, magnitudes, by))?;
        }
        for row in 0..self.shape.rows {
            let (sum, w) = (self.sum(0, row, 0), &mut *self.w);
            let from = w.at(A, row * self.shape.a_stride + 4 * step);
            w.two(SPREAD, word, from)?;
            let signs = pairs.signed.then_some(by);
            w.add_pairs(sum, if pairs.signed { magnitudes } else { by }, word, signs, pairs.in_halves)?;
        }
        Ok(())
    }

    /// Makes the sums of a part those of words, and adds what the offset of the codes takes away.
    fn end_pairs(&mut self, pairs: Pairs, part: usize) -> Result<(), IcedError> {
        for row in 0..self.shape.rows {
            let (sum, w) = (self.sum(0, row, 0), &mut *self.w);
            if pairs.in_halves {
                w.three(WORDS, sum, sum, w.ones())?;
            }
            if pairs.signed || self.codes.minimum {
                continue;
            }
            let (word, from) = (w.word_of_row(), w.at(ROW_SUMS, row * self.shape.a_stride + 4 * part));
            w.two(SPREAD, word, from)?;
            w.three(ADD, sum, sum, word)?;
        }
        Ok(())
    }

    /// Loads the bytes of a step of one of several panels.
    fn load(&mut self, step: usize, panel: usize) -> Result<Register, IcedError> {
        let (word, from) = (self.w.word(panel), self.w.panel(&self.shape, step, panel));
        self.w.two(MOVE, word, from)?;
        Ok(word)
    }

    /// Multiplies a step's codes, of each panel, with each row's, and adds.
    fn multiply(&mut self, step: usize, panels: &[Register]) -> Result<(), IcedError> {
        for row in 0..self.shape.rows {
            let sum = |panel| self.sum(step % self.chains, row, panel);
            let at = row * self.shape.a_stride + 4 * step;
            if let [codes] = panels {
                let sum = sum(0);
                self.w.dot_word(BYTES, sum, *codes, (A, at))?;
                continue;
            }
            // Loaded once for all panels.
            let sums: Vec<Register> = (0..panels.len()).map(sum).collect();
            let (of_row, from) = (self.w.word_of_row(), self.w.at(A, at));
            self.w.two(SPREAD, of_row, from)?;
            for (sum, codes) in sums.into_iter().zip(panels) {
                self.w.dot(BYTES, sum, *codes, of_row)?;
            }
        }
        Ok(())
    }

    /// Adds a part's sums of a panel, or of half of one, scaled by what lies there, to the result.
    fn scale(
        &mut self,
        part: usize,
        panel: usize,
        vector: usize,
        (base, values): (Register, usize),
    ) -> Result<(), IcedError> {
        let (scale, minimum, steps) = (self.w.scale(), self.w.minimum(), self.w.steps());
        let values = values + vector * PANEL;
        for (nth, register) in [scale, minimum].into_iter().enumerate().take(1 + usize::from(self.codes.minimum)) {
            halves(self.w, (base, values + nth * 2 * PANEL), register)?;
        }
        let convert = self.w.of(TO_FLOAT);
        if self.codes.steps.is_some() && self.pairs.is_none() {
            self.w.three(AND, steps, steps, self.w.lower())?;
            self.w.push(Instruction::with2(convert, steps, steps))?;
            self.w.three(MULTIPLY, scale, scale, steps)?;
        }
        let (are_floats, more) = (self.are_floats(), self.w.bytes());
        let round = self.w.word_below(0);
        if are_floats && self.w.wide {
            let round = MemoryOperand { is_broadcast: true, ..round };
            self.w.push(Instruction::with3(MULTIPLY[0], more, scale, round))?;
        } else if are_floats {
            self.w.two(SPREAD, more, round)?;
            self.w.three(MULTIPLY, more, more, scale)?;
        }
        for row in 0..self.shape.rows {
            let sum = self.sum(0, row, panel);
            for chain in 1..self.chains {
                let other = self.sum(chain, row, panel);
                self.w.three(ADD, sum, sum, other)?;
            }
            if are_floats {
                // sum * scale - more
                let code = [Code::EVEX_Vfmsub132ps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vfmsub132ps_ymm_ymm_ymmm256];
                self.w.three(code, sum, more, scale)?;
            } else {
                self.w.push(Instruction::with2(convert, sum, sum))?;
                self.w.three(MULTIPLY, sum, sum, scale)?;
            }
            let of_row = row * self.shape.a_stride;
            let sum_of_row = of_row + 4 * part;
            if let Some(total) = self.total(row, panel) {
                let (of_row, sum_of_row) = (self.w.each(ROW_SCALES, of_row), self.w.each(ROW_SUMS, sum_of_row));
                self.w.push(Instruction::with3(MULTIPLY_ADD[0], total, sum, of_row))?;
                if self.codes.minimum {
                    self.w.push(Instruction::with3(MULTIPLY_ADD[0], total, minimum, sum_of_row))?;
                }
            } else {
                let (of_row, sum_of_row) = (self.w.at(ROW_SCALES, of_row), self.w.at(ROW_SUMS, sum_of_row));
                let (factor, place) = (self.w.others(), self.w.result(&self.shape, row, vector));
                self.w.two(SPREAD, factor, of_row)?;
                // sum * factor + what is there
                self.w.push(Instruction::with3(Code::VEX_Vfmadd213ps_ymm_ymm_ymmm256, sum, factor, place))?;
                if self.codes.minimum {
                    self.w.two(SPREAD, factor, sum_of_row)?;
                    self.w.three(MULTIPLY_ADD, sum, minimum, factor)?;
                }
                self.w.store(place, sum)?;
            }
        }
        Ok(())
    }

    fn sum(&self, chain: usize, row: usize, panel: usize) -> Register {
        let Shape { rows, panels, .. } = self.shape;
        self.w.first() + ((chain * rows + row) * panels + panel) as u32
    }

    /// The register of what the blocks before add up to, if there are enough.
    fn total(&self, row: usize, panel: usize) -> Option<Register> {
        self.w.wide.then(|| self.sum(self.chains, row, panel))
    }
}
