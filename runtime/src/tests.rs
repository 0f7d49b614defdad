//! Loading, computing and generating with a small model whose every number is known.

use std::collections::HashMap;
use std::sync::Mutex;

use einfuse_codegen::Wanted;
use einfuse_graph::{Binary, Builder, Graph, Reduction};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use crate::*;

/// More than the tokenizer's 384, as some models have.
pub(crate) const VOCABULARY: usize = 400;

/// `x[t, v] = table[tokens, v]`; twice `x[t, v] += Σ_s x[s, v] · w[v] where s <= t`, from the cache; the logits are `x`.
fn graph() -> Graph {
    graph_within(None)
}

/// The same, where a position sees only the last few.
fn graph_within(window: Option<usize>) -> Graph {
    let mut b = Builder::new("test");
    let (t, s) = (b.tokens("t"), b.positions("s", window));
    let (u, v) = (b.axis("u", VOCABULARY), b.axis("v", VOCABULARY));
    let ids = b.input("tokens", &[t]);
    b.at("src/test.rs", 12, 5);
    let table = b.weight("table", &[u, v], "table.weight");
    let w = b.weight("w", &[v], "layers.{l}.w");
    let id = b.load(ids);
    let x = b.load_at(table, &[(u, id)]);
    let x = b.define("x", Some(&[t, v]), x);
    let out = b.layers(x, &[0, 0], |b, _, carry| {
        let (x, w) = (b.load(carry), b.load(w));
        let product = b.binary(Binary::Mul, x, w);
        let rows = b.define("rows", Some(&[t, v]), product);
        let kept = b.append(rows, s);
        let (kept, past, now) = (b.load(kept), b.coordinate(s), b.coordinate(t));
        let seen = b.binary(Binary::Le, past, now);
        let kept = b.masked(kept, seen);
        let sum = b.reduce(Reduction::Sum, &[s], kept);
        let y = b.binary(Binary::Add, x, sum);
        b.define("y", Some(&[t, v]), y)
    });
    b.finish(out).unwrap()
}

/// The weights of [`graph`].
#[derive(Clone)]
pub(crate) struct Numbers {
    table: Vec<f32>,
    w: [Vec<f32>; 2],
}

impl Numbers {
    /// Any numbers.
    pub(crate) fn random() -> Numbers {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let table = (0..VOCABULARY * VOCABULARY).map(|_| 3.0 * next()).collect();
        Numbers { table, w: [0, 1].map(|_| (0..VOCABULARY).map(|_| 0.1 * next()).collect()) }
    }

    /// Numbers with which each of these tokens is followed by the next one, and the last by the first.
    fn chain(tokens: &[u32]) -> Numbers {
        let mut table = vec![0.0; VOCABULARY * VOCABULARY];
        for (at, &token) in tokens.iter().enumerate() {
            table[token as usize * VOCABULARY + tokens[(at + 1) % tokens.len()] as usize] = 9.0;
        }
        Numbers { table, w: [0, 1].map(|_| vec![0.001; VOCABULARY]) }
    }

    fn map(&self, round: impl Fn(f32) -> f32) -> Numbers {
        let each = |numbers: &[f32]| numbers.iter().map(|&x| round(x)).collect();
        Numbers { table: each(&self.table), w: [each(&self.w[0]), each(&self.w[1])] }
    }

    /// For each layer the carry `[t, v]`, the last being the logits.
    fn expected(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        self.expected_within(usize::MAX, tokens)
    }

    fn expected_within(&self, window: usize, tokens: &[u32]) -> Vec<Vec<f64>> {
        let row = |&token: &u32| &self.table[token as usize * VOCABULARY..][..VOCABULARY];
        let mut x: Vec<f64> = tokens.iter().flat_map(row).map(|&x| f64::from(x)).collect();
        let mut all = vec![x.clone()];
        for w in &self.w {
            let products: Vec<f64> = x.iter().zip(w.iter().cycle()).map(|(x, &w)| x * f64::from(w)).collect();
            for (i, x) in x.iter_mut().enumerate() {
                let column = products[i % VOCABULARY..=i].iter().rev().step_by(VOCABULARY);
                *x += column.take(window).sum::<f64>();
            }
            all.push(x.clone());
        }
        all
    }

    pub(crate) fn safetensors(&self, dtype: Dtype) -> Vec<u8> {
        let bytes = |numbers: &[f32]| -> Vec<u8> {
            match dtype {
                Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
                Dtype::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                Dtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                Dtype::F8E4M3 => numbers.iter().map(|&x| nearest_byte(x).0).collect(),
                other => panic!("safetensors have no {other:?}"),
            }
        };
        let dtype = match dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::F8E4M3 => safetensors::Dtype::F8_E4M3,
            other => panic!("safetensors have no {other:?}"),
        };
        let data = [bytes(&self.table), bytes(&self.w[0]), bytes(&self.w[1])];
        let views = HashMap::from([
            ("table.weight", TensorView::new(dtype, vec![VOCABULARY, VOCABULARY], &data[0]).unwrap()),
            ("layers.0.w", TensorView::new(dtype, vec![VOCABULARY], &data[1]).unwrap()),
            ("layers.1.w", TensorView::new(dtype, vec![VOCABULARY], &data[2]).unwrap()),
            ("unused", TensorView::new(dtype, vec![VOCABULARY], &data[2]).unwrap()),
        ]);
        safetensors::serialize(views, None).unwrap()
    }
}

/// The byte of E4M3 that is nearest to a number, and what it is.
fn nearest_byte(x: f32) -> (u8, f32) {
    let number = |byte: u8| {
        let mut out = [0.0];
        Dtype::F8E4M3.decode(&[byte], &mut out);
        (byte, out[0])
    };
    let all = (0..0x7f).map(|byte| byte | if x < 0.0 { 0x80 } else { 0 }).map(number);
    all.min_by(|a, b| (a.1 - x).abs().total_cmp(&(b.1 - x).abs())).unwrap()
}

const CONFIG: &str = r#"{"architectures": ["Test"], "eos_token_id": 0}"#;
const TOKENIZER: &[u8] = include_bytes!("../../tests/golden/gpt2/tokenizer.json");

pub(crate) fn folder(weights: &[u8], tokenizer: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    if tokenizer {
        std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
    }
    folder
}

fn load(numbers: &Numbers, settings: Settings) -> Model {
    let folder = folder(&numbers.safetensors(Dtype::F32), true);
    Model::load(&Checkpoint::open(folder.path()).unwrap(), &graph(), settings).unwrap()
}

fn threads(threads: usize) -> Settings {
    Settings { threads: Some(threads), context: Some(40), ..Settings::default() }
}

fn assert_close(computed: &[f32], expected: &[f64]) {
    assert_within(1e-5, computed, expected);
}

/// Compares with a tolerance that is a share of the largest magnitude.
fn assert_within(tolerance: f64, computed: &[f32], expected: &[f64]) {
    assert_eq!(computed.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    for (a, b) in computed.iter().zip(expected) {
        assert!((f64::from(*a) - b).abs() <= tolerance * largest, "{a} is not {b}");
    }
}

const TOKENS: [u32; 11] = [5, 399, 0, 17, 17, 200, 5, 83, 311, 12, 7];

#[test]
fn a_sequence_is_the_same_however_it_is_cut() {
    let numbers = Numbers::random();
    let expected = numbers.expected(&TOKENS);
    let logits = expected.last().unwrap();
    for (workers, chunk) in [(1, 1), (1, 2), (2, 3), (1, 4), (3, 5), (2, 6), (1, 7), (2, 512)] {
        for rows in [Wanted::Last, Wanted::All] {
            let model = load(&numbers, Settings { chunk, rows, ..threads(workers) });
            let mut session = model.session();
            assert_close(&session.feed(&TOKENS).unwrap(), &logits[10 * VOCABULARY..]);
            session.clear();
            assert_close(&session.feed_all(&TOKENS).unwrap(), logits);
            session.clear();
            session.feed(&TOKENS[..4]).unwrap();
            let trace = session.trace(&TOKENS[4..]).unwrap();
            assert_close(&trace.logits, &logits[4 * VOCABULARY..]);
            assert_eq!(trace.hidden.len(), 3);
            for (hidden, expected) in trace.hidden.iter().zip(&expected) {
                assert_close(hidden, &expected[4 * VOCABULARY..]);
            }
            assert_eq!(session.tokens(), TOKENS);
        }
    }
}

#[test]
fn a_window_needs_no_more_than_its_pages() {
    let numbers = Numbers::random();
    let weights = numbers.safetensors(Dtype::F32).leak();
    let config = CONFIG.as_bytes();
    let model = Embedded { name: "window", config, generation_config: None, tokenizer: None, weights };
    let checkpoint = Checkpoint::embedded(&model).unwrap();
    let tokens: Vec<u32> = (0..400).map(|i| i * 37 % 400).collect();
    for (window, chunk) in [(10, 1), (10, 70), (64, 33), (65, 512)] {
        let graph = graph_within(Some(window));
        let model = Model::load(&checkpoint, &graph, Settings { chunk, context: Some(1000), ..threads(1) }).unwrap();
        let mut session = model.session();
        for end in [3, 63, 64, 200, 400] {
            let past = session.tokens().len();
            let logits = session.feed(&tokens[past..end]).unwrap();
            let expected = numbers.expected_within(window, &tokens[..end]).pop().unwrap();
            assert_close(&logits, &expected[(end - 1) * VOCABULARY..]);
        }
    }
}

#[test]
fn weights_are_kept_as_asked() {
    // What is stored as bf16 is multiplied as bf16, by processors that can: numbers of eight bits.
    const NARROW: f64 = 1.0 / 256.0;
    const EXACT: f64 = 1e-5;
    let numbers = Numbers::random();
    let to_bf16 = |x| bf16::from_f32(x).to_f32();
    let to_f16 = |x| f16::from_f32(x).to_f32();
    let narrow = |numbers: &Numbers| Numbers { table: numbers.map(to_bf16).table, ..numbers.clone() };
    let f16s = numbers.map(to_f16);
    let f8s = numbers.map(|x| nearest_byte(x).1);
    let cases = [
        (Dtype::F32, Precision::Stored, EXACT, numbers.clone()),
        (Dtype::F32, Precision::F32, EXACT, numbers.clone()),
        (Dtype::F32, Precision::Bf16, NARROW, narrow(&numbers)),
        (Dtype::Bf16, Precision::Stored, NARROW, numbers.map(to_bf16)),
        (Dtype::Bf16, Precision::F32, EXACT, numbers.map(to_bf16)),
        (Dtype::Bf16, Precision::Bf16, NARROW, numbers.map(to_bf16)),
        (Dtype::F16, Precision::Stored, EXACT, f16s.clone()),
        (Dtype::F16, Precision::Bf16, NARROW, narrow(&f16s)),
        (Dtype::F8E4M3, Precision::Stored, NARROW, f8s.clone()),
        (Dtype::F8E4M3, Precision::F32, EXACT, f8s),
    ];
    for (dtype, precision, tolerance, expected) in cases {
        let folder = folder(&numbers.safetensors(dtype), false);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let model = Model::load(&checkpoint, &graph(), Settings { precision, ..threads(2) }).unwrap();
        let logits = model.session().feed(&TOKENS).unwrap();
        assert_within(tolerance, &logits, &expected.expected(&TOKENS)[2][10 * VOCABULARY..]);
        assert_eq!(model.leftovers(), ["unused"]);
    }
}

#[test]
fn loading_reports_how_far_it_is() {
    let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
    let report = seen.clone();
    let progress = Box::new(move |progress| report.lock().unwrap().push(progress));
    let model = load(&Numbers::random(), Settings { progress: Some(progress), ..threads(1) });
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], Progress::Compiling);
    let bytes: usize = model.program().weights().iter().map(|packed| packed.bytes).sum();
    assert!(matches!(seen.last(), Some(Progress::Packing { done, .. }) if *done == bytes), "{seen:?}");
}

/// A text of characters of one, two and three tokens, and its tokens; each is followed by the next, the last by the end
/// token, and that by the first.
fn chain() -> (&'static str, Vec<u32>, Numbers) {
    let text = "abcdé€xyz";
    let tokenizer = Tokenizer::parse("tokenizer.json", TOKENIZER).unwrap();
    let mut buffer = [0; 4];
    let tokens = text.chars().flat_map(|c| tokenizer.encode(c.encode_utf8(&mut buffer), false).unwrap());
    let mut tokens: Vec<u32> = tokens.collect();
    assert_eq!(tokens.len(), 12);
    tokens.push(0);
    (text, tokens.clone(), Numbers::chain(&tokens))
}

/// The tokens, the text, and the pieces of text that a generation yields.
fn run(session: &mut Session<'_>, prompt: &str, options: &Generate) -> (Vec<u32>, String, Vec<String>) {
    let all = session.generate(prompt, options).unwrap().collect::<Result<Vec<Token>, Error>>().unwrap();
    let pieces: Vec<String> = all.iter().map(|token| token.text.clone()).collect();
    (all.iter().map(|token| token.id).collect(), pieces.concat(), pieces)
}

#[test]
fn text_comes_in_whole_characters_up_to_the_end_token() {
    let (text, tokens, numbers) = chain();
    let model = load(&numbers, threads(2));
    let mut session = model.session();
    let (ids, generated, pieces) = run(&mut session, "ab", &Generate::default());
    assert_eq!(ids, tokens[2..]);
    assert_eq!("ab".to_owned() + &generated, text);
    assert_eq!(pieces, ["c", "d", "", "é", "", "", "€", "x", "y", "z", ""]);
    let summary = session.summary();
    assert_eq!((summary.prompt_tokens, summary.generated_tokens), (2, 11));
    assert_eq!(summary.stop, Some(Stop::EndToken(0)));
    assert!(summary.first_token >= summary.prefill && summary.decode_rate() > 0.0 && summary.prefill_rate() > 0.0);
    assert_eq!(session.tokens(), tokens);
}

#[test]
fn generation_stops_where_it_should() {
    let (_, tokens, numbers) = chain();
    let model = load(&numbers, threads(1));
    let run = |options: &Generate| {
        let mut session = model.session();
        let (ids, text, pieces) = run(&mut session, "a", options);
        assert_eq!(session.summary().generated_tokens, ids.len());
        (ids, text, pieces, session.summary().stop.clone().unwrap())
    };
    let stops = |stops: &[&str]| {
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        Generate { stops, ..Generate::default() }
    };

    let limit = |limit| Generate { limit: Some(limit), ..Generate::default() };
    assert_eq!(run(&limit(0)), (vec![], "".into(), vec![], Stop::Limit));
    assert_eq!(
        run(&limit(3)),
        (tokens[1..4].to_vec(), "bcd".into(), vec!["b".into(), "c".into(), "d".into()], Stop::Limit)
    );
    // The first half of a character is given out when nothing more will come.
    assert_eq!(run(&limit(4)).1, "bcd\u{fffd}");

    let (ids, text, pieces, stop) = run(&stops(&["dé€y", "dé€xy", "zz"]));
    assert_eq!((text.as_str(), stop), ("bc", Stop::StopString("dé€xy".into())));
    assert_eq!(ids, tokens[1..11]);
    assert!(pieces[2..].iter().all(String::is_empty), "{pieces:?}");
    let (_, text, pieces, stop) = run(&stops(&["dé€y", "cx"]));
    assert_eq!((text.as_str(), stop), ("bcdé€xyz", Stop::EndToken(0)));
    assert_eq!(pieces, ["b", "", "c", "", "", "", "", "", "dé€x", "y", "z", ""]);
    assert_eq!(run(&stops(&["z", "yz", "q"])).1, "bcdé€x");
    // What is held back comes out at the end.
    assert_eq!(run(&stops(&["yz!"])).1, "bcdé€xyz");
    assert_eq!(run(&Generate { limit: Some(10), ..stops(&["yz"]) }).1, "bcdé€xy");

    let (ids, text, _, stop) = run(&Generate { ignore_end: true, ..Generate::default() });
    assert_eq!((ids.len(), stop), (40, Stop::ContextEnd));
    assert_eq!(text, "bcdé€xyzabcdé€xyzabcdé€xyzab");
}

#[test]
fn a_caller_may_stop_and_go_on() {
    let (text, tokens, numbers) = chain();
    let model = load(&numbers, Settings { sequences: 2, ..threads(1) });
    let mut session = model.session();
    let mut generated = String::from("a");
    for token in session.generate("a", &Generate::default()).unwrap().take(6) {
        generated += &token.unwrap().text;
    }
    assert_eq!((session.summary().generated_tokens, &session.summary().stop), (6, &None));
    let next = tokens[7..8].to_vec();
    for token in session.generate(&next, &Generate::default()).unwrap() {
        generated += &token.unwrap().text;
    }
    assert_eq!((session.tokens(), generated.as_str()), (&tokens[..], text));
    let mut whole = model.session();
    assert_eq!(session.feed(&[7]).unwrap(), whole.feed(&[&tokens[..], &[7]].concat()).unwrap());
}

/// A template of chats whose end token is the tokenizer's first.
fn talk(template: &str) -> Template {
    let end = Some("<|endoftext|>".to_owned());
    Template::new(Chat { file: "x".into(), template: template.into(), begin: None, end }).unwrap()
}

fn said(role: Role, content: &str) -> Message {
    Message { role, content: content.into() }
}

#[test]
fn a_conversation_computes_what_is_new() {
    let (_, tokens, numbers) = chain();
    let model = load(&numbers, threads(1));
    let template = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}";
    let mut conversation = Conversation::new(&model, talk(template), Vec::new()).unwrap();
    let answer = |conversation: &mut Conversation<'_>, text: &str, options: &Generate| {
        let all = conversation.say(text, options).unwrap().collect::<Result<Vec<Token>, Error>>().unwrap();
        let text = all.iter().map(|token| token.text.as_str()).collect::<String>();
        let summary = conversation.session().summary();
        (text, summary.prompt_tokens, summary.generated_tokens)
    };
    let greedy = Generate::default();
    assert_eq!(answer(&mut conversation, "ab", &greedy), ("cdé€xyz".into(), 2, 11));
    assert_eq!(conversation.session().tokens(), tokens);
    assert_eq!(conversation.answer(), 2);
    // The end token has not been computed yet, but is there.
    assert_eq!(answer(&mut conversation, "abc", &greedy), ("dé€xyz".into(), 3, 10));
    assert_eq!(conversation.session().tokens(), [&tokens[..], &tokens[..]].concat());
    // An answer that was cut short gets its end token from the template; a stop string is no part of it.
    conversation = Conversation::new(&model, talk(template), Vec::new()).unwrap();
    let stop = Generate { stops: vec!["x".into()], ..Generate::default() };
    assert_eq!(answer(&mut conversation, "ab", &stop), ("cdé€".into(), 2, 8));
    assert_eq!(answer(&mut conversation, "a", &Generate { limit: Some(2), ..greedy.clone() }), ("bc".into(), 2, 2));
    assert_eq!(conversation.session().tokens(), [&tokens[..9], &[0], &tokens[..3]].concat());
    assert_eq!(answer(&mut conversation, "a", &Generate { limit: Some(1), ..greedy.clone() }).1, 2);
    // What could not be asked was not said.
    conversation = Conversation::new(&model, talk(template), Vec::new()).unwrap();
    answer(&mut conversation, "ab", &stop);
    let none = Generate { stops: vec![String::new()], ..Generate::default() };
    assert!(conversation.say("b", &none).is_err() && conversation.say("b", &none).is_err());
    answer(&mut conversation, "a", &Generate { limit: Some(2), ..greedy.clone() });
    assert_eq!(conversation.session().tokens(), [&tokens[..9], &[0], &tokens[..3]].concat());
}

#[test]
fn a_conversation_that_the_template_changes_is_computed_anew() {
    let (_, tokens, numbers) = chain();
    let template = "{% for m in messages %}{{ m.content if m.role != 'assistant' else 'z' }}{% endfor %}";
    for window in [None, Some(3)] {
        let folder = folder(&numbers.safetensors(Dtype::F32), true);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let model = Model::load(&checkpoint, &graph_within(window), Settings { sequences: 2, ..threads(1) }).unwrap();
        let mut conversation = Conversation::new(&model, talk(template), vec![said(Role::System, "b")]).unwrap();
        conversation.say("ab", &Generate::default()).unwrap().for_each(drop);
        conversation.say("c", &Generate { limit: Some(1), ..Generate::default() }).unwrap().for_each(drop);
        let expected = [tokens[1], tokens[0], tokens[1], tokens[11], tokens[2]];
        assert_eq!(conversation.session().tokens()[..5], expected);
        assert_eq!(conversation.session().summary().prompt_tokens, 2);
        let again = model.session().feed(&expected).unwrap();
        let next = (0..).zip(&again).max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id);
        assert_eq!(conversation.session().tokens().get(5).copied(), next);
    }
}

#[test]
fn a_conversation_stops_at_the_end_of_a_turn() {
    let (_, tokens, numbers) = chain();
    let folder = folder(&numbers.safetensors(Dtype::F32), true);
    std::fs::write(folder.path().join("config.json"), CONFIG.replace("0}", "383}")).unwrap();
    let model = Model::load(&Checkpoint::open(folder.path()).unwrap(), &graph(), threads(1)).unwrap();
    let mut conversation = Conversation::new(&model, talk("{{ messages[0].content }}"), Vec::new()).unwrap();
    conversation.say("ab", &Generate::default()).unwrap().for_each(drop);
    assert_eq!((model.end_tokens(), conversation.session().tokens()), (&[383][..], &tokens[..]));
    assert_eq!(conversation.session().summary().stop, Some(Stop::EndToken(0)));

    let error = Template::of(&Checkpoint::open(folder.path()).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: there is no chat template (", folder.path().display())), "{error}");
    let refuse = talk("{{ raise_exception('no') if messages[1] else 'ab' }}");
    let mut conversation = Conversation::new(&model, refuse, Vec::new()).unwrap();
    conversation.say("x", &Generate::default()).unwrap().for_each(drop);
    for _ in 0..2 {
        let error = conversation.say("y", &Generate::default()).unwrap_err().to_string();
        assert_eq!(error, "x: the chat template refuses these messages: no");
    }
    let long = "a".repeat(41);
    let error = Conversation::new(&model, talk("{{ messages[0].content }}"), Vec::new()).unwrap();
    let error = { error }.say(&long, &Generate::default()).unwrap_err().to_string();
    assert!(error.starts_with("41 tokens do not fit"), "{error}");
}

#[test]
fn an_end_token_is_no_part_of_an_answer() {
    let (_, tokens, numbers) = chain();
    let template = "{% for m in messages %}{{ m.content }}{{ 'd' if m.role == 'assistant' }}{% endfor %}";
    let folder = folder(&numbers.safetensors(Dtype::F32), true);
    // The token of `d`, which is not special.
    std::fs::write(folder.path().join("config.json"), CONFIG.replace("0}", &format!("{}}}", tokens[3]))).unwrap();
    let model = Model::load(&Checkpoint::open(folder.path()).unwrap(), &graph(), threads(1)).unwrap();
    let mut conversation = Conversation::new(&model, talk(template), Vec::new()).unwrap();
    let one = Generate { limit: Some(1), ..Generate::default() };
    conversation.say("ab", &Generate::default()).unwrap().for_each(drop);
    assert_eq!(conversation.session().summary().stop, Some(Stop::EndToken(tokens[3])));
    conversation.say("a", &one).unwrap().for_each(drop);
    assert_eq!(conversation.session().tokens()[..conversation.answer()], [&tokens[..4], &tokens[..1]].concat());
}

#[test]
fn a_conversation_goes_on_after_what_was_said() {
    let (_, tokens, numbers) = chain();
    let model = load(&numbers, threads(1));
    let template = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}";
    let before = vec![said(Role::User, "ab"), said(Role::Assistant, "cdé€xyz")];
    let mut conversation = Conversation::new(&model, talk(template), before).unwrap();
    assert_eq!(conversation.answer(), 0);
    conversation.say("ab", &Generate::default()).unwrap().for_each(drop);
    assert_eq!(conversation.answer(), tokens.len() + 2);
    assert_eq!(conversation.session().tokens(), [&tokens[..], &tokens[..]].concat());
    // A question that nobody has answered gets no empty answer.
    let before = vec![said(Role::System, "ab"), said(Role::User, "c")];
    conversation = Conversation::new(&model, talk(template), before).unwrap();
    conversation.say("d", &Generate { limit: Some(1), ..Generate::default() }).unwrap().for_each(drop);
    assert_eq!(conversation.session().tokens()[..conversation.answer()], tokens[..4]);
}

#[test]
fn a_seed_decides_the_text() {
    let model = load(&Numbers::random(), threads(2));
    let draw = |seed| {
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed, ..Sampling::default() };
        run(&mut model.session(), "a", &Generate { sampling, limit: Some(20), ignore_end: true, ..Generate::default() })
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1).0, draw(2).0);
}

#[test]
fn tokens_that_only_the_model_knows_have_no_text() {
    let (_, tokens, _) = chain();
    let model = load(&Numbers::chain(&[tokens[0], 390, tokens[1], 0]), threads(1));
    let (ids, text, _) = run(&mut model.session(), "a", &Generate::default());
    assert_eq!((ids, text.as_str()), (vec![390, tokens[1], 0], "b"));
}

#[test]
fn repetition_is_penalised_from_the_prompt_on() {
    let (_, tokens, mut numbers) = chain();
    for token in &tokens {
        numbers.table[*token as usize * VOCABULARY + 50] = 8.0;
    }
    let model = load(&numbers, threads(1));
    let sampling = Sampling { repeat_penalty: 2.0, ..Sampling::default() };
    let options = Generate { sampling, limit: Some(1), ..Generate::default() };
    assert_eq!(run(&mut model.session(), "a", &options).0, [tokens[1]]);
    assert_eq!(run(&mut model.session(), "ba", &options).0, [50]);
}

#[test]
fn a_fork_goes_its_own_way() {
    let numbers = Numbers::random();
    let model = load(&numbers, Settings { sequences: 2, chunk: 4, ..threads(1) });
    let mut one = model.session();
    one.feed(&TOKENS[..6]).unwrap();
    let mut two = one.fork();
    assert_eq!(two.tokens(), &TOKENS[..6]);
    let other = [1, 2, 3];
    let (a, b) = (one.feed(&TOKENS[6..]).unwrap(), two.feed(&other).unwrap());
    assert_close(&a, &numbers.expected(&TOKENS)[2][10 * VOCABULARY..]);
    let tokens = [&TOKENS[..6], &other].concat();
    assert_close(&b, &numbers.expected(&tokens)[2][8 * VOCABULARY..]);

    // Two sequences of 40 positions find room, three do not.
    let mut three = model.session();
    one.feed(&[1; 29]).unwrap();
    two.feed(&[1; 31]).unwrap();
    let error = three.feed(&[1; 40]).unwrap_err();
    assert!(matches!(error, Error::CacheFull { free: 0, .. }), "{error}");
    assert!(three.tokens().len() < 40);
    three.clear();
    drop(two);
    three.feed(&[1; 40]).unwrap();
}

#[test]
fn sessions_may_compute_on_many_threads() {
    let numbers = Numbers::random();
    let expected = numbers.expected(&TOKENS);
    let model = load(&numbers, Settings { sequences: 3, ..threads(2) });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut session = model.session();
                for (at, &token) in TOKENS.iter().enumerate() {
                    assert_close(&session.feed(&[token]).unwrap(), &expected[2][at * VOCABULARY..][..VOCABULARY]);
                }
            });
        }
    });
}

#[test]
fn perplexity_is_the_mean_over_all_tokens_but_the_first() {
    let numbers = Numbers::random().map(|x| x * 0.5);
    let score = |(window, next): (&[u32], &[u32])| -> Vec<f64> {
        let logits = numbers.expected(window).pop().unwrap();
        let rows = logits.chunks_exact(VOCABULARY).zip(next);
        rows.map(|(row, &next)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[next as usize]).collect()
    };
    let tokens: Vec<u32> = (0..90).map(|i| i * 31 % 400).collect();
    for (rows, chunk) in [(Wanted::All, 7), (Wanted::All, 512), (Wanted::Last, 512)] {
        let model = load(&numbers, Settings { rows, chunk, ..threads(1) });
        for length in [2, 3, 40, 41, 42, 90] {
            let tokens = &tokens[..length];
            let (given, next) = (&tokens[..length - 1], &tokens[1..]);
            let expected: Vec<f64> = given.chunks(40).zip(next.chunks(40)).flat_map(score).collect();
            let perplexity = model.session().perplexity(tokens).unwrap();
            let mean = expected.iter().sum::<f64>() / expected.len() as f64;
            assert_eq!((perplexity.scored, expected.len()), (length - 1, length - 1));
            assert!((perplexity.mean - mean).abs() < 1e-5, "{} is not {mean}", perplexity.mean);
            assert_eq!(perplexity.value(), perplexity.mean.exp());
        }
        for tokens in [&[][..], &[1]] {
            assert!(
                matches!(model.session().perplexity(tokens), Err(Error::ShortText { tokens: n }) if n == tokens.len())
            );
        }
        // The last of them is what a window's last token is to predict.
        for at in [0, 1, 40] {
            let mut tokens = tokens[..at.max(1) + 1].to_vec();
            tokens[at] = 400;
            let error = model.session().perplexity(&tokens).unwrap_err();
            assert!(matches!(error, Error::NotInModel { id: 400, vocabulary: 400 }), "{error}");
        }
    }
    let error = |numbers: &Numbers, context| {
        let model = load(numbers, Settings { context: Some(context), ..threads(1) });
        model.session().perplexity(&tokens).unwrap_err().to_string()
    };
    let short =
        "at least 2 positions are wanted, to predict a token from those before, not the 1 of the model's context";
    assert_eq!(error(&numbers, 1), short);
    assert!(error(&numbers.map(|_| f32::NAN), 40).starts_with("400 of 400 logits are NaN or infinite"));
}

#[test]
fn each_window_begins_as_the_text_does() {
    let numbers = Numbers::random().map(|x| x * 0.5);
    let model = Embedded {
        name: "begin",
        config: CONFIG.as_bytes(),
        generation_config: None,
        tokenizer: Some(include_bytes!("../../tests/golden/llama3/tokenizer.json")),
        weights: numbers.safetensors(Dtype::F32).leak(),
    };
    let checkpoint = Checkpoint::embedded(&model).unwrap();
    let load = |settings| Model::load(&checkpoint, &graph(), settings).unwrap();
    let begin = 381;
    let tokens: Vec<u32> = [begin].into_iter().chain((0..100).map(|i| i * 31 % 380)).collect();
    let row = |window: &[u32]| numbers.expected(window)[2][(window.len() - 1) * VOCABULARY..].to_vec();
    for chunk in [1, 7, 512] {
        let model = load(Settings { chunk, ..threads(1) });
        let mut seen = Vec::new();
        model
            .session()
            .score(&tokens, |at, logits| {
                // Windows begin with the tokens 0, 40 and 79.
                let window = match at {
                    ..=40 => tokens[..at].to_vec(),
                    41..=79 => [&[begin], &tokens[40..at]].concat(),
                    _ => [&[begin], &tokens[79..at]].concat(),
                };
                assert_close(logits, &row(&window));
                seen.push(at);
            })
            .unwrap();
        assert_eq!(seen, (1..=100).collect::<Vec<usize>>());
        // What does not begin so has none in its windows either.
        let plain = &tokens[1..];
        model.session().score(plain, |at, logits| assert_close(logits, &row(&plain[(at - 1) / 40 * 40..at]))).unwrap();
    }
}

/// Rows `[t, d]` of a table `[v, d]`, one for each token: a model whose output is not over its vocabulary.
fn rows(v: usize, d: usize) -> Model {
    let mut b = Builder::new("rows");
    let (t, v_axis, d_axis) = (b.tokens("t"), b.axis("v", v), b.axis("d", d));
    let ids = b.input("tokens", &[t]);
    let table = b.weight("table", &[v_axis, d_axis], "table");
    let id = b.load(ids);
    let x = b.load_at(table, &[(v_axis, id)]);
    let x = b.define("x", Some(&[t, d_axis]), x);
    let graph = b.finish(x).unwrap();
    let bytes: Vec<u8> = (0..v * d).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = TensorView::new(safetensors::Dtype::F32, vec![v, d], &bytes).unwrap();
    let weights = safetensors::serialize([("table", view)], None).unwrap();
    Model::load(&Checkpoint::open(folder(&weights, false).path()).unwrap(), &graph, threads(1)).unwrap()
}

#[test]
fn tokens_are_known_by_the_table_that_they_index() {
    for (v, d) in [(20, 3), (3, 20)] {
        let model = rows(v, d);
        assert_eq!((model.ids(), model.vocabulary()), (v, d));
        let (mut session, last) = (model.session(), v as u32 - 1);
        let row: Vec<f32> = ((v - 1) * d..v * d).map(|i| i as f32).collect();
        assert_eq!(session.feed(&[0, last]).unwrap(), row);
        let error = session.feed(&[0, v as u32]).unwrap_err();
        assert_eq!(error.to_string(), format!("token {v} is not in the model's vocabulary of {v} tokens"));
        assert_eq!(session.tokens(), [0, last]);
        assert_eq!(session.perplexity(&[last, 1]).unwrap().scored, 1);
    }
    let error = rows(20, 3).session().perplexity(&[1, 19]).unwrap_err().to_string();
    assert_eq!(error, "token 19 is not among those that the model predicts: its output has 3 numbers a row");
}

#[test]
fn an_embedded_model_is_like_a_folder() {
    let (_, tokens, numbers) = chain();
    let model = Embedded {
        name: "chain",
        config: CONFIG.as_bytes(),
        generation_config: Some(br#"{"eos_token_id": [383, 0]}"#),
        tokenizer: Some(TOKENIZER),
        weights: numbers.safetensors(Dtype::F32).leak(),
    };
    let checkpoint = Checkpoint::embedded(&model).unwrap();
    assert_eq!(checkpoint.place(), "embedded chain");
    let model = Model::load(&checkpoint, &graph(), threads(1)).unwrap();
    assert_eq!(model.end_tokens(), [383, 0]);
    assert_eq!(run(&mut model.session(), "ab", &Generate::default()).0, tokens[2..]);
}

#[test]
fn an_empty_prompt_will_do_where_the_tokenizer_begins_a_text() {
    let numbers = Numbers::chain(&[381, 64, 65, 0]);
    let model = Embedded {
        name: "chain",
        config: CONFIG.as_bytes(),
        generation_config: None,
        tokenizer: Some(include_bytes!("../../tests/golden/llama3/tokenizer.json")),
        weights: numbers.safetensors(Dtype::F32).leak(),
    };
    let model = Model::load(&Checkpoint::embedded(&model).unwrap(), &graph(), threads(1)).unwrap();
    let mut session = model.session();
    assert_eq!(run(&mut session, "", &Generate::default()).0, [64, 65, 0]);
    assert_eq!(session.summary().prompt_tokens, 1);
    // Within a sequence there is no second begin token.
    assert!(matches!(session.generate("", &Generate::default()), Err(Error::EmptyPrompt)));
}

#[test]
fn what_cannot_be_generated_is_refused() {
    let (_, _, numbers) = chain();
    let model = load(&numbers, threads(1));
    let mut session = model.session();
    let mut refuse =
        |prompt: Prompt<'_>, options: &Generate| session.generate(prompt, options).unwrap_err().to_string();
    let default = Generate::default();
    let empty = "the prompt is empty, and the tokenizer adds no begin token to start from: give at least one token";
    assert_eq!(refuse("".into(), &default), empty);
    assert_eq!(refuse(Prompt::Tokens(&[]), &default), empty);
    let long = "a".repeat(41);
    let expected = "41 tokens do not fit into the 40 positions of the model's context";
    assert_eq!(refuse((&long).into(), &default), expected);
    let unknown = "token 400 is not in the model's vocabulary of 400 tokens";
    assert_eq!(refuse(Prompt::Tokens(&[1, 400]), &default), unknown);
    assert_eq!(
        refuse(Prompt::Tokens(&[u32::MAX]), &default),
        "token 4294967295 is not in the model's vocabulary of 400 tokens"
    );
    let stop = Generate { stops: vec!["".into()], ..default.clone() };
    assert_eq!(refuse("a".into(), &stop), "option stop wants a text, got an empty one");
    let hot = Generate { sampling: Sampling { temperature: -1.0, ..Sampling::default() }, ..default.clone() };
    assert_eq!(refuse("a".into(), &hot), "option temperature wants a number of at least 0, got -1");
    assert!(session.tokens().is_empty());

    session.feed(&[1; 40]).unwrap();
    let expected = "41 tokens do not fit into the 40 positions of the model's context, of which 40 are taken";
    for error in [session.feed(&[1]), session.feed_all(&[1]), session.trace(&[1]).map(|trace| trace.logits)] {
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
    session.clear();
    let short = load(&numbers, Settings { context: Some(8), ..threads(1) });
    let expected = "9 tokens do not fit into the 8 positions of the model's context";
    assert_eq!(short.session().feed(&[1; 9]).unwrap_err().to_string(), expected);
    assert_eq!(short.context(), 8);

    let folder = folder(&numbers.safetensors(Dtype::F32), false);
    let model = Model::load(&Checkpoint::open(folder.path()).unwrap(), &graph(), threads(1)).unwrap();
    let mut session = model.session();
    let error = session.generate("a", &default).unwrap_err().to_string();
    let place = folder.path().display();
    assert_eq!(
        error,
        format!(
            "{place}: there is no tokenizer (tokenizer.json, or the metadata of a GGUF file), by which text becomes tokens"
        )
    );
    let options = Generate { limit: Some(2), ..default };
    let tokens: Vec<Token> = session.generate(&chain().1[..1], &options).unwrap().map(Result::unwrap).collect();
    assert!(tokens.len() == 2 && tokens.iter().all(|token| token.text.is_empty()));
}

#[test]
fn numbers_that_are_none_end_a_generation() {
    let (_, _, mut numbers) = chain();
    numbers.table.fill(f32::NAN);
    let model = load(&numbers, threads(1));
    let mut session = model.session();
    let mut generation = session.generate("a", &Generate::default()).unwrap();
    let error = generation.next().unwrap().unwrap_err().to_string();
    assert_eq!(error, "400 of 400 logits are NaN or infinite: the weights are corrupt, or a computation overflowed");
    assert!(generation.next().is_none());
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    let (_, _, numbers) = chain();
    let good = folder(&numbers.safetensors(Dtype::F32), true);
    let load =
        |settings| Model::load(&Checkpoint::open(good.path()).unwrap(), &graph(), settings).unwrap_err().to_string();
    let cases = [
        (threads(0), "option threads wants a number from 1 to 1024, got 0"),
        (Settings { chunk: 0, ..threads(1) }, "option chunk wants a number of at least 1, got 0"),
        (Settings { context: Some(0), ..threads(1) }, "option context wants a number from 1 to 16777216, got 0"),
        (
            Settings { context: Some((1 << 24) + 1), ..threads(1) },
            "option context wants a number from 1 to 16777216, got 16777217",
        ),
        (Settings { sequences: 0, ..threads(1) }, "option sequences wants a number of at least 1, got 0"),
    ];
    for (settings, expected) in cases {
        assert_eq!(load(settings), expected);
    }
    assert!(load(Settings { sequences: usize::MAX, ..threads(1) }).contains("bytes of memory for the cache"));

    let data = [0; 4 * VOCABULARY];
    let view = |shape: &[usize]| TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &data).unwrap();
    let views = HashMap::from([("table.weight", view(&[VOCABULARY]))]);
    let bad = folder(&safetensors::serialize(views, None).unwrap(), true);
    let error = Model::load(&Checkpoint::open(bad.path()).unwrap(), &graph(), threads(1)).unwrap_err().to_string();
    let file = bad.path().join("model.safetensors");
    let expected = "[u·v = 160000], the file # has [400] for table.weight".replace('#', file.to_str().unwrap());
    assert_eq!(error, format!("`table` (src/test.rs:12) wants {expected}"));
    let views = HashMap::from([("w", view(&[VOCABULARY]))]);
    let bad = folder(&safetensors::serialize(views, None).unwrap(), true);
    let error = Model::load(&Checkpoint::open(bad.path()).unwrap(), &graph(), threads(1)).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("`table` (src/test.rs:12) wants table.weight, which {} does not have", bad.path().display())
    );
    std::fs::write(good.path().join("tokenizer.json"), "{}").unwrap();
    assert!(load(threads(1)).contains("tokenizer.json: not a tokenizer: "));
}
