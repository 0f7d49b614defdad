//! The contraction core, in every shape, against the interpreter.

mod support;

use einfuse_codegen::loops::{Address, Arg, Buffer, Core, Elem, Expr, Kernel, Memory, PANEL, Slot, Stmt};
use support::{Random, both, bytes, floats};

fn kernel(rows: usize, depth: Expr, elem: Elem, accumulate: bool, a_stride: usize, c_stride: usize) -> Kernel {
    let core = Core {
        rows,
        depth,
        a: Address::new(Buffer::Frame(4), 3),
        a_stride: a_stride.into(),
        b: Address::new(Buffer::Layer(1), PANEL),
        b_elem: elem,
        c: Address::new(Buffer::Arena(8), 5),
        c_stride: c_stride.into(),
        accumulate,
    };
    Kernel { name: "core".into(), vars: vec![], scratch: 0, body: vec![Stmt::Core(core)] }
}

fn check(rows: usize, depth: usize, at_run_time: bool, elem: Elem, accumulate: bool) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + depth as u64);
    let (a_stride, c_stride) = (depth + 2, PANEL + 3);
    let expr = if at_run_time { Expr::Arg(Arg::Past) } else { depth.into() };
    let kernel = kernel(rows, expr, elem, accumulate, a_stride, c_stride);
    let a: Vec<f32> = (0..3 + rows * a_stride).map(|_| random.float()).collect();
    let panel: Vec<f32> = (0..PANEL * (depth + 1)).map(|_| random.float()).collect();
    let panel = match elem {
        Elem::Bf16 => panel.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        _ => bytes(&panel),
    };
    let memory = Memory {
        past: depth as i64,
        arena: bytes(&(0..7 + rows * c_stride).map(|_| random.float()).collect::<Vec<_>>()),
        frame: [(4, Slot::Bytes(bytes(&a)))].into(),
        layer: [(1, Slot::Bytes(panel))].into(),
        ..Memory::default()
    };
    let (expected, actual) = both(&kernel, &memory, 1).unwrap();
    // Each of `depth` additions of products below 1 rounds by half an ulp of a sum below depth + 1.
    let bound = (depth * (depth + 1)) as f32 * f32::EPSILON / 2.0 + f32::EPSILON;
    for (i, (x, y)) in floats(&expected.arena).iter().zip(floats(&actual.arena)).enumerate() {
        assert!((x - y).abs() <= bound, "{kernel}depth {depth}: float {i} is {y}, not {x}");
    }
    assert_eq!((expected.frame, expected.layer), (actual.frame, actual.layer));
}

#[test]
fn all_shapes() {
    for rows in 1..=4 {
        for depth in [0, 1, 2, 3, 5, 8, 17, 64, 576] {
            for elem in [Elem::F32, Elem::Bf16] {
                for accumulate in [false, true] {
                    for at_run_time in [false, true] {
                        check(rows, depth, at_run_time, elem, accumulate);
                    }
                }
            }
        }
    }
}

#[test]
fn a_negative_depth_is_none() {
    let kernel = kernel(2, Expr::Arg(Arg::Past), Elem::F32, false, 4, PANEL);
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
