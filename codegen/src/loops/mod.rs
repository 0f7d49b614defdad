//! Loops: one kernel as loops over tiles, as plain data.

mod ir;

pub use ir::*;
