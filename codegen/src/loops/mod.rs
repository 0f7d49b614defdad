//! Loops: one kernel as loops over tiles, as plain data.

mod build;
mod cores;
pub mod frame;
mod interpret;
mod ir;
mod parse;
mod print;
mod verify;

pub use build::*;
pub use cores::{ByteProducts, Cores, Fetch, FetchInto};
pub use interpret::{Fault, Memory, Slot, interpret};
pub use ir::*;
pub use parse::{ParseError, parse};
pub use verify::{Invalid, MAX_DEPTH, verify};
