//! Says on the terminal what takes long.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use einfuse::Progress as At;
use indicatif::{ProgressBar, ProgressStyle};

/// How long something may take before it is worth a word.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often what is shown is brought up to date.
const INTERVAL: Duration = Duration::from_millis(100);

/// Progress of loading a model: shown once it takes longer than half a second, until it is dropped, where standard error
/// is a terminal.
pub(crate) struct Progress {
    at: Arc<Mutex<At>>,
    shown: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Loading begins.
    pub(crate) fn start(what: String) -> Progress {
        let at = Arc::new(Mutex::new(At::Compiling));
        let shown = io::stderr().is_terminal().then(|| {
            let (done, wait) = mpsc::channel::<()>();
            let at = Arc::clone(&at);
            let thread = thread::spawn(move || {
                if wait.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %");
                let bar = ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                loop {
                    show(&bar, &what, at.lock().map_or(At::Compiling, |at| *at));
                    // a dropped sender ends it
                    if wait.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                        break bar.finish_and_clear();
                    }
                }
            });
            (done, thread)
        });
        Progress { at, shown }
    }

    /// What is to be called with how far loading is.
    pub(crate) fn reporter(&self) -> impl Fn(At) + Send + Sync + use<> {
        let shared = Arc::clone(&self.at);
        move |now| {
            if let Ok(mut at) = shared.lock() {
                *at = now;
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.shown.take() {
            drop(done);
            // a display that failed is not worth failing for
            let _ = thread.join();
        }
    }
}

fn show(bar: &ProgressBar, what: &str, at: At) {
    match at {
        At::Compiling => {
            bar.set_message(format!("loading {what}: compiling"));
            bar.tick();
        }
        At::Packing { done, total } => {
            bar.set_message(format!("loading {what}: packing weights"));
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
    }
}
