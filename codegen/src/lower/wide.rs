//! Loops over neighbours that a machine can do eight or sixteen at a time, where Cranelift's vectors have four: found here,
//! lowered as any expression, and handed on as operations of whichever width.

use std::collections::HashMap;

use cranelift::codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift::codegen::ir::types::{F32, F32X4, I32, I32X4, I64};
use cranelift::codegen::ir::{Function, InstBuilder, InstructionData, MemFlagsData, Opcode, Value, ValueDef};

use super::affine::Affine;
use super::emit::Emitter;
use super::expr::Yield;
use super::stmt::Lowerer;
use super::written::{Kind, Written, counted};
use super::x86::lanes::{self, Lanes, Op, Place};
use crate::format::{Elem, PANEL};
use crate::loops::{Address, Binary, Buffer, Expr, Fold, LANES, Stmt, Var};

/// A loop over neighbours, alone in a loop over rows or not.
struct Nest<'a> {
    /// The counter of the rows, the first of them, and where they end.
    rows: Option<(Var, Affine, Affine)>,
    var: Var,
    from: Affine,
    extent: usize,
    body: &'a [Stmt],
}

/// What a nest needs of its surroundings.
#[derive(Default)]
struct Needs {
    pointers: Vec<Pointer>,
    /// Scalars as floats, and whether they are bits of integers.
    scalars: Vec<(Value, bool)>,
    /// What stands for a vector in the body.
    inputs: Vec<(Var, Input)>,
    accesses: Vec<Access>,
    total: Option<Total>,
}

struct Pointer {
    start: Affine,
    stride: i32,
}

#[derive(Clone, Copy)]
enum Input {
    Load(Elem, Place),
    Scalar(usize),
    Index(usize),
    Total,
}

struct Access {
    kind: Kind,
    start: Affine,
    stride: i64,
    bytes: i64,
    writes: bool,
}

struct Total {
    var: Var,
    fold: Fold,
    before: Value,
}

/// A statement whose expressions name inputs.
enum Step {
    Let(Var, Expr),
    Store(Elem, Place, Expr),
    Total(Expr),
}

impl Lowerer<'_> {
    /// Calls a wider machine's function for a loop, if it can be one. Otherwise changes nothing but what is computed ahead.
    pub(super) fn widened(&mut self, stmt: &Stmt) -> bool {
        if self.cores.cores().bits == 128 {
            return false;
        }
        let vars = self.vars.clone();
        let found = self.nest(stmt).and_then(|nest| self.wide(&nest));
        self.vars = vars;
        if let Some((var, Some(value))) = found {
            self.assign(var, Yield::Value(value));
        }
        found.is_some()
    }

    fn nest<'a>(&mut self, stmt: &'a Stmt) -> Option<Nest<'a>> {
        let Stmt::For { var, from, to, step, body } = stmt else { return None };
        let (from_here, to_here) = (self.pure_int(from)?, self.pure_int(to)?);
        if *step == LANES as i64 {
            let extent = to_here.plus(&from_here.clone().times(-1)).as_constant()?;
            let extent = usize::try_from(extent).ok().filter(|n| n.is_multiple_of(PANEL) && *n > 0)?;
            return Some(Nest { rows: None, var: *var, from: from_here, extent, body });
        }
        let mut inner = body.iter().filter(|stmt| !matches!(stmt, Stmt::Note(_)));
        let (Some(inner @ Stmt::For { from, to, .. }), None, 1) = (inner.next(), inner.next(), step) else {
            return None;
        };
        if [from, to].iter().any(|expr| mentions(expr, &[*var])) {
            return None;
        }
        let nest = self.nest(inner).filter(|nest| nest.rows.is_none())?;
        Some(Nest { rows: Some((*var, from_here, to_here)), ..nest })
    }

    /// An integer that no load is needed for.
    fn pure_int(&mut self, expr: &Expr) -> Option<Affine> {
        (!has_load(expr)).then(|| self.int(expr))
    }

    fn wide(&mut self, nest: &Nest<'_>) -> Option<(Var, Option<Value>)> {
        let mut needs = Needs::default();
        let mut finder = Finder { fresh: self.vars.len() as u32, nest, needs: &mut needs, inside: Vec::new() };
        let steps = finder.steps(self)?;
        if needs.accesses.iter().all(|access| !access.writes) && needs.total.is_none() {
            return None;
        }
        if nest.rows.is_some()
            && (needs.total.is_some() || needs.inputs.iter().any(|(_, i)| matches!(i, Input::Index(_))))
        {
            return None;
        }
        needs.are_apart().then_some(())?;
        let (ops, total) = self.ops(&needs, &steps)?;
        let pointers = needs.pointers.iter().map(|pointer| pointer.stride).collect();
        let total = needs.total.as_ref().zip(total).map(|(needed, next)| (needed.fold, next));
        let lanes = Lanes::new(
            (nest.extent, nest.rows.is_some()),
            pointers,
            needs.scalars.len(),
            ops,
            total,
            self.cores.cores(),
        )?;
        let callee = self.cores.lanes(&mut self.e.func, lanes);
        let mut arguments: Vec<Value> =
            needs.pointers.iter().map(|pointer| pointer.start.clone().emit(&mut self.e)).collect();
        if let Some((_, from, to)) = &nest.rows {
            arguments.push(to.clone().plus(&from.clone().times(-1)).emit(&mut self.e));
        }
        arguments.extend(needs.scalars.iter().map(|(value, _)| *value));
        arguments.extend(needs.total.as_ref().map(|total| total.before));
        let call = self.e.ins().call(callee, &arguments);
        let result = self.e.func.dfg.inst_results(call).first().copied();
        Some((needs.total.map_or(nest.var, |total| total.var), result))
    }

    /// The body as operations; and which of them is the total.
    fn ops(&mut self, needs: &Needs, steps: &[Step]) -> Option<(Vec<Op>, Option<usize>)> {
        let types = needs.inputs.iter().map(|(_, input)| match input {
            Input::Index(_) => I32X4,
            Input::Scalar(n) if needs.scalars[*n].1 => I32X4,
            _ => F32X4,
        });
        let types: Vec<_> = types.collect();
        let isa = self.isa;
        let (inside, params) = Emitter::new(isa, &types);
        let outside = std::mem::replace(&mut self.e, inside);
        let (loops, vars) = (std::mem::take(&mut self.loops), self.vars.clone());
        for ((var, _), param) in needs.inputs.iter().zip(&params) {
            self.vars.resize(self.vars.len().max(var.0 as usize + 1), None);
            self.vars[var.0 as usize] = Some(Yield::Value(*param));
        }
        let mut values = Vec::new();
        for step in steps {
            values.push(match step {
                Step::Let(var, value) => {
                    let value = self.value(value);
                    self.assign(*var, Yield::Value(value));
                    value
                }
                Step::Store(Elem::Bf16, _, value) => {
                    let value = self.value(value);
                    self.e.upper_half(value)
                }
                Step::Store(_, _, value) | Step::Total(value) => self.value(value),
            });
        }
        let inside = std::mem::replace(&mut self.e, outside);
        self.loops = loops;
        self.vars = vars;
        let inputs: HashMap<Value, Input> =
            params.iter().copied().zip(needs.inputs.iter().map(|(_, input)| *input)).collect();
        let mut translation = Translation { func: &inside.func, inputs, ops: Vec::new(), known: HashMap::new() };
        // In this order, so that each load comes before the stores that follow it.
        let mut total = None;
        for (step, value) in steps.iter().zip(values) {
            let value = translation.value(value)?;
            match step {
                Step::Let(..) => {}
                Step::Store(elem, place, _) => translation.ops.push(Op::Store(*elem, *place, value)),
                Step::Total(_) => total = Some(value),
            }
        }
        Some((translation.ops, total))
    }
}

impl Needs {
    /// Whether no lane reads or writes what another one writes, of as many as a panel has columns.
    fn are_apart(&self) -> bool {
        let window = |access: &Access| access.bytes * PANEL as i64;
        for (i, write) in self.accesses.iter().enumerate().filter(|(_, access)| access.writes) {
            for (j, other) in self.accesses.iter().enumerate() {
                if i == j || other.kind != write.kind {
                    continue;
                }
                let alike = write.stride == other.stride;
                let distance = write.start.clone().plus(&other.start.clone().times(-1)).as_constant();
                let apart = match distance.filter(|_| alike) {
                    // In place: read before it is written, by the same lane.
                    Some(0) => j < i && !other.writes && write.bytes == other.bytes,
                    Some(distance) => distance >= window(other) || -distance >= window(write),
                    None => false,
                };
                if !apart {
                    return false;
                }
            }
        }
        true
    }
}

/// Finds what a nest needs, and rewrites its body.
struct Finder<'a> {
    /// The first variable that nothing names.
    fresh: u32,
    nest: &'a Nest<'a>,
    needs: &'a mut Needs,
    /// The variables that the body defines.
    inside: Vec<Var>,
}

impl Finder<'_> {
    fn steps(&mut self, lowerer: &mut Lowerer<'_>) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        for stmt in self.nest.body {
            match stmt {
                Stmt::Note(_) => {}
                Stmt::Let(var, value) => {
                    let value = self.rewrite(lowerer, value)?;
                    self.inside.push(*var);
                    steps.push(Step::Let(*var, value));
                }
                Stmt::Store { elem: elem @ (Elem::F32 | Elem::Bf16), at, value } => {
                    let value = self.rewrite(lowerer, value)?;
                    let place = self.access(lowerer, *elem, at, true)?;
                    steps.push(Step::Store(*elem, place, value));
                }
                Stmt::Set(var, value) => {
                    let is_total = |expr: &Expr| *expr == Expr::Var(*var);
                    let (fold, rest) = match value {
                        Expr::Fma(a, b, c) if is_total(c) => (Fold::Sum, vec![a, b]),
                        Expr::Binary(Binary::Add, a, b) if is_total(a) => (Fold::Sum, vec![b]),
                        Expr::Binary(Binary::Add, a, b) if is_total(b) => (Fold::Sum, vec![a]),
                        Expr::Binary(Binary::Max, a, b) if is_total(a) => (Fold::Max, vec![b]),
                        _ => return None,
                    };
                    if self.needs.total.is_some()
                        || self.inside.contains(var)
                        || rest.iter().any(|expr| mentions(expr, &[*var]))
                    {
                        return None;
                    }
                    let before = lowerer.var(*var);
                    let before = lowerer.emit(before);
                    if lowerer.e.ty(before) != F32X4 {
                        return None;
                    }
                    self.needs.total = Some(Total { var: *var, fold, before });
                    let input = self.input(Input::Total);
                    let value = match value {
                        Expr::Fma(a, b, _) => {
                            let (a, b) = (self.rewrite(lowerer, a)?, self.rewrite(lowerer, b)?);
                            Expr::Fma(Box::new(a), Box::new(b), Box::new(input))
                        }
                        Expr::Binary(function, ..) => {
                            let rest = self.rewrite(lowerer, rest[0])?;
                            Expr::Binary(*function, Box::new(input), Box::new(rest))
                        }
                        _ => return None,
                    };
                    steps.push(Step::Total(value));
                }
                _ => return None,
            }
        }
        Some(steps)
    }

    /// The variables that change from round to round.
    fn changing(&self) -> Vec<Var> {
        let rows = self.nest.rows.as_ref().map(|(var, ..)| *var);
        [self.nest.var].into_iter().chain(rows).chain(self.inside.iter().copied()).collect()
    }

    fn input(&mut self, input: Input) -> Expr {
        let var = Var(self.fresh);
        self.fresh += 1;
        self.needs.inputs.push((var, input));
        Expr::Var(var)
    }

    fn rewrite(&mut self, lowerer: &mut Lowerer<'_>, expr: &Expr) -> Option<Expr> {
        let mut of = |expr: &Expr| self.rewrite(lowerer, expr).map(Box::new);
        Some(match expr {
            Expr::Unary(function, x) => Expr::Unary(*function, of(x)?),
            Expr::Binary(function, a, b) => Expr::Binary(*function, of(a)?, of(b)?),
            Expr::Select(mask, a, b) => Expr::Select(of(mask)?, of(a)?, of(b)?),
            Expr::Fma(a, b, c) => Expr::Fma(of(a)?, of(b)?, of(c)?),
            Expr::Load { elem: elem @ (Elem::F32 | Elem::Bf16), lanes: LANES, at } => {
                let place = self.access(lowerer, *elem, at, false)?;
                self.input(Input::Load(*elem, place))
            }
            Expr::Splat(x) if matches!(**x, Expr::Int(_) | Expr::Float(_)) => expr.clone(),
            Expr::Splat(x) => {
                if mentions(x, &self.changing()) || !self.is_still(lowerer, x) {
                    return None;
                }
                let value = lowerer.value(x);
                self.scalar(lowerer, value)?
            }
            Expr::Iota(x) => {
                if has_load(x) || mentions(x, &self.inside) || self.nest.rows.is_some() {
                    return None;
                }
                let [first, next, last] = self.at(lowerer, |lowerer| lowerer.int(x));
                let further = |x: Affine| x.plus(&first.clone().times(-1)).as_constant();
                if [further(next), further(last)] != [Some(LANES as i64), Some(self.last())] {
                    return None;
                }
                let first = first.emit(&mut lowerer.e);
                let (scalar, _) = self.scalar_number(lowerer, first)?;
                self.input(Input::Index(scalar))
            }
            Expr::Var(var) if self.inside.contains(var) => expr.clone(),
            // A vector of equal lanes from outside.
            Expr::Var(var)
                if !self.changing().contains(var) && self.needs.total.as_ref().is_none_or(|t| t.var != *var) =>
            {
                let Yield::Value(value) = lowerer.var(*var) else { return None };
                let ValueDef::Result(inst, _) = lowerer.e.func.dfg.value_def(value) else { return None };
                let InstructionData::Unary { opcode: Opcode::Splat, arg } = lowerer.e.func.dfg.insts[inst] else {
                    return None;
                };
                if lowerer.e.ty(arg) != F32 {
                    return None;
                }
                self.scalar(lowerer, arg)?
            }
            _ => return None,
        })
    }

    fn scalar(&mut self, lowerer: &mut Lowerer<'_>, value: Value) -> Option<Expr> {
        let (number, _) = self.scalar_number(lowerer, value)?;
        Some(self.input(Input::Scalar(number)))
    }

    /// The number of a scalar, a float or an integer, among the arguments.
    fn scalar_number(&mut self, lowerer: &mut Lowerer<'_>, value: Value) -> Option<(usize, bool)> {
        let e = &mut lowerer.e;
        let (value, integer) = match e.ty(value) {
            F32 => (value, false),
            I64 => {
                let value = e.ins().ireduce(I32, value);
                (e.ins().bitcast(F32, MemFlagsData::new(), value), true)
            }
            _ => return None,
        };
        let scalars = &mut self.needs.scalars;
        let number = scalars.iter().position(|scalar| *scalar == (value, integer)).unwrap_or_else(|| {
            scalars.push((value, integer));
            scalars.len() - 1
        });
        Some((number, integer))
    }

    /// Whether the loop writes nothing that an expression reads.
    fn is_still(&self, lowerer: &mut Lowerer<'_>, expr: &Expr) -> bool {
        let mut loads = Vec::new();
        collect_loads(expr, &mut loads);
        if loads.is_empty() {
            return true;
        }
        if self.nest.rows.is_some() {
            return false;
        }
        let end = self.nest.from.clone().plus(&Affine::constant(self.nest.extent as i64));
        let counter = (self.nest.var, counted(&self.nest.from, &end));
        let written = Written::by(self.nest.body, counter, &lowerer.vars);
        loads.into_iter().all(|(at, elem, lanes)| {
            let within = lowerer.within(at, elem);
            !written.touches(Kind::of(&at.buffer), &within, (lanes * elem.bytes()) as i64)
        })
    }

    /// How far the last round is from the first.
    fn last(&self) -> i64 {
        (self.nest.extent - LANES) as i64
    }

    /// Something at the first round, the next one and the last, in the first row. What goes from panel to panel otherwise than
    /// within one is seen at the last.
    fn at(&self, lowerer: &mut Lowerer<'_>, what: impl Fn(&mut Lowerer<'_>) -> Affine) -> [Affine; 3] {
        if let Some((var, from, _)) = &self.nest.rows {
            lowerer.assign(*var, Yield::Int(from.clone()));
        }
        [0, LANES as i64, self.last()].map(|further| {
            let value = self.nest.from.clone().plus(&Affine::constant(further));
            lowerer.assign(self.nest.var, Yield::Int(value));
            what(lowerer)
        })
    }

    /// The place of an address that goes on by one element from lane to lane, and by as much from row to row.
    fn access(&mut self, lowerer: &mut Lowerer<'_>, elem: Elem, at: &Address, writes: bool) -> Option<Place> {
        let rows = self.nest.rows.as_ref().map(|(var, ..)| *var);
        let is_another = |page: &Expr| has_load(page) || mentions(page, rows.as_slice());
        if matches!(&at.buffer, Buffer::Page { page, .. } if is_another(page))
            || has_load(&at.offset)
            || mentions(&at.offset, &self.inside)
        {
            return None;
        }
        let address = |lowerer: &mut Lowerer<'_>| {
            let base = lowerer.base(&at.buffer);
            lowerer.within(at, elem).plus(&base)
        };
        let [start, next, last] = self.at(lowerer, address);
        let bytes = elem.bytes() as i64;
        let apart = |a: Affine, b: &Affine| a.plus(&b.clone().times(-1)).as_constant();
        if apart(next, &start)? != LANES as i64 * bytes || apart(last, &start)? != self.last() * bytes {
            return None;
        }
        let mut stride = 0;
        if let Some((var, ..)) = &self.nest.rows {
            // Of a row whose number is not known, for which the worker's stands: so it is the same from each row to the next.
            lowerer.assign(self.nest.var, Yield::Int(self.nest.from.clone()));
            let [row, next] = [0, 1].map(|further| {
                let any = Affine::value(lowerer.params.worker).plus(&Affine::constant(further));
                lowerer.assign(*var, Yield::Int(any));
                address(lowerer)
            });
            stride = apart(next, &row)?;
        }
        let kind = Kind::of(&at.buffer);
        self.needs.accesses.push(Access { kind, start: start.clone(), stride, bytes, writes });
        let stride = i32::try_from(stride).ok()?;
        for (pointer, known) in self.needs.pointers.iter().enumerate() {
            let distance = apart(start.clone(), &known.start).and_then(|distance| i32::try_from(distance).ok());
            if let Some(bytes) = distance.filter(|bytes| known.stride == stride && bytes.unsigned_abs() < 1 << 30) {
                return Some(Place { pointer, bytes });
            }
        }
        self.needs.pointers.push(Pointer { start, stride });
        Some(Place { pointer: self.needs.pointers.len() - 1, bytes: 0 })
    }
}

/// From Cranelift's instructions on four lanes to operations on any.
struct Translation<'f> {
    func: &'f Function,
    inputs: HashMap<Value, Input>,
    ops: Vec<Op>,
    known: HashMap<Value, usize>,
}

impl Translation<'_> {
    fn push(&mut self, op: Op) -> usize {
        let kept = matches!(op, Op::Constant(_) | Op::Scalar(_) | Op::Index(_) | Op::Total);
        if let Some(at) = self.ops.iter().position(|other| kept && *other == op) {
            return at;
        }
        self.ops.push(op);
        self.ops.len() - 1
    }

    fn value(&mut self, value: Value) -> Option<usize> {
        if let Some(at) = self.known.get(&value) {
            return Some(*at);
        }
        let at = match self.inputs.get(&value) {
            Some(Input::Load(elem, place)) => self.push(Op::Load(*elem, *place)),
            Some(Input::Scalar(n)) => self.push(Op::Scalar(*n)),
            Some(Input::Index(n)) => self.push(Op::Index(*n)),
            Some(Input::Total) => self.push(Op::Total),
            None => self.result(value)?,
        };
        self.known.insert(value, at);
        Some(at)
    }

    fn result(&mut self, value: Value) -> Option<usize> {
        let ValueDef::Result(inst, 0) = self.func.dfg.value_def(value) else { return None };
        if !self.func.dfg.value_type(value).is_vector() {
            return None;
        }
        match self.func.dfg.insts[inst] {
            InstructionData::UnaryConst { opcode: Opcode::Vconst, constant_handle } => {
                let bytes = self.func.dfg.constants.get(constant_handle).as_slice();
                let (lanes, _) = bytes.as_chunks::<4>();
                let first = lanes.first()?;
                lanes.iter().all(|lane| lane == first).then(|| self.push(Op::Constant(u32::from_le_bytes(*first))))
            }
            InstructionData::LoadNoOffset { opcode: Opcode::Bitcast, arg, .. } => {
                let ty = self.func.dfg.value_type(arg);
                if ty == F32X4 || ty == I32X4 { self.value(arg) } else { None }
            }
            InstructionData::Unary { opcode, arg } => self.unary(opcode, arg),
            InstructionData::Binary { opcode, args } => self.binary(opcode, args),
            InstructionData::Ternary { opcode: Opcode::Fma, args: [a, b, c] } => {
                let (a, b, c) = (self.value(a)?, self.value(b)?, self.value(c)?);
                Some(self.push(Op::Fma(a, b, c)))
            }
            InstructionData::Ternary { opcode: Opcode::Bitselect, args: [mask, a, b] } => self.select(mask, a, b),
            InstructionData::FloatCompare { args, cond, .. } => {
                let predicate = match cond {
                    FloatCC::Equal => 0,
                    FloatCC::LessThan => 1,
                    FloatCC::LessThanOrEqual => 2,
                    FloatCC::NotEqual => 4,
                    FloatCC::GreaterThanOrEqual => 13,
                    FloatCC::GreaterThan => 14,
                    _ => return None,
                };
                let (a, b) = (self.value(args[0])?, self.value(args[1])?);
                Some(self.push(Op::Compare { floats: true, predicate, a, b }))
            }
            InstructionData::IntCompare { args, cond, .. } => {
                let predicate = match cond {
                    IntCC::Equal => 0,
                    IntCC::SignedLessThan => 1,
                    IntCC::SignedLessThanOrEqual => 2,
                    IntCC::NotEqual => 4,
                    IntCC::SignedGreaterThanOrEqual => 5,
                    IntCC::SignedGreaterThan => 6,
                    _ => return None,
                };
                let (a, b) = (self.value(args[0])?, self.value(args[1])?);
                Some(self.push(Op::Compare { floats: false, predicate, a, b }))
            }
            _ => None,
        }
    }

    fn unary(&mut self, opcode: Opcode, arg: Value) -> Option<usize> {
        let x = self.value(arg)?;
        let mut with = |function, bits| {
            let constant = self.push(Op::Constant(bits));
            self.push(Op::Binary(function, x, constant))
        };
        Some(match opcode {
            Opcode::Fneg => with(lanes::Binary::Xor, 0x8000_0000),
            Opcode::Fabs => with(lanes::Binary::And, 0x7fff_ffff),
            Opcode::Bnot => with(lanes::Binary::Xor, u32::MAX),
            Opcode::Sqrt => self.push(Op::Unary(lanes::Unary::Sqrt, x)),
            Opcode::Nearest => self.push(Op::Unary(lanes::Unary::Round, x)),
            Opcode::FcvtFromSint => self.push(Op::Unary(lanes::Unary::ToFloat, x)),
            Opcode::Ineg => {
                let zero = self.push(Op::Constant(0));
                self.push(Op::Binary(lanes::Binary::IntSub, zero, x))
            }
            _ => return None,
        })
    }

    fn binary(&mut self, opcode: Opcode, [a, b]: [Value; 2]) -> Option<usize> {
        let shift = match opcode {
            Opcode::Ishl => Some(lanes::Shift::Left),
            Opcode::Sshr => Some(lanes::Shift::Right),
            Opcode::Ushr => Some(lanes::Shift::RightUnsigned),
            _ => None,
        };
        if let Some(shift) = shift {
            let ValueDef::Result(inst, _) = self.func.dfg.value_def(b) else { return None };
            let InstructionData::UnaryImm { imm, .. } = self.func.dfg.insts[inst] else { return None };
            let by = u8::try_from(imm.bits()).ok().filter(|by| *by < 32)?;
            let x = self.value(a)?;
            return Some(self.push(Op::Shift(shift, x, by)));
        }
        let function = match opcode {
            Opcode::Fadd => lanes::Binary::Add,
            Opcode::Fsub => lanes::Binary::Sub,
            Opcode::Fmul => lanes::Binary::Mul,
            Opcode::Fdiv => lanes::Binary::Div,
            Opcode::Iadd => lanes::Binary::IntAdd,
            Opcode::Isub => lanes::Binary::IntSub,
            Opcode::Imul => lanes::Binary::IntMul,
            Opcode::Band => lanes::Binary::And,
            Opcode::Bor => lanes::Binary::Or,
            Opcode::Bxor => lanes::Binary::Xor,
            _ => return None,
        };
        let (a, b) = (self.value(a)?, self.value(b)?);
        Some(self.push(Op::Binary(function, a, b)))
    }

    /// A choice; a minimum or maximum where it is one.
    fn select(&mut self, mask: Value, a: Value, b: Value) -> Option<usize> {
        let mask = self.value(mask)?;
        let (x, y) = (self.value(a)?, self.value(b)?);
        let extreme = match self.ops[mask] {
            Op::Compare { floats: true, predicate: 1, a, b } if (a, b) == (x, y) => Some(lanes::Binary::Min),
            Op::Compare { floats: true, predicate: 1, a, b } if (b, a) == (x, y) => Some(lanes::Binary::Max),
            _ => None,
        };
        Some(match extreme {
            Some(function) => self.push(Op::Binary(function, x, y)),
            None => self.push(Op::Select(mask, x, y)),
        })
    }
}

fn mentions(expr: &Expr, vars: &[Var]) -> bool {
    let mut found = false;
    expr.visit(&mut |expr| found |= matches!(expr, Expr::Var(var) if vars.contains(var)));
    found
}

fn has_load(expr: &Expr) -> bool {
    let mut loads = Vec::new();
    collect_loads(expr, &mut loads);
    !loads.is_empty()
}

fn collect_loads<'e>(expr: &'e Expr, loads: &mut Vec<(&'e Address, Elem, usize)>) {
    expr.visit(&mut |expr| {
        if let Expr::Load { elem, lanes, at } = expr {
            loads.push((at, *elem, *lanes));
        }
    });
}
