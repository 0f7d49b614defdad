//! The model! macro: parse, check, emit
