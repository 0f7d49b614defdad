//! GPT-NeoX.

einfuse_macros::model! {
    /// GPT-NeoX and Pythia (Black et al., 2022): attention and feed-forward part beside each other, a share of each head rotated.
    pub GptNeoX for "GPTNeoXForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "layer_norm_eps" else 1e-5;
            rope: crate::rope::Rope = {..};
            parallel: bool = "use_parallel_residual" else true;
            biased: bool = "attention_bias" else true;
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "gelu";
        }
        context = positions;
        axis c = d / h;                        // elements of a head
        axis j = 3;                            // query, key and value, which the file keeps side by side for each head
        axis r = rope.partial_pairs(c, 0.25);
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();

        weights "gpt_neox." {
            embed[v, d]   = "embed_in.weight";
            final_gain[d] = "final_layer_norm.weight";
            final_bias[d] = "final_layer_norm.bias";
        }
        weights { head[v, d] = "embed_out.weight" if !tied else embed; }

        layer l in layers {
            weights "gpt_neox.layers.{l}." {
                attn_gain[d]  = "input_layernorm.weight";
                attn_bias[d]  = "input_layernorm.bias";
                w[h, j, c, d] = "attention.query_key_value.weight";
                b[h, j, c]    = "attention.query_key_value.bias" if biased else 0;
                wo[d, h, c]   = "attention.dense.weight";
                bo[d]         = "attention.dense.bias" if biased else 0;
                ffn_gain[d]   = "post_attention_layernorm.weight";
                ffn_bias[d]   = "post_attention_layernorm.bias";
                up[f, d]      = "mlp.dense_h_to_4h.weight";
                up_bias[f]    = "mlp.dense_h_to_4h.bias";
                down[d, f]    = "mlp.dense_4h_to_h.weight";
                down_bias[d]  = "mlp.dense_4h_to_h.bias";
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * attn_gain + attn_bias;
                let q[t, h, c] = rotate[c]((sum[d] a * w[j = 0]) + b[j = 0], freq, scale);
                let k[t, h, c] = rotate[c]((sum[d] a * w[j = 1]) + b[j = 1], freq, scale);
                let u[t, h, c] = (sum[d] a * w[j = 2]) + b[j = 2];
                cache k, u over s;
                let p[t, h, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, h, c] = sum[s] p * u;
                let y[t, d] = x + bo + sum[h, c] o * wo;
                let z = layer_norm[d](if parallel then x else y, eps) * ffn_gain + ffn_bias;
                y + down_bias + sum[f] gelu(up_bias + sum[d] z * up) * down
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
