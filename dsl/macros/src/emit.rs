//! A checked declaration, written down as Rust that reads the config and builds the graph.

use std::collections::HashSet;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};

use crate::ast::{Declaration, Head, Item};
use crate::program::*;

/// A variable that no name of the user's can mean.
pub(crate) fn internal(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// The Rust of a declaration.
pub(crate) fn emit(declaration: &Declaration, program: &Program) -> TokenStream {
    match &declaration.head {
        Head::Block { axes } => block(declaration, program, axes),
        Head::Model { architectures } => {
            let config = config(declaration, program);
            let architectures: Vec<&str> = architectures.iter().map(|a| a.value.as_str()).collect();
            let architecture = architecture(declaration, program, &architectures);
            quote!(#config #architecture)
        }
    }
}

fn config_name(declaration: &Declaration) -> Ident {
    format_ident!("{}Config", declaration.name, span = declaration.name.span())
}

fn config(declaration: &Declaration, program: &Program) -> TokenStream {
    let (graph, visibility, name) = (&declaration.graph, &declaration.visibility, &declaration.name.to_string());
    let config = config_name(declaration);
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

fn architecture(declaration: &Declaration, program: &Program, architectures: &[&str]) -> TokenStream {
    let (graph, visibility, name) = (&declaration.graph, &declaration.visibility, &declaration.name);
    let (attributes, config, text) = (&declaration.attributes, config_name(declaration), name.to_string());
    let context = program.context.clone().unwrap_or(quote!(::std::option::Option::None));
    let config_parameter = if program.context.is_some() { quote!(config) } else { quote!(_) };
    let docs = documentation(declaration);
    let (builder, output) = (internal("builder"), internal("output"));
    let body = graph_body(declaration, program);
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
fn documentation(declaration: &Declaration) -> TokenStream {
    let mut sources = Vec::new();
    for item in &declaration.items {
        match item {
            Item::Function(function) => sources.push(&function.source),
            Item::Layer(layer) => sources.extend(layer.bodies.iter().map(|b| &b.source)),
            _ => {}
        }
    }
    sources.extend(declaration.main.as_ref().map(|m| &m.source));
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

fn graph_body(declaration: &Declaration, program: &Program) -> TokenStream {
    let (builder, output) = (internal("builder"), internal("output"));
    let before = before(declaration, program);
    let main = match &program.main {
        Some(main) => {
            let (name, axes) = (&main.parameter, &main.parameter_axes);
            let (text, at) = (name.to_string(), at(name.span()));
            let steps = steps(declaration, program, &main.steps, None);
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
    quote!(#before #main)
}

/// What stands before the equations: sizes, axes, constants and weights.
fn before(declaration: &Declaration, program: &Program) -> TokenStream {
    let (graph, builder) = (&declaration.graph, internal("builder"));
    let prologue = &program.prologue;
    let given = declaration.given_axes();
    let own = program.axes.iter().filter(|(name, size)| match size {
        Some(_) => !given.contains(name),
        None => !declaration.is_block(),
    });
    let axes = own.map(|(name, size)| {
        let text = name.to_string();
        let at = at(name.span());
        match size {
            None => quote!(let #name = #builder.tokens(#text);),
            Some(size) => quote!(#at let #name = #builder.axis(#text, #size);),
        }
    });
    let hosts = program.hosts.iter().map(|host| {
        let Host { name, axes, bindings, rust } = host;
        let (text, label, at) = (name.to_string(), label(declaration, &name.to_string()), at(name.span()));
        quote! {
            #at
            let #name = {
                #(#bindings)*
                #graph::__private::HostValues::values({ #rust }, #text)?
            };
            let #name = #builder.constant(#label, &[#(#axes),*], #name);
        }
    });
    let weights = program.weights.iter().map(|w| weight(declaration, w));
    quote! {
        #(#prologue)*
        #(#axes)*
        #(#hosts)*
        #(#weights)*
    }
}

/// A block: a type with a field for each value of its config, whose `build` adds its equations to a graph.
fn block(declaration: &Declaration, program: &Program, axes: &[Ident]) -> TokenStream {
    let Declaration { graph, attributes, visibility, name, .. } = declaration;
    let docs = documentation(declaration);
    let fields = program.values.iter().map(|v| {
        let (docs, name, ty) = (&v.docs, &v.name, &v.ty);
        quote!(#docs pub #name: #ty,)
    });
    let (builder, place, t) = (internal("builder"), internal("place"), internal("tokens"));
    let config = Ident::new("config", Span::call_site());
    let before = before(declaration, program);
    let (parameters, signature, body) = match &program.block {
        Some(block) => {
            let steps = steps(declaration, program, &block.steps, Some(block.result));
            let result = scalar(block.result);
            (&block.parameters[..], block.signature.as_ref(), quote!(#steps ::std::result::Result::Ok(#result)))
        }
        None => (&[][..], None, quote!(::std::result::Result::Ok(#builder.float(0.0)))),
    };
    let none = Signature::default();
    let signature = self::signature(graph, signature.filter(|_| !program.mistaken).unwrap_or(&none));
    let sizes: Vec<Ident> = axes.iter().map(|axis| internal(&format!("size_of_{axis}"))).collect();
    let tokens = program.axes.iter().filter(|axis| axis.1.is_none()).map(|axis| &axis.0);
    let unused = if program.mistaken { quote!(, unused) } else { TokenStream::new() };
    quote! {
        #attributes
        #docs
        #[derive(::std::clone::Clone, ::std::marker::Copy, ::std::fmt::Debug, ::std::default::Default)]
        #visibility struct #name {
            #(#fields)*
        }

        #[allow(clippy::all, clippy::pedantic, non_snake_case #unused)]
        impl #name {
            /// What the block takes and yields.
            pub const SIGNATURE: #graph::Signature = #signature;

            /// Adds the equations to a graph, and returns what the function yields. A mistake is one of the graph.
            pub fn build(&self, builder: &mut #graph::Builder, place: &#graph::Use<'_>) -> #graph::ExprId {
                let (#config, #place) = (self, place);
                let _ = #config;
                builder.block(|#builder| {
                    let (#t, [#((#axes, #sizes)),*], [#(#parameters),*]) =
                        #place.given(#builder, &Self::SIGNATURE)?;
                    #(let _ = (#axes, #sizes);)*
                    #(let #tokens = #t; let _ = #tokens;)*
                    #before
                    #body
                })
            }
        }
    }
}

fn signature(graph: &TokenStream, signature: &Signature) -> TokenStream {
    let Signature { written, axes, parameters, result } = signature;
    let over = |indices: &Vec<Index>| {
        let indices = indices.iter().map(|index| match index {
            Index::Given(at) => quote!(#graph::__private::Index::Given(#at)),
            Index::Named(name) => quote!(#graph::__private::Index::Named(#name)),
        });
        quote!(&[#(#indices),*])
    };
    let (parameters, result) = (parameters.iter().map(over), over(result));
    quote!(#graph::Signature::new(#written, &[#(#axes),*], &[#(#parameters),*], #result))
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

/// The name of a tensor: in a block, behind that of its use.
fn label(declaration: &Declaration, name: &str) -> TokenStream {
    if !declaration.is_block() {
        return quote!(#name);
    }
    let place = internal("place");
    quote!(&#place.named(#name))
}

fn weight(declaration: &Declaration, weight: &Weight) -> TokenStream {
    let Weight { name, axes, places, otherwise } = weight;
    let (graph, text) = (&declaration.graph, label(declaration, &name.to_string()));
    let (builder, found, place) = (internal("builder"), internal("places"), internal("place"));
    let files = places.iter().map(|at| {
        let FileTensor { name, rows, each, .. } = at;
        let rows = match rows {
            Some(rows) => quote!(::std::option::Option::Some(#rows.clone())),
            None => quote!(::std::option::Option::None),
        };
        match declaration.is_block() {
            true => quote!(#place.files(#name, #rows, #each)),
            false => {
                let name = quote!(::std::string::String::from(#name));
                quote!(::std::vec![#graph::FileTensor { name: #name, rows: #rows, each: #each }])
            }
        }
    });
    let files: Vec<TokenStream> = files.collect();
    let at = at(name.span());
    if let (None, [FileTensor { condition: None, .. }], [files]) = (otherwise, &places[..], &files[..]) {
        return quote!(#at let #name = #builder.weight(#text, &[#(#axes),*], #files););
    }
    let pushes = places.iter().zip(&files).map(|(place, files)| match &place.condition {
        Some(condition) => quote!(if #condition { #found.extend(#files); }),
        None => quote!(#found.extend(#files);),
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

/// Statements, and the scalar that they are about, if they are about one.
fn steps(declaration: &Declaration, program: &Program, steps: &[Step], result: Option<usize>) -> TokenStream {
    let mut used = HashSet::from_iter(result);
    find_used(steps, &mut used);
    sequence(declaration, program, steps, &used)
}

/// Statements, without the scalars that nothing is made of.
fn sequence(declaration: &Declaration, program: &Program, steps: &[Step], used: &HashSet<usize>) -> TokenStream {
    let mut tokens = TokenStream::new();
    for step in steps {
        if program.mistaken || !matches!(step, Step::Scalar(id, _) if !used.contains(id)) {
            tokens.extend(self::step(declaration, program, step, used));
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
            Step::Block { arguments, .. } => used.extend(arguments),
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

fn step(declaration: &Declaration, program: &Program, step: &Step, used: &HashSet<usize>) -> TokenStream {
    let builder = internal("builder");
    match step {
        Step::Scalar(id, op) => {
            let name = scalar(*id);
            let op = self::op(&declaration.graph, op);
            quote!(let #name = #builder.#op;)
        }
        Step::Either { id, condition, then, otherwise } => {
            let name = scalar(*id);
            let [then, otherwise] = [then, otherwise].map(|branch| {
                let (steps, value) = (sequence(declaration, program, &branch.steps, used), scalar(branch.id));
                quote!({ #steps #value })
            });
            quote!(let #name = if #condition #then else #otherwise;)
        }
        Step::Define { tensor, label, axes, body, at: span } => {
            let (tensor, body, at) = (local(tensor), scalar(*body), at(*span));
            let (axes, label) = (optional(axes), self::label(declaration, label));
            quote!(#at let #tensor = #builder.define(#label, #axes, #body);)
        }
        Step::Top { values, indices, labels: [first, second], axes, body, over, rank, at: span } => {
            let (values, indices, body, at) = (local(values), local(indices), scalar(*body), at(*span));
            let axes = optional(axes);
            let [first, second] = [first, second].map(|name| label(declaration, name));
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
        Step::Block { id, of, name, arguments, signature } => {
            let result = scalar(*id);
            let call = call(declaration, &program.uses[*of], name, arguments, signature.as_ref());
            quote!(let #result = #call;)
        }
        Step::Argument { name, id: None } => {
            let (label, at) = (label(declaration, &name.to_string()), at(name.span()));
            quote!(#at let #name = #builder.tensor(#label, #name);)
        }
        Step::Argument { name, id: Some(id) } => {
            let scalar = scalar(*id);
            quote!(let #scalar = #name;)
        }
        Step::At(span) => at(*span),
        Step::Mention(axis) => quote!(let _ = #axis;),
        Step::Layers { out, stack, initial } => layers(declaration, program, *stack, out, initial),
    }
}

/// The call of a block, where its signature is as the block declares it.
fn call(
    declaration: &Declaration,
    of: &Use,
    called: &Ident,
    arguments: &[usize],
    signature: Option<&Signature>,
) -> TokenStream {
    let (graph, builder) = (&declaration.graph, internal("builder"));
    let Use { name, axes, path, values, prefixes } = of;
    // The path stands once, so that a wrong one is one error. With the place of the path, the compiler takes the literal for one
    // of the user's, and tells which field is meant.
    let at = path.segments.last().map_or(called.span(), |last| last.ident.span());
    let [block, checked] = [at, called.span()].map(|span| Ident::new("__Block", span));
    let check = signature.map(|signature| {
        let used = self::signature(graph, signature);
        let check = quote_spanned!(called.span()=> #checked::SIGNATURE.hold(&#used));
        quote!(const _: () = #check;)
    });
    let (names, values): (Vec<_>, Vec<_>) = values.iter().map(|(name, value)| (name, value)).unzip();
    let arguments = arguments.iter().map(|argument| scalar(*argument));
    let label = label(declaration, &name.to_string());
    let prefixes = match declaration.is_block() {
        true => {
            let place = internal("place");
            quote!(#place.prefixed(&[#(#prefixes),*]))
        }
        false => quote!([#(::std::string::String::from(#prefixes)),*]),
    };
    let value = quote_spanned!(at=> #block { #(#names: #values,)* ..::std::default::Default::default() });
    quote! {
        {
            type #block = #path;
            #check
            let #name = #value;
            #called.build(#builder, &#graph::Use {
                name: #label,
                prefixes: &#prefixes,
                axes: &[#(#axes),*],
                arguments: &[#(#arguments),*],
            })
        }
    }
}

/// The axes of a left side, if it has any.
fn optional(axes: &Option<Vec<Ident>>) -> TokenStream {
    match axes {
        Some(axes) => quote!(::std::option::Option::Some(&[#(#axes),*])),
        None => quote!(::std::option::Option::None),
    }
}

fn layers(declaration: &Declaration, program: &Program, stack: usize, out: &Local, initial: &Local) -> TokenStream {
    let (graph, builder) = (&declaration.graph, internal("builder"));
    let (bodies, order, body) = (internal("bodies"), internal("order"), internal("body"));
    let (which, carry) = (internal("which"), internal("carry"));
    let Stack { key, count, index, choice, values, bodies: each } = &program.stacks[stack];
    let (out, initial) = (local(out), local(initial));
    let blocks: Vec<TokenStream> = each
        .iter()
        .map(|body| {
            let weights = body.weights.iter().map(|w| weight(declaration, w));
            let hosts = body.hosts.iter().map(|(name, axes, at)| {
                let (text, value, at) = (name.to_string(), layer_value(*at), self::at(name.span()));
                quote!(#at let #name = #builder.constant(#text, &[#(#axes),*], #value);)
            });
            let (parameter, axes) = (&body.parameter, &body.parameter_axes);
            let (steps, result) = (steps(declaration, program, &body.steps, None), local(&body.result));
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
