//! OLMoE.

use crate::blocks::Experts;

einfuse_macros::model! {
    /// OLMoE (Muennighoff et al., 2024): as Llama, with norms on all queries and all keys, and experts in every layer.
    pub Olmoe for "OlmoeForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            e: size = "num_experts", "num_local_experts";
            j: size = "num_experts_per_tok";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-5;
            clip: f32 = "clip_qkv" else 0;
            normed: bool = "norm_topk_prob" else false;
            rope: crate::rope::Rope = {..};
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu";
            require "attention_bias" == false;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();
        weights "model." { embed[v, d] = "embed_tokens.weight"; final_norm[d] = "norm.weight"; }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn clipped(x) { if clip > 0 then max(min(x, clip), -clip) else x }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d]     = "input_layernorm.weight";
                wq[n, g, c, d]   = "self_attn.q_proj.weight";
                wk[n, c, d]      = "self_attn.k_proj.weight";
                wv[n, c, d]      = "self_attn.v_proj.weight";
                wo[d, n, g, c]   = "self_attn.o_proj.weight";
                q_norm[n, g, c]  = "self_attn.q_norm.weight";
                k_norm[n, c]     = "self_attn.k_norm.weight";
                ffn_norm[d]      = "post_attention_layernorm.weight";
                block route[d, e, f, j] -> [t, d] = Experts { normed } in "mlp.";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let q0[t, n, g, c] = sum[d] a * wq;
                let k0[t, n, c]    = sum[d] a * wk;
                let q[t, n, g, c] = rotate[c](clipped(q0 * rsqrt((mean[n, g, c] q0 * q0) + eps) * q_norm), freq, scale);
                let k[t, n, c]    = rotate[c](clipped(k0 * rsqrt((mean[n, c] k0 * k0) + eps) * k_norm), freq, scale);
                let u[t, n, c]    = clipped(sum[d] a * wv);
                cache k, u over s;
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + sum[n, g, c] o * wo;
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + route(b)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let y = layers(embed[v = tokens]);
            let logits[t, v] = sum[d] rms_norm[d](y, eps) * final_norm * head;
            logits
        }
    }
}
