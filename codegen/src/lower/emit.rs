//! Emits Cranelift instructions, each pure one once and as far out of the loops as its operands allow.

use std::collections::HashMap;

use cranelift::codegen::cursor::{Cursor, FuncCursor};
use cranelift::codegen::entity::SecondaryMap;
use cranelift::codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift::codegen::ir::types::{F32, F32X4, I8, I8X16, I32, I32X4, I64};
use cranelift::codegen::ir::{
    AbiParam, Block, BlockArg, ConstantData, Endianness, Function, Inst, InstBuilder, InstBuilderBase, InstructionData,
    MemFlagsData, Opcode, Signature, Type, Value, ValueDef,
};
use cranelift::codegen::isa::TargetIsa;

/// A function being emitted.
///
/// Its blocks form nested scopes: the entry, then one for each loop body and each branch around the current place. A value
/// is visible in its scope and those within.
pub(super) struct Emitter {
    pub(super) func: Function,
    block: Block,
    scopes: Vec<Scope>,
    /// The scope in which to emit what is not pure, if not here.
    hoist: Option<usize>,
    /// The pure instructions whose results are visible here.
    known: HashMap<(InstructionData, Type), Inst>,
    /// The scope that defines each value.
    scope_of: SecondaryMap<Value, u32>,
}

struct Scope {
    is_loop: bool,
    /// The branch into the scope within this one that is being emitted: hoisted instructions go before it.
    exit: Option<Inst>,
    known: Vec<(InstructionData, Type)>,
}

/// Loads and stores don't trap: a kernel's caller vouches for its addresses.
pub(super) fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Emitter {
    /// A function of `params`, without results, at the start of its body.
    pub(super) fn new(isa: &dyn TargetIsa, params: &[Type]) -> (Self, Vec<Value>) {
        let mut signature = Signature::new(isa.default_call_conv());
        signature.params.extend(params.iter().map(|ty| AbiParam::new(*ty)));
        let mut func = Function::new();
        func.signature = signature;
        let entry = func.dfg.make_block();
        func.layout.append_block(entry);
        let arguments = params.iter().map(|ty| func.dfg.append_block_param(entry, *ty)).collect();
        let mut emitter = Emitter {
            func,
            block: entry,
            scopes: vec![Scope { is_loop: false, exit: None, known: Vec::new() }],
            hoist: None,
            known: HashMap::new(),
            scope_of: SecondaryMap::new(),
        };
        let body = emitter.new_block();
        let exit = emitter.ins().jump(body, &[]);
        emitter.enter(body, exit, false);
        (emitter, arguments)
    }

    /// Ends the function.
    pub(super) fn finish(mut self) -> Function {
        self.ins().return_(&[]);
        rematerialise_constants(&mut self.func);
        self.func
    }

    /// Builds an instruction: a pure one where its operands are known, or none if its value is; any other here.
    pub(super) fn ins(&mut self) -> Ins<'_> {
        Ins(self)
    }

    pub(super) fn new_block(&mut self) -> Block {
        self.func.dfg.make_block()
    }

    /// Parameters of a block for such values, defined in the current scope (`within` 0) or the one in it that is entered
    /// next (1).
    pub(super) fn params(&mut self, block: Block, like: &[Value], within: usize) -> Vec<Value> {
        let scope = (self.scopes.len() - 1 + within) as u32;
        let param = |value: &Value| {
            let ty = self.func.dfg.value_type(*value);
            let param = self.func.dfg.append_block_param(block, ty);
            self.scope_of[param] = scope;
            param
        };
        like.iter().map(param).collect()
    }

    /// Goes on in a new block, in a scope within this one, which the branch `exit` enters.
    pub(super) fn enter(&mut self, block: Block, exit: Inst, is_loop: bool) {
        self.innermost().exit = Some(exit);
        self.scopes.push(Scope { is_loop, exit: None, known: Vec::new() });
        self.switch(block);
    }

    /// Leaves the innermost scope: what it computed is not visible any more.
    pub(super) fn leave(&mut self) {
        if let Some(scope) = self.scopes.pop() {
            for key in scope.known {
                self.known.remove(&key);
            }
        }
    }

    /// Goes on in a new block, in the same scope.
    pub(super) fn switch(&mut self, block: Block) {
        self.func.layout.append_block(block);
        self.block = block;
    }

    /// The number of the innermost scope.
    pub(super) fn scope(&self) -> usize {
        self.scopes.len() - 1
    }

    /// From now on emits what is not pure in a scope further out, before the one in it that is being emitted.
    pub(super) fn hoist(&mut self, to: Option<usize>) {
        self.hoist = to;
    }

    fn innermost(&mut self) -> &mut Scope {
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    pub(super) fn scope_of(&self, value: Value) -> u32 {
        self.scope_of[value]
    }

    pub(super) fn ty(&self, value: Value) -> Type {
        self.func.dfg.value_type(value)
    }

    /// The value of an integer constant.
    pub(super) fn as_int(&self, value: Value) -> Option<i64> {
        match self.definition(value)? {
            InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits()),
            _ => None,
        }
    }

    /// The value of a float constant, in every lane.
    pub(super) fn as_float(&self, value: Value) -> Option<f32> {
        match *self.definition(value)? {
            InstructionData::UnaryIeee32 { imm, .. } => Some(f32::from_bits(imm.bits())),
            InstructionData::UnaryConst { opcode: Opcode::Vconst, constant_handle } => {
                let lanes: Vec<_> = self.func.dfg.constants.get(constant_handle).as_slice().chunks(4).collect();
                let [a, b, c, d] = *lanes.first().copied()? else { return None };
                lanes.iter().all(|lane| *lane == [a, b, c, d]).then(|| f32::from_le_bytes([a, b, c, d]))
            }
            _ => None,
        }
    }

    fn definition(&self, value: Value) -> Option<&InstructionData> {
        match self.func.dfg.value_def(value) {
            ValueDef::Result(inst, _) => Some(&self.func.dfg.insts[inst]),
            _ => None,
        }
    }

    /// A word behind a pointer that nothing writes during the call. `always` says that it may be read even where the
    /// program wouldn't.
    pub(super) fn read_only(&mut self, pointer: Value, offset: i32, always: bool) -> Value {
        let flags = self.func.dfg.mem_flags.insert_unchecked(memory().with_readonly().with_can_move());
        let data = InstructionData::Load { opcode: Opcode::Load, arg: pointer, flags, offset: offset.into() };
        let inst = self.pure(data, I64, always);
        self.func.dfg.first_result(inst)
    }

    /// Emits a pure instruction, or finds the one that has computed the same.
    fn pure(&mut self, data: InstructionData, ctrl: Type, always: bool) -> Inst {
        if let Some(inst) = self.known.get(&(data, ctrl)) {
            return *inst;
        }
        let operands = data.arguments(&self.func.dfg.value_lists).iter().map(|v| self.scope_of[*v] as usize);
        let scope = self.outermost(operands.max().unwrap_or(0), always);
        let inst = self.func.dfg.make_inst(data);
        self.func.dfg.make_inst_results(inst, ctrl);
        self.place(inst, scope);
        self.scopes[scope].known.push((data, ctrl));
        self.known.insert((data, ctrl), inst);
        inst
    }

    /// Puts an instruction at the end of what is emitted of a scope.
    fn place(&mut self, inst: Inst, scope: usize) {
        match self.scopes[scope].exit {
            Some(exit) if scope < self.scope() => self.func.layout.insert_inst(inst, exit),
            _ => self.func.layout.append_inst(inst, self.block),
        }
        for result in self.func.dfg.inst_results(inst) {
            self.scope_of[*result] = scope as u32;
        }
    }

    /// Where to compute what needs values of scope `operands`: outside the outermost loop that is within it. What may not
    /// be computed `always` leaves a loop only where each iteration computes it.
    fn outermost(&self, operands: usize, always: bool) -> usize {
        let here = self.scopes.len() - 1;
        if always {
            (operands + 1..=here).find(|scope| self.scopes[*scope].is_loop).map_or(here, |scope| scope - 1)
        } else {
            let mut scope = here;
            while scope > operands && self.scopes[scope].is_loop {
                scope -= 1;
            }
            scope
        }
    }

    // Constants

    pub(super) fn int(&mut self, x: i64) -> Value {
        self.constant(InstructionData::UnaryImm { opcode: Opcode::Iconst, imm: x.into() }, I64)
    }

    pub(super) fn truth(&mut self, x: bool) -> Value {
        self.constant(InstructionData::UnaryImm { opcode: Opcode::Iconst, imm: i64::from(x).into() }, I8)
    }

    /// A float constant of type `F32` or `F32X4`.
    pub(super) fn float_of(&mut self, ty: Type, x: f32) -> Value {
        if ty == F32 {
            self.constant(InstructionData::UnaryIeee32 { opcode: Opcode::F32const, imm: x.into() }, F32)
        } else {
            self.vector(F32X4, [x.to_bits(); 4])
        }
    }

    /// A 32-bit integer constant of type `I32` or `I32X4`.
    pub(super) fn int_of(&mut self, ty: Type, x: i32) -> Value {
        if ty == I32 {
            self.constant(InstructionData::UnaryImm { opcode: Opcode::Iconst, imm: i64::from(x as u32).into() }, I32)
        } else {
            self.vector(I32X4, [x as u32; 4])
        }
    }

    pub(super) fn vector(&mut self, ty: Type, lanes: [u32; 4]) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|x| x.to_le_bytes()).collect();
        let constant_handle = self.func.dfg.constants.insert(ConstantData::from(bytes));
        self.constant(InstructionData::UnaryConst { opcode: Opcode::Vconst, constant_handle }, ty)
    }

    /// Constants live in the entry, until [`rematerialise_constants`]: none holds a register through a loop.
    fn constant(&mut self, data: InstructionData, ty: Type) -> Value {
        let inst = match self.known.get(&(data, ty)) {
            Some(inst) => *inst,
            None => {
                let inst = self.func.dfg.make_inst(data);
                self.func.dfg.make_inst_results(inst, ty);
                match self.scopes[0].exit {
                    Some(exit) => self.func.layout.insert_inst(inst, exit),
                    None => self.func.layout.append_inst(inst, self.block),
                }
                self.scopes[0].known.push((data, ty));
                self.known.insert((data, ty), inst);
                inst
            }
        };
        self.func.dfg.first_result(inst)
    }

    // Of any lanes

    /// The bits of floats as integers of as many lanes.
    pub(super) fn bits(&mut self, x: Value) -> Value {
        let ty = if self.ty(x) == F32 { I32 } else { I32X4 };
        self.ins().bitcast(ty, MemFlagsData::new(), x)
    }

    /// The nearest upper half of each float's bits, ties to even, as an integer.
    pub(super) fn upper_half(&mut self, value: Value) -> Value {
        let bits = self.bits(value);
        let ty = self.ty(bits);
        let (one, below_half) = (self.int_of(ty, 1), self.int_of(ty, 0x7fff));
        let upper = self.ushr(bits, 16);
        let odd = self.ins().band(upper, one);
        let bits = self.ins().iadd(bits, below_half);
        let bits = self.ins().iadd(bits, odd);
        self.ushr(bits, 16)
    }

    /// The floats with these bits.
    pub(super) fn as_floats(&mut self, x: Value) -> Value {
        let ty = if self.ty(x) == I32 { F32 } else { F32X4 };
        self.ins().bitcast(ty, MemFlagsData::new(), x)
    }

    pub(super) fn fcmp(&mut self, cc: FloatCC, a: Value, b: Value) -> Value {
        self.ins().fcmp(cc, a, b)
    }

    pub(super) fn icmp(&mut self, cc: IntCC, a: Value, b: Value) -> Value {
        self.ins().icmp(cc, a, b)
    }

    /// `a` where the mask holds, else `b`, lane by lane.
    pub(super) fn select(&mut self, mask: Value, a: Value, b: Value) -> Value {
        if !self.ty(a).is_vector() {
            return self.ins().select(mask, a, b);
        }
        let mask = if self.ty(a) == F32X4 { self.as_floats(mask) } else { mask };
        self.ins().bitselect(mask, a, b)
    }

    /// `a < b ? a : b`: `b` where either is not a number.
    pub(super) fn fmin(&mut self, a: Value, b: Value) -> Value {
        let mask = self.fcmp(FloatCC::LessThan, a, b);
        self.select(mask, a, b)
    }

    /// `a > b ? a : b`: `b` where either is not a number.
    pub(super) fn fmax(&mut self, a: Value, b: Value) -> Value {
        // As `b < a`, in the form that is one instruction.
        let mask = self.fcmp(FloatCC::LessThan, b, a);
        self.select(mask, a, b)
    }

    /// Shifts by a constant.
    pub(super) fn shl(&mut self, x: Value, by: u32) -> Value {
        let by = self.int(by.into());
        self.ins().ishl(x, by)
    }

    pub(super) fn sshr(&mut self, x: Value, by: u32) -> Value {
        let by = self.int(by.into());
        self.ins().sshr(x, by)
    }

    pub(super) fn ushr(&mut self, x: Value, by: u32) -> Value {
        let by = self.int(by.into());
        self.ins().ushr(x, by)
    }

    /// The lanes of a vector in another order.
    pub(super) fn swizzle(&mut self, x: Value, lanes: [u8; 4]) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|lane| (0..4).map(move |byte| lane * 4 + byte)).collect();
        let mask = self.func.dfg.immediates.push(ConstantData::from(bytes));
        let little = MemFlagsData::new().with_endianness(Endianness::Little);
        let ty = self.ty(x);
        let x = self.ins().bitcast(I8X16, little, x);
        let x = self.ins().shuffle(x, x, mask);
        self.ins().bitcast(ty, little, x)
    }
}

/// A builder of one instruction.
pub(super) struct Ins<'f>(&'f mut Emitter);

fn is_pure(opcode: Opcode) -> bool {
    // A division's divisor is never zero here.
    matches!(opcode, Opcode::Sdiv | Opcode::Udiv)
        || !(opcode.is_terminator()
            || opcode.is_branch()
            || opcode.is_call()
            || opcode.can_load()
            || opcode.can_store()
            || opcode.can_trap()
            || opcode.other_side_effects())
}

impl<'f> InstBuilderBase<'f> for Ins<'f> {
    fn data_flow_graph(&self) -> &cranelift::codegen::ir::DataFlowGraph {
        &self.0.func.dfg
    }

    fn data_flow_graph_mut(&mut self) -> &mut cranelift::codegen::ir::DataFlowGraph {
        &mut self.0.func.dfg
    }

    fn build(mut self, data: InstructionData, ctrl: Type) -> (Inst, &'f mut cranelift::codegen::ir::DataFlowGraph) {
        let inst = self.build_aux_inst(data, ctrl);
        (inst, &mut self.0.func.dfg)
    }

    fn build_aux_inst(&mut self, data: InstructionData, ctrl: Type) -> Inst {
        let e = &mut *self.0;
        if is_pure(data.opcode()) {
            return e.pure(data, ctrl, true);
        }
        let inst = e.func.dfg.make_inst(data);
        e.func.dfg.make_inst_results(inst, ctrl);
        e.place(inst, e.hoist.unwrap_or(e.scope()));
        inst
    }
}

impl AsMut<Emitter> for Emitter {
    fn as_mut(&mut self) -> &mut Emitter {
        self
    }
}

/// A loop's counter: `start`, `start + step` … below `end`.
pub(super) struct Range {
    pub(super) start: Value,
    pub(super) end: Value,
    pub(super) step: Value,
    /// Whether it is known to run at least once.
    pub(super) runs: bool,
}

/// Emits a loop that carries values from one iteration to the next; returns the last ones. What is hoisted out of it is
/// computed only if it runs: a loop that may not is within a condition.
pub(super) fn repeat<C: AsMut<Emitter>>(
    context: &mut C,
    range: Range,
    initial: &[Value],
    body: impl FnOnce(&mut C, Value, &[Value]) -> Vec<Value>,
) -> Vec<Value> {
    let e = context.as_mut();
    let exit = e.new_block();
    let results = e.params(exit, initial, 0);
    if !range.runs {
        let before = e.new_block();
        let any = e.icmp(IntCC::SignedLessThan, range.start, range.end);
        let branch = e.ins().brif(any, before, &[], exit, &arguments(initial));
        e.enter(before, branch, false);
    }
    let header = e.new_block();
    let first: Vec<Value> = [range.start].iter().chain(initial).copied().collect();
    let params = e.params(header, &first, 1);
    let branch = e.ins().jump(header, &arguments(&first));
    e.enter(header, branch, true);
    // Where values are carried, the test is at the start: at the end, each would be used twice, by the next iteration and by
    // the exit, and what computes a value used twice doesn't take its operands from memory.
    let test_first = !initial.is_empty();
    if test_first {
        let inside = e.new_block();
        let more = e.icmp(IntCC::SignedLessThan, params[0], range.end);
        e.ins().brif(more, inside, &[], exit, &arguments(&params[1..]));
        e.switch(inside);
    }
    let last = body(context, params[0], &params[1..]);
    let e = context.as_mut();
    let next = e.ins().iadd(params[0], range.step);
    let again: Vec<Value> = [next].iter().chain(&last).copied().collect();
    if test_first {
        e.ins().jump(header, &arguments(&again));
    } else {
        let more = e.icmp(IntCC::SignedLessThan, next, range.end);
        e.ins().brif(more, header, &arguments(&again), exit, &[]);
    }
    e.leave();
    if !range.runs {
        e.leave();
    }
    e.switch(exit);
    results
}

/// Makes each constant again where it is used, for the few instructions that follow. It is cheap, and registers are few.
fn rematerialise_constants(func: &mut Function) {
    /// As far as the parts of a minimum are apart, which become one instruction if they use one value.
    const REACH: usize = 6;
    let blocks: Vec<Block> = func.layout.blocks().collect();
    for block in blocks {
        let insts: Vec<Inst> = func.layout.block_insts(block).collect();
        let mut copies: HashMap<Value, (Value, usize)> = HashMap::new();
        for (at, inst) in insts.into_iter().enumerate() {
            let values: Vec<Value> = func.dfg.inst_values(inst).collect();
            let mut any = false;
            for value in values {
                let ValueDef::Result(def, _) = func.dfg.value_def(value) else { continue };
                let data = func.dfg.insts[def];
                if !matches!(data.opcode(), Opcode::Vconst | Opcode::F32const | Opcode::Iconst) {
                    continue;
                }
                any = true;
                if copies.get(&value).is_none_or(|(_, made)| made + REACH < at) {
                    let ty = func.dfg.value_type(value);
                    let (copy, _) = FuncCursor::new(func).at_inst(inst).ins().build(data, ty);
                    let copy = func.dfg.first_result(copy);
                    copies.insert(value, (copy, at));
                }
            }
            if any {
                func.dfg.map_inst_values(inst, |value| copies.get(&value).map_or(value, |(copy, _)| *copy));
            }
        }
    }
}

/// Arguments of a branch.
pub(super) fn arguments(values: &[Value]) -> Vec<BlockArg> {
    values.iter().map(|v| BlockArg::Value(*v)).collect()
}
