//! From a graph of equations to fused kernels in machine code.

pub mod loops;
