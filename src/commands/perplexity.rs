//! `einfuse perplexity`: how well a model predicts a text.

use std::path::PathBuf;

use clap::Args;
use einfuse::{Settings, Wanted};
use serde::Serialize;

use super::Outcome;
use super::options::{ModelOptions, OutputOptions, Threads, input_name, read_text};
use super::output::{self, print, print_json};

const EXAMPLES: &str = "\
Examples:
  einfuse perplexity sonnets.txt
  einfuse perplexity -m ~/smollm2-135m --precision bf16 --json hamlet.txt

Each token but the first is predicted from all before it; a text longer than the context (--context) is read in windows
of the context's length, each of which starts anew, with a begin token where the text has one. The perplexity is e to
the mean of -ln p.";

/// Measure how well the model predicts a text
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Perplexity {
    /// A text in UTF-8; `-`: on standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Serialize)]
struct Report {
    model: String,
    perplexity: f64,
    mean_nll: f64,
    tokens_scored: usize,
}

impl Perplexity {
    pub(crate) fn run(&self) -> Outcome {
        let text = read_text(&self.file)?;
        let settings = self.model.settings(self.threads.threads);
        let model = self.model.load(Settings { rows: Wanted::All, ..settings })?;
        let tokens = model.tokenizer()?.encode(&text, true)?;
        if tokens.len() < 2 {
            let count = output::tokens(tokens.len());
            let file = input_name(&self.file);
            return Err(format!("{file} has {count}: at least two are wanted, to predict one from the other").into());
        }
        let measured = model.session().perplexity(&tokens)?;
        let (perplexity, mean_nll, tokens_scored) = (measured.value(), measured.mean, measured.scored);
        if self.output.json {
            print_json(&Report { model: self.model.name(), perplexity, mean_nll, tokens_scored })?;
        } else {
            print(format_args!(
                "perplexity {perplexity:.4} ({mean_nll:.5} nats a token over {tokens_scored} tokens)\n"
            ))?;
        }
        Ok(())
    }
}
