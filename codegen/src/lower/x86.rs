//! Contraction cores of 256 and 512 bits, as machine code: Cranelift's vectors end at 128.
//!
//! A core is a function of its own, `extern "C" fn(a, b, c)`, for exactly one shape: rows, strides and depth are written
//! into it. The kernels call it directly. Registers are few and their use is fixed, so none is allocated: the sums come
//! first, and the last few hold what passes by.

use cranelift::codegen::ir::types::I64;
use cranelift::codegen::ir::{AbiParam, ExtFuncData, ExternalName, FuncRef, Function, Signature, UserExternalName};
use cranelift::codegen::isa::CallConv;
use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Code, FastFormatter, IcedError, Instruction, MemoryOperand, Register};

use super::target::serve;
use crate::loops::{Core, Cores, Elem, Kernel, MAX_ROWS, PANEL, Stmt};

/// The shape of a core, which its machine code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    depth: usize,
    a_elem: Elem,
    b_elem: Elem,
    /// Bytes from row to row.
    a_stride: usize,
    c_stride: usize,
    accumulate: bool,
}

impl Shape {
    /// The shape of a core, where all of it is known and the machine has the instructions.
    fn of(core: &Core, cores: &Cores) -> Option<Shape> {
        let known = |e: &crate::loops::Expr| e.as_int().and_then(|x| usize::try_from(x).ok());
        let shape = Shape {
            rows: core.rows,
            depth: known(&core.depth)?,
            a_elem: core.a_elem,
            b_elem: core.b_elem,
            a_stride: known(&core.a_stride)? * core.a_elem.bytes(),
            c_stride: known(&core.c_stride)? * 4,
            accumulate: core.accumulate,
        };
        let near = (MAX_ROWS * shape.a_stride.max(shape.c_stride)) < i32::MAX as usize;
        (near && serve(cores, core.a_elem, core.b_elem) && core.rows <= cores.rows()).then_some(shape)
    }

    /// Steps of 32 bits of each column of the panel.
    fn steps(&self) -> usize {
        self.depth / self.b_elem.together()
    }

    /// Bytes of a row of the first operand in a step.
    fn a_step(&self) -> usize {
        self.b_elem.together() * self.a_elem.bytes()
    }
}

/// The cores that some kernels call.
pub(super) struct Table {
    cores: Cores,
    shapes: Vec<Shape>,
}

impl Table {
    pub(super) fn of<'k>(kernels: impl IntoIterator<Item = &'k Kernel>, cores: &Cores) -> Table {
        let mut table = Table { cores: *cores, shapes: Vec::new() };
        for kernel in kernels {
            table.visit(&kernel.body);
        }
        table
    }

    fn visit(&mut self, body: &[Stmt]) {
        for stmt in body {
            match stmt {
                Stmt::Core(core) => {
                    if let Some(shape) = Shape::of(core, &self.cores)
                        && !self.shapes.contains(&shape)
                    {
                        self.shapes.push(shape);
                    }
                }
                Stmt::For { body, .. } | Stmt::Parallel { body, .. } => self.visit(body),
                Stmt::If { then, otherwise, .. } => {
                    self.visit(then);
                    self.visit(otherwise);
                }
                _ => {}
            }
        }
    }

    /// How a kernel calls a core: as the module's function of the shape's number. `None` if the core is to be emitted in
    /// place.
    pub(super) fn get(&self, func: &mut Function, core: &Core) -> Option<FuncRef> {
        let shape = Shape::of(core, &self.cores)?;
        let number = self.shapes.iter().position(|s| *s == shape)?;
        let name = UserExternalName { namespace: 0, index: number as u32 };
        let known = func.params.user_named_funcs().iter().find(|(_, n)| **n == name).map(|(r, _)| r);
        if let Some(known) = known {
            let callee = |(_, data): &(FuncRef, &ExtFuncData)| data.name == ExternalName::user(known);
            return func.dfg.ext_funcs.iter().find(callee).map(|(r, _)| r);
        }
        let name = func.declare_imported_user_function(name);
        let signature = signature(func.signature.call_conv);
        let signature = func.import_signature(signature);
        let data = ExtFuncData { name: ExternalName::user(name), signature, colocated: true, patchable: false };
        Some(func.import_function(data))
    }

    /// The machine code of each core, with its text where that is asked for.
    pub(super) fn assemble(&self, text: bool) -> Result<Vec<Assembled>, String> {
        let one = |(i, shape): (usize, &Shape)| {
            let assembled = Assembler::new(*shape, &self.cores).and_then(|a| a.assemble(i, text));
            assembled.map_err(|e| format!("a core of {shape:?}: {e}"))
        };
        self.shapes.iter().enumerate().map(one).collect()
    }
}

/// A core's machine code.
pub(super) struct Assembled {
    pub(super) bytes: Vec<u8>,
    pub(super) text: String,
}

/// What a core is called with: the addresses of its operands.
pub(super) fn signature(call_conv: CallConv) -> Signature {
    let mut signature = Signature::new(call_conv);
    signature.params.extend([AbiParam::new(I64); 3]);
    signature
}

const A: Register = Register::RDI;
const B: Register = Register::RSI;
const C: Register = Register::RDX;
const COUNT: Register = Register::ECX;

/// Bytes of the panel that a step takes.
const STEP: usize = 4 * PANEL;

/// Sums that are carried side by side, at least: what hides the latency of one on every machine so far.
const CHAINS: usize = 8;

/// Instructions of multiply and add that the loop has about.
const UNROLL: usize = 64;

/// How far ahead, in bytes, a panel is fetched where few rows share it.
const AHEAD: usize = 1024;

struct Assembler {
    code: CodeAssembler,
    shape: Shape,
    wide: bool,
    /// The first vector register.
    first: Register,
    /// Vectors that a step of the panel fills.
    vectors: usize,
    /// How often each sum is split, so that enough are carried side by side.
    chains: usize,
}

impl Assembler {
    fn new(shape: Shape, cores: &Cores) -> Result<Assembler, IcedError> {
        let wide = cores.bits == 512;
        let vectors = if wide { 1 } else { 2 };
        let registers = if wide { 28 } else { 12 };
        let sums = shape.rows * vectors;
        let chains = CHAINS.div_ceil(sums).next_power_of_two().min(registers / sums).max(1);
        let first = if wide { Register::ZMM0 } else { Register::YMM0 };
        Ok(Assembler { code: CodeAssembler::new(64)?, shape, wide, first, vectors, chains })
    }

    fn assemble(mut self, number: usize, text: bool) -> Result<Assembled, IcedError> {
        self.whole()?;
        let mut listing = String::new();
        if text {
            let mut formatter = FastFormatter::new();
            let Shape { rows, depth, a_elem, b_elem, .. } = self.shape;
            listing = format!("u0:{number}: ; core, {rows} rows {a_elem} by {b_elem}, depth {depth}\n");
            for instruction in self.code.instructions() {
                listing.push_str("  ");
                formatter.format(instruction, &mut listing);
                listing.push('\n');
            }
        }
        Ok(Assembled { bytes: self.code.assemble(0)?, text: listing })
    }

    fn whole(&mut self) -> Result<(), IcedError> {
        if self.shape.b_elem == Elem::Bf16 && self.shape.a_elem == Elem::F32 {
            self.upper_halves()?;
        }
        for row in 0..self.shape.rows {
            for vector in 0..self.vectors {
                let from = self.place(row, vector);
                for chain in 0..self.chains {
                    let sum = self.sum(chain, row, vector);
                    if chain == 0 && self.shape.accumulate {
                        self.two([Code::EVEX_Vmovups_zmm_k1z_zmmm512, Code::VEX_Vmovups_ymm_ymmm256], sum, from)?;
                    } else {
                        self.zero(sum)?;
                    }
                }
            }
        }
        let steps = self.shape.steps();
        // Each step multiplies for every row as often as there are sums of it, and neighbours lie together.
        let each = self.shape.rows * self.vectors * self.shape.b_elem.together();
        let unroll = (UNROLL / each).next_power_of_two().clamp(self.chains, 16);
        let turns = steps / unroll;
        if turns > 1 {
            self.code.add_instruction(Instruction::with2(Code::Mov_r32_imm32, COUNT, turns as u32)?)?;
            let mut again = self.code.create_label();
            self.code.set_label(&mut again)?;
            self.steps(unroll)?;
            self.code.add_instruction(Instruction::with1(Code::Dec_rm32, COUNT)?)?;
            self.code.jne(again)?;
        } else if turns == 1 {
            self.steps(unroll)?;
        }
        self.steps(steps % unroll)?;
        for row in 0..self.shape.rows {
            for vector in 0..self.vectors {
                let total = self.sum(0, row, vector);
                // In pairs, so that they do not wait for each other.
                let mut distance = self.chains / 2;
                while distance > 0 {
                    for chain in 0..distance {
                        let (sum, other) = (self.sum(chain, row, vector), self.sum(chain + distance, row, vector));
                        self.three(
                            [Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vaddps_ymm_ymm_ymmm256],
                            sum,
                            sum,
                            other,
                        )?;
                    }
                    distance /= 2;
                }
                let to = self.place(row, vector);
                let code = [Code::EVEX_Vmovups_zmmm512_k1z_zmm, Code::VEX_Vmovups_ymmm256_ymm];
                self.code.add_instruction(Instruction::with2(self.of(code), to, total)?)?;
            }
        }
        self.code.vzeroupper()?;
        self.code.ret()
    }

    /// So many steps, one after the other; then both operands move on.
    fn steps(&mut self, count: usize) -> Result<(), IcedError> {
        for step in 0..count {
            self.step(step)?;
        }
        if count > 0 {
            let bytes = [(A, count * self.shape.a_step()), (B, count * STEP)];
            for (register, bytes) in bytes {
                self.code.add_instruction(Instruction::with2(Code::Add_rm64_imm32, register, bytes as i32)?)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, step: usize) -> Result<(), IcedError> {
        if self.shape.rows <= 4 {
            let line = self.at(B, step * STEP + AHEAD);
            self.code.add_instruction(Instruction::with1(Code::Prefetcht0_m8, line)?)?;
        }
        for vector in 0..self.vectors {
            let panel = self.at(B, step * STEP + vector * if self.wide { 64 } else { 32 });
            let load = [Code::EVEX_Vmovups_zmm_k1z_zmmm512, Code::VEX_Vmovups_ymm_ymmm256];
            match (self.shape.a_elem, self.shape.b_elem) {
                (Elem::F32, Elem::Bf16) => {
                    let (lower, upper) = (self.spare(0), self.spare(1));
                    self.two(load, upper, panel)?;
                    let shift = [Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, Code::VEX_Vpslld_ymm_ymm_imm8];
                    self.code.add_instruction(Instruction::with3(self.of(shift), lower, upper, 16)?)?;
                    let and = [Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpand_ymm_ymm_ymmm256];
                    self.three(and, upper, upper, self.spare(3))?;
                    self.multiply(step, vector, 0, lower)?;
                    self.multiply(step, vector, 1, upper)?;
                }
                _ => {
                    let both = self.spare(0);
                    self.two(load, both, panel)?;
                    self.multiply(step, vector, 0, both)?;
                }
            }
        }
        Ok(())
    }

    /// Multiplies a vector of the panel with each row's number (of the neighbours in a step the `nth`), and adds.
    fn multiply(&mut self, step: usize, vector: usize, nth: usize, panel: Register) -> Result<(), IcedError> {
        let pairs = self.shape.a_elem == Elem::Bf16;
        let numbers = if self.shape.a_elem == self.shape.b_elem { 1 } else { self.shape.b_elem.together() };
        let chain = (step * numbers + nth) % self.chains;
        for row in 0..self.shape.rows {
            let sum = self.sum(chain, row, vector);
            let at = row * self.shape.a_stride + step * self.shape.a_step() + 4 * nth;
            if self.wide {
                let number = MemoryOperand::new(A, Register::None, 1, at as i64, 1, true, Register::None);
                let code = if pairs {
                    Code::EVEX_Vdpbf16ps_zmm_k1z_zmm_zmmm512b32
                } else {
                    Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er
                };
                self.code.add_instruction(Instruction::with3(code, sum, panel, number)?)?;
            } else {
                let number = self.spare(2);
                let at = self.at(A, at);
                self.code.add_instruction(Instruction::with2(Code::VEX_Vbroadcastss_ymm_m32, number, at)?)?;
                self.three([Code::INVALID, Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256], sum, panel, number)?;
            }
        }
        Ok(())
    }

    /// All ones in the upper halves of 32 bits.
    fn upper_halves(&mut self) -> Result<(), IcedError> {
        let mask = self.spare(3);
        let xmm = Register::XMM0 + (mask as u32 - self.first as u32);
        self.code.add_instruction(Instruction::with2(Code::Mov_r32_imm32, COUNT, 0xffff_0000u32)?)?;
        let (to_vector, broadcast) = if self.wide {
            (Code::EVEX_Vmovd_xmm_rm32, Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32)
        } else {
            (Code::VEX_Vmovd_xmm_rm32, Code::VEX_Vpbroadcastd_ymm_xmmm32)
        };
        self.code.add_instruction(Instruction::with2(to_vector, xmm, COUNT)?)?;
        self.code.add_instruction(Instruction::with2(broadcast, mask, xmm)?)
    }

    fn zero(&mut self, register: Register) -> Result<(), IcedError> {
        self.three(
            [Code::EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpxor_ymm_ymm_ymmm256],
            register,
            register,
            register,
        )
    }

    fn sum(&self, chain: usize, row: usize, vector: usize) -> Register {
        self.first + ((chain * self.shape.rows + row) * self.vectors + vector) as u32
    }

    /// One of the last four registers.
    fn spare(&self, nth: u32) -> Register {
        self.first + if self.wide { 28 } else { 12 } + nth
    }

    /// Where a vector of the result lies.
    fn place(&self, row: usize, vector: usize) -> MemoryOperand {
        self.at(C, row * self.shape.c_stride + vector * 32)
    }

    fn at(&self, base: Register, bytes: usize) -> MemoryOperand {
        MemoryOperand::with_base_displ(base, bytes as i64)
    }

    fn of(&self, [wide, narrow]: [Code; 2]) -> Code {
        if self.wide { wide } else { narrow }
    }

    fn two(&mut self, code: [Code; 2], to: Register, from: MemoryOperand) -> Result<(), IcedError> {
        self.code.add_instruction(Instruction::with2(self.of(code), to, from)?)
    }

    fn three(&mut self, code: [Code; 2], to: Register, a: Register, b: Register) -> Result<(), IcedError> {
        self.code.add_instruction(Instruction::with3(self.of(code), to, a, b)?)
    }
}
