//! The text form of a graph, read. A text reads like the language, line by line:
//!
//! ```text
//! graph attention                             // a comment
//! axis d = 64
//! axis t = tokens                             // the tokens of a step
//! axis s = positions                          // all positions, cached and new
//! input tokens[t]
//! weight wk[n, c, d] = "k.weight" | "qkv.weight"[64 .. 128]
//! constant freq[r] = [1.0, 0.5]
//! state k.cache[s, n, c] within 16            // a window, if there is one
//!
//! k[t, n, c] = sum[d] x[t, d] * wk[n, c, d]
//! append k.cache = k
//! e[t, n, s] = 0.25 * (sum[c] q * k.cache)    // aligned by name: no brackets needed
//! %1 = exp(e - max[s] e where s <= t)         // a part of the next equation
//! p = if s <= t then %1 / (sum[s] %1) else 0  // without axes: those of the right side
//!
//! layers y from x as h order 0 0 1            // y is what the last layer hands on; the first gets x, as h
//!   body
//!     z[t, d] = h * gain
//!     result z
//!   body
//!     result h
//! end
//! output y
//! ```
//!
//! Expressions, the loosest first: `if m then a else b`; `||`; `&&`; comparisons; `+` and `-`; `sum[d] …`, `max`, `min`
//! and `argmax`, each with all factors to its right, and after them perhaps `where` and a mask; `*`, `/` and `%` (with a
//! space after it); `-x` and `!x`; `^`; then functions, numbers, names and parentheses. A name is a tensor or, as an
//! integer, the coordinate of an axis; `size(c)` is an extent. `x[v = tokens]` selects along `v`, and the other axes stay
//! aligned. Integers become floats where they meet floats. A name that is none otherwise stands in backticks.

use std::collections::HashMap;

use crate::graph::*;
use crate::lex::{Place, Token, lex};
use crate::print::RESERVED;
use crate::verify::{Site, verify};

/// Parentheses, prefixes and reductions nest at most this deep.
const DEEPEST: usize = 128;

/// Where and why a text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong, or what was expected.
    pub message: String,
}

impl ParseError {
    fn new(place: Place, message: impl Into<String>) -> ParseError {
        ParseError { line: place.line, column: place.column, message: message.into() }
    }
}

type Result<T> = std::result::Result<T, ParseError>;

/// Reads the text form of a graph, and verifies it.
///
/// # Errors
/// The first mistake, with its line and column.
pub fn parse(text: &str) -> Result<Graph> {
    let tokens = lex(text).map_err(|(place, message)| ParseError::new(place, message))?;
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
        graph: Graph {
            name: String::new(),
            axes: Vec::new(),
            tensors: Vec::new(),
            exprs: Vec::new(),
            nodes: Vec::new(),
            output: TensorId(0),
        },
        names: HashMap::new(),
        axis_places: Vec::new(),
        tensor_places: Vec::new(),
        expr_places: Vec::new(),
        line: Place { line: 1, column: 1 },
        known: HashMap::new(),
        locals: HashMap::new(),
    };
    parser.graph()?;
    verify(&parser.graph).map_err(|error| {
        let place = match error.site {
            Site::Graph => None,
            Site::Axis(axis) => parser.axis_places.get(axis.index()),
            Site::Tensor(tensor) => parser.tensor_places.get(tensor.index()),
            Site::Expr(expr) => parser.expr_places.get(expr.index()),
        };
        ParseError::new(place.copied().unwrap_or(Place { line: 1, column: 1 }), error.message)
    })?;
    Ok(parser.graph)
}

#[derive(Clone, Copy)]
enum Named {
    Axis(AxisId),
    Tensor(TensorId),
}

struct Parser {
    tokens: Vec<(Token, Place)>,
    at: usize,
    depth: usize,
    graph: Graph,
    names: HashMap<String, Named>,
    axis_places: Vec<Place>,
    /// Where each tensor was declared or defined.
    tensor_places: Vec<Place>,
    /// Where the line begins that has the expression first.
    expr_places: Vec<Place>,
    /// Where the current line begins.
    line: Place,
    known: HashMap<Expr, ExprId>,
    locals: HashMap<String, ExprId>,
}

impl Parser {
    // ---- tokens

    fn peek(&self) -> &Token {
        // The last token is the end, and `next` stays there.
        &self.tokens[self.at].0
    }

    fn place(&self) -> Place {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.at += 1;
        }
        token
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.place(), message))
    }

    fn expected<T>(&self, what: &str) -> Result<T> {
        self.fail(format!("expected {what}, found {}", self.peek().describe()))
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word { text, quoted: false } if text == word)
    }

    /// Whether the token after the current one is this sign.
    fn then_sign(&self, sign: &str) -> bool {
        matches!(self.tokens.get(self.at + 1), Some((Token::Sign(s), _)) if *s == sign)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += found as usize;
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += found as usize;
        found
    }

    fn sign(&mut self, sign: &str) -> Result<()> {
        if self.take_sign(sign) { Ok(()) } else { self.expected(&format!("`{sign}`")) }
    }

    fn word(&mut self, word: &str) -> Result<()> {
        if self.take_word(word) { Ok(()) } else { self.expected(&format!("`{word}`")) }
    }

    fn newline(&mut self) -> Result<()> {
        match self.peek() {
            Token::Newline => {
                self.at += 1;
                Ok(())
            }
            Token::End => Ok(()),
            _ => self.expected("the end of the line"),
        }
    }

    fn name(&mut self) -> Result<String> {
        match self.peek() {
            Token::Word { text, quoted } if *quoted || !RESERVED.contains(&text.as_str()) => {
                let text = text.clone();
                self.at += 1;
                Ok(text)
            }
            _ => self.expected("a name"),
        }
    }

    fn count(&mut self) -> Result<usize> {
        if let Token::Number(text) = self.peek()
            && let Ok(count) = text.parse()
        {
            self.at += 1;
            return Ok(count);
        }
        self.expected("a count")
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Parser) -> Result<T>) -> Result<Vec<T>> {
        self.sign("[")?;
        let mut items = Vec::new();
        while !self.take_sign("]") {
            if !items.is_empty() {
                self.sign(",")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    // ---- declarations

    fn graph(&mut self) -> Result<()> {
        self.word("graph")?;
        self.graph.name = self.name()?;
        self.newline()?;
        loop {
            if self.take_word("output") {
                self.graph.output = self.known_tensor()?;
                self.newline()?;
                return if *self.peek() == Token::End { Ok(()) } else { self.expected("nothing after the output") };
            } else if self.take_word("axis") {
                self.axis()?;
            } else if self.take_word("input") {
                self.declare(Type::Int, |_| Ok(Kind::Input))?;
            } else if self.take_word("weight") {
                self.declare(Type::Float, |parser| {
                    parser.sign("=")?;
                    let mut places = vec![parser.file_tensor()?];
                    while parser.take_sign("|") {
                        places.push(parser.file_tensor()?);
                    }
                    Ok(Kind::Weight(places))
                })?;
            } else if self.take_word("constant") {
                self.declare(Type::Float, |parser| {
                    parser.sign("=")?;
                    Ok(Kind::Constant(parser.list(Parser::value)?))
                })?;
            } else if self.take_word("state") {
                self.state()?;
            } else {
                let node = self.node(true)?;
                self.graph.nodes.extend(node);
            }
            self.newline()?;
        }
    }

    fn axis(&mut self) -> Result<()> {
        let place = self.place();
        let name = self.name()?;
        self.sign("=")?;
        let extent = if self.take_word("tokens") {
            Extent::Tokens
        } else if self.take_word("positions") {
            Extent::Positions
        } else if let Ok(size) = self.count() {
            Extent::Fixed(size)
        } else {
            return self.expected("a size, `tokens` or `positions`");
        };
        let id = AxisId(self.graph.axes.len() as u32);
        self.introduce(place, &name, Named::Axis(id))?;
        self.axis_places.push(place);
        self.graph.axes.push(Axis { name, extent });
        Ok(())
    }

    fn introduce(&mut self, place: Place, name: &str, named: Named) -> Result<()> {
        match self.names.insert(name.to_owned(), named) {
            None => Ok(()),
            Some(_) => Err(ParseError::new(place, format!("the name `{name}` is taken"))),
        }
    }

    fn tensor(&mut self, place: Place, name: String, axes: Vec<AxisId>, ty: Type, kind: Kind) -> Result<TensorId> {
        let id = TensorId(self.graph.tensors.len() as u32);
        self.introduce(place, &name, Named::Tensor(id))?;
        self.tensor_places.push(place);
        self.graph.tensors.push(Tensor { name, axes, ty, kind, location: None });
        Ok(id)
    }

    fn declare(&mut self, ty: Type, kind: impl FnOnce(&mut Parser) -> Result<Kind>) -> Result<()> {
        let place = self.place();
        let name = self.name()?;
        let axes = self.axes()?;
        let kind = kind(self)?;
        self.tensor(place, name, axes, ty, kind).map(|_| ())
    }

    fn state(&mut self) -> Result<()> {
        let place = self.place();
        let name = self.name()?;
        let axes = self.axes()?;
        let mut ty = Type::Float;
        if self.take_word("of") {
            ty = match () {
                () if self.take_word("int") => Type::Int,
                () if self.take_word("mask") => Type::Mask,
                () => return self.expected("`int` or `mask`"),
            };
        }
        let window = if self.take_word("within") { Some(self.count()?) } else { None };
        self.tensor(place, name, axes, ty, Kind::State { window }).map(|_| ())
    }

    /// `[t, n, c]`, or nothing.
    fn axes(&mut self) -> Result<Vec<AxisId>> {
        if self.is_sign("[") { self.list(Parser::known_axis) } else { Ok(Vec::new()) }
    }

    fn known_axis(&mut self) -> Result<AxisId> {
        let place = self.place();
        let name = self.name()?;
        match self.names.get(&name) {
            Some(Named::Axis(axis)) => Ok(*axis),
            _ => Err(ParseError::new(place, format!("there is no axis `{name}`"))),
        }
    }

    fn known_tensor(&mut self) -> Result<TensorId> {
        let place = self.place();
        let name = self.name()?;
        match self.names.get(&name) {
            Some(Named::Tensor(tensor)) => Ok(*tensor),
            _ => Err(ParseError::new(place, format!("there is no tensor `{name}` up to here"))),
        }
    }

    fn file_tensor(&mut self) -> Result<FileTensor> {
        let Token::String(name) = self.peek() else { return self.expected("the name of a file's tensor in quotes") };
        let name = name.clone();
        self.at += 1;
        let mut rows = None;
        if self.take_sign("[") {
            let start = self.count()?;
            self.sign("..")?;
            rows = Some(start..self.count()?);
            self.sign("]")?;
        }
        Ok(FileTensor { name, rows })
    }

    /// A value of a constant.
    fn value(&mut self) -> Result<f32> {
        let sign = if self.take_sign("-") { -1.0 } else { 1.0 };
        let value = match self.peek() {
            Token::Number(text) => text.parse().ok(),
            Token::Word { text, quoted: false } if text == "inf" => Some(f32::INFINITY),
            Token::Word { text, quoted: false } if text == "nan" => Some(f32::NAN),
            _ => None,
        };
        let Some(value) = value else { return self.expected("a number") };
        self.at += 1;
        Ok(sign * value)
    }

    // ---- nodes

    /// An equation, an append or layers; nothing after a line that only makes a local.
    fn node(&mut self, outermost: bool) -> Result<Option<Node>> {
        let place = self.place();
        self.line = place;
        if let Token::Local(number) = self.peek() {
            let number = number.clone();
            self.at += 1;
            self.sign("=")?;
            let value = self.expr()?;
            return match self.locals.insert(number.clone(), value) {
                None => Ok(None),
                Some(_) => Err(ParseError::new(place, format!("`%{number}` is made twice before its equation"))),
            };
        }
        if self.take_word("append") {
            let state = self.known_tensor()?;
            self.sign("=")?;
            return Ok(Some(Node::Append { state, rows: self.known_tensor()? }));
        }
        if outermost && self.take_word("layers") {
            return self.layers().map(|layers| Some(Node::Layers(layers)));
        }
        if !matches!(self.peek(), Token::Word { text, quoted } if *quoted || !RESERVED.contains(&text.as_str())) {
            return self.expected("an equation or a declaration");
        }
        let name = self.name()?;
        let axes = if self.is_sign("[") { Some(self.list(Parser::known_axis)?) } else { None };
        self.sign("=")?;
        let body = self.expr()?;
        self.locals.clear();
        let axes = axes.unwrap_or_else(|| self.graph.free_axes(body));
        let ty = self.graph.type_of(body);
        let out = self.tensor(place, name, axes, ty, Kind::Value)?;
        Ok(Some(Node::Equation { out, body }))
    }

    fn layers(&mut self) -> Result<Layers> {
        let out_place = self.place();
        let out = self.name()?;
        self.word("from")?;
        let initial = self.known_tensor()?;
        self.word("as")?;
        let place = self.place();
        let carry = self.name()?;
        let (axes, ty) = (self.graph.tensor(initial).axes.clone(), self.graph.tensor(initial).ty);
        let carry = self.tensor(place, carry, axes.clone(), ty, Kind::Carry)?;
        self.word("order")?;
        let mut order = Vec::new();
        while let Token::Number(_) = self.peek() {
            order.push(self.count()?);
        }
        self.newline()?;
        let mut bodies = Vec::new();
        while !self.take_word("end") {
            self.word("body")?;
            self.newline()?;
            let mut nodes = Vec::new();
            while !self.take_word("result") {
                let node = self.node(false)?;
                nodes.extend(node);
                self.newline()?;
            }
            let result = self.known_tensor()?;
            self.newline()?;
            bodies.push(Body { nodes, result });
        }
        let out = self.tensor(out_place, out, axes, ty, Kind::Value)?;
        Ok(Layers { carry, initial, out, bodies, order })
    }

    // ---- expressions

    fn intern(&mut self, expr: Expr) -> ExprId {
        let next = ExprId(self.graph.exprs.len() as u32);
        *self.known.entry(expr).or_insert_with_key(|expr| {
            self.graph.exprs.push(expr.clone());
            self.expr_places.push(self.line);
            next
        })
    }

    fn as_float(&mut self, id: ExprId) -> ExprId {
        match *self.graph.expr(id) {
            Expr::Int(value) => self.intern(Expr::Float(Real(value as f64))),
            _ if self.graph.type_of(id) == Type::Int => self.intern(Expr::Unary(Unary::ToFloat, id)),
            _ => id,
        }
    }

    /// Runs a parser of something that holds expressions, unless they nest too deep.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Parser) -> Result<T>) -> Result<T> {
        if self.depth == DEEPEST {
            return self.fail(format!("an expression is nested more than {DEEPEST} deep"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn expr(&mut self) -> Result<ExprId> {
        if self.is_word("if") { self.deeper(Parser::choice) } else { self.binary(0) }
    }

    fn choice(&mut self) -> Result<ExprId> {
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

    fn mask(&mut self) -> Result<ExprId> {
        let place = self.place();
        let mask = self.binary(0)?;
        match self.graph.type_of(mask) {
            Type::Mask => Ok(mask),
            _ => Err(ParseError::new(place, "expected a mask (a comparison), this is a number")),
        }
    }

    /// Brings two operands to one type.
    fn alike(&mut self, place: Place, a: ExprId, b: ExprId) -> Result<(ExprId, ExprId)> {
        match (self.graph.type_of(a), self.graph.type_of(b)) {
            (Type::Float, Type::Int) | (Type::Int, Type::Float) => Ok((self.as_float(a), self.as_float(b))),
            (a_type, b_type) if a_type == b_type => Ok((a, b)),
            _ => Err(ParseError::new(place, "a mask and a number meet")),
        }
    }

    /// The operator here, with its rank: the higher, the tighter.
    fn operator(&self) -> Option<(Binary, usize)> {
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
    fn binary(&mut self, rank: usize) -> Result<ExprId> {
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

    fn join(&mut self, place: Place, op: Binary, a: ExprId, b: ExprId) -> Result<ExprId> {
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

    fn prefix(&mut self) -> Result<ExprId> {
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
    fn negative_constant(&mut self) -> Result<Option<ExprId>> {
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

    fn number(&mut self, text: &str) -> Result<ExprId> {
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

    fn reduction(&self) -> Option<Reduction> {
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

    fn reduce(&mut self, op: Reduction) -> Result<ExprId> {
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

    fn atom(&mut self) -> Result<ExprId> {
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
    fn call(&mut self) -> Result<ExprId> {
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
    fn load(&mut self, tensor: TensorId) -> Result<ExprId> {
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

/// The rank of `*`, and so of what a reduction reaches over.
const PRODUCT: usize = 4;
