//! Uses of names whose declaration is a mistake: they are no further ones.

einfuse_macros::block! {
    pub Scaled[d] {
        weights { gain[d] = "gain"; }
        fn (x[t, d], factor) -> [t, d] { factor * x * gain }
    }
}

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; n: count = "depth"; e: f32 = "e"; e: bool = "e"; v: count = "v"; }
        axis r = if e then d else v;
        weights {
            embed[v, d] = "embed";
            w[d, r] = "w";
            w[r] = "wr";
        }
        axis w = 3;
        host r = 1.0;
        fn silu(x, y) { x * y }
        fn twice(x) { x + x }
        fn twice[a](x[a, ..]) { sum[a] x }
        layer d in n {
            weights "layers.{d}." {
                up[d, r] = "up";
                up[r] = "up";
                block scaled[d] -> [t, d] = Scaled in "a.";
                block scaled[r] -> [t, r] = Scaled in "b.";
            }
            fn (x[t, d]) -> [t, d] {
                let n[t, d] = x;
                cache n over r;
                scaled(x) + sum[r] up + n * d + sum[r] n[r = 0]
            }
        }
        layer l in n {
            fn (x[t, r]) -> [t, r] { x }
        }
        fn (tokens[t]) -> [t, d] {
            let v = embed[v = tokens];
            n(silu(v, twice[d](v))) * e + sum[w] w * v[d = 1]
        }
    }
}

fn main() {}
