//! Contraction cores of 256 and 512 bits, as machine code: Cranelift's vectors end at 128.
//!
//! A core is a function of its own, `extern "C" fn(a, b, c)`, for exactly one shape: rows, strides and depth are written
//! into it; what comes after its panel, where that is told, is a fourth address. So is the encoding of a row,
//! `extern "C" fn(from, to)`, and of a part of one, whose first block's number comes third. The kernels call them directly.
//! Registers are few and their use is fixed, so none is allocated: the sums come first, and the last few hold what passes by.

mod codes;
mod encode;
mod exps;
mod floats;
mod i16;
mod instructions;
pub(super) mod lanes;
pub(super) mod peak;
mod tiles;
mod words;

use cranelift::codegen::ir::types::{F32, F32X4, I64};
use cranelift::codegen::ir::{AbiParam, ExtFuncData, ExternalName, FuncRef, Function, Signature, UserExternalName};
use cranelift::codegen::isa::CallConv;
use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Code, FastFormatter, IcedError, Instruction, MemoryOperand, Register};

use self::instructions::XOR;
use self::lanes::Lanes;
use super::target::serve;
use crate::format::{Format, PANEL};
use crate::loops::{ByteProducts, Core, Cores, Encode, Exps, FEW, Fetch, FetchInto, GROUP, MAX_ROWS, Stmt, Unpack};

/// The shape of a core, which its machine code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    panels: usize,
    depth: usize,
    a: Format,
    b: Format,
    /// Bytes from row to row, and from panel to panel.
    a_stride: usize,
    b_stride: usize,
    c_stride: usize,
    accumulate: bool,
    /// Whether tiles multiply.
    tiles: bool,
    /// How what is read next is fetched, if it is.
    fetch: Option<Fetch>,
    /// Whether that is told to be elsewhere than behind the panel.
    next: bool,
    /// Lines of it that this core fetches as one of many, which fetch the rest.
    share: usize,
}

impl Shape {
    /// Steps of 32 bits of each column of the panel.
    fn steps(&self) -> usize {
        self.depth / self.b.together()
    }

    /// Bytes of a row of the first operand in a step.
    fn a_step(&self) -> usize {
        self.b.together() * self.a.elem().bytes()
    }
}

/// What is a function of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaf {
    Core(Shape),
    Unpack {
        depth: usize,
        format: Format,
        into: Format,
    },
    Encode {
        depth: usize,
        format: Format,
        /// Numbers of the whole row, where these are a part of it.
        of: Option<usize>,
    },
    Exps {
        depth: usize,
        format: Format,
    },
    Lanes(Box<Lanes>),
    /// What comes before the cores of tiles of a kernel, and after.
    SetUp,
    Leave,
}

impl Leaf {
    /// A core, where all of its shape is known and the machine has the instructions.
    fn core(core: &Core, cores: &Cores) -> Option<Leaf> {
        let depth = core.depth.as_size()?;
        let tiles = core.rows.is_multiple_of(GROUP) && cores.tiles_serve(core.a_format, core.b_format, depth);
        let panel = core.b_format.panel(depth) * core.b_format.elem().bytes();
        let share = core.next.as_ref().filter(|next| tiles || next.bytes < panel).map(|next| next.bytes.div_ceil(LINE));
        let shape = Shape {
            rows: core.rows,
            panels: core.panels,
            depth,
            a: core.a_format,
            b: core.b_format,
            a_stride: core.a_stride.as_size()? * core.a_format.elem().bytes(),
            b_stride: if core.panels == 1 { 0 } else { core.b_stride.as_size()? * core.b_format.elem().bytes() },
            c_stride: core.c_stride.as_size()? * 4,
            accumulate: core.accumulate,
            tiles,
            // As many as a core can take are those of many.
            fetch: cores.fetch.filter(|fetch| {
                core.panels == 1
                    && share.is_none()
                    && core.rows <= FEW.min(cores.by(core.b_format).rows() - 1)
                    && (core.rows > 1 || core.b_format.bits() < fetch.bits || core.next.is_some())
            }),
            next: core.next.is_some(),
            share: share.unwrap_or(0),
        };
        let near = MAX_ROWS * shape.a_stride.max(shape.c_stride) + shape.b_stride + 8 * shape.depth < i32::MAX as usize;
        let fits = match tiles {
            true => core.panels <= cores.panels(shape.a, shape.b, shape.depth),
            false => core.rows <= cores.rows_by(core.a_format, core.b_format, core.panels),
        };
        (near && fits && serve(cores, shape.a, shape.b)).then_some(Leaf::Core(shape))
    }

    fn unpack(unpack: &Unpack, cores: &Cores) -> Option<Leaf> {
        let Unpack { depth, format, into, .. } = *unpack;
        let serves = match into {
            Format::I16 => serve(cores, into, into),
            Format::Bf16 => serve(cores, format, format) && cores.bits == 512 && cores.bf16,
            _ => serve(cores, format, format),
        };
        serves.then_some(Leaf::Unpack { depth, format, into })
    }

    fn encode(encode: &Encode, cores: &Cores) -> Option<Leaf> {
        let Encode { depth, format, ref part, .. } = *encode;
        let of = part.as_ref().map(|part| part.of);
        let whole = depth.is_multiple_of(PANEL) && depth > 0;
        // As bf16 where those are multiplied, which is at 512 bits alone.
        (whole && cores.bits > 128 && serve(cores, format, format)).then_some(Leaf::Encode { depth, format, of })
    }

    fn exps(exps: &Exps, cores: &Cores) -> Option<Leaf> {
        let Exps { depth, format, .. } = *exps;
        let fits = depth > 0 && cores.bits > 128 && (format == Format::F32 || cores.bf16);
        fits.then_some(Leaf::Exps { depth, format })
    }

    /// What it is called with: the addresses of its operands, of a part of a row the number of its first block, and of exponentials the
    /// shift, which returns their sum.
    fn signature(&self, call_conv: CallConv) -> Signature {
        let mut signature = Signature::new(call_conv);
        let addresses = match self {
            Leaf::Core(shape) => 3 + usize::from(shape.next),
            Leaf::Encode { of, .. } => 2 + usize::from(of.is_some()),
            Leaf::Unpack { .. } | Leaf::Exps { .. } => 2,
            Leaf::Lanes(lanes) => lanes.pointers.len() + usize::from(lanes.rows),
            Leaf::SetUp | Leaf::Leave => 0,
        };
        signature.params.extend(vec![AbiParam::new(I64); addresses]);
        if matches!(self, Leaf::Exps { .. }) {
            signature.params.push(AbiParam::new(F32));
            signature.returns.push(AbiParam::new(F32));
        }
        if let Leaf::Lanes(lanes) = self {
            signature.params.extend(vec![AbiParam::new(F32); lanes.scalars]);
            if lanes.total.is_some() {
                signature.params.push(AbiParam::new(F32X4));
                signature.returns.push(AbiParam::new(F32X4));
            }
        }
        signature
    }
}

/// The functions that some kernels call.
pub(super) struct Table {
    cores: Cores,
    leaves: Vec<Leaf>,
}

impl Table {
    pub(super) fn new(cores: &Cores) -> Table {
        Table { cores: *cores, leaves: Vec::new() }
    }

    /// The cores that they may use.
    pub(super) fn cores(&self) -> &Cores {
        &self.cores
    }

    /// What a kernel calls first and last, if any of its cores multiplies tiles.
    pub(super) fn around(&mut self, func: &mut Function, body: &[Stmt]) -> Option<[FuncRef; 2]> {
        self.multiplies_tiles(body).then(|| [Leaf::SetUp, Leaf::Leave].map(|leaf| self.callee(func, leaf)))
    }

    fn multiplies_tiles(&self, body: &[Stmt]) -> bool {
        let tiles = |core: &Core| {
            matches!(Leaf::core(&core.of_panel(0), &self.cores), Some(Leaf::Core(Shape { tiles: true, .. })))
        };
        body.iter().any(|stmt| match stmt {
            Stmt::Core(core) => tiles(core),
            Stmt::For { body, .. } | Stmt::Parallel { body, .. } => self.multiplies_tiles(body),
            Stmt::If { then, otherwise, .. } => self.multiplies_tiles(then) || self.multiplies_tiles(otherwise),
            _ => false,
        })
    }

    /// How a kernel calls a core. `None` if the core is to be emitted in place.
    pub(super) fn core(&mut self, func: &mut Function, core: &Core) -> Option<FuncRef> {
        let leaf = Leaf::core(core, &self.cores)?;
        Some(self.callee(func, leaf))
    }

    /// The same for the unpacking of a panel.
    pub(super) fn unpack(&mut self, func: &mut Function, unpack: &Unpack) -> Option<FuncRef> {
        let leaf = Leaf::unpack(unpack, &self.cores)?;
        Some(self.callee(func, leaf))
    }

    /// The same for the encoding of a row.
    pub(super) fn encode(&mut self, func: &mut Function, encode: &Encode) -> Option<FuncRef> {
        let leaf = Leaf::encode(encode, &self.cores)?;
        Some(self.callee(func, leaf))
    }

    /// The same for the exponentials of a row.
    pub(super) fn exps(&mut self, func: &mut Function, exps: &Exps) -> Option<FuncRef> {
        let leaf = Leaf::exps(exps, &self.cores)?;
        Some(self.callee(func, leaf))
    }

    /// The same for a loop over neighbours, where more than four go at a time.
    pub(super) fn lanes(&mut self, func: &mut Function, lanes: Lanes) -> FuncRef {
        self.callee(func, Leaf::Lanes(Box::new(lanes)))
    }

    /// A leaf is the module's function of its number.
    fn callee(&mut self, func: &mut Function, leaf: Leaf) -> FuncRef {
        let signature = leaf.signature(func.signature.call_conv);
        let number = self.leaves.iter().position(|known| *known == leaf).unwrap_or_else(|| {
            self.leaves.push(leaf);
            self.leaves.len() - 1
        });
        let name = UserExternalName { namespace: 0, index: number as u32 };
        let declared = func.params.user_named_funcs().iter().find(|(_, known)| **known == name);
        let is_known = |(_, data): &(FuncRef, &ExtFuncData)| {
            declared.is_some_and(|(name, _)| data.name == ExternalName::user(name))
        };
        if let Some((known, _)) = func.dfg.ext_funcs.iter().find(is_known) {
            return known;
        }
        let name = func.declare_imported_user_function(name);
        let signature = func.import_signature(signature);
        let data = ExtFuncData { name: ExternalName::user(name), signature, colocated: true, patchable: false };
        func.import_function(data)
    }

    /// The machine code of each function, with its text where that is asked for.
    pub(super) fn assemble(&self, call_conv: CallConv, text: bool) -> Result<Vec<Assembled>, String> {
        let one = |(number, leaf): (usize, &Leaf)| {
            let assembled = assemble(leaf, &self.cores, call_conv, text.then_some(number));
            assembled.map_err(|e| format!("{leaf:?}: {e}"))
        };
        self.leaves.iter().enumerate().map(one).collect()
    }
}

/// A function's machine code.
pub(super) struct Assembled {
    /// What it is, as profilers show it.
    pub(super) name: String,
    pub(super) signature: Signature,
    pub(super) bytes: Vec<u8>,
    pub(super) text: String,
}

fn assemble(leaf: &Leaf, cores: &Cores, call_conv: CallConv, text: Option<usize>) -> Result<Assembled, IcedError> {
    let cores = match leaf {
        Leaf::Core(shape) if !shape.tiles => cores.by(shape.b),
        Leaf::Encode { format: Format::Words(_), .. } => Cores { bits: 256, ..*cores },
        _ => *cores,
    };
    let mut w = Writer::new(&cores)?;
    match leaf {
        Leaf::Core(shape) => {
            if shape.next {
                w.push(Instruction::with2(Code::Mov_r64_rm64, NEXT, Register::RCX))?;
            }
            match (shape.b.codes(), shape.tiles) {
                (Some(_), false) if shape.a != shape.b => words::write(&mut w, *shape)?,
                (Some(codes), false) => codes::write(&mut w, *shape, codes)?,
                (Some(codes), true) => tiles::bytes(&mut w, *shape, codes)?,
                (None, false) if shape.b == Format::I16 => i16::write(&mut w, *shape)?,
                (None, false) => floats::write(&mut w, *shape)?,
                (None, true) => tiles::floats(&mut w, *shape)?,
            }
        }
        Leaf::Unpack { depth, format, into: Format::Bf16 } => codes::unpack_floats(&mut w, *depth, *format)?,
        Leaf::Unpack { depth, into: Format::I16, .. } => i16::unpack(&mut w, *depth)?,
        Leaf::Unpack { depth, format, .. } => codes::unpack(&mut w, *depth, *format)?,
        Leaf::Encode { depth, format, of } => encode::write(&mut w, *depth, *format, *of)?,
        Leaf::Exps { depth, format } => exps::write(&mut w, *depth, *format)?,
        Leaf::Lanes(lanes) => lanes::write(&mut w, lanes)?,
        Leaf::SetUp => tiles::set_up(&mut w)?,
        Leaf::Leave => tiles::leave(&mut w)?,
    }
    w.code.vzeroupper()?;
    w.code.ret()?;
    let mut listing = String::new();
    if let Some(number) = text {
        listing = format!("u0:{number}: ; {leaf}\n");
        let mut formatter = FastFormatter::new();
        for instruction in w.code.instructions() {
            listing.push_str("  ");
            formatter.format(instruction, &mut listing);
            listing.push('\n');
        }
    }
    let bytes = w.code.assemble(0)?;
    Ok(Assembled { name: leaf.to_string(), signature: leaf.signature(call_conv), bytes, text: listing })
}

impl std::fmt::Display for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Leaf::Core(Shape { rows, panels, depth, a, b, tiles, .. }) => {
                let with = if *tiles { "tiles" } else { "core" };
                let by = if *panels == 1 { "" } else { "two panels of " };
                write!(f, "{with}, {rows} rows {a} by {by}{b}, depth {depth}")
            }
            Leaf::SetUp => f.write_str("set tiles up"),
            Leaf::Leave => f.write_str("leave tiles"),
            Leaf::Unpack { depth, format, into } => write!(f, "unpack {format} as {into}, depth {depth}"),
            Leaf::Encode { depth, format, of: None } => write!(f, "encode {format}, depth {depth}"),
            Leaf::Encode { depth, format, of: Some(of) } => write!(f, "encode {format}, {depth} of depth {of}"),
            Leaf::Exps { depth, format } => write!(f, "exponentials as {format}, depth {depth}"),
            Leaf::Lanes(lanes) => write!(f, "{lanes}"),
        }
    }
}

const A: Register = Register::RDI;
const B: Register = Register::RSI;
const C: Register = Register::RDX;
const COUNT: Register = Register::ECX;
/// What comes after the panel. It arrives in [`COUNT`]'s register, and is moved first.
const NEXT: Register = Register::R10;

/// Bytes of the panel that a step takes.
const STEP: usize = 4 * PANEL;

/// Bytes of a line of a cache.
const LINE: usize = 64;

/// Writes instructions.
struct Writer {
    code: CodeAssembler,
    /// Whether vectors have 512 bits, else 256.
    wide: bool,
    /// How products of bytes are added.
    products: Option<ByteProducts>,
}

impl Writer {
    fn new(cores: &Cores) -> Result<Writer, IcedError> {
        Ok(Writer { code: CodeAssembler::new(64)?, wide: cores.bits == 512, products: cores.bytes })
    }

    /// Vectors that the columns of a panel fill.
    fn vectors(&self) -> usize {
        if self.wide { 1 } else { 2 }
    }

    /// The lowest 128 bits of a vector register.
    fn quarter(&self, register: Register) -> Register {
        Register::XMM0 + (register as u32 - self.first() as u32)
    }

    /// The first vector register.
    fn first(&self) -> Register {
        if self.wide { Register::ZMM0 } else { Register::YMM0 }
    }

    fn push(&mut self, instruction: Result<Instruction, IcedError>) -> Result<(), IcedError> {
        self.code.add_instruction(instruction?)
    }

    fn at(&self, base: Register, bytes: usize) -> MemoryOperand {
        MemoryOperand::with_base_displ(base, bytes as i64)
    }

    /// A 32-bit number in every lane.
    fn each(&self, base: Register, bytes: usize) -> MemoryOperand {
        MemoryOperand::new(base, Register::None, 1, bytes as i64, 1, true, Register::None)
    }

    /// Words of a vector.
    fn lanes(&self) -> usize {
        self.width() / 4
    }

    /// Copies the lowest 128 bits of a vector to the others.
    fn repeat_quarter(&mut self, register: Register) -> Result<(), IcedError> {
        let quarter = self.quarter(register);
        self.push(match self.wide {
            true => {
                let code = Code::EVEX_Vshufi32x4_zmm_k1z_zmm_zmmm512b32_imm8;
                Instruction::with4(code, register, register, register, 0)
            }
            false => Instruction::with4(Code::VEX_Vinserti128_ymm_ymm_xmmm128_imm8, register, register, quarter, 1),
        })
    }

    /// Bytes of a vector.
    fn width(&self) -> usize {
        if self.wide { 64 } else { 32 }
    }

    /// Where a vector of the panels lies: those of a step of one panel, then those of the next.
    fn panel(&self, shape: &Shape, step: usize, vector: usize) -> MemoryOperand {
        let (panel, within) = (vector / self.vectors(), vector % self.vectors());
        self.at(B, panel * shape.b_stride + step * STEP + within * self.width())
    }

    /// Where a vector of the result lies.
    fn result(&self, shape: &Shape, row: usize, vector: usize) -> MemoryOperand {
        self.at(C, row * shape.c_stride + vector * self.width())
    }

    fn of(&self, [wide, narrow]: [Code; 2]) -> Code {
        if self.wide { wide } else { narrow }
    }

    fn two(&mut self, code: [Code; 2], to: Register, from: MemoryOperand) -> Result<(), IcedError> {
        self.push(Instruction::with2(self.of(code), to, from))
    }

    fn three(&mut self, code: [Code; 2], to: Register, a: Register, b: Register) -> Result<(), IcedError> {
        self.push(Instruction::with3(self.of(code), to, a, b))
    }

    fn zero(&mut self, register: Register) -> Result<(), IcedError> {
        self.three(XOR, register, register, register)
    }

    fn store(&mut self, to: MemoryOperand, register: Register) -> Result<(), IcedError> {
        let code = self.of([Code::EVEX_Vmovups_zmmm512_k1z_zmm, Code::VEX_Vmovups_ymmm256_ymm]);
        self.push(Instruction::with2(code, to, register))
    }

    fn shift(&mut self, code: [Code; 2], to: Register, from: Register, bits: usize) -> Result<(), IcedError> {
        self.push(Instruction::with3(self.of(code), to, from, bits as i32))
    }

    /// Adds the products within each lane to it.
    fn dot(&mut self, [wide, evex, vex]: [Code; 3], sum: Register, a: Register, b: Register) -> Result<(), IcedError> {
        let narrow = if self.products == Some(ByteProducts::AvxVnni) { vex } else { evex };
        self.three([wide, narrow], sum, a, b)
    }

    /// Writes the code that puts sixteen words where the stack ends: below it are 128 bytes that a function which calls none
    /// may use.
    fn words(&mut self, words: [u32; 16]) -> Result<MemoryOperand, IcedError> {
        for (nth, word) in words.into_iter().enumerate() {
            self.push(Instruction::with2(Code::Mov_rm32_imm32, self.word_below(nth), word))?;
        }
        Ok(self.word_below(0))
    }

    /// One of these words.
    fn word_below(&self, nth: usize) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RSP, 4 * nth as i64 - 64)
    }

    /// A number in every lane.
    fn constant(&mut self, to: Register, bits: u32) -> Result<(), IcedError> {
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, bits))?;
        if self.wide {
            return self.push(Instruction::with2(Code::EVEX_Vpbroadcastd_zmm_k1z_r32, to, Register::EAX));
        }
        let quarter = self.quarter(to);
        self.push(Instruction::with2(Code::VEX_Vmovd_xmm_rm32, quarter, Register::EAX))?;
        self.push(Instruction::with2(Code::VEX_Vpbroadcastd_ymm_xmmm32, to, quarter))
    }

    /// Combines all lanes of the first vectors from the eighth on; returns the register whose lanes all hold the result.
    fn fold(&mut self, vectors: usize, [wide, half, quarter]: [Code; 3]) -> Result<Register, IcedError> {
        let first = self.first() + 8;
        let at = |i: usize| first + i as u32;
        let mut left = vectors;
        while left > 1 {
            let kept = left.div_ceil(2);
            for i in 0..left - kept {
                self.three([wide, half], at(i), at(i), at(i + kept))?;
            }
            left = kept;
        }
        let [y, x] = [Register::YMM8, Register::XMM8];
        let [y_other, x_other] = [Register::YMM9, Register::XMM9];
        if self.wide {
            self.push(Instruction::with3(Code::EVEX_Vextracti64x4_ymmm256_k1z_zmm_imm8, y_other, at(0), 1))?;
            self.push(Instruction::with3(half, y, y, y_other))?;
        }
        self.push(Instruction::with3(Code::VEX_Vextracti128_xmmm128_ymm_imm8, x_other, y, 1))?;
        self.push(Instruction::with3(quarter, x, x, x_other))?;
        for order in [0b0100_1110, 0b1011_0001] {
            self.push(Instruction::with3(Code::VEX_Vpshufd_xmm_xmmm128_imm8, x_other, x, order))?;
            self.push(Instruction::with3(quarter, x, x, x_other))?;
        }
        Ok(x)
    }

    /// Fetches a line, where a core fetches, that lies so many bytes behind the place in the panel: of the next one, else ahead
    /// of here.
    fn fetch(&mut self, shape: &Shape, bytes: usize) -> Result<(), IcedError> {
        let Some(fetch) = shape.fetch else { return Ok(()) };
        let ahead = fetch.ahead[usize::from(shape.rows > 1)];
        let line = if shape.next { self.at(NEXT, bytes) } else { self.at(B, ahead + bytes) };
        let code = match fetch.into {
            FetchInto::All => Code::Prefetcht0_m8,
            FetchInto::First => Code::Prefetchnta_m8,
            FetchInto::Both(near) => {
                let near = self.at(B, near + bytes);
                self.push(Instruction::with1(Code::Prefetcht0_m8, near))?;
                Code::Prefetcht1_m8
            }
        };
        self.push(Instruction::with1(code, line))
    }

    /// Fetches some lines of a core's share of what the next unit reads into the second cache.
    fn fetch_share(&mut self, lines: usize) -> Result<(), IcedError> {
        for line in 0..lines {
            let line = self.at(NEXT, line * LINE);
            self.push(Instruction::with1(Code::Prefetcht1_m8, line))?;
        }
        if lines > 0 { self.advance(NEXT, lines * LINE) } else { Ok(()) }
    }

    /// Does something so many times, and meanwhile fetches a core's share of what the next unit reads.
    fn times_fetching(
        &mut self,
        shape: &Shape,
        turns: usize,
        body: impl Fn(&mut Self) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let lines = shape.share.div_ceil(turns.max(1));
        let fetching = shape.share.div_ceil(lines.max(1)).min(turns);
        self.times(fetching, |w| {
            w.fetch_share(lines)?;
            body(w)
        })?;
        self.times(turns - fetching, body)
    }

    /// Moves on in the panel, and in the next.
    fn advance_panel(&mut self, shape: &Shape, bytes: usize) -> Result<(), IcedError> {
        self.advance(B, bytes)?;
        if shape.fetch.is_some() && shape.next { self.advance(NEXT, bytes) } else { Ok(()) }
    }

    /// Moves back in both.
    fn retreat_panel(&mut self, shape: &Shape, bytes: usize) -> Result<(), IcedError> {
        self.retreat(B, bytes)?;
        if shape.fetch.is_some() && shape.next { self.retreat(NEXT, bytes) } else { Ok(()) }
    }

    /// Moves an address on.
    fn advance(&mut self, register: Register, bytes: usize) -> Result<(), IcedError> {
        self.push(Instruction::with2(Code::Add_rm64_imm32, register, bytes as i32))
    }

    /// Moves an address back.
    fn retreat(&mut self, register: Register, bytes: usize) -> Result<(), IcedError> {
        self.push(Instruction::with2(Code::Sub_rm64_imm32, register, bytes as i32))
    }

    /// Does something so many times.
    fn times(&mut self, turns: usize, body: impl FnOnce(&mut Self) -> Result<(), IcedError>) -> Result<(), IcedError> {
        if turns <= 1 {
            return if turns == 1 { body(self) } else { Ok(()) };
        }
        self.push(Instruction::with2(Code::Mov_r32_imm32, COUNT, turns as u32))?;
        let mut again = self.code.create_label();
        self.code.set_label(&mut again)?;
        body(self)?;
        self.push(Instruction::with1(Code::Dec_rm32, COUNT))?;
        self.code.jne(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The instructions of a core at 256 bits, of the unpacking of its panels and of the encoding of its rows: of its products
    /// alone, or of all else.
    fn instructions(rows: usize, format: Format, encoding: ByteProducts, of_products: bool) -> Vec<String> {
        let cores = Cores { bits: 256, bytes: Some(encoding), ..Cores::PORTABLE };
        let mut w = Writer::new(&cores).unwrap();
        let depth = 2 * format.block();
        let (a, b, a_stride) = (format, format, format.row(depth));
        let shape = Shape {
            rows,
            panels: 1,
            depth,
            a,
            b,
            a_stride,
            b_stride: 0,
            c_stride: 4 * PANEL,
            accumulate: false,
            tiles: false,
            fetch: None,
            next: false,
            share: 0,
        };
        match format.codes() {
            Some(codes) => codes::write(&mut w, shape, codes).unwrap(),
            None => i16::write(&mut w, shape).unwrap(),
        }
        if format == Format::I16 {
            i16::unpack(&mut w, depth).unwrap();
        } else if format.unpacked() != format {
            codes::unpack(&mut w, depth, format).unwrap();
        }
        encode::write(&mut w, depth, format, None).unwrap();
        let names = w.code.instructions().iter().map(|instruction| format!("{:?}", instruction.code()));
        names.filter(|name| name.contains("Vpdp") == of_products).collect()
    }

    #[test]
    fn a_core_of_256_bits_takes_no_instruction_of_avx512_but_products() {
        let has_core = |format: &Format| format.codes().is_some() || *format == Format::I16;
        for format in Format::ALL.into_iter().filter(has_core) {
            for rows in 1..=6 {
                let all = instructions(rows, format, ByteProducts::AvxVnni, false);
                assert!(all.iter().all(|name| !name.starts_with("EVEX")), "{rows} rows of {format}: {all:?}");
                assert_eq!(all, instructions(rows, format, ByteProducts::Avx512Vnni, false));
                let [vex, evex] =
                    [ByteProducts::AvxVnni, ByteProducts::Avx512Vnni].map(|e| instructions(rows, format, e, true));
                let pairs = instructions(rows, format, ByteProducts::Avx2, false);
                assert!(pairs.iter().all(|name| !name.starts_with("EVEX")), "{rows} rows of {format}: {pairs:?}");
                assert_eq!(instructions(rows, format, ByteProducts::Avx2, true), Vec::<String>::new());
                let products = match format.codes() {
                    Some(codes) if codes.steps.is_some() => &["Vpdpbusd", "Vpdpwssd"][..],
                    Some(_) => &["Vpdpbusd"],
                    None => &["Vpdpwssd"],
                };
                for product in products {
                    assert!(
                        vex.contains(&format!("VEX_{product}_ymm_ymm_ymmm256")),
                        "{rows} rows of {format}: {vex:?}"
                    );
                }
                let encoded =
                    |name: &String| name.replace("VEX", "EVEX").replace("ymm_ymm_ymmm256", "ymm_k1z_ymm_ymmm256b32");
                assert_eq!(vex.iter().map(encoded).collect::<Vec<_>>(), evex, "{rows} rows of {format}");
            }
        }
    }
}
