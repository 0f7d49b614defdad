//! Tokenizers as files of the field have them.

use std::collections::BTreeMap;

use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::tables::ARCHITECTURES;
use super::*;

/// A file with these tokens, and their types.
fn with_tokens(writer: Writer, tokens: &[(&str, i32)]) -> Writer {
    let texts: Vec<&str> = tokens.iter().map(|(token, _)| *token).collect();
    let types: Vec<Vec<u8>> = tokens.iter().map(|(_, kind)| kind.to_le_bytes().to_vec()).collect();
    let mut writer = writer;
    writer.entries.retain(|(key, _)| !["tokens", "token_type", "scores"].iter().any(|end| key.ends_with(end)));
    let scores: Vec<Vec<u8>> = tokens.iter().map(|_| 0f32.to_le_bytes().to_vec()).collect();
    writer.texts("tokenizer.ggml.tokens", &texts).array("tokenizer.ggml.token_type", Kind::I32, &types).array(
        "tokenizer.ggml.scores",
        Kind::F32,
        &scores,
    )
}

fn checkpoint(writer: &Writer) -> Checkpoint {
    Checkpoint::of_gguf(open(writer.file()).unwrap()).unwrap()
}

#[test]
fn a_chat_ends_at_its_end_token_whatever_type_that_has() {
    for (end, kind) in [("<end_of_turn>", 1), ("<|im_end|>", 4), ("<|eot_id|>", 3), ("<|end|>", 1)] {
        let tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("a", 1), (end, kind)];
        for writer in [small(), blocks().u32("tokenizer.ggml.bos_token_id", 1)] {
            let mut writer = with_tokens(writer, &tokens);
            writer.entries.retain(|(key, _)| !key.ends_with("eos_token_id") && !key.ends_with("merges"));
            let writer = writer.bool("tokenizer.ggml.add_space_prefix", false).texts("tokenizer.ggml.merges", &[]);
            let checkpoint = checkpoint(&writer);
            assert_eq!(checkpoint.end_tokens().unwrap(), [2, 4], "{end}");
            // The template's own is found in the text, and no piece of it.
            let tokenizer = Tokenizer::of(&checkpoint).unwrap().unwrap();
            assert_eq!(tokenizer.encode(&format!("a{end}a"), false).unwrap(), [3, 4, 3], "{end}");
            assert_eq!(tokenizer.decode(&[3, 4]).unwrap(), "a", "{end}");
        }
    }
}

/// Gemma and Qwen have `</s>` among their ordinary tokens.
#[test]
fn the_end_of_text_that_is_struck_out_ends_no_chat() {
    for kind in [1, 4] {
        let tokens = [("<unk>", 2), ("<s>", 3), ("<eos>", 3), ("</s>", kind)];
        assert_eq!(checkpoint(&with_tokens(small(), &tokens)).end_tokens().unwrap(), [2]);
    }
}

/// The message of GPT-OSS ends there, but not the answer.
#[test]
fn a_message_of_several_ends_no_chat() {
    let tokens = [("<unk>", 2), ("<s>", 3), ("<|return|>", 3), ("<|end|>", 3), ("<|call|>", 3)];
    assert_eq!(checkpoint(&with_tokens(small(), &tokens)).end_tokens().unwrap(), [2, 4]);
}

/// The metadata of a `tokenizer.json`.
fn with_tokenizer(writer: Writer, tokenizer: &Json) -> Writer {
    let mut tokens: BTreeMap<u64, (&str, i32)> = BTreeMap::new();
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        let kind = if token.starts_with("<0x") { 6 } else { 1 };
        tokens.insert(id.as_u64().unwrap(), (token, kind));
    }
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let token = added["content"].as_str().unwrap();
        tokens.insert(added["id"].as_u64().unwrap(), (token, if token == "<unk>" { 2 } else { 3 }));
    }
    let texts: Vec<&str> = tokens.values().map(|(token, _)| *token).collect();
    let kinds: Vec<Vec<u8>> = tokens.values().map(|(_, kind)| kind.to_le_bytes().to_vec()).collect();
    let writer = writer.texts("tokenizer.ggml.tokens", &texts).array("tokenizer.ggml.token_type", Kind::I32, &kinds);
    if tokenizer["model"]["byte_fallback"] == true {
        let prefix = tokenizer["normalizer"]["type"] == "Sequence";
        let writer = if prefix { writer } else { writer.bool("tokenizer.ggml.add_space_prefix", false) };
        // SentencePiece numbers its merges downwards.
        let score = |id: usize| -(id.saturating_sub(259) as f32);
        let scores: Vec<Vec<u8>> = (0..texts.len()).map(|id| score(id).to_le_bytes().to_vec()).collect();
        return writer.text("tokenizer.ggml.model", "llama").array("tokenizer.ggml.scores", Kind::F32, &scores);
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let merges: Vec<String> =
        merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect();
    let pre = match tokenizer.pointer("/pre_tokenizer/pretokenizers/0/pattern/Regex").and_then(Json::as_str) {
        None => "gpt-2",
        Some(pattern) if pattern.contains(r"\p{N}{1,3}") => "llama-bpe",
        Some(_) => "qwen2",
    };
    let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
    writer.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", pre).texts("tokenizer.ggml.merges", &merges)
}

#[test]
fn a_converted_tokenizer_is_the_tokenizer_again() {
    for model in ["gpt2", "llama3", "mistral", "qwen3"] {
        let folder = format!("{}/../tests/golden/{model}", env!("CARGO_MANIFEST_DIR"));
        let read = |name: &str| -> Json {
            serde_json::from_slice(&std::fs::read(format!("{folder}/{name}")).unwrap()).unwrap()
        };
        let mut writer = small();
        writer.entries.retain(|(key, _)| !key.starts_with("tokenizer."));
        let (generation, tokenizer) = (read("generation_config.json"), read("tokenizer.json"));
        for kind in ["bos", "eos"] {
            let id = generation[format!("{kind}_token_id")].as_u64();
            writer = id.map_or(writer.clone(), |id| writer.u32(&format!("tokenizer.ggml.{kind}_token_id"), id as u32));
        }
        let checkpoint = checkpoint(&with_tokenizer(writer, &tokenizer));
        let tokenizer = Tokenizer::of(&checkpoint).unwrap().unwrap();
        let ids = |value: &Json| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        for example in read("golden.json")["tokenizer_examples"].as_array().unwrap() {
            let text = example["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&example["ids"]), "{model}: {text}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&example["ids_no_special"]), "{model}: {text}");
            assert_eq!(tokenizer.decode(&ids(&example["ids"])).unwrap(), example["decoded"], "{model}");
        }
        let reference = Checkpoint::open(&folder).unwrap();
        assert!(checkpoint.end_tokens().unwrap().contains(&reference.end_tokens().unwrap()[0]));
    }
}

/// `blocks`, whose text is split in a way that has this name.
fn split_as(name: &str) -> Writer {
    let mut writer = blocks();
    writer.entries.retain(|(key, _)| key != "tokenizer.ggml.pre");
    writer.text("tokenizer.ggml.pre", name)
}

/// Ways to split text in published files of each architecture; none where all have SentencePiece's tokenizers.
const PUBLISHED: &[(&str, &[&str])] = &[
    ("llama", &["llama-bpe", "smollm", "tekken", "deepseek-llm", "deepseek-coder"]),
    ("qwen2", &["qwen2", "deepseek-r1-qwen"]),
    ("qwen3", &["qwen2"]),
    ("qwen2moe", &["qwen2"]),
    ("qwen3moe", &["qwen2"]),
    ("olmoe", &["olmo"]),
    ("phi3", &["dbrx", "gpt-4o"]),
    ("gemma", &[]),
    ("gemma2", &[]),
    ("gemma3", &[]),
    ("gpt2", &["gpt-2"]),
    ("gptneox", &["olmo"]),
    ("bloom", &["bloom", "gpt3-finnish", "poro-chat"]),
    ("olmo2", &["dbrx"]),
    ("stablelm", &["stablelm2"]),
    ("starcoder2", &["starcoder"]),
    ("command-r", &["command-r"]),
    ("granite", &["refact"]),
    ("falcon", &["falcon"]),
    ("granitemoe", &["refact"]),
    ("gpt-oss", &["gpt-4o"]),
    ("llama4", &["llama4"]),
    ("deepseek2", &["deepseek-llm", "deepseek-v3"]),
];

#[test]
fn text_is_split_for_every_architecture() {
    for architecture in ARCHITECTURES {
        let found = PUBLISHED.iter().find(|(name, _)| *name == architecture.name);
        let (name, splits) = found.unwrap_or_else(|| panic!("{}: how is its text split?", architecture.name));
        for split in *splits {
            let tokenizer = Tokenizer::of(&checkpoint(&split_as(split)));
            let tokenizer = tokenizer.unwrap_or_else(|error| panic!("{name}: {error}")).unwrap();
            assert_eq!(tokenizer.encode("ab<|im_end|>b", false).unwrap(), [2, 3, 1], "{name}: {split}");
        }
    }
}

/// The words of a text with punctuation, digits, and letters of several scripts, as the `tokenizers` package finds them by the
/// models' own files.
#[test]
fn words_are_those_of_the_models_own_files() {
    let text = "Don't pay $1234.50,\n\nnor x²=½ (or 12345%)…  été, 漢字かな! мир  ";
    for (name, expected) in [
        ("bloom", "Don't Ġpay Ġ$1234 . 50 ,ĊĊ nor ĠxÂ²=Â½ Ġ( or Ġ12345% )âĢ¦Ġ ĠÃ©tÃ© , Ġæ¼¢åŃĹãģĭãģª ! ĠÐ¼Ð¸ÑĢ ĠĠ"),
        (
            "falcon",
            "Don ' t Ġpay Ġ $ 123 4 . 50 , Ċ Ċ nor Ġx Â ² = Â ½ Ġ ( or Ġ 123 45 %)âĢ¦ Ġ ĠÃ©tÃ© , Ġæ ¼ ¢åŃĹãģĭãģª ! ĠÐ ¼ Ð¸ÑĢ ĠĠ",
        ),
        (
            "deepseek-llm",
            "Don ' t Ġpay Ġ$ 1 2 3 4 . 5 0 , Ċ Ċ nor Ġx Â² = Â½ Ġ( or Ġ 1 2 3 4 5 %) âĢ¦ Ġ ĠÃ© t Ã© , Ġ æ¼¢åŃĹãģĭãģª ! ĠÐ¼Ð¸ÑĢ ĠĠ",
        ),
        (
            "deepseek-coder",
            "Don ' t Ġpay Ġ$ 1 2 3 4 . 5 0 , Ċ Ċ nor Ġx Â² = Â½ Ġ( or Ġ 1 2 3 4 5 %) âĢ¦ Ġ ĠÃ©tÃ© , Ġ æ¼¢åŃĹãģĭãģª ! ĠÐ¼Ð¸ÑĢ ĠĠ",
        ),
    ] {
        let description = open(split_as(name).file()).unwrap().tokenizer().unwrap().unwrap();
        let split: PreTokenizerWrapper = serde_json::from_value(description.keys["pre_tokenizer"].clone()).unwrap();
        let mut words = PreTokenizedString::from(text);
        split.pre_tokenize(&mut words).unwrap();
        let words = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let words: Vec<&str> = words.into_iter().map(|(word, ..)| word).collect();
        assert_eq!(words.join(" "), expected, "{name}");
    }
}
