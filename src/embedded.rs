//! The model that the program carries.

use einfuse_runtime::Embedded;

/// The files of `models/nano/`.
pub(crate) const NANO: Embedded = Embedded {
    name: "nano",
    config: include_bytes!("../models/nano/config.json"),
    generation_config: Some(include_bytes!("../models/nano/generation_config.json")),
    tokenizer: Some(include_bytes!("../models/nano/tokenizer.json")),
    weights: include_bytes!("../models/nano/model.safetensors"),
};
