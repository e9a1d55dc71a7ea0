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
/// So much is encoded also where it cannot fit, for the number: a third of a second at the most.
const COUNTED: usize = 1 << 20;

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
    /// No token stands for more bytes of text than this; 0 where bytes can stand for no token.
    longest: usize,
}

/// Tokens, and how many more there are at the least: of what was passed over.
pub struct Encoded {
    pub ids: Vec<i32>,
    pub n_more: usize,
}

/// Where an encoding stands between two segments.
pub struct Cursor<'a> {
    pub out: &'a mut Vec<i32>,
    merger: Merger,
    /// SentencePiece puts a space before text that follows an added token or nothing.
    after_token: bool,
    limit: usize,
    n_bytes: usize,
    pub n_more: usize,
}

impl<'a> Cursor<'a> {
    /// A lot of text that cannot fit into `limit` tokens with what is there is passed over: then
    /// `n_more` tokens at the least are missing.
    pub fn new(out: &'a mut Vec<i32>, limit: usize) -> Self {
        Cursor { out, merger: Merger::default(), after_token: true, limit, n_bytes: 0, n_more: 0 }
    }

    fn passes_over(&mut self, n_bytes: usize, longest: usize) -> bool {
        self.n_bytes += n_bytes;
        if longest == 0 || self.n_bytes <= COUNTED {
            return false;
        }
        let n_least = n_bytes.div_ceil(longest);
        let is_over = self.out.len() + self.n_more + n_least > self.limit;
        self.n_more += if is_over { n_least } else { 0 };
        is_over
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
        let longest = vocab.text_max();
        let bpe = Bpe::new(vocab, merges, offsets, splitter.keep_whole)?;
        let longest = if bpe.has_all_bytes() { longest } else { 0 };
        Self { model: Model::Bpe { splitter, bpe }, control, user, control_texts, longest }.probed()
    }

    pub fn spm(vocab: Vocab, scores: &[f32], unk: Option<u32>, space_prefix: bool) -> Result<Self> {
        let (control, user, control_texts) = added(&vocab)?;
        let longest = vocab.text_max();
        let spm = Spm::new(vocab, scores, unk)?;
        let model = Model::Spm { spm, space_prefix };
        Self { model, control, user, control_texts, longest }.probed()
    }

    /// Encodes one varied string, so that a tokenizer that cannot encode fails at load.
    fn probed(self) -> Result<Self> {
        self.encode("Hello, it's 2024: x = [1.5]\r\n\té — 漢字 👍🏽  end ", true, usize::MAX)?;
        Ok(self)
    }

    pub fn encode(&self, text: &str, parse_special: bool, limit: usize) -> Result<Encoded> {
        let mut ids = Vec::with_capacity(text.len().min(limit) / 3 + 8);
        let mut cursor = Cursor::new(&mut ids, limit);
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
        let n_more = cursor.n_more;
        Ok(Encoded { ids, n_more })
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
        if cursor.passes_over(text.len(), self.longest) {
            return Ok(());
        }
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
