//! Granite.

use crate::blocks::{Attention, SwiGlu};

einfuse_macros::model! {
    /// Granite 3 (Granite Team, 2024): as Llama, with multipliers on embeddings, scores, residuals and logits.
    pub Granite for "GraniteForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            rope: crate::rope::Rope = {..};
            per_embedding: f32 = "embedding_multiplier" else 1;
            per_score: f32 = "attention_multiplier" else 1;
            per_part: f32 = "residual_multiplier" else 1;
            logit_scaling: f32 = "logits_scaling" else 1;
            biased: bool = "attention_bias" else false;
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu";
            require "mlp_bias" == false;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();

        weights "model." {
            embed[v, d]   = "embed_tokens.weight";
            final_norm[d] = "norm.weight";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight";
                block attend[d, n, g, c, r] -> [t, d] = Attention { biased, out_biased: biased } in "self_attn.";
                ffn_norm[d] = "post_attention_layernorm.weight";
                block feed[d, f] -> [t, d] = SwiGlu in "mlp.";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let y[t, d] = x + per_part * attend(a, freq, scale, per_score);
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + per_part * feed(b)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = per_embedding * embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = (sum[d] rms_norm[d](y, eps) * final_norm * head) / logit_scaling;
            logits
        }
    }
}
