//! Which layers see a window of the latest positions, where others see all.

use serde::{Deserialize, Deserializer};

/// What a config says of windows: `sliding_window` positions, in the layers that `layer_types` lists as `sliding_attention`.
/// Older configs have a rule in place of the list, which is why each question below has the rule of its architecture, and the
/// window that a config means which says nothing of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Keys")]
pub struct Windows {
    /// What the config says, if anything; null is no window.
    window: Option<Option<usize>>,
    local: Option<Vec<bool>>,
    period: Option<usize>,
    first: usize,
    used: bool,
}

#[derive(Deserialize)]
struct Keys {
    #[serde(default, deserialize_with = "said")]
    sliding_window: Option<Option<usize>>,
    layer_types: Option<Vec<String>>,
    num_hidden_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    _sliding_window_pattern: Option<usize>,
    max_window_layers: Option<usize>,
    use_sliding_window: Option<bool>,
}

/// What is there, be it null.
fn said<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl TryFrom<Keys> for Windows {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Windows, String> {
        let local = |kind: &String| match kind.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(format!(
                "`layer_types` has \"{other}\", supported are \"sliding_attention\" and \"full_attention\""
            )),
        };
        let local = keys.layer_types.map(|kinds| kinds.iter().map(local).collect::<Result<Vec<bool>, String>>());
        let local = local.transpose()?;
        crate::check_layers("layer_types", local.as_deref(), keys.num_hidden_layers)?;
        let positive = |name: &str, number: Option<usize>| match number {
            Some(0) => Err(format!("`{name}` is 0, expected a positive number")),
            number => Ok(number),
        };
        Ok(Windows {
            window: keys.sliding_window.map(|window| positive("sliding_window", window)).transpose()?,
            local,
            period: positive("sliding_window_pattern", keys.sliding_window_pattern)?
                .or(positive("_sliding_window_pattern", keys._sliding_window_pattern)?),
            first: keys.max_window_layers.unwrap_or(28),
            used: keys.use_sliding_window.unwrap_or(false),
        })
    }
}

impl Windows {
    /// Whether a layer sees a window, where of every `period` layers (unless the config says another number) the last sees all.
    pub fn is_local(&self, layer: usize, period: usize) -> bool {
        match &self.local {
            Some(local) => local.get(layer).copied().unwrap_or(false),
            None => !(layer + 1).is_multiple_of(self.period.unwrap_or(period)),
        }
    }

    /// The window of such a layer, if it has one: of `unsaid` positions where the config does not say.
    pub fn alternating(&self, layer: usize, period: usize, unsaid: usize) -> Option<usize> {
        self.window.unwrap_or(Some(unsaid)).filter(|_| self.is_local(layer, period))
    }

    /// The window of a layer, where `use_sliding_window` asks for windows, in all layers but the first `max_window_layers`.
    pub fn late(&self, layer: usize, unsaid: usize) -> Option<usize> {
        let local = match &self.local {
            Some(local) => local.get(layer).copied().unwrap_or(false),
            None => layer >= self.first,
        };
        self.window.unwrap_or(Some(unsaid)).filter(|_| self.used && local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: serde_json::Value) -> Result<Windows, String> {
        serde_json::from_value(config).map_err(|e| e.to_string())
    }

    #[test]
    fn a_list_or_a_rule() {
        let rule = read(json!({"sliding_window": 16})).unwrap();
        let windows: Vec<_> = (0..4).map(|l| rule.alternating(l, 2, 8)).collect();
        assert_eq!(windows, [Some(16), None, Some(16), None]);
        let other = read(json!({"sliding_window": 16, "sliding_window_pattern": 3})).unwrap();
        let windows: Vec<_> = (0..4).map(|l| other.alternating(l, 2, 8)).collect();
        assert_eq!(windows, [Some(16), Some(16), None, Some(16)]);
        let list = read(json!({"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]})).unwrap();
        assert_eq!([list.alternating(0, 2, 8), list.alternating(1, 2, 8)], [None, Some(16)]);
        assert_eq!([list.is_local(0, 2), list.is_local(1, 2)], [false, true]);
    }

    #[test]
    fn late_layers_where_they_are_asked_for() {
        let config = json!({"sliding_window": 16, "max_window_layers": 1, "use_sliding_window": true});
        let windows = read(config.clone()).unwrap();
        assert_eq!([windows.late(0, 8), windows.late(1, 8)], [None, Some(16)]);
        let rest = read(json!({"sliding_window": 16, "use_sliding_window": true})).unwrap();
        assert_eq!([rest.late(27, 8), rest.late(28, 8)], [None, Some(16)]);
        let mut off = config;
        off["use_sliding_window"] = json!(false);
        assert_eq!(read(off).unwrap().late(1, 8), None);
    }

    #[test]
    fn what_is_not_said_has_a_meaning_and_null_is_none() {
        let [unsaid, none] =
            [json!({"use_sliding_window": true}), json!({"use_sliding_window": true, "sliding_window": null})]
                .map(|config| read(config).unwrap());
        assert_eq!([unsaid.alternating(0, 2, 8), unsaid.late(28, 9)], [Some(8), Some(9)]);
        assert_eq!([none.alternating(0, 2, 8), none.late(28, 9)], [None, None]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(read(json!({"sliding_window": 0})).unwrap_err().contains("`sliding_window` is 0"));
        for kinds in [&["full_attention"; 2][..], &["full_attention"; 4], &[]] {
            let error = read(json!({"layer_types": kinds, "num_hidden_layers": 3})).unwrap_err();
            assert_eq!(error, format!("`layer_types` is a list of {}, `num_hidden_layers` is 3", kinds.len()));
        }
        assert!(read(json!({"layer_types": ["linear_attention"]})).unwrap_err().contains("\"linear_attention\""));
    }
}
