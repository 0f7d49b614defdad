//! The items of a model, and the statements of its `fn`s.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::quote;

use super::call::is_built_in;
use super::config::{At, Kind};
use super::expr::same;
use super::scope::{Entry, Scalar, Tensor, Type};
use super::*;
use crate::ast::{Choice, Expr, Function, Item, Layer, Statement};
use crate::emit::internal;

/// Checks a declaration. What could be understood is in the program, the rest was reported.
pub(crate) fn check(declaration: &ast::Declaration, prelude: Vec<Function>, diagnostics: &Diagnostics) -> Program {
    let mut checker = Checker {
        declaration,
        diagnostics,
        functions: prelude,
        axes: Vec::new(),
        values: Vec::new(),
        tensors: Vec::new(),
        uses: Vec::new(),
        stacks: Vec::new(),
        layer_values: Vec::new(),
        layer_hosts: HashMap::new(),
        stack_names: HashMap::new(),
        globals: HashMap::new(),
        program: Program::default(),
    };
    checker.declaration();
    checker.program
}

impl<'m> Checker<'m> {
    fn declaration(&mut self) {
        let declaration = self.declaration;
        let tokens = self.new_axis(&Ident::new(TOKENS, declaration.name.span()), AxisKind::Tokens);
        self.globals.insert(TOKENS.to_owned(), tokens);
        self.config();
        let base = Cx::new(Place::Model);
        for item in &declaration.items {
            match item {
                Item::Axis { name, extent } => self.declare_axis(&base, name, extent),
                Item::Alias { name, of } => {
                    let fixed = self.axis(&base, of).map(|axis| self.axes[axis].kind.clone());
                    if matches!(fixed, Some(AxisKind::Tokens)) {
                        self.diagnostics.error(of.span(), format!("`{of}` grows with the sequence: no alias of it"));
                    }
                    let kind = match fixed {
                        Some(AxisKind::Fixed(size)) => AxisKind::Fixed(size),
                        _ => AxisKind::Fixed(quote!(1usize)),
                    };
                    let alias = self.new_axis(name, kind);
                    self.declare(name, alias);
                }
                Item::Host(host) => self.declare_host(&base, host),
                Item::Function(function) => self.declare_function(function),
                Item::Weights(section) => {
                    self.weights(section, None);
                    self.uses(section, None);
                }
                Item::Layer(_) => {}
            }
        }
        self.check_functions();
        for item in &declaration.items {
            if let Item::Layer(layer) = item {
                self.layer(layer);
            }
        }
        match &declaration.main {
            Some(main) if declaration.is_block() => self.program.block = self.block(main),
            Some(main) => {
                let cx = Cx::new(Place::Model);
                self.program.main = self.body(cx, main, Some(Type::Int)).map(|(body, _)| body);
            }
            None if self.diagnostics.count() == 0 => {
                let (what, help) = match declaration.is_block() {
                    true => ("block", "`fn (x[t, d]) -> [t, d] { … }` says what is computed where it is used"),
                    false => {
                        ("model", "`fn (tokens[t]) -> [t, v] { … }` says what is computed for the tokens of a step")
                    }
                };
                self.diagnostics.help(declaration.name.span(), format!("the {what} has no `fn` of its own"), help);
            }
            None => {}
        }
        if let Some((_, context)) = &declaration.context {
            let of = format!("context {}", self.describe(context));
            self.program.context = Some(self.config_expr(&base, context, Some(Kind::Optional), At::Alone, &of));
        }
        if self.diagnostics.count() == 0 {
            self.report_unused();
        }
        self.program.mistaken = self.diagnostics.count() > 0;
        self.gather();
    }

    fn declare_axis(&mut self, cx: &Cx, name: &Ident, extent: &Expr) {
        let of = format!("axis `{name}` = {}", self.describe(extent));
        let tokens = self.config_expr(cx, extent, Some(Kind::Number), At::Building, &of);
        let graph = &self.declaration.graph;
        let size = internal(&format!("size_of_{name}"));
        self.program.prologue.push(quote!(let #size: usize = #graph::__private::extent(#of, #tokens)?;));
        let axis = self.new_axis(name, AxisKind::Fixed(quote!(#size)));
        self.declare(name, axis);
    }

    fn declare_host(&mut self, cx: &Cx, host: &ast::Host) {
        let (at, host) = self.host(cx, host);
        if self.declare(&host.name, Entry::Declared(at, false)) {
            self.program.hosts.push(host);
        }
    }

    /// A constant of a layer, which may be another in each.
    fn declare_layer_host(&mut self, scope: &mut HashMap<String, Entry>, host: &ast::Host) {
        let mut cx = Cx::new(Place::Model);
        cx.layer = scope.clone();
        let (at, Host { name, axes, bindings, rust }) = self.host(&cx, host);
        let text = name.to_string();
        if self.may_declare(name.span(), &text, self.lookup(&cx, &text)) {
            scope.insert(text.clone(), Entry::Declared(at, true));
        }
        let graph = &self.declaration.graph;
        let value = quote!({ #(#bindings)* #graph::__private::HostValues::values({ #rust }, #text)? });
        self.layer_hosts.insert(at, (axes, self.layer_values.len()));
        self.layer_values.push(value);
    }

    /// A constant, and its place among the tensors.
    fn host(&mut self, cx: &Cx, host: &ast::Host) -> (usize, Host) {
        let ast::Host { name, axes: idents, rust } = host;
        let axes = self.fixed_axes(cx, idents, name);
        let mut bindings = Vec::new();
        let mut seen = Vec::new();
        self.host_names(rust.clone(), &mut seen, &mut bindings);
        let known = if axes.is_some() { idents.clone() } else { Vec::new() };
        self.tensors.push(Declared {
            name: name.clone(),
            axes,
            used: false.into(),
            what: "a constant",
            weight: None,
            stand_in: None,
        });
        (self.tensors.len() - 1, Host { name: name.clone(), axes: known, bindings, rust: rust.clone() })
    }

    /// Binds the config's values and the sizes of axes that occur in an expression of Rust.
    fn host_names(&self, rust: TokenStream, seen: &mut Vec<String>, bindings: &mut Vec<TokenStream>) {
        let mut after_dot = false;
        for token in rust {
            match token {
                TokenTree::Group(group) => self.host_names(group.stream(), seen, bindings),
                TokenTree::Ident(ident) if !after_dot && !seen.contains(&ident.to_string()) => {
                    let binding = match self.globals.get(&ident.to_string()) {
                        Some(Entry::Axis(axis)) => match &self.axes[*axis].kind {
                            AxisKind::Fixed(size) => {
                                if let Some(value) = self.values.iter().find(|v| v.name == ident) {
                                    value.used.set(true);
                                }
                                self.axes[*axis].counted.set(true);
                                quote!(let #ident = #size;)
                            }
                            _ => continue,
                        },
                        Some(Entry::Value(value)) => {
                            let value = &self.values[*value];
                            value.used.set(true);
                            match value.ty {
                                ast::ConfigType::Rust(_) => quote!(let #ident = &config.#ident;),
                                _ => quote!(let #ident = config.#ident;),
                            }
                        }
                        _ => continue,
                    };
                    seen.push(ident.to_string());
                    bindings.push(binding);
                }
                TokenTree::Punct(p) => {
                    // Two of them are a range.
                    after_dot = p.as_char() == '.' && !after_dot;
                    continue;
                }
                _ => {}
            }
            after_dot = false;
        }
    }

    fn declare_function(&mut self, function: &Function) {
        let Some(name) = &function.name else { return };
        let message = match self.functions.iter().find(|f| f.name.as_ref() == Some(name)) {
            Some(earlier) if earlier.prelude => format!("`{name}` is a function of the prelude already"),
            Some(_) => format!("two functions are called `{name}`"),
            None if is_built_in(&name.to_string()) => format!("`{name}` is a function of the language already"),
            None => return self.functions.push(function.clone()),
        };
        self.diagnostics.error(name.span(), message);
        self.diagnostics.mistake(name);
    }

    /// Checks the model's functions by themselves, for arguments of which nothing is known.
    fn check_functions(&mut self) {
        for at in 0..self.functions.len() {
            let function = self.functions[at].clone();
            if function.prelude {
                continue;
            }
            let declared = self.axes.len();
            let mut cx = Cx::new(Place::Function);
            let mut given = Vec::new();
            let axes = function.axes.iter();
            for axis in axes.chain(function.parameters.iter().flat_map(|p| p.axes.iter().flatten())) {
                if cx.locals.iter().all(|(n, _)| axis != n) {
                    let entry = self.new_axis(axis, AxisKind::Parameter);
                    given.push(self.axes.len() - 1);
                    cx.locals.push((axis.to_string(), entry));
                }
            }
            for parameter in &function.parameters {
                let tensor = cx.numbered();
                let tensor = Tensor::new(tensor, None, Type::Unknown);
                let value = cx.load(tensor);
                cx.locals.push((parameter.name.to_string(), Entry::Bound(Rc::new(RefCell::new(value)))));
            }
            cx.calls.push(at);
            self.function_body(&mut cx, &function, &given);
            self.axes.truncate(declared);
        }
    }

    // ---- layers

    fn layer(&mut self, layer: &'m Layer) {
        let mut scope = HashMap::from([(layer.index.to_string(), Entry::Layer)]);
        let earlier = self.globals.get(&layer.index.to_string()).cloned();
        self.may_declare(layer.index.span(), &layer.index.to_string(), earlier);
        let count = self.layer_count(layer);
        let of = format!("the layers' bodies by `{}`", layer.index);
        let mut cx = Cx::new(Place::Model);
        cx.layer = scope.clone();
        let choice = self.choice(&cx, layer, &of);
        self.layer_values.clear();
        self.layer_hosts.clear();
        for host in &layer.hosts {
            self.declare_layer_host(&mut scope, host);
        }
        for section in &layer.weights {
            self.weights(section, Some((&layer.index, &mut scope)));
            self.uses(section, Some((&layer.index, &mut scope)));
        }
        let mut bodies = Vec::new();
        let mut carried = None;
        for function in &layer.bodies {
            let mut cx = Cx::new(Place::Layer);
            cx.layer = scope.clone();
            let Some((body, axes)) = self.body(cx, function, None) else { continue };
            if carried.is_none() {
                carried = axes;
            } else if carried != axes {
                self.diagnostics.error(function.span, "the bodies of a layer have the same parameter and result");
            }
            bodies.push(body);
        }
        let name = layer.count.to_string();
        if self.stack_names.contains_key(&name) {
            self.diagnostics.error(layer.count.span(), format!("two stacks of layers are counted by `{name}`"));
            self.diagnostics.mistake(name);
            return;
        }
        self.stack_names.insert(name, self.stacks.len());
        self.stacks.push(StackInfo { axes: carried, calls: 0.into() });
        let (key, count) = count.unwrap_or((String::new(), quote!(1usize)));
        let index = layer.index.clone();
        let values = std::mem::take(&mut self.layer_values);
        self.program.stacks.push(Stack { key, count, index, choice, values, bodies });
    }

    /// The config's key of the number of layers, and the number.
    fn layer_count(&mut self, layer: &Layer) -> Option<(String, TokenStream)> {
        let name = &layer.count;
        match self.globals.get(&name.to_string()) {
            Some(Entry::Value(at)) if matches!(self.values[*at].ty, ast::ConfigType::Count) => {
                self.values[*at].used.set(true);
                Some((self.values[*at].key.clone(), quote!(config.#name)))
            }
            _ if self.diagnostics.is_mistaken(&name.to_string()) => None,
            _ => {
                let help = format!("declare it: `config {{ {name}: count = \"num_hidden_layers\"; }}`");
                self.diagnostics.help(name.span(), format!("`{name}` is no count of the config"), help);
                None
            }
        }
    }

    /// The position of a layer's body, as Rust over the number of the layer.
    fn choice(&mut self, cx: &Cx, layer: &Layer, of: &str) -> TokenStream {
        match (&layer.choice, &layer.bodies[..]) {
            (None, [_]) => quote!(0usize),
            (None, []) => {
                self.diagnostics.error(layer.index.span(), "the layer has no `fn`");
                quote!(0usize)
            }
            (None, [_, second, ..]) => {
                let help = format!("say which layer has which, as in `match {} % 2 {{ 0 => a, _ => b }}`", layer.index);
                self.diagnostics.help(second.span, "the layer has two bodies", help);
                quote!(0usize)
            }
            (Some((_, None)), _) => quote!(0usize),
            (Some((_, Some(choice))), _) => {
                let mut used = vec![false; layer.bodies.len()];
                let mistakes = self.diagnostics.count();
                let tokens = self.choose(cx, layer, choice, of, &mut used);
                if self.diagnostics.count() > mistakes {
                    return tokens;
                }
                for (body, used) in layer.bodies.iter().zip(used) {
                    if !used {
                        let name = body.name.as_ref().map_or("without a name".to_owned(), |n| format!("`{n}`"));
                        self.diagnostics.error(body.span, format!("no layer has the body {name}"));
                    }
                }
                tokens
            }
        }
    }

    fn choose(&mut self, cx: &Cx, layer: &Layer, choice: &Choice, of: &str, used: &mut [bool]) -> TokenStream {
        match choice {
            Choice::Body(name) => {
                let Some(at) = layer.bodies.iter().position(|b| b.name.as_ref() == Some(name)) else {
                    let known: Vec<String> =
                        layer.bodies.iter().filter_map(|b| b.name.as_ref()).map(ToString::to_string).collect();
                    let message = format!("the layer has no body `{name}`");
                    let known = known.iter().map(String::as_str);
                    self.diagnostics.unknown(name.span(), message, &name.to_string(), known);
                    return quote!(0usize);
                };
                used[at] = true;
                quote!(#at)
            }
            Choice::If { condition, then, otherwise } => {
                let condition = self.config_expr(cx, condition, Some(Kind::Flag), At::Building, of);
                let then = self.choose(cx, layer, then, of, used);
                let otherwise = self.choose(cx, layer, otherwise, of, used);
                quote!(if #condition { #then } else { #otherwise })
            }
            Choice::Match { subject, arms, otherwise } => {
                let subject = self.config_expr(cx, subject, Some(Kind::Number), At::Building, of);
                let mut tokens = TokenStream::new();
                for (patterns, choice) in arms {
                    let choice = self.choose(cx, layer, choice, of, used);
                    tokens.extend(quote!(#(#patterns)|* => #choice,));
                }
                let otherwise = self.choose(cx, layer, otherwise, of, used);
                quote!(match #subject { #tokens _ => #otherwise })
            }
        }
    }

    // ---- bodies

    /// Checks the `fn` of the model or of a layer; its parameter's axes are returned with it.
    fn body(&mut self, mut cx: Cx, function: &Function, ty: Option<Type>) -> Option<(Body, scope::Axes)> {
        let [parameter] = &function.parameters[..] else {
            self.diagnostics.error(function.span, "this `fn` has one parameter, as in `fn (x[t, d]) -> [t, d]`");
            return None;
        };
        let Some(idents) = &parameter.axes else {
            let message = format!("`{0}` is given with its axes, as in `{0}[t, d]`", parameter.name);
            self.diagnostics.error(parameter.name.span(), message);
            return None;
        };
        let axes = self.axis_list(&cx, idents);
        let main = ty.is_some();
        if let Some(axes) = &axes {
            let tokens = axes.contains(&0);
            if parameter.open || !tokens || (main && axes.len() != 1) {
                let wanted = if main { "`fn (tokens[t])`: it gets the ids of a step's tokens" } else { "the axis `t`" };
                self.diagnostics.error(parameter.name.span(), format!("this `fn` wants {wanted}"));
            }
        }
        let name = parameter.name.to_string();
        if !self.may_declare(parameter.name.span(), &name, self.lookup(&cx, &name)) {
            return None;
        }
        let ty = ty.unwrap_or(Type::Float);
        let local = Local::Named(parameter.name.clone());
        cx.locals.push((name, Entry::Tensor(Tensor::new(local, axes.clone(), ty))));
        self.statements(&mut cx, function);
        let label = if main { "output".to_owned() } else { format!("{}.out", parameter.name) };
        cx.label = label.clone();
        let result = function.result.as_ref()?;
        cx.steps.push(Step::At(result.span));
        let value = self.expr(&mut cx, result);
        let order = self.result_axes(&cx, function, &value, result.span);
        self.want_number(result.span, "the result of a `fn`", &value);
        if let (false, Some(want), Some(axes)) = (main, &order, &axes)
            && want != axes
        {
            let message =
                format!("a layer yields what it gets, {}, but `->` says {}", self.names(axes), self.names(want));
            self.diagnostics.error(function.span, message);
        }
        let direct = value.tensor.as_ref().filter(|t| t.equation && t.axes == order && order.is_some());
        let result = match direct {
            Some(tensor) => tensor.local.clone(),
            None => {
                let tensor = cx.numbered();
                let axes = function.result_axes.clone().filter(|_| order.is_some());
                let (at, body) = (result.span, value.id);
                cx.steps.push(Step::Define { tensor: tensor.clone(), label, axes, body, at });
                tensor
            }
        };
        let layered = self.wanted(cx.weights.iter().copied());
        let layered = layered.into_iter().filter(|&w| !self.is_global(w));
        let weights = layered.filter_map(|w| self.tensors[w].weight.clone()).collect();
        let hosts = cx.weights.iter().filter_map(|at| {
            let (axes, value) = self.layer_hosts.get(at)?;
            Some((self.tensors[*at].name.clone(), axes.clone(), *value))
        });
        let hosts = hosts.collect();
        let body = Body {
            parameter: parameter.name.clone(),
            parameter_axes: if axes.is_some() { idents.clone() } else { Vec::new() },
            weights,
            hosts,
            steps: cx.steps,
            result,
        };
        Some((body, axes))
    }

    fn is_global(&self, tensor: usize) -> bool {
        self.globals.values().any(|e| matches!(e, Entry::Declared(at, _) if *at == tensor))
    }

    /// Checks all that a `fn` computes before its result.
    pub(super) fn statements(&mut self, cx: &mut Cx, function: &Function) {
        cx.later = function.statements.iter().flat_map(Statement::names).rev().collect();
        for statement in &function.statements {
            self.statement(cx, statement);
        }
    }

    /// Checks what a `fn` of the model, a layer or a block says that it yields; the axes in this order.
    pub(super) fn result_axes(&self, cx: &Cx, function: &Function, value: &Scalar, at: Span) -> Axes {
        let wanted = function.result_axes.as_deref();
        if wanted.is_none() {
            let message = "this `fn` says what it yields, as in `-> [t, d]`";
            self.diagnostics.error(function.span, message);
        }
        let order = wanted.and_then(|idents| self.axis_list(cx, idents));
        if let (Some(want), Some(has)) = (&order, &value.axes)
            && !same(want, has)
        {
            let message = format!("the `fn` yields {}, but its last line has {}", self.names(want), self.names(has));
            self.diagnostics.error(at, message);
        }
        order
    }

    fn statement(&mut self, cx: &mut Cx, statement: &Statement) {
        match statement {
            Statement::Let { name, axes, value } => {
                cx.label = name.to_string();
                cx.steps.push(Step::At(name.span()));
                let scalar = self.expr(cx, value);
                cx.later.pop();
                let declared = axes.as_ref().map(|idents| self.check_sides(cx, name, idents, &scalar.axes));
                let text = name.to_string();
                if !self.may_declare(name.span(), &text, self.lookup(cx, &text)) {
                    return;
                }
                let local = Local::Named(name.clone());
                let tensor = match (&scalar.tensor, &declared) {
                    (Some(tensor), None) => {
                        cx.steps.push(Step::Rename { name: name.clone(), tensor: tensor.local.clone() });
                        Tensor { local, ..tensor.clone() }
                    }
                    _ => {
                        let understood = matches!((&declared, &scalar.axes), (None, _) | (Some(Some(_)), Some(_)));
                        let (tensor, label, body, at) = (local.clone(), text.clone(), scalar.id, name.span());
                        let axes = axes.clone().filter(|_| understood);
                        cx.steps.push(Step::Define { tensor, label, axes, body, at });
                        let equation = declared.is_some();
                        let (axes, masked) = (declared.unwrap_or(scalar.axes), cx.masked(scalar.id));
                        Tensor { local, axes, equation, masked, ty: scalar.ty }
                    }
                };
                cx.locals.push((text, Entry::Tensor(tensor)));
            }
            Statement::Top { values, indices, axes, over, rank, value } => {
                cx.label = values.to_string();
                cx.steps.push(Step::At(values.span()));
                let results = self.top(cx, [values, indices], axes.as_deref(), over, rank, value);
                cx.later.pop();
                cx.later.pop();
                for (name, tensor) in [values, indices].into_iter().zip(results) {
                    let text = name.to_string();
                    if self.may_declare(name.span(), &text, self.lookup(cx, &text)) {
                        cx.locals.push((text, Entry::Tensor(tensor)));
                    }
                }
            }
            Statement::Cache { span, names, over, within } => self.cache(cx, *span, names, over, within.as_ref()),
        }
    }

    fn cache(&mut self, cx: &mut Cx, span: Span, names: &[Ident], over: &Ident, within: Option<&Expr>) {
        for _ in names {
            cx.later.pop();
        }
        if !matches!(cx.kind, Place::Layer | Place::Block) {
            self.diagnostics.error(span, "`cache` stands in the `fn` of a layer or a block, not in that of the model");
            return;
        }
        let text = over.to_string();
        if !self.may_declare(over.span(), &text, self.lookup(cx, &text)) {
            return;
        }
        if self.lookup(cx, &text).is_some() {
            self.diagnostics.error(over.span(), format!("`{text}` is a tensor already"));
            return;
        }
        let of = format!("the window of `{over}`");
        let window = match within {
            Some(within) => self.decided(cx, within, Some(Kind::Optional), &of),
            None => quote!(::std::option::Option::None),
        };
        let entry = self.new_axis(over, AxisKind::Positions { windowed: within.is_some() });
        let positions = self.axes.len() - 1;
        cx.steps.push(Step::Positions { name: over.clone(), window });
        let mut cached = Vec::new();
        for name in names {
            let tensor = match self.lookup(cx, &name.to_string()) {
                _ if self.diagnostics.is_mistaken(&name.to_string()) => continue,
                Some(Entry::Tensor(tensor)) => tensor,
                Some(_) => {
                    self.diagnostics
                        .error(name.span(), format!("`{name}` is not computed here: only a `let` can be cached"));
                    continue;
                }
                None => {
                    self.unknown_name(cx, name);
                    continue;
                }
            };
            let axes = match &tensor.axes {
                Some(axes) if axes.contains(&0) && !axes.iter().any(|&a| self.is_positions(a)) => {
                    Some(std::iter::once(positions).chain(axes.iter().copied().filter(|&a| a != 0)).collect())
                }
                Some(axes) => {
                    let message = format!(
                        "`{name}` is over {}: only what has the axis `t` alone can be cached",
                        self.names(axes)
                    );
                    self.diagnostics.error(name.span(), message);
                    continue;
                }
                None => None,
            };
            if axes.is_some() {
                cx.steps.push(Step::Append { name: name.clone(), rows: name.clone(), over: over.clone() });
            }
            let local = Local::Named(name.clone());
            let tensor = Tensor::new(local, axes, tensor.ty);
            cached.push((name.to_string(), Entry::Tensor(tensor)));
        }
        cx.locals.extend(cached);
        cx.locals.push((text, entry));
    }

    pub(super) fn is_positions(&self, axis: usize) -> bool {
        matches!(self.axes[axis].kind, AxisKind::Positions { .. })
    }

    // ---- the end

    /// Reports what is declared and never used.
    fn report_unused(&self) {
        for tensor in self.tensors.iter().filter(|t| !t.used.get()) {
            let message = format!("`{}` is {} that is never used", tensor.name, tensor.what);
            self.diagnostics.error(tensor.name.span(), message);
        }
        for block in self.uses.iter().filter(|block| !block.used.get()) {
            let name = &block.of.name;
            self.diagnostics.error(name.span(), format!("`{name}` is a block that is never called"));
        }
        for value in self.values.iter().filter(|v| !v.used.get()) {
            if !self.axes.iter().any(|a| a.name == value.name && a.used.get()) {
                let message = format!("`{}` is a value of the config that is never used", value.name);
                self.diagnostics.error(value.name.span(), message);
            }
        }
        for axis in self.axes.iter().filter(|a| !a.used.get() && !a.counted.get()) {
            if !self.values.iter().any(|v| v.name == axis.name) {
                self.diagnostics.error(axis.name.span(), format!("`{}` is an axis that is never used", axis.name));
            }
        }
        let layers = self.declaration.items.iter().filter_map(|item| match item {
            Item::Layer(layer) => Some(layer),
            _ => None,
        });
        for (layer, stack) in layers.zip(&self.stacks) {
            if stack.calls.get() == 0 {
                let message = "these layers are never called";
                let help = format!("the model's `fn` runs them: `{}(x)`", layer.count);
                self.diagnostics.help(layer.count.span(), message, help);
            }
        }
    }

    /// Puts the declarations into the program.
    fn gather(&mut self) {
        for axis in &self.axes {
            let size = match &axis.kind {
                AxisKind::Tokens => None,
                AxisKind::Fixed(size) => Some(size.clone()),
                AxisKind::Positions { .. } | AxisKind::Parameter => continue,
            };
            if axis.used.get() {
                self.program.axes.push((axis.name.clone(), size));
            }
        }
        let globals: Vec<usize> = (0..self.tensors.len()).filter(|&t| self.is_global(t)).collect();
        let weights = globals.into_iter().filter_map(|t| self.tensors[t].weight.clone());
        self.program.weights = weights.collect();
    }
}

impl Statement {
    /// The names that the statement gives a value.
    fn names(&self) -> Vec<String> {
        match self {
            Statement::Let { name, .. } => vec![name.to_string()],
            Statement::Top { values, indices, .. } => vec![values.to_string(), indices.to_string()],
            Statement::Cache { names, .. } => names.iter().map(ToString::to_string).collect(),
        }
    }
}
