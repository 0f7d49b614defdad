//! Qwen3 with a mixture of experts.

use crate::blocks::{Experts, NormedAttention, SwiGlu};

einfuse_macros::model! {
    /// Qwen3 MoE (Yang et al., 2025): as Qwen3, and in most layers each token goes through the experts that a router finds the
    /// likeliest.
    pub Qwen3Moe for "Qwen3MoeForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            m: size = "moe_intermediate_size";
            e: size = "num_experts", "num_local_experts";
            j: size = "num_experts_per_tok";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            sparse: crate::sparse::Sparse = {..};
            normed: bool = "norm_topk_prob" else false;
            rope: crate::rope::Rope = {..};
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu";
            require "attention_bias" == false;
            require "use_sliding_window" == false;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();
        weights "model." { embed[v, d] = "embed_tokens.weight"; final_norm[d] = "norm.weight"; }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight";
                block attend[d, n, g, c, r] -> [t, d] = NormedAttention in "self_attn.";
                ffn_norm[d] = "post_attention_layernorm.weight";
                block feed[d, f] -> [t, d] = SwiGlu in "mlp.";
                block route[d, e, m, j] -> [t, d] = Experts { normed } in "mlp.";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let y[t, d] = x + attend(a, freq, scale, size(c)^-0.5, eps);
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + if sparse.has(l) then route(b) else feed(b)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let y = layers(embed[v = tokens]);
            let logits[t, v] = sum[d] rms_norm[d](y, eps) * final_norm * head;
            logits
        }
    }
}
