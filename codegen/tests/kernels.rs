//! Random kernels: their machine code does what the interpreter does, and their text reads back.

mod support;

use einfuse_codegen::format::Elem;

use einfuse_codegen::loops::{
    Address, Arg, Binary, Buffer, Expr, Fold, Kernel, LANES, Memory, Share, Slot, Stmt, Ty, Unary, Var, parse, verify,
};
use support::{Random, both};

/// Elements of each buffer.
const FLOATS: i64 = 24;
const INTS: i64 = 12;

struct Generator {
    random: Random,
    vars: Vec<Ty>,
    /// The visible variables, and whether each may be set here.
    visible: Vec<(Var, bool)>,
    parallel: bool,
}

impl Generator {
    fn kernel(seed: u64) -> Kernel {
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut generator = Generator { random, vars: Vec::new(), visible: Vec::new(), parallel: false };
        let body = generator.block(3);
        Kernel { name: format!("random_{seed}"), vars: generator.vars, scratch: 4 * FLOATS as usize, body }
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.random.below(all.len())]
    }

    fn define(&mut self, ty: Ty, may_be_set: bool) -> Var {
        let var = Var(self.vars.len() as u32);
        self.vars.push(ty);
        self.visible.push((var, may_be_set));
        var
    }

    fn block(&mut self, depth: usize) -> Vec<Stmt> {
        let outside = self.visible.len();
        let statements = 2 + self.random.below(5);
        let body = (0..statements).map(|_| self.stmt(depth)).collect();
        self.visible.truncate(outside);
        body
    }

    /// A block with a counter.
    fn counted(&mut self, depth: usize) -> (Var, Vec<Stmt>) {
        let var = self.define(Ty::Int, false);
        let body = self.block(depth);
        self.visible.pop();
        (var, body)
    }

    fn stmt(&mut self, depth: usize) -> Stmt {
        let choice = self.random.below(if depth == 0 { 6 } else { 10 });
        match choice {
            0..=2 => {
                let ty = self.pick(&[Ty::Int, Ty::Float, Ty::Mask, Ty::Ints, Ty::Floats, Ty::Masks]);
                let value = self.expr(ty, 3);
                Stmt::Let(self.define(ty, true), value)
            }
            3 | 4 => {
                let settable: Vec<Var> = self.visible.iter().filter(|(_, set)| *set).map(|(var, _)| *var).collect();
                if settable.is_empty() {
                    return Stmt::Note("nothing \"to\" set\n\\".into());
                }
                let var = self.pick(&settable);
                let value = self.expr(self.vars[var.0 as usize], 3);
                Stmt::Set(var, value)
            }
            5 | 6 => {
                let ty = self.pick(&[Ty::Int, Ty::Float, Ty::Ints, Ty::Floats]);
                let value = self.expr(ty, 3);
                let elem = if matches!(ty, Ty::Int | Ty::Ints) { Elem::I32 } else { Elem::F32 };
                let at = self.address(elem, if matches!(ty, Ty::Int | Ty::Float) { 1 } else { LANES });
                Stmt::Store { elem, at, value }
            }
            7 => {
                let from = self.small();
                let to = self.small();
                let step = self.pick(&[1, 1, 2, 4]);
                let (var, body) = self.counted(depth - 1);
                Stmt::For { var, from, to, step, body }
            }
            8 => {
                let mask = self.expr(Ty::Mask, 2);
                let then = self.block(depth - 1);
                let otherwise = if self.random.below(2) == 0 { Vec::new() } else { self.block(depth - 1) };
                Stmt::If { mask, then, otherwise }
            }
            _ if self.parallel => Stmt::Note("within".into()),
            _ => {
                let count = self.small();
                self.parallel = true;
                let fixed = self.visible.iter().map(|(var, _)| (*var, false)).collect();
                let outside = std::mem::replace(&mut self.visible, fixed);
                let (var, body) = self.counted(depth - 1);
                self.visible = outside;
                self.parallel = false;
                Stmt::Parallel { var, count, share: Share::Blocks, body }
            }
        }
    }

    /// A loop's bound.
    fn small(&mut self) -> Expr {
        if self.random.below(2) == 0 {
            return Expr::Int(self.random.below(7) as i64);
        }
        let x = self.expr(Ty::Int, 1);
        Expr::Binary(Binary::Rem, x.into(), Expr::Int(6).into())
    }

    fn address(&mut self, elem: Elem, lanes: usize) -> Address {
        let buffer = match (elem, self.random.below(4)) {
            (Elem::I32, 0) => Buffer::Layer(0),
            (Elem::I32, _) => Buffer::Frame(4),
            (_, 0) => Buffer::Arena(8),
            (_, 1) => Buffer::Scratch(0),
            (_, 2) => Buffer::Layer(2),
            _ => {
                let page = Expr::Binary(Binary::Rem, self.expr(Ty::Int, 1).into(), Expr::Int(3).into());
                Buffer::Page { table: 6, slot: 1, page: page.into() }
            }
        };
        let count = if elem == Elem::I32 { INTS } else { FLOATS };
        let range = count - lanes as i64 + 1;
        let offset = match self.random.below(3) {
            0 => Expr::Int(self.random.below(range as usize) as i64),
            1 => Expr::Binary(Binary::Rem, self.expr(Ty::Int, 2).into(), Expr::Int(range).into()),
            // Sums, as addresses are made of.
            _ => {
                let inner = Expr::Binary(Binary::Rem, self.expr(Ty::Int, 1).into(), Expr::Int(4).into());
                inner * 2 + Expr::Int(self.random.below(range as usize - 6) as i64)
            }
        };
        Address { buffer, offset }
    }

    fn load(&mut self, elem: Elem, lanes: usize) -> Expr {
        Expr::Load { elem, lanes, at: self.address(elem, lanes).into() }
    }

    fn expr(&mut self, ty: Ty, depth: usize) -> Expr {
        let known: Vec<Var> =
            self.visible.iter().map(|(var, _)| *var).filter(|var| self.vars[var.0 as usize] == ty).collect();
        if !known.is_empty() && self.random.below(3) == 0 {
            return Expr::Var(self.pick(&known));
        }
        let leaf = depth == 0;
        let scalar = match ty {
            Ty::Ints => Ty::Int,
            Ty::Floats => Ty::Float,
            _ => Ty::Mask,
        };
        let down = depth.saturating_sub(1);
        match (ty, self.random.below(if leaf { 2 } else { 8 })) {
            (Ty::Int, 0) => Expr::Int(self.pick(&[0, 1, 2, 3, 4, 7, 8, 24, -1, -5, 100])),
            (Ty::Int, 1) => Expr::Arg(self.pick(&[Arg::Tokens, Arg::Past, Arg::First])),
            (Ty::Int, 2) => self.load(Elem::I32, 1),
            (Ty::Float, 0) => Expr::Float(self.pick(&[0.0, -0.0, 1.0, 0.1, -2.5e-9, 3e20, f32::INFINITY, f32::NAN])),
            (Ty::Float, 1) | (Ty::Float, 2) => {
                let elem = self.pick(&[Elem::F32, Elem::F32, Elem::Bf16]);
                self.load(elem, 1)
            }
            (Ty::Float, 3) => Expr::Unary(Unary::ToFloat, self.expr(Ty::Int, down).into()),
            (Ty::Float, 4) => {
                let fold = self.pick(&[Fold::Sum, Fold::Max, Fold::Min]);
                Expr::Fold(fold, self.expr(Ty::Floats, down).into())
            }
            (Ty::Mask, 0 | 1) => Expr::Binary(Binary::Lt, Expr::Arg(Arg::Past).into(), Expr::Int(4).into()),
            (Ty::Ints, 0) => Expr::Iota(self.expr(Ty::Int, down).into()),
            (Ty::Ints, 2) => self.load(Elem::I32, LANES),
            (Ty::Floats, 1 | 2) => {
                let elem = self.pick(&[Elem::F32, Elem::F32, Elem::Bf16]);
                self.load(elem, LANES)
            }
            (Ty::Floats, 3) => Expr::Unary(Unary::ToFloat, self.expr(Ty::Ints, down).into()),
            (Ty::Floats, 4) => Expr::Gather(Box::new([(); 4].map(|()| self.expr(Ty::Float, down)))),
            (Ty::Ints | Ty::Floats | Ty::Masks, 0 | 1) => Expr::Splat(self.expr(scalar, down).into()),
            (_, 5) => {
                let mask = self.expr(ty.mask(), down);
                Expr::Select(mask.into(), self.expr(ty, down).into(), self.expr(ty, down).into())
            }
            (Ty::Mask | Ty::Masks, 2..=4) => {
                let of = match (ty, self.random.below(2)) {
                    (Ty::Mask, 0) => Ty::Int,
                    (Ty::Mask, _) => Ty::Float,
                    (_, 0) => Ty::Ints,
                    _ => Ty::Floats,
                };
                let op = self.pick(&[Binary::Lt, Binary::Le, Binary::Gt, Binary::Ge, Binary::Eq, Binary::Ne]);
                Expr::Binary(op, self.expr(of, down).into(), self.expr(of, down).into())
            }
            (Ty::Mask | Ty::Masks, 6) => Expr::Unary(Unary::Not, self.expr(ty, down).into()),
            (Ty::Mask | Ty::Masks, _) => {
                let op = self.pick(&[Binary::And, Binary::Or]);
                Expr::Binary(op, self.expr(ty, down).into(), self.expr(ty, down).into())
            }
            (Ty::Int | Ty::Ints, 6) => Expr::Unary(Unary::Neg, self.expr(ty, down).into()),
            (Ty::Int | Ty::Ints, _) => {
                use Binary::*;
                let op = self.pick(&[Add, Add, Sub, Mul, Mul, Div, Rem, Min, Max]);
                Expr::Binary(op, self.expr(ty, down).into(), self.expr(ty, down).into())
            }
            (Ty::Float | Ty::Floats, 6) => {
                let op = self.pick(&[Unary::Neg, Unary::Abs, Unary::Sqrt, Unary::Rsqrt]);
                Expr::Unary(op, self.expr(ty, down).into())
            }
            (Ty::Float | Ty::Floats, _) => {
                use Binary::*;
                if self.random.below(4) == 0 {
                    let [a, b, c] = [(); 3].map(|()| self.expr(ty, down).into());
                    return Expr::Fma(a, b, c);
                }
                let op = self.pick(&[Add, Sub, Mul, Div, Min, Max]);
                Expr::Binary(op, self.expr(ty, down).into(), self.expr(ty, down).into())
            }
        }
    }
}

fn memory(random: &mut Random) -> Memory {
    let mut floats =
        |count: i64| -> Vec<u8> { (0..count).flat_map(|_| (random.float() * 4.0).to_le_bytes()).collect() };
    let (arena, layer, pages) = (floats(FLOATS + 2), floats(FLOATS), [(); 3].map(|()| floats(FLOATS + 2)));
    let mut ints = || (0..INTS).flat_map(|_| (random.below(60) as i32 - 20).to_le_bytes()).collect();
    Memory {
        tokens: 3,
        past: 5,
        first: 2,
        arena,
        frame: [(4, Slot::Bytes(ints())), (6, Slot::Pages(pages.to_vec()))].into(),
        layer: [(0, Slot::Bytes(ints())), (1, Slot::Offset(8)), (2, Slot::Bytes(layer))].into(),
    }
}

/// All floats with one form of what is not a number: which one arises is not defined.
fn canonical(memory: &Memory) -> Memory {
    let mut memory = memory.clone();
    let mut fix = |bytes: &mut Vec<u8>| {
        for word in bytes.chunks_exact_mut(4) {
            if f32::from_le_bytes([word[0], word[1], word[2], word[3]]).is_nan() {
                word.copy_from_slice(&f32::NAN.to_le_bytes());
            }
        }
    };
    fix(&mut memory.arena);
    for slot in memory.frame.values_mut().chain(memory.layer.values_mut()) {
        match slot {
            Slot::Bytes(bytes) => fix(bytes),
            Slot::Pages(pages) => pages.iter_mut().for_each(&mut fix),
            Slot::Offset(_) => {}
        }
    }
    memory
}

#[test]
fn machine_code_does_what_the_interpreter_does() {
    let mut ran = 0;
    for seed in 0..400 {
        let kernel = Generator::kernel(seed);
        let memory = memory(&mut Random(seed + 1));
        let workers = 1 + seed as usize % 3;
        let (expected, actual) = both(&kernel, &memory, workers).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
        ran += usize::from(expected != memory);
        assert!(canonical(&expected) == canonical(&actual), "seed {seed}, {workers} workers\n{kernel}");
    }
    assert!(ran > 200, "only {ran} kernels did anything");
}

#[test]
fn text_reads_back() {
    for seed in 0..1000 {
        let kernel = Generator::kernel(seed);
        verify(&kernel).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
        let text = kernel.to_string();
        let again = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        // As debug text, in which what is not a number equals itself.
        assert_eq!(format!("{again:?}"), format!("{kernel:?}"), "{text}");
        assert_eq!(again.to_string(), text);
    }
}

#[test]
fn corrupted_text_is_refused_or_read() {
    let mut random = Random(7);
    for seed in 0..300 {
        let text = Generator::kernel(seed).to_string();
        let mut bytes = text.clone().into_bytes();
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes.truncate(at),
                1 => bytes[at] = b"v0(){};*-.\"x19"[random.below(14)],
                _ => {
                    bytes.remove(at);
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        if let Ok(kernel) = parse(&String::from_utf8_lossy(&bytes)) {
            // Well formed or not: an answer.
            let _ = verify(&kernel);
        }
    }
}
