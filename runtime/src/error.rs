//! What can go wrong, in words that name the file, tensor, key, token or option, and what was expected.

use std::io;

use einfuse_codegen::{CompileError, PackError, StepError};
use einfuse_graph::one_line;

/// Any failure of this crate. The message is one line; a deeper cause is the error's [source](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is missing, of the wrong kind, or does not contain what its name promises.
    #[error("{}", one_line(format!("{file}: {problem}")))]
    File {
        /// The path.
        file: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// The operating system refused to open, read or map a file.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The path.
        file: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The operating system refused to write a file.
    #[error("{file}: cannot be written: {source}")]
    Write {
        /// The path.
        file: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A JSON file has no such key, or the value is not what was expected.
    #[error("{}", one_line(format!("{file}: key `{key}` {problem}")))]
    Key {
        /// The path.
        file: String,
        /// The key.
        key: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// The entry of one tensor in a header or index is wrong.
    #[error("{}", one_line(format!("{file}: tensor `{tensor}` {problem}")))]
    Tensor {
        /// The path.
        file: String,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A weight of the model is in none of the places where it may be.
    #[error("{weight} wants {names}, which {place} does not have")]
    MissingWeight {
        /// The weight and its line in the model, as in `` `wq` (src/llama.rs:24) ``.
        weight: String,
        /// The tensors that would do.
        names: String,
        /// The checkpoint.
        place: String,
    },
    /// A tensor of the checkpoint has another shape than the model's weight.
    #[error("{weight} wants {wants}, the file {file} has {has} for {tensor}")]
    Shape {
        /// The weight and its line in the model.
        weight: String,
        /// The axes wanted, merged as far as the file's dimensions suggest.
        wants: String,
        /// The path.
        file: String,
        /// The file tensor's dimensions.
        has: String,
        /// The tensor's name in the file.
        tensor: String,
    },
    /// The graph could not be compiled.
    #[error("the model cannot be compiled: {0}")]
    Compile(#[from] CompileError),
    /// A weight could not be laid out in memory.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The compiled model wants a weight that the graph does not read: a mistake of the compiler.
    #[error("{weight} is wanted by the compiled model{}, but not read by its graph", layer.map_or(String::new(), |layer| format!(" in layer {layer}")))]
    Unread {
        /// The weight and its line in the model.
        weight: String,
        /// The layer.
        layer: Option<usize>,
    },
    /// A step could not be run.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The tokenizer does not know a token.
    #[error("token {id} is not in the tokenizer's vocabulary of {size} tokens")]
    UnknownToken {
        /// The token.
        id: u32,
        /// How many tokens the tokenizer knows.
        size: usize,
    },
    /// The model does not know a token.
    #[error("token {id} is not in the model's vocabulary of {vocabulary} tokens")]
    NotInModel {
        /// The token.
        id: u32,
        /// How many tokens the model knows.
        vocabulary: usize,
    },
    /// The model's output says nothing of a token.
    #[error("token {id} is not among those that the model predicts: its output has {logits} numbers a row")]
    NotPredicted {
        /// The token.
        id: u32,
        /// How many logits a row has.
        logits: usize,
    },
    /// A chat template is not one, or does not give a text for a chat.
    #[error("{}", one_line(format!("{file}: the chat template {problem}")))]
    Template {
        /// The file that it is in.
        file: String,
        /// What is wrong, or what the template says.
        problem: String,
    },
    /// Text could not be turned into tokens, or tokens into text.
    #[error("{}", one_line(format!("the tokenizer failed: {problem}")))]
    Tokenizer {
        /// Its own words.
        problem: String,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty, and the tokenizer adds no begin token to start from: give at least one token")]
    EmptyPrompt,
    /// There are more tokens than positions.
    #[error("{} tokens do not fit into the {context} positions {bound}{}", past.saturating_add(*tokens), taken(*past))]
    ContextFull {
        /// How many were to be added.
        tokens: usize,
        /// How many the sequence has.
        past: usize,
        /// How many it can have.
        context: usize,
        /// What sets that limit.
        bound: &'static str,
    },
    /// The pool of cache pages is used up.
    #[error(
        "the cache is full: {asked} pages of {positions} positions were asked for, {free} of {total} are free; \
         load the model with a larger context or for more sequences, or end a sequence"
    )]
    CacheFull {
        /// Pages asked for.
        asked: usize,
        /// Positions in a page.
        positions: usize,
        /// Pages that are free.
        free: usize,
        /// Pages there are.
        total: usize,
    },
    /// An option is outside its range.
    #[error("option {option} wants {wants}, got {got}")]
    Option {
        /// Its name, as the command line spells it, without dashes.
        option: &'static str,
        /// Its range.
        wants: &'static str,
        /// What was given.
        got: String,
    },
    /// A text has no token that others come before.
    #[error("a text of at least two tokens is wanted, to predict one from the other; this one has {tokens}")]
    ShortText {
        /// How many tokens it has.
        tokens: usize,
    },
    /// A sequence has no room for a token that others come before.
    #[error("at least {wanted} positions are wanted, to predict a token from those before, not the {context} {bound}")]
    ShortContext {
        /// How many positions would do.
        wanted: usize,
        /// How many positions it can have.
        context: usize,
        /// What sets that limit.
        bound: &'static str,
    },
    /// The model's output says nothing of what comes next.
    #[error("{wrong} of {vocabulary} logits are NaN or infinite: the weights are corrupt, or a computation overflowed")]
    NoNumbers {
        /// How many logits are no numbers.
        wrong: usize,
        /// How many logits there are.
        vocabulary: usize,
    },
    /// Memory could not be had.
    #[error("{bytes} bytes of memory for {what} cannot be had: {source}")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// What for.
        what: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The worker threads could not be started.
    #[error("{threads} threads cannot be started: {problem}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why not.
        problem: String,
    },
}

fn taken(past: usize) -> String {
    if past == 0 { String::new() } else { format!(", of which {past} are taken") }
}
