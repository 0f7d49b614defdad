//! Building expressions: operators and short names, with integer constants folded.
//!
//! The operators don't know types, so they fold only what holds an `Int` constant, and that can only be integer arithmetic.

use std::ops;

use crate::format::Elem;

use super::{Address, Arg, Binary, Buffer, Expr, Fold, Unary, Var};

impl From<i64> for Expr {
    fn from(value: i64) -> Self {
        Expr::Int(value)
    }
}

impl From<i32> for Expr {
    fn from(value: i32) -> Self {
        Expr::Int(value.into())
    }
}

impl From<usize> for Expr {
    fn from(value: usize) -> Self {
        Expr::Int(value as i64)
    }
}

impl From<f32> for Expr {
    fn from(value: f32) -> Self {
        Expr::Float(value)
    }
}

impl From<Var> for Expr {
    fn from(value: Var) -> Self {
        Expr::Var(value)
    }
}

impl From<Arg> for Expr {
    fn from(value: Arg) -> Self {
        Expr::Arg(value)
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident;)*) => {$(
        impl<T: Into<Expr>> ops::$trait<T> for Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                binary(Binary::$trait, self, other.into())
            }
        }

        impl<T: Into<Expr>> ops::$trait<T> for Var {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                binary(Binary::$trait, self.into(), other.into())
            }
        }
    )*};
}

operators! {
    Add add;
    Sub sub;
    Mul mul;
    Div div;
    Rem rem;
}

impl ops::Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        match self {
            Expr::Int(x) => Expr::Int(x.wrapping_neg()),
            x => Expr::Unary(Unary::Neg, Box::new(x)),
        }
    }
}

impl ops::Not for Expr {
    type Output = Expr;
    fn not(self) -> Expr {
        Expr::Unary(Unary::Not, Box::new(self))
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(self, other: impl Into<Expr>) -> Expr {
            binary(Binary::$op, self, other.into())
        }
    )*};
}

impl Expr {
    methods! {
        /// The smaller of two numbers.
        min Min;
        /// The larger of two numbers.
        max Max;
        /// `self ^ other` of floats.
        pow Pow;
        /// `self < other`, a mask.
        lt Lt;
        /// `self <= other`, a mask.
        le Le;
        /// `self > other`, a mask.
        gt Gt;
        /// `self >= other`, a mask.
        ge Ge;
        /// `self == other`, a mask.
        equals Eq;
        /// `self != other`, a mask.
        differs Ne;
        /// Both masks.
        and And;
        /// Either mask.
        or Or;
    }

    /// Visits it and all expressions that it is made of, those of addresses too.
    pub fn visit<'e>(&'e self, see: &mut dyn FnMut(&'e Expr)) {
        see(self);
        match self {
            Expr::Int(_) | Expr::Float(_) | Expr::Var(_) | Expr::Arg(_) => {}
            Expr::Load { at, .. } => {
                if let Buffer::Page { page, .. } = &at.buffer {
                    page.visit(see);
                }
                at.offset.visit(see);
            }
            Expr::Unary(_, x) | Expr::Splat(x) | Expr::Iota(x) | Expr::Fold(_, x) => x.visit(see),
            Expr::Binary(_, a, b) => [a, b].into_iter().for_each(|x| x.visit(see)),
            Expr::Select(a, b, c) | Expr::Fma(a, b, c) => [a, b, c].into_iter().for_each(|x| x.visit(see)),
            Expr::Gather(parts) => parts.iter().for_each(|x| x.visit(see)),
        }
    }

    /// `self / k`: of floats; of `Int`s, rounded down. The same as the operator, which a trait in scope may hide.
    #[allow(clippy::should_implement_trait)]
    pub fn div(self, other: impl Into<Expr>) -> Expr {
        binary(Binary::Div, self, other.into())
    }

    /// The remainder of the `Int` division rounded down.
    #[allow(clippy::should_implement_trait)]
    pub fn rem(self, other: impl Into<Expr>) -> Expr {
        binary(Binary::Rem, self, other.into())
    }

    /// `self / k` of `Int`s, rounded up.
    pub fn div_ceil(self, k: i64) -> Expr {
        binary(Binary::Div, self + (k - 1), Expr::Int(k))
    }

    /// A function of this value.
    pub fn unary(self, function: Unary) -> Expr {
        match function {
            Unary::Neg => -self,
            _ => Expr::Unary(function, Box::new(self)),
        }
    }

    /// `self * b + c` of floats, rounded once.
    pub fn fma(self, b: impl Into<Expr>, c: impl Into<Expr>) -> Expr {
        Expr::Fma(Box::new(self), Box::new(b.into()), Box::new(c.into()))
    }

    /// `then` where this mask holds, else `otherwise`.
    pub fn select(self, then: impl Into<Expr>, otherwise: impl Into<Expr>) -> Expr {
        Expr::Select(Box::new(self), Box::new(then.into()), Box::new(otherwise.into()))
    }

    /// Four equal lanes.
    pub fn splat(self) -> Expr {
        Expr::Splat(Box::new(self))
    }

    /// `[self, self + 1, self + 2, self + 3]`.
    pub fn iota(self) -> Expr {
        Expr::Iota(Box::new(self))
    }

    /// The lanes combined to one value.
    pub fn fold(self, fold: Fold) -> Expr {
        Expr::Fold(fold, Box::new(self))
    }

    /// The value, if this is an `Int` constant.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Expr::Int(x) => Some(*x),
            _ => None,
        }
    }

    /// The same, if it is a size or a number of elements: not less than 0.
    pub fn as_size(&self) -> Option<usize> {
        self.as_int().and_then(|x| usize::try_from(x).ok())
    }
}

impl Address {
    /// `offset` elements into a buffer.
    pub fn new(buffer: Buffer, offset: impl Into<Expr>) -> Self {
        Address { buffer, offset: offset.into() }
    }

    /// `offset` elements further.
    pub fn plus(self, offset: impl Into<Expr>) -> Self {
        Address { buffer: self.buffer, offset: self.offset + offset.into() }
    }

    /// One element from here.
    pub fn load(self, elem: Elem) -> Expr {
        Expr::Load { elem, lanes: 1, at: Box::new(self) }
    }

    /// Four neighbours from here.
    pub fn load4(self, elem: Elem) -> Expr {
        Expr::Load { elem, lanes: super::LANES, at: Box::new(self) }
    }
}

/// `a op b`, with `Int` constants folded and moved to the right.
pub fn binary(op: Binary, a: Expr, b: Expr) -> Expr {
    use Binary::*;
    use Expr::{Binary as Bin, Int};
    match (op, a, b) {
        (_, Int(a), Int(b)) => match fold(op, a, b) {
            Some(x) => Int(x),
            None => Bin(op, Box::new(Int(a)), Box::new(Int(b))),
        },
        (Add | Mul | Min | Max, a @ Int(_), b) => binary(op, b, a),
        (Add | Sub, a, Int(0)) | (Mul | Div, a, Int(1)) => a,
        (Mul, _, Int(0)) | (Rem, _, Int(1)) => Int(0),
        (Sub, a, Int(b)) => binary(Add, a, Int(b.wrapping_neg())),
        (Add | Mul | Min | Max, Bin(inner, a, c), Int(b)) if inner == op && c.as_int().is_some() => {
            binary(op, *a, binary(op, *c, Int(b)))
        }
        // Constants of sums are gathered on the right, so that neighbouring addresses share all but a constant.
        (Add, a, Bin(Add, b, c)) if c.as_int().is_some() => binary(Add, binary(Add, a, *b), *c),
        (Add, Bin(Add, a, c), b) if c.as_int().is_some() => binary(Add, binary(Add, *a, b), *c),
        // (x + c) * b = x * b + c * b
        (Mul, Bin(Add, a, c), Int(b)) if c.as_int().is_some() => {
            binary(Add, binary(Mul, *a, Int(b)), binary(Mul, *c, Int(b)))
        }
        // (x * m) / k and (x * m + c) / k where k divides m; so for the remainder.
        (Div, Bin(Mul, a, m), Int(k)) if divides(k, &m) => binary(Mul, *a, quotient(&m, k)),
        (Rem, Bin(Mul, _, m), Int(k)) if divides(k, &m) => Int(0),
        (op, a, b) => Bin(op, Box::new(a), Box::new(b)),
    }
}

fn divides(k: i64, m: &Expr) -> bool {
    k > 0 && m.as_int().is_some_and(|m| m % k == 0)
}

fn quotient(m: &Expr, k: i64) -> Expr {
    Expr::Int(m.as_int().map_or(0, |m| m / k))
}

/// The value of an integer function of two constants; of the ones that yield a number.
pub(crate) fn fold(op: Binary, a: i64, b: i64) -> Option<i64> {
    Some(match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::Div => a.div_euclid(b.max(1)),
        Binary::Rem => a.rem_euclid(b.max(1)),
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::erasing_op, clippy::identity_op)]
    fn folds_integer_constants() {
        let x = || Expr::Var(Var(0));
        let y = || Expr::Var(Var(1));
        assert_eq!(x() * 1, x());
        assert_eq!(x() + 0, x());
        assert_eq!(x() * 0, Expr::Int(0));
        assert_eq!(x() - 3 + 3, x());
        assert_eq!((x() + 2) * 4 + 1, x() * 4 + 9);
        assert_eq!((x() + 2) + (y() + 3), (x() + y()) + 5);
        assert_eq!(Expr::Int(-7).div(4), Expr::Int(-2));
        assert_eq!(Expr::Int(-7).rem(4), Expr::Int(1));
        assert_eq!((x() * 12).div(4), x() * 3);
        assert_eq!((x() * 12).rem(4), Expr::Int(0));
        assert_eq!(Expr::Int(3) + x(), x() + 3);
        assert_eq!(x().min(5).min(3), x().min(3));
    }

    #[test]
    fn leaves_floats_alone() {
        let x = || Expr::Var(Var(0));
        assert_eq!(x() + 0.0, Expr::Binary(Binary::Add, Box::new(x()), Box::new(Expr::Float(0.0))));
    }
}
