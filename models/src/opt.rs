//! OPT.

einfuse_macros::model! {
    /// OPT (Zhang et al., 2022): pre-norm, learned positions, biases, ReLU.
    pub Opt for "OPTForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            f: size = "ffn_dim";
            v: size = "vocab_size";
            positions: count = "max_position_embeddings";
            layers: count = "num_hidden_layers";
            tied: bool = "tie_word_embeddings" else true;
            require "activation_function" == "relu";
            require "do_layer_norm_before" == true;
            require "_remove_final_layer_norm" == false;
            require "enable_bias" == true;
            require "layer_norm_elementwise_affine" == true;
            require "word_embed_proj_dim" == d;
        }
        context = positions;
        axis c = d / h;                        // elements of a head
        axis p = positions + 2;                // the table starts at position -2

        weights "model.decoder." else "decoder." {
            embed[v, d]   = "embed_tokens.weight";
            table[p, d]   = "embed_positions.weight";
            final_gain[d] = "final_layer_norm.weight";
            final_bias[d] = "final_layer_norm.bias";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "model.decoder.layers.{l}." else "decoder.layers.{l}." {
                attn_gain[d] = "self_attn_layer_norm.weight";
                attn_bias[d] = "self_attn_layer_norm.bias";
                wq[h, c, d]  = "self_attn.q_proj.weight";
                bq[h, c]     = "self_attn.q_proj.bias";
                wk[h, c, d]  = "self_attn.k_proj.weight";
                bk[h, c]     = "self_attn.k_proj.bias";
                wv[h, c, d]  = "self_attn.v_proj.weight";
                bv[h, c]     = "self_attn.v_proj.bias";
                wo[d, h, c]  = "self_attn.out_proj.weight";
                bo[d]        = "self_attn.out_proj.bias";
                ffn_gain[d]  = "final_layer_norm.weight";
                ffn_bias[d]  = "final_layer_norm.bias";
                up[f, d]     = "fc1.weight";
                up_bias[f]   = "fc1.bias";
                down[d, f]   = "fc2.weight";
                down_bias[d] = "fc2.bias";
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, 1e-5) * attn_gain + attn_bias;
                let q[t, h, c] = bq + sum[d] a * wq;
                let k[t, h, c] = bk + sum[d] a * wk;
                let u[t, h, c] = bv + sum[d] a * wv;
                cache k, u over s;
                let m[t, h, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, h, c] = sum[s] m * u;
                let y[t, d] = x + bo + sum[h, c] o * wo;
                let z = layer_norm[d](y, 1e-5) * ffn_gain + ffn_bias;
                y + down_bias + sum[f] relu(up_bias + sum[d] z * up) * down
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x[t, d] = embed[v = tokens] + table[p = t + 2];
            let y = layers(x);
            let logits[t, v] = sum[d] (layer_norm[d](y, 1e-5) * final_gain + final_bias) * head;
            logits
        }
    }
}
