//! StableLM.

use crate::blocks::SwiGlu;

einfuse_macros::model! {
    /// StableLM and StableLM 2 (Bellagente et al., 2024): layer norms, a share of each head rotated, gated units; in some the
    /// two parts of a layer stand beside each other.
    pub StableLm for "StableLmForCausalLM", "StableLMEpochForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "layer_norm_eps", "norm_eps" else 1e-5;
            rope: crate::rope::Rope = {..};
            biased: bool = "use_qkv_bias" else false;
            normed: bool = "qk_layernorm" else false;
            parallel: bool = "use_parallel_residual" else false;
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu";
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.partial_pairs(c, 0.25);
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();

        weights "model." {
            embed[v, d]   = "embed_tokens.weight";
            final_gain[d] = "norm.weight";
            final_bias[d] = "norm.bias";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn turned[c](x[c, ..], gain, freq[r]) -> [c] {
            let y = if normed then layer_norm[c](x, eps) * gain else x;
            rotate[c](y, freq, scale)
        }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_gain[d]   = "input_layernorm.weight";
                attn_bias[d]   = "input_layernorm.bias";
                wq[n, g, c, d] = "self_attn.q_proj.weight";
                bq[n, g, c]    = "self_attn.q_proj.bias" if biased else 0;
                wk[n, c, d]    = "self_attn.k_proj.weight";
                bk[n, c]       = "self_attn.k_proj.bias" if biased else 0;
                wv[n, c, d]    = "self_attn.v_proj.weight";
                bv[n, c]       = "self_attn.v_proj.bias" if biased else 0;
                q_gain[h, c]   = "self_attn.q_layernorm.norms.{h}.weight";
                k_gain[n, c]   = "self_attn.k_layernorm.norms.{n}.weight";
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                ffn_gain[d]    = "post_attention_layernorm.weight";
                ffn_bias[d]    = "post_attention_layernorm.bias";
                block feed[d, f] -> [t, d] = SwiGlu in "mlp.";
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * attn_gain + attn_bias;
                let q[t, n, g, c] = turned[c](bq + sum[d] a * wq, q_gain[h = size(g) * n + g], freq);
                let k[t, n, c]    = turned[c](bk + sum[d] a * wk, k_gain, freq);
                let u[t, n, c]    = bv + sum[d] a * wv;
                cache k, u over s;
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + sum[n, g, c] o * wo;
                let b = if parallel then a else layer_norm[d](y, eps) * ffn_gain + ffn_bias;
                y + feed(b)
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
