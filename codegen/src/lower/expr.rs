//! Expressions: from the loop language to instructions.

use cranelift::codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift::codegen::ir::types::{F32, F32X4, I32, I32X4, I64};
use cranelift::codegen::ir::{InstBuilder, Type, Value};

use super::affine::{Affine, divide, remainder};
use super::emit::memory;
use super::math;
use super::stmt::{Around, Lowerer};
use super::written::Kind;
use crate::format::Elem;
use crate::loops::{Address, Arg, Binary, Buffer, Expr, Fold, Unary, frame};

/// What an expression yields: a 64-bit integer as a sum that is not emitted yet, anything else as a value.
#[derive(Clone)]
pub(super) enum Yield {
    Int(Affine),
    Value(Value),
}

/// How many loads may leave a loop: registers are few.
const HOISTED: usize = 8;

impl Lowerer<'_> {
    /// A value of an expression of any type.
    pub(super) fn value(&mut self, expr: &Expr) -> Value {
        let yielded = self.expr(expr);
        self.emit(yielded)
    }

    pub(super) fn emit(&mut self, yielded: Yield) -> Value {
        match yielded {
            Yield::Int(x) => x.emit(&mut self.e),
            Yield::Value(x) => x,
        }
    }

    /// The value of an `Int` expression.
    pub(super) fn int(&mut self, expr: &Expr) -> Affine {
        match self.expr(expr) {
            Yield::Int(x) => x,
            Yield::Value(x) => Affine::value(x),
        }
    }

    pub(super) fn expr(&mut self, expr: &Expr) -> Yield {
        Yield::Value(match expr {
            Expr::Int(x) => return Yield::Int(Affine::constant(*x)),
            Expr::Float(x) => self.e.float_of(F32, *x),
            Expr::Var(var) => return self.var(*var),
            Expr::Arg(arg) => {
                let slot = match arg {
                    Arg::Tokens => frame::TOKENS,
                    Arg::Past => frame::PAST,
                    Arg::First => frame::FIRST,
                };
                return Yield::Int(Affine::value(self.frame(slot)));
            }
            Expr::Load { elem, lanes, at } => {
                let value = self.load_at(at, *elem, *lanes);
                if self.e.ty(value) == I64 {
                    return Yield::Int(Affine::value(value));
                }
                value
            }
            Expr::Unary(function, x) => {
                let x = self.expr(x);
                return self.unary(*function, x);
            }
            Expr::Binary(function, a, b) => {
                let (a, b) = (self.expr(a), self.expr(b));
                return self.binary(*function, a, b);
            }
            Expr::Select(mask, a, b) => {
                let (mask, a, b) = (self.value(mask), self.value(a), self.value(b));
                let value = match self.e.as_int(mask) {
                    Some(x) => [b, a][usize::from(x != 0)],
                    None => self.e.select(mask, a, b),
                };
                if self.e.ty(value) == I64 {
                    return Yield::Int(Affine::value(value));
                }
                value
            }
            Expr::Fma(a, b, c) => {
                let (a, b, c) = (self.value(a), self.value(b), self.value(c));
                self.e.ins().fma(a, b, c)
            }
            Expr::Splat(x) => {
                let x = self.value(x);
                self.splat(x)
            }
            Expr::Iota(x) => {
                let x = self.value(x);
                let x = self.splat(x);
                let steps = self.e.vector(I32X4, [0, 1, 2, 3]);
                self.e.ins().iadd(x, steps)
            }
            Expr::Gather(parts) => {
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| self.value(&parts[i]));
                let x = self.e.ins().scalar_to_vector(F32X4, a);
                let x = self.e.ins().insertlane(x, b, 1);
                let x = self.e.ins().insertlane(x, c, 2);
                self.e.ins().insertlane(x, d, 3)
            }
            Expr::Fold(fold, x) => {
                let x = self.value(x);
                self.fold(*fold, x)
            }
        })
    }

    // Memory

    /// A word of the frame.
    pub(super) fn frame(&mut self, slot: usize) -> Value {
        let frame = self.params.frame;
        self.slot(frame, slot)
    }

    fn slot(&mut self, table: Value, slot: usize) -> Value {
        self.e.read_only(table, (slot * 8) as i32, true)
    }

    /// A pointer, and the bytes to add to it.
    pub(super) fn address(&mut self, at: &Address, elem: Elem) -> (Value, i32) {
        self.address_plus(at, elem, &Affine::constant(0))
    }

    /// The same, `further` bytes on.
    pub(super) fn address_plus(&mut self, at: &Address, elem: Elem, further: &Affine) -> (Value, i32) {
        let base = self.base(&at.buffer);
        self.within(at, elem).plus(&base).plus(further).emit_address(&mut self.e)
    }

    /// Where a kind of buffer begins.
    pub(super) fn base(&mut self, buffer: &Buffer) -> Affine {
        match buffer {
            Buffer::Arena(_) => Affine::value(self.frame(frame::ARENA)),
            Buffer::Scratch(_) => Affine::value(self.params.scratch),
            Buffer::Frame(slot) => Affine::value(self.frame(*slot)),
            Buffer::Layer(slot) => Affine::value(self.slot(self.params.layer, *slot)),
            Buffer::Page { table, slot, page } => {
                let table = Affine::value(self.frame(*table));
                let entry = self.int(page).times(8).plus(&table);
                let (pointer, offset) = entry.emit_address(&mut self.e);
                let base = self.e.read_only(pointer, offset, false);
                Affine::value(base).plus(&Affine::value(self.slot(self.params.layer, *slot)))
            }
        }
    }

    /// How many bytes from there an address is.
    pub(super) fn within(&mut self, at: &Address, elem: Elem) -> Affine {
        let size = elem.bytes() as i64;
        let start = match &at.buffer {
            Buffer::Arena(bytes) | Buffer::Scratch(bytes) => *bytes as i64,
            _ => 0,
        };
        self.int(&at.offset).times(size).plus(&Affine::constant(start))
    }

    /// A load: outside of the loops around that neither change its address nor write what it reads.
    fn load_at(&mut self, at: &Address, elem: Elem, lanes: usize) -> Value {
        let within = self.within(at, elem);
        let address = self.base(&at.buffer).plus(&within);
        let size = (lanes * elem.bytes()) as i64;
        let (kind, operands) = (Kind::of(&at.buffer), address.scope(&self.e));
        let stays = |around: &Around| around.hoisted.len() >= HOISTED || around.written.touches(kind, &within, size);
        let mut left = 0;
        while let Some(i) = self.loops.len().checked_sub(left + 1) {
            let scope = self.e.scope() - left;
            if scope <= operands || self.loops[i].scope != scope || stays(&self.loops[i]) {
                break;
            }
            left += 1;
        }
        let (pointer, offset) = address.emit_address(&mut self.e);
        let Some(outermost) = self.loops.len().checked_sub(left).filter(|_| left > 0) else {
            return self.load(elem, lanes, pointer, offset);
        };
        let key = (elem, lanes, pointer, offset);
        if let Some(value) = self.loops[outermost].hoisted.get(&key) {
            return *value;
        }
        self.e.hoist(Some(self.e.scope() - left));
        let value = self.load(elem, lanes, pointer, offset);
        self.e.hoist(None);
        self.loops[outermost].hoisted.insert(key, value);
        value
    }

    fn load(&mut self, elem: Elem, lanes: usize, pointer: Value, offset: i32) -> Value {
        let e = &mut self.e;
        match (elem, lanes) {
            (Elem::F32, 1) => e.ins().load(F32, memory(), pointer, offset),
            (Elem::F32, _) => e.ins().load(F32X4, memory(), pointer, offset),
            (Elem::I32, 1) => e.ins().sload32(memory(), pointer, offset),
            (Elem::I32, _) => e.ins().load(I32X4, memory(), pointer, offset),
            (Elem::U8, _) => e.ins().uload8(I64, memory(), pointer, offset),
            (Elem::Bf16, 1) => {
                let x = e.ins().uload16(I32, memory(), pointer, offset);
                let x = e.shl(x, 16);
                e.as_floats(x)
            }
            (Elem::Bf16, _) => {
                let x = e.ins().uload16x4(memory(), pointer, offset);
                let x = e.shl(x, 16);
                e.as_floats(x)
            }
        }
    }

    // Functions

    fn splat(&mut self, x: Value) -> Value {
        if let Some(x) = self.e.as_float(x) {
            return self.e.float_of(F32X4, x);
        }
        let ty = self.e.ty(x);
        if let Some(constant) = self.e.as_int(x) {
            // A mask is all ones or all zeros.
            return self.e.int_of(I32X4, if ty == I64 { constant as i32 } else { -i32::from(constant != 0) });
        }
        match ty {
            F32 => self.e.ins().splat(F32X4, x),
            I64 => {
                let x = self.e.ins().ireduce(I32, x);
                self.e.ins().splat(I32X4, x)
            }
            _ => {
                let x = self.e.ins().uextend(I32, x);
                let x = self.e.ins().ineg(x);
                self.e.ins().splat(I32X4, x)
            }
        }
    }

    pub(super) fn fold(&mut self, fold: Fold, x: Value) -> Value {
        let halves = self.e.swizzle(x, [2, 3, 2, 3]);
        let x = self.combine(fold, x, halves);
        let next = self.e.swizzle(x, [1, 1, 1, 1]);
        let x = self.e.ins().extractlane(x, 0);
        let next = self.e.ins().extractlane(next, 0);
        self.combine(fold, x, next)
    }

    fn combine(&mut self, fold: Fold, a: Value, b: Value) -> Value {
        match fold {
            Fold::Sum => self.e.ins().fadd(a, b),
            Fold::Max => self.e.fmax(a, b),
            Fold::Min => self.e.fmin(a, b),
        }
    }

    fn unary(&mut self, function: Unary, x: Yield) -> Yield {
        let x = match (function, x) {
            (Unary::Neg, Yield::Int(x)) => return Yield::Int(x.times(-1)),
            (_, x) => self.emit(x),
        };
        let ty = self.e.ty(x);
        let e = &mut self.e;
        Yield::Value(match function {
            Unary::Neg if ty.lane_type() == F32 => e.ins().fneg(x),
            Unary::Neg => e.ins().ineg(x),
            Unary::Not if ty.is_vector() => e.ins().bnot(x),
            Unary::Not => match e.as_int(x) {
                Some(constant) => e.truth(constant == 0),
                None => {
                    let one = e.truth(true);
                    e.ins().bxor(x, one)
                }
            },
            Unary::Abs => e.ins().fabs(x),
            Unary::Exp => math::exp(e, x),
            Unary::Log => math::log(e, x),
            Unary::Sin => math::sin(e, x),
            Unary::Cos => math::cos(e, x),
            Unary::Tanh => math::tanh(e, x),
            Unary::Erf => math::erf(e, x),
            Unary::Sqrt => e.ins().sqrt(x),
            Unary::Rsqrt => {
                let root = e.ins().sqrt(x);
                let one = e.float_of(ty, 1.0);
                e.ins().fdiv(one, root)
            }
            Unary::ToFloat if ty.is_vector() => e.ins().fcvt_from_sint(F32X4, x),
            Unary::ToFloat => match e.as_int(x) {
                Some(constant) => e.float_of(F32, constant as f32),
                None => e.ins().fcvt_from_sint(F32, x),
            },
        })
    }

    fn binary(&mut self, function: Binary, a: Yield, b: Yield) -> Yield {
        if let (Yield::Int(a), Yield::Int(b)) = (&a, &b) {
            return self.int_binary(function, a, b);
        }
        let (a, b) = (self.emit(a), self.emit(b));
        let ty = self.e.ty(a);
        Yield::Value(if ty.lane_type() == F32 {
            self.float_binary(function, ty, a, b)
        } else {
            self.lanes_binary(function, a, b)
        })
    }

    fn int_binary(&mut self, function: Binary, a: &Affine, b: &Affine) -> Yield {
        let (ca, cb) = (a.as_constant(), b.as_constant());
        if let (Some(ca), Some(cb)) = (ca, cb)
            && let Some(x) = crate::loops::fold(function, ca, cb)
        {
            return Yield::Int(Affine::constant(x));
        }
        if let Some(cc) = int_comparison(function) {
            // Where the two differ by a constant, the answer is known: loop counters don't wrap.
            if let Some(difference) = a.clone().plus(&b.clone().times(-1)).as_constant() {
                return Yield::Value(self.e.truth(holds(cc, difference)));
            }
            let (a, b) = (a.clone().emit(&mut self.e), b.clone().emit(&mut self.e));
            return Yield::Value(self.e.icmp(cc, a, b));
        }
        let e = &mut self.e;
        Yield::Int(match (function, ca, cb) {
            (Binary::Add, _, _) => a.clone().plus(b),
            (Binary::Sub, _, _) => a.clone().plus(&b.clone().times(-1)),
            (Binary::Mul, Some(factor), _) => b.clone().times(factor),
            (Binary::Mul, _, Some(factor)) => a.clone().times(factor),
            (Binary::Div | Binary::Rem, _, Some(divisor)) => {
                let divisor = divisor.max(1);
                let (whole, rest) = a.split(divisor);
                match (function, rest.as_constant()) {
                    (Binary::Div, Some(_)) => whole,
                    (Binary::Div, None) => {
                        let rest = rest.emit(e);
                        whole.plus(&Affine::value(divide(e, rest, divisor)))
                    }
                    (_, Some(rest)) => Affine::constant(rest),
                    (_, None) => {
                        let rest = rest.emit(e);
                        Affine::value(remainder(e, rest, divisor))
                    }
                }
            }
            _ => {
                let (a, b) = (a.clone().emit(e), b.clone().emit(e));
                Affine::value(self.int_values(function, a, b))
            }
        })
    }

    /// Of two values of type `I64`.
    fn int_values(&mut self, function: Binary, a: Value, b: Value) -> Value {
        let e = &mut self.e;
        match function {
            Binary::Mul => e.ins().imul(a, b),
            Binary::Min => {
                let less = e.icmp(IntCC::SignedLessThan, a, b);
                e.select(less, a, b)
            }
            Binary::Max => {
                let greater = e.icmp(IntCC::SignedGreaterThan, a, b);
                e.select(greater, a, b)
            }
            Binary::Div | Binary::Rem => {
                let one = e.int(1);
                let positive = e.icmp(IntCC::SignedGreaterThan, b, one);
                let b = e.select(positive, b, one);
                // Of numerators without a sign, as in `divide`.
                let sign = e.sshr(a, 63);
                let distance = e.ins().bxor(a, sign);
                let quotient = e.ins().udiv(distance, b);
                let quotient = e.ins().bxor(quotient, sign);
                if function == Binary::Div {
                    return quotient;
                }
                let product = e.ins().imul(quotient, b);
                e.ins().isub(a, product)
            }
            _ => unreachable!("verified: {function} of ints is an affine form or a comparison"),
        }
    }

    /// Of masks, and of four integers.
    fn lanes_binary(&mut self, function: Binary, a: Value, b: Value) -> Value {
        if let Some(cc) = int_comparison(function) {
            return self.e.icmp(cc, a, b);
        }
        let e = &mut self.e;
        match function {
            Binary::And => e.ins().band(a, b),
            Binary::Or => e.ins().bor(a, b),
            Binary::Add => e.ins().iadd(a, b),
            Binary::Sub => e.ins().isub(a, b),
            Binary::Mul => e.ins().imul(a, b),
            Binary::Min => e.ins().smin(a, b),
            Binary::Max => e.ins().smax(a, b),
            _ => {
                // Division lane by lane: rare, and no machine has one of vectors.
                let mut result = a;
                for lane in 0..4 {
                    let [x, y] = [a, b].map(|v| {
                        let x = self.e.ins().extractlane(v, lane);
                        self.e.ins().sextend(I64, x)
                    });
                    let quotient = self.int_values(function, x, y);
                    let quotient = self.e.ins().ireduce(I32, quotient);
                    result = self.e.ins().insertlane(result, quotient, lane);
                }
                result
            }
        }
    }

    fn float_binary(&mut self, function: Binary, ty: Type, a: Value, b: Value) -> Value {
        let e = &mut self.e;
        let compare = |cc| (cc, a, b);
        let (cc, a, b) = match function {
            Binary::Add => return e.ins().fadd(a, b),
            Binary::Sub => return e.ins().fsub(a, b),
            Binary::Mul => return e.ins().fmul(a, b),
            Binary::Div => return e.ins().fdiv(a, b),
            Binary::Pow => return math::pow(e, ty, a, b),
            Binary::Min => return e.fmin(a, b),
            Binary::Max => return e.fmax(a, b),
            Binary::Lt => compare(FloatCC::LessThan),
            Binary::Le => compare(FloatCC::LessThanOrEqual),
            Binary::Gt => compare(FloatCC::GreaterThan),
            Binary::Ge => compare(FloatCC::GreaterThanOrEqual),
            Binary::Eq => compare(FloatCC::Equal),
            Binary::Ne => compare(FloatCC::NotEqual),
            Binary::Rem | Binary::And | Binary::Or => unreachable!("verified: no {function} of floats"),
        };
        e.fcmp(cc, a, b)
    }
}

fn int_comparison(function: Binary) -> Option<IntCC> {
    Some(match function {
        Binary::Lt => IntCC::SignedLessThan,
        Binary::Le => IntCC::SignedLessThanOrEqual,
        Binary::Gt => IntCC::SignedGreaterThan,
        Binary::Ge => IntCC::SignedGreaterThanOrEqual,
        Binary::Eq => IntCC::Equal,
        Binary::Ne => IntCC::NotEqual,
        _ => return None,
    })
}

/// Whether `a cc b` where `a - b` is `difference`.
fn holds(cc: IntCC, difference: i64) -> bool {
    match cc {
        IntCC::SignedLessThan => difference < 0,
        IntCC::SignedLessThanOrEqual => difference <= 0,
        IntCC::SignedGreaterThan => difference > 0,
        IntCC::SignedGreaterThanOrEqual => difference >= 0,
        IntCC::Equal => difference == 0,
        _ => difference != 0,
    }
}
