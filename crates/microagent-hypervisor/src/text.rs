//! Words that others wrote.

use microagent_protocol::text::harmless;

/// What another program said, as far as it is text and harmless.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let words = String::from_utf8_lossy(bytes).replace('\r', "");
    harmless(words.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cannot_steer_a_terminal() {
        assert_eq!(
            printable(b"a\x1b[2Jb\x07\r\nc\xff\n"),
            "a\u{fffd}[2Jb\u{fffd}\nc\u{fffd}"
        );
    }
}
