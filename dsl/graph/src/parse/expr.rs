//! Expressions of the text form.

use super::lex::{Place, Token};
use super::{DEEPEST, Named, ParseError, Parser, Result};
use crate::graph::*;
use crate::print::RESERVED;

/// The rank of `*`, and so of what a reduction reaches over.
const PRODUCT: usize = 4;

impl Parser {
    pub(super) fn intern(&mut self, expr: Expr) -> ExprId {
        let next = ExprId(self.graph.exprs.len() as u32);
        *self.known.entry(expr).or_insert_with_key(|expr| {
            self.graph.exprs.push(expr.clone());
            self.expr_places.push(self.line);
            next
        })
    }

    pub(super) fn as_float(&mut self, id: ExprId) -> ExprId {
        match *self.graph.expr(id) {
            Expr::Int(value) => self.intern(Expr::Float(Real(value as f64))),
            _ if self.graph.type_of(id) == Type::Int => self.intern(Expr::Unary(Unary::ToFloat, id)),
            _ => id,
        }
    }

    /// Runs a parser of something that holds expressions, unless they nest too deep.
    pub(super) fn deeper<T>(&mut self, inner: impl FnOnce(&mut Parser) -> Result<T>) -> Result<T> {
        if self.depth == DEEPEST {
            return self.fail(format!("an expression is nested more than {DEEPEST} deep"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    pub(super) fn expr(&mut self) -> Result<ExprId> {
        if self.is_word("if") { self.deeper(Parser::choice) } else { self.binary(0) }
    }

    pub(super) fn choice(&mut self) -> Result<ExprId> {
        let place = self.place();
        self.word("if")?;
        let mask = self.mask()?;
        self.word("then")?;
        let then = self.expr()?;
        self.word("else")?;
        let otherwise = self.expr()?;
        let (then, otherwise) = self.alike(place, then, otherwise)?;
        Ok(self.intern(Expr::Select { mask, then, otherwise }))
    }

    pub(super) fn mask(&mut self) -> Result<ExprId> {
        let place = self.place();
        let mask = self.binary(0)?;
        match self.graph.type_of(mask) {
            Type::Mask => Ok(mask),
            _ => Err(ParseError::new(place, "expected a mask (a comparison), this is a number")),
        }
    }

    /// Brings two operands to one type.
    pub(super) fn alike(&mut self, place: Place, a: ExprId, b: ExprId) -> Result<(ExprId, ExprId)> {
        match (self.graph.type_of(a), self.graph.type_of(b)) {
            (Type::Float, Type::Int) | (Type::Int, Type::Float) => Ok((self.as_float(a), self.as_float(b))),
            (a_type, b_type) if a_type == b_type => Ok((a, b)),
            _ => Err(ParseError::new(place, "a mask and a number meet")),
        }
    }

    /// The operator here, with its rank: the higher, the tighter.
    pub(super) fn operator(&self) -> Option<(Binary, usize)> {
        let Token::Sign(sign) = self.peek() else { return None };
        Some(match *sign {
            "||" => (Binary::Or, 0),
            "&&" => (Binary::And, 1),
            "<" => (Binary::Lt, 2),
            "<=" => (Binary::Le, 2),
            ">" => (Binary::Gt, 2),
            ">=" => (Binary::Ge, 2),
            "==" => (Binary::Eq, 2),
            "!=" => (Binary::Ne, 2),
            "+" => (Binary::Add, 3),
            "-" => (Binary::Sub, 3),
            "*" => (Binary::Mul, PRODUCT),
            "/" => (Binary::Div, PRODUCT),
            "%" => (Binary::Rem, PRODUCT),
            _ => return None,
        })
    }

    /// Operands joined by operators of at least this rank.
    pub(super) fn binary(&mut self, rank: usize) -> Result<ExprId> {
        let mut left = self.prefix()?;
        let mut compared = false;
        while let Some((op, of)) = self.operator().filter(|(_, of)| *of >= rank) {
            let place = self.place();
            if of == 2 && std::mem::replace(&mut compared, true) {
                return self.fail("comparisons don't chain: join them by `&&`");
            }
            self.next();
            if *self.peek() == Token::Newline {
                self.next();
            }
            let right = self.deeper(|parser| parser.binary(of + 1))?;
            left = self.join(place, op, left, right)?;
            // A looser operator ends what was compared.
            compared &= of >= 2;
        }
        Ok(left)
    }

    pub(super) fn join(&mut self, place: Place, op: Binary, a: ExprId, b: ExprId) -> Result<ExprId> {
        let (mut a, mut b) = self.alike(place, a, b)?;
        if op == Binary::Pow && self.graph.type_of(a) != Type::Mask {
            (a, b) = (self.as_float(a), self.as_float(b));
        }
        match (op, self.graph.type_of(a)) {
            (Binary::And | Binary::Or, Type::Mask) => {}
            (Binary::And | Binary::Or, _) => return Err(ParseError::new(place, "expected masks, these are numbers")),
            (_, Type::Mask) => return Err(ParseError::new(place, "expected numbers, these are masks")),
            (Binary::Rem, Type::Float) => return Err(ParseError::new(place, "`%` is of integers")),
            _ => {}
        }
        Ok(self.intern(Expr::Binary(op, a, b)))
    }

    pub(super) fn prefix(&mut self) -> Result<ExprId> {
        let place = self.place();
        if self.take_sign("-") {
            if let Some(constant) = self.negative_constant()? {
                return Ok(constant);
            }
            let x = self.deeper(Parser::prefix)?;
            return match self.graph.type_of(x) {
                Type::Mask => Err(ParseError::new(place, "`-` of a mask")),
                _ => Ok(self.intern(Expr::Unary(Unary::Neg, x))),
            };
        }
        if self.take_sign("!") {
            let x = self.deeper(Parser::prefix)?;
            return match self.graph.type_of(x) {
                Type::Mask => Ok(self.intern(Expr::Unary(Unary::Not, x))),
                _ => Err(ParseError::new(place, "`!` of a number")),
            };
        }
        if let Some(op) = self.reduction() {
            return self.deeper(|parser| parser.reduce(op));
        }
        let base = self.atom()?;
        let place = self.place();
        if self.take_sign("^") {
            let exponent = self.deeper(Parser::prefix)?;
            return self.join(place, Binary::Pow, base, exponent);
        }
        Ok(base)
    }

    /// After a minus: the constant that it belongs to, unless that is a base (`-2 ^ x` is `-(2 ^ x)`).
    pub(super) fn negative_constant(&mut self) -> Result<Option<ExprId>> {
        if self.then_sign("^") {
            return Ok(None);
        }
        if self.take_word("inf") {
            return Ok(Some(self.intern(Expr::Float(Real(f64::NEG_INFINITY)))));
        }
        match self.peek().clone() {
            Token::Number(text) => self.number(&format!("-{text}")).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) fn number(&mut self, text: &str) -> Result<ExprId> {
        let expr = if text.contains(['.', 'e', 'E']) {
            text.parse().ok().map(|value| Expr::Float(Real(value)))
        } else {
            text.parse().ok().map(Expr::Int)
        };
        match expr {
            Some(expr) => {
                self.next();
                Ok(self.intern(expr))
            }
            None => self.fail(format!("{text} is not an integer of 64 bits")),
        }
    }

    pub(super) fn reduction(&self) -> Option<Reduction> {
        let Token::Word { text, quoted: false } = self.peek() else { return None };
        let op = match text.as_str() {
            "sum" => Reduction::Sum,
            "max" => Reduction::Max,
            "min" => Reduction::Min,
            "argmax" => Reduction::ArgMax,
            _ => return None,
        };
        self.then_sign("[").then_some(op)
    }

    pub(super) fn reduce(&mut self, op: Reduction) -> Result<ExprId> {
        self.next();
        let axes = self.axes()?;
        let place = self.place();
        let body = self.binary(PRODUCT)?;
        let mut body = self.as_float(body);
        if self.graph.type_of(body) == Type::Mask {
            return Err(ParseError::new(place, "a reduction of a mask"));
        }
        if self.take_word("where") {
            let mask = self.mask()?;
            let otherwise = self.intern(Expr::Float(Real(op.neutral())));
            body = self.intern(Expr::Select { mask, then: body, otherwise });
        }
        let free = self.graph.free_axes(body);
        if let Some(axis) = axes.iter().find(|axis| !free.contains(axis)) {
            let (axis, has) = (&self.graph.axis(*axis).name, self.graph.names(&free));
            return Err(ParseError::new(place, format!("the reduction is over `{axis}`, but its body has only {has}")));
        }
        Ok(self.intern(Expr::Reduce { op, axes, body }))
    }

    pub(super) fn atom(&mut self) -> Result<ExprId> {
        let place = self.place();
        match self.peek().clone() {
            Token::Number(text) => self.number(&text),
            Token::Local(number) => match self.locals.get(&number) {
                Some(&id) => {
                    self.next();
                    Ok(id)
                }
                None => self.fail(format!("there is no `%{number}` before this equation")),
            },
            Token::Sign("(") => self.deeper(|parser| {
                parser.next();
                let inner = parser.expr()?;
                parser.sign(")")?;
                Ok(inner)
            }),
            Token::Word { quoted: false, .. } if self.then_sign("(") => self.deeper(Parser::call),
            Token::Word { text, quoted: false } if text == "inf" => {
                self.next();
                Ok(self.intern(Expr::Float(Real(f64::INFINITY))))
            }
            Token::Word { text, quoted: false } if text == "if" => self.fail("an `if` inside wants parentheses"),
            Token::Word { text: name, quoted } if quoted || !RESERVED.contains(&name.as_str()) => {
                self.next();
                match self.names.get(&name) {
                    Some(&Named::Axis(axis)) => Ok(self.intern(Expr::Coordinate(axis))),
                    Some(&Named::Tensor(tensor)) => self.deeper(|parser| parser.load(tensor)),
                    None => Err(ParseError::new(place, format!("there is no `{name}` up to here"))),
                }
            }
            _ => self.expected("an expression"),
        }
    }

    /// `name(x)` or `name(x, y)`.
    pub(super) fn call(&mut self) -> Result<ExprId> {
        let place = self.place();
        let Token::Word { text: name, .. } = self.next() else { return self.expected("a function") };
        self.sign("(")?;
        if name == "size" {
            let axis = self.known_axis()?;
            self.sign(")")?;
            return match self.graph.size(axis) {
                Some(size) => Ok(self.intern(Expr::Int(size as i64))),
                None => Err(ParseError::new(place, "only an axis of a fixed size has a size")),
            };
        }
        let x = self.expr()?;
        if let "min" | "max" = name.as_str() {
            self.sign(",")?;
            let y = self.expr()?;
            self.sign(")")?;
            return self.join(place, if name == "min" { Binary::Min } else { Binary::Max }, x, y);
        }
        self.sign(")")?;
        let op = match name.as_str() {
            "abs" => Unary::Abs,
            "exp" => Unary::Exp,
            "log" => Unary::Log,
            "sin" => Unary::Sin,
            "cos" => Unary::Cos,
            "tanh" => Unary::Tanh,
            "erf" => Unary::Erf,
            "sqrt" => Unary::Sqrt,
            "rsqrt" => Unary::Rsqrt,
            "float" => Unary::ToFloat,
            _ => return Err(ParseError::new(place, format!("there is no function `{name}`"))),
        };
        match self.graph.type_of(x) {
            Type::Mask => Err(ParseError::new(place, format!("`{name}` of a mask"))),
            Type::Float if op == Unary::ToFloat => Err(ParseError::new(place, "`float` of a float")),
            Type::Int if op == Unary::ToFloat => Ok(self.intern(Expr::Unary(op, x))),
            _ => {
                let x = self.as_float(x);
                Ok(self.intern(Expr::Unary(op, x)))
            }
        }
    }

    /// A tensor's indices: axes that are merely named, or set to an integer.
    pub(super) fn load(&mut self, tensor: TensorId) -> Result<ExprId> {
        let axes = self.graph.tensor(tensor).axes.clone();
        let mut index: Vec<ExprId> = axes.iter().map(|&axis| self.intern(Expr::Coordinate(axis))).collect();
        if !self.is_sign("[") {
            return Ok(self.intern(Expr::Load { tensor, index }));
        }
        let selected = self.list(|parser| {
            let place = parser.place();
            let axis = parser.known_axis()?;
            let Some(at) = axes.iter().position(|&a| a == axis) else {
                let graph = &parser.graph;
                let (name, has) = (&graph.tensor(tensor).name, graph.axes_of(tensor));
                let message = format!("`{name}` has no axis `{}`; it is declared over {has}", graph.axis(axis).name);
                return Err(ParseError::new(place, message));
            };
            let value = if parser.take_sign("=") { Some(parser.expr()?) } else { None };
            match value {
                Some(value) if parser.graph.type_of(value) != Type::Int => {
                    Err(ParseError::new(place, "an index wants an integer"))
                }
                value => Ok((at, value)),
            }
        })?;
        for (at, value) in selected {
            if let Some(value) = value {
                index[at] = value;
            }
        }
        Ok(self.intern(Expr::Load { tensor, index }))
    }
}
