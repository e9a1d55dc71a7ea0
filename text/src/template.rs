//! Chat templates: minijinja set up as Hugging Face sets up jinja2 (trim_blocks, lstrip_blocks,
//! loop controls, its own tojson, raise_exception, strftime_now, Python methods of strings).
//! Budgets: source 256 KiB, fuel (steps and bytes handled, more for longer messages), output
//! 16 MiB. Compiling and rendering recurse; the caller's thread needs 2 MiB of stack.

use std::fmt;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context, escape_formatter, machinery};

use crate::added::Segment;
use crate::error::{Error, Result, Status};
use crate::jinja::Program;
use crate::marks::{Marks, free_marker, unmark};
use crate::tame;
use crate::time;
use crate::tokenizer::{Cursor, Encoded, Tokenizer};

pub const SOURCE_MAX: usize = 256 << 10;
pub const OUTPUT_MAX: usize = 16 << 20;
/// One fuel is one step or 64 bytes handled; message text may be handled some 16 times over.
const FUEL_BASE: u64 = 500_000;
const FUEL_BYTES: u64 = 4;

pub struct Template {
    env: Environment<'static>,
    program: Program,
    bos: String,
    eos: String,
}

pub struct Message<'a> {
    pub role: &'a str,
    pub content: &'a str,
}

impl Template {
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > SOURCE_MAX {
            let message = format!("chat template has {} bytes, limit {SOURCE_MAX}", source.len());
            return Err(Error::new(Status::Limit, message));
        }
        let mut env = Environment::new();
        env.set_formatter(|out, state, value| match value.kind() {
            // As Python prints them.
            ValueKind::None => out.write_str("None").map_err(minijinja::Error::from),
            ValueKind::Bool if value.is_true() => {
                out.write_str("True").map_err(minijinja::Error::from)
            }
            ValueKind::Bool => out.write_str("False").map_err(minijinja::Error::from),
            _ => escape_formatter(out, state, value),
        });
        env.add_filter("tojson", tojson);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", |format: &str| time::strftime(format, time::now()));
        tame::install(&mut env);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let program =
            syntax.and_then(|syntax| Program::new(source, &syntax)).map_err(template_error)?;
        Ok(Template { env, program, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt text of a conversation.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_prompt: bool,
    ) -> Result<String> {
        let (text, marker) = self.render_marked(tokenizer, messages, add_prompt)?;
        Ok(unmark(&text, marker).into_owned())
    }

    /// The prompt as token ids: control tokens come from the template's literals only.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_prompt: bool,
        limit: usize,
    ) -> Result<Encoded> {
        let (text, marker) = self.render_marked(tokenizer, messages, add_prompt)?;
        let mut ids = Vec::with_capacity(text.len().min(limit) / 3 + 8);
        let mut cursor = Cursor::new(&mut ids, limit);
        tokenizer.control.split(&text, |segment| match segment {
            Segment::Token(id, spelling) if spelling.chars().nth(1).is_some() => {
                cursor.token(id);
                Ok(())
            }
            Segment::Token(_, text) | Segment::Text(text) => {
                tokenizer.encode_content(&unmark(text, marker), &mut cursor)
            }
        })?;
        let n_more = cursor.n_more;
        Ok(Encoded { ids, n_more })
    }

    fn render_marked(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_prompt: bool,
    ) -> Result<(String, Option<char>)> {
        let marker = free_marker(messages.iter().flat_map(|m| [m.role, m.content]))?;
        let mut marked = false;
        let marks = Marks::new(tokenizer.tables);
        let mut mark = |text: &str| match marks.apply(text, marker) {
            Some(text) => {
                marked = true;
                Value::from(text)
            }
            None => Value::from(text),
        };
        let list: Vec<Value> = messages
            .iter()
            .map(|m| context! { role => mark(m.role), content => mark(m.content) })
            .collect();
        let context = context! {
            messages => list,
            add_generation_prompt => add_prompt,
            tools => (),
            documents => (),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let n_bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let text = self.run(context, FUEL_BASE + n_bytes as u64 / FUEL_BYTES)?;
        Ok((text, marked.then_some(marker)))
    }

    fn run(&self, context: Value, fuel: u64) -> Result<String> {
        // Cloning copies references. What is written is paid for with fuel as well.
        let mut env = self.env.clone();
        env.set_fuel(Some(fuel));
        let mut text = String::new();
        let Program { instructions, blocks, .. } = &self.program;
        let mut output = machinery::make_string_output(&mut text);
        let plain = minijinja::AutoEscape::None;
        let outcome =
            machinery::eval(&env, instructions, context, blocks, &mut output, plain).map(drop);
        drop(output);
        if text.len() > OUTPUT_MAX {
            let message = format!("chat template writes over {OUTPUT_MAX} bytes");
            return Err(Error::new(Status::Limit, message));
        }
        outcome.map_err(template_error)?;
        Ok(text)
    }
}

/// A sink that fails at OUTPUT_MAX bytes.
#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > OUTPUT_MAX - self.bytes.len() {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn template_error(error: minijinja::Error) -> Error {
    let status = match error.kind() {
        ErrorKind::OutOfFuel => Status::Limit,
        _ => Status::BadTemplate,
    };
    let mut message = String::from("chat template");
    if let Some(line) = error.line() {
        message.push_str(&format!(" line {line}"));
    }
    let text = match (status, error.detail()) {
        (Status::Limit, _) => "needs too many steps".to_owned(),
        (_, Some(detail)) if error.kind() == ErrorKind::SyntaxError => {
            format!("syntax error: {detail}")
        }
        (_, Some(detail)) => detail.to_owned(),
        (_, None) => error.kind().to_string(),
    };
    Error::new(status, format!("{message}: {text}"))
}

fn raise_exception(message: &str) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// json.dumps(value, ensure_ascii=False, indent=indent): the built-in filter escapes for HTML.
fn tojson(value: &Value, kwargs: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    if indent.is_some_and(|n| n > 16) {
        let message = "tojson: indent is over 16";
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
    }
    // Shared parts make a value exponentially larger written than kept: cap the text.
    let mut out = Capped::default();
    let style = PythonJson { indent: indent.map(|n| " ".repeat(n)), depth: 0, filled: false };
    let mut writer = serde_json::Serializer::with_formatter(&mut out, style);
    serde::Serialize::serialize(value, &mut writer)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
    let text = String::from_utf8(out.bytes)
        .map_err(|_| minijinja::Error::new(ErrorKind::BadSerialization, "tojson: not UTF-8"))?;
    Ok(Value::from(if ascii == Some(true) { escape_non_ascii(&text) } else { text }))
}

fn escape_non_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units = [0u16; 2];
    for ch in text.chars() {
        if ch.is_ascii() {
            out.push(ch);
        } else {
            for unit in ch.encode_utf16(&mut units) {
                let _ = fmt::Write::write_fmt(&mut out, format_args!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Python's separators: ", " and ": ", or "," and line breaks with an indent.
struct PythonJson {
    indent: Option<String>,
    depth: usize,
    filled: bool,
}

impl PythonJson {
    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, brace: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        writer.write_all(brace)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, brace: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(writer)?;
        }
        self.filled = true;
        writer.write_all(brace)
    }

    fn item<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(if self.indent.is_some() { b"," } else { b", " })?;
        }
        self.line(writer)
    }

    fn line<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if let Some(indent) = &self.indent {
            writer.write_all(b"\n")?;
            for _ in 0..self.depth {
                writer.write_all(indent.as_bytes())?;
            }
        }
        Ok(())
    }
}

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }
    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }
    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }
    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }
    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(source: &str) -> String {
        let mut env = Environment::new();
        env.add_filter("tojson", tojson);
        env.add_template_owned("t", source.to_owned()).unwrap();
        env.get_template("t").unwrap().render(()).unwrap()
    }

    #[test]
    fn tojson_is_spelled_as_python_spells_it() {
        assert_eq!(
            eval("{{ {'a': [1, 2.5, true, none], 'b': '<é\"\\n>', 'c': {}} | tojson }}"),
            "{\"a\": [1, 2.5, true, null], \"b\": \"<é\\\"\\n>\", \"c\": {}}"
        );
        assert_eq!(
            eval("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
        assert_eq!(eval("{{ 'é😀' | tojson(ensure_ascii=true) }}"), "\"\\u00e9\\ud83d\\ude00\"");
    }
}
