//! Pre-tokenizer rules by their GGUF name. Each rule is a row of stages from the tokenizers crate;
//! every stage cuts the pieces of the stage before it and keeps what it does not match. Only
//! patterns for which the crate has a native automaton, or which are plain enough for its linear
//! regex engine (no look-around), are used, so no input can make splitting slow.
//! A name is listed only if its splits equal llama.cpp's; tests/golden/make_tokens.py is the proof.

use std::borrow::Cow;
use std::cmp::Ordering;

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pipeline::{PreTokenizer, PreTokenizerScratch, Span};
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::error::{Error, Result, Status, quote};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The cl100k family differs in its digit rule only.
macro_rules! cl100k {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

enum Rule {
    /// A pattern with a native automaton.
    Native(&'static str),
    /// A pattern for the linear regex engine.
    Regex(&'static str),
    /// Each numeric character alone.
    Digit,
}
use Rule::{Digit, Native, Regex};

struct Row {
    names: &'static [&'static str],
    rules: &'static [Rule],
    /// A word that is a token stays whole, whatever the merges say.
    keep_whole: bool,
}

const ROWS: &[Row] = &[
    Row {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        rules: &[Native(GPT2)],
        keep_whole: false,
    },
    Row {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        rules: &[Digit, Native(GPT2)],
        keep_whole: false,
    },
    Row {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        rules: &[Native(cl100k!(r"\p{N}"))],
        keep_whole: false,
    },
    Row {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
            "glm4",
            "glm5",
        ],
        rules: &[Native(cl100k!(r"\p{N}{1,3}"))],
        keep_whole: true,
    },
    Row {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        rules: &[Native(cl100k!(r"\p{N}{1,3}"))],
        keep_whole: false,
    },
    Row {
        names: &["default"],
        rules: &[
            Regex(r"[\p{P}\$\+<=>\^~\|]+"),
            Native(GPT2),
            Regex(r"\p{N}+"),
            Regex(r"[0-9][0-9][0-9]"),
        ],
        keep_whole: false,
    },
    Row {
        names: &["falcon"],
        rules: &[Regex(r"[\p{P}\$\+<=>\^~\|`]+"), Native(GPT2), Regex(r"[0-9][0-9][0-9]")],
        keep_whole: false,
    },
    Row {
        names: &["laguna"],
        rules: &[Regex(r"[^\n]+|[\n]+"), Native(cl100k!(r"\p{N}"))],
        keep_whole: false,
    },
];

/// Letters, digits and punctuation that Unicode 16 and 17 added. llama.cpp's tables (15.1) know
/// them as unassigned, the tables of the tokenizers crate do not.
const NEWER: &[(u32, u32)] = &[
    (0x88F, 0x88F),
    (0xC5C, 0xC5C),
    (0xCDC, 0xCDC),
    (0x1B4E, 0x1B4F),
    (0x1B7F, 0x1B7F),
    (0x1C89, 0x1C8A),
    (0xA7CB, 0xA7CF),
    (0xA7D2, 0xA7D2),
    (0xA7D4, 0xA7D4),
    (0xA7DA, 0xA7F1),
    (0x105C0, 0x105F3),
    (0x10940, 0x10959),
    (0x10D40, 0x10D85),
    (0x10EC2, 0x10EC7),
    (0x11380, 0x113D8),
    (0x116D0, 0x116E3),
    (0x11BC0, 0x11BF9),
    (0x11DB0, 0x11DE9),
    (0x13460, 0x143FA),
    (0x16100, 0x16139),
    (0x16D40, 0x16D79),
    (0x16EA0, 0x16ED3),
    (0x16FF2, 0x16FF6),
    (0x187F8, 0x187FF),
    (0x18CFF, 0x18CFF),
    (0x18D09, 0x18DF2),
    (0x1CCF0, 0x1CCF9),
    (0x1E5D0, 0x1E6FF),
    (0x2B73A, 0x2B73F),
    (0x2CEA2, 0x2CEAD),
    (0x323B0, 0x33479),
];

/// `text` as Unicode 15.1 sees it: newer characters become noncharacters of the same length.
fn as_unicode_15(text: &str) -> Cow<'_, str> {
    let is_newer = |ch: char| {
        let code = u32::from(ch);
        code >= NEWER[0].0
            && NEWER
                .binary_search_by(|&(first, last)| {
                    if last < code {
                        Ordering::Less
                    } else if first > code {
                        Ordering::Greater
                    } else {
                        Ordering::Equal
                    }
                })
                .is_ok()
    };
    if text.is_ascii() || !text.chars().any(is_newer) {
        return text.into();
    }
    text.chars()
        .map(|ch| match ch.len_utf8() {
            3 if is_newer(ch) => '\u{FFFE}',
            4 if is_newer(ch) => '\u{1FFFE}',
            _ => ch,
        })
        .collect()
}

enum Stage {
    Digits(Digits),
    Split(Box<Split>),
}

pub struct Splitter {
    stages: Vec<Stage>,
    pub keep_whole: bool,
}

fn row_of(name: &[u8]) -> Result<&'static Row> {
    let row = ROWS.iter().find(|row| row.names.iter().any(|n| n.as_bytes() == name));
    row.ok_or_else(|| {
        let message = format!("pre-tokenizer {} is not supported", quote(name));
        Error::new(Status::Unsupported, message)
    })
}

/// Whether words that are tokens stay whole under this rule.
pub fn keeps_whole(name: &[u8]) -> Result<bool> {
    Ok(row_of(name)?.keep_whole)
}

impl Splitter {
    pub fn new(name: &[u8]) -> Result<Self> {
        let row = row_of(name)?;
        let stages = row.rules.iter().map(stage).collect::<Result<_>>()?;
        Ok(Splitter { stages, keep_whole: row.keep_whole })
    }

    /// Cuts `text` into words, in order and without gaps.
    pub fn split(&self, text: &str) -> Result<Vec<Span>> {
        let text = &*as_unicode_15(text);
        let mut scratch = PreTokenizerScratch::default();
        let mut spans = vec![Span { start: 0, end: text.len() as u32 }];
        for stage in &self.stages {
            let mut cut = Vec::new();
            for span in &spans {
                let from = cut.len();
                let piece = &text[span.start as usize..span.end as usize];
                match stage {
                    Stage::Digits(digits) => digits.pre_tokenize(piece, &mut scratch, &mut cut),
                    Stage::Split(split) => split.pre_tokenize(piece, &mut scratch, &mut cut),
                }
                .map_err(|e| Error::new(Status::Internal, format!("pre-tokenizer: {e}")))?;
                for new in &mut cut[from..] {
                    new.start += span.start;
                    new.end += span.start;
                }
            }
            spans = cut;
        }
        Ok(spans)
    }
}

fn stage(rule: &Rule) -> Result<Stage> {
    let split = match rule {
        Digit => return Ok(Stage::Digits(Digits::new(true))),
        Native(pattern) => Split::native(SplitPattern::Regex((*pattern).into()), Isolated, false),
        Regex(pattern) => Split::new(SplitPattern::Regex((*pattern).into()), Isolated, false),
    };
    let split = split.map_err(|e| Error::new(Status::Internal, format!("pre-tokenizer: {e}")))?;
    Ok(Stage::Split(Box::new(split)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_rows_have_an_automaton() {
        for row in ROWS {
            for rule in row.rules {
                if let Native(pattern) = rule {
                    let split =
                        Split::native(SplitPattern::Regex((*pattern).into()), Isolated, false);
                    assert!(split.unwrap().grammar().is_some(), "{pattern}");
                }
            }
        }
    }

    #[test]
    fn names_are_unique_and_split_without_gaps() {
        let mut seen = std::collections::HashSet::new();
        let text = "It's 12345  x\r\n\tnaïve — 日本語 e\u{301} 👨‍👩‍👧  \n";
        for name in ROWS.iter().flat_map(|row| row.names) {
            assert!(seen.insert(name), "{name}");
            let spans = Splitter::new(name.as_bytes()).unwrap().split(text).unwrap();
            let mut at = 0;
            for span in &spans {
                assert_eq!(span.start, at, "{name}");
                assert!(span.end > span.start, "{name}");
                at = span.end;
            }
            assert_eq!(at as usize, text.len(), "{name}");
        }
    }

    #[test]
    fn newer_characters_are_unassigned() {
        let splitter = Splitter::new(b"gpt-2").unwrap();
        // U+10D40 is a digit, U+323B0 a letter since Unicode 16 and 17.
        assert_eq!(splitter.split("1\u{10D40}1").unwrap().len(), 3);
        assert_eq!(splitter.split("a\u{323B0}a").unwrap().len(), 3);
        assert_eq!(splitter.split("a\u{323AF}a").unwrap().len(), 1);
        assert!(
            NEWER.is_sorted() && NEWER.iter().all(|&(first, last)| first <= last && first > 0x7FF)
        );
    }
}
