//! Fusion: from equations to kernels, by named rules.
//!
//! In the order of [`fuse()`]: sums are brought into the best order (path), what they do not run over leaves them (factor),
//! and the graph is split into equations of at most one reduction. Weights that are kept in codes become equations over them
//! (`coded`). What is the same in every layer moves out of the layers (hoist), and what costs less than a load into its readers
//! (inline). Each equation is a kernel then. Cascades of reductions over positions become streams (online-softmax), which end
//! where their masks do (ranges); contractions of a weight that a value chooses find their form (select-contract). Kernels are
//! grouped: contractions of one activation (siblings), what follows from a tile (epilogue), passes over the same rows (rows),
//! what comes before a contraction (prologue). What the layers hand on gets one home (`settle`), and what comes after the last
//! layer's last cache is computed for the wanted rows only (tail). Every grouping keeps the name of its rule, and a rule that
//! nearly applied says why it did not.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use einfuse_graph::{AxisId, ExprId, Graph, Node, TensorId};

mod carry;
mod coded;
mod contraction;
mod edit;
mod epilogue;
mod factor;
mod hoist;
mod inline;
mod online_softmax;
mod path;
mod print;
mod prologue;
mod ranges;
mod rows;
mod select_contract;
mod siblings;
mod split;
mod tail;

pub use coded::{Blocks, Kept, Order, Storage};
pub(crate) use contraction::factors;
use contraction::is_computed;
pub use contraction::{Along, Contraction};
pub(crate) use contraction::{is_positions, is_tokens};
pub(crate) use edit::{Edit, is_identity, loads_of};
pub use online_softmax::{Fold, Operand, Stream, Weighted};
pub use path::{Multiplications, Typical};
pub use ranges::Bounds;
pub(crate) use ranges::holds_at_own;
pub(crate) use rows::common_rows;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// A named fusion rule. Switching one off leaves the answer unchanged.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// All rules, in the order in which they are tried.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)*];

            /// The name by which the rule is switched off.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$name => $text,)* }
            }
        }
    };
}

rules! {
    /// Nested sums of a product are taken in the order that is cheapest for as many tokens as there are.
    Path = "path",
    /// Factors that a sum does not run over leave it where the rest is a contraction.
    Factor = "factor",
    /// Equations and parts of them that are the same in every layer, and do not grow with the positions, are computed once,
    /// before the layers.
    Hoist = "hoist",
    /// An elementwise producer moves into its only consumer, or into all where it is cheaper to recompute than to load.
    Inline = "inline",
    /// Cascaded reductions over the positions become one streamed pass that rescales what it has summed.
    OnlineSoftmax = "online-softmax",
    /// Bounds between positions and tokens in a mask limit the positions that a reduction visits.
    Ranges = "ranges",
    /// Contractions of weights that each row chooses read those alone, and compute the rows of a choice together.
    SelectContract = "select-contract",
    /// Contractions of one activation over the same axes share a kernel.
    Siblings = "siblings",
    /// What is computed from a contraction's result tile by tile joins its kernel.
    Epilogue = "epilogue",
    /// Reductions and maps along the rows of one tensor share a pass.
    Rows = "rows",
    /// What computes a contraction's activation row by row joins its kernel, and what makes its weight of codes and scales.
    Prologue = "prologue",
    /// In the last layer, behind what goes into its caches, and after it only the rows whose output is wanted are computed.
    Tail = "tail",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No rule has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no rule `{name}`; the rules are {}", Rule::ALL.iter().map(|r| r.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownRule {
    /// The name that was asked for.
    pub name: String,
}

impl FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(name: &str) -> Result<Rule, UnknownRule> {
        let found = Rule::ALL.iter().find(|r| r.name() == name);
        found.copied().ok_or_else(|| UnknownRule { name: name.to_owned() })
    }
}

/// An equation of the plan, `out[its axes] = body`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Equation {
    /// What is computed.
    pub out: TensorId,
    /// From what: at most one reduction, outermost.
    pub body: ExprId,
}

/// A position in [`Plan::equations`].
pub type EqId = usize;

/// What a rule did to a kernel, or why it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The rule.
    pub rule: Rule,
    /// What it did, or why it declined, in the model's words.
    pub text: String,
}

/// Equations that are computed together.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// A name after what it computes.
    pub name: String,
    /// All its equations, in order.
    pub equations: Vec<EqId>,
    /// The equations of the weights that it reads in parts, as codes and scales: in [`Plan::made`].
    pub weights: Vec<EqId>,
    /// How they are computed.
    pub shape: Shape,
    /// The rules that made it.
    pub applied: Vec<Remark>,
    /// The rules that nearly applied.
    pub declined: Vec<Remark>,
    /// Whether only the wanted rows are computed (rule tail).
    pub last_rows: bool,
    /// Whether that is so in the last layer (rule tail).
    pub last_layer: bool,
}

impl Kernel {
    /// One that computes an equation, and is named after it.
    fn of(plan: &Plan, eq: EqId, shape: Shape) -> Kernel {
        Kernel {
            name: plan.graph.tensor(plan.equations[eq].out).name.clone(),
            equations: vec![eq],
            weights: Vec::new(),
            shape,
            applied: Vec::new(),
            declined: Vec::new(),
            last_rows: false,
            last_layer: false,
        }
    }

    /// Takes the equations of another one that a rule joins to it, and what rules said of that.
    fn absorb(&mut self, other: Kernel, by: Remark) {
        self.equations.extend(other.equations);
        self.equations.sort();
        self.applied.extend(other.applied);
        self.applied.push(by);
        self.declined.extend(other.declined);
    }

    /// Puts down why a rule declined, in place of what it said before.
    fn decline(&mut self, rule: Rule, reasons: Vec<String>) {
        self.declined.retain(|remark| remark.rule != rule);
        self.declined.extend(reasons.into_iter().map(|text| Remark { rule, text }));
    }
}

/// The skeletons.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Row by row: maps and reductions, each over what the rows hold.
    Rows,
    /// A contraction of activations with stored operands, or several of the same activation.
    Contract(Contract),
    /// A streamed pass over the positions.
    Stream(Box<Stream>),
}

/// The parts of a contraction kernel.
#[derive(Clone, Debug)]
pub struct Contract {
    /// What computes the activation, row by row; empty if it is there already.
    pub prologue: Vec<EqId>,
    /// Contractions by what their results are used for: those that share an epilogue are one task.
    pub tasks: Vec<Task>,
}

impl Contract {
    /// A contraction by itself.
    fn of(eq: EqId, contraction: Contraction) -> Contract {
        let task = Task { contractions: vec![(eq, contraction)], epilogue: Vec::new(), whole: Vec::new() };
        Contract { prologue: Vec::new(), tasks: vec![task] }
    }
}

/// Contractions whose results are used together, and what is done with them.
#[derive(Clone, Debug)]
pub struct Task {
    /// The contractions, over the same columns.
    pub contractions: Vec<(EqId, Contraction)>,
    /// What is computed from their tile.
    pub epilogue: Vec<EqId>,
    /// Column axes that a tile holds wholly.
    pub whole: Vec<AxisId>,
}

/// A stretch of the step.
#[derive(Clone, Debug)]
pub enum Segment {
    /// Kernels that run once a step.
    Once(Vec<Kernel>),
    /// Kernels that run once in each layer.
    Layers {
        /// The tensor handed from layer to layer.
        carry: TensorId,
        /// What the first layer gets.
        initial: TensorId,
        /// What the last layer's result is called afterwards.
        out: TensorId,
        /// For each distinct body its kernels and its result.
        bodies: Vec<(Vec<Kernel>, TensorId)>,
        /// The body of each layer.
        order: Vec<usize>,
    },
}

/// A graph's equations, grouped into kernels.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph whose tensors, axes and expressions the equations refer to. Its nodes are not kept: see `segments`.
    pub graph: Graph,
    /// All equations.
    pub equations: Vec<Equation>,
    /// The step, in order.
    pub segments: Vec<Segment>,
    /// For each appended tensor the state it is appended to. Its elements live there.
    pub states: HashMap<TensorId, TensorId>,
    /// For each weight that is made of codes, and each way in which layers keep it so: its equation, and what it was found to be.
    /// It depends on nothing that a step computes: where no kernel takes it in, it is computed when weights are packed.
    pub made: HashMap<(TensorId, Kept), (EqId, Blocks)>,
    /// Rule ranges: for each tensor reduced over positions outside of a stream, their axis, and which of them a token needs.
    pub bounds: HashMap<TensorId, (AxisId, Bounds)>,
    /// What rules said of the graph as a whole, where they applied or declined outside of a kernel.
    pub remarks: Vec<Remark>,
}

/// Which rows of the output the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Wanted {
    /// That of the step's last token, or in a step of up to [`FEW`](crate::loops::FEW) tokens those of any last ones.
    #[default]
    Last,
    /// All.
    All,
}

/// The multiplications of the plans for two steps, where their sums are in different orders.
pub fn orders(graph: &Graph, without: &[Rule], a: Typical, b: Typical) -> Option<[Multiplications; 2]> {
    let ordered = |step: Typical| path::apply(graph, step, &mut Vec::new());
    let (a, b) = (ordered(a), ordered(b));
    let differ = !without.contains(&Rule::Path) && a != b;
    differ.then(|| [Multiplications::of(&a), Multiplications::of(&b)])
}

/// A graph in which each weight that all its layers keep in the same codes is an equation over its parts, `NAME.code`,
/// `NAME.scale`, `NAME.minimum`, along the axes that the plans of all rules sum.
pub fn in_parts(graph: &Graph, kept: &Storage) -> Graph {
    let graph = split::split(&factor::apply(graph, &mut Vec::new()));
    let ways = coded::ways(&graph, kept);
    coded::apply(graph, &ways).0
}

/// Makes the plan of a graph for steps of some size, with some rules switched off. `kept` says how weights are kept.
pub fn fuse(graph: &Graph, without: &[Rule], wanted: Wanted, step: Typical, kept: &Storage) -> Plan {
    let on = |rule: Rule| !without.contains(&rule);
    let mut remarks = Vec::new();
    let mut graph = graph.clone();
    if on(Rule::Path) {
        graph = path::apply(&graph, step, &mut remarks);
    }
    if on(Rule::Factor) {
        graph = factor::apply(&graph, &mut remarks);
    }
    graph = split::split(&graph);
    let ways = coded::ways(&graph, kept);
    let several;
    (graph, several) = coded::apply(graph, &ways);
    if on(Rule::Hoist) {
        graph = hoist::apply(graph, &mut remarks);
    }
    let mut stay = Vec::new();
    if on(Rule::Inline) {
        (graph, stay) = inline::apply(graph, &mut remarks);
    }
    let mut plan = Plan::of(graph, remarks);
    for (weight, kept, body, blocks) in coded::recognised(&mut plan.graph, &ways, several) {
        plan.made.insert((weight, kept), (plan.equations.len(), blocks));
        plan.equations.push(Equation { out: weight, body });
    }
    if on(Rule::OnlineSoftmax) {
        online_softmax::apply(&mut plan);
    }
    if on(Rule::Ranges) {
        ranges::apply(&mut plan);
    }
    if on(Rule::SelectContract) {
        select_contract::apply(&mut plan);
    }
    if on(Rule::Siblings) {
        siblings::apply(&mut plan);
    }
    if on(Rule::Epilogue) {
        epilogue::apply(&mut plan);
    }
    if on(Rule::Rows) {
        rows::apply(&mut plan);
    }
    if on(Rule::Prologue) {
        prologue::apply(&mut plan);
    }
    plan.settle();
    if on(Rule::Tail) {
        tail::apply(&mut plan, wanted);
    }
    plan.each_scope(|plan, kernels| {
        for kernel in kernels {
            let outputs = plan.outputs(kernel);
            // Whoever could have done without a round trip to memory; within a kernel there is none.
            let stored = stay.iter().filter(|(tensor, _)| outputs.contains(tensor));
            kernel.decline(Rule::Inline, stored.map(|(_, why)| why.clone()).collect());
            kernel.name = plan.names(&outputs);
        }
    });
    plan
}

impl Plan {
    /// Every equation a kernel of its own.
    fn of(mut graph: Graph, remarks: Vec<Remark>) -> Plan {
        let nodes = std::mem::take(&mut graph.nodes);
        let mut plan = Plan {
            graph,
            equations: Vec::new(),
            segments: Vec::new(),
            states: HashMap::new(),
            made: HashMap::new(),
            bounds: HashMap::new(),
            remarks,
        };
        let mut once = Vec::new();
        for node in nodes {
            match node {
                Node::Layers(layers) => {
                    plan.segments.push(Segment::Once(std::mem::take(&mut once)));
                    let mut bodies = Vec::new();
                    for body in layers.bodies {
                        let mut kernels = Vec::new();
                        for node in body.nodes {
                            plan.push(node, &mut kernels);
                        }
                        bodies.push((kernels, body.result));
                    }
                    let (carry, initial, out, order) = (layers.carry, layers.initial, layers.out, layers.order);
                    plan.segments.push(Segment::Layers { carry, initial, out, bodies, order });
                }
                node => plan.push(node, &mut once),
            }
        }
        plan.segments.push(Segment::Once(once));
        plan
    }

    fn push(&mut self, node: Node, kernels: &mut Vec<Kernel>) {
        match node {
            Node::Append { state, rows } => {
                self.states.insert(rows, state);
            }
            Node::Equation { out, body } => {
                let id = self.equations.len();
                self.equations.push(Equation { out, body });
                let contraction = Contraction::of(&self.graph, out, body);
                let contraction = contraction.filter(|c| c.chosen.is_none() && c.has_core(&self.graph));
                let shape = contraction.map_or(Shape::Rows, |c| Shape::Contract(Contract::of(id, c)));
                kernels.push(Kernel::of(self, id, shape));
            }
            Node::Layers(_) => {}
        }
    }

    /// The kernels of each stretch, in order.
    pub fn scopes(&self) -> Vec<&[Kernel]> {
        let mut scopes = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Once(kernels) => scopes.push(&kernels[..]),
                Segment::Layers { bodies, .. } => scopes.extend(bodies.iter().map(|(kernels, _)| &kernels[..])),
            }
        }
        scopes
    }

    /// The last of the layers that come before the last kernels.
    pub(crate) fn last_layer(&self) -> Option<usize> {
        match self.segments.iter().nth_back(1)? {
            Segment::Layers { order, .. } => order.len().checked_sub(1),
            Segment::Once(_) => None,
        }
    }

    /// The body of that layer: its kernels, and what it hands on.
    fn last_body(&mut self) -> Option<&mut (Vec<Kernel>, TensorId)> {
        match self.segments.iter_mut().nth_back(1)? {
            Segment::Layers { bodies, order, .. } => bodies.get_mut(*order.last()?),
            Segment::Once(_) => None,
        }
    }

    fn scopes_mut(&mut self) -> Vec<&mut Vec<Kernel>> {
        let mut scopes = Vec::new();
        for segment in &mut self.segments {
            match segment {
                Segment::Once(kernels) => scopes.push(kernels),
                Segment::Layers { bodies, .. } => scopes.extend(bodies.iter_mut().map(|(kernels, _)| kernels)),
            }
        }
        scopes
    }

    /// Applies `f` to the kernels of each stretch in turn, with the plan at hand.
    fn each_scope(&mut self, mut f: impl FnMut(&mut Plan, &mut Vec<Kernel>)) {
        for at in 0..self.scopes().len() {
            let mut kernels = std::mem::take(self.scopes_mut()[at]);
            f(self, &mut kernels);
            *self.scopes_mut()[at] = kernels;
        }
    }

    /// The tensors whose elements an equation needs; for a state, the rows appended to it in this step.
    pub(crate) fn reads(&self, eq: EqId) -> Vec<TensorId> {
        let mut reads = self.graph.loaded(self.equations[eq].body);
        for tensor in &mut reads {
            if let Some((&rows, _)) = self.states.iter().find(|(_, state)| *state == tensor) {
                *tensor = rows;
            }
        }
        reads
    }

    /// Refuses an equation that reads a tensor through its cache, where rows of other tokens are.
    fn check_own_rows(&self, eq: EqId, made: TensorId) -> Result<(), String> {
        match self.states.get(&made) {
            Some(&cache) if self.graph.loaded(self.equations[eq].body).contains(&cache) => {
                Err(format!("it reads other tokens' rows of {}", self.quoted(cache)))
            }
            _ => Ok(()),
        }
    }

    /// The equations that load a tensor (not its state).
    pub(crate) fn consumers(&self, tensor: TensorId) -> Vec<EqId> {
        (0..self.equations.len()).filter(|&e| self.graph.loaded(self.equations[e].body).contains(&tensor)).collect()
    }

    /// Whether a tensor is needed beyond the equations that load it: as the output, a layer's result or first carry, or
    /// in a cache.
    pub(crate) fn escapes(&self, tensor: TensorId) -> bool {
        self.graph.output == tensor
            || self.states.contains_key(&tensor)
            || self.segments.iter().any(|s| match s {
                Segment::Once(_) => false,
                Segment::Layers { initial, bodies, .. } => {
                    *initial == tensor || bodies.iter().any(|(_, result)| *result == tensor)
                }
            })
    }

    /// Who needs a tensor besides some equations, if anybody does: "is needed by …".
    fn needed_outside(&self, tensor: TensorId, equations: &[EqId]) -> Option<String> {
        if self.states.contains_key(&tensor) {
            return Some("goes into a cache".to_owned());
        }
        if self.escapes(tensor) {
            return Some("is handed on".to_owned());
        }
        let other = self.consumers(tensor).into_iter().find(|e| !equations.contains(e))?;
        Some(format!("is needed by {} too", self.quoted(self.equations[other].out)))
    }

    /// Whether kernel `b` needs something that kernel `a` computes.
    fn depends(&self, b: &Kernel, a: &Kernel) -> bool {
        b.equations
            .iter()
            .any(|&e| self.reads(e).iter().any(|t| a.equations.iter().any(|&p| self.equations[p].out == *t)))
    }

    /// Whether one that comes between two kernels needs the first and is needed by the second. The two can't be one then, and
    /// the reason why lies with the one between.
    fn has_between(&self, kernels: &[Kernel], first: usize, second: usize) -> bool {
        let needs = |b: usize, a: usize| self.depends(&kernels[b], &kernels[a]);
        (first + 1..second).any(|between| needs(between, first) && needs(second, between))
    }

    /// Where two kernels of a stretch can be computed as one: at the place of the first or of the second, so that
    /// everything needed is there and nothing comes too late.
    fn meeting_place(&self, kernels: &[Kernel], first: usize, second: usize) -> Option<usize> {
        let between = first + 1..second;
        if between.clone().all(|k| !self.depends(&kernels[k], &kernels[first])) {
            return Some(second);
        }
        between.into_iter().all(|k| !self.depends(&kernels[second], &kernels[k])).then_some(first)
    }

    /// Whether a kernel reads a weight in parts where it is kept so: its codes and scales.
    pub(crate) fn reads_codes(&self, kernel: &Kernel, weight: TensorId, kept: Kept) -> bool {
        self.made.get(&(weight, kept)).is_some_and(|(eq, _)| kernel.weights.contains(eq))
    }

    /// The name of a tensor, quoted.
    pub(crate) fn quoted(&self, tensor: TensorId) -> String {
        format!("`{}`", self.graph.tensor(tensor).name)
    }

    /// The names of some tensors, joined.
    fn names(&self, tensors: &[TensorId]) -> String {
        tensors.iter().map(|&t| self.graph.tensor(t).name.as_str()).collect::<Vec<_>>().join("+")
    }

    /// What a kernel computes that others need.
    pub(crate) fn outputs(&self, kernel: &Kernel) -> Vec<TensorId> {
        let outs = kernel.equations.iter().map(|&e| self.equations[e].out);
        outs.filter(|&t| self.escapes(t) || self.consumers(t).iter().any(|e| !kernel.equations.contains(e))).collect()
    }
}

impl Shape {
    /// The skeleton's name.
    pub fn name(&self) -> &'static str {
        match self {
            Shape::Rows => "rows",
            Shape::Contract(_) => "contract",
            Shape::Stream(_) => "stream",
        }
    }
}

impl Contraction {
    /// Whether a contraction core can compute it: a weight without the tokens' or positions' axis, and rows evenly spaced.
    fn has_core(&self, graph: &Graph) -> bool {
        let tokens = self.rows.iter().position(|&a| is_tokens(graph, a));
        graph.is_weight(self.b)
            && graph.tensor(self.a).axes == self.activation_order(graph)
            && is_computed(graph, self.a)
            && tokens.is_none_or(|at| at == 0)
            && !self.rows.iter().chain(&self.batch).chain(&self.depth).any(|&a| is_positions(graph, a))
            && !self.batch.iter().chain(&self.depth).any(|&a| is_tokens(graph, a))
    }
}
