//! `einfuse explain`: what the model became: kernels, the rules that made them, their costs, their code.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use einfuse::codegen::cost::Cost;
use einfuse::codegen::fuse::{Kernel, Plan, Remark};
use einfuse::codegen::{Alone, Batch, KeptWeight, Scheduled};
use einfuse::runtime::Chosen;
use einfuse::{Model, Rule, Settings};
use serde_json::{Value, json};

use super::options::{ModelOptions, OutputOptions, Threads, at_least_one, check_chunk, whole_number};
use super::output::{print, print_json};
use super::step::{self, Step};
use super::{Outcome, Usage};
use crate::peak::Gauge;

const EXAMPLES: &str = "\
Examples:
  einfuse explain                                      what a decoded token costs, kernel by kernel
  einfuse explain -m ~/smollm2-135m --tokens 512       the same for a prompt
  einfuse explain --without online-softmax             what would be without a rule
  einfuse explain -m ~/mixture --prompt \"To be\"        how often each expert is chosen, too
  einfuse explain --dump asm --kernel logits           the code of kernels with such a name

`+` is what a rule did, `-` why a rule that nearly applied did not. Flops and bytes are those of one run;
the sum has less for the last layer, where of a prompt the wanted rows alone are computed (tail).";

/// Counts of choices in a line.
const IN_LINE: usize = 16;

/// Show the kernels that the model became, and why
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Explain {
    /// Tokens of the step whose costs are shown
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    tokens: NonZeroUsize,

    /// Positions before that step
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole_number::<usize>)]
    past: usize,

    /// Print what a stage of the compiler made instead: the model's equations, the kernels without their costs, their loops,
    /// Cranelift's intermediate form, machine code
    #[arg(long, value_enum, value_name = "STAGE", conflicts_with = "json")]
    dump: Option<Stage>,

    /// Show what the tokens of this text choose too, in a model that chooses: how often each expert, layer by layer
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["dump", "kernel"])]
    prompt: Option<String>,

    /// Only kernels whose name has this in it (the graph has none)
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,

    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    Graph,
    Plan,
    Loops,
    Clif,
    Asm,
}

impl Explain {
    pub(crate) fn run(&self) -> Outcome {
        if self.dump == Some(Stage::Graph) {
            if self.kernel.is_some() {
                return Err(
                    Usage("--kernel chooses none of --dump graph: a graph has no kernels yet".to_owned()).into()
                );
            }
            let checkpoint = self.model.checkpoint()?;
            self.model.check_context(&checkpoint)?;
            print(einfuse::graph_of(&checkpoint, self.model.context)?)?;
            return Ok(());
        }
        let keep_text = matches!(self.dump, Some(Stage::Clif | Stage::Asm));
        let model = self.model.load(Settings { keep_text, ..self.model.settings(self.threads.threads) })?;
        self.fits(&model)?;
        if self.output.json {
            print_json(&self.object(&model)?)?;
            return Ok(());
        }
        let text = match self.dump {
            None => self.table(&model)? + &choices(&self.chosen_by_prompt(&model)?)?,
            Some(Stage::Plan) => self.plan(model.program().plan(self.step().batch(&model)))?,
            Some(stage) => self.code(&model, stage)?,
        };
        print(text)?;
        Ok(())
    }

    /// The step that is asked for, of which the last logits are wanted.
    fn step(&self) -> Step {
        Step { tokens: self.tokens.get(), past: self.past, wanted: 1 }
    }

    /// Whether there can be such a step.
    fn fits(&self, model: &Model) -> Result<(), Usage> {
        let (tokens, past) = (self.tokens.get(), self.past);
        let what = format!("--tokens {tokens} after --past {past}");
        self.model.check_room(model, &what, past.saturating_add(tokens))?;
        check_chunk(&format!("--tokens {tokens}"), tokens, self.model.chunk)
    }

    /// The kernels that are asked for, with how often each runs in a step.
    fn chosen<'a>(&self, plan: &'a Plan) -> Result<Vec<(&'a Kernel, usize)>, String> {
        let kernels = plan.runs();
        let Some(part) = &self.kernel else { return Ok(kernels) };
        let names: Vec<&str> = kernels.iter().map(|(kernel, _)| kernel.name.as_str()).collect();
        let message = format!("no kernel has `{part}` in its name; there are {}", names.join(", "));
        let chosen: Vec<_> = kernels.into_iter().filter(|(kernel, _)| kernel.name.contains(part)).collect();
        if chosen.is_empty() { Err(message) } else { Ok(chosen) }
    }

    /// The plan, or the kernels of it that are asked for.
    fn plan(&self, plan: &Plan) -> Result<String, String> {
        match self.kernel {
            None => Ok(plan.to_string()),
            Some(_) => Ok(self.chosen(plan)?.into_iter().map(|(kernel, _)| plan.kernel_text(kernel)).collect()),
        }
    }

    /// The kernels with what they cost on this machine.
    fn table(&self, model: &Model) -> Result<String, Box<dyn std::error::Error>> {
        let program = model.program();
        let plan = program.plan(self.step().batch(model));
        let chosen = self.chosen(plan)?;
        let gauge = Gauge::new(&Alone, step::storages(model))?;
        let (peaks, [multiplier, _]) = (gauge.peaks(), gauge.multipliers());
        let balance = peaks.weights / peaks.bytes;
        let (cost_of, cost_of_runs) = (step::costs_of_one(model, self.step()), step::costs(model, self.step()));
        let without = without(model);

        let mut text = format!(
            "{} as {}: a step of {} after {} positions{}\n\
             one core does {:.1} GFLOP/s ({}) and reads {:.1} GB/s: up to {balance:.1} flops a byte, memory is the bound\n\n\
             {:<30} {:>5} {:>10} {:>10} {:>8}  {:<7} rules\n",
            self.model.name(),
            plan.graph.name,
            if self.tokens.get() == 1 { "one token".to_owned() } else { format!("{} tokens", self.tokens) },
            self.past,
            if without.is_empty() { String::new() } else { format!(", without {}", without.join(", ")) },
            peaks.weights / 1e9,
            multiplier,
            peaks.bytes / 1e9,
            "kernel",
            "runs",
            "flops",
            "bytes",
            "flops/B",
            "bound",
        );
        let mut total = Cost::default();
        for (kernel, times) in chosen {
            let cost = cost_of(kernel);
            total = total + cost_of_runs(kernel, times);
            let bound = peaks.bound(kernel, cost);
            let row = format!("{times:>5} {} {bound:<7} {}", columns(cost), rules(kernel));
            // a long name has a line of its own
            match kernel.name.chars().count() {
                0..=30 => writeln!(text, "{:<30} {}", kernel.name, row.trim_end())?,
                _ => writeln!(text, "{}\n{:<30} {}", kernel.name, "", row.trim_end())?,
            }
            text += &details(plan, kernel);
            let weights = program.weights_of(self.step().batch(model), kernel);
            for kept in &weights {
                let (format, name) = (kept.format, &plan.graph.tensor(kept.tensor).name);
                let is_mixed = weights.iter().any(|other| other.tensor == kept.tensor && other.format != format);
                let layers = if is_mixed { format!(", {}", layers(&kept.layers)) } else { String::new() };
                if format.is_coded() || is_mixed {
                    let bits = (800.0 * format.bytes()).round() / 100.0;
                    writeln!(text, "  · `{name}` is kept as {format}, {bits} bits{layers}")?;
                }
            }
            if let Some(tuned) = self.tuned(model, kernel) {
                writeln!(
                    text,
                    "  · tuned: {} in place of {}",
                    tuned.tiling.beside(&tuned.default),
                    tuned.default.beside(&tuned.tiling)
                )?;
            }
            let parts = self.parts(model, kernel);
            if parts.len() > 1 {
                writeln!(text, "  · {} calls: {}", parts.len(), parts.join(", then "))?;
            }
        }
        let name = if self.kernel.is_none() { "the step" } else { "these kernels" };
        writeln!(text, "{name:<30} {:>5} {}", "", columns(total).trim_end())?;
        if self.kernel.is_none() {
            text += &whole(plan);
            let cache = model.program().options().cache;
            for (state, format) in model.program().unlike() {
                let name = &plan.graph.tensor(state).name;
                writeln!(text, "  · `{name}` is kept as {format}: its sizes are no multiple of the blocks of {cache}")?;
            }
            for name in model.leftovers() {
                writeln!(text, "  · no kernel reads `{name}` of the checkpoint")?;
            }
        }
        Ok(text)
    }

    /// What the tokens of the prompt choose; `None` without a prompt.
    fn chosen_by_prompt(&self, model: &Model) -> Result<Option<Vec<Chosen>>, Box<dyn std::error::Error>> {
        let Some(prompt) = &self.prompt else { return Ok(None) };
        let tokens = model.tokenizer()?.encode(prompt, true)?;
        Ok(Some(model.session().choices(&tokens)?))
    }

    /// What the calls do that one run of a kernel takes.
    fn parts(&self, model: &Model, kernel: &Kernel) -> Vec<&'static str> {
        let numbers = step::parts(model, kernel, self.step().batch(model));
        // Those of the first variant: the others differ in their weights' formats.
        let compiled = numbers.map(|number| &model.program().kernels()[number]);
        let compiled = compiled.filter(|kernel| kernel.variant == 0 && !kernel.last_layer);
        let names: Vec<&str> = compiled.map(|kernel| kernel.loops.name.as_str()).collect();
        let is_merged = names.iter().any(|name| name.ends_with("_merge"));
        let does = |name: &&str| match () {
            () if name.ends_with("_rows") => "its rows are prepared",
            () if name.ends_with("_merge") => "merged",
            () if name.ends_with("_append") => "what it appends is encoded",
            () if is_merged => "its positions are shared out among the workers",
            () => "it is computed",
        };
        names.iter().map(does).collect()
    }

    /// The kernel's schedule, if it is one that was found by measuring.
    fn tuned<'m>(&self, model: &'m Model, kernel: &Kernel) -> Option<&'m Scheduled> {
        let schedule = step::schedule(model, kernel, self.step().batch(model));
        schedule.filter(|schedule| schedule.tiling != schedule.default)
    }

    /// What the table has, as one object: operations and bytes are of one run of a kernel.
    fn object(&self, model: &Model) -> Result<Value, Box<dyn std::error::Error>> {
        let program = model.program();
        let plan = program.plan(self.step().batch(model));
        let gauge = Gauge::new(&Alone, step::storages(model))?;
        let (peaks, [multiplier, multiplier_of_caches]) = (gauge.peaks(), gauge.multipliers());
        let cost_of = step::costs_of_one(model, self.step());
        let weight = |kept: &KeptWeight| {
            let layers: Vec<usize> = kept.layers.iter().copied().flatten().collect();
            json!({ "name": plan.graph.tensor(kept.tensor).name, "format": kept.format.to_string(), "layers": layers })
        };
        let remarks = |all: &[Remark]| -> Vec<Value> {
            all.iter().map(|remark| json!({ "rule": remark.rule.name(), "text": remark.text })).collect()
        };
        let kernels: Vec<Value> = self
            .chosen(plan)?
            .into_iter()
            .map(|(kernel, runs)| {
                let cost = cost_of(kernel);
                let equations: Vec<String> =
                    kernel.equations.iter().chain(&kernel.weights).map(|&eq| plan.equation_text(eq)).collect();
                let weights: Vec<Value> =
                    program.weights_of(self.step().batch(model), kernel).iter().map(weight).collect();
                json!({
                    "name": kernel.name,
                    "runs": runs,
                    "calls": self.parts(model, kernel).len(),
                    "equations": equations,
                    "weights": weights,
                    "applied": remarks(&kernel.applied),
                    "declined": remarks(&kernel.declined),
                    "flops": cost.flops,
                    "bytes_read": cost.stored + cost.read,
                    "bytes_written": cost.written,
                    "bound": peaks.bound(kernel, cost),
                    "tuned": self.tuned(model, kernel).map(|schedule| schedule.tiling),
                })
            })
            .collect();
        Ok(json!({
            "model": self.model.name(),
            "declaration": plan.graph.name,
            "tokens": self.tokens.get(),
            "past": self.past,
            "without": without(model),
            "peak_flops": peaks.weights,
            "multiplier": multiplier.to_string(),
            "peak_flops_of_caches": peaks.caches,
            "multiplier_of_caches": multiplier_of_caches.to_string(),
            "peak_bytes": peaks.bytes,
            "kernels": kernels,
            "remarks": remarks(&plan.remarks),
            "unread": model.leftovers(),
            "choices": self.chosen_by_prompt(model)?.map(|all| all.iter().map(choice).collect::<Vec<Value>>()),
        }))
    }

    /// The code of the kernels: each has one for a single token and one for many, some in several parts.
    fn code(&self, model: &Model, stage: Stage) -> Result<String, Box<dyn std::error::Error>> {
        let program = model.program();
        let mut text = String::new();
        for (number, compiled) in program.kernels().iter().enumerate() {
            let plan = program.plan(compiled.batch);
            let kernel = &plan.scopes()[compiled.scope][compiled.index];
            if !self.chosen(plan)?.iter().any(|(chosen, _)| std::ptr::eq(*chosen, kernel)) {
                continue;
            }
            let tokens = match compiled.batch {
                Batch::One => "one token",
                Batch::Few => "a few tokens",
                Batch::Many => "many tokens",
                Batch::Deep => "many tokens, deep in a sequence",
            };
            let place = if compiled.last_layer { " in the last layer" } else { "" };
            let bytes = program.code().bytes(number);
            writeln!(text, "// {}, for {tokens}{place}: {bytes} bytes of machine code", kernel.name)?;
            match stage {
                Stage::Clif => text += program.code().clif(number).unwrap_or_default(),
                Stage::Asm => text += program.code().asm(number).unwrap_or_default(),
                _ => text += &compiled.loops.to_string(),
            }
            text += "\n";
        }
        Ok(text)
    }
}

/// The rules that are switched off.
fn without(model: &Model) -> Vec<&'static str> {
    model.program().options().without.iter().map(|rule| rule.name()).collect()
}

/// Operations, bytes and their ratio, each in its column.
fn columns(cost: Cost) -> String {
    format!("{:>10} {:>10} {:>8.2} ", scaled(cost.flops, ""), scaled(cost.bytes(), "B"), cost.intensity())
}

/// `1.25 M`, `310 k`.
fn scaled(value: f64, unit: &str) -> String {
    let (scale, prefix) = match value {
        1e12.. => (1e12, "T"),
        1e9.. => (1e9, "G"),
        1e6.. => (1e6, "M"),
        1e3.. => (1e3, "k"),
        _ => (1.0, ""),
    };
    format!("{:.1} {prefix}{unit}", value / scale)
}

/// The names of the rules that made a kernel, each once.
fn rules(kernel: &Kernel) -> String {
    let mut names: Vec<Rule> = kernel.applied.iter().map(|remark| remark.rule).collect();
    names.sort();
    names.dedup();
    names.iter().map(|rule| rule.name()).collect::<Vec<_>>().join(", ")
}

/// `layers 0-2, 5`.
fn layers(layers: &BTreeSet<Option<usize>>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for layer in layers.iter().copied().flatten() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let text = |&(first, last): &_| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    let runs: Vec<String> = runs.iter().map(text).collect();
    format!("{} {}", if layers.len() == 1 { "layer" } else { "layers" }, runs.join(", "))
}

/// A kernel's equations and remarks.
fn details(plan: &Plan, kernel: &Kernel) -> String {
    let mut text = String::new();
    for &equation in kernel.equations.iter().chain(&kernel.weights) {
        text += &format!("    {}\n", plan.equation_text(equation));
    }
    let remarks = |sign: char, remarks: &[Remark]| -> String {
        remarks.iter().map(|remark| format!("  {sign} {}: {}\n", remark.rule, remark.text)).collect()
    };
    text + &remarks('+', &kernel.applied) + &remarks('-', &kernel.declined)
}

/// How often each part of a weight is chosen, a line for each layer.
fn choices(all: &Option<Vec<Chosen>>) -> Result<String, std::fmt::Error> {
    let Some(all) = all else { return Ok(String::new()) };
    let mut text = String::new();
    let Some(first) = all.first() else { return Ok("\nno token of the prompt chooses anything\n".to_owned()) };
    writeln!(text, "\nhow often the prompt's tokens choose each `{}`", first.axis)?;
    let width = all.iter().flat_map(|one| &one.counts).max().map_or(1, |most| most.to_string().len());
    for one in all {
        let layer = one.layer.map_or(String::new(), |layer| format!("layer {layer}, "));
        let name = format!("{layer}`{}`", one.by);
        let counts: Vec<String> = one.counts.iter().map(|count| format!("{count:>width$}")).collect();
        for (nth, counts) in counts.chunks(IN_LINE).enumerate() {
            writeln!(text, "  {:<20} {}", if nth == 0 { &name } else { "" }, counts.join(" "))?;
        }
    }
    Ok(text)
}

/// The same as JSON.
fn choice(one: &Chosen) -> Value {
    json!({ "by": one.by, "axis": one.axis, "layer": one.layer, "counts": one.counts })
}

/// What rules said of the plan as a whole.
fn whole(plan: &Plan) -> String {
    plan.remarks.iter().map(|remark| format!("  · {}: {}\n", remark.rule, remark.text)).collect()
}
