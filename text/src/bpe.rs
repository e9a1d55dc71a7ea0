//! Byte-level BPE from a GGUF vocabulary: each byte of a word is one symbol, pairs merge by the
//! rank of their rule. The pair table is keyed by token ids, 16 bytes per rule.
//!
//! The engine of the tokenizers crate is not used for this: it wants every vocabulary entry and
//! merge as owned strings and proves shortcuts at load, which costs 0.3 to 2 s and over 100 MB for
//! vocabularies that load here in well under 0.1 s.

use std::collections::HashMap;

use ahash::RandomState;

use crate::error::{Error, Result, Status, quote};
use crate::merge::{Joiner, Merger};
use crate::vocab::Vocab;

pub struct Bpe {
    pairs: HashMap<u64, (u32, u32), RandomState>,
    /// Symbol of each byte. Bytes the vocabulary has no token for get ids from `n_tokens` on, so
    /// that merges around them still work; such ids are dropped from the output.
    atoms: [u32; 256],
    n_tokens: u32,
    /// Vocabularies whose rule is "a word that is a token stays whole" keep the index for it.
    whole: Option<Vocab>,
}

/// The printable character that stands for each byte in byte-level vocabularies.
pub fn alphabet() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut next = 256;
    for (byte, slot) in table.iter_mut().enumerate() {
        let code = match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => byte as u32,
            _ => {
                next += 1;
                next - 1
            }
        };
        *slot = char::from_u32(code).expect("below the surrogates");
    }
    table
}

impl Bpe {
    pub fn new(vocab: Vocab, merges: &[u8], offsets: &[u64], keep_whole: bool) -> Result<Self> {
        let n_tokens = vocab.len() as u32;
        let mut atoms = [0u32; 256];
        let mut missing: HashMap<[u8; 2], u32> = HashMap::new();
        let mut buf = [0u8; 4];
        for (byte, ch) in alphabet().iter().enumerate() {
            let text = ch.encode_utf8(&mut buf).as_bytes();
            atoms[byte] = match vocab.find(text).filter(|&id| vocab.is_ordinary(id)) {
                Some(id) => id,
                None => {
                    let id = n_tokens + missing.len() as u32;
                    missing.insert([text[0], *text.get(1).unwrap_or(&0)], id);
                    id
                }
            };
        }
        let find = |text: &[u8]| {
            vocab.find(text).filter(|&id| vocab.is_ordinary(id)).or_else(|| match *text {
                [a] => missing.get(&[a, 0]).copied(),
                [a, b] => missing.get(&[a, b]).copied(),
                _ => None,
            })
        };
        let n_merges = offsets.len() - 1;
        let mut pairs = HashMap::with_capacity_and_hasher(n_merges, RandomState::new());
        let mut product = Vec::new();
        let mut next = 0;
        for rank in 0..n_merges {
            let rule = &merges[offsets[rank] as usize..offsets[rank + 1] as usize];
            let bad = |why: &str| {
                let message = format!("merge rule {rank} {} {why}", quote(rule));
                Error::new(Status::BadFormat, message)
            };
            // The left side is never empty, so a space in front belongs to it.
            let space =
                rule.iter().skip(1).position(|&b| b == b' ').ok_or_else(|| bad("has no space"))?
                    + 1;
            let (left, right) = (&rule[..space], &rule[space + 1..]);
            product.clear();
            product.extend_from_slice(left);
            product.extend_from_slice(right);
            // Vocabularies list the products in the order of their rules: one look beside the last
            // product saves most look-ups in the index.
            let is_next = vocab.is_surely(next, &product) && vocab.is_ordinary(next);
            let ids = (find(left), find(right), if is_next { Some(next) } else { find(&product) });
            next = ids.2.map_or(next, |id| id + 1);
            if let (Some(left), Some(right), Some(product)) = ids {
                let key = u64::from(left) << 32 | u64::from(right);
                pairs.entry(key).or_insert((rank as u32, product));
            } else if [left, right, &product]
                .iter()
                .any(|t| find(t).is_none() && vocab.find(t).is_none())
            {
                return Err(bad("names a text that is no token"));
            }
            // Otherwise a control or unused token takes part: content must never become it.
        }
        pairs.shrink_to_fit();
        Ok(Bpe { pairs, atoms, n_tokens, whole: keep_whole.then_some(vocab) })
    }

    /// Whether every byte of a text stands for a token, or for a part of one.
    pub fn has_all_bytes(&self) -> bool {
        self.atoms.iter().all(|&id| id < self.n_tokens)
    }

    /// Encodes one word of the pre-tokenizer.
    pub fn encode(&self, word: &[u8], merger: &mut Merger, out: &mut Vec<i32>) {
        if let Some(vocab) = &self.whole
            && let Some(id) = self.find_whole(vocab, word)
        {
            out.push(id as i32);
            return;
        }
        merger.clear();
        for (i, &byte) in word.iter().enumerate() {
            merger.push(self.atoms[byte as usize], i as u32);
        }
        merger.run(self, word.len() as u32, |id, _, _| {
            if id < self.n_tokens {
                out.push(id as i32);
            }
        });
    }

    fn find_whole(&self, vocab: &Vocab, word: &[u8]) -> Option<u32> {
        let alphabet = alphabet_cached();
        let mut text = [0u8; 512];
        if word.len() > text.len() / 2 {
            return None;
        }
        let mut n = 0;
        for &byte in word {
            n += alphabet[byte as usize].encode_utf8(&mut text[n..]).len();
        }
        vocab.find(&text[..n]).filter(|&id| vocab.is_ordinary(id))
    }
}

fn alphabet_cached() -> &'static [char; 256] {
    static TABLE: std::sync::OnceLock<[char; 256]> = std::sync::OnceLock::new();
    TABLE.get_or_init(alphabet)
}

impl Joiner for Bpe {
    #[inline]
    fn join(&self, left: u32, right: u32, _: u32, _: u32) -> Option<(u32, u32)> {
        self.pairs.get(&(u64::from(left) << 32 | u64::from(right))).copied()
    }
}
