//! What GGUF files call the keys and tensors of each architecture, and what the reference implementation calls them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::Error;
use crate::checkpoint::Change;

/// An architecture of GGUF files.
pub(super) struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    /// The name in `architectures` of config.json.
    class: &'static str,
    /// Each key of config.json, and where its value is.
    keys: &'static [(&'static str, From)],
    /// What config.json says of rotary positions, if the architecture has them.
    rotary: bool,
    /// What else config.json has to say.
    more: fn(&Gguf, &mut Map<String, Value>) -> Result<(), Error>,
    /// The tensors outside of layers, without `.weight` and `.bias`.
    outer: &'static [(&'static str, &'static str, Differs)],
    /// The reference implementation's name of a layer, to be followed by its number.
    layer: &'static str,
    /// The tensors of layer `l`, after `blk.{l}.`.
    inner: &'static [(&'static str, &'static str, Differs)],
}

/// Where the value of a key of config.json comes from.
enum From {
    /// A whole number under a key of the architecture, which has to be there.
    Whole(&'static str),
    /// A whole number, if it is there.
    WholeIf(&'static str),
    /// A number that has to be there.
    Number(&'static str),
    /// A number, if it is there.
    NumberIf(&'static str),
    /// The architecture itself.
    Text(&'static str),
}

/// How a tensor differs, by its role.
#[derive(Clone, Copy)]
enum Differs {
    Not,
    QueryPairs,
    KeyPairs,
    Transposed,
    PlusOne,
}

use Differs::{KeyPairs, Not, PlusOne, QueryPairs, Transposed};
use From::{Number, NumberIf, Text, Whole, WholeIf};

/// Sizes of the decoders that followed Llama, rotary positions included.
macro_rules! llama_keys {
    ($($more:expr),* $(,)?) => {
        &[
            ("hidden_size", Whole("embedding_length")),
            ("intermediate_size", Whole("feed_forward_length")),
            ("num_hidden_layers", Whole("block_count")),
            ("num_attention_heads", Whole("attention.head_count")),
            ("num_key_value_heads", WholeIf("attention.head_count_kv")),
            ("head_dim", WholeIf("attention.key_length")),
            ("rms_norm_eps", Number("attention.layer_norm_rms_epsilon")),
            ("rope_theta", NumberIf("rope.freq_base")),
            ("max_position_embeddings", WholeIf("context_length")),
            $($more),*
        ]
    };
}

const OUTER: &[(&str, &str, Differs)] =
    &[("token_embd", "model.embed_tokens", Not), ("output_norm", "model.norm", Not), ("output", "lm_head", Not)];

const OUTER_GEMMA: &[(&str, &str, Differs)] =
    &[("token_embd", "model.embed_tokens", Not), ("output_norm", "model.norm", PlusOne), ("output", "lm_head", Not)];

/// Every architecture that can be read.
static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        class: "LlamaForCausalLM",
        keys: llama_keys![("sliding_window", WholeIf("attention.sliding_window")), ("hidden_act", Text("silu"))],
        rotary: true,
        more: nothing,
        outer: OUTER,
        layer: "model.layers.",
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_q", "self_attn.q_proj", QueryPairs),
            ("attn_k", "self_attn.k_proj", KeyPairs),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_gate", "mlp.gate_proj", Not),
            ("ffn_up", "mlp.up_proj", Not),
            ("ffn_down", "mlp.down_proj", Not),
        ],
    },
    Architecture {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        keys: llama_keys![("hidden_act", Text("silu"))],
        rotary: true,
        more: nothing,
        outer: OUTER,
        layer: "model.layers.",
        inner: QWEN,
    },
    Architecture {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        keys: llama_keys![("hidden_act", Text("silu"))],
        rotary: true,
        more: nothing,
        outer: OUTER,
        layer: "model.layers.",
        inner: QWEN,
    },
    Architecture {
        name: "phi3",
        class: "Phi3ForCausalLM",
        keys: llama_keys![("sliding_window", WholeIf("attention.sliding_window")), ("hidden_act", Text("silu"))],
        rotary: true,
        more: nothing,
        outer: OUTER,
        layer: "model.layers.",
        inner: &[
            ("attn_norm", "input_layernorm", Not),
            ("attn_qkv", "self_attn.qkv_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", Not),
            ("ffn_up", "mlp.gate_up_proj", Not),
            ("ffn_down", "mlp.down_proj", Not),
        ],
    },
    Architecture {
        name: "gemma",
        class: "GemmaForCausalLM",
        keys: llama_keys![("hidden_activation", Text("gelu_pytorch_tanh"))],
        rotary: true,
        more: nothing,
        outer: OUTER_GEMMA,
        layer: "model.layers.",
        inner: &[
            ("attn_norm", "input_layernorm", PlusOne),
            ("attn_q", "self_attn.q_proj", Not),
            ("attn_k", "self_attn.k_proj", Not),
            ("attn_v", "self_attn.v_proj", Not),
            ("attn_output", "self_attn.o_proj", Not),
            ("ffn_norm", "post_attention_layernorm", PlusOne),
            ("ffn_gate", "mlp.gate_proj", Not),
            ("ffn_up", "mlp.up_proj", Not),
            ("ffn_down", "mlp.down_proj", Not),
        ],
    },
    Architecture {
        name: "gemma2",
        class: "Gemma2ForCausalLM",
        keys: llama_keys![
            ("sliding_window", Whole("attention.sliding_window")),
            ("attn_logit_softcapping", Number("attn_logit_softcapping")),
            ("final_logit_softcapping", Number("final_logit_softcapping")),
            ("hidden_activation", Text("gelu_pytorch_tanh")),
        ],
        rotary: true,
        more: |gguf, config| gemma_layers(gguf, config, 2),
        outer: OUTER_GEMMA,
        layer: "model.layers.",
        inner: GEMMA,
    },
    Architecture {
        name: "gemma3",
        class: "Gemma3ForCausalLM",
        keys: llama_keys![
            ("sliding_window", Whole("attention.sliding_window")),
            ("hidden_activation", Text("gelu_pytorch_tanh")),
        ],
        rotary: true,
        more: |gguf, config| {
            // Files do not say it; every Gemma 3 has it.
            config.insert("rope_local_base_freq".into(), json!(10_000.0));
            gemma_layers(gguf, config, 6)
        },
        outer: OUTER_GEMMA,
        layer: "model.layers.",
        inner: GEMMA,
    },
    Architecture {
        name: "gpt2",
        class: "GPT2LMHeadModel",
        keys: &[
            ("n_embd", Whole("embedding_length")),
            ("n_inner", Whole("feed_forward_length")),
            ("n_layer", Whole("block_count")),
            ("n_head", Whole("attention.head_count")),
            ("n_positions", Whole("context_length")),
            ("layer_norm_epsilon", Number("attention.layer_norm_epsilon")),
            ("activation_function", Text("gelu_new")),
        ],
        rotary: false,
        more: nothing,
        outer: &[
            ("token_embd", "transformer.wte", Not),
            ("position_embd", "transformer.wpe", Not),
            ("output_norm", "transformer.ln_f", Not),
            ("output", "lm_head", Not),
        ],
        layer: "transformer.h.",
        inner: &[
            ("attn_norm", "ln_1", Not),
            ("attn_qkv", "attn.c_attn", Transposed),
            ("attn_output", "attn.c_proj", Transposed),
            ("ffn_norm", "ln_2", Not),
            ("ffn_up", "mlp.c_fc", Transposed),
            ("ffn_down", "mlp.c_proj", Transposed),
        ],
    },
];

const QWEN: &[(&str, &str, Differs)] = &[
    ("attn_norm", "input_layernorm", Not),
    ("attn_q", "self_attn.q_proj", Not),
    ("attn_k", "self_attn.k_proj", Not),
    ("attn_v", "self_attn.v_proj", Not),
    ("attn_output", "self_attn.o_proj", Not),
    ("attn_q_norm", "self_attn.q_norm", Not),
    ("attn_k_norm", "self_attn.k_norm", Not),
    ("ffn_norm", "post_attention_layernorm", Not),
    ("ffn_gate", "mlp.gate_proj", Not),
    ("ffn_up", "mlp.up_proj", Not),
    ("ffn_down", "mlp.down_proj", Not),
];

const GEMMA: &[(&str, &str, Differs)] = &[
    ("attn_norm", "input_layernorm", PlusOne),
    ("attn_q", "self_attn.q_proj", Not),
    ("attn_k", "self_attn.k_proj", Not),
    ("attn_v", "self_attn.v_proj", Not),
    ("attn_output", "self_attn.o_proj", Not),
    ("attn_q_norm", "self_attn.q_norm", PlusOne),
    ("attn_k_norm", "self_attn.k_norm", PlusOne),
    ("post_attention_norm", "post_attention_layernorm", PlusOne),
    ("ffn_norm", "pre_feedforward_layernorm", PlusOne),
    ("post_ffw_norm", "post_feedforward_layernorm", PlusOne),
    ("ffn_gate", "mlp.gate_proj", Not),
    ("ffn_up", "mlp.up_proj", Not),
    ("ffn_down", "mlp.down_proj", Not),
];

fn nothing(_: &Gguf, _: &mut Map<String, Value>) -> Result<(), Error> {
    Ok(())
}

/// Of every `period` layers, the last attends to all positions, the others to a window. Scores are scaled by the size of a
/// head, except in the 27 billion models, where it is the width's share of a head.
fn gemma_layers(gguf: &Gguf, config: &mut Map<String, Value>, period: u64) -> Result<(), Error> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let (layers, heads) = (number("num_hidden_layers").unwrap_or(0), number("num_attention_heads").unwrap_or(0));
    let (width, head) = (number("hidden_size").unwrap_or(0), number("head_dim"));
    // A lying number of layers must not become a list of that length.
    if layers > gguf.header.tensors.len() as u64 {
        let key = format!("{}.block_count", if period == 2 { "gemma2" } else { "gemma3" });
        return Err(gguf.wrong(&key, &format!("is {layers}; the file has {} tensors", gguf.header.tensors.len())));
    }
    let kind = |l| if (l + 1) % period == 0 { "full_attention" } else { "sliding_attention" };
    config.insert("layer_types".into(), (0..layers).map(kind).collect());
    let largest = layers == if period == 2 { 46 } else { 62 };
    let scalar = if largest { width.checked_div(heads) } else { head };
    if let Some(scalar) = scalar {
        config.insert("query_pre_attn_scalar".into(), json!(scalar));
    }
    Ok(())
}

impl Architecture {
    /// The architecture of a file.
    pub(super) fn of(gguf: &Gguf) -> Result<&'static Architecture, Error> {
        let key = "general.architecture";
        let name = gguf.text(key)?.ok_or_else(|| gguf.missing(key))?;
        ARCHITECTURES.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
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
                Number(key) | NumberIf(key) => gguf.number(&self.key(key))?.map(Value::from),
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
            say("short_factor", Some(json!(short)));
            say("long_factor", Some(json!(long)));
            say("attention_factor", attention);
            if let Some(original) = original {
                config.insert("original_max_position_embeddings".into(), json!(original));
            }
        } else if let Some(factors) = gguf.floats("rope_freqs.weight") {
            let theta = config.get("rope_theta").and_then(Value::as_f64).unwrap_or(10_000.0);
            match llama3(theta, &factors) {
                Some((factor, original)) => {
                    say("rope_type", Some(json!("llama3")));
                    say("factor", Some(json!(factor)));
                    say("low_freq_factor", Some(json!(LOW)));
                    say("high_freq_factor", Some(json!(HIGH)));
                    say("original_max_position_embeddings", Some(json!(original)));
                }
                None => {
                    say("rope_type", Some(json!("longrope")));
                    say("short_factor", Some(json!(factors)));
                    say("long_factor", Some(json!(factors)));
                    say("attention_factor", Some(json!(1.0)));
                }
            }
        } else if let Some(factor) = factor.filter(|_| kind != Some("none")) {
            say("rope_type", Some(json!(kind.unwrap_or("linear"))));
            say("factor", Some(json!(factor)));
            say("original_max_position_embeddings", original.map(Value::from));
            say("attention_factor", attention);
        }
        if !scaling.is_empty() {
            config.insert("rope_scaling".into(), Value::Object(scaling));
        }
        Ok(())
    }

    /// The tensors by the reference implementation's names; those without one keep theirs.
    pub(super) fn tensors(&self, gguf: &Gguf) -> Result<HashMap<String, (usize, Change)>, Error> {
        let heads = |key: &str| gguf.whole(&self.key(key));
        let query = heads("attention.head_count")?;
        let key = heads("attention.head_count_kv")?.or(query);
        let mut tensors = HashMap::new();
        for (at, info) in gguf.header.tensors.iter().enumerate() {
            let wrong = |problem: String| Error::Tensor { file: gguf.name.clone(), tensor: info.name.clone(), problem };
            let (name, differs) = self.translate(&info.name).unwrap_or_else(|| (info.name.clone(), Not));
            let pairs = |heads: Option<u64>, key: &str| {
                let heads = heads.ok_or_else(|| gguf.missing(&self.key(key)))?;
                let rows = info.shape.first().copied().unwrap_or(0);
                match usize::try_from(heads) {
                    Ok(heads) if heads > 0 && rows.is_multiple_of(2 * heads) => Ok(Change::Pairs { heads }),
                    _ => Err(wrong(format!("has {rows} rows, which are not the pairs of {heads} heads"))),
                }
            };
            let change = match differs {
                Not => Change::None,
                QueryPairs => pairs(query, "attention.head_count")?,
                KeyPairs => pairs(key, "attention.head_count_kv")?,
                Transposed if info.shape.len() == 2 => Change::Transposed,
                Transposed => Change::None,
                PlusOne => Change::PlusOne,
            };
            if tensors.insert(name.clone(), (at, change)).is_some() {
                return Err(wrong(format!("is there twice, as {name}")));
            }
        }
        Ok(tensors)
    }

    fn translate(&self, name: &str) -> Option<(String, Differs)> {
        let (stem, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
        let find = |table: &[(&'static str, &'static str, Differs)], stem: &str| {
            table.iter().find(|(gguf, ..)| *gguf == stem).map(|(_, reference, differs)| (*reference, *differs))
        };
        match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, stem)) => {
                let number: usize = layer.parse().ok().filter(|number: &usize| number.to_string() == layer)?;
                let (reference, differs) = find(self.inner, stem)?;
                Some((format!("{}{number}.{reference}.{suffix}", self.layer), differs))
            }
            None => {
                let (reference, differs) = find(self.outer, stem)?;
                Some((format!("{reference}.{suffix}"), differs))
            }
        }
    }
}

/// The parameters of Llama 3's scaling that all its models share.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// The factor and the original context of Llama 3's scaling of rotary frequencies, from what each frequency is divided by;
/// `None` if that is another scaling. (Wavelengths above the original context are divided by the factor, those below a
/// quarter of it are kept, those between interpolated.)
fn llama3(theta: f64, divisors: &[f32]) -> Option<(f64, u64)> {
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let pairs = divisors.len() as f64;
    let expected = |at: usize, original: f64| {
        let wavelength = std::f64::consts::TAU * theta.powf(at as f64 / pairs);
        let smooth = ((original / wavelength - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let fits = |original: &u64| {
        let near = |(at, &divisor): (usize, &f32)| {
            let expected = expected(at, *original as f64);
            (f64::from(divisor) - expected).abs() <= 1e-4 * expected
        };
        divisors.iter().enumerate().all(near)
    };
    (5..=30).map(|power| 1u64 << power).find(fits).map(|original| (factor, original))
}
