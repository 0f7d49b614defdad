//! What several test binaries share: where things are, and broken copies of a model.
#![allow(dead_code, unreachable_pub)] // each binary uses a part

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use serde_json::Value;
use tempfile::TempDir;

/// A folder or file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The folder of a model that the scripts put into the cache folder, if it is there.
pub fn models(name: &str) -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || Some(variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?.join("einfuse"));
    let models = variable("EINFUSE_MODELS").or_else(cache)?;
    Some(models.join(name)).filter(|folder| folder.is_dir())
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The binary with these arguments, and a cache folder that is not there.
pub fn einfuse<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_einfuse"));
    command.args(arguments).stdin(Stdio::null());
    command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("no cache"));
    command
}

/// What the binary does with these arguments.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    einfuse(arguments).output().expect("the binary starts")
}

/// A copy of a golden model, to be broken; gone when dropped.
pub struct Folder {
    folder: TempDir,
}

impl Folder {
    /// A copy of `tests/golden/NAME`, as a user would have it.
    pub fn copy(name: &str) -> Folder {
        let original = repository("tests/golden").join(name);
        let folder = tempfile::tempdir().unwrap();
        for file in fs::read_dir(&original).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let parts = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
            if parts.contains(&name.as_str()) || name.starts_with("model") {
                fs::copy(original.join(&name), folder.path().join(&name)).unwrap();
            }
        }
        Folder { folder }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.file(name), contents).unwrap();
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// Keeps the first `bytes` of a file.
    pub fn truncate(&self, name: &str, bytes: usize) {
        let contents = fs::read(self.file(name)).unwrap();
        assert!(bytes < contents.len());
        self.write(name, &contents[..bytes]);
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = json(&self.file(name));
        edit(&mut value);
        self.write(name, value.to_string());
    }

    /// Sets a key of config.json.
    pub fn set(&self, key: &str, value: impl Into<Value>) {
        self.edit("config.json", |config| config[key] = value.into());
    }

    /// Removes a key of config.json.
    pub fn unset(&self, key: &str) {
        self.edit("config.json", |config| {
            config.as_object_mut().unwrap().remove(key).unwrap_or_else(|| panic!("config.json has no {key}"));
        });
    }

    /// Changes the header of model.safetensors, and leaves the data.
    pub fn header(&self, edit: impl FnOnce(&mut Value)) {
        let (mut header, data) = split(&fs::read(self.file("model.safetensors")).unwrap());
        edit(&mut header);
        self.write("model.safetensors", safetensors(&header.to_string(), &data));
    }

    /// Changes what the header says of one tensor.
    pub fn tensor(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        self.header(|header| {
            let tensor = header.get_mut(name).unwrap_or_else(|| panic!("model.safetensors has no {name}"));
            edit(tensor);
        });
    }

    /// Moves all tensors into a shard, with an index beside it.
    pub fn shard(&self) {
        let (header, _) = split(&fs::read(self.file("model.safetensors")).unwrap());
        let names = header.as_object().unwrap().keys().filter(|k| *k != "__metadata__");
        let map: serde_json::Map<String, Value> = names.map(|n| (n.clone(), SHARD.into())).collect();
        fs::rename(self.file("model.safetensors"), self.file(SHARD)).unwrap();
        self.write(INDEX, serde_json::json!({ "metadata": {}, "weight_map": map }).to_string());
    }
}

/// The shard that [`Folder::shard`] makes.
pub const SHARD: &str = "model-00001-of-00001.safetensors";

/// The index that [`Folder::shard`] makes.
pub const INDEX: &str = "model.safetensors.index.json";

/// The header and the data of a safetensors file.
pub fn split(bytes: &[u8]) -> (Value, Vec<u8>) {
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), data.to_vec())
}

/// A safetensors file of this header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}
