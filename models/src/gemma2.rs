//! Gemma 2.

use crate::blocks::GeGlu;

einfuse_macros::model! {
    /// Gemma 2 (Gemma Team, 2024): scaled embeddings, norms before and behind each part, a window in every other layer, scores
    /// and logits bent so that they stay below a cap.
    pub Gemma2 for "Gemma2ForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads";
            c: size = "head_dim" else 256;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            windows: crate::windows::Windows = {..};
            rope: crate::rope::Rope = {..};
            per_score: f32 = "query_pre_attn_scalar" else 256;
            score_cap: f32 = "attn_logit_softcapping" null 0 else 50;
            logit_cap: f32 = "final_logit_softcapping" null 0 else 30;
            positions: option<size> = "max_position_embeddings";
            require "hidden_activation" == "gelu_pytorch_tanh";
            require "attention_bias" == false;
            require "use_bidirectional_attention" == false;
            require "tie_word_embeddings" == true;
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

        fn capped(x) { if score_cap > 0 then softcap(x, score_cap) else x }
        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d]   = "input_layernorm.weight";
                wq[n, g, c, d] = "self_attn.q_proj.weight";
                wk[n, c, d]    = "self_attn.k_proj.weight";
                wv[n, c, d]    = "self_attn.v_proj.weight";
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                attn_out[d]    = "post_attention_layernorm.weight";
                ffn_norm[d]    = "pre_feedforward_layernorm.weight";
                block feed[d, f] -> [t, d] = GeGlu in "mlp.";
                ffn_out[d]     = "post_feedforward_layernorm.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * (1 + attn_norm);
                let q[t, n, g, c] = rotate[c](sum[d] a * wq, freq, scale);
                let k[t, n, c]    = rotate[c](sum[d] a * wk, freq, scale);
                let u[t, n, c]    = sum[d] a * wv;
                cache k, u over s within windows.alternating(l, 2, 4096);
                let e = capped(per_score^-0.5 * sum[c] q * k);
                let p[t, n, g, s] = softmax[s](e where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + rms_norm[d](sum[n, g, c] o * wo, eps) * (1 + attn_out);
                let b = rms_norm[d](y, eps) * (1 + ffn_norm);
                let z[t, d] = feed(b);
                y + rms_norm[d](z, eps) * (1 + ffn_out)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = size(d)^0.5 * embed[v = tokens];
            let y = layers(x);
            let z = sum[d] rms_norm[d](y, eps) * (1 + final_norm) * embed;
            let logits[t, v] = if logit_cap > 0 then softcap(z, logit_cap) else z;
            logits
        }
    }
}
