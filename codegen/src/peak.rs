//! As many multiply-adds as a core can do: the yardstick of what is bound by arithmetic.

use std::fmt;

use crate::format::{Elem, Format};

use crate::loops::{Address, Buffer, Expr, GROUP, Kernel, LANES, Stmt, Ty, Var};
use crate::lower::{Code, Left, LowerError, Lowering, Multiplying, Target, compile, multiplying};

/// Sums that are carried side by side: enough to hide the latency of one, and all fit into registers.
const CHAINS: usize = 12;

/// Multiply-adds of each chain in one iteration.
const UNROLL: usize = 8;

/// Iterations of one run.
const ITERATIONS: usize = 10_000;

/// What multiplies and adds in a contraction, in the widest vectors that this machine's cores have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiplier {
    /// How what it multiplies is stored: `F32`; `Bf16`, in pairs; `Q8`, bytes of which four products are added at once; `Q4`, of
    /// which pairs are, as numbers of 16 bits; or words, in pairs: for bytes, or as `I16`.
    pub format: Format,
    /// Bits of its vectors.
    pub bits: u32,
    /// Whether it multiplies tiles of vectors, sixteen rows by sixteen columns.
    pub tiles: bool,
}

impl fmt::Display for Multiplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.format {
            Format::F32 => "f32",
            Format::Bf16 => "pairs of bf16",
            Format::Q4 => "pairs of bytes",
            Format::Codes(_) => "fours of bytes",
            Format::Words(_) | Format::I16 => "pairs of words",
        };
        match self.tiles {
            true => write!(f, "{what} in tiles"),
            false => write!(f, "{what} at {} bits", self.bits),
        }
    }
}

/// A kernel of nothing but multiply-adds in registers.
pub struct MultiplyAdds {
    code: Code,
    multiplier: Multiplier,
    /// Floats that it leaves.
    sums: usize,
    /// How often it adds to each.
    steps: usize,
}

impl MultiplyAdds {
    /// Compiles the kernel for what this machine multiplies panels of a format with where there are many rows: a core
    /// for the format if it has one, else one of floats, at 128 bits if it has none of those either.
    ///
    /// # Errors
    /// If no code can be generated for this machine, or no memory be had for it.
    pub fn new(panels: Format) -> Result<MultiplyAdds, LowerError> {
        Self::on(panels, &Target::host()?)
    }

    /// The same for weights that are stored so, which may be multiplied otherwise: see [`Cores::unpacked`](crate::loops::Cores).
    ///
    /// # Errors
    /// As [`MultiplyAdds::new`].
    pub fn of_weights(stored: Format) -> Result<MultiplyAdds, LowerError> {
        let target = Target::host()?;
        Self::on(target.cores().unpacked(stored, 2 * GROUP * stored.block()), &target)
    }

    /// The same for a cache that is stored so.
    ///
    /// # Errors
    /// As [`MultiplyAdds::new`].
    pub fn of_cache(stored: Format) -> Result<MultiplyAdds, LowerError> {
        let target = Target::host()?;
        Self::on(target.cores().unpacked_run(stored, 2 * GROUP * stored.block()), &target)
    }

    fn on(panels: Format, target: &Target) -> Result<MultiplyAdds, LowerError> {
        let formats = match panels {
            Format::F32 => vec![Format::F32],
            Format::Bf16 => vec![Format::Bf16, Format::F32],
            Format::Codes(_) if target.cores().sums_halves(panels) => vec![Format::Q4, Format::F32],
            Format::Codes(_) => vec![target.cores().words_by(panels).unwrap_or(Format::Q8), Format::F32],
            Format::Words(_) | Format::I16 => vec![panels, Format::F32],
        };
        for format in formats {
            if let Some(Multiplying { code, sums, steps, tiles }) = multiplying(format, target, ITERATIONS)? {
                let multiplier = Multiplier { format, bits: target.cores().by(format).bits, tiles };
                return Ok(MultiplyAdds { code, multiplier, sums, steps });
            }
        }
        let code = compile(&[kernel()], target, &Lowering::default())?;
        let multiplier = Multiplier { format: Format::F32, bits: 32 * LANES as u32, tiles: false };
        Ok(MultiplyAdds { code, multiplier, sums: CHAINS * LANES, steps: UNROLL * ITERATIONS })
    }

    /// What it measures.
    pub fn multiplier(&self) -> Multiplier {
        self.multiplier
    }

    /// Multiplications and additions of one [`MultiplyAdds::run`].
    pub fn operations(&self) -> f64 {
        (2 * self.sums * self.steps * self.multiplier.format.together()) as f64
    }

    /// Runs it on the calling thread; returns the sums.
    pub fn run(&self) -> Vec<f32> {
        let mut memory = vec![1.0f32; self.sums.max(LANES * CHAINS) + 2 * LANES];
        memory[LANES * CHAINS..][..LANES].fill(0.5);
        // SAFETY: the kernel names neither frame nor layer, and of `scratch` only its sums, or with 128 bits its sums and
        // two vectors behind them: as many floats as `memory` has at least.
        unsafe {
            self.code.call(0, std::ptr::null(), std::ptr::null(), 0, &[Left::default()], memory.as_mut_ptr().cast())
        };
        memory.truncate(self.sums);
        memory
    }
}

/// `sum = sum * half + one`, again and again. The sums lie in memory, then half and one: constants would be loaded anew
/// at each use.
fn kernel() -> Kernel {
    let [counter, half, one] = [Var(0), Var(1), Var(2)];
    let sum = |chain: usize| Var(3 + chain as u32);
    let place = |chain: usize| Address::new(Buffer::Scratch(0), chain * LANES);
    let mut vars = vec![Ty::Int, Ty::Floats, Ty::Floats];
    vars.extend([Ty::Floats; CHAINS]);
    let mut body =
        vec![Stmt::Let(half, place(CHAINS).load4(Elem::F32)), Stmt::Let(one, place(CHAINS + 1).load4(Elem::F32))];
    body.extend((0..CHAINS).map(|chain| Stmt::Let(sum(chain), place(chain).load4(Elem::F32))));
    let step = |chain: usize| Stmt::Set(sum(chain), Expr::from(sum(chain)).fma(half, one));
    let steps = (0..UNROLL).flat_map(|_| (0..CHAINS).map(step)).collect();
    body.push(Stmt::For { var: counter, from: 0.into(), to: ITERATIONS.into(), step: 1, body: steps });
    body.extend((0..CHAINS).map(|chain| Stmt::Store {
        elem: Elem::F32,
        at: place(chain),
        value: Expr::from(sum(chain)),
    }));
    Kernel { name: "multiply_adds".to_owned(), vars, scratch: 4 * LANES * (CHAINS + 2), body }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{ByteProducts, Cores};

    #[test]
    fn sums_are_right() {
        let host = Target::host().unwrap();
        let cores = *host.cores();
        let by_pairs = Cores { bytes: cores.bytes.map(|_| ByteProducts::Avx2), tiles: false, ..cores };
        let narrower = Cores { bits: cores.bits.min(256), bf16: false, ..by_pairs };
        for target in [host.clone(), host.clone().with_cores(by_pairs), host.with_cores(narrower)] {
            for weights in Format::ALL {
                let kernel = MultiplyAdds::on(weights, &target).unwrap();
                let Multiplier { format, bits, tiles } = kernel.multiplier();
                assert_eq!(tiles, target.cores().tiles && format != Format::F32);
                assert_eq!(bits, target.cores().by(format).bits);
                let serve = match weights {
                    Format::I16 => target.cores().i16,
                    // Only where bytes take several instructions.
                    Format::Words(_) => target.cores().bytes == Some(ByteProducts::Avx2),
                    _ => target.cores().bytes.is_some(),
                };
                assert_eq!(format.is_coded(), weights.is_coded() && serve);
                let each = if bits == 128 { 2.0 } else { (kernel.steps * format.together()) as f32 };
                assert_eq!(kernel.run(), vec![each; kernel.sums], "{weights}: {}", kernel.multiplier());
            }
        }
    }

    #[test]
    fn weights_that_are_unpacked_are_multiplied_as_what_they_become() {
        let host = Target::host().unwrap();
        let cores = host.cores();
        for stored in [Format::F32, Format::Bf16, Format::Q8, Format::Q4] {
            let multiplier = MultiplyAdds::of_weights(stored).unwrap().multiplier();
            let unpacked = match stored {
                Format::Q8 if cores.tiles => Format::Bf16,
                Format::Bf16 if cores.i16 => Format::I16,
                stored => stored,
            };
            assert_eq!(multiplier, MultiplyAdds::new(unpacked).unwrap().multiplier());
        }
    }

    #[test]
    fn narrower_machines_have_narrower_yardsticks() {
        let host = Target::host().unwrap();
        for bits in [128, 256].into_iter().filter(|&bits| bits <= host.cores().bits) {
            let target = Target::host().unwrap().with_cores(Cores { bits, ..Cores::PORTABLE });
            for weights in Format::ALL {
                let kernel = MultiplyAdds::on(weights, &target).unwrap();
                assert_eq!(kernel.multiplier(), Multiplier { format: Format::F32, bits, tiles: false });
                let each = if bits == 128 { 2.0 } else { kernel.steps as f32 };
                assert_eq!(kernel.run(), vec![each; kernel.sums]);
                assert_eq!(kernel.operations(), (2 * kernel.sums * kernel.steps) as f64);
            }
        }
    }

    #[test]
    fn registers_are_not_spilled() {
        let (_, asm) = crate::lower::compile_text(&kernel(), &Target::named("x86_64").unwrap()).unwrap();
        let fma = asm.lines().filter(|l| l.contains("vfmadd")).count();
        assert_eq!(fma, CHAINS * UNROLL);
        assert!(asm.lines().count() < fma + 60, "{asm}");
    }
}
