//! Loops: one kernel as loops over tiles, as plain data.

mod build;
mod ir;

pub use build::*;
pub use ir::*;
