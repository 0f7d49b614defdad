//! Which layers turn queries and keys by their positions, where others know none.

use serde::Deserialize;

/// What a config says: a list with 1 for each layer that has positions and 0 for others, else all but every
/// `no_rope_layer_interval`-th have them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Keys")]
pub struct Positioned {
    list: Option<Vec<usize>>,
    interval: Option<usize>,
}

#[derive(Deserialize)]
struct Keys {
    no_rope_layers: Option<Vec<usize>>,
    no_rope_layer_interval: Option<usize>,
    num_hidden_layers: Option<usize>,
}

impl TryFrom<Keys> for Positioned {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Positioned, String> {
        let list = keys.no_rope_layers.filter(|list| !list.is_empty());
        crate::check_layers("no_rope_layers", list.as_deref(), keys.num_hidden_layers)?;
        Ok(Positioned { list, interval: keys.no_rope_layer_interval })
    }
}

impl Positioned {
    /// Whether a layer has positions.
    pub fn at(&self, layer: usize) -> bool {
        match &self.list {
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

    #[test]
    fn a_list_is_of_all_layers() {
        let read = |list: &[usize]| {
            serde_json::from_value::<Positioned>(json!({"no_rope_layers": list, "num_hidden_layers": 3}))
        };
        assert!(!read(&[1, 0, 1]).unwrap().at(1));
        // as if it were not there
        assert!(!read(&[]).unwrap().at(3));
        for list in [&[1, 0][..], &[1, 0, 1, 1]] {
            let error = read(list).unwrap_err().to_string();
            assert_eq!(error, format!("`no_rope_layers` is a list of {}, `num_hidden_layers` is 3", list.len()));
        }
    }
}
