//! OLMo 2.

use crate::blocks::SwiGlu;

einfuse_macros::model! {
    /// OLMo 2 (OLMo Team, 2024): as Llama, with the norms behind each part in place of before it, and one over all queries
    /// and one over all keys of a token.
    pub Olmo2 for "Olmo2ForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-5;
            rope: crate::rope::Rope = {..};
            biased: bool = "attention_bias" else false;
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu";
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
                wq[n, g, c, d] = "self_attn.q_proj.weight";
                bq[n, g, c]    = "self_attn.q_proj.bias" if biased else 0;
                wk[n, c, d]    = "self_attn.k_proj.weight";
                bk[n, c]       = "self_attn.k_proj.bias" if biased else 0;
                wv[n, c, d]    = "self_attn.v_proj.weight";
                bv[n, c]       = "self_attn.v_proj.bias" if biased else 0;
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                bo[d]          = "self_attn.o_proj.bias" if biased else 0;
                q_norm[n, g, c] = "self_attn.q_norm.weight";
                k_norm[n, c]   = "self_attn.k_norm.weight";
                attn_out[d]    = "post_attention_layernorm.weight";
                block feed[d, f] -> [t, d] = SwiGlu in "mlp.";
                ffn_out[d]     = "post_feedforward_layernorm.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let q0[t, n, g, c] = bq + sum[d] x * wq;
                let k0[t, n, c]    = bk + sum[d] x * wk;
                let q[t, n, g, c] = rotate[c](q0 * rsqrt((mean[n, g, c] q0 * q0) + eps) * q_norm, freq, scale);
                let k[t, n, c]    = rotate[c](k0 * rsqrt((mean[n, c] k0 * k0) + eps) * k_norm, freq, scale);
                let u[t, n, c]    = bv + sum[d] x * wv;
                cache k, u over s;
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let m[t, d] = bo + sum[n, g, c] o * wo;
                let y[t, d] = x + rms_norm[d](m, eps) * attn_out;
                let z[t, d] = feed(y);
                y + rms_norm[d](z, eps) * ffn_out
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
