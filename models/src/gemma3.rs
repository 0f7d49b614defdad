//! Gemma 3.

use crate::blocks::{GeGlu, NormedAttention};

einfuse_macros::model! {
    /// Gemma 3, text (Gemma Team, 2025): scaled embeddings, norms before and behind each part, most layers with a window and
    /// rotary frequencies of their own, a norm on the queries and keys of each head.
    pub Gemma3 for "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads" else 8;
            n: size = "num_key_value_heads" else 4;
            c: size = "head_dim" else 256;
            f: size = "intermediate_size";
            v: size = "vocab_size" else 262208;
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            windows: crate::windows::Windows = {..};
            ropes: crate::rope::LayerRopes = {..};
            per_score: f32 = "query_pre_attn_scalar" else 256;
            positions: option<size> = "max_position_embeddings" else 131072;
            require "hidden_activation" == "gelu_pytorch_tanh";
            require "attention_bias" == false;
            require "attn_logit_softcapping" == false;
            require "final_logit_softcapping" == false;
            require "use_bidirectional_attention" == false;
            require "tie_word_embeddings" == true;
        }
        context = positions;
        axis g = h / n;                        // queries that share one key head
        axis r = c / 2;                        // rotary pairs

        weights "model." {
            embed[v, d]   = "embed_tokens.weight";
            final_norm[d] = "norm.weight";
        }

        layer l in layers {
            host freq[r] = ropes.of(windows.is_local(l, 6)).frequencies(r);
            host scale = ropes.of(windows.is_local(l, 6)).scale();
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight";
                block attend[d, n, g, c, r] -> [t, d] =
                    NormedAttention { centred: true, window: windows.alternating(l, 6, 4096) } in "self_attn.";
                attn_out[d] = "post_attention_layernorm.weight";
                ffn_norm[d] = "pre_feedforward_layernorm.weight";
                block feed[d, f] -> [t, d] = GeGlu in "mlp.";
                ffn_out[d] = "post_feedforward_layernorm.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * (1 + attn_norm);
                let m[t, d] = attend(a, freq, scale, per_score^-0.5, eps);
                let y[t, d] = x + rms_norm[d](m, eps) * (1 + attn_out);
                let b = rms_norm[d](y, eps) * (1 + ffn_norm);
                let z[t, d] = feed(b);
                y + rms_norm[d](z, eps) * (1 + ffn_out)
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = size(d)^0.5 * embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = sum[d] rms_norm[d](y, eps) * (1 + final_norm) * embed;
            logits
        }
    }
}
