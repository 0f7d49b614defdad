//! From a graph of equations to fused kernels in machine code.
//!
//! ```text
//! Graph ──fuse──▶ Plan ──schedule──▶ Loops ──lower──▶ Program
//!       (kernels by named rules)  (tiles, panels)  (machine code, memory, steps)
//! ```
//!
//! The entry is [`Program::compile`]; [`Program::step`] runs it.

mod checks;
mod choices;
mod compile;
pub mod cost;
mod cpu;
pub mod format;
pub mod fuse;
pub mod loops;
pub mod lower;
mod pack;
pub mod peak;
mod program;
mod schedule;
mod team;

pub use choices::{Choice, ChoiceObserver};
pub use compile::{Batch, CompileError, Compiled, Options, Scheduled, Schedules};
pub use cpu::{Caches, Cpu};
pub use format::Format;
pub use fuse::{Kept, Order, Storage};
pub use fuse::{Plan, Rule, Wanted};
pub use pack::{InBlocks, PackError, Packed, ReadBlocks, Values, nearest};
pub use program::*;
pub use schedule::{MOST_POSITIONS, REVISION, Sizes, Tiling};
pub use team::{Alone, Team};
