//! The words of the text form.

use crate::print::{begins_name, continues_name};

/// A line and a column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// A word; `quoted` in backticks, so that it is a name and nothing else.
    Word {
        text: String,
        quoted: bool,
    },
    /// A number without its sign; one with a point or an exponent is a float.
    Number(String),
    /// `"text"`.
    String(String),
    /// `%1`.
    Local(String),
    Sign(&'static str),
    /// The end of a line outside of brackets.
    Newline,
    End,
}

impl Token {
    /// As a message names it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Token::Word { text, .. } | Token::Number(text) => format!("`{text}`"),
            Token::String(text) => format!("\"{text}\""),
            Token::Local(number) => format!("`%{number}`"),
            Token::Sign(sign) => format!("`{sign}`"),
            Token::Newline => "the end of the line".to_owned(),
            Token::End => "the end".to_owned(),
        }
    }
}

/// The longer ones before those that they begin with.
const SIGNS: [&str; 23] = [
    "..", "<=", ">=", "==", "!=", "&&", "||", "=", "<", ">", "!", "|", "+", "-", "*", "/", "^", "(", ")", "[", "]",
    ",", "%",
];

/// Splits a text into tokens, each with its place; or says where there is none.
pub(crate) fn lex(text: &str) -> Result<Vec<(Token, Place)>, (Place, String)> {
    let mut tokens = Vec::new();
    let mut brackets = 0usize;
    for (line, text) in text.lines().enumerate() {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let place = Place { line: line + 1, column: at + 1 };
            let rest = &chars[at..];
            let run = |from: usize, fits: fn(char) -> bool| -> String {
                rest.iter().skip(from).take_while(|&&c| fits(c)).collect()
            };
            let until = |end: char| -> Option<String> {
                let length = rest.iter().skip(1).position(|&c| c == end)?;
                Some(rest[1..1 + length].iter().collect())
            };
            let (token, length) = match rest[0] {
                c if c.is_whitespace() => {
                    at += 1;
                    continue;
                }
                '/' if rest.get(1) == Some(&'/') => break,
                c if begins_name(c) => {
                    let text = run(0, continues_name);
                    let length = text.chars().count();
                    (Token::Word { text, quoted: false }, length)
                }
                c if c.is_ascii_digit() => {
                    let text = number(rest);
                    let length = text.len();
                    (Token::Number(text), length)
                }
                '`' => match until('`') {
                    Some(text) => {
                        let length = text.chars().count() + 2;
                        (Token::Word { text, quoted: true }, length)
                    }
                    None => return Err((place, "a name in backticks doesn't end in its line".to_owned())),
                },
                '"' => match until('"') {
                    Some(text) => {
                        let length = text.chars().count() + 2;
                        (Token::String(text), length)
                    }
                    None => return Err((place, "a text in quotes doesn't end in its line".to_owned())),
                },
                '%' if rest.get(1).is_some_and(char::is_ascii_digit) => {
                    let text = run(1, |c| c.is_ascii_digit());
                    let length = text.len() + 1;
                    (Token::Local(text), length)
                }
                c => {
                    let starts = |sign: &&&str| sign.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
                    let Some(&sign) = SIGNS.iter().find(starts) else {
                        return Err((place, format!("{c:?} means nothing here")));
                    };
                    match sign {
                        "(" | "[" => brackets += 1,
                        ")" | "]" => brackets = brackets.saturating_sub(1),
                        _ => {}
                    }
                    (Token::Sign(sign), sign.len())
                }
            };
            tokens.push((token, place));
            at += length;
        }
        let place = Place { line: line + 1, column: chars.len() + 1 };
        if brackets == 0 && !matches!(tokens.last(), None | Some((Token::Newline, _))) {
            tokens.push((Token::Newline, place));
        }
    }
    let line = text.lines().count().max(1);
    tokens.push((Token::End, Place { line, column: text.lines().last().map_or(0, |l| l.chars().count()) + 1 }));
    Ok(tokens)
}

/// The number at the beginning: digits, a fraction, an exponent.
fn number(chars: &[char]) -> String {
    let digits = |from: usize| chars.iter().skip(from).take_while(|c| c.is_ascii_digit()).count();
    let mut length = digits(0);
    if chars.get(length) == Some(&'.') && digits(length + 1) > 0 {
        length += 1 + digits(length + 1);
    }
    if let Some('e' | 'E') = chars.get(length) {
        let sign = matches!(chars.get(length + 1), Some('+' | '-')) as usize;
        if digits(length + 1 + sign) > 0 {
            length += 1 + sign + digits(length + 1 + sign);
        }
    }
    chars[..length].iter().collect()
}
