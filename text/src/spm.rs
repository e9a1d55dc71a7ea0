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
use crate::vocab::Vocab;

/// Bits of the neighbour filter (a false positive only costs a cut).
const FILTER_BITS: u32 = 22;
const NO_ID: u32 = u32::MAX;

pub struct Spm {
    vocab: Vocab,
    /// Position of each token among the distinct scores, best first.
    ranks: Vec<u32>,
    neighbours: Vec<u64>,
    bytes: [u32; 256],
    text_max: usize,
}

fn filter_slot(a: char, b: char) -> usize {
    let key = u64::from(u32::from(a)) << 21 | u64::from(u32::from(b));
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FILTER_BITS)) as usize
}

impl Spm {
    /// `unk` stands in for bytes the vocabulary has no token for.
    pub fn new(vocab: Vocab, scores: &[f32], unk: Option<u32>) -> Result<Self> {
        let mut bytes = [NO_ID; 256];
        for (byte, slot) in bytes.iter_mut().enumerate() {
            let id = vocab.find(format!("<0x{byte:02X}>").as_bytes());
            *slot = id.or(unk).ok_or_else(|| {
                let message = format!("no token for byte 0x{byte:02X} and no unknown token");
                Error::new(Status::BadFormat, message)
            })?;
        }
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
        order.sort_unstable();
        let mut ranks = vec![0u32; scores.len()];
        let mut rank = 0;
        let mut last = None;
        for id in order.iter().map(|&key| key as u32 as usize) {
            if last.is_some_and(|score| score != scores[id]) {
                rank += 1;
            }
            last = Some(scores[id]);
            ranks[id] = rank;
        }
        let mut neighbours = vec![0u64; 1 << (FILTER_BITS - 6)];
        let mut text_max = 0;
        for id in 0..vocab.len() as u32 {
            if !vocab.is_ordinary(id) {
                continue;
            }
            let Some(text) = vocab.utf8(id) else { continue };
            text_max = text_max.max(text.len());
            for (a, b) in text.chars().zip(text.chars().skip(1)) {
                let slot = filter_slot(a, b);
                neighbours[slot >> 6] |= 1 << (slot & 63);
            }
        }
        Ok(Spm { vocab, ranks, neighbours, bytes, text_max })
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
                self.neighbours[slot >> 6] >> (slot & 63) & 1 != 0
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
            } else {
                let bytes = &piece[start as usize..end as usize];
                out.extend(bytes.iter().map(|&byte| self.bytes[byte as usize] as i32));
            }
        });
    }

    #[inline]
    fn find(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.text_max {
            return None;
        }
        self.vocab.find(text).filter(|&id| self.vocab.is_ordinary(id))
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
        Some((self.spm.ranks[id as usize], id))
    }
}
