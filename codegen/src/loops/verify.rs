//! Checks a kernel: types, lanes, definition before use, nesting.

use std::fmt;

use crate::format::{Elem, Format, PANEL};

use super::{
    Address, Binary, Buffer, Core, Encode, Expr, Exps, Fold, Kernel, LANES, MAX_PANELS, MAX_ROWS, Part, Share, Spread,
    Stmt, Ty, Unary, Unpack, Var,
};

/// How many bytes a core may fetch ahead: each line is an instruction.
const MAX_AHEAD: usize = 1 << 24;

/// How deep expressions and statements may nest.
pub const MAX_DEPTH: usize = 200;

/// How far apart neighbours may be spread, in elements.
const MOST_APART: usize = 1 << 20;

/// The most iterations of a round of a balanced loop.
const MOST_TURNS: usize = 1 << 24;

/// Why a kernel is not well formed, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}`: {message}")]
pub struct Invalid {
    kernel: String,
    message: String,
}

type Checked<T> = Result<T, String>;

/// Checks that a kernel is well formed, so that it can be run and lowered.
pub fn verify(kernel: &Kernel) -> Result<(), Invalid> {
    let mut verifier = Verifier {
        vars: &kernel.vars,
        scratch: kernel.scratch,
        defined: vec![None; kernel.vars.len()],
        parallel: None,
        balanced: None,
        counters: Vec::new(),
        depth: 0,
    };
    let named = check(is_identifier(&kernel.name), || "the name is not an identifier".to_string());
    named
        .and_then(|()| verifier.block(&kernel.body))
        .map_err(|message| Invalid { kernel: kernel.name.clone(), message })
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Checked<()> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ty::Int => "int",
            Ty::Float => "float",
            Ty::Mask => "mask",
            Ty::Ints => "ints",
            Ty::Floats => "floats",
            Ty::Masks => "masks",
        })
    }
}

impl Ty {
    /// Whether it has four lanes.
    pub fn is_vector(self) -> bool {
        matches!(self, Ty::Ints | Ty::Floats | Ty::Masks)
    }

    /// The truth value with as many lanes.
    pub fn mask(self) -> Ty {
        if self.is_vector() { Ty::Masks } else { Ty::Mask }
    }

    /// Whether it is a float, of any lanes.
    pub fn is_float(self) -> bool {
        matches!(self, Ty::Float | Ty::Floats)
    }

    /// Whether it is an integer, of any lanes.
    pub fn is_int(self) -> bool {
        matches!(self, Ty::Int | Ty::Ints)
    }

    /// Whether it is a truth value, of any lanes.
    pub fn is_mask(self) -> bool {
        matches!(self, Ty::Mask | Ty::Masks)
    }
}

struct Verifier<'a> {
    vars: &'a [Ty],
    /// Bytes of a worker's private memory.
    scratch: usize,
    /// Of each variable that is visible, how many parallel loops are around its definition.
    defined: Vec<Option<usize>>,
    parallel: Option<Var>,
    /// A balanced loop that has been on the way here.
    balanced: Option<Var>,
    /// The counters of the loops around.
    counters: Vec<Var>,
    depth: usize,
}

impl Verifier<'_> {
    fn block(&mut self, body: &[Stmt]) -> Checked<()> {
        self.deeper()?;
        let before = self.defined.clone();
        for stmt in body {
            self.stmt(stmt)?;
        }
        self.defined = before;
        self.depth -= 1;
        Ok(())
    }

    fn deeper(&mut self) -> Checked<()> {
        self.depth += 1;
        check(self.depth <= MAX_DEPTH, || format!("nested deeper than {MAX_DEPTH}"))
    }

    fn declared(&self, var: Var) -> Checked<Ty> {
        self.vars.get(var.0 as usize).copied().ok_or_else(|| format!("v{} is not declared", var.0))
    }

    fn define(&mut self, var: Var, ty: Ty) -> Checked<()> {
        let declared = self.declared(var)?;
        check(declared == ty, || format!("v{} is declared {declared} and defined as {ty}", var.0))?;
        check(self.defined[var.0 as usize].is_none(), || format!("v{} is defined twice", var.0))?;
        self.defined[var.0 as usize] = Some(self.parallel.iter().count());
        Ok(())
    }

    fn stmt(&mut self, stmt: &Stmt) -> Checked<()> {
        match stmt {
            Stmt::Let(var, value) => {
                let ty = self.expr(value)?;
                self.define(*var, ty)
            }
            Stmt::Set(var, value) => {
                let declared = self.declared(*var)?;
                let ty = self.expr(value)?;
                check(declared == ty, || format!("v{} is declared {declared} and set to {ty}", var.0))?;
                check(!self.counters.contains(var), || format!("v{} is set and counts a loop", var.0))?;
                match self.defined[var.0 as usize] {
                    None => Err(format!("v{} is set before it is defined", var.0)),
                    Some(outside) => check(outside == self.parallel.iter().count(), || {
                        format!("v{} is set in a parallel loop and defined outside", var.0)
                    }),
                }
            }
            Stmt::Store { elem, at, value } => {
                self.address(at)?;
                let ty = self.expr(value)?;
                check(
                    match elem {
                        Elem::F32 | Elem::Bf16 | Elem::U8 => ty.is_float(),
                        Elem::I32 => ty.is_int(),
                    },
                    || format!("a {ty} is stored as {elem}"),
                )
            }
            Stmt::Spread(Spread { at, together, apart, value }) => {
                self.address(at)?;
                self.expect(value, Ty::Floats, "what is spread")?;
                let (together, apart) = (*together, *apart);
                check(together == 1 || together == 2, || format!("{together} neighbours are spread, not 1 or 2"))?;
                check(apart >= together, || format!("{together} neighbours are spread {apart} apart"))?;
                check(apart <= MOST_APART, || format!("neighbours are spread {apart} apart, more than {MOST_APART}"))
            }
            Stmt::For { var, from, to, step, body } => {
                self.expect(from, Ty::Int, "a loop's start")?;
                self.expect(to, Ty::Int, "a loop's end")?;
                check(*step >= 1, || format!("v{} steps by {step}", var.0))?;
                self.counted(*var, body)
            }
            Stmt::If { mask, then, otherwise } => {
                self.expect(mask, Ty::Mask, "a condition")?;
                let before = self.balanced;
                self.block(then)?;
                let after = std::mem::replace(&mut self.balanced, before);
                self.block(otherwise)?;
                self.balanced = self.balanced.or(after);
                Ok(())
            }
            Stmt::Parallel { var, count, share, body } => {
                self.expect(count, Ty::Int, "a loop's count")?;
                if let Share::Balanced(turns) = share {
                    check((1..=MOST_TURNS).contains(turns), || {
                        format!("the loop of v{} has rounds of {turns}, not 1 to {MOST_TURNS}", var.0)
                    })?;
                    check(self.counters.is_empty(), || format!("the balanced loop of v{} is within another", var.0))?;
                    if let Some(first) = self.balanced.replace(*var) {
                        return Err(format!("the balanced loop of v{} comes after that of v{}", var.0, first.0));
                    }
                }
                if let Some(outer) = self.parallel {
                    return Err(format!("the parallel loop of v{} is within that of v{}", var.0, outer.0));
                }
                self.parallel = Some(*var);
                self.counted(*var, body)?;
                self.parallel = None;
                Ok(())
            }
            Stmt::Core(core) => self.core(core),
            Stmt::Unpack(unpack) => self.unpack(unpack),
            Stmt::Encode(encode) => self.encode(encode),
            Stmt::Exps(exps) => self.exps(exps),
            Stmt::Note(_) => Ok(()),
        }
    }

    fn counted(&mut self, var: Var, body: &[Stmt]) -> Checked<()> {
        self.define(var, Ty::Int)?;
        self.counters.push(var);
        self.block(body)?;
        self.counters.pop();
        self.defined[var.0 as usize] = None;
        Ok(())
    }

    fn core(&mut self, core: &Core) -> Checked<()> {
        let rows = core.rows;
        check((1..=MAX_ROWS).contains(&rows), || format!("a core has {rows} rows, not 1 to {MAX_ROWS}"))?;
        let panels = core.panels;
        check((1..=MAX_PANELS).contains(&panels), || format!("a core has {panels} panels, not 1 to {MAX_PANELS}"))?;
        let (a, b) = (core.a_format, core.b_format);
        let fit =
            a == b && !matches!(b, Format::Words(_)) || (a, b) == (Format::F32, Format::Bf16) || Some(a) == b.words();
        check(fit, || format!("a core of {a} by {b}"))?;
        check(!b.is_coded() || core.depth.as_int().is_some(), || format!("a core by {b} has no constant depth"))?;
        if let Some(depth) = core.depth.as_int() {
            let block = b.block();
            check(depth.max(0) % block as i64 == 0, || {
                format!("a core by {b} has depth {depth}, no multiple of {block}")
            })?;
        }
        self.expect(&core.depth, Ty::Int, "a core's depth")?;
        self.expect(&core.a_stride, Ty::Int, "a core's stride")?;
        self.expect(&core.b_stride, Ty::Int, "a core's stride")?;
        self.expect(&core.c_stride, Ty::Int, "a core's stride")?;
        self.address(&core.a)?;
        self.address(&core.b)?;
        core.next.iter().try_for_each(|next| {
            let bytes = next.bytes;
            check(bytes <= MAX_AHEAD, || format!("a core fetches {bytes} bytes ahead, not at most {MAX_AHEAD}"))?;
            self.address(&next.at)
        })?;
        self.address(&core.c)?;
        let Some(depth) = core.depth.as_size() else { return Ok(()) };
        let rows = |stride: &Expr, row: usize| Some((rows - 1).saturating_mul(stride.as_size()?).saturating_add(row));
        let panels = (panels - 1).saturating_mul(core.b_stride.as_size().unwrap_or(0)).saturating_add(b.rows(depth));
        let row = if a.is_coded() { a.row(depth) } else { depth };
        self.fits(&core.a, rows(&core.a_stride, row), a.elem(), "a core's rows")?;
        self.fits(&core.b, Some(panels), b.elem(), "a core's panels")?;
        self.fits(&core.c, rows(&core.c_stride, core.panels * PANEL), Elem::F32, "a core's result")
    }

    /// Whether private memory has room for so many elements from a place on, if that much is known.
    fn fits(&self, at: &Address, elements: Option<usize>, elem: Elem, what: &str) -> Checked<()> {
        let (Buffer::Scratch(from), Some(elements)) = (&at.buffer, elements) else { return Ok(()) };
        let elements = elements.saturating_add(at.offset.as_size().unwrap_or(0));
        let end = from.saturating_add(elements.saturating_mul(elem.bytes()));
        check(end <= self.scratch, || format!("{what} end at byte {end} of scratch, which has {}", self.scratch))
    }

    fn exps(&mut self, exps: &Exps) -> Checked<()> {
        let Exps { total, depth, from, shift, to, format } = exps;
        check(!format.is_coded(), || format!("exponentials are stored as {format}"))?;
        check(depth % PANEL == 0, || format!("{depth} exponentials: no multiple of {PANEL}"))?;
        self.expect(shift, Ty::Float, "a shift")?;
        self.address(from)?;
        self.address(to)?;
        self.define(*total, Ty::Float)
    }

    fn unpack(&mut self, unpack: &Unpack) -> Checked<()> {
        let Unpack { depth, from, format, to, into } = unpack;
        let block = format.block().max(into.block());
        let is_other = match format {
            Format::Codes(_) => *into == Format::Bf16 || *into == format.unpacked() && into != format,
            _ => (*format, *into) == (Format::Bf16, Format::I16),
        };
        check(is_other, || format!("a panel of {format} is unpacked as {into}"))?;
        check(depth % block == 0, || format!("{depth} rows of {format} are unpacked: no multiple of {block}"))?;
        self.address(from)?;
        self.address(to)
    }

    fn encode(&mut self, encode: &Encode) -> Checked<()> {
        let Encode { depth, from, to, format, part } = encode;
        check(*format != Format::F32, || "a row is encoded as f32".to_string())?;
        let block = format.block();
        check(depth % block == 0, || format!("a row of {depth} is encoded as {format}: no multiple of {block}"))?;
        if let Some(Part { of, block: first }) = part {
            check(format.is_coded(), || format!("a part of a row is encoded as {format}"))?;
            let fits = of % block == 0 && depth <= of;
            check(fits, || format!("{depth} are no part of a row of {of} as {format}"))?;
            self.expect(first, Ty::Int, "a block's number")?;
        }
        self.address(from)?;
        self.address(to)
    }

    fn address(&mut self, at: &Address) -> Checked<()> {
        if let Buffer::Page { page, .. } = &at.buffer {
            self.expect(page, Ty::Int, "a page's number")?;
        }
        self.expect(&at.offset, Ty::Int, "an offset")
    }

    fn expect(&mut self, expr: &Expr, ty: Ty, what: &str) -> Checked<()> {
        let found = self.expr(expr)?;
        check(found == ty, || format!("{what} is {found}, not {ty}"))
    }

    /// The type of an expression whose parts fit together.
    fn expr(&mut self, expr: &Expr) -> Checked<Ty> {
        self.deeper()?;
        let ty = match expr {
            Expr::Int(_) | Expr::Arg(_) => Ty::Int,
            Expr::Float(_) => Ty::Float,
            Expr::Var(var) => {
                let ty = self.declared(*var)?;
                check(self.defined[var.0 as usize].is_some(), || format!("v{} is used before it is defined", var.0))?;
                ty
            }
            Expr::Load { elem, lanes, at } => {
                self.address(at)?;
                match (elem, *lanes) {
                    (Elem::I32 | Elem::U8, 1) => Ty::Int,
                    (Elem::I32, LANES) => Ty::Ints,
                    (Elem::U8, _) => return Err("a load of several bytes".to_string()),
                    (_, 1) => Ty::Float,
                    (_, LANES) => Ty::Floats,
                    _ => return Err(format!("a load of {lanes} lanes")),
                }
            }
            Expr::Unary(function, x) => {
                let x = self.expr(x)?;
                let (fits, ty) = match function {
                    Unary::Neg => (!x.is_mask(), x),
                    Unary::Not => (x.is_mask(), x),
                    Unary::ToFloat => (x.is_int(), if x.is_vector() { Ty::Floats } else { Ty::Float }),
                    _ => (x.is_float(), x),
                };
                check(fits, || format!("{function} of {x}"))?;
                ty
            }
            Expr::Binary(function, a, b) => {
                let (a, b) = (self.expr(a)?, self.expr(b)?);
                check(a == b && binary_fits(*function, a), || format!("{function} of {a} and {b}"))?;
                if function.compares() { a.mask() } else { a }
            }
            Expr::Select(mask, a, b) => {
                let (mask, a, b) = (self.expr(mask)?, self.expr(a)?, self.expr(b)?);
                check(a == b && mask == a.mask(), || format!("select by {mask} of {a} and {b}"))?;
                a
            }
            Expr::Fma(a, b, c) => {
                let (a, b, c) = (self.expr(a)?, self.expr(b)?, self.expr(c)?);
                check(a.is_float() && a == b && b == c, || format!("fma of {a}, {b} and {c}"))?;
                a
            }
            Expr::Splat(x) => match self.expr(x)? {
                Ty::Int => Ty::Ints,
                Ty::Float => Ty::Floats,
                Ty::Mask => Ty::Masks,
                ty => return Err(format!("splat of {ty}")),
            },
            Expr::Iota(x) => {
                self.expect(x, Ty::Int, "iota's start")?;
                Ty::Ints
            }
            Expr::Gather(parts) => {
                for part in parts.iter() {
                    self.expect(part, Ty::Float, "a gathered lane")?;
                }
                Ty::Floats
            }
            Expr::Fold(Fold::Sum | Fold::Max | Fold::Min, x) => {
                self.expect(x, Ty::Floats, "what is folded")?;
                Ty::Float
            }
        };
        self.depth -= 1;
        Ok(ty)
    }
}

fn binary_fits(function: Binary, ty: Ty) -> bool {
    match function {
        Binary::And | Binary::Or => ty.is_mask(),
        Binary::Pow => ty.is_float(),
        Binary::Rem => ty.is_int(),
        _ => !ty.is_mask(),
    }
}
