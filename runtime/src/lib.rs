//! From a graph and a checkpoint to text: checkpoints, cache, threads, sampling

mod checkpoint;
mod error;
mod sample;
mod tokens;

pub use checkpoint::{Checkpoint, Dtype, Embedded, Stored};
pub use error::Error;
pub use sample::{Sampler, Sampling};
pub use tokens::{Stream, Tokenizer};
