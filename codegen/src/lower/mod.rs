//! Lowering: from loops to machine code, through Cranelift.
//!
//! A compiled kernel is `extern "C" fn(frame, layer, worker, workers, scratch, left)`:
//! - `frame` points to the words that [`frame`](crate::loops::frame) tells;
//! - `layer` points to the words that [`Buffer::Layer`](crate::loops::Buffer::Layer) and the pages' offsets name;
//! - `worker` of `workers` runs it; `scratch` is that worker's own memory; `left` points to a [`Left`] for each.

mod affine;
mod codes;
mod core;
mod emit;
mod expr;
pub(crate) mod host;
mod i16;
mod math;
mod stmt;
mod target;
mod wide;
mod words;
mod written;
mod x86;

use std::sync::atomic::AtomicU64;

use cranelift::codegen::Context;
use cranelift::codegen::ir::{Function, UserFuncName};
use cranelift::codegen::isa::TargetIsa;
use cranelift::jit::{ArenaMemoryProvider, JITBuilder, JITModule};
use cranelift::module::{FuncId, Linkage, Module, default_libcall_names};

use crate::format::Format;
use crate::loops::{GROUP, Invalid, Kernel, verify};

pub use target::Target;

/// Why kernels were not compiled.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// The kernel is not well formed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The machine is not one that code can be generated for.
    #[error("target: {0}")]
    Target(String),
    /// The code generator refused a kernel.
    #[error("kernel `{kernel}`: {message}")]
    Codegen {
        /// The kernel's name.
        kernel: String,
        /// What the code generator said.
        message: String,
    },
}

/// How to compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lowering {
    /// Whether to run Cranelift's verifier on what is emitted.
    pub verify: bool,
    /// Whether to keep the text of the intermediate form and of the machine code.
    pub keep_text: bool,
}

impl Default for Lowering {
    /// Verifies in debug builds, keeps no text.
    fn default() -> Self {
        Lowering { verify: cfg!(debug_assertions), keep_text: false }
    }
}

/// Compiled kernels. Owns their machine code, which is freed on drop.
pub struct Code {
    /// `None` only while it is dropped.
    module: Option<JITModule>,
    kernels: Vec<Compiled>,
}

struct Compiled {
    entry: Entry,
    bytes: usize,
    instructions: usize,
    text: Option<Text>,
}

struct Text {
    clif: String,
    asm: String,
}

type Entry = unsafe extern "C" fn(*const u64, *const u64, u64, u64, *mut u8, *const Left);

/// What a worker has left of the [balanced](crate::loops::Share::Balanced) loop at hand: the number of its share's next iteration,
/// in the lower half, and the end of those that nobody has taken. Nothing between loops.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Left(AtomicU64);

impl Left {
    /// Of a worker that has so many iterations before it.
    pub const fn new(iterations: u32) -> Left {
        Left(AtomicU64::new((iterations as u64) << 32))
    }
}

// SAFETY: the module is only touched by `compile` and by `drop`, which have it to themselves; what is shared between is its
// finished machine code, which is read-only memory and keeps no state: a kernel writes only where its arguments point, and
// `call`'s contract covers that.
unsafe impl Send for Code {}
// SAFETY: as above; `&Code` gives no access to the module.
unsafe impl Sync for Code {}

/// Address space reserved for the code of one [`compile`]: unused pages cost nothing.
const RESERVED: usize = 64 << 20;

/// Compiles kernels for this machine.
pub fn compile(kernels: &[Kernel], target: &Target, how: &Lowering) -> Result<Code, LowerError> {
    // From here on `code` frees the module, whatever fails.
    let mut code = Code { module: None, kernels: Vec::new() };
    let module = code.module.insert(reserve(target)?);
    let mut context = module.make_context();
    // The module's first functions: a kernel calls a core by its number.
    let mut cores = x86::Table::new(&target.cores);
    let functions: Result<Vec<Function>, LowerError> =
        kernels.iter().map(|kernel| lower(kernel, module.isa(), &mut cores, how.verify)).collect();
    let call_conv = module.isa().default_call_conv();
    let mut texts = Vec::new();
    let failed = |e: &dyn std::fmt::Display| LowerError::Codegen { kernel: "core".to_string(), message: e.to_string() };
    for (i, core) in cores.assemble(call_conv, how.keep_text).map_err(|e| failed(&e))?.into_iter().enumerate() {
        let id = module.declare_function(&format!("{i} {}", core.name), Linkage::Local, &core.signature);
        let id = id.map_err(|e| failed(&e))?;
        module.define_function_bytes(id, 64, &core.bytes, &[]).map_err(|e| failed(&e))?;
        texts.push(core.text);
    }
    let mut compiled = Vec::new();
    for (i, function) in functions?.into_iter().enumerate() {
        context.clear();
        context.func = function;
        compiled.push(define(module, &mut context, i, &kernels[i], &texts, how)?);
    }
    module.finalize_definitions().map_err(|e| LowerError::Target(e.to_string()))?;
    for (id, instructions, bytes, text) in compiled {
        code.kernels.push(Compiled { entry: entry(module, id), bytes, instructions, text });
    }
    Ok(code)
}

/// An empty module, with address space for its code.
fn reserve(target: &Target) -> Result<JITModule, LowerError> {
    if !target.host {
        return Err(LowerError::Target(format!("code for {} is to be read, not run", target.name())));
    }
    let arena = ArenaMemoryProvider::new_with_size(RESERVED)
        .map_err(|e| LowerError::Target(format!("no {RESERVED} bytes of address space for code: {e}")))?;
    let mut builder = JITBuilder::with_isa(target.isa.clone(), default_libcall_names());
    builder.memory_provider(Box::new(arena));
    Ok(JITModule::new(builder))
}

/// Where a kernel begins, which was defined and finalized.
fn entry(module: &JITModule, id: FuncId) -> Entry {
    // SAFETY: every function that this is asked for was defined with the signature of `Entry`, and is finalized.
    unsafe { std::mem::transmute::<*const u8, Entry>(module.get_finalized_function(id)) }
}

/// A kernel that multiplies and adds in registers alone, and leaves the sums in its scratch.
pub(crate) struct Multiplying {
    pub(crate) code: Code,
    /// Floats that it leaves.
    pub(crate) sums: usize,
    /// How often it adds to each.
    pub(crate) steps: usize,
    /// Whether tiles multiply.
    pub(crate) tiles: bool,
}

/// Compiles such a kernel, of so many iterations, for the wider core whose operands are stored so. `None` if the machine
/// has none.
pub(crate) fn multiplying(
    format: Format,
    target: &Target,
    iterations: usize,
) -> Result<Option<Multiplying>, LowerError> {
    let failed = |e: &dyn std::fmt::Display| LowerError::Codegen { kernel: "peak".to_string(), message: e.to_string() };
    let Some(bytes) = x86::peak::assemble(format, &target.cores, iterations) else { return Ok(None) };
    let bytes = bytes.map_err(|e| failed(&e))?;
    let mut code = Code { module: None, kernels: Vec::new() };
    let module = code.module.insert(reserve(target)?);
    // It is called from here alone, so that Cranelift need not know its arguments.
    let signature = module.make_signature();
    let id = module.declare_function("peak", Linkage::Local, &signature).map_err(|e| failed(&e))?;
    module.define_function_bytes(id, 64, &bytes, &[]).map_err(|e| failed(&e))?;
    module.finalize_definitions().map_err(|e| LowerError::Target(e.to_string()))?;
    code.kernels.push(Compiled { entry: entry(module, id), bytes: bytes.len(), instructions: 0, text: None });
    let (sums, tiles) = (x86::peak::numbers(format, &target.cores), x86::peak::of_tiles(format, &target.cores));
    let each = if tiles { GROUP } else { 1 };
    Ok(Some(Multiplying { code, sums, tiles, steps: each * x86::peak::unroll(format, &target.cores) * iterations }))
}

fn define(
    module: &mut JITModule,
    context: &mut Context,
    number: usize,
    kernel: &Kernel,
    texts: &[String],
    how: &Lowering,
) -> Result<(FuncId, usize, usize, Option<Text>), LowerError> {
    let failed = |message: String| LowerError::Codegen { kernel: kernel.name.clone(), message };
    context.set_disasm(how.keep_text);
    let signature = &context.func.signature;
    let id = module
        .declare_function(&format!("{number}_{}", kernel.name), Linkage::Local, signature)
        .map_err(|e| failed(e.to_string()))?;
    context.func.name = UserFuncName::user(0, id.as_u32());
    let clif = how.keep_text.then(|| context.func.display().to_string());
    let instructions = context.func.dfg.num_insts();
    module.define_function(id, context).map_err(|e| failed(format!("{e:?}")))?;
    let compiled = context.compiled_code();
    let bytes = compiled.map_or(0, |code| code.code_info().total_size as usize);
    let mut asm = compiled.and_then(|code| code.vcode.clone()).unwrap_or_default();
    let called = context.func.params.user_named_funcs().values();
    asm.extend(called.filter_map(|name| texts.get(name.index as usize)).map(|text| format!("\n{text}")));
    Ok((id, instructions, bytes, clif.map(|clif| Text { clif, asm })))
}

fn lower(kernel: &Kernel, isa: &dyn TargetIsa, cores: &mut x86::Table, check: bool) -> Result<Function, LowerError> {
    verify(kernel)?;
    let func = stmt::lower(kernel, isa, cores);
    if check {
        cranelift::codegen::verify_function(&func, isa)
            .map_err(|e| LowerError::Codegen { kernel: kernel.name.clone(), message: e.to_string() })?;
    }
    Ok(func)
}

/// The intermediate form and the machine code of a kernel, for any target.
pub fn compile_text(kernel: &Kernel, target: &Target) -> Result<(String, String), LowerError> {
    let mut cores = x86::Table::new(&target.cores);
    let mut context = Context::for_function(lower(kernel, &*target.isa, &mut cores, true)?);
    context.set_disasm(true);
    let clif = context.func.display().to_string();
    let code = context
        .compile(&*target.isa, &mut Default::default())
        .map_err(|e| LowerError::Codegen { kernel: kernel.name.clone(), message: format!("{:?}", e.inner) })?;
    Ok((clif, code.vcode.clone().unwrap_or_default()))
}

impl Code {
    /// Runs a kernel's share of one worker. There is no kernel of a number out of range: nothing is done.
    ///
    /// # Safety
    ///
    /// There is one of `left` for each worker, the same for all, which has nothing left or as much as that worker has of the
    /// kernel's balanced loop; `worker` is less than that. Every address that the kernel forms from these arguments must be
    /// valid for what it does there: `frame` and `layer` for the words it names, the pointers in them and `scratch` for its
    /// loads and stores. No other thread may access what it writes, nor write what it reads, except the other workers of the
    /// same call, which have all returned before any of them is called again.
    pub unsafe fn call(
        &self,
        kernel: usize,
        frame: *const u64,
        layer: *const u64,
        worker: usize,
        left: &[Left],
        scratch: *mut u8,
    ) {
        if let Some(kernel) = self.kernels.get(kernel) {
            // SAFETY: the caller vouches for the arguments.
            unsafe { (kernel.entry)(frame, layer, worker as u64, left.len() as u64, scratch, left.as_ptr()) }
        }
    }

    /// How many kernels there are.
    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// A kernel's intermediate form, if it was kept.
    pub fn clif(&self, kernel: usize) -> Option<&str> {
        Some(&self.kernels.get(kernel)?.text.as_ref()?.clif)
    }

    /// A kernel's machine code as text, if it was kept.
    pub fn asm(&self, kernel: usize) -> Option<&str> {
        Some(&self.kernels.get(kernel)?.text.as_ref()?.asm)
    }

    /// How many bytes a kernel's machine code has, with its constants.
    pub fn bytes(&self, kernel: usize) -> usize {
        self.kernels.get(kernel).map_or(0, |kernel| kernel.bytes)
    }

    /// How many instructions of the intermediate form a kernel has.
    pub fn instructions(&self, kernel: usize) -> usize {
        self.kernels.get(kernel).map_or(0, |kernel| kernel.instructions)
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: `call` borrows the code, so none of it is running, and its entries are dropped with it.
            unsafe { module.free_memory() }
        }
    }
}
