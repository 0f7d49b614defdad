//! What declarations mean: small models, built from a config and run by the interpreter.

use einfuse_graph::{Graph, Interpreter, Kind, ModelError, Tensor, verify};
use einfuse_macros::{block, model};
use serde_json::{Value, json};

/// Weights whose elements count up from 1 in each tensor, plus 100 for each layer.
fn counting(graph: &Graph) -> impl Fn(&Tensor, Option<usize>) -> Result<Vec<f32>, String> {
    let sizes: Vec<(String, usize)> = graph
        .tensors
        .iter()
        .map(|t| (t.name.clone(), t.axes.iter().filter_map(|&a| graph.size(a)).product()))
        .collect();
    move |tensor, layer| {
        let size = sizes.iter().find(|s| s.0 == tensor.name).map_or(0, |s| s.1);
        Ok((1..=size).map(|i| (i + 100 * layer.unwrap_or(0)) as f32).collect())
    }
}

fn run(graph: &Graph, steps: &[&[i64]]) -> Vec<f64> {
    verify(graph).unwrap();
    let weights = counting(graph);
    let mut interpreter = Interpreter::new(graph, &weights).unwrap();
    steps.iter().flat_map(|ids| interpreter.step(&[("tokens", ids)]).unwrap().output).collect()
}

fn places(graph: &Graph, name: &str) -> Vec<String> {
    let tensor = graph.tensors.iter().find(|t| t.name == name).unwrap();
    match &tensor.kind {
        Kind::Weight(places) => {
            let rows = |r: &std::ops::Range<usize>| format!("[{}..{}]", r.start, r.end);
            places.iter().map(|p| format!("{}{}", p.name, p.rows.as_ref().map_or(String::new(), rows))).collect()
        }
        _ => Vec::new(),
    }
}

mod expressions {
    use super::*;

    model! {
        /// Every kind of expression, one after another.
        Expressions for "Expressions" {
            config { d: size = "d"; v: size = "v"; e: size = "e"; scale: f32 = "scale" else 2; }
            axis o = alias d;
            weights { table[v, e] = "table"; square[d, o] = "square"; gains[d] = "gains"; }
            fn twice(x) { 2 * x }
            fn dot[a](x[a, ..], y[a, ..]) -> [] { sum[a] x * y }
            fn shifted[a](x[a, ..]) -> [a] { x[a = (a + 1) % size(a)] - x }
            fn (tokens[t]) -> [t, e] {
                let g = gains;                                               // 1, 2, 3 along d
                let trace = sum[d] square[o = d] * g;                        // 1·1 + 5·2 + 9·3 = 38
                let largest = (max[d] g) + (min[d] g) + mean[d] g;           // 3 + 1 + 2
                let some = sum[d] (g where d >= 1 && !(d == 2));             // 2
                let at = argmax[d] (g where d < 2);                          // 1
                let chosen = sum[d] if d == at then g ^ 2 else 0;            // 4
                let powers = size(d) ^ 2 + size(d) ^ -1 * 3 - -1;            // 9 + 1 + 1
                let whole = div(7, 2) * 7 % 4;                               // 21 % 4 = 1
                let spelled = dot[d](g[d], shifted[d](twice(g)));            // 2·(1·1 + 2·1 + 3·(-2)) = -6
                let of = scale * exp(log(2.0)) + max(1, at) + abs(-1.5);     // 4 + 1 + 1.5
                let all = trace + largest + some + chosen + powers + whole + spelled + of;
                let pairs[t, e] = table[v = tokens] + (if e == 0 then t else all);
                pairs
            }
        }
    }

    #[test]
    fn expressions_mean_what_they_say() {
        let config = ExpressionsConfig::from_json(&json!({"d": 3, "v": 2, "e": 2})).unwrap();
        let graph = Expressions::graph(&config).unwrap();
        let all = 38.0 + 6.0 + 2.0 + 4.0 + 11.0 + 1.0 - 6.0 + 6.5;
        let expected = [3.0, 4.0 + all, 1.0 + 1.0, 2.0 + all, 3.0 + 2.0, 4.0 + all];
        let found = run(&graph, &[&[1], &[0, 1]]);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(found.len(), expected.len());
    }
}

mod prelude {
    use super::*;

    model! {
        Prelude for "Prelude" {
            config { d: size = "d"; v: size = "v"; i: size = "i"; }
            axis r = d / 2;
            axis half = 1;                     // the prelude has a `let` of this name
            host freq[r] = vec![0.5f32; d / 2];
            host part[half] = vec![0.5f32];
            host scale = 3.0f32;
            weights { table[v, d] = "table"; }
            fn (tokens[t]) -> [t, d, i] {
                let x = table[v = tokens] - 2.5;
                let rms = rms_norm[d](x, 0);
                let normal = layer_norm[d](x, 0);
                let soft = softmax[d](x where d > 0);
                let turned = rotate[d](2 * (x / 2), freq, 1);
                let again = rotate[d](turned, freq, 1);
                let partly = rotate[d](x + 0, part, scale);
                let pairs = rotate_pairs[d](x + 0, freq, 1);
                let pair = rotate_pairs[d](x + 0, part, scale);
                let y = if i == 0 then rms else if i == 1 then normal else if i == 2 then soft else if i == 3 then turned
                    else if i == 4 then silu(x) else if i == 5 then gelu(x) else if i == 6 then gelu_tanh(x)
                    else if i == 7 then relu(x) else if i == 8 then softcap(x, 2)
                    else if i == 9 then sigmoid(x) else if i == 10 then again else if i == 11 then partly
                    else if i == 12 then pairs else pair;
                let out[t, d, i] = y;
                out
            }
        }
    }

    #[test]
    fn functions_of_the_prelude() {
        let config = PreludeConfig::from_json(&json!({"d": 4, "v": 3, "i": 14})).unwrap();
        let graph = Prelude::graph(&config).unwrap();
        let found = run(&graph, &[&[2], &[0]]);
        // Of the second token, at position 1: x = -1.5, -0.5, 0.5, 1.5.
        let x = [-1.5f64, -0.5, 0.5, 1.5];
        let second = |d: usize, i: usize| found[56 + 14 * d + i];
        let (cos, sin) = (0.5f64.cos(), 0.5f64.sin());
        let (cos_twice, sin_twice) = (1f64.cos(), 1f64.sin());
        let weights: f64 = x[1..].iter().map(|x| x.exp()).sum();
        for d in 0..4 {
            let x_d = x[d];
            let other = if d < 2 { -x[d + 2] } else { x[d - 2] };
            let neighbour = if d % 2 == 0 { -x[d + 1] } else { x[d - 1] };
            let cubic = (2.0 / std::f64::consts::PI).sqrt() * (x_d + 0.044715 * x_d.powi(3));
            let expected = [
                x_d / 1.25f64.sqrt(),
                x_d / 1.25f64.sqrt(),
                if d == 0 { 0.0 } else { x_d.exp() / weights },
                x_d * cos + other * sin,
                x_d / (1.0 + (-x_d).exp()),
                0.5 * x_d * (1.0 + einfuse_graph::erf(x_d / 2f64.sqrt())),
                0.5 * x_d * (1.0 + cubic.tanh()),
                x_d.max(0.0),
                2.0 * (x_d / 2.0).tanh(),
                1.0 / (1.0 + (-x_d).exp()),
                x_d * cos_twice + other * sin_twice,
                match d {
                    0 => 3.0 * (x[0] * cos - x[1] * sin),
                    1 => 3.0 * (x[1] * cos + x[0] * sin),
                    _ => x_d,
                },
                x_d * cos + neighbour * sin,
                if d < 2 { 3.0 * (x_d * cos + neighbour * sin) } else { x_d },
            ];
            for (i, expected) in expected.into_iter().enumerate() {
                assert!((second(d, i) - expected).abs() < 1e-9, "{i}: {} {expected}", second(d, i));
            }
        }
    }

    #[test]
    fn what_a_function_indexes_is_an_equation_of_its_own() {
        let config = PreludeConfig::from_json(&json!({"d": 4, "v": 3, "i": 1})).unwrap();
        let graph = Prelude::graph(&config).unwrap();
        assert!(graph.tensors.iter().any(|t| t.name == "turned.x"));
        assert!(graph.tensors.iter().all(|t| t.name != "again.x"), "`turned` is a tensor already");
    }
}

mod layers {
    use super::*;

    model! {
        Layers for "Layers" {
            config {
                d: size = "d";
                v: size = "v";
                depth: count = "depth";
                dense: count = "dense" else 0;
                window: option<size> = "window";
            }
            weights { table[v, d] = "table"; }
            layer l in depth {
                weights "h.{l}." { a[d] = "a"; b[d] = "b"; }
                fn first(x[t, d]) -> [t, d] { x + a }
                fn odd(x[t, d]) -> [t, d] { x + a * b }
                fn seen(x[t, d]) -> [t, d] {
                    let k[t, d] = 1.0 + 0 * x;
                    cache k over s within window;
                    x + sum[s] (k where s <= t)
                }
                if l < dense { first } else { match l % 4 { 1 | 3 => odd, _ => seen } }
            }
            fn (tokens[t]) -> [t, d] {
                let x[t, d] = 0 * table[v = tokens];
                depth(x)
            }
        }
    }

    fn graph(config: Value) -> Result<Graph, ModelError> {
        Layers::graph(&LayersConfig::from_json(&config)?)
    }

    #[test]
    fn layers_have_the_bodies_that_the_config_says() {
        let graph = graph(json!({"d": 1, "v": 2, "depth": 3, "dense": 1})).unwrap();
        // Layer 0 adds a = 1, layer 1 a·b = 101·101, layer 2 the number of positions up to the token's.
        let base = 1.0 + 101.0 * 101.0;
        assert_eq!(run(&graph, &[&[0, 1], &[1]]), [base + 1.0, base + 2.0, base + 3.0]);
    }

    #[test]
    fn a_window_hides_what_is_behind_it() {
        let graph = graph(json!({"d": 1, "v": 2, "depth": 1, "window": 2})).unwrap();
        assert_eq!(run(&graph, &[&[0, 1, 0], &[1]]), [1.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_body_that_no_layer_has_is_not_built() {
        let graph = graph(json!({"d": 1, "v": 2, "depth": 2, "dense": 2})).unwrap();
        assert!(graph.tensors.iter().all(|t| t.name != "b" && t.name != "k"));
        assert_eq!(run(&graph, &[&[0]]), [1.0 + 101.0]);
    }

    #[test]
    fn a_wrong_number_of_layers_names_its_key() {
        for depth in [0, 100_000] {
            let error = graph(json!({"d": 1, "v": 2, "depth": depth})).unwrap_err().to_string();
            assert_eq!(error, format!("the config's `depth`: expected 1 to 10000 layers, found {depth}"));
        }
    }
}

mod weights {
    use super::*;

    model! {
        Weights for "Weights", "Other" {
            config { d: size = "d"; v: size = "v"; tied: bool = "tied"; wide: bool = "wide" else false; }
            axis p = 2 * d;
            axis d2 = alias d;
            weights "model." else "" {
                embed[v, d] = "embed";
                first[d, d2] = "both"[0 .. d];
                second[d, d2] = "both"[d .. p];
                either[p] = "wide" if wide else "narrow" else "old";
            }
            weights { head[v, d] = "head" if !tied else embed; }
            context = 2 * d;
            fn (tokens[t]) -> [t, v] {
                let x = embed[v = tokens];
                let y[t, p] = either * sum[d, d2] x * (first + second);
                sum[d, p] x * y * head
            }
        }
    }

    fn graph(config: Value) -> Graph {
        Weights::graph(&WeightsConfig::from_json(&config).unwrap()).unwrap()
    }

    #[test]
    fn weights_come_from_the_places_that_the_config_says() {
        let g = graph(json!({"d": 3, "v": 2, "tied": false}));
        assert_eq!(places(&g, "embed"), ["model.embed", "embed"]);
        assert_eq!(places(&g, "first"), ["model.both[0..3]", "both[0..3]"]);
        assert_eq!(places(&g, "second"), ["model.both[3..6]", "both[3..6]"]);
        assert_eq!(places(&g, "either"), ["model.narrow", "narrow", "model.old", "old"]);
        assert_eq!(places(&g, "head"), ["head"]);
        let g = graph(json!({"d": 3, "v": 2, "tied": true, "wide": true}));
        assert_eq!(places(&g, "either").len(), 6);
        assert_eq!(places(&g, "either")[..2], ["model.wide", "wide"]);
        assert!(g.tensors.iter().all(|t| t.name != "head"), "a tied head is the embedding");
        verify(&g).unwrap();
    }

    #[test]
    fn the_declaration_of_a_tensor_is_known() {
        let g = graph(json!({"d": 3, "v": 2, "tied": true}));
        let location = |name: &str| g.tensors.iter().find(|t| t.name == name).unwrap().location.clone().unwrap();
        let (embed, second) = (location("embed"), location("second"));
        assert!(embed.file.ends_with("language.rs"));
        assert_eq!((second.line, second.column), (embed.line + 2, embed.column));
    }

    model! {
        Renamed for "Renamed" {
            config { d: size = "d"; v: size = "v"; }
            weights { embed[v, d] = "embed"; }
            fn (tokens[t]) -> [t, v, d] {
                let all = embed;
                let ids = tokens;
                let out[t, v, d] = all + 0 * ids;
                let last = out;
                last
            }
        }
    }

    model! {
        Bare for "Bare" {
            config { d: size = "d"; v: size = "v"; }
            weights { embed[v, d] = "embed"; }
            fn (tokens[t]) -> [d, t] { embed[v = tokens] }
        }
    }

    model! {
        Parts for "Parts" {
            config { d: size = "d"; v: size = "v"; from: count = "from"; }
            axis j = 3;
            weights { embed[v, d] = "embed"[from .. v]; w[j] = "w"; }
            fn (tokens[t]) -> [t, d] {
                let x = embed[v = tokens];
                let y[t, d] = x * w[j = 0];
                y * w[j = 3]
            }
        }
    }

    #[test]
    fn what_the_config_makes_wrong_is_an_error_on_its_line() {
        let error = |from: usize| {
            let config = PartsConfig::from_json(&json!({"d": 2, "v": 2, "from": from})).unwrap();
            Parts::graph(&config).unwrap_err().to_string()
        };
        assert_eq!(error(2), "weight `embed`: the part 2 .. 2 of a tensor is empty");
        let line = include_str!("language.rs").lines().position(|l| l.trim() == "y * w[j = 3]").unwrap() + 1;
        let expected = "`w[j = 3]`: the coordinates of `j` are 0 to 2 (dsl/macros/tests/language.rs:";
        assert!(error(0).starts_with(&format!("{expected}{line}:")), "{}", error(0));
    }

    #[deny(warnings)]
    mod nothing {
        einfuse_macros::model! {
            /// A model without a config.
            pub(super) Nothing for "Nothing" {
                fn (tokens[t]) -> [t] { tokens + t }
            }
        }
    }

    #[test]
    fn a_model_can_do_without_a_config() {
        let config = nothing::NothingConfig::from_json(&json!({})).unwrap();
        assert_eq!(run(&nothing::Nothing::graph(&config).unwrap(), &[&[5], &[5]]), [5.0, 6.0]);
    }

    #[test]
    fn a_result_is_an_equation() {
        let config = json!({"d": 2, "v": 1});
        let renamed = Renamed::graph(&RenamedConfig::from_json(&config).unwrap()).unwrap();
        assert_eq!(renamed.tensor(renamed.output).name, "out");
        assert_eq!(run(&renamed, &[&[0]]), [1.0, 2.0]);
        let bare = Bare::graph(&BareConfig::from_json(&config).unwrap()).unwrap();
        assert_eq!((bare.tensor(bare.output).name.as_str(), bare.axes_of(bare.output).as_str()), ("output", "[d, t]"));
        assert_eq!(run(&bare, &[&[0, 0]]), [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn a_model_says_what_it_is_for() {
        assert_eq!(Weights::ARCHITECTURES, ["Weights", "Other"]);
        let config = WeightsConfig::from_json(&json!({"d": 3, "v": 2, "tied": true})).unwrap();
        assert_eq!(Weights::context(&config).unwrap(), Some(6));
    }
}

mod decided_by_the_config {
    use super::*;

    /// What the number of a layer decides.
    #[derive(Clone, Debug, serde::Deserialize)]
    pub(crate) struct Rule {
        period: usize,
        factor: Option<f32>,
    }

    impl Rule {
        fn window(&self, layer: usize) -> Option<usize> {
            layer.is_multiple_of(self.period).then_some(1)
        }

        fn extent(&self, d: usize) -> usize {
            d * self.period
        }

        fn is_first(&self, layer: usize) -> bool {
            layer == 0
        }

        fn factor(&self) -> f32 {
            self.factor.unwrap_or(1.0)
        }

        fn numbers(&self, layer: usize, n: usize) -> Vec<f32> {
            vec![(layer % self.period) as f32; n]
        }
    }

    model! {
        Decided for "Decided" {
            config {
                d: size = "d";
                v: size = "v";
                biased: bool = "biased" else false;
                twice: bool = "twice" else false;
                rule: Rule = {..};
            }
            axis e = if twice then rule.extent(d) else 2 * d;
            host factor = rule.factor();
            weights { table[v, d] = "table"; wide[e] = "wide"; bias[d] = "bias" if biased else 0.5;
                part[e, d] = "parts"[d .. 2 * d in e];
            }
            fn (tokens[t]) -> [t, d] {
                let x = factor * table[v = tokens] + bias;
                if twice && !biased then 2 * x else x * sum[e] wide * part / part
            }
        }
    }

    #[test]
    fn the_config_decides_sides_numbers_and_sizes() {
        let found = |config| run(&Decided::graph(&DecidedConfig::from_json(&config).unwrap()).unwrap(), &[&[1]]);
        assert_eq!(found(json!({"d": 1, "v": 2, "period": 2, "twice": true})), [2.0 * 2.5]);
        assert_eq!(found(json!({"d": 1, "v": 2, "period": 2})), [2.5 * 3.0]);
        assert_eq!(
            found(json!({"d": 1, "v": 2, "period": 2, "factor": 10, "twice": true, "biased": true})),
            [21.0 * 3.0]
        );
        let config = DecidedConfig::from_json(&json!({"d": 3, "v": 2, "period": 2})).unwrap();
        let graph = Decided::graph(&config).unwrap();
        let part = graph.tensors.iter().find(|tensor| tensor.name == "part").unwrap();
        let Kind::Weight(places) = &part.kind else { panic!("a weight") };
        assert_eq!((places[0].rows.clone(), places[0].each), (Some(3..6), true));
        let text = graph.to_string();
        assert!(text.contains("\"parts\"[3 .. 6 each]"), "{text}");
        assert_eq!(einfuse_graph::parse(&text).unwrap().to_string(), text);
        let error = DecidedConfig::from_json(&json!({"d": 1, "v": 2, "period": "x"})).unwrap_err().to_string();
        assert_eq!(error, "the config: `period`: invalid type: string \"x\", expected usize");
    }

    model! {
        Layered for "Layered" {
            config { d: size = "d"; v: size = "v"; depth: count = "depth"; biased: bool = "biased" else false; rule: Rule = {..}; }
            weights { table[v, d] = "table"; }
            layer l in depth {
                host number[d] = rule.numbers(l, d);
                weights "h.{l}." { bias[d] = "bias" if biased else 0; gain[d] = "gain" if biased else 1.0; }
                fn (x[t, d]) -> [t, d] {
                    let k[t, d] = 1.0 + 0 * x;
                    cache k over s within rule.window(l);
                    let y = if rule.is_first(l) then 2 * x else x * gain + bias;
                    y + number * sum[s] (k where s <= t)
                }
            }
            fn (tokens[t]) -> [t, d] {
                let x = table[v = tokens];
                depth(x)
            }
        }
    }

    #[test]
    fn the_number_of_a_layer_decides_constants_windows_and_sides() {
        let config = json!({"d": 1, "v": 2, "depth": 5, "period": 2});
        let graph = Layered::graph(&LayeredConfig::from_json(&config).unwrap()).unwrap();
        let einfuse_graph::Node::Layers(layers) = &graph.nodes[1] else { panic!("layers") };
        // The first doubles; of the others those with a window are alike, and those without.
        assert_eq!(layers.order, [0, 1, 2, 1, 2]);
        // Two layers see all positions, of which there are 1 and then 2; their constant is 1, that of the others 0.
        assert_eq!(run(&graph, &[&[0, 1]]), [2.0 + 2.0, 4.0 + 4.0]);
        assert!(graph.tensors.iter().all(|t| !matches!(t.kind, Kind::Weight(_)) || t.name == "table"));

        let biased = json!({"d": 1, "v": 2, "depth": 2, "period": 2, "biased": true});
        let graph = Layered::graph(&LayeredConfig::from_json(&biased).unwrap()).unwrap();
        // gain and bias of layer 1 are 101
        assert_eq!(run(&graph, &[&[0]]), [2.0 * 101.0 + 101.0 + 1.0]);
    }
}

mod config {
    use super::*;

    /// A value that is read from two keys.
    #[derive(Clone, Debug, serde::Deserialize)]
    pub(crate) struct Pair {
        a: u32,
        b: Option<u32>,
    }

    impl Pair {
        fn values(&self, n: usize) -> Result<Vec<f32>, String> {
            let b = self.b.ok_or("no `b`")?;
            Ok(vec![(self.a + b) as f32; n])
        }
    }

    model! {
        Keys for "Keys" {
            config {
                /// The width.
                d: size = "d", "width";
                h: size = "h" else 2;
                v: size = "v" else 4 * d;
                c: size = "c" else d / h;
                eps: f32 = "eps" else 1e-6;
                name: String = "name" else "plain";
                pair: Pair = {"a", "b"};
                times: count = "times" else 1;
                require "act" == "silu" | "swish";
                require "bias" == false;
                require "width_again" == d;
                require "theta" == 1;
            }
            axis g = d / h;
            host given[c] = pair.values(c + name.len() - name.len());
            host factor = times as f32 * eps;
            weights { table[v, g] = "table"; }
            fn (tokens[t]) -> [t, g] { table[v = tokens] + factor * sum[c] given }
        }
    }

    fn good() -> Value {
        json!({"width": 8, "a": 1, "b": 2, "act": "swish", "bias": false, "width_again": 8.0, "theta": 1.0, "other": [1]})
    }

    fn changed(changes: Value) -> Value {
        let mut config = good();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    #[test]
    fn defaults_are_taken() {
        let config: KeysConfig = serde_json::from_value(good()).unwrap();
        assert_eq!((config.d, config.h, config.v, config.c), (8, 2, 32, 4));
        assert_eq!((config.eps, config.name.as_str()), (1e-6, "plain"));
        let graph = Keys::graph(&config).unwrap();
        verify(&graph).unwrap();
        assert!(graph.axes.iter().all(|a| a.name != "h"), "a size that indexes nothing is no axis of the graph");
        let config = KeysConfig::from_json(&changed(json!({"c": 2, "h": null, "d": 4, "width_again": 4}))).unwrap();
        assert_eq!((config.d, config.h, config.c), (4, 2, 2));
    }

    #[test]
    fn errors_name_the_key() {
        let cases = [
            (json!([]), "the config of Keys is not an object of keys and values"),
            (json!({"a": 1}), "the config has no `d` or `width`, which Keys needs"),
            (changed(json!({"width": "8"})), "the config's `width`: expected a size from 1 to 16777216, found \"8\""),
            (changed(json!({"width": 0})), "the config's `width`: expected a size from 1 to 16777216, found 0"),
            (changed(json!({"width": -8})), "the config's `width`: expected a size from 1 to 16777216, found -8"),
            (changed(json!({"width": 8.5})), "the config's `width`: expected a size from 1 to 16777216, found 8.5"),
            (changed(json!({"width": u64::MAX})), "found 18446744073709551615"),
            (changed(json!({"eps": "x"})), "the config's `eps`: expected a number, found \"x\""),
            (changed(json!({"eps": 1e300})), "the config's `eps`: expected a number, found 1e+300"),
            (changed(json!({"name": 1})), "the config's `name`: invalid type: integer `1`, expected a string"),
            (changed(json!({"a": "x"})), "the config's `a` or `b`: `a`: invalid type: string \"x\", expected u32"),
            (
                changed(json!({"act": "gelu"})),
                "the config's `act` is \"gelu\", Keys supports only \"silu\" or \"swish\"",
            ),
            (changed(json!({"bias": true})), "the config's `bias` is true, Keys supports only false"),
            (changed(json!({"width_again": 7})), "the config's `width_again` is 7, Keys supports only 8"),
            (changed(json!({"h": 3})), "the config has no `c`, and its default d / h: 8 / 3 is not a whole number"),
            (changed(json!({"h": 3, "c": 4})), "axis `g` = d / h: 8 / 3 is not a whole number"),
            (changed(json!({"b": null})), "the constant `given`: no `b`"),
            (changed(json!({"width": 16777216, "width_again": 16777216})), "67108864 is no size from 1 to 16777216"),
        ];
        for (config, expected) in cases {
            let error = KeysConfig::from_json(&config).and_then(|c| Keys::graph(&c)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\n{expected}");
        }
    }
}

/// A facade puts the path of `einfuse-graph` in front, so that its users depend on it alone.
mod facade {
    pub(crate) use einfuse_graph as graph;

    macro_rules! facade_model {
        ($($tokens:tt)*) => { einfuse_macros::model! { crate = super::facade::graph; $($tokens)* } };
    }

    pub(crate) use facade_model;
}

mod through_a_facade {
    super::facade::facade_model! {
        Small for "Small" {
            config { d: size = "d"; v: size = "v"; config2: size = "e"; }
            axis r = d / 2;
            host freq[r] = vec![1.0; r];
            weights { table[v, d] = "table"; w[config2, d] = "w"; }
            fn (tokens[t]) -> [t, config2] {
                let x = rotate[d](2 * table[v = tokens], freq, 1);
                sum[d] x * w
            }
        }
    }

    #[test]
    fn names_are_found_through_a_facade() {
        let config = SmallConfig::from_json(&serde_json::json!({"d": 2, "v": 2, "e": 1})).unwrap();
        let graph = Small::graph(&config).unwrap();
        assert_eq!(super::run(&graph, &[&[0]]), [2.0 * (1.0 + 2.0 * 2.0)]);
    }
}

mod nulls {
    use super::*;

    model! {
        /// A value of which null means another than a missing key.
        Nulls for "Nulls" {
            config {
                d: size = "d"; v: size = "v";
                cap: f32 = "cap", "old_cap" null 0 else 3;
                width: size = "width" null d else v;
                depth: count = "depth" null 1;
                most: option<size> = "most" null 7 else 8;
            }
            context = most;
            weights { table[v, d] = "table"; }
            axis w = width + depth;
            fn (tokens[t]) -> [t] { cap + size(w) * (0 * sum[d] table[v = tokens]) }
        }
    }

    #[test]
    fn null_is_missing_or_what_it_is_said_to_mean() {
        let read = |more: Value| {
            let mut config = json!({"d": 2, "v": 5, "depth": 4});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            NullsConfig::from_json(&config).map(|config| (config.cap, config.width, config.depth))
        };
        assert_eq!(read(json!({})), Ok((3.0, 5, 4)));
        assert_eq!(read(json!({"cap": null, "width": null, "depth": null})), Ok((0.0, 2, 1)));
        assert_eq!(read(json!({"cap": null, "old_cap": 7, "width": 3})), Ok((7.0, 3, 4)));
        let error = NullsConfig::from_json(&json!({"d": 2, "v": 5})).unwrap_err().to_string();
        assert_eq!(error, "the config has no `depth`, which Nulls needs");
        let graph = Nulls::graph(&NullsConfig::from_json(&json!({"d": 2, "v": 5, "depth": null})).unwrap()).unwrap();
        assert_eq!(run(&graph, &[&[1]]), [3.0]);
    }

    model! {
        /// A size that there need not be.
        Least for "Least" {
            config { d: size = "d"; v: size = "v"; most: option<size> = "most" else 6; }
            context = most;
            weights { table[v, d] = "table"; }
            fn (tokens[t]) -> [t] { sum[d] table[v = tokens] }
        }
    }

    #[test]
    fn null_is_no_size() {
        let read = |most: Option<Value>| {
            let mut config = json!({"d": 2, "v": 5, "depth": 4});
            if let Some(most) = most {
                config["most"] = most;
            }
            let least = LeastConfig::from_json(&config).unwrap();
            [Least::context(&least), Nulls::context(&NullsConfig::from_json(&config).unwrap())].map(Result::unwrap)
        };
        assert_eq!(read(None), [Some(6), Some(8)]);
        assert_eq!(read(Some(json!(null))), [None, Some(7)]);
        assert_eq!(read(Some(json!(3))), [Some(3); 2]);
    }
}

mod blocks {
    use super::*;
    use einfuse_graph::{Binary, Builder, Node, Use};

    /// Blocks stand in a module of their own, as those of another crate do.
    pub(crate) mod shared {
        einfuse_macros::block! {
            /// A gain.
            pub(crate) Gain[d] {
                config { doubled: bool; }
                weights { gain[d] = "gain"; }
                fn (x[t, d]) -> [t, d] { if doubled then 2 * gain * x else gain * x }
            }
        }

        einfuse_macros::block! {
            /// Every part that a block can have.
            pub(crate) Mixer[d, e] {
                config {
                    /// Whether there is a bias.
                    biased: bool;
                    window: option<size>;
                    times: count;
                    least: f32;
                }
                axis p = 2 * e;
                host part[p] = (0..p).map(|_| 0.5).collect::<Vec<f32>>();
                weights "in." {
                    block inner[d] -> [t, d] = Gain { doubled: times > 1 } in "gain.";
                    left[e, d] = "both"[0 .. e]; right[e, d] = "both"[e .. 2 * e] else "right";
                }
                weights { bias[e] = "bias" if biased else 0; }
                fn least_of(x) { if least > 0 then max(x, least) else x }
                fn (x[t, d], factor) -> [t, d] {
                    let k[t, e] = least_of(bias + sum[d] inner(x) * left);
                    cache k over s within window;
                    let seen[t, e] = times * sum[s] (k where s <= t);
                    factor * (sum[e] seen * right) + 0 * sum[p] part
                }
            }
        }
    }
    use shared::{Gain, Mixer};

    model! {
        Mixed for "Mixed" {
            config {
                d: size = "d"; e: size = "e"; v: size = "v"; depth: count = "depth";
                biased: bool = "biased" else false; window: option<size> = "window"; dense: count = "dense" else 0;
            }
            weights { table[v, d] = "table"; }
            layer l in depth {
                weights "h.{l}." else "g.{l}." {
                    block mix[d, e] -> [t, d] =
                        Mixer { biased, window, times: if l < 2 then 2 else 3, least: 0.5 } in "mix.";
                    block plain[d] -> [t, d] = shared::Gain in "plain.";
                }
                fn (x[t, d]) -> [t, d] {
                    let y = x + 1;
                    if l < dense then plain(y) else mix(2 * y, 1)
                }
            }
            fn (tokens[t]) -> [t, d] {
                let x = table[v = tokens];
                depth(x)
            }
        }
    }

    model! {
        /// What `Mixed` is, written out.
        Written for "Written" {
            config {
                d: size = "d"; e: size = "e"; v: size = "v"; depth: count = "depth";
                biased: bool = "biased" else false; window: option<size> = "window"; dense: count = "dense" else 0;
            }
            weights { table[v, d] = "table"; }
            layer l in depth {
                weights "h.{l}." {
                    left[e, d] = "left"; right[e, d] = "right"; bias[e] = "bias" if biased else 0; gain[d] = "gain";
                }
                fn plain(x[t, d]) -> [t, d] { gain * (x + 1) }
                fn mix(x[t, d]) -> [t, d] {
                    let k[t, e] = max(bias + sum[d] 2 * gain * 2 * (x + 1) * left, 0.5);
                    cache k over s within window;
                    let seen = if l < 2 then 2 * sum[s] (k where s <= t) else 3 * sum[s] (k where s <= t);
                    sum[e] seen * right
                }
                if l < dense { plain } else { mix }
            }
            fn (tokens[t]) -> [t, d] {
                let x = table[v = tokens];
                depth(x)
            }
        }
    }

    fn mixed(config: &Value) -> Graph {
        Mixed::graph(&MixedConfig::from_json(config).unwrap()).unwrap()
    }

    #[test]
    fn a_block_means_what_it_says_written_out() {
        for more in [json!({}), json!({"biased": true}), json!({"window": 1, "dense": 1}), json!({"dense": 4})] {
            let mut config = json!({"d": 2, "e": 3, "v": 2, "depth": 4});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let written = Written::graph(&WrittenConfig::from_json(&config).unwrap()).unwrap();
            let steps: [&[i64]; 2] = [&[0, 1], &[1]];
            let (found, expected) = (run(&mixed(&config), &steps), run(&written, &steps));
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{config}: {found} {expected}");
            }
        }
    }

    #[test]
    fn its_tensors_are_named_after_its_use() {
        let g = mixed(&json!({"d": 2, "e": 3, "v": 2, "depth": 1, "biased": true}));
        for name in ["mix.x", "mix.k", "mix.k.cache", "mix.seen", "mix.bias", "mix.inner.gain"] {
            assert!(g.tensors.iter().any(|tensor| tensor.name == name), "{name} in\n{g}");
        }
        assert_eq!(places(&g, "mix.left"), ["h.{l}.mix.in.both[0..3]", "g.{l}.mix.in.both[0..3]"]);
        let right = ["h.{l}.mix.in.both[3..6]", "g.{l}.mix.in.both[3..6]", "h.{l}.mix.in.right", "g.{l}.mix.in.right"];
        assert_eq!(places(&g, "mix.right"), right);
        assert_eq!(places(&g, "mix.inner.gain"), ["h.{l}.mix.in.gain.gain", "g.{l}.mix.in.gain.gain"]);
        assert!(g.tensors.iter().all(|tensor| !tensor.name.starts_with("plain")), "no layer calls it");
    }

    #[test]
    fn its_tensors_know_their_lines() {
        let g = mixed(&json!({"d": 2, "e": 3, "v": 2, "depth": 1}));
        let line = |text: &str| include_str!("language.rs").lines().position(|line| line.contains(text)).unwrap() + 1;
        let of = |name: &str| {
            let tensor = g.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            tensor.location.clone().unwrap().line as usize
        };
        assert_eq!(of("mix.left"), line("left[e, d] = \"both\"[0 .. e]"));
        assert_eq!(of("mix.inner.gain"), line("weights { gain[d] = \"gain\"; }"));
        assert_eq!(of("mix.seen"), line("let seen[t, e] = times"));
        assert_eq!(of("x.out"), line("if l < dense then plain(y)"));
    }

    #[test]
    fn layers_in_which_it_is_the_same_share_a_body() {
        let order = |config: Value| match mixed(&config).nodes.iter().find_map(|node| match node {
            Node::Layers(layers) => Some(layers.order.clone()),
            _ => None,
        }) {
            Some(order) => order,
            None => panic!("there are layers"),
        };
        assert_eq!(order(json!({"d": 2, "e": 3, "v": 2, "depth": 5})), [0, 0, 1, 1, 1]);
        assert_eq!(order(json!({"d": 2, "e": 3, "v": 2, "depth": 5, "dense": 1})), [0, 1, 2, 2, 2]);
    }

    /// A graph that is made by hand with a block in it.
    fn by_hand(axes: usize, gain: &Gain) -> Result<Graph, String> {
        let mut b = Builder::new("by hand");
        let (t, d, v) = (b.tokens("t"), b.axis("d", 2), b.axis("v", 3));
        let (tokens, table) = (b.input("tokens", &[t]), b.weight("table", &[v, d], "table"));
        let id = b.load(tokens);
        let x = b.load_at(table, &[(v, id)]);
        let place = Use { name: "scaled", prefixes: &["a.".to_owned()], axes: &[d, v][..axes], arguments: &[x] };
        let y = gain.build(&mut b, &place);
        let y = b.binary(Binary::Add, y, x);
        let y = b.define("y", Some(&[t, d]), y);
        b.finish(y).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_ordinary_rust() {
        let graph = by_hand(1, &Gain { doubled: true }).unwrap();
        assert_eq!(places(&graph, "scaled.gain"), ["a.gain"]);
        assert_eq!(run(&graph, &[&[2]]), [2.0 * 5.0 + 5.0, 2.0 * 2.0 * 6.0 + 6.0]);
        let error = by_hand(2, &Gain::default()).unwrap_err();
        assert_eq!(error, "`Gain[d](x[t, d]) -> [t, d]` is given the axes [d, v] and 1 arguments");
    }

    block! {
        Halves[d, h] {
            axis half = d / 2;
            weights { w[h, half] = "w"; }
            fn (x[t, d]) -> [t, h] { sum[half] w * x[d = half] }
        }
    }

    model! {
        Odd for "Odd" {
            config { d: size = "d"; h: size = "h"; v: size = "v"; depth: count = "depth"; }
            weights { table[v, d] = "table"; }
            layer l in depth {
                weights "{l}." { block halves[d, h] -> [t, h] = Halves in ""; }
                fn (x[t, d]) -> [t, d] { x + sum[h] halves(x) }
            }
            fn (tokens[t]) -> [t, d] { depth(table[v = tokens]) }
        }
    }

    #[test]
    fn what_the_config_makes_wrong_in_it_is_an_error_of_the_graph() {
        let graph = |d: usize| {
            let config = OddConfig::from_json(&json!({"d": d, "h": 2, "v": 2, "depth": 1})).unwrap();
            Odd::graph(&config).map_err(|error| error.to_string())
        };
        assert!(graph(4).is_ok());
        let error = graph(3).unwrap_err();
        assert!(error.starts_with("axis `half` = d / 2: 3 / 2 is not a whole number"), "{error}");
    }
}
