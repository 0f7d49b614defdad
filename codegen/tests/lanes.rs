//! Loops over neighbours, four lanes at a time and as many as the machine has: they do what the interpreter does.

mod support;

use einfuse_codegen::loops::{Cores, Kernel, Memory, interpret, parse};
use einfuse_codegen::lower::{Lowering, Target, compile, compile_text};
use support::{Random, bytes, floats, host, run};

/// Elements of the arena: six stretches of 640.
const STRETCH: usize = 640;

fn kernel(vars: &str, body: &str) -> Kernel {
    let text = format!("kernel k scratch 16384 {{\n{vars}{body}}}\n");
    parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn memory() -> Memory {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    Memory {
        tokens: 5,
        past: 37,
        arena: bytes(&(0..6 * STRETCH).map(|_| random.float() * 4.0).collect::<Vec<_>>()),
        ..Memory::default()
    }
}

/// Runs a kernel with some cores. And says whether it called a function.
fn run_with(cores: Cores, kernel: &Kernel) -> (Vec<u8>, bool) {
    let target = host().clone().with_cores(cores);
    let how = Lowering { verify: true, keep_text: true };
    let code = compile(std::slice::from_ref(kernel), &target, &how).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = memory();
    run(&code, kernel, &mut memory, 1);
    (memory.arena, code.asm(0).is_some_and(|asm| asm.contains("u0:0")))
}

/// Holds a kernel against the interpreter, and the widths against each other: bit by bit but for sums. And has code made for
/// machines that this one isn't.
fn check(kernel: &Kernel, wide: bool, sums: bool) {
    for name in ["x86_64", "aarch64"] {
        let target = Target::named(name).unwrap();
        compile_text(kernel, &target).unwrap_or_else(|e| panic!("{name}: {e}\n{kernel}"));
    }
    let mut expected = memory();
    interpret(kernel, &mut expected, 1).unwrap_or_else(|e| panic!("{e:?}\n{kernel}"));
    let (narrow, called) = run_with(Cores::PORTABLE, kernel);
    assert!(!called, "{kernel}");
    let (widest, called) = run_with(*host().cores(), kernel);
    assert_eq!(called, wide && host().cores().bits > 128, "{kernel}");
    if !sums {
        assert_eq!(narrow, widest, "{kernel}");
    }
    for (i, (want, got)) in floats(&expected.arena).iter().zip(floats(&widest)).enumerate() {
        let near = (want - got).abs() <= 4e-6 * want.abs().max(1.0);
        assert!(near || want.to_bits() == got.to_bits(), "{kernel}float {i} is {got}, not {want}");
    }
}

/// A loop over the first elements of stretches: `X`, `Y` and `Z` are read, `out` is written.
fn map(value: &str, extent: usize) -> Kernel {
    let load = |stretch: usize| format!("f32x4 arena({})[v0]", stretch * STRETCH * 4);
    let value = value.replace('X', &load(1)).replace('Y', &load(2)).replace('Z', &load(3));
    kernel("var v0: int;\n", &format!("for v0 in 0..{extent} step 4 {{\nf32 arena(0)[v0] = {value};\n}}\n"))
}

#[test]
fn functions_of_neighbours() {
    for extent in [16, 32, 80, 576] {
        for value in [
            "X + Y * Z",
            "X - Y / Z",
            "fma(X, Y, Z)",
            "X / (splat(1.0) + exp(neg(X))) * Y",
            "exp(X * splat(40.0))",
            "log(abs(X))",
            "sin(X) + cos(Y)",
            "tanh(X)",
            "erf(X)",
            "rsqrt(abs(X)) + sqrt(abs(Y))",
            "max(X, Y) + min(Y, Z)",
            "select(X < Y, X, Z)",
            "select(not(X <= Y) && Z != X || Y >= Z, X, splat(-1.0))",
            "select(iota(v0 + 3) <= splat(past), X, splat(-inf))",
            "float(iota(v0)) * X",
            "splat(f32 arena(2560)[7] + 1.0) * X + splat(f32 arena(5120)[3])",
        ] {
            check(&map(value, extent), true, false);
        }
    }
}

#[test]
fn rows_and_strides() {
    let vars = "var v0: int;\nvar v1: int;\nvar v2: floats;\n";
    for (rows, stride) in [("0..tokens", 48), ("2..tokens", 96), ("tokens..tokens", 48)] {
        let body = format!(
            "for v0 in {rows} {{\nnote \"silu\";\nfor v1 in 16..48 step 4 {{\n\
             let v2 = f32x4 arena(2560)[v0 * {stride} + v1];\n\
             f32 arena(0)[v0 * 64 + v1] = v2 / (splat(1.0) + exp(neg(v2))) * f32x4 arena(5120)[v0 * 48 + v1 - 16];\n}}\n}}\n"
        );
        check(&kernel(vars, &body), true, false);
    }
}

#[test]
fn halves_are_read_and_written() {
    let body =
        "for v0 in 0..64 step 4 {\nbf16 arena(0)[v0 + 5] = bf16x4 arena(2560)[v0 + 2] * f32x4 arena(5120)[v0];\n}\n";
    check(&kernel("var v0: int;\n", body), true, false);
}

#[test]
fn totals() {
    let vars = "var v0: int;\nvar v1: floats;\nvar v2: floats;\n";
    for (first, next, fold) in [
        ("splat(0.0)", "fma(v2, v2, v1)", "sum"),
        ("f32x4 arena(5120)[8]", "v1 + v2", "sum"),
        ("splat(-1e30)", "max(v1, v2)", "max"),
    ] {
        let body = format!(
            "let v1 = {first};\nfor v0 in 0..96 step 4 {{\nlet v2 = f32x4 arena(2560)[v0];\n\
             f32 arena(0)[v0 + 1] = v2;\nv1 = {next};\n}}\nf32 arena(0)[0] = fold_{fold}(v1);\n"
        );
        check(&kernel(vars, &body), true, fold == "sum");
    }
}

#[test]
fn in_place_but_not_where_lanes_meet() {
    for (distance, wide) in [(0, true), (4, false), (-4, false), (12, false), (16, true), (-16, true), (100, true)] {
        let body = format!(
            "for v0 in 128..192 step 4 {{\nf32 arena(0)[v0] = f32x4 arena(0)[v0 + {distance}] * splat(2.0);\n}}\n"
        );
        check(&kernel("var v0: int;\n", &body), wide, false);
    }
    // What is overwritten was read before, and is used after.
    let vars = "var v0: int;\nvar v1: floats;\nvar v2: floats;\n";
    let body = "for v0 in 0..64 step 4 {\nlet v1 = f32x4 arena(0)[v0];\nf32 arena(0)[v0] = f32x4 arena(2560)[v0];\n\
                f32 arena(5120)[v0] = v1;\n}\n";
    check(&kernel(vars, body), true, false);
    let body = "let v2 = splat(0.0);\nfor v0 in 0..64 step 4 {\nv2 = v2 + f32x4 arena(0)[v0];\n\
                f32 arena(0)[v0] = splat(1.0);\n}\nf32 arena(5120)[0] = fold_sum(v2);\n";
    check(&kernel(vars, body), true, true);
    // What was just written is read again.
    let body = "for v0 in 0..64 step 4 {\nf32 arena(0)[v0] = f32x4 arena(2560)[v0];\n\
                f32 arena(5120)[v0] = f32x4 arena(0)[v0] * splat(2.0);\n}\n";
    check(&kernel("var v0: int;\n", body), false, false);
}

#[test]
fn what_has_no_sixteen_neighbours_stays() {
    for body in [
        // Not a multiple of sixteen, not known, by strides, from panel to panel, and a scalar that the loop changes.
        "for v0 in 0..24 step 4 {\nf32 arena(0)[v0] = f32x4 arena(2560)[v0];\n}\n",
        "for v0 in 0..tokens * 4 step 4 {\nf32 arena(0)[v0] = f32x4 arena(2560)[v0];\n}\n",
        "for v0 in 0..64 step 4 {\nf32 arena(0)[v0 * 2] = f32x4 arena(2560)[v0];\n}\n",
        "for v0 in 0..64 step 4 {\nf32 arena(0)[v0 / 16 * 48 + v0 % 16] = f32x4 arena(2560)[v0];\n}\n",
        "for v0 in 0..64 step 4 {\nf32 arena(0)[v0] = f32x4 arena(2560)[v0 / 16 * 48 + v0 % 16];\n}\n",
        "for v0 in 0..64 step 4 {\nf32 arena(0)[v0] = f32x4 arena(2560)[v0] + splat(f32 arena(0)[3]);\n}\n",
    ] {
        check(&kernel("var v0: int;\n", body), false, false);
    }
}
