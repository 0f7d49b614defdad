//! From a graph and a checkpoint to text: checkpoints, cache, threads, sampling, generation.
//!
//! ```no_run
//! use einfuse_runtime::{Checkpoint, Generate, Model, Settings};
//! # fn graph_of(_: &Checkpoint) -> Result<einfuse_graph::Graph, Box<dyn std::error::Error>> { Err("none")? }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("SmolLM2-135M")?;
//! let graph = graph_of(&checkpoint)?; // by its architecture and config
//! let model = Model::load(&checkpoint, &graph, Settings::default())?;
//! let mut session = model.session();
//! for token in session.generate("The capital of France is", &Generate::default())? {
//!     print!("{}", token?.text);
//! }
//! println!("\n{:?}", session.summary());
//! # Ok(())
//! # }
//! ```
//!
//! A [`Checkpoint`] is a Hugging Face folder, the same files within the program, or a GGUF file. [`Model::load`] compiles a
//! graph for it and packs its weights. A [`Session`] is one sequence of tokens, with its pages in the model's key-value cache;
//! sessions of one model may live at the same time, on any threads, and compute in turn. What comes out of a session is text
//! ([`Session::generate`]), or numbers ([`Session::feed`], [`Session::score`], [`Session::trace`]). A [`Conversation`] is
//! a session whose text is the messages of a chat, as a checkpoint's [`Template`] writes them.

mod cache;
mod chat;
mod checkpoint;
mod error;
mod generate;
mod memory;
mod model;
mod names;
mod sample;
mod session;
mod storage;
mod threads;
mod tokens;
mod tune;
mod tuned;

pub use chat::{Conversation, Message, Role, Template};
#[doc(hidden)]
pub use checkpoint::fuzz;
pub use checkpoint::{Blocks, Change, Chat, Checkpoint, Codes, Dtype, Embedded, Groups, Numbers, Stored, Tiles};
pub use error::Error;
pub use generate::{Generate, Generation, Prompt, Stop, Summary, Token};
pub use model::{CacheType, Model, Precision, Progress, Quant, Settings};
pub use sample::{Sampler, Sampling, check_logits, likeliest, log_sum_exp};
pub use session::{Chosen, Perplexity, Session, Trace};
pub use threads::{MOST_THREADS, Threads, default_threads};
pub use tokens::{Stream, Tokenizer};
pub use tune::{Finding, Findings, LeftOut, StepTimes, Trial, Tuning, tune};
pub use tuned::{Tuned, Winner};

#[cfg(test)]
mod tests;
