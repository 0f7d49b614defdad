//! What a step refuses, before it computes anything.

use einfuse_codegen::{Alone, Format, Options, PageTable, Program, Step, StepError, Workspace};
use einfuse_graph::{Graph, parse};

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

/// Runs one step with the given tokens, past, pages and workspace.
fn run(
    program: &Program,
    workspace: &mut Workspace,
    tokens: &[i32],
    past: usize,
    pages: &[u32],
    shift: usize,
) -> Result<(), StepError> {
    let (weights, from) = zeroes(program.weight_bytes());
    let (mut memory, at) = zeroes(2 * program.caches()[0].page_bytes);
    let bytes = 2 * program.caches()[0].page_bytes;
    let caches = vec![PageTable { memory: &mut memory[at..at + bytes], pages }];
    let step = Step { tokens, past, first: tokens.len().saturating_sub(1), caches, observe: None, choices: None };
    program.step(&weights[from + shift..], workspace, step, &Alone)
}

#[test]
fn refuses_in_words() {
    let options = Options { chunk: 8, ..Options::default() };
    let program = Program::compile(&graph(), &|_, _| Format::F32.into(), &options).unwrap();
    let other = Program::compile(&graph(), &|_, _| Format::F32.into(), &Options { chunk: 4, ..options }).unwrap();
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
}
