//! The tensor graph: equations over named axes, and the interpreter that defines what they mean.
//!
//! A [`Graph`] is plain data: axes with their extents, tensors (inputs, weights, constants, states, values), one arena of
//! scalar expressions, and nodes in the order in which they are computed. One kind of node does nearly everything: an
//! equation `out[axes] = expression`. Beside it there are only [`Node::Append`] (rows appended to a state that outlives
//! the step) and [`Node::Layers`] (a body repeated once per layer).
//!
//! Graphs are made by [`Builder`], printed by `Display`, read back by [`parse`], checked by [`verify`], and given their
//! meaning by [`interpret`](mod@interpret), in `f64`, slowly and obviously.

mod builder;
mod config;
mod evaluate;
mod graph;
pub mod interpret;
mod lex;
mod number;
mod parse;
mod print;
pub mod random;
mod verify;

pub use builder::{BuildError, Builder};
pub use config::ModelError;
pub use graph::*;
pub use interpret::{InterpretError, Interpreter, Output, Weights};
pub use number::Number;
pub use parse::{ParseError, parse};
pub use print::print_expr;
pub use verify::{MAX_DEPTH, Site, VerifyError, verify};

/// What the `model!` macro expands to calls; no interface for people.
#[doc(hidden)]
pub mod __private {
    pub use crate::config::{HostValues, Source, add, div, extent, mul, rem, stack, sub};
    pub use {serde, serde_json};
}
