//! The words of the frame that a kernel is called with, by their index.

/// How many tokens the step has.
pub const TOKENS: usize = 0;

/// How many positions come before them.
pub const PAST: usize = 1;

/// The address of the arena.
pub const ARENA: usize = 2;

/// The first token whose output is wanted.
pub const FIRST: usize = 3;

/// From here on, the pointers that [`Buffer::Frame`](super::Buffer::Frame) and the tables of pages name.
pub const POINTERS: usize = 4;
