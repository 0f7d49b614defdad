//! From a GGUF file's metadata and tensors to what the reference implementation calls them, by the tables of `tables.rs`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use Differs::{Each, Fused, KeyPairs, Not, Other, PlusOne, QueryPairs, Transposed, Woven};
use From::{Count, FlagIf, Number, NumberIf, Said, Tensor, Text, Whole, WholeIf, Window};

use super::tables::ARCHITECTURES;
use super::{Gguf, shortest};
use crate::Error;
use crate::checkpoint::Change;

/// An architecture of GGUF files.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// Which files it is of that call themselves so, as they may name several kinds alike.
    pub(super) when: When,
    /// The name in `architectures` of config.json.
    pub(super) class: &'static str,
    /// Each key of config.json, and where its value is.
    pub(super) keys: &'static [(&'static str, From)],
    /// What config.json says of rotary positions, if the architecture has them.
    pub(super) rotary: bool,
    /// What else config.json has to say.
    pub(super) more: fn(&Gguf, &mut Map<String, Value>) -> Result<(), Error>,
    /// The tensors outside of layers, without `.weight` and `.bias`, or with it where the other name is without.
    pub(super) outer: &'static [(&'static str, &'static str, Differs)],
    /// The reference implementation's name of a layer, to be followed by its number.
    pub(super) layer: &'static str,
    /// The tensors of layer `l`, after `blk.{l}.`.
    pub(super) inner: &'static [(&'static str, &'static str, Differs)],
}

/// Which files of a name are of an architecture.
#[derive(Clone, Copy)]
pub(super) enum When {
    /// All.
    Always,
    /// Those with experts (`expert_count`), or those without.
    Experts(bool),
    /// Those that have each of these tensors, or don't.
    Tensors(&'static [(&'static str, bool)]),
    /// Those with this number under a key of the architecture.
    Says(&'static str, u64),
}

/// Where the value of a key of config.json comes from.
pub(super) enum From {
    /// A whole number under a key of the architecture, which has to be there.
    Whole(&'static str),
    /// A whole number, if it is there.
    WholeIf(&'static str),
    /// So, and 0 is said of what there is none of.
    Window(&'static str),
    /// A number that has to be there.
    Number(&'static str),
    /// A number, if it is there.
    NumberIf(&'static str),
    /// A truth value, if it is there.
    FlagIf(&'static str),
    /// Whether there is such a tensor.
    Tensor(&'static str),
    /// The architecture itself.
    Text(&'static str),
    /// The architecture itself.
    Said(bool),
    /// The architecture itself.
    Count(u64),
}

/// How a tensor differs, by its role.
#[derive(Clone, Copy)]
pub(super) enum Differs {
    Not,
    QueryPairs,
    KeyPairs,
    /// Queries, key and value of each head of keys are neighbours in the reference implementation; in the file come all
    /// queries, all keys, all values.
    Fused,
    /// A tensor for each (`{e}`) of what this key has the number of in the reference implementation; in the file they are
    /// stacked.
    Each(&'static str),
    /// Rows and columns are exchanged, of each matrix if it is a stack of them.
    Transposed,
    PlusOne,
    /// One tensor in the reference implementation; in the file its rows are in this one and in another one of the layer.
    Woven(&'static str, Weave),
    /// The other one.
    Other,
}

/// Which rows of two tensors are next to each other in the reference implementation.
#[derive(Clone, Copy)]
pub(super) enum Weave {
    /// Of each matrix in a stack all of one, all of the other.
    Halves,
    /// So, and rows and columns of the matrices are exchanged.
    HalvesTransposed,
    /// The numbers of two vectors in turn.
    Numbers,
    /// Single rows in turn, and rows and columns of the matrices are exchanged.
    TurnsTransposed,
    /// Of each head all of one, all of the other; rows and columns of the first one's matrices are exchanged.
    Heads,
}

impl Architecture {
    /// The architecture of a file.
    pub(super) fn of(gguf: &Gguf) -> Result<&'static Architecture, Error> {
        let key = "general.architecture";
        let name = gguf.text(key)?.ok_or_else(|| gguf.missing(key))?;
        let experts = gguf.whole(&format!("{name}.{EXPERTS}"))?.is_some_and(|experts| experts > 0);
        let alike = |other: &&Architecture| {
            other.name == name
                && match other.when {
                    When::Always => true,
                    When::Experts(wanted) => experts == wanted,
                    When::Tensors(tensors) => {
                        tensors.iter().all(|(tensor, wanted)| gguf.raw(tensor).is_some() == *wanted)
                    }
                    When::Says(key, number) => {
                        matches!(gguf.whole(&format!("{name}.{key}")), Ok(Some(said)) if said == number)
                    }
                }
        };
        ARCHITECTURES.iter().find(alike).ok_or_else(|| {
            let mut known: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
            known.dedup();
            if known.contains(&name) {
                let without = if experts { "without" } else { "with" };
                return gguf
                    .wrong(&format!("{name}.expert_count"), &format!("is not read; {name} {without} experts is"));
            }
            gguf.wrong(key, &format!("is `{name}`; known are {}", known.join(", ")))
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// What config.json would say.
    pub(super) fn config(&self, gguf: &Gguf) -> Result<Map<String, Value>, Error> {
        let mut config = Map::new();
        config.insert("architectures".into(), json!([self.class]));
        for (name, from) in self.keys {
            let value = match from {
                Whole(key) | WholeIf(key) => gguf.whole(&self.key(key))?.map(Value::from),
                Window(key) => gguf.whole(&self.key(key))?.map(|size| if size > 0 { json!(size) } else { Value::Null }),
                Number(key) | NumberIf(key) => gguf.number(&self.key(key))?.map(Value::from),
                FlagIf(key) => gguf.flag(&self.key(key))?.map(Value::from),
                Tensor(name) => Some(json!(gguf.raw(name).is_some())),
                Said(said) => Some(json!(said)),
                Count(count) => Some(json!(count)),
                Text(text) => Some(json!(text)),
            };
            match (value, from) {
                (Some(value), _) => drop(config.insert((*name).into(), value)),
                (None, Whole(key) | Number(key)) => return Err(gguf.missing(&self.key(key))),
                (None, _) => {}
            }
        }
        let embedding = gguf.raw("token_embd.weight").ok_or_else(|| Error::Tensor {
            file: gguf.name.clone(),
            tensor: "token_embd.weight".into(),
            problem: "is missing".into(),
        })?;
        config.insert("vocab_size".into(), json!(embedding.shape.first()));
        config.insert("tie_word_embeddings".into(), json!(gguf.raw("output.weight").is_none()));
        if self.rotary {
            self.rope(gguf, &mut config)?;
        }
        (self.more)(gguf, &mut config)?;
        if let Some(id) = gguf.whole("tokenizer.ggml.bos_token_id")? {
            config.insert("bos_token_id".into(), json!(id));
        }
        config.insert("eos_token_id".into(), json!(gguf.end_tokens()?));
        Ok(config)
    }

    /// The rotary parameters beside their base.
    fn rope(&self, gguf: &Gguf, config: &mut Map<String, Value>) -> Result<(), Error> {
        let size = |name: &str| config.get(name).and_then(Value::as_u64);
        let shared = size("hidden_size").zip(size("num_attention_heads")).and_then(|(d, h)| d.checked_div(h));
        let head = size("head_dim").or(shared);
        let rotated = gguf.whole(&self.key("rope.dimension_count"))?;
        if let Some((rotated, head)) = rotated.zip(head).filter(|(rotated, head)| rotated != head && *head > 0) {
            config.insert("partial_rotary_factor".into(), json!(rotated as f64 / head as f64));
        }

        let number = |key: &str| gguf.number(&self.key(key));
        let original = gguf.whole(&self.key("rope.scaling.original_context_length"))?;
        let mut scaling = Map::new();
        let mut say = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                scaling.insert(name.into(), value);
            }
        };
        let kind = gguf.text(&self.key("rope.scaling.type"))?;
        let attention = number("rope.scaling.attn_factor")?.map(Value::from);
        let factor = match number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => number("rope.scale_linear")?,
        };
        if let Some((short, long)) =
            gguf.floats("rope_factors_short.weight").zip(gguf.floats("rope_factors_long.weight"))
        {
            say("rope_type", Some(json!("longrope")));
            say("short_factor", Some(decimals(&short)));
            say("long_factor", Some(decimals(&long)));
            say("attention_factor", attention);
            if let Some(original) = original {
                config.insert("original_max_position_embeddings".into(), json!(original));
            }
        } else if let Some(factors) = gguf.floats("rope_freqs.weight") {
            let theta = config.get("rope_theta").and_then(Value::as_f64).unwrap_or(10_000.0);
            match llama3(theta, &factors) {
                Some(Llama3 { factor, high, original }) => {
                    say("rope_type", Some(json!("llama3")));
                    say("factor", Some(json!(factor)));
                    say("low_freq_factor", Some(json!(LOW)));
                    say("high_freq_factor", Some(json!(high)));
                    say("original_max_position_embeddings", Some(json!(original)));
                }
                // Any others hold for short and for long texts: which length parts these decides nothing.
                None => {
                    say("rope_type", Some(json!("longrope")));
                    say("short_factor", Some(decimals(&factors)));
                    say("long_factor", Some(decimals(&factors)));
                    say("factor", Some(json!(1.0)));
                    say("attention_factor", Some(json!(1.0)));
                    say("original_max_position_embeddings", Some(json!(2)));
                }
            }
        } else if let Some(factor) = factor.filter(|_| kind != Some("none")) {
            say("rope_type", Some(json!(kind.unwrap_or("linear"))));
            say("factor", Some(json!(factor)));
            say("original_max_position_embeddings", original.map(Value::from));
            say("attention_factor", attention);
            say("beta_fast", number("rope.scaling.yarn_beta_fast")?.map(Value::from));
            say("beta_slow", number("rope.scaling.yarn_beta_slow")?.map(Value::from));
            // Files have a tenth of the one, and no other; models have both alike.
            let tenth = number("rope.scaling.yarn_log_multiplier")?;
            for key in ["mscale", "mscale_all_dim"] {
                say(key, tenth.map(|tenth| json!(10.0 * tenth)));
            }
        }
        if !scaling.is_empty() {
            config.insert("rope_scaling".into(), Value::Object(scaling));
        }
        Ok(())
    }

    /// The tensors by the reference implementation's names; those without one keep theirs.
    pub(super) fn tensors(&self, gguf: &Gguf) -> Result<HashMap<String, Part>, Error> {
        let heads = |key: &str| gguf.whole(&self.key(key));
        let query = heads("attention.head_count")?;
        let key = heads("attention.head_count_kv")?.or(query);
        let mut tensors = HashMap::new();
        for (at, info) in gguf.header.tensors.iter().enumerate() {
            let file = || gguf.file(info).0.to_owned();
            let wrong = |problem: String| Error::Tensor { file: file(), tensor: info.name.clone(), problem };
            let (name, differs) = self.translate(&info.name).unwrap_or_else(|| (info.name.clone(), Not));
            let rows = info.shape.first().copied().unwrap_or(0);
            // A number of heads of which the rows are a multiple.
            let shared = |heads: Option<u64>, parts: usize| {
                let heads = heads.ok_or_else(|| gguf.missing(&self.key("attention.head_count")))?;
                let whole = |heads: &usize| parts.checked_mul(*heads).is_some_and(|n| n > 0 && rows.is_multiple_of(n));
                let whole = usize::try_from(heads).ok().filter(whole);
                whole.ok_or_else(|| {
                    wrong(format!("has {rows} rows, which are not {parts} equal parts of {heads} heads"))
                })
            };
            let change = match differs {
                Other => continue,
                Not | Each(_) | Woven(_, Weave::Halves | Weave::Numbers | Weave::Heads) => Change::None,
                Woven(_, Weave::HalvesTransposed | Weave::TurnsTransposed) => Change::Transposed,
                QueryPairs => Change::Pairs { heads: shared(query, 2)? },
                KeyPairs => Change::Pairs { heads: shared(key, 2)? },
                Fused => {
                    let size = |heads: Option<u64>| usize::try_from(heads?).ok().filter(|&heads| heads > 0);
                    let (heads, groups) = size(query)
                        .zip(size(key))
                        .ok_or_else(|| gguf.wrong(&self.key("attention.head_count"), "wants a number of at least 1"))?;
                    let queries = heads / groups;
                    let whole = (queries + 2).checked_mul(groups).is_some_and(|parts| rows.is_multiple_of(parts));
                    if !heads.is_multiple_of(groups) || !whole {
                        let problem =
                            format!("has {rows} rows, which are not {heads} queries, {groups} keys and values");
                        return Err(wrong(problem));
                    }
                    Change::Fused { groups, queries }
                }
                Transposed if info.shape.len() >= 2 => Change::Transposed,
                Transposed => Change::None,
                PlusOne => Change::PlusOne,
            };
            let mut add = |name: String, part: Part| match tensors.insert(name.clone(), part) {
                Some(_) => Err(wrong(format!("is there twice, as {name}"))),
                None => Ok(()),
            };
            if let Each(counted) = differs {
                let said = heads(counted)?.unwrap_or(0);
                if said != rows as u64 || rows > MOST_STACKED || info.shape.len() < 2 {
                    let what = if counted == EXPERTS { "experts" } else { "heads" };
                    return Err(wrong(format!("has {rows} {what}; {} is {said}", self.key(counted))));
                }
                for nth in 0..rows {
                    let which = Which::Nth(nth);
                    add(name.replace("{e}", &nth.to_string()), Part { at, change, which })?;
                }
            } else if let Woven(other, weave) = differs {
                let which = woven(gguf, at, other, weave).map_err(wrong)?;
                add(name, Part { at, change, which })?;
            } else {
                add(name, Part { at, change, which: Which::All })?;
            }
        }
        Ok(tensors)
    }

    fn translate(&self, name: &str) -> Option<(String, Differs)> {
        let find = |table: &[(&'static str, &'static str, Differs)], name: &str| {
            let entry = |name: &str| table.iter().find(|(gguf, ..)| *gguf == name);
            if let Some((_, reference, differs)) = entry(name) {
                return Some(((*reference).to_owned(), *differs));
            }
            let (stem, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
            let (_, reference, differs) = entry(stem)?;
            Some((format!("{reference}.{suffix}"), *differs))
        };
        match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, name)) => {
                let number: usize = layer.parse().ok().filter(|number: &usize| number.to_string() == layer)?;
                let (reference, differs) = find(self.inner, name)?;
                Some((format!("{}{number}.{reference}", self.layer), differs))
            }
            None => find(self.outer, name),
        }
    }
}

/// Numbers as the shortest decimals that mean them.
fn decimals(numbers: &[f32]) -> Value {
    numbers.iter().map(|&number| shortest(number)).collect()
}

/// More tensors than this that are stacked in one are taken for a mistake.
const MOST_STACKED: usize = 65_536;

/// The key that has the number of experts.
pub(super) const EXPERTS: &str = "expert_count";

/// How a file's tensor and its other one are one; or what is wrong.
fn woven(gguf: &Gguf, at: usize, other: &str, weave: Weave) -> Result<Which, String> {
    let tensors = &gguf.header.tensors;
    let one = &tensors[at];
    let layer = one.name.match_indices('.').nth(1).map_or("", |(at, _)| &one.name[..=at]);
    let name = format!("{layer}{other}");
    let other = tensors.iter().position(|info| info.name == name);
    let other = other.ok_or_else(|| format!("has no `{name}` beside it, which was expected"))?;
    let joined = |stack: &[usize], rest: &[usize]| [stack, rest].concat();
    let found = match (weave, &one.shape[..], &tensors[other].shape[..]) {
        (Weave::Numbers, [stack @ .., n], [others @ .., m]) if (stack, n) == (others, m) => {
            Some((joined(stack, &[2 * n]), [1, 1], 1))
        }
        (Weave::TurnsTransposed, [stack @ .., n, columns], [others @ .., m, across])
            if (stack, n, columns) == (others, m, across) =>
        {
            Some((joined(stack, &[2 * n, *columns]), [1, 1], *columns))
        }
        (Weave::Halves | Weave::HalvesTransposed, [stack @ .., n, columns], [others @ .., m, across])
            if (stack, columns) == (others, across) =>
        {
            n.checked_add(*m).map(|rows| (joined(stack, &[rows, *columns]), [*n, *m], *columns))
        }
        (Weave::Heads, [heads, columns, n], [others, m, across]) if (heads, columns) == (others, across) => {
            let rows = n.checked_add(*m).and_then(|rows| rows.checked_mul(*heads));
            rows.map(|rows| (vec![rows, *columns], [*n, *m], *columns))
        }
        _ => None,
    };
    let (shape, rows, columns) = found.ok_or_else(|| {
        let (shape, other) = (&one.shape, &tensors[other].shape);
        format!("has the shape {shape:?}, and `{name}` beside it {other:?}: they do not fit each other")
    })?;
    Ok(Which::With { other, rows, turned: matches!(weave, Weave::Heads), shape, columns })
}

/// A tensor of the reference implementation in a file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Which of the file's tensors.
    pub(super) at: usize,
    /// How it differs.
    pub(super) change: Change,
    /// What of it.
    pub(super) which: Which,
}

/// What of a file's tensor is one of the reference implementation's.
#[derive(Clone, Debug)]
pub(super) enum Which {
    All,
    /// One of those that are stacked in it.
    Nth(usize),
    /// All, with another one: so many rows of each in turn, of a matrix of this shape.
    With {
        other: usize,
        rows: [usize; 2],
        /// Whether the first one's rows are columns in the file.
        turned: bool,
        shape: Vec<usize>,
        columns: usize,
    },
}

/// Llama 3's scaling of rotary frequencies: wavelengths above the original context are divided by a factor, those below a share
/// of it (1 / `high`) kept, those between interpolated.
struct Llama3 {
    factor: f64,
    high: f64,
    original: u64,
}

/// What all models with that scaling have as `low_freq_factor`.
const LOW: f64 = 1.0;

/// What they have as `high_freq_factor`: Llama 3, and Llama 4, where nothing is between.
const HIGHS: [f64; 2] = [4.0, 1.0];

/// The scaling by what each frequency is divided by; `None` if that is another one.
fn llama3(theta: f64, divisors: &[f32]) -> Option<Llama3> {
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let pairs = divisors.len() as f64;
    let expected = |at: usize, high: f64, original: f64| {
        let turns = original / (std::f64::consts::TAU * theta.powf(at as f64 / pairs));
        let kept = if high > LOW { ((turns - LOW) / (high - LOW)).clamp(0.0, 1.0) } else { f64::from(turns > LOW) };
        1.0 / ((1.0 - kept) / factor + kept)
    };
    let fits = |scaling: &Llama3| {
        let near = |(at, &divisor): (usize, &f32)| {
            let expected = expected(at, scaling.high, scaling.original as f64);
            (f64::from(divisor) - expected).abs() <= 1e-4 * expected
        };
        divisors.iter().enumerate().all(near)
    };
    let of = |high| (5..=30).map(move |power| Llama3 { factor, high, original: 1 << power });
    HIGHS.into_iter().flat_map(of).find(fits)
}
