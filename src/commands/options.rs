//! Options that several commands share, each defined once.

use std::error::Error as _;
use std::io::{self, Read};
use std::num::{IntErrorKind, NonZeroUsize, ParseIntError};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use einfuse::codegen::Schedules;
use einfuse::runtime::Tuned;
use einfuse::{
    CacheType, Checkpoint, Error, Generate, Model, Precision, Prompt, Quant, Rule, Sampling, Settings, codegen, runtime,
};

use super::output::tell;
use super::progress::Progress;
use super::{Outcome, Usage};

/// Which model, and how it is compiled.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelOptions {
    /// The model: a folder with config.json, *.safetensors and tokenizer.json, or a GGUF file [default: the embedded one]
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,

    /// How weight matrices are kept in memory: stored, as the files have them, codes in their own blocks, else bf16 for fewer
    /// bits
    #[arg(long, value_name = "TYPE", default_value = "stored", value_parser = named(Precision::ALL, Precision::name))]
    pub(crate) precision: Precision,

    /// Replace the weights of matrices by codes of 8 or 4 bits
    #[arg(long, value_name = "CODES", value_parser = named(Quant::ALL, Quant::name), conflicts_with = "precision")]
    pub(crate) quant: Option<Quant>,

    /// How the cache is kept in memory, q8 as codes of 8 bits [default: as bf16 if some weights take 16 bits or fewer]
    #[arg(long, value_name = "TYPE", value_parser = named(CacheType::ALL, CacheType::name))]
    pub(crate) cache: Option<CacheType>,

    /// Most positions of a sequence, of which fewer need less memory [default: as many as the model was made for]
    #[arg(short, long, value_name = "TOKENS", value_parser = context)]
    pub(crate) context: Option<usize>,

    /// Most tokens that go through the model at once
    #[arg(long, value_name = "TOKENS", default_value = "512", value_parser = at_least_one)]
    pub(crate) chunk: NonZeroUsize,

    /// Switch a fusion rule off (repeatable)
    #[arg(long, value_name = "RULE", value_parser = named(Rule::ALL, Rule::name))]
    pub(crate) without: Vec<Rule>,

    /// Schedule kernels as the compiler would, whatever `einfuse tune` has found
    #[arg(long)]
    pub(crate) untuned: bool,
}

impl ModelOptions {
    /// What to call the model in output.
    pub(crate) fn name(&self) -> String {
        match &self.model {
            None => "nano (embedded)".to_owned(),
            Some(folder) => folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned(),
        }
    }

    /// Checks that `what` takes no more positions than the model has.
    pub(crate) fn check_room(&self, model: &Model, what: &str, positions: usize) -> Result<(), Usage> {
        let of = match self.context {
            Some(asked) if asked == model.context() => "--context makes room for".to_owned(),
            _ => format!("{} has a context of", self.name()),
        };
        check_room(what, positions, (model.context(), &of))
    }

    /// Settings that these options stand for.
    pub(crate) fn settings(&self, threads: Option<NonZeroUsize>) -> Settings {
        Settings {
            threads: threads.map(NonZeroUsize::get),
            precision: self.precision,
            quant: self.quant,
            cache: self.cache,
            context: self.context,
            without: self.without.clone(),
            chunk: self.chunk.get(),
            ..Settings::default()
        }
    }

    /// Opens the model's files.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, Error> {
        match &self.model {
            None => einfuse::embedded(),
            Some(folder) => Ok(Checkpoint::open(folder)?),
        }
    }

    /// Loads the model, with a word on the terminal about what takes long.
    pub(crate) fn load(&self, settings: Settings) -> Result<Model, Box<dyn std::error::Error>> {
        self.load_checkpoint(&self.checkpoint()?, settings)
    }

    /// The same, of files that are open.
    pub(crate) fn load_checkpoint(
        &self,
        checkpoint: &Checkpoint,
        settings: Settings,
    ) -> Result<Model, Box<dyn std::error::Error>> {
        self.check_context(checkpoint)?;
        Ok(self.announced(settings, |settings| einfuse::load_checkpoint(checkpoint, settings))?)
    }

    /// Checks that the model was made for as many positions as --context asks for.
    pub(crate) fn check_context(&self, checkpoint: &Checkpoint) -> Outcome {
        if let Some((asked, made_for)) = self.context.zip(einfuse::context_of(checkpoint)?) {
            let of = format!("{} has a context of", self.name());
            check_room(&format!("--context {asked}"), asked, (made_for, &of))?;
        }
        Ok(())
    }

    /// Loads the model, with a word on the terminal, but `load` says how.
    pub(crate) fn announced(
        &self,
        settings: Settings,
        load: impl FnOnce(Settings) -> Result<Model, Error>,
    ) -> Result<Model, Error> {
        let schedules = self.schedules(settings.threads.unwrap_or_else(runtime::default_threads));
        let progress = Progress::start(self.name());
        let model = load(Settings { progress: Some(Box::new(progress.reporter())), schedules, ..settings })?;
        drop(progress);
        if let [first, others @ ..] = model.unread_biases() {
            let others = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            let has = "has biases for which its architecture has no place, and which are not added";
            tell(format_args!("warning: {} {has}: `{first}`{others}", self.name()));
        }
        Ok(model)
    }

    /// What was found for so many threads. A file that can't be used is worth a word, but no failure.
    fn schedules(&self, threads: usize) -> Schedules {
        let tuned = if self.untuned { None } else { Tuned::of_user() };
        let schedules = tuned.map(|tuned| tuned.schedules(threads)).transpose();
        schedules
            .unwrap_or_else(|error| {
                let cause =
                    error.source().map(|cause| format!(": {cause}")).filter(|cause| !error.to_string().contains(cause));
                tell(format_args!("warning: {error}{}; nothing of it is used", cause.unwrap_or_default()));
                None
            })
            .unwrap_or_default()
    }
}

/// Checks that `what`, in the words of the command line, takes no more positions than there are: `of` says whose.
pub(crate) fn check_room(what: &str, positions: usize, (room, of): (usize, &str)) -> Result<(), Usage> {
    if positions <= room {
        return Ok(());
    }
    Err(Usage(format!("{what} is more than fits: {of} {room} positions")))
}

/// Checks that a step of `what`, in the words of the command line, goes through the model at once.
pub(crate) fn check_chunk(what: &str, tokens: usize, chunk: NonZeroUsize) -> Result<(), Usage> {
    if tokens <= chunk.get() {
        return Ok(());
    }
    Err(Usage(format!("{what} is more than goes through the model at once: --chunk {chunk}")))
}

/// In which form a command answers.
#[derive(Args, Debug)]
pub(crate) struct OutputOptions {
    /// Print JSON on standard output in place of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// How many threads.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct Threads {
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = thread_count)]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// What the model is given to read.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct PromptOptions {
    /// The text to continue
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,

    /// The text in a file, without the end of its last line; `-`: on standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    prompt_file: Option<PathBuf>,

    /// Token ids in place of a text, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = whole_number::<u32>)]
    ids: Option<Vec<u32>>,
}

impl PromptOptions {
    /// The text, if it is one: what editors end a file with is no part of it.
    pub(crate) fn text(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.prompt_file else { return Ok(self.prompt.clone()) };
        let text = read_text(file)?;
        let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
        Ok(Some(text.to_owned()))
    }

    /// What is given, of which this is the text.
    pub(crate) fn prompt<'a>(&'a self, text: Option<&'a str>) -> Prompt<'a> {
        match text {
            Some(text) => Prompt::Text(text),
            None => Prompt::Tokens(self.ids.as_deref().unwrap_or_default()),
        }
    }

    /// The tokens.
    pub(crate) fn tokens(&self, model: &Model) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
        match &self.ids {
            Some(ids) => Ok(ids.clone()),
            None => Ok(model.tokenizer()?.encode(&self.text()?.unwrap_or_default(), true)?),
        }
    }
}

/// The text in a file, or on standard input for `-`.
pub(crate) fn read_text(file: &Path) -> Result<String, String> {
    let name = input_name(file);
    let bytes = match is_standard_input(file) {
        true => read_all(io::stdin()),
        false => std::fs::read(file),
    };
    let bytes = bytes.map_err(|e| format!("cannot read {name}: {e}"))?;
    String::from_utf8(bytes).map_err(|e| format!("{name} is not UTF-8: {}", e.utf8_error()))
}

/// What messages call a file that is read.
pub(crate) fn input_name(file: &Path) -> String {
    if is_standard_input(file) { "standard input".to_owned() } else { file.display().to_string() }
}

fn is_standard_input(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn read_all(mut from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How tokens are chosen, and when to stop.
#[derive(Args, Debug)]
#[command(next_help_heading = "Choosing tokens")]
pub(crate) struct SamplingOptions {
    /// Most tokens to generate [default: 256; in a chat as many as the context has room for]
    #[arg(short = 'n', long, value_name = "N", value_parser = whole_number::<usize>)]
    tokens: Option<usize>,

    /// Temperature; 0 takes the likeliest token (greedy) [default: the model's, else 0.8]
    #[arg(long, value_name = "T", value_parser = |text: &str| within(text, |s, t| s.temperature = t))]
    temperature: Option<f32>,

    /// Choose among the K likeliest tokens; 0: among all [default: the model's, else 40]
    #[arg(long, value_name = "K", value_parser = whole_number::<usize>)]
    top_k: Option<usize>,

    /// Choose among the fewest likeliest tokens whose probabilities sum to P [default: the model's, else 1]
    #[arg(long, value_name = "P", value_parser = |text: &str| within(text, |s, p| s.top_p = p))]
    top_p: Option<f32>,

    /// Choose among those at least P times as likely as the likeliest [default: the model's, else 0]
    #[arg(long, value_name = "P", value_parser = |text: &str| within(text, |s, p| s.min_p = p))]
    min_p: Option<f32>,

    /// Divide the logits above 0 of tokens that were there before by R, and multiply those below [default: the model's, else 1]
    #[arg(long, value_name = "R", value_parser = |text: &str| within(text, |s, r| s.repeat_penalty = r))]
    repeat_penalty: Option<f32>,

    /// The seed of the choice: the same seed, the same text
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole_number::<u64>)]
    seed: u64,

    /// Go on after the model's end tokens
    #[arg(long)]
    ignore_eos: bool,

    /// Stop before this text (repeatable)
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
}

impl SamplingOptions {
    /// What these options stand for, with at most so many tokens where they don't say.
    pub(crate) fn generate(&self, checkpoint: &Checkpoint, limit: Option<usize>) -> Result<Generate, runtime::Error> {
        let default = checkpoint.sampling(Sampling { temperature: 0.8, top_k: 40, ..Sampling::default() })?;
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
            seed: self.seed,
        };
        let (limit, stops) = (self.tokens.or(limit), self.stop.clone());
        Ok(Generate { sampling, limit, stops, ends: Vec::new(), ignore_end: self.ignore_eos })
    }
}

/// A number in the place of sampling where `set` puts it, within the range that it has there.
fn within(text: &str, set: impl FnOnce(&mut Sampling, f32)) -> Result<f32, String> {
    let number = text.parse().unwrap_or(f32::NAN);
    let mut sampling = Sampling::default();
    set(&mut sampling, number);
    match sampling.check() {
        Ok(()) => Ok(number),
        Err(runtime::Error::Option { wants, .. }) => Err(format!("{wants} is wanted")),
        Err(error) => Err(error.to_string()),
    }
}

/// A value that is one of `all`, by its name.
fn named<T>(all: &'static [T], name: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: Copy + FromStr<Err: std::error::Error + Send + Sync + 'static> + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|one| name(*one))).try_map(|name| name.parse::<T>())
}

/// A value that counts something.
pub(crate) fn whole_number<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    counted(text, "a whole number of at least 0")
}

/// A value that counts something of which there must be one.
pub(crate) fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    counted(text, "a whole number of at least 1")
}

fn counted<T: FromStr<Err = ParseIntError>>(text: &str, wants: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => format!("{wants} is wanted, this one is too large"),
        _ => format!("{wants} is wanted"),
    })
}

/// A value that says how many threads there are to be.
pub(crate) fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let most = runtime::MOST_THREADS;
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= most);
    count.ok_or_else(|| format!("a whole number from 1 to {most} is wanted"))
}

/// A value that says how many positions there are to be.
fn context(text: &str) -> Result<usize, String> {
    let most = codegen::MOST_POSITIONS;
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("a whole number from 1 to {most} is wanted"))
}
