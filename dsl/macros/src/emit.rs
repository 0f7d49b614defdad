//! A checked model, written down as Rust that reads the config and builds the graph.

use std::collections::HashSet;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};

use crate::ast::{Item, Model};
use crate::program::*;

/// A variable that no name of the user's can mean.
pub(crate) fn internal(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// The Rust of a model.
pub(crate) fn emit(model: &Model, program: &Program) -> TokenStream {
    let config = config(model, program);
    let architecture = architecture(model, program);
    quote!(#config #architecture)
}

fn config_name(model: &Model) -> Ident {
    format_ident!("{}Config", model.name, span = model.name.span())
}

fn config(model: &Model, program: &Program) -> TokenStream {
    let (graph, visibility, name) = (&model.graph, &model.visibility, &model.name.to_string());
    let config = config_name(model);
    let source = internal("source");
    let fields = program.values.iter().map(|v| {
        let (docs, name, ty) = (&v.docs, &v.name, &v.ty);
        quote!(#docs pub #name: #ty,)
    });
    let reads = program.values.iter().map(|v| {
        let (name, ty, read) = (&v.name, &v.ty, &v.read);
        quote!(let #name: #ty = #read;)
    });
    let requires = program.requires.iter().map(|(key, allowed)| quote!(#source.require(#key, &[#(#allowed),*])?;));
    let names = program.values.iter().map(|v| &v.name);
    let docs = format!("What [`{name}`] reads of a config.json.");
    let private = quote!(#graph::__private);
    quote! {
        #[doc = #docs]
        #[derive(::std::clone::Clone, ::std::fmt::Debug)]
        #visibility struct #config {
            #(#fields)*
        }

        #[allow(clippy::all, clippy::pedantic, non_snake_case)]
        impl #config {
            /// Reads the config; an error names the key.
            pub fn from_json(
                config: &#private::serde_json::Value,
            ) -> ::std::result::Result<Self, #graph::ModelError> {
                let #source = #private::Source::new(#name, config)?;
                let _ = &#source;
                #(#reads)*
                #(#requires)*
                ::std::result::Result::Ok(Self { #(#names),* })
            }
        }

        impl<'de> #private::serde::Deserialize<'de> for #config {
            fn deserialize<D: #private::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> ::std::result::Result<Self, D::Error> {
                let config = <#private::serde_json::Value as #private::serde::Deserialize>::deserialize(deserializer)?;
                Self::from_json(&config).map_err(<D::Error as #private::serde::de::Error>::custom)
            }
        }
    }
}

fn architecture(model: &Model, program: &Program) -> TokenStream {
    let (graph, visibility, name) = (&model.graph, &model.visibility, &model.name);
    let (attributes, config, text) = (&model.attributes, config_name(model), name.to_string());
    let architectures = model.architectures.iter().map(|a| &a.value);
    let context = program.context.clone().unwrap_or(quote!(::std::option::Option::None));
    let config_parameter = if program.context.is_some() { quote!(config) } else { quote!(_) };
    let docs = documentation(model);
    let (builder, output) = (internal("builder"), internal("output"));
    let body = graph_body(model, program);
    let unused = if program.mistaken { quote!(, unused) } else { TokenStream::new() };
    quote! {
        #attributes
        #docs
        #[derive(::std::clone::Clone, ::std::marker::Copy, ::std::fmt::Debug)]
        #visibility struct #name;

        #[allow(clippy::all, clippy::pedantic, non_snake_case #unused)]
        impl #name {
            /// What config.json calls these models, in `architectures`.
            pub const ARCHITECTURES: &'static [&'static str] = &[#(#architectures),*];

            /// The number of positions the model was made for, where its config says so.
            pub fn context(
                #config_parameter: &#config,
            ) -> ::std::result::Result<::std::option::Option<usize>, #graph::ModelError> {
                ::std::result::Result::Ok(#context)
            }

            /// The equations, with the sizes of this config. An error names the axis, the key or the tensor.
            pub fn graph(config: &#config) -> ::std::result::Result<#graph::Graph, #graph::ModelError> {
                let _ = config;
                let mut #builder = #graph::Builder::new(#text);
                #body
                ::std::result::Result::Ok(#builder.finish(#output)?)
            }
        }
    }
}

/// Signatures and formulas, for the documentation.
fn documentation(model: &Model) -> TokenStream {
    let mut sources = Vec::new();
    for item in &model.items {
        match item {
            Item::Function(function) => sources.push(&function.source),
            Item::Layer(layer) => sources.extend(layer.bodies.iter().map(|b| &b.source)),
            _ => {}
        }
    }
    sources.extend(model.main.as_ref().map(|m| &m.source));
    let mut text = String::from("\n# Equations\n");
    for source in sources {
        text += &format!("```text\n{}\n```\n", unindented(source));
    }
    quote!(#[doc = #text])
}

/// A function's source without the indentation that its lines share.
fn unindented(source: &str) -> String {
    let lines = source.lines().skip(1).filter(|l| !l.trim().is_empty());
    let shared = lines.map(|l| l.len() - l.trim_start().len()).min().unwrap_or(0);
    let lines = source.lines().enumerate().map(|(i, l)| if i == 0 { l } else { l.get(shared..).unwrap_or_default() });
    lines.collect::<Vec<_>>().join("\n")
}

fn graph_body(model: &Model, program: &Program) -> TokenStream {
    let (graph, builder, output) = (&model.graph, internal("builder"), internal("output"));
    let prologue = &program.prologue;
    let axes = program.axes.iter().map(|(name, size)| {
        let text = name.to_string();
        let at = at(name.span());
        match size {
            None => quote!(let #name = #builder.tokens(#text);),
            Some(size) => quote!(#at let #name = #builder.axis(#text, #size);),
        }
    });
    let hosts = program.hosts.iter().map(|host| {
        let Host { name, axes, bindings, rust } = host;
        let (text, at) = (name.to_string(), at(name.span()));
        quote! {
            #at
            let #name = {
                #(#bindings)*
                #graph::__private::HostValues::values({ #rust }, #text)?
            };
            let #name = #builder.constant(#text, &[#(#axes),*], #name);
        }
    });
    let weights = program.weights.iter().map(|w| weight(graph, w));
    let main = match &program.main {
        Some(main) => {
            let (name, axes) = (&main.parameter, &main.parameter_axes);
            let (text, at) = (name.to_string(), at(name.span()));
            let steps = steps(model, program, main);
            let result = local(&main.result);
            quote! {
                #at
                let #name = #builder.input(#text, &[#(#axes),*]);
                #steps
                let #output = #result;
            }
        }
        None => quote!(let #output = #builder.constant("output", &[], ::std::vec::Vec::new());),
    };
    quote! {
        #(#prologue)*
        #(#axes)*
        #(#hosts)*
        #(#weights)*
        #main
    }
}

/// Tells the builder where in the source the next declaration stands.
fn at(span: Span) -> TokenStream {
    let builder = internal("builder");
    let place = quote_spanned!(span=> ::std::file!(), ::std::line!(), ::std::column!());
    quote!(#builder.at(#place);)
}

fn local(local: &Local) -> Ident {
    match local {
        Local::Named(name) => name.clone(),
        Local::Numbered(n) => internal(&format!("tensor{n}")),
    }
}

fn scalar(id: usize) -> Ident {
    internal(&format!("e{id}"))
}

fn weight(graph: &TokenStream, weight: &Weight) -> TokenStream {
    let Weight { name, axes, places, otherwise } = weight;
    let (builder, found, text) = (internal("builder"), internal("places"), name.to_string());
    let files: Vec<TokenStream> = places
        .iter()
        .map(|place| {
            let name = &place.name;
            let each = place.each;
            let rows = match &place.rows {
                Some(rows) => quote!(::std::option::Option::Some(#rows.clone())),
                None => quote!(::std::option::Option::None),
            };
            quote!(#graph::FileTensor { name: ::std::string::String::from(#name), rows: #rows, each: #each })
        })
        .collect();
    let at = at(name.span());
    if otherwise.is_none() && places.iter().all(|p| p.condition.is_none()) {
        return quote!(#at let #name = #builder.weight(#text, &[#(#axes),*], ::std::vec![#(#files),*]););
    }
    let pushes = places.iter().zip(&files).map(|(place, file)| match &place.condition {
        Some(condition) => quote!(if #condition { #found.push(#file); }),
        None => quote!(#found.push(#file);),
    });
    let value = quote!(#builder.weight(#text, &[#(#axes),*], #found));
    let value = match otherwise {
        Some(Otherwise::Weight(other)) => quote!(if #found.is_empty() { #other } else { #value }),
        Some(Otherwise::Number(number)) => quote! {
            if #found.is_empty() { #builder.uniform(#text, &[#(#axes),*], #number) } else { #value }
        },
        None => value,
    };
    quote! {
        #at
        let #name = {
            let mut #found = ::std::vec::Vec::new();
            #(#pushes)*
            #value
        };
    }
}

fn steps(model: &Model, program: &Program, body: &Body) -> TokenStream {
    let mut used = HashSet::new();
    find_used(&body.steps, &mut used);
    sequence(model, program, &body.steps, &used)
}

/// Statements, without the scalars that nothing is made of.
fn sequence(model: &Model, program: &Program, steps: &[Step], used: &HashSet<usize>) -> TokenStream {
    let mut tokens = TokenStream::new();
    for step in steps {
        if program.mistaken || !matches!(step, Step::Scalar(id, _) if !used.contains(id)) {
            tokens.extend(self::step(model, program, step, used));
        }
    }
    tokens
}

/// Adds the scalars that something is made of.
fn find_used(steps: &[Step], used: &mut HashSet<usize>) {
    for step in steps.iter().rev() {
        match step {
            Step::Scalar(id, op) if used.contains(id) => match op {
                Op::Load(_, selected) => used.extend(selected.iter().map(|s| s.1)),
                Op::Unary(_, x) | Op::Reduce(_, _, x) | Op::Mean(_, x) => {
                    used.insert(*x);
                }
                Op::Binary(_, a, b) | Op::Masked(a, b) => used.extend([*a, *b]),
                Op::Select(a, b, c) => used.extend([*a, *b, *c]),
                _ => {}
            },
            Step::Define { body, .. } | Step::Top { body, .. } => {
                used.insert(*body);
            }
            Step::Either { then, otherwise, .. } => {
                for branch in [then, otherwise] {
                    used.insert(branch.id);
                    find_used(&branch.steps, used);
                }
            }
            _ => {}
        }
    }
}

fn step(model: &Model, program: &Program, step: &Step, used: &HashSet<usize>) -> TokenStream {
    let builder = internal("builder");
    match step {
        Step::Scalar(id, op) => {
            let name = scalar(*id);
            let op = self::op(&model.graph, op);
            quote!(let #name = #builder.#op;)
        }
        Step::Either { id, condition, then, otherwise } => {
            let name = scalar(*id);
            let [then, otherwise] = [then, otherwise].map(|branch| {
                let (steps, value) = (sequence(model, program, &branch.steps, used), scalar(branch.id));
                quote!({ #steps #value })
            });
            quote!(let #name = if #condition #then else #otherwise;)
        }
        Step::Define { tensor, label, axes, body, at: span } => {
            let (tensor, body, at) = (local(tensor), scalar(*body), at(*span));
            let axes = optional(axes);
            quote!(#at let #tensor = #builder.define(#label, #axes, #body);)
        }
        Step::Top { values, indices, labels: [first, second], axes, body, over, rank, at: span } => {
            let (values, indices, body, at) = (local(values), local(indices), scalar(*body), at(*span));
            let axes = optional(axes);
            quote!(#at let (#values, #indices) = #builder.top((#first, #second), #axes, #body, #over, #rank);)
        }
        Step::Rename { name, tensor } => {
            let tensor = local(tensor);
            quote!(let #name = #tensor;)
        }
        Step::Positions { name, window } => {
            let (text, at) = (name.to_string(), at(name.span()));
            quote!(#at let #name = #builder.positions(#text, #window);)
        }
        Step::Append { name, rows, over } => {
            let at = at(name.span());
            quote!(#at let #name = #builder.append(#rows, #over);)
        }
        Step::At(span) => at(*span),
        Step::Mention(axis) => quote!(let _ = #axis;),
        Step::Layers { out, stack, initial } => layers(model, program, *stack, out, initial),
    }
}

/// The axes of a left side, if it has any.
fn optional(axes: &Option<Vec<Ident>>) -> TokenStream {
    match axes {
        Some(axes) => quote!(::std::option::Option::Some(&[#(#axes),*])),
        None => quote!(::std::option::Option::None),
    }
}

fn layers(model: &Model, program: &Program, stack: usize, out: &Local, initial: &Local) -> TokenStream {
    let (graph, builder) = (&model.graph, internal("builder"));
    let (bodies, order, body) = (internal("bodies"), internal("order"), internal("body"));
    let (which, carry) = (internal("which"), internal("carry"));
    let Stack { key, count, index, choice, values, bodies: each } = &program.stacks[stack];
    let (out, initial) = (local(out), local(initial));
    let blocks: Vec<TokenStream> = each
        .iter()
        .map(|body| {
            let weights = body.weights.iter().map(|w| weight(graph, w));
            let hosts = body.hosts.iter().map(|(name, axes, at)| {
                let (text, value, at) = (name.to_string(), layer_value(*at), self::at(name.span()));
                quote!(#at let #name = #builder.constant(#text, &[#(#axes),*], #value);)
            });
            let (parameter, axes) = (&body.parameter, &body.parameter_axes);
            let (steps, result) = (steps(model, program, body), local(&body.result));
            quote!({ let #parameter = #carry; #(let _ = #axes;)* #(#hosts)* #(#weights)* #steps #result })
        })
        .collect();
    let value = match &blocks[..] {
        [] => quote!(#carry),
        [only] => only.clone(),
        [first @ .., last] => {
            let numbers = 0..first.len();
            quote!(match #body { #(#numbers => #first,)* _ => #last })
        }
    };
    let names = (0..values.len()).map(layer_value);
    let names = quote!((#body, (#(#names,)*)));
    quote! {
        let (#bodies, #order) = #graph::__private::stack(#key, #count, |#index: usize| {
            let _ = #index;
            ::std::result::Result::<_, #graph::ModelError>::Ok((#choice, (#(#values,)*)))
        })?;
        let #out = #builder.layers(#initial, &#order, |#builder, #which, #carry| {
            #[allow(unused_variables)]
            let #names = ::std::clone::Clone::clone(&#bodies[#which]);
            #value
        });
    }
}

fn op(graph: &TokenStream, op: &Op) -> TokenStream {
    match op {
        Op::Float(x) => quote!(float(#x)),
        Op::Int(n) => quote!(int(#n)),
        Op::ConfigFloat(x) => quote!(float(::std::primitive::f64::from(#x))),
        Op::ConfigInt(n) => quote!(int(#n as i64)),
        Op::Coordinate(axis) => quote!(coordinate(#axis)),
        Op::Size(axis) => quote!(size(#axis)),
        Op::Load(tensor, selected) => {
            let tensor = local(tensor);
            if selected.is_empty() {
                return quote!(load(#tensor));
            }
            let selected = selected.iter().map(|(axis, index)| {
                let index = scalar(*index);
                quote!((#axis, #index))
            });
            quote!(load_at(#tensor, &[#(#selected),*]))
        }
        Op::Unary(name, x) => {
            let (name, x) = (format_ident!("{name}"), scalar(*x));
            quote!(unary(#graph::Unary::#name, #x))
        }
        Op::Binary(name, a, b) => {
            let (name, a, b) = (format_ident!("{name}"), scalar(*a), scalar(*b));
            quote!(binary(#graph::Binary::#name, #a, #b))
        }
        Op::Select(mask, then, otherwise) => {
            let (mask, then, otherwise) = (scalar(*mask), scalar(*then), scalar(*otherwise));
            quote!(select(#mask, #then, #otherwise))
        }
        Op::Masked(body, mask) => {
            let (body, mask) = (scalar(*body), scalar(*mask));
            quote!(masked(#body, #mask))
        }
        Op::Reduce(name, axes, body) => {
            let (name, body) = (format_ident!("{name}"), scalar(*body));
            quote!(reduce(#graph::Reduction::#name, &[#(#axes),*], #body))
        }
        Op::Mean(axes, body) => {
            let body = scalar(*body);
            quote!(mean(&[#(#axes),*], #body))
        }
    }
}
