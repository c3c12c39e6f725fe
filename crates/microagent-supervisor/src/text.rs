//! Text of a guest, made harmless before anybody sees it.

/// `text` with control characters replaced and no longer than `limit` characters.
pub(crate) fn harmless(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .map(|c| {
            if c == '\n' || c == '\t' || !(c.is_control() || is_format(c)) {
                c
            } else {
                '\u{fffd}'
            }
        })
        .collect()
}

/// Characters that reorder or hide what stands around them.
fn is_format(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_nuls_are_taken_out_and_the_rest_is_kept() {
        assert_eq!(
            harmless("a\u{1b}[2J\0\r\u{9b}ü\n\tb\u{202e}\u{61c}", 99),
            "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}ü\n\tb\u{fffd}\u{fffd}"
        );
        assert_eq!(harmless("abcdef", 3), "abc");
    }
}
