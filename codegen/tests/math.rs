//! The functions of floats: their errors over all floats, against `f64`, at one lane and at four.

mod support;

use einfuse_codegen::format::Elem;

use einfuse_codegen::loops::{Address, Buffer, Expr, Kernel, LANES, Memory, Slot, Stmt, Ty, Unary, Var};
use einfuse_graph::erf;
use support::{bytes, floats, run};

const IN: Buffer = Buffer::Frame(4);
const OUT: Buffer = Buffer::Frame(5);

/// `f` of each float, four at a time or one.
fn map(inputs: &[f32], lanes: usize, f: impl Fn(Expr) -> Expr) -> Vec<f32> {
    let i = Var(0);
    let x = Expr::Load { elem: Elem::F32, lanes, at: Address::new(IN, i).into() };
    let store = Stmt::Store { elem: Elem::F32, at: Address::new(OUT, i), value: f(x) };
    let kernel = Kernel {
        name: "map".into(),
        vars: vec![Ty::Int],
        scratch: 0,
        body: vec![Stmt::For {
            var: i,
            from: 0.into(),
            to: (inputs.len() / LANES * LANES).into(),
            step: lanes as i64,
            body: vec![store],
        }],
    };
    let input = Slot::Bytes(bytes(inputs));
    let output = Slot::Bytes(vec![0; 4 * inputs.len()]);
    let mut memory = Memory { frame: [(4, input), (5, output)].into(), ..Memory::default() };
    run(&support::build(&kernel), &kernel, &mut memory, 1);
    match &memory.frame[&5] {
        Slot::Bytes(bytes) => floats(bytes),
        _ => Vec::new(),
    }
}

/// Floats all over the range, and more of them where `dense` says.
fn samples(dense: &[(f32, f32)]) -> Vec<f32> {
    let mut all: Vec<f32> = (0..=u32::MAX).step_by(8191).map(f32::from_bits).collect();
    for (from, to) in dense {
        all.extend((0..100_000).map(|i| from + (to - from) * (i as f32 / 100_000.0)));
    }
    all.extend([0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, f32::MAX, f32::MIN, 1e-45]);
    all.resize(all.len().next_multiple_of(LANES), f32::NAN);
    all
}

/// How many units in the last place of the nearest float lie between.
fn ulps(got: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    if got == nearest || (got.is_nan() && nearest.is_nan()) {
        return 0.0;
    }
    if !got.is_finite() && !nearest.is_finite() || got.is_nan() || nearest.is_nan() {
        return f64::INFINITY;
    }
    let exponent = f64::from(nearest.abs().clamp(f32::MIN_POSITIVE, f32::MAX)).log2().floor();
    // Overflow counts from the largest float on.
    let finite = |x: f64| x.clamp(-2f64.powi(128), 2f64.powi(128));
    (finite(f64::from(got)) - finite(exact)).abs() / (exponent - 23.0).exp2()
}

fn check(name: &str, inputs: &[f32], bound: f64, f: impl Fn(Expr) -> Expr, exact: impl Fn(f64) -> f64) {
    for lanes in [1, LANES] {
        let outputs = map(inputs, lanes, &f);
        let errors = inputs.iter().zip(&outputs).map(|(x, y)| (ulps(*y, exact(f64::from(*x))), *x, *y));
        let (error, x, y) = errors.fold((0.0, 0.0, 0.0), |worst, next| if next.0 > worst.0 { next } else { worst });
        println!("{name}, {lanes} lanes: {error:.3} ulp at {x:e}");
        assert!(error <= bound, "{name} of {x:e} is {y:e}, not {:e}: {error} ulp", exact(f64::from(x)));
    }
}

#[test]
fn exponential() {
    check("exp", &samples(&[(-104.0, 89.0), (-1.0, 1.0)]), 1.1, |x| x.unary(Unary::Exp), f64::exp);
}

#[test]
fn logarithm() {
    check("log", &samples(&[(0.5, 2.0), (0.99, 1.01)]), 1.0, |x| x.unary(Unary::Log), f64::ln);
}

#[test]
fn sine_and_cosine() {
    let mut inputs = samples(&[(-10.0, 10.0), (-1e5, 1e5), (1e5, 1_048_576.0)]);
    // Near the multiples of a quarter turn, where most digits cancel.
    inputs.extend((0..400_000).map(|i| (f64::from(i) * std::f64::consts::FRAC_PI_2) as f32));
    let within = |x: f64, y: f64| if x.abs() <= 1_048_576.0 { y } else { f64::NAN };
    check("sin", &inputs, 1.6, |x| x.unary(Unary::Sin), |x| within(x, x.sin()));
    check("cos", &inputs, 1.6, |x| x.unary(Unary::Cos), |x| within(x, x.cos()));
}

#[test]
fn hyperbolic_tangent() {
    check("tanh", &samples(&[(-10.0, 10.0), (-1.0, 1.0)]), 2.0, |x| x.unary(Unary::Tanh), f64::tanh);
}

#[test]
fn error_function() {
    check("erf", &samples(&[(-4.5, 4.5), (-1.0, 1.0)]), 1.5, |x| x.unary(Unary::Erf), erf);
}

#[test]
fn roots() {
    check("sqrt", &samples(&[(0.0, 4.0)]), 0.5, |x| x.unary(Unary::Sqrt), f64::sqrt);
    let rsqrt = |x: f64| 1.0 / x.sqrt();
    check("rsqrt", &samples(&[(0.0, 4.0)]), 1.5, |x| x.unary(Unary::Rsqrt), rsqrt);
}

fn of_constant(x: Expr, lanes: usize, exponent: f32) -> Expr {
    let exponent = Expr::Float(exponent);
    x.pow(if lanes == 1 { exponent } else { exponent.splat() })
}

/// Minus zero and minus infinity, which C's `pow` does not take as numbers next to them.
fn unusual(x: f32) -> bool {
    x == f32::NEG_INFINITY || x == 0.0 && x.is_sign_negative()
}

#[test]
fn powers_of_constant_exponents() {
    let inputs = samples(&[(-8.0, 8.0), (0.0, 2.0)]);
    for exponent in [0.0f32, 1.0, 2.0, 3.0, 4.0, 7.0, 16.0, -1.0, -2.0, -5.0, 0.5, -0.5, 1.5, 2.7, -0.1, 33.0] {
        for lanes in [1, LANES] {
            let bound = match exponent.abs() {
                0.0 | 0.5 | 1.0 if exponent >= 0.0 => 0.5,
                x if x.fract() == 0.0 && x <= 16.0 => 1.5 * f64::from(x),
                0.5 => 1.5,
                _ => 8.0,
            };
            let outputs = map(&inputs, lanes, |x| of_constant(x, lanes, exponent));
            let mut worst = 0f64;
            for (x, y) in inputs.iter().zip(outputs) {
                let exact = f64::from(*x).powf(f64::from(exponent));
                if unusual(*x) {
                    continue;
                }
                // Reciprocals of what overflows, and of what underflows.
                let inverse = exponent < 0.0 && !(1e-37..1e37).contains(&exact.abs());
                if !inverse {
                    worst = worst.max(ulps(y, exact));
                }
                assert!(worst <= bound, "{x:e} ^ {exponent} is {y:e}, not {exact:e}: {worst} ulp");
            }
            println!("x ^ {exponent}, {lanes} lanes: {worst:.3} ulp");
        }
    }
}

#[test]
fn powers() {
    let bases = samples(&[(0.0, 10.0), (-4.0, 4.0)]);
    for step in -20..20 {
        let exponent = step as f32 * 0.75;
        // An exponent that is not known when compiling.
        let unknown = |x: Expr| {
            let own = x.clone().equals(x.clone());
            own.select(Expr::Float(exponent).splat(), Expr::Float(exponent).splat())
        };
        let outputs = map(&bases, LANES, |x| x.clone().pow(unknown(x)));
        for (x, y) in bases.iter().zip(outputs) {
            let exact = f64::from(*x).powf(f64::from(exponent));
            let error = ulps(y, exact);
            if unusual(*x) {
                continue;
            }
            assert!(error <= 8.0, "{x:e} ^ {exponent} is {y:e}, not {exact:e}: {error} ulp");
        }
    }
}
