//! Statements: blocks, loops, conditions, and the variables they change.

use std::collections::HashMap;

use cranelift::codegen::ir::condcodes::IntCC;
use cranelift::codegen::ir::types::{F32, F32X4, I32, I32X4, I64, I64X2};
use cranelift::codegen::ir::{Endianness, FuncRef, Function, InstBuilder, MemFlagsData, Value};
use cranelift::codegen::isa::TargetIsa;

use super::affine::Affine;
use super::codes::{self, Blocks};
use super::core::{self, Operands};
use super::emit::{Emitter, Range, arguments, memory, repeat};
use super::expr::Yield;
use super::i16;
use super::math;
use super::words;
use super::written::{Written, counted};
use super::x86;
use crate::format::{Elem, Format};
use crate::loops::{Address, Core, Encode, Expr, Exps, Fold, Kernel, LANES, Share, Spread, Stmt, Unpack, Var};

/// The lowering of one kernel.
pub(super) struct Lowerer<'c> {
    pub(super) e: Emitter,
    pub(super) params: Params,
    pub(super) isa: &'c dyn TargetIsa,
    pub(super) vars: Vec<Option<Yield>>,
    /// The cores that are functions of their own.
    pub(super) cores: &'c mut x86::Table,
    /// The loops around, from the outermost.
    pub(super) loops: Vec<Around>,
}

/// A loop around what is lowered.
pub(super) struct Around {
    /// The scope of its body.
    pub(super) scope: usize,
    pub(super) written: Written,
    /// The loads that have left it, by how and where they load.
    pub(super) hoisted: HashMap<(Elem, usize, Value, i32), Value>,
}

/// What a compiled kernel is called with.
#[derive(Clone, Copy)]
pub(super) struct Params {
    pub(super) frame: Value,
    pub(super) layer: Value,
    pub(super) worker: Value,
    workers: Value,
    pub(super) scratch: Value,
    left: Value,
}

/// Lowers a kernel that `verify` has accepted.
pub(super) fn lower(kernel: &Kernel, isa: &dyn TargetIsa, cores: &mut x86::Table) -> Function {
    let word = isa.pointer_type();
    let (e, params) = Emitter::new(isa, &[word; 6]);
    let [frame, layer, worker, workers, scratch, left] = std::array::from_fn(|i| params[i]);
    let params = Params { frame, layer, worker, workers, scratch, left };
    let mut lowerer = Lowerer { e, params, isa, vars: vec![None; kernel.vars.len()], cores, loops: Vec::new() };
    let around = lowerer.cores.around(&mut lowerer.e.func, &kernel.body);
    if let Some([set_up, _]) = around {
        lowerer.e.ins().call(set_up, &[]);
    }
    lowerer.block(&kernel.body);
    if let Some([_, leave]) = around {
        lowerer.e.ins().call(leave, &[]);
    }
    lowerer.e.finish()
}

impl AsMut<Emitter> for Lowerer<'_> {
    fn as_mut(&mut self) -> &mut Emitter {
        &mut self.e
    }
}

impl Lowerer<'_> {
    fn block(&mut self, body: &[Stmt]) {
        for stmt in body {
            self.stmt(stmt);
        }
    }

    pub(super) fn var(&self, var: Var) -> Yield {
        match &self.vars[var.0 as usize] {
            Some(value) => value.clone(),
            None => unreachable!("verified: v{} is defined before it is used", var.0),
        }
    }

    pub(super) fn assign(&mut self, var: Var, value: Yield) {
        self.vars[var.0 as usize] = Some(value);
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Let(var, value) | Stmt::Set(var, value) => {
                let value = self.expr(value);
                self.assign(*var, value);
            }
            Stmt::Store { elem, at, value } => self.store(*elem, at, value),
            Stmt::For { .. } if self.widened(stmt) => {}
            Stmt::For { var, from, to, step, body } => {
                let (from, to) = (self.int(from), self.int(to));
                self.counted(*var, from, to, *step, body);
            }
            Stmt::If { mask, then, otherwise } => self.condition(mask, then, otherwise),
            Stmt::Parallel { var, count, share, body } => self.parallel(*var, count, *share, body),
            Stmt::Spread(spread) => self.spread(spread),
            Stmt::Core(core) => self.core(core),
            Stmt::Unpack(unpack) => self.unpack(unpack),
            Stmt::Encode(encode) => self.encode(encode),
            Stmt::Exps(exps) => self.exps(exps),
            Stmt::Note(_) => {}
        }
    }

    fn store(&mut self, elem: Elem, at: &Address, value: &Expr) {
        let value = self.value(value);
        let (pointer, offset) = self.address(at, elem);
        if elem == Elem::Bf16 {
            self.store_bf16(value, pointer, offset);
        } else if elem == Elem::U8 {
            self.store_bytes(value, pointer, offset);
        } else if self.e.ty(value) == I64 {
            let value = self.e.ins().ireduce(I32, value);
            self.e.ins().store(memory(), value, pointer, offset);
        } else {
            self.e.ins().store(memory(), value, pointer, offset);
        }
    }

    /// Rounds four floats at once, then stores them one by one, or two by two.
    fn spread(&mut self, spread: &Spread) {
        let value = self.value(&spread.value);
        let (pointer, offset) = self.address(&spread.at, Elem::Bf16);
        let upper = self.e.upper_half(value);
        let e = &mut self.e;
        let words = e.ins().unarrow(upper, upper);
        let pairs = e.ins().bitcast(I32X4, MemFlagsData::new().with_endianness(Endianness::Little), words);
        for (lane, place) in spread.places().into_iter().enumerate().step_by(spread.together) {
            let to = offset + 2 * place as i32;
            if spread.together == 2 {
                let pair = e.ins().extractlane(pairs, lane as u8 / 2);
                e.ins().store(memory(), pair, pointer, to);
            } else {
                let word = e.ins().extractlane(words, lane as u8);
                e.ins().store(memory(), word, pointer, to);
            }
        }
    }

    /// Rounds to the nearest upper half, ties to even.
    fn store_bf16(&mut self, value: Value, pointer: Value, offset: i32) {
        let upper = self.e.upper_half(value);
        let e = &mut self.e;
        if e.ty(upper) == I32 {
            e.ins().istore16(memory(), upper, pointer, offset);
            return;
        }
        let halves = e.ins().unarrow(upper, upper);
        let words = e.ins().bitcast(I64X2, MemFlagsData::new().with_endianness(Endianness::Little), halves);
        let four = e.ins().extractlane(words, 0);
        e.ins().store(memory(), four, pointer, offset);
    }

    /// Rounds to the nearest whole number, ties to even, within what a byte holds.
    fn store_bytes(&mut self, value: Value, pointer: Value, offset: i32) {
        let e = &mut self.e;
        let ty = e.ty(value);
        let (least, most) = (e.float_of(ty, 0.0), e.float_of(ty, 255.0));
        let value = e.fmax(value, least);
        let value = e.fmin(value, most);
        // Added to this number, a smaller one is rounded to a whole one, which its last bits then are.
        let magic = e.float_of(ty, 8_388_608.0);
        let value = e.ins().fadd(value, magic);
        let bits = e.bits(value);
        if ty == F32 {
            e.ins().istore8(memory(), bits, pointer, offset);
            return;
        }
        let mask = e.int_of(I32X4, 0xff);
        let words = e.ins().band(bits, mask);
        let halves = e.ins().unarrow(words, words);
        let bytes = e.ins().unarrow(halves, halves);
        let words = e.ins().bitcast(I32X4, MemFlagsData::new().with_endianness(Endianness::Little), bytes);
        let four = e.ins().extractlane(words, 0);
        e.ins().store(memory(), four, pointer, offset);
    }

    fn parallel(&mut self, var: Var, count: &Expr, share: Share, body: &[Stmt]) {
        let count = self.int(count);
        let whole = count.clone().emit(&mut self.e);
        let zero = self.e.int(0);
        let positive = self.e.icmp(IntCC::SignedGreaterThan, whole, zero);
        let whole = self.e.select(positive, whole, zero);
        match share {
            Share::Blocks => {
                let [start, end] = self.share(whole, self.params.worker);
                self.counted(var, Affine::value(start), Affine::value(end), 1, body);
            }
            Share::Balanced(turns) => self.balanced(var, (&count, whole), turns as i64, body),
        }
    }

    /// Where a worker's neighbours of so many begin and end.
    fn share(&mut self, count: Value, worker: Value) -> [Value; 2] {
        let start = self.e.ins().imul(count, worker);
        let end = self.e.ins().iadd(start, count);
        [start, end].map(|at| self.e.ins().udiv(at, self.params.workers))
    }

    /// Iterations that a worker takes from the front of its own share, then from the end of the others', in turn, until none
    /// has any left. A share is one word ([`super::Left`]), which is exchanged only if it is what it was when it was read.
    fn balanced(&mut self, var: Var, (count, whole): (&Affine, Value), turns: i64, body: &[Stmt]) {
        let Params { worker, workers, left, .. } = self.params;
        let flags = MemFlagsData::trusted();
        let (turns, one) = (self.e.int(turns), self.e.int(1));
        let rounds = self.e.ins().udiv(whole, turns);
        let [start, end] = self.share(turns, worker);
        let own = self.e.ins().isub(end, start);
        let own = self.e.ins().imul(own, rounds);
        // Half a word is enough: what 2^32 iterations compute, sixteen floats each at least, would be 256 GiB.
        let own = self.e.shl(own, 32);
        let line = |lowerer: &mut Self, worker: Value| {
            let bytes = lowerer.e.shl(worker, size_of::<super::Left>().ilog2());
            lowerer.e.ins().iadd(left, bytes)
        };
        let at = line(self, worker);
        self.e.ins().atomic_store(flags, own, at);

        let (header, exit) = (self.e.new_block(), self.e.new_block());
        let whose = self.e.params(header, &[worker], 1)[0];
        let branch = self.e.ins().jump(header, &arguments(&[worker]));
        self.e.enter(header, branch, true);
        let at = line(self, whose);
        let found = self.e.ins().atomic_load(I64, flags, at);
        let end = self.e.ushr(found, 32);
        let next = self.e.ins().ireduce(I32, found);
        let next = self.e.ins().uextend(I64, next);

        let (none, some) = (self.e.new_block(), self.e.new_block());
        let any = self.e.icmp(IntCC::SignedLessThan, next, end);
        let branch = self.e.ins().brif(any, some, &[], none, &[]);
        self.e.enter(none, branch, false);
        let other = self.e.ins().iadd(whose, one);
        let (wraps, zero) = (self.e.icmp(IntCC::Equal, other, workers), self.e.int(0));
        let other = self.e.select(wraps, zero, other);
        let all = self.e.icmp(IntCC::Equal, other, worker);
        self.e.ins().brif(all, exit, &[], header, &arguments(&[other]));
        self.e.leave();

        self.e.switch(some);
        let is_own = self.e.icmp(IntCC::Equal, whose, worker);
        let first = self.e.ins().iadd(found, one);
        let before = self.e.ins().isub(end, one);
        let last = self.e.int(1 << 32);
        let shorter = self.e.ins().isub(found, last);
        let after = self.e.select(is_own, first, shorter);
        let number = self.e.select(is_own, next, before);
        let was = self.e.ins().atomic_cas(flags, at, found, after);
        let taken = self.e.new_block();
        let got = self.e.icmp(IntCC::Equal, was, found);
        self.e.ins().brif(got, taken, &[], header, &arguments(&[whose]));

        self.e.switch(taken);
        let [start, end] = self.share(turns, whose);
        let each = self.e.ins().isub(end, start);
        // Who has none has nothing that could be taken, but divisions may be done before that is known.
        let each = self.e.ins().umax(each, one);
        let (round, turn) = (self.e.ins().udiv(number, each), self.e.ins().urem(number, each));
        let at = self.e.ins().imul(round, turns);
        let at = self.e.ins().iadd(at, start);
        let at = self.e.ins().iadd(at, turn);
        let written = Written::by(body, (var, counted(&Affine::constant(0), count)), &self.vars);
        self.assign(var, Yield::Int(Affine::value(at)));
        self.loops.push(Around { scope: self.e.scope(), written, hoisted: HashMap::new() });
        self.block(body);
        self.loops.pop();
        self.e.ins().jump(header, &arguments(&[whose]));
        self.e.leave();
        self.e.switch(exit);
    }

    fn counted(&mut self, var: Var, from: Affine, to: Affine, step: i64, body: &[Stmt]) {
        let runs = to.clone().plus(&from.clone().times(-1)).as_constant();
        if runs.is_some_and(|n| n <= 0) {
            return;
        }
        if runs.is_some_and(|n| n <= step) {
            self.assign(var, Yield::Int(from));
            return self.block(body);
        }
        let carried = self.carried(body);
        let written = Written::by(body, (var, counted(&from, &to)), &self.vars);
        let start = from.emit(&mut self.e);
        let end = to.emit(&mut self.e);
        let step = self.e.int(step);
        let initial = self.values_of(&carried);
        let range = Range { start, end, step, runs: runs.is_some() };
        let after = repeat(self, range, &initial, |lowerer, counter, values| {
            lowerer.assign(var, Yield::Int(Affine::value(counter)));
            lowerer.assign_all(&carried, values);
            lowerer.loops.push(Around { scope: lowerer.e.scope(), written, hoisted: HashMap::new() });
            lowerer.block(body);
            lowerer.loops.pop();
            lowerer.values_of(&carried)
        });
        self.assign_all(&carried, &after);
    }

    fn condition(&mut self, mask: &Expr, then: &[Stmt], otherwise: &[Stmt]) {
        let mask = self.value(mask);
        if let Some(holds) = self.e.as_int(mask) {
            return self.block(if holds != 0 { then } else { otherwise });
        }
        let mut carried = self.carried(then);
        carried.extend(self.carried(otherwise));
        carried.sort();
        carried.dedup();
        let before: Vec<_> = carried.iter().map(|var| self.var(*var)).collect();
        let values = self.values_of(&carried);
        let exit = self.e.new_block();
        let after = self.e.params(exit, &values, 0);
        let [yes, no] = [(); 2].map(|()| self.e.new_block());
        let branch = self.e.ins().brif(mask, yes, &[], no, &[]);
        for (block, body) in [(yes, then), (no, otherwise)] {
            for (var, value) in carried.iter().zip(&before) {
                self.assign(*var, value.clone());
            }
            self.e.enter(block, branch, false);
            self.block(body);
            let last = self.values_of(&carried);
            self.e.ins().jump(exit, &arguments(&last));
            self.e.leave();
        }
        self.e.switch(exit);
        self.assign_all(&carried, &after);
    }

    /// The variables defined here that a block sets.
    fn carried(&self, body: &[Stmt]) -> Vec<Var> {
        let mut set = Vec::new();
        collect_set(body, &mut set);
        set.sort();
        set.dedup();
        let defined_inside = {
            let mut inside = Vec::new();
            collect_defined(body, &mut inside);
            inside
        };
        set.retain(|var| !defined_inside.contains(var));
        set
    }

    fn values_of(&mut self, vars: &[Var]) -> Vec<Value> {
        vars.iter()
            .map(|var| {
                let value = self.var(*var);
                self.emit(value)
            })
            .collect()
    }

    fn assign_all(&mut self, vars: &[Var], values: &[Value]) {
        for (var, value) in vars.iter().zip(values) {
            let value = match self.e.ty(*value) {
                I64 => Yield::Int(Affine::value(*value)),
                _ => Yield::Value(*value),
            };
            self.assign(*var, value);
        }
    }

    fn core(&mut self, core: &Core) {
        let units = (core.a_format.elem(), core.b_format.elem());
        if let Some(callee) = self.cores.core(&mut self.e.func, core) {
            let next = core.next.iter().map(|next| (&next.at, next.elem));
            let all = [(&core.a, units.0), (&core.b, units.1), (&core.c, Elem::F32)].into_iter().chain(next);
            return self.call(callee, &all.collect::<Vec<_>>());
        }
        if core.panels > 1 {
            return (0..core.panels).for_each(|nth| self.core(&core.of_panel(nth)));
        }
        let depth = self.int(&core.depth);
        let (a_stride, c_stride) = (self.int(&core.a_stride), self.int(&core.c_stride));
        let rows = |lowerer: &mut Self, at: &Address, elem: Elem, stride: &Affine| {
            let stride = stride.clone().times(elem.bytes() as i64);
            (0..core.rows as i64)
                .map(|row| lowerer.address_plus(at, elem, &stride.clone().times(row)))
                .collect::<Vec<_>>()
        };
        let operands = Operands {
            a: rows(self, &core.a, units.0, &a_stride),
            a_format: core.a_format,
            b: self.address(&core.b, units.1),
            c: rows(self, &core.c, Elem::F32, &c_stride),
            b_format: core.b_format,
            accumulate: core.accumulate,
        };
        match (core.b_format.codes(), depth.as_constant()) {
            (None, Some(depth)) if core.b_format == Format::I16 => {
                i16::emit(&mut self.e, &operands, depth.max(0) as usize);
            }
            (Some(codes), Some(depth)) => codes::emit(&mut self.e, &operands, codes, depth.max(0) as usize),
            _ => core::emit(&mut self.e, &operands, depth),
        }
    }

    fn unpack(&mut self, unpack: &Unpack) {
        let Unpack { depth, from, format, to, into } = unpack;
        if let Some(callee) = self.cores.unpack(&mut self.e.func, unpack) {
            return self.call(callee, &[(to, into.elem()), (from, format.elem())]);
        }
        let (from, to) = (self.address(from, format.elem()), self.address(to, into.elem()));
        match into {
            Format::I16 => i16::unpack(&mut self.e, from, to, *depth),
            Format::Bf16 => codes::unpack_floats(&mut self.e, from, to, *depth, *format),
            _ => codes::unpack(&mut self.e, from, to, *depth, *format),
        }
    }

    fn encode(&mut self, encode: &Encode) {
        let Encode { depth, from, to, format, part } = encode;
        let first = part.as_ref().map(|part| self.value(&part.block));
        if let Some(callee) = self.cores.encode(&mut self.e.func, encode) {
            let mut arguments = self.pointers(&[(from, Elem::F32), (to, format.elem())]);
            arguments.extend(first);
            self.e.ins().call(callee, &arguments);
            return;
        }
        let (from, to) = (self.address(from, Elem::F32), self.address(to, format.elem()));
        let part = Blocks { count: depth / format.block(), of: part.as_ref().map_or(*depth, |part| part.of), first };
        match *format {
            Format::Codes(codes) => return codes::encode(&mut self.e, from, to, &part, codes),
            Format::Words(block) => return words::encode(&mut self.e, from, to, &part, block),
            Format::I16 => return i16::encode(&mut self.e, from, to, &part),
            Format::F32 | Format::Bf16 => {}
        }
        let whole = depth / LANES * LANES;
        let (start, end, step) = (self.e.int(0), self.e.int(2 * whole as i64), self.e.int(2 * LANES as i64));
        repeat(self, Range { start, end, step, runs: whole > 0 }, &[], |lowerer, at, _| {
            let e = &mut lowerer.e;
            let further = e.shl(at, 1);
            let source = e.ins().iadd(from.0, further);
            let value = e.ins().load(F32X4, memory(), source, from.1);
            let target = e.ins().iadd(to.0, at);
            lowerer.store_bf16(value, target, to.1);
            Vec::new()
        });
        for k in whole..*depth {
            let value = self.e.ins().load(F32, memory(), from.0, from.1 + 4 * k as i32);
            self.store_bf16(value, to.0, to.1 + 2 * k as i32);
        }
    }

    fn exps(&mut self, exps: &Exps) {
        let Exps { total, depth, from, shift, to, format } = exps;
        let shift = self.value(shift);
        if let Some(callee) = self.cores.exps(&mut self.e.func, exps) {
            let mut arguments = self.pointers(&[(from, Elem::F32), (to, format.elem())]);
            arguments.push(shift);
            let call = self.e.ins().call(callee, &arguments);
            let sum = self.e.func.dfg.first_result(call);
            return self.assign(*total, Yield::Value(sum));
        }
        let (from, to) = (self.address(from, Elem::F32), self.address(to, format.elem()));
        let shift = self.e.ins().splat(F32X4, shift);
        let step = (LANES * format.elem().bytes()) as i64;
        let (start, end, step) = (self.e.int(0), self.e.int(*depth as i64 / LANES as i64 * step), self.e.int(step));
        let zero = self.e.float_of(F32X4, 0.0);
        let narrow = *format == Format::Bf16;
        let sums = repeat(self, Range { start, end, step, runs: *depth > 0 }, &[zero], |lowerer, at, sums| {
            let e = &mut lowerer.e;
            let further = if narrow { e.shl(at, 1) } else { at };
            let source = e.ins().iadd(from.0, further);
            let value = e.ins().load(F32X4, memory(), source, from.1);
            let value = e.ins().fsub(value, shift);
            let power = math::exp(e, value);
            let target = e.ins().iadd(to.0, at);
            if narrow {
                lowerer.store_bf16(power, target, to.1);
            } else {
                e.ins().store(memory(), power, target, to.1);
            }
            vec![lowerer.e.ins().fadd(sums[0], power)]
        });
        let sum = self.fold(Fold::Sum, sums[0]);
        self.assign(*total, Yield::Value(sum));
    }

    /// Calls a function with addresses.
    fn call(&mut self, callee: FuncRef, addresses: &[(&Address, Elem)]) {
        let arguments = self.pointers(addresses);
        self.e.ins().call(callee, &arguments);
    }

    fn pointers(&mut self, addresses: &[(&Address, Elem)]) -> Vec<Value> {
        let pointer = |(at, elem): &(&Address, Elem)| {
            let (pointer, offset) = self.address(at, *elem);
            let offset = self.e.int(offset.into());
            self.e.ins().iadd(pointer, offset)
        };
        addresses.iter().map(pointer).collect()
    }
}

/// The variables that a block sets.
pub(super) fn collect_set(body: &[Stmt], set: &mut Vec<Var>) {
    for stmt in body {
        match stmt {
            Stmt::Set(var, _) => set.push(*var),
            Stmt::For { body, .. } | Stmt::Parallel { body, .. } => collect_set(body, set),
            Stmt::If { then, otherwise, .. } => {
                collect_set(then, set);
                collect_set(otherwise, set);
            }
            Stmt::Let(..)
            | Stmt::Store { .. }
            | Stmt::Spread(_)
            | Stmt::Core(_)
            | Stmt::Unpack(_)
            | Stmt::Encode(_)
            | Stmt::Exps(_)
            | Stmt::Note(_) => {}
        }
    }
}

/// The variables that a block defines.
fn collect_defined(body: &[Stmt], defined: &mut Vec<Var>) {
    for stmt in body {
        match stmt {
            Stmt::Let(var, _) | Stmt::Exps(Exps { total: var, .. }) => defined.push(*var),
            Stmt::For { var, body, .. } | Stmt::Parallel { var, body, .. } => {
                defined.push(*var);
                collect_defined(body, defined);
            }
            Stmt::If { then, otherwise, .. } => {
                collect_defined(then, defined);
                collect_defined(otherwise, defined);
            }
            Stmt::Set(..)
            | Stmt::Store { .. }
            | Stmt::Spread(_)
            | Stmt::Core(_)
            | Stmt::Unpack(_)
            | Stmt::Encode(_)
            | Stmt::Note(_) => {}
        }
    }
}
