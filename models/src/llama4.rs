//! Llama 4, text.

use crate::blocks::SwiGlu;

einfuse_macros::model! {
    /// Llama 4, text (Meta, 2025): most layers turn queries and keys by their positions and see their own chunk of them alone,
    /// the others see all without positions; each token goes through one expert that all share, and the likeliest others.
    pub Llama4 for "Llama4ForCausalLM", "Llama4ForConditionalGeneration" {
        config {
            d: size = "hidden_size"; h: size = "num_attention_heads"; n: size = "num_key_value_heads" else h;
            c: size = "head_dim" else d / h;
            f: size = "intermediate_size"; m: size = "intermediate_size_mlp";
            e: size = "num_local_experts"; j: size = "num_experts_per_tok";
            v: size = "vocab_size"; layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-5;
            sparse: crate::sparse::Sparse = {..};
            positioned: crate::positioned::Positioned = {..};
            chunk: size = "attention_chunk_size" else 8192; normed: bool = "use_qk_norm" else true;
            tuned: bool = "attn_temperature_tuning" else true;
            tuning: f32 = "attn_scale" else 0.1; floor: size = "floor_scale" else 8192;
            rope: crate::rope::Rope = {..}; tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu"; require "attention_bias" == false;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = rope.pairs(c);
        axis p = 2;                            // gate and up
        host freq[r] = rope.frequencies(r); host scale = rope.scale();
        weights "model." { embed[v, d] = "embed_tokens.weight"; final_norm[d] = "norm.weight"; }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn placed[c](x[c, ..], freq[r], scale) -> [c] {
            let y = rotate_pairs[c](x, freq, scale);
            if normed then rms_norm[c](y, eps) else y
        }
        fn experts(x, router, input, down) {
            let (score, i) = top[e -> j](sum[d] x * router);
            let w = sigmoid(score);
            let z = silu(w * (sum[d] x * input[e = i, p = 0])) * w * (sum[d] x * input[e = i, p = 1]);
            sum[j] (sum[f] z * down[e = i])
        }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight"; ffn_norm[d] = "post_attention_layernorm.weight";
                wq[n, g, c, d] = "self_attn.q_proj.weight"; wk[n, c, d] = "self_attn.k_proj.weight";
                wv[n, c, d] = "self_attn.v_proj.weight"; wo[d, n, g, c] = "self_attn.o_proj.weight";
                block feed[d, m] -> [t, d] = SwiGlu in "feed_forward.";
                block share[d, f] -> [t, d] = SwiGlu in "feed_forward.shared_expert.";
                router[e, d] = "feed_forward.router.weight";
                input[e, d, p, f] = "feed_forward.experts.gate_up_proj"; output[e, f, d] = "feed_forward.experts.down_proj";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * attn_norm;
                let q0[t, n, g, c] = sum[d] a * wq;
                let k0[t, n, c] = sum[d] a * wk;
                let warm[t, n, g, c] = if tuned then q0 * (1 + tuning * log(1 + div(t + 1, size(floor)))) else q0;
                let q[t, n, g, c] = if positioned.at(l) then placed[c](q0, freq, scale) else warm;
                let k[t, n, c] = if positioned.at(l) then placed[c](k0, freq, scale) else k0;
                let u[t, n, c] = sum[d] a * wv;
                cache k, u over s;
                let o[t, n, g, c] = if positioned.at(l)
                    then sum[s] softmax[s](size(c)^-0.5 * (sum[c] q * k)
                        where s <= t && div(s, size(chunk)) == div(t, size(chunk))) * u
                    else sum[s] softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t) * u;
                let y[t, d] = x + sum[n, g, c] o * wo;
                let b = rms_norm[d](y, eps) * ffn_norm;
                y + if sparse.has(l) then experts(b, router, input, output) + share(b)
                    else feed(b)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = layers(embed[v = tokens]);
            sum[d] rms_norm[d](x, eps) * final_norm * head
        }
    }
}
