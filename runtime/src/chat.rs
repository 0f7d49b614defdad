//! Chats: messages become text by a checkpoint's own template, and a model answers them.

use std::fmt;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::Error;
use crate::checkpoint::{Chat, Checkpoint};
use crate::generate::{Generate, Generation, Stop};
use crate::model::Model;
use crate::session::Session;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever sets the rules.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// What someone says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// The text.
    pub content: String,
}

/// A checkpoint's chat template, in Jinja with the filters, functions and methods that Hugging Face's have
/// (<https://huggingface.co/docs/transformers/chat_templating>).
pub struct Template {
    environment: Environment<'static>,
    chat: Chat,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("chat", &self.chat).finish_non_exhaustive()
    }
}

/// What the template is called within its environment.
const NAME: &str = "chat";

/// So many operations a template may take, each of which may make 64 bytes: several times what the longest of the field takes
/// for a thousand messages.
const FUEL: u64 = 1_000_000;

/// So many bytes a template may have: several times what the longest of the field has.
const LONGEST: usize = 1 << 18;

/// The stack that a template takes, what each byte of it may take as it is read, and what each operation may: as its text can
/// be nested, the lists that it makes can be.
const STACK: usize = 1 << 20;
const STACK_A_BYTE: usize = 1 << 12;
const STACK_AN_OPERATION: usize = 3 << 8;

/// Does something that calls itself, on a thread with so much stack for it; `failed` makes an error of a problem with that.
fn with_stack<T: Send>(
    stack: usize,
    failed: impl Fn(&str) -> Error,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK + stack).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| failed(&error.to_string()))?;
        thread.join().unwrap_or_else(|_| Err(failed("the minijinja library gave up on it")))
    })
}

impl Template {
    /// The chat template of a checkpoint.
    ///
    /// # Errors
    /// If it has none, or the template is not one.
    pub fn of(checkpoint: &Checkpoint) -> Result<Template, Error> {
        let problem = "there is no chat template (chat_template.jinja, `chat_template` in tokenizer_config.json, or \
                       `tokenizer.chat_template` in a GGUF file), by which a chat becomes text";
        let chat = checkpoint.chat().cloned();
        Template::new(chat.ok_or_else(|| Error::File { file: checkpoint.place().into(), problem: problem.into() })?)
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not one.
    pub fn new(chat: Chat) -> Result<Template, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| wrong(&chat.file, &error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        let source = without_generation(&chat.template);
        let failed = |problem| Error::Template { file: chat.file.clone(), problem };
        if source.len() > LONGEST {
            return Err(failed(format!("is of {} bytes, at most {LONGEST} were expected", source.len())));
        }
        let failed = |problem: &str| failed(format!("cannot be read: {problem}"));
        with_stack(STACK_A_BYTE * source.len(), failed, || {
            environment.add_template_owned(NAME, source).map_err(|error| wrong(&chat.file, &error))
        })?;
        Ok(Template { environment, chat })
    }

    /// The text of a chat, up to where the model is to answer. It has its own begin token, where there is one.
    ///
    /// # Errors
    /// If the template refuses the messages, or does what it cannot do.
    pub fn render(&self, messages: &[Message]) -> Result<String, Error> {
        let context = minijinja::context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            bos_token => self.chat.begin.as_deref().unwrap_or_default(),
            eos_token => self.chat.end.as_deref().unwrap_or_default(),
            tools => (),
            documents => (),
        };
        let file = &self.chat.file;
        let failed =
            |problem: &str| Error::Template { file: file.clone(), problem: format!("cannot be run: {problem}") };
        with_stack(STACK_AN_OPERATION * FUEL as usize, failed, || {
            let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
            rendered.map_err(|error| wrong(file, &error))
        })
    }
}

/// An error of a template in the words of this crate.
fn wrong(file: &str, error: &minijinja::Error) -> Error {
    let mut cause = std::error::Error::source(error);
    let mut refused = None;
    while let Some(error) = cause {
        refused = refused.or(error.downcast_ref::<Refused>());
        cause = error.source();
    }
    let problem = match refused {
        Some(Refused(message)) => format!("refuses these messages: {message}"),
        None => {
            let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
            format!("does not work{line}: {}{detail}", error.kind())
        }
    };
    let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Template { file: file.into(), problem }
}

/// What a template says when it refuses messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refused(message)))
}

/// The time, here and now, in a format of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let written = jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now());
    written.map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// The most blanks before a line of JSON, for each level.
const MOST_INDENT: usize = 64;

/// A value as Python's `json.dumps(value, ensure_ascii=False)` writes it, which is what templates expect.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if let Some(indent) = indent.filter(|indent| *indent > MOST_INDENT) {
        let problem = format!("`indent` is {indent}, at most {MOST_INDENT} was expected");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem));
    }
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = match separators.as_deref() {
        None => (comma, ": "),
        Some([comma, colon]) => (comma.as_str(), colon.as_str()),
        Some(_) => return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "`separators` wants two texts")),
    };
    let python = Python { indent, comma, colon, depth: 0, empty: false };
    let mut bytes = Vec::new();
    let serialized = value.serialize(&mut Serializer::with_formatter(&mut bytes, python));
    serialized.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

/// How Python's `json` writes.
struct Python<'a> {
    indent: Option<usize>,
    comma: &'a str,
    colon: &'a str,
    depth: usize,
    empty: bool,
}

impl Python<'_> {
    fn open<W: io::Write + ?Sized>(&mut self, out: &mut W, bracket: u8) -> io::Result<()> {
        (self.depth, self.empty) = (self.depth + 1, true);
        out.write_all(&[bracket])
    }

    fn next<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        if !first {
            out.write_all(self.comma.as_bytes())?;
        }
        self.line(out)
    }

    fn close<W: io::Write + ?Sized>(&mut self, out: &mut W, bracket: u8) -> io::Result<()> {
        self.depth -= 1;
        if !std::mem::take(&mut self.empty) {
            self.line(out)?;
        }
        out.write_all(&[bracket])
    }

    fn line<W: io::Write + ?Sized>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{}", " ".repeat(indent * self.depth)),
            None => Ok(()),
        }
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b'[')
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b']')
    }

    fn begin_array_value<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b'{')
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b'}')
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.colon.as_bytes())
    }
}

/// A template without the tags `generation` and `endgeneration`, which say what a model is trained on and change no text: a
/// condition that always holds takes their place, with the same blanks around.
fn without_generation(template: &str) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inside, after)) = tag.split_once("%}") else { break };
        let name = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let instead = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        text += before;
        text += "{%";
        text += &if name == instead { inside.to_owned() } else { inside.replacen(name, instead, 1) };
        text += "%}";
        rest = after;
    }
    text + rest
}

/// A chat with a model. What was computed for it is kept from turn to turn.
///
/// ```no_run
/// use einfuse_runtime::{Checkpoint, Conversation, Error, Generate, Message, Model, Role, Template};
///
/// fn chat(checkpoint: &Checkpoint, model: &Model) -> Result<(), Error> {
///     let said = |role, content: &str| Message { role, content: content.into() };
///     let before = vec![said(Role::User, "What is the capital of France?"), said(Role::Assistant, "Paris.")];
///     let mut conversation = Conversation::new(model, Template::of(checkpoint)?, before)?;
///     for token in conversation.say("And of Spain?", &Generate::default())? {
///         print!("{}", token?.text);
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Conversation<'m> {
    session: Session<'m>,
    template: Template,
    messages: Vec<Message>,
    /// Where the answer to the last message begins among the session's tokens; `None` once it is a message itself, and where
    /// nothing was asked.
    answer: Option<usize>,
}

impl<'m> Conversation<'m> {
    /// A chat that goes on after `messages`: the rules of [`Role::System`], and what was said before.
    ///
    /// # Errors
    /// If the checkpoint has no tokenizer.
    pub fn new(model: &'m Model, template: Template, messages: Vec<Message>) -> Result<Conversation<'m>, Error> {
        model.tokenizer()?;
        Ok(Conversation { session: model.session(), template, messages, answer: None })
    }

    /// The chat's text as tokens, and what the last answer took.
    pub fn session(&self) -> &Session<'m> {
        &self.session
    }

    /// Where the answer to the last message begins among the session's tokens: behind all of them, if there is none.
    pub fn answer(&self) -> usize {
        self.answer.unwrap_or(self.session.tokens().len())
    }

    /// Says something, and generates the answer, up to the end of the turn: an end token of the model, or of its chats. Only
    /// what the session has not computed before is computed.
    ///
    /// # Errors
    /// If the template refuses the messages, or as [`Session::generate`]; nothing was said then.
    pub fn say(&mut self, text: &str, options: &Generate) -> Result<Generation<'_, 'm>, Error> {
        let model = self.session.model();
        let tokenizer = model.tokenizer()?;
        if let Some(answer) = self.answer {
            let content = self.answered(answer)?;
            self.messages.push(Message { role: Role::Assistant, content });
            self.answer = None;
        }
        let mut messages = self.messages.clone();
        messages.push(Message { role: Role::User, content: text.into() });
        let tokens = tokenizer.encode(&self.template.render(&messages)?, false)?;
        model.check_room(0, tokens.len())?;
        let alike = tokens.iter().zip(self.session.tokens()).take_while(|(new, old)| new == old).count();
        // The last one is computed again where all are there, for what follows it.
        let alike = alike.min(tokens.len().saturating_sub(1));
        let end = self.template.chat.end.as_deref().and_then(|end| tokenizer.token(end));
        let ends = options.ends.iter().copied().chain(end).collect();
        self.session.rewind(alike);
        let generation = self.session.generate(&tokens[alike..], &Generate { ends, ..options.clone() })?;
        (self.messages, self.answer) = (messages, Some(tokens.len()));
        Ok(generation)
    }

    /// The text of the last answer, which begins at a token: the end token is no part of it, nor is a stop string.
    fn answered(&self, answer: usize) -> Result<String, Error> {
        let (given, mut answer) = self.session.tokens().split_at(answer.min(self.session.tokens().len()));
        let stop = &self.session.summary().stop;
        if let Some(Stop::EndToken(_)) = stop {
            answer = answer.split_last().map_or(answer, |(_, before)| before);
        }
        let mut stream = self.session.model().tokenizer()?.stream_after(given);
        let mut text = String::new();
        for &token in answer {
            match stream.push(token) {
                Err(Error::UnknownToken { .. }) => {}
                piece => text += &piece?,
            }
        }
        text += &stream.finish()?;
        if let Some(Stop::StopString(stop)) = stop {
            text.truncate(text.find(stop.as_str()).unwrap_or(text.len()));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
