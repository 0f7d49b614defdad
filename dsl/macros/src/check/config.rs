//! The config: its values, and expressions over them, which become Rust that can fail with an error in words.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote};

use super::scope::Entry;
use super::{AxisKind, Checker, Cx, Value};
use crate::ast::{self, ConfigType, Expr, ExprKind, Keys};
use crate::emit::internal;
use crate::program::{ConfigField, layer_value};

/// What an expression over the config yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Real,
    Flag,
    Optional,
    Text,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Number => "a size or count",
            Kind::Real => "a real number",
            Kind::Flag => "a bool",
            Kind::Optional => "a size that may be missing",
            Kind::Text => "text",
        }
    }
}

/// Where the generated expression stands.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum At {
    /// Where the config is read: its values are variables.
    Reading,
    /// Where the graph is built: its values are fields of `config`, and the axes declared before have their sizes.
    Building,
    /// In a function of its own: its values are fields of `config`.
    Alone,
}

impl Checker<'_> {
    /// Declares the config's values and what is required of its keys, and the axes that a block is given.
    pub(super) fn config(&mut self) {
        let declaration = self.declaration;
        for axis in declaration.given_axes() {
            let size = internal(&format!("size_of_{axis}"));
            let entry = self.new_axis(axis, AxisKind::Fixed(quote!(#size)));
            self.declare(axis, entry);
        }
        for value in &declaration.config {
            let key = value.keys.texts().first().map_or(value.name.to_string(), |k| k.value.clone());
            let read = if declaration.is_block() { self.given(value) } else { self.reading(value) };
            let (name, ty) = (value.name.clone(), value.ty.clone());
            let fixed = matches!(ty, ConfigType::Size).then(|| AxisKind::Fixed(quote!(config.#name)));
            let entry = match fixed {
                Some(kind) => self.new_axis(&name, kind),
                None => Entry::Value(self.values.len()),
            };
            self.values.push(Value { name: name.clone(), ty: ty.clone(), key, used: false.into() });
            if self.declare(&name, entry) {
                let docs = documentation(value);
                self.program.values.push(ConfigField { docs, ty: rust_type(&ty), name, read });
            }
        }
        for require in &declaration.requires {
            let allowed = require.allowed.iter().map(|e| self.allowed(e)).collect();
            self.program.requires.push((require.key.value.clone(), allowed));
        }
    }

    /// A value that the use of a block gives, which is read from nowhere.
    fn given(&self, value: &ast::Value) -> TokenStream {
        let (name, span) = (&value.name, value.name.span());
        match value.ty {
            ConfigType::Size => {
                let help = format!("`block! {{ {}[{name}, …] {{ … }} }}`", self.declaration.name);
                self.diagnostics.help(span, "a block's axes stand in brackets behind its name", help);
            }
            ConfigType::Rust(_) => {
                self.diagnostics.error(span, "a value of a block is a `count`, `f32`, `bool` or `option<size>`");
            }
            _ => {}
        }
        TokenStream::new()
    }

    /// A Rust expression that reads a value out of `source`.
    fn reading(&self, value: &ast::Value) -> TokenStream {
        let texts: Vec<&str> = value.keys.texts().iter().map(|k| k.value.as_str()).collect();
        let keys = quote!(&[#(#texts),*]);
        let source = internal("source");
        if !matches!(value.keys, Keys::First(_)) {
            if !matches!(value.ty, ConfigType::Rust(_)) {
                let name = &value.name;
                let message =
                    format!("`{name}` can't be read from several keys at once: only a value of a Rust type can");
                match &texts[..] {
                    [first, second, ..] => {
                        let help = format!("`= {first:?}, {second:?}` takes the first that is there");
                        self.diagnostics.help(value.name.span(), message, help);
                    }
                    _ => self.diagnostics.error(value.name.span(), message),
                }
            }
            if let Some(default) = value.null.as_ref().or(value.default.as_ref()) {
                self.diagnostics
                    .error(default.span, "a value of several keys has no default: its type says what is missing");
            }
            return match value.keys {
                Keys::All => quote!(#source.whole()?),
                _ => quote!(#source.gathered(#keys)?),
            };
        }
        let (method, kind) = match &value.ty {
            ConfigType::Size => ("size", Kind::Number),
            ConfigType::Count => ("count", Kind::Number),
            ConfigType::F32 => ("real", Kind::Real),
            ConfigType::Bool => ("flag", Kind::Flag),
            ConfigType::OptionSize => ("size", Kind::Optional),
            ConfigType::Rust(_) => ("value", Kind::Text),
        };
        let method = format_ident!("{method}");
        let found = quote!(#source.#method(#keys)?);
        let keyed = texts.join("` or `");
        let computed = |expr: &Expr, of: String| {
            let tokens = self.config_expr(&Cx::new(super::Place::Model), expr, Some(kind), At::Reading, &of);
            match value.ty {
                ConfigType::Rust(_) => quote!(::std::convert::From::from(#tokens)),
                ConfigType::Size => {
                    let graph = &self.declaration.graph;
                    quote!(#graph::__private::extent(#of, #tokens)?)
                }
                _ => tokens,
            }
        };
        let default = value.default.as_ref().map(|default| {
            computed(default, format!("the config has no `{keyed}`, and its default {}", self.describe(default)))
        });
        let null = match (&value.null, &value.ty, &default) {
            (Some(null), ..) => {
                let of = format!("the config's `{keyed}` is null, which means {}", self.describe(null));
                Some(computed(null, of))
            }
            (None, ConfigType::OptionSize, Some(_)) => Some(quote!(::std::option::Option::None)),
            (None, ..) => None,
        };
        let null = null.map(|null| quote!(::std::option::Option::None if #source.is_null(#keys) => #null,));
        if default.is_none() && null.is_none() {
            return match value.ty {
                ConfigType::OptionSize => found,
                _ => quote!(#source.required(#found, #keys)?),
            };
        }
        let default = default.unwrap_or_else(|| match value.ty {
            ConfigType::OptionSize => quote!(::std::option::Option::None),
            _ => quote!(#source.required(::std::option::Option::None, #keys)?),
        });
        let found_value = match value.ty {
            ConfigType::OptionSize => quote!(::std::option::Option::Some(value)),
            _ => quote!(value),
        };
        quote! {
            match #found {
                ::std::option::Option::Some(value) => #found_value,
                #null
                ::std::option::Option::None => #default,
            }
        }
    }

    /// A value that a key may have, as a JSON value.
    fn allowed(&self, expr: &Expr) -> TokenStream {
        let graph = &self.declaration.graph;
        let value = match &expr.bare().kind {
            ExprKind::Int(n) => quote!(#n),
            ExprKind::Float(x) => quote!(#x),
            ExprKind::Unary { op: "-", of } => match of.bare().kind {
                ExprKind::Int(n) => {
                    let n = -n;
                    quote!(#n)
                }
                ExprKind::Float(x) => {
                    let x = -x;
                    quote!(#x)
                }
                _ => {
                    self.diagnostics.error(expr.span, "expected a number behind `-`");
                    quote!(0)
                }
            },
            _ => {
                let of = self.describe(expr);
                self.config_expr(&Cx::new(super::Place::Model), expr, None, At::Reading, &of)
            }
        };
        quote!(#graph::__private::serde_json::Value::from(#value))
    }

    /// A checked expression over the config as Rust. `of` says what is computed, for the error.
    pub(super) fn config_expr(&self, cx: &Cx, expr: &Expr, want: Option<Kind>, at: At, of: &str) -> TokenStream {
        let anything = match want {
            Some(Kind::Flag) => quote!(false),
            Some(Kind::Real) => quote!(0.0),
            Some(Kind::Optional) => quote!(::std::option::Option::None),
            Some(Kind::Text) => quote!(""),
            _ => quote!(1usize),
        };
        if let (Some(_), ExprKind::Method { of: value, name, arguments }) = (want, &expr.bare().kind) {
            return self.method(cx, value, name, arguments, at, of).unwrap_or(anything);
        }
        let Some((tokens, kind)) = self.config_kind(cx, expr, at, of) else { return anything };
        match (want, kind) {
            (Some(Kind::Real), Kind::Number) => match expr.bare().kind {
                ExprKind::Int(n) => {
                    let x = n as f32;
                    quote!(#x)
                }
                _ => quote!((#tokens) as f32),
            },
            (Some(Kind::Text), _) => tokens,
            (Some(Kind::Optional), Kind::Number) => quote!(::std::option::Option::Some(#tokens)),
            (Some(want), kind) if want != kind => {
                let message = format!("expected {}, this is {}", want.name(), kind.name());
                self.diagnostics.error(expr.span, message);
                anything
            }
            _ => tokens,
        }
    }

    fn config_kind(&self, cx: &Cx, expr: &Expr, at: At, of: &str) -> Option<(TokenStream, Kind)> {
        match &expr.kind {
            ExprKind::Int(n) => match usize::try_from(*n) {
                Ok(n) => Some((quote!(#n), Kind::Number)),
                Err(_) => None,
            },
            ExprKind::Float(x) => {
                let x = *x as f32;
                Some((quote!(#x), Kind::Real))
            }
            ExprKind::Bool(b) => Some((quote!(#b), Kind::Flag)),
            ExprKind::Text(text) => Some((quote!(#text), Kind::Text)),
            ExprKind::Group(inner) => self.config_kind(cx, inner, at, of),
            ExprKind::Name(ident) => self.config_name(cx, ident, at),
            ExprKind::Unary { op: "!", of: inner } => {
                let inner = self.config_expr(cx, inner, Some(Kind::Flag), at, of);
                Some((quote!(!#inner), Kind::Flag))
            }
            ExprKind::Binary { op, left, right } => self.config_binary(cx, expr.span, op, left, right, at, of),
            ExprKind::If { condition, then, otherwise } => {
                let condition = self.config_expr(cx, condition, Some(Kind::Flag), at, of);
                let (then, kind) = self.config_kind(cx, then, at, of)?;
                let otherwise = self.config_expr(cx, otherwise, Some(kind), at, of);
                Some((quote!((if #condition { #then } else { #otherwise })), kind))
            }
            ExprKind::Method { of: value, name, arguments } => {
                Some((self.method(cx, value, name, arguments, at, of)?, Kind::Number))
            }
            ExprKind::Unknown => None,
            _ => {
                self.diagnostics.error(
                    expr.span,
                    "this can't be computed from the config: its values, numbers, `+ - * / %`, comparisons, `&& || !`",
                );
                None
            }
        }
    }

    /// A method of a value of a Rust type. What it yields is checked where the generated code is compiled.
    fn method(
        &self,
        cx: &Cx,
        value: &Ident,
        name: &Ident,
        arguments: &[Expr],
        at: At,
        of: &str,
    ) -> Option<TokenStream> {
        match self.lookup(cx, &value.to_string()) {
            _ if self.diagnostics.is_mistaken(&value.to_string()) => return None,
            Some(Entry::Value(index)) if matches!(self.values[index].ty, ConfigType::Rust(_)) => {
                self.values[index].used.set(true);
            }
            Some(_) => {
                let message = format!("`{value}` has no methods: only a value of the config of a Rust type has");
                self.diagnostics.error(value.span(), message);
                return None;
            }
            None => {
                self.unknown_name(cx, value);
                return None;
            }
        }
        let arguments: Option<Vec<TokenStream>> =
            arguments.iter().map(|a| self.config_kind(cx, a, at, of).map(|(tokens, _)| tokens)).collect();
        let arguments = arguments?;
        Some(match at {
            At::Reading => quote!(#value.#name(#(#arguments),*)),
            At::Building | At::Alone => quote!(config.#value.#name(#(#arguments),*)),
        })
    }

    fn config_name(&self, cx: &Cx, ident: &proc_macro2::Ident, at: At) -> Option<(TokenStream, Kind)> {
        let field = match at {
            At::Reading => quote!(#ident),
            At::Building | At::Alone => quote!(config.#ident),
        };
        match self.lookup(cx, &ident.to_string()) {
            _ if self.diagnostics.is_mistaken(&ident.to_string()) => None,
            Some(Entry::Axis(axis)) => {
                if let Some(value) = self.values.iter().find(|v| v.name == *ident) {
                    value.used.set(true);
                    return Some((field, Kind::Number));
                }
                match &self.axes[axis].kind {
                    _ if at == At::Alone => {
                        let message = format!("`{ident}` is an axis: only values of the config are known here");
                        self.diagnostics.error(ident.span(), message);
                        None
                    }
                    AxisKind::Fixed(size) => {
                        self.axes[axis].counted.set(true);
                        Some((size.clone(), Kind::Number))
                    }
                    _ => {
                        self.diagnostics.error(ident.span(), format!("the axis `{ident}` has no fixed size"));
                        None
                    }
                }
            }
            Some(Entry::Value(value)) => {
                self.values[value].used.set(true);
                let kind = match self.values[value].ty {
                    ConfigType::Size | ConfigType::Count => Kind::Number,
                    ConfigType::F32 => Kind::Real,
                    ConfigType::Bool => Kind::Flag,
                    ConfigType::OptionSize => Kind::Optional,
                    ConfigType::Rust(_) => {
                        let message = format!("`{ident}` is of a Rust type, which only `host` can use");
                        self.diagnostics.error(ident.span(), message);
                        return None;
                    }
                };
                Some((field, kind))
            }
            Some(Entry::Layer) => Some((quote!(#ident), Kind::Number)),
            Some(entry @ (Entry::Declared(..) | Entry::Tensor(_) | Entry::Bound(_) | Entry::Block(_))) => {
                let what = if matches!(entry, Entry::Block(_)) { "block" } else { "tensor" };
                let message = format!("`{ident}` is a {what}: only values of the config are known here");
                self.diagnostics.error(ident.span(), message);
                None
            }
            None => {
                if self.declaration.config.iter().any(|v| v.name == *ident) {
                    self.diagnostics.error(ident.span(), format!("`{ident}` is declared further below"));
                } else {
                    let known = self.values.iter().map(|v| v.name.to_string()).collect::<Vec<_>>();
                    let message = format!("the config declares no value `{ident}`");
                    self.diagnostics.unknown(
                        ident.span(),
                        message,
                        &ident.to_string(),
                        known.iter().map(String::as_str),
                    );
                }
                None
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn config_binary(
        &self,
        cx: &Cx,
        span: Span,
        op: &str,
        left: &Expr,
        right: &Expr,
        at: At,
        of: &str,
    ) -> Option<(TokenStream, Kind)> {
        if matches!(op, "&&" | "||") {
            let a = self.config_expr(cx, left, Some(Kind::Flag), at, of);
            let b = self.config_expr(cx, right, Some(Kind::Flag), at, of);
            return Some((if op == "&&" { quote!((#a && #b)) } else { quote!((#a || #b)) }, Kind::Flag));
        }
        let (a, b) = (self.config_kind(cx, left, at, of), self.config_kind(cx, right, at, of));
        let ((a, kind_a), (b, kind_b)) = (a?, b?);
        let real = kind_a == Kind::Real || kind_b == Kind::Real;
        let numbers = [kind_a, kind_b].iter().all(|k| matches!(k, Kind::Number | Kind::Real));
        let comparison = matches!(op, "==" | "!=" | "<" | "<=" | ">" | ">=");
        let equal_flags = matches!(op, "==" | "!=") && kind_a == Kind::Flag && kind_b == Kind::Flag;
        if !(numbers || equal_flags) || (real && matches!(op, "%" | "^")) || op == "^" {
            let message = format!("`{op}` of {} and {}", kind_a.name(), kind_b.name());
            self.diagnostics.error(span, message);
            return None;
        }
        let (a, b) = if real { (quote!((#a) as f32), quote!((#b) as f32)) } else { (a, b) };
        if comparison || real {
            let op: TokenStream = op.parse().unwrap_or_default();
            return Some((quote!(((#a) #op (#b))), if comparison { Kind::Flag } else { Kind::Real }));
        }
        let graph = &self.declaration.graph;
        let function = format_ident!(
            "{}",
            match op {
                "+" => "add",
                "-" => "sub",
                "*" => "mul",
                "/" => "div",
                _ => "rem",
            }
        );
        Some((quote!(#graph::__private::#function(#of, #a, #b)?), Kind::Number))
    }

    /// An expression in the words of the config's keys.
    pub(super) fn describe(&self, expr: &Expr) -> String {
        match &expr.kind {
            ExprKind::Int(n) => n.to_string(),
            ExprKind::Float(x) => x.to_string(),
            ExprKind::Bool(b) => b.to_string(),
            ExprKind::Text(text) => format!("{text:?}"),
            ExprKind::Group(inner) => format!("({})", self.describe(inner)),
            ExprKind::Name(ident) => match self.values.iter().find(|v| v.name == *ident) {
                Some(value) => value.key.clone(),
                None => ident.to_string(),
            },
            ExprKind::Binary { op, left, right } => format!("{} {op} {}", self.describe(left), self.describe(right)),
            ExprKind::Unary { op, of } => format!("{op}{}", self.describe(of)),
            ExprKind::If { condition, then, otherwise } => {
                let parts = [condition, then, otherwise].map(|part| self.describe(part));
                format!("if {} then {} else {}", parts[0], parts[1], parts[2])
            }
            ExprKind::Method { of, name, arguments } => {
                let arguments: Vec<String> = arguments.iter().map(|a| self.describe(a)).collect();
                format!("{of}.{name}({})", arguments.join(", "))
            }
            _ => "…".to_owned(),
        }
    }

    /// Computes an expression over the config before anything is built; the name of its value.
    pub(super) fn hoist(&mut self, cx: &Cx, expr: &Expr, want: Option<Kind>, of: &str) -> TokenStream {
        let tokens = self.config_expr(cx, expr, want, At::Building, of);
        self.prologue(tokens)
    }

    /// Computes an expression over the config, and over the number of the layer if that occurs in it; the name of its value.
    pub(super) fn decided(&mut self, cx: &Cx, expr: &Expr, want: Option<Kind>, of: &str) -> TokenStream {
        if self.layer_number(cx, expr).is_none() {
            return self.hoist(cx, expr, want, of);
        }
        let value = self.config_expr(cx, expr, want, At::Building, of);
        let name = layer_value(self.layer_values.len());
        self.layer_values.push(value);
        quote!(#name)
    }

    /// The number of the layer, where it occurs in an expression.
    pub(super) fn layer_number<'e>(&self, cx: &Cx, expr: &'e Expr) -> Option<&'e Ident> {
        let mut number = None;
        expr.walk(&mut |e| {
            if let ExprKind::Name(name) = &e.kind
                && matches!(self.lookup(cx, &name.to_string()), Some(Entry::Layer))
            {
                number = Some(name);
            }
        });
        number
    }

    /// A variable that gets this value before anything is built.
    pub(super) fn prologue(&mut self, value: TokenStream) -> TokenStream {
        let name = internal(&format!("value{}", self.program.prologue.len()));
        self.program.prologue.push(quote!(let #name = #value;));
        quote!(#name)
    }
}

/// The Rust type of a value.
fn rust_type(ty: &ConfigType) -> TokenStream {
    match ty {
        ConfigType::Size | ConfigType::Count => quote!(usize),
        ConfigType::F32 => quote!(f32),
        ConfigType::Bool => quote!(bool),
        ConfigType::OptionSize => quote!(::std::option::Option<usize>),
        ConfigType::Rust(ty) => ty.clone(),
    }
}

/// The documentation of a value: the user's, and where it comes from.
fn documentation(value: &ast::Value) -> TokenStream {
    let keys: Vec<String> = value.keys.texts().iter().map(|k| format!("`{}`", k.value)).collect();
    let what = match value.ty {
        ConfigType::Size => format!("The size of the axis `{}`", value.name),
        ConfigType::Count => "A count".to_owned(),
        ConfigType::OptionSize => "A size that may be missing".to_owned(),
        _ => "A value".to_owned(),
    };
    let from = match &value.keys {
        Keys::All => format!("{what}, read from config.json."),
        Keys::First(keys) if keys.is_empty() => format!("{what} that the use of the block chooses."),
        _ => format!("{what}: {} of config.json.", keys.join(", ")),
    };
    let docs = &value.docs;
    quote!(#docs #[doc = #from])
}
