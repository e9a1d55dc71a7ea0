//! Byte-level BPE from a GGUF vocabulary: each byte of a word is one symbol, pairs merge by the
//! rank of their rule. The pair table is keyed by token ids, 16 bytes a
//! slot, at most half full.
//!
//! The engine of the tokenizers crate is not used for this: it wants every vocabulary entry and
//! merge as owned strings and proves shortcuts at load, which costs 0.3 to 2 s and over 100 MB for
//! vocabularies that load here in well under 0.1 s.

use std::collections::HashMap;

use crate::error::{Error, Result, Status, quote};
use crate::hash;
use crate::merge::{Joiner, Merger};
use crate::tables::{Builder, Section, Tables};
use crate::vocab::Vocab;

/// A slot of the pair table: left, right, rank and product of a rule.
pub const PAIR_BYTES: usize = 16;

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

fn read_pair(slot: &[u8]) -> Option<[u32; 4]> {
    let word = |at: usize| Some(u32::from_le_bytes(slot.get(at..at + 4)?.try_into().ok()?));
    Some([word(0)?, word(4)?, word(8)?, word(12)?])
}

/// The slot of a pair and its rule, or the slot where it belongs.
#[inline]
fn search(
    table: &[u8],
    tags: &[u8],
    seed: u64,
    left: u32,
    right: u32,
) -> (usize, u8, Option<[u32; 4]>) {
    let hash = hash::pair(seed, left, right);
    let tag = hash::tag(hash);
    let mut at = hash::place(hash, tags.len());
    for _ in 0..tags.len() {
        if tags[at] == 0 {
            break;
        }
        if tags[at] == tag
            && let Some(pair) = table.get(at * PAIR_BYTES..).and_then(read_pair)
            && pair[0] == left
            && pair[1] == right
        {
            return (at, tag, Some(pair));
        }
        at = if at + 1 == tags.len() { 0 } else { at + 1 };
    }
    (at, tag, None)
}

/// The first rule of a pair counts.
fn put_pair(table: &mut [u8], tags: &mut [u8], seed: u64, pair: [u32; 4]) {
    let (at, tag, found) = search(table, tags, seed, pair[0], pair[1]);
    if found.is_none() {
        tags[at] = tag;
        let slot = &mut table[at * PAIR_BYTES..(at + 1) * PAIR_BYTES];
        for (bytes, word) in slot.chunks_exact_mut(4).zip(pair) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Symbol of each byte. Bytes the vocabulary has no token for get ids from `n_tokens` on, so that
/// merges around them still work; such ids are dropped from the output.
fn atoms(vocab: &Vocab) -> ([u32; 256], HashMap<[u8; 2], u32>) {
    let mut atoms = [0u32; 256];
    let mut missing: HashMap<[u8; 2], u32> = HashMap::new();
    let mut buf = [0u8; 4];
    for (byte, ch) in alphabet().iter().enumerate() {
        let text = ch.encode_utf8(&mut buf).as_bytes();
        atoms[byte] = match vocab.find(text).filter(|&id| vocab.is_ordinary(id)) {
            Some(id) => id,
            None => {
                let id = (vocab.len() + missing.len()) as u32;
                missing.insert([text[0], *text.get(1).unwrap_or(&0)], id);
                id
            }
        };
    }
    (atoms, missing)
}

pub fn build(builder: &mut Builder, vocab: &Vocab, merges: &[u8], offsets: &[u64]) -> Result<()> {
    let (atoms, missing) = atoms(vocab);
    let find = |text: &[u8]| {
        vocab.find(text).filter(|&id| vocab.is_ordinary(id)).or_else(|| match *text {
            [a] => missing.get(&[a, 0]).copied(),
            [a, b] => missing.get(&[a, b]).copied(),
            _ => None,
        })
    };
    let n_merges = offsets.len() - 1;
    let table = builder.space(Section::Pairs, 2 * n_merges * PAIR_BYTES);
    let mut tags = vec![0; 2 * n_merges];
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
            rule.iter().skip(1).position(|&b| b == b' ').ok_or_else(|| bad("has no space"))? + 1;
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
            put_pair(table, &mut tags, vocab.seed, [left, right, rank as u32, product]);
        } else if [left, right, &product]
            .iter()
            .any(|t| find(t).is_none() && vocab.find(t).is_none())
        {
            return Err(bad("names a text that is no token"));
        }
        // Otherwise a control or unused token takes part: content must never become it.
    }
    builder.bytes(Section::PairTags, &tags);
    builder.words(Section::Bytes, atoms.into_iter());
    Ok(())
}

pub struct Bpe {
    tables: Tables,
    /// A word that is a token stays whole.
    keep_whole: bool,
}

impl Bpe {
    pub fn new(tables: Tables, keep_whole: bool) -> Self {
        Bpe { tables, keep_whole }
    }

    /// Whether every byte of a text stands for a token, or for a part of one.
    pub fn has_all_bytes(&self) -> bool {
        (0..256).all(|byte| self.tables.word(Section::Bytes, byte) < self.tables.n_tokens)
    }

    /// Encodes one word of the pre-tokenizer.
    pub fn encode(&self, word: &[u8], merger: &mut Merger, out: &mut Vec<i32>) {
        if self.keep_whole
            && let Some(id) = self.find_whole(word)
        {
            out.push(id as i32);
            return;
        }
        merger.clear();
        for (i, &byte) in word.iter().enumerate() {
            merger.push(self.tables.word(Section::Bytes, usize::from(byte)), i as u32);
        }
        merger.run(self, word.len() as u32, |id, _, _| {
            if id < self.tables.n_tokens {
                out.push(id as i32);
            }
        });
    }

    fn find_whole(&self, word: &[u8]) -> Option<u32> {
        let alphabet = alphabet_cached();
        let mut text = [0u8; 512];
        if word.len() > text.len() / 2 {
            return None;
        }
        let mut n = 0;
        for &byte in word {
            n += alphabet[byte as usize].encode_utf8(&mut text[n..]).len();
        }
        self.tables.find_ordinary(&text[..n])
    }
}

fn alphabet_cached() -> &'static [char; 256] {
    static TABLE: std::sync::OnceLock<[char; 256]> = std::sync::OnceLock::new();
    TABLE.get_or_init(alphabet)
}

impl Joiner for Bpe {
    #[inline]
    fn join(&self, left: u32, right: u32, _: u32, _: u32) -> Option<(u32, u32)> {
        let (table, tags) =
            (self.tables.section(Section::Pairs), self.tables.section(Section::PairTags));
        let (_, _, found) = search(table, tags, self.tables.seed, left, right);
        found.map(|[_, _, rank, product]| (rank, product))
    }
}
