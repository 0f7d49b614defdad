//! Integers as sums of multiples, so that what an address shares with others is computed once and outside the loops.

use cranelift::codegen::ir::{InstBuilder, Value};

use super::emit::Emitter;

/// `Σ value · factor + constant`, of 64-bit integers that wrap.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Affine {
    /// Each value once, no factor zero.
    terms: Vec<(Value, i64)>,
    constant: i64,
}

impl Affine {
    pub(super) fn constant(constant: i64) -> Self {
        Affine { terms: Vec::new(), constant }
    }

    pub(super) fn value(value: Value) -> Self {
        Affine { terms: vec![(value, 1)], constant: 0 }
    }

    pub(super) fn as_constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    pub(super) fn plus(mut self, other: &Affine) -> Self {
        for (value, factor) in &other.terms {
            match self.terms.iter().position(|(v, _)| v == value) {
                Some(i) => {
                    self.terms[i].1 = self.terms[i].1.wrapping_add(*factor);
                    if self.terms[i].1 == 0 {
                        self.terms.remove(i);
                    }
                }
                None => self.terms.push((*value, *factor)),
            }
        }
        self.constant = self.constant.wrapping_add(other.constant);
        self
    }

    pub(super) fn times(mut self, factor: i64) -> Self {
        for term in &mut self.terms {
            term.1 = term.1.wrapping_mul(factor);
        }
        self.terms.retain(|term| term.1 != 0);
        self.constant = self.constant.wrapping_mul(factor);
        self
    }

    /// `whole` and `rest` of which this is `whole * divisor + rest`, with all in the first that divides without a look at the
    /// values.
    pub(super) fn split(&self, divisor: i64) -> (Affine, Affine) {
        let (whole, rest) = self.terms.iter().partition(|(_, factor)| factor % divisor == 0);
        let mut whole = Affine { terms: whole, constant: self.constant.div_euclid(divisor) };
        for (_, factor) in &mut whole.terms {
            *factor /= divisor;
        }
        (whole, Affine { terms: rest, constant: self.constant.rem_euclid(divisor) })
    }

    /// The innermost scope of its values.
    pub(super) fn scope(&self, e: &Emitter) -> usize {
        self.terms.iter().map(|(value, _)| e.scope_of(*value) as usize).max().unwrap_or(0)
    }

    /// The number itself.
    pub(super) fn emit(self, e: &mut Emitter) -> Value {
        let constant = self.constant;
        match self.sum(e) {
            None => e.int(constant),
            Some(sum) if constant == 0 => sum,
            Some(sum) => {
                let constant = e.int(constant);
                e.ins().iadd(sum, constant)
            }
        }
    }

    /// A pointer and the bytes to add to it when it is used.
    pub(super) fn emit_address(mut self, e: &mut Emitter) -> (Value, i32) {
        // Room for what the user of the address adds to it.
        let offset = i32::try_from(self.constant).ok().filter(|offset| offset.unsigned_abs() < 1 << 30);
        self.constant -= i64::from(offset.unwrap_or(0));
        (self.emit(e), offset.unwrap_or(0))
    }

    /// The sum of the terms: from the outermost scope inwards, so that each partial sum is computed as far out as can be.
    fn sum(self, e: &mut Emitter) -> Option<Value> {
        let mut terms: Vec<_> =
            self.terms.iter().map(|(value, factor)| (e.scope_of(*value), *value, *factor)).collect();
        terms.sort_by_key(|(scope, value, factor)| (*scope, *factor < 0, *value));
        let mut sum = None;
        for group in terms.chunk_by(|a, b| a.0 == b.0) {
            // What one scope adds is shared by all that it addresses.
            let (added, subtracted) = group.split_at(group.partition_point(|(_, _, factor)| *factor > 0));
            let mut step = None;
            for (_, value, factor) in added {
                let term = scaled(e, *value, *factor);
                step = Some(add(e, step, term));
            }
            if let Some(step) = step {
                sum = Some(add(e, sum, step));
            }
            for (_, value, factor) in subtracted {
                let term = scaled(e, *value, factor.wrapping_neg());
                sum = Some(match sum {
                    Some(sum) => e.ins().isub(sum, term),
                    None => e.ins().ineg(term),
                });
            }
        }
        sum
    }
}

fn add(e: &mut Emitter, sum: Option<Value>, term: Value) -> Value {
    match sum {
        Some(sum) => e.ins().iadd(sum, term),
        None => term,
    }
}

fn scaled(e: &mut Emitter, value: Value, factor: i64) -> Value {
    if factor == 1 {
        value
    } else if factor > 0 && factor & (factor - 1) == 0 {
        e.shl(value, factor.trailing_zeros())
    } else {
        let factor = e.int(factor);
        e.ins().imul(value, factor)
    }
}

/// `x / divisor` rounded down, for a divisor of at least 1.
pub(super) fn divide(e: &mut Emitter, x: Value, divisor: i64) -> Value {
    if divisor & (divisor - 1) == 0 {
        return e.sshr(x, divisor.trailing_zeros());
    }
    // Granlund and Montgomery, "Division by invariant integers using multiplication", for numerators of 63 bits; a negative
    // x is divided as !x, which is x's distance from -1, and rounds the other way.
    let log = 64 - (divisor - 1).leading_zeros();
    let multiplier = ((1u128 << (63 + log)) / divisor as u128 + 1) as u64;
    let multiplier = e.int(multiplier as i64);
    let sign = e.sshr(x, 63);
    let distance = e.ins().bxor(x, sign);
    let high = e.ins().umulhi(distance, multiplier);
    let quotient = e.ushr(high, log - 1);
    e.ins().bxor(quotient, sign)
}

/// `x - (x / divisor) * divisor`, for a divisor of at least 1.
pub(super) fn remainder(e: &mut Emitter, x: Value, divisor: i64) -> Value {
    if divisor & (divisor - 1) == 0 {
        let mask = e.int(divisor - 1);
        return e.ins().band(x, mask);
    }
    let quotient = divide(e, x, divisor);
    Affine::value(x).plus(&Affine::value(quotient).times(divisor.wrapping_neg())).emit(e)
}
