//! The contraction cores on one worker, beside this machine's peaks in the same run: multiply-adds of floats from registers,
//! as wide as the cores, and reading memory that no cache holds. Each result is checked.
//!
//! `cargo bench -p einfuse-codegen --bench core`

use std::time::Instant;

use einfuse_codegen::format::{Elem, Format, PANEL};

use einfuse_codegen::loops::{Address, Buffer, Core, Expr, Fold, Kernel, LANES, Stmt, Ty, Var};
use einfuse_codegen::lower::{Code, Left, Lowering, Target, compile};
use einfuse_codegen::peak::MultiplyAdds;

const A: usize = 4;
const B: usize = 5;
const C: usize = 6;

/// A kernel, what it is called with, and what one run of it amounts to.
struct Case {
    name: String,
    code: Code,
    frame: Vec<u64>,
    flops: f64,
    bytes: f64,
    best: f64,
}

impl Case {
    fn new(kernel: &Kernel, buffers: &[&[u8]], flops: usize, bytes: usize) -> Self {
        let how = Lowering { verify: false, keep_text: std::env::var_os("ASM").is_some() };
        let target = Target::host().unwrap_or_else(|e| panic!("{e}"));
        let start = Instant::now();
        let code = compile(std::slice::from_ref(kernel), &target, &how).unwrap_or_else(|e| panic!("{e}"));
        let took = start.elapsed().as_secs_f64();
        let (instructions, size) = (code.instructions(0), code.bytes(0));
        println!("compiled {:20} {instructions:5} instructions, {size:5} bytes, {:6.0} us", kernel.name, took * 1e6);
        if let Some(asm) = code.asm(0) {
            println!("{asm}");
        }
        let frame = [0; 4].into_iter().chain(buffers.iter().map(|b| b.as_ptr() as u64)).collect();
        let (flops, bytes) = (flops as f64, bytes as f64);
        Case { name: kernel.name.clone(), code, frame, flops, bytes, best: f64::INFINITY }
    }

    /// Runs for about two hundredths of a second, and keeps the best time.
    fn run(&mut self) {
        let mut spent = 0.0;
        while spent < 0.02 {
            let start = Instant::now();
            // SAFETY: the frame holds what the kernel names, with buffers of the sizes its loops cover.
            unsafe {
                self.code.call(0, self.frame.as_ptr(), std::ptr::null(), 0, &[Left::default()], std::ptr::null_mut())
            }
            let took = start.elapsed().as_secs_f64();
            self.best = self.best.min(took);
            spent += took;
        }
    }

    fn gflops(&self) -> f64 {
        self.flops / self.best / 1e9
    }

    fn gbytes(&self) -> f64 {
        self.bytes / self.best / 1e9
    }
}

fn kernel(name: &str, vars: Vec<Ty>, body: Vec<Stmt>) -> Kernel {
    Kernel { name: name.to_string(), vars, scratch: 0, body }
}

fn count(var: u32, to: usize, step: usize, body: Vec<Stmt>) -> Stmt {
    Stmt::For { var: Var(var), from: 0.into(), to: to.into(), step: step as i64, body }
}

/// The sum of a buffer.
fn read_peak(floats: usize) -> Kernel {
    let sums = 8;
    let sum = |i: usize| Var(i as u32 + 1);
    let mut body: Vec<Stmt> = (0..sums).map(|i| Stmt::Let(sum(i), Expr::Float(0.0).splat())).collect();
    let add = |i: usize| {
        let x = Address::new(Buffer::Frame(B), Expr::Var(Var(0)) + i * LANES).load4(Elem::F32);
        Stmt::Set(sum(i), Expr::Var(sum(i)) + x)
    };
    body.push(count(0, floats, sums * LANES, (0..sums).map(add).collect()));
    let total = (1..sums).fold(Expr::Var(sum(0)), |total, i| total + sum(i));
    body.push(Stmt::Store { elem: Elem::F32, at: Address::new(Buffer::Frame(C), 0), value: total.fold(Fold::Sum) });
    kernel("read_peak", [vec![Ty::Int], vec![Ty::Floats; sums]].concat(), body)
}

/// Rows in blocks, by panels: `c[m, n] = a[m, k] b[n / 16, k, n % 16]`.
fn product(name: &str, m: usize, n: usize, depth: usize, rows: usize, elem: Elem) -> Kernel {
    let (panel, row) = (Var(0), Var(1));
    let core = Core {
        rows,
        depth: depth.into(),
        a: Address::new(Buffer::Frame(A), Expr::Var(row) * depth),
        a_format: Format::F32,
        a_stride: depth.into(),
        panels: 1,
        b: Address::new(Buffer::Frame(B), Expr::Var(panel) * (depth * PANEL)),
        b_format: Format::of(elem),
        b_stride: 0.into(),
        next: None,
        c: Address::new(Buffer::Frame(C), Expr::Var(row) * n + Expr::Var(panel) * PANEL),
        c_stride: n.into(),
        accumulate: false,
    };
    let body = count(0, n / PANEL, 1, vec![count(1, m, rows, vec![Stmt::Core(core)])]);
    kernel(name, vec![Ty::Int; 2], vec![body])
}

fn floats(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn as_bytes(floats: &[f32], elem: Elem) -> Vec<u8> {
    match elem {
        Elem::Bf16 => floats.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        _ => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Compares some elements of a product with sums in `f64`.
fn check(a: &[f32], b: &[u8], c: &[u8], n: usize, depth: usize, elem: Elem) {
    let value = |k: usize, column: usize| {
        let (panel, j) = (column / PANEL, column % PANEL);
        let together = Format::of(elem).together();
        let at = panel * depth * PANEL + (k / together * PANEL + j) * together + k % together;
        f64::from(f32::from_bits(match elem {
            Elem::Bf16 => u32::from_le_bytes([0, 0, b[2 * at], b[2 * at + 1]]),
            _ => u32::from_le_bytes([b[4 * at], b[4 * at + 1], b[4 * at + 2], b[4 * at + 3]]),
        }))
    };
    for (row, a) in a.chunks(depth).enumerate() {
        for column in (row % 7..n).step_by(1 + n / 50) {
            let exact: f64 = a.iter().enumerate().map(|(k, x)| f64::from(*x) * value(k, column)).sum();
            let at = 4 * (row * n + column);
            let got = f32::from_le_bytes([c[at], c[at + 1], c[at + 2], c[at + 3]]);
            let bound = depth as f64 * f64::from(f32::EPSILON) * (depth as f64).sqrt();
            assert!((exact - f64::from(got)).abs() < bound, "row {row}, column {column}: {got}, not {exact}");
        }
    }
}

/// Compiles all kernels together, a few times.
fn compile_time(kernels: &[Kernel]) {
    let how = Lowering { verify: false, keep_text: false };
    let target = Target::host().unwrap_or_else(|e| panic!("{e}"));
    let mut best = f64::INFINITY;
    let mut instructions = 0;
    for _ in 0..9 {
        let start = Instant::now();
        let code = compile(kernels, &target, &how).unwrap_or_else(|e| panic!("{e}"));
        best = best.min(start.elapsed().as_secs_f64());
        instructions = (0..kernels.len()).map(|kernel| code.instructions(kernel)).sum();
    }
    println!(
        "compiling: {:.0} us a kernel, {:.2} us an instruction ({instructions} instructions in {} kernels)",
        best * 1e6 / kernels.len() as f64,
        best * 1e6 / instructions as f64,
        kernels.len()
    );
}

fn main() {
    let depth = 576;
    let wide = (64 << 20) / (4 * depth) / PANEL * PANEL * 2;
    let factor = as_bytes(&[0.5], Elem::F32);
    let sink = vec![0u8; 4096];
    let multiply_adds = MultiplyAdds::new(Format::F32).unwrap_or_else(|e| panic!("{e}"));
    let mut peak = 0.0f64;

    let mut cases = Vec::new();
    let mut kernels = Vec::new();
    let mut kept = Vec::new();
    for elem in [Elem::F32, Elem::Bf16] {
        for rows in [1, 2, 4, 8, 16] {
            for (place, m, n) in [("cache", rows * 16, 576), ("memory", rows, wide)] {
                let a = floats(m * depth);
                let b = as_bytes(&floats(n * depth), elem);
                let (a_bytes, c) = (as_bytes(&a, Elem::F32), vec![0u8; 4 * m * n]);
                let name = format!("{elem}_{rows}_rows_{place}");
                let kernel = product(&name, m, n, depth, rows, elem);
                kernels.push(kernel.clone());
                let mut case = Case::new(&kernel, &[&a_bytes, &b, &c], 2 * m * n * depth, b.len());
                case.run();
                check(&a, &b, &c, n, depth, elem);
                cases.push(case);
                kept.push((a_bytes, b, c));
            }
        }
    }
    // The same bytes as the first case that reads memory.
    let (_, stream, _) = &kept[1];
    let mut read = Case::new(&read_peak(wide * depth), &[&factor, stream, &sink], 0, stream.len());
    for _ in 0..7 {
        for case in cases.iter_mut().chain([&mut read]) {
            case.run();
        }
        let start = Instant::now();
        std::hint::black_box(multiply_adds.run());
        peak = peak.max(multiply_adds.operations() / start.elapsed().as_secs_f64() / 1e9);
    }
    compile_time(&kernels);
    let bits = multiply_adds.multiplier().bits;
    println!("peak: {peak:.1} GFLOP/s of {bits}-bit multiply-adds, {:.1} GB/s read from memory", read.gbytes());
    for case in &cases {
        println!(
            "{:20} {:6.1} GFLOP/s ({:.2} of peak)  {:6.1} GB/s of panels ({:.2} of memory)",
            case.name,
            case.gflops(),
            case.gflops() / peak,
            case.gbytes(),
            case.gbytes() / read.gbytes()
        );
    }
}
