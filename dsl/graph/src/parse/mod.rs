//! The text form of a graph, read: declarations and nodes, line by line.

mod expr;
mod lex;

use std::collections::HashMap;

use self::lex::{Place, Token, lex};
use crate::graph::*;
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

/// Reads the text form of a graph, and verifies it. The text reads like the language, line by line:
///
/// ```text
/// graph attention                             // a comment
/// axis d = 64
/// axis t = tokens                             // the tokens of a step
/// axis s = positions                          // all positions, cached and new
/// axis b = 2                                  // blocks along `d`
/// input tokens[t]
/// weight wk[n, c, d] = "k.weight" | "qkv.weight"[64 .. 128]
/// weight wv.code[n, c, d] of int = "v.weight"
/// weight wv.scale[n, c, b] = "v.weight"
/// weight wv[n, c, d] = wv.scale[b = d / 32] * wv.code       // kept in parts
/// constant freq[r] = [1.0, 0.5]
/// state k.cache[s, n, c] within 16            // a window, if there is one
///
/// k[t, n, c] = sum[d] x[t, d] * wk[n, c, d]
/// append k.cache = k
/// e[t, n, s] = 0.25 * (sum[c] q * k.cache)    // aligned by name: no brackets needed
/// %1 = exp(e - max[s] e where s <= t)         // a part of the next equation
/// p = if s <= t then %1 / (sum[s] %1) else 0  // without axes: those of the right side
///
/// layers y from x as h order 0 0 1            // y is what the last layer hands on; the first gets x, as h
///   body
///     z[t, d] = h * gain
///     result z
///   body
///     result h
/// end
/// output y
/// ```
///
/// Expressions, the loosest first: `if m then a else b`; `||`; `&&`; comparisons; `+` and `-`; `sum[d] …`, `max`, `min`
/// and `argmax`, each with all factors to its right, and after them perhaps `where` and a mask; `*`, `/` and `%` (with a
/// space after it); `-x` and `!x`; `^`; then functions, numbers, names and parentheses. The functions are `abs`, `exp`,
/// `log`, `sin`, `cos`, `tanh`, `erf`, `sqrt`, `rsqrt`, `float` (of an integer), and `min` and `max` of two. A name is a
/// tensor or, as an integer, the coordinate of an axis; `size(c)` is an extent. `x[v = tokens]` selects along `v`, and
/// the other axes stay aligned. Integers become floats where they meet floats. A name that would be read as something
/// else stands in backticks.
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
                self.weight()?;
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

    /// Of numbers in a checkpoint, or made of such weights.
    fn weight(&mut self) -> Result<()> {
        let place = self.place();
        self.line = place;
        let name = self.name()?;
        let axes = self.axes()?;
        let mut ty = Type::Float;
        if self.take_word("of") {
            self.word("int")?;
            ty = Type::Int;
        }
        self.sign("=")?;
        let kind = match self.peek() {
            Token::String(_) => {
                let mut places = vec![self.file_tensor()?];
                while self.take_sign("|") {
                    places.push(self.file_tensor()?);
                }
                Kind::Weight(places)
            }
            _ => Kind::Made(self.expr()?),
        };
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
        let (mut rows, mut each) = (None, false);
        if self.take_sign("[") {
            let start = self.count()?;
            self.sign("..")?;
            rows = Some(start..self.count()?);
            each = self.take_word("each");
            self.sign("]")?;
        }
        Ok(FileTensor { name, rows, each })
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
}
