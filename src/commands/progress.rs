//! Says on the terminal what takes long.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use einfuse::Progress as At;
use indicatif::{ProgressBar, ProgressStyle};

/// How long something may take before it is worth a word.
const PATIENCE: Duration = Duration::from_millis(500);

/// Progress of loading a model: shown once it takes longer than half a second, where standard error is a terminal.
pub(crate) struct Progress {
    what: String,
    start: Instant,
    bar: Mutex<Option<ProgressBar>>,
}

impl Progress {
    /// Loading begins.
    pub(crate) fn start(what: String) -> Progress {
        Progress { what, start: Instant::now(), bar: Mutex::new(None) }
    }

    /// Loading is here.
    pub(crate) fn report(&self, at: At) {
        if self.start.elapsed() < PATIENCE || !io::stderr().is_terminal() {
            return;
        }
        // another thread that reports at this moment says it as well
        let Ok(mut bar) = self.bar.try_lock() else { return };
        let bar = bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %");
            ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        match at {
            At::Compiling => bar.set_message(format!("{}: compiling", self.what)),
            At::Packing { done, total } => {
                bar.set_message(format!("{}: packing weights", self.what));
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
        }
    }

    /// Loading is over: what was shown goes.
    pub(crate) fn finish(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}
