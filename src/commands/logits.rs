//! `einfuse logits`: what the model computes for a prompt, as numbers in a file.

use std::path::PathBuf;

use clap::Args;
use einfuse::{Settings, Wanted};
use safetensors::tensor::{Dtype, TensorView};

use super::Outcome;
use super::options::{ModelOptions, PromptOptions, Threads};

const EXAMPLES: &str = "\
Examples:
  einfuse logits \"ROMEO:\" -o romeo.safetensors
  einfuse logits -m ~/smollm2-135m --ids 1,450,7483 --hidden -o out.safetensors

The file has `logits` [tokens, vocabulary] in f32, and with --hidden `hidden` [layers + 1, tokens, width]: the input of
the first layer, then the output of each layer.";

/// Write logits, and hidden states, to a safetensors file
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Logits {
    #[command(flatten)]
    prompt: PromptOptions,

    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Write the hidden states too
    #[arg(long)]
    hidden: bool,

    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    threads: Threads,
}

impl Logits {
    pub(crate) fn run(&self) -> Outcome {
        let settings = self.model.settings(self.threads.threads);
        let model = self.model.load(Settings { rows: Wanted::All, ..settings })?;
        let tokens = self.prompt.tokens(&model)?;
        let trace = model.session().trace(&tokens)?;
        let hidden: Vec<f32> = trace.hidden.concat();
        let layers = trace.hidden.len();
        let (logits_bytes, hidden_bytes) = (bytes(&trace.logits), bytes(&hidden));
        let rows = tokens.len();
        let mut tensors = vec![("logits", view(vec![rows, model.vocabulary()], &logits_bytes)?)];
        if self.hidden {
            let width = hidden.len() / (layers * rows).max(1);
            tensors.push(("hidden", view(vec![layers, rows, width], &hidden_bytes)?));
        }
        let contents = safetensors::serialize(tensors, None)?;
        std::fs::write(&self.output, contents).map_err(|e| format!("cannot write {}: {e}", self.output.display()))?;
        Ok(())
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn view(shape: Vec<usize>, bytes: &[u8]) -> Result<TensorView<'_>, safetensors::SafeTensorError> {
    TensorView::new(Dtype::F32, shape, bytes)
}
