//! Loops over neighbours, at 512 bits or 256: what a loop does to four lanes at a time, done to sixteen or eight.

use iced_x86::code_asm::CodeLabel;
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

use super::Writer;
use super::instructions::{ADD, AND, EACH_BYTE, LEFT, MOVE, MULTIPLY_ADD, OR, RIGHT, TO_FLOAT, XOR};
use crate::format::Elem;
use crate::loops::{Cores, Fold};

/// A loop as a function: `f(pointers…, rows?, scalars…, total?)`, which returns the total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Lanes {
    /// How many elements of a row: a multiple of a panel's columns.
    pub(in super::super) extent: usize,
    /// Bytes from row to row behind each pointer.
    pub(in super::super) pointers: Vec<i32>,
    /// Whether there are rows, as many as is told.
    pub(in super::super) rows: bool,
    /// How many scalars there are.
    pub(in super::super) scalars: usize,
    /// What is done to the neighbours of a vector: each operation names others by their positions, which are before it.
    pub(in super::super) ops: Vec<Op>,
    /// What is combined with what the rounds before left, and how.
    pub(in super::super) total: Option<(Fold, usize)>,
    /// The number of each operation's register; a constant may have none, and lies where the stack ends.
    registers: Vec<Option<usize>>,
}

/// An operation on lanes of 32 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Op {
    /// The same bits in every lane.
    Constant(u32),
    /// A scalar, in every lane.
    Scalar(usize),
    /// An integer scalar plus the number of the element.
    Index(usize),
    Load(Elem, Place),
    Store(Elem, Place, usize),
    /// What the rounds before left.
    Total,
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    /// `a * b + c`, rounded once.
    Fma(usize, usize, usize),
    /// The second where the first has bits, else the third.
    Select(usize, usize, usize),
    Shift(Shift, usize, u8),
    /// All bits where the comparison of this number (of floats, or of integers) holds.
    Compare {
        floats: bool,
        predicate: u8,
        a: usize,
        b: usize,
    },
}

/// A pointer, and the bytes to add to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Place {
    pub(in super::super) pointer: usize,
    pub(in super::super) bytes: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Unary {
    Sqrt,
    ToFloat,
    Round,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// `a < b ? a : b`
    Min,
    /// `a > b ? a : b`
    Max,
    IntAdd,
    IntSub,
    IntMul,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Shift {
    Left,
    /// The sign moves in.
    Right,
    /// Zeros move in.
    RightUnsigned,
}

/// The registers of the first arguments.
const POINTERS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// How many arguments of vectors there may be.
pub(in super::super) const SCALARS: usize = 8;

/// The element of the row.
const ELEMENT: Register = Register::R10;

/// How many registers, the last ones, are for what is not kept in one.
const SPARE: usize = 2;

/// Words that fit into the 128 bytes below the end of the stack, which a function that calls none may use.
const WORDS_BELOW: usize = 32;

impl Op {
    fn operands(&self) -> Vec<usize> {
        match *self {
            Op::Constant(_) | Op::Scalar(_) | Op::Index(_) | Op::Load(..) | Op::Total => Vec::new(),
            Op::Store(_, _, a) | Op::Unary(_, a) | Op::Shift(_, a, _) => vec![a],
            Op::Binary(_, a, b) | Op::Compare { a, b, .. } => vec![a, b],
            Op::Fma(a, b, c) | Op::Select(a, b, c) => vec![a, b, c],
        }
    }

    /// Whether it has the same value in all rounds, or a register of its own.
    fn is_kept(&self) -> bool {
        matches!(self, Op::Constant(_) | Op::Scalar(_) | Op::Index(_) | Op::Total)
    }
}

impl Lanes {
    /// `None` if arguments or values don't fit the registers.
    pub(in super::super) fn new(
        (extent, rows): (usize, bool),
        pointers: Vec<i32>,
        scalars: usize,
        ops: Vec<Op>,
        total: Option<(Fold, usize)>,
        cores: &Cores,
    ) -> Option<Lanes> {
        let integers = pointers.len() + usize::from(rows);
        let vectors = scalars + usize::from(total.is_some());
        if integers > POINTERS.len() || vectors > SCALARS {
            return None;
        }
        let registers = registers(&ops, total.map(|(_, next)| next), vectors, cores)?;
        Some(Lanes { extent, pointers, rows, scalars, ops, total, registers })
    }
}

/// Gives values registers, where so many arguments are in the first ones.
fn registers(ops: &[Op], total: Option<usize>, arguments: usize, cores: &Cores) -> Option<Vec<Option<usize>>> {
    let available = if cores.bits == 512 { 32 } else { 16 } - SPARE;
    let mut last = vec![0; ops.len()];
    let mut uses = vec![0; ops.len()];
    for (at, op) in ops.iter().enumerate() {
        for operand in op.operands() {
            last[operand] = at;
            uses[operand] += 1;
        }
    }
    if let Some(next) = total {
        last[next] = ops.len();
    }
    // What passes by takes the first registers, and no more than it needs.
    let mut of = vec![None; ops.len()];
    let mut free: Vec<bool> = vec![true; available];
    let mut most = 0;
    for (at, op) in ops.iter().enumerate() {
        if op.is_kept() {
            continue;
        }
        // An operand's register is free for the result where it is read before that is written.
        let early = !matches!(op, Op::Select(..) | Op::Fma(..));
        let leave = |free: &mut Vec<bool>| {
            for operand in op.operands() {
                if let (Some(register), true) = (of[operand], last[operand] == at) {
                    free[register] = true;
                }
            }
        };
        if early {
            leave(&mut free);
        }
        let found = if matches!(op, Op::Store(..)) { None } else { Some(free.iter().position(|free| *free)?) };
        if let Some(register) = found {
            free[register] = last[at] == 0;
            most = most.max(register + 1);
        }
        if !early {
            leave(&mut free);
        }
        of[at] = found;
    }
    // The others go from the last down: scalars, elements and the total must have one, constants may.
    let mut next = available;
    let mut take = |least: usize| {
        next = next.checked_sub(1).filter(|next| *next >= least)?;
        Some(next)
    };
    for (at, op) in ops.iter().enumerate() {
        if matches!(op, Op::Scalar(_) | Op::Index(_) | Op::Total) {
            // Arguments are not overwritten before they are moved.
            of[at] = Some(take(most.max(arguments))?);
        }
    }
    let mut constants: Vec<usize> = (0..ops.len()).filter(|at| matches!(ops[*at], Op::Constant(_))).collect();
    constants.sort_by_key(|at| std::cmp::Reverse(uses[*at]));
    for at in constants {
        of[at] = take(most);
    }
    let missing = |operand: &usize| of[*operand].is_none();
    let constants = (0..ops.len()).filter(|at| matches!(ops[*at], Op::Constant(_)));
    if constants.filter(missing).count() > WORDS_BELOW {
        return None;
    }
    if ops.iter().any(|op| op.operands().iter().filter(|o| missing(o)).count() > SPARE) {
        return None;
    }
    Some(of)
}

/// Writes the code.
pub(super) fn write(w: &mut Writer, lanes: &Lanes) -> Result<(), IcedError> {
    Body { w, lanes }.function()
}

struct Body<'w> {
    w: &'w mut Writer,
    lanes: &'w Lanes,
}

impl Body<'_> {
    fn function(&mut self) -> Result<(), IcedError> {
        let lanes = self.lanes;
        let rows = POINTERS[lanes.pointers.len() % POINTERS.len()];
        let mut end = self.w.code.create_label();
        if lanes.rows {
            self.w.push(Instruction::with2(Code::Test_rm64_r64, rows, rows))?;
            self.w.code.jle(end)?;
        }
        self.arguments()?;
        let mut row = self.label(lanes.rows)?;
        let loops = lanes.extent > self.w.lanes();
        self.w.push(Instruction::with2(Code::Xor_r32_rm32, Register::R10D, Register::R10D))?;
        let mut again = self.label(loops)?;
        for at in 0..lanes.ops.len() {
            self.op(at)?;
        }
        if let Some((_, next)) = lanes.total {
            for (at, op) in lanes.ops.iter().enumerate() {
                if *op == Op::Total {
                    let (to, from) = (self.result(at), self.operand(next, 0)?);
                    self.copy(to, from)?;
                }
            }
        }
        if loops {
            for (at, op) in lanes.ops.iter().enumerate() {
                if let Op::Index(_) = op {
                    let (index, further) = (self.result(at), self.spare(0));
                    self.w.constant(further, self.w.lanes() as u32)?;
                    self.w.three(ADD, index, index, further)?;
                }
            }
            self.w.advance(ELEMENT, self.w.lanes())?;
            self.w.push(Instruction::with2(Code::Cmp_rm64_imm32, ELEMENT, lanes.extent as i32))?;
            self.jump_back(&mut again, |w, label| w.code.jb(label))?;
        }
        if lanes.rows {
            for (pointer, stride) in POINTERS.iter().zip(&lanes.pointers) {
                self.w.push(Instruction::with2(Code::Add_rm64_imm32, *pointer, *stride))?;
            }
            self.w.push(Instruction::with1(Code::Dec_rm64, rows))?;
            self.jump_back(&mut row, |w, label| w.code.jne(label))?;
        }
        self.w.code.set_label(&mut end)?;
        self.fold_total()
    }

    fn label(&mut self, wanted: bool) -> Result<Option<CodeLabel>, IcedError> {
        if !wanted {
            return Ok(None);
        }
        let mut label = self.w.code.create_label();
        self.w.code.set_label(&mut label)?;
        Ok(Some(label))
    }

    fn jump_back(
        &mut self,
        label: &mut Option<CodeLabel>,
        jump: impl FnOnce(&mut Writer, CodeLabel) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        label.map_or(Ok(()), |label| jump(self.w, label))
    }

    /// Puts what is kept where it is kept. The arguments are in the first registers, which are written last.
    fn arguments(&mut self) -> Result<(), IcedError> {
        let lanes = self.lanes;
        let broadcast = self.w.of([Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32, Code::VEX_Vbroadcastss_ymm_xmm]);
        for (at, op) in lanes.ops.iter().enumerate() {
            let Some(number) = lanes.registers[at] else { continue };
            let to = self.w.first() + number as u32;
            match *op {
                Op::Scalar(n) | Op::Index(n) => {
                    self.w.push(Instruction::with2(broadcast, to, Register::XMM0 + n as u32))?;
                }
                Op::Total => {
                    let (low, from) = (self.w.quarter(to), Register::XMM0 + lanes.scalars as u32);
                    // Lanes beyond the fourth are zero, or for extremes copies of the first four.
                    let copy = [Code::EVEX_Vmovaps_xmm_k1z_xmmm128, Code::VEX_Vmovaps_xmm_xmmm128];
                    self.w.push(Instruction::with2(self.w.of(copy), low, from))?;
                    if lanes.total.is_some_and(|(fold, _)| fold != Fold::Sum) {
                        self.w.repeat_quarter(to)?;
                    }
                }
                _ => {}
            }
        }
        for (at, op) in lanes.ops.iter().enumerate() {
            match op {
                Op::Constant(bits) if lanes.registers[at].is_some() => self.w.constant(self.result(at), *bits)?,
                Op::Constant(bits) => {
                    let to = self.constant(at);
                    self.w.push(Instruction::with2(Code::Mov_rm32_imm32, to, *bits))?;
                }
                Op::Index(_) => {
                    let (to, numbers) = (self.result(at), self.spare(0));
                    let low = self.w.quarter(numbers);
                    let insert = self.w.of([Code::EVEX_Vpinsrq_xmm_xmm_rm64_imm8, Code::VEX_Vpinsrq_xmm_xmm_rm64_imm8]);
                    for (lane, bytes) in [0x0706_0504_0302_0100u64, 0x0f0e_0d0c_0b0a_0908].into_iter().enumerate() {
                        self.w.push(Instruction::with2(Code::Mov_r64_imm64, Register::RAX, bytes))?;
                        self.w.push(Instruction::with4(insert, low, low, Register::RAX, lane as i32))?;
                    }
                    self.w.push(Instruction::with2(self.w.of(EACH_BYTE), numbers, low))?;
                    self.w.three(ADD, to, to, numbers)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A register for what is not kept in one.
    fn spare(&self, nth: usize) -> Register {
        self.w.first() + if self.w.wide { 31 - nth as u32 } else { 15 - nth as u32 }
    }

    /// The register of a result.
    fn result(&self, at: usize) -> Register {
        self.lanes.registers[at].map_or(self.spare(0), |number| self.w.first() + number as u32)
    }

    /// The register of an operand; of a constant that has none, a spare one.
    fn operand(&mut self, at: usize, nth: usize) -> Result<Register, IcedError> {
        if let (None, Op::Constant(_)) = (self.lanes.registers[at], &self.lanes.ops[at]) {
            let (spare, from) = (self.spare(nth), self.constant(at));
            self.w.two([Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32, Code::VEX_Vbroadcastss_ymm_m32], spare, from)?;
            return Ok(spare);
        }
        Ok(self.result(at))
    }

    /// Where a constant lies that has no register: below the end of the stack.
    fn constant(&self, at: usize) -> MemoryOperand {
        let lanes = self.lanes;
        let lies = |at: &usize| matches!(lanes.ops[*at], Op::Constant(_)) && lanes.registers[*at].is_none();
        let before = (0..at).filter(lies).count();
        MemoryOperand::with_base_displ(Register::RSP, -4 * (before as i64 + 1))
    }

    fn operands(&mut self, op: &Op) -> Result<Vec<Register>, IcedError> {
        let mut spare = 0;
        let mut found = Vec::new();
        for at in op.operands() {
            let lacks = self.lanes.registers[at].is_none();
            found.push(self.operand(at, spare.min(SPARE - 1))?);
            spare += usize::from(lacks);
        }
        Ok(found)
    }

    fn memory(&self, elem: Elem, place: Place) -> MemoryOperand {
        let (base, scale) = (POINTERS[place.pointer % POINTERS.len()], elem.bytes() as u32);
        MemoryOperand::with_base_index_scale_displ_size(base, ELEMENT, scale, place.bytes.into(), 1)
    }

    fn op(&mut self, at: usize) -> Result<(), IcedError> {
        let op = &self.lanes.ops[at];
        if op.is_kept() {
            return Ok(());
        }
        let operands = self.operands(op)?;
        let to = self.result(at);
        match *op {
            Op::Load(elem, place) => {
                let from = self.memory(elem, place);
                if elem != Elem::Bf16 {
                    return self.w.two(MOVE, to, from);
                }
                self.w.two([Code::EVEX_Vpmovzxwd_zmm_k1z_ymmm256, Code::VEX_Vpmovzxwd_ymm_xmmm128], to, from)?;
                self.w.shift(LEFT, to, to, 16)
            }
            Op::Store(elem, place, _) => {
                let to = self.memory(elem, place);
                if elem != Elem::Bf16 {
                    return self.w.store(to, operands[0]);
                }
                if self.w.wide {
                    return self.w.push(Instruction::with2(Code::EVEX_Vpmovdw_ymmm256_k1z_zmm, to, operands[0]));
                }
                // Each lane's upper half is 0. The lower ones of four lanes come twice, then those of the next four.
                let (packed, lower) = (self.spare(1), self.w.quarter(self.spare(1)));
                let pack = Code::VEX_Vpackusdw_ymm_ymm_ymmm256;
                self.w.push(Instruction::with3(pack, packed, operands[0], operands[0]))?;
                self.w.push(Instruction::with3(Code::VEX_Vpermq_ymm_ymmm256_imm8, packed, packed, 0b1000))?;
                self.w.push(Instruction::with2(Code::VEX_Vmovdqu_xmmm128_xmm, to, lower))
            }
            Op::Unary(Unary::Round, _) => {
                let code = [Code::EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae, Code::VEX_Vroundps_ymm_ymmm256_imm8];
                self.w.push(Instruction::with3(self.w.of(code), to, operands[0], 0))
            }
            Op::Unary(function, _) => {
                let code = match function {
                    Unary::ToFloat => TO_FLOAT,
                    _ => [Code::EVEX_Vsqrtps_zmm_k1z_zmmm512b32_er, Code::VEX_Vsqrtps_ymm_ymmm256],
                };
                self.w.push(Instruction::with2(self.w.of(code), to, operands[0]))
            }
            Op::Binary(function, ..) => {
                let code = match function {
                    Binary::Add => [Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vaddps_ymm_ymm_ymmm256],
                    Binary::Sub => [Code::EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vsubps_ymm_ymm_ymmm256],
                    Binary::Mul => [Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vmulps_ymm_ymm_ymmm256],
                    Binary::Div => [Code::EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vdivps_ymm_ymm_ymmm256],
                    Binary::Min => [Code::EVEX_Vminps_zmm_k1z_zmm_zmmm512b32_sae, Code::VEX_Vminps_ymm_ymm_ymmm256],
                    Binary::Max => [Code::EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae, Code::VEX_Vmaxps_ymm_ymm_ymmm256],
                    Binary::IntAdd => ADD,
                    Binary::IntSub => [Code::EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpsubd_ymm_ymm_ymmm256],
                    Binary::IntMul => [Code::EVEX_Vpmulld_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpmulld_ymm_ymm_ymmm256],
                    Binary::And => AND,
                    Binary::Or => OR,
                    Binary::Xor => XOR,
                };
                self.w.three(code, to, operands[0], operands[1])
            }
            Op::Shift(shift, _, by) => {
                let code = match shift {
                    Shift::Left => LEFT,
                    Shift::Right => [Code::EVEX_Vpsrad_zmm_k1z_zmmm512b32_imm8, Code::VEX_Vpsrad_ymm_ymm_imm8],
                    Shift::RightUnsigned => RIGHT,
                };
                self.w.shift(code, to, operands[0], by.into())
            }
            Op::Compare { floats, predicate, .. } => self.compare(floats, predicate, to, operands[0], operands[1]),
            Op::Fma(..) => {
                // The addend's copy takes the product.
                self.copy(to, operands[2])?;
                self.w.three(MULTIPLY_ADD, to, operands[0], operands[1])
            }
            // Bit by bit: the first chooses between the second and the third.
            Op::Select(..) if self.w.wide => {
                self.copy(to, operands[0])?;
                let code = Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8;
                self.w.push(Instruction::with4(code, to, operands[1], operands[2], 0b1100_1010))
            }
            Op::Select(..) => {
                let [mask, yes, no] = [operands[0], operands[1], operands[2]];
                let and_not = Code::VEX_Vpandn_ymm_ymm_ymmm256;
                self.w.push(Instruction::with3(and_not, to, mask, no))?;
                let chosen = self.spare(0);
                self.w.three(AND, chosen, mask, yes)?;
                self.w.three(OR, to, to, chosen)
            }
            Op::Constant(_) | Op::Scalar(_) | Op::Index(_) | Op::Total => Ok(()),
        }
    }

    /// All bits of the lanes where a comparison holds.
    fn compare(
        &mut self,
        floats: bool,
        predicate: u8,
        to: Register,
        a: Register,
        b: Register,
    ) -> Result<(), IcedError> {
        if self.w.wide {
            let code = match floats {
                true => Code::EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae,
                false => Code::EVEX_Vpcmpd_kr_k1_zmm_zmmm512b32_imm8,
            };
            self.w.push(Instruction::with4(code, Register::K1, a, b, u32::from(predicate)))?;
            return self.w.push(Instruction::with2(Code::EVEX_Vpmovm2d_zmm_kr, to, Register::K1));
        }
        if floats {
            let code = Code::VEX_Vcmpps_ymm_ymm_ymmm256_imm8;
            return self.w.push(Instruction::with4(code, to, a, b, u32::from(predicate)));
        }
        // Equal, less, greater; the others are their opposites.
        let (equal, greater) = (Code::VEX_Vpcmpeqd_ymm_ymm_ymmm256, Code::VEX_Vpcmpgtd_ymm_ymm_ymmm256);
        let (code, a, b) = match predicate % 4 {
            0 => (equal, a, b),
            1 => (greater, b, a),
            _ => (greater, a, b),
        };
        self.w.push(Instruction::with3(code, to, a, b))?;
        if !matches!(predicate, 2 | 4 | 5) {
            return Ok(());
        }
        let all = self.spare(1);
        self.w.push(Instruction::with3(equal, all, all, all))?;
        self.w.three(XOR, to, to, all)
    }

    fn copy(&mut self, to: Register, from: Register) -> Result<(), IcedError> {
        let code = self.w.of([Code::EVEX_Vmovaps_zmm_k1z_zmmm512, Code::VEX_Vmovaps_ymm_ymmm256]);
        self.w.push(Instruction::with2(code, to, from))
    }

    /// The total in four lanes, where a function returns them.
    fn fold_total(&mut self) -> Result<(), IcedError> {
        let Some((fold, _)) = self.lanes.total else { return Ok(()) };
        let at = self.lanes.ops.iter().position(|op| *op == Op::Total);
        let Some(total) = at.map(|at| self.result(at)) else { return Ok(()) };
        let [half, quarter] = match fold {
            Fold::Sum => [Code::VEX_Vaddps_ymm_ymm_ymmm256, Code::VEX_Vaddps_xmm_xmm_xmmm128],
            Fold::Max => [Code::VEX_Vmaxps_ymm_ymm_ymmm256, Code::VEX_Vmaxps_xmm_xmm_xmmm128],
            Fold::Min => [Code::VEX_Vminps_ymm_ymm_ymmm256, Code::VEX_Vminps_xmm_xmm_xmmm128],
        };
        self.copy(self.w.first(), total)?;
        let w = &mut *self.w;
        if w.wide {
            let (upper, both) = (Code::EVEX_Vextracti64x4_ymmm256_k1z_zmm_imm8, Register::ZMM0);
            w.push(Instruction::with3(upper, Register::YMM1, both, 1))?;
            w.push(Instruction::with3(half, Register::YMM0, Register::YMM0, Register::YMM1))?;
        }
        w.push(Instruction::with3(Code::VEX_Vextracti128_xmmm128_ymm_imm8, Register::XMM1, Register::YMM0, 1))?;
        w.push(Instruction::with3(quarter, Register::XMM0, Register::XMM0, Register::XMM1))
    }
}

impl std::fmt::Display for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Lanes { extent, rows, ops, .. } = self;
        let ops = ops.iter().filter(|op| !op.is_kept()).count();
        write!(f, "{ops} operations on {}{extent} neighbours", if *rows { "rows of " } else { "" })
    }
}
