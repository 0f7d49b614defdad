//! GPT-2.

einfuse_macros::model! {
    /// GPT-2 (Radford et al., 2019): pre-norm, learned positions, biases, GELU.
    pub Gpt2 for "GPT2LMHeadModel" {
        config {
            d: size = "n_embd";
            h: size = "n_head";
            f: size = "n_inner" else 4 * d;
            v: size = "vocab_size";
            p: size = "n_positions";
            layers: count = "n_layer";
            eps: f32 = "layer_norm_epsilon" else 1e-5;
            tied: bool = "tie_word_embeddings" else true;
            require "activation_function" == "gelu_new" | "gelu_pytorch_tanh";
            require "scale_attn_weights" == true;
            require "scale_attn_by_inverse_layer_idx" == false;
            require "add_cross_attention" == false;
        }
        context = p;
        axis c = d / h;                        // elements of a head
        axis j = 3;                            // query, key and value, which the file keeps side by side

        weights "transformer." else "" {
            embed[v, d]     = "wte.weight";
            positions[p, d] = "wpe.weight";
            final_gain[d]   = "ln_f.weight";
            final_bias[d]   = "ln_f.bias";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "transformer.h.{l}." else "h.{l}." {
                attn_gain[d]  = "ln_1.weight";
                attn_bias[d]  = "ln_1.bias";
                w[d, j, h, c] = "attn.c_attn.weight";
                b[j, h, c]    = "attn.c_attn.bias";
                wo[h, c, d]   = "attn.c_proj.weight";
                bo[d]         = "attn.c_proj.bias";
                ffn_gain[d]   = "ln_2.weight";
                ffn_bias[d]   = "ln_2.bias";
                up[d, f]      = "mlp.c_fc.weight";
                up_bias[f]    = "mlp.c_fc.bias";
                down[f, d]    = "mlp.c_proj.weight";
                down_bias[d]  = "mlp.c_proj.bias";
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * attn_gain + attn_bias;
                let q[t, h, c] = (sum[d] a * w[j = 0]) + b[j = 0];
                let k[t, h, c] = (sum[d] a * w[j = 1]) + b[j = 1];
                let u[t, h, c] = (sum[d] a * w[j = 2]) + b[j = 2];
                cache k, u over s;
                let m[t, h, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, h, c] = sum[s] m * u;
                let y[t, d] = x + bo + sum[h, c] o * wo;
                let z = layer_norm[d](y, eps) * ffn_gain + ffn_bias;
                y + down_bias + sum[f] gelu_tanh(up_bias + sum[d] z * up) * down
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x[t, d] = embed[v = tokens] + positions[p = t];
            let y = layers(x);
            let logits[t, v] = sum[d] (layer_norm[d](y, eps) * final_gain + final_bias) * head;
            logits
        }
    }
}
