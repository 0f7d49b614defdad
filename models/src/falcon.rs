//! Falcon.

einfuse_macros::model! {
    /// Falcon (Almazrouei et al., 2023): attention and feed-forward part beside each other, one key head for all queries or (in
    /// the newer decoder) one for each group, which the file keeps behind its queries.
    pub Falcon for "FalconForCausalLM" {
        config {
            d: size = "hidden_size", "n_embed";
            h: size = "num_attention_heads", "n_head";
            groups: count = "num_kv_heads" else h;
            f: size = "ffn_hidden_size" else 4 * d;
            v: size = "vocab_size"; layers: count = "num_hidden_layers", "n_layer";
            eps: f32 = "layer_norm_epsilon" else 1e-5; rope: crate::rope::Rope = {..};
            distance: bool = "alibi" else false;
            newer: bool = "new_decoder_architecture" else false;
            single: bool = "multi_query" else true;
            beside: bool = "parallel_attn" else true;
            norms: count = "num_ln_in_parallel_attn" else 2;
            biased: bool = "bias" else false;
            tied: bool = "tie_word_embeddings" else true;
            positions: option<size> = "max_position_embeddings";
            require "activation" == "gelu";
        }
        context = positions;
        axis n = if newer || !single then groups else 1;
        axis g = h / n;                        // queries that share one key head
        axis c = d / h;                        // elements of a head
        axis r = rope.pairs(c);
        host freq[r] = rope.frequencies(r); host scale = rope.scale();
        host slope[n, g] = crate::alibi::slopes(h);
        weights "transformer." {
            embed[v, d]   = "word_embeddings.weight";
            final_gain[d] = "ln_f.weight"; final_bias[d] = "ln_f.bias";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn placed[c](x[c, ..], freq[r]) -> [c] { if distance then x else rotate[c](x, freq, scale) }
        layer l in layers {
            weights "transformer.h.{l}." {
                gain[d]        = "ln_attn.weight" if newer && norms == 2 else "input_layernorm.weight";
                bias[d]        = "ln_attn.bias" if newer && norms == 2 else "input_layernorm.bias";
                wq[n, g, c, d] = "self_attention.query_key_value.weight"[0 .. g*c in n];
                bq[n, g, c]    = "self_attention.query_key_value.bias"[0 .. g*c in n] if biased else 0;
                wk[n, c, d]    = "self_attention.query_key_value.weight"[g*c .. g*c + c in n];
                bk[n, c]       = "self_attention.query_key_value.bias"[g*c .. g*c + c in n] if biased else 0;
                wv[n, c, d]    = "self_attention.query_key_value.weight"[g*c + c .. g*c + 2*c in n];
                bv[n, c]       = "self_attention.query_key_value.bias"[g*c + c .. g*c + 2*c in n] if biased else 0;
                wo[d, n, g, c] = "self_attention.dense.weight";
                bo[d]          = "self_attention.dense.bias" if biased else 0;
                ffn_gain[d]    = "ln_mlp.weight" if newer else "post_attention_layernorm.weight";
                ffn_bias[d]    = "ln_mlp.bias" if newer else "post_attention_layernorm.bias";
                up[f, d]       = "mlp.dense_h_to_4h.weight";
                down[d, f]     = "mlp.dense_4h_to_h.weight";
                up_bias[f]     = "mlp.dense_h_to_4h.bias" if biased else 0;
                down_bias[d]   = "mlp.dense_4h_to_h.bias" if biased else 0;
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * gain + bias;
                let q[t, n, g, c] = placed[c](bq + sum[d] a * wq, freq);
                let k[t, n, c]    = placed[c](bk + sum[d] a * wk, freq);
                let u[t, n, c]    = bv + sum[d] a * wv;
                cache k, u over s;
                let e = size(c)^-0.5 * if distance then (sum[c] q * k) - slope * (t - s) else sum[c] q * k;
                let p[t, n, g, s] = softmax[s](e where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + bo + sum[n, g, c] o * wo;
                let z = if newer && norms == 2 || !newer && !beside
                    then layer_norm[d](if newer then x else y, eps) * ffn_gain + ffn_bias else a;
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
