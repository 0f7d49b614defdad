//! As many multiply-adds as a core can do through our own lowering: the yardstick of what is bound by arithmetic.

use crate::loops::{Address, Buffer, Elem, Expr, Kernel, LANES, Stmt, Ty, Var};
use crate::lower::{Code, LowerError, Lowering, Target, compile};

/// Sums that are carried side by side: enough to hide the latency of one, and all fit into registers.
const CHAINS: usize = 12;

/// Multiply-adds of each chain in one iteration.
const UNROLL: usize = 8;

/// Iterations of one run.
const ITERATIONS: usize = 20_000;

/// A kernel of nothing but multiply-adds in registers.
pub struct MultiplyAdds {
    code: Code,
}

impl MultiplyAdds {
    /// Operations on floats of one [`MultiplyAdds::run`]: two for each lane.
    pub const FLOPS: f64 = (2 * LANES * CHAINS * UNROLL * ITERATIONS) as f64;

    /// Compiles the kernel for this machine.
    pub fn new() -> Result<MultiplyAdds, LowerError> {
        let code = compile(&[kernel()], &Target::host()?, &Lowering::default())?;
        Ok(MultiplyAdds { code })
    }

    /// Runs it on the calling thread; returns the sums.
    pub fn run(&self) -> [f32; LANES * CHAINS] {
        let mut memory = [[1.0f32; LANES]; CHAINS + 2];
        memory[CHAINS] = [0.5; LANES];
        // SAFETY: the kernel names neither frame nor layer, and of `scratch` only as many floats as `memory` has.
        unsafe { self.code.call(0, std::ptr::null(), std::ptr::null(), 0, 1, memory.as_mut_ptr().cast()) };
        std::array::from_fn(|i| memory[i / LANES][i % LANES])
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

    #[test]
    fn sums_are_right() {
        assert_eq!(MultiplyAdds::new().unwrap().run(), [2.0; LANES * CHAINS]);
    }

    #[test]
    fn registers_are_not_spilled() {
        let (_, asm) = crate::lower::compile_text(&kernel(), &Target::named("x86_64").unwrap()).unwrap();
        let fma = asm.lines().filter(|l| l.contains("vfmadd")).count();
        assert_eq!(fma, CHAINS * UNROLL);
        assert!(asm.lines().count() < fma + 60, "{asm}");
    }
}
