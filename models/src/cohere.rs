//! Cohere.

use crate::blocks::SwiGlu;

einfuse_macros::model! {
    /// Command R (Cohere, 2024): layer norms without bias, attention and feed-forward part beside each other, rotary pairs of
    /// neighbours, scaled logits.
    pub Cohere for "CohereForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "layer_norm_eps" else 1e-5;
            rope: crate::rope::Rope = {..};
            biased: bool = "attention_bias" else false;
            tied: bool = "tie_word_embeddings" else true;
            normed: bool = "use_qk_norm" else false;
            logit_scale: f32 = "logit_scale" else 0.0625;
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
                attn_norm[d]   = "input_layernorm.weight";
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
                block feed[d, f] -> [t, d] = SwiGlu in "mlp.";
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * attn_norm;
                let q0[t, n, g, c] = bq + sum[d] a * wq;
                let k0[t, n, c]    = bk + sum[d] a * wk;
                let q[t, n, g, c] = rotate_pairs[c](if normed then layer_norm[c](q0, eps) * q_norm else q0, freq, scale);
                let k[t, n, c]    = rotate_pairs[c](if normed then layer_norm[c](k0, eps) * k_norm else k0, freq, scale);
                let u[t, n, c]    = bv + sum[d] a * wv;
                cache k, u over s;
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + bo + sum[n, g, c] o * wo;
                y + feed(a)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = logit_scale * sum[d] layer_norm[d](y, eps) * final_norm * head;
            logits
        }
    }
}
