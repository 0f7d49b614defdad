//! Functions and their statements.

use proc_macro2::{Delimiter, Group, Span, TokenStream};

use super::cursor::Cursor;
use crate::ast::*;
use crate::diagnostics::Diagnostics;

/// Reads a file of functions: the prelude.
pub(crate) fn functions(tokens: TokenStream, diagnostics: &Diagnostics) -> Vec<Function> {
    let mut c = Cursor::new(tokens, Span::call_site(), diagnostics);
    let mut functions = Vec::new();
    while !c.is_empty() {
        c.attributes();
        match c.function(true) {
            Some(function) => functions.push(function),
            None => c.recover(),
        }
    }
    functions
}

impl Cursor<'_> {
    /// `fn name[axes](parameters) -> [axes] { lets; result }`, whatever stands in the place of `fn`.
    pub(super) fn function(&mut self, prelude: bool) -> Option<Function> {
        let at_fn = self.span();
        self.next();
        let in_parentheses = self.is_group(Delimiter::Parenthesis);
        let name = if in_parentheses { None } else { Some(self.name("a name or `(`")?) };
        let axes = if self.is_group(Delimiter::Bracket) { self.axes()? } else { Vec::new() };
        let group = self.group(Delimiter::Parenthesis, "parameters in parentheses")?;
        let parameters = self.inside(&group).list(|c| c.parameter())?;
        let result_axes = match self.eat_sign("->") {
            Some(_) => Some(self.axes()?),
            None => None,
        };
        let body = self.group(Delimiter::Brace, "`->` or the body in braces")?;
        let source = source(name.as_ref(), &axes, &group, result_axes.as_deref(), &body);
        let mut inner = self.inside(&body);
        let mistakes = self.diagnostics.count();
        let mut statements = Vec::new();
        let mut result = None;
        while !inner.is_empty() {
            if inner.is_word("let") || inner.is_word("cache") {
                statements.extend(inner.declaration(Cursor::statement));
                continue;
            }
            let span = inner.span();
            let read = inner.expr().map(|expr| result = Some(expr));
            if read.is_none() {
                inner.recover();
            } else if inner.is_sign(";") {
                self.diagnostics.help(inner.span(), "this value is not used", "the last expression has no `;`");
                result = Some(Expr { span, kind: ExprKind::Unknown });
                inner.recover();
            } else if !inner.is_empty() {
                inner.expected::<()>("an operator, or the end of the `fn`");
                break;
            }
        }
        if result.is_none() {
            if self.diagnostics.count() == mistakes {
                let message = "the `fn` has no result: its last line is an expression without `;`";
                self.diagnostics.error(body.span_close(), message);
            }
            result = Some(Expr { span: body.span_close(), kind: ExprKind::Unknown });
        }
        let span = name.as_ref().map_or(at_fn, |n| n.span());
        Some(Function { span, name, axes, parameters, result_axes, statements, result, source, prelude })
    }

    fn parameter(&mut self) -> Option<Parameter> {
        let name = self.name("a parameter's name")?;
        let Some(group) = self.eat_group(Delimiter::Bracket) else {
            return Some(Parameter { name, axes: None, open: false });
        };
        let mut open = false;
        let mut inner = self.inside(&group);
        let axes = inner.list(|c| {
            if c.eat_sign("..").is_some() {
                open = true;
                return Some(None);
            }
            c.name("the name of an axis, or `..`").map(Some)
        })?;
        Some(Parameter { name, axes: Some(axes.into_iter().flatten().collect()), open })
    }

    fn statement(&mut self) -> Option<Statement> {
        let span = self.span();
        if self.eat_word("cache").is_some() {
            let mut names = vec![self.name("a value, as in `cache k, v over s;`")?];
            while self.eat_sign(",").is_some() {
                names.push(self.name("a value, as in `cache k, v over s;`")?);
            }
            if self.eat_word("over").is_none() {
                return self.expected("`over`, as in `cache k, v over s;`");
            }
            let over = self.name("the name of a new axis over the positions")?;
            let within = match self.eat_word("within") {
                Some(_) => Some(self.sum()?),
                None => None,
            };
            if self.eat_sign(";").is_none() {
                return self.expected("`within` or `;`");
            }
            return Some(Statement::Cache { span, names, over, within });
        }
        self.next();
        if let Some(group) = self.eat_group(Delimiter::Parenthesis) {
            return self.top(&group);
        }
        let name = self.name("a name")?;
        let axes = if self.is_group(Delimiter::Bracket) { Some(self.axes()?) } else { None };
        self.sign("=")?;
        let value = self.expr().or_else(|| {
            // The name is known all the same, so that its uses are no further mistakes.
            while !self.is_empty() && !self.is_sign(";") {
                self.next();
            }
            Some(Expr { span, kind: ExprKind::Unknown })
        })?;
        if self.eat_sign(";").is_none() {
            self.expected::<()>("an operator or `;`");
            self.recover();
        }
        Some(Statement::Let { name, axes, value })
    }
}

impl Cursor<'_> {
    /// `(values, indices)[axes] = top[over -> rank](value);`, behind `let`.
    fn top(&mut self, names: &Group) -> Option<Statement> {
        const FORM: &str = "as in `let (w, i)[t, j] = top[e -> j](x);`";
        let mut inner = self.inside(names);
        let values = inner.name("the name of the values")?;
        inner.sign(",")?;
        let indices = inner.name("the name of their coordinates")?;
        if !inner.is_empty() {
            return inner.expected("`)`: `top` has two results");
        }
        let axes = if self.is_group(Delimiter::Bracket) { Some(self.axes()?) } else { None };
        self.sign("=")?;
        if self.eat_word("top").is_none() {
            return self.expected(&format!("`top`, {FORM}"));
        }
        let group = self.group(Delimiter::Bracket, &format!("two axes in brackets, {FORM}"))?;
        let mut inner = self.inside(&group);
        let over = inner.name("the axis to choose from")?;
        inner.sign("->")?;
        let rank = inner.name("the axis that numbers what is chosen")?;
        if !inner.is_empty() {
            return inner.expected("`]`");
        }
        let group = self.group(Delimiter::Parenthesis, &format!("a value in parentheses, {FORM}"))?;
        let mut inner = self.inside(&group);
        let value = inner.expr()?;
        if !inner.is_empty() {
            return inner.expected("an operator or `)`");
        }
        if self.eat_sign(";").is_none() {
            self.expected::<()>("`;`: `top` stands alone");
            self.recover();
        }
        Some(Statement::Top { values, indices, axes, over, rank, value })
    }
}

/// What a function's source says, for the documentation.
fn source(
    name: Option<&syn::Ident>,
    axes: &[syn::Ident],
    parameters: &Group,
    result: Option<&[syn::Ident]>,
    body: &Group,
) -> String {
    let list = |axes: &[syn::Ident]| axes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let text = |group: &Group| group.span().source_text().unwrap_or_else(|| group.to_string());
    let name = name.map_or(String::new(), ToString::to_string);
    let axes = if axes.is_empty() { String::new() } else { format!("[{}]", list(axes)) };
    let result = result.map_or(String::new(), |r| format!(" -> [{}]", list(r)));
    format!("fn {name}{axes}{}{result} {}", text(parameters), text(body))
}
