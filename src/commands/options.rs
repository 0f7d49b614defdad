//! Options that several commands share, each defined once.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

/// Which model, and how it is compiled.
#[derive(Args, Debug)]
pub(crate) struct ModelOptions {
    /// The model: a folder with config.json, *.safetensors and tokenizer.json. Left out: the embedded one
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) model: Option<PathBuf>,

    /// How weight matrices are kept in memory; left out: as the files have them
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) precision: Option<Precision>,

    /// Most tokens that go through the model at once
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub(crate) chunk: NonZeroUsize,

    /// Switch a fusion rule off (repeatable); `einfuse explain` names them
    #[arg(long, value_name = "RULE")]
    pub(crate) without: Vec<String>,
}

/// The type in which weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32 bits
    F32,
    /// 16 bits, the upper half of f32
    Bf16,
}

/// How many threads.
#[derive(Args, Debug)]
pub(crate) struct Threads {
    /// Threads; left out: one per core
    #[arg(short, long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// What the model is given to read.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Prompt {
    /// The text to continue
    pub(crate) prompt: Option<String>,

    /// Token ids in place of a text, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(crate) ids: Option<Vec<u32>>,
}

/// How tokens are chosen, and when to stop.
#[derive(Args, Debug)]
pub(crate) struct Sampling {
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value = "256")]
    pub(crate) tokens: usize,

    /// Temperature; 0 takes the likeliest token (greedy)
    #[arg(long, value_name = "T", default_value = "0.8", value_parser = at_least_zero, allow_hyphen_values = true)]
    pub(crate) temperature: f32,

    /// Choose among the K likeliest; 0: all
    #[arg(long, value_name = "K", default_value = "40")]
    pub(crate) top_k: usize,

    /// Choose among the likeliest whose probabilities sum to P
    #[arg(long, value_name = "P", default_value = "1", value_parser = share, allow_hyphen_values = true)]
    pub(crate) top_p: f32,

    /// Choose among those at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value = "0", value_parser = share, allow_hyphen_values = true)]
    pub(crate) min_p: f32,

    /// Divide the logit of tokens seen before by R (negative ones: multiply)
    #[arg(long, value_name = "R", default_value = "1", value_parser = above_zero, allow_hyphen_values = true)]
    pub(crate) repeat_penalty: f32,

    /// The seed: the same seed, the same text
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,

    /// Go on after an end token
    #[arg(long)]
    pub(crate) ignore_eos: bool,

    /// Stop where this text appears (repeatable)
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
}

fn number(text: &str, wants: &str, holds: impl Fn(f32) -> bool) -> Result<f32, String> {
    let number = text.parse().ok().filter(|x: &f32| x.is_finite() && holds(*x));
    number.ok_or_else(|| format!("{wants} is wanted"))
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 up", |x| x >= 0.0)
}

fn above_zero(text: &str) -> Result<f32, String> {
    number(text, "a number above 0", |x| x > 0.0)
}

fn share(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}
