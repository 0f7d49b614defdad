//! From a prompt to text, token by token.

use std::fmt;
use std::time::{Duration, Instant};

use crate::Error;
use crate::sample::{Sampler, Sampling};
use crate::session::Session;
use crate::tokens::Stream;

/// How to continue a prompt, and when to stop. The default is greedy, to an end token or the context's end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generate {
    /// How each token is chosen.
    pub sampling: Sampling,
    /// The most tokens.
    pub limit: Option<usize>,
    /// Texts before which to stop.
    pub stops: Vec<String>,
    /// Tokens at which to stop, beside the model's end tokens.
    pub ends: Vec<u32>,
    /// Whether to go on after the end tokens.
    pub ignore_end: bool,
}

/// What to continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// A text; at the beginning of a sequence the tokenizer adds its begin token, if it has one.
    Text(&'a str),
    /// Tokens as they are.
    Tokens(&'a [u32]),
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(text: &'a str) -> Prompt<'a> {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a String> for Prompt<'a> {
    fn from(text: &'a String) -> Prompt<'a> {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a [u32]> for Prompt<'a> {
    fn from(tokens: &'a [u32]) -> Prompt<'a> {
        Prompt::Tokens(tokens)
    }
}

impl<'a> From<&'a Vec<u32>> for Prompt<'a> {
    fn from(tokens: &'a Vec<u32>) -> Prompt<'a> {
        Prompt::Tokens(tokens)
    }
}

/// A generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// The text that is certain with it: whole characters, and nothing that may become a stop string. All texts together
    /// are the generated text. Empty for an end token, and for one that the tokenizer does not have.
    pub text: String,
}

/// Why a generation stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model gave one of the end tokens, which is the last that was generated.
    EndToken(u32),
    /// The text would have gone on with this stop string.
    StopString(String),
    /// As many tokens were generated as were asked for.
    Limit,
    /// The sequence has as many positions as it can have.
    ContextEnd,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::EndToken(id) => write!(f, "end token {id}"),
            Stop::StopString(text) => write!(f, "stop string {text:?}"),
            Stop::Limit => f.write_str("token limit"),
            Stop::ContextEnd => f.write_str("end of the context"),
        }
    }
}

/// What a generation did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Tokens of the prompt, a begin token included.
    pub prompt_tokens: usize,
    /// Tokens generated, an end token included.
    pub generated_tokens: usize,
    /// Computing the prompt.
    pub prefill: Duration,
    /// Computing and choosing all generated tokens but the first, which prefill yields.
    pub decode: Duration,
    /// From the call to the first token.
    pub first_token: Duration,
    /// Why it stopped; `None` if the caller did.
    pub stop: Option<Stop>,
}

impl Summary {
    /// Prompt tokens per second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prefill)
    }

    /// Generated tokens per second after the first.
    pub fn decode_rate(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// The tokens that follow a prompt, as they are computed. Dropping it stops the generation; the session keeps what was
/// generated, and goes on from there.
#[derive(Debug)]
pub struct Generation<'s, 'm> {
    session: &'s mut Session<'m>,
    sampler: Sampler,
    limit: usize,
    ends: Vec<u32>,
    stops: StopStrings,
    stream: Option<Stream<'m>>,
    start: Instant,
    over: bool,
}

impl<'m> Session<'m> {
    /// Adds a prompt and generates what follows it. Nothing is computed before the first token is asked for.
    ///
    /// # Errors
    /// If the prompt is empty or does not fit into the context, has a token that the model does not know, or is a text and
    /// there is no tokenizer; or if an option is outside its range. The iterator yields the errors that come up later, and
    /// ends with them.
    pub fn generate<'p>(
        &mut self,
        prompt: impl Into<Prompt<'p>>,
        options: &Generate,
    ) -> Result<Generation<'_, 'm>, Error> {
        let start = Instant::now();
        let model = self.model();
        if options.stops.iter().any(String::is_empty) {
            return Err(Error::Option { option: "stop", wants: "a text", got: "an empty one".into() });
        }
        if !options.stops.is_empty() {
            model.tokenizer()?;
        }
        let mut sampler = Sampler::new(options.sampling.clone())?;
        let before = self.tokens().len();
        match prompt.into() {
            Prompt::Text(text) => self.add(&model.tokenizer()?.encode(text, before == 0)?)?,
            Prompt::Tokens(tokens) => self.add(tokens)?,
        }
        sampler.saw(self.tokens());
        let stream = model.tokenizer().ok().map(|tokenizer| tokenizer.stream_after(self.tokens()));
        let limit = options.limit.unwrap_or(usize::MAX);
        let ends = if options.ignore_end { Vec::new() } else { [model.end_tokens(), &options.ends].concat() };
        let over = limit == 0;
        let stop = over.then_some(Stop::Limit);
        self.summary = Summary { prompt_tokens: self.tokens().len() - before, stop, ..Summary::default() };
        let stops = StopStrings { stops: options.stops.clone(), held: String::new() };
        Ok(Generation { session: self, sampler, limit, ends, stops, stream, start, over })
    }
}

impl Generation<'_, '_> {
    fn advance(&mut self) -> Result<Token, Error> {
        let start = Instant::now();
        let logits = self.session.compute_last()?;
        let computed = start.elapsed();
        let id = self.sampler.choose(logits)?;
        self.sampler.saw(&[id]);
        self.session.push(id);
        let summary = &mut self.session.summary;
        summary.generated_tokens += 1;
        if summary.generated_tokens == 1 {
            summary.prefill = computed;
            summary.first_token = self.start.elapsed();
        } else {
            summary.decode += start.elapsed();
        }
        let generated = summary.generated_tokens;

        let ended = self.ends.contains(&id);
        let piece = match &mut self.stream {
            Some(stream) if !ended => match stream.push(id) {
                Err(Error::UnknownToken { .. }) => String::new(),
                piece => piece?,
            },
            _ => String::new(),
        };
        let (mut text, found) = self.stops.push(&piece);
        let stop = if let Some(found) = found {
            Some(Stop::StopString(found))
        } else if ended {
            Some(Stop::EndToken(id))
        } else if generated >= self.limit {
            Some(Stop::Limit)
        } else if self.session.tokens().len() > self.session.model().context() {
            Some(Stop::ContextEnd)
        } else {
            None
        };
        if let Some(stop) = stop {
            if !matches!(stop, Stop::StopString(_)) {
                text += &std::mem::take(&mut self.stops.held);
                if let Some(stream) = self.stream.take() {
                    text += &stream.finish()?;
                }
            }
            self.session.summary.stop = Some(stop);
        }
        Ok(Token { id, text })
    }
}

impl Iterator for Generation<'_, '_> {
    type Item = Result<Token, Error>;

    fn next(&mut self) -> Option<Result<Token, Error>> {
        if self.over {
            return None;
        }
        let token = self.advance();
        self.over = token.is_err() || self.session.summary.stop.is_some();
        Some(token)
    }
}

/// Holds back what may be the beginning of a stop string.
#[derive(Debug)]
struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Takes text, and gives out what is certain not to belong to a stop string; and the stop string, if one is complete:
    /// the one that begins first, of those that begin together the longest.
    fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held += text;
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len()))) {
            let stop = stop.clone();
            let text = self.held[..at].to_owned();
            self.held.clear();
            return (text, Some(stop));
        }
        let beginning = |stop: &String| {
            let lengths = (1..stop.len()).rev().filter(|&length| stop.is_char_boundary(length));
            lengths.into_iter().find(|&length| self.held.ends_with(&stop[..length]))
        };
        let keep = self.stops.iter().filter_map(beginning).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, held), None)
    }
}
