//! Rotary positions: the frequencies by which a token's position turns the pairs of a query or key.

use einfuse_graph::from_keys;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The rotary parameters of a config, in either style: `rope_theta` beside `rope_scaling`, or all of it in
/// `rope_parameters`. GPT-NeoX says `rotary_emb_base` and `rotary_pct`, older files of StableLM
/// `rope_pct`.
///
/// Two scalings depend on how long a text is, and their frequencies are chosen once, for the context with which the model
/// is loaded, so that what is cached stays right while a text grows: `longrope` has long factors for contexts above
/// `original_max_position_embeddings`, short ones up to there. `dynamic` changes nothing up to `max_position_embeddings`,
/// beyond which no context goes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Keys")]
pub struct Rope {
    theta: f32,
    /// The rotated share of a head, if the config says one.
    share: Option<f32>,
    scaling: Scaling,
    /// What rotated pairs are stretched by.
    scale: f32,
}

/// How the frequencies are changed for contexts longer than those of the training.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    None,
    /// All frequencies are divided by a factor.
    Linear {
        factor: f32,
    },
    /// Low frequencies are divided by a factor, high ones kept, those between interpolated (Llama 3.1), or none are between
    /// (Llama 4, whose bounds are equal).
    Llama3 {
        factor: f32,
        low: f32,
        high: f32,
        original_positions: f32,
    },
    /// As `Llama3`, the bounds being turns within the original context, interpolated by the number of the pair (Peng et al.,
    /// 2023).
    Yarn {
        factor: f32,
        fast: f32,
        slow: f32,
        original_positions: f32,
        /// Whether the bounds are whole pairs.
        truncate: bool,
        /// What queries and keys are stretched by, each, beyond the rotated pairs.
        all_dims: f32,
    },
    /// Each frequency is divided by a factor of its own (Ding et al., 2024).
    Longrope {
        key: &'static str,
        factors: Vec<f32>,
    },
}

/// The rotary parameters of a model some of whose layers see a window only and have a base of their own, as Gemma 3's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Keys")]
pub struct LayerRopes {
    local: Rope,
    global: Rope,
}

#[derive(Deserialize)]
struct Keys(Map<String, Value>);

/// `rope_scaling` or `rope_parameters`, without what is found in one place alone.
#[derive(Default, Deserialize)]
struct Parameters {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    kind: Option<String>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    truncate: Option<bool>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    attention_factor: Option<f32>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    original_max_position_embeddings: Option<f32>,
    partial_rotary_factor: Option<f32>,
    /// Where they are in the config.
    #[serde(skip)]
    key: &'static str,
}

impl Keys {
    /// The first of some numbers that is there, and its key.
    fn first<'k>(&self, keys: &[&'k str]) -> Result<Option<(&'k str, f32)>, String> {
        let first = keys.iter().find_map(|key| Some((*key, self.0.get(*key).filter(|value| !value.is_null())?)));
        let number = |(key, value): (&'k str, &Value)| match value.as_f64() {
            Some(number) => Ok((key, number as f32)),
            None => Err(format!("`{key}`: expected a number, found {value}")),
        };
        first.map(number).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f32>, String> {
        Ok(self.first(&[key])?.map(|(_, number)| number))
    }

    /// The base of the frequencies, under the first of these keys that is there.
    fn base(&self, keys: &[&str], unsaid: f32) -> Result<f32, String> {
        self.first(keys)?.map_or(Ok(unsaid), |(key, base)| positive(key, Some(base)))
    }

    /// The parameters of all layers, or of one kind of them.
    fn parameters(&self, kind: &str) -> Result<Parameters, String> {
        for key in ["rope_parameters", "rope_scaling"] {
            let Some(mut value) = self.0.get(key).filter(|value| !value.is_null()) else { continue };
            value = value.get(kind).unwrap_or(value);
            let object = value.as_object().ok_or_else(|| format!("`{key}`: expected an object, found {value}"))?;
            let pairs = object.iter().map(|(key, value)| (key.as_str(), value));
            let parameters: Parameters = from_keys(pairs).map_err(|error| format!("`{key}`: {error}"))?;
            return Ok(Parameters { key, ..parameters });
        }
        Ok(Parameters::default())
    }
}

fn positive(name: &str, value: Option<f32>) -> Result<f32, String> {
    match value {
        Some(x) if x > 0.0 && x.is_finite() => Ok(x),
        Some(x) => Err(format!("`{name}` is {x}, expected a positive number")),
        None => Err(format!("`{name}` is missing")),
    }
}

/// The base that Su et al. (2021) propose, and the reference's default.
const BASE: f32 = 10_000.0;

impl TryFrom<Keys> for Rope {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Rope, String> {
        let theta = keys.base(&["rope_theta", "rotary_emb_base"], BASE)?;
        Rope::new(&keys, keys.parameters("full_attention")?, theta)
    }
}

impl TryFrom<Keys> for LayerRopes {
    type Error = String;

    fn try_from(keys: Keys) -> Result<LayerRopes, String> {
        let theta = keys.base(&["rope_theta"], 1_000_000.0)?;
        let global = Rope::new(&keys, keys.parameters("full_attention")?, theta)?;
        // In the older style the scaling is that of the layers without a window alone.
        let nested = keys.0.get("rope_parameters").and_then(|value| value.get("sliding_attention")).is_some();
        let parameters = if nested { keys.parameters("sliding_attention")? } else { Parameters::default() };
        let theta = keys.base(&["rope_local_base_freq"], BASE)?;
        Ok(LayerRopes { local: Rope::new(&keys, parameters, theta)?, global })
    }
}

impl LayerRopes {
    /// The parameters of a layer that sees a window, or of one that sees all.
    pub fn of(&self, local: bool) -> &Rope {
        if local { &self.local } else { &self.global }
    }
}

impl Rope {
    fn new(keys: &Keys, parameters: Parameters, theta: f32) -> Result<Rope, String> {
        let theta = parameters.rope_theta.map_or(Ok(theta), |own| positive("rope_theta", Some(own)))?;
        let share = keys.first(&["partial_rotary_factor", "rotary_pct", "rope_pct"])?;
        let share = parameters.partial_rotary_factor.map(|share| ("partial_rotary_factor", share)).or(share);
        if let Some((key, share)) = share.filter(|(_, share)| !(*share > 0.0 && *share <= 1.0)) {
            return Err(format!("`{key}` is {share}, expected a share of a head, from 0 to 1"));
        }
        let share = share.map(|(_, share)| share);
        let (scaling, scale) = scaling(keys, &parameters).map_err(|error| match parameters.key {
            "" => error,
            key => format!("`{key}`: {error}"),
        })?;
        if !scale.is_finite() {
            return Err(format!("`{}` makes {scale} of `attention_factor`, expected a number", parameters.key));
        }
        Ok(Rope { theta, share, scaling, scale })
    }

    /// The rotated pairs of a head of `size` elements: half of all, or of the share that the config says.
    pub fn pairs(&self, size: usize) -> usize {
        self.partial_pairs(size, 1.0)
    }

    /// The rotated pairs of a head of `size` elements, where the config need not say the share.
    pub fn partial_pairs(&self, size: usize, share: f32) -> usize {
        // a share is written in decimals: 0.3 of 10 elements are 3 of them
        (size as f64 * f64::from(self.share.unwrap_or(share)) + 1e-6) as usize / 2
    }

    /// The frequencies, in radians per position, of so many rotated pairs: theta^(-r / pairs) for pair r, scaled.
    ///
    /// # Errors
    /// If there are factors for another number of pairs.
    pub fn frequencies(&self, pairs: usize) -> Result<Vec<f32>, String> {
        let theta = f64::from(self.theta);
        let plain = (0..pairs).map(|r| 1.0 / theta.powf(f64::from((2 * r) as f32 / (2 * pairs) as f32)) as f32);
        Ok(match &self.scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            Scaling::Llama3 { factor, low, high, original_positions } => {
                let scaled = |frequency: f32| {
                    let turns = original_positions / (std::f32::consts::TAU / frequency);
                    let between = || ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    let kept = if low < high { between() } else { f32::from(turns > *low) };
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                plain.map(scaled).collect()
            }
            Scaling::Yarn { factor, fast, slow, original_positions, truncate, all_dims: _ } => {
                // the pair that turns so many times within the original context
                let pair = |turns: f32| {
                    let positions = f64::from(original_positions / turns) / std::f64::consts::TAU;
                    pairs as f64 * positions.ln() / theta.ln()
                };
                let (mut low, mut high) = (pair(*fast), pair(*slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min((2 * pairs - 1) as f64));
                if low == high {
                    high += 0.001;
                }
                let scaled = |(r, frequency): (usize, f32)| {
                    let kept = 1.0 - ((r as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
                    frequency / factor * (1.0 - kept) + frequency * kept
                };
                plain.enumerate().map(scaled).collect()
            }
            Scaling::Longrope { key, factors } => {
                if factors.len() != pairs {
                    return Err(format!("`{key}` has {} factors, the head has {pairs} rotated pairs", factors.len()));
                }
                plain.zip(factors).map(|(f, factor)| f / factor).collect()
            }
        })
    }

    /// What the scores of an attention are multiplied by where `mscale_all_dim` says so, beside [`Rope::scale`].
    pub fn score_scale(&self) -> f32 {
        match &self.scaling {
            Scaling::Yarn { all_dims, .. } => all_dims * all_dims,
            _ => 1.0,
        }
    }

    /// What rotated pairs are stretched by: the attention factor of `yarn` and `longrope`, else 1.
    pub fn scale(&self) -> f32 {
        self.scale
    }
}

/// The scaling, and what rotated pairs are stretched by.
fn scaling(keys: &Keys, parameters: &Parameters) -> Result<(Scaling, f32), String> {
    let factor = || positive("factor", parameters.factor);
    let positions = keys.number("max_position_embeddings")?;
    let original = keys.number("original_max_position_embeddings")?;
    let original = parameters.original_max_position_embeddings.or(original);
    let original_positions = || positive("original_max_position_embeddings", original);
    // How many times longer the context became, where it is not said.
    let ratio = || Ok::<_, String>(positive("max_position_embeddings", positions)? / original_positions()?);
    Ok(match parameters.rope_type.as_deref().or(parameters.kind.as_deref()) {
        None | Some("default") => (Scaling::None, 1.0),
        Some("linear") => (Scaling::Linear { factor: factor()? }, 1.0),
        Some("dynamic") => {
            factor()?;
            (Scaling::None, 1.0)
        }
        Some("llama3") => {
            let low = positive("low_freq_factor", parameters.low_freq_factor)?;
            let high = positive("high_freq_factor", parameters.high_freq_factor)?;
            if low > high {
                return Err(format!("`low_freq_factor` {low} is above `high_freq_factor` {high}"));
            }
            (Scaling::Llama3 { factor: factor()?, low, high, original_positions: original_positions()? }, 1.0)
        }
        Some("yarn") => {
            let factor = if parameters.factor.is_some() { factor()? } else { ratio()? };
            let log = |scale: f32| if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 };
            let nonzero = |scale: Option<f32>| scale.filter(|scale| *scale != 0.0);
            let implied = match (nonzero(parameters.mscale), nonzero(parameters.mscale_all_dim)) {
                (Some(one), Some(all)) => log(one) / log(all),
                _ => log(1.0),
            };
            let fast = positive("beta_fast", Some(parameters.beta_fast.unwrap_or(32.0)))?;
            let slow = positive("beta_slow", Some(parameters.beta_slow.unwrap_or(1.0)))?;
            let truncate = parameters.truncate.unwrap_or(true);
            let all_dims = nonzero(parameters.mscale_all_dim).map_or(1.0, log);
            let yarn =
                Scaling::Yarn { factor, fast, slow, original_positions: original_positions()?, truncate, all_dims };
            (yarn, parameters.attention_factor.unwrap_or(implied))
        }
        Some("longrope" | "su") => {
            let original = original_positions()?;
            let factor = if parameters.factor.is_some() { factor()? } else { ratio()? };
            if original <= 1.0 {
                return Err(format!("`original_max_position_embeddings` is {original}, expected more than 1"));
            }
            let implied = if factor > 1.0 { (1.0 + factor.ln() / original.ln()).sqrt() } else { 1.0 };
            let context = keys.number(crate::CONTEXT)?.or(positions).unwrap_or(original);
            let (key, factors) = match context > original {
                true => ("long_factor", &parameters.long_factor),
                false => ("short_factor", &parameters.short_factor),
            };
            let factors = factors.clone().ok_or_else(|| format!("`{key}` is missing"))?;
            for &factor in &factors {
                positive(key, Some(factor))?;
            }
            (Scaling::Longrope { key, factors }, parameters.attention_factor.unwrap_or(implied))
        }
        Some(other) => {
            return Err(format!(
                "`rope_type` is \"{other}\", supported are \"default\", \"linear\", \"dynamic\", \"llama3\", \"yarn\" and \
                 \"longrope\""
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: serde_json::Value) -> Result<Rope, String> {
        serde_json::from_value(config).map_err(|e| e.to_string())
    }

    fn frequencies(config: serde_json::Value, pairs: usize) -> Vec<f32> {
        read(config).unwrap().frequencies(pairs).unwrap()
    }

    #[test]
    fn both_styles_say_the_same() {
        let old = json!({"rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", "factor": 8,
            "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 128}});
        let new = json!({"rope_parameters": {"rope_theta": 500000, "rope_type": "llama3", "factor": 8,
            "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 128}});
        assert_eq!(read(old).unwrap(), read(new).unwrap());
    }

    #[test]
    fn frequencies_fall_from_one() {
        assert_eq!(frequencies(json!({"rope_theta": 10000.0}), 2), [1.0, 0.01]);
        let linear = json!({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}});
        assert_eq!(frequencies(linear, 2), [0.25, 0.0025]);
        let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64});
        assert_eq!(frequencies(dynamic, 2), [1.0, 0.01]);
    }

    #[test]
    fn llama3_scales_low_frequencies_alone() {
        let scaled = frequencies(
            json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            64,
        );
        let plain = frequencies(json!({}), 64);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        let between = scaled.iter().zip(&plain).filter(|(s, p)| **s != **p && **s != **p / 8.0).count();
        assert!(between > 0);
    }

    /// Llama 4 Scout's bounds are equal.
    #[test]
    fn llama3_has_a_step_where_nothing_is_between() {
        let scaled = |low: f32, high: f32| {
            read(json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 16.0,
            "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": 8192}}))
        };
        let (plain, divided) = (frequencies(json!({"rope_theta": 500000.0}), 64), scaled(1.0, 1.0).unwrap());
        for (at, (f, divided)) in plain.iter().zip(divided.frequencies(64).unwrap()).enumerate() {
            // 8192 positions are one turn of pair 34.98.
            assert_eq!(divided, if at < 35 { *f } else { f / 16.0 }, "{at}");
        }
        assert!(scaled(2.0, 1.0).unwrap_err().contains("`low_freq_factor` 2 is above `high_freq_factor` 1"));
    }

    #[test]
    fn a_share_of_a_head_is_rotated() {
        assert_eq!(read(json!({})).unwrap().pairs(64), 32);
        assert_eq!(read(json!({})).unwrap().partial_pairs(64, 0.25), 8);
        assert_eq!(read(json!({"rotary_pct": 0.3})).unwrap().partial_pairs(20, 0.25), 3);
        assert_eq!(read(json!({"rope_pct": 0.3})).unwrap().partial_pairs(20, 0.25), 3);
        assert_eq!(read(json!({"rope_parameters": {"partial_rotary_factor": 0.75}})).unwrap().pairs(16), 6);
    }

    #[test]
    fn yarn_keeps_what_turns_often() {
        let yarn =
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}});
        let (scaled, plain) = (frequencies(yarn.clone(), 64), frequencies(json!({}), 64));
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 4.0);
        // 4096 positions are 32 turns of pair 20.9, and one of pair 45.03
        assert!(scaled[20] == plain[20] && scaled[21] < plain[21]);
        assert!(scaled[45] > plain[45] / 4.0 && scaled[46] == plain[46] / 4.0);
        assert_eq!(read(yarn).unwrap().scale(), 0.1 * 4f32.ln() + 1.0);
        let said = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5,
            "original_max_position_embeddings": 4096}});
        assert_eq!(read(said).unwrap().scale(), 0.5);
    }

    #[test]
    fn longrope_goes_by_the_context() {
        let config = |context| {
            json!({"max_position_embeddings": 160, "original_max_position_embeddings": 40, (crate::CONTEXT): context,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0]}})
        };
        assert_eq!(frequencies(config(json!(null)), 2), [0.25, 0.01 / 8.0]);
        assert_eq!(frequencies(config(json!(41)), 2), [0.25, 0.01 / 8.0]);
        assert_eq!(frequencies(config(json!(40)), 2), [1.0, 0.01 / 2.0]);
        let scale = (1.0 + 4f32.ln() / 40f32.ln()).sqrt();
        assert_eq!(read(config(json!(null))).unwrap().scale(), scale);
        let error = read(config(json!(null))).unwrap().frequencies(3).unwrap_err();
        assert_eq!(error, "`long_factor` has 2 factors, the head has 3 rotated pairs");
    }

    #[test]
    fn layers_with_a_window_have_their_own() {
        let old = json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8}});
        let new = json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}});
        let [old, new] = [old, new].map(|config| serde_json::from_value::<LayerRopes>(config).unwrap());
        assert_eq!(old, new);
        assert_eq!(old.of(true).frequencies(2).unwrap(), [1.0, 0.01]);
        assert_eq!(old.of(false).frequencies(2).unwrap(), [0.125, 0.001 / 8.0]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = |scaling| read(json!({"rope_theta": 1e4, "rope_scaling": scaling})).unwrap_err();
        assert!(error(json!({"rope_type": "mrope", "factor": 2})).contains("\"mrope\""));
        assert!(error(json!({"rope_type": "linear"})).contains("`factor` is missing"));
        assert!(error(json!({"rope_type": "linear", "factor": 0})).contains("`factor` is 0"));
        assert!(error(json!({"rope_type": "yarn", "factor": 2})).contains("`original_max_position_embeddings` is"));
        assert!(error(json!({"rope_type": "longrope", "factor": 2})).contains("`original_max_position_embeddings` is"));
        assert!(error(json!({"partial_rotary_factor": 1.5})).contains("`partial_rotary_factor`"));
        assert!(
            error(json!({"rope_type": "linear", "factor": [2]})).contains("`rope_scaling`: `factor`: invalid type")
        );
        assert!(
            error(json!({"rope_type": "yarn", "factor": 1e39, "original_max_position_embeddings": 8}))
                .contains("`factor` is inf")
        );
        assert_eq!(error(json!("linear")), "`rope_scaling`: expected an object, found \"linear\"");
        assert_eq!(error(json!([])), "`rope_scaling`: expected an object, found []");
        let small = json!({"rope_type": "longrope", "short_factor": [1], "long_factor": [1], "factor": 2, "original_max_position_embeddings": 0.9});
        assert!(error(small).contains("`original_max_position_embeddings` is 0.9, expected more than 1"));
        let large = json!({"rope_type": "yarn", "factor": 2, "mscale": 1e39, "mscale_all_dim": 1, "original_max_position_embeddings": 8});
        assert!(error(large).contains("`rope_scaling` makes inf of `attention_factor`"));
        assert!(
            serde_json::from_value::<LayerRopes>(json!({"rope_local_base_freq": 0}))
                .unwrap_err()
                .to_string()
                .contains("`rope_local_base_freq` is 0")
        );
        assert!(read(json!({"rope_theta": -1.0})).unwrap_err().contains("`rope_theta` is -1"));
        assert_eq!(read(json!({"rope_theta": "x"})).unwrap_err(), "`rope_theta`: expected a number, found \"x\"");
    }
}
