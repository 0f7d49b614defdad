//! A position in a list of tokens.

use proc_macro2::{Delimiter, Group, Ident, Spacing, Span, TokenStream, TokenTree};

use quote::ToTokens;
use syn::parse::{ParseStream, Parser};

use crate::ast::Text;
use crate::diagnostics::Diagnostics;

/// How deep groups and prefixes may be nested.
const DEEPEST: usize = 150;

/// Reads a list of tokens from left to right. A method that returns `None` has reported what is wrong.
pub(crate) struct Cursor<'d> {
    tokens: Vec<TokenTree>,
    at: usize,
    /// Where the list ends: what is missing is missing there.
    end: Span,
    pub(crate) diagnostics: &'d Diagnostics,
    pub(crate) depth: usize,
}

impl<'d> Cursor<'d> {
    pub(crate) fn new(tokens: TokenStream, end: Span, diagnostics: &'d Diagnostics) -> Cursor<'d> {
        let mut flat = Vec::new();
        flatten(tokens, &mut flat, 0);
        Cursor { tokens: flat, at: 0, end, diagnostics, depth: 0 }
    }

    /// A cursor over what a group contains.
    pub(crate) fn inside(&self, group: &Group) -> Cursor<'d> {
        let mut inner = Cursor::new(group.stream(), group.span_close(), self.diagnostics);
        inner.depth = self.depth + 1;
        inner
    }

    /// Whether nesting went too deep, which is reported.
    pub(crate) fn too_deep(&self) -> bool {
        if self.depth > DEEPEST {
            self.diagnostics.error(self.span(), "this is nested too deeply");
        }
        self.depth > DEEPEST
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub(crate) fn peek(&self) -> Option<&TokenTree> {
        self.tokens.get(self.at)
    }

    pub(crate) fn next(&mut self) -> Option<TokenTree> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// The span of the next token.
    pub(crate) fn span(&self) -> Span {
        match self.peek() {
            Some(TokenTree::Group(group)) => group.span_open(),
            Some(token) => token.span(),
            None => self.end,
        }
    }

    /// The next token, in words.
    pub(crate) fn found(&self) -> String {
        match self.peek() {
            None => "the end".to_owned(),
            Some(TokenTree::Group(group)) => match group.delimiter() {
                Delimiter::Parenthesis => "`(`".to_owned(),
                Delimiter::Bracket => "`[`".to_owned(),
                _ => "`{`".to_owned(),
            },
            Some(token) => format!("`{token}`"),
        }
    }

    /// Reports that something else was expected here.
    pub(crate) fn expected<T>(&self, what: &str) -> Option<T> {
        self.diagnostics.error(self.span(), format!("expected {what}, found {}", self.found()));
        None
    }

    /// The one of these words that stands here, or that is meant by what stands here, which is reported.
    pub(crate) fn word_of(&self, words: &[&'static str]) -> Option<&'static str> {
        let found = match self.peek() {
            Some(TokenTree::Ident(word)) => word.to_string(),
            _ => String::new(),
        };
        words.iter().copied().find(|word| *word == found).or_else(|| {
            let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            let (last, first) = quoted.split_last()?;
            let message = format!("expected {} or {last}, found {}", first.join(", "), self.found());
            self.diagnostics.nearest(self.span(), message, &found, words.iter().copied())
        })
    }

    fn character(&self, ahead: usize) -> Option<(char, bool)> {
        match self.tokens.get(self.at + ahead) {
            Some(TokenTree::Punct(p)) => Some((p.as_char(), p.spacing() == Spacing::Joint)),
            _ => None,
        }
    }

    /// Whether the next tokens spell this sign, and no longer one.
    pub(crate) fn is_sign(&self, sign: &str) -> bool {
        let mut joint = true;
        for (i, want) in sign.chars().enumerate() {
            match self.character(i) {
                Some((found, next)) if found == want && joint => joint = next,
                _ => return false,
            }
        }
        let next = self.character(sign.len()).filter(|_| joint).map(|(c, _)| c);
        match sign {
            "=" => !matches!(next, Some('=' | '>')),
            "<" | ">" | "!" => next != Some('='),
            "-" => next != Some('>'),
            "." => next != Some('.'),
            "|" => next != Some('|'),
            _ => true,
        }
    }

    pub(crate) fn eat_sign(&mut self, sign: &str) -> Option<Span> {
        let span = self.span();
        self.is_sign(sign).then(|| {
            self.at += sign.len();
            span
        })
    }

    pub(crate) fn sign(&mut self, sign: &str) -> Option<Span> {
        self.eat_sign(sign).or_else(|| self.expected(&format!("`{sign}`")))
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(TokenTree::Ident(ident)) if ident == word)
    }

    pub(crate) fn eat_word(&mut self, word: &str) -> Option<Span> {
        let span = self.span();
        self.is_word(word).then(|| {
            self.at += 1;
            span
        })
    }

    /// A name that is no reserved word.
    pub(crate) fn name(&mut self, what: &str) -> Option<Ident> {
        match self.peek() {
            Some(TokenTree::Ident(ident)) if !is_keyword(ident) => {
                let ident = ident.clone();
                self.at += 1;
                Some(ident)
            }
            Some(TokenTree::Ident(ident)) => self.expected(&format!("{what} (`{ident}` is a reserved word)")),
            _ => self.expected(what),
        }
    }

    pub(crate) fn is_group(&self, delimiter: Delimiter) -> bool {
        self.is_group_ahead(0, delimiter)
    }

    /// Whether the token that many further on is such a group.
    pub(crate) fn is_group_ahead(&self, ahead: usize, delimiter: Delimiter) -> bool {
        matches!(self.tokens.get(self.at + ahead), Some(TokenTree::Group(g)) if g.delimiter() == delimiter)
    }

    pub(crate) fn eat_group(&mut self, delimiter: Delimiter) -> Option<Group> {
        match self.peek() {
            Some(TokenTree::Group(group)) if group.delimiter() == delimiter => {
                let group = group.clone();
                self.at += 1;
                Some(group)
            }
            _ => None,
        }
    }

    pub(crate) fn group(&mut self, delimiter: Delimiter, what: &str) -> Option<Group> {
        self.eat_group(delimiter).or_else(|| self.expected(what))
    }

    pub(crate) fn eat_text(&mut self) -> Option<Text> {
        let Some(TokenTree::Literal(literal)) = self.peek() else { return None };
        let span = literal.span();
        match syn::Lit::new(literal.clone()) {
            syn::Lit::Str(text) => {
                self.at += 1;
                Some(Text { value: text.value(), span })
            }
            _ => None,
        }
    }

    pub(crate) fn text(&mut self, what: &str) -> Option<Text> {
        self.eat_text().or_else(|| self.expected(what))
    }

    /// A number without a sign, and where it stands.
    pub(crate) fn eat_number(&mut self) -> Option<(Span, f64)> {
        let Some(TokenTree::Literal(literal)) = self.peek() else { return None };
        let span = literal.span();
        let number = match syn::Lit::new(literal.clone()) {
            syn::Lit::Int(n) if n.suffix().is_empty() => n.base10_parse().ok(),
            syn::Lit::Float(x) if x.suffix().is_empty() => x.base10_parse().ok(),
            _ => None,
        };
        let number = number.filter(|x: &f64| x.is_finite())?;
        self.at += 1;
        Some((span, number))
    }

    /// `item, item, …` up to the end, with or without a last comma.
    pub(crate) fn list<T>(&mut self, mut item: impl FnMut(&mut Cursor<'d>) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_empty() {
            items.push(item(self)?);
            if !self.is_empty() {
                self.sign(",")?;
            }
        }
        Some(items)
    }

    /// `[a, b]`
    pub(crate) fn axes(&mut self) -> Option<Vec<Ident>> {
        let group = self.group(Delimiter::Bracket, "axes in brackets, as in `[t, d]`")?;
        self.inside(&group).list(|c| c.name("the name of an axis"))
    }

    /// A type of Rust, if one stands here.
    pub(crate) fn rust_type(&mut self) -> Option<syn::Type> {
        let left = self.tokens.get(self.at..)?;
        let count = |tokens: TokenStream| tokens.into_iter().count();
        let read = |input: ParseStream| Ok((input.parse()?, count(input.parse()?)));
        let (ty, behind) = read.parse2(left.iter().cloned().collect()).ok()?;
        self.at = self.tokens.len() - behind;
        Some(ty)
    }

    /// The tokens up to the next `;`, which is passed, and where they end.
    pub(crate) fn until_semicolon(&mut self) -> (TokenStream, Span) {
        let mut tokens = TokenStream::new();
        while !self.is_empty() && !self.is_sign(";") {
            tokens.extend(self.next());
        }
        let end = self.span();
        self.eat_sign(";");
        (tokens, end)
    }

    /// Reads a declaration. One that can't be read is passed, and the names in front of its `=` are noted as mistaken.
    pub(crate) fn declaration<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let (from, function) = (self.at, self.is_word("fn"));
        let read = read(self);
        if read.is_none() {
            self.recover();
            let behind = std::mem::replace(&mut self.at, from);
            let body = |c: &Self| function && c.is_group(Delimiter::Brace);
            self.mistaken(|c| c.at >= behind || c.is_sign("=") || body(c));
            self.at = behind;
        }
        read
    }

    /// Passes all that comes before an end, and notes the names in it as mistaken, and those that a section in it declares.
    pub(crate) fn mistaken(&mut self, end: impl Fn(&Self) -> bool) {
        while !self.is_empty() && !end(self) {
            match self.next() {
                Some(TokenTree::Ident(name)) if !is_keyword(&name) => self.diagnostics.mistake(&name),
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    let mut section = self.inside(&group);
                    while let Some(token) = section.next() {
                        match token {
                            TokenTree::Ident(word) if is_keyword(&word) => continue,
                            TokenTree::Ident(name) => self.diagnostics.mistake(&name),
                            _ => {}
                        }
                        section.recover();
                    }
                }
                _ => {}
            }
        }
    }

    /// Goes on behind the next `;` or `{ … }`: to the next statement after one that could not be read.
    pub(crate) fn recover(&mut self) {
        while let Some(token) = self.next() {
            let ends = match &token {
                TokenTree::Punct(p) => p.as_char() == ';',
                TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                _ => false,
            };
            if ends {
                return;
            }
        }
    }

    /// The outer attributes (doc comments) that stand here.
    pub(crate) fn attributes(&mut self) -> TokenStream {
        let mut tokens = TokenStream::new();
        while self.is_sign("#")
            && matches!(self.tokens.get(self.at + 1), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Bracket)
        {
            tokens.extend(self.next());
            tokens.extend(self.next());
        }
        if let Err(error) = syn::Attribute::parse_outer.parse2(tokens.clone()) {
            self.diagnostics.error(error.span(), format!("this is no attribute of Rust: {error}"));
            return TokenStream::new();
        }
        tokens
    }
}

/// Invisible groups come from `macro_rules!` fragments: what is in them counts.
fn flatten(tokens: TokenStream, flat: &mut Vec<TokenTree>, depth: usize) {
    for token in tokens {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::None && depth < DEEPEST => {
                flatten(group.stream(), flat, depth + 1);
            }
            token => flat.push(token),
        }
    }
}

/// Whether a word can't be the name of anything in a model: one of the language, or a keyword of Rust.
fn is_keyword(word: &Ident) -> bool {
    const WORDS: [&str; 17] = [
        "alias", "axis", "block", "cache", "config", "context", "host", "layer", "null", "over", "require", "size",
        "then", "top", "weights", "within", "gen",
    ];
    WORDS.iter().any(|reserved| word == reserved) || syn::parse2::<Ident>(word.to_token_stream()).is_err()
}
