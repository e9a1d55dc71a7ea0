//! The tokenizer: cuts text at added tokens, then encodes what lies between.
//! Control tokens are looked for only when the caller asks (parse_special); user-defined tokens
//! are ordinary vocabulary with a fixed spelling and are always looked for.

use crate::added::{Added, Segment};
use crate::bpe::Bpe;
use crate::error::Result;
use crate::merge::Merger;
use crate::split::Splitter;
use crate::spm::Spm;
use crate::vocab::{Vocab, kind};

pub const INPUT_MAX: usize = 16 << 20;

enum Model {
    Bpe { splitter: Splitter, bpe: Bpe },
    Spm { spm: Spm, space_prefix: bool },
}

pub struct Tokenizer {
    model: Model,
    pub control: Added,
    user: Added,
    /// Spellings of the control tokens, for templates.
    pub control_texts: Vec<String>,
}

/// Where an encoding stands between two segments.
pub struct Cursor<'a> {
    pub out: &'a mut Vec<i32>,
    merger: Merger,
    /// SentencePiece puts a space before text that follows an added token or nothing.
    after_token: bool,
}

impl<'a> Cursor<'a> {
    pub fn new(out: &'a mut Vec<i32>) -> Self {
        Cursor { out, merger: Merger::default(), after_token: true }
    }

    pub fn token(&mut self, id: u32) {
        self.out.push(id as i32);
        self.after_token = true;
    }
}

impl Tokenizer {
    pub fn bpe(vocab: Vocab, pre: &[u8], merges: &[u8], offsets: &[u64]) -> Result<Self> {
        let splitter = Splitter::new(pre)?;
        let (control, user, control_texts) = added(&vocab)?;
        let bpe = Bpe::new(vocab, merges, offsets, splitter.keep_whole)?;
        Self { model: Model::Bpe { splitter, bpe }, control, user, control_texts }.probed()
    }

    pub fn spm(vocab: Vocab, scores: &[f32], unk: Option<u32>, space_prefix: bool) -> Result<Self> {
        let (control, user, control_texts) = added(&vocab)?;
        let spm = Spm::new(vocab, scores, unk)?;
        Self { model: Model::Spm { spm, space_prefix }, control, user, control_texts }.probed()
    }

    /// Encodes one varied string, so that a tokenizer that cannot encode fails at load.
    fn probed(self) -> Result<Self> {
        self.encode("Hello, it's 2024: x = [1.5]\r\n\té — 漢字 👍🏽  end ", true)?;
        Ok(self)
    }

    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<i32>> {
        let mut out = Vec::with_capacity(text.len() / 3 + 8);
        let mut cursor = Cursor::new(&mut out);
        if parse_special {
            self.control.split(text, |segment| {
                match segment {
                    Segment::Text(text) => self.encode_content(text, &mut cursor)?,
                    Segment::Token(id, _) => cursor.token(id),
                }
                Ok(())
            })?;
        } else {
            self.encode_content(text, &mut cursor)?;
        }
        Ok(out)
    }

    /// Encodes text in which no control token is looked for.
    pub fn encode_content(&self, text: &str, cursor: &mut Cursor) -> Result<()> {
        self.user.split(text, |segment| {
            match segment {
                Segment::Text(text) => self.encode_raw(text, cursor)?,
                Segment::Token(id, _) => cursor.token(id),
            }
            Ok(())
        })
    }

    fn encode_raw(&self, text: &str, cursor: &mut Cursor) -> Result<()> {
        let prefix = std::mem::replace(&mut cursor.after_token, false);
        match &self.model {
            Model::Bpe { splitter, bpe } => {
                for span in splitter.split(text)? {
                    let word = &text.as_bytes()[span.start as usize..span.end as usize];
                    bpe.encode(word, &mut cursor.merger, cursor.out);
                }
            }
            Model::Spm { spm, space_prefix } => {
                let mut escaped = String::with_capacity(text.len() + text.len() / 2 + 3);
                if *space_prefix && prefix {
                    escaped.push('\u{2581}');
                }
                for (i, part) in text.split(' ').enumerate() {
                    if i > 0 {
                        escaped.push('\u{2581}');
                    }
                    escaped.push_str(part);
                }
                spm.encode(&escaped, &mut cursor.merger, cursor.out);
            }
        }
        Ok(())
    }
}

fn added(vocab: &Vocab) -> Result<(Added, Added, Vec<String>)> {
    const CONTROL: &[u8] = &[kind::CONTROL, kind::UNKNOWN];
    let control = Added::new(vocab, CONTROL)?;
    let user = Added::new(vocab, &[kind::USER_DEFINED])?;
    let texts = vocab
        .ids_of(CONTROL)
        .filter_map(|id| std::str::from_utf8(vocab.text(id)).ok().map(str::to_owned))
        .collect();
    Ok((control, user, texts))
}
