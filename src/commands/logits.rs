//! `einfuse logits`: what the model computes for a prompt, as numbers in a file.

use std::path::PathBuf;

use clap::Args;
use einfuse::runtime::check_logits;
use einfuse::{Settings, Wanted};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, json};

use super::options::{ModelOptions, OutputOptions, PromptOptions, Threads};
use super::output::print_json;
use super::{Outcome, Usage};

const EXAMPLES: &str = "\
Examples:
  einfuse logits \"ROMEO:\" -o romeo.safetensors
  einfuse logits -m ~/smollm2-135m --ids 1,450,7483 --hidden -o out.safetensors

The file has `logits` [tokens, vocabulary] in f32, and with --hidden `hidden` [layers + 1, tokens, width]: the input of
the first layer, then the output of each layer. --json prints one object that says what was written: the file, the
token ids, and the type and shape of each tensor.";

/// Write logits, and hidden states, to a safetensors file
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Logits {
    #[command(flatten)]
    prompt: PromptOptions,

    /// The file to write
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    file: PathBuf,

    /// Write the hidden states too
    #[arg(long)]
    hidden: bool,

    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    threads: Threads,
}

impl Logits {
    pub(crate) fn run(&self) -> Outcome {
        if self.file.as_os_str() == "-" {
            return Err(Usage("-o - is no file, and standard output is no place for safetensors".to_owned()).into());
        }
        let settings = self.model.settings(self.threads.threads);
        let model = self.model.load(Settings { rows: Wanted::All, ..settings })?;
        let tokens = self.prompt.tokens(&model)?;
        let mut session = model.session();
        let (logits, hidden) = match self.hidden {
            true => session.trace(&tokens).map(|trace| (trace.logits, trace.hidden))?,
            false => (session.feed_all(&tokens)?, Vec::new()),
        };
        let checked = logits.chunks_exact(model.vocabulary()).try_for_each(check_logits);
        let (rows, layers) = (tokens.len(), hidden.len());
        let (logits, hidden) = (bytes(logits), bytes(hidden.into_iter().flatten()));
        let mut tensors = vec![("logits", view(vec![rows, model.vocabulary()], &logits)?)];
        if self.hidden {
            let width = hidden.len() / (size_of::<f32>() * layers * rows).max(1);
            tensors.push(("hidden", view(vec![layers, rows, width], &hidden)?));
        }
        let describe = |(name, view): &(&str, TensorView<'_>)| {
            (name.to_string(), json!({ "dtype": view.dtype().to_string(), "shape": view.shape() }))
        };
        let written: Map<_, _> = tensors.iter().map(describe).collect();
        let contents = safetensors::serialize(tensors, None)?;
        std::fs::write(&self.file, contents).map_err(|e| format!("cannot write {}: {e}", self.file.display()))?;
        if self.output.json {
            print_json(&json!({
                "model": self.model.name(),
                "file": self.file.display().to_string(),
                "token_ids": tokens,
                "tensors": written,
                "threads": model.threads(),
            }))?;
        }
        // what is written may show why there are none
        Ok(checked?)
    }
}

fn bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn view(shape: Vec<usize>, bytes: &[u8]) -> Result<TensorView<'_>, safetensors::SafeTensorError> {
    TensorView::new(Dtype::F32, shape, bytes)
}
