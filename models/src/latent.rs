//! Whether queries come from a latent, as keys and values do.

use serde::Deserialize;

/// What a config says of the queries' latent: its size in `q_lora_rank`, or null where there is none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Queries {
    #[serde(default = "unsaid")]
    q_lora_rank: Option<usize>,
}

/// The size of a latent of which a config says nothing.
fn unsaid() -> Option<usize> {
    Some(1536)
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
