//! Gemma.

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
                attn_norm[d]   = "input_layernorm.weight";
                wq[n, g, c, d] = "self_attn.q_proj.weight";
                wk[n, c, d]    = "self_attn.k_proj.weight";
                wv[n, c, d]    = "self_attn.v_proj.weight";
                wo[d, n, g, c] = "self_attn.o_proj.weight";
                ffn_norm[d]    = "post_attention_layernorm.weight";
                gate[f, d]     = "mlp.gate_proj.weight";
                up[f, d]       = "mlp.up_proj.weight";
                down[d, f]     = "mlp.down_proj.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, eps) * (1 + attn_norm);
                let q[t, n, g, c] = rotate[c](sum[d] a * wq, freq, scale);
                let k[t, n, c]    = rotate[c](sum[d] a * wk, freq, scale);
                let u[t, n, c]    = sum[d] a * wv;
                cache k, u over s;
                let p[t, n, g, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, n, g, c] = sum[s] p * u;
                let y[t, d] = x + sum[n, g, c] o * wo;
                let b = rms_norm[d](y, eps) * (1 + ffn_norm);
                y + sum[f] gelu_tanh(sum[d] b * gate) * (sum[d] b * up) * down
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
