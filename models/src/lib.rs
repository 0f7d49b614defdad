//! Model architectures, each declared in one file in the language; nothing else knows an architecture.
//!
//! [`graph_from_config`] finds the architecture that a config.json names and builds its graph.

mod alibi;
pub mod blocks;
mod bloom;
mod cohere;
mod deepseek_v2;
mod deepseek_v3;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod granite_moe;
mod latent;
mod llama;
mod llama4;
mod mistral;
mod mixtral;
mod olmo2;
mod olmoe;
mod opt;
mod phi3;
mod positioned;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod rope;
mod sparse;
mod stablelm;
mod starcoder2;
mod windows;

pub use bloom::{Bloom, BloomConfig};
pub use cohere::{Cohere, CohereConfig};
pub use deepseek_v2::{DeepseekV2, DeepseekV2Config};
pub use deepseek_v3::{DeepseekV3, DeepseekV3Config};
pub use falcon::{Falcon, FalconConfig};
pub use gemma::{Gemma, GemmaConfig};
pub use gemma2::{Gemma2, Gemma2Config};
pub use gemma3::{Gemma3, Gemma3Config};
pub use gpt_neox::{GptNeoX, GptNeoXConfig};
pub use gpt_oss::{GptOss, GptOssConfig};
pub use gpt2::{Gpt2, Gpt2Config};
pub use gptj::{GptJ, GptJConfig};
pub use granite::{Granite, GraniteConfig};
pub use granite_moe::{GraniteMoe, GraniteMoeConfig};
pub use latent::Queries;
pub use llama::{Llama, LlamaConfig};
pub use llama4::{Llama4, Llama4Config};
pub use mistral::{Mistral, MistralConfig};
pub use mixtral::{Mixtral, MixtralConfig};
pub use olmo2::{Olmo2, Olmo2Config};
pub use olmoe::{Olmoe, OlmoeConfig};
pub use opt::{Opt, OptConfig};
pub use phi3::{Phi3, Phi3Config};
pub use positioned::Positioned;
pub use qwen2::{Qwen2, Qwen2Config};
pub use qwen2_moe::{Qwen2Moe, Qwen2MoeConfig};
pub use qwen3::{Qwen3, Qwen3Config};
pub use qwen3_moe::{Qwen3Moe, Qwen3MoeConfig};
pub use rope::{LayerRopes, Rope};
pub use sparse::{Groups, Sparse};
pub use stablelm::{StableLm, StableLmConfig};
pub use starcoder2::{Starcoder2, Starcoder2Config};
pub use windows::Windows;

use std::borrow::Cow;

use einfuse_graph::{Graph, ModelError, one_line};
use serde_json::Value;

/// The key that a config gets for the context with which its model is to be run.
const CONTEXT: &str = "requested_context";

/// An architecture: the names that config.json has for it, and what it makes of a config.
pub struct Architecture {
    /// The names in `architectures`.
    pub names: &'static [&'static str],
    graph: fn(&Value) -> Result<Graph, ModelError>,
    context: fn(&Value) -> Result<Option<usize>, ModelError>,
}

macro_rules! architectures {
    ($($model:ident, $config:ident;)*) => {
        /// Every architecture that is declared.
        pub static ARCHITECTURES: &[Architecture] = &[$(Architecture {
            names: $model::ARCHITECTURES,
            graph: |config| $model::graph(&$config::from_json(config)?),
            context: |config| $model::context(&$config::from_json(config)?),
        }),*];
    };
}

architectures! {
    Bloom, BloomConfig;
    Cohere, CohereConfig;
    DeepseekV2, DeepseekV2Config;
    DeepseekV3, DeepseekV3Config;
    Falcon, FalconConfig;
    Gemma, GemmaConfig;
    Gemma2, Gemma2Config;
    Gemma3, Gemma3Config;
    Gpt2, Gpt2Config;
    GptJ, GptJConfig;
    GptOss, GptOssConfig;
    GptNeoX, GptNeoXConfig;
    Granite, GraniteConfig;
    GraniteMoe, GraniteMoeConfig;
    Llama, LlamaConfig;
    Llama4, Llama4Config;
    Mistral, MistralConfig;
    Mixtral, MixtralConfig;
    Olmo2, Olmo2Config;
    Olmoe, OlmoeConfig;
    Opt, OptConfig;
    Phi3, Phi3Config;
    Qwen2, Qwen2Config;
    Qwen2Moe, Qwen2MoeConfig;
    Qwen3, Qwen3Config;
    Qwen3Moe, Qwen3MoeConfig;
    StableLm, StableLmConfig;
    Starcoder2, Starcoder2Config;
}

/// Why a config makes no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The config names no architecture.
    #[error("the config has no `architectures`, a list with the name of the model's architecture")]
    NoArchitecture,
    /// An architecture that nobody declared.
    #[error("unknown architecture `{}`; known are {}", one_line(name.clone()), known().join(", "))]
    UnknownArchitecture {
        /// What the config says.
        name: String,
    },
    /// The architecture is known, the config does not fit it.
    #[error(transparent)]
    Model(#[from] ModelError),
}

fn known() -> Vec<&'static str> {
    ARCHITECTURES.iter().flat_map(|a| a.names).copied().collect()
}

/// The architecture of this name.
pub fn find(architecture: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.names.contains(&architecture))
}

impl Architecture {
    /// The graph of the model that this config describes, to be run with sequences of up to `context` positions (`None`: as
    /// many as it was made for), by which some rotary scalings are chosen.
    ///
    /// # Errors
    /// A missing or unsupported key, sizes that don't fit together: each named.
    pub fn graph(&self, config: &Value, context: Option<usize>) -> Result<Graph, ModelError> {
        check_epsilons(config)?;
        let mut config = Cow::Borrowed(config);
        if let Some(context) = context
            && config.is_object()
        {
            config.to_mut()[CONTEXT] = context.into();
        }
        (self.graph)(&config)
    }

    /// How many positions the model was made for, where its config says so.
    ///
    /// # Errors
    /// As [`Architecture::graph`].
    pub fn context(&self, config: &Value) -> Result<Option<usize>, ModelError> {
        check_epsilons(config)?;
        (self.context)(config)
    }
}

/// The keys of what keeps the root in a norm above 0.
const EPSILONS: [&str; 5] = ["layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "rms_norm_eps"];

fn check_epsilons(config: &Value) -> Result<(), ModelError> {
    for (key, value) in EPSILONS.iter().filter_map(|key| Some((key, config.get(key)?))) {
        if value.as_f64().is_some_and(|epsilon| !(0.0..1.0).contains(&epsilon)) {
            let message = format!("expected a number of at least 0 and below 1, found {value}");
            return Err(ModelError::Invalid { keys: format!("`{key}`"), message });
        }
    }
    Ok(())
}

/// Checks that a list has a value for each layer.
fn check_layers<T>(key: &str, list: Option<&[T]>, layers: Option<usize>) -> Result<(), String> {
    match (list, layers) {
        (Some(list), Some(layers)) if list.len() != layers => {
            Err(format!("`{key}` is a list of {}, `num_hidden_layers` is {layers}", list.len()))
        }
        _ => Ok(()),
    }
}

/// The architecture that a config.json names first.
///
/// # Errors
/// None is named, an unknown one, or not in a list.
pub fn architecture_of(config: &Value) -> Result<&'static Architecture, Error> {
    let list = config.get("architectures").filter(|list| !list.is_null()).ok_or(Error::NoArchitecture)?;
    let name = list.get(0).and_then(Value::as_str).ok_or_else(|| ModelError::Invalid {
        keys: "`architectures`".to_owned(),
        message: format!("expected a list with the name of the model's architecture, found {list}"),
    })?;
    find(name).ok_or_else(|| Error::UnknownArchitecture { name: name.to_owned() })
}

/// The graph of the model that a config.json describes, to be run with sequences of up to `context` positions (`None`: as
/// many as it was made for).
///
/// # Errors
/// An unknown architecture (the known ones are listed), or a config that does not fit it.
pub fn graph_from_config(config: &Value, context: Option<usize>) -> Result<Graph, Error> {
    Ok(architecture_of(config)?.graph(config, context)?)
}

/// How many positions the model that a config.json describes was made for, where it says so.
///
/// # Errors
/// As [`graph_from_config`].
pub fn context_from_config(config: &Value) -> Result<Option<usize>, Error> {
    Ok(architecture_of(config)?.context(config)?)
}
