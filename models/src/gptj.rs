//! GPT-J.

einfuse_macros::model! {
    /// GPT-J (Wang and Komatsuzaki, 2021): attention and feed-forward part beside each other behind one norm, rotary pairs of
    /// neighbours in a share of each head.
    pub GptJ for "GPTJForCausalLM" {
        config {
            d: size = "n_embd";
            h: size = "n_head";
            f: size = "n_inner" else 4 * d;
            v: size = "vocab_size";
            rotated: size = "rotary_dim" null d else 64;
            layers: count = "n_layer";
            eps: f32 = "layer_norm_epsilon" else 1e-5;
            rope: crate::rope::Rope = {..};
            tied: bool = "tie_word_embeddings" else false;
            positions: option<size> = "n_positions";
            require "activation_function" == "gelu_new" | "gelu_pytorch_tanh";
        }
        context = positions;
        axis c = d / h;                        // elements of a head
        axis r = rotated / 2;                  // rotary pairs
        host freq[r] = match rotated <= c {
            true => rope.frequencies(r),
            false => Err(format!("{rotated} elements are rotated (`rotary_dim`, `n_embd` where that is null), a head has {c}")),
        };

        weights "transformer." {
            embed[v, d]   = "wte.weight";
            final_gain[d] = "ln_f.weight";
            final_bias[d] = "ln_f.bias";
        }
        weights {
            head[v, d]   = "lm_head.weight" if !tied else embed;
            head_bias[v] = "lm_head.bias";
        }

        layer l in layers {
            weights "transformer.h.{l}." {
                gain[d]      = "ln_1.weight";
                bias[d]      = "ln_1.bias";
                wq[h, c, d]  = "attn.q_proj.weight";
                wk[h, c, d]  = "attn.k_proj.weight";
                wv[h, c, d]  = "attn.v_proj.weight";
                wo[d, h, c]  = "attn.out_proj.weight";
                up[f, d]     = "mlp.fc_in.weight";
                up_bias[f]   = "mlp.fc_in.bias";
                down[d, f]   = "mlp.fc_out.weight";
                down_bias[d] = "mlp.fc_out.bias";
            }
            fn (x[t, d]) -> [t, d] {
                let a = layer_norm[d](x, eps) * gain + bias;
                let q[t, h, c] = rotate_pairs[c](sum[d] a * wq, freq, 1);
                let k[t, h, c] = rotate_pairs[c](sum[d] a * wk, freq, 1);
                let u[t, h, c] = sum[d] a * wv;
                cache k, u over s;
                let p[t, h, s] = softmax[s](size(c)^-0.5 * (sum[c] q * k) where s <= t);
                let o[t, h, c] = sum[s] p * u;
                let y[t, d] = x + sum[h, c] o * wo;
                y + down_bias + sum[f] gelu_tanh(up_bias + sum[d] a * up) * down
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = head_bias + sum[d] (layer_norm[d](y, eps) * final_gain + final_bias) * head;
            logits
        }
    }
}
