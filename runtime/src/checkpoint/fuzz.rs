//! What the fuzz targets in `fuzz/` do with any bytes, which the tests here do with their seeds, and with those changed.
//!
//! Each reads all that a file has. The file may be refused: then by one line that begins with its name. A panic is a bug.

use super::mapped::Bytes;
use super::{Checkpoint, Gguf, Json, Method, Raw, TensorFile, TensorFiles, Weights};
use crate::Error;

/// What messages call the file.
const NAME: &str = "any";

/// Reads a GGUF file: its configuration, tokenizer, chat template and tensors. Yields whether there was a tensor to read.
pub fn gguf(bytes: &[u8]) -> bool {
    let read = || {
        let gguf = Gguf::new(NAME.into(), Bytes::Held(bytes.to_vec().into()))?;
        let names: Vec<String> = gguf.names().cloned().collect();
        exhaust(&Checkpoint::of_gguf(gguf)?, names)
    };
    accepted(read())
}

/// Reads a config.json on the first line, and a safetensors file after it: the tensors, quantised ones too. Yields whether there
/// was one to read.
pub fn safetensors(bytes: &[u8]) -> bool {
    let line = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (config, weights) = (&bytes[..line], bytes.get(line + 1..).unwrap_or_default());
    let read = || {
        let (config, is_part) = Json::parse(Raw { file: NAME.into(), bytes: config.to_vec().into() })?.text_part()?;
        let file = TensorFile::new(NAME.into(), Bytes::Held(weights.to_vec().into()))?;
        let names = file.names().iter();
        let names = names
            .map(|name| name.replace(".qweight", ".weight").replace("_blocks", "").replace("_packed", ""))
            .collect();
        let weights = Weights::Safetensors(TensorFiles::new(vec![file], None, is_part)?, Method::of(&config)?);
        let place = NAME.into();
        let checkpoint = Checkpoint { place, config, generation_config: None, tokenizer: None, chat: None, weights };
        exhaust(&checkpoint, names)
    };
    accepted(read())
}

/// Reads what there is; yields whether there was a tensor.
fn exhaust(checkpoint: &Checkpoint, names: Vec<String>) -> Result<bool, Error> {
    checkpoint.end_tokens()?;
    checkpoint.tokenizer()?;
    let tensor = |name: String| {
        let Some(found) = checkpoint.find(&name)? else { return Ok(false) };
        let mut numbers = vec![0.0; found.numbers.len()];
        assert_eq!(numbers.len(), found.shape.iter().product::<usize>(), "{name}");
        found.numbers.read(0, &mut numbers);
        Ok(true)
    };
    Ok(names.into_iter().fold(false, |any, name| accepted(tensor(name)) | any))
}

fn accepted(read: Result<bool, Error>) -> bool {
    read.unwrap_or_else(|error| {
        let error = error.to_string();
        assert!(error.starts_with("any: ") && !error.contains('\n'), "{error:?}");
        false
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;

    fn folder(target: &str) -> String {
        format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"))
    }

    /// Holds a seed against what it is to be; `BLESS=1` writes it.
    pub(in crate::checkpoint) fn hold_seed(target: &str, name: &str, bytes: &[u8]) {
        let path = format!("{}/{name}", folder(target));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, bytes).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "{path} is another (BLESS=1 writes it)");
    }

    /// The seeds of a target, sorted.
    fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = folder(target);
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    /// Numbers that lie at edges, in as many bytes as a header's fields have.
    const EDGES: [u64; 12] = [0, 1, 2, 3, 7, 31, 255, 1 << 16, u32::MAX as u64, 1 << 32, 1 << 63, u64::MAX];

    /// Runs a target with all its seeds, and with each of them changed in many ways; yields how many of the changed ones were
    /// accepted, and how many refused.
    fn run(target: fn(&[u8]) -> bool, name: &str, changes: usize) -> (usize, usize) {
        let seeds = seeds(name);
        let mut state = 1u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below.max(1)
        };
        let (mut accepted, mut refused) = (0, 0);
        for (path, seed) in &seeds {
            assert!(target(seed), "{} is refused", path.display());
            for _ in 0..changes {
                let mut bytes = seed.clone();
                for _ in 0..1 + random(4) {
                    let at = random(bytes.len());
                    match random(6) {
                        0 => bytes.truncate(at),
                        1 => drop(bytes.drain(at..(at + 1 + random(16)).min(bytes.len()))),
                        2 => {
                            let (_, other) = &seeds[random(seeds.len())];
                            let from = random(other.len());
                            bytes.splice(at..at, other[from..].iter().copied().take(random(64)));
                        }
                        3 => {
                            let number = EDGES[random(EDGES.len())].to_le_bytes();
                            let number = &number[..1 << random(4)];
                            bytes.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = *new);
                        }
                        _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random(256) as u8),
                    }
                }
                match target(&bytes) {
                    true => accepted += 1,
                    false => refused += 1,
                }
            }
        }
        (accepted, refused)
    }

    #[test]
    fn no_gguf_file_is_too_strange() {
        let (accepted, refused) = run(gguf, "gguf", 1700);
        assert!(accepted > 500 && refused > 5000, "{accepted} accepted, {refused} refused");
    }

    #[test]
    fn no_safetensors_file_is_too_strange() {
        let (accepted, refused) = run(safetensors, "safetensors", 1700);
        assert!(accepted > 500 && refused > 5000, "{accepted} accepted, {refused} refused");
    }
}
