//! Finding the spellings of added tokens (control or user-defined) in text: leftmost, then
//! longest. Their ids lie in the tables, sorted by spelling, so an open builds nothing: a search
//! begins where a byte of the text begins some spelling, and halves the list from there.

use crate::error::{Error, Result, Status, quote};
use crate::tables::{Builder, Section, Tables};
use crate::vocab::Vocab;

/// Longest spelling, in bytes. It bounds how far a search looks past a short match, and so keeps
/// the time linear in the text.
const SPELLING_MAX: usize = 256;

/// Ids of the tokens of some kinds that can be in valid text, sorted by spelling.
pub fn sorted(vocab: &Vocab, kinds: &'static [u8]) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for id in vocab.ids_of(kinds) {
        let text = vocab.text(id);
        if text.is_empty() {
            return Err(Error::new(Status::BadFormat, format!("special token {id} is empty")));
        }
        if text.len() > SPELLING_MAX {
            let message =
                format!("special token {id} {} has over {SPELLING_MAX} bytes", quote(text));
            return Err(Error::new(Status::Limit, message));
        }
        // A spelling that is not UTF-8 would cut characters; it can never be in valid text.
        if std::str::from_utf8(text).is_ok() {
            ids.push(id);
        }
    }
    // Of equal spellings the first token counts.
    ids.sort_by_key(|&id| vocab.text(id));
    ids.dedup_by_key(|id| vocab.text(*id));
    Ok(ids)
}

pub fn build(builder: &mut Builder, vocab: &Vocab, ids: &[u32], list: Section, starts: Section) {
    builder.words(list, ids.iter().copied());
    let first = |id: u32| usize::from(vocab.text(id)[0]);
    let start_of = |byte: usize| ids.partition_point(|&id| first(id) < byte) as u32;
    builder.words(starts, (0..257).map(start_of));
}

#[derive(Clone, Copy)]
pub struct Added {
    tables: Tables,
    ids: Section,
    starts: Section,
}

pub enum Segment<'a> {
    Text(&'a str),
    /// Id and spelling.
    Token(u32, &'a str),
}

impl Added {
    pub fn new(tables: Tables, ids: Section, starts: Section) -> Self {
        Added { tables, ids, starts }
    }

    fn spelling(&self, index: usize) -> &'static [u8] {
        self.tables.decoded(self.tables.word(self.ids, index))
    }

    /// First index of `from..to` whose spelling is not below `key` (or, `past`, is above it).
    fn partition(&self, from: usize, to: usize, key: &[u8], past: bool) -> usize {
        let (mut from, mut to) = (from, to);
        while from < to {
            let middle = from + (to - from) / 2;
            let spelling = self.spelling(middle);
            if spelling < key || (past && spelling == key) {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        from
    }

    /// Index and length of the longest spelling that `text` begins with.
    #[inline]
    fn longest(&self, text: &[u8]) -> Option<(usize, usize)> {
        let byte = usize::from(*text.first()?);
        let start = self.tables.word(self.starts, byte) as usize;
        let mut end = self.tables.word(self.starts, byte + 1) as usize;
        let mut key = &text[..text.len().min(SPELLING_MAX)];
        while start < end {
            // What `key` begins with is not above it, and a beginning of the last such spelling.
            end = self.partition(start, end, key, true);
            if end <= start {
                break;
            }
            let spelling = self.spelling(end - 1);
            let n_common = spelling.iter().zip(key).take_while(|(a, b)| a == b).count();
            if n_common == spelling.len() {
                return (n_common > 0).then_some((end - 1, n_common));
            }
            key = &key[..n_common];
            end -= 1;
        }
        None
    }

    /// Start, end and id of the first spelling from `at` on.
    fn find(&self, text: &str, at: usize) -> Option<(usize, usize, u32)> {
        if self.tables.n_words(self.ids) == 0 {
            return None;
        }
        let bytes = text.as_bytes();
        (at..bytes.len()).find_map(|start| {
            let (index, n) = self.longest(&bytes[start..])?;
            let id = self.tables.word(self.ids, index);
            // Always true of tables that are not damaged.
            let is_whole = text.is_char_boundary(start) && text.is_char_boundary(start + n);
            (is_whole && id < self.tables.n_tokens).then_some((start, start + n, id))
        })
    }

    /// Where the first spelling in `text` starts.
    pub fn first(&self, text: &str) -> Option<usize> {
        self.find(text, 0).map(|(start, _, _)| start)
    }

    /// Whether a spelling begins with `prefix` and is longer.
    pub fn has_longer(&self, prefix: &[u8]) -> bool {
        let n = self.tables.n_words(self.ids);
        let at = self.partition(0, n, prefix, true);
        at < n && self.spelling(at).starts_with(prefix)
    }

    /// Cuts `text` at the spellings and hands the segments over in order.
    pub fn split<'a>(
        &self,
        text: &'a str,
        mut each: impl FnMut(Segment<'a>) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while let Some((start, end, id)) = self.find(text, at) {
            if start > at {
                each(Segment::Text(&text[at..start]))?;
            }
            each(Segment::Token(id, &text[start..end]))?;
            at = end;
        }
        if at < text.len() {
            each(Segment::Text(&text[at..]))?;
        }
        Ok(())
    }
}

/// Whether a spelling of the list, which is sorted from the last byte to the first, ends with
/// `suffix` (given from its last byte to its first) and is longer.
pub fn has_longer_reversed(tables: &Tables, suffix: &[u8]) -> bool {
    let spelling = |index| tables.decoded(tables.word(Section::ControlReversed, index));
    let n = tables.n_words(Section::ControlReversed);
    let (mut from, mut to) = (0, n);
    while from < to {
        let middle = from + (to - from) / 2;
        if spelling(middle).iter().rev().le(suffix) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    from < n && {
        let text = spelling(from);
        text.len() > suffix.len() && text.iter().rev().zip(suffix).all(|(a, b)| a == b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::tests::tables_of;
    use crate::vocab::kind;

    fn cut(spellings: &[&str], text: &str) -> Vec<String> {
        let tables = tables_of(spellings, kind::USER_DEFINED);
        let added = Added::new(tables, Section::User, Section::UserStarts);
        let mut parts = Vec::new();
        added
            .split(text, |segment| {
                parts.push(match segment {
                    Segment::Text(text) => text.to_owned(),
                    Segment::Token(id, text) => format!("{id}:{text}"),
                });
                Ok(())
            })
            .unwrap();
        parts
    }

    #[test]
    fn leftmost_then_longest() {
        assert_eq!(cut(&["ab", "abcd", "b"], "xabcabcdb"), ["x", "0:ab", "c", "1:abcd", "2:b"]);
        assert_eq!(cut(&["ab", "aba", "abaa", "abaaa"], "acabac"), ["ac", "1:aba", "c"]);
        assert_eq!(cut(&["<s>", "<s>"], "<<s>>"), ["<", "0:<s>", ">"]);
        assert_eq!(cut(&["\n", "\n\n"], "\n\n\n"), ["1:\n\n", "0:\n"]);
        assert_eq!(cut(&[], "text"), ["text"]);
    }

    #[test]
    fn random_texts_are_cut_as_by_trying_every_spelling() {
        let mut seed = 99u64;
        let mut next = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..500 {
            let mut word = |n_max: u64| -> String {
                (0..1 + next(n_max)).map(|_| ['a', 'b', 'é'][next(3) as usize]).collect()
            };
            let spellings: Vec<String> = (0..12).map(|_| word(5)).collect();
            let text = word(40);
            let spellings: Vec<&str> = spellings.iter().map(String::as_str).collect();
            let (mut wanted, mut plain, mut rest) = (Vec::new(), String::new(), &text[..]);
            while let Some(ch) = rest.chars().next() {
                let fitting = (0..spellings.len()).filter(|&id| rest.starts_with(spellings[id]));
                let best = fitting.max_by_key(|&id| (spellings[id].len(), usize::MAX - id));
                let n = best.map_or(ch.len_utf8(), |id| spellings[id].len());
                if let Some(id) = best {
                    wanted.extend((!plain.is_empty()).then(|| std::mem::take(&mut plain)));
                    wanted.push(format!("{id}:{}", spellings[id]));
                } else {
                    plain.push(ch);
                }
                rest = &rest[n..];
            }
            wanted.extend((!plain.is_empty()).then_some(plain));
            assert_eq!(cut(&spellings, &text), wanted, "{spellings:?} {text}");
        }
    }
}
