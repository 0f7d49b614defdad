//! Qwen3 with a mixture of experts.

einfuse_macros::model! {
    /// Qwen3 MoE (Yang et al., 2025): as Qwen3, and in most layers each token goes through the experts that a router finds the
    /// likeliest.
    pub Qwen3Moe for "Qwen3MoeForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            m: size = "moe_intermediate_size";
            e: size = "num_experts", "num_local_experts";
            j: size = "num_experts_per_tok";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            sparse: crate::sparse::Sparse = {..};
            normed: bool = "norm_topk_prob" else false;
            rope: crate::rope::Rope = {..};
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu";
            require "attention_bias" == false;
            require "use_sliding_window" == false;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();
        weights "model." { embed[v, d] = "embed_tokens.weight"; final_norm[d] = "norm.weight"; }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn experts(b, router, gate, up, down) {
            let (w, i) = top[e -> j](softmax[e](sum[d] b * router));
            let z = silu(sum[d] b * gate[e = i]) * (sum[d] b * up[e = i]);
            let all = sum[j] w * (sum[m] z * down[e = i]);
            if normed then all / (sum[j] w) else all
        }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d]     = "input_layernorm.weight";
                wq[n, g, c, d]   = "self_attn.q_proj.weight";
                wk[n, c, d]      = "self_attn.k_proj.weight";
                wv[n, c, d]      = "self_attn.v_proj.weight";
                wo[d, n, g, c]   = "self_attn.o_proj.weight";
                q_norm[c]        = "self_attn.q_norm.weight";
                k_norm[c]        = "self_attn.k_norm.weight";
                ffn_norm[d]      = "post_attention_layernorm.weight";
                gate[f, d]       = "mlp.gate_proj.weight";
                up[f, d]         = "mlp.up_proj.weight";
                down[d, f]       = "mlp.down_proj.weight";
                router[e, d]     = "mlp.gate.weight";
                gates[e, m, d]   = "mlp.experts.{e}.gate_proj.weight";
                ups[e, m, d]     = "mlp.experts.{e}.up_proj.weight";
                downs[e, d, m]   = "mlp.experts.{e}.down_proj.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let q[t, n, g, c] = rotate[c](rms_norm[c](sum[d] a * wq, eps) * q_norm, freq, scale);
                let k[t, n, c]    = rotate[c](rms_norm[c](sum[d] a * wk, eps) * k_norm, freq, scale);
                let u[t, n, c]    = sum[d] a * wv;
                cache k, u over s;
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + sum[n, g, c] o * wo;
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + if sparse.has(l) then experts(b, router, gates, ups, downs)
                    else sum[f] silu(sum[d] b * gate) * (sum[d] b * up) * down
            }
        }
        fn (tokens[t]) -> [t, v] {
            let y = layers(embed[v = tokens]);
            let logits[t, v] = sum[d] rms_norm[d](y, eps) * final_norm * head;
            logits
        }
    }
}
