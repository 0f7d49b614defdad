//! Functions of floats, as polynomials over one or four lanes alike; nothing is called.
//!
//! Coefficients are those of Moshier's Cephes library (single precision) unless another source is named. Each function
//! states its largest error, which the tests measure.

use cranelift::codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift::codegen::ir::types::{F32, I32, I32X4};
use cranelift::codegen::ir::{InstBuilder, Type, Value};

use super::emit::Emitter;
use crate::format::ROUND;

/// Short names for what polynomials are made of.
impl Emitter {
    fn add(&mut self, a: Value, b: Value) -> Value {
        self.ins().fadd(a, b)
    }

    fn sub(&mut self, a: Value, b: Value) -> Value {
        self.ins().fsub(a, b)
    }

    fn mul(&mut self, a: Value, b: Value) -> Value {
        self.ins().fmul(a, b)
    }

    fn fma(&mut self, a: Value, b: Value, c: Value) -> Value {
        self.ins().fma(a, b, c)
    }

    /// `a * b + c` with constants.
    fn fma_of(&mut self, a: Value, b: f32, c: Value) -> Value {
        let b = self.float_of(self.ty(a), b);
        self.fma(a, b, c)
    }

    fn add_of(&mut self, a: Value, b: f32) -> Value {
        let b = self.float_of(self.ty(a), b);
        self.add(a, b)
    }

    fn mul_of(&mut self, a: Value, b: f32) -> Value {
        let b = self.float_of(self.ty(a), b);
        self.mul(a, b)
    }

    /// A polynomial, its coefficients from the highest power down.
    fn polynomial(&mut self, x: Value, coefficients: &[f32]) -> Value {
        let ty = self.ty(x);
        let mut sum = self.float_of(ty, coefficients[0]);
        for coefficient in &coefficients[1..] {
            let coefficient = self.float_of(ty, *coefficient);
            sum = self.fma(sum, x, coefficient);
        }
        sum
    }

    /// Where `x cc limit`.
    fn where_(&mut self, x: Value, cc: FloatCC, limit: f32) -> Value {
        let limit = self.float_of(self.ty(x), limit);
        self.fcmp(cc, x, limit)
    }

    fn select_of(&mut self, mask: Value, a: f32, b: Value) -> Value {
        let a = self.float_of(self.ty(b), a);
        self.select(mask, a, b)
    }

    /// No number where the mask doesn't hold. Masks say what is known, since vectors on aarch64 have no comparison that holds of what
    /// is no number, but `Ne`.
    fn number_where(&mut self, mask: Value, a: Value) -> Value {
        let none = self.float_of(self.ty(a), f32::NAN);
        self.select(mask, a, none)
    }

    /// `x`, which is not negative, with the sign of `sign`.
    fn with_sign(&mut self, x: Value, sign: Value) -> Value {
        let mask = self.int_of(self.integers_like(x), i32::MIN);
        let sign = self.bits(sign);
        let sign = self.ins().band(sign, mask);
        let x = self.bits(x);
        let x = self.ins().bor(x, sign);
        self.as_floats(x)
    }

    fn integers_like(&self, x: Value) -> Type {
        if self.ty(x) == F32 { I32 } else { I32X4 }
    }
}

/// Below it `e^x` is 0.
const LEAST_EXPONENT: f32 = -104.0;

/// `-ln 2` in two parts, the first of few bits, so that its products with small whole numbers are exact.
pub(super) const MINUS_LN_2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];

/// `(e^r - 1 - r) / r^2` as a polynomial for `r` between halves of `ln 2`, the highest power first.
pub(super) const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x`, to 1.1 ulp (of what is not subnormal; there to the smallest float). Overflows to infinity, underflows gradually.
pub(super) fn exp(e: &mut Emitter, x: Value) -> Value {
    let ty = e.ty(x);
    // What is not a number passes through: it is the second operand.
    let (least, greatest) = (e.float_of(ty, LEAST_EXPONENT), e.float_of(ty, 89.0));
    let x = e.fmax(least, x);
    let x = e.fmin(greatest, x);
    // x = n ln 2 + r
    let round = e.float_of(ty, ROUND);
    let shifted = e.fma_of(x, std::f32::consts::LOG2_E, round);
    let n = e.sub(shifted, round);
    let r = e.fma_of(n, MINUS_LN_2[0], x);
    let r = e.fma_of(n, MINUS_LN_2[1], r);
    let p = e.polynomial(r, &EXP);
    let square = e.mul(r, r);
    let p = e.fma(p, square, r);
    let p = e.add_of(p, 1.0);
    // 2^n in two factors, as its exponent may be out of range.
    let bits = e.bits(shifted);
    let ints = e.integers_like(x);
    let bias = e.int_of(ints, ROUND.to_bits() as i32);
    let n = e.ins().isub(bits, bias);
    let half = e.sshr(n, 1);
    let rest = e.ins().isub(n, half);
    let p = scale(e, p, half);
    scale(e, p, rest)
}

/// `x * 2^n` for an `n` of -126 to 127.
fn scale(e: &mut Emitter, x: Value, n: Value) -> Value {
    let exponent = e.shl(n, 23);
    let one = e.int_of(e.ty(n), 1.0f32.to_bits() as i32);
    let power = e.ins().iadd(exponent, one);
    let power = e.as_floats(power);
    e.mul(x, power)
}

/// The natural logarithm, to 1 ulp. Of 0, minus infinity; of what is below, not a number.
pub(super) fn log(e: &mut Emitter, x: Value) -> Value {
    let (high, low) = log_parts(e, x);
    e.add(high, low)
}

/// The natural logarithm as a sum, to some thirty bits: what rounding the first part loses is in the second, which is
/// finite for whatever argument.
fn log_parts(e: &mut Emitter, x: Value) -> (Value, Value) {
    let ty = e.ty(x);
    let ints = e.integers_like(x);
    // Subnormal numbers are scaled into the normal range.
    let small = e.where_(x, FloatCC::LessThan, f32::MIN_POSITIVE);
    let scaled = e.mul_of(x, 8_388_608.0);
    let normal = e.select(small, scaled, x);
    // normal = m 2^n with m from sqrt(1/2) to sqrt(2)
    let bits = e.bits(normal);
    let root = e.int_of(ints, std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32);
    let above = e.ins().isub(bits, root);
    let n = e.sshr(above, 23);
    let exponent = e.shl(n, 23);
    let mantissa = e.ins().isub(bits, exponent);
    let m = e.as_floats(mantissa);
    let n = e.ins().fcvt_from_sint(ty, n);
    let lower = e.add_of(n, -23.0);
    let n = e.select(small, lower, n);

    let m = e.add_of(m, -1.0);
    let square = e.mul(m, m);
    let p = e.polynomial(
        m,
        &[
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_7e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let cube = e.mul(m, square);
    let p = e.mul(p, cube);
    let p = e.fma_of(n, -2.121_944_4e-4, p);
    let p = e.fma_of(square, -0.5, p);
    // The sum of n ln 2, which is exact, m and p: the larger first.
    let (head, low) = two_sum(e, m, p);
    let whole = e.mul_of(n, 0.693_359_4);
    let (p, lower) = two_sum(e, whole, head);
    let low = e.add(low, lower);

    let infinite = e.where_(x, FloatCC::Equal, f32::INFINITY);
    let p = e.select_of(infinite, f32::INFINITY, p);
    let zero = e.where_(x, FloatCC::Equal, 0.0);
    let p = e.select_of(zero, f32::NEG_INFINITY, p);
    let known = e.where_(x, FloatCC::GreaterThanOrEqual, 0.0);
    (e.number_where(known, p), low)
}

/// A sum and what its rounding lost, where `a` is zero or not smaller than `b` (Dekker); as `n ln 2` and `m` are.
fn two_sum(e: &mut Emitter, a: Value, b: Value) -> (Value, Value) {
    let sum = e.add(a, b);
    let taken = e.sub(sum, a);
    (sum, e.sub(b, taken))
}

/// The largest argument of `sin` and `cos`: beyond it neighbouring floats are a sixteenth of a radian apart or more, and the
/// result is not a number.
pub(super) const LARGEST_ANGLE: f32 = 1_048_576.0;

/// The sine, to 1.6 ulp for arguments up to [`LARGEST_ANGLE`].
pub(super) fn sin(e: &mut Emitter, x: Value) -> Value {
    circular(e, x, 0)
}

/// The cosine, to 1.6 ulp for arguments up to [`LARGEST_ANGLE`].
pub(super) fn cos(e: &mut Emitter, x: Value) -> Value {
    circular(e, x, 1)
}

/// The sine of `x` and so many quarter turns.
fn circular(e: &mut Emitter, x: Value, quarters: i32) -> Value {
    let ty = e.ty(x);
    let ints = e.integers_like(x);
    // x = q pi/2 + r, with pi/2 in three parts (Cody and Waite), each product exact in the multiply-add.
    let round = e.float_of(ty, ROUND);
    let shifted = e.fma_of(x, std::f32::consts::FRAC_2_PI, round);
    let q = e.sub(shifted, round);
    let r = e.fma_of(q, -std::f32::consts::FRAC_PI_2, x);
    let r = e.fma_of(q, 4.371_139e-8, r);
    let r = e.fma_of(q, 1.715_124_5e-15, r);

    let square = e.mul(r, r);
    let s = e.polynomial(square, &[-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
    let cube = e.mul(square, r);
    let s = e.fma(s, cube, r);
    let c = e.polynomial(square, &[2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]);
    let fourth = e.mul(square, square);
    let one = e.float_of(ty, 1.0);
    let head = e.fma_of(square, -0.5, one);
    let c = e.fma(c, fourth, head);

    let quarter = e.bits(shifted);
    let quarter = if quarters == 0 {
        quarter
    } else {
        let quarters = e.int_of(ints, quarters);
        e.ins().iadd(quarter, quarters)
    };
    let odd = e.shl(quarter, 31);
    let zero = e.int_of(ints, 0);
    let odd = e.icmp(IntCC::SignedLessThan, odd, zero);
    let result = e.select(odd, c, s);
    let two = e.int_of(ints, 2);
    let sign = e.ins().band(quarter, two);
    let sign = e.shl(sign, 30);
    let bits = e.bits(result);
    let bits = e.ins().bxor(bits, sign);
    let result = e.as_floats(bits);
    let size = e.ins().fabs(x);
    let known = e.where_(size, FloatCC::LessThanOrEqual, LARGEST_ANGLE);
    e.number_where(known, result)
}

/// The hyperbolic tangent, to 2 ulp.
pub(super) fn tanh(e: &mut Emitter, x: Value) -> Value {
    let square = e.mul(x, x);
    let p = e.polynomial(square, &[-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1]);
    let cube = e.mul(square, x);
    let near = e.fma(p, cube, x);

    let size = e.ins().fabs(x);
    let twice = e.add(size, size);
    let power = exp(e, twice);
    let denominator = e.add_of(power, 1.0);
    let two = e.float_of(e.ty(x), 2.0);
    let quotient = e.ins().fdiv(two, denominator);
    let one = e.float_of(e.ty(x), 1.0);
    let far = e.sub(one, quotient);
    let far = e.with_sign(far, x);
    let is_near = e.where_(size, FloatCC::LessThan, 0.625);
    e.select(is_near, near, far)
}

/// The error function, to 1.5 ulp. Coefficients by N. Juffa (`my_erff`).
pub(super) fn erf(e: &mut Emitter, x: Value) -> Value {
    let square = e.mul(x, x);
    let p = e.polynomial(
        square,
        &[-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1],
    );
    let near = e.fma(p, x, x);

    let size = e.ins().fabs(x);
    // 1 - erf is below half an ulp of 1 from here on.
    let limit = e.float_of(e.ty(x), 4.0);
    let size = e.fmin(limit, size);
    let square = e.mul(size, size);
    let high = e.polynomial(size, &[-1.728_534_7e-5, 3.831_972e-4]);
    let low = e.polynomial(size, &[-3.883_964_4e-3, 2.425_462_2e-2]);
    let p = e.fma(high, square, low);
    let mut p = p;
    for coefficient in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
        let coefficient = e.float_of(e.ty(x), coefficient);
        p = e.fma(p, size, coefficient);
    }
    let minus = e.ins().fneg(size);
    let p = e.fma(p, size, minus);
    let power = exp(e, p);
    let one = e.float_of(e.ty(x), 1.0);
    let far = e.sub(one, power);
    let far = e.with_sign(far, x);
    let is_far = e.where_(size, FloatCC::GreaterThan, 0.927_734_4);
    e.select(is_far, far, near)
}

/// `a ^ b`, with minus zero taken as zero, and minus infinity as any negative number. For constant whole exponents up to 16,
/// one rounding a multiplication; for 0.5 and -0.5, the root and its reciprocal; else `e^(b ln a)`, to 8 ulp.
pub(super) fn pow(e: &mut Emitter, ty: Type, a: Value, b: Value) -> Value {
    if let Some(exponent) = e.as_float(b) {
        if exponent.abs() == 0.5 {
            let root = e.ins().sqrt(a);
            return if exponent > 0.0 { root } else { reciprocal(e, ty, root) };
        }
        if exponent.fract() == 0.0 && exponent.abs() <= 16.0 {
            let power = whole_power(e, ty, a, exponent.abs() as u32);
            return if exponent >= 0.0 { power } else { reciprocal(e, ty, power) };
        }
    }
    let size = e.ins().fabs(a);
    let (high, low) = log_parts(e, size);
    let product = e.mul(b, high);
    // What rounding lost: of the product, and of the logarithm.
    let minus = e.ins().fneg(product);
    let lost = e.fma(b, high, minus);
    let lost = e.fma(b, low, lost);
    let power = exp(e, product);
    let corrected = e.fma(power, lost, power);
    // There is nothing to correct in infinity or the power of it.
    let size = e.ins().fabs(product);
    let finite = e.where_(size, FloatCC::LessThan, f32::INFINITY);
    let corrected = e.select(finite, corrected, power);
    let finite = e.where_(power, FloatCC::LessThan, f32::INFINITY);
    let power = e.select(finite, corrected, power);
    // Of a negative number: to whole exponents, with the sign of the parity.
    let whole = e.ins().nearest(b);
    let is_whole = e.fcmp(FloatCC::Equal, whole, b);
    let half = e.mul_of(b, 0.5);
    let even = e.ins().nearest(half);
    let is_even = e.fcmp(FloatCC::Equal, even, half);
    let negated = e.ins().fneg(power);
    let signed = e.select(is_even, power, negated);
    let not_a_number = e.float_of(ty, f32::NAN);
    let of_negative = e.select(is_whole, signed, not_a_number);
    let negative = e.where_(a, FloatCC::LessThan, 0.0);
    let power = e.select(negative, of_negative, power);
    // 1 to anything and anything to 0 are 1.
    let one = e.where_(a, FloatCC::Equal, 1.0);
    let power = e.select_of(one, 1.0, power);
    let zero = e.where_(b, FloatCC::Equal, 0.0);
    e.select_of(zero, 1.0, power)
}

fn reciprocal(e: &mut Emitter, ty: Type, x: Value) -> Value {
    let one = e.float_of(ty, 1.0);
    e.ins().fdiv(one, x)
}

fn whole_power(e: &mut Emitter, ty: Type, a: Value, exponent: u32) -> Value {
    if exponent == 0 {
        return e.float_of(ty, 1.0);
    }
    let half = whole_power(e, ty, a, exponent / 2);
    let square = if exponent == 1 { a } else { e.mul(half, half) };
    if exponent % 2 == 1 && exponent > 1 { e.mul(square, a) } else { square }
}
