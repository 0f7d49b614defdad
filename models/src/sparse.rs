//! Which layers have experts, where others have one network.

use serde::Deserialize;

/// What a config says of layers with experts: every `decoder_sparse_step`-th has them, unless `mlp_only_layers` lists it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Sparse {
    #[serde(rename = "decoder_sparse_step")]
    step: Option<usize>,
    #[serde(rename = "mlp_only_layers")]
    dense: Option<Vec<usize>>,
}

impl Sparse {
    /// Whether a layer has experts.
    pub fn has(&self, layer: usize) -> bool {
        let listed = self.dense.as_ref().is_some_and(|dense| dense.contains(&layer));
        !listed && (layer + 1).is_multiple_of(self.step.unwrap_or(1))
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
        assert_eq!(layers(json!({"decoder_sparse_step": 0})), [0; 0]);
    }
}
