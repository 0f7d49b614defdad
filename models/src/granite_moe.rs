//! Granite with a mixture of experts.

use crate::blocks::Attention;

einfuse_macros::model! {
    /// Granite 3 MoE (IBM, 2024): as Mixtral, with scaled embeddings, residuals and logits, and weights that are the softmax of
    /// the chosen experts' scores.
    pub GraniteMoe for "GraniteMoeForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            e: size = "num_local_experts";
            j: size = "num_experts_per_tok";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            embedding_scale: f32 = "embedding_multiplier" else 1.0;
            attention_scale: f32 = "attention_multiplier" else 1.0;
            residual_scale: f32 = "residual_multiplier" else 1.0;
            logits_scale: f32 = "logits_scaling" else 1.0;
            rope: crate::rope::Rope = {..};
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu";
            require "attention_bias" == false;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        axis p = 2;                            // gate and up
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
                block attend[d, n, g, c, r] -> [t, d] = Attention in "self_attn.";
                ffn_norm[d] = "post_attention_layernorm.weight";
                router[e, d]      = "block_sparse_moe.router.layer.weight";
                input[e, p, f, d] = "block_sparse_moe.input_linear.weight";
                down[e, d, f]     = "block_sparse_moe.output_linear.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let y[t, d] = x + residual_scale * attend(a, freq, scale, attention_scale);
                let b = rms_norm[d](y, eps) * ffn_norm;
                let (scores, i)[t, j] = top[e -> j](sum[d] b * router);
                let share[t, j] = softmax[j](scores);
                let z[t, j, f] = silu(sum[d] b * input[e = i, p = 0]) * (sum[d] b * input[e = i, p = 1]);
                y + residual_scale * (sum[j] share * (sum[f] z * down[e = i]))
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = embedding_scale * embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = (sum[d] rms_norm[d](y, eps) * final_norm * head) / logits_scale;
            logits
        }
    }
}
