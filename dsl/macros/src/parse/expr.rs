//! Expressions, by precedence: `if`, `where`, `||`, `&&`, comparisons, sums, products, prefixes, `^`, brackets.

use proc_macro2::{Delimiter, Ident, Span, TokenTree};

use super::cursor::Cursor;
use crate::ast::{Entry, Expr, ExprKind};

/// The reductions of the language.
pub(crate) const REDUCTIONS: [&str; 5] = ["sum", "mean", "max", "min", "argmax"];

/// How many operators a chain of them may have.
const LONGEST: usize = 100;

fn make(span: Span, kind: ExprKind) -> Expr {
    Expr { span, kind }
}

impl Cursor<'_> {
    /// Counts an operator of a chain, and refuses one more than any formula has.
    fn not_too_long(&self, span: Span, length: &mut usize) -> Option<()> {
        *length += 1;
        if *length > LONGEST {
            self.diagnostics.error(span, "this expression is too long: give its parts a `let`");
            return None;
        }
        Some(())
    }

    /// Any expression.
    pub(crate) fn expr(&mut self) -> Option<Expr> {
        self.depth += 1;
        let expr = if self.too_deep() { None } else { self.masked() };
        self.depth -= 1;
        expr
    }

    /// `if a then b else c`
    fn condition(&mut self, span: Span) -> Option<Expr> {
        let condition = Box::new(self.expr()?);
        if self.eat_word("then").is_none() {
            return self.expected("`then`, as in `if mask then a else b`");
        }
        let then = Box::new(self.expr()?);
        if self.eat_word("else").is_none() {
            return self.expected("`else`, as in `if mask then a else b`");
        }
        let otherwise = Box::new(self.expr()?);
        Some(make(span, ExprKind::If { condition, then, otherwise }))
    }

    fn masked(&mut self) -> Option<Expr> {
        let mut body = self.either()?;
        let mut length = 0;
        while let Some(span) = self.eat_word("where") {
            self.not_too_long(span, &mut length)?;
            if let Some((op, at)) = ends_in_reduction(&body) {
                self.diagnostics.help(
                    span,
                    format!("it is not clear whether `where` masks what `{op}` reduces, or its result"),
                    format!("write `{op}[…] (… where …)` or `({op}[…] …) where …`"),
                );
                body = make(at, ExprKind::Unknown);
            }
            let mask = self.either()?;
            body = make(span, ExprKind::Where { body: Box::new(body), mask: Box::new(mask) });
        }
        Some(body)
    }

    fn either(&mut self) -> Option<Expr> {
        let mut left = self.both()?;
        let mut length = 0;
        while let Some(span) = self.eat_sign("||") {
            self.not_too_long(span, &mut length)?;
            let right = self.both()?;
            left = binary(span, "||", left, right);
        }
        Some(left)
    }

    fn both(&mut self) -> Option<Expr> {
        let mut left = self.comparison()?;
        let mut length = 0;
        while let Some(span) = self.eat_sign("&&") {
            self.not_too_long(span, &mut length)?;
            let right = self.comparison()?;
            left = binary(span, "&&", left, right);
        }
        Some(left)
    }

    fn compared(&mut self) -> Option<(&'static str, Span)> {
        let op = ["<=", ">=", "==", "!=", "<", ">"].into_iter().find(|op| self.is_sign(op))?;
        Some((op, self.eat_sign(op)?))
    }

    fn comparison(&mut self) -> Option<Expr> {
        let left = self.sum()?;
        let Some((op, span)) = self.compared() else { return Some(left) };
        let right = self.sum()?;
        if let Some((_, second)) = self.compared() {
            self.diagnostics.help(second, "comparisons can't be chained", "write `a < b && b < c`");
            return None;
        }
        Some(binary(span, op, left, right))
    }

    /// `a + b - c`
    pub(crate) fn sum(&mut self) -> Option<Expr> {
        let mut left = self.product()?;
        let mut length = 0;
        loop {
            let Some(op) = ["+", "-"].into_iter().find(|op| self.is_sign(op)) else { return Some(left) };
            let span = self.eat_sign(op)?;
            self.not_too_long(span, &mut length)?;
            let right = self.product()?;
            left = binary(span, op, left, right);
        }
    }

    fn product(&mut self) -> Option<Expr> {
        let mut left = self.prefix()?;
        let mut length = 0;
        loop {
            let Some(op) = ["*", "/", "%"].into_iter().find(|op| self.is_sign(op)) else { return Some(left) };
            let span = self.eat_sign(op)?;
            self.not_too_long(span, &mut length)?;
            let right = self.prefix()?;
            left = binary(span, op, left, right);
        }
    }

    fn prefix(&mut self) -> Option<Expr> {
        self.depth += 1;
        let expr = if self.too_deep() { None } else { self.prefixed() };
        self.depth -= 1;
        expr
    }

    fn prefixed(&mut self) -> Option<Expr> {
        for op in ["-", "!"] {
            if let Some(span) = self.eat_sign(op) {
                let of = Box::new(self.prefix()?);
                return Some(make(span, ExprKind::Unary { op, of }));
            }
        }
        let base = self.postfix()?;
        let Some(span) = self.eat_sign("^") else { return Some(base) };
        let exponent = self.prefix()?;
        Some(binary(span, "^", base, exponent))
    }

    fn postfix(&mut self) -> Option<Expr> {
        let mut of = self.atom()?;
        let mut length = 0;
        while let Some(group) = self.eat_group(Delimiter::Bracket) {
            self.not_too_long(group.span(), &mut length)?;
            let mut inner = self.inside(&group);
            let entries = inner.list(|c| {
                let axis = c.name("the name of an axis")?;
                if c.is_sign("==") {
                    c.diagnostics.help(c.span(), "`==` compares", format!("a selection is `[{axis} = …]`"));
                    return None;
                }
                let index = match c.eat_sign("=") {
                    Some(_) => Some(c.expr()?),
                    None => None,
                };
                Some(Entry { axis, index })
            })?;
            of = make(of.span, ExprKind::Index { of: Box::new(of), entries });
        }
        Some(of)
    }

    fn atom(&mut self) -> Option<Expr> {
        let span = self.span();
        match self.peek() {
            Some(TokenTree::Literal(literal)) => {
                let kind = match syn::Lit::new(literal.clone()) {
                    syn::Lit::Int(n) if n.suffix().is_empty() => n.base10_parse().ok().map(ExprKind::Int),
                    syn::Lit::Float(x) if x.suffix().is_empty() => {
                        x.base10_parse().ok().filter(|x: &f64| x.is_finite()).map(ExprKind::Float)
                    }
                    syn::Lit::Str(text) => Some(ExprKind::Text(text.value())),
                    _ => None,
                };
                match kind {
                    Some(kind) => {
                        self.next();
                        Some(make(span, kind))
                    }
                    None => self.expected("a number without a suffix, within 64 bits"),
                }
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {
                let mut inner = self.inside(&group.clone());
                self.next();
                let expr = inner.expr()?;
                if !inner.is_empty() {
                    return inner.expected("an operator or `)`");
                }
                Some(make(expr.span, ExprKind::Group(Box::new(expr))))
            }
            Some(TokenTree::Ident(ident)) => {
                let ident = ident.clone();
                self.word(ident)
            }
            _ => self.expected("an expression"),
        }
    }

    fn word(&mut self, ident: Ident) -> Option<Expr> {
        let span = ident.span();
        let word = ident.to_string();
        match word.as_str() {
            "true" | "false" => {
                self.next();
                return Some(make(span, ExprKind::Bool(word == "true")));
            }
            "if" => {
                self.next();
                return self.condition(span);
            }
            "top" => {
                let help = "give them names: `let (w, i)[t, j] = top[e -> j](x);`";
                self.diagnostics.help(span, "`top` has two results, values and coordinates", help);
                return None;
            }
            "size" => {
                self.next();
            }
            _ => {
                self.name("an expression")?;
            }
        }
        if let Some(op) = REDUCTIONS.into_iter().find(|op| *op == word)
            && self.is_group(Delimiter::Bracket)
        {
            let axes = self.axes()?;
            if axes.is_empty() {
                self.diagnostics.error(span, format!("`{op}[]` is over no axis"));
                return None;
            }
            let body = Box::new(self.product()?);
            return Some(make(span, ExprKind::Reduce { op, axes, body }));
        }
        let axes = match (self.peek(), self.after_brackets()) {
            (Some(TokenTree::Group(_)), true) => self.axes()?,
            _ => Vec::new(),
        };
        if axes.is_empty() && self.eat_sign(".").is_some() {
            let name = self.name("the name of a method, as in `rope.pairs(c)`")?;
            let group = self.group(Delimiter::Parenthesis, "arguments in parentheses, as in `rope.pairs(c)`")?;
            let arguments = self.inside(&group).list(|c| c.expr())?;
            return Some(make(span, ExprKind::Method { of: ident, name, arguments }));
        }
        let Some(group) = self.eat_group(Delimiter::Parenthesis) else {
            if word == "size" {
                return self.expected("`(`, as in `size(d)`");
            }
            return Some(make(span, ExprKind::Name(ident)));
        };
        let arguments = self.inside(&group).list(|c| c.expr())?;
        Some(make(span, ExprKind::Call { name: ident, axes, arguments }))
    }

    /// Whether brackets stand here, and parentheses behind them: a call with axes.
    fn after_brackets(&self) -> bool {
        self.is_group(Delimiter::Bracket) && self.is_group_ahead(1, Delimiter::Parenthesis)
    }
}

fn binary(span: Span, op: &'static str, left: Expr, right: Expr) -> Expr {
    make(span, ExprKind::Binary { op, left: Box::new(left), right: Box::new(right) })
}

/// The reduction at the right end of an expression, if no parentheses enclose it.
fn ends_in_reduction(expr: &Expr) -> Option<(&'static str, Span)> {
    match &expr.kind {
        ExprKind::Reduce { op, .. } => Some((op, expr.span)),
        ExprKind::Unary { of, .. } => ends_in_reduction(of),
        ExprKind::Binary { right, .. } => ends_in_reduction(right),
        ExprKind::If { otherwise, .. } => ends_in_reduction(otherwise),
        _ => None,
    }
}
