//! Gemma.

use crate::blocks::{Attention, GeGlu};

einfuse_macros::model! {
    /// Gemma (Gemma Team, 2024): as Llama, with scaled embeddings, and GELU in place of SiLU.
    pub Gemma for "GemmaForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            n: size = "num_key_value_heads";
            c: size = "head_dim" else 256;
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            eps: f32 = "rms_norm_eps" else 1e-6;
            rope: crate::rope::Rope = {..};
            positions: option<size> = "max_position_embeddings";
            require "hidden_activation" == "gelu_pytorch_tanh";
            require "hidden_act" == "gelu_pytorch_tanh" | "gelu";   // the latter is what older files say of the former
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

        layer l in layers {
            weights "model.layers.{l}." {
                attn_norm[d] = "input_layernorm.weight";
                block attend[d, n, g, c, r] -> [t, d] = Attention in "self_attn.";
                ffn_norm[d] = "post_attention_layernorm.weight";
                block feed[d, f] -> [t, d] = GeGlu in "mlp.";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * (1 + attn_norm);
                let y[t, d] = x + attend(a, freq, scale, size(c)^-0.5);
                let b = rms_norm[d](y, eps) * (1 + ffn_norm);
                y + feed(b)
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
