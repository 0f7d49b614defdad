//! The text form: what is written is read back, and mistakes are told with their place.

use einfuse_graph::parse;

const ATTENTION: &str = "\
graph attention

axis t = tokens
axis s = positions
axis v = 5
axis d = 4
axis c = 2
axis n = 2
axis p = 2

input tokens[t]
weight embed[v, d] = \"embed\"
weight wk[n, c, d] = \"{l}.k\" | \"{l}.qkv\"[4 .. 8]
constant freq[c] = [1.0, -0.5]
state k.cache[s, n, c] within 3

x[t, d] = embed[v = tokens[t], d]
layers y from x as h order 0 1 0
  body
    k[t, n, c] = sum[d] h[t, d] * wk[n, c, d]
    append k.cache = k
    e[t, n, s] = (sum[c] k[t, n, c] * k.cache[s, n, c]) - abs(float(t - s)) * 0.5
    %1 = max[s] e[t, n, s] where s <= t && s > t - 3
    %2 = if s <= t && s > t - 3 then exp(e[t, n, s] - %1) else 0.0
    o[t, n, c] = (sum[s] %2 * k.cache[s, n, c]) / sum[s] %2
    z[t, d] = h[t, d] + sum[n, c] o[t, n, c] * wk[n, c, d]
    result z
  body
    r[t, d] = h[t, d] * rsqrt((sum[d] h[t, d] ^ 2.0) / 4.0 + -1.0)
    result r
end
best[t] = argmax[d] -y[t, d]

output best
";

#[test]
fn what_is_printed_is_read_back() {
    let graph = parse(ATTENTION).unwrap();
    let text = graph.to_string();
    assert_eq!(parse(&text).unwrap().to_string(), text);
}
