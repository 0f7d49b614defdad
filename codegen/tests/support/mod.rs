//! Runs files of tests, and kernels both ways.
#![allow(dead_code, unreachable_pub)]

use std::fmt::Write;
use std::path::Path;
use std::sync::OnceLock;

use einfuse_codegen::loops::{Fault, Kernel, Memory, Slot, interpret};
use einfuse_codegen::lower::{Code, Left, Lowering, Target, compile};

/// Holds every file of `filetests/FOLDER` against itself with its sections filled in. `BLESS=1` writes what is found into
/// the files.
///
/// A file is a source, then sections, each begun by a line of `----` and its kind. `fill` gets the source and the
/// kinds, and says what belongs into each section.
pub fn filetests(folder: &str, fill: impl Fn(&str, &[&str]) -> Result<Vec<String>, String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests").join(folder);
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = String::new();
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the folder of tests") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let mut sections = text.split("\n---- ");
        let source = sections.next().unwrap_or_default();
        let kinds: Vec<&str> = sections.map(|section| section.lines().next().unwrap_or_default()).collect();
        files += 1;
        let contents = match fill(source, &kinds) {
            Ok(contents) => contents,
            Err(e) => {
                writeln!(wrong, "{}: {e}", path.display()).expect("memory");
                continue;
            }
        };
        let mut found = source.to_string();
        for (kind, contents) in kinds.iter().zip(contents) {
            write!(found, "\n---- {kind}\n{}\n", contents.trim_end()).expect("memory");
        }
        if bless {
            std::fs::write(&path, found).expect("a file that can be written");
        } else if found != text {
            let line = found.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or_default();
            let found = found.lines().nth(line).unwrap_or("the end");
            writeln!(wrong, "{}:{}: found {found}", path.display(), line + 1).expect("memory");
        }
    }
    assert!(files > 0, "no files");
    assert!(wrong.is_empty(), "{wrong}(BLESS=1 accepts what is found)");
}

/// This machine.
pub fn host() -> &'static Target {
    static HOST: OnceLock<Target> = OnceLock::new();
    HOST.get_or_init(|| Target::host().expect("a host that code can be generated for"))
}

pub fn build(kernel: &Kernel) -> Code {
    let how = Lowering { verify: true, keep_text: true };
    compile(std::slice::from_ref(kernel), host(), &how).unwrap_or_else(|e| panic!("{e}\n{kernel}"))
}

/// What a kernel leaves in memory: as interpreted, and as run by its machine code.
pub fn both(kernel: &Kernel, memory: &Memory, workers: usize) -> Result<(Memory, Memory), Fault> {
    let mut expected = memory.clone();
    interpret(kernel, &mut expected, workers)?;
    let mut actual = memory.clone();
    // The interpreter has checked each access.
    run(&build(kernel), kernel, &mut actual, workers);
    Ok((expected, actual))
}

/// Runs the machine code of a kernel whose accesses are known to be within the memory.
pub fn run(code: &Code, kernel: &Kernel, memory: &mut Memory, workers: usize) {
    let arena = memory.arena.as_mut_ptr() as u64;
    let mut frame = vec![memory.tokens as u64, memory.past as u64, arena, memory.first as u64];
    let mut tables: Vec<Vec<u64>> = Vec::new();
    let mut fill = |words: &mut Vec<u64>, index: usize, slot: &mut Slot| {
        words.resize(words.len().max(index + 1), 0);
        words[index] = match slot {
            Slot::Bytes(bytes) => bytes.as_mut_ptr() as u64,
            Slot::Offset(bytes) => *bytes as u64,
            Slot::Pages(pages) => {
                tables.push(pages.iter_mut().map(|page| page.as_mut_ptr() as u64).collect());
                tables[tables.len() - 1].as_ptr() as u64
            }
        };
    };
    for (index, slot) in &mut memory.frame {
        fill(&mut frame, *index, slot);
    }
    let mut layer = Vec::new();
    for (index, slot) in &mut memory.layer {
        fill(&mut layer, *index, slot);
    }
    let mut scratch = vec![0u8; kernel.scratch];
    let left: Vec<Left> = (0..workers).map(|_| Left::default()).collect();
    for worker in 0..workers {
        scratch.fill(0);
        // SAFETY: all words that the kernel names are there, and the interpreter has found its accesses within bounds.
        unsafe { code.call(0, frame.as_ptr(), layer.as_ptr(), worker, &left, scratch.as_mut_ptr()) }
    }
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub fn bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A reproducible sequence (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    /// From -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
