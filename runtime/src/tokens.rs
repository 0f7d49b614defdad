//! Text to tokens and back, by a `tokenizer.json`.

mod description;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::Encoding;
pub(crate) use tokenizers::models::bpe::Vocab;

pub(crate) use description::{Description, Vocabulary};

use crate::Error;
use crate::checkpoint::Checkpoint;

/// A tokenizer as `tokenizer.json` describes it.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// The tokenizer of a checkpoint: its `tokenizer.json`, or what a GGUF file's metadata says; `None` if it has none.
    ///
    /// # Errors
    /// If the file is there and cannot be understood.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>, Error> {
        checkpoint.tokenizer()?.map(|(file, description)| Tokenizer::described(file, description)).transpose()
    }

    /// Reads the content of a `tokenizer.json`; `file` is its path, for messages.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn parse(file: &str, json: &[u8]) -> Result<Tokenizer, Error> {
        Tokenizer::described(file, Description::parse(file, json)?)
    }

    fn described(file: &str, description: Description) -> Result<Tokenizer, Error> {
        let wrong = |problem| Error::File { file: file.into(), problem: format!("not a tokenizer: {problem}") };
        let inner = guard(|| description.tokenizer()).map_err(wrong)?;
        if inner.get_vocab_size(false) == 0 {
            return Err(wrong("its vocabulary is empty".into()));
        }
        Ok(Tokenizer { inner })
    }

    /// How many tokens there are, special ones included. A model's vocabulary may be larger, where rows were added to
    /// its embedding for alignment.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens of a text; with `special`, also those that the tokenizer puts around a text of its own (a begin token).
    ///
    /// # Errors
    /// If the tokenizer cannot express the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = guard(|| self.inner.encode_fast(text, special));
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|problem| Error::Tokenizer { problem })
    }

    /// The tokens that [`Tokenizer::encode`] puts in front of any text, if it is to put tokens around it.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn begin(&self) -> Result<Vec<u32>, Error> {
        let text = Encoding::from_tokens(vec![tokenizers::Token::new(0, String::new(), (0, 0))], 0);
        let around = guard(|| self.inner.post_process(text, None, true));
        let around = around.map_err(|problem| Error::Tokenizer { problem })?;
        let begin = around.get_special_tokens_mask().iter().take_while(|&&special| special != 0).count();
        Ok(around.get_ids()[..begin].to_vec())
    }

    /// The text of tokens, without the special ones. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &token in tokens {
            text += &stream.push(token)?;
        }
        text += &stream.finish()?;
        Ok(text)
    }

    /// Decodes token by token.
    pub fn stream(&self) -> Stream<'_> {
        self.stream_after(&[])
    }

    /// Decodes token by token what follows other tokens: a space that only a text's first token would lose is kept.
    pub fn stream_after(&self, before: &[u32]) -> Stream<'_> {
        let has_text = |token: &u32| self.knows(*token) && !self.is_special(*token);
        let mut window: Vec<u32> = before.iter().rev().copied().filter(has_text).take(CONTEXT).collect();
        window.reverse();
        let mut stream = Stream { tokenizer: self, window, fresh: 0, given: String::new() };
        let text = stream.text(&stream.window).unwrap_or_default();
        stream.given = text.trim_end_matches(INCOMPLETE).to_owned();
        stream.fresh = stream.window.len();
        stream
    }

    /// The token that is written so.
    pub(crate) fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    fn knows(&self, token: u32) -> bool {
        self.inner.id_to_token(token).is_some()
    }

    /// Whether a token has no text.
    fn is_special(&self, token: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&token).is_some_and(|token| token.special)
    }
}

/// How many tokens of what went before a stream looks at.
const CONTEXT: usize = 8;

/// What U+FFFD may be: a character's first bytes, which later tokens complete.
const INCOMPLETE: char = char::REPLACEMENT_CHARACTER;

/// Turns tokens into text as they come; what it gives out is whole characters, and together the text of all tokens.
///
/// A token's text can depend on the ones before it, and a character can be spread over several. So a window of tokens
/// is decoded as a whole each time, what was given out of it before is taken off its front, and what may be the
/// beginning of a character is kept off its end. The window moves on when all its text is out.
#[derive(Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    window: Vec<u32>,
    fresh: usize,
    given: String,
}

impl Stream<'_> {
    /// Takes a token and gives the text that is certain now; it may be empty.
    ///
    /// # Errors
    /// If the token is not in the vocabulary.
    pub fn push(&mut self, token: u32) -> Result<String, Error> {
        if !self.tokenizer.knows(token) {
            return Err(Error::UnknownToken { id: token, size: self.tokenizer.size() });
        }
        if self.tokenizer.is_special(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        let mut text = self.text(&self.window)?;
        if !text.starts_with(&self.given) {
            if self.given.starts_with(text.trim_end_matches(INCOMPLETE)) {
                return Ok(String::new());
            }
            // Some decoders take back whole characters written in bytes when a byte follows that fits nowhere: what is
            // out stays, and decoding starts again after it.
            self.window.drain(..self.fresh);
            (self.fresh, self.given) = (0, String::new());
            text = self.text(&self.window)?;
        }
        let whole = text.trim_end_matches(INCOMPLETE);
        let new = whole.get(self.given.len()..).unwrap_or_default().to_owned();
        self.given += &new;
        if !new.is_empty() && self.given.len() == text.len() {
            self.window.drain(..self.fresh);
            self.fresh = self.window.len();
            self.given = self.text(&self.window)?;
        }
        Ok(new)
    }

    /// The text that was still held back.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(self) -> Result<String, Error> {
        let text = self.text(&self.window)?;
        match text.strip_prefix(self.given.as_str()) {
            Some(rest) => Ok(rest.to_owned()),
            None => self.text(&self.window[self.fresh..]),
        }
    }

    fn text(&self, tokens: &[u32]) -> Result<String, Error> {
        // Of no tokens some decoders panic.
        if tokens.is_empty() {
            return Ok(String::new());
        }
        guard(|| self.tokenizer.inner.decode(tokens, true)).map_err(|problem| Error::Tokenizer { problem })
    }
}

/// Calls the `tokenizers` crate, which panics on some inputs: a panic is an error here.
fn guard<T, E: ToString>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library gave up on it".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(model: &str) -> Tokenizer {
        let file = format!("{}/../tests/golden/{model}/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
        Tokenizer::parse(&file, &std::fs::read(&file).unwrap()).unwrap()
    }

    fn examples(model: &str) -> Vec<serde_json::Value> {
        let file = format!("{}/../tests/golden/{model}/golden.json", env!("CARGO_MANIFEST_DIR"));
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        golden["tokenizer_examples"].as_array().unwrap().clone()
    }

    fn ids(value: &serde_json::Value) -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    const MODELS: [&str; 5] = ["gpt2", "opt", "llama3", "mistral", "qwen3"];

    #[test]
    fn texts_become_the_reference_s_tokens_and_come_back() {
        for model in MODELS {
            let tokenizer = tokenizer(model);
            for example in examples(model) {
                let text = example["text"].as_str().unwrap();
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&example["ids"]), "{model}: {text}");
                assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&example["ids_no_special"]), "{model}: {text}");
                assert_eq!(tokenizer.decode(&ids(&example["ids"])).unwrap(), example["decoded"], "{model}");
            }
        }
    }

    #[test]
    fn a_text_begins_with_what_is_put_in_front_of_it() {
        for (model, begin) in [("gpt2", &[][..]), ("opt", &[]), ("llama3", &[381]), ("mistral", &[1]), ("qwen3", &[])] {
            assert_eq!(tokenizer(model).begin().unwrap(), begin, "{model}");
        }
        let words = r#"{"type":"WordLevel","vocab":{"?":0,"a":1,"<":2,">":3},"unk_token":"?"}"#;
        let piece = |id: &str| format!(r#"{{"SpecialToken":{{"id":"{id}","type_id":0}}}}"#);
        let token = |id: &str, number| format!(r#""{id}":{{"id":"{id}","ids":[{number}],"tokens":["{id}"]}}"#);
        let single = format!(r#"{},{{"Sequence":{{"id":"A","type_id":0}}}},{}"#, piece("<"), piece(">"));
        let around = format!(
            r#"{{"type":"TemplateProcessing","single":[{single}],"pair":[],"special_tokens":{{{},{}}}}}"#,
            token("<", 2),
            token(">", 3),
        );
        let json = format!(r#"{{"model":{words},"post_processor":{around}}}"#);
        let around = Tokenizer::parse("a/tokenizer.json", json.as_bytes()).unwrap();
        assert_eq!((around.encode("a", true).unwrap(), around.begin().unwrap()), (vec![2, 1, 3], vec![2]));
    }

    #[test]
    fn a_file_need_not_say_which_model_it_has() {
        let text = "To be, or not to be";
        let without_type = |json: &mut serde_json::Value| {
            let removed = json["model"].as_object_mut().unwrap().remove("type");
            assert!(removed.is_some());
        };
        for model in MODELS {
            let file = format!("{}/../tests/golden/{model}/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
            let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            without_type(&mut json);
            let found = Tokenizer::parse(&file, json.to_string().as_bytes()).unwrap();
            assert_eq!(found.encode(text, true).unwrap(), tokenizer(model).encode(text, true).unwrap(), "{model}");
        }
        let words = r#"{"type":"WordLevel","vocab":{"?":0,"a":1},"unk_token":"?"}"#;
        let pieces = r###"{"type":"WordPiece","vocab":{"?":0,"a":1},"unk_token":"?","continuing_subword_prefix":"##","max_input_chars_per_word":9}"###;
        let scores = r#"{"type":"Unigram","vocab":[["?",0.0],["a",-1.0]],"unk_id":0}"#;
        for model in [words, pieces, scores] {
            let mut json: serde_json::Value = serde_json::from_str(&format!("{{\"model\":{model}}}")).unwrap();
            without_type(&mut json);
            let found = Tokenizer::parse("a/tokenizer.json", json.to_string().as_bytes()).unwrap();
            assert_eq!(found.encode("a", false).unwrap(), [1], "{model}");
        }
    }

    #[test]
    fn a_stream_gives_whole_characters_that_add_up() {
        let text = "naïve café 日本語 👩\u{200d}🚀  two\n\nlines €";
        for model in MODELS {
            let tokenizer = tokenizer(model);
            let tokens = tokenizer.encode(text, true).unwrap();
            let mut stream = tokenizer.stream();
            let pieces: Vec<String> = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
            assert!(!pieces.concat().contains(INCOMPLETE), "{model}: {pieces:?}");
            assert_eq!(pieces.concat() + &stream.finish().unwrap(), text, "{model}");
            assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 20, "{model}: {pieces:?}");
        }
    }

    #[test]
    fn a_stream_gives_what_decoding_at_once_gives() {
        // Tokens in any order, broken characters included. Where characters are written in byte tokens (Mistral's are
        // `<0x00>` to `<0xFF>`, 3 to 258), the crate gives up a whole run of them for one wrong byte; those are left out.
        let mut state = 1u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for model in MODELS {
            let tokenizer = tokenizer(model);
            for _ in 0..200 {
                let tokens =
                    (0..random(12)).map(|_| random(384)).filter(|id| model != "mistral" || !(3..259).contains(id));
                let tokens: Vec<u32> = tokens.collect();
                let mut stream = tokenizer.stream();
                let mut text = String::new();
                for &token in &tokens {
                    text += &stream.push(token).unwrap();
                }
                text += &stream.finish().unwrap();
                assert_eq!(text, tokenizer.inner.decode(&tokens, true).unwrap(), "{model}: {tokens:?}");
            }
        }
    }

    #[test]
    fn a_wrong_byte_takes_nothing_back() {
        let tokenizer = tokenizer("mistral");
        let byte = |byte: u32| 3 + byte;
        let mut stream = tokenizer.stream();
        let pieces = [0xc3, 0xa9, 0xff, 0x0a, 0xc3, 0x61].map(|value| stream.push(byte(value)).unwrap());
        assert_eq!(pieces[..2], ["", "é"]);
        assert_eq!(
            pieces.concat() + &stream.finish().unwrap(),
            tokenizer.decode(&[0xc3, 0xa9, 0xff, 0x0a, 0xc3, 0x61].map(byte)).unwrap()
        );
        assert!(pieces.concat().starts_with("é"), "{pieces:?}");
        let mut stream = tokenizer.stream();
        let pieces = [0xc3, 0xa9, 0xff].map(|value| stream.push(byte(value)).unwrap());
        assert_eq!(pieces.concat() + &stream.finish().unwrap(), "é\u{fffd}");
    }

    #[test]
    fn what_continues_a_text_keeps_its_space() {
        let tokenizer = tokenizer("mistral");
        let tokens = tokenizer.encode("To be or not", true).unwrap();
        for at in 1..tokens.len() {
            let (before, after) = tokens.split_at(at);
            let mut stream = tokenizer.stream_after(before);
            let mut text = tokenizer.decode(before).unwrap();
            for &token in after {
                text += &stream.push(token).unwrap();
            }
            assert_eq!(text + &stream.finish().unwrap(), "To be or not");
        }
    }

    #[test]
    fn special_tokens_have_no_text_and_unknown_ones_are_named() {
        let tokenizer = tokenizer("llama3");
        assert_eq!(tokenizer.size(), 384);
        assert_eq!(tokenizer.decode(&[381, 39, 382]).unwrap(), tokenizer.decode(&[39]).unwrap());
        let error = tokenizer.decode(&[39, 384]).unwrap_err();
        assert_eq!(error.to_string(), "token 384 is not in the tokenizer's vocabulary of 384 tokens");
        assert!(tokenizer.stream().push(u32::MAX).is_err());
    }

    #[test]
    fn special_tokens_are_not_kept() {
        let tokenizer = tokenizer("llama3");
        let mut stream = tokenizer.stream_after(&[381, 39, 381]);
        let before = stream.window.clone();
        assert_eq!(before, [39]);
        assert!((0..100).all(|_| stream.push(382).unwrap().is_empty()));
        assert_eq!(stream.window, before);
    }

    const TEMPLATE: &str = r#""post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<p>":{"id":"<p>","ids":[1],"tokens":["<p>"]}}}"#;

    #[test]
    fn files_that_describe_no_tokenizer_are_named() {
        let good = include_str!("../../tests/golden/gpt2/tokenizer.json");
        let cases = [
            "{}".into(),
            "[1, 2]".into(),
            good.replacen("\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"##\"", 1),
            good.replacen("\"post_processor\":null", TEMPLATE, 1),
            good.replacen("\"post_processor\":null", &TEMPLATE.replace("A", "B").replace("<s>", "<p>"), 1),
            good.replacen(
                "\"normalizer\":null",
                "\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"x\"}",
                1,
            ),
            good.replacen("\"BPE\"", "\"XYZ\"", 1),
            good.replacen("\"merges\":[[", "\"merges\":[[\"no such\", \"piece\"], [", 1),
        ];
        for json in cases {
            assert!(json != good);
            let error = Tokenizer::parse("a/tokenizer.json", json.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("a/tokenizer.json: not a tokenizer: ") && !error.contains('\n'), "{error}");
        }
        for json in ["", &good[..good.len() / 2], "{]"] {
            let error = Tokenizer::parse("a/tokenizer.json", json.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("a/tokenizer.json: not JSON: ") && !error.contains('\n'), "{error}");
        }
    }
}
