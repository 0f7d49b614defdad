//! BLOOM.

einfuse_macros::model! {
    /// BLOOM (BigScience, 2022): pre-norm, positions by linear biases on the scores (ALiBi), a norm behind the embedding.
    pub Bloom for "BloomForCausalLM" {
        config {
            d: size = "hidden_size", "n_embed";
            h: size = "n_head", "num_attention_heads";
            v: size = "vocab_size";
            layers: count = "n_layer", "num_hidden_layers";
            eps: f32 = "layer_norm_epsilon" else 1e-5;
            tied: bool = "tie_word_embeddings" else true;
            positions: option<size> = "seq_length";
            require "apply_residual_connection_post_layernorm" == false;
        }
        context = positions;
        axis c = d / h;                        // elements of a head
        axis f = 4 * d;
        axis j = 3;                            // query, key and value, which the file keeps side by side for each head
        host slope[h] = crate::alibi::slopes(h);

        weights "transformer." else "" {
            embed[v, d]   = "word_embeddings.weight";
            first_gain[d] = "word_embeddings_layernorm.weight";
            first_bias[d] = "word_embeddings_layernorm.bias";
            final_gain[d] = "ln_f.weight";
            final_bias[d] = "ln_f.bias";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "transformer.h.{l}." else "h.{l}." {
                attn_gain[d]  = "input_layernorm.weight";
                attn_bias[d]  = "input_layernorm.bias";
                w[h, j, c, d] = "self_attention.query_key_value.weight";
                b[h, j, c]    = "self_attention.query_key_value.bias";
                wo[d, h, c]   = "self_attention.dense.weight";
                bo[d]         = "self_attention.dense.bias";
                ffn_gain[d]   = "post_attention_layernorm.weight";
                ffn_bias[d]   = "post_attention_layernorm.bias";
                up[f, d]      = "mlp.dense_h_to_4h.weight";
                up_bias[f]    = "mlp.dense_h_to_4h.bias";
                down[d, f]    = "mlp.dense_4h_to_h.weight";
                down_bias[d]  = "mlp.dense_4h_to_h.bias";
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * attn_gain + attn_bias;
                let q[t, h, c] = (sum[d] a * w[j = 0]) + b[j = 0];
                let k[t, h, c] = (sum[d] a * w[j = 1]) + b[j = 1];
                let u[t, h, c] = (sum[d] a * w[j = 2]) + b[j = 2];
                cache k, u over s;
                let e = size(c)^-0.5 * (sum[c] q * k) - slope * (t - s);
                let p[t, h, s] = softmax[s](e where s <= t);
                let o[t, h, c] = sum[s] p * u;
                let y[t, d] = x + bo + sum[h, c] o * wo;
                let z = layer_norm[d](y, eps) * ffn_gain + ffn_bias;
                y + down_bias + sum[f] gelu_tanh(up_bias + sum[d] z * up) * down
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x0[t, d] = embed[v = tokens];
            let x[t, d] = layer_norm[d](x0, eps) * first_gain + first_bias;
            let y = layers(x);
            let logits[t, v] = sum[d] (layer_norm[d](y, eps) * final_gain + final_bias) * head;
            logits
        }
    }
}
