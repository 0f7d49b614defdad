//! From tokens to a declaration as it is written. What can't be read is reported and left out; the rest is kept.

mod cursor;
mod expr;
mod function;

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::quote;

use crate::ast::*;
use crate::diagnostics::Diagnostics;
use cursor::Cursor;
pub(crate) use expr::REDUCTIONS;
pub(crate) use function::functions;

/// Reads a model. `None` if not even its name is there.
pub(crate) fn model(tokens: TokenStream, diagnostics: &Diagnostics) -> Option<Declaration> {
    declaration(tokens, diagnostics, "model", "pub Llama for \"LlamaForCausalLM\" { … }", |c| {
        let architectures = if c.eat_word("for").is_some() { c.architectures() } else { c.expected("`for`") };
        if architectures.is_some() && !c.is_group(Delimiter::Brace) {
            c.expected::<()>("`,` or the model in braces");
        }
        Head::Model { architectures: architectures.unwrap_or_default() }
    })
}

/// Reads a block. `None` if not even its name is there.
pub(crate) fn block(tokens: TokenStream, diagnostics: &Diagnostics) -> Option<Declaration> {
    declaration(tokens, diagnostics, "block", "pub Gated[d, f] { … }", |c| {
        let axes = if c.is_group(Delimiter::Bracket) { c.axes() } else { Some(Vec::new()) };
        if axes.is_some() && !c.is_group(Delimiter::Brace) {
            c.expected::<()>("axes in brackets, or the block in braces");
        }
        Head::Block { axes: axes.unwrap_or_default() }
    })
}

fn declaration(
    tokens: TokenStream,
    diagnostics: &Diagnostics,
    what: &str,
    form: &str,
    head: impl FnOnce(&mut Cursor) -> Head,
) -> Option<Declaration> {
    let mut c = Cursor::new(tokens, Span::call_site(), diagnostics);
    let graph = graph_path(&mut c);
    let attributes = c.attributes();
    let visibility = c.visibility();
    let name = c.name(&format!("the {what}'s name, as in `{form}`"))?;
    let head = head(&mut c);
    c.mistaken(|c| c.is_group(Delimiter::Brace));
    let body = c.eat_group(Delimiter::Brace).unwrap_or_else(|| Group::new(Delimiter::Brace, TokenStream::new()));
    if !c.is_empty() {
        c.expected::<()>(&format!("nothing after the {what}: one `{what}!` declares one {what}"));
    }
    let mut declaration = Declaration {
        graph,
        attributes,
        visibility,
        name,
        head,
        config: Vec::new(),
        requires: Vec::new(),
        items: Vec::new(),
        main: None,
        context: None,
    };
    let mut c = c.inside(&body);
    while !c.is_empty() {
        c.declaration(|c| item(c, &mut declaration));
    }
    Some(declaration)
}

/// `crate = path;` in front of the model says where the generated code finds the crate `einfuse-graph`.
fn graph_path(c: &mut Cursor) -> TokenStream {
    if c.eat_word("crate").is_some() {
        let given = c.sign("=").is_some();
        let path = c.until_semicolon().0;
        if given {
            return path;
        }
    }
    quote!(::einfuse_graph)
}

fn item(c: &mut Cursor, declaration: &mut Declaration) -> Option<()> {
    const BLOCK: [&str; 5] = ["config", "axis", "host", "weights", "fn"];
    const MODEL: [&str; 7] = ["config", "axis", "host", "context", "weights", "layer", "fn"];
    c.attributes();
    let span = c.span();
    let block = declaration.is_block();
    if block && let Some(word) = ["context", "layer"].into_iter().find(|word| c.is_word(word)) {
        c.diagnostics.error(span, format!("`{word}` stands in a model, not in a block"));
        return None;
    }
    if let Some(word) = ["let", "cache"].into_iter().find(|word| c.is_word(word)) {
        c.diagnostics.error(span, format!("`{word}` stands in a `fn`"));
        return None;
    }
    if c.is_word("require") {
        c.diagnostics.error(span, "`require` stands in `config { … }`");
        return None;
    }
    if c.is_word("block") {
        let help = "`weights \"layers.{l}.\" { block feed[d, f] -> [t, d] = Gated in \"feed.\"; }`";
        c.diagnostics.help(span, "a block is used in the `weights` of a layer", help);
        return None;
    }
    match c.word_of(if block { &BLOCK } else { &MODEL })? {
        "config" => {
            c.next();
            let group = c.group(Delimiter::Brace, "`{`, as in `config { d: size = \"hidden_size\"; }`")?;
            config(&mut c.inside(&group), declaration);
        }
        "axis" => {
            c.next();
            let name = c.name("the axis' name")?;
            c.sign("=")?;
            declaration.items.push(match c.eat_word("alias") {
                Some(_) => Item::Alias { name, of: c.name("the axis that it is an alias of")? },
                None => Item::Axis { name, extent: c.sum()? },
            });
            c.sign(";")?;
        }
        "host" => declaration.items.push(Item::Host(host(c)?)),
        "context" => {
            c.next();
            c.sign("=")?;
            let context = c.sum()?;
            c.sign(";")?;
            if declaration.context.replace((span, context)).is_some() {
                c.diagnostics.error(span, "`context` is given twice");
            }
        }
        "weights" => declaration.items.push(Item::Weights(weights(c)?)),
        "layer" => declaration.items.push(Item::Layer(layer(c)?)),
        _ => {
            let function = c.function(false)?;
            if function.name.is_some() {
                declaration.items.push(Item::Function(function));
            } else if declaration.main.is_some() {
                let what = if block { "block" } else { "model" };
                c.diagnostics.error(function.span, format!("the {what} has two `fn` without a name"));
            } else {
                declaration.main = Some(function);
            }
        }
    }
    Some(())
}

/// `host name[axes] = rust;`
fn host(c: &mut Cursor) -> Option<Host> {
    c.next();
    let name = c.name("the constant's name")?;
    let axes = if c.is_group(Delimiter::Bracket) { c.axes()? } else { Vec::new() };
    c.sign("=")?;
    let (mut rust, end) = c.until_semicolon();
    if let Err(error) = syn::parse2::<syn::Expr>(rust.clone()) {
        let text = error.to_string();
        let span = if text.starts_with("unexpected end") { end } else { error.span() };
        c.diagnostics.error(span, format!("a constant's value is an expression of Rust: {text}"));
        rust = quote!(::std::vec::Vec::<f32>::new());
    }
    Some(Host { name, axes, rust })
}

fn config(c: &mut Cursor, declaration: &mut Declaration) {
    let block = declaration.is_block();
    while !c.is_empty() {
        c.declaration(|c| {
            let docs = c.attributes();
            let span = c.span();
            match c.eat_word("require") {
                Some(_) if block => {
                    c.diagnostics.error(span, "`require` stands in a model, not in a block");
                    None
                }
                Some(_) => require(c).map(|r| declaration.requires.push(r)),
                None => value(c, docs, block).map(|v| declaration.config.push(v)),
            }
        });
    }
}

/// `require "key" == a | b;`
fn require(c: &mut Cursor) -> Option<Require> {
    let key = c.text("a key in quotes, as in `require \"hidden_act\" == \"silu\";`")?;
    c.sign("==")?;
    let mut allowed = vec![c.sum()?];
    while c.eat_sign("|").is_some() {
        allowed.push(c.sum()?);
    }
    c.sign(";")?;
    Some(Require { key, allowed })
}

/// `name: type = "key", "key" null value else default;`, or in a block `name: type;`
fn value(c: &mut Cursor, docs: TokenStream, block: bool) -> Option<Value> {
    let name = c.name(match block {
        true => "a value, as in `biased: bool;`",
        false => "a value, as in `d: size = \"hidden_size\";`, or `require`",
    })?;
    c.sign(":")?;
    let ty = config_type(c)?;
    if block {
        if c.eat_sign(";").is_none() {
            return c.expected("`;`: the use of a block gives its values");
        }
        return Some(Value { docs, name, ty, keys: Keys::First(Vec::new()), null: None, default: None });
    }
    c.sign("=")?;
    let Some(keys) = keys(c) else {
        // The name is known all the same, so that its uses are no further mistakes.
        c.recover();
        return Some(Value { docs, name, ty, keys: Keys::First(Vec::new()), null: None, default: None });
    };
    let null = match c.eat_word("null") {
        Some(_) => Some(c.sum()?),
        None => None,
    };
    let default = match c.eat_word("else") {
        Some(_) => Some(c.sum()?),
        None => None,
    };
    if c.eat_sign(";").is_none() {
        return c.expected("`,`, `null`, `else` or `;`");
    }
    Some(Value { docs, name, ty, keys, null, default })
}

fn keys(c: &mut Cursor) -> Option<Keys> {
    let key = "a key in quotes";
    if let Some(group) = c.eat_group(Delimiter::Brace) {
        let mut inner = c.inside(&group);
        if inner.eat_sign("..").is_some() {
            return if inner.is_empty() { Some(Keys::All) } else { inner.expected("`}`: `..` is all keys") };
        }
        return inner.list(|c| c.text(key)).map(Keys::Gathered);
    }
    let mut keys = vec![c.text(key)?];
    while c.eat_sign(",").is_some() {
        keys.push(c.text(key)?);
    }
    Some(Keys::First(keys))
}

fn config_type(c: &mut Cursor) -> Option<ConfigType> {
    let Some(ty) = c.rust_type() else {
        return c.expected("a type: `size`, `count`, `f32`, `bool`, `option<size>`, or one of Rust");
    };
    let tokens = quote!(#ty);
    let text: String = tokens.to_string().split_whitespace().collect();
    match text.as_str() {
        "size" => Some(ConfigType::Size),
        "count" => Some(ConfigType::Count),
        "f32" => Some(ConfigType::F32),
        "bool" => Some(ConfigType::Bool),
        "option<size>" => Some(ConfigType::OptionSize),
        _ => match ty {
            syn::Type::Path(path) if path.path.get_ident().is_some_and(is_unknown_type) => {
                let known = ["size", "count", "f32", "bool", "option<size>"];
                let message = format!(
                    "unknown type `{text}`: a value is a `size`, `count`, `f32`, `bool`, `option<size>`, or of a Rust type"
                );
                c.diagnostics.unknown(path.path.segments[0].ident.span(), message, &text, known);
                Some(ConfigType::Size)
            }
            _ => Some(ConfigType::Rust(tokens)),
        },
    }
}

/// Whether a name is neither that of a primitive type nor, by its first letter, that of another type of Rust.
fn is_unknown_type(name: &syn::Ident) -> bool {
    const PRIMITIVE: [&str; 14] =
        ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f64", "char"];
    let name = name.to_string();
    name.starts_with(|c: char| c.is_lowercase()) && !PRIMITIVE.contains(&name.as_str())
}

/// `weights "prefix" else "prefix" { … }`
fn weights(c: &mut Cursor) -> Option<Weights> {
    c.next();
    let mut prefixes = Vec::from_iter(c.eat_text());
    while !prefixes.is_empty() && c.eat_word("else").is_some() {
        prefixes.push(c.text("another prefix in quotes")?);
    }
    let group = c.group(Delimiter::Brace, "a prefix in quotes, or `{`")?;
    let mut inner = c.inside(&group);
    let (mut weights, mut uses) = (Vec::new(), Vec::new());
    while !inner.is_empty() {
        inner.declaration(|c| {
            c.attributes();
            match c.is_word("block") {
                true => block_use(c).map(|block| uses.push(block)),
                false => weight(c).map(|weight| weights.push(weight)),
            }
        });
    }
    Some(Weights { prefixes, weights, uses })
}

/// `block name[axes] -> [axes] = path { values } in "prefix" else "prefix";`
fn block_use(c: &mut Cursor) -> Option<Use> {
    const FORM: &str = "as in `block feed[d, f] -> [t, d] = Gated in \"feed.\";`";
    c.next();
    let name = c.name(&format!("the name by which the block is called, {FORM}"))?;
    let axes = if c.is_group(Delimiter::Bracket) { c.axes()? } else { Vec::new() };
    if c.eat_sign("->").is_none() {
        return c.expected(&format!("`->` and the axes of the result, {FORM}"));
    }
    let result_axes = c.axes()?;
    c.sign("=")?;
    let mut path = TokenStream::new();
    let span = c.span();
    while !c.is_empty() && !c.is_group(Delimiter::Brace) && !c.is_word("in") && !c.is_sign(";") {
        path.extend(c.next());
    }
    let Ok(path) = syn::parse2(path) else {
        c.diagnostics.error(span, format!("expected the path of a block, {FORM}"));
        return None;
    };
    let values = match c.eat_group(Delimiter::Brace) {
        Some(group) => c.inside(&group).list(|c| {
            let name = c.name("a value of the block")?;
            let value = match c.eat_sign(":") {
                Some(_) => c.expr()?,
                None => Expr { span: name.span(), kind: ExprKind::Name(name.clone()) },
            };
            Some((name, value))
        })?,
        None => Vec::new(),
    };
    if c.eat_word("in").is_none() {
        return c.expected(&format!("`in` and a prefix of the checkpoint's names, {FORM}"));
    }
    let mut prefixes = vec![c.text("a prefix in quotes")?];
    while c.eat_word("else").is_some() {
        prefixes.push(c.text("another prefix in quotes")?);
    }
    if c.eat_sign(";").is_none() {
        return c.expected("`else` or `;`");
    }
    Some(Use { name, axes, result_axes, path, values, prefixes })
}

/// `name[axes] = source else source;`
fn weight(c: &mut Cursor) -> Option<Weight> {
    let name = c.name("a weight, as in `w[f, d] = \"w.weight\";`")?;
    let axes = c.axes()?;
    c.sign("=")?;
    let mut sources = vec![source(c)?];
    while c.eat_word("else").is_some() {
        sources.push(source(c)?);
    }
    if c.eat_sign(";").is_none() {
        return c.expected("`else`, `if` or `;`");
    }
    Some(Weight { name, axes, sources })
}

/// `"name"[from .. to in axis] if condition`, the name of another weight, or a number.
fn source(c: &mut Cursor) -> Option<Source> {
    if let Some((span, number)) = c.eat_number() {
        return Some(Source { place: Place::Number(span, number), condition: None });
    }
    let place = match c.eat_text() {
        Some(name) => {
            let rows = match c.eat_group(Delimiter::Bracket) {
                Some(group) => {
                    let mut inner = c.inside(&group);
                    let from = inner.sum()?;
                    inner.sign("..")?;
                    let to = inner.sum()?;
                    let axis = match inner.eat_word("in") {
                        Some(_) => Some(inner.name("the weight's first axis, as in `[0 .. c in n]`")?),
                        None => None,
                    };
                    if !inner.is_empty() {
                        return inner.expected("`in` or `]`");
                    }
                    Some(Box::new((from, to, axis)))
                }
                None => None,
            };
            Place::File { name, rows }
        }
        None => Place::Weight(c.name("the tensor's name in quotes, another weight, or a number")?),
    };
    let condition = match c.eat_word("if") {
        Some(_) => Some(c.expr()?),
        None => None,
    };
    Some(Source { place, condition })
}

/// `layer index in count { host … weights … fn … choice }`
fn layer(c: &mut Cursor) -> Option<Layer> {
    c.next();
    let index = c.name("the name of the layer's number, as in `layer l in layers`")?;
    if c.eat_word("in").is_none() {
        return c.expected("`in`, as in `layer l in layers`");
    }
    let count = c.name("a count of the config")?;
    let group = c.group(Delimiter::Brace, "the layer in braces")?;
    let mut layer = Layer { index, count, hosts: Vec::new(), weights: Vec::new(), bodies: Vec::new(), choice: None };
    let mut inner = c.inside(&group);
    while !inner.is_empty() {
        inner.declaration(|c| layer_item(c, &mut layer));
    }
    Some(layer)
}

fn layer_item(c: &mut Cursor, layer: &mut Layer) -> Option<()> {
    c.attributes();
    match c.word_of(&["host", "weights", "fn", "match", "if"])? {
        "host" => layer.hosts.push(host(c)?),
        "weights" => layer.weights.push(weights(c)?),
        "fn" => layer.bodies.push(c.function(false)?),
        // What is no word is a body's name to a choice.
        word if !c.is_word(word) => return None,
        _ => {
            let span = c.span();
            let choice = choice(c);
            let read = choice.is_some().then_some(());
            if layer.choice.replace((span, choice)).is_some() {
                c.diagnostics.error(span, "the layer's body is chosen twice");
            }
            read?;
        }
    }
    Some(())
}

/// `if condition { choice } else { choice }`, `match subject { 0 => choice, _ => choice }`, or a body's name.
fn choice(c: &mut Cursor) -> Option<Choice> {
    if c.eat_word("if").is_some() {
        let condition = c.expr()?;
        let then = Box::new(braced_choice(c)?);
        if c.eat_word("else").is_none() {
            return c.expected("`else`: each layer has a body");
        }
        let otherwise = Box::new(if c.is_word("if") { choice(c)? } else { braced_choice(c)? });
        return Some(Choice::If { condition, then, otherwise });
    }
    if c.eat_word("match").is_none() {
        return c.name("a body's name").map(Choice::Body);
    }
    let subject = c.sum()?;
    let group = c.group(Delimiter::Brace, "`{`, as in `match l % 2 { 0 => a, _ => b }`")?;
    let mut c = c.inside(&group);
    let mut arms = Vec::new();
    while !c.is_empty() {
        if c.eat_word("_").is_some() {
            c.sign("=>")?;
            let otherwise = Box::new(choice(&mut c)?);
            c.eat_sign(",");
            if !c.is_empty() {
                return c.expected("`}`: `_` is the last arm");
            }
            return Some(Choice::Match { subject, arms, otherwise });
        }
        let mut patterns = vec![pattern(&mut c)?];
        while c.eat_sign("|").is_some() {
            patterns.push(pattern(&mut c)?);
        }
        c.sign("=>")?;
        arms.push((patterns, choice(&mut c)?));
        if !c.is_empty() {
            c.sign(",")?;
        }
    }
    c.expected("`_ => …`: each layer has a body")
}

fn pattern(c: &mut Cursor) -> Option<usize> {
    let number = match c.peek() {
        Some(TokenTree::Literal(literal)) => literal.to_string().parse().ok(),
        _ => None,
    };
    if number.is_none() {
        return c.expected("a number or `_`");
    }
    c.next();
    number
}

fn braced_choice(c: &mut Cursor) -> Option<Choice> {
    let group = c.group(Delimiter::Brace, "a body's name in braces")?;
    let mut inner = c.inside(&group);
    let inner_choice = choice(&mut inner)?;
    if inner.is_empty() { Some(inner_choice) } else { inner.expected("`}`") }
}

impl Cursor<'_> {
    fn visibility(&mut self) -> TokenStream {
        let mut tokens = TokenStream::new();
        let span = self.span();
        if self.is_word("pub") {
            tokens.extend(self.next());
            if self.is_group(Delimiter::Parenthesis) {
                tokens.extend(self.next());
            }
        }
        if syn::parse2::<syn::Visibility>(tokens.clone()).is_err() {
            self.diagnostics.error(span, "this is no visibility of Rust");
            return quote!(pub);
        }
        tokens
    }

    fn architectures(&mut self) -> Option<Vec<Text>> {
        let what = "an architecture in quotes, as config.json names it";
        let mut architectures = vec![self.text(what)?];
        while self.eat_sign(",").is_some() {
            architectures.push(self.text(what)?);
        }
        Some(architectures)
    }
}
