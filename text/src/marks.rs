//! Keeps the spelling of a control token inside a message from becoming that token.
//! A marker, a Unicode noncharacter found in no input, is put into every such spelling before the
//! template runs, so that in the rendered text only the template's own literals still spell
//! control tokens. The markers are taken out again after the cut. Spellings that only come about
//! where a message meets a literal are broken too: at the end of a message behind the first
//! character of an unfinished spelling, at its start before the last character of a finished one.
//! A control token of a single character cannot be broken that way, so templates never make one.

use crate::added::{Added, has_longer_reversed};
use crate::error::{Error, Result, Status};
use crate::tables::{Section, Tables};

pub struct Marks {
    tables: Tables,
    control: Added,
}

/// A noncharacter that occurs in none of the texts.
pub fn free_marker<'a>(texts: impl Iterator<Item = &'a str>) -> Result<char> {
    let mut used = 0u32;
    for text in texts {
        // U+FDD0..U+FDEF are EF B7 90..AF in UTF-8.
        for at in noncharacter_lead(text.as_bytes()) {
            let last = text.as_bytes()[at + 2];
            if (0x90..=0xAF).contains(&last) {
                used |= 1 << (last - 0x90);
            }
        }
    }
    if used == u32::MAX {
        return Err(Error::new(
            Status::InvalidArg,
            "messages use every noncharacter U+FDD0..U+FDEF",
        ));
    }
    let free = used.trailing_ones();
    Ok(char::from_u32(0xFDD0 + free).expect("a scalar value"))
}

fn noncharacter_lead(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    (0..bytes.len().saturating_sub(2)).filter(|&i| bytes[i] == 0xEF && bytes[i + 1] == 0xB7)
}

impl Marks {
    pub fn new(tables: Tables) -> Self {
        let control = Added::new(tables, Section::Control, Section::ControlStarts);
        Marks { tables, control }
    }

    /// `text` with markers, or None if it needs none.
    pub fn apply(&self, text: &str, marker: char) -> Option<String> {
        let mut places = Vec::new();
        let mut at = 0;
        while let Some(start) = self.control.first(&text[at..]) {
            // Each place where a spelling starts: its first character is cut off the rest.
            let first = text[at + start..].chars().next().map_or(1, char::len_utf8);
            places.push(at + start + first);
            at += start + first;
        }
        self.unfinished_end(text, &mut places);
        self.finished_start(text, &mut places);
        if places.is_empty() {
            return None;
        }
        places.sort_unstable();
        places.dedup();
        let mut marked = String::with_capacity(text.len() + places.len() * marker.len_utf8());
        let mut from = 0;
        for place in places {
            marked.push_str(&text[from..place]);
            marked.push(marker);
            from = place;
        }
        marked.push_str(&text[from..]);
        Some(marked)
    }

    fn unfinished_end(&self, text: &str, places: &mut Vec<usize>) {
        for (at, ch) in text.char_indices().rev() {
            if text.len() - at >= self.tables.control_max {
                return;
            }
            if self.control.has_longer(&text.as_bytes()[at..]) {
                places.push(at + ch.len_utf8());
            }
        }
    }

    fn finished_start(&self, text: &str, places: &mut Vec<usize>) {
        let mut reversed = Vec::new();
        for (at, ch) in text.char_indices() {
            let end = at + ch.len_utf8();
            if end >= self.tables.control_max {
                return;
            }
            reversed.splice(0..0, text.as_bytes()[at..end].iter().rev().copied());
            if has_longer_reversed(&self.tables, &reversed) {
                places.push(at);
            }
        }
    }
}

/// Rendered text between two control tokens, markers removed.
pub fn unmark(text: &str, marker: Option<char>) -> std::borrow::Cow<'_, str> {
    match marker {
        Some(marker) if text.contains(marker) => text.replace(marker, "").into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::tests::tables_of;
    use crate::vocab::kind;

    fn mark(spellings: &[&str], text: &str) -> String {
        let marks = Marks::new(tables_of(spellings, kind::CONTROL));
        let marked = marks.apply(text, '\u{FDD0}').unwrap_or_else(|| text.into());
        assert_eq!(unmark(&marked, Some('\u{FDD0}')), text);
        marked.replace('\u{FDD0}', "_")
    }

    #[test]
    fn spellings_are_broken_wherever_they_start() {
        assert_eq!(mark(&["<|a|>", "<s>"], "x <|a|> y"), "x <_|a|> y");
        assert_eq!(mark(&["aab", "ab"], "aab"), "a_a_b");
        assert_eq!(mark(&["<s>"], "nothing < here"), "nothing < here");
        assert_eq!(mark(&["日本"], "日本"), "日_本");
    }

    #[test]
    fn borders_of_messages_are_broken() {
        assert_eq!(mark(&["<|a|>"], "end <|a|"), "end <_|a|");
        assert_eq!(mark(&["<|a|>"], "a|> start"), "a|_> start");
        assert_eq!(mark(&["<<x"], "<<"), "<_<_");
        assert_eq!(mark(&["<|a|>"], "> quote"), "_> quote");
    }

    #[test]
    fn marker_is_free_or_refused() {
        assert_eq!(free_marker(["a", "\u{FDD0}\u{FDD1}"].into_iter()).unwrap(), '\u{FDD2}');
        let all: String = ('\u{FDD0}'..='\u{FDEF}').collect();
        assert!(free_marker([all.as_str()].into_iter()).is_err());
    }
}
