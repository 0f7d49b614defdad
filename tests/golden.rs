//! Each architecture against what the reference implementation computed, and against the interpreter: hidden states after
//! every layer, logits of every position, and greedy continuations; for prompts given at once, in pieces of 1 to 7
//! tokens through the cache; with all fusion rules and with none on 1, 2 and 3 threads, and with each off in turn.

mod common;

use std::fs;
use std::path::Path;

use common::{Folder, json, repository};
use einfuse::graph::{Interpreter, Tensor, TensorId};
use einfuse::runtime::{Precision, Trace};
use einfuse::{Checkpoint, Generate, Graph, Model, Rule, Settings, Wanted, graph_of};
use safetensors::SafeTensors;

/// The largest difference allowed, relative to the largest magnitude of what is compared.
const TOLERANCE: f64 = 1e-4;

/// What is stored as bf16 is multiplied as bf16, in numbers of eight bits, layer after layer, or as something nearer to floats.
const NARROW: f64 = 0.05;

/// How many tokens of a prompt are given at a time.
const PIECES: [usize; 8] = [usize::MAX, 1, 2, 3, 4, 5, 6, 7];

/// A prompt of a golden folder.
struct Prompt {
    ids: Vec<u32>,
    /// The reference's greedy continuation.
    greedy: Vec<u32>,
    /// The positions of both.
    context: usize,
    /// The model for so many, which is another for a longer text where rotary frequencies go by its length.
    graph: Graph,
    /// What the reference computes, and what the interpreter does.
    expected: [Expected; 2],
}

/// What is to be computed for a prompt.
struct Expected {
    by: &'static str,
    /// `[layers + 1, t, d]`
    hidden: Vec<Vec<f64>>,
    /// `[t, v]`
    logits: Vec<f64>,
}

/// The prompts of a golden folder, with what the reference implementation computed for them.
fn prompts(folder: &Path, checkpoint: &Checkpoint) -> Vec<Prompt> {
    let bytes = fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let tensor = file.tensor(name).unwrap();
        let ids = tensor.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
        ids.map(|id| u32::try_from(id).unwrap()).collect()
    };
    let floats = |name: &str| -> Vec<f64> {
        let tensor = file.tensor(name).unwrap();
        tensor.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
    };
    let prompt = |n: usize| {
        let layers = file.tensor(&format!("p{n}.hidden")).unwrap().shape()[0];
        let hidden = floats(&format!("p{n}.hidden"));
        let hidden = hidden.chunks(hidden.len() / layers).map(<[f64]>::to_vec).collect();
        let reference = Expected { by: "the reference", hidden, logits: floats(&format!("p{n}.logits")) };
        let (ids, greedy) = (ids(&format!("p{n}.input_ids")), ids(&format!("p{n}.greedy_ids")));
        let context = ids.len() + greedy.len();
        let graph = graph_of(checkpoint, Some(context)).unwrap();
        let interpreted = interpreted(checkpoint, &graph, &ids);
        Prompt { ids, greedy, graph, context, expected: [reference, interpreted] }
    };
    let prompts = json(&folder.join("golden.json"))["prompts"].as_array().unwrap().len();
    (0..prompts).map(prompt).collect()
}

/// What the interpreter computes for a prompt.
fn interpreted(checkpoint: &Checkpoint, graph: &Graph, ids: &[u32]) -> Expected {
    let weight = |tensor: &Tensor, layer: Option<usize>| {
        let at = graph.tensors.iter().position(|t| t.name == tensor.name).unwrap();
        let stored = checkpoint.weight(graph, TensorId(at as u32), layer).map_err(|e| e.to_string())?;
        Ok(stored.to_f32())
    };
    let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    let computed = Interpreter::new(graph, &weight).unwrap().step(&[("tokens", &ids)]).unwrap();
    Expected { by: "the interpreter", hidden: computed.hidden, logits: computed.output }
}

/// What the compiled model computes for a prompt given in pieces.
fn traced(model: &Model, ids: &[u32], piece: usize) -> Trace {
    let mut session = model.session();
    let mut all = Trace { logits: Vec::new(), hidden: Vec::new() };
    for ids in ids.chunks(piece) {
        let trace = session.trace(ids).unwrap();
        all.logits.extend(trace.logits);
        all.hidden.resize(trace.hidden.len(), Vec::new());
        for (all, layer) in all.hidden.iter_mut().zip(trace.hidden) {
            all.extend(layer);
        }
    }
    all
}

/// Checks that `computed` is `expected` up to the tolerance: every element, or where weights have fewer bits all together.
fn check_close(what: &str, computed: &[f32], expected: &[f64], precision: Precision) {
    assert_eq!(computed.len(), expected.len(), "{what}: number of elements");
    if precision != Precision::F32 {
        let squares = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            computed.iter().zip(expected).map(|(x, y)| of((*x).into(), *y).powi(2)).sum()
        };
        let relative = (squares(&|x, y| x - y) / squares(&|_, y| y)).sqrt();
        assert!(relative <= NARROW, "{what}: differs by {relative} of its size");
        return;
    }
    let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    for (i, (&computed, &expected)) in computed.iter().zip(expected).enumerate() {
        let difference = (f64::from(computed) - expected).abs();
        // a NaN is no small difference
        let close = difference <= TOLERANCE * largest;
        assert!(close, "{what}: element {i} is {computed}, not {expected} (largest magnitude {largest})");
    }
}

fn check_traces(what: &str, model: &Model, prompts: &[Prompt], precision: Precision) {
    for prompt in prompts {
        for piece in PIECES {
            let trace = traced(model, &prompt.ids, piece);
            for expected in &prompt.expected {
                let what = format!("{what}, {} tokens in pieces of {piece}, {}", prompt.ids.len(), expected.by);
                assert_eq!(trace.hidden.len(), expected.hidden.len(), "{what}: layers");
                for (layer, (computed, expected)) in trace.hidden.iter().zip(&expected.hidden).enumerate() {
                    check_close(&format!("{what}: hidden state {layer}"), computed, expected, precision);
                }
                check_close(&format!("{what}: logits"), &trace.logits, &expected.logits, precision);
            }
        }
    }
}

fn check_greedy(what: &str, model: &Model, prompts: &[Prompt]) {
    for prompt in prompts {
        let limit = Some(prompt.greedy.len());
        let options = Generate { limit, ignore_end: true, ..Generate::default() };
        let mut session = model.session();
        let tokens = session.generate(&prompt.ids, &options).unwrap();
        let tokens: Vec<u32> = tokens.map(|token| token.unwrap().id).collect();
        assert_eq!(tokens, prompt.greedy, "{what}, {} tokens: greedy continuation", prompt.ids.len());
    }
}

/// How a model is compiled.
struct Variant<'a> {
    without: &'a [Rule],
    threads: usize,
    precision: Precision,
}

impl Variant<'_> {
    fn load(&self, checkpoint: &Checkpoint, rows: Wanted, context: usize) -> Model {
        let settings = Settings {
            context: Some(context),
            without: self.without.to_vec(),
            threads: Some(self.threads),
            precision: self.precision,
            rows,
            ..Settings::default()
        };
        einfuse::load_checkpoint(checkpoint, settings).unwrap()
    }

    /// Holds the model against all that is expected of its prompts.
    fn check(&self, name: &str, checkpoint: &Checkpoint, prompts: &[Prompt]) {
        let without: Vec<&str> = self.without.iter().map(|rule| rule.name()).collect();
        let what = format!("{name} without [{}], {} threads, {:?}", without.join(", "), self.threads, self.precision);
        for prompts in prompts.chunk_by(|a, b| a.graph == b.graph) {
            let context = prompts.iter().map(|prompt| prompt.context).max().unwrap();
            check_traces(&what, &self.load(checkpoint, Wanted::All, context), prompts, self.precision);
            check_greedy(&what, &self.load(checkpoint, Wanted::Last, context), prompts);
        }
    }
}

/// Checks an architecture in every way.
fn check(name: &str) {
    let folder = repository("tests/golden").join(name);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let prompts = prompts(&folder, &checkpoint);
    for (at, rule) in Rule::ALL.iter().enumerate() {
        let (without, threads) = (std::slice::from_ref(rule), 1 + at % 3);
        Variant { without, threads, precision: Precision::F32 }.check(name, &checkpoint, &prompts);
    }
    for threads in 1..=3 {
        for without in [&[], Rule::ALL] {
            Variant { without, threads, precision: Precision::F32 }.check(name, &checkpoint, &prompts);
        }
        // the weights as the file has them, which is another type in some of the folders
        Variant { without: &[], threads, precision: Precision::Stored }.check(name, &checkpoint, &prompts);
    }

    // config.json as newer versions of the reference write it describes the same model
    let newer = Folder::copy(name);
    newer.write("config.json", fs::read(folder.join("config_v5.json")).unwrap());
    let newer = Checkpoint::open(newer.path()).unwrap();
    for prompt in &prompts {
        let graph = graph_of(&newer, Some(prompt.context)).unwrap();
        assert_eq!(graph, prompt.graph, "{name}: the graph of config_v5.json");
    }
    let variant = Variant { without: &[], threads: 2, precision: Precision::F32 };
    variant.check(&format!("{name}, config_v5.json"), &newer, &prompts);
}

macro_rules! architectures {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            check(stringify!($name));
        }
    )*};
}

architectures! {
    gpt2, opt, llama3, mistral, mixtral, granite_moe, olmoe, olmoe_clipped, qwen2, qwen2_moe, qwen2_moe_sparse, qwen3, qwen3_moe, qwen3_moe_shards, gpt_oss, gpt_oss_mxfp4, deepseek_v2, deepseek_v2_lite, deepseek_v3, llama4, gemma, gemma2, gemma2_uncapped, gemma3, phi3, olmo2, gpt_neox, gptj, stablelm, stablelm_parallel, stablelm_normed, bloom, falcon, falcon_new, falcon_alibi, starcoder2, cohere, granite,
}

/// The text part of a model that sees images, its keys and tensors below those of the whole, is the model of text alone.
#[test]
fn text_parts() {
    for (name, class) in [("gemma3", "Gemma3ForConditionalGeneration"), ("llama4", "Llama4ForConditionalGeneration")] {
        for inside in [false, true] {
            let whole = Folder::copy(name);
            let mut text = json(&whole.file("config.json"));
            text.as_object_mut().unwrap().remove("architectures");
            let config = serde_json::json!({
                "architectures": [class],
                "text_config": text,
                "vision_config": { "hidden_size": 16 },
                "hidden_size": null,
            });
            whole.write("config.json", config.to_string());
            let bytes = fs::read(whole.file("model.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let renamed = |name: String| match name.strip_prefix("model.").filter(|_| inside) {
                Some(rest) => format!("model.language_model.{rest}"),
                None if inside => name,
                None => format!("language_model.{name}"),
            };
            let mut tensors: Vec<_> =
                file.tensors().into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
            tensors.push(("vision_tower.weight".into(), tensors[0].1.clone()));
            whole.write("model.safetensors", safetensors::serialize(tensors, None).unwrap());

            let checkpoint = Checkpoint::open(whole.path()).unwrap();
            let folder = repository("tests/golden").join(name);
            let prompts = prompts(&folder, &checkpoint);
            let alone = Checkpoint::open(&folder).unwrap();
            assert_eq!(prompts[0].graph, graph_of(&alone, Some(prompts[0].context)).unwrap(), "{name}");
            let variant = Variant { without: &[], threads: 2, precision: Precision::F32 };
            variant.check(&format!("{name} as {class}"), &checkpoint, &prompts[..1]);
            let model = variant.load(&checkpoint, Wanted::Last, 16);
            assert_eq!(model.leftovers(), ["vision_tower.weight"], "{name}");
        }
    }
}

/// Text becomes the tokens that the reference makes of it, and back.
#[test]
fn tokenizers() {
    for name in ["gpt2", "opt", "llama3", "mistral", "mixtral", "qwen3", "qwen3_moe", "gemma3", "gpt_neox", "phi3"] {
        let folder = repository("tests/golden").join(name);
        let tokenizer = einfuse::runtime::Tokenizer::of(&Checkpoint::open(&folder).unwrap()).unwrap().unwrap();
        let examples = &json(&folder.join("golden.json"))["tokenizer_examples"];
        for example in examples.as_array().unwrap() {
            let text = example["text"].as_str().unwrap();
            let ids = |special: bool| serde_json::to_value(tokenizer.encode(text, special).unwrap()).unwrap();
            assert_eq!(ids(true), example["ids"], "{name}: {text:?}");
            assert_eq!(ids(false), example["ids_no_special"], "{name}: {text:?}");
            let plain = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&plain).unwrap(), example["decoded"].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

/// A sequence can be as long as the model was made for, however it is cut and whatever its windows have forgotten, and not
/// longer.
#[test]
fn contexts_are_used_to_their_end() {
    for name in ["gemma2", "gemma3", "phi3", "bloom"] {
        let checkpoint = Checkpoint::open(repository("tests/golden").join(name)).unwrap();
        let made_for = einfuse::models::context_from_config(checkpoint.config()).unwrap().unwrap();
        let settings = || Settings { threads: Some(2), precision: Precision::F32, chunk: 64, ..Settings::default() };
        let model = einfuse::load_checkpoint(&checkpoint, settings()).unwrap();
        assert_eq!(model.context(), made_for, "{name}");
        let ids: Vec<u32> = (0..made_for as u32).map(|i| i * 7 % 90 + 3).collect();
        let last = |cut: usize| {
            let mut session = model.session();
            session.feed(&ids[..cut]).unwrap();
            let logits = session.feed(&ids[cut..]).unwrap();
            let error = session.feed(&[3]).unwrap_err().to_string();
            let expected = format!("{} tokens do not fit into the {made_for} positions", made_for + 1);
            assert!(error.starts_with(&expected), "{name}: {error}");
            logits
        };
        let whole: Vec<f64> = last(1).into_iter().map(f64::from).collect();
        for cut in [5, made_for / 2, made_for - 1] {
            check_close(&format!("{name}, cut at {cut}"), &last(cut), &whole, Precision::F32);
        }

        // Asking for less is granted, for more is not.
        for (asked, got) in [(made_for - 1, made_for - 1), (made_for + 1, made_for)] {
            let settings = Settings { context: Some(asked), ..settings() };
            assert_eq!(einfuse::load_checkpoint(&checkpoint, settings).unwrap().context(), got, "{name}");
        }
    }
}
