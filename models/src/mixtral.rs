//! Mixtral.

einfuse_macros::model! {
    /// Mixtral (Jiang et al., 2024): Mistral's attention; of several gated networks, each token goes through those that a
    /// router finds the likeliest, weighted by their probabilities among each other.
    pub Mixtral for "MixtralForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            e: size = "num_local_experts";
            j: size = "num_experts_per_tok";
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
                wq[n, g, c, d] = "self_attn.q_proj.weight";
                wk[n, c, d]    = "self_attn.k_proj.weight";
                wv[n, c, d]    = "self_attn.v_proj.weight";
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                ffn_norm[d]    = "post_attention_layernorm.weight";
                router[e, d]   = "block_sparse_moe.gate.weight";
                gate[e, f, d]  = "block_sparse_moe.experts.{e}.w1.weight";
                up[e, f, d]    = "block_sparse_moe.experts.{e}.w3.weight";
                down[e, d, f]  = "block_sparse_moe.experts.{e}.w2.weight";
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
                let (w, i)[t, j] = top[e -> j](softmax[e](sum[d] b * router));
                let z[t, j, f] = silu(sum[d] b * gate[e = i]) * (sum[d] b * up[e = i]);
                let share[t, j] = w / sum[j] w;
                y + sum[j] share * (sum[f] z * down[e = i])
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
