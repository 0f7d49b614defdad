//! Tokenizers as files of the field have them.

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
