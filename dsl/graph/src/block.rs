//! Blocks: what the `block!` macro makes of one, and how it is used.

use crate::builder::{BuildError, Builder};
use crate::config::ModelError;
use crate::graph::{AxisId, ExprId, FileTensor};
use std::ops::Range;

/// What a block takes and yields. It is compared, when a model is compiled, with how the model uses the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// As it is declared, or what it is called where it is used. Empty where a mistake in the block was reported.
    written: &'static str,
    /// The axes of the block, or those that it is given.
    axes: &'static [&'static str],
    /// What each parameter is over.
    parameters: &'static [&'static [Index]],
    /// What the result is over.
    result: &'static [Index],
}

/// An axis in a signature.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// One of the block's, by its place among them.
    Given(usize),
    /// Another.
    Named(&'static str),
}

impl Signature {
    /// For generated code.
    #[doc(hidden)]
    pub const fn new(
        written: &'static str,
        axes: &'static [&'static str],
        parameters: &'static [&'static [Index]],
        result: &'static [Index],
    ) -> Signature {
        Signature { written, axes, parameters, result }
    }

    /// Does not compile where a block is used in another way than it is declared.
    #[doc(hidden)]
    #[track_caller]
    pub const fn hold(&self, used: &Signature) {
        if self.written.is_empty() {
            return;
        }
        let mut text = Text { bytes: [0; 1000], length: 0 };
        if self.axes.len() != used.axes.len() {
            text.all(&["`", used.written, "` is given "]).count(used.axes.len(), " axis", " axes");
            text.all(&[", but `", self.written, "` has "]).number(self.axes.len());
        } else if self.parameters.len() != used.parameters.len() {
            text.all(&["`", used.written, "` is given "]).count(used.parameters.len(), " argument", " arguments");
            text.all(&[", but `", self.written, "` takes "]).number(self.parameters.len());
        } else {
            let mut at = 0;
            while at < self.parameters.len() && same(self.parameters[at], used.parameters[at]) {
                at += 1;
            }
            if at < self.parameters.len() {
                text.all(&["argument "]).number(at + 1);
                text.all(&[" of `", used.written, "` is over "]).indices(used.parameters[at], used.axes);
                text.all(&[", but `", self.written, "` takes it over "]).indices(self.parameters[at], used.axes);
            } else if !same(self.result, used.result) {
                text.all(&["`", used.written, "` is to yield "]).indices(used.result, used.axes);
                text.all(&[", but `", self.written, "` yields "]).indices(self.result, used.axes);
            } else {
                return;
            }
        }
        match std::str::from_utf8(text.bytes.split_at(text.length).0) {
            Ok(text) => panic!("{}", text),
            Err(_) => panic!("{}", self.written),
        }
    }
}

/// Whether both have the same axes, in any order.
const fn same(a: &[Index], b: &[Index]) -> bool {
    let mut at = 0;
    while at < a.len() {
        let mut other = 0;
        while other < b.len() && !equal(a[at], b[other]) {
            other += 1;
        }
        if other == b.len() {
            return false;
        }
        at += 1;
    }
    a.len() == b.len()
}

const fn equal(a: Index, b: Index) -> bool {
    match (a, b) {
        (Index::Given(a), Index::Given(b)) => a == b,
        (Index::Named(a), Index::Named(b)) => {
            let (a, b) = (a.as_bytes(), b.as_bytes());
            let mut at = 0;
            while at < a.len() && at < b.len() && a[at] == b[at] {
                at += 1;
            }
            at == a.len() && at == b.len()
        }
        _ => false,
    }
}

/// A message that is written while a crate is compiled, as far as there is room.
struct Text {
    bytes: [u8; 1000],
    length: usize,
}

impl Text {
    const fn all(&mut self, parts: &[&str]) -> &mut Text {
        let mut part = 0;
        while part < parts.len() {
            let (bytes, mut at) = (parts[part].as_bytes(), 0);
            while at < bytes.len() && self.length < self.bytes.len() {
                self.bytes[self.length] = bytes[at];
                (self.length, at) = (self.length + 1, at + 1);
            }
            part += 1;
        }
        self
    }

    const fn number(&mut self, n: usize) {
        const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        if n >= 10 {
            self.number(n / 10);
        }
        self.all(&[DIGITS[n % 10]]);
    }

    const fn count(&mut self, n: usize, one: &str, many: &str) {
        self.number(n);
        self.all(&[if n == 1 { one } else { many }]);
    }

    /// Axes, under the names of those that are given.
    const fn indices(&mut self, indices: &[Index], given: &[&str]) {
        if indices.is_empty() {
            self.all(&["no axis"]);
            return;
        }
        let mut at = 0;
        while at < indices.len() {
            let name = match indices[at] {
                Index::Given(place) => given[place],
                Index::Named(name) => name,
            };
            self.all(&[if at == 0 { "[" } else { ", " }, name]);
            at += 1;
        }
        self.all(&["]"]);
    }
}

/// Where a block is used, and what it is given.
#[derive(Clone, Copy, Debug)]
pub struct Use<'a> {
    /// What it is called there, which stands in front of the names of its tensors.
    pub name: &'a str,
    /// What stands in front of the names of its weights in a checkpoint, in order of preference.
    pub prefixes: &'a [String],
    /// Its axes, in the order in which it declares them.
    pub axes: &'a [AxisId],
    /// The arguments of its function.
    pub arguments: &'a [ExprId],
}

/// The axis of the tokens, axes with their sizes, and arguments.
type Given<const A: usize, const P: usize> = (AxisId, [(AxisId, usize); A], [ExprId; P]);

impl Use<'_> {
    /// The axis of the tokens, the block's axes with their sizes, and the arguments.
    #[doc(hidden)]
    pub fn given<const A: usize, const P: usize>(
        &self,
        builder: &Builder,
        block: &Signature,
    ) -> Result<Given<A, P>, ModelError> {
        let axes = self.axes.iter().filter_map(|&axis| Some((axis, builder.graph().size(axis)?)));
        let axes: Vec<(AxisId, usize)> = axes.collect();
        match (builder.tokens_axis(), axes.try_into(), self.arguments.try_into()) {
            (Some(tokens), Ok(axes), Ok(arguments)) => Ok((tokens, axes, arguments)),
            _ => {
                let (axes, arguments) = (builder.graph().names(self.axes), self.arguments.len());
                let message = format!("`{}` is given the axes {axes} and {arguments} arguments", block.written);
                Err(BuildError { message, location: None }.into())
            }
        }
    }

    /// What a tensor of the block is called.
    #[doc(hidden)]
    pub fn named(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Where a weight of the block may be found.
    #[doc(hidden)]
    pub fn files(&self, name: &str, rows: Option<Range<usize>>, each: bool) -> Vec<FileTensor> {
        let file = |prefix| FileTensor { name: format!("{prefix}{name}"), rows: rows.clone(), each };
        self.prefixes.iter().map(file).collect()
    }

    /// What stands in front of the names of a block that is used in this one.
    #[doc(hidden)]
    pub fn prefixed(&self, inner: &[&str]) -> Vec<String> {
        inner.iter().flat_map(|inner| self.prefixes.iter().map(move |prefix| format!("{prefix}{inner}"))).collect()
    }
}
