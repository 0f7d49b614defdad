//! The commands, one file each, and what they share.

mod bench;
mod check;
mod explain;
mod logits;
mod options;
pub(crate) mod output;
mod perplexity;
mod profile;
mod progress;
mod run;
mod step;
mod tune;

use std::error::Error;

use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

/// What a command returns.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// Options that make no sense together: a wrong command line, found out late.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

const EXAMPLES: &str = "\
Examples:
  einfuse run \"ROMEO:\"                            continue a text with the embedded model
  einfuse run -m ~/smollm2-135m -n 64 \"Once\"      with a model of your own
  einfuse explain                                 the kernels that the model became, and why
  einfuse bench -m ~/smollm2-135m -t 1,2          how fast, beside what the machine can do
  einfuse tune -m ~/smollm2-135m                  find faster schedules for this machine, and keep them

A model is a folder in Hugging Face's form (config.json, *.safetensors, tokenizer.json), or a GGUF file.
`einfuse <COMMAND> --help` has the options of a command.";

/// Language models written as equations over named axes, fused and compiled for this CPU.
#[derive(Parser, Debug)]
#[command(name = "einfuse", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::Run),
    Explain(explain::Explain),
    Bench(bench::Bench),
    Logits(logits::Logits),
    Perplexity(perplexity::Perplexity),
    Tune(tune::Tune),
}

impl Cli {
    /// Reads the command line. A negative number is a value of the option before it, which says whether it is a wrong one.
    pub(crate) fn read() -> Result<Cli, clap::Error> {
        let value = |arg: Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
        let mut command = Cli::command().mut_subcommands(|command| command.mut_args(value));
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }

    /// Does what the command line says.
    pub(crate) fn run(self) -> Outcome {
        match self.command {
            Command::Run(run) => run.run(),
            Command::Explain(explain) => explain.run(),
            Command::Bench(bench) => bench.run(),
            Command::Logits(logits) => logits.run(),
            Command::Perplexity(perplexity) => perplexity.run(),
            Command::Tune(tune) => tune.run(),
        }
    }
}
