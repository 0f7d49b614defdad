//! `einfuse bench`: tokens per second, beside what the machine can do.

use std::num::NonZeroUsize;
use std::time::Instant;

use clap::{Args, ValueEnum};
use einfuse::{Model, runtime};
use serde::Serialize;

use super::options::{ModelOptions, OutputOptions, at_least_one, thread_count};
use super::output::{markdown, print, print_json};
use super::profile::{Profile, Timed};
use super::step;
use super::{Outcome, Usage};
use crate::peak::Peaks;

const EXAMPLES: &str = "\
Examples:
  einfuse bench -m ~/smollm2-135m -p 512 -n 128 -t 1,2
  einfuse bench -m ~/smollm2-135m --precision bf16 -p 0 -n 32 -d 1900 --json
  einfuse bench -m ~/smollm2-135m -p 0 --profile

`pp512` reads 512 tokens at once, `tg128` generates 128 one after another, `@ d1900` after 1,900 others. Beside tokens
per second stands what of the machine they use: generation reads weights and cache (GB/s, against a plain read of a
large buffer), a prompt computes (GFLOP/s, against vectors of 128 bits multiplied and added in registers). Both peaks
are measured before and after the tests, on as many threads, and the better one counts.

--profile repeats the tests with an eye on the clock. Of one generated token, and of one prompt, it shows for each kernel
how often it is called, how long all its calls take, and what they use of the machine: all bytes that they read and write
(which a cache may hold, and deliver faster than memory), or operations. `outside kernels` is what is left of the time: the
way from call to call, what comes before the first and after the last, and the clock itself.";

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

    /// Show where the time goes too: the kernels of a generated token, and of the prompt
    #[arg(long)]
    profile: bool,

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
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
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
            let measure = |profile| -> Result<_, runtime::Error> {
                let prompts = self.measure(&model, prompt, prompt, profile)?;
                Ok((prompts, self.measure(&model, generate, 1, profile)?))
            };
            let (prompts, generated) = measure(false)?;
            // in runs of their own: to look at the clock takes time
            let profiles = if self.profile { Some(measure(true)?) } else { None };
            // what else runs on the machine lowers a peak, and must not flatter us
            let peaks = before.or(Peaks::measure(count.get())?);
            if prompt > 0 {
                let flops = step::cost(&model, prompt, self.depth).flops / prompt as f64;
                let chunk = model.program().options().chunk;
                let steps = (0..prompt).step_by(chunk).map(|at| ((prompt - at).min(chunk), self.depth + at));
                let steps: Vec<_> = steps.collect();
                let profile = profiles.as_ref().map(|(runs, _)| Profile::of(&model, &steps, runs, 1, peaks));
                let rates = rates(&prompts, prompt);
                let row = self.row(&model, &format!("pp{prompt}"), &rates, "FLOP/s", flops, peaks.flops);
                rows.push(Row { profile, ..row });
            }
            if generate > 0 {
                let past = self.depth + generate / 2;
                let bytes = step::cost(&model, 1, past).stored;
                let steps = [(1, past)];
                let profile = profiles.as_ref().map(|(_, runs)| Profile::of(&model, &steps, runs, generate, peaks));
                let rates = rates(&generated, generate);
                let row = self.row(&model, &format!("tg{generate}"), &rates, "B/s", bytes, peaks.bytes);
                rows.push(Row { profile, ..row });
            }
        }
        if self.output.json || self.form == Form::Json {
            print_json(&rows)?;
            return Ok(());
        }
        print(table(&rows))?;
        for row in rows {
            if let Some(profile) = &row.profile {
                print(profile.table(&format!("{}, -t {}", row.test, row.threads)))?;
            }
        }
        Ok(())
    }

    /// How long each repetition takes to read so many tokens, `at_once` in a call; one before them warms up. None of no
    /// tokens.
    fn measure(
        &self,
        model: &Model,
        count: usize,
        at_once: usize,
        profile: bool,
    ) -> Result<Vec<Timed>, runtime::Error> {
        if count == 0 {
            return Ok(Vec::new());
        }
        // any tokens do, as long as they differ
        let token = |i: usize| ((i * 7919 + 17) % model.vocabulary()) as u32;
        let tokens: Vec<u32> = (0..self.depth + count).map(token).collect();
        let (before, tokens) = tokens.split_at(self.depth);
        let mut session = model.session();
        let mut runs = Vec::new();
        for _ in 0..=self.repeat.get() {
            session.clear();
            if !before.is_empty() {
                session.feed(before)?;
            }
            if profile {
                session.workspace().measure();
            }
            let start = Instant::now();
            tokens.chunks(at_once).try_for_each(|tokens| session.feed(tokens).map(drop))?;
            runs.push(Timed { whole: start.elapsed(), kernels: session.workspace().times().to_vec() });
        }
        Ok(runs.split_off(1))
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
            profile: None,
        }
    }
}

/// Tokens per second of each of the runs.
fn rates(runs: &[Timed], count: usize) -> Vec<f64> {
    runs.iter().map(|run| count as f64 / run.whole.as_secs_f64()).collect()
}

/// The rows as `llama-bench` prints them, with what of the machine is used behind.
fn table(rows: &[Row]) -> String {
    let head = ["model", "size", "params", "threads", "test", "t/s", "achieved", "peak", "share"];
    let line = |row: &Row| {
        let giga = |x: f64| format!("{:.1} G{}", x / 1e9, row.unit);
        [
            row.model.clone(),
            format!("{:.2} MiB", row.size as f64 / (1 << 20) as f64),
            format!("{:.2} M", row.params as f64 / 1e6),
            row.threads.to_string(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.tokens_per_second, row.deviation),
            giga(row.achieved),
            giga(row.peak),
            format!("{:.0} %", 100.0 * row.achieved / row.peak),
        ]
    };
    markdown(head, &rows.iter().map(line).collect::<Vec<_>>(), &[0, 4])
}
