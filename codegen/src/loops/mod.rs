//! Loops: one kernel as loops over tiles, as plain data.

mod build;
mod ir;
mod print;
mod verify;

pub use build::*;
pub use ir::*;
pub use verify::{Invalid, MAX_DEPTH, verify};
