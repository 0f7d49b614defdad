//! The tensor graph: equations over named axes, and the interpreter that defines what they mean.
//!
//! Models are declared with the `model!` macro and need nothing of this crate by name. It is for those who look at what
//! a model became, make graphs from Rust, or hold a compiler against the meaning of the language.
//!
//! A [`Graph`] is plain data: axes with their extents, tensors (inputs, weights, constants, states, values), one arena of
//! scalar expressions, and nodes in the order in which they are computed. One kind of node does nearly everything: an
//! equation `out[axes] = expression`. Beside it there are only [`Node::Append`] (rows appended to a state that outlives
//! the step) and [`Node::Layers`] (a body repeated once per layer).
//!
//! | | |
//! |---|---|
//! | [`Builder`] | makes graphs from Rust |
//! | [`Signature`], [`Use`] | a block of equations that models share, and where one of them uses it |
//! | `Display`, [`parse`], [`print_expr`] | a text form that reads like the language, both ways |
//! | [`verify`] | everything that holds of a well-formed graph |
//! | [`Interpreter`] | what a graph means, in `f64`, with a bound on what `f32` may make of it ([`Number`]) |
//! | [`random`] | random graphs with weights and inputs, for tests and fuzzers |
//!
//! ```
//! use einfuse_graph::{Interpreter, Tensor, parse, print_expr};
//!
//! let graph = parse(
//!     r#"graph norm
//!     axis t = tokens
//!     axis d = 2
//!     axis v = 3
//!     input tokens[t]
//!     weight embed[v, d] = "embed.weight"
//!     x = embed[v = tokens]                              // a row for each token
//!     y[t, d] = x * rsqrt((sum[d] x * x) / size(d))
//!     output y"#,
//! )?;
//! assert!(graph.to_string().contains("y[t, d] = x[t, d] * rsqrt((sum[d] x[t, d] * x[t, d]) / 2.0)"));
//!
//! let weights = |_: &Tensor, _: Option<usize>| Ok(vec![1.0, 1.0, 3.0, 4.0, 0.0, 2.0]);
//! let mut interpreter = Interpreter::new(&graph, &weights)?;
//! let step = interpreter.step(&[("tokens", &[1, 2])])?;
//! assert!((step.output[0] - 3.0 / 12.5f64.sqrt()).abs() < 1e-12);
//! assert!(step.bound[0] > 0.0 && step.bound[0] < 1e-6);
//!
//! let error = interpreter.step(&[("tokens", &[3])]).err().map(|e| e.to_string());
//! assert_eq!(error.as_deref(), Some("`x`: `embed[v = 3]` is outside the coordinates of `v`: they are 0 to 2"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Invariants
//!
//! - A graph holds no closure and no trait object: equal graphs are equal data.
//! - Expressions refer to earlier ones only, and nest at most [`MAX_DEPTH`] deep; what is shared is one expression.
//! - An operand's index is written out for every axis of the tensor: alignment by name has been resolved.
//! - Masks are selections: a reduction skips what is masked by selecting its neutral value.
//! - This crate knows no checkpoint and no machine, and imports no other crate of the project.

mod block;
mod builder;
mod config;
mod graph;
mod interpret;
mod keyed;
mod message;
mod parse;
mod print;
pub mod random;
mod sweep;
mod verify;

pub use block::{Signature, Use};
pub use builder::{BuildError, Builder};
pub use config::ModelError;
pub use graph::*;
pub use interpret::{InterpretError, Interpreter, Number, Output, Weights};
pub use keyed::from_keys;
pub use message::one_line;
pub use parse::{ParseError, parse};
pub use print::print_expr;
pub use verify::{MAX_DEPTH, Site, VerifyError, verify};

/// What the `model!` macro expands to calls; no interface for people.
#[doc(hidden)]
pub mod __private {
    pub use crate::block::Index;
    pub use crate::config::{HostValues, Source, add, div, extent, mul, rem, rows, stack, sub};
    pub use {serde, serde_json};
}
