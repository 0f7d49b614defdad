//! Says on the terminal what takes long.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::ProgressBar;

/// How long something may take before it is worth a word.
const PATIENCE: Duration = Duration::from_millis(500);

/// A spinner with a message, from half a second after it was made until it is dropped; nothing where standard error is
/// no terminal.
pub(crate) struct Progress {
    running: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Work on something begins.
    pub(crate) fn start(message: String) -> Progress {
        if !io::stderr().is_terminal() {
            return Progress { running: None };
        }
        let (done, wait) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let bar = ProgressBar::new_spinner().with_message(message);
                bar.enable_steady_tick(Duration::from_millis(100));
                // ends when the sender is dropped
                let _ = wait.recv();
                bar.finish_and_clear();
            }
        });
        Progress { running: Some((done, thread)) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.running.take() {
            drop(done);
            // a spinner that failed is not worth failing for
            let _ = thread.join();
        }
    }
}
