//! From a graph of equations to fused kernels in machine code.

pub mod cost;
pub mod fuse;
pub mod loops;
pub mod lower;
pub mod peak;
mod schedule;
