//! Nothing but multiplications and additions in registers, at 256 and 512 bits.

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Code, IcedError, Instruction, Register};

use super::{COUNT, Writer};
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
    let wide = cores.bits == 512;
    let has = serve(cores, format, format) && (wide || format == Format::F32);
    has.then(|| write(format, chains(cores), wide, iterations))
}

fn write(format: Format, chains: usize, wide: bool, iterations: usize) -> Result<Vec<u8>, IcedError> {
    let mut w = Writer { code: CodeAssembler::new(64)?, wide };
    let (ones, multiply) = match format {
        Format::F32 => {
            (1f32.to_bits(), [Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256])
        }
        Format::Bf16 => (0x3f80_3f80, [Code::EVEX_Vdpbf16ps_zmm_k1z_zmm_zmmm512b32, Code::INVALID]),
        Format::Codes(_) => (0x0101_0101, [Code::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32, Code::INVALID]),
    };
    let first = w.first();
    let sum = |chain: usize| first + chain as u32;
    let one = sum(chains);
    if wide {
        w.constant(one, ones)?;
    } else {
        let narrow = Register::XMM0 + chains as u32;
        w.push(Instruction::with2(Code::Mov_r32_imm32, COUNT, ones))?;
        w.push(Instruction::with2(Code::VEX_Vmovd_xmm_rm32, narrow, COUNT))?;
        w.push(Instruction::with2(Code::VEX_Vpbroadcastd_ymm_xmmm32, one, narrow))?;
    }
    (0..chains).try_for_each(|chain| w.zero(sum(chain)))?;
    w.times(iterations, |w| (0..UNROLL * chains).try_for_each(|step| w.three(multiply, sum(step % chains), one, one)))?;
    for chain in 0..chains {
        if format.is_coded() {
            w.push(Instruction::with2(Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, sum(chain), sum(chain)))?;
        }
        let to = w.at(SCRATCH, chain * if wide { 64 } else { 32 });
        let store = w.of([Code::EVEX_Vmovups_zmmm512_k1z_zmm, Code::VEX_Vmovups_ymmm256_ymm]);
        w.push(Instruction::with2(store, to, sum(chain)))?;
    }
    w.code.vzeroupper()?;
    w.code.ret()?;
    w.code.assemble(0)
}
