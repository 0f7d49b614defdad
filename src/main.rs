//! The command line: parses it, runs the command, and says what went wrong in one line.

mod commands;
mod peak;

use std::error::Error;
use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match commands::Cli::read() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // help and version; whoever closed the pipe has read enough
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", one_line(&error.render().to_string()));
            return ExitCode::from(2);
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let (mut told, mut cause) = (error.to_string(), error.source());
            while let Some(error) = cause {
                let text = error.to_string();
                // some messages end with their cause
                if !told.contains(&text) {
                    eprintln!("  because: {text}");
                    told = text;
                }
                cause = error.source();
            }
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
