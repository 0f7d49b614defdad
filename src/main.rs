//! The command line: parses it, runs the command, and says what went wrong in one line.
#![warn(clippy::print_stdout, clippy::print_stderr)] // they panic where nothing can be written

mod commands;
mod peak;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use commands::output::{print_with, tell, tell_error};

fn main() -> ExitCode {
    let outcome = match commands::Cli::read() {
        Ok(cli) => cli.run(),
        // help and version
        Err(error) if !error.use_stderr() => print_with(|| error.print()).map_err(Into::into),
        Err(error) => {
            tell(one_line(&error.render().to_string()));
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            tell_error(error.as_ref());
            if error.is::<commands::Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// The message of a wrong command line without the usage that follows it.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim);
    let lines = lines.take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more information"));
    let mut message = String::new();
    for line in lines.filter(|l| !l.is_empty()) {
        message += match (message.is_empty(), line.starts_with("tip: ")) {
            (true, _) => "",
            (false, true) => "; ",
            (false, false) => " ",
        };
        message += line;
    }
    message
}

/// Whether the reader of our output went away, which is its right.
fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
