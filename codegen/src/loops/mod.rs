//! Loops: one kernel as loops over tiles, as plain data.

mod build;
mod format;
pub mod frame;
mod interpret;
mod ir;
mod parse;
mod print;
mod verify;

pub use build::*;
pub use format::{BYTE_OFFSET, Codes, E2M1, Element, Format, Grid, IQ4, MOST_WORD, Plane, SMALLEST};
pub use interpret::{Fault, Memory, Slot, interpret};
pub use ir::*;
pub use parse::{ParseError, parse};
pub use verify::{Invalid, MAX_DEPTH, verify};
