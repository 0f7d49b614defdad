//! Standard output, where a failed write is an error with a name and a closed pipe can be told from others.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// Writes to standard output at once.
pub(crate) fn print(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(named)
}

/// Writes one JSON object, on several lines, to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    print(format_args!("{text}\n"))
}

/// A table in markdown whose columns are aligned to the right, but for those on the `left`.
pub(crate) fn markdown<const N: usize>(head: [&str; N], lines: &[[String; N]], left: &[usize]) -> String {
    let head = head.map(str::to_owned);
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = [&head].into_iter().chain(lines).map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    });
    let cell = |column: usize, text: &str| match left.contains(&column) {
        true => format!(" {text:<0$} ", widths[column]),
        false => format!(" {text:>0$} ", widths[column]),
    };
    let rule = |column: usize| match left.contains(&column) {
        true => format!(" {} ", "-".repeat(widths[column])),
        false => format!(" {}: ", "-".repeat(widths[column] - 1)),
    };
    let row = |cells: [String; N]| format!("|{}|\n", cells.join("|"));
    let written = |line: &[String; N]| row(std::array::from_fn(|column| cell(column, &line[column])));
    let mut text = written(&head) + &row(std::array::from_fn(rule));
    text.extend(lines.iter().map(written));
    text
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}
