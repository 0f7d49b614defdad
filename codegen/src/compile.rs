//! Compiling: from a graph to kernels in machine code, and the order in which steps call them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use einfuse_graph::{AxisId, Extent, Graph, Kind, Type};

use crate::checks::Checks;
use crate::choices::{Watched, watched};
use crate::format::Format;
use crate::fuse::{Kernel, Multiplications, Plan, Rule, Segment, Shape, Storage, Typical, Wanted, fuse, orders};
use crate::loops::{self, Cores, FEW, GROUP};
use crate::lower::{Code, LowerError, Lowering, Target};
use crate::pack::Packed;
use crate::schedule::homes::{Entry, Extents, Homes};
use crate::schedule::tiling::EXPANDING;
use crate::schedule::weights::Variant;
use crate::schedule::{Context, MOST_POSITIONS, Mode, Prepared, Sizes, Tiling, schedule};

/// What a program is made for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fusion rules that are switched off.
    pub without: Vec<Rule>,
    /// The most tokens that a step may have.
    pub chunk: usize,
    /// The most positions that a sequence may have where the plan keeps a value for each of them (which streaming avoids).
    pub positions: usize,
    /// How the caches keep floats: as `F32`, `Bf16` or `Q8`. A state whose rows are no multiple of the format's block is `Bf16`,
    /// or `F32`.
    pub cache: Format,
    /// Whose output is wanted.
    pub rows: Wanted,
    /// How many workers the schedules are made for. Any number can run them: the answer is the same up to rounding.
    pub workers: usize,
    /// The numbers of some kernels' schedules, in place of what the compiler would choose.
    pub schedules: Schedules,
    /// Cores that take the place of this machine's, which must have them. `None`: its own.
    pub cores: Option<Cores>,
    /// Whether to keep the text of the intermediate and machine code.
    pub keep_text: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            without: Vec::new(),
            chunk: 512,
            positions: 2048,
            cache: Format::F32,
            rows: Wanted::Last,
            workers: 4,
            schedules: Schedules::new(),
            cores: None,
            keep_text: false,
        }
    }
}

/// A graph can't be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The graph is not well-formed.
    #[error(transparent)]
    Graph(#[from] einfuse_graph::VerifyError),
    /// Something that the compiler does not take.
    #[error("{0}")]
    Unsupported(String),
    /// The code generator refused a kernel.
    #[error(transparent)]
    Lower(#[from] LowerError),
}

/// How many tokens the kernels of a step are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// One, as when text is generated.
    One,
    /// Up to eight, as when drafted tokens are checked. Only the kernels that stream a cache, or compute the last rows alone,
    /// differ from those for many.
    Few,
    /// More, as in a prompt.
    Many,
    /// More, with so many positions before them that the plan of a single token is cheaper; where there are two plans.
    Deep,
}

impl Batch {
    /// All of them.
    pub const ALL: [Batch; 4] = [Batch::One, Batch::Few, Batch::Many, Batch::Deep];

    /// For how many tokens.
    pub fn name(self) -> &'static str {
        match self {
            Batch::One => "one",
            Batch::Few => "few",
            Batch::Many => "many",
            Batch::Deep => "deep",
        }
    }
}

/// A kernel of a program, for who wants to look at it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The stretch of the plan, as in [`Plan::scopes`].
    pub scope: usize,
    /// The kernel's place in its stretch.
    pub index: usize,
    /// Which it is of the kernels that differ in how the layers that run them keep weights.
    pub variant: usize,
    /// For how many tokens it is.
    pub batch: Batch,
    /// Whether it takes the place of the others in the last layer, where one row is wanted (rule tail).
    pub last_layer: bool,
    /// Its loops.
    pub loops: loops::Kernel,
}

/// Tilings by the identity of the kernels that they are for: [`Scheduled::identity`].
pub type Schedules = BTreeMap<String, Tiling>;

/// A kernel, and the numbers of its schedule.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// The stretch of the plan, as in [`Plan::scopes`].
    pub scope: usize,
    /// The kernel's place in its stretch.
    pub index: usize,
    /// Which it is of the kernels that differ in how the layers that run them keep weights.
    pub variant: usize,
    /// For how many tokens it is.
    pub batch: Batch,
    /// Everything that its schedule depends on: for how many tokens it is, its equations, its axes' sizes, how weights and
    /// caches are stored. Kernels with the same identity are the same.
    pub identity: String,
    /// Its sizes.
    pub sizes: Sizes,
    /// The compiler's own choice.
    pub default: Tiling,
    /// What was chosen: the default, or what [`Options::schedules`] has.
    pub tiling: Tiling,
    /// Others that are worth a trial.
    pub alternatives: Vec<Tiling>,
}

/// One kernel call, with the table of its layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) kernel: usize,
    pub(crate) table: usize,
    /// The layer that begins here, if one does.
    pub(crate) begins: Option<usize>,
    /// After the last layer: how many there are.
    pub(crate) ends: Option<usize>,
}

/// What an entry of a layer's table is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    Weights(usize),
    State(usize),
    /// The layer runs no kernel that reads it.
    Unread,
}

/// What a program has whatever its schedules are.
pub(crate) struct Base {
    /// For one token and a few, and for many where no other plan is better for them.
    one: Planned,
    /// For many tokens, with what it and the other take.
    many: Option<(Planned, [Multiplications; 2])>,
    pub(crate) packed: Vec<Packed>,
    pub(crate) weight_bytes: usize,
    pub(crate) tables: Vec<Vec<Slot>>,
    pub(crate) constants: Vec<(usize, Vec<f32>)>,
    pub(crate) checks: Checks,
    /// Whether a value is kept for each position of a sequence.
    pub(crate) keeps_positions: bool,
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Base").field("weight_bytes", &self.weight_bytes).finish_non_exhaustive()
    }
}

/// A plan with the homes of its tensors. Two of one program have the same frame, the same caches, and where they read a weight
/// in the same order the same packed weights.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    prepared: Prepared,
    pub(crate) homes: Homes,
    /// The table of each stretch and layer.
    numbers: HashMap<(usize, Option<usize>), usize>,
}

/// The kernels of a program, and the calls of its steps.
pub(crate) struct Kernels {
    pub(crate) code: Code,
    pub(crate) compiled: Vec<Compiled>,
    pub(crate) scheduled: Vec<Scheduled>,
    /// For each [`Batch`].
    pub(crate) calls: [Vec<Call>; Batch::ALL.len()],
    /// The same with all rows of the last layer.
    pub(crate) calls_for_all: [Vec<Call>; Batch::ALL.len()],
    pub(crate) arena_bytes: usize,
    /// What tokens choose, by kernel.
    pub(crate) watched: HashMap<usize, Vec<Watched>>,
}

impl Base {
    pub(crate) fn of(graph: &Graph, storage: &Storage, options: &Options) -> Result<Base, CompileError> {
        einfuse_graph::verify(graph)?;
        supported(graph)?;
        if ![Format::F32, Format::Bf16, Format::Q8].contains(&options.cache) {
            let text = format!("caches are kept as f32, bf16 or q8, not as {}", options.cache);
            return Err(CompileError::Unsupported(text));
        }
        for (name, number) in [("chunk", options.chunk), ("positions", options.positions)] {
            if !(1..=MOST_POSITIONS).contains(&number) {
                return Err(CompileError::Unsupported(format!("`{name}` is {number}, not 1 to {MOST_POSITIONS}")));
            }
        }
        let how = Extents { cache: options.cache, tokens: options.chunk + GROUP - 1, positions: options.positions };
        fits_memory(graph, how)?;
        let mut weights = Weights::default();
        let mut planned = |step: Typical, like: Option<&Homes>| {
            let mut plan = fuse(graph, &options.without, options.rows, step, storage);
            let prepared = Prepared::of(&mut plan);
            let homes = Homes::of(&plan, storage, how, like);
            let numbers = weights.add(&plan, &homes);
            Planned { plan, prepared, homes, numbers }
        };
        let few = Typical { tokens: 1, positions: options.positions };
        let chunk = Typical { tokens: options.chunk, positions: options.positions.max(options.chunk) };
        let one = planned(few, None);
        let many = orders(graph, &options.without, few, chunk).map(|costs| (planned(chunk, Some(&one.homes)), costs));
        let constants = one
            .homes
            .constants
            .iter()
            .filter_map(|&(tensor, slot)| match &one.plan.graph.tensor(tensor).kind {
                Kind::Constant(values) => Some((slot, values.clone())),
                _ => None,
            })
            .collect();
        let keeps_positions =
            keeps_positions(&one.plan) || many.as_ref().is_some_and(|(many, _)| keeps_positions(&many.plan));
        let Weights { packed, bytes: weight_bytes, tables, .. } = weights;
        let checks = Checks::of(graph)?;
        Ok(Base { one, many, packed, weight_bytes, tables, constants, checks, keeps_positions })
    }

    /// For so many tokens after so many positions: of two plans, where either may be better, the one that multiplies less.
    pub(crate) fn batch(&self, tokens: usize, past: usize) -> Batch {
        match tokens {
            0 | 1 => Batch::One,
            2..=FEW => Batch::Few,
            _ => {
                let step = Typical { tokens, positions: past + tokens };
                let costs = self.many.as_ref().map(|(_, costs)| costs.map(|cost| cost.in_step(step, EXPANDING)));
                match costs {
                    Some([one, many]) if one < many => Batch::Deep,
                    _ => Batch::Many,
                }
            }
        }
    }

    /// The batch whose kernels a few tokens have too, where they have none of their own.
    pub(crate) fn like_few(&self) -> Batch {
        if self.many.is_some() { Batch::Deep } else { Batch::Many }
    }

    /// What is planned for such a batch.
    pub(crate) fn planned(&self, batch: Batch) -> &Planned {
        match (batch, &self.many) {
            (Batch::Many, Some((many, _))) => many,
            _ => &self.one,
        }
    }

    /// The plans, each once.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Planned> {
        std::iter::once(&self.one).chain(self.many.iter().map(|(many, _)| many))
    }

    /// Schedules and compiles all kernels.
    pub(crate) fn kernels(&self, options: &Options, target: &Target) -> Result<Kernels, CompileError> {
        let cores = target.cores();
        let (mut compiled, mut scheduled, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for (kernel, tiling) in &options.schedules {
            let wrong = |reason| CompileError::Unsupported(format!("the schedule of {kernel}: {reason}"));
            tiling.check().map_err(wrong)?;
        }
        let mut arena_bytes = 0;
        // Those for many come before those for a few, which may be the same.
        for batch in [Batch::One, Batch::Many, Batch::Deep, Batch::Few] {
            if batch == Batch::Deep && self.many.is_none() {
                continue;
            }
            let mode = match batch {
                Batch::One => Mode::One(loops::Expr::Int(0)),
                Batch::Few => Mode::Few,
                Batch::Many | Batch::Deep => Mode::Many,
            };
            let Planned { plan, homes, prepared, .. } = self.planned(batch);
            arena_bytes = arena_bytes.max(homes.arena);
            let mut of_scopes: Vec<Vec<usize>> = Vec::new();
            for (scope, kernels) in plan.scopes().into_iter().enumerate() {
                let mut made = Vec::new();
                for (index, kernel) in kernels.iter().enumerate() {
                    // The rest is the same for all numbers above one.
                    let for_few = matches!(kernel.shape, Shape::Stream(_)) || kernel.last_rows;
                    let as_many = mode == Mode::Few && !for_few;
                    let mode = if as_many { Mode::Many } else { mode.clone() };
                    if as_many {
                        let numbered = compiled.iter().enumerate();
                        let same = |c: &Compiled| {
                            c.batch == self.like_few() && !c.last_layer && (c.scope, c.index) == (scope, index)
                        };
                        made.extend(numbered.filter(|(_, c)| same(c)).map(|(number, _)| number));
                        continue;
                    }
                    for (variant, own) in homes.variants[scope][index].iter().enumerate() {
                        let identity = identity(plan, homes, scope, kernel, own, batch);
                        let sizes = Sizes::of(plan, homes, scope, kernel, own);
                        let default = Tiling::by_default(&sizes, cores, options.workers);
                        let tiling = options.schedules.get(&identity).map_or(default, |tiling| tiling.within(cores));
                        let alternatives = default.alternatives(kernel, &mode, cores);
                        let mut add = |step: Mode, last_layer: bool, tiling: Tiling| {
                            let staged = BTreeMap::new();
                            let cx =
                                Context { plan, homes, prepared, scope, variant: own, step, cores, tiling, staged };
                            let (loops, partial) = schedule(&cx, kernel, homes.arena);
                            arena_bytes = arena_bytes.max(homes.arena + partial);
                            for loops in loops {
                                made.push(compiled.len());
                                compiled.push(Compiled { scope, index, variant, batch, last_layer, loops });
                            }
                        };
                        add(mode.clone(), false, tiling);
                        if mode == Mode::Many && kernel.last_layer && own.layers.contains(&plan.last_layer()) {
                            add(Mode::One(loops::Arg::First.into()), true, default);
                        }
                        scheduled.push(Scheduled {
                            scope,
                            index,
                            variant,
                            batch,
                            identity,
                            sizes,
                            default,
                            tiling,
                            alternatives,
                        });
                    }
                }
                of_scopes.push(made);
            }
            calls.push((batch, of_scopes));
        }
        let how = Lowering { verify: cfg!(debug_assertions), keep_text: options.keep_text };
        let loops: Vec<loops::Kernel> = compiled.iter().map(|c| c.loops.clone()).collect();
        let code = crate::lower::compile(&loops, target, &how)?;
        let sequences = |rows: Wanted| {
            Batch::ALL.map(|batch| {
                let Planned { plan, homes, numbers, .. } = self.planned(batch);
                let runs = |kernel: usize, layer: Option<usize>| {
                    let Compiled { scope, index, variant, last_layer, .. } = compiled[kernel];
                    let of_many = matches!(batch, Batch::Many | Batch::Deep) && rows == Wanted::Last;
                    let one_row = of_many && layer == plan.last_layer() && plan.scopes()[scope][index].last_layer;
                    homes.variants[scope][index][variant].layers.contains(&layer) && last_layer == one_row
                };
                let calls = calls.iter().find(|(own, _)| *own == batch);
                calls.map_or_else(Vec::new, |(_, calls)| sequence(plan, calls, numbers, &runs))
            })
        };
        let (calls, calls_for_all) = (sequences(Wanted::Last), sequences(Wanted::All));
        let watched = watched(self, &compiled);
        Ok(Kernels { code, compiled, scheduled, calls, calls_for_all, arena_bytes, watched })
    }
}

/// What the schedule of a kernel depends on, as text.
fn identity(plan: &Plan, homes: &Homes, scope: usize, kernel: &Kernel, variant: &Variant, batch: Batch) -> String {
    let graph = &plan.graph;
    let (mut axes, mut stored) = (BTreeSet::new(), BTreeSet::new());
    let mut equations = Vec::new();
    for &eq in &kernel.equations {
        let equation = plan.equations[eq];
        equations.push(plan.equation_text(eq));
        for tensor in graph.loaded(equation.body).into_iter().chain([equation.out]) {
            let tensor_axes = &graph.tensor(tensor).axes;
            axes.extend(tensor_axes.iter().filter_map(|&a| Some(format!("{} {}", graph.axis(a).name, graph.size(a)?))));
            if let Kind::State { .. } = graph.tensor(tensor).kind
                && let Some(place) = homes.places[scope].get(&tensor)
            {
                stored.insert(format!("{} {}", graph.tensor(tensor).name, place.format()));
            }
        }
    }
    for (weight, stored_by) in crate::schedule::weights::weights(plan, kernel) {
        let panels = stored_by.and_then(|eq| variant.panels.get(&eq));
        stored.extend(panels.map(|panels| format!("{} {}", graph.tensor(weight).name, panels.format)));
    }
    let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
    format!("{}: {}; {}; {}", batch.name(), equations.join(", "), list(axes), list(stored))
}

/// What the compiler does not take.
fn supported(graph: &Graph) -> Result<(), CompileError> {
    let refuse = |text: String| Err(CompileError::Unsupported(text));
    let inputs: Vec<&einfuse_graph::Tensor> = graph.tensors.iter().filter(|t| matches!(t.kind, Kind::Input)).collect();
    let tokens = |axes: &[AxisId]| matches!(axes, [a] if graph.axis(*a).extent == Extent::Tokens);
    if inputs.len() > 1 {
        return refuse(format!("`{}` and `{}` are both inputs: one is supported", inputs[0].name, inputs[1].name));
    }
    if let Some(input) = inputs.iter().find(|t| !tokens(&t.axes)) {
        return refuse(format!("the input `{}` is over {}, not over the tokens", input.name, graph.names(&input.axes)));
    }
    let output = graph.tensor(graph.output);
    if let Some(&a) = output.axes.iter().find(|&&a| graph.axis(a).extent == Extent::Positions) {
        let (output, a) = (&output.name, &graph.axis(a).name);
        return refuse(format!("the output `{output}` is over the positions `{a}`"));
    }
    for tensor in &graph.tensors {
        let kept = matches!(tensor.kind, Kind::Carry | Kind::State { .. });
        if tensor.ty == Type::Mask && (kept || graph.tensor(graph.output).name == tensor.name) {
            return refuse(format!("`{}` is a mask; masks are neither handed on nor kept nor returned", tensor.name));
        }
    }
    Ok(())
}

/// The most elements of a tensor: with so many bytes, sums over all tensors are still addresses.
const LARGEST: f64 = (1u64 << 48) as f64;

/// Refuses a tensor with more elements than could be.
fn fits_memory(graph: &Graph, extents: Extents) -> Result<(), CompileError> {
    for tensor in &graph.tensors {
        let sizes = tensor.axes.iter().map(|&a| match graph.axis(a).extent {
            Extent::Fixed(size) => size,
            Extent::Tokens => extents.tokens,
            Extent::Positions => extents.positions,
        });
        let elements = sizes.map(|size| size as f64).product::<f64>();
        if elements > LARGEST {
            let (name, axes) = (&tensor.name, graph.names(&tensor.axes));
            return Err(CompileError::Unsupported(format!("`{name}` over {axes} has {elements:e} elements")));
        }
    }
    Ok(())
}

/// Whether a value that passes from kernel to kernel is over the positions.
fn keeps_positions(plan: &Plan) -> bool {
    let is_positions = |a: &AxisId| plan.graph.axis(*a).extent == Extent::Positions;
    let mut values = plan.scopes().into_iter().flatten().flat_map(|kernel| plan.outputs(kernel));
    values.any(|tensor| plan.graph.tensor(tensor).axes.iter().any(is_positions))
}

/// The packed weights with their places, and the tables of the stretches and layers.
#[derive(Default)]
struct Weights {
    packed: Vec<Packed>,
    places: HashMap<(usize, Option<usize>), usize>,
    bytes: usize,
    tables: Vec<Vec<Slot>>,
}

impl Weights {
    /// Adds what a plan reads and nobody has read before. Returns for each stretch and layer the number of its table.
    fn add(&mut self, plan: &Plan, homes: &Homes) -> HashMap<(usize, Option<usize>), usize> {
        // In the order in which a step reads them: stretch by stretch, within the layers layer by layer.
        let mut order: Vec<(usize, Option<usize>)> = Vec::new();
        let mut scope = 0;
        for segment in &plan.segments {
            match segment {
                Segment::Once(_) => {
                    order.push((scope, None));
                    scope += 1;
                }
                Segment::Layers { bodies, order: of_layers, .. } => {
                    order.extend(of_layers.iter().enumerate().map(|(layer, body)| (scope + body, Some(layer))));
                    scope += bodies.len();
                }
            }
        }
        let mut numbers = HashMap::new();
        for (scope, layer) in order {
            let mut table = Vec::new();
            for entry in &homes.tables[scope] {
                table.push(match entry {
                    Entry::State(state) => {
                        let own = homes.states.get(&(*state, layer)).or_else(|| homes.states.get(&(*state, None)));
                        Slot::State(own.map_or(0, |(_, at)| *at))
                    }
                    Entry::Region(region) => {
                        let layers = &homes.regions[*region].layers;
                        match layers.get(&layer).or_else(|| layers.get(&None)) {
                            None => Slot::Unread,
                            Some(&whose) => Slot::Weights(*self.places.entry((*region, whose)).or_insert_with(|| {
                                let one = Packed::of(&plan.graph, &homes.regions[*region], whose, self.bytes);
                                let at = self.bytes;
                                self.bytes += one.bytes.next_multiple_of(64);
                                self.packed.push(one);
                                at
                            })),
                        }
                    }
                });
            }
            numbers.insert((scope, layer), self.tables.len());
            self.tables.push(table);
        }
        numbers
    }
}

/// The kernel calls of a step, in order: in each layer those that it runs.
fn sequence(
    plan: &Plan,
    kernels: &[Vec<usize>],
    numbers: &HashMap<(usize, Option<usize>), usize>,
    runs: &dyn Fn(usize, Option<usize>) -> bool,
) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut scope = 0;
    let stretch = |scope: usize, layer: Option<usize>, calls: &mut Vec<Call>| {
        let table = numbers.get(&(scope, layer)).copied().unwrap_or(0);
        let own = kernels[scope].iter().filter(|&&kernel| runs(kernel, layer));
        for (i, &kernel) in own.enumerate() {
            calls.push(Call { kernel, table, begins: layer.filter(|_| i == 0), ends: None });
        }
    };
    for segment in &plan.segments {
        match segment {
            Segment::Once(_) => {
                stretch(scope, None, &mut calls);
                scope += 1;
            }
            Segment::Layers { bodies, order, .. } => {
                for (layer, body) in order.iter().enumerate() {
                    stretch(scope + body, Some(layer), &mut calls);
                }
                if let Some(last) = calls.last_mut() {
                    last.ends = Some(order.len());
                }
                scope += bodies.len();
            }
        }
    }
    calls
}
