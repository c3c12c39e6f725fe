//! Text that others wrote (guests, programs, registries), made harmless before anybody sees it.

/// Whether a character steers a terminal, turns the order of what stands beside it, or is not seen itself. The
/// joiners that some scripts and emoji are written with are none of these.
#[must_use]
pub fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
        )
}

/// `text` with U+FFFD for every harmful character but line breaks and tabs.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\n' | '\t' => character,
            _ if is_harmful(character) => '\u{fffd}',
            _ => character,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_turns_or_hides_is_taken_out_and_the_rest_is_kept() {
        let text = "a\u{1b}[2J\0\r\u{9b}\u{7f}ü\n\tb\u{202e}c\u{61c}d\u{2066}e\u{feff}f\u{2028}";
        let shown = "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}\u{fffd}ü\n\tb\u{fffd}c\u{fffd}d\u{fffd}e\u{fffd}f\u{fffd}";
        assert_eq!(harmless(text), shown);
        let joined = "👩\u{200d}💻 می\u{200c}خواهم";
        assert_eq!(harmless(joined), joined);
    }
}
