//! The cores of codes on one worker, of each width that this machine has, beside what it multiplies in registers in the widest.
//! Each result is held against the portable core's. Rows are bytes, and where this machine prefers them words.
//!
//! `cargo bench -p einfuse-codegen --bench bytes`

use std::time::Instant;

use einfuse_codegen::format::{Format, PANEL};

use einfuse_codegen::loops::{Address, Buffer, Core, Cores, Encode, Expr, GROUP, Kernel, MAX_ROWS, Stmt, Ty, Var};
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
    /// Rows in one format by so many panels of another.
    fn new(cores: Cores, target: &Target, (of_rows, format): (Format, Format), rows: usize, panels: usize) -> Case {
        let target = target.clone().with_cores(cores);
        let columns = panels * PANEL;
        let (a_stride, panel) = (of_rows.row(DEPTH).next_multiple_of(64), format.panel(DEPTH));
        let core = Core {
            rows,
            depth: DEPTH.into(),
            a: Address::new(Buffer::Frame(4), 0),
            a_format: of_rows,
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
        let code = compile(&[kernel], &target, &Lowering::default()).unwrap_or_else(|e| panic!("{e}"));
        let tiles = rows.is_multiple_of(GROUP) && cores.tiles_serve(of_rows, format, DEPTH);
        let with = if tiles { "tiles".to_owned() } else { format!("{} bits", cores.bits) };
        let by = if of_rows == format { String::new() } else { format!(" by {of_rows}") };
        let name = format!("{format}{by}, {rows} rows, {with}");
        let operations = (2 * rows * columns * DEPTH) as f64;
        let a = encoded(&target, of_rows, rows, a_stride);
        Case {
            name,
            code,
            a,
            b: positive(panels * panel),
            c: vec![0.0; rows * columns],
            operations,
            best: f64::INFINITY,
        }
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

/// Numbers that look random.
fn random() -> impl Iterator<Item = u32> {
    std::iter::successors(Some(1u32), |state| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
}

/// Bytes that are small positive numbers as codes, the offset taken away, and as floats.
fn positive(count: usize) -> Vec<u8> {
    random().map(|state| 0x20 | (state >> 27) as u8).take(count).collect()
}

/// Rows of numbers between one and two.
fn encoded(target: &Target, format: Format, rows: usize, stride: usize) -> Vec<u8> {
    let numbers: Vec<f32> =
        random().map(|state| 1.0 + (state >> 8) as f32 / (1 << 24) as f32).take(rows * DEPTH).collect();
    let at = |slot, each: usize| Address::new(Buffer::Frame(slot), Expr::Var(Var(0)) * each);
    let encode = Encode { depth: DEPTH, from: at(4, DEPTH), to: at(5, stride), format, part: None };
    let body = vec![Stmt::Encode(encode)];
    let body = vec![Stmt::For { var: Var(0), from: 0.into(), to: rows.into(), step: 1, body }];
    let kernel = Kernel { name: "rows".into(), vars: vec![Ty::Int], scratch: 0, body };
    let code = compile(&[kernel], target, &Lowering::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut encoded = vec![0; rows * stride];
    let frame = [0, 0, 0, 0, numbers.as_ptr() as u64, encoded.as_mut_ptr() as u64];
    // SAFETY: the frame holds what the kernel names, with buffers of the sizes its loop covers.
    unsafe { code.call(0, frame.as_ptr(), std::ptr::null(), 0, &[Left::default()], std::ptr::null_mut()) }
    encoded
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
    let formats = [Format::Q8, Format::Q4, Format::Q4.unpacked()];
    let by_words = formats.into_iter().filter_map(|format| Some((host.words_by(format)?, format)));
    for (of_rows, format) in formats.map(|format| (format, format)).into_iter().chain(by_words) {
        // In the second cache; and in memory. Of as many rows as tiles take: with them and with the portable core.
        for (rows, panels) in [(1, 8), (5, 8), (6, 8), (MAX_ROWS, 8), (1, 8192), (5, 8192)] {
            let mut expected: Option<Vec<f32>> = None;
            let serves = |cores: &&Cores| {
                let tiles = cores.tiles && format != Format::Q4;
                rows <= cores.rows_by(of_rows, format, 1) || **cores == Cores::PORTABLE || rows == MAX_ROWS && tiles
            };
            for &cores in all.iter().filter(serves) {
                let mut case = Case::new(cores, &target, (of_rows, format), rows, panels);
                case.run();
                let expected = expected.get_or_insert_with(|| case.c.clone());
                // All terms have one sign: each addition and product rounds by half an ulp of less than the result.
                let summed = format.codes().map_or(1, |codes| codes.summed());
                let bound = (DEPTH / summed + 3) as f32 * f32::EPSILON;
                for (x, y) in expected.iter().zip(&case.c) {
                    assert!((x - y).abs() <= bound * x.abs(), "{}: {y}, not {x}", case.name);
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
        println!("{name:34} {done:7.1} GOP/s ({:.2} of peak)  {read:6.1} GB/s of {} KiB", done / peak, b.len() >> 10);
    }
}
