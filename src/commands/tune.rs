//! `einfuse tune`: schedules that are better on this machine than the compiler's own, found by measuring.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use einfuse::codegen::{Cpu, Tiling};
use einfuse::runtime::{Finding, Findings, LeftOut, StepTimes, Tuned, Tuning, tune};
use einfuse::{Model, Settings};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::options::{ModelOptions, OutputOptions, Threads, at_least_one, check_chunk, whole_number};
use super::output::{markdown, print, print_json};
use super::{Outcome, Usage};

const EXAMPLES: &str = "\
Examples:
  einfuse tune -m ~/smollm2-135m --quant q8
  einfuse tune -m ~/smollm2-135m -t 1 --dry-run
  einfuse tune -m ~/smollm2-135m --dry-run --data measured.csv

A kernel's schedule has numbers that are a choice: the answer is the same, the speed is not. The compiler takes numbers
that serve most kernels. This command runs each kernel with others too: of a prompt, of a generated token, and
of four tokens at once, all in one process and in turn, and holds their answers against the default's. `gain` is the share of
the kernel's time that the best one saves, `noise` how far that may be off (twice the standard error, 1 % at least). What
gains more, and does so again in runs of its own, is a winner.

Winners are kept in the user's cache folder ($XDG_CACHE_HOME/einfuse or ~/.cache/einfuse, schedules.json), for this processor,
version, number of threads, and kernel: its equations, sizes and formats, whatever model it is of. All other commands use
them; --untuned does without, and `einfuse explain` says which kernels have one. Of a kernel that is tuned again and has no
winner, nothing is kept.";

/// Find faster schedules for the model's kernels on this machine, and keep them
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Tune {
    /// Tokens of the prompt, which goes through the model at once [default: 512, or what fits]
    #[arg(short, long, value_name = "N", value_parser = at_least_one)]
    prompt: Option<NonZeroUsize>,

    /// Tokens before those that are generated [default: 1024, or what fits]
    #[arg(short, long, value_name = "N", value_parser = whole_number::<usize>)]
    depth: Option<usize>,

    /// How many rounds: in each, everything runs once; nothing wins in fewer than 3
    #[arg(short, long, value_name = "N", default_value = "9", value_parser = at_least_one)]
    repeat: NonZeroUsize,

    /// Keep nothing
    #[arg(long)]
    dry_run: bool,

    /// Add all measurements to a table of comma-separated values
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    threads: Threads,
}

impl Tune {
    pub(crate) fn run(&self) -> Outcome {
        let tuned = match (self.dry_run, Tuned::of_user()) {
            (true, _) => None,
            (false, Some(tuned)) => Some(tuned),
            (false, None) => return Err("no cache folder: neither XDG_CACHE_HOME nor HOME is an absolute path".into()),
        };
        if let Some(tuned) = &tuned {
            // What could not be kept is not worth the time.
            tuned.keep(1, &[], &[])?;
        }
        let table = self.data.as_deref().map(Table::open).transpose()?;
        let settings = Settings { sequences: 2, ..self.model.settings(self.threads.threads) };
        let model = self.model.load(settings)?;
        let tuning = self.tuning(&model)?;
        let bar = ProgressBar::new(1);
        if let Ok(style) = ProgressStyle::with_template("tuning {wide_bar} {percent} %, {eta} left") {
            bar.set_style(style);
        }
        let findings = tune(&model, tuning, |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let findings = findings?;
        if let Some(tuned) = &tuned {
            tuned.keep(model.threads(), &findings.tried(), &findings.winners())?;
        }
        if let Some(table) = table {
            table.add(&findings, model.threads())?;
        }
        let kept = tuned.as_ref().map(Tuned::path);
        if self.output.json {
            print_json(&object(&self.model.name(), model.threads(), &findings, kept))?;
        } else {
            print(text(&findings, kept))?;
        }
        Ok(())
    }
}

/// Tokens of the prompt, and before those that are generated, where nobody says.
const PROMPT: usize = 512;
const DEPTH: usize = 1024;

impl Tune {
    /// What is measured of a model.
    fn tuning(&self, model: &Model) -> Result<Tuning, Usage> {
        let (context, chunk) = (model.context(), self.model.chunk);
        if let Some(prompt) = self.prompt {
            let what = format!("-p {prompt}");
            self.model.check_room(model, &what, prompt.get())?;
            check_chunk(&what, prompt.get(), chunk)?;
        }
        if let Some(depth) = self.depth.filter(|depth| *depth > 0) {
            let what = format!("-d {depth} with {} tokens after it", Tuning::GENERATED);
            self.model.check_room(model, &what, depth.saturating_add(Tuning::GENERATED))?;
        }
        Ok(Tuning {
            prompt: self.prompt.map_or(PROMPT.min(context).min(chunk.get()), NonZeroUsize::get),
            depth: self.depth.unwrap_or(DEPTH.min(context.saturating_sub(Tuning::GENERATED))),
            repeat: self.repeat.get(),
        })
    }
}

/// The numbers in which two tilings differ, of the first.
fn beside(tiling: Tiling, others: Tiling) -> String {
    let text = tiling.beside(&others);
    if text.is_empty() { "the same".to_owned() } else { text }
}

fn text(findings: &Findings, kept: Option<&Path>) -> String {
    if findings.kernels.is_empty() {
        return "No kernel has a choice.\n".to_owned();
    }
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let line = |k: &Finding| {
        vec![
            k.name.clone(),
            k.batch.name().to_owned(),
            format!("{:.1} µs", k.seconds * 1e6),
            beside(k.default, k.best),
            beside(k.best, k.default),
            percent(k.gain),
            percent(k.noise),
            if k.wins { "wins" } else { "" }.to_owned(),
        ]
    };
    let head = ["kernel", "tokens", "time", "default", "best", "gain", "noise", ""];
    let lines: Vec<Vec<String>> = findings.kernels.iter().map(line).collect();
    let mut text = markdown(&head, &lines, &[0, 1, 3, 4, 7]);
    text += "\nAll kernels together, in the median:\n";
    for StepTimes { tokens, past, default, found } in &findings.steps {
        let what = if *tokens == 1 { "one token".to_owned() } else { format!("{tokens} tokens") };
        let (default, found) = (default * 1e3, found * 1e3);
        // writing to a string does not fail
        let _ = writeln!(text, "  {what} after {past}: {default:.3} ms, with what won {found:.3} ms");
    }
    for LeftOut { kernels, batch, tilings, difference } in &findings.left_out {
        let tokens = batch.name();
        let _ = writeln!(
            text,
            "\nLeft out: {kernels} ({tokens}) with {tilings}: the answer is off by {difference:.1e}, a mistake of the compiler"
        );
    }
    let count = findings.winners().len();
    match kept {
        Some(path) => text += &format!("\n{count} kept in {}\n", path.display()),
        None => text += &format!("\n{count} would be kept\n"),
    }
    text
}

fn object(model: &str, threads: usize, findings: &Findings, kept: Option<&Path>) -> Value {
    let kernel = |k: &Finding| {
        json!({
            "name": k.name,
            "tokens": k.batch.name(),
            "kernel": k.identity,
            "time": k.seconds,
            "default": k.default,
            "best": k.best,
            "gain": k.gain,
            "noise": k.noise,
            "wins": k.wins,
        })
    };
    let left_out = |off: &LeftOut| {
        let LeftOut { kernels, batch, tilings, difference } = off;
        json!({ "kernels": kernels, "tokens": batch.name(), "tilings": tilings, "difference": difference })
    };
    let step = |s: &StepTimes| json!({ "tokens": s.tokens, "past": s.past, "default": s.default, "found": s.found });
    json!({
        "model": model,
        "threads": threads,
        "kernels": findings.kernels.iter().map(kernel).collect::<Vec<_>>(),
        "steps": findings.steps.iter().map(step).collect::<Vec<_>>(),
        "left_out": findings.left_out.iter().map(left_out).collect::<Vec<_>>(),
        "kept": kept.map(|path| path.display().to_string()),
    })
}

/// The columns of the table of measurements.
const COLUMNS: &str = "cpu,batch,shape,first_cache,second_cache,threads,tokens,past,rows,depth,columns,outer,bits,\
                       block,core,prepared,tile,parts,seconds,ratio,noise";

/// A table of measurements.
struct Table {
    path: PathBuf,
    file: File,
    cpu: Cpu,
    is_new: bool,
}

impl Table {
    /// Opens a table, or makes it.
    fn open(path: &Path) -> Result<Table, Box<dyn std::error::Error>> {
        let failed = |e: io::Error| format!("cannot write {}: {e}", path.display());
        let cpu = Cpu::host()?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        let mut before = Vec::new();
        file.read_to_end(&mut before).map_err(failed)?;
        let is_ours = before.strip_prefix(COLUMNS.as_bytes()).is_some_and(|rest| rest.starts_with(b"\n"));
        if !before.is_empty() && !is_ours {
            let path = path.display();
            return Err(format!("{path} is not a table of measurements: its first line is not `{COLUMNS}`").into());
        }
        Ok(Table { path: path.to_owned(), file, cpu, is_new: before.is_empty() })
    }

    fn add(mut self, findings: &Findings, threads: usize) -> Result<(), String> {
        let mut text = if self.is_new { format!("{COLUMNS}\n") } else { String::new() };
        let Cpu { name: cpu, caches, .. } = &self.cpu;
        let cpu = cpu.replace([',', '"'], " ");
        for t in &findings.trials {
            let (sizes, tiling) = (t.sizes, t.tiling);
            let numbers = [caches.first, caches.second, threads, t.tokens, t.past].into_iter();
            let numbers = numbers.chain([sizes.rows, sizes.depth, sizes.columns, sizes.outer, sizes.bits]);
            let numbers = numbers.chain([tiling.block, tiling.core, tiling.prepared, tiling.tile, tiling.parts]);
            let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
            let (batch, shape, numbers) = (t.batch.name(), t.shape, numbers.join(","));
            // writing to a string does not fail
            let _ = writeln!(text, "{cpu},{batch},{shape},{numbers},{:.3e},{:.4},{:.4}", t.seconds, t.ratio, t.noise);
        }
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|e| format!("cannot write {}: {e}", self.path.display()))
    }
}
