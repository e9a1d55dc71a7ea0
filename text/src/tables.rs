//! What a tokenizer looks up, as one flat run of bytes without pointers: built once from the
//! vocabulary, used in place, and the same whether it lies in memory or in a mapped file.
//! A file may be damaged in ways its checksum does not show (whoever writes it writes the checksum
//! too), so every read is checked against its section: a wrong table gives wrong or no tokens,
//! never a read outside it. Numbers are little-endian.
//!
//! Header: magic, u32 version, u32 n_tokens, u64 seed, u32 is_spm, u32 bytes of the longest control
//! spelling, u32 of the longest text of any token, u32 0, then {u64 offset, u64 bytes} of each
//! section, which follow in order.

use std::ops::Range;

use crate::error::{Error, Result, Status};
use crate::ffi::{TOKEN_BYTES_MAX, TOKENS_MAX};
use crate::hash;
use crate::vocab::{self, Vocab, kind};

const MAGIC: [u8; 8] = *b"KRTEXT\0\0";
/// Counts up with every change of what the tables hold or of how it is derived, here or in
/// src/text/vocab.c (krt.h has the same number).
pub const VERSION: u32 = 1;

#[derive(Clone, Copy)]
pub enum Section {
    /// Bytes of each token as text, and [n_tokens + 1] where they begin.
    Decoded,
    DecodedOffsets,
    /// [n_tokens] type bytes.
    Types,
    /// Spellings and their index: empty where no look-up by text is needed.
    Text,
    TextOffsets,
    Index,
    IndexTags,
    /// SentencePiece: see spm.rs.
    Ranks,
    Neighbours,
    /// Byte-level BPE: see bpe.rs.
    Pairs,
    PairTags,
    /// [256] symbols of the single bytes.
    Bytes,
    /// Ids of control tokens sorted by spelling, by reversed spelling, and of user-defined tokens;
    /// [257] where the spellings of each first byte begin.
    Control,
    ControlStarts,
    ControlReversed,
    User,
    UserStarts,
}

const N_SECTIONS: usize = Section::UserStarts as usize + 1;
const HEAD_BYTES: usize = 40;
const HEADER_BYTES: usize = HEAD_BYTES + 16 * N_SECTIONS;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

// ---- building ---------------------------------------------------------------------------------

pub struct Builder {
    bytes: Vec<u8>,
    ranges: [Range<usize>; N_SECTIONS],
}

impl Builder {
    /// `room`: about as many bytes as the sections will have.
    pub fn new(room: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + room);
        bytes.resize(HEADER_BYTES, 0);
        Builder { bytes, ranges: std::array::from_fn(|_| 0..0) }
    }

    fn section(&mut self, section: Section, put: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let start = self.bytes.len();
        put(&mut self.bytes);
        self.ranges[section as usize] = start..self.bytes.len();
    }

    pub fn bytes(&mut self, section: Section, data: &[u8]) {
        self.section(section, |bytes| bytes.extend_from_slice(data));
    }

    pub fn words(&mut self, section: Section, words: impl ExactSizeIterator<Item = u32>) {
        let space = self.space(section, 4 * words.len());
        for (bytes, word) in space.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Adds `n` bytes of 0 and hands them over to be written.
    pub fn space(&mut self, section: Section, n: usize) -> &mut [u8] {
        self.section(section, |bytes| bytes.resize(bytes.len() + n, 0));
        &mut self.bytes[self.ranges[section as usize].clone()]
    }

    pub fn finish(mut self, vocab: &Vocab, is_spm: bool, control_max: usize) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((vocab.len() as u32).to_le_bytes());
        header.extend(vocab.seed.to_le_bytes());
        header.extend(u32::from(is_spm).to_le_bytes());
        header.extend((control_max as u32).to_le_bytes());
        header.extend((vocab.text_max() as u64).to_le_bytes());
        for range in &self.ranges {
            header.extend((range.start as u64).to_le_bytes());
            header.extend((range.len() as u64).to_le_bytes());
        }
        self.bytes[..HEADER_BYTES].copy_from_slice(&header);
        self.bytes
    }
}

// ---- use --------------------------------------------------------------------------------------

#[derive(Clone, Copy)]
pub struct Tables {
    sections: [&'static [u8]; N_SECTIONS],
    pub n_tokens: u32,
    pub seed: u64,
    pub is_spm: bool,
    /// Bytes of the longest spelling of a control token.
    pub control_max: usize,
    /// Bytes of the longest text of a token.
    pub token_max: usize,
}

impl Tables {
    /// `bytes` live as long as the tables are used: the promise of the C caller (krt.h).
    pub fn open(bytes: &'static [u8]) -> Result<Self> {
        let bad = |what: &str| Error::new(Status::BadFormat, format!("tokenizer tables: {what}"));
        let header = |at| u32_at(bytes, at).ok_or_else(|| bad("too short"));
        if !bytes.starts_with(&MAGIC) || header(8)? != VERSION {
            return Err(bad("another format"));
        }
        let mut tables = Tables {
            sections: [&[]; N_SECTIONS],
            n_tokens: header(12)?,
            seed: u64_at(bytes, 16).ok_or_else(|| bad("too short"))?,
            is_spm: header(24)? == 1,
            control_max: header(28)? as usize,
            token_max: header(32)? as usize,
        };
        let mut end = HEADER_BYTES;
        for (i, section) in tables.sections.iter_mut().enumerate() {
            let at = HEAD_BYTES + 16 * i;
            let (Some(start), Some(n)) = (u64_at(bytes, at), u64_at(bytes, at + 8)) else {
                return Err(bad("too short"));
            };
            // An empty section may never have been written.
            if n == 0 {
                continue;
            }
            *section = usize::try_from(start)
                .ok()
                .filter(|&start| start == end.next_multiple_of(16))
                .and_then(|start| Some(start..start.checked_add(usize::try_from(n).ok()?)?))
                .and_then(|range| bytes.get(range))
                .ok_or_else(|| bad("a section is out of place"))?;
            end = start as usize + section.len();
        }
        if end != bytes.len() {
            return Err(bad("bytes behind the last section"));
        }
        tables.check_sizes().ok_or_else(|| bad("a section has a wrong size"))?;
        Ok(tables)
    }

    fn check_sizes(&self) -> Option<()> {
        use Section::*;
        let n = self.n_tokens as usize;
        let is = |section: Section, n_bytes: usize| {
            (self.sections[section as usize].len() == n_bytes).then_some(())
        };
        if n == 0 || n > TOKENS_MAX {
            return None;
        }
        is(Types, n)?;
        is(DecodedOffsets, 4 * (n + 1))?;
        is(Bytes, 4 * 256)?;
        is(ControlStarts, 4 * 257)?;
        is(UserStarts, 4 * 257)?;
        is(ControlReversed, self.sections[Control as usize].len())?;
        if self.is_spm || !self.sections[TextOffsets as usize].is_empty() {
            is(TextOffsets, 4 * (n + 1))?;
            is(Index, 8 * n)?;
            is(IndexTags, 2 * n)?;
        }
        is(Pairs, crate::bpe::PAIR_BYTES * self.sections[PairTags as usize].len())?;
        is(Ranks, if self.is_spm { 4 * n } else { 0 })?;
        is(Neighbours, if self.is_spm { crate::spm::FILTER_BYTES } else { 0 })
    }

    #[inline]
    pub fn section(&self, section: Section) -> &'static [u8] {
        self.sections[section as usize]
    }

    /// Words of a section.
    pub fn n_words(&self, section: Section) -> usize {
        self.section(section).len() / 4
    }

    /// Word `index` of a section; 0 if there is none.
    #[inline]
    pub fn word(&self, section: Section, index: usize) -> u32 {
        u32_at(self.section(section), index.saturating_mul(4)).unwrap_or(0)
    }

    #[inline]
    fn piece(&self, section: Section, offsets: Section, id: u32) -> &'static [u8] {
        let id = id as usize;
        let range = self.word(offsets, id) as usize..self.word(offsets, id + 1) as usize;
        match self.section(section).get(range) {
            Some(bytes) if bytes.len() as u64 <= TOKEN_BYTES_MAX => bytes,
            _ => &[],
        }
    }

    /// What a token stands for in text; of added tokens that is their spelling.
    pub fn decoded(&self, id: u32) -> &'static [u8] {
        self.piece(Section::Decoded, Section::DecodedOffsets, id)
    }

    /// The type byte.
    pub fn type_byte(&self, id: u32) -> u8 {
        self.section(Section::Types).get(id as usize).copied().unwrap_or(0)
    }

    /// The token with exactly this text that content may become.
    #[inline]
    pub fn find_ordinary(&self, text: &[u8]) -> Option<u32> {
        let spelling = |id: u32| self.piece(Section::Text, Section::TextOffsets, id);
        let id_at = |at: usize| self.word(Section::Index, at);
        if text.is_empty() {
            return None;
        }
        let hash = hash::bytes(self.seed, text);
        vocab::search(self.section(Section::IndexTags), hash, text, id_at, spelling)
            .1
            .filter(|&id| vocab::ordinary(self.type_byte(id) & kind::MASK))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::tokenizer;

    /// Tables of a vocabulary of these tokens, all of one kind; never freed.
    pub fn tables_of(spellings: &[&str], kind: u8) -> Tables {
        Tables::open(built(spellings, kind, true).leak()).unwrap()
    }

    fn built(spellings: &[&str], kind: u8, is_spm: bool) -> Vec<u8> {
        let texts = [spellings, &["?"]].concat();
        let mut offsets = vec![0u64];
        for text in &texts {
            offsets.push(offsets[offsets.len() - 1] + text.len() as u64);
        }
        let mut types = vec![kind; texts.len()];
        types[texts.len() - 1] = super::kind::NORMAL;
        let decoded_offsets: Vec<u32> = offsets.iter().map(|&offset| offset as u32).collect();
        let joined = texts.concat();
        let vocab = Vocab::new(joined.as_bytes(), &offsets, &types);
        let decoded = tokenizer::Decoded { bytes: joined.as_bytes(), offsets: &decoded_offsets };
        if is_spm {
            let unk = texts.len() as u32 - 1;
            tokenizer::build_spm(&vocab, decoded, &vec![0.0; texts.len()], Some(unk)).unwrap()
        } else {
            let merges = b"a bab b";
            tokenizer::build_bpe(&vocab, decoded, b"llama-bpe", merges, &[0, 3, 7]).unwrap()
        }
    }

    const TEXTS: [&str; 6] = ["<s>", "a", "b", "ab", "abb", "\u{2581}b"];

    #[test]
    fn cut_tables_are_refused() {
        for is_spm in [false, true] {
            let whole: &'static [u8] = built(&TEXTS, kind::NORMAL, is_spm).leak();
            assert!(Tables::open(whole).is_ok());
            for n in (0..whole.len()).filter(|n| *n < 3000 || n % 997 == 0) {
                assert!(Tables::open(&whole[..n]).is_err(), "{n}");
            }
        }
    }

    #[test]
    fn damaged_tables_are_refused_or_harmless() {
        for is_spm in [false, true] {
            let whole = built(&TEXTS, kind::USER_DEFINED, is_spm);
            // Not the long filter of neighbours, of which any bits will do.
            let ats = (0..whole.len()).filter(|at| !is_spm || *at < 400 || at % 4099 == 0);
            for (at, mask) in ats.flat_map(|at| [(at, 0x80), (at, 0x01), (at, 0xFF)]) {
                let mut bytes = whole.clone();
                bytes[at] ^= mask;
                let Ok(tables) = Tables::open(bytes.leak()) else { continue };
                let Ok(opened) = tokenizer::Tokenizer::open(tables, b"llama-bpe", true) else {
                    continue;
                };
                for id in opened.encode("<s>abb abab b<s", true, usize::MAX).unwrap().ids {
                    assert!((id as u32) < tables.n_tokens, "byte {at}");
                }
                for id in 0..=tables.n_tokens {
                    assert!(tables.decoded(id).len() <= tables.section(Section::Decoded).len());
                }
            }
        }
    }
}
