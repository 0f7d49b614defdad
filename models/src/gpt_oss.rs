//! GPT-OSS.

einfuse_macros::model! {
    /// GPT-OSS (OpenAI, 2025): every other layer sees a window, each head has a sink that takes a share of its attention, and
    /// experts have biases and a clamped activation.
    pub GptOss for "GptOssForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else 64;
            f: size = "intermediate_size";
            e: size = "num_local_experts", "num_experts";
            j: size = "num_experts_per_tok";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-5;
            alpha: f32 = "swiglu_alpha" else 1.702;
            limit: f32 = "swiglu_limit" else 7.0;
            windows: crate::windows::Windows = {..};
            rope: crate::rope::Rope = {..};
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "attention_bias" == true;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        axis p = 2;                            // gate and up
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();
        weights "model." { embed[v, d] = "embed_tokens.weight"; final_norm[d] = "norm.weight"; }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn sinking[s](x[s, ..], sink) -> [s] {
            let most = max[s] x;
            let above = exp(x - most);
            above / (exp(sink - most) + sum[s] above)
        }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight"; ffn_norm[d] = "post_attention_layernorm.weight";
                wq[n, g, c, d] = "self_attn.q_proj.weight"; bq[n, g, c] = "self_attn.q_proj.bias";
                wk[n, c, d] = "self_attn.k_proj.weight"; bk[n, c] = "self_attn.k_proj.bias";
                wv[n, c, d] = "self_attn.v_proj.weight"; bv[n, c] = "self_attn.v_proj.bias";
                wo[d, n, g, c] = "self_attn.o_proj.weight"; bo[d] = "self_attn.o_proj.bias";
                sink[n, g] = "self_attn.sinks";
                router[e, d] = "mlp.router.weight"; router_bias[e] = "mlp.router.bias";
                input[e, d, f, p] = "mlp.experts.gate_up_proj"; input_bias[e, f, p] = "mlp.experts.gate_up_proj_bias";
                down[e, f, d] = "mlp.experts.down_proj"; down_bias[e, d] = "mlp.experts.down_proj_bias";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let q[t, n, g, c] = rotate[c](bq + sum[d] a * wq, freq, scale);
                let k[t, n, c]    = rotate[c](bk + sum[d] a * wk, freq, scale);
                let u[t, n, c]    = bv + sum[d] a * wv;
                cache k, u over s within windows.alternating(l, 2, 128);
                let m[t, n, g, s] = sinking[s](size(c)^-0.5 * (sum[c] q * k) where s <= t, sink);
                let o[t, n, g, c] = sum[s] m * u;
                let y[t, d] = x + bo + sum[n, g, c] o * wo;
                let b = rms_norm[d](y, eps) * ffn_norm;
                let (scores, i)[t, j] = top[e -> j](router_bias + sum[d] b * router);
                let share[t, j] = softmax[j](scores);
                let gate[t, j, f] = min(input_bias[e = i, p = 0] + sum[d] b * input[e = i, p = 0], limit);
                let up[t, j, f] = max(min(input_bias[e = i, p = 1] + sum[d] b * input[e = i, p = 1], limit), -limit);
                let z[t, j, f] = (up + 1) * gate * sigmoid(alpha * gate);
                y + sum[j] share * (down_bias[e = i] + sum[f] z * down[e = i])
            }
        }
        fn (tokens[t]) -> [t, v] {
            let y = layers(embed[v = tokens]);
            let logits[t, v] = sum[d] rms_norm[d](y, eps) * final_norm * head;
            logits
        }
    }
}
