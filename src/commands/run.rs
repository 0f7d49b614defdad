//! `einfuse run`: continues a text, or answers in a chat.

use std::error::Error;
use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use clap::Args;
use einfuse::codegen::Batch;
use einfuse::{
    Checkpoint, Conversation, Generation, Message, Model, Role, Sampling, Session, Stop, Summary, Template, runtime,
};
use serde::Serialize;

use super::Outcome;
use super::options::{ModelOptions, OutputOptions, PromptOptions, SamplingOptions, Threads};
use super::output::{print, print_json, tell, tell_error, tokens};

const EXAMPLES: &str = "\
Examples:
  einfuse run \"ROMEO:\"
  einfuse run --seed 7 -n 100 \"To be, or not to be\"
  einfuse run -m ~/smollm2-135m --temperature 0 \"The capital of France is\"
  einfuse run -m ~/smollm2-135m --ids 1,450,7483 --json
  einfuse run -m ~/smollm2-135m --context 2048 -f beginning.txt
  einfuse run -m SmolLM2-135M-Instruct.Q4_1.gguf --chat \"What is the capital of France?\"
  einfuse run -m SmolLM2-135M-Instruct.Q4_1.gguf --chat --system \"Answer in one word.\"

The text goes to standard output as it is generated, or the token ids where the model has no tokenizer; how fast, in one line,
to standard error. --json prints one object at the end, with the text, the token ids and the times in seconds.

The model's defaults of --temperature, --top-k, --top-p, --min-p and --repeat-penalty are those in its generation_config.json,
if `do_sample` is true there.

--chat writes the messages by the model's own chat template, and stops where a turn ends. Without a PROMPT (or -f) it
reads the user's turns from standard input, one a line. On a terminal, what cannot be answered is told, and was not said.";

/// Continue a text, or answer in a chat
#[derive(Args, Debug)]
#[command(
    after_help = EXAMPLES,
    mut_group("PromptOptions", |group| group.required(false)),
    mut_arg("prompt", |prompt| prompt.required_unless_present_any(["prompt_file", "ids", "chat"])),
    mut_arg("ids", |ids| ids.conflicts_with("chat")),
)]
pub(crate) struct Run {
    #[command(flatten)]
    prompt: PromptOptions,

    /// Answer the PROMPT as a message of a chat; without one, chat
    #[arg(long)]
    chat: bool,

    /// What the chat's model is told before anything else
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,

    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    threads: Threads,
}

/// What `--json` prints. Times are in seconds.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    prompt_ids: &'a [u32],
    text: String,
    token_ids: &'a [u32],
    /// `end`, `stop`, `limit` or `context`.
    stopped: &'static str,
    seed: u64,
    threads: usize,
    prompt_tokens: usize,
    prompt_tokens_per_second: f64,
    generated_tokens: usize,
    tokens_per_second: f64,
    time_to_first_token: f64,
    compile_time: f64,
    pack_time: f64,
    kernels: usize,
}

/// The most tokens that a text is continued by where nobody says.
const LIMIT: usize = 256;

impl Run {
    pub(crate) fn run(&self) -> Outcome {
        let text = self.prompt.text()?;
        let checkpoint = self.model.checkpoint()?;
        if self.chat {
            return self.chat(&checkpoint, text);
        }
        let options = self.sampling.generate(&checkpoint, Some(LIMIT))?;
        let model = self.model.load_checkpoint(&checkpoint, self.model.settings(self.threads.threads))?;
        let mut session = model.session();
        let generation = session.generate(self.prompt.prompt(text.as_deref()), &options)?;
        if let (false, Some(prompt)) = (self.output.json, &text) {
            print(prompt)?;
        }
        let text = self.write(&model, generation)?;
        self.finish(&session, session.summary().prompt_tokens, text, &options.sampling)
    }

    /// One answer, or one to each line of standard input.
    fn chat(&self, checkpoint: &Checkpoint, text: Option<String>) -> Outcome {
        let template = Template::of(checkpoint)?;
        let options = self.sampling.generate(checkpoint, None)?;
        let model = self.model.load_checkpoint(checkpoint, self.model.settings(self.threads.threads))?;
        let rules = self.system.iter().map(|text| Message { role: Role::System, content: text.clone() });
        let mut conversation = Conversation::new(&model, template, rules.collect())?;
        let mut answer = |text: &str| {
            let text = self.write(&model, conversation.say(text, &options)?)?;
            self.finish(conversation.session(), conversation.answer(), text, &options.sampling)
        };
        if let Some(text) = text {
            return answer(&text);
        }
        let stdin = io::stdin();
        let is_shown = stdin.is_terminal() && !self.output.json;
        let show = |text: &str| if is_shown { print(text) } else { Ok(()) };
        show("> ")?;
        for line in stdin.lock().lines() {
            let line = line.map_err(|error| format!("cannot read standard input: {error}"))?;
            if !line.trim().is_empty() {
                match answer(&line) {
                    // whoever types can say something else
                    Err(error) if is_shown && error.is::<runtime::Error>() => tell_error(error.as_ref()),
                    answered => answered?,
                }
            }
            show("> ")?;
        }
        Ok(show("\n")?)
    }

    /// Prints what is generated as it comes, as ids without a tokenizer; yields all of the text.
    fn write(&self, model: &Model, generation: Generation<'_, '_>) -> Result<String, Box<dyn Error>> {
        let has_text = model.tokenizer().is_ok();
        let mut text = String::new();
        for (nth, token) in generation.enumerate() {
            let token = token?;
            match (self.output.json, has_text) {
                (true, _) => {}
                (false, true) => print(&token.text)?,
                (false, false) => print(format_args!("{}{}", if nth == 0 { "" } else { "," }, token.id))?,
            }
            text += &token.text;
        }
        Ok(text)
    }

    /// Says how it went: what is after the first `prompt` tokens was generated.
    fn finish(&self, session: &Session<'_>, prompt: usize, text: String, sampling: &Sampling) -> Outcome {
        let (model, summary) = (session.model(), session.summary());
        if !self.output.json {
            print("\n")?;
            tell(dimmed(&line(model, summary, sampling)));
            return Ok(());
        }
        let (prompt_ids, token_ids) = session.tokens().split_at(prompt);
        let report = Report {
            model: self.model.name(),
            prompt_ids,
            text,
            token_ids,
            stopped: match summary.stop {
                Some(Stop::EndToken(_)) => "end",
                Some(Stop::StopString(_)) => "stop",
                Some(Stop::ContextEnd) => "context",
                Some(Stop::Limit) | None => "limit",
            },
            seed: sampling.seed,
            threads: model.threads(),
            prompt_tokens: summary.prompt_tokens,
            prompt_tokens_per_second: summary.prefill_rate(),
            generated_tokens: summary.generated_tokens,
            tokens_per_second: summary.decode_rate(),
            time_to_first_token: summary.first_token.as_secs_f64(),
            compile_time: model.program().compile_time().as_secs_f64(),
            pack_time: model.pack_time().as_secs_f64(),
            kernels: model.program().plan(Batch::One).runs().len(),
        };
        print_json(&report)?;
        Ok(())
    }
}

/// The summary in one line.
fn line(model: &Model, summary: &Summary, sampling: &Sampling) -> String {
    let compiled = model.program().compile_time();
    let mut line = format!(
        "prompt {}, {:.1} tokens/s · generated {}, {:.1} tokens/s · first token after {} · \
         compiled in {}, weights packed in {}",
        tokens(summary.prompt_tokens),
        summary.prefill_rate(),
        tokens(summary.generated_tokens),
        summary.decode_rate(),
        milliseconds(summary.first_token),
        milliseconds(compiled),
        milliseconds(model.pack_time()),
    );
    if sampling.temperature > 0.0 {
        line += &format!(" · seed {}", sampling.seed);
    }
    if let Some(stop) = &summary.stop {
        line += &format!(" · stopped at the {stop}");
    }
    line
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Grey on a terminal.
fn dimmed(line: &str) -> String {
    if io::stderr().is_terminal() { format!("\x1b[2m{line}\x1b[0m") } else { line.to_owned() }
}
