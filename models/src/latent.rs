//! Whether queries come from a latent, as keys and values do.

use serde::Deserialize;

/// What a config says of the queries' latent: its size in `q_lora_rank`, or that there is none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Queries {
    q_lora_rank: Option<usize>,
}

impl Queries {
    /// Whether there is a latent.
    pub fn are_latent(&self) -> bool {
        self.q_lora_rank.is_some()
    }

    /// Its size; 1 where there is none.
    pub fn rank(&self) -> usize {
        self.q_lora_rank.unwrap_or(1)
    }
}
