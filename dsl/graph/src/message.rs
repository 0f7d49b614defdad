//! Messages about what files hold.

/// How many characters of a very long message are kept.
const START: usize = 240;
const END: usize = 120;

/// A message with escapes in place of control characters, which names and values in files may have, and without the middle where
/// one makes it very long.
pub fn one_line(message: String) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    let message = match message.contains(char::is_control) {
        true => message.chars().map(escaped).collect(),
        false => message,
    };
    let length = message.chars().count();
    if length <= START + END {
        return message;
    }
    let start: String = message.chars().take(START).collect();
    let end: String = message.chars().skip(length - END).collect();
    format!("{start} … {end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a `é`\n\u{0}b".to_owned()), "a `é`\\n\\u{0}b");
        let long = format!("the start {} the end", "é".repeat(1000));
        let short = one_line(long);
        assert!(short.starts_with("the start é") && short.ends_with("é the end"), "{short}");
        assert_eq!(short.chars().filter(|&c| c == '…').count(), 1);
        assert_eq!(short.chars().count(), START + END + 3);
    }
}
