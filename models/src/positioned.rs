//! Which layers turn queries and keys by their positions, where others know none.

use serde::Deserialize;

/// What a config says: a list with 1 for each layer that has positions and 0 for others, else all but every
/// `no_rope_layer_interval`-th have them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Positioned {
    #[serde(rename = "no_rope_layers")]
    list: Option<Vec<usize>>,
    #[serde(rename = "no_rope_layer_interval")]
    interval: Option<usize>,
}

impl Positioned {
    /// Whether a layer has positions.
    pub fn at(&self, layer: usize) -> bool {
        match self.list.as_ref().filter(|list| !list.is_empty()) {
            Some(list) => list.get(layer).is_none_or(|listed| *listed != 0),
            None => !(layer + 1).is_multiple_of(self.interval.unwrap_or(4)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_or_an_interval() {
        let read = |config| serde_json::from_value::<Positioned>(config).unwrap();
        let all = |positioned: Positioned| (0..5).map(|l| positioned.at(l)).collect::<Vec<bool>>();
        assert_eq!(all(read(json!({}))), [true, true, true, false, true]);
        assert_eq!(all(read(json!({"no_rope_layer_interval": 2}))), [true, false, true, false, true]);
        assert_eq!(all(read(json!({"no_rope_layers": [1, 0, 0, 1, 1]}))), [true, false, false, true, true]);
    }
}
