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

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}
