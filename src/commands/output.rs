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
pub(crate) fn markdown(head: &[&str], lines: &[Vec<String>], left: &[usize]) -> String {
    let width = |column: usize, name: &str| {
        let cells = lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(name.chars().count())
    };
    let widths: Vec<usize> = head.iter().enumerate().map(|(column, name)| width(column, name)).collect();
    let row = |cells: &mut dyn Iterator<Item = String>| format!("|{}|\n", cells.collect::<Vec<_>>().join("|"));
    let written = |line: &[String]| {
        row(&mut line.iter().zip(&widths).enumerate().map(|(column, (text, &width))| match left.contains(&column) {
            true => format!(" {text:<width$} "),
            false => format!(" {text:>width$} "),
        }))
    };
    let rule = widths.iter().enumerate().map(|(column, &width)| match left.contains(&column) {
        true => format!(" {} ", "-".repeat(width)),
        false => format!(" {}: ", "-".repeat(width - 1)),
    });
    let names: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let mut text = written(&names) + &row(&mut { rule });
    text.extend(lines.iter().map(|line| written(line)));
    text
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}
