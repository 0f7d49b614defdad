//! A loaded model: compiled, its weights packed, with the threads and the cache that its sequences share.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use einfuse_codegen::{
    Batch, Format, InBlocks, MOST_POSITIONS, Options, Packed, Program, Rule, Schedules, Values, Wanted,
};
use einfuse_graph::{Graph, Kind, Node, TensorId};

use crate::Error;
use crate::cache::Cache;
use crate::checkpoint::{Blocks, Change, Checkpoint, Dtype, Numbers, Stored, declared};
use crate::memory::Memory;
use crate::session::Session;
use crate::storage::storage;
use crate::threads::{Threads, side_by_side};
use crate::tokens::Tokenizer;

/// The context of a model of which nobody says how long a text it can read.
const DEFAULT_CONTEXT: usize = 4096;

/// How weights lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// F32 and BF16 as the file stores them; F16 becomes F32. The blocks of GGUF files stay what they are, their scales rounded
    /// as BF16, where an axis of whole blocks is summed over. What else takes fewer than 16 bits becomes BF16.
    #[default]
    Stored,
    /// F32.
    F32,
    /// BF16 (rounded to the nearest, ties to even) where the file's tensor has two dimensions or more, the rest as stored.
    Bf16,
}

/// How a cache keeps floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// F32.
    F32,
    /// BF16, rounded to the nearest, ties to even.
    Bf16,
    /// Codes of 8 bits: of a key with a scale for 64 of its components, where these are a multiple of 64 (else BF16), of a value
    /// with one for all. With scales, 8.5 bits of a key, of a value of 64 components 8.75.
    Q8,
}

/// Codes in place of weights, with a scale for each block of a column (see [`einfuse_codegen::format::Format`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// 8 bits, with scales 8.25 bits a weight.
    Q8,
    /// 4 bits, with steps and scales 4.31 to 4.5 bits a weight; 8 where few weights decide much: in matrices that have the
    /// output's axis, or that make nothing but attention's values or the scores by which experts are chosen.
    Q4,
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The graph is being compiled.
    Compiling,
    /// The weights are being packed.
    Packing {
        /// Bytes packed.
        done: usize,
        /// Of so many.
        total: usize,
    },
}

/// How to load a model.
pub struct Settings {
    /// How many threads compute; [`default_threads`](crate::default_threads) if `None`.
    pub threads: Option<usize>,
    /// How weights lie in memory.
    pub precision: Precision,
    /// What replaces the weights of matrices, where their inputs are a multiple of 64; others are bf16.
    pub quant: Option<Quant>,
    /// How the cache lies in memory. `None`: as bf16 if some weights take 16 bits or fewer.
    pub cache: Option<CacheType>,
    /// Fusion rules that are switched off.
    pub without: Vec<Rule>,
    /// The most positions a sequence may have: as many as the model was made for, or fewer. 4096 if `None`, or what the graph
    /// has places for.
    pub context: Option<usize>,
    /// How many sequences of that length the cache holds.
    pub sequences: usize,
    /// The most tokens computed in a step.
    pub chunk: usize,
    /// Whether every step can yield the logits of all its rows, or one of many only those of the last, which needs less work and
    /// memory.
    pub rows: Wanted,
    /// The numbers of some kernels' schedules, in place of what the compiler would choose: see [`Tuned`](crate::Tuned).
    pub schedules: Schedules,
    /// Whether the text of the compiled code is kept for inspection.
    pub keep_text: bool,
    /// Called while loading, from any thread.
    pub progress: Option<Box<dyn Fn(Progress) + Send + Sync>>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            threads: None,
            precision: Precision::Stored,
            quant: None,
            cache: None,
            without: Vec::new(),
            context: None,
            sequences: 1,
            chunk: 512,
            rows: Wanted::Last,
            schedules: Schedules::new(),
            keep_text: false,
            progress: None,
        }
    }
}

impl Settings {
    /// Checks that every number is within its range.
    fn check(&self) -> Result<(), Error> {
        for (option, number) in [("chunk", self.chunk), ("sequences", self.sequences)] {
            if number == 0 {
                return Err(Error::Option { option, wants: "a number of at least 1", got: "0".into() });
            }
        }
        match self.context.filter(|context| !(1..=MOST_POSITIONS).contains(context)) {
            Some(context) => {
                let wants = "a number from 1 to 16777216";
                Err(Error::Option { option: "context", wants, got: context.to_string() })
            }
            None => Ok(()),
        }
    }

    /// What the compiler is told, where some weights take 16 bits or fewer, or none do.
    fn options(&self, any_narrow: bool, workers: usize) -> Options {
        let positions = self.context.unwrap_or(DEFAULT_CONTEXT);
        let cache = match self.cache {
            None if any_narrow => Format::Bf16,
            None | Some(CacheType::F32) => Format::F32,
            Some(CacheType::Bf16) => Format::Bf16,
            Some(CacheType::Q8) => Format::Q8,
        };
        Options {
            without: self.without.clone(),
            chunk: self.chunk.min(positions),
            positions,
            cache,
            rows: self.rows,
            workers,
            schedules: self.schedules.clone(),
            keep_text: self.keep_text,
            cores: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("threads", &self.threads)
            .field("precision", &self.precision)
            .field("quant", &self.quant)
            .field("cache", &self.cache)
            .field("without", &self.without)
            .field("context", &self.context)
            .field("sequences", &self.sequences)
            .field("chunk", &self.chunk)
            .field("rows", &self.rows)
            .field("schedules", &self.schedules)
            .field("keep_text", &self.keep_text)
            .finish_non_exhaustive()
    }
}

/// A compiled model with its weights.
pub struct Model {
    pub(crate) program: Program,
    pub(crate) weights: Memory,
    pub(crate) threads: Threads,
    pub(crate) cache: Mutex<Cache>,
    pub(crate) chunk: usize,
    pub(crate) rows: Wanted,
    pub(crate) vocabulary: usize,
    ids: usize,
    tokenizer: Option<Tokenizer>,
    place: String,
    end_tokens: Vec<u32>,
    context: usize,
    bound: &'static str,
    leftovers: Vec<String>,
    unread_biases: Vec<String>,
    pack_time: Duration,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("place", &self.place).field("context", &self.context).finish_non_exhaustive()
    }
}

impl Model {
    /// Compiles a graph and packs the weights that it wants out of a checkpoint, which is not needed afterwards.
    ///
    /// # Errors
    /// If a weight is missing or has another shape than the graph's, a file is corrupt, the graph cannot be compiled, a
    /// setting is outside its range, or memory or threads cannot be had.
    pub fn load(checkpoint: &Checkpoint, graph: &Graph, settings: Settings) -> Result<Model, Error> {
        settings.check()?;
        let progress = |progress| {
            if let Some(report) = &settings.progress {
                report(progress);
            }
        };
        let end_tokens = checkpoint.end_tokens()?;
        let threads = Threads::new(settings.threads)?;
        let found = find_weights(checkpoint, graph)?;
        let storage = storage(graph, &found, &settings);
        let any_narrow = storage.values().any(|kept| kept.format != Format::F32);
        let options = settings.options(any_narrow, einfuse_codegen::Team::workers(&threads));
        let storage = |tensor, layer| storage.get(&(tensor, layer)).copied().unwrap_or(Format::F32.into());
        let compile_and_pack = |failed: &AtomicBool| {
            progress(Progress::Compiling);
            let program = Program::compile(graph, &storage, &options)?;
            let start = Instant::now();
            let weights = pack(&program, checkpoint, &found, &threads, failed, &progress)?;
            Ok::<_, Error>((program, weights, start.elapsed()))
        };
        let (tokenizer, (program, weights, pack_time)) = side_by_side(|| Tokenizer::of(checkpoint), compile_and_pack)?;
        let bytes = program.workspace_bytes(options.workers);
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|error| {
            let what = "what is computed in a step (a smaller chunk needs less)";
            Error::Memory { bytes, what, source: std::io::Error::other(error) }
        })?;
        let (context, bound) = context(&program, &settings);
        let cache = Mutex::new(Cache::new(&program.caches(), context, settings.sequences, options.chunk)?);

        let used: HashSet<String> =
            found.values().flat_map(|stored| stored.beside.iter().chain(&stored.names).cloned()).collect();
        let axes = &graph.tensor(graph.output).axes;
        let vocabulary = axes.iter().filter_map(|&axis| graph.size(axis)).product();
        let ids = program.ids().unwrap_or(i32::MAX as usize);
        Ok(Model {
            program,
            weights,
            threads,
            cache,
            chunk: options.chunk,
            rows: settings.rows,
            vocabulary,
            ids,
            tokenizer,
            place: checkpoint.place().to_owned(),
            end_tokens,
            context,
            bound,
            leftovers: checkpoint.leftovers(&used),
            unread_biases: checkpoint.unread_biases(&used),
            pack_time,
        })
    }

    /// An empty sequence.
    pub fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    /// The compiled program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        let problem =
            "there is no tokenizer (tokenizer.json, or the metadata of a GGUF file), by which text becomes tokens";
        self.tokenizer.as_ref().ok_or_else(|| Error::File { file: self.place.clone(), problem: problem.into() })
    }

    /// How many tokens the model knows: their ids are below.
    pub fn ids(&self) -> usize {
        self.ids
    }

    /// How many logits a row has.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The tokens that end a text.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The most positions that a sequence can have: the fewer of what the graph has places for and what the settings ask for.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Checks that a sequence has room for two tokens, and for one behind the `begin` that it begins with.
    pub(crate) fn check_window(&self, begin: usize) -> Result<(), Error> {
        let (context, bound, wanted) = (self.context, self.bound, begin.max(1) + 1);
        if context < wanted { Err(Error::ShortContext { wanted, context, bound }) } else { Ok(()) }
    }

    /// Checks that a sequence of `past` positions can grow by `tokens`.
    pub(crate) fn check_room(&self, past: usize, tokens: usize) -> Result<(), Error> {
        let (context, bound) = (self.context, self.bound);
        match past.saturating_add(tokens) > context {
            true => Err(Error::ContextFull { tokens, past, context, bound }),
            false => Ok(()),
        }
    }

    /// The fewest bits that a weight has in memory.
    pub(crate) fn weight_bits(&self) -> usize {
        self.program.weights().iter().map(|packed| packed.storage.bits()).min().unwrap_or(32)
    }

    /// The threads that compute: where they run, what they can do at most is to be measured.
    pub fn team(&self) -> &dyn einfuse_codegen::Team {
        &self.threads
    }

    /// The number of threads that compute.
    pub fn threads(&self) -> usize {
        einfuse_codegen::Team::workers(&self.threads)
    }

    /// The checkpoint's tensors that the model does not use, sorted.
    pub fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// Those of the leftovers that are biases of weights that the model uses, and are not zero: a sign that what it computes is
    /// not what was meant.
    pub fn unread_biases(&self) -> &[String] {
        &self.unread_biases
    }

    /// How long packing the weights took.
    pub fn pack_time(&self) -> Duration {
        self.pack_time
    }
}

/// The most positions that a sequence can have, and what sets that limit.
fn context(program: &Program, settings: &Settings) -> (usize, &'static str) {
    let bounds = [(program.context(), "that the model has places for"), (settings.context, "of the model's context")];
    let bounds = bounds.into_iter().filter_map(|(positions, bound)| Some((positions?, bound)));
    bounds.min_by_key(|(positions, _)| *positions).unwrap_or((DEFAULT_CONTEXT, "that the model has by default"))
}

/// A weight, in a layer if it is another in each.
pub(crate) type Place = (TensorId, Option<usize>);

/// Finds every weight that the graph reads.
fn find_weights<'a>(checkpoint: &'a Checkpoint, graph: &Graph) -> Result<HashMap<Place, Stored<'a>>, Error> {
    let mut found = HashMap::new();
    let mut find = |tensor, layer: Option<usize>| {
        let layer = layer.filter(|_| graph.is_layered(tensor));
        if let std::collections::hash_map::Entry::Vacant(entry) = found.entry((tensor, layer)) {
            entry.insert(checkpoint.weight(graph, tensor, layer)?);
        }
        Ok::<(), Error>(())
    };
    for node in &graph.nodes {
        match node {
            Node::Layers(layers) => {
                let read: Vec<BTreeSet<TensorId>> =
                    layers.bodies.iter().map(|body| weights_in(graph, &body.nodes)).collect();
                for (layer, &body) in layers.order.iter().enumerate() {
                    read[body].iter().try_for_each(|&tensor| find(tensor, Some(layer)))?;
                }
            }
            node => {
                let read = weights_in(graph, std::slice::from_ref(node));
                read.iter().try_for_each(|&tensor| find(tensor, None))?;
            }
        }
    }
    Ok(found)
}

/// The weights that equations read, in order.
fn weights_in(graph: &Graph, nodes: &[Node]) -> BTreeSet<TensorId> {
    let read = nodes.iter().flat_map(|node| match node {
        Node::Equation { body, .. } => graph.loaded(*body),
        Node::Append { .. } | Node::Layers(_) => Vec::new(),
    });
    read.filter(|tensor| matches!(graph.tensor(*tensor).kind, Kind::Weight(_))).collect()
}

/// So many bytes of packed weights are one thread's at a time: a huge page of the usual size, so that one thread alone is
/// the first to touch it, which is when the system clears it.
const PORTION: usize = 2 << 20;

/// After so many bytes the pages of the files that were read are given back.
const RELEASE: usize = 16 << 20;

/// A part of the packed weights: of which stretch, how far from its start, and the memory.
type Part<'a> = (&'a Packed, usize, &'a mut [u8]);

/// Packs all weights into one block, on all threads; goes no further once loading has `failed` elsewhere.
fn pack(
    program: &Program,
    checkpoint: &Checkpoint,
    found: &HashMap<Place, Stored<'_>>,
    threads: &Threads,
    failed: &AtomicBool,
    progress: &(impl Fn(Progress) + Sync),
) -> Result<Memory, Error> {
    let total = program.weight_bytes();
    let mut block = Memory::new(total, "the weights")?.with_huge_pages();
    let (done, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
    threads.for_each(portions(program.weights(), &mut block), |portion| {
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let bytes: usize = portion.iter().map(|(_, _, part)| part.len()).sum();
        let mut from_files = 0;
        for (packed, from, part) in portion {
            from_files += pack_part(&program.plan(Batch::One).graph, found, packed, from, part)?;
        }
        let before = read.fetch_add(from_files, Ordering::Relaxed);
        if before / RELEASE != (before + from_files) / RELEASE {
            checkpoint.release();
        }
        progress(Progress::Packing { done: done.fetch_add(bytes, Ordering::Relaxed) + bytes, total });
        Ok(())
    })?;
    checkpoint.release();
    Ok(block)
}

/// Cuts the block of all packed weights.
fn portions<'a>(weights: &'a [Packed], block: &'a mut [u8]) -> Vec<Vec<Part<'a>>> {
    let mut weights: Vec<&Packed> = weights.iter().collect();
    weights.sort_by_key(|packed| packed.offset);
    let mut portions: Vec<Vec<Part<'_>>> = Vec::new();
    let mut last = None;
    let (mut rest, mut at) = (block, 0);
    for packed in weights {
        let mut from = 0;
        while from < packed.bytes {
            let start = packed.offset + from;
            let number = start / PORTION;
            let end = (number + 1) * PORTION - packed.offset;
            let to = end.next_multiple_of(packed.grain).min(packed.bytes);
            let (part, after) = rest[start - at..].split_at_mut(to - from);
            (rest, at) = (after, packed.offset + to);
            match portions.last_mut().filter(|_| last == Some(number)) {
                Some(portion) => portion.push((packed, from, part)),
                None => portions.push(vec![(packed, from, part)]),
            }
            (from, last) = (to, Some(number));
        }
    }
    portions
}

/// Packs a part of a stretch, from `from` on. Yields about how many bytes of files were read for it.
fn pack_part(
    graph: &Graph,
    found: &HashMap<Place, Stored<'_>>,
    packed: &Packed,
    from: usize,
    out: &mut [u8],
) -> Result<usize, Error> {
    let stored = packed.tensors.iter().map(|&tensor| {
        let layer = packed.layer.filter(|_| graph.is_layered(tensor));
        // The compiler wants only what the graph reads.
        found.get(&(tensor, layer)).ok_or_else(|| Error::Unread { weight: declared(graph, tensor), layer })
    });
    let stored = stored.collect::<Result<Vec<&Stored<'_>>, Error>>()?;
    let readers: Vec<_> = stored
        .iter()
        .map(|stored| {
            let blocks = |at: usize, values: &mut [i8], scales: &mut [[f32; 2]]| stored.read_blocks(at, values, scales);
            (|at: usize, out: &mut [f32]| stored.read(at, out), blocks)
        })
        .collect();
    let parts: Vec<Vec<Values<'_>>> = stored
        .iter()
        .zip(&readers)
        .map(|(stored, (read, in_blocks))| {
            let floats = match stored.change {
                Change::None | Change::Transposed => {
                    stored.parts.iter().map(floats).collect::<Option<Vec<Values<'_>>>>()
                }
                Change::Pairs { .. } | Change::Fused { .. } | Change::PlusOne => None,
            };
            let blocks = stored.grid().map(|grid| InBlocks { grid, read: in_blocks });
            floats.unwrap_or_else(|| vec![Values::Read { elements: stored.len(), read, blocks }])
        })
        .collect();
    let values: Vec<Values<'_>> = parts.iter().map(|parts| Values::of(parts)).collect();
    packed.pack(&values, from, out)?;
    let share = out.len() as f64 / packed.bytes as f64;
    let bits: f64 = stored.iter().map(|stored| stored.bits()).sum();
    Ok((share * bits / 8.0) as usize)
}

/// The numbers of a tensor that are plain floats.
fn floats<'a>(numbers: &Numbers<'a>) -> Option<Values<'a>> {
    let Blocks { dtype, bytes } = numbers.blocks()?;
    match dtype {
        Dtype::F32 => Some(Values::F32(bytes)),
        Dtype::Bf16 => Some(Values::Bf16(bytes)),
        Dtype::F16 => Some(Values::F16(bytes)),
        _ => None,
    }
}
