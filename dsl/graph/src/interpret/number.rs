//! A value together with how far an evaluation in `f32` may be from it: running error analysis (Higham, "Accuracy and
//! Stability of Numerical Algorithms", section 3.3).

use crate::graph::{Binary, Reduction, Unary};

/// The unit roundoff of `f32`.
const U: f64 = f32::EPSILON as f64 / 2.0;

/// Below this, `f32` loses relative accuracy or flushes to 0.
const TINY: f64 = f32::MIN_POSITIVE as f64;

/// Longer sums are assumed to be added up in blocks of this many terms.
const BLOCK: f64 = 256.0;

/// Rounding errors of a function that is not one machine instruction.
const FUNCTION: f64 = 4.0;

/// What an element is, and how far from it an honest `f32` evaluation may end.
///
/// `bound` is a bound of first order on `|computed - value|` for any order of summation (in blocks, if there are more
/// than 256 terms), with or without fused multiply-adds, and functions good to 4 units of roundoff: an implementation is
/// right when its distance is at most a small multiple of it. It is infinite where nothing can be promised: past the
/// range of `f32`, at a pole, or behind an index that rounding may change. Integers and masks are exact, bound 0, unless
/// rounding may turn them into others; then the bound is infinite. A mask holds 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number {
    /// The value, in `f64`.
    pub value: f64,
    /// How far an evaluation in `f32` may be from it.
    pub bound: f64,
}

impl Number {
    /// A value that `f32` code has exactly.
    pub fn exact(value: f64) -> Number {
        Number { value, bound: 0.0 }
    }

    /// A real constant, which `f32` code rounds.
    pub(crate) fn literal(value: f64) -> Number {
        let bound = if value.is_infinite() { 0.0 } else { (value - value as f32 as f64).abs() };
        Number { value, bound }.checked()
    }

    /// A truth value; `sure` if no rounding can change it.
    fn mask(holds: bool, sure: bool) -> Number {
        Number { value: holds as u8 as f64, bound: if sure { 0.0 } else { f64::INFINITY } }
    }

    /// Whether rounding can't turn this integer or mask into another.
    pub(crate) fn is_sure(self) -> bool {
        self.bound == 0.0
    }

    /// A result with `inherited` error from the operands and `roundings` of its own.
    #[inline]
    fn rounded(value: f64, inherited: f64, roundings: f64) -> Number {
        let own = if value.is_infinite() { 0.0 } else { roundings * U * (value.abs() + inherited) + TINY };
        Number { value, bound: inherited + own }.checked()
    }

    /// Nothing is promised of what `f32` can't hold; an infinity that was meant is exact.
    #[inline]
    fn checked(self) -> Number {
        let bound = match self.value {
            v if v.is_nan() || self.bound.is_nan() => f64::INFINITY,
            v if v.is_infinite() && self.bound.is_finite() => 0.0,
            v if v.abs() + self.bound > f32::MAX as f64 => f64::INFINITY,
            _ => self.bound,
        };
        Number { bound, ..self }
    }

    /// A function of floats or of a mask.
    pub(crate) fn unary(op: Unary, x: Number) -> Number {
        let value = op.of(x.value);
        let (a, e) = (x.value.abs(), x.bound);
        match op {
            Unary::Neg | Unary::Abs => Number { value, bound: e },
            Unary::Not => Number { value: 1.0 - x.value, bound: e },
            Unary::ToFloat => Number::literal(x.value).if_sure(x.is_sure()),
            Unary::Exp => Number::rounded(value, value * e.exp_m1(), FUNCTION),
            Unary::Log if e < a => Number::rounded(value, -(-e / a).ln_1p(), FUNCTION),
            Unary::Sin | Unary::Cos => Number::rounded(value, e + FUNCTION * U, 0.0),
            Unary::Tanh => Number::rounded(value, e, FUNCTION),
            Unary::Erf => Number::rounded(value, std::f64::consts::FRAC_2_SQRT_PI * e, FUNCTION),
            Unary::Sqrt if e < a || e == 0.0 => Number::rounded(value, value - (x.value - e).sqrt(), 1.0),
            Unary::Rsqrt if e < a => Number::rounded(value, 1.0 / (x.value - e).sqrt() - value, FUNCTION),
            Unary::Log | Unary::Sqrt | Unary::Rsqrt => Number { value, bound: f64::INFINITY },
        }
    }

    /// An arithmetic function of floats.
    pub(crate) fn binary(op: Binary, x: Number, y: Number) -> Number {
        let value = op.of(x.value, y.value);
        let (a, b) = (x.value.abs(), y.value.abs());
        match op {
            Binary::Add | Binary::Sub => Number::rounded(value, x.bound + y.bound, 1.0),
            Binary::Mul => x * y,
            Binary::Div if y.bound < b => {
                // A reciprocal and a product are two roundings.
                Number::rounded(value, (x.bound + value.abs() * y.bound) / (b - y.bound), 2.0)
            }
            // A negative base has a power only where the exponent is an integer, exactly.
            Binary::Pow if (x.bound < a && (x.value > 0.0 || y.bound == 0.0)) || x.bound + y.bound == 0.0 => {
                let log = if a > 0.0 { a.ln().abs() } else { 0.0 };
                let moved = if x.bound > 0.0 { -(-x.bound / a).ln_1p() } else { 0.0 };
                let inherited = value.abs() * (b * moved + (log + moved) * y.bound).exp_m1();
                Number::rounded(value, inherited, FUNCTION + b * log)
            }
            Binary::Min => between(x, y, value, f64::min),
            Binary::Max => between(x, y, value, f64::max),
            _ => Number { value, bound: f64::INFINITY },
        }
    }

    /// A comparison of floats or integers.
    pub(crate) fn compare(op: Binary, x: Number, y: Number) -> Number {
        let (a, b) = (x.value, y.value);
        let holds = match op {
            Binary::Lt => a < b,
            Binary::Le => a <= b,
            Binary::Gt => a > b,
            Binary::Ge => a >= b,
            Binary::Eq => a == b,
            _ => a != b,
        };
        let error = x.bound + y.bound;
        Number::mask(holds, error == 0.0 || (a - b).abs() > error)
    }

    /// `&&` and `||`: sure if both are, or if one decides.
    pub(crate) fn logical(op: Binary, x: Number, y: Number) -> Number {
        let decides = if op == Binary::And { 0.0 } else { 1.0 };
        let decided = [x, y].iter().any(|m| m.is_sure() && m.value == decides);
        let holds = if op == Binary::And { x.holds() && y.holds() } else { x.holds() || y.holds() };
        Number::mask(holds, decided || (x.is_sure() && y.is_sure()))
    }

    /// Between which values `f32` code ends.
    fn ends(self) -> (f64, f64) {
        match self.bound.is_finite() {
            true => (self.value - self.bound, self.value + self.bound),
            false => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    /// Whether a mask holds.
    pub(crate) fn holds(self) -> bool {
        self.value != 0.0
    }

    /// The chosen side of a selection whose mask rounding may turn, so that `f32` code may have taken the other one.
    pub(crate) fn or_other(self, other: Option<Number>) -> Number {
        let bound = match other {
            Some(other) => ((self.value - other.value).abs() + other.bound).max(self.bound),
            None => f64::INFINITY,
        };
        Number { bound, ..self }.checked()
    }

    /// The same, but nothing is promised unless what chose it is sure.
    pub(crate) fn if_sure(self, sure: bool) -> Number {
        if sure { self } else { Number { bound: f64::INFINITY, ..self } }
    }
}

/// The product: what a sum of products needs most, so inlined.
impl std::ops::Mul for Number {
    type Output = Number;

    #[inline]
    fn mul(self, other: Number) -> Number {
        let inherited = self.value.abs() * other.bound + other.value.abs() * self.bound + self.bound * other.bound;
        Number::rounded(self.value * other.value, inherited, 1.0)
    }
}

/// `pick` (the smaller or the larger) is monotonic: its result lies between those of the ends.
fn between(x: Number, y: Number, value: f64, pick: fn(f64, f64) -> f64) -> Number {
    let ((x_low, x_high), (y_low, y_high)) = (x.ends(), y.ends());
    Number { value, bound: error(value, pick(x_low, y_low), pick(x_high, y_high)) }.checked()
}

/// How far the ends of an interval are from a value; 0 if they are equal, infinities included.
fn error(value: f64, low: f64, high: f64) -> f64 {
    let distance = |end: f64| if end == value { 0.0 } else { (end - value).abs() };
    distance(low).max(distance(high))
}

/// A reduction under way.
pub(crate) struct Accumulator {
    op: Reduction,
    value: f64,
    /// Of a sum: what the terms bring along. Of an extremum: the least that it can be.
    low: f64,
    /// Of a sum: the terms' magnitudes. Of an extremum: the most that it can be.
    high: f64,
    terms: f64,
    /// Of an arg-max: the coordinate, and the most that any other term can be.
    at: usize,
    rival: f64,
}

impl Accumulator {
    pub(crate) fn new(op: Reduction) -> Accumulator {
        let value = op.neutral();
        Accumulator { op, value, low: value, high: value, terms: 0.0, at: 0, rival: f64::NEG_INFINITY }
    }

    /// Takes in one more element; `coordinate` matters to an arg-max alone.
    #[inline]
    pub(crate) fn add(&mut self, x: Number, coordinate: usize) {
        match self.op {
            Reduction::Sum => {
                self.value += x.value;
                self.low += x.bound;
                self.high += x.value.abs();
                if x.value != 0.0 {
                    self.terms += 1.0;
                }
            }
            Reduction::Max => {
                let (low, high) = x.ends();
                self.value = self.value.max(x.value);
                (self.low, self.high) = (self.low.max(low), self.high.max(high));
            }
            Reduction::Min => {
                let (low, high) = x.ends();
                self.value = self.value.min(x.value);
                (self.low, self.high) = (self.low.min(low), self.high.min(high));
            }
            Reduction::ArgMax => {
                let (low, high) = x.ends();
                if self.terms == 0.0 || x.value > self.value {
                    self.rival = self.rival.max(self.high);
                    (self.value, self.low, self.high, self.at) = (x.value, low, high, coordinate);
                } else {
                    self.rival = self.rival.max(high);
                }
                self.terms += 1.0;
            }
        }
    }

    pub(crate) fn result(&self) -> Number {
        match self.op {
            Reduction::Sum => {
                let chain = self.terms.min(BLOCK + self.terms / BLOCK);
                Number { value: self.value, bound: self.low + chain * U * (self.high + self.low) }.checked()
            }
            Reduction::Max | Reduction::Min => {
                Number { value: self.value, bound: error(self.value, self.low, self.high) }.checked()
            }
            Reduction::ArgMax => {
                // Of equals the first is taken, by exact code too.
                let sure = self.low > self.rival || (self.low == self.high && self.low >= self.rival);
                Number { value: self.at as f64, bound: if sure { 0.0 } else { f64::INFINITY } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of many magnitudes, with errors of many sizes.
    fn samples() -> Vec<(f64, f64)> {
        let values = [0.0, 1e-30, 0.001, 0.1, 0.5, 0.999, 1.0, 1.5, 3.0, 7.9, 20.0, 80.0];
        let errors = [0.0, 1e-9, 1e-6, 1e-3, 0.1];
        let both = values.iter().flat_map(|&v| [v, -v]);
        both.flat_map(|v| errors.iter().map(move |&e| (v, e * f64::abs(v).min(1.0)))).collect()
    }

    /// What `f32` code may have in place of a number: it, and the ends of its bound.
    fn candidates((value, error): (f64, f64)) -> [f32; 3] {
        [value as f32, (value - error) as f32, (value + error) as f32]
    }

    fn number((value, error): (f64, f64)) -> Number {
        // The ends were rounded to `f32`.
        Number { value, bound: error + value.abs() * U }
    }

    fn check(op: &str, result: Number, computed: f64) {
        let holds = result.bound.is_infinite() || (result.value - computed).abs() <= result.bound;
        assert!(holds, "{op}: {result:?}, computed {computed}");
    }

    #[test]
    fn functions_stay_within_their_bounds() {
        use Unary::*;
        for x in samples() {
            for op in [Neg, Abs, Exp, Log, Sin, Cos, Tanh, Erf, Sqrt, Rsqrt] {
                for candidate in candidates(x) {
                    let computed = op.of(f64::from(candidate)) as f32;
                    check(&format!("{op:?} of {x:?}"), Number::unary(op, number(x)), f64::from(computed));
                }
            }
        }
    }

    #[test]
    fn operators_stay_within_their_bounds() {
        use Binary::*;
        for x in samples() {
            for y in samples() {
                for op in [Add, Sub, Mul, Div, Pow, Min, Max] {
                    let result = Number::binary(op, number(x), number(y));
                    for a in candidates(x) {
                        for b in candidates(y) {
                            let computed = op.of(f64::from(a), f64::from(b)) as f32;
                            check(&format!("{op:?} of {x:?} and {y:?}"), result, f64::from(computed));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn bounds_are_useful() {
        let x = Number { value: 0.7, bound: 1e-7 };
        use Unary::*;
        for op in [Exp, Log, Sin, Cos, Tanh, Erf, Sqrt, Rsqrt] {
            assert!(Number::unary(op, x).bound < 2e-6, "{op:?}");
        }
        use Binary::*;
        for op in [Add, Sub, Mul, Div, Pow, Min, Max] {
            assert!(Number::binary(op, x, x).bound < 2e-6, "{op:?}");
        }
    }

    #[test]
    fn sums_grow_with_their_length_up_to_a_block() {
        let bound = |terms: usize| {
            let mut sum = Accumulator::new(Reduction::Sum);
            (0..terms).for_each(|_| sum.add(Number::exact(1.0), 0));
            sum.result().bound / terms as f64 / U
        };
        assert_eq!(bound(1), 1.0);
        assert_eq!(bound(100), 100.0);
        assert_eq!(bound(256_000), 1256.0);
    }

    #[test]
    fn masks_are_sure_unless_rounding_decides() {
        let (low, near, high) =
            (Number::exact(1.0), Number { value: 1.5, bound: 0.2 }, Number { value: 1.6, bound: 0.1 });
        let less = |a, b| Number::compare(Binary::Lt, a, b);
        assert!(less(low, near).holds() && less(low, near).is_sure());
        assert!(less(near, high).holds() && !less(near, high).is_sure());
        assert!(!Number::unary(Unary::Not, less(near, high)).is_sure());
        // One side that is sure and decides is enough.
        let (sure, unsure) = (less(low, near), less(near, high));
        assert!(Number::logical(Binary::Or, sure, unsure).is_sure());
        assert!(!Number::logical(Binary::And, sure, unsure).is_sure());
    }

    #[test]
    fn an_arg_max_is_the_first_of_equals() {
        let mut best = Accumulator::new(Reduction::ArgMax);
        [2.0, 3.0, 3.0, 1.0].iter().enumerate().for_each(|(at, &v)| best.add(Number::exact(v), at));
        assert_eq!(best.result(), Number::exact(1.0));
        let mut close = Accumulator::new(Reduction::ArgMax);
        [3.0, 3.1].iter().enumerate().for_each(|(at, &value)| close.add(Number { value, bound: 0.06 }, at));
        assert_eq!(close.result(), Number { value: 1.0, bound: f64::INFINITY });
    }
}
