//! Errors of this crate: a status of kr.h (same numbers), a byte offset where one is known, and a
//! one-line message. They cross the C border as `krt_error_t`.

/// Statuses used here; the numbers are those of KR_STATUS_LIST in kr.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    InvalidArg = 1,
    Unsupported = 4,
    BadFormat = 5,
    Limit = 8,
    BadTemplate = 21,
    Internal = 27,
}

#[derive(Debug)]
pub struct Error {
    pub status: Status,
    pub offset: u64,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, offset: u64::MAX, message: message.into() }
    }

    pub fn at(status: Status, offset: usize, message: impl Into<String>) -> Self {
        Self { status, offset: offset as u64, message: message.into() }
    }
}

/// Shows foreign bytes in a message: at most 48 of them, escaped.
pub fn quote(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(48)];
    let dots = if shown.len() < bytes.len() { "..." } else { "" };
    format!("'{}{}'", shown.escape_ascii(), dots)
}
