//! Text of a guest, made harmless before anybody sees it.

use microagent_protocol::text::harmless as whole;

/// `text` made harmless, and no longer than `limit` characters.
pub(crate) fn harmless(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => whole(&text[..end]),
        None => whole(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_taken_out_and_the_length_is_bounded() {
        assert_eq!(
            harmless("a\u{1b}[2J\u{202e}ü\n", 99),
            "a\u{fffd}[2J\u{fffd}ü\n"
        );
        assert_eq!(harmless("üüüü", 3), "üüü");
    }
}
