//! `einfuse bench --check`: what the chosen storage and kernels cost in quality, against 32-bit floats.

use std::num::NonZeroUsize;

use einfuse::codegen::Format;
use einfuse::runtime::{likeliest, log_sum_exp};
use einfuse::{Model, Settings, Wanted, runtime};
use serde::Serialize;

use super::options::ModelOptions;
use super::step;

/// From Hamlet, and four sonnets.
const TEXT: &str = include_str!("check.txt");

/// After so many beginnings of the text the next token is predicted.
const POSITIONS: usize = 1024;

/// How far a model may be from itself in 32-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bounds {
    /// The most that its perplexity may be, where that of the other is 1.
    perplexity_ratio: f64,
    /// The least share of positions where both find the same token the likeliest.
    top1_agreement: f64,
}

impl Bounds {
    /// Of a storage; codes are either the checkpoint's own, or replace its weights.
    fn of(storage: Format, own: bool) -> Bounds {
        let (perplexity_ratio, top1_agreement) = match storage {
            Format::F32 => (1.0001, 0.999),
            Format::Bf16 => (1.01, 0.97),
            _ if own => (1.01, 0.93),
            Format::Q8 => (1.02, 0.93),
            _ => (1.3, 0.6),
        };
        Bounds { perplexity_ratio, top1_agreement }
    }
}

/// A model beside itself in 32-bit floats.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    model: String,
    threads: usize,
    test: &'static str,
    /// How the coarsest of the weights are stored, and the cache.
    weights: String,
    cache: String,
    positions: usize,
    perplexity: f64,
    perplexity_f32: f64,
    perplexity_ratio: f64,
    top1_agreement: f64,
    /// Nats that are lost where the other's probabilities are right: of a position on average, and at most.
    mean_divergence: f64,
    largest_divergence: f64,
    mean_logit_difference: f64,
    largest_logit_difference: f64,
    bounds: Bounds,
    holds: bool,
}

impl Check {
    /// Computes the same text with both models, one after the other, as prompts.
    pub(crate) fn run(
        options: &ModelOptions,
        threads: Option<NonZeroUsize>,
    ) -> Result<Check, Box<dyn std::error::Error>> {
        let settings = |settings| Settings { rows: Wanted::All, ..settings };
        let plain = Settings {
            precision: runtime::Precision::F32,
            cache: Some(runtime::CacheType::F32),
            quant: None,
            ..options.settings(threads)
        };
        // one after the other, so that they need not fit into memory together
        let reference = options.load(settings(plain))?;
        let tokens = reference.tokenizer()?.encode(TEXT, true)?;
        let Some(tokens) = tokens.get(..=POSITIONS) else {
            let (count, wanted) = (tokens.len(), POSITIONS + 1);
            return Err(format!("--check wants {wanted} tokens, and its text has {count} in this model").into());
        };
        let vocabulary = reference.vocabulary();
        let mut wanted = Vec::with_capacity(POSITIONS * vocabulary);
        reference.session().score(tokens, |_, logits| wanted.extend_from_slice(logits))?;
        drop(reference);

        let model = options.load(settings(options.settings(threads)))?;
        let mut sums = Sums::default();
        model.session().score(tokens, |at, got| {
            sums.add(&wanted[(at - 1) * vocabulary..][..vocabulary], got, tokens[at] as usize);
        })?;
        let own = options.settings(threads).quant.is_none();
        let (weights, cache) = (step::coarsest(&model), model.program().options().cache);
        let coarser = if cache.bits() < weights.bits() { cache } else { weights };
        Ok(sums.check(&model, options.name(), (weights, cache), Bounds::of(coarser, own)))
    }

    /// Whether the bounds hold.
    ///
    /// # Errors
    /// Says which does not.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        if self.holds {
            return Ok(());
        }
        Err(format!(
            "--check: weights of {}, a cache of {}: too far from f32: perplexity × {:.4} (at most {}), the same likeliest token at {:.1} % (at least {:.1} %)",
            self.weights,
            self.cache,
            self.perplexity_ratio,
            self.bounds.perplexity_ratio,
            100.0 * self.top1_agreement,
            100.0 * self.bounds.top1_agreement,
        ))
    }

    /// What was found, in a few lines.
    pub(crate) fn text(&self) -> String {
        format!(
            "\n{}, weights of {}, a cache of {}, beside f32 over {} positions:\n\
             - perplexity {:.3} for {:.3}: × {:.4} (at most {})\n\
             - the same likeliest token at {:.1} % (at least {:.1} %)\n\
             - divergence {:.2e} nats on average, {:.2e} at most\n\
             - logits differ by {:.2e} on average, {:.2e} at most\n",
            self.model,
            self.weights,
            self.cache,
            self.positions,
            self.perplexity,
            self.perplexity_f32,
            self.perplexity_ratio,
            self.bounds.perplexity_ratio,
            100.0 * self.top1_agreement,
            100.0 * self.bounds.top1_agreement,
            self.mean_divergence,
            self.largest_divergence,
            self.mean_logit_difference,
            self.largest_logit_difference,
        )
    }
}

/// What is added up, position by position.
#[derive(Debug, Default)]
struct Sums {
    positions: usize,
    agreed: usize,
    /// Of `-ln p` of the next token, of this model and in f32.
    surprise: f64,
    surprise_f32: f64,
    divergence: f64,
    largest_divergence: f64,
    difference: f64,
    largest_difference: f64,
}

impl Sums {
    fn add(&mut self, wanted: &[f32], got: &[f32], next: usize) {
        let (scale_wanted, scale_got) = (log_sum_exp(wanted), log_sum_exp(got));
        let surprise = |logits: &[f32], scale: f64| logits.get(next).map_or(f64::NAN, |&x| scale - f64::from(x));
        self.surprise += surprise(got, scale_got);
        self.surprise_f32 += surprise(wanted, scale_wanted);
        let (mut divergence, mut difference) = (0.0, 0.0);
        for (&wanted, &got) in wanted.iter().zip(got) {
            let (wanted, got) = (f64::from(wanted), f64::from(got));
            divergence += (wanted - scale_wanted).exp() * ((wanted - scale_wanted) - (got - scale_got));
            difference += (wanted - got).abs();
            self.largest_difference = self.largest_difference.max((wanted - got).abs());
        }
        self.divergence += divergence;
        self.largest_divergence = self.largest_divergence.max(divergence);
        self.difference += difference / wanted.len() as f64;
        self.agreed += usize::from(likeliest(wanted) == likeliest(got));
        self.positions += 1;
    }

    fn check(self, model: &Model, name: String, storage: (Format, Format), bounds: Bounds) -> Check {
        let count = self.positions as f64;
        let perplexity_ratio = ((self.surprise - self.surprise_f32) / count).exp();
        let top1_agreement = self.agreed as f64 / count;
        Check {
            model: name,
            threads: model.threads(),
            test: "check",
            weights: storage.0.to_string(),
            cache: storage.1.to_string(),
            positions: self.positions,
            perplexity: (self.surprise / count).exp(),
            perplexity_f32: (self.surprise_f32 / count).exp(),
            perplexity_ratio,
            top1_agreement,
            mean_divergence: self.divergence / count,
            largest_divergence: self.largest_divergence,
            mean_logit_difference: self.difference / count,
            largest_logit_difference: self.largest_difference,
            bounds,
            // not so either where one is not a number
            holds: perplexity_ratio <= bounds.perplexity_ratio && top1_agreement >= bounds.top1_agreement,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_of_both_distributions() {
        let half = 2f32.ln();
        let mut sums = Sums::default();
        // 1/2, 1/4, 1/4, then the same
        sums.add(&[half, 0.0, 0.0], &[0.0, half, 0.0], 0);
        sums.add(&[half, 0.0, 0.0], &[half, 0.0, 0.0], 1);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        assert_eq!((sums.positions, sums.agreed), (2, 1));
        near(sums.surprise, 4f64.ln() + 4f64.ln());
        near(sums.surprise_f32, 2f64.ln() + 4f64.ln());
        near(sums.divergence, 0.25 * 2f64.ln());
        near(sums.largest_divergence, 0.25 * 2f64.ln());
        near(sums.difference, 2.0 / 3.0 * 2f64.ln());
        near(sums.largest_difference, 2f64.ln());
        // of equals the first is the likeliest, as generation has it
        sums.add(&[1.0, 1.0, 0.0], &[1.0, 0.5, 0.0], 0);
        assert_eq!((sums.positions, sums.agreed), (3, 2));
    }
}
