//! The contraction core, in every shape, against the interpreter.

mod support;

use einfuse_codegen::loops::{
    Address, Arg, Buffer, Core, Cores, Elem, Expr, Kernel, Memory, PANEL, Slot, Stmt, interpret,
};
use einfuse_codegen::lower::{Lowering, compile};
use support::{Random, both, bytes, floats, host, run};

fn kernel(
    rows: usize,
    depth: Expr,
    (a_elem, b_elem): (Elem, Elem),
    accumulate: bool,
    a_stride: usize,
    c_stride: usize,
) -> Kernel {
    let core = Core {
        rows,
        depth,
        a: Address::new(Buffer::Frame(4), 3),
        a_elem,
        a_stride: a_stride.into(),
        b: Address::new(Buffer::Layer(1), PANEL),
        b_elem,
        c: Address::new(Buffer::Arena(8), 5),
        c_stride: c_stride.into(),
        accumulate,
    };
    Kernel { name: "core".into(), vars: vec![], scratch: 0, body: vec![Stmt::Core(core)] }
}

/// The cores that this machine has, the portable ones first.
fn all_cores() -> Vec<Cores> {
    let host = *host().cores();
    let mut all = vec![Cores::PORTABLE];
    if host.bits > 256 {
        all.push(Cores { bits: 256, bf16: false });
    }
    if host.bits > 128 {
        all.push(host);
    }
    all
}

fn check(cores: Cores, rows: usize, depth: usize, at_run_time: bool, elems: (Elem, Elem), accumulate: bool) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + depth as u64);
    let (a_stride, c_stride) = (depth + 2, PANEL + 3);
    let expr = if at_run_time { Expr::Arg(Arg::Past) } else { depth.into() };
    let kernel = kernel(rows, expr, elems, accumulate, a_stride, c_stride);
    let mut stored = |count: usize, elem: Elem| -> Vec<u8> {
        let values: Vec<f32> = (0..count).map(|_| random.float()).collect();
        match elem {
            Elem::Bf16 => values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
            _ => bytes(&values),
        }
    };
    let a = stored(3 + rows * a_stride, elems.0);
    let panel = stored(PANEL * (depth + 1), elems.1);
    let memory = Memory {
        past: depth as i64,
        arena: bytes(&(0..7 + rows * c_stride).map(|_| random.float()).collect::<Vec<_>>()),
        frame: [(4, Slot::Bytes(a))].into(),
        layer: [(1, Slot::Bytes(panel))].into(),
        ..Memory::default()
    };
    let mut expected = memory.clone();
    interpret(&kernel, &mut expected, 1).unwrap();
    let mut actual = memory;
    let how = Lowering { verify: true, keep_text: true };
    let target = host().clone().with_cores(cores);
    let code = compile(std::slice::from_ref(&kernel), &target, &how).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        code.asm(0).unwrap().contains("; core"),
        cores.bits > 128 && !at_run_time && (elems.0 == Elem::F32 || cores.bf16) && rows <= cores.rows()
    );
    run(&code, &kernel, &mut actual, 1);
    // Each of `depth` additions of products below 1 rounds by half an ulp of a sum below depth + 1.
    let bound = (depth * (depth + 1)) as f32 * f32::EPSILON / 2.0 + f32::EPSILON;
    for (i, (x, y)) in floats(&expected.arena).iter().zip(floats(&actual.arena)).enumerate() {
        assert!((x - y).abs() <= bound, "{cores:?}: {kernel}depth {depth}: float {i} is {y}, not {x}");
    }
    assert_eq!((expected.frame, expected.layer), (actual.frame, actual.layer));
}

#[test]
fn all_shapes() {
    for cores in all_cores() {
        for rows in [1, 2, 3, 4, 5, 6, 8, 13, 16] {
            for depth in [0, 1, 2, 3, 6, 8, 17, 34, 64, 576] {
                for elems in [(Elem::F32, Elem::F32), (Elem::F32, Elem::Bf16), (Elem::Bf16, Elem::Bf16)] {
                    if depth % elems.1.together() != 0 {
                        continue;
                    }
                    for accumulate in [false, true] {
                        for at_run_time in [false, true] {
                            check(cores, rows, depth, at_run_time, elems, accumulate);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_negative_depth_is_none() {
    let kernel = kernel(2, Expr::Arg(Arg::Past), (Elem::F32, Elem::F32), false, 4, PANEL);
    let memory = Memory { past: -3, arena: bytes(&[7.0; 40]), ..Memory::default() };
    let memory = Memory {
        frame: [(4, Slot::Bytes(vec![0; 64]))].into(),
        layer: [(1, Slot::Bytes(vec![0; 64]))].into(),
        ..memory
    };
    let (expected, actual) = both(&kernel, &memory, 1).unwrap();
    assert_eq!(expected, actual);
    assert_eq!(floats(&actual.arena)[7..39], [0.0; 32]);
}
