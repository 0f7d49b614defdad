//! What a step refuses, before it computes anything.

use einfuse_codegen::loops::Cores;
use einfuse_codegen::{Alone, Choice, Format, Options, PageTable, Program, Step, StepError, Tiling, Wanted, Workspace};
use einfuse_graph::random::random_weights;
use einfuse_graph::{Graph, Tensor, parse};

mod common;
use common::Runner;

const SMALL: &str = "
graph small
axis d = 4
axis v = 7
axis p = 100
axis t = tokens
axis s = positions
input tokens[t]
weight embed[v, d] = \"embed\"
weight places[p, d] = \"places\"
state x.cache[s, d]
x[t, d] = embed[v = tokens] + places[p = t + 2]
append x.cache = x
y[t, d] = sum[s] x.cache where s <= t
output y
";

fn graph() -> Graph {
    parse(SMALL).unwrap()
}

/// Zeroes that begin at a multiple of 64.
fn zeroes(bytes: usize) -> (Vec<u8>, usize) {
    let memory = vec![0; bytes + 128];
    let from = memory.as_ptr().align_offset(64);
    (memory, from)
}

/// Runs one step with the given tokens, past, pages and workspace, whose last output is wanted.
fn run(
    program: &Program,
    workspace: &mut Workspace,
    tokens: &[i32],
    past: usize,
    pages: &[u32],
    shift: usize,
) -> Result<(), StepError> {
    run_from(program, workspace, (tokens, tokens.len().saturating_sub(1)), past, pages, shift)
}

/// The same with the first token whose output is wanted.
fn run_from(
    program: &Program,
    workspace: &mut Workspace,
    (tokens, first): (&[i32], usize),
    past: usize,
    pages: &[u32],
    shift: usize,
) -> Result<(), StepError> {
    let (weights, from) = zeroes(program.weight_bytes());
    let (mut memory, at) = zeroes(2 * program.caches()[0].page_bytes);
    let bytes = 2 * program.caches()[0].page_bytes;
    let caches = vec![PageTable { memory: &mut memory[at..at + bytes], pages }];
    let step = Step { tokens, past, first, caches, observe: None, choices: None };
    program.step(&weights[from + shift..], workspace, step, &Alone)
}

#[test]
fn refuses_in_words() {
    let options = Options { chunk: 8, ..Options::default() };
    let program = Program::compile(&graph(), &|_, _| Format::F32.into(), &options).unwrap();
    let other =
        Program::compile(&graph(), &|_, _| Format::F32.into(), &Options { chunk: 4, ..options.clone() }).unwrap();
    let mut own = program.workspace(1);
    assert_eq!(program.context(), Some(98));
    assert_eq!(run(&program, &mut own, &[1, 2, 3], 0, &[1, 0], 0), Ok(()));

    type Refusal = (&'static [i32], usize, &'static [u32], usize, &'static str);
    let refusals: [Refusal; 9] = [
        (&[], 0, &[0], 0, "a step wants at least one token"),
        (&[1; 9], 0, &[0], 0, "a step has 9 tokens, the program was compiled for at most 8"),
        (&[1, 7], 0, &[0], 0, "token 7 selects `v` = 7 of `embed`, which has 7 there"),
        (&[-1], 0, &[0], 0, "token -1 selects `v` = -1 of `embed`, which has 7 there"),
        (&[1, 1], 97, &[0, 1], 0, "position 98 of the sequence selects `p` = 100 of `places`, which has 100 there"),
        (&[1], 64, &[], 0, "a sequence of 65 positions has 0 pages, not 1"),
        (&[1], 0, &[2], 0, "page 2 is beyond the pool of"),
        (&[1], 0, &[0], 4, "are wanted"),
        (&[1], usize::MAX, &[0], 0, "more than any sequence has"),
    ];
    for (tokens, past, pages, shift, message) in refusals {
        let error = run(&program, &mut own, tokens, past, pages, shift).unwrap_err().to_string();
        assert!(error.contains(message), "{error}\nis not: {message}");
    }
    let error = run(&program, &mut other.workspace(1), &[1], 0, &[0], 0).unwrap_err();
    assert_eq!(error.to_string(), "the workspace was made by another program");
    let longer = parse(&SMALL.replace("p = 100", "p = 300")).unwrap();
    let longer = Program::compile(&longer, &|_, _| Format::F32.into(), &options).unwrap();
    let error =
        run(&longer, &mut longer.workspace(1), &[1; 8], longer.caches()[0].page_positions - 4, &[1, 1], 0).unwrap_err();
    assert_eq!(error.to_string(), "page 1 is written for two parts of a sequence");
}

#[test]
fn refuses_options_that_no_program_has() {
    let refusal = |options: Options| Program::compile(&graph(), &|_, _| Format::F32.into(), &options).err().unwrap();
    let options = Options::default;
    let tiling = Tiling { block: 1, core: 0, prepared: 1, tile: 1, parts: 1 };
    let schedules = [("kernel 7".to_owned(), tiling)].into_iter().collect();
    for (options, message) in [
        (Options { chunk: 0, ..options() }, "`chunk` is 0, not 1 to 16777216"),
        (Options { chunk: usize::MAX, ..options() }, "`chunk` is 18446744073709551615, not 1 to 16777216"),
        (Options { positions: 1 << 25, ..options() }, "`positions` is 33554432, not 1 to 16777216"),
        (Options { cores: Some(Cores { bits: 1024, ..Cores::PORTABLE }), ..options() }, "this machine has "),
        (Options { schedules, ..options() }, "the schedule of kernel 7: `core` is 0, not 1 to "),
    ] {
        let error = refusal(options).to_string();
        assert!(error.starts_with(message), "{error}\nis not: {message}");
    }
    let large = SMALL.replace("v = 7", "v = 10000000").replace("d = 4", "d = 100000000");
    let error = Program::compile(&parse(&large).unwrap(), &|_, _| Format::F32.into(), &options()).err().unwrap();
    assert_eq!(error.to_string(), "`embed` over [v, d] has 1e15 elements");
}

/// What is chosen behind the last layer is told of the tokens whose output is wanted.
#[test]
fn choices_behind_the_layers_are_those_of_the_last_tokens() {
    let text = "graph routed\naxis d = 16\naxis e = 4\naxis c = 16\naxis v = 7\naxis t = tokens\ninput tokens[t]\n\
                weight embed[v, d] = \"embed\"\nweight gate[e, d] = \"gate\"\nweight expert[e, c, d] = \"expert\"\n\
                x[t, d] = embed[v = tokens]\nlayers y from x as h order 0\nbody\nr[t, d] = h + tanh(h)\nresult r\nend\n\
                i[t] = argmax[e] sum[d] y * gate\nz[t, c] = sum[d] y * expert[e = i]\noutput z\n";
    let graph = parse(text).unwrap();
    for (rows, tokens, told) in [(Wanted::Last, 12, 1), (Wanted::Last, 5, 1), (Wanted::All, 12, 12)] {
        let options = Options { chunk: 12, rows, ..Options::default() };
        let program = Program::compile(&graph, &|_, _| Format::F32.into(), &options).unwrap();
        let (weights, from) = zeroes(program.weight_bytes());
        let mut chosen = Vec::new();
        let mut tell = |_: Choice, _: Option<usize>, values: &[i32]| chosen.push(values.to_vec());
        let first = if rows == Wanted::Last { tokens - 1 } else { 0 };
        let step = Step {
            tokens: &vec![1; tokens],
            past: 0,
            first,
            caches: Vec::new(),
            observe: None,
            choices: Some(&mut tell),
        };
        program.step(&weights[from..], &mut program.workspace(1), step, &Alone).unwrap();
        assert_eq!(chosen, [vec![0; told]], "{tokens} tokens, {rows:?}");
    }
}

/// A program for the last tokens alone computes all rows of the last layer for who looks at them.
#[test]
fn who_looks_at_what_layers_hand_on_sees_all_rows() {
    let text = include_str!("filetests/fuse/tail_last_layer.graph");
    let graph = parse(text.split("----").next().unwrap()).unwrap();
    let seen = |rows: Wanted| {
        let weights = |tensor: &Tensor, layer: Option<usize>| random_weights(tensor, layer, &graph);
        let options = Options { chunk: 12, rows, ..Options::default() };
        let mut runner = Runner::new(&graph, &weights, Format::F32, &options, 12).unwrap();
        runner.traced(&(0..12).collect::<Vec<i32>>(), &Alone).1
    };
    let all = seen(Wanted::All);
    assert_eq!(all.len(), 4);
    assert!(seen(Wanted::Last) == all);
}

#[test]
fn a_step_of_many_yields_the_last_output_alone() {
    let compiled = |rows| {
        let options = Options { chunk: 16, rows, ..Options::default() };
        Program::compile(&graph(), &|_, _| Format::F32.into(), &options).unwrap()
    };
    let rows_from = |program: &Program, tokens: usize, first| {
        let mut own = program.workspace(1);
        let step = run_from(program, &mut own, (&[1; 16][..tokens], first), 0, &[0], 0);
        step.map(|()| program.output(&own).len() / 4).map_err(|e| e.to_string())
    };
    let (last, all) = (compiled(Wanted::Last), compiled(Wanted::All));
    assert_eq!((rows_from(&last, 8, 0), rows_from(&last, 8, 5), rows_from(&last, 9, 8)), (Ok(8), Ok(3), Ok(1)));
    assert_eq!((rows_from(&all, 9, 0), rows_from(&all, 9, 5)), (Ok(9), Ok(4)));
    let error = "the output of token 7 of 9 is wanted, the program has the last of so many";
    assert_eq!(rows_from(&last, 9, 7), Err(error.to_owned()));
    let error = "the output of token 9 of 9 is wanted, the program has those that the step has";
    assert_eq!(rows_from(&all, 9, 9), Err(error.to_owned()));
}

/// A graph of one line after `x[t, d]`, over the axes and weights of [`SMALL`].
fn with(line: &str) -> Result<Program, String> {
    let text = SMALL.replace("y[t, d] = sum[s] x.cache where s <= t", line);
    let graph = parse(&text).map_err(|e| e.to_string())?;
    Program::compile(&graph, &|_, _| Format::F32.into(), &Options::default()).map_err(|e| e.to_string())
}

#[test]
fn refuses_what_no_sequence_can_begin_with() {
    let error = with("y[t, d] = places[p = t - 1]").unwrap_err();
    assert_eq!(error, "an index `p` of `places` is out of range for the first token");
}

#[test]
fn rows_of_other_positions_bound_no_context() {
    assert_eq!(with("y[t, d] = x.cache[s = max(t - 1, 0)] + x").unwrap().context(), Some(98));
}

#[test]
fn an_index_of_cases_is_checked() {
    let line = "y[t, d] = places[p = if t < 4 then t else t - 4] + x";
    let text =
        SMALL.replace("t + 2", "3").replace("y[t, d] = sum[s] x.cache where s <= t", line).replace("p = 100", "p = 6");
    let program = Program::compile(&parse(&text).unwrap(), &|_, _| Format::F32.into(), &Options::default()).unwrap();
    let mut own = program.workspace(1);
    assert_eq!(run(&program, &mut own, &[1; 10], 0, &[0], 0), Ok(()));
    let error = run(&program, &mut own, &[1], 10, &[0], 0).unwrap_err().to_string();
    assert_eq!(error, "position 10 of the sequence selects `p` = 6 of `places`, which has 6 there");
}

#[test]
fn a_workspace_of_the_same_sizes_is_not_the_program_s_own() {
    let options = Options { chunk: 8, ..Options::default() };
    let [program, other] = [(); 2].map(|()| Program::compile(&graph(), &|_, _| Format::F32.into(), &options).unwrap());
    let error = run(&program, &mut other.workspace(1), &[1], 0, &[0], 0).unwrap_err();
    assert_eq!(error.to_string(), "the workspace was made by another program");
    let rescheduled = program.reschedule(Default::default()).unwrap();
    assert_eq!(run(&rescheduled, &mut program.workspace(1), &[1], 0, &[0], 0), Ok(()));
}
