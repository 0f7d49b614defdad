//! DeepSeek V3.

use crate::blocks::{LatentAttention, SwiGlu};

einfuse_macros::model! {
    /// DeepSeek V3 and R1 (DeepSeek-AI, 2024): keys and values of all heads come from one latent, which is what is cached; each
    /// token goes through experts of the groups whose best two score highest, and through one that all share.
    pub DeepseekV3 for "DeepseekV3ForCausalLM" {
        config {
            d: size = "hidden_size"; h: size = "num_attention_heads";
            c: size = "qk_nope_head_dim"; y: size = "qk_rope_head_dim"; u: size = "v_head_dim";
            k: size = "q_lora_rank"; z: size = "kv_lora_rank";
            f: size = "intermediate_size"; n: size = "moe_intermediate_size";
            e: size = "n_routed_experts"; j: size = "num_experts_per_tok";
            a: size = "n_group" else 8; b: size = "topk_group" else 4;
            shared: count = "n_shared_experts"; first: count = "first_k_dense_replace" else 3;
            v: size = "vocab_size"; layers: count = "num_hidden_layers"; normed: bool = "norm_topk_prob" else true;
            weight: f32 = "routed_scaling_factor" else 2.5; rope: crate::rope::Rope = {..};
            tied: bool = "tie_word_embeddings" else false; eps: f32 = "rms_norm_eps" else 1e-6; positions: option<size> = "max_position_embeddings";
            require "hidden_act" == "silu"; require "attention_bias" == false; require "rope_interleave" == true;
            require "moe_layer_freq" == 1; require "scoring_func" == "sigmoid"; require "topk_method" == "noaux_tc";
        }
        context = positions;
        axis m = e / a;                        // experts of a group
        axis best = 2; axis o = n * shared;
        axis r = rope.pairs(y);
        host freq[r] = rope.frequencies(r); host scale = rope.scale();
        host narrow = rope.score_scale() / ((c + y) as f32).sqrt();
        weights "model." { embed[v, d] = "embed_tokens.weight"; final_norm[d] = "norm.weight"; }
        weights { head[v, d] = "lm_head.weight" if !tied else embed; }

        fn experts(x, router, bias, gate, up, down) {
            let score = sigmoid(sum[d] x * router);
            let biased = score + bias;
            let (most, at) = top[m -> best](biased);
            let (total, group) = top[a -> b](sum[best] most);
            let open = max[b] (if group == a then 1.0 else 0.0);
            let some = biased[a = div(e, size(m)), m = e % size(m)] where open[a = div(e, size(m))] > 0.5;
            let (chosen, i) = top[e -> j](some);
            let w = score[a = div(i, size(m)), m = i % size(m)];
            let all = sum[j] w * (sum[n] silu(sum[d] x * gate[e = i]) * (sum[d] x * up[e = i]) * down[e = i]);
            weight * (if normed then all / (1e-20 + sum[j] w) else all)
        }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight"; ffn_norm[d] = "post_attention_layernorm.weight";
                block attend[d, h, c, y, u, k, z, r] -> [t, d] =
                    LatentAttention { latent_queries: true } in "self_attn.";
                block feed[d, f] -> [t, d] = SwiGlu in "mlp.";
                block share[d, o] -> [t, d] = SwiGlu in "mlp.shared_experts.";
                router[a, m, d] = "mlp.gate.weight"; bias[a, m] = "mlp.gate.e_score_correction_bias";
                gates[e, n, d] = "mlp.experts.{e}.gate_proj.weight"; ups[e, n, d] = "mlp.experts.{e}.up_proj.weight";
                downs[e, d, n] = "mlp.experts.{e}.down_proj.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let mid[t, d] = x + attend(rms_norm[d](x, eps) * attn_norm, freq, scale, narrow);
                let i = rms_norm[d](mid, eps) * ffn_norm;
                mid + if l < first then feed(i) else experts(i, router, bias, gates, ups, downs) + share(i)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = layers(embed[v = tokens]);
            sum[d] rms_norm[d](x, eps) * final_norm * head
        }
    }
}
