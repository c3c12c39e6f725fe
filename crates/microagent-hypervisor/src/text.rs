//! Words that others wrote.

/// Text of another program without what could steer a terminal.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' => '\n',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cannot_steer_a_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\x07\nc\xff\n"), "a [2Jb \nc\u{fffd}");
    }
}
