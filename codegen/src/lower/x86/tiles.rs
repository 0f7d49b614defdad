//! The cores of tiles: sixteen rows by sixteen columns, multiplied and added at once (AMX).
//!
//! A panel lies as tiles want it: sixteen of its steps are one. Four tiles of sums hide each other's latency: those of 64 rows
//! by one panel, or of 32 by two, which take less from the caches: four tiles for four products in place of five. Tiles are set
//! up once for a kernel.

use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

use super::codes::halves;
use super::instructions::{MOVE, MULTIPLY, MULTIPLY_ADD};
use super::{A, B, C, STEP, Shape, Writer};
use crate::format::{Codes, ROUND};
use crate::loops::GROUP;

/// Bytes from row to row of a tile of the panel, and of one of sums on the stack.
pub(super) const PANEL_STRIDE: Register = Register::R11;

/// Bytes from row to row of the first operand.
const A_STRIDE: Register = Register::RAX;

/// Bytes from row to row of the result, of cores of floats.
const C_STRIDE: Register = Register::R9;

/// Where sums of codes pass through.
const SUMS: Register = Register::R9;

/// Where the scales of the rows are; the sums of their bytes are as far behind in each block.
const ROW_SCALES: Register = Register::R8;

/// Bytes of a tile.
const TILE: usize = GROUP * STEP;

/// Tiles of the first operand, which take turns, and of the panels.
pub(super) const ROWS: [Register; 2] = [Register::TMM4, Register::TMM5];
pub(super) const PANELS: [Register; 2] = [Register::TMM6, Register::TMM7];

/// How many tiles there are.
const ALL: usize = 8;

/// Writes the code that sets the tiles up, before the first core.
pub(super) fn set_up(w: &mut Writer) -> Result<(), IcedError> {
    let mut config = [0u8; 64];
    config[0] = 1;
    for nth in 0..ALL {
        config[16 + 2 * nth] = STEP as u8;
        config[48 + nth] = GROUP as u8;
    }
    let word = |nth: usize| u32::from_le_bytes(std::array::from_fn(|byte| config[4 * nth + byte]));
    let from = w.words(std::array::from_fn(word))?;
    w.push(Instruction::with1(Code::VEX_Ldtilecfg_m512, from))
}

/// Writes the code that leaves them, after the last core.
pub(super) fn leave(w: &mut Writer) -> Result<(), IcedError> {
    w.push(Ok(Instruction::with(Code::VEX_Tilerelease)))
}

/// Writes the code of a core of bf16.
pub(super) fn floats(w: &mut Writer, shape: Shape) -> Result<(), IcedError> {
    strides(w, &shape)?;
    for part in Part::all(shape) {
        if part.first > 0 {
            w.retreat(A, shape.steps() * shape.a_step())?;
            w.retreat(B, shape.steps() * STEP)?;
        }
        for (sum, place) in part.sums(w) {
            match shape.accumulate {
                true => w.load_tile(sum, place)?,
                false => w.push(Instruction::with1(Code::VEX_Tilezero_tmm, sum))?,
            }
        }
        part.products(w, shape.steps(), Code::VEX_Tdpbf16ps_tmm_tmm_tmm)?;
        for (sum, place) in part.sums(w) {
            w.push(Instruction::with2(Code::VEX_Tilestored_sibmem_tmm, place, sum))?;
        }
    }
    Ok(())
}

/// Writes the code of a core of bytes by one panel. The sums of a block pass through the stack, are scaled and added to the result.
pub(super) fn bytes(w: &mut Writer, shape: Shape, codes: Codes) -> Result<(), IcedError> {
    let blocks = shape.depth / codes.block;
    w.constant(ROUNDS, ROUND.to_bits())?;
    strides(w, &shape)?;
    w.push(Instruction::with2(Code::Lea_r64_m, ROW_SCALES, w.at(A, shape.depth)))?;
    let room = (shape.rows * STEP + STEP) as i32;
    w.push(Instruction::with2(Code::Sub_rm64_imm32, Register::RSP, room))?;
    w.push(Instruction::with2(Code::Lea_r64_m, SUMS, w.at(Register::RSP, STEP - 1)))?;
    w.push(Instruction::with2(Code::And_rm64_imm32, SUMS, -(STEP as i32)))?;
    if !shape.accumulate {
        w.zero(TOTAL)?;
        for row in 0..shape.rows {
            w.push(Instruction::with2(STORE, w.result(&shape, row, 0), TOTAL))?;
        }
    }
    w.times(blocks, |w| block(w, &shape, codes))?;
    w.push(Instruction::with2(Code::Add_rm64_imm32, Register::RSP, room))
}

/// What scales the sums of a block: of its columns; what they are too much by then; [`ROUND`]; and what passes by.
const SCALES: Register = Register::ZMM31;
const MORE: Register = Register::ZMM30;
const ROUNDS: Register = Register::ZMM28;
const TOTAL: Register = Register::ZMM29;

const STORE: Code = Code::EVEX_Vmovups_zmmm512_k1z_zmm;

fn block(w: &mut Writer, shape: &Shape, codes: Codes) -> Result<(), IcedError> {
    let part = Part { shape: *shape, first: 0, groups: shape.rows / GROUP };
    let row_sums = codes.sums_of_row(shape.depth) - shape.depth;
    (0..part.groups).try_for_each(|group| w.push(Instruction::with1(Code::VEX_Tilezero_tmm, sums(group))))?;
    part.products(w, codes.block / shape.b.together(), Code::VEX_Tdpbsud_tmm_tmm_tmm)?;
    for group in 0..part.groups {
        let to = w.tile(SUMS, group * TILE, PANEL_STRIDE);
        w.push(Instruction::with2(Code::VEX_Tilestored_sibmem_tmm, to, sums(group)))?;
    }
    // The panel has moved on over the codes.
    halves(w, (super::B, 0), SCALES)?;
    w.three(MULTIPLY, MORE, ROUNDS, SCALES)?;
    w.advance(B, shape.b.rows(codes.block) - shape.b.values())?;
    for row in 0..shape.rows {
        let (of_row, place) = (row * shape.a_stride, w.result(shape, row, 0));
        let sum = Register::ZMM0 + (row % 16) as u32;
        w.push(Instruction::with2(Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512, sum, w.at(SUMS, row * STEP)))?;
        w.push(Instruction::with3(
            Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32,
            sum,
            sum,
            w.each(ROW_SCALES, row_sums + of_row),
        ))?;
        // sum * SCALES - MORE, of the bits of a float; what is there, and that as often as the row says.
        w.push(Instruction::with3(Code::EVEX_Vfmsub132ps_zmm_k1z_zmm_zmmm512b32_er, sum, MORE, SCALES))?;
        w.two(MOVE, TOTAL, place)?;
        w.push(Instruction::with3(MULTIPLY_ADD[0], TOTAL, sum, w.each(ROW_SCALES, of_row)))?;
        w.push(Instruction::with2(STORE, place, TOTAL))?;
    }
    w.advance(ROW_SCALES, 4)
}

/// Tiles of steps that are written one after the other.
const UNROLL: usize = 4;

/// Bytes of panels that the first cache keeps from one core to the next only where the rows pass it by.
const NEAR: usize = 16 << 10;

/// Tiles of sums that there are at once: as many as hide each other's latency.
const SUMS_AT_ONCE: usize = 4;

/// Some of the rows of a core, by all of its panels.
struct Part {
    shape: Shape,
    /// The first group of rows, and how many.
    first: usize,
    groups: usize,
}

impl Part {
    /// As many rows at once as there are tiles of sums for.
    fn all(shape: Shape) -> impl Iterator<Item = Part> {
        let (groups, at_once) = (shape.rows / GROUP, SUMS_AT_ONCE / shape.panels);
        (0..groups).step_by(at_once).map(move |first| Part { shape, first, groups: at_once.min(groups - first) })
    }

    /// Each tile of sums, with its place in the result.
    fn sums(&self, w: &Writer) -> Vec<(Register, MemoryOperand)> {
        let Part { shape, first, groups } = self;
        let all = (0..*groups).flat_map(|group| (0..shape.panels).map(move |panel| (group, panel)));
        all.map(|(group, panel)| {
            let at = (first + group) * GROUP * shape.c_stride + panel * STEP;
            (sums(group * shape.panels + panel), w.tile(C, at, C_STRIDE))
        })
        .collect()
    }

    /// Adds the products of so many steps; then both operands move on.
    fn products(&self, w: &mut Writer, steps: usize, multiply: Code) -> Result<(), IcedError> {
        let tiles = steps / GROUP;
        w.times(tiles / UNROLL, |w| self.some(w, UNROLL, multiply))?;
        self.some(w, tiles % UNROLL, multiply)
    }

    /// The same of some tiles of steps.
    fn some(&self, w: &mut Writer, tiles: usize, multiply: Code) -> Result<(), IcedError> {
        let Part { shape, first, groups } = self;
        let passes_by = shape.panels * shape.b.panel(shape.depth) * shape.b.elem().bytes() > NEAR;
        let load = if passes_by { Code::VEX_Tileloaddt1_tmm_sibmem } else { Code::VEX_Tileloadd_tmm_sibmem };
        // What is fetched is spread over all tiles of steps of all parts.
        let turns = shape.steps() / GROUP * (shape.rows / GROUP).div_ceil(SUMS_AT_ONCE / shape.panels);
        let lines = shape.share.div_ceil(turns);
        for tile in 0..tiles {
            let pairs = (0..*groups).step_by(ROWS.len()).map(|from| from..(from + ROWS.len()).min(*groups));
            for (nth, pair) in pairs.enumerate() {
                // The second panel is loaded while the first is multiplied.
                for (panel, register) in PANELS.into_iter().enumerate().take(shape.panels) {
                    if nth == 0 {
                        let from = w.tile(B, panel * shape.b_stride + tile * TILE, PANEL_STRIDE);
                        w.load_tile(register, from)?;
                    }
                    for (group, rows) in pair.clone().zip(ROWS) {
                        if panel == 0 {
                            let at = (first + group) * GROUP * shape.a_stride + tile * GROUP * shape.a_step();
                            let from = w.tile(A, at, A_STRIDE);
                            w.push(Instruction::with2(load, rows, from))?;
                        }
                    }
                    if nth == 0 && panel == 0 {
                        w.fetch_share(lines)?;
                    }
                    for (group, rows) in pair.clone().zip(ROWS) {
                        w.push(Instruction::with3(multiply, sums(group * shape.panels + panel), rows, register))?;
                    }
                }
            }
        }
        if tiles > 0 {
            w.advance(A, tiles * GROUP * shape.a_step())?;
            w.advance(B, tiles * TILE)?;
        }
        Ok(())
    }
}

/// A tile of sums.
pub(super) fn sums(nth: usize) -> Register {
    Register::TMM0 + nth as u32
}

/// Loads what the rows of tiles are apart.
fn strides(w: &mut Writer, shape: &Shape) -> Result<(), IcedError> {
    for (register, bytes) in [(A_STRIDE, shape.a_stride), (C_STRIDE, shape.c_stride), (PANEL_STRIDE, STEP)] {
        w.push(Instruction::with2(Code::Mov_rm64_imm32, register, bytes as i32))?;
    }
    Ok(())
}

impl Writer {
    /// A tile in memory, its rows as far apart as a register says.
    pub(super) fn tile(&self, base: Register, bytes: usize, stride: Register) -> MemoryOperand {
        MemoryOperand::with_base_index_scale_displ_size(base, stride, 1, bytes as i64, 1)
    }

    pub(super) fn load_tile(&mut self, to: Register, from: MemoryOperand) -> Result<(), IcedError> {
        self.push(Instruction::with2(Code::VEX_Tileloadd_tmm_sibmem, to, from))
    }
}
