//! The bytes of a file: mapped into memory, or there already.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::Error;

/// A file's bytes, read-only.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(Mmap),
    Held(Cow<'static, [u8]>),
}

impl Bytes {
    /// Maps a file; `kind` is what was expected there, as in `a safetensors file`.
    pub(crate) fn map(path: &Path, kind: &str) -> Result<Bytes, Error> {
        let read = |source| Error::Read { file: path.display().to_string(), source };
        // What is no file may make whoever opens it wait.
        if !path.metadata().map_err(read)?.is_file() {
            let problem = format!("not a file; {kind} was expected");
            return Err(Error::File { file: path.display().to_string(), problem });
        }
        let file = File::open(path).map_err(read)?;
        // SAFETY: the map is read-only and private to this process. Its bytes are only ever read as plain bytes, for
        // which any value is valid, so that a file rewritten by someone else while it is mapped changes numbers and no
        // invariant. One that is cut short meanwhile ends the process by a signal, as for every mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        Ok(Bytes::Mapped(map))
    }

    /// Gives back the memory of the pages that were read. Who reads them again gets them from the file.
    pub(crate) fn release(&self) {
        // A system that cannot changes only how much memory is taken.
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            // SAFETY: the map is of a file and is never written, so that a page given back holds, when it is read again,
            // what the file has there, as before.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}
