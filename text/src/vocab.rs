//! The vocabulary as the file declares it, while tables are built from it, with a hash index from
//! token text to id. Texts are bytes: a file may hold anything, and a text that is not valid UTF-8
//! simply never matches. The index stores ids only and compares against the texts.

use crate::hash;

/// GGUF token types.
pub mod kind {
    pub const NORMAL: u8 = 1;
    pub const UNKNOWN: u8 = 2;
    pub const CONTROL: u8 = 3;
    pub const USER_DEFINED: u8 = 4;
    /// A type byte is one of these, and this bit for tokens that end generation.
    pub const MASK: u8 = 0x7F;
}

/// Whether content may become a token of this type: never a control, unknown or unused one.
pub fn ordinary(kind: u8) -> bool {
    kind == kind::NORMAL || kind == kind::USER_DEFINED
}

pub struct Vocab<'a> {
    text: &'a [u8],
    offsets: &'a [u64],
    types: &'a [u8],
    /// Slots of the index, at most half of them in use, and their tags (hash.rs).
    pub ids: Vec<u32>,
    pub tags: Vec<u8>,
    pub seed: u64,
    /// No two tokens have equal texts.
    distinct: bool,
    /// All texts together are valid UTF-8, so one of them is unless it cuts a character.
    utf8: bool,
}

/// The slot in which a text of this hash stands or belongs, and the id there. `id_at` reads a slot;
/// an id that is none has an empty text, and an empty one is never wanted.
#[inline]
pub fn search<'t>(
    tags: &[u8],
    hash: u64,
    wanted: &[u8],
    id_at: impl Fn(usize) -> u32,
    text: impl Fn(u32) -> &'t [u8],
) -> (usize, Option<u32>) {
    let tag = hash::tag(hash);
    let mut at = hash::place(hash, tags.len());
    for _ in 0..tags.len() {
        if tags[at] == 0 {
            return (at, None);
        }
        if tags[at] == tag {
            let id = id_at(at);
            if text(id) == wanted {
                return (at, Some(id));
            }
        }
        at = if at + 1 == tags.len() { 0 } else { at + 1 };
    }
    (0, None)
}

impl<'a> Vocab<'a> {
    /// `offsets` holds one entry more than `types`, ascending, inside `text` (checked by the
    /// caller at the border).
    pub fn new(text: &'a [u8], offsets: &'a [u64], types: &'a [u8]) -> Self {
        let mut vocab = Vocab {
            text,
            offsets,
            types,
            ids: vec![0; 2 * types.len()],
            tags: vec![0; 2 * types.len()],
            seed: hash::random_seed(),
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
        let key = self.text(id);
        if key.is_empty() {
            return;
        }
        let hash = hash::bytes(self.seed, key);
        let (at, old) = self.search(hash, key);
        if let Some(old) = old {
            self.distinct = false;
            if !self.is_ordinary(id) && self.is_ordinary(old) {
                return;
            }
        }
        self.ids[at] = id;
        self.tags[at] = hash::tag(hash);
    }

    fn search(&self, hash: u64, text: &[u8]) -> (usize, Option<u32>) {
        search(&self.tags, hash, text, |at| self.ids[at], |id| self.text(id))
    }

    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Bytes of the longest text.
    pub fn text_max(&self) -> usize {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }

    pub fn texts(&self) -> &'a [u8] {
        self.text
    }

    pub fn offsets(&self) -> &'a [u64] {
        self.offsets
    }

    pub fn types(&self) -> &'a [u8] {
        self.types
    }

    pub fn text(&self, id: u32) -> &'a [u8] {
        let id = id as usize;
        &self.text[self.offsets[id] as usize..self.offsets[id + 1] as usize]
    }

    /// The text as a string, if it is one.
    pub fn utf8(&self, id: u32) -> Option<&'a str> {
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
        self.types[id as usize] & kind::MASK
    }

    pub fn is_ordinary(&self, id: u32) -> bool {
        ordinary(self.kind(id))
    }

    /// The token with exactly this text, of any type.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        if text.is_empty() {
            return None;
        }
        self.search(hash::bytes(self.seed, text), text).1
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
