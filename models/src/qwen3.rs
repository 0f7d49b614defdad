//! Qwen3.

use crate::blocks::{NormedAttention, SwiGlu};

einfuse_macros::model! {
    /// Qwen3 (Yang et al., 2025): as Llama, with a norm on the queries and keys of each head.
    pub Qwen3 for "Qwen3ForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else 128;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
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

        weights "model." {
            embed[v, d]   = "embed_tokens.weight";
            final_norm[d] = "norm.weight";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight";
                block attend[d, n, g, c, r] -> [t, d] = NormedAttention in "self_attn.";
                ffn_norm[d] = "post_attention_layernorm.weight";
                block feed[d, f] -> [t, d] = SwiGlu in "mlp.";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let y[t, d] = x + attend(a, freq, scale, size(c)^-0.5, eps);
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + feed(b)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = sum[d] rms_norm[d](y, eps) * final_norm * head;
            logits
        }
    }
}
