//! The text form of a kernel, which `parse` reads back exactly.

use std::fmt::{self, Display, Formatter, Write};

use crate::format::{Elem, Format};

use super::{
    Address, Arg, Binary, Buffer, Core, Encode, Expr, Exps, Fold, Kernel, LANES, Share, Spread, Stmt, Unpack, Var,
};

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {} scratch {} {{", self.name, self.scratch)?;
        for (i, ty) in self.vars.iter().enumerate() {
            writeln!(f, "    var v{i}: {ty};")?;
        }
        block(f, &self.body, 1)?;
        writeln!(f, "}}")
    }
}

fn block(f: &mut Formatter<'_>, body: &[Stmt], depth: usize) -> fmt::Result {
    for stmt in body {
        statement(f, stmt, depth)?;
    }
    Ok(())
}

fn indent(f: &mut Formatter<'_>, depth: usize) -> fmt::Result {
    for _ in 0..depth {
        f.write_str("    ")?;
    }
    Ok(())
}

fn statement(f: &mut Formatter<'_>, stmt: &Stmt, depth: usize) -> fmt::Result {
    indent(f, depth)?;
    match stmt {
        Stmt::Let(var, value) => writeln!(f, "let {var} = {value};"),
        Stmt::Set(var, value) => writeln!(f, "{var} = {value};"),
        Stmt::Store { elem, at, value } => writeln!(f, "{elem} {at} = {value};"),
        Stmt::For { var, from, to, step, body } => {
            write!(f, "for {var} in {from}..{to}")?;
            if *step != 1 {
                write!(f, " step {step}")?;
            }
            braced(f, body, depth)?;
            writeln!(f)
        }
        Stmt::If { mask, then, otherwise } => {
            write!(f, "if {mask}")?;
            braced(f, then, depth)?;
            if !otherwise.is_empty() {
                write!(f, " else")?;
                braced(f, otherwise, depth)?;
            }
            writeln!(f)
        }
        Stmt::Parallel { var, count, share, body } => {
            write!(f, "parallel {var} in 0..{count} {share}")?;
            braced(f, body, depth)?;
            writeln!(f)
        }
        Stmt::Spread(spread) => writeln!(f, "{spread};"),
        Stmt::Core(core) => writeln!(f, "{core};"),
        Stmt::Unpack(unpack) => writeln!(f, "{unpack};"),
        Stmt::Encode(encode) => writeln!(f, "{encode};"),
        Stmt::Exps(exps) => writeln!(f, "{exps};"),
        Stmt::Note(text) => {
            f.write_str("note \"")?;
            for c in text.chars() {
                match c {
                    '"' => f.write_str("\\\"")?,
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    c => f.write_char(c)?,
                }
            }
            writeln!(f, "\";")
        }
    }
}

fn braced(f: &mut Formatter<'_>, body: &[Stmt], depth: usize) -> fmt::Result {
    writeln!(f, " {{")?;
    block(f, body, depth + 1)?;
    indent(f, depth)?;
    f.write_char('}')
}

impl Display for Core {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = if self.accumulate { "+=" } else { "=" };
        write!(f, "core {} rows: {} stride {} {sign} ", self.rows, self.c, self.c_stride)?;
        write!(f, "{} {} stride {} ", self.a_format, self.a, self.a_stride)?;
        write!(f, "by {} {} ", self.b_format, self.b)?;
        if self.panels > 1 {
            write!(f, "panels {} stride {} ", self.panels, self.b_stride)?;
        }
        write!(f, "depth {}", self.depth)?;
        self.next.iter().try_for_each(|next| write!(f, " then {} of {} {}", next.bytes, next.elem, next.at))
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Spread { at, together, apart, value } = self;
        write!(f, "spread {at} by {together} apart {apart} = {value}")
    }
}

impl Display for Unpack {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "unpack {} {} = {} {} depth {}", self.into, self.to, self.format, self.from, self.depth)
    }
}

impl Display for Encode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "encode {} = {} of {} depth {}", self.to, self.format, self.from, self.depth)?;
        self.part.iter().try_for_each(|part| write!(f, " from block {} of {}", part.block, part.of))
    }
}

impl Display for Exps {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Exps { total, depth, from, shift, to, format } = self;
        write!(f, "exps {total} {format} {to} = {from} - {shift} depth {depth}")
    }
}

impl Display for Format {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Format::F32 => f.write_str("f32"),
            Format::Bf16 => f.write_str("bf16"),
            Format::Codes(codes) => f.write_str(codes.name),
            Format::Words(block) => write!(f, "w16_{block}"),
            Format::I16 => f.write_str("i16"),
        }
    }
}

impl Display for Var {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl Display for Share {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Share::Blocks => f.write_str("blocks"),
            Share::Balanced(turns) => write!(f, "balanced({turns})"),
        }
    }
}

impl Display for Elem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Elem::F32 => "f32",
            Elem::Bf16 => "bf16",
            Elem::I32 => "i32",
            Elem::U8 => "u8",
        })
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.buffer, self.offset)
    }
}

impl Display for Buffer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Buffer::Arena(bytes) => write!(f, "arena({bytes})"),
            Buffer::Scratch(bytes) => write!(f, "scratch({bytes})"),
            Buffer::Frame(slot) => write!(f, "frame({slot})"),
            Buffer::Layer(slot) => write!(f, "layer({slot})"),
            Buffer::Page { table, slot, page } => write!(f, "page({table}, {slot}, {page})"),
        }
    }
}

impl Display for Arg {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arg::Tokens => "tokens",
            Arg::Past => "past",
            Arg::First => "first",
        })
    }
}

impl Display for Fold {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fold::Sum => "fold_sum",
            Fold::Max => "fold_max",
            Fold::Min => "fold_min",
        })
    }
}

/// How tightly an operator binds in text; functions have none.
pub(super) fn precedence(operator: Binary) -> Option<u8> {
    Some(match operator {
        Binary::Or => 1,
        Binary::And => 2,
        Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge | Binary::Eq | Binary::Ne => 3,
        Binary::Add | Binary::Sub => 4,
        Binary::Mul | Binary::Div | Binary::Rem => 5,
        Binary::Pow | Binary::Min | Binary::Max => return None,
    })
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        expression(f, self, 0)
    }
}

/// Prints an expression, in parentheses if it binds less tightly than `around`.
fn expression(f: &mut Formatter<'_>, expr: &Expr, around: u8) -> fmt::Result {
    match expr {
        Expr::Int(x) => write!(f, "{x}"),
        Expr::Float(x) => float(f, *x),
        Expr::Var(var) => write!(f, "{var}"),
        Expr::Arg(arg) => write!(f, "{arg}"),
        Expr::Load { elem, lanes, at } => {
            write!(f, "{elem}")?;
            if *lanes == LANES {
                write!(f, "x4")?;
            }
            write!(f, " {at}")
        }
        Expr::Unary(function, x) => call(f, function, &[x]),
        Expr::Binary(function, a, b) => match precedence(*function) {
            None => call(f, function, &[a, b]),
            Some(precedence) => {
                if precedence < around {
                    f.write_char('(')?;
                }
                expression(f, a, precedence)?;
                write!(f, " {function} ")?;
                expression(f, b, precedence + 1)?;
                if precedence < around {
                    f.write_char(')')?;
                }
                Ok(())
            }
        },
        Expr::Select(mask, a, b) => call(f, &"select", &[mask, a, b]),
        Expr::Fma(a, b, c) => call(f, &"fma", &[a, b, c]),
        Expr::Splat(x) => call(f, &"splat", &[x]),
        Expr::Iota(x) => call(f, &"iota", &[x]),
        Expr::Gather(parts) => call(f, &"gather", &parts.each_ref()),
        Expr::Fold(fold, x) => call(f, fold, &[x]),
    }
}

fn call(f: &mut Formatter<'_>, function: &dyn Display, arguments: &[&Expr]) -> fmt::Result {
    write!(f, "{function}(")?;
    for (i, argument) in arguments.iter().enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        expression(f, argument, 0)?;
    }
    f.write_char(')')
}

/// The shortest decimal that reads back as the same float; `nan`s as their bits.
fn float(f: &mut Formatter<'_>, x: f32) -> fmt::Result {
    if x.is_nan() {
        write!(f, "bits(0x{:08x})", x.to_bits())
    } else if x.is_infinite() {
        f.write_str(if x > 0.0 { "inf" } else { "-inf" })
    } else if x == 0.0 || (1e-5..1e16).contains(&x.abs()) {
        write!(f, "{x:?}")
    } else {
        write!(f, "{x:e}")
    }
}
