//! Qwen2 with a mixture of experts.

einfuse_macros::model! {
    /// Qwen1.5 and Qwen2 MoE (Yang et al., 2024): as Qwen2, and in most layers each token goes through the experts that a router
    /// finds the likeliest, and through one that all share, as far as a gate lets it.
    pub Qwen2Moe for "Qwen2MoeForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size";
            m: size = "moe_intermediate_size";
            z: size = "shared_expert_intermediate_size";
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
            require "qkv_bias" == true;
            require "use_sliding_window" == false;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        axis one = 1;
        host freq[r] = rope.frequencies(r);
        host scale = rope.scale();
        weights "model." { embed[v, d] = "embed_tokens.weight"; final_norm[d] = "norm.weight"; }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn network[k](b, gate, up, down) { sum[k] silu(sum[d] b * gate) * (sum[d] b * up) * down }
        fn experts(b, router, gate, up, down) {
            let (w, i) = top[e -> j](softmax[e](sum[d] b * router));
            let all = sum[j] w * (sum[m] silu(sum[d] b * gate[e = i]) * (sum[d] b * up[e = i]) * down[e = i]);
            if normed then all / (sum[j] w) else all
        }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight"; ffn_norm[d] = "post_attention_layernorm.weight";
                wq[n, g, c, d] = "self_attn.q_proj.weight"; bq[n, g, c] = "self_attn.q_proj.bias";
                wk[n, c, d] = "self_attn.k_proj.weight"; bk[n, c] = "self_attn.k_proj.bias";
                wv[n, c, d] = "self_attn.v_proj.weight"; bv[n, c] = "self_attn.v_proj.bias";
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                gate[f, d] = "mlp.gate_proj.weight"; up[f, d] = "mlp.up_proj.weight";
                down[d, f] = "mlp.down_proj.weight";
                router[e, d] = "mlp.gate.weight";
                gates[e, m, d] = "mlp.experts.{e}.gate_proj.weight"; ups[e, m, d] = "mlp.experts.{e}.up_proj.weight";
                downs[e, d, m] = "mlp.experts.{e}.down_proj.weight";
                all_gate[z, d] = "mlp.shared_expert.gate_proj.weight"; all_up[z, d] = "mlp.shared_expert.up_proj.weight";
                all_down[d, z] = "mlp.shared_expert.down_proj.weight";
                let_in[one, d] = "mlp.shared_expert_gate.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let q[t, n, g, c] = rotate[c](bq + sum[d] a * wq, freq, scale);
                let k[t, n, c]    = rotate[c](bk + sum[d] a * wk, freq, scale);
                let u[t, n, c]    = bv + sum[d] a * wv;
                cache k, u over s;
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + sum[n, g, c] o * wo;
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + if !sparse.has(l) then network[f](b, gate, up, down) else experts(b, router, gates, ups, downs)
                    + sigmoid(sum[d] b * let_in[one = 0]) * network[z](b, all_gate, all_up, all_down)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let y = layers(embed[v = tokens]);
            let logits[t, v] = sum[d] rms_norm[d](y, eps) * final_norm * head;
            logits
        }
    }
}
