//! `model!`: a language model declared as equations over named axes; `block!`: what several have in common.
//!
//! A macro parses the declaration (`parse`), checks every name, axis and type (`check`), and emits Rust that reads a
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
    expand(input.into(), parse::model).into()
}

/// Declares a block of equations that models share: the axes that it is given, its config, its weights, and a function.
///
/// It expands to a type with a field for each value of the config, whose `build` adds the equations to a graph. A model uses it
/// in the weights of a layer, by `block name[axes] -> [axes] = Name { value } in "prefix";`, and calls it there. Mistakes and
/// `crate = path;` are as in a model's declaration.
#[proc_macro]
pub fn block(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(input.into(), parse::block).into()
}

type Parse = fn(TokenStream, &Diagnostics) -> Option<ast::Declaration>;

fn expand(input: TokenStream, parse: Parse) -> TokenStream {
    let diagnostics = Diagnostics::default();
    let Some(declaration) = parse(input, &diagnostics) else { return diagnostics.to_tokens() };
    let prelude = prelude(declaration.name.span(), &diagnostics);
    let program = check::check(&declaration, prelude, &diagnostics);
    let mut tokens = diagnostics.to_tokens();
    tokens.extend(emit::emit(&declaration, &program));
    tokens
}

/// The functions of the prelude, as if they were written where the declaration's name is.
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
