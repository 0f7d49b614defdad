//! Large blocks of memory straight from the operating system.

use std::ops::{Deref, DerefMut};

use memmap2::{MmapMut, MmapOptions};

use crate::Error;

/// A zeroed block, aligned to a page of memory, that takes up room only where it is written.
#[derive(Debug)]
pub(crate) struct Memory {
    map: MmapMut,
    bytes: usize,
}

impl Memory {
    /// Asks for a block; `what` it is for goes into the error.
    pub(crate) fn new(bytes: usize, what: &'static str) -> Result<Memory, Error> {
        let map = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon();
        map.map(|map| Memory { map, bytes }).map_err(|source| Error::Memory { bytes, what, source })
    }

    /// Asks the system for huge pages: large blocks that are read as a whole are then read faster.
    pub(crate) fn with_huge_pages(self) -> Memory {
        // A system that has none, or does not want to, changes only the speed.
        #[cfg(target_os = "linux")]
        let _ = self.map.advise(memmap2::Advice::HugePage);
        self
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[..self.bytes]
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.bytes]
    }
}
