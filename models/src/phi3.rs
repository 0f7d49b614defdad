//! Phi-3.

einfuse_macros::model! {
    /// Phi-3 and Phi-4 (Abdin et al., 2024): as Llama, where the file merges queries, keys and values, and gate and up.
    pub Phi3 for "Phi3ForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-5;
            window: option<size> = "sliding_window";
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

        weights "model." {
            embed[v, d]   = "embed_tokens.weight";
            final_norm[d] = "norm.weight";
        }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d]   = "input_layernorm.weight";
                wq[n, g, c, d] = "self_attn.qkv_proj.weight"[0 .. h*c];
                wk[n, c, d]    = "self_attn.qkv_proj.weight"[h*c .. h*c + n*c];
                wv[n, c, d]    = "self_attn.qkv_proj.weight"[h*c + n*c .. h*c + 2*n*c];
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                ffn_norm[d]    = "post_attention_layernorm.weight";
                gate[f, d]     = "mlp.gate_up_proj.weight"[0 .. f];
                up[f, d]       = "mlp.gate_up_proj.weight"[f .. 2*f];
                down[d, f]     = "mlp.down_proj.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let q[t, n, g, c] = rotate[c](sum[d] a * wq, freq, scale);
                let k[t, n, c]    = rotate[c](sum[d] a * wk, freq, scale);
                let u[t, n, c]    = sum[d] a * wv;
                cache k, u over s within window;
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
