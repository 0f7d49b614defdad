//! Blocks: what the `block!` macro makes of one, and how it is used.

use crate::builder::{BuildError, Builder};
use crate::config::ModelError;
use crate::graph::{AxisId, ExprId, FileTensor};
use std::ops::Range;

/// What a block takes and yields. It is compared, when a model is compiled, with how the model uses the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// As it is declared.
    written: &'static str,
    /// The same with each axis given by its place among the block's, and each list of axes in order. Empty where a mistake in the
    /// block was reported.
    shape: &'static str,
}

impl Signature {
    /// For generated code.
    #[doc(hidden)]
    pub const fn new(written: &'static str, shape: &'static str) -> Signature {
        Signature { written, shape }
    }

    /// Does not compile where a block is used in another way than it is declared.
    #[doc(hidden)]
    #[track_caller]
    pub const fn hold(&self, used: &Signature) {
        if !self.shape.is_empty() && !equal(self.shape.as_bytes(), used.shape.as_bytes()) {
            let mut text = [0; 1000];
            let length = join(&mut text, &["`", self.written, "` is used as `", used.written, "`"]);
            match std::str::from_utf8(text.split_at(length).0) {
                Ok(text) => panic!("{}", text),
                Err(_) => panic!("{}", self.written),
            }
        }
    }
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Puts the parts one after the other, as far as there is room, and returns how long that is.
const fn join(text: &mut [u8], parts: &[&str]) -> usize {
    let (mut length, mut part) = (0, 0);
    while part < parts.len() {
        let (bytes, mut at) = (parts[part].as_bytes(), 0);
        while at < bytes.len() && length < text.len() {
            text[length] = bytes[at];
            (length, at) = (length + 1, at + 1);
        }
        part += 1;
    }
    length
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
