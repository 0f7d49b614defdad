//! `einfuse bench`: tokens per second, beside what the machine can do.

use std::num::NonZeroUsize;
use std::time::Instant;

use clap::{Args, ValueEnum};
use einfuse::{Model, Session, runtime};
use serde::Serialize;

use super::options::{ModelOptions, OutputOptions, at_least_one, thread_count};
use super::output::{print, print_json};
use super::step;
use super::{Outcome, Usage};
use crate::peak::Peaks;

const EXAMPLES: &str = "\
Examples:
  einfuse bench -m ~/smollm2-135m -p 512 -n 128 -t 1,2
  einfuse bench -m ~/smollm2-135m --precision bf16 -p 0 -n 32 -d 1900 -o json

`pp512` reads 512 tokens at once, `tg128` generates 128 one after another, `@ d1900` after 1,900 others. Beside tokens
per second stands what of the machine they use: generation reads weights and cache (GB/s, against a plain read of a
large buffer), a prompt computes (GFLOP/s, against vectors of 128 bits multiplied and added in registers). Both peaks
are measured before and after the tests, on as many threads, and the better one counts.";

/// Measure tokens per second, and the machine's peaks beside them
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    /// Tokens of the prompt; 0: none [default: 512, or what fits]
    #[arg(short, long, value_name = "N")]
    prompt: Option<usize>,

    /// Tokens to generate; 0: none [default: 128, or what fits]
    #[arg(short = 'n', long, value_name = "N")]
    generate: Option<usize>,

    /// Tokens that come before, for both
    #[arg(short, long, value_name = "N", default_value = "0")]
    depth: usize,

    /// Numbers of threads, separated by commas [default: one per core]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = thread_count)]
    threads: Vec<NonZeroUsize>,

    /// How often each test is repeated
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    repeat: NonZeroUsize,

    /// A table in markdown, or a list of objects, as --json has it too
    #[arg(short = 'o', long = "output", value_enum, default_value = "md", conflicts_with = "json")]
    form: Form,

    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    model: ModelOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Md,
    Json,
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    model: String,
    /// Bytes of the packed weights.
    size: usize,
    params: usize,
    threads: usize,
    test: String,
    /// Tokens per second, and the standard deviation between repetitions.
    tokens_per_second: f64,
    deviation: f64,
    /// What was used of the machine, per second: bytes read from memory, or operations on floats.
    unit: &'static str,
    achieved: f64,
    peak: f64,
}

impl Bench {
    pub(crate) fn run(&self) -> Outcome {
        let mut rows = Vec::new();
        let default = NonZeroUsize::new(runtime::default_threads());
        let threads = if self.threads.is_empty() { default.into_iter().collect() } else { self.threads.clone() };
        for count in threads {
            let before = Peaks::measure(count.get())?;
            let model = self.model.load(self.model.settings(Some(count)))?;
            let room = model.context().saturating_sub(self.depth);
            let prompt = self.prompt.unwrap_or(room.min(512));
            let generate = self.generate.unwrap_or(room.min(128));
            if prompt == 0 && generate == 0 {
                return Err(Usage("nothing to measure: -p and -n are both 0".to_owned()).into());
            }
            let read = |session: &mut Session<'_>, tokens: &[u32]| session.feed(tokens).map(drop);
            let write =
                |session: &mut Session<'_>, tokens: &[u32]| tokens.iter().try_for_each(|&t| read(session, &[t]));
            let prompts = self.measure(&model, prompt, read)?;
            let generated = self.measure(&model, generate, write)?;
            // what else runs on the machine lowers a peak, and must not flatter us
            let peaks = before.or(Peaks::measure(count.get())?);
            if prompt > 0 {
                let flops = step::cost(&model, prompt, self.depth).flops / prompt as f64;
                rows.push(self.row(&model, &format!("pp{prompt}"), &prompts, "FLOP/s", flops, peaks.flops));
            }
            if generate > 0 {
                let bytes = step::cost(&model, 1, self.depth + generate / 2).stored;
                rows.push(self.row(&model, &format!("tg{generate}"), &generated, "B/s", bytes, peaks.bytes));
            }
        }
        if self.output.json || self.form == Form::Json {
            print_json(&rows)?;
        } else {
            print(table(&rows))?;
        }
        Ok(())
    }

    /// Tokens per second of each repetition; one before them warms up. None of no tokens.
    fn measure(
        &self,
        model: &Model,
        count: usize,
        work: impl Fn(&mut Session<'_>, &[u32]) -> Result<(), runtime::Error>,
    ) -> Result<Vec<f64>, runtime::Error> {
        if count == 0 {
            return Ok(Vec::new());
        }
        // any tokens do, as long as they differ
        let token = |i: usize| ((i * 7919 + 17) % model.vocabulary()) as u32;
        let tokens: Vec<u32> = (0..self.depth + count).map(token).collect();
        let (before, tokens) = tokens.split_at(self.depth);
        let mut session = model.session();
        let mut rates = Vec::new();
        for _ in 0..=self.repeat.get() {
            session.clear();
            if !before.is_empty() {
                session.feed(before)?;
            }
            let start = Instant::now();
            work(&mut session, tokens)?;
            rates.push(count as f64 / start.elapsed().as_secs_f64());
        }
        Ok(rates.split_off(1))
    }

    fn row(&self, model: &Model, test: &str, rates: &[f64], unit: &'static str, per_token: f64, peak: f64) -> Row {
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let square = |rate: &f64| (rate - mean) * (rate - mean);
        let variance = rates.iter().map(square).sum::<f64>() / (rates.len() - 1).max(1) as f64;
        let depth = if self.depth > 0 { format!(" @ d{}", self.depth) } else { String::new() };
        Row {
            model: self.model.name(),
            size: model.program().weight_bytes(),
            params: step::parameters(model),
            threads: model.threads(),
            test: format!("{test}{depth}"),
            tokens_per_second: mean,
            deviation: variance.sqrt(),
            unit,
            achieved: mean * per_token,
            peak,
        }
    }
}

/// The rows as `llama-bench` prints them, with what of the machine is used behind.
fn table(rows: &[Row]) -> String {
    let head = ["model", "size", "params", "threads", "test", "t/s", "achieved", "peak", "share"].map(str::to_owned);
    let mut lines = vec![head.to_vec()];
    for row in rows {
        let giga = |x: f64| format!("{:.1} G{}", x / 1e9, row.unit);
        lines.push(vec![
            row.model.clone(),
            format!("{:.2} MiB", row.size as f64 / (1 << 20) as f64),
            format!("{:.2} M", row.params as f64 / 1e6),
            row.threads.to_string(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.tokens_per_second, row.deviation),
            giga(row.achieved),
            giga(row.peak),
            format!("{:.0} %", 100.0 * row.achieved / row.peak),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let left = |column: usize| matches!(column, 0 | 4);
    let cell = |column: usize, text: &str| match left(column) {
        true => format!(" {text:<0$} ", widths[column]),
        false => format!(" {text:>0$} ", widths[column]),
    };
    let line = |cells: &[String]| format!("|{}|\n", cells.join("|"));
    let mut text = String::new();
    for (i, cells) in lines.iter().enumerate() {
        let cells: Vec<String> = cells.iter().enumerate().map(|(column, text)| cell(column, text)).collect();
        text += &line(&cells);
        if i == 0 {
            let rule = |column: usize| match left(column) {
                true => format!(" {} ", "-".repeat(widths[column])),
                false => format!(" {}: ", "-".repeat(widths[column] - 1)),
            };
            text += &line(&(0..widths.len()).map(rule).collect::<Vec<_>>());
        }
    }
    text
}
