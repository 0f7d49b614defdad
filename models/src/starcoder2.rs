//! StarCoder2.

use crate::blocks::Attention;

einfuse_macros::model! {
    /// StarCoder2 (Lozhkov et al., 2024): layer norms, biases, rotary positions, grouped queries, a window, GELU.
    pub Starcoder2 for "Starcoder2ForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "norm_epsilon" else 1e-5;
            window: option<size> = "sliding_window";
            rope: crate::rope::Rope = {..};
            biased: bool = "use_bias" else true;
            tied: bool = "tie_word_embeddings" else true;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "gelu_pytorch_tanh";
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();

        weights "model." {
            embed[v, d]   = "embed_tokens.weight";
            final_gain[d] = "norm.weight";
            final_bias[d] = "norm.bias";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "model.layers.{l}." {
                attn_gain[d]   = "input_layernorm.weight";
                attn_bias[d]   = "input_layernorm.bias";
                block attend[d, n, g, c, r] -> [t, d] =
                    Attention { biased, out_biased: biased, window } in "self_attn.";
                ffn_gain[d]    = "post_attention_layernorm.weight";
                ffn_bias[d]    = "post_attention_layernorm.bias";
                up[f, d]       = "mlp.c_fc.weight";
                up_bias[f]     = "mlp.c_fc.bias" if biased else 0;
                down[d, f]     = "mlp.c_proj.weight";
                down_bias[d]   = "mlp.c_proj.bias" if biased else 0;
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * attn_gain + attn_bias;
                let y[t, d] = x + attend(a, freq, scale, size(c)^-0.5);
                let b = layer_norm[d](y, eps) * ffn_gain + ffn_bias;
                y + down_bias + sum[f] gelu_tanh(up_bias + sum[d] b * up) * down
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = sum[d] (layer_norm[d](y, eps) * final_gain + final_bias) * head;
            logits
        }
    }
}
