//! Text stack of kr behind a small C ABI (krt.h): tokenizers built from GGUF vocabularies and chat
//! templates. Start reading at ffi.rs (the border), then tokenizer.rs and template.rs.

mod added;
mod bpe;
mod error;
mod ffi;
mod hash;
mod jinja;
mod marks;
mod merge;
mod split;
mod spm;
mod tables;
mod tame;
mod template;
mod time;
mod tokenizer;
mod vocab;
