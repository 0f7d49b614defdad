//! Where a model comes from: a Hugging Face folder, the same files within the program, or a GGUF file.

mod dtype;
pub mod fuzz;
mod gguf;
mod mapped;
mod numbers;
mod quantised;
mod safetensors;
mod weight;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

pub use dtype::Dtype;
pub use numbers::{Blocks, Codes, Groups, Numbers, Tiles};
pub(crate) use weight::declared;
pub use weight::{Change, Stored};

use crate::Error;
use crate::sample::Sampling;
use crate::tokens::Description;
use gguf::Gguf;
use mapped::Bytes;
use quantised::Method;
use safetensors::TensorFile;

/// A model's files as part of the program, for instance through `include_bytes!`.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// What messages call the model.
    pub name: &'static str,
    /// `config.json`.
    pub config: &'static [u8],
    /// `generation_config.json`.
    pub generation_config: Option<&'static [u8]>,
    /// `tokenizer.json`.
    pub tokenizer: Option<&'static [u8]>,
    /// `model.safetensors`.
    pub weights: &'static [u8],
}

/// A checkpoint whose files are open and whose headers have been checked; no tensor has been read.
#[derive(Debug)]
pub struct Checkpoint {
    place: String,
    config: Json,
    generation_config: Option<Json>,
    tokenizer: Option<Raw>,
    chat: Option<Chat>,
    weights: Weights,
}

/// The files with the weights.
#[derive(Debug)]
enum Weights {
    /// Files of tensors, and how weights are quantised, if they are.
    Safetensors(TensorFiles, Option<Method>),
    /// One file, which has the tokenizer too.
    Gguf(Box<Gguf>),
}

/// Files with tensors, and which of them has each, under which name.
#[derive(Debug)]
struct TensorFiles {
    files: Vec<TensorFile>,
    home: HashMap<String, (usize, String)>,
}

/// A tensor as it lies in a file.
struct Found<'a> {
    file: &'a str,
    /// The dimensions that the graph's weight should have.
    shape: Vec<usize>,
    numbers: Numbers<'a>,
    change: Change,
    /// The tensors beside it, or in place of it, that make its numbers.
    beside: Vec<String>,
}

/// How a chat becomes text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// The file that says so, for messages.
    pub file: String,
    /// The template, in Jinja with Hugging Face's conventions.
    pub template: String,
    /// The text of the begin token, which templates call `bos_token`.
    pub begin: Option<String>,
    /// The text of the end token, which templates call `eos_token`.
    pub end: Option<String>,
}

/// A file's path and content.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) file: String,
    pub(crate) bytes: Cow<'static, [u8]>,
}

/// A JSON file's path and object.
#[derive(Debug)]
struct Json {
    file: String,
    object: Value,
}

impl Checkpoint {
    /// Opens a folder with `config.json`, `model.safetensors` (or `model.safetensors.index.json` and the shards that it
    /// lists), and, where they are there, `tokenizer.json` and `generation_config.json`; or a GGUF file.
    ///
    /// # Errors
    /// Names the file and, within it, the tensor or key that is missing or wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, Error> {
        let path = path.as_ref();
        let place = path.display().to_string();
        match path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let problem = "there is no such folder or file; a folder with config.json and *.safetensors, or a GGUF \
                               file, was expected";
                Err(Error::File { file: place, problem: problem.into() })
            }
            Err(source) => Err(Error::Read { file: place, source }),
            Ok(metadata) if metadata.is_dir() => Checkpoint::open_folder(path, place),
            Ok(_) if path.extension().is_some_and(|end| ["json", "safetensors"].iter().any(|of| end == *of)) => {
                let problem = "not a GGUF file; of a Hugging Face model, give the folder that this file is in";
                Err(Error::File { file: place, problem: problem.into() })
            }
            Ok(_) => Checkpoint::of_gguf(Gguf::open(path)?),
        }
    }

    fn open_folder(folder: &Path, place: String) -> Result<Checkpoint, Error> {
        let Some(config) = Raw::read(&folder.join("config.json"))? else {
            let problem =
                format!("config.json is missing; a Hugging Face folder was expected{}", other_weights(folder));
            return Err(Error::File { file: place, problem });
        };
        let generation_config = Raw::read(&folder.join("generation_config.json"))?;
        let tokenizer = Raw::read(&folder.join("tokenizer.json"))?;
        let (config, is_part) = Json::parse(config)?.text_part()?;
        let generation_config = generation_config.map(Json::parse).transpose()?;
        let chat = open_chat(folder)?;
        let (files, listed) = open_files(folder)?;
        let weights = Weights::Safetensors(TensorFiles::new(files, listed, is_part)?, Method::of(&config)?);
        Ok(Checkpoint { place, config, generation_config, tokenizer, chat, weights })
    }

    fn of_gguf(gguf: Gguf) -> Result<Checkpoint, Error> {
        let place = gguf.name.clone();
        let config = Json { file: place.clone(), object: Value::Object(gguf.config()?) };
        let chat = gguf.chat()?;
        let weights = Weights::Gguf(Box::new(gguf));
        Ok(Checkpoint { place, config, generation_config: None, tokenizer: None, chat, weights })
    }

    /// Opens a model that is part of the program.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn embedded(model: &Embedded) -> Result<Checkpoint, Error> {
        let raw =
            |file: &str, bytes| Raw { file: format!("embedded {}/{file}", model.name), bytes: Cow::Borrowed(bytes) };
        let (config, is_part) = Json::parse(raw("config.json", model.config))?.text_part()?;
        let generation_config =
            model.generation_config.map(|bytes| Json::parse(raw("generation_config.json", bytes))).transpose()?;
        let tokenizer = model.tokenizer.map(|bytes| raw("tokenizer.json", bytes));
        let bytes = Bytes::Held(Cow::Borrowed(model.weights));
        let file = TensorFile::new(format!("embedded {}/model.safetensors", model.name), bytes)?;
        let weights = Weights::Safetensors(TensorFiles::new(vec![file], None, is_part)?, Method::of(&config)?);
        let place = format!("embedded {}", model.name);
        Ok(Checkpoint { place, config, generation_config, tokenizer, chat: None, weights })
    }

    /// The folder, the GGUF file, or the embedded model's name: for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// `config.json`, an object; for a GGUF file what its metadata means in the words of `config.json`. Of a model of several
    /// parts it is what a model of its text part alone would have.
    pub fn config(&self) -> &Value {
        &self.config.object
    }

    /// The path of `config.json`, for messages about its keys.
    pub fn config_file(&self) -> &str {
        &self.config.file
    }

    /// The tokens that end a text: `eos_token_id` (a number or a list) of `generation_config.json`, else of
    /// `config.json`; none if neither says.
    ///
    /// # Errors
    /// If the value is neither.
    pub fn end_tokens(&self) -> Result<Vec<u32>, Error> {
        let key = "eos_token_id";
        for json in self.generation_config.iter().chain([&self.config]) {
            let value = match json.object.get(key) {
                None | Some(Value::Null) => continue,
                Some(value) => value,
            };
            let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let tokens = list.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<Vec<u32>>>();
            return tokens.ok_or_else(|| json.wrong(key, &format!("wants a token or a list of tokens, not {value}")));
        }
        Ok(Vec::new())
    }

    /// How tokens are to be chosen: what `generation_config.json` says of `temperature`, `top_k`, `top_p`, `min_p` and
    /// `repetition_penalty`, if its `do_sample` is true, and of the rest what `otherwise` says.
    ///
    /// # Errors
    /// If a value is outside its range.
    pub fn sampling(&self, otherwise: Sampling) -> Result<Sampling, Error> {
        let Some(json) = &self.generation_config else { return Ok(otherwise) };
        let value = |key| json.object.get(key).filter(|value| !value.is_null());
        let mut sampling = otherwise;
        match value("do_sample") {
            Some(Value::Bool(true)) => {}
            None | Some(Value::Bool(false)) => return Ok(sampling),
            Some(other) => return Err(json.wrong("do_sample", &format!("wants true or false, not {other}"))),
        }
        let keys = [
            ("temperature", &mut sampling.temperature),
            ("top_p", &mut sampling.top_p),
            ("min_p", &mut sampling.min_p),
            ("repetition_penalty", &mut sampling.repeat_penalty),
        ];
        for (key, place) in keys {
            if let Some(value) = value(key) {
                let number = value.as_f64().ok_or_else(|| json.wrong(key, &format!("wants a number, not {value}")))?;
                *place = number as f32;
            }
        }
        if let Some(value) = value("top_k") {
            let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
            let wrong = || json.wrong("top_k", &format!("wants a whole number of at least 0, not {value}"));
            sampling.top_k = count.ok_or_else(wrong)?;
        }
        sampling.check().map_err(|error| match error {
            Error::Option { option, wants, got } => {
                let key =
                    if option == "repeat-penalty" { "repetition_penalty".into() } else { option.replace('-', "_") };
                json.wrong(&key, &format!("wants {wants}, not {got}"))
            }
            error => error,
        })?;
        Ok(sampling)
    }

    /// How a chat becomes text, where the checkpoint says so: the template in `chat_template.jinja`, in
    /// `tokenizer_config.json`, or in a GGUF file's metadata.
    pub fn chat(&self) -> Option<&Chat> {
        self.chat.as_ref()
    }

    /// The file that describes the tokenizer, and the description; `None` if there is none.
    pub(crate) fn tokenizer(&self) -> Result<Option<(&str, Description)>, Error> {
        if let Weights::Gguf(gguf) = &self.weights {
            return Ok(gguf.tokenizer()?.map(|description| (gguf.name.as_str(), description)));
        }
        let Some(raw) = &self.tokenizer else { return Ok(None) };
        match in_place_of(&raw.bytes) {
            Some(problem) => Err(Error::File { file: raw.file.clone(), problem: problem.to_owned() }),
            None => Ok(Some((&raw.file, Description::parse(&raw.file, &raw.bytes)?))),
        }
    }

    /// A tensor of this name.
    fn find(&self, name: &str) -> Result<Option<Found<'_>>, Error> {
        match &self.weights {
            Weights::Safetensors(tensors, method) => quantised::find(*method, name, |name| tensors.tensor(name)),
            Weights::Gguf(gguf) => Ok(gguf.tensor(name)),
        }
    }

    /// Gives back the memory of what was read of the files with the weights, which can be read again.
    pub(crate) fn release(&self) {
        match &self.weights {
            Weights::Safetensors(tensors, _) => tensors.files.iter().for_each(TensorFile::release),
            Weights::Gguf(gguf) => gguf.release(),
        }
    }

    /// The names of all tensors that are not among `used`, sorted.
    pub fn leftovers(&self, used: &HashSet<String>) -> Vec<String> {
        let all: Box<dyn Iterator<Item = &String>> = match &self.weights {
            Weights::Safetensors(tensors, _) => Box::new(tensors.home.keys()),
            Weights::Gguf(gguf) => Box::new(gguf.names()),
        };
        let mut names: Vec<String> = all.filter(|name| !used.contains(*name)).cloned().collect();
        names.sort();
        names
    }

    /// The biases that are not among `used` while the weights that they belong to are; zeros, which change nothing, do not count.
    pub(crate) fn unread_biases(&self, used: &HashSet<String>) -> Vec<String> {
        let is_one = |name: &String| {
            let weight = name.strip_suffix("bias").is_some_and(|stem| used.contains(&format!("{stem}weight")));
            let found = if weight { self.find(name).ok().flatten() } else { None };
            found.is_some_and(|found| {
                let (count, mut some) = (found.numbers.len(), [0.0; 4096]);
                (0..count).step_by(some.len()).any(|at| {
                    let some = &mut some[..(count - at).min(4096)];
                    found.numbers.read(at, some);
                    some.iter().any(|number| *number != 0.0)
                })
            })
        };
        self.leftovers(used).into_iter().filter(is_one).collect()
    }
}

impl Raw {
    /// The content of a file; `None` if there is none of this name.
    fn read(path: &Path) -> Result<Option<Raw>, Error> {
        let file = path.display().to_string();
        if let Some(metadata) = path.metadata().ok().filter(|metadata| !metadata.is_file()) {
            let is = if metadata.is_dir() { "a folder" } else { "not a file" };
            return Err(Error::File { file, problem: format!("{is}; a file was expected") });
        }
        match std::fs::read(path) {
            Ok(bytes) => Ok(Some(Raw { file, bytes: bytes.into() })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { file, source }),
        }
    }

    fn json(&self) -> Result<Value, Error> {
        let wrong = |error| {
            let problem = in_place_of(&self.bytes).map_or_else(|| format!("not JSON: {error}"), str::to_owned);
            Error::File { file: self.file.clone(), problem }
        };
        serde_json::from_slice(&self.bytes).map_err(wrong)
    }
}

impl Json {
    fn parse(raw: Raw) -> Result<Json, Error> {
        match raw.json()? {
            object @ Value::Object(_) => Ok(Json { file: raw.file, object }),
            _ => Err(Error::File { file: raw.file, problem: "not a JSON object".into() }),
        }
    }

    /// The config of the text part, if this is one of a model of several parts, which has it under a key of its own; and
    /// whether it is. What the part does not say, the whole does.
    fn text_part(mut self) -> Result<(Json, bool), Error> {
        let key = "text_config";
        let part = self.object.as_object_mut().and_then(|whole| whole.remove(key)).filter(|part| !part.is_null());
        match (part, &mut self.object) {
            (None, _) => Ok((self, false)),
            (Some(Value::Object(part)), Value::Object(whole)) => {
                for (key, value) in part {
                    if !value.is_null() || !whole.contains_key(&key) {
                        whole.insert(key, value);
                    }
                }
                Ok((self, true))
            }
            (Some(_), _) => Err(self.wrong(key, "wants an object")),
        }
    }

    fn wrong(&self, key: &str, problem: &str) -> Error {
        Error::Key { file: self.file.clone(), key: key.into(), problem: problem.into() }
    }
}

/// What downloads leave in place of a file, if it is that.
fn in_place_of(bytes: &[u8]) -> Option<&'static str> {
    let begins = |with: &[u8]| bytes.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    match () {
        () if begins(b"version https://git-lfs") => {
            Some("a pointer of Git LFS, in place of the file: `git lfs pull` fetches that")
        }
        () if begins(b"<!doctype html") || begins(b"<html") => {
            Some("a page of HTML, in place of the file: download that anew")
        }
        () => None,
    }
}

/// The index of a sharded checkpoint: its path, and for each tensor the shard (a position in the list of files).
struct Listed {
    file: String,
    shards: Vec<(String, usize)>,
}

/// Reads how chats become text, where a folder says so.
fn open_chat(folder: &Path) -> Result<Option<Chat>, Error> {
    let file = Raw::read(&folder.join("chat_template.jinja"))?;
    let config = Raw::read(&folder.join("tokenizer_config.json"))?.map(Json::parse).transpose()?;
    let value = |key: &str| config.as_ref()?.object.get(key);
    let key = "chat_template";
    let found = match (file, &config) {
        (Some(raw), _) => match String::from_utf8(raw.bytes.into_owned()) {
            Ok(template) => Some((raw.file, template)),
            Err(error) => return Err(Error::File { file: raw.file, problem: format!("not UTF-8: {error}") }),
        },
        (None, Some(config)) => {
            let template = match value(key) {
                None | Some(Value::Null) => None,
                Some(Value::String(template)) => Some(template.as_str()),
                // Several by name.
                Some(Value::Array(list)) => {
                    let default = list.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
                    default.and_then(|entry| entry.get("template")?.as_str())
                }
                Some(_) => return Err(config.wrong(key, "wants a template or a list of templates")),
            };
            template.map(|template| (config.file.clone(), template.to_owned()))
        }
        (None, None) => None,
    };
    let token = |key: &str| {
        let token = value(key)?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    Ok(found.map(|(file, template)| Chat { file, template, begin: token("bos_token"), end: token("eos_token") }))
}

/// Opens the files with weights in a folder.
fn open_files(folder: &Path) -> Result<(Vec<TensorFile>, Option<Listed>), Error> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok((vec![TensorFile::open(&single)?], None));
    }
    let Some(raw) = Raw::read(&folder.join("model.safetensors.index.json"))? else {
        return Err(no_weights(folder));
    };
    let json = Json::parse(raw)?;
    let Some(map) = json.object.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty()) else {
        return Err(json.wrong("weight_map", "wants an object that names the file of each tensor"));
    };
    let names = map.iter().map(|(tensor, shard)| {
        // A shard lies in the same folder: an index must not reach for files elsewhere.
        let shard =
            shard.as_str().filter(|name| !name.is_empty() && Path::new(name).file_name() == Some((*name).as_ref()));
        shard.map(|shard| (tensor, shard)).ok_or_else(|| Error::Tensor {
            file: json.file.clone(),
            tensor: tensor.clone(),
            problem: "wants the name of a file in the same folder".into(),
        })
    });
    let names = names.collect::<Result<Vec<_>, Error>>()?;
    let distinct: Vec<&str> = names.iter().map(|(_, shard)| *shard).collect::<BTreeSet<_>>().into_iter().collect();
    let mut files = Vec::new();
    for shard in &distinct {
        let path = folder.join(shard);
        if !path.exists() {
            let tensor = names.iter().find(|(_, name)| name == shard).map(|(tensor, _)| tensor.to_string());
            let problem = format!("is said to be in {shard}, which is missing");
            return Err(Error::Tensor { file: json.file.clone(), tensor: tensor.unwrap_or_default(), problem });
        }
        files.push(TensorFile::open(&path)?);
    }
    let shards = names.iter().filter_map(|(tensor, shard)| {
        let at = distinct.binary_search(shard).ok()?;
        Some((tensor.to_string(), at))
    });
    let shards = shards.collect();
    Ok((files, Some(Listed { file: json.file, shards })))
}

fn no_weights(folder: &Path) -> Error {
    let expected = "neither model.safetensors nor model.safetensors.index.json is there";
    Error::File { file: folder.display().to_string(), problem: format!("{expected}{}", other_weights(folder)) }
}

/// The files with weights in a folder that has not what was expected, and which of them can be given itself.
fn other_weights(folder: &Path) -> String {
    let others = std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let weights = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".onnx"];
        weights.iter().any(|ending| name.ends_with(ending)).then_some(name)
    });
    let mut others: Vec<String> = others.collect();
    others.sort();
    if others.is_empty() {
        return String::new();
    }
    let gguf = others.iter().find(|name| name.ends_with(".gguf"));
    let advice = gguf.map(|name| format!("; of a GGUF model, give the file: {}", folder.join(name).display()));
    format!(" (but {}){}", others.join(", "), advice.unwrap_or_default())
}

impl TensorFiles {
    /// Notes which file has each tensor, and that the index, where there is one, agrees. Where the model is the text part of
    /// another, tensors are known by the names that it gives them alone.
    fn new(files: Vec<TensorFile>, listed: Option<Listed>, is_part: bool) -> Result<TensorFiles, Error> {
        let known = |name: &str| if is_part { of_text_part(name) } else { name.to_owned() };
        let mut home: HashMap<String, (usize, String)> = HashMap::new();
        for (at, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some((other, _)) = home.insert(known(name), (at, name.clone())) {
                    let problem = format!("is in {} too", files[other].name);
                    return Err(Error::Tensor { file: file.name.clone(), tensor: name.clone(), problem });
                }
            }
        }
        for (tensor, shard) in listed.iter().flat_map(|listed| &listed.shards) {
            if home.get(&known(tensor)).is_none_or(|(at, _)| at != shard) {
                let file = listed.as_ref().map(|listed| listed.file.clone()).unwrap_or_default();
                let problem = format!("is said to be in {}, which does not have it", files[*shard].name);
                return Err(Error::Tensor { file, tensor: tensor.clone(), problem });
            }
        }
        Ok(TensorFiles { files, home })
    }

    fn tensor(&self, name: &str) -> Option<safetensors::Tensor<'_>> {
        let (at, name) = self.home.get(name)?;
        self.files.get(*at)?.tensor(name)
    }
}

/// What a text part calls a tensor of the whole model: `language_model.` is in front of all of it, or behind `model.`.
fn of_text_part(name: &str) -> String {
    match (name.strip_prefix("language_model."), name.strip_prefix("model.language_model.")) {
        (Some(rest), _) => rest.to_owned(),
        (None, Some(rest)) => format!("model.{rest}"),
        (None, None) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
