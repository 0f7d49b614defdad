//! What a graph means: each equation evaluated in `f64`, element by element, in the order in which it stands.
//!
//! A step gets the inputs of some tokens, and appends to the states what the graph says; so a sequence may be given at
//! once, in chunks, or token by token, and the results are the same.

mod evaluate;
mod number;

use std::collections::HashMap;
use std::rc::Rc;

use self::evaluate::{Data, Failure, LARGEST_INT, Lengths, evaluate};
pub use self::number::Number;
use crate::graph::*;
use crate::verify::verify;

/// What the interpreter can't do, in words that name the equation, the tensor, the axis and the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InterpretError {
    /// What is wrong.
    pub message: String,
}

impl InterpretError {
    fn new(message: impl Into<String>) -> InterpretError {
        InterpretError { message: message.into() }
    }
}

/// Where the interpreter finds weights.
pub trait Weights {
    /// The values of a weight in its axes' order; of the given layer, if the weight is another one in each layer.
    ///
    /// # Errors
    /// In words, if there is no such weight.
    fn weight(&self, tensor: &Tensor, layer: Option<usize>) -> Result<Vec<f32>, String>;
}

impl<F: Fn(&Tensor, Option<usize>) -> Result<Vec<f32>, String>> Weights for F {
    fn weight(&self, tensor: &Tensor, layer: Option<usize>) -> Result<Vec<f32>, String> {
        self(tensor, layer)
    }
}

/// Runs a graph over one sequence.
///
/// ```
/// use einfuse_graph::{Interpreter, Tensor, parse};
/// let graph = parse(
///     r#"graph running_sum
///     axis t = tokens
///     axis s = positions
///     axis v = 3
///     input tokens[t]
///     weight value[v] = "value"
///     state x.cache[s]
///     x[t] = value[v = tokens]
///     append x.cache = x
///     y[t] = sum[s] x.cache where s <= t
///     output y"#,
/// )?;
/// let weights = |_: &Tensor, _: Option<usize>| Ok(vec![1.0, 10.0, 100.0]);
/// let mut interpreter = Interpreter::new(&graph, &weights)?;
/// assert_eq!(interpreter.step(&[("tokens", &[0, 2])])?.output, [1.0, 101.0]);
/// assert_eq!(interpreter.step(&[("tokens", &[1])])?.output, [111.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Interpreter<'g> {
    graph: &'g Graph,
    /// Weights and constants.
    given: ByLayer,
    states: ByLayer,
    past: usize,
}

/// The elements of tensors of the graph as a whole, and of those of one layer.
type ByLayer = HashMap<(TensorId, Option<usize>), Rc<Data>>;

/// What a step computed.
pub struct Output {
    /// The elements of [`Graph::output`], row-major in its axes.
    pub output: Vec<f64>,
    /// How far an evaluation in `f32` may be from each element of `output`: see [`Number`].
    pub bound: Vec<f64>,
    /// The carry into layer 0, then each layer's result, row-major in the axes of the carry.
    pub hidden: Vec<Vec<f64>>,
    values: HashMap<(String, Option<usize>), Rc<Data>>,
}

impl Output {
    /// The elements of a value or a carry by its name, row-major in its axes; of one in layers, those of a layer.
    pub fn value(&self, name: &str, layer: Option<usize>) -> Option<&[Number]> {
        match self.values.get(&(name.to_owned(), layer))?.as_ref() {
            Data::Computed(values) => Some(values),
            Data::Given(_) => None,
        }
    }
}

impl<'g> Interpreter<'g> {
    /// Verifies the graph and gets all of its weights.
    ///
    /// # Errors
    /// If the graph is ill-formed, or a weight is missing or has the wrong number of elements.
    pub fn new(graph: &'g Graph, weights: &dyn Weights) -> Result<Self, InterpretError> {
        verify(graph).map_err(|e| InterpretError::new(e.to_string()))?;
        let mut interpreter = Interpreter { graph, given: HashMap::new(), states: HashMap::new(), past: 0 };
        for node in &graph.nodes {
            interpreter.load(node, None, weights)?;
            if let Node::Layers(layers) = node {
                for (layer, &body) in layers.order.iter().enumerate() {
                    let body = &layers.bodies[body];
                    for node in &body.nodes {
                        interpreter.load(node, Some(layer), weights)?;
                    }
                    interpreter.given_in(vec![body.result], Some(layer), weights)?;
                }
            }
        }
        Ok(interpreter)
    }

    /// Gets the weights and constants that a node mentions.
    fn load(&mut self, node: &Node, layer: Option<usize>, weights: &dyn Weights) -> Result<(), InterpretError> {
        match node {
            Node::Equation { body, .. } => self.given_in(self.graph.loaded(*body), layer, weights),
            Node::Layers(layers) => self.given_in(vec![layers.initial], layer, weights),
            Node::Append { .. } => Ok(()),
        }
    }

    /// Gets the weights and constants among some tensors; of those that are made of parts, the parts first.
    fn given_in(
        &mut self,
        tensors: Vec<TensorId>,
        layer: Option<usize>,
        weights: &dyn Weights,
    ) -> Result<(), InterpretError> {
        for id in tensors {
            let key = (id, layer.filter(|_| self.graph.is_layered(id)));
            let tensor = self.graph.tensor(id);
            if self.given.contains_key(&key) {
                continue;
            }
            let values = match &tensor.kind {
                Kind::Made(body) => {
                    self.given_in(self.graph.loaded(*body), layer, weights)?;
                    let values = self.made(tensor, *body, layer)?;
                    self.given.insert(key, Rc::new(Data::Computed(values)));
                    continue;
                }
                Kind::Constant(values) => values.clone(),
                Kind::Weight(_) => {
                    let place = key.1.map_or(String::new(), |l| format!(" of layer {l}"));
                    let values = (weights.weight(tensor, key.1))
                        .map_err(|e| InterpretError::new(format!("weight `{}`{place}: {e}", tensor.name)))?;
                    let want: usize = tensor.axes.iter().map(|&a| self.graph.size(a).unwrap_or(0)).product();
                    if values.len() != want {
                        return Err(InterpretError::new(format!(
                            "weight `{}`{place} has {} elements, its axes {} want {want}",
                            tensor.name,
                            values.len(),
                            self.graph.axes_of(id)
                        )));
                    }
                    values
                }
                _ => continue,
            };
            self.given.insert(key, Rc::new(Data::Given(values)));
        }
        Ok(())
    }

    /// A weight out of its parts, which are there.
    fn made(&self, tensor: &Tensor, body: ExprId, layer: Option<usize>) -> Result<Vec<Number>, InterpretError> {
        let of = |id: usize| {
            let id = TensorId(id as u32);
            self.given.get(&(id, layer.filter(|_| self.graph.is_layered(id)))).cloned()
        };
        let data: Vec<Option<Rc<Data>>> = (0..self.graph.tensors.len()).map(of).collect();
        let lengths = Lengths { past: 0, tokens: 0 };
        evaluate(self.graph, body, &tensor.axes, lengths, &data)
            .map_err(|problem| InterpretError::new(format!("weight `{}`: {problem}", tensor.name)))
    }

    /// How many positions earlier steps have appended.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Runs the graph for the tokens that follow. `inputs` gives each input tensor by its name, row-major in its axes; how
    /// many tokens there are is told by the length of the inputs along the tokens axis.
    ///
    /// # Errors
    /// If an input is missing, unknown or has the wrong length, or if an index is out of range: then nothing is appended.
    pub fn step(&mut self, inputs: &[(&str, &[i64])]) -> Result<Output, InterpretError> {
        let lengths = Lengths { past: self.past, tokens: self.tokens(inputs)? };
        let mut run = Run {
            interpreter: self,
            lengths,
            layer: None,
            data: vec![None; self.graph.tensors.len()],
            states: ByLayer::new(),
            hidden: Vec::new(),
            values: HashMap::new(),
        };
        for &(name, values) in inputs {
            run.input(name, values)?;
        }
        run.enter(None);
        for node in &self.graph.nodes {
            run.node(node)?;
        }
        let output = run.numbers(self.graph.output);
        let Run { states, hidden, values, .. } = run;
        self.states.extend(states);
        self.past += lengths.tokens;
        Ok(Output {
            output: output.iter().map(|n| n.value).collect(),
            bound: output.iter().map(|n| n.bound).collect(),
            hidden,
            values,
        })
    }

    /// The number of tokens that the inputs stand for.
    fn tokens(&self, inputs: &[(&str, &[i64])]) -> Result<usize, InterpretError> {
        let is_tokens = |axis: &AxisId| self.graph.axis(*axis).extent == Extent::Tokens;
        let mut tokens = None;
        for (at, tensor) in self.graph.tensors.iter().enumerate().filter(|(_, t)| t.kind == Kind::Input) {
            let name = &tensor.name;
            let Some((_, values)) = inputs.iter().find(|(given, _)| given == name) else {
                return Err(InterpretError::new(format!("the input `{name}` is missing")));
            };
            let row: usize = tensor.axes.iter().map(|&axis| self.graph.fixed_size(axis)).product();
            let (count, rest) = (values.len() / row, values.len() % row);
            let has_tokens = tensor.axes.iter().any(is_tokens);
            let fits = if has_tokens { *tokens.get_or_insert(count) == count } else { count == 1 };
            if !fits || rest != 0 {
                let axes = self.graph.axes_of(TensorId(at as u32));
                let for_tokens = tokens.map_or(String::new(), |n| format!(" for {n} tokens"));
                let message = format!("the input `{name}` over {axes} has {} elements{for_tokens}", values.len());
                return Err(InterpretError::new(message));
            }
        }
        match tokens {
            None if self.graph.axes.iter().any(|axis| axis.extent == Extent::Tokens) => {
                Err(InterpretError::new("no input has the tokens axis, so the number of tokens is unknown"))
            }
            tokens => Ok(tokens.unwrap_or(0)),
        }
    }
}

/// A step under way.
struct Run<'a, 'g> {
    interpreter: &'a Interpreter<'g>,
    lengths: Lengths,
    layer: Option<usize>,
    /// By tensor: what is known at this place.
    data: Vec<Option<Rc<Data>>>,
    states: ByLayer,
    hidden: Vec<Vec<f64>>,
    values: HashMap<(String, Option<usize>), Rc<Data>>,
}

impl Run<'_, '_> {
    fn input(&mut self, name: &str, values: &[i64]) -> Result<(), InterpretError> {
        let tensors = &self.interpreter.graph.tensors;
        let Some(at) = tensors.iter().position(|t| t.name == name && t.kind == Kind::Input) else {
            return Err(InterpretError::new(format!("the graph has no input `{name}`")));
        };
        if let Some(large) = values.iter().find(|v| v.unsigned_abs() > LARGEST_INT as u64) {
            return Err(InterpretError::new(format!("the input `{name}` has the value {large}, beyond 2^53")));
        }
        let values = values.iter().map(|&v| Number::exact(v as f64)).collect();
        self.data[at] = Some(Rc::new(Data::Computed(values)));
        Ok(())
    }

    /// Makes the weights and constants of a layer, or those of the graph as a whole, known.
    fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
        for (&(tensor, of), data) in &self.interpreter.given {
            if of == layer {
                self.data[tensor.index()] = Some(Rc::clone(data));
            }
        }
    }

    fn node(&mut self, node: &Node) -> Result<(), InterpretError> {
        match node {
            Node::Equation { out, body } => {
                let graph = self.interpreter.graph;
                let tensor = graph.tensor(*out);
                let values = evaluate(graph, *body, &tensor.axes, self.lengths, &self.data)
                    .map_err(|problem| self.error(&tensor.name, problem))?;
                self.define(*out, Rc::new(Data::Computed(values)));
            }
            Node::Append { state, rows } => {
                let key = (*state, self.layer);
                let mut all = self.interpreter.states.get(&key).map_or(Vec::new(), |earlier| earlier.numbers());
                all.extend(self.numbers(*rows));
                let all = Rc::new(Data::Computed(all));
                self.data[state.index()] = Some(Rc::clone(&all));
                self.states.insert(key, all);
            }
            Node::Layers(layers) => {
                let mut carry = self.data[layers.initial.index()].clone();
                self.hidden.push(self.floats(layers.initial));
                for (layer, &body) in layers.order.iter().enumerate() {
                    let body = &layers.bodies[body];
                    self.enter(Some(layer));
                    if let Some(carry) = carry {
                        self.define(layers.carry, carry);
                    }
                    for node in &body.nodes {
                        self.node(node)?;
                    }
                    carry = self.data[body.result.index()].clone();
                    self.hidden.push(self.floats(body.result));
                }
                self.layer = None;
                if let Some(carry) = carry {
                    self.define(layers.out, carry);
                }
            }
        }
        Ok(())
    }

    fn define(&mut self, tensor: TensorId, data: Rc<Data>) {
        let name = self.interpreter.graph.tensor(tensor).name.clone();
        self.values.insert((name, self.layer), Rc::clone(&data));
        self.data[tensor.index()] = Some(data);
    }

    fn numbers(&self, tensor: TensorId) -> Vec<Number> {
        self.data[tensor.index()].as_ref().map_or(Vec::new(), |data| data.numbers())
    }

    fn floats(&self, tensor: TensorId) -> Vec<f64> {
        self.numbers(tensor).iter().map(|n| n.value).collect()
    }

    fn error(&self, equation: &str, problem: Failure) -> InterpretError {
        let place = self.layer.map_or(String::new(), |l| format!(" of layer {l}"));
        InterpretError::new(format!("`{equation}`{place}: {problem}"))
    }
}
