//! One sequence of tokens: what was computed for it, and how it grows.

use std::sync::PoisonError;

use einfuse_codegen::loops::FEW;
use einfuse_codegen::{Batch, Choice, ChoiceObserver, Observer, Program, Step, Wanted, Workspace};

use crate::Error;
use crate::cache::Sequence;
use crate::generate::Summary;
use crate::model::Model;
use crate::sample::{check_logits, log_sum_exp};
use crate::tokens::Tokenizer;

/// One sequence. Its pages go back to the model's cache when it is dropped.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model,
    program: &'m Program,
    sequence: Sequence,
    workspace: Workspace,
    /// All tokens; those from `sequence.positions()` on have not been computed yet.
    tokens: Vec<u32>,
    pub(crate) summary: Summary,
}

/// Everything that a model computes for some tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// `[t, v]`: the logits of each token's successor.
    pub logits: Vec<f32>,
    /// For each layer `[t, d]`: first the input of layer 0, then the output of each layer.
    pub hidden: Vec<Vec<f32>>,
}

/// How often some tokens choose each part of a weight, as a router chooses experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The name of the integers that choose.
    pub by: String,
    /// The axis of which they are coordinates.
    pub axis: String,
    /// The layer, where one chooses.
    pub layer: Option<usize>,
    /// For each coordinate how often it is chosen.
    pub counts: Vec<usize>,
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// The mean of `-ln p(token | all tokens before it)`, in nats.
    pub mean: f64,
    /// Over so many tokens.
    pub scored: usize,
}

impl Perplexity {
    /// `e^mean`.
    pub fn value(self) -> f64 {
        self.mean.exp()
    }
}

impl<'m> Session<'m> {
    pub(crate) fn new(model: &'m Model) -> Session<'m> {
        let workspace = model.program.workspace(model.threads());
        Session::on(model, &model.program, workspace)
    }

    fn on(model: &'m Model, program: &'m Program, workspace: Workspace) -> Session<'m> {
        let sequence = Sequence::default();
        Session { model, program, sequence, workspace, tokens: Vec::new(), summary: Summary::default() }
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// All tokens so far, given and generated.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Of the last generation.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// What the session computes in: to ask how long each kernel takes.
    pub fn workspace(&mut self) -> &mut Workspace {
        &mut self.workspace
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.cache(|cache, sequence| cache.release(sequence));
        self.tokens.clear();
    }

    /// Forgets the tokens from position `to` on, and what was computed for them. Where a window has passed over what those
    /// before it would need, they are computed anew.
    pub fn rewind(&mut self, to: usize) {
        self.cache(|cache, sequence| cache.rewind(sequence, to));
        self.tokens.truncate(to);
    }

    /// Another session with the same tokens. What was computed for them is shared, not copied; the settings' number of
    /// sequences says how many find room in the cache.
    pub fn fork(&self) -> Session<'m> {
        self.fork_on(self.program, self.program.workspace(self.model.threads()))
    }

    /// The same, computed from here on by another program, which the model's was rescheduled to, in a workspace of that.
    pub(crate) fn fork_on<'p>(&self, program: &'p Program, workspace: Workspace) -> Session<'p>
    where
        'm: 'p,
    {
        let mut fork = Session::on(self.model, program, workspace);
        let mut cache = self.model.cache.lock().unwrap_or_else(PoisonError::into_inner);
        fork.sequence = cache.fork(&self.sequence);
        drop(cache);
        fork.tokens.clone_from(&self.tokens);
        fork
    }

    /// Gives the session up for its workspace.
    pub(crate) fn into_workspace(mut self) -> Workspace {
        std::mem::take(&mut self.workspace)
    }

    /// Adds tokens, and returns the logits `[v]` of the successor of the last.
    ///
    /// # Errors
    /// If there is no token, they do not fit, or one is not in the model's vocabulary: nothing is added then. If the cache
    /// is full, the session keeps the tokens that were computed before.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.add(tokens)?;
        Ok(self.compute_last()?.to_vec())
    }

    /// Adds tokens, and returns the logits `[t, v]` of the successor of each. A model loaded with [`Wanted::Last`] computes
    /// no more than [`FEW`] at once.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn feed_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.catch_up(tokens.len())?;
        self.add(tokens)?;
        let mut logits = Vec::with_capacity(tokens.len() * self.model.vocabulary);
        self.compute(Wanted::All, None, None, |_, rows| logits.extend_from_slice(rows))?;
        Ok(logits)
    }

    /// Adds tokens, and returns all that the model computes for them.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn trace(&mut self, tokens: &[u32]) -> Result<Trace, Error> {
        self.catch_up(tokens.len())?;
        self.add(tokens)?;
        let mut trace = Trace { logits: Vec::new(), hidden: Vec::new() };
        let mut observe = |layer, rows: &[f32]| {
            if trace.hidden.len() <= layer {
                trace.hidden.resize(layer + 1, Vec::new());
            }
            trace.hidden[layer].extend_from_slice(rows);
        };
        self.compute(Wanted::All, Some(&mut observe), None, |_, rows| trace.logits.extend_from_slice(rows))?;
        Ok(trace)
    }

    /// Adds tokens, and counts what they choose: nothing, in a model without choices.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn choices(&mut self, tokens: &[u32]) -> Result<Vec<Chosen>, Error> {
        self.catch_up(tokens.len())?;
        self.add(tokens)?;
        let graph = &self.model.program.plan(Batch::One).graph;
        let mut all: Vec<Chosen> = Vec::new();
        let mut count = |choice: Choice, layer: Option<usize>, chosen: &[i32]| {
            let (by, axis) = (&graph.tensor(choice.by).name, graph.axis(choice.axis));
            let at = all.iter().position(|one| one.by == *by && one.layer == layer).unwrap_or_else(|| {
                let counts = vec![0; graph.size(choice.axis).unwrap_or(0)];
                all.push(Chosen { by: by.clone(), axis: axis.name.clone(), layer, counts });
                all.len() - 1
            });
            for &one in chosen {
                if let Some(count) = usize::try_from(one).ok().and_then(|one| all[at].counts.get_mut(one)) {
                    *count += 1;
                }
            }
        };
        self.compute(Wanted::Last, None, Some(&mut count), |_, _| {})?;
        Ok(all)
    }

    /// Measures how well the model predicts each token but the first from those before it, in the windows of [`Session::score`].
    ///
    /// # Errors
    /// As [`Session::score`].
    pub fn perplexity(&mut self, tokens: &[u32]) -> Result<Perplexity, Error> {
        let (mut sum, mut scored) = (0.0, 0);
        self.score(tokens, |at, logits| {
            sum += log_sum_exp(logits) - f64::from(logits[tokens[at] as usize]);
            scored += 1;
        })?;
        Ok(Perplexity { mean: sum / scored as f64, scored })
    }

    /// Gives `see` the number of each token but the first, and the logits `[v]` by which it is predicted from those before
    /// it. What is longer than the context is read in windows, each of which starts anew: where the tokens begin with what
    /// the tokenizer puts in front of a text, every window does. The session is empty before and afterwards.
    ///
    /// # Errors
    /// If there are fewer than two tokens, or fewer than two positions, or none behind those that a window begins with; if the
    /// model does not know a token, or its output says nothing of one; or if logits are no numbers.
    pub fn score(&mut self, tokens: &[u32], mut see: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        if tokens.len() < 2 {
            return Err(Error::ShortText { tokens: tokens.len() });
        }
        let begin = self.model.tokenizer().map_or(Ok(Vec::new()), Tokenizer::begin)?;
        let begin = if tokens.starts_with(&begin) { &begin[..] } else { &[] };
        let (context, logits) = (self.model.context(), self.model.vocabulary);
        self.model.check_window(begin.len())?;
        self.check_known(tokens)?;
        if let Some(&id) = tokens[1..].iter().find(|&&token| token as usize >= logits) {
            return Err(Error::NotPredicted { id, logits });
        }
        let given = tokens.len() - 1;
        let (mut at, mut checked) = (0, Ok(()));
        while at < given {
            let again = if at == 0 { &[] } else { begin };
            let window = &tokens[at..given.min(at + context - again.len())];
            self.clear();
            self.add(&[again, window].concat())?;
            self.compute(Wanted::All, None, None, |first, rows| {
                for row in rows.chunks_exact(logits).skip(again.len().saturating_sub(first)) {
                    at += 1;
                    if checked.is_ok() {
                        checked = check_logits(row);
                    }
                    see(at, row);
                }
            })?;
        }
        self.clear();
        checked
    }

    /// Appends tokens without computing anything yet.
    pub(crate) fn add(&mut self, tokens: &[u32]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.model.check_room(self.tokens.len(), tokens.len())?;
        self.check_known(tokens)?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Appends a token that the model chose. It may be one more than fit: then it cannot be computed.
    pub(crate) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    fn check_known(&self, tokens: &[u32]) -> Result<(), Error> {
        let vocabulary = self.model.ids();
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&id) => Err(Error::NotInModel { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// Computes what has not been yet, for the logits of the last token's successor.
    pub(crate) fn compute_last(&mut self) -> Result<&[f32], Error> {
        self.compute(Wanted::Last, None, None, |_, _| {})?;
        Ok(self.program.output(&self.workspace))
    }

    /// Computes the token that was generated last, if there is one, before so many others are added.
    fn catch_up(&mut self, tokens: usize) -> Result<(), Error> {
        self.model.check_room(self.tokens.len(), tokens)?;
        self.compute(Wanted::Last, None, None, |_, _| {})
    }

    /// Computes the tokens that have not been yet, in steps. After each, `output` gets the position of the first row, and
    /// the rows' logits: of all, or of the step's last.
    fn compute(
        &mut self,
        rows: Wanted,
        mut observe: Option<Observer<'_>>,
        mut choices: Option<ChoiceObserver<'_>>,
        mut output: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let model = self.model;
        let few = rows == Wanted::All && model.rows == Wanted::Last;
        let chunk = if few { model.chunk.min(FEW) } else { model.chunk };
        let mut ids = Vec::new();
        while self.sequence.positions() < self.tokens.len() {
            let past = self.sequence.positions();
            let tokens = &self.tokens[past..self.tokens.len().min(past + chunk)];
            ids.clear();
            ids.extend(tokens.iter().map(|&token| token as i32));
            let first = if rows == Wanted::All { 0 } else { tokens.len() - 1 };
            let mut cache = model.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let computed = cache.reserve(&mut self.sequence, tokens.len()).and_then(|()| {
                let caches = cache.tables(&self.sequence);
                let observe = observe.as_mut().map(|observe| &mut **observe as Observer<'_>);
                let choices = choices.as_mut().map(|choices| &mut **choices as ChoiceObserver<'_>);
                let step = Step { tokens: &ids, past, first, caches, observe, choices };
                Ok(self.program.step(&model.weights, &mut self.workspace, step, &model.threads)?)
            });
            if let Err(error) = computed {
                self.tokens.truncate(past);
                return Err(error);
            }
            cache.commit(&mut self.sequence, tokens.len());
            drop(cache);
            output(past + first, self.program.output(&self.workspace));
        }
        Ok(())
    }

    fn cache(&mut self, work: impl FnOnce(&mut crate::cache::Cache, &mut Sequence)) {
        let mut cache = self.model.cache.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut cache, &mut self.sequence);
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.cache(|cache, sequence| cache.release(sequence));
    }
}
