//! The C border. Every export catches panics, checks what it is given (lengths, UTF-8, limits),
//! writes results into buffers the caller owns and reports the size needed when they are too
//! small. Contracts are in krt.h; the structs here mirror it.

use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::error::{Error, Result, Status};
use crate::tables::Tables;
use crate::template::{Message, Template};
use crate::tokenizer::{self, Decoded, Encoded, INPUT_MAX, Tokenizer};
use crate::vocab::Vocab;

pub const TOKENS_MAX: usize = 4 << 20;
const MERGES_MAX: usize = 8 << 20;
pub const TOKEN_BYTES_MAX: u64 = 64 << 10;
const MESSAGES_MAX: usize = 2048;
const OK: i32 = 0;

#[repr(C)]
pub struct KrtError {
    offset: u64,
    message: [u8; 256],
}

#[repr(C)]
pub struct KrtVocab {
    text: *const u8,
    offsets: *const u64,
    types: *const u8,
    scores: *const f32,
    decoded: *const u8,
    decoded_offsets: *const u32,
    n_tokens: usize,
    merges: *const u8,
    merge_offsets: *const u64,
    n_merges: usize,
    pre: *const u8,
    pre_bytes: usize,
    unk: i32,
    is_spm: i32,
}

#[repr(C)]
pub struct KrtMessage {
    role: *const u8,
    role_bytes: usize,
    content: *const u8,
    content_bytes: usize,
}

/// Runs `body`, turning errors and panics into a status and a message.
fn guard(error: *mut KrtError, body: impl FnOnce() -> Result<()>) -> i32 {
    static QUIET: Once = Once::new();
    // The default hook writes to stderr; a library must not.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(Error::new(Status::Internal, "internal error in the text library"))
    });
    match outcome {
        Ok(()) => OK,
        Err(failure) => {
            // SAFETY: the caller passes NULL or a valid error struct.
            if let Some(error) = unsafe { error.as_mut() } {
                let mut n = failure.message.len().min(error.message.len() - 1);
                while !failure.message.is_char_boundary(n) {
                    n -= 1;
                }
                error.offset = failure.offset;
                error.message[..n].copy_from_slice(&failure.message.as_bytes()[..n]);
                error.message[n] = 0;
            }
            failure.status as i32
        }
    }
}

/// # Safety
/// `data` points to `n` readable elements, or `n` is 0.
unsafe fn slice<'a, T>(data: *const T, n: usize) -> &'a [T] {
    if n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data, n) } }
}

/// # Safety
/// As `slice`.
unsafe fn text<'a>(data: *const u8, n: usize, what: &str) -> Result<&'a str> {
    let bytes = unsafe { slice(data, n) };
    std::str::from_utf8(bytes).map_err(|e| {
        Error::at(Status::InvalidArg, e.valid_up_to(), format!("{what} is not valid UTF-8"))
    })
}

/// Copies a result out and reports its full length.
///
/// # Safety
/// `out` has room for `capacity` elements (or is NULL with 0); `n_out` is valid.
unsafe fn give<T: Copy>(data: &[T], out: *mut T, capacity: usize, n_out: *mut usize) -> Result<()> {
    unsafe { *n_out = data.len() };
    if data.len() > capacity {
        return Err(Error::new(Status::Limit, format!("needs room for {}", data.len())));
    }
    if !data.is_empty() {
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), out, data.len()) };
    }
    Ok(())
}

/// Copies tokens out. With `is_least` text may have been passed over: then the count is the least
/// that there can be.
///
/// # Safety
/// As `give`; `is_least` is NULL or valid.
unsafe fn give_ids(
    mut encoded: Encoded,
    bos: Option<i32>,
    ids: *mut i32,
    capacity: usize,
    n_ids: *mut usize,
    is_least: *mut i32,
) -> Result<()> {
    if let Some(bos) = bos {
        encoded.ids.insert(0, bos);
    }
    if let Some(is_least) = unsafe { is_least.as_mut() } {
        *is_least = i32::from(encoded.n_more > 0);
    }
    if encoded.n_more == 0 {
        return unsafe { give(&encoded.ids, ids, capacity, n_ids) };
    }
    let n = encoded.ids.len() + encoded.n_more;
    unsafe { *n_ids = n };
    Err(Error::new(Status::Limit, format!("needs room for {n} or more")))
}

/// Offsets must ascend; the last one is the size of the text they cut.
fn check_offsets(offsets: &[u64], part_max: u64, what: &str) -> Result<usize> {
    let mut last = 0;
    for (i, &offset) in offsets.iter().enumerate() {
        if offset < last || (i == 0 && offset != 0) {
            return Err(Error::new(Status::BadFormat, format!("offset {i} of {what}s runs back")));
        }
        if offset - last > part_max {
            return Err(Error::new(
                Status::Limit,
                format!("{what} {} has over {part_max} bytes", i - 1),
            ));
        }
        last = offset;
    }
    if last > u64::from(u32::MAX) {
        return Err(Error::new(Status::Limit, format!("{what}s have {last} bytes together")));
    }
    Ok(last as usize)
}

/// # Safety
/// The arrays of `desc` have the lengths krt.h gives them.
unsafe fn build(desc: &KrtVocab) -> Result<Vec<u8>> {
    if desc.n_tokens == 0 || desc.n_tokens > TOKENS_MAX {
        let message = format!("vocabulary of {} tokens, limit {TOKENS_MAX}", desc.n_tokens);
        return Err(Error::new(Status::Limit, message));
    }
    if desc.n_merges > MERGES_MAX {
        let message = format!("{} merge rules, limit {MERGES_MAX}", desc.n_merges);
        return Err(Error::new(Status::Limit, message));
    }
    let offsets = unsafe { slice(desc.offsets, desc.n_tokens + 1) };
    let n_bytes = check_offsets(offsets, TOKEN_BYTES_MAX, "token")?;
    let types = unsafe { slice(desc.types, desc.n_tokens) };
    let vocab = Vocab::new(unsafe { slice(desc.text, n_bytes) }, offsets, types);
    let decoded_offsets = unsafe { slice(desc.decoded_offsets, desc.n_tokens + 1) };
    let n_bytes = decoded_offsets[desc.n_tokens] as usize;
    let decoded =
        Decoded { bytes: unsafe { slice(desc.decoded, n_bytes) }, offsets: decoded_offsets };
    if desc.is_spm != 0 {
        let scores = unsafe { slice(desc.scores, desc.n_tokens) };
        let unk = u32::try_from(desc.unk).ok().filter(|&id| (id as usize) < desc.n_tokens);
        return tokenizer::build_spm(&vocab, decoded, scores, unk);
    }
    let empty = [0];
    let merge_offsets = match desc.n_merges {
        0 => &empty[..],
        n => unsafe { slice(desc.merge_offsets, n + 1) },
    };
    let n_bytes = check_offsets(merge_offsets, 2 * TOKEN_BYTES_MAX + 1, "merge rule")?;
    let merges = unsafe { slice(desc.merges, n_bytes) };
    let pre = unsafe { slice(desc.pre, desc.pre_bytes) };
    tokenizer::build_bpe(&vocab, decoded, pre, merges, merge_offsets)
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_tables_build(
    desc: *const KrtVocab,
    tables: *mut *mut u8,
    n_bytes: *mut usize,
    error: *mut KrtError,
) -> i32 {
    guard(error, || {
        let built = unsafe { build(&*desc) }?.into_boxed_slice();
        unsafe { *n_bytes = built.len() };
        unsafe { *tables = Box::into_raw(built).cast() };
        Ok(())
    })
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_tables_free(tables: *mut u8, n_bytes: usize) {
    if !tables.is_null() {
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(tables, n_bytes)) });
    }
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_tokenizer_create(
    tables: *const u8,
    n_bytes: usize,
    pre: *const u8,
    pre_bytes: usize,
    is_spm: i32,
    space_prefix: i32,
    tokenizer: *mut *mut Tokenizer,
    error: *mut KrtError,
) -> i32 {
    guard(error, || {
        // SAFETY: krt.h has the caller keep the tables, unchanged, until the tokenizer is gone.
        let tables = Tables::open(unsafe { slice::<'static>(tables, n_bytes) })?;
        if tables.is_spm != (is_spm != 0) {
            let message = "tokenizer tables: of another kind of vocabulary";
            return Err(Error::new(Status::BadFormat, message));
        }
        let pre = unsafe { slice(pre, pre_bytes) };
        let opened = Tokenizer::open(tables, pre, space_prefix != 0)?;
        unsafe { *tokenizer = Box::into_raw(Box::new(opened)) };
        Ok(())
    })
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_tokenizer_n_tokens(tokenizer: *const Tokenizer) -> u32 {
    unsafe { &*tokenizer }.tables.n_tokens
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_tokenizer_token(
    tokenizer: *const Tokenizer,
    id: u32,
    n_bytes: *mut usize,
    kind: *mut u8,
) -> *const u8 {
    let tables = &unsafe { &*tokenizer }.tables;
    let bytes = tables.decoded(id);
    unsafe { *n_bytes = bytes.len() };
    unsafe { *kind = tables.type_byte(id) };
    bytes.as_ptr()
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_tokenizer_destroy(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        guard(std::ptr::null_mut(), || {
            drop(unsafe { Box::from_raw(tokenizer) });
            Ok(())
        });
    }
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_tokenizer_encode(
    tokenizer: *const Tokenizer,
    input: *const u8,
    n_bytes: usize,
    parse_special: i32,
    bos: i32,
    ids: *mut i32,
    capacity: usize,
    n_ids: *mut usize,
    is_least: *mut i32,
    error: *mut KrtError,
) -> i32 {
    guard(error, || {
        if n_bytes > INPUT_MAX {
            let message = format!("text of {n_bytes} bytes, limit {INPUT_MAX}");
            return Err(Error::new(Status::Limit, message));
        }
        let input = unsafe { text(input, n_bytes, "text") }?;
        let limit = if is_least.is_null() { usize::MAX } else { capacity };
        let encoded = unsafe { &*tokenizer }.encode(input, parse_special != 0, limit)?;
        let bos = (bos >= 0).then_some(bos);
        unsafe { give_ids(encoded, bos, ids, capacity, n_ids, is_least) }
    })
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_template_create(
    source: *const u8,
    n_bytes: usize,
    bos: *const u8,
    bos_bytes: usize,
    eos: *const u8,
    eos_bytes: usize,
    template: *mut *mut Template,
    error: *mut KrtError,
) -> i32 {
    guard(error, || {
        let source = unsafe { text(source, n_bytes, "chat template") }
            .map_err(|e| Error { status: Status::BadTemplate, ..e })?;
        // A special token that is not UTF-8 cannot be printed by a template: it stays empty.
        let bos = unsafe { text(bos, bos_bytes, "bos") }.unwrap_or("");
        let eos = unsafe { text(eos, eos_bytes, "eos") }.unwrap_or("");
        let built = Template::new(source, bos, eos)?;
        unsafe { *template = Box::into_raw(Box::new(built)) };
        Ok(())
    })
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_template_destroy(template: *mut Template) {
    if !template.is_null() {
        guard(std::ptr::null_mut(), || {
            drop(unsafe { Box::from_raw(template) });
            Ok(())
        });
    }
}

/// # Safety
/// As `slice`, for the list and for each message.
unsafe fn messages<'a>(list: *const KrtMessage, n: usize) -> Result<Vec<Message<'a>>> {
    if n > MESSAGES_MAX {
        let message = format!("{n} messages, limit {MESSAGES_MAX}");
        return Err(Error::new(Status::Limit, message));
    }
    let mut total = 0usize;
    let mut out = Vec::with_capacity(n);
    for (i, m) in unsafe { slice(list, n) }.iter().enumerate() {
        total = total.saturating_add(m.role_bytes).saturating_add(m.content_bytes);
        if total > INPUT_MAX {
            return Err(Error::new(Status::Limit, format!("messages have over {INPUT_MAX} bytes")));
        }
        out.push(Message {
            role: unsafe { text(m.role, m.role_bytes, &format!("role of message {i}")) }?,
            content: unsafe {
                text(m.content, m.content_bytes, &format!("content of message {i}"))
            }?,
        });
    }
    Ok(out)
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_template_render(
    template: *const Template,
    tokenizer: *const Tokenizer,
    list: *const KrtMessage,
    n_messages: usize,
    add_prompt: i32,
    out: *mut c_char,
    capacity: usize,
    n_bytes: *mut usize,
    error: *mut KrtError,
) -> i32 {
    guard(error, || {
        let list = unsafe { messages(list, n_messages) }?;
        let rendered =
            unsafe { &*template }.render(unsafe { &*tokenizer }, &list, add_prompt != 0)?;
        unsafe { give(rendered.as_bytes(), out.cast(), capacity, n_bytes) }
    })
}

/// # Safety
/// See krt.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn krt_template_encode(
    template: *const Template,
    tokenizer: *const Tokenizer,
    list: *const KrtMessage,
    n_messages: usize,
    add_prompt: i32,
    bos: i32,
    ids: *mut i32,
    capacity: usize,
    n_ids: *mut usize,
    is_least: *mut i32,
    error: *mut KrtError,
) -> i32 {
    guard(error, || {
        let list = unsafe { messages(list, n_messages) }?;
        let limit = if is_least.is_null() { usize::MAX } else { capacity };
        let encoded =
            unsafe { &*template }.encode(unsafe { &*tokenizer }, &list, add_prompt != 0, limit)?;
        let bos = (bos >= 0 && encoded.ids.first() != Some(&bos)).then_some(bos);
        unsafe { give_ids(encoded, bos, ids, capacity, n_ids, is_least) }
    })
}
