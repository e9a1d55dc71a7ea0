//! The vocabulary as the file declares it, with a hash index from token text to id.
//! Texts are bytes: a file may hold anything, and a text that is not valid UTF-8 simply never
//! matches. The index stores ids only and compares against the text blob, so it costs four bytes
//! per token and is built in some 20 ms for 262,144 tokens; nothing here needs a cache file.

use ahash::RandomState;
use hashbrown::HashTable;

/// GGUF token types.
pub mod kind {
    pub const NORMAL: u8 = 1;
    pub const UNKNOWN: u8 = 2;
    pub const CONTROL: u8 = 3;
    pub const USER_DEFINED: u8 = 4;
}

pub struct Vocab {
    text: Vec<u8>,
    offsets: Vec<u32>,
    types: Vec<u8>,
    index: HashTable<u32>,
    hasher: RandomState,
    /// No two tokens have equal texts.
    distinct: bool,
    /// All texts together are valid UTF-8, so one of them is unless it cuts a character.
    utf8: bool,
}

impl Vocab {
    /// `offsets` holds one entry more than `types`, ascending, inside `text` (checked by the
    /// caller at the border).
    pub fn new(text: &[u8], offsets: &[u64], types: &[u8]) -> Self {
        let mut vocab = Vocab {
            text: text.to_vec(),
            offsets: offsets.iter().map(|&offset| offset as u32).collect(),
            types: types.to_vec(),
            index: HashTable::with_capacity(types.len()),
            // Seeded per process: a file cannot be built so that its texts collide.
            hasher: RandomState::new(),
            distinct: true,
            utf8: std::str::from_utf8(text).is_ok(),
        };
        for id in 0..types.len() as u32 {
            vocab.insert(id);
        }
        vocab
    }

    /// Of equal texts the last wins, but never a special token over an ordinary one.
    fn insert(&mut self, id: u32) {
        let Vocab { text, offsets, types, index, hasher, distinct, .. } = self;
        let slice =
            |id: u32| &text[offsets[id as usize] as usize..offsets[id as usize + 1] as usize];
        let key = slice(id);
        if key.is_empty() {
            return;
        }
        let hash = hasher.hash_one(key);
        match index.find_mut(hash, |&other| slice(other) == key) {
            Some(old) => {
                *distinct = false;
                if ordinary(types[id as usize]) || !ordinary(types[*old as usize]) {
                    *old = id;
                }
            }
            None => {
                index.insert_unique(hash, id, |&other| hasher.hash_one(slice(other)));
            }
        }
    }

    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Bytes of the longest text.
    pub fn text_max(&self) -> usize {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }

    pub fn text(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.text[self.offsets[id] as usize..self.offsets[id + 1] as usize]
    }

    /// The text as a string, if it is one.
    pub fn utf8(&self, id: u32) -> Option<&str> {
        let bytes = self.text(id);
        let is_char = |byte: Option<&u8>| byte.is_none_or(|&byte| byte & 0xC0 != 0x80);
        let end = self.offsets[id as usize + 1] as usize;
        if self.utf8 && is_char(bytes.first()) && is_char(self.text.get(end)) {
            // SAFETY: a part of valid UTF-8 that begins and ends at characters is valid.
            return Some(unsafe { std::str::from_utf8_unchecked(bytes) });
        }
        std::str::from_utf8(bytes).ok()
    }

    pub fn kind(&self, id: u32) -> u8 {
        self.types[id as usize]
    }

    /// Whether content may become this token: never for control, unknown and unused tokens.
    pub fn is_ordinary(&self, id: u32) -> bool {
        ordinary(self.types[id as usize])
    }

    /// The token with exactly this text, of any type.
    #[inline]
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.index.find(hash, |&id| self.text(id) == text).copied()
    }

    /// Whether `find` would answer `id`, without a look into the index; false if that is not sure.
    #[inline]
    pub fn is_surely(&self, id: u32, text: &[u8]) -> bool {
        self.distinct && (id as usize) < self.len() && self.text(id) == text
    }

    pub fn ids_of(&self, wanted: &'static [u8]) -> impl Iterator<Item = u32> + '_ {
        (0..self.len() as u32).filter(move |&id| wanted.contains(&self.kind(id)))
    }
}

fn ordinary(kind: u8) -> bool {
    kind == kind::NORMAL || kind == kind::USER_DEFINED
}
