//! The cores of codes on one worker, of each width that this machine has, beside what it multiplies in registers in the widest.
//! Each result is held against the portable core's.
//!
//! `cargo bench -p einfuse-codegen --bench bytes`

use std::time::Instant;

use einfuse_codegen::loops::{
    Address, Buffer, Core, Cores, Expr, Format, GROUP, Kernel, MAX_ROWS, PANEL, Stmt, Ty, Var,
};
use einfuse_codegen::lower::{Code, Left, Lowering, Target, compile};
use einfuse_codegen::peak::MultiplyAdds;

const DEPTH: usize = 768;

struct Case {
    name: String,
    code: Code,
    a: Vec<u8>,
    b: Vec<u8>,
    c: Vec<f32>,
    operations: f64,
    best: f64,
}

impl Case {
    /// So many rows by so many panels.
    fn new(cores: Cores, target: Target, format: Format, rows: usize, panels: usize) -> Case {
        let columns = panels * PANEL;
        let (a_stride, panel) = (format.row(DEPTH).next_multiple_of(64), format.panel(DEPTH));
        let core = Core {
            rows,
            depth: DEPTH.into(),
            a: Address::new(Buffer::Frame(4), 0),
            a_format: format,
            a_stride: a_stride.into(),
            panels: 1,
            b: Address::new(Buffer::Frame(5), Expr::Var(Var(0)) * panel),
            b_format: format,
            b_stride: 0.into(),
            next: None,
            c: Address::new(Buffer::Frame(6), Expr::Var(Var(0)) * PANEL),
            c_stride: columns.into(),
            accumulate: false,
        };
        let body = vec![Stmt::Core(core)];
        let body = vec![Stmt::For { var: Var(0), from: 0.into(), to: panels.into(), step: 1, body }];
        let kernel = Kernel { name: "bytes".into(), vars: vec![Ty::Int], scratch: 0, body };
        let code =
            compile(&[kernel], &target.with_cores(cores), &Lowering::default()).unwrap_or_else(|e| panic!("{e}"));
        let tiles = rows.is_multiple_of(GROUP) && cores.tiles_serve(format, format, DEPTH);
        let with = if tiles { "tiles".to_owned() } else { format!("{} bits", cores.bits) };
        let name = format!("{format}, {rows} rows, {with}");
        let operations = (2 * rows * columns * DEPTH) as f64;
        let (mut a, b) = (positive(rows * a_stride), positive(panels * panel));
        if format.codes().is_some_and(|codes| codes.steps.is_some()) {
            // The sums of the parts of a row fit into 16 bits.
            for row in a.chunks_mut(a_stride) {
                row[DEPTH + 4 * (DEPTH / format.block())..].chunks_mut(4).for_each(|sum| sum[2..].fill(0));
            }
        }
        Case { name, code, a, b, c: vec![0.0; rows * columns], operations, best: f64::INFINITY }
    }

    /// Runs for about two hundredths of a second, and keeps the best time.
    fn run(&mut self) {
        let mut spent = 0.0;
        while spent < 0.02 {
            let [a, b] = [&self.a, &self.b].map(|bytes| bytes.as_ptr() as u64);
            let frame = [0, 0, 0, 0, a, b, self.c.as_mut_ptr() as u64];
            let start = Instant::now();
            // SAFETY: the frame holds what the kernel names, with buffers of the sizes its loop covers.
            unsafe { self.code.call(0, frame.as_ptr(), std::ptr::null(), 0, &[Left::default()], std::ptr::null_mut()) }
            let took = start.elapsed().as_secs_f64();
            self.best = self.best.min(took);
            spent += took;
        }
    }
}

/// Bytes that are positive numbers, be they read as codes, as their sums, or as floats: below one.
fn positive(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0x20 | (state >> 27) as u8
    };
    (0..count).map(next).collect()
}

fn main() {
    let target = Target::host().unwrap_or_else(|e| panic!("{e}"));
    let host = *target.cores();
    let narrower = (host.bits > 256).then_some(Cores { bits: 256, bf16: false, tiles: false, ..host });
    let all: Vec<Cores> =
        [Some(Cores::PORTABLE), narrower, (host.bits > 128).then_some(host)].into_iter().flatten().collect();
    let registers = MultiplyAdds::new(Format::Q8).unwrap_or_else(|e| panic!("{e}"));
    let mut peak = 0.0f64;
    let mut cases = Vec::new();
    for format in [Format::Q8, Format::Q4, Format::Q4.unpacked()] {
        // In the second cache; and in memory. Of as many rows as tiles take: with them and with the portable core.
        for (rows, panels) in [(1, 8), (6, 8), (MAX_ROWS, 8), (1, 8192)] {
            let mut expected: Option<Vec<f32>> = None;
            let serves =
                |cores: &&Cores| rows <= 6 || **cores == Cores::PORTABLE || cores.tiles && format != Format::Q4;
            for &cores in all.iter().filter(serves) {
                let mut case = Case::new(cores, target.clone(), format, rows, panels);
                case.run();
                let expected = expected.get_or_insert_with(|| case.c.clone());
                // All terms are positive: each addition and product rounds by half an ulp of less than the result.
                let summed = format.codes().map_or(1, |codes| codes.summed());
                let bound = (DEPTH / summed + 3) as f32 * f32::EPSILON;
                for (x, y) in expected.iter().zip(&case.c) {
                    assert!((x - y).abs() <= bound * x, "{}: {y}, not {x}", case.name);
                }
                cases.push(case);
            }
        }
    }
    for _ in 0..7 {
        cases.iter_mut().for_each(Case::run);
        let start = Instant::now();
        std::hint::black_box(registers.run());
        peak = peak.max(registers.operations() / start.elapsed().as_secs_f64() / 1e9);
    }
    println!("peak: {peak:.1} GOP/s of {}", registers.multiplier());
    for Case { name, b, operations, best, .. } in &cases {
        let (done, read) = (operations / best / 1e9, b.len() as f64 / best / 1e9);
        println!("{name:28} {done:7.1} GOP/s ({:.2} of peak)  {read:6.1} GB/s of {} KiB", done / peak, b.len() >> 10);
    }
}
