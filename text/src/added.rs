//! Finding the spellings of added tokens (control or user-defined) in text: leftmost, then
//! longest, by one automaton for all of them.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::{Error, Result, Status, quote};
use crate::vocab::Vocab;

/// Longest spelling, in bytes. It bounds how far a search looks past a short match, and so keeps
/// the time linear in the text.
const SPELLING_MAX: usize = 256;

pub struct Added {
    finder: Option<AhoCorasick>,
    ids: Vec<u32>,
}

pub enum Segment<'a> {
    Text(&'a str),
    /// Id and spelling.
    Token(u32, &'a str),
}

impl Added {
    pub fn new(vocab: &Vocab, kinds: &'static [u8]) -> Result<Self> {
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
        if ids.is_empty() {
            return Ok(Added { finder: None, ids });
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(ids.iter().map(|&id| vocab.text(id)))
            .map_err(|e| Error::new(Status::Limit, format!("too many special tokens: {e}")))?;
        Ok(Added { finder: Some(finder), ids })
    }

    /// Where the first spelling in `text` starts.
    pub fn first(&self, text: &str) -> Option<usize> {
        self.finder.as_ref()?.find(text).map(|found| found.start())
    }

    /// Cuts `text` at the spellings and hands the segments over in order.
    pub fn split<'a>(
        &self,
        text: &'a str,
        mut each: impl FnMut(Segment<'a>) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        if let Some(finder) = &self.finder {
            for found in finder.find_iter(text) {
                if found.start() > at {
                    each(Segment::Text(&text[at..found.start()]))?;
                }
                let id = self.ids[found.pattern().as_usize()];
                each(Segment::Token(id, &text[found.range()]))?;
                at = found.end();
            }
        }
        if at < text.len() {
            each(Segment::Text(&text[at..]))?;
        }
        Ok(())
    }
}
