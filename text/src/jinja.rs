//! Compiling a template of unknown origin. minijinja trusts its templates with two things that a
//! file must not have: expressions so long that parsing them overflows the stack, and values that
//! contain themselves or one part exponentially often, which overflow the stack or memory when
//! printed. Here the tokens of a tag are counted before parsing, and the syntax tree is rebuilt
//! with a check (tame.rs) around each expression that makes a container. Statements that load
//! other templates are refused.

use std::collections::BTreeMap;

use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Spanned, Stmt, UnaryOpKind};
use minijinja::machinery::{CodeGenerator, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// Tokens of one tag, and elif branches of one template: both become depth of the syntax tree.
const TAG_TOKENS_MAX: usize = 1500;
const ELIFS_MAX: usize = 300;

/// Filters that tame.rs provides; a template cannot spell these names.
pub const CHECK_VALUE: &str = "!value";
pub const CHECK_ATTRIBUTE: &str = "!attribute";

pub struct Program {
    pub instructions: Instructions<'static>,
    pub blocks: BTreeMap<&'static str, Instructions<'static>>,
    // Borrowed by the fields above, which are dropped first.
    _source: Box<str>,
}

impl Program {
    pub fn new(source: &str, syntax: &SyntaxConfig) -> Result<Self, Error> {
        count_tokens(source, syntax)?;
        let source: Box<str> = source.into();
        // SAFETY: the text of a Box<str> stays where it is until the box is dropped, and that
        // happens after everything that borrows it.
        let text: &'static str = unsafe { &*std::ptr::from_ref::<str>(&source) };
        let tree = stmt(&parse(text, "chat", syntax.clone())?)?;
        let mut generator = CodeGenerator::new("chat", text);
        generator.compile_stmt(&tree);
        let (instructions, blocks) = generator.finish();
        Ok(Program { instructions, blocks, _source: source })
    }
}

fn count_tokens(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut n_tokens, mut n_elifs) = (0, 0);
    let mut line = 0;
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        match token {
            Token::BlockStart | Token::VariableStart => {
                n_tokens = 0;
                line = span.start_line;
            }
            Token::Ident("elif") => n_elifs += 1,
            _ => {}
        }
        n_tokens += 1;
        if n_tokens > TAG_TOKENS_MAX {
            return Err(refuse(&format!(
                "the tag of line {line} has over {TAG_TOKENS_MAX} tokens"
            )));
        }
    }
    if n_elifs > ELIFS_MAX {
        return Err(refuse(&format!("over {ELIFS_MAX} elif branches")));
    }
    Ok(())
}

fn refuse(message: &str) -> Error {
    Error::new(ErrorKind::SyntaxError, message.to_owned())
}

fn check<'a>(inner: Expr<'a>, name: &'static str) -> Expr<'a> {
    let span = inner.span();
    Expr::Filter(Spanned::new(ast::Filter { name, expr: Some(inner), args: Vec::new() }, span))
}

fn body<'a>(list: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>, Error> {
    list.iter().map(stmt).collect()
}

fn stmt<'a>(node: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    Ok(match node {
        Stmt::Template(s) => {
            Stmt::Template(Spanned::new(ast::Template { children: body(&s.children)? }, s.span()))
        }
        Stmt::EmitExpr(s) => {
            Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr: expr(&s.expr) }, s.span()))
        }
        Stmt::EmitRaw(s) => Stmt::EmitRaw(Spanned::new(ast::EmitRaw { raw: s.raw }, s.span())),
        Stmt::ForLoop(s) => Stmt::ForLoop(Spanned::new(
            ast::ForLoop {
                target: plain(&s.target),
                iter: expr(&s.iter),
                filter_expr: s.filter_expr.as_ref().map(expr),
                recursive: s.recursive,
                body: body(&s.body)?,
                else_body: body(&s.else_body)?,
            },
            s.span(),
        )),
        Stmt::IfCond(s) => Stmt::IfCond(Spanned::new(
            ast::IfCond {
                expr: expr(&s.expr),
                true_body: body(&s.true_body)?,
                false_body: body(&s.false_body)?,
            },
            s.span(),
        )),
        Stmt::WithBlock(s) => {
            let assignments = s.assignments.iter().map(|(k, v)| (plain(k), expr(v))).collect();
            Stmt::WithBlock(Spanned::new(
                ast::WithBlock { assignments, body: body(&s.body)? },
                s.span(),
            ))
        }
        Stmt::Set(s) => {
            let value = match s.target {
                Expr::GetAttr(_) => check(expr(&s.expr), CHECK_ATTRIBUTE),
                _ => expr(&s.expr),
            };
            Stmt::Set(Spanned::new(ast::Set { target: plain(&s.target), expr: value }, s.span()))
        }
        Stmt::SetBlock(s) => Stmt::SetBlock(Spanned::new(
            ast::SetBlock {
                target: plain(&s.target),
                filter: s.filter.as_ref().map(plain),
                body: body(&s.body)?,
            },
            s.span(),
        )),
        Stmt::FilterBlock(s) => Stmt::FilterBlock(Spanned::new(
            ast::FilterBlock {
                filter: plain(&s.filter),
                filter_span: s.filter_span,
                body: body(&s.body)?,
            },
            s.span(),
        )),
        Stmt::Macro(s) => Stmt::Macro(Spanned::new(macro_decl(s)?, s.span())),
        Stmt::CallBlock(s) => Stmt::CallBlock(Spanned::new(
            ast::CallBlock {
                call: Spanned::new(call(&s.call), s.call.span()),
                call_expr_span: s.call_expr_span,
                macro_decl: Spanned::new(macro_decl(&s.macro_decl)?, s.macro_decl.span()),
            },
            s.span(),
        )),
        Stmt::Continue(s) => Stmt::Continue(Spanned::new(ast::Continue, s.span())),
        Stmt::Break(s) => Stmt::Break(Spanned::new(ast::Break, s.span())),
        Stmt::Do(s) => Stmt::Do(Spanned::new(
            ast::Do { call: Spanned::new(call(&s.call), s.call.span()) },
            s.span(),
        )),
        _ => {
            return Err(refuse(
                "statement is not for chat templates (include, import, extends, block, autoescape)",
            ));
        }
    })
}

fn macro_decl<'a>(m: &ast::Macro<'a>) -> Result<ast::Macro<'a>, Error> {
    Ok(ast::Macro {
        name: m.name,
        args: m.args.iter().map(plain).collect(),
        defaults: m.defaults.iter().map(expr).collect(),
        body: body(&m.body)?,
    })
}

fn call<'a>(c: &ast::Call<'a>) -> ast::Call<'a> {
    ast::Call { expr: expr(&c.expr), args: args(&c.args) }
}

fn args<'a>(list: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    list.iter()
        .map(|arg| match arg {
            CallArg::Pos(e) => CallArg::Pos(expr(e)),
            CallArg::Kwarg(name, e) => CallArg::Kwarg(name, expr(e)),
            CallArg::PosSplat(e) => CallArg::PosSplat(expr(e)),
            CallArg::KwargSplat(e) => CallArg::KwargSplat(expr(e)),
        })
        .collect()
}

/// An expression that is evaluated: what makes containers is checked.
fn expr<'a>(node: &Expr<'a>) -> Expr<'a> {
    let rebuilt = plain(node);
    match &rebuilt {
        Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) | Expr::Filter(_) | Expr::Call(_) => {
            check(rebuilt, CHECK_VALUE)
        }
        Expr::BinOp(op) if matches!(op.op, BinOpKind::Add | BinOpKind::Mul) => {
            check(rebuilt, CHECK_VALUE)
        }
        _ => rebuilt,
    }
}

fn exprs<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter().map(expr).collect()
}

/// A copy of the node itself (assignment targets, filter chains of blocks); parts are checked.
fn plain<'a>(node: &Expr<'a>) -> Expr<'a> {
    let span = node.span();
    match node {
        Expr::Var(e) => Expr::Var(Spanned::new(ast::Var { id: e.id }, span)),
        Expr::Const(e) => Expr::Const(Spanned::new(ast::Const { value: e.value.clone() }, span)),
        Expr::Slice(e) => Expr::Slice(Spanned::new(
            ast::Slice {
                expr: expr(&e.expr),
                start: e.start.as_ref().map(expr),
                stop: e.stop.as_ref().map(expr),
                step: e.step.as_ref().map(expr),
            },
            span,
        )),
        Expr::UnaryOp(e) => {
            let op = match e.op {
                UnaryOpKind::Not => UnaryOpKind::Not,
                UnaryOpKind::Neg => UnaryOpKind::Neg,
            };
            Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: expr(&e.expr) }, span))
        }
        Expr::BinOp(e) => {
            let node = ast::BinOp { op: e.op, left: expr(&e.left), right: expr(&e.right) };
            Expr::BinOp(Spanned::new(node, span))
        }
        Expr::Compare(e) => {
            let ops =
                e.ops.iter().map(|o| ast::CompareOp { op: o.op, expr: expr(&o.expr) }).collect();
            Expr::Compare(Spanned::new(ast::Compare { expr: expr(&e.expr), ops }, span))
        }
        Expr::IfExpr(e) => Expr::IfExpr(Spanned::new(
            ast::IfExpr {
                test_expr: expr(&e.test_expr),
                true_expr: expr(&e.true_expr),
                false_expr: e.false_expr.as_ref().map(expr),
            },
            span,
        )),
        Expr::Filter(e) => {
            let operand = e.expr.as_ref().map(if has_operand(e) { expr } else { plain });
            Expr::Filter(Spanned::new(
                ast::Filter { name: e.name, expr: operand, args: args(&e.args) },
                span,
            ))
        }
        Expr::Test(e) => Expr::Test(Spanned::new(
            ast::Test { name: e.name, expr: expr(&e.expr), args: args(&e.args) },
            span,
        )),
        Expr::GetAttr(e) => {
            Expr::GetAttr(Spanned::new(ast::GetAttr { expr: expr(&e.expr), name: e.name }, span))
        }
        Expr::GetItem(e) => Expr::GetItem(Spanned::new(
            ast::GetItem { expr: expr(&e.expr), subscript_expr: expr(&e.subscript_expr) },
            span,
        )),
        Expr::Call(e) => Expr::Call(Spanned::new(call(e), span)),
        Expr::List(e) => Expr::List(Spanned::new(ast::List { items: targets(&e.items) }, span)),
        Expr::Tuple(e) => Expr::Tuple(Spanned::new(ast::Tuple { items: targets(&e.items) }, span)),
        Expr::Map(e) => Expr::Map(Spanned::new(
            ast::Map { keys: exprs(&e.keys), values: exprs(&e.values) },
            span,
        )),
    }
}

/// False for the filters of a block: the innermost one works on the block's text.
fn has_operand(filter: &ast::Filter) -> bool {
    let mut operand = filter.expr.as_ref();
    while let Some(Expr::Filter(inner)) = operand {
        operand = inner.expr.as_ref();
    }
    operand.is_some()
}

/// Items of a list that may be an assignment target: plain copies, the list itself is checked.
fn targets<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter()
        .map(|item| match item {
            Expr::List(_) | Expr::Tuple(_) => plain(item),
            _ => expr(item),
        })
        .collect()
}
