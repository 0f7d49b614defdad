//! Rotary positions: the frequencies by which a token's position turns the pairs of a query or key.

use serde::Deserialize;

/// The rotary parameters of a config, in either style: `rope_theta` beside `rope_scaling`, or all of it in
/// `rope_parameters`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Keys")]
pub struct Rope {
    theta: f32,
    scaling: Scaling,
}

/// How the frequencies are changed for contexts longer than those of the training.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    None,
    /// All frequencies are divided by a factor.
    Linear {
        factor: f32,
    },
    /// Low frequencies are divided by a factor, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        factor: f32,
        low: f32,
        high: f32,
        original_positions: f32,
    },
}

#[derive(Deserialize)]
struct Keys {
    rope_theta: Option<f32>,
    rope_scaling: Option<Parameters>,
    rope_parameters: Option<Parameters>,
}

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
    original_max_position_embeddings: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

impl TryFrom<Keys> for Rope {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Rope, String> {
        let parameters = keys.rope_parameters.or(keys.rope_scaling).unwrap_or_default();
        // 10,000 is what Su et al. (2021) propose, and the reference's default.
        let theta = parameters.rope_theta.or(keys.rope_theta).unwrap_or(10_000.0);
        let positive = |name: &str, value: Option<f32>| match value {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            Some(x) => Err(format!("`{name}` is {x}, expected a positive number")),
            None => Err(format!("`{name}` is missing")),
        };
        positive("rope_theta", Some(theta))?;
        if parameters.partial_rotary_factor.is_some_and(|f| f != 1.0) {
            return Err("`partial_rotary_factor` other than 1 is not supported".to_owned());
        }
        let kind = parameters.rope_type.or(parameters.kind);
        let scaling = match kind.as_deref() {
            None | Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: positive("factor", parameters.factor)? },
            Some("llama3") => {
                let low = positive("low_freq_factor", parameters.low_freq_factor)?;
                let high = positive("high_freq_factor", parameters.high_freq_factor)?;
                if low >= high {
                    return Err(format!("`low_freq_factor` {low} is not below `high_freq_factor` {high}"));
                }
                let positions = parameters.original_max_position_embeddings;
                Scaling::Llama3 {
                    factor: positive("factor", parameters.factor)?,
                    low,
                    high,
                    original_positions: positive("original_max_position_embeddings", positions)?,
                }
            }
            Some(other) => {
                return Err(format!(
                    "`rope_type` is \"{other}\", supported are \"default\", \"linear\" and \"llama3\""
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

impl Rope {
    /// The frequencies, in radians per position, of the `size / 2` pairs of a head of `size` elements:
    /// theta^(-2r / size) for pair r, scaled.
    pub fn frequencies(&self, size: usize) -> Vec<f32> {
        let theta = f64::from(self.theta);
        let pairs = 0..size / 2;
        let plain = pairs.map(|r| 1.0 / theta.powf(f64::from(2.0 * r as f32 / size as f32)) as f32);
        plain.map(|f| self.scaling.of(f)).collect()
    }
}

impl Scaling {
    fn of(&self, frequency: f32) -> f32 {
        match *self {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3 { factor, low, high, original_positions } => {
                let turns = original_positions / (std::f32::consts::TAU / frequency);
                if turns > high {
                    frequency
                } else if turns < low {
                    frequency / factor
                } else {
                    let kept = (turns - low) / (high - low);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: serde_json::Value) -> Result<Rope, String> {
        serde_json::from_value(config).map_err(|e| e.to_string())
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
        let rope = read(json!({"rope_theta": 10000.0})).unwrap();
        assert_eq!(rope.frequencies(4), [1.0, 0.01]);
        let rope = read(json!({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
        assert_eq!(rope.frequencies(4), [0.25, 0.0025]);
    }

    #[test]
    fn llama3_scales_low_frequencies_alone() {
        let rope = read(json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}));
        let scaled = rope.unwrap().frequencies(128);
        let plain = read(json!({})).unwrap().frequencies(128);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        let between = scaled.iter().zip(&plain).filter(|(s, p)| **s != **p && **s != **p / 8.0).count();
        assert!(between > 0);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = |scaling| read(json!({"rope_theta": 1e4, "rope_scaling": scaling})).unwrap_err();
        assert!(error(json!({"rope_type": "yarn", "factor": 2})).contains("\"yarn\""));
        assert!(error(json!({"rope_type": "linear"})).contains("`factor` is missing"));
        assert!(error(json!({"rope_type": "linear", "factor": 0})).contains("`factor` is 0"));
        assert!(error(json!({"partial_rotary_factor": 0.5})).contains("`partial_rotary_factor`"));
        assert!(read(json!({"rope_theta": -1.0})).unwrap_err().contains("`rope_theta` is -1"));
    }
}
