//! Language models as equations over named axes, fused and compiled for this CPU.
//!
//! **Run** a model out of a Hugging Face folder, a GGUF file, or the one that comes with the crate:
//!
//! ```no_run
//! use einfuse::{Generate, Settings};
//!
//! # fn main() -> Result<(), einfuse::Error> {
//! let model = einfuse::load("path/to/a/folder", Settings::default())?;
//! let mut session = model.session();
//! for token in session.generate("Once upon a time", &Generate::default())? {
//!     print!("{}", token?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Chat** with one by its own template, from the start or after other [`Message`]s:
//!
//! ```no_run
//! use einfuse::{Checkpoint, Conversation, Generate, Message, Role, Settings, Template};
//!
//! # fn main() -> Result<(), einfuse::Error> {
//! let checkpoint = Checkpoint::open("path/to/a/folder")?;
//! let model = einfuse::load_checkpoint(&checkpoint, Settings::default())?;
//! let rules = Message { role: Role::System, content: "Answer in one word.".to_owned() };
//! let mut conversation = Conversation::new(&model, Template::of(&checkpoint)?, vec![rules])?;
//! for token in conversation.say("What is the capital of France?", &Generate::default())? {
//!     print!("{}", token?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Declare** one with [`model!`]: `examples/hybrid.rs` does, and `docs/language.md` is the reference. A declaration has a
//! function `graph` from a config to a [`Graph`]; [`Model::load`] compiles any graph for a [`Checkpoint`], and the
//! [`graph::Interpreter`] says what it means.
//!
//! **Look** at what became of it: [`Model::program`] has the plan, its kernels with the rules that made them, and their code.

mod embedded;

use std::path::Path;

pub use einfuse_codegen as codegen;
pub use einfuse_graph as graph;
pub use einfuse_models as models;
pub use einfuse_runtime as runtime;

pub use einfuse_codegen::{Rule, Wanted};
pub use einfuse_graph::Graph;
pub use einfuse_runtime::{
    CacheType, Chat, Checkpoint, Chosen, Conversation, Embedded, Generate, Generation, Message, Model, Perplexity,
    Precision, Progress, Prompt, Quant, Role, Sampling, Session, Settings, Stop, Stream, Summary, Template, Token,
    Tokenizer, Trace,
};

/// Declares a model: config keys, axes, weights, and equations. It expands to a config type that reads config.json, and a
/// type of the model's name whose `graph` makes the [`Graph`]. `docs/language.md` is the reference of the language.
#[macro_export]
macro_rules! model {
    ($($declaration:tt)*) => {
        $crate::__private::model! { crate = $crate::graph; $($declaration)* }
    };
}

/// Declares a block: equations with weights that models share, such as those in [`models::blocks`]. It expands to a type of the
/// block's name, which the layers of a model use under a prefix of their checkpoint.
#[macro_export]
macro_rules! block {
    ($($declaration:tt)*) => {
        $crate::__private::block! { crate = $crate::graph; $($declaration)* }
    };
}

#[doc(hidden)]
pub mod __private {
    pub use einfuse_macros::{block, model};
}

/// Why a model was not loaded, or did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The config does not make a graph: its architecture is unknown, a key is missing or unsupported, sizes do not fit.
    #[error("{file}: {reason}")]
    Config {
        /// The path of config.json.
        file: String,
        /// What is wrong.
        reason: einfuse_models::Error,
    },
    /// Everything else.
    #[error(transparent)]
    Runtime(#[from] einfuse_runtime::Error),
}

/// Loads a model from a folder with config.json, *.safetensors and tokenizer.json, or from a GGUF file.
///
/// # Errors
/// Names the file, and within it the key or tensor, that is missing or wrong, and what was expected.
pub fn load(folder: impl AsRef<Path>, settings: Settings) -> Result<Model, Error> {
    load_checkpoint(&Checkpoint::open(folder)?, settings)
}

/// Loads the model that comes with the crate: GPT-2-shaped, 1.35 million parameters, trained on Shakespeare's works.
///
/// # Errors
/// If a setting is outside its range, or memory or threads cannot be had.
pub fn load_embedded(settings: Settings) -> Result<Model, Error> {
    load_checkpoint(&embedded()?, settings)
}

/// The checkpoint of the model that comes with the crate.
///
/// # Errors
/// None in practice: its files are part of the program.
pub fn embedded() -> Result<Checkpoint, Error> {
    Ok(Checkpoint::embedded(&embedded::NANO)?)
}

/// The graph of the model in a checkpoint, to be run with sequences of up to `context` positions (`None`: as many as it was
/// made for).
///
/// # Errors
/// The architecture is not declared (the message lists those that are), or the config does not fit it.
pub fn graph_of(checkpoint: &Checkpoint, context: Option<usize>) -> Result<Graph, Error> {
    einfuse_models::graph_from_config(checkpoint.config(), context).map_err(|reason| wrong_config(checkpoint, reason))
}

/// How many positions the model in a checkpoint was made for, where it says so.
///
/// # Errors
/// As [`graph_of`].
pub fn context_of(checkpoint: &Checkpoint) -> Result<Option<usize>, Error> {
    einfuse_models::context_from_config(checkpoint.config()).map_err(|reason| wrong_config(checkpoint, reason))
}

fn wrong_config(checkpoint: &Checkpoint, reason: einfuse_models::Error) -> Error {
    Error::Config { file: checkpoint.config_file().to_owned(), reason }
}

/// Loads the model in a checkpoint. Its context is what the model was made for, unless the settings ask for less.
///
/// # Errors
/// As [`load`].
pub fn load_checkpoint(checkpoint: &Checkpoint, settings: Settings) -> Result<Model, Error> {
    let context = settings.context.into_iter().chain(context_of(checkpoint)?).min();
    let graph = graph_of(checkpoint, context)?;
    Ok(Model::load(checkpoint, &graph, Settings { context, ..settings })?)
}
