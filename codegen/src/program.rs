//! Programs: a graph as machine code, with everything that is needed to run a step.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use einfuse_graph::{Extent, Graph, Kind, TensorId, Type};

use crate::choices::{ChoiceObserver, Watched};
use crate::compile::{Base, Batch, CompileError, Compiled, Kernels, Options, Planned, Scheduled, Schedules, Slot};
use crate::format::Format;
use crate::fuse::{Kernel, Plan, Segment, Storage, Wanted};
use crate::loops::{Buffer, FEW, frame};
use crate::lower::{Code, Left, Target};
use crate::pack::Packed;
use crate::schedule::MOST_POSITIONS;
use crate::schedule::homes::{Homes, PAGE};
use crate::schedule::place::{Memory, Place};
use crate::team::Team;

/// A step can't be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// There are no tokens.
    #[error("a step wants at least one token")]
    NoTokens,
    /// More tokens than the program was compiled for.
    #[error("a step has {tokens} tokens, the program was compiled for at most {most}")]
    TooManyTokens {
        /// How many there are.
        tokens: usize,
        /// How many there may be.
        most: usize,
    },
    /// An index that an input or a position yields is outside of a tensor.
    #[error("{what} selects `{axis}` = {value} of `{tensor}`, which has {size} there")]
    OutOfRange {
        /// The token or position.
        what: String,
        /// The tensor.
        tensor: String,
        /// Its axis.
        axis: String,
        /// The coordinate.
        value: i64,
        /// How many there are.
        size: usize,
    },
    /// The sequence is longer than the program keeps values for.
    #[error("the sequence would have {positions} positions, the program was compiled for at most {most}")]
    TooManyPositions {
        /// How many there would be.
        positions: usize,
        /// How many there may be.
        most: usize,
    },
    /// The caller's memory is not what the program asked for.
    #[error("{0}")]
    Memory(String),
}

/// A group of caches with the same window, which share pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheGroup {
    /// How many positions a token sees, if not all.
    pub window: Option<usize>,
    /// How many positions a page holds.
    pub page_positions: usize,
    /// Bytes of a page, all layers together.
    pub page_bytes: usize,
}

/// The pages of a sequence in one group.
pub struct PageTable<'a> {
    /// The pool of pages, aligned to 64 bytes, zero when it was made.
    pub memory: &'a mut [u8],
    /// For each page of the sequence its number in the pool. Pages that no token of the step sees may name any.
    pub pages: &'a [u32],
}

/// How a kernel finds a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptWeight {
    /// The weight.
    pub tensor: TensorId,
    /// How it is kept.
    pub format: Format,
    /// The layers that run the kernel and keep it so; `None` alone for a kernel of no layer.
    pub layers: BTreeSet<Option<usize>>,
}

/// Is told the activations between layers: the layer that they enter (or the number of layers, at the end), and the
/// elements `[t, …]` in the order of the tensor's axes.
pub type Observer<'a> = &'a mut (dyn FnMut(usize, &[f32]) + Send);

/// One step of a sequence.
pub struct Step<'a> {
    /// The tokens.
    pub tokens: &'a [i32],
    /// How many positions came before.
    pub past: usize,
    /// The first token of this step whose output is wanted.
    pub first: usize,
    /// The pages of each group, in the order of [`Program::caches`].
    pub caches: Vec<PageTable<'a>>,
    /// Is told the activations between layers. Who looks at these, or at choices, has all rows of the last layer computed, by other
    /// kernels than without, whose rounding may differ.
    pub observe: Option<Observer<'a>>,
    /// Is told what the tokens choose.
    pub choices: Option<ChoiceObserver<'a>>,
}

/// What a program computes in, reused from step to step. The default is no program's.
#[derive(Debug, Default)]
pub struct Workspace {
    /// What the program shares with others of the same weights; the frame and the tables point into it.
    base: Option<Arc<Base>>,
    arena: Vec<Line>,
    scratch: Vec<Vec<Line>>,
    /// For each worker.
    left: Vec<Left>,
    frame: Vec<u64>,
    tables: Vec<Vec<u64>>,
    pages: Vec<Vec<u64>>,
    /// The address of the weights that `tables` were made for.
    weights: usize,
    /// Rows of the last output, and where they begin.
    output: (usize, usize),
    /// How many kernels the program has.
    kernels: usize,
    /// For each kernel how long its calls took, where that is asked for.
    times: Option<Vec<Duration>>,
}

impl Workspace {
    /// From here on measures how long each kernel takes, from one meeting of the workers to the next.
    pub fn measure(&mut self) {
        self.times = Some(vec![Duration::ZERO; self.kernels]);
    }

    /// How long the calls of each kernel, in the order of [`Program::kernels`], have taken since
    /// [`Workspace::measure`].
    pub fn times(&self) -> &[Duration] {
        self.times.as_deref().unwrap_or_default()
    }
}

/// A line of the processor's cache.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

fn lines(bytes: usize) -> Vec<Line> {
    vec![Line([0.0; 16]); bytes.div_ceil(64)]
}

/// A graph, compiled.
pub struct Program {
    base: Arc<Base>,
    options: Options,
    kernels: Kernels,
    scratch_bytes: usize,
    compile_time: Duration,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (graph, kernels) = (&self.plan(Batch::One).graph.name, self.kernels.compiled.len());
        f.debug_struct("Program").field("graph", graph).field("kernels", &kernels).finish_non_exhaustive()
    }
}

impl Program {
    /// Compiles a graph for this machine. `storage` says how each weight is kept in memory.
    ///
    /// # Errors
    /// A graph that is not well-formed, or has something that no kernel can be made of, named in the error.
    pub fn compile(graph: &Graph, storage: &Storage, options: &Options) -> Result<Program, CompileError> {
        let started = Instant::now();
        Self::on(Base::of(graph, storage, options)?.into(), options, started)
    }

    /// The same graph with other numbers in its schedules. Weights and caches lie as they do for this program.
    ///
    /// # Errors
    /// If the code generator refuses a kernel, or memory cannot be had for its code.
    pub fn reschedule(&self, schedules: Schedules) -> Result<Program, CompileError> {
        let options = Options { schedules, ..self.options.clone() };
        Self::on(Arc::clone(&self.base), &options, Instant::now())
    }

    fn on(base: Arc<Base>, options: &Options, started: Instant) -> Result<Program, CompileError> {
        let mut target = Target::host()?;
        if let Some(cores) = options.cores {
            if !target.cores().have(&cores) {
                let text = format!("this machine has {:?}, not {cores:?}", target.cores());
                return Err(CompileError::Unsupported(text));
            }
            target = target.with_cores(cores);
        }
        let kernels = base.kernels(options, &target)?;
        let scratch_bytes = kernels.compiled.iter().map(|c| c.loops.scratch).max().unwrap_or(0);
        Ok(Program { base, options: options.clone(), scratch_bytes, compile_time: started.elapsed(), kernels })
    }

    /// How a step of so many tokens is run, after so many positions.
    pub fn batch(&self, tokens: usize, past: usize) -> Batch {
        self.base.batch(tokens, past)
    }

    /// The batch whose kernels a few tokens have too, where they have none of their own.
    pub fn like_few(&self) -> Batch {
        self.base.like_few()
    }

    /// The plan of a batch: the graph's equations, grouped into kernels. One token and a few have the same; many may
    /// have another, whose orders of contraction are those that are cheaper for many.
    pub fn plan(&self, batch: Batch) -> &Plan {
        &self.base.planned(batch).plan
    }

    /// Where is what all plans share: the frame and the caches.
    fn homes(&self) -> &Homes {
        &self.base.planned(Batch::One).homes
    }

    /// What the program was made for.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Every stretch of packed weights that a step reads.
    pub fn weights(&self) -> &[Packed] {
        &self.base.packed
    }

    /// Bytes of all packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.base.weight_bytes
    }

    /// Bytes in which an element of a weight or a cache is kept for a kernel of the plan for so many tokens: the mean over the
    /// layers that run it.
    pub fn element(&self, batch: Batch, kernel: &Kernel, tensor: TensorId) -> f64 {
        let (mut bytes, mut layers) = (0.0, 0);
        for kept in self.weights_of(batch, kernel).into_iter().filter(|kept| kept.tensor == tensor) {
            bytes += kept.format.bytes() * kept.layers.len() as f64;
            layers += kept.layers.len();
        }
        let mut places = self.homes().places.iter().filter_map(|places| places.get(&tensor));
        match layers {
            0 => places.next().map_or(4.0, |place| place.format().bytes()),
            _ => bytes / layers as f64,
        }
    }

    /// The states of floats that are not kept as [`Options::cache`] says, since their sizes are no multiples of its blocks, and
    /// how they are kept.
    pub fn unlike(&self) -> Vec<(TensorId, Format)> {
        let mut all: Vec<(TensorId, Format)> = Vec::new();
        for (&tensor, place) in self.homes().places.iter().flatten() {
            let of_graph = self.plan(Batch::One).graph.tensor(tensor);
            let floats = matches!(of_graph.kind, Kind::State { .. }) && of_graph.ty == Type::Float;
            if floats && place.format() != self.options.cache && !all.iter().any(|(other, _)| *other == tensor) {
                all.push((tensor, place.format()));
            }
        }
        all.sort_by_key(|(tensor, _)| *tensor);
        all
    }

    /// The weights that a kernel of the plan for so many tokens reads, in each way in which they are kept for it.
    pub fn weights_of(&self, batch: Batch, kernel: &Kernel) -> Vec<KeptWeight> {
        let Planned { plan, homes, .. } = self.base.planned(batch);
        let mut kernels = plan.scopes().into_iter().flatten().zip(homes.variants.iter().flatten());
        let Some((_, variants)) = kernels.find(|(other, _)| std::ptr::eq(*other, kernel)) else { return Vec::new() };
        let mut weights: Vec<KeptWeight> = Vec::new();
        for (tensor, stored) in crate::schedule::weights::weights(plan, kernel) {
            for variant in variants {
                let format = match stored {
                    Some(eq) => variant.panels.get(&eq).map(|panels| panels.format),
                    None => variant.places.get(&tensor).map(Place::format),
                };
                let Some(format) = format else { continue };
                match weights.iter_mut().find(|kept| (kept.tensor, kept.format) == (tensor, format)) {
                    Some(kept) => kept.layers.extend(&variant.layers),
                    None => {
                        weights.push(KeptWeight { tensor, format, layers: variant.layers.iter().copied().collect() })
                    }
                }
            }
        }
        weights
    }

    /// Bytes of the values that pass from kernel to kernel.
    pub fn arena_bytes(&self) -> usize {
        self.kernels.arena_bytes
    }

    /// How long it took to compile, all phases together.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// How many tokens the graph knows, if it knows any: as many as the smallest table has rows that they index as they are.
    pub fn ids(&self) -> Option<usize> {
        self.base.checks.ids()
    }

    /// The most positions that a sequence can have, where the graph bounds them: by a table of positions, or by values
    /// that are kept for each.
    pub fn context(&self) -> Option<usize> {
        let kept = self.base.keeps_positions.then_some(self.options.positions);
        match (self.base.checks.context(), kept) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The groups of caches.
    pub fn caches(&self) -> Vec<CacheGroup> {
        let of = |g: &crate::schedule::homes::Group| CacheGroup {
            window: g.window,
            page_positions: PAGE,
            page_bytes: g.page_bytes,
        };
        self.homes().groups.iter().map(of).collect()
    }

    /// The kernels: those for one token, for many, with those for one row of their last layer, and for a few.
    pub fn kernels(&self) -> &[Compiled] {
        &self.kernels.compiled
    }

    /// The kernels with the numbers of their schedules: those for one token, for many, and for a few what has others.
    pub fn schedules(&self) -> &[Scheduled] {
        &self.kernels.scheduled
    }

    /// The code of the kernels, in the same order.
    pub fn code(&self) -> &Code {
        &self.kernels.code
    }

    /// The numbers of the kernels that a step calls, in order, where nobody looks at what passes by.
    pub fn sequence(&self, batch: Batch) -> impl ExactSizeIterator<Item = usize> {
        self.kernels.calls[batch as usize].iter().map(|call| call.kernel)
    }

    /// How much memory steps by so many workers are run in, but for little.
    pub fn workspace_bytes(&self, workers: usize) -> usize {
        self.kernels.arena_bytes.saturating_add(self.scratch_bytes.saturating_mul(workers))
    }

    /// Memory to run steps in, by so many workers.
    pub fn workspace(&self, workers: usize) -> Workspace {
        Workspace {
            base: Some(Arc::clone(&self.base)),
            arena: lines(self.kernels.arena_bytes),
            scratch: (0..workers).map(|_| lines(self.scratch_bytes)).collect(),
            left: (0..workers).map(|_| Left::default()).collect(),
            frame: vec![0; self.homes().frame_len],
            tables: self.base.tables.iter().map(|t| vec![0; t.len().max(1)]).collect(),
            pages: vec![Vec::new(); self.homes().groups.len()],
            weights: 0,
            output: (0, 0),
            kernels: self.kernels.compiled.len(),
            times: None,
        }
    }

    /// The output of the last step: the wanted tokens' rows, one after the other, each in the order of the output's other
    /// axes. Without a tokens' axis, all of it.
    pub fn output<'w>(&self, workspace: &'w Workspace) -> &'w [f32] {
        let all: &[f32] = bytemuck::cast_slice(&workspace.arena);
        let (from, len) = workspace.output;
        &all[from..from + len]
    }

    /// Runs one step: appends the tokens to the caches and computes the output of those from `first` on.
    ///
    /// # Errors
    /// Nothing has been computed or appended then: no or too many tokens, an id or a position outside of a tensor, or
    /// memory that is not what the program asked for.
    pub fn step(
        &self,
        weights: &[u8],
        workspace: &mut Workspace,
        mut step: Step<'_>,
        team: &dyn Team,
    ) -> Result<(), StepError> {
        self.check(weights, workspace, &step, team)?;
        self.prepare(weights, workspace, &mut step);
        let (tokens, first) = (step.tokens.len(), step.first);
        let batch = self.batch(tokens, step.past);
        // Who looks at what the layers hand on, or choose, sees all rows.
        let calls = match (&step.observe, &step.choices) {
            (None, None) => &self.kernels.calls[batch as usize],
            _ => &self.kernels.calls_for_all[batch as usize],
        };
        let observe = step.observe.map(Mutex::new);
        let choices = step.choices.map(Mutex::new);
        let carry = self.carry(batch);
        let left = &workspace.left[..team.workers()];
        let scratch: Vec<usize> = workspace.scratch.iter_mut().map(|s| s.as_mut_ptr().expose_provenance()).collect();
        let tables: Vec<usize> = workspace.tables.iter().map(|t| t.as_ptr().expose_provenance()).collect();
        let frame = workspace.frame.as_ptr().expose_provenance();
        let arena = workspace.arena.as_ptr().expose_provenance();
        let times = workspace.times.as_mut().map(Mutex::new);
        team.run(&|worker, meet| {
            let mut times = times.as_ref().filter(|_| worker == 0).and_then(|t| t.lock().ok());
            let look = |layer: usize| {
                let (Some(observe), Some((at, row))) = (&observe, carry) else { return };
                if worker == 0 {
                    let first = std::ptr::with_exposed_provenance::<f32>(arena + at);
                    // SAFETY: the carry's home is `tokens` rows (at most `chunk`, checked) of `row` floats from `at` on,
                    // within the arena; all workers wait, so that nobody writes it while it is read.
                    let values = unsafe { std::slice::from_raw_parts(first, tokens * row) };
                    if let Ok(mut observe) = observe.lock() {
                        observe(layer, values);
                    }
                }
                meet();
            };
            let tell = |watched: &[Watched], layer: Option<usize>| {
                for Watched { choice, at, row, from_first } in watched.iter().filter(|_| worker == 0) {
                    let rows = if *from_first { tokens - first } else { tokens };
                    let start = std::ptr::with_exposed_provenance::<i32>(arena + at);
                    // SAFETY: the home of the choice has so many rows (at most `chunk`, or those from the first wanted, both
                    // checked) of `row` integers from `at` on, within the arena; all workers wait, so that nobody writes it
                    // while it is read.
                    let values = unsafe { std::slice::from_raw_parts(start, rows * row) };
                    if let Some(Ok(mut tell)) = choices.as_ref().map(Mutex::lock) {
                        tell(*choice, layer, values);
                    }
                }
                meet();
            };
            let mut layer = None;
            for call in calls {
                if let Some(begins) = call.begins {
                    layer = Some(begins);
                    look(begins);
                }
                let started = times.is_some().then(Instant::now);
                // SAFETY: `check` has checked the sizes of weights, pages and tokens against what the plan asks for, and that the
                // workspace was made for this program; and the schedule keeps every access within the homes it was given.
                // `meet` orders the writes of each kernel before the reads of the next.
                unsafe {
                    self.kernels.code.call(
                        call.kernel,
                        std::ptr::with_exposed_provenance(frame),
                        std::ptr::with_exposed_provenance(tables[call.table]),
                        worker,
                        left,
                        std::ptr::with_exposed_provenance_mut(scratch[worker]),
                    );
                }
                meet();
                if let (Some(started), Some(times)) = (started, &mut times) {
                    times[call.kernel] += started.elapsed();
                }
                if let Some(watched) = self.kernels.watched.get(&call.kernel).filter(|_| choices.is_some()) {
                    tell(watched, layer);
                }
                if let Some(layers) = call.ends {
                    layer = None;
                    look(layers);
                }
            }
        });
        Ok(())
    }

    /// Whether this program made a workspace, or one that shares its base and differs in nothing else that a workspace is made for.
    fn made(&self, workspace: &Workspace) -> bool {
        workspace.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, &self.base))
            && workspace.arena.len() == self.kernels.arena_bytes.div_ceil(64)
            && workspace.scratch.iter().all(|s| s.len() == self.scratch_bytes.div_ceil(64))
            && workspace.kernels == self.kernels.compiled.len()
    }

    /// The place of the layers' carry in the arena, and the floats of a row; where it lies row by row.
    fn carry(&self, batch: Batch) -> Option<(usize, usize)> {
        let Planned { plan, homes, .. } = self.base.planned(batch);
        let graph = &plan.graph;
        let carry = plan.segments.iter().find_map(|s| match s {
            Segment::Layers { carry, .. } => Some(*carry),
            Segment::Once(_) => None,
        })?;
        let [t, rest @ ..] = &graph.tensor(carry).axes[..] else { return None };
        let rows = graph.axis(*t).extent == Extent::Tokens;
        let Memory::Flat(Buffer::Arena(at)) = homes.places.first()?.get(&carry)?.memory else { return None };
        rows.then(|| (at, rest.iter().filter_map(|&a| graph.size(a)).product()))
    }

    /// Checks a step; nothing has been changed yet.
    fn check(&self, weights: &[u8], workspace: &Workspace, step: &Step<'_>, team: &dyn Team) -> Result<(), StepError> {
        let tokens = step.tokens.len();
        let memory = |text: String| Err(StepError::Memory(text));
        if tokens == 0 {
            return Err(StepError::NoTokens);
        }
        if tokens > self.options.chunk {
            return Err(StepError::TooManyTokens { tokens, most: self.options.chunk });
        }
        let Some(end) = step.past.checked_add(tokens).filter(|&end| end <= MOST_POSITIONS) else {
            return memory(format!("{} positions came before: more than any sequence has", step.past));
        };
        if self.base.keeps_positions && end > self.options.positions {
            return Err(StepError::TooManyPositions { positions: end, most: self.options.positions });
        }
        let only_last = self.options.rows == Wanted::Last && tokens > FEW;
        if step.first >= tokens || (only_last && step.first + 1 != tokens) {
            let has = if only_last { "the last of so many" } else { "those that the step has" };
            return memory(format!("the output of token {} of {tokens} is wanted, the program has {has}", step.first));
        }
        self.base.checks.run(step.tokens, step.past)?;
        if weights.len() < self.base.weight_bytes || !weights.as_ptr().addr().is_multiple_of(64) {
            return memory(format!(
                "the packed weights are {} bytes, {} at a multiple of 64 are wanted",
                weights.len(),
                self.base.weight_bytes
            ));
        }
        if !self.made(workspace) {
            return memory("the workspace was made by another program".to_owned());
        }
        if workspace.scratch.len() < team.workers() {
            return memory(format!("{} workers, memory for {}", team.workers(), workspace.scratch.len()));
        }
        if step.caches.len() != self.homes().groups.len() {
            return memory(format!("{} page tables, {} are wanted", step.caches.len(), self.homes().groups.len()));
        }
        for (group, table) in self.homes().groups.iter().zip(&step.caches) {
            let wanted = end.div_ceil(PAGE);
            if !table.memory.as_ptr().addr().is_multiple_of(64) {
                return memory("a pool of pages does not begin at a multiple of 64".to_owned());
            }
            if table.pages.len() < wanted {
                return memory(format!("a sequence of {end} positions has {} pages, not {wanted}", table.pages.len()));
            }
            let is_beyond = |page: &&u32| (**page as usize + 1) * group.page_bytes > table.memory.len();
            if let Some(page) = table.pages.iter().find(is_beyond) {
                return memory(format!("page {page} is beyond the pool of {} bytes", table.memory.len()));
            }
            let written = &table.pages[step.past / PAGE..wanted];
            if let Some(at) = (1..written.len()).find(|&at| written[..at].contains(&written[at])) {
                return memory(format!("page {} is written for two parts of a sequence", written[at]));
            }
        }
        Ok(())
    }

    /// Fills the frame and the tables for a step that was checked.
    fn prepare(&self, weights: &[u8], workspace: &mut Workspace, step: &mut Step<'_>) {
        let tokens = step.tokens.len();
        for ((group, table), addresses) in self.homes().groups.iter().zip(&mut step.caches).zip(&mut workspace.pages) {
            let base = table.memory.as_mut_ptr().expose_provenance();
            addresses.clear();
            addresses.extend(table.pages.iter().map(|&page| (base + page as usize * group.page_bytes) as u64));
        }
        let base = weights.as_ptr().expose_provenance();
        if workspace.weights != base {
            workspace.weights = base;
            for (table, slots) in workspace.tables.iter_mut().zip(&self.base.tables) {
                for (entry, slot) in table.iter_mut().zip(slots) {
                    *entry = match slot {
                        Slot::Weights(offset) => (base + offset) as u64,
                        Slot::State(offset) => *offset as u64,
                        Slot::Unread => 0,
                    };
                }
            }
        }
        let words = &mut workspace.frame;
        words[frame::TOKENS] = tokens as u64;
        words[frame::PAST] = step.past as u64;
        words[frame::ARENA] = workspace.arena.as_mut_ptr().expose_provenance() as u64;
        words[frame::FIRST] = step.first as u64;
        for &(_, slot) in &self.homes().inputs {
            words[slot] = step.tokens.as_ptr().expose_provenance() as u64;
        }
        for (slot, values) in &self.base.constants {
            words[*slot] = values.as_ptr().expose_provenance() as u64;
        }
        for (group, addresses) in self.homes().groups.iter().zip(&workspace.pages) {
            words[group.slot] = addresses.as_ptr().expose_provenance() as u64;
        }
        workspace.output = self.locate_output(self.batch(tokens, step.past), tokens, step.first);
    }

    /// Where in the arena the wanted rows of the output lie, in floats.
    fn locate_output(&self, batch: Batch, tokens: usize, first: usize) -> (usize, usize) {
        let Planned { plan, homes, .. } = self.base.planned(batch);
        let graph = &plan.graph;
        let axes = &graph.tensor(graph.output).axes;
        let row: usize = axes.iter().filter_map(|&a| graph.size(a)).product();
        let place = homes.places.last().and_then(|p| p.get(&graph.output));
        let Some(place) = place else { return (0, 0) };
        let Memory::Flat(Buffer::Arena(at)) = place.memory else { return (0, 0) };
        let tokens_first = axes.first().is_some_and(|&a| graph.axis(a).extent == Extent::Tokens);
        match (tokens_first, place.is_from_first()) {
            (true, true) => (at / 4, (tokens - first) * row),
            (true, false) => (at / 4 + first * row, (tokens - first) * row),
            (false, _) => (at / 4, row),
        }
    }
}
