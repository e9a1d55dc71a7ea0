//! SentencePiece BPE from a GGUF vocabulary with scores: neighbours join when their text together
//! is a token, the best score first. Because the joined text lies in the input itself, one look-up
//! in the vocabulary answers "do they join"; no list of merge pairs is derived (Gemma has 513,511
//! of them), so nothing is slow enough to be cached.
//!
//! There is no pre-tokenizer. Text is still cut wherever two neighbouring characters stand side by
//! side in no token at all: no merge can cross such a place, so the cut changes nothing and keeps
//! pieces short.

use crate::error::{Error, Result, Status};
use crate::merge::{Joiner, Merger};
use crate::tables::{Builder, Section, Tables};
use crate::vocab::Vocab;

/// Bits of the neighbour filter (a false positive only costs a cut).
const FILTER_BITS: u32 = 22;
/// Of the section `Neighbours`: one bit for each slot of the filter.
pub const FILTER_BYTES: usize = 1 << (FILTER_BITS - 3);
const NO_ID: u32 = u32::MAX;

fn filter_slot(a: char, b: char) -> usize {
    let key = u64::from(u32::from(a)) << 21 | u64::from(u32::from(b));
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FILTER_BITS)) as usize
}

/// Tokens of the single bytes; `unk` stands in for bytes the vocabulary has no token for.
fn byte_tokens(vocab: &Vocab, unk: Option<u32>) -> Result<[u32; 256]> {
    let mut bytes = [NO_ID; 256];
    for (byte, slot) in bytes.iter_mut().enumerate() {
        let id = vocab.find(format!("<0x{byte:02X}>").as_bytes());
        *slot = id.or(unk).ok_or_else(|| {
            let message = format!("no token for byte 0x{byte:02X} and no unknown token");
            Error::new(Status::BadFormat, message)
        })?;
    }
    Ok(bytes)
}

/// Position of each token among the distinct scores, best first, into `ranks` [n_tokens] words.
fn put_ranks(scores: &[f32], ranks: &mut [u8]) {
    // Sorted as whole numbers, best score first: a look into `scores` at each comparison would
    // cost more than the sort.
    let mut order: Vec<u64> = (0u64..)
        .zip(scores)
        .map(|(id, score)| {
            let bits = score.to_bits();
            let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
            u64::from(!ascending) << 32 | id
        })
        .collect();
    // Files list most tokens by their score: the stable sort takes such runs as they are.
    order.sort();
    let mut rank = 0u32;
    let mut last = None;
    for id in order.iter().map(|&key| key as u32 as usize) {
        if last.is_some_and(|score| score != scores[id]) {
            rank += 1;
        }
        last = Some(scores[id]);
        ranks[4 * id..4 * id + 4].copy_from_slice(&rank.to_le_bytes());
    }
}

pub fn build(builder: &mut Builder, vocab: &Vocab, scores: &[f32], unk: Option<u32>) -> Result<()> {
    put_ranks(scores, builder.space(Section::Ranks, 4 * vocab.len()));
    let neighbours = builder.space(Section::Neighbours, FILTER_BYTES);
    for id in 0..vocab.len() as u32 {
        if !vocab.is_ordinary(id) {
            continue;
        }
        let Some(text) = vocab.utf8(id) else { continue };
        for (a, b) in text.chars().zip(text.chars().skip(1)) {
            let slot = filter_slot(a, b);
            neighbours[slot >> 3] |= 1 << (slot & 7);
        }
    }
    builder.words(Section::Bytes, byte_tokens(vocab, unk)?.into_iter());
    Ok(())
}

pub struct Spm {
    tables: Tables,
    neighbours: &'static [u8],
}

impl Spm {
    pub fn new(tables: Tables) -> Self {
        Spm { tables, neighbours: tables.section(Section::Neighbours) }
    }

    /// Encodes text whose spaces are already written as U+2581.
    pub fn encode(&self, text: &str, merger: &mut Merger, out: &mut Vec<i32>) {
        let mut chars = text.char_indices().peekable();
        let mut piece = 0;
        merger.clear();
        while let Some((at, ch)) = chars.next() {
            let next = at + ch.len_utf8();
            let id = self.find(&text.as_bytes()[at..next]).unwrap_or(NO_ID);
            merger.push(id, (at - piece) as u32);
            let joined = chars.peek().is_some_and(|&(_, after)| {
                let slot = filter_slot(ch, after);
                self.neighbours.get(slot >> 3).is_some_and(|byte| byte >> (slot & 7) & 1 != 0)
            });
            if !joined {
                self.encode_piece(&text.as_bytes()[piece..next], merger, out);
                piece = next;
                merger.clear();
            }
        }
    }

    fn encode_piece(&self, piece: &[u8], merger: &mut Merger, out: &mut Vec<i32>) {
        let joiner = Piece { spm: self, text: piece };
        merger.run(&joiner, piece.len() as u32, |id, start, end| {
            if id != NO_ID {
                out.push(id as i32);
                return;
            }
            for &byte in &piece[start as usize..end as usize] {
                let id = self.tables.word(Section::Bytes, usize::from(byte));
                // Always true of tables that are not damaged.
                if id < self.tables.n_tokens {
                    out.push(id as i32);
                }
            }
        });
    }

    #[inline]
    fn find(&self, text: &[u8]) -> Option<u32> {
        self.tables.find_ordinary(text)
    }
}

struct Piece<'a> {
    spm: &'a Spm,
    text: &'a [u8],
}

impl Joiner for Piece<'_> {
    #[inline]
    fn join(&self, _: u32, _: u32, start: u32, end: u32) -> Option<(u32, u32)> {
        let id = self.spm.find(&self.text[start as usize..end as usize])?;
        Some((self.spm.tables.word(Section::Ranks, id as usize), id))
    }
}
