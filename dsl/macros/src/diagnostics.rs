//! Mistakes found in a model: collected, so that all are reported at once, each on its token.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Display;

use proc_macro2::{Span, TokenStream};

/// A mistake.
struct Mistake {
    span: Span,
    message: String,
}

/// The mistakes found so far.
#[derive(Default)]
pub(crate) struct Diagnostics {
    mistakes: RefCell<Vec<Mistake>>,
    /// The names whose declaration is a mistake: what is found at their uses is no further one.
    mistaken: RefCell<HashSet<String>>,
}

impl Diagnostics {
    /// Reports a mistake; one that was reported already is not repeated.
    pub(crate) fn error(&self, span: Span, message: impl Display) {
        let message = message.to_string();
        let same = |m: &Mistake| m.message == message && format!("{:?}", m.span) == format!("{span:?}");
        if !self.mistakes.borrow().iter().any(same) {
            self.mistakes.borrow_mut().push(Mistake { span, message });
        }
    }

    /// Reports a mistake with a line that says what to do about it.
    pub(crate) fn help(&self, span: Span, message: impl Display, help: impl Display) {
        self.error(span, format!("{message}\nhelp: {help}"));
    }

    /// Notes that the declaration of a name is a mistake, which was reported.
    pub(crate) fn mistake(&self, name: impl Display) {
        self.mistaken.borrow_mut().insert(name.to_string());
    }

    /// Whether the declaration of a name is a mistake.
    pub(crate) fn is_mistaken(&self, name: &str) -> bool {
        self.mistaken.borrow().contains(name)
    }

    /// Reports an unknown name, with the nearest of those that would do. Of one whose declaration is a mistake that is no news.
    pub(crate) fn unknown<'a>(
        &self,
        span: Span,
        message: impl Display,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) {
        if !self.is_mistaken(name) {
            self.nearest(span, message, name, known);
        }
    }

    /// Reports a word that is none of those that would do, with the nearest of them, which is returned.
    pub(crate) fn nearest<'a>(
        &self,
        span: Span,
        message: impl Display,
        word: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Option<&'a str> {
        let near = nearest(word, known);
        match near {
            Some(near) => self.help(span, message, format!("did you mean `{near}`?")),
            None => self.error(span, message),
        }
        near
    }

    /// How many mistakes there are.
    pub(crate) fn count(&self) -> usize {
        self.mistakes.borrow().len()
    }

    /// The messages from the `from`-th on, which are forgotten.
    pub(crate) fn take_messages(&self, from: usize) -> Vec<String> {
        self.mistakes.borrow_mut().drain(from..).map(|m| m.message).collect()
    }

    /// The mistakes as `compile_error!`s.
    pub(crate) fn to_tokens(&self) -> TokenStream {
        self.mistakes.borrow().iter().map(|m| syn::Error::new(m.span, &m.message).into_compile_error()).collect()
    }
}

/// The known name that is nearest to `name`, if one is near.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = 1 + name.chars().count() / 4;
    let near = known.into_iter().map(|k| (distance(name, k), k)).filter(|&(d, k)| d <= most && d < k.chars().count());
    near.min_by_key(|&(d, _)| d).map(|(_, k)| k)
}

/// How many characters must be inserted, deleted or replaced to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found() {
        assert_eq!(nearest("atn_norm", ["attn_norm", "ffn_norm"]), Some("attn_norm"));
        assert_eq!(nearest("head", ["gate", "wq"]), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
