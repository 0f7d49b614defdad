//! Finding better schedules: the model's kernels, scheduled in other ways, run in turn with the compiler's own choice.
//!
//! What else runs on a machine disturbs by more than schedules differ. So all run in one process, each round all of them
//! once, there and back; what is compared is the ratio of two times of the same round, and its median. Who seems the best
//! may only have been lucky: it has to win again, in runs of its own.

use std::mem::take;
use std::time::Instant;

use einfuse_codegen::{Batch, Program, Schedules, Sizes, Tiling, Workspace};

use crate::Error;
use crate::model::Model;
use crate::session::Session;
use crate::tuned::Winner;

/// What is measured, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Tokens of the prompt: of one step.
    pub prompt: usize,
    /// Tokens before those that are generated.
    pub depth: usize,
    /// Rounds, in each of which everything runs.
    pub repeat: usize,
}

impl Tuning {
    /// The most tokens that are generated.
    pub const GENERATED: usize = STEPS * DRAFTED;
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Findings {
    /// For each kernel that has a choice.
    pub kernels: Vec<Finding>,
    /// How long steps take, by default and as found.
    pub steps: Vec<StepTimes>,
    /// Everything that was measured.
    pub trials: Vec<Trial>,
    /// What was not, as its answer is wrong.
    pub left_out: Vec<LeftOut>,
}

/// Schedules with which the answer is further off than rounding explains: a mistake of the compiler.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// The kernels' names, separated by commas.
    pub kernels: String,
    /// For how many tokens they are.
    pub batch: Batch,
    /// The numbers of their schedules that are not the default's.
    pub tilings: String,
    /// How far the answer is off, in what it is.
    pub difference: f64,
}

impl Findings {
    /// What is better than the default.
    pub fn winners(&self) -> Vec<Winner> {
        let winners = self.kernels.iter().filter(|kernel| kernel.wins);
        winners.map(|k| Winner { kernel: k.identity.clone(), tiling: k.best, gain: k.gain }).collect()
    }

    /// The kernels that were tried.
    pub fn tried(&self) -> Vec<String> {
        self.kernels.iter().map(|kernel| kernel.identity.clone()).collect()
    }
}

/// What was found for one kernel.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// For how many tokens it is.
    pub batch: Batch,
    /// Its identity.
    pub identity: String,
    /// The compiler's choice.
    pub default: Tiling,
    /// The best of the others.
    pub best: Tiling,
    /// Seconds that its calls take in a step with the compiler's choice.
    pub seconds: f64,
    /// The share of them that the best saves.
    pub gain: f64,
    /// How far the gain may be off.
    pub noise: f64,
    /// Whether the gain is more than that, twice.
    pub wins: bool,
}

/// How long a step takes, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct StepTimes {
    /// Its tokens.
    pub tokens: usize,
    /// Positions before it.
    pub past: usize,
    /// With the compiler's tiling.
    pub default: f64,
    /// With what was found.
    pub found: f64,
}

/// One kernel's time with one choice.
#[derive(Clone, Debug)]
pub struct Trial {
    /// For how many tokens the kernel is.
    pub batch: Batch,
    /// The name of its skeleton.
    pub shape: &'static str,
    /// Its sizes.
    pub sizes: Sizes,
    /// Tokens of the step.
    pub tokens: usize,
    /// Positions before the step.
    pub past: usize,
    /// The choice.
    pub tiling: Tiling,
    /// Seconds of its calls in a step, in the median.
    pub seconds: f64,
    /// The same in times of the default's.
    pub ratio: f64,
    /// How far that may be off.
    pub noise: f64,
}

/// A step that is measured, so often in a row.
#[derive(Clone, Copy, Debug)]
struct Test {
    tokens: usize,
    steps: usize,
    past: usize,
}

/// Kernels that are the same.
struct Group {
    name: String,
    identity: String,
    shape: &'static str,
    sizes: Sizes,
    members: Vec<(usize, usize, usize)>,
    default: Tiling,
    alternatives: Vec<Tiling>,
}

/// A program with what it runs in.
struct Runner<'p> {
    program: &'p Program,
    workspace: Workspace,
}

/// Of one run: how long each group took, and all of it; the last logits.
struct Run {
    groups: Vec<f64>,
    whole: f64,
    logits: Vec<f32>,
}

/// A ratio, and how far it may be off.
#[derive(Clone, Copy)]
struct Ratio {
    median: f64,
    noise: f64,
}

/// Below such a share of the time nothing is told from chance.
const LEAST_NOISE: f64 = 0.01;

/// Steps of one token, or a few, that are measured in a row.
const STEPS: usize = 8;

/// Tokens of a step of a few.
const DRAFTED: usize = 4;

/// Measures a model's kernels with other schedules. The model has room for two sequences, each of the prompt, or of the
/// depth and what is generated. `progress` is told how many runs are done, and of how many.
///
/// # Errors
/// If the prompt is more than a step, a sequence does not fit, or a kernel can't be compiled.
pub fn tune(model: &Model, tuning: Tuning, mut progress: impl FnMut(usize, usize)) -> Result<Findings, Error> {
    let Tuning { prompt, depth: past, repeat } = tuning;
    if !(1..=model.program().options().chunk).contains(&prompt) {
        let wants = "at least one token, and no more than go through the model at once";
        return Err(Error::Option { option: "prompt", wants, got: prompt.to_string() });
    }
    model.check_room(0, prompt)?;
    if past > 0 {
        model.check_room(past, Tuning::GENERATED)?;
    }
    let default = model.program().reschedule(Schedules::new())?;
    let tests = [
        Test { tokens: prompt, steps: 1, past: 0 },
        Test { tokens: 1, steps: STEPS, past },
        Test { tokens: DRAFTED, steps: STEPS, past },
    ];
    // a very short context has no room for several steps
    let works = tests.into_iter().filter(|test| model.check_room(test.past, test.tokens * test.steps).is_ok());
    let works: Vec<(Test, Vec<Group>)> =
        works.map(|test| (test, groups(&default, default.batch(test.tokens, test.past)))).collect();
    let runs: usize =
        works.iter().filter(|(_, groups)| !groups.is_empty()).map(|(_, groups)| 2 + count(groups) + 4).sum();
    let total = repeat.saturating_mul(runs);
    let mut done = 0;
    let mut tell = |runs: usize| {
        done += runs;
        progress(done, total);
    };

    let mut findings = Findings { kernels: Vec::new(), steps: Vec::new(), trials: Vec::new(), left_out: Vec::new() };
    for (test, groups) in works.iter().filter(|(_, groups)| !groups.is_empty()) {
        let trial = Tester::new(model, &default, *test, groups)?;
        let mut kernels = trial.search(repeat, &mut findings, &mut tell)?;
        let steps = trial.confirm(repeat, &mut kernels, &mut findings.left_out, &mut tell)?;
        findings.steps.push(steps);
        findings.kernels.extend(kernels);
    }
    Ok(findings)
}

/// The kernels for a batch that have a choice, those that are the same together.
fn groups(program: &Program, batch: Batch) -> Vec<Group> {
    let scopes = program.plan(batch).scopes();
    let mut groups: Vec<Group> = Vec::new();
    let called: Vec<_> =
        program.sequence(batch).map(|number| &program.kernels()[number]).filter(|k| !k.last_layer).collect();
    for kernel in program.schedules().iter().filter(|k| k.batch == batch && !k.alternatives.is_empty()) {
        let member = (kernel.scope, kernel.index, kernel.variant);
        if !called.iter().any(|k| (k.scope, k.index, k.variant) == member) {
            continue;
        }
        match groups.iter_mut().find(|group| group.identity == kernel.identity) {
            Some(group) => group.members.push(member),
            None => groups.push(Group {
                name: scopes[kernel.scope][kernel.index].name.clone(),
                identity: kernel.identity.clone(),
                shape: scopes[kernel.scope][kernel.index].shape.name(),
                sizes: kernel.sizes,
                members: vec![member],
                default: kernel.default,
                alternatives: kernel.alternatives.clone(),
            }),
        }
    }
    groups
}

/// The most alternatives that a kernel has.
fn count(groups: &[Group]) -> usize {
    groups.iter().map(|group| group.alternatives.len()).max().unwrap_or(0)
}

/// Measures one kind of step.
struct Tester<'m> {
    model: &'m Model,
    default: &'m Program,
    test: Test,
    groups: &'m [Group],
    base: Session<'m>,
    tokens: Vec<u32>,
    /// How far answers may differ.
    rounding: f64,
}

impl<'m> Tester<'m> {
    fn new(model: &'m Model, default: &'m Program, test: Test, groups: &'m [Group]) -> Result<Tester<'m>, Error> {
        // Any tokens do, as long as they differ.
        let token = |i: usize| ((i * 7919 + 17) % model.ids()) as u32;
        let mut tokens: Vec<u32> = (0..test.past + test.tokens * test.steps).map(token).collect();
        let mut base = model.session();
        if test.past > 0 {
            base.feed(&tokens[..test.past])?;
        }
        tokens.drain(..test.past);
        Ok(Tester { model, default, test, groups, base, tokens, rounding: rounding(model, default) })
    }

    fn runner<'p>(&self, program: &'p Program) -> Runner<'p> {
        Runner { program, workspace: program.workspace(self.model.threads()) }
    }

    fn run(&self, runner: &mut Runner<'_>) -> Result<Run, Error> {
        let mut session = self.base.fork_on(runner.program, take(&mut runner.workspace));
        session.workspace().measure();
        let start = Instant::now();
        let mut logits = Vec::new();
        for tokens in self.tokens.chunks(self.test.tokens) {
            logits = session.feed(tokens)?;
        }
        let steps = self.test.steps as f64;
        let whole = start.elapsed().as_secs_f64() / steps;
        let batch = self.default.batch(self.test.tokens, self.test.past);
        let times = session.workspace().times();
        let of = |group: &Group| -> f64 {
            let kernels = runner.program.kernels().iter().zip(times);
            let own = kernels.filter(|(k, _)| {
                k.batch == batch && !k.last_layer && group.members.contains(&(k.scope, k.index, k.variant))
            });
            own.map(|(_, time)| time.as_secs_f64()).sum::<f64>() / steps
        };
        let groups = self.groups.iter().map(of).collect();
        runner.workspace = session.into_workspace();
        Ok(Run { groups, whole, logits })
    }

    /// Programs with the n-th alternatives of all groups, and of which groups each has them: those that leave the answer as it
    /// is, alone and together. The others are told.
    fn others(&self, left_out: &mut Vec<LeftOut>) -> Result<Vec<(Program, Vec<usize>)>, Error> {
        let mut default = self.runner(self.default);
        let expected = self.run(&mut default)?.logits;
        let mut others = Vec::new();
        for n in 0..count(self.groups) {
            let with = |groups: &[usize]| -> Result<Program, Error> {
                let tilings =
                    groups.iter().filter_map(|&g| Some((&self.groups[g], *self.groups[g].alternatives.get(n)?)));
                Ok(self
                    .default
                    .reschedule(tilings.map(|(group, tiling)| (group.identity.clone(), tiling)).collect())?)
            };
            let mut groups: Vec<usize> =
                (0..self.groups.len()).filter(|&g| n < self.groups[g].alternatives.len()).collect();
            let mut program = with(&groups)?;
            if self.is_off(&program, &expected)?.is_some() {
                let mut right = Vec::new();
                for &g in &groups {
                    match self.is_off(&with(&[g])?, &expected)? {
                        Some(off) => left_out.push(off),
                        None => right.push(g),
                    }
                }
                groups = right;
                program = with(&groups)?;
                let off = if groups.is_empty() { None } else { self.is_off(&program, &expected)? };
                if let Some(off) = off {
                    left_out.push(off);
                    groups.clear();
                    program = with(&groups)?;
                }
            }
            others.push((program, groups));
        }
        Ok(others)
    }

    /// Tries all alternatives, the n-th of each kernel at a time.
    fn search(
        &self,
        repeat: usize,
        findings: &mut Findings,
        tell: &mut impl FnMut(usize),
    ) -> Result<Vec<Finding>, Error> {
        let programs = self.others(&mut findings.left_out)?;
        let (count, trials) = (programs.len(), &mut findings.trials);
        let mut default = self.runner(self.default);
        let mut others: Vec<Runner<'_>> = programs.iter().map(|(program, _)| self.runner(program)).collect();
        // For each round the default's times at its start and end, and those of the others.
        let mut rounds: Vec<([Run; 2], Vec<Run>)> = Vec::new();
        for round in 0..repeat {
            let first = self.run(&mut default)?;
            tell(1);
            let mut order: Vec<usize> = (0..count).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            let mut runs: Vec<Option<Run>> = (0..count).map(|_| None).collect();
            for n in order {
                runs[n] = Some(self.run(&mut others[n])?);
                tell(1);
            }
            let last = self.run(&mut default)?;
            tell(1);
            rounds.push(([first, last], runs.into_iter().flatten().collect()));
        }
        let finding = |(g, group): (usize, &Group)| {
            let ends = |round: &([Run; 2], Vec<Run>)| [0, 1].map(|end| round.0[end].groups[g]);
            let itself = Ratio::of(rounds.iter().map(|round| ends(round)[1] / ends(round)[0]));
            let of = |n: usize| {
                let ratio = |round: &([Run; 2], Vec<Run>)| 2.0 * round.1[n].groups[g] / ends(round).iter().sum::<f64>();
                let ratio = Ratio::of(rounds.iter().map(ratio));
                Ratio { noise: ratio.noise.max(itself.noise), ..ratio }
            };
            let seconds = median(rounds.iter().flat_map(ends));
            let alternatives = group.alternatives.iter().enumerate().filter(|(n, _)| programs[*n].1.contains(&g));
            let ratios: Vec<(Tiling, Ratio)> = alternatives.map(|(n, tiling)| (*tiling, of(n))).collect();
            let unchanged = Ratio { median: 1.0, noise: itself.noise };
            for &(tiling, ratio) in std::iter::once(&(group.default, unchanged)).chain(&ratios) {
                trials.push(Trial {
                    batch: self.default.batch(self.test.tokens, self.test.past),
                    shape: group.shape,
                    sizes: group.sizes,
                    tokens: self.test.tokens,
                    past: self.test.past,
                    tiling,
                    seconds: seconds * ratio.median,
                    ratio: ratio.median,
                    noise: ratio.noise,
                });
            }
            let best = ratios.into_iter().min_by(|a, b| a.1.median.total_cmp(&b.1.median));
            let (best, ratio) = best.unwrap_or((group.default, unchanged));
            Finding {
                name: group.name.clone(),
                batch: self.default.batch(self.test.tokens, self.test.past),
                identity: group.identity.clone(),
                default: group.default,
                best,
                seconds,
                gain: 1.0 - ratio.median,
                noise: ratio.noise,
                wins: 1.0 - ratio.median > ratio.noise,
            }
        };
        Ok(self.groups.iter().enumerate().map(finding).collect())
    }

    /// Lets those that seem to win do so again.
    fn confirm(
        &self,
        repeat: usize,
        kernels: &mut [Finding],
        left_out: &mut Vec<LeftOut>,
        tell: &mut impl FnMut(usize),
    ) -> Result<StepTimes, Error> {
        let winners = kernels.iter().filter(|kernel| kernel.wins);
        let winners: Schedules = winners.map(|kernel| (kernel.identity.clone(), kernel.best)).collect();
        let mut found = self.default.reschedule(winners)?;
        let mut default = self.runner(self.default);
        let expected = self.run(&mut default)?.logits;
        if let Some(off) = self.is_off(&found, &expected)? {
            left_out.push(off);
            kernels.iter_mut().for_each(|kernel| kernel.wins = false);
            found = self.default.reschedule(Schedules::new())?;
        }
        let mut found = self.runner(&found);
        let mut rounds: Vec<[Run; 4]> = Vec::new();
        for _ in 0..repeat {
            let first = self.run(&mut default)?;
            let (second, third) = (self.run(&mut found)?, self.run(&mut found)?);
            rounds.push([first, second, third, self.run(&mut default)?]);
            tell(4);
        }
        for (g, kernel) in kernels.iter_mut().enumerate().filter(|(_, kernel)| kernel.wins) {
            let ratios = rounds.iter().map(|[a, b, c, d]| (b.groups[g] + c.groups[g]) / (a.groups[g] + d.groups[g]));
            let itself = Ratio::of(rounds.iter().map(|[a, _, _, d]| d.groups[g] / a.groups[g]));
            let ratio = Ratio::of(ratios);
            (kernel.gain, kernel.noise) = (1.0 - ratio.median, ratio.noise.max(itself.noise));
            kernel.wins = kernel.gain > kernel.noise;
        }
        let Test { tokens, past, .. } = self.test;
        let default = median(rounds.iter().flat_map(|[a, _, _, d]| [a.whole, d.whole]));
        let found = median(rounds.iter().flat_map(|[_, b, c, _]| [b.whole, c.whole]));
        Ok(StepTimes { tokens, past, default, found })
    }

    /// Runs a program once, and holds its answer against the default's: what there is to tell if it is another.
    fn is_off(&self, program: &Program, expected: &[f32]) -> Result<Option<LeftOut>, Error> {
        let difference = difference(&self.run(&mut self.runner(program))?.logits, expected);
        // NaN is not within.
        if difference <= self.rounding {
            return Ok(None);
        }
        let batch = program.batch(self.test.tokens, self.test.past);
        let changed: Vec<_> = program.schedules().iter().filter(|k| k.tiling != k.default).collect();
        let of = |group: &&Group| changed.iter().any(|k| k.batch == batch && k.identity == group.identity);
        let kernels: Vec<&str> = self.groups.iter().filter(of).map(|group| group.name.as_str()).collect();
        let mut tilings: Vec<String> = changed.iter().map(|k| k.tiling.beside(&k.default)).collect();
        tilings.dedup();
        Ok(Some(LeftOut { kernels: kernels.join(", "), batch, tilings: tilings.join("; "), difference }))
    }
}

/// How far answers may differ: by rounding differently along the positions, and with fewer bits by what that turns a
/// number into which lies between two others. (SmolLM2-135M was seen to differ by 0.033 in bf16, by 0.11 in 8 bits.)
fn rounding(model: &Model, default: &Program) -> f64 {
    match model.weight_bits().min(default.options().cache.bits()) {
        32 => 1e-4,
        16 => 1e-1,
        _ => 3e-1,
    }
}

/// The root of the mean square of what two differ by, in that of how the second differs from its mean.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / b.len() as f64;
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
    let size: f64 = b.iter().map(|&y| square(f64::from(y) - mean)).sum();
    if off == 0.0 { 0.0 } else { (off / size).sqrt() }
}

impl Ratio {
    /// The median; and twice the standard error that it has as the median of so many, from how they lie around it. Of fewer
    /// than three nothing can be told.
    fn of(ratios: impl Iterator<Item = f64>) -> Ratio {
        let ratios: Vec<f64> = ratios.collect();
        let middle = median(ratios.iter().copied());
        let deviation = 1.4826 * median(ratios.iter().map(|ratio| (ratio - middle).abs()));
        let error = 1.2533 * deviation / (ratios.len() as f64).sqrt();
        let noise = if ratios.len() < 3 { 1.0 } else { (2.0 * error).max(LEAST_NOISE) };
        Ratio { median: middle, noise }
    }
}

/// The value in the middle; NaN of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use einfuse_graph::{Binary, Builder, Reduction};

    use super::*;
    use crate::checkpoint::Dtype;
    use crate::tests::{Numbers, VOCABULARY, folder};
    use crate::{Checkpoint, Settings};

    #[test]
    fn a_ratio_is_not_moved_by_outliers() {
        let Ratio { median, noise } = Ratio::of([0.8, 0.81, 0.79, 9.0, 0.8, 0.8, 0.2, 0.8, 0.8].into_iter());
        assert_eq!(median, 0.8);
        assert_eq!(noise, LEAST_NOISE);
        let wide = Ratio::of([0.5, 0.7, 0.9, 1.1, 1.3].into_iter());
        assert!((wide.median - 0.9).abs() < 1e-12 && wide.noise > 0.2 && wide.noise < 0.5, "{}", wide.noise);
        assert_eq!(Ratio::of([0.5, 0.5].into_iter()).noise, 1.0);
    }

    #[test]
    fn differences_are_relative() {
        let logits = [1.0, 2.0, 3.0];
        assert_eq!(difference(&logits, &logits), 0.0);
        assert!((difference(&[1.1, 2.0, 2.9], &logits) - 0.1).abs() < 1e-6);
        assert!(difference(&[f32::NAN, 2.0, 3.0], &logits).is_nan());
    }

    /// Each token's row of the table by all rows: a contraction, whose kernel has a choice.
    fn model() -> Model {
        let mut b = Builder::new("test");
        let t = b.tokens("t");
        let (u, v) = (b.axis("u", VOCABULARY), b.axis("v", VOCABULARY));
        let ids = b.input("tokens", &[t]);
        let table = b.weight("table", &[u, v], "table.weight");
        let id = b.load(ids);
        let x = b.load_at(table, &[(u, id)]);
        let x = b.define("x", Some(&[t, v]), x);
        let (x, all) = (b.load(x), b.load(table));
        let product = b.binary(Binary::Mul, x, all);
        let sum = b.reduce(Reduction::Sum, &[v], product);
        let logits = b.define("logits", Some(&[t, u]), sum);
        let graph = b.finish(logits).unwrap();
        let folder = folder(&Numbers::random().safetensors(Dtype::F32), true);
        let settings = Settings { threads: Some(1), context: Some(40), sequences: 2, ..Settings::default() };
        Model::load(&Checkpoint::open(folder.path()).unwrap(), &graph, settings).unwrap()
    }

    #[test]
    fn no_number_of_rounds_is_too_large_to_be_told() {
        let tuning = Tuning { prompt: 32, depth: 0, repeat: usize::MAX };
        let told = std::panic::AssertUnwindSafe(|| {
            tune(&model(), tuning, |_, total| std::panic::resume_unwind(Box::new(total))).map(drop)
        });
        assert_eq!(std::panic::catch_unwind(told).unwrap_err().downcast_ref(), Some(&usize::MAX));
    }

    #[test]
    fn what_leaves_another_answer_is_left_out() {
        let model = model();
        let default = model.program().reschedule(Schedules::new()).unwrap();
        let test = Test { tokens: 32, steps: 1, past: 0 };
        let groups = groups(&default, Batch::Many);
        let mut tester = Tester::new(&model, &default, test, &groups).unwrap();
        let mut findings = Findings { kernels: vec![], steps: vec![], trials: vec![], left_out: vec![] };
        let tried = |tester: &Tester<'_>, findings: &mut Findings| {
            let kernels = tester.search(1, findings, &mut |_| ()).unwrap();
            let tried = findings.trials.len() - kernels.len();
            findings.trials.clear();
            tried
        };
        let alternatives: usize = groups.iter().map(|group| group.alternatives.len()).sum();
        assert!(alternatives > 0);
        assert_eq!((tried(&tester, &mut findings), findings.left_out.len()), (alternatives, 0));
        // No difference is so small.
        tester.rounding = -1.0;
        assert_eq!(tried(&tester, &mut findings), 0);
        let told: Vec<&str> = findings.left_out.iter().map(|off| off.kernels.as_str()).collect();
        assert_eq!(told.len(), alternatives, "{:?}", findings.left_out);
    }
}
