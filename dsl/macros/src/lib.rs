//! `model!`: a language model declared as equations over named axes.
//!
//! The macro parses the declaration (`parse`), checks every name, axis and type (`check`), and emits Rust that reads a
//! config and builds the graph (`emit`). The language is described in `docs/language.md`; its functions are written in it,
//! in `prelude.ein`.

mod ast;
mod check;
mod diagnostics;
mod emit;
mod parse;
mod program;
#[cfg(test)]
mod tests;

use proc_macro2::{Group, Span, TokenStream, TokenTree};

use diagnostics::Diagnostics;

/// Declares a model: its config, its axes, its weights and its equations.
///
/// It expands to two types: `<Name>Config`, which is read from a config.json, and `<Name>`, whose `graph(&config)` builds
/// the tensor graph. All mistakes are reported at once, each on its token; what could be understood is expanded all the
/// same. `crate = path;` in front of the declaration says where the crate `einfuse-graph` is found, if not at
/// `::einfuse_graph`.
#[proc_macro]
pub fn model(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(input.into()).into()
}

fn expand(input: TokenStream) -> TokenStream {
    let diagnostics = Diagnostics::default();
    let Some(model) = parse::model(input, &diagnostics) else { return diagnostics.to_tokens() };
    let prelude = prelude(model.name.span(), &diagnostics);
    let program = check::check(&model, prelude, &diagnostics);
    let mut tokens = diagnostics.to_tokens();
    tokens.extend(emit::emit(&model, &program));
    tokens
}

/// The functions of the prelude, as if they were written where the model's name is.
fn prelude(span: Span, diagnostics: &Diagnostics) -> Vec<ast::Function> {
    let tokens: TokenStream = include_str!("prelude.ein").parse().unwrap_or_default();
    parse::functions(located(tokens, span), diagnostics)
}

fn located(tokens: TokenStream, span: Span) -> TokenStream {
    let tokens = tokens.into_iter().map(|token| match token {
        TokenTree::Group(group) => {
            let mut group = Group::new(group.delimiter(), located(group.stream(), span));
            group.set_span(span);
            TokenTree::Group(group)
        }
        mut token => {
            token.set_span(span);
            token
        }
    });
    tokens.collect()
}
