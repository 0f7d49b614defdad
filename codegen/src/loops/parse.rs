//! Reads the text form of a kernel.

use crate::format::{Elem, Format};

use super::{
    Address, Arg, Binary, Buffer, Core, Encode, Expr, Exps, Fold, Kernel, LANES, MAX_DEPTH, Next, Part, Share, Spread,
    Stmt, Ty, Unary, Unpack, Var,
};

/// Why a text is not a kernel, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What was expected.
    pub message: String,
}

type Parsed<T> = Result<T, ParseError>;

/// Reads one kernel. Whether it is well formed, `verify` says.
pub fn parse(text: &str) -> Parsed<Kernel> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let kernel = parser.kernel()?;
    match parser.peek() {
        Token::End => Ok(kernel),
        _ => Err(parser.expected("the end")),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Int(u64),
    Float(f32),
    Text(String),
    Symbol(&'static str),
    End,
}

struct Located {
    token: Token,
    line: usize,
    column: usize,
}

/// Longer ones first.
const SYMBOLS: [&str; 25] = [
    "..", "+=", "<=", ">=", "==", "!=", "&&", "||", "{", "}", "(", ")", "[", "]", "<", ">", "=", "+", "-", "*", "/",
    "%", ",", ";", ":",
];

fn tokens(text: &str) -> Parsed<Vec<Located>> {
    let mut found = Vec::new();
    let mut rest = text;
    let (mut line, mut column) = (1, 1);
    while let Some(c) = rest.chars().next() {
        let length = if c.is_whitespace() {
            c.len_utf8()
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else {
            let (token, length) =
                token(rest, c).map_err(|message| ParseError { line, column, message: message.to_string() })?;
            found.push(Located { token, line, column });
            length
        };
        for c in rest[..length].chars() {
            (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
        }
        rest = &rest[length..];
    }
    found.push(Located { token: Token::End, line, column });
    Ok(found)
}

fn token(rest: &str, first: char) -> Result<(Token, usize), &'static str> {
    let span = |rest: &str, holds: fn(char) -> bool| rest.find(|c| !holds(c)).unwrap_or(rest.len());
    if first.is_ascii_alphabetic() || first == '_' {
        let length = span(rest, |c| c.is_ascii_alphanumeric() || c == '_');
        return Ok((Token::Word(rest[..length].to_string()), length));
    }
    if first == '"' {
        return quoted(rest);
    }
    if let Some(digits) = rest.strip_prefix("0x") {
        let length = span(digits, |c| c.is_ascii_hexdigit());
        let x = u64::from_str_radix(&digits[..length], 16).map_err(|_| "a hexadecimal number out of range")?;
        return Ok((Token::Int(x), length + 2));
    }
    if first.is_ascii_digit() {
        let digits = |rest: &str| span(rest, |c| c.is_ascii_digit());
        let mut length = digits(rest);
        let whole = length;
        if rest[length..].starts_with('.') && digits(&rest[length + 1..]) > 0 {
            length += 1 + digits(&rest[length + 1..]);
        }
        if rest[length..].starts_with('e') {
            let sign = usize::from(rest[length + 1..].starts_with('-'));
            length += 1 + sign + digits(&rest[length + 1 + sign..]);
        }
        let number = &rest[..length];
        return Ok(if length == whole {
            (Token::Int(number.parse().map_err(|_| "an integer out of range")?), length)
        } else {
            (Token::Float(number.parse().map_err(|_| "not a number")?), length)
        });
    }
    match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
        Some(symbol) => Ok((Token::Symbol(symbol), symbol.len())),
        None => Err("an unknown character"),
    }
}

fn quoted(rest: &str) -> Result<(Token, usize), &'static str> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Text(text), at + 1)),
            '\\' => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, c @ ('"' | '\\'))) => text.push(c),
                _ => return Err("an unknown escape"),
            },
            c => text.push(c),
        }
    }
    Err("a text without end")
}

struct Parser {
    tokens: Vec<Located>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn kernel(&mut self) -> Parsed<Kernel> {
        self.word("kernel")?;
        let name = self.name()?;
        self.word("scratch")?;
        let scratch = self.size()?;
        self.symbol("{")?;
        let mut vars = Vec::new();
        while self.take_word("var") {
            let var = self.var()?;
            if var.0 as usize != vars.len() {
                self.at -= 1;
                return Err(self.expected(&format!("v{}", vars.len())));
            }
            self.symbol(":")?;
            vars.push(self.one_of(&[Ty::Int, Ty::Float, Ty::Mask, Ty::Ints, Ty::Floats, Ty::Masks], "a type")?);
            self.symbol(";")?;
        }
        Ok(Kernel { name, vars, scratch, body: self.rest_of_block()? })
    }

    fn block(&mut self) -> Parsed<Vec<Stmt>> {
        self.symbol("{")?;
        self.rest_of_block()
    }

    fn rest_of_block(&mut self) -> Parsed<Vec<Stmt>> {
        self.nested(|parser| {
            let mut body = Vec::new();
            while !parser.take_symbol("}") {
                body.push(parser.stmt()?);
            }
            Ok(body)
        })
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    fn stmt(&mut self) -> Parsed<Stmt> {
        if self.take_word("for") {
            let var = self.var()?;
            self.word("in")?;
            let from = self.expr()?;
            self.symbol("..")?;
            let to = self.expr()?;
            let step = if self.take_word("step") { self.integer()? } else { 1 };
            return Ok(Stmt::For { var, from, to, step, body: self.block()? });
        }
        if self.take_word("if") {
            let mask = self.expr()?;
            let then = self.block()?;
            let otherwise = if self.take_word("else") { self.block()? } else { Vec::new() };
            return Ok(Stmt::If { mask, then, otherwise });
        }
        if self.take_word("parallel") {
            let var = self.var()?;
            self.word("in")?;
            if self.integer()? != 0 {
                self.at -= 1;
                return Err(self.expected("0"));
            }
            self.symbol("..")?;
            let count = self.expr()?;
            let share = if self.take_word("blocks") {
                Share::Blocks
            } else if self.take_word("balanced") {
                self.symbol("(")?;
                let turns = self.size()?;
                self.symbol(")")?;
                Share::Balanced(turns)
            } else {
                return Err(self.expected("`blocks` or `balanced`"));
            };
            return Ok(Stmt::Parallel { var, count, share, body: self.block()? });
        }
        let stmt = if self.take_word("let") {
            let var = self.var()?;
            self.symbol("=")?;
            Stmt::Let(var, self.expr()?)
        } else if self.take_word("spread") {
            Stmt::Spread(self.spread()?)
        } else if self.take_word("core") {
            Stmt::Core(self.core()?)
        } else if self.take_word("unpack") {
            Stmt::Unpack(self.unpack()?)
        } else if self.take_word("encode") {
            Stmt::Encode(self.encode()?)
        } else if self.take_word("exps") {
            Stmt::Exps(self.exps()?)
        } else if self.take_word("note") {
            match self.next() {
                Token::Text(text) => Stmt::Note(text),
                _ => return Err(self.expected_before("a text")),
            }
        } else if let Some(elem) = self.take_one_of(&ELEMS) {
            let at = self.address()?;
            self.symbol("=")?;
            Stmt::Store { elem, at, value: self.expr()? }
        } else {
            let var = self.var()?;
            self.symbol("=")?;
            Stmt::Set(var, self.expr()?)
        };
        self.symbol(";")?;
        Ok(stmt)
    }

    fn core(&mut self) -> Parsed<Core> {
        let rows = self.size()?;
        self.word("rows")?;
        self.symbol(":")?;
        let c = self.address()?;
        self.word("stride")?;
        let c_stride = self.expr()?;
        let accumulate = self.take_symbol("+=");
        if !accumulate {
            self.symbol("=")?;
        }
        let a_format = self.one_of(&Format::ALL, "how the first operand is stored")?;
        let a = self.address()?;
        self.word("stride")?;
        let a_stride = self.expr()?;
        self.word("by")?;
        let b_format = self.one_of(&Format::ALL, "how the panel is stored")?;
        let b = self.address()?;
        let (mut panels, mut b_stride) = (1, 0.into());
        if self.take_word("panels") {
            panels = self.size()?;
            self.word("stride")?;
            b_stride = self.expr()?;
        }
        self.word("depth")?;
        let depth = self.expr()?;
        let mut next = None;
        if self.take_word("then") {
            let bytes = self.size()?;
            self.word("of")?;
            let elem = self.one_of(&ELEMS, "what the address counts")?;
            next = Some(Next { at: self.address()?, elem, bytes });
        }
        Ok(Core { rows, depth, a, a_format, a_stride, panels, b, b_format, b_stride, next, c, c_stride, accumulate })
    }

    fn exps(&mut self) -> Parsed<Exps> {
        let total = self.var()?;
        let format = self.one_of(&Format::ALL, "how they are to be stored")?;
        let to = self.address()?;
        self.symbol("=")?;
        let from = self.address()?;
        self.symbol("-")?;
        let shift = self.expr()?;
        self.word("depth")?;
        Ok(Exps { total, depth: self.size()?, from, shift, to, format })
    }

    fn spread(&mut self) -> Parsed<Spread> {
        let at = self.address()?;
        self.word("by")?;
        let together = self.size()?;
        self.word("apart")?;
        let apart = self.size()?;
        self.symbol("=")?;
        Ok(Spread { at, together, apart, value: self.expr()? })
    }

    fn unpack(&mut self) -> Parsed<Unpack> {
        let into = self.one_of(&Format::ALL, "how it is to be stored")?;
        let to = self.address()?;
        self.symbol("=")?;
        let format = self.one_of(&Format::ALL, "how the panel is stored")?;
        let from = self.address()?;
        self.word("depth")?;
        Ok(Unpack { depth: self.size()?, from, format, to, into })
    }

    fn encode(&mut self) -> Parsed<Encode> {
        let to = self.address()?;
        self.symbol("=")?;
        let format = self.one_of(&Format::ALL, "how the row is to be stored")?;
        self.word("of")?;
        let from = self.address()?;
        self.word("depth")?;
        let depth = self.size()?;
        let mut part = None;
        if self.take_word("from") {
            self.word("block")?;
            let block = self.expr()?;
            self.word("of")?;
            part = Some(Part { of: self.size()?, block });
        }
        Ok(Encode { depth, from, to, format, part })
    }

    fn address(&mut self) -> Parsed<Address> {
        let name = self.name()?;
        self.symbol("(")?;
        let buffer = match name.as_str() {
            "arena" => Buffer::Arena(self.size()?),
            "scratch" => Buffer::Scratch(self.size()?),
            "frame" => Buffer::Frame(self.size()?),
            "layer" => Buffer::Layer(self.size()?),
            "page" => {
                let table = self.size()?;
                self.symbol(",")?;
                let slot = self.size()?;
                self.symbol(",")?;
                Buffer::Page { table, slot, page: Box::new(self.expr()?) }
            }
            _ => {
                self.at -= 2;
                return Err(self.expected("a buffer"));
            }
        };
        self.symbol(")")?;
        self.symbol("[")?;
        let offset = self.expr()?;
        self.symbol("]")?;
        Ok(Address { buffer, offset })
    }

    fn expr(&mut self) -> Parsed<Expr> {
        self.operators(1)
    }

    /// An expression of operators that bind at least so tightly.
    fn operators(&mut self, least: u8) -> Parsed<Expr> {
        self.nested(|parser| {
            let mut left = parser.operand()?;
            while let Token::Symbol(symbol) = parser.peek() {
                let operator = OPERATORS.iter().find(|op| op.to_string() == *symbol);
                let Some((operator, precedence)) = operator.and_then(|op| Some((*op, super::print::precedence(*op)?)))
                else {
                    break;
                };
                if precedence < least {
                    break;
                }
                parser.at += 1;
                let right = parser.operators(precedence + 1)?;
                left = Expr::Binary(operator, Box::new(left), Box::new(right));
            }
            Ok(left)
        })
    }

    fn operand(&mut self) -> Parsed<Expr> {
        if self.take_symbol("(") {
            let inner = self.expr()?;
            self.symbol(")")?;
            return Ok(inner);
        }
        let negative = self.take_symbol("-");
        match self.next() {
            Token::Int(x) => {
                let x = if negative { 0i64.checked_sub_unsigned(x) } else { i64::try_from(x).ok() };
                x.map(Expr::Int).ok_or_else(|| self.expected_before("an integer of 64 bits"))
            }
            Token::Float(x) => Ok(Expr::Float(if negative { -x } else { x })),
            Token::Word(word) if word == "inf" => {
                Ok(Expr::Float(if negative { f32::NEG_INFINITY } else { f32::INFINITY }))
            }
            Token::Word(word) if !negative => self.named(&word),
            _ => Err(self.expected_before("an expression")),
        }
    }

    fn named(&mut self, word: &str) -> Parsed<Expr> {
        if let Some(var) = variable(word) {
            return Ok(Expr::Var(var));
        }
        if let Some(arg) = [Arg::Tokens, Arg::Past, Arg::First].into_iter().find(|arg| arg.to_string() == word) {
            return Ok(Expr::Arg(arg));
        }
        for elem in ELEMS {
            for (name, lanes) in [(elem.to_string(), 1), (format!("{elem}x4"), LANES)] {
                if name == word {
                    return Ok(Expr::Load { elem, lanes, at: Box::new(self.address()?) });
                }
            }
        }
        let name = self.at;
        self.symbol("(")?;
        if word == "bits" {
            let Token::Int(bits) = self.next() else { return Err(self.expected_before("the bits of a float")) };
            let bits = u32::try_from(bits).map_err(|_| self.expected_before("32 bits"))?;
            self.symbol(")")?;
            return Ok(Expr::Float(f32::from_bits(bits)));
        }
        let mut arguments = vec![self.expr()?];
        while self.take_symbol(",") {
            arguments.push(self.expr()?);
        }
        self.symbol(")")?;
        let count = arguments.len();
        function(word, arguments).ok_or_else(|| {
            self.at = name - 1;
            self.expected(&format!("a function of {count} values"))
        })
    }

    // Tokens

    fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        // The last token is the end, and stays.
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn error(&self, message: String) -> ParseError {
        let Located { line, column, .. } = self.tokens[self.at];
        ParseError { line, column, message }
    }

    fn expected(&self, what: &str) -> ParseError {
        self.error(format!("expected {what}"))
    }

    /// About the token that was just taken.
    fn expected_before(&mut self, what: &str) -> ParseError {
        if *self.peek() != Token::End {
            self.at -= 1;
        }
        self.expected(what)
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(s) if *s == symbol);
        self.at += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str) -> Parsed<()> {
        if self.take_symbol(symbol) { Ok(()) } else { Err(self.expected(&format!("`{symbol}`"))) }
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(w) if w == word);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str) -> Parsed<()> {
        if self.take_word(word) { Ok(()) } else { Err(self.expected(&format!("`{word}`"))) }
    }

    fn name(&mut self) -> Parsed<String> {
        match self.peek().clone() {
            Token::Word(word) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.expected("a name")),
        }
    }

    fn var(&mut self) -> Parsed<Var> {
        let var = match self.peek() {
            Token::Word(word) => variable(word),
            _ => None,
        };
        self.at += usize::from(var.is_some());
        var.ok_or_else(|| self.expected("a variable"))
    }

    fn size(&mut self) -> Parsed<usize> {
        let size = match self.peek() {
            Token::Int(x) => usize::try_from(*x).ok(),
            _ => None,
        };
        self.at += usize::from(size.is_some());
        size.ok_or_else(|| self.expected("a number"))
    }

    fn integer(&mut self) -> Parsed<i64> {
        let size = self.size()?;
        i64::try_from(size).map_err(|_| self.expected_before("an integer of 64 bits"))
    }

    fn take_one_of<T: Copy + ToString>(&mut self, all: &[T]) -> Option<T> {
        let Token::Word(word) = self.peek() else { return None };
        let found = all.iter().find(|one| one.to_string() == *word).copied();
        self.at += usize::from(found.is_some());
        found
    }

    fn one_of<T: Copy + ToString>(&mut self, all: &[T], what: &str) -> Parsed<T> {
        self.take_one_of(all).ok_or_else(|| self.expected(what))
    }
}

const ELEMS: [Elem; 4] = [Elem::F32, Elem::Bf16, Elem::I32, Elem::U8];

const OPERATORS: [Binary; 13] = [
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::Rem,
    Binary::Lt,
    Binary::Le,
    Binary::Gt,
    Binary::Ge,
    Binary::Eq,
    Binary::Ne,
    Binary::And,
    Binary::Or,
];

const UNARY: [Unary; 12] = [
    Unary::Neg,
    Unary::Not,
    Unary::Abs,
    Unary::Exp,
    Unary::Log,
    Unary::Sin,
    Unary::Cos,
    Unary::Tanh,
    Unary::Erf,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::ToFloat,
];

fn variable(word: &str) -> Option<Var> {
    let digits = word.strip_prefix('v')?;
    let canonical = digits == "0" || !digits.starts_with('0');
    (canonical && digits.chars().all(|c| c.is_ascii_digit())).then(|| digits.parse().ok().map(Var))?
}

fn function(name: &str, arguments: Vec<Expr>) -> Option<Expr> {
    let mut boxed: Vec<Box<Expr>> = arguments.into_iter().map(Box::new).collect();
    match boxed.len() {
        1 => {
            let x = boxed.pop()?;
            if let Some(function) = UNARY.into_iter().find(|f| f.to_string() == name) {
                return Some(Expr::Unary(function, x));
            }
            if let Some(fold) = [Fold::Sum, Fold::Max, Fold::Min].into_iter().find(|f| f.to_string() == name) {
                return Some(Expr::Fold(fold, x));
            }
            match name {
                "splat" => Some(Expr::Splat(x)),
                "iota" => Some(Expr::Iota(x)),
                _ => None,
            }
        }
        2 => {
            let (b, a) = (boxed.pop()?, boxed.pop()?);
            let function = [Binary::Pow, Binary::Min, Binary::Max].into_iter().find(|f| f.to_string() == name)?;
            Some(Expr::Binary(function, a, b))
        }
        3 => {
            let (c, b, a) = (boxed.pop()?, boxed.pop()?, boxed.pop()?);
            match name {
                "select" => Some(Expr::Select(a, b, c)),
                "fma" => Some(Expr::Fma(a, b, c)),
                _ => None,
            }
        }
        4 if name == "gather" => {
            let parts: Vec<Expr> = boxed.into_iter().map(|x| *x).collect();
            Some(Expr::Gather(Box::new(parts.try_into().ok()?)))
        }
        _ => None,
    }
}
