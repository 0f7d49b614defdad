//! Every architecture's graph is built from the configs of published models, in both styles.

use einfuse_models::graph_from_config;
use serde_json::Value;

const MODELS: [&str; 5] = ["gpt2", "llama3", "mistral", "opt", "qwen3"];

fn config(model: &str, style: &str) -> Value {
    let path = format!("{}/../tests/golden/{model}/{style}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn both_styles_of_config_make_the_same_verified_graph() {
    for model in MODELS {
        let graphs = ["config", "config_v5"].map(|style| graph_from_config(&config(model, style)).unwrap());
        einfuse_graph::verify(&graphs[0]).unwrap();
        assert_eq!(graphs[0], graphs[1], "{model}");
    }
}
