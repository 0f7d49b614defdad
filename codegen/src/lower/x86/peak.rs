//! Nothing but multiplications and additions in registers, at 256 and 512 bits.

use iced_x86::{Code, IcedError, Instruction, Register};

use super::{BYTES, Writer};
use crate::loops::{Cores, Format};
use crate::lower::target::serve;

/// The fifth argument of a kernel.
const SCRATCH: Register = Register::R8;

/// How often each sum is added to in one iteration.
pub(in crate::lower) const UNROLL: usize = 4;

/// Sums that are carried side by side: enough to hide the latency of one, and some registers are left.
pub(in crate::lower) fn chains(cores: &Cores) -> usize {
    if cores.bits == 512 { 24 } else { 12 }
}

/// A kernel that adds products of ones to sums, again and again, and stores the sums as floats at the start of its
/// scratch. `None` where the machine has no core that multiplies what is stored so.
pub(in crate::lower) fn assemble(
    format: Format,
    cores: &Cores,
    iterations: usize,
) -> Option<Result<Vec<u8>, IcedError>> {
    let has = serve(cores, format, format) && (cores.bits == 512 || format != Format::Bf16);
    has.then(|| write(format, cores, iterations))
}

fn write(format: Format, cores: &Cores, iterations: usize) -> Result<Vec<u8>, IcedError> {
    let (mut w, chains) = (Writer::new(cores)?, chains(cores));
    let ones = match format {
        Format::F32 => 1f32.to_bits(),
        Format::Bf16 => 0x3f80_3f80,
        Format::Codes(_) => 0x0101_0101,
    };
    let floats = [Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256];
    let first = w.first();
    let sum = |chain: usize| first + chain as u32;
    let one = sum(chains);
    w.constant(one, ones)?;
    (0..chains).try_for_each(|chain| w.zero(sum(chain)))?;
    w.times(iterations, |w| {
        (0..UNROLL * chains).map(|step| sum(step % chains)).try_for_each(|sum| match format {
            Format::F32 => w.three(floats, sum, one, one),
            Format::Bf16 => w.three([Code::EVEX_Vdpbf16ps_zmm_k1z_zmm_zmmm512b32, Code::INVALID], sum, one, one),
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
