//! `einfuse bench`: tokens per second, beside what the machine can do.

use std::num::NonZeroUsize;
use std::time::Instant;

use clap::{Args, ValueEnum};
use einfuse::codegen::loops::FEW;
use einfuse::{Model, Settings, codegen, runtime};
use serde::Serialize;

use super::check::Check;
use super::options::{ModelOptions, OutputOptions, at_least_one, check_chunk, check_room, thread_count, whole_number};
use super::output::{markdown, print, print_json};
use super::profile::{Profile, Timed};
use super::step::{self, Step};
use super::{Outcome, Usage};
use crate::peak::{Gauge, Peaks};

const EXAMPLES: &str = "\
Examples:
  einfuse bench -m ~/smollm2-135m -p 512 -n 128 -t 1,2
  einfuse bench -m ~/smollm2-135m --precision bf16 -n 32 -d 0,4096,16384 --json
  einfuse bench -m ~/smollm2-135m -p 0 -b 2,4,8
  einfuse bench -m ~/smollm2-135m --quant q8 -p 0 -n 0 --check
  einfuse bench -m ~/smollm2-135m -p 0 --profile

`pp512` reads 512 tokens, --chunk at once, `tg128` generates 128 one after another, `@ d4096` after 4,096 others, be
they more than the model was made for, unless it has learned its positions one by one, as the embedded model has. Beside
tokens per second stands what of the machine they use: generation reads weights and cache (GB/s, against reading a large
buffer and nothing else: more than that is what a cache keeps), a prompt computes (GFLOP/s, against the multiplier that
most weights go through, in the widest vectors or tiles that this machine's cores have: of f32, of pairs of bf16, of
fours or pairs of bytes, or pairs of words, which serve bf16 or codes of 8 and 4 bits; alone, and in registers; where
keys and values go through another one, each counts for its share of the operations). Both peaks are measured before each
repetition, on the same threads: machines that are shared have better and worse minutes. All that is shown is a mean of
the repetitions.

`tg 4×` goes on by 4 tokens at once, as when drafts are verified, with the logits of all (beyond 8: of the last), as far as
`tg` does, in runs that alternate with it. Its `cost` is what a step takes, where one of a single token takes 1 (medians).

--check reads 1,024 tokens of Shakespeare with the model as the options want it, and with the same model in f32:
weights, cache and all. It prints the perplexity of both and their ratio, at how many positions both find the same token
the likeliest, how far the probabilities diverge (Kullback and Leibler's measure) and the logits differ, on average and
at most. It fails beyond these bounds on the ratio and on the share of positions, which the coarsest storage decides:
f32 1.0001, 99.9 %; bf16, in the cache too, 1.01, 97 %; q8 1.02, 93 %; q4 1.3, 60 %, which is loose: a small model loses
much.

--profile repeats the tests with an eye on the clock. Of one generated token, and of one prompt, it shows for each kernel
how often it is called, how long all its calls take, and what they use of the machine: all bytes that they read and write
(which a cache may hold, and deliver faster than memory), or operations. `outside kernels` is what is left of the time: the
way from call to call, what comes before the first and after the last, and the clock itself.";

/// Measure tokens per second, and the machine's peaks beside them
#[derive(Args, Debug)]
#[command(
    after_help = EXAMPLES,
    mut_arg("context", |context| context.help("Most positions of a sequence [default: as many as the tests take]")),
)]
pub(crate) struct Bench {
    /// Tokens of the prompt; 0: none [default: 512, or what fits]
    #[arg(short, long, value_name = "N", value_parser = whole_number::<usize>)]
    prompt: Option<usize>,

    /// Tokens to generate; 0: none [default: 128, or what fits]
    #[arg(short = 'n', long, value_name = "N", value_parser = whole_number::<usize>)]
    generate: Option<usize>,

    /// Tokens that come before, for all tests; several numbers, separated by commas, repeat them
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "0", value_parser = whole_number::<usize>)]
    depth: Vec<usize>,

    /// Generate by so many tokens at once too; numbers separated by commas
    #[arg(short = 'b', long, value_name = "N", value_delimiter = ',', value_parser = at_least_one)]
    rows: Vec<NonZeroUsize>,

    /// Numbers of threads, separated by commas [default: one per core]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = thread_count)]
    threads: Vec<NonZeroUsize>,

    /// How often each test is repeated
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    repeat: NonZeroUsize,

    /// Hold the model against itself in f32, and fail where it is too far off
    #[arg(long)]
    check: bool,

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
    /// Tokens before it.
    depth: usize,
    /// Tokens per second: the mean, the standard deviation between repetitions, and each of them.
    tokens_per_second: f64,
    deviation: f64,
    samples: Vec<f64>,
    /// What was used of the machine, per second: bytes read from memory, or operations on numbers.
    unit: &'static str,
    achieved: f64,
    peak: f64,
    /// What does the operations at their peak: those with weights, and those with keys and values.
    #[serde(skip_serializing_if = "Option::is_none")]
    multiplier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multiplier_of_caches: Option<String>,
    /// Of a step of several tokens: the time it takes, in steps of one token.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

/// What --json has in its list.
#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Row(&'a Row),
    Check(&'a Check),
}

/// What is measured: so many tokens after others, each step `at_once`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    depth: usize,
    tokens: usize,
    at_once: usize,
    /// Of how many tokens of each step the logits are wanted.
    wanted: usize,
}

impl Test {
    fn steps(self) -> impl Iterator<Item = Step> {
        let Test { depth, tokens, at_once, wanted } = self;
        (0..tokens).step_by(at_once).map(move |at| Step { tokens: at_once.min(tokens - at), past: depth + at, wanted })
    }
}

/// A test, with how long each of its runs took: as they are, and with an eye on the clock.
struct Measured {
    test: Test,
    runs: Vec<Timed>,
    profiled: Vec<Timed>,
}

impl Measured {
    /// Seconds of the run in the middle.
    fn median(&self) -> f64 {
        let mut seconds: Vec<f64> = self.runs.iter().map(|run| run.whole.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        let middle = seconds.len() / 2;
        match seconds.len() % 2 {
            0 => seconds[middle.saturating_sub(1)..=middle].iter().sum::<f64>() / 2.0,
            _ => seconds[middle],
        }
    }

    /// The machine's peaks meanwhile.
    fn peaks(&self) -> Peaks {
        Peaks::mean(self.runs.iter().map(|run| run.peaks))
    }

    /// Seconds that a step takes.
    fn step(&self) -> f64 {
        self.median() / self.test.steps().count() as f64
    }
}

/// What is measured after one depth.
struct AtDepth {
    prompt: Option<Measured>,
    generated: Option<Measured>,
    rows: Vec<Measured>,
}

/// Tokens of a prompt, and to generate, where nobody says.
const PROMPT: usize = 512;
const GENERATE: usize = 128;

impl Bench {
    pub(crate) fn run(&self) -> Outcome {
        let nothing = self.prompt == Some(0) && self.generate == Some(0);
        if nothing && !self.check {
            return Err(Usage("nothing to measure: -p and -n are both 0".to_owned()).into());
        }
        if !self.rows.is_empty() && self.generate == Some(0) {
            return Err(Usage("-b goes as far as -n says, and -n is 0".to_owned()).into());
        }
        for rows in &self.rows {
            check_chunk(&format!("-b {rows}"), rows.get(), self.model.chunk)?;
        }
        self.check_room(|what, positions| {
            check_room(what, positions, (codegen::MOST_POSITIONS, "a sequence has at most"))
        })?;
        let default = NonZeroUsize::new(runtime::default_threads());
        let threads = if self.threads.is_empty() { default.into_iter().collect() } else { self.threads.clone() };
        let check = match self.check {
            true => Some(Check::run(&self.model, threads.iter().max().copied())?),
            false => None,
        };
        let mut rows = Vec::new();
        if !nothing {
            for count in threads {
                self.rows(count, &mut rows)?;
            }
        }
        if self.output.json || self.form == Form::Json {
            let items: Vec<Item<'_>> = rows.iter().map(Item::Row).chain(check.iter().map(Item::Check)).collect();
            print_json(&items)?;
        } else {
            print(self.text(&rows, check.as_ref()))?;
        }
        check.map_or(Ok(()), |check| check.verdict())?;
        Ok(())
    }

    /// The rows of all tests with so many threads.
    fn rows(&self, threads: NonZeroUsize, rows: &mut Vec<Row>) -> Outcome {
        let model = self.load(threads)?;
        if let Some(context) = self.model.context {
            self.model.check_room(&model, &format!("--context {context}"), context)?;
        }
        self.check_room(|what, positions| self.model.check_room(&model, what, positions))?;
        let gauge = Gauge::new(model.team(), step::storages(&model))?;
        for &depth in &self.depth {
            let AtDepth { prompt, generated, rows: at_once } = self.at(&model, &gauge, depth)?;
            rows.extend(prompt.map(|measured| self.prompt_row(&model, &gauge, &measured)));
            let Some(generated) = generated else { continue };
            rows.push(self.generated_row(&model, &generated, None));
            for measured in at_once {
                let cost = measured.step() / generated.step();
                rows.push(self.generated_row(&model, &measured, Some(cost)));
            }
        }
        Ok(())
    }

    /// Checks each test that was asked for: its name, and the positions that it takes. Of the others there is to be a token.
    fn check_room(&self, check: impl Fn(&str, usize) -> Result<(), Usage>) -> Result<(), Usage> {
        let rows = self.rows.iter().max().map(|rows| rows.get());
        for &depth in &self.depth {
            for (option, tokens) in [("-p", self.prompt), ("-n", self.generate), ("-b", rows)] {
                if let Some(tokens) = tokens.filter(|tokens| *tokens > 0) {
                    check(&format!("{option} {tokens} after -d {depth}"), depth.saturating_add(tokens))?;
                }
            }
            check(&format!("a token after -d {depth}"), depth.saturating_add(1))?;
        }
        Ok(())
    }

    /// Loads the model for sequences as long as --context says or the tests want, even if it was made for shorter ones: their
    /// speed is measured, and two of them are kept.
    fn load(&self, threads: NonZeroUsize) -> Result<Model, einfuse::Error> {
        let checkpoint = self.model.checkpoint()?;
        let made_for = einfuse::context_of(&checkpoint)?;
        let deepest = self.depth.iter().max().copied().unwrap_or(0);
        let rows = self.rows.iter().max().map_or(0, |rows| rows.get());
        let after = |prompt: usize, generate: usize| deepest.saturating_add(prompt.max(generate).max(rows));
        let asked = after(self.prompt.unwrap_or(1), self.generate.unwrap_or(1));
        let wanted = after(self.prompt.unwrap_or(PROMPT), self.generate.unwrap_or(GENERATE));
        let most = made_for.filter(|made_for| asked <= *made_for).unwrap_or(codegen::MOST_POSITIONS);
        let context = self.model.context.unwrap_or(wanted.min(most));
        let settings = self.model.settings(Some(threads));
        let graph = einfuse::graph_of(&checkpoint, Some(context))?;
        self.model.announced(Settings { context: Some(context), sequences: 2, ..settings }, |settings| {
            Ok(Model::load(&checkpoint, &graph, settings)?)
        })
    }

    /// Measures all tests after a depth.
    fn at(&self, model: &Model, gauge: &Gauge<'_>, depth: usize) -> Result<AtDepth, runtime::Error> {
        let room = model.context().saturating_sub(depth);
        let (prompt, generate) = (self.prompt.unwrap_or(room.min(PROMPT)), self.generate.unwrap_or(room.min(GENERATE)));
        // any tokens do, as long as they differ
        let longest = self.rows.iter().map(|rows| rows.get()).fold(prompt.max(generate), usize::max);
        let token = |i: usize| ((i * 7919 + 17) % model.ids()) as u32;
        let tokens: Vec<u32> = (0..depth + longest).map(token).collect();
        let mut base = model.session();
        if depth > 0 {
            base.feed(&tokens[..depth])?;
        }
        let prompts = (prompt > 0).then_some(Test { depth, tokens: prompt, at_once: prompt, wanted: 1 });
        let one = (generate > 0).then_some(Test { depth, tokens: generate, at_once: 1, wanted: 1 });
        let rows = self.rows.iter().map(|rows| rows.get()).map(|rows| {
            let steps = (generate / rows).max(1);
            Test { depth, tokens: steps * rows, at_once: rows, wanted: if rows <= FEW { rows } else { 1 } }
        });
        let generated: Vec<Test> = one.into_iter().chain(rows.filter(|_| one.is_some())).collect();
        let mut prompts = self.measure(&base, gauge, &tokens[depth..], prompts.as_slice())?;
        let mut generated = self.measure(&base, gauge, &tokens[depth..], &generated)?.into_iter();
        Ok(AtDepth { prompt: prompts.pop(), generated: generated.next(), rows: generated.collect() })
    }

    /// How long each repetition of some tests takes, which alternate; one before them warms up. Each run continues the
    /// same sequence.
    fn measure(
        &self,
        base: &runtime::Session<'_>,
        gauge: &Gauge<'_>,
        tokens: &[u32],
        tests: &[Test],
    ) -> Result<Vec<Measured>, runtime::Error> {
        let mut measured: Vec<Measured> =
            tests.iter().map(|&test| Measured { test, runs: Vec::new(), profiled: Vec::new() }).collect();
        // with an eye on the clock in runs of their own: to look at it takes time
        for profile in [false, true].into_iter().take(if self.profile { 2 } else { 1 }) {
            for repetition in 0..=self.repeat.get() {
                for Measured { test, runs, profiled } in &mut measured {
                    let peaks = gauge.peaks();
                    let mut session = base.fork();
                    if profile {
                        session.workspace().measure();
                    }
                    let start = Instant::now();
                    let mut steps = tokens[..test.tokens].chunks(test.at_once);
                    steps.try_for_each(|tokens| match test.wanted {
                        1 => session.feed(tokens).map(drop),
                        _ => session.feed_all(tokens).map(drop),
                    })?;
                    let whole = start.elapsed();
                    let run = Timed { whole, kernels: session.workspace().times().to_vec(), peaks };
                    if repetition > 0 {
                        if profile { profiled } else { runs }.push(run);
                    }
                }
            }
        }
        Ok(measured)
    }

    /// What a prompt's rate is, beside the peak of its arithmetic.
    fn prompt_row(&self, model: &Model, gauge: &Gauge<'_>, measured: &Measured) -> Row {
        let (test, peaks) = (measured.test, measured.peaks());
        let chunk = model.program().options().chunk;
        let steps: Vec<Step> = Test { at_once: chunk, ..test }.steps().collect();
        let (mut flops, mut least) = (0.0, 0.0);
        for &step in &steps {
            let cost = step::costs(model, step);
            for (kernel, times) in model.program().plan(step.batch(model)).runs() {
                let own = cost(kernel, times).flops;
                flops += own;
                least += own / peaks.arithmetic(kernel);
            }
        }
        let profile = self.profile.then(|| Profile::of(model, &steps, &measured.profiled, 1));
        let row = self.row(model, measured, format!("pp{}", test.tokens), flops / test.tokens as f64);
        let [multiplier, multiplier_of_caches] = gauge.multipliers().map(|multiplier| Some(multiplier.to_string()));
        Row { unit: "FLOP/s", peak: flops / least, multiplier, multiplier_of_caches, profile, ..row }
    }

    /// What the rate of a generation is, beside the peak of what it reads.
    fn generated_row(&self, model: &Model, measured: &Measured, cost: Option<f64>) -> Row {
        let Test { depth, tokens, at_once, wanted } = measured.test;
        let step = Step { tokens: at_once, past: depth + tokens / 2, wanted };
        let bytes = step::cost(model, step).stored / at_once as f64;
        let steps = measured.test.steps().count();
        let profile = self.profile.then(|| Profile::of(model, &[step], &measured.profiled, steps));
        let name = if cost.is_some() { format!("tg {at_once}×") } else { format!("tg{tokens}") };
        Row { unit: "B/s", peak: measured.peaks().bytes, cost, profile, ..self.row(model, measured, name, bytes) }
    }

    /// What all rows have; `per_token` of the machine is used by a token.
    fn row(&self, model: &Model, measured: &Measured, name: String, per_token: f64) -> Row {
        let Test { depth, tokens, .. } = measured.test;
        let rates: Vec<f64> = measured.runs.iter().map(|run| tokens as f64 / run.whole.as_secs_f64()).collect();
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let square = |rate: &f64| (rate - mean) * (rate - mean);
        let variance = rates.iter().map(square).sum::<f64>() / (rates.len() - 1).max(1) as f64;
        let after = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
        Row {
            model: self.model.name(),
            size: model.program().weight_bytes(),
            params: step::parameters(model),
            threads: model.threads(),
            test: name + &after,
            depth,
            tokens_per_second: mean,
            deviation: variance.sqrt(),
            samples: rates,
            unit: "",
            achieved: mean * per_token,
            peak: 0.0,
            multiplier: None,
            multiplier_of_caches: None,
            cost: None,
            profile: None,
        }
    }

    /// Everything that was found, to be read.
    fn text(&self, rows: &[Row], check: Option<&Check>) -> String {
        let mut text = if rows.is_empty() { String::new() } else { table(rows) };
        if let Some((weights, caches)) =
            rows.iter().find_map(|row| row.multiplier.as_ref().zip(row.multiplier_of_caches.as_ref()))
        {
            let of = if weights == caches { weights } else { &format!("{weights} (keys and values: {caches})") };
            text += &format!("\nThe peak of FLOP/s is that of {of}, multiplied and added in registers.\n");
        }
        for row in rows {
            if let Some(profile) = &row.profile {
                text += &profile.table(&format!("{}, -t {}", row.test, row.threads));
            }
        }
        text + &check.map(Check::text).unwrap_or_default()
    }
}

/// The rows as `llama-bench` prints them, with what of the machine is used behind.
fn table(rows: &[Row]) -> String {
    let mut head = vec!["model", "size", "params", "threads", "test", "t/s", "achieved", "peak", "share"];
    let costs = rows.iter().any(|row| row.cost.is_some());
    if costs {
        head.push("cost");
    }
    let line = |row: &Row| {
        let giga = |x: f64| format!("{:.1} G{}", x / 1e9, row.unit);
        let mut line = vec![
            row.model.clone(),
            format!("{:.2} MiB", row.size as f64 / (1 << 20) as f64),
            format!("{:.2} M", row.params as f64 / 1e6),
            row.threads.to_string(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.tokens_per_second, row.deviation),
            giga(row.achieved),
            giga(row.peak),
            format!("{:.0} %", 100.0 * row.achieved / row.peak),
        ];
        if costs {
            line.push(row.cost.map(|cost| format!("{cost:.2}")).unwrap_or_default());
        }
        line
    };
    markdown(&head, &rows.iter().map(line).collect::<Vec<_>>(), &[0, 4])
}
