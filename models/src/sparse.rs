//! Which layers have experts, where others have one network, and among which experts a token chooses.

use serde::Deserialize;

/// What a config says of layers with experts: `moe_layers` lists them, else every `decoder_sparse_step`-th (which Llama 4 calls
/// `interleave_moe_layer_step`) has them, unless `mlp_only_layers` lists it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Sparse {
    #[serde(rename = "moe_layers")]
    sparse: Option<Vec<usize>>,
    #[serde(rename = "decoder_sparse_step", alias = "interleave_moe_layer_step")]
    step: Option<usize>,
    #[serde(rename = "mlp_only_layers")]
    dense: Option<Vec<usize>>,
}

impl Sparse {
    /// Whether a layer has experts.
    pub fn has(&self, layer: usize) -> bool {
        if let Some(sparse) = &self.sparse {
            return sparse.contains(&layer);
        }
        let listed = self.dense.as_ref().is_some_and(|dense| dense.contains(&layer));
        !listed && (layer + 1).is_multiple_of(self.step.unwrap_or(1))
    }
}

/// What a config says of groups of experts: with the `topk_method` `group_limited_greedy`, a token chooses among the experts of
/// `topk_group` of the `n_group` groups; with `greedy`, or none, among all.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "GroupKeys")]
pub struct Groups {
    all: usize,
    open: usize,
}

#[derive(Deserialize)]
struct GroupKeys {
    topk_method: Option<String>,
    n_group: Option<usize>,
    topk_group: Option<usize>,
}

impl TryFrom<GroupKeys> for Groups {
    type Error = String;

    fn try_from(keys: GroupKeys) -> Result<Groups, String> {
        let of = |name: &str, number: Option<usize>| number.ok_or_else(|| format!("`{name}` is missing"));
        match keys.topk_method.as_deref() {
            None | Some("greedy") => Ok(Groups { all: 1, open: 1 }),
            Some("group_limited_greedy") => {
                Ok(Groups { all: of("n_group", keys.n_group)?, open: of("topk_group", keys.topk_group)? })
            }
            Some(other) => {
                Err(format!("`topk_method` is \"{other}\", supported are \"greedy\" and \"group_limited_greedy\""))
            }
        }
    }
}

impl Groups {
    /// How many groups there are.
    pub fn all(&self) -> usize {
        self.all
    }

    /// The experts of how many of them a token may choose.
    pub fn open(&self) -> usize {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(config: serde_json::Value) -> Vec<usize> {
        let sparse: Sparse = serde_json::from_value(config).unwrap();
        (0..6).filter(|&layer| sparse.has(layer)).collect()
    }

    #[test]
    fn all_or_every_other_but_those_of_the_list() {
        use serde_json::json;
        assert_eq!(layers(json!({})), [0, 1, 2, 3, 4, 5]);
        assert_eq!(layers(json!({"decoder_sparse_step": 1, "mlp_only_layers": [1, 4]})), [0, 2, 3, 5]);
        assert_eq!(layers(json!({"decoder_sparse_step": 2, "mlp_only_layers": []})), [1, 3, 5]);
        assert_eq!(layers(json!({"interleave_moe_layer_step": 3})), [2, 5]);
        assert_eq!(layers(json!({"interleave_moe_layer_step": 3, "moe_layers": [1]})), [1]);
        assert_eq!(layers(json!({"decoder_sparse_step": 0})), [0; 0]);
    }
}
