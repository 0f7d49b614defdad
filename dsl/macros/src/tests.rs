//! What the macro expands to.

use std::collections::HashSet;

use proc_macro2::{TokenStream, TokenTree};

use crate::{Parse, expand, parse};

const MODEL: &str = r#"
/// One layer of attention.
pub Small for "SmallForCausalLM" {
    config {
        d: size = "hidden_size";
        h: size = "heads" else 1;
        c: size = "head_dim" else d / h;
        v: size = "vocab_size";
        layers: count = "depth";
        eps: f32 = "eps" else 1e-5;
        tied: bool = "tied" else false;
        window: option<size> = "window";
        require "act" == "silu";
    }
    axis r = c / 2;
    host freq[r] = vec![1.0; c / 2];
    weights { embed[v, d] = "embed"; head[v, d] = "head" if !tied else embed; }
    layer l in layers {
        weights "layers.{l}." {
            wq[h, c, d] = "q";
            wk[c, d] = "k";
            block feed[d, c] -> [t, d] = crate::Gated { biased: tied } in "feed.";
        }
        fn (x[t, d]) -> [t, d] {
            let a = rms_norm[d](x, eps);
            let q[t, h, c] = rotate[c](sum[d] a * wq, freq, 1);
            let k[t, c] = sum[d] a * wk;
            cache k over s within window;
            let p[t, h, s] = softmax[s]((sum[c] q * k) where s <= t);
            let y[t, d] = x + sum[h, s] p * (sum[c] k * wk);
            y + feed(y, eps)
        }
    }
    fn (tokens[t]) -> [t, v] {
        let x = embed[v = tokens];
        let y = layers(x);
        sum[d] y * head
    }
}
"#;

fn expanded(model: &str) -> TokenStream {
    expand(model.parse().unwrap(), parse::model)
}

#[test]
fn expansion() {
    let file = syn::parse2(expanded(MODEL)).unwrap();
    insta::assert_snapshot!(prettyplease::unparse(&file));
}

/// The names in a list of tokens, each with the line and column where it was written.
fn names(tokens: TokenStream, found: &mut HashSet<(String, usize, usize)>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => names(group.stream(), found),
            TokenTree::Ident(name) => {
                let start = name.span().start();
                found.insert((name.to_string(), start.line, start.column));
            }
            _ => {}
        }
    }
}

const BLOCK: &str = r#"
/// A gated network.
pub Gated[d, f] {
    config { biased: bool; }
    weights { gate[f, d] = "gate" else "w1"; up[f, d] = "up"; bias[f] = "bias" if biased else 0; down[d, f] = "down"; }
    fn (x[t, d], factor) -> [t, d] {
        let z[t, f] = silu(sum[d] x * gate) * (bias + sum[d] x * up);
        factor * sum[f] z * down
    }
}
"#;

#[test]
fn expansion_of_a_block() {
    let file = syn::parse2(expand(BLOCK.parse().unwrap(), parse::block)).unwrap();
    insta::assert_snapshot!(prettyplease::unparse(&file));
}

#[test]
fn names_keep_the_place_where_they_are_written() {
    let tokens: TokenStream = MODEL.parse().unwrap();
    let (mut written, mut kept) = (HashSet::new(), HashSet::new());
    names(tokens.clone(), &mut written);
    names(expand(tokens, parse::model), &mut kept);
    let own = ["d", "h", "c", "v", "r", "t", "s", "freq", "embed", "head", "wq", "wk", "x", "a", "q", "k", "p", "y"];
    let lost: Vec<_> = written.iter().filter(|n| own.contains(&n.0.as_str()) && !kept.contains(n)).collect();
    assert_eq!(lost, Vec::<&(String, usize, usize)>::new());
}

#[test]
fn the_reference_is_right() {
    let reference = include_str!("../../../docs/language.md");
    let blocks: Vec<&str> = reference.split("```rust\n").skip(1).filter_map(|b| b.split("```").next()).collect();
    assert_eq!(blocks.len(), 6);
    for block in blocks {
        let (head, declaration) = block.trim().strip_suffix('}').unwrap().split_once('{').unwrap();
        let parse = if head == "einfuse::block! " { parse::block } else { parse::model };
        let tokens = expand(declaration.parse().unwrap(), parse).to_string();
        assert!(!tokens.contains("compile_error"), "{tokens}");
    }
    let prelude = include_str!("prelude.ein");
    let functions = prelude.lines().filter_map(|l| l.strip_prefix("fn ")).filter_map(|l| l.split(['[', '(']).next());
    for function in functions {
        assert!(reference.contains(&format!("`{function}")), "the reference does not name `{function}`");
    }
}

fn assert_rust(tokens: TokenStream) {
    if let Err(error) = syn::parse2::<syn::File>(tokens.clone()) {
        panic!("{error}:\n{tokens}");
    }
}

/// How many tokens there are, at every depth.
fn count(tokens: TokenStream) -> usize {
    let inside = |token: TokenTree| match token {
        TokenTree::Group(group) => 1 + count(group.stream()),
        _ => 1,
    };
    tokens.into_iter().map(inside).sum()
}

/// The tokens with the one at a position, counted at every depth, replaced.
fn with(tokens: TokenStream, at: &mut usize, new: &TokenStream) -> TokenStream {
    let mut result = TokenStream::new();
    for token in tokens {
        let here = *at == 0;
        *at = at.wrapping_sub(1);
        match token {
            _ if here => result.extend(new.clone()),
            TokenTree::Group(group) => {
                let inner = with(group.stream(), at, new);
                result.extend([TokenTree::Group(proc_macro2::Group::new(group.delimiter(), inner))]);
            }
            token => result.extend([token]),
        }
    }
    result
}

#[test]
fn whatever_is_written_expands_to_rust() {
    let parsers: [(_, Parse); 2] = [(MODEL, parse::model), (BLOCK, parse::block)];
    for (declaration, parse) in parsers {
        let tokens: TokenStream = declaration.parse().unwrap();
        for new in ["", "x", "; {}"] {
            let new: TokenStream = new.parse().unwrap();
            for at in 0..count(tokens.clone()) {
                assert_rust(expand(with(tokens.clone(), &mut at.clone(), &new), parse));
            }
        }
        let all: Vec<TokenTree> = tokens.into_iter().collect();
        for cut in 0..all.len() {
            assert_rust(expand(all[..cut].iter().cloned().collect(), parse));
        }
    }
}
