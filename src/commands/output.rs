//! Standard output, where a failed write is an error with a name and a closed pipe can be told from others; and standard error,
//! where it is none.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// Writes to standard output at once.
pub(crate) fn print(text: impl fmt::Display) -> io::Result<()> {
    print_with(|| write!(io::stdout().lock(), "{text}"))
}

/// The same, but `write` does it.
pub(crate) fn print_with(write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot write to standard output: {error}"));
    write().and_then(|()| io::stdout().flush()).map_err(named)
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

/// Writes a line to standard error, if that can be: there is no other place to say that it cannot.
pub(crate) fn tell(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes an error to standard error: one line, its causes below it.
pub(crate) fn tell_error(error: &dyn Error) {
    tell(format_args!("error: {error}"));
    let (mut told, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let text = error.to_string();
        // some messages end with their cause
        if !told.contains(&text) {
            tell(format_args!("  because: {text}"));
            told = text;
        }
        cause = error.source();
    }
}

/// How many tokens, in words.
pub(crate) fn tokens(count: usize) -> String {
    if count == 1 { "1 token".to_owned() } else { format!("{count} tokens") }
}
