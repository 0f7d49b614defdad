//! What many architectures have in common. A block says nothing of the norms around it and of what its result is added to.

einfuse_macros::block! {
    /// Attention with rotary positions (Su et al., 2021), where several queries share one key head (Ainslie et al., 2023).
    pub Attention[d, n, g, c, r] {
        config {
            /// Whether queries, keys and values have biases.
            biased: bool;
            /// Whether the result has one.
            out_biased: bool;
            /// How far back a token sees; to the first if it is missing.
            window: option<size>;
        }
        weights {
            wq[n, g, c, d] = "q_proj.weight";
            bq[n, g, c]    = "q_proj.bias" if biased else 0;
            wk[n, c, d]    = "k_proj.weight";
            bk[n, c]       = "k_proj.bias" if biased else 0;
            wv[n, c, d]    = "v_proj.weight";
            bv[n, c]       = "v_proj.bias" if biased else 0;
            wo[d, n, g, c] = "o_proj.weight";
            bo[d]          = "o_proj.bias" if out_biased else 0;
        }
        fn (a[t, d], freq[r], scale, narrow) -> [t, d] {
            let q[t, n, g, c] = rotate[c](bq + sum[d] a * wq, freq, scale);
            let k[t, n, c]    = rotate[c](bk + sum[d] a * wk, freq, scale);
            let u[t, n, c]    = bv + sum[d] a * wv;
            cache k, u over s within window;
            let p[t, n, g, s] = softmax[s](narrow * (sum[c] q * k) where s <= t);
            let o[t, n, g, c] = sum[s] p * u;
            bo + sum[n, g, c] o * wo
        }
    }
}

einfuse_macros::block! {
    /// As [`Attention`], with a norm on the queries and keys of each head (Henry et al., 2020).
    pub NormedAttention[d, n, g, c, r] {
        config {
            /// Whether the file has the gains of the norms less 1.
            centred: bool;
            /// How far back a token sees; to the first if it is missing.
            window: option<size>;
        }
        weights {
            wq[n, g, c, d] = "q_proj.weight";
            wk[n, c, d]    = "k_proj.weight";
            wv[n, c, d]    = "v_proj.weight";
            wo[d, n, g, c] = "o_proj.weight";
            q_norm[c]      = "q_norm.weight";
            k_norm[c]      = "k_norm.weight";
        }
        fn gain(norm) { if centred then 1 + norm else norm }
        fn (a[t, d], freq[r], scale, narrow, eps) -> [t, d] {
            let q[t, n, g, c] = rotate[c](rms_norm[c](sum[d] a * wq, eps) * gain(q_norm), freq, scale);
            let k[t, n, c]    = rotate[c](rms_norm[c](sum[d] a * wk, eps) * gain(k_norm), freq, scale);
            let u[t, n, c]    = sum[d] a * wv;
            cache k, u over s within window;
            let p[t, n, g, s] = softmax[s](narrow * (sum[c] q * k) where s <= t);
            let o[t, n, g, c] = sum[s] p * u;
            sum[n, g, c] o * wo
        }
    }
}

einfuse_macros::block! {
    /// Attention where keys and values of all heads come from one latent, which is what is cached (DeepSeek-AI, 2024). Only
    /// `y` elements of a query and of the one key that heads share have rotary positions.
    pub LatentAttention[d, h, c, y, u, k, z, r] {
        config {
            /// Whether queries come from a latent too.
            latent_queries: bool;
        }
        axis cy = c + y; axis zy = z + y;
        weights {
            q_in[k, d] = "q_a_proj.weight"; q_norm[k] = "q_a_layernorm.weight"; q_out[h, cy, k] = "q_b_proj.weight";
            q_all[h, cy, d] = "q_proj.weight"; wo[d, h, u] = "o_proj.weight";
            kv_in[zy, d] = "kv_a_proj_with_mqa.weight"; kv_norm[z] = "kv_a_layernorm.weight";
            key_out[h, c, z] = "kv_b_proj.weight"[0 .. c in h]; value_out[h, u, z] = "kv_b_proj.weight"[c .. c + u in h];
        }
        fn (a[t, d], freq[r], scale, narrow) -> [t, d] {
            let q[t, h, cy] = if latent_queries then sum[k] rms_norm[k](sum[d] a * q_in, 1e-6) * q_norm * q_out
                else sum[d] a * q_all;
            let near[t, h, y] = rotate_pairs[y](q[cy = size(c) + y], freq, scale);
            let kv[t, zy] = sum[d] a * kv_in;
            let latent[t, z] = rms_norm[z](kv[zy = z], 1e-6) * kv_norm;
            let key[t, y] = rotate_pairs[y](kv[zy = size(z) + y], freq, scale);
            cache latent, key over s;
            let far[s, h, c] = sum[z] latent * key_out;
            let value[s, h, u] = sum[z] latent * value_out;
            let p[t, h, s] = softmax[s](narrow * ((sum[c] q[cy = c] * far) + sum[y] near * key) where s <= t);
            let o[t, h, u] = sum[s] p * value;
            sum[h, u] o * wo
        }
    }
}

einfuse_macros::block! {
    /// A network gated by SiLU (Shazeer, 2020).
    pub SwiGlu[d, f] {
        weights { gate[f, d] = "gate_proj.weight"; up[f, d] = "up_proj.weight"; down[d, f] = "down_proj.weight"; }
        fn (b[t, d]) -> [t, d] { sum[f] silu(sum[d] b * gate) * (sum[d] b * up) * down }
    }
}

einfuse_macros::block! {
    /// A network gated by GELU (Shazeer, 2020), as `tanh` approximates it.
    pub GeGlu[d, f] {
        weights { gate[f, d] = "gate_proj.weight"; up[f, d] = "up_proj.weight"; down[d, f] = "down_proj.weight"; }
        fn (b[t, d]) -> [t, d] { sum[f] gelu_tanh(sum[d] b * gate) * (sum[d] b * up) * down }
    }
}

einfuse_macros::block! {
    /// Networks gated by SiLU, of which each token goes through the `j` that a router finds the likeliest, weighted by their
    /// probabilities (Shazeer et al., 2017).
    pub Experts[d, e, f, j] {
        config {
            /// Whether the probabilities are taken among the chosen, rather than among all.
            normed: bool;
            /// Whether the file has numbers in place of names for an expert's matrices.
            numbered: bool;
        }
        weights {
            router[e, d]  = "gate.weight";
            gate[e, f, d] = "experts.{e}.w1.weight" if numbered else "experts.{e}.gate_proj.weight" if !numbered;
            up[e, f, d]   = "experts.{e}.w3.weight" if numbered else "experts.{e}.up_proj.weight" if !numbered;
            down[e, d, f] = "experts.{e}.w2.weight" if numbered else "experts.{e}.down_proj.weight" if !numbered;
        }
        fn (b[t, d]) -> [t, d] {
            let (w, i)[t, j] = top[e -> j](softmax[e](sum[d] b * router));
            let share[t, j] = if normed then w / sum[j] w else w;
            let z[t, j, f] = silu(sum[d] b * gate[e = i]) * (sum[d] b * up[e = i]);
            sum[j] share * (sum[f] z * down[e = i])
        }
    }
}
