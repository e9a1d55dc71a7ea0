//! The tokenizer: cuts text at added tokens, then encodes what lies between.
//! Control tokens are looked for only when the caller asks (parse_special); user-defined tokens
//! are ordinary vocabulary with a fixed spelling and are always looked for.

use crate::added::{self, Added, Segment};
use crate::bpe::{self, Bpe};
use crate::error::Result;
use crate::merge::Merger;
use crate::split::{self, Splitter};
use crate::spm::{self, Spm};
use crate::tables::{Builder, Section, Tables};
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
    pub tables: Tables,
    pub control: Added,
    user: Added,
    /// No token stands for more bytes of text than this; 0 where bytes can stand for no token.
    longest: usize,
}

/// Tokens, and how many more there are at the least: of what was passed over.
pub struct Encoded {
    pub ids: Vec<i32>,
    pub n_more: usize,
}

/// What each token stands for in text.
#[derive(Clone, Copy)]
pub struct Decoded<'a> {
    pub bytes: &'a [u8],
    /// One more than there are tokens.
    pub offsets: &'a [u32],
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
    /// `pre` is the name of the pre-tokenizer rule, `space_prefix` is of SentencePiece.
    pub fn open(tables: Tables, pre: &[u8], space_prefix: bool) -> Result<Self> {
        let mut longest = tables.token_max;
        let model = if tables.is_spm {
            Model::Spm { spm: Spm::new(tables), space_prefix }
        } else {
            let splitter = Splitter::new(pre)?;
            let bpe = Bpe::new(tables, splitter.keep_whole);
            if !bpe.has_all_bytes() {
                longest = 0;
            }
            Model::Bpe { splitter, bpe }
        };
        let control = Added::new(tables, Section::Control, Section::ControlStarts);
        let user = Added::new(tables, Section::User, Section::UserStarts);
        Self { model, tables, control, user, longest }.probed()
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

/// Tables of a vocabulary: what both kinds have around what `own` puts. `indexed`: words are looked
/// up by their spelling; `room`: bytes that `own` needs.
fn build(
    vocab: &Vocab,
    decoded: Decoded,
    is_spm: bool,
    indexed: bool,
    room: usize,
    own: impl FnOnce(&mut Builder) -> Result<()>,
) -> Result<Vec<u8>> {
    let control = added::sorted(vocab, &[kind::CONTROL, kind::UNKNOWN])?;
    let user = added::sorted(vocab, &[kind::USER_DEFINED])?;
    let mut reversed = control.clone();
    reversed.sort_by(|&a, &b| vocab.text(a).iter().rev().cmp(vocab.text(b).iter().rev()));
    let control_max = control.iter().map(|&id| vocab.text(id).len()).max().unwrap_or(0);
    let n_indexed = if indexed { vocab.texts().len() + 14 * vocab.len() } else { 0 };
    let n_common = decoded.bytes.len() + 5 * vocab.len() + 8 * control.len() + 4 * user.len();
    let mut builder = Builder::new(n_common + n_indexed + room + (8 << 10));
    builder.bytes(Section::Decoded, decoded.bytes);
    builder.words(Section::DecodedOffsets, decoded.offsets.iter().copied());
    builder.bytes(Section::Types, vocab.types());
    if indexed {
        builder.bytes(Section::Text, vocab.texts());
        let offsets = vocab.offsets().iter().map(|&offset| offset as u32);
        builder.words(Section::TextOffsets, offsets);
        builder.words(Section::Index, vocab.ids.iter().copied());
        builder.bytes(Section::IndexTags, &vocab.tags);
    }
    own(&mut builder)?;
    added::build(&mut builder, vocab, &control, Section::Control, Section::ControlStarts);
    builder.words(Section::ControlReversed, reversed.into_iter());
    added::build(&mut builder, vocab, &user, Section::User, Section::UserStarts);
    Ok(builder.finish(vocab, is_spm, control_max))
}

/// `unk` stands in for bytes the vocabulary has no token for.
pub fn build_spm(
    vocab: &Vocab,
    decoded: Decoded,
    scores: &[f32],
    unk: Option<u32>,
) -> Result<Vec<u8>> {
    let room = 4 * vocab.len() + spm::FILTER_BYTES;
    build(vocab, decoded, true, true, room, |builder| spm::build(builder, vocab, scores, unk))
}

pub fn build_bpe(
    vocab: &Vocab,
    decoded: Decoded,
    pre: &[u8],
    merges: &[u8],
    offsets: &[u64],
) -> Result<Vec<u8>> {
    let whole = split::keeps_whole(pre)?;
    let room = 2 * (bpe::PAIR_BYTES + 1) * offsets.len();
    build(vocab, decoded, false, whole, room, |builder| bpe::build(builder, vocab, merges, offsets))
}
