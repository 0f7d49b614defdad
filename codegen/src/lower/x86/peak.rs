//! Nothing but multiplications and additions in registers, at 256 and 512 bits and of tiles.

use iced_x86::{Code, IcedError, Instruction, Register};

use super::codes::ONES;
use super::instructions::{ADD, BYTES, HALVES, WORDS};
use super::tiles::{self, PANELS, ROWS, sums};
use super::{STEP, Writer};
use crate::format::Format;
use crate::loops::{ByteProducts, Cores, GROUP};
use crate::lower::target::serve;

/// The fifth argument of a kernel.
const SCRATCH: Register = Register::R8;

/// How often each sum is added to in one iteration; where halves are summed, as often as they have room for.
pub(in crate::lower) fn unroll(format: Format, cores: &Cores) -> usize {
    if cores.sums_halves(format) { 8 } else { 4 }
}

/// Sums that are carried side by side: enough to hide the latency of one, and some registers are left.
fn chains(format: Format, cores: &Cores) -> usize {
    match cores.by(format).bits {
        512 => 24,
        _ if cores.sums_halves(format) => 6,
        _ => 12,
    }
}

/// Tiles of sums that are.
const TILES: usize = 4;

/// Numbers that the kernel leaves for operands that are stored so.
pub(in crate::lower) fn numbers(format: Format, cores: &Cores) -> usize {
    match of_tiles(format, cores) {
        true => TILES * GROUP * GROUP,
        false => chains(format, cores) * cores.by(format).bits as usize / 32,
    }
}

/// Whether tiles multiply them.
pub(in crate::lower) fn of_tiles(format: Format, cores: &Cores) -> bool {
    cores.tiles_serve(format, format, format.block().max(64))
}

/// A kernel that adds products of ones to sums, again and again, and stores the sums as floats at the start of its
/// scratch. `None` where the machine has no core that multiplies what is stored so.
pub(in crate::lower) fn assemble(
    format: Format,
    cores: &Cores,
    iterations: usize,
) -> Option<Result<Vec<u8>, IcedError>> {
    let has = serve(cores, format, format) && (cores.bits == 512 || format != Format::Bf16);
    has.then(
        || if of_tiles(format, cores) { tiles(format, cores, iterations) } else { write(format, cores, iterations) },
    )
}

/// The same with tiles.
fn tiles(format: Format, cores: &Cores, iterations: usize) -> Result<Vec<u8>, IcedError> {
    let mut w = Writer::new(cores)?;
    let (a, b) = (ROWS[0], PANELS[0]);
    let sum = Register::ZMM0;
    tiles::set_up(&mut w)?;
    w.constant(sum, ones(format))?;
    w.push(Instruction::with2(Code::Mov_rm64_imm32, tiles::PANEL_STRIDE, STEP as i32))?;
    let line = |w: &Writer, nth: usize| w.at(SCRATCH, nth * STEP);
    for nth in 0..GROUP {
        let to = line(&w, nth);
        w.push(Instruction::with2(Code::EVEX_Vmovups_zmmm512_k1z_zmm, to, sum))?;
    }
    for tile in [a, b] {
        let from = w.tile(SCRATCH, 0, tiles::PANEL_STRIDE);
        w.load_tile(tile, from)?;
    }
    (0..TILES).try_for_each(|tile| w.push(Instruction::with1(Code::VEX_Tilezero_tmm, sums(tile))))?;
    let code = if format.is_coded() { Code::VEX_Tdpbsud_tmm_tmm_tmm } else { Code::VEX_Tdpbf16ps_tmm_tmm_tmm };
    w.times(iterations, |w| {
        (0..unroll(format, cores) * TILES)
            .try_for_each(|step| w.push(Instruction::with3(code, sums(step % TILES), a, b)))
    })?;
    for tile in 0..TILES {
        let to = w.tile(SCRATCH, tile * GROUP * STEP, tiles::PANEL_STRIDE);
        w.push(Instruction::with2(Code::VEX_Tilestored_sibmem_tmm, to, sums(tile)))?;
    }
    for nth in (0..TILES * GROUP).filter(|_| format.is_coded()) {
        let from = line(&w, nth);
        w.push(Instruction::with2(Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, sum, from))?;
        w.push(Instruction::with2(Code::EVEX_Vmovups_zmmm512_k1z_zmm, from, sum))?;
    }
    tiles::leave(&mut w)?;
    w.code.vzeroupper()?;
    w.code.ret()?;
    w.code.assemble(0)
}

/// As many ones as are multiplied at once in a lane.
fn ones(format: Format) -> u32 {
    match format {
        Format::F32 => 1f32.to_bits(),
        Format::Bf16 => 0x3f80_3f80,
        Format::Codes(_) => 0x0101_0101,
        Format::Words(_) | Format::I16 => ONES,
    }
}

fn write(format: Format, cores: &Cores, iterations: usize) -> Result<Vec<u8>, IcedError> {
    let (mut w, chains) = (Writer::new(&cores.by(format))?, chains(format, cores));
    let floats = [Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256];
    let first = w.first();
    let sum = |chain: usize| first + chain as u32;
    let one = sum(12.max(chains));
    w.constant(one, ones(format))?;
    (0..chains).try_for_each(|chain| w.zero(sum(chain)))?;
    let by_pairs = cores.bytes == Some(ByteProducts::Avx2);
    if by_pairs {
        w.constant(w.ones(), ONES)?;
    }
    // What a product is made in: of a row's numbers, which the panel's have signs for.
    let product = Register::YMM13;
    let copy = |w: &mut Writer| w.push(Instruction::with2(Code::VEX_Vmovaps_ymm_ymmm256, product, one));
    let unroll = unroll(format, cores);
    w.times(iterations, |w| {
        let sums = (0..unroll * chains).map(|step| step % chains);
        if cores.sums_halves(format) {
            let halves = |chain: usize| sum(chains + chain);
            (0..chains).try_for_each(|chain| w.zero(halves(chain)))?;
            for chain in sums {
                copy(w)?;
                w.add_pairs(halves(chain), one, product, None, true)?;
            }
            return (0..chains).try_for_each(|chain| {
                w.three(WORDS, halves(chain), halves(chain), w.ones())?;
                w.three(ADD, sum(chain), sum(chain), halves(chain))
            });
        }
        sums.map(sum).try_for_each(|sum| match format {
            Format::F32 => w.three(floats, sum, one, one),
            Format::Bf16 => w.three([Code::EVEX_Vdpbf16ps_zmm_k1z_zmm_zmmm512b32, Code::INVALID], sum, one, one),
            Format::I16 if !by_pairs => w.dot(HALVES, sum, one, one),
            Format::Words(_) | Format::I16 => {
                w.three(WORDS, product, one, one)?;
                w.three(ADD, sum, sum, product)
            }
            Format::Codes(_) if by_pairs => {
                copy(w)?;
                w.add_pairs(sum, one, product, Some(one), false)
            }
            Format::Codes(_) => w.dot(BYTES, sum, one, one),
        })
    })?;
    for chain in 0..chains {
        if format.is_coded() {
            let convert = w.of([Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, Code::VEX_Vcvtdq2ps_ymm_ymmm256]);
            w.push(Instruction::with2(convert, sum(chain), sum(chain)))?;
        }
        let to = w.at(SCRATCH, chain * if w.wide { 64 } else { 32 });
        let store = w.of([Code::EVEX_Vmovups_zmmm512_k1z_zmm, Code::VEX_Vmovups_ymmm256_ymm]);
        w.push(Instruction::with2(store, to, sum(chain)))?;
    }
    w.code.vzeroupper()?;
    w.code.ret()?;
    w.code.assemble(0)
}
