//! Qwen2.

einfuse_macros::model! {
    /// Qwen2 and Qwen2.5 (Yang et al., 2024): as Llama, with biases on queries, keys and values, and a window in some layers.
    pub Qwen2 for "Qwen2ForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            windows: crate::windows::Windows = {..};
            rope: crate::rope::Rope = {..};
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
                attn_norm[d]   = "input_layernorm.weight";
                wq[n, g, c, d] = "self_attn.q_proj.weight";
                bq[n, g, c]    = "self_attn.q_proj.bias";
                wk[n, c, d]    = "self_attn.k_proj.weight";
                bk[n, c]       = "self_attn.k_proj.bias";
                wv[n, c, d]    = "self_attn.v_proj.weight";
                bv[n, c]       = "self_attn.v_proj.bias";
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                ffn_norm[d]    = "post_attention_layernorm.weight";
                gate[f, d]     = "mlp.gate_proj.weight";
                up[f, d]       = "mlp.up_proj.weight";
                down[d, f]     = "mlp.down_proj.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let q[t, n, g, c] = rotate[c](bq + sum[d] a * wq, freq, scale);
                let k[t, n, c]    = rotate[c](bk + sum[d] a * wk, freq, scale);
                let u[t, n, c]    = bv + sum[d] a * wv;
                cache k, u over s within windows.late(l, 4096);
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + sum[n, g, c] o * wo;
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + sum[f] silu(sum[d] b * gate) * (sum[d] b * up) * down
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
