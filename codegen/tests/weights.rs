//! Weights in codes: the equation that a format declares, evaluated by the interpreter of graphs from codes and scales, beside
//! what compiled programs make of the packed weights. Where a kernel takes the equation in, its cores multiply activations of 8
//! bits; where none may (without the rule prologue), the weight is computed once, and the answers are the same.

mod common;

use std::cmp::Reverse;
use std::ops::Range;

use common::{Runner, distance, hold, interpreted, interpreted_with};
use einfuse_codegen::format::{Codes, Element, Grid};
use einfuse_codegen::fuse::in_parts;
use einfuse_codegen::{Format, InBlocks, Kept, Options, Order, Packed, Program, Rule, Values, Wanted, nearest};
use einfuse_graph::random::random_weights;
use einfuse_graph::{Graph, Kind, Tensor, TensorId, parse};

/// One token, a few, many.
const STEPS: [usize; 4] = [11, 1, 3, 1];

/// A table that is looked up and multiplied, a weight that rows choose from, and others; one whose file has the summed axis first.
fn graph() -> Graph {
    let text = "
graph coded
axis t = tokens
axis v = 41
axis e = 3
axis d = 128
axis f = 192
input tokens[t]
weight embed[v, d] = \"embed\"
weight gate[e, f, d] = \"{l}.gate\"
weight down[d, f] = \"{l}.down\"
weight up[d, f] = \"{l}.up\"
i[t] = tokens % 3
x[t, d] = embed[v = tokens]
layers y from x as h order 0 0
  body
    g[t, f] = sum[d] h * gate[e = i]
    u[t, f] = g + sum[d] h * up
    z[t, d] = h + sum[f] u * down
    result z
end
logits[t, v] = sum[d] y * embed
output logits
";
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The same where sums are over several axes, of which the last has no whole blocks of 32.
fn joined() -> Graph {
    let text = "
graph joined
axis t = tokens
axis v = 41
axis e = 3
axis n = 8
axis c = 24
axis m = 4
axis a = 4
axis b = 16
axis f = 128
input tokens[t]
weight embed[v, n, c] = \"embed\"
weight gate[e, f, n, c] = \"{l}.gate\"
weight up[n, c, f] = \"{l}.up\"
weight value[m, a, b, f] = \"{l}.value\"
weight out[n, c, m, a, b] = \"{l}.out\"
i[t] = tokens % 3
x[t, n, c] = embed[v = tokens]
layers y from x as h order 0 0
  body
    g[t, f] = sum[n, c] h * gate[e = i]
    u[t, f] = g + sum[n, c] h * up
    o[t, m, a, b] = sum[f] u * value
    z[t, n, c] = h + sum[m, a, b] o * out
    result z
end
logits[t, v] = sum[n, c] y * embed
output logits
";
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A number below 8 for an element of a weight.
fn hash(name: &str, layer: Option<usize>, at: usize) -> u32 {
    let seed = name.bytes().fold(layer.map_or(7, |l| l as u32 + 1), |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    (seed.wrapping_add(at as u32).wrapping_mul(2_654_435_761) ^ 0x5bd1_e995).wrapping_mul(2_246_822_519) >> 29
}

/// What a checkpoint has in blocks, in such codes: scales and minima are numbers of bf16.
struct Stored {
    codes: Codes,
    grid: Grid,
}

impl Stored {
    fn of(codes: Codes) -> Stored {
        let (least, most) = match codes.levels {
            Some(levels) => (levels.iter().copied().min().unwrap(), levels.iter().copied().max().unwrap()),
            None if codes.minimum => (0, ((1u32 << codes.bits) - 1).min(127) as i8),
            None => ((-codes.offset) as i8, ((1 << codes.bits) - 1 - codes.offset) as i8),
        };
        let grid = Grid { block: codes.block, least, most, minimum: codes.minimum, levels: codes.levels };
        Stored { codes, grid }
    }

    /// The element at a place of a weight.
    fn element(&self, name: &str, layer: Option<usize>, at: usize) -> Element {
        let code = (0..3).fold(0, |code, nth| code * 8 + hash(name, layer, 3 * at + nth) as usize);
        let count = if self.codes.minimum { self.grid.most as usize + 1 } else { 1 << self.codes.bits };
        let block = at / self.codes.block;
        let reach = f32::from(self.grid.most.max(1)).max(-f32::from(self.grid.least)).log2().ceil().exp2();
        let scale = 0.25 / reach * (1.0 + hash(name, layer, block) as f32 / 8.0);
        let minimum = if self.codes.minimum { -scale * reach / 2.0 } else { 0.0 };
        Element { code: (code % count) as u8, part: 0, scale, minimum }
    }
}

/// A weight that is no part of another.
fn whole(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// The part that a tensor of the graph in parts is, out of its weight's elements, whose blocks are along these dimensions.
fn part(tensor: &Tensor, elements: &[Element], sizes: &[usize], rows: Range<usize>, graph: &Graph) -> Vec<f32> {
    let own: Vec<usize> = tensor.axes.iter().map(|&a| graph.size(a).unwrap()).collect();
    let mut sizes = sizes.to_vec();
    if own.len() < sizes.len() {
        let size = sizes[rows.clone()].iter().product();
        sizes.splice(rows, [size]);
    }
    let first_of = |place: usize| {
        let (mut rest, mut at, mut stride) = (place, 0, 1);
        for (own, size) in own.iter().zip(&sizes).rev() {
            at += rest % own * (size / own) * stride;
            rest /= own;
            stride *= size;
        }
        elements[at]
    };
    let of = |element: Element| match tensor.name.rsplit('.').next() {
        Some("code") => f32::from(element.code),
        Some("step") => f32::from(element.part & 15),
        Some("zero") => f32::from(element.part >> 4),
        Some("scale") => element.scale,
        Some("minimum") => element.minimum,
        other => panic!("{other:?}"),
    };
    (0..own.iter().product()).map(|place| of(first_of(place))).collect()
}

/// Holds programs without these rules against the interpreter of the graph in parts. Layers keep their weights in these
/// formats, one each or all in one; a weight that they keep in several is whole in the graph. A file has `up` in its own order
/// of axes, what it is summed over last.
fn check(graph: &Graph, formats: &[Format], own: bool, rules: &[&[Rule]]) {
    let format_of = |layer: Option<usize>| formats[layer.unwrap_or(0) % formats.len()];
    let sizes_of = |name: &str| -> Vec<usize> {
        let tensor = graph.tensors.iter().find(|t| t.name == name).unwrap();
        tensor.axes.iter().map(|&a| graph.size(a).unwrap()).collect()
    };
    // The dimensions that are summed.
    let summed = |name: &str| -> Range<usize> {
        let dims = sizes_of(name).len();
        match name {
            "up" => 0..dims - 1,
            "gate" | "out" => 2..dims,
            "value" => dims - 1..dims,
            _ => 1..dims,
        }
    };
    // The longest blocks, and the last of these dimensions along which they are.
    let blocks_of = |name: &str, format: Format| -> (Codes, Range<usize>) {
        let (sizes, Range { start, end }) = (sizes_of(name), summed(name));
        let along = |start: usize| {
            let rows: usize = sizes[start..end].iter().product();
            let codes = format.fitting(rows).codes().unwrap();
            rows.is_multiple_of(codes.block).then_some((codes, start..end))
        };
        (start..end).rev().filter_map(along).min_by_key(|(codes, _)| Reverse(codes.block)).unwrap()
    };
    let order_of = |name: &str| if own && name == "up" { Order::with_last(summed(name)) } else { Order::default() };
    let kept = |tensor: TensorId, layer: Option<usize>| Kept {
        own,
        order: order_of(&graph.tensor(tensor).name),
        ..format_of(layer).into()
    };
    let parts = in_parts(graph, &kept);
    let made = |tensor: &&Tensor| matches!(tensor.kind, Kind::Made(_));
    let weights = graph.tensors.iter().filter(|t| matches!(t.kind, Kind::Weight(_)));
    let several: Vec<&Tensor> = weights.clone().filter(|t| formats.len() > 1 && t.name != "embed").collect();
    assert_eq!(parts.tensors.iter().filter(made).count(), weights.count() - several.len(), "{formats:?}");
    assert_eq!(parse(&parts.to_string()).unwrap().to_string(), parts.to_string(), "{formats:?}");

    let floats = |name: &str, layer: Option<usize>, len: usize| -> Vec<f32> {
        (0..len).map(|at| (0..3).fold(-0.22, |x, n| x * 0.4 + 0.04 * hash(name, layer, 3 * at + n) as f32)).collect()
    };
    let codes_of = |layer: Option<usize>| format_of(layer).codes().unwrap();
    // As a file has them.
    let in_file = |name: &str, layer: Option<usize>| -> Vec<Element> {
        let stored = Stored::of(codes_of(layer));
        (0..sizes_of(name).iter().product()).map(|at| stored.element(name, layer, at)).collect()
    };
    let elements = |name: &str, layer: Option<usize>| -> Vec<Element> {
        let sizes = sizes_of(name);
        let len = sizes.iter().product();
        match own {
            true => {
                let (all, strides) = (in_file(name, layer), order_of(name).strides(&sizes));
                let place = |at: usize| {
                    let dims = sizes.iter().zip(&strides).rev();
                    dims.fold((at, 0), |(rest, place), (size, stride)| (rest / size, place + rest % size * stride)).1
                };
                (0..len).map(|at| all[place(at)]).collect()
            }
            false => {
                let (codes, rows) = blocks_of(name, format_of(layer));
                nearest(codes, &floats(name, layer, len), &sizes, rows)
            }
        }
    };
    let layered =
        |name: &str| parts.is_layered(TensorId(parts.tensors.iter().position(|t| t.name == name).unwrap() as u32));
    let weight = |tensor: &Tensor, layer: Option<usize>| {
        let (name, codes) = (whole(&tensor.name), codes_of(layer));
        let all = elements(name, layer);
        match several.iter().any(|weight| weight.name == tensor.name) {
            true => Ok(all.into_iter().map(|element| codes.number(element) as f32).collect()),
            false => Ok(part(tensor, &all, &sizes_of(name), blocks_of(name, format_of(layer)).1, &parts)),
        }
    };
    let expected = interpreted_with(&parts, &weight, 7, &STEPS).unwrap();

    let pack = |packed: &Packed, out: &mut [u8]| {
        let names: Vec<&str> = packed.tensors.iter().map(|t| graph.tensor(*t).name.as_str()).collect();
        let codes = codes_of(packed.layer);
        let of: Vec<(Vec<Element>, Vec<f32>)> = names
            .iter()
            .map(|name| {
                let layer = packed.layer.filter(|_| layered(name));
                let all = if own { in_file(name, layer) } else { Vec::new() };
                let floats = match own {
                    true => all.iter().map(|element| codes.number(*element) as f32).collect(),
                    false => floats(name, layer, sizes_of(name).iter().product()),
                };
                (all, floats)
            })
            .collect();
        let readers: Vec<_> = of
            .iter()
            .map(|(all, floats)| {
                let read = |at: usize, out: &mut [f32]| out.copy_from_slice(&floats[at..][..out.len()]);
                let blocks = |at: usize, values: &mut [i8], scales: &mut [[f32; 2]]| {
                    for (value, element) in values.iter_mut().zip(&all[at..]) {
                        *value = codes.value(element.code, 0) as i8;
                    }
                    for (scale, element) in scales.iter_mut().zip(all[at..].iter().step_by(codes.block)) {
                        *scale = [element.scale, element.minimum];
                    }
                };
                (read, blocks)
            })
            .collect();
        let values: Vec<Values<'_>> = of
            .iter()
            .zip(&readers)
            .map(|((_, floats), (read, blocks))| Values::Read {
                elements: floats.len(),
                read,
                blocks: own.then_some(InBlocks { grid: Stored::of(codes).grid, read: blocks }),
            })
            .collect();
        packed.pack(&values, 0, out).unwrap();
    };
    for &without in rules {
        let options = Options { without: without.to_vec(), rows: Wanted::All, chunk: 19, ..Options::default() };
        let program = Program::compile(graph, &kept, &options).unwrap();
        let fused = !without.contains(&Rule::Prologue);
        let kernels: Vec<_> = program.plan(einfuse_codegen::Batch::One).scopes().concat();
        let text = |name: &str| {
            let kernel = kernels.iter().find(|kernel| kernel.name == name).unwrap();
            program.plan(einfuse_codegen::Batch::One).kernel_text(kernel)
        };
        assert_eq!(text("logits").contains("+ prologue: `embed` multiplied as codes"), fused, "{}", text("logits"));
        assert_eq!(text("logits").contains("] = embed.scale["), fused, "{}", text("logits"));
        assert_eq!(text("x").contains("+ prologue: `embed` read as codes"), fused, "{}", text("x"));
        let all: String = kernels.iter().map(|k| program.plan(einfuse_codegen::Batch::One).kernel_text(k)).collect();
        for (weight, format) in several.iter().flat_map(|weight| formats.iter().map(move |format| (weight, format))) {
            let (codes, _) = blocks_of(&weight.name, *format);
            let scale = format!("{}.{}.scale[", weight.name, codes.name);
            assert_eq!(all.contains(&scale), fused, "{scale} in {all}");
        }
        let are_coded = program.weights().iter().all(|packed| packed.storage.is_coded() == fused);
        assert!(are_coded, "{formats:?} without {without:?}");
        let mut runner = Runner::of(program, pack, 64);
        for workers in [1, 2] {
            match fused {
                true => {
                    let distance = distance(&mut runner, workers, &expected);
                    assert!(distance < 0.02, "{formats:?} without {without:?}: {distance}");
                }
                false => hold(&mut runner, workers, &expected)
                    .unwrap_or_else(|e| panic!("{formats:?} without {without:?}: {e}")),
            }
        }
    }
}

/// All rules, none, and each off in turn.
fn all_ways() -> Vec<&'static [Rule]> {
    [&[], Rule::ALL].into_iter().chain(Rule::ALL.iter().map(std::slice::from_ref)).collect()
}

#[test]
fn blocks_of_a_checkpoint_are_what_their_equation_says() {
    let graph = graph();
    let is_a_files = |codes: Codes| codes.steps.is_none() && codes.block <= 64;
    for format in Format::ALL.into_iter().filter(|format| format.codes().is_some_and(is_a_files)) {
        match format.to_string().as_str() {
            "q4_32" | "q4_min" | "iq4" => check(&graph, &[format], true, &all_ways()),
            _ => check(&graph, &[format], true, &[&[], &[Rule::Prologue]]),
        }
    }
}

#[test]
fn blocks_along_several_axes_are_what_their_equation_says() {
    let graph = joined();
    let named = |name: &str| Format::ALL.into_iter().find(|format| format.to_string() == name).unwrap();
    for format in ["q4_32", "q8_32", "q6_16", "q5_min", "iq4"].map(named) {
        check(&graph, &[format], true, &[&[], Rule::ALL, &[Rule::Prologue]]);
    }
    check(&graph, &["q4_min", "q4_16"].map(named), true, &[&[], &[Rule::Prologue]]);
    check(&graph, &[Format::Q8], false, &[&[], Rule::ALL, &[Rule::Prologue]]);
    check(&graph, &[Format::Q4], false, &all_ways());
    check(&graph, &[Format::Q8, Format::Q4], false, &[&[], &[Rule::Prologue]]);
}

#[test]
fn codes_of_the_compilers_choice_are_what_their_equation_says() {
    let graph = graph();
    for format in [Format::Q8, Format::Q4] {
        check(&graph, &[format], false, &all_ways());
    }
}

#[test]
fn layers_that_keep_a_weight_in_other_codes_have_each_its_equation() {
    let named = |name: &str| Format::ALL.into_iter().find(|format| format.to_string() == name).unwrap();
    for formats in [["q4_min", "q6_16"], ["q5", "iq4"], ["q4_32", "q2_16_min"]] {
        check(&graph(), &formats.map(named), true, &all_ways());
    }
    check(&graph(), &[Format::Q8, Format::Q4], false, &all_ways());
}

/// Some cores take so deep a sum in parts, and what one kernel computes goes to the next as rows of bf16.
#[test]
fn deep_sums() {
    let text = "
graph deep
axis t = tokens
axis v = 41
axis d = 64
axis f = 1344
input tokens[t]
weight embed[v, d] = \"embed\"
weight up[d, f] = \"up\"
weight down[d, f] = \"down\"
x[t, d] = embed[v = tokens]
h[t, f] = sum[d] x * up
y[t, d] = x + sum[f] h * down
logits[t, v] = sum[d] y * embed
output logits
";
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let expected = interpreted(&graph, 7, &[70, 1, 3, 40]).unwrap();
    for (storage, bound) in [(Format::F32, 1e-5), (Format::Bf16, 0.02)] {
        let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, &graph);
        let options = Options { rows: Wanted::All, chunk: 70, ..Options::default() };
        let mut runner = Runner::new(&graph, &weights, storage, &options, 128).unwrap();
        for workers in [1, 2] {
            let distance = distance(&mut runner, workers, &expected);
            assert!(distance < bound, "{storage}, {workers} workers: {distance}");
        }
    }
}
