//! Choosing the next token.
//!
//! The order is Hugging Face's: repetition penalty on the logits, then temperature, top-k, top-p, min-p; each sees what the
//! one before left, with its probabilities scaled to a sum of 1.

use std::cmp::Ordering;

use crate::Error;

/// How to choose a token from the logits. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token, and the options below but the penalty have no effect.
    pub temperature: f32,
    /// Keeps the `k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities sum to at least `p`; 1 keeps all.
    pub top_p: f32,
    /// Keeps the tokens at least `p` times as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits above 0 of every token that the sequence has already, and multiplies those below (Keskar et al.
    /// 2019, "CTRL"); 1 has no effect.
    pub repeat_penalty: f32,
    /// Of the generator: the same seed, the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks that every option is within its range.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<(), Error> {
        let check = |option, value: f32, fits: bool, wants| match fits {
            true => Ok(()),
            false => Err(Error::Option { option, wants, got: value.to_string() }),
        };
        let (t, p) = (self.temperature, self.repeat_penalty);
        check("temperature", t, t.is_finite() && t >= 0.0, "a number of at least 0")?;
        check("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "a number above 0 and at most 1")?;
        check("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1")?;
        check("repeat-penalty", p, p.is_finite() && p > 0.0, "a number above 0")
    }
}

/// Chooses tokens for one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    generator: Xoshiro,
    seen: Vec<bool>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    /// A logit, afterwards a probability, to a scale.
    weight: f64,
}

impl Candidate {
    /// The more likely first; of equals the smaller token.
    fn order(&self, other: &Candidate) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

impl Sampler {
    /// A sampler for a sequence that is still empty.
    ///
    /// # Errors
    /// If an option is outside its range.
    pub fn new(options: Sampling) -> Result<Sampler, Error> {
        options.check()?;
        let generator = Xoshiro::new(options.seed);
        Ok(Sampler { options, generator, seen: Vec::new(), candidates: Vec::new() })
    }

    /// Notes tokens that the sequence has now, for the repetition penalty.
    pub fn saw(&mut self, tokens: &[u32]) {
        for &token in tokens {
            let at = token as usize;
            if self.seen.len() <= at {
                self.seen.resize(at + 1, false);
            }
            self.seen[at] = true;
        }
    }

    /// Chooses a token by the logits of the whole vocabulary. NaN and -inf are never chosen.
    ///
    /// # Errors
    /// If there is nothing else.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let (penalty, seen) = (self.options.repeat_penalty, &self.seen);
        let candidates = logits.iter().zip(0u32..).filter(|(logit, _)| **logit > f32::NEG_INFINITY);
        let candidates = candidates.map(|(&logit, token)| {
            let seen = penalty != 1.0 && seen.get(token as usize) == Some(&true);
            let logit = match seen {
                true if logit > 0.0 => logit / penalty,
                true => logit * penalty,
                false => logit,
            };
            Candidate { token, weight: f64::from(logit) }
        });
        let best = candidates.clone().min_by(Candidate::order);
        let Some(best) = best else {
            return Err(Error::NoNumbers { vocabulary: logits.len() });
        };
        if self.options.temperature == 0.0 {
            return Ok(best.token);
        }
        self.candidates.clear();
        self.candidates.extend(candidates);
        let temperature = f64::from(self.options.temperature);
        for candidate in &mut self.candidates {
            // Equal logits, even infinite ones, have the probability of the best.
            let below = if candidate.weight == best.weight { 0.0 } else { candidate.weight - best.weight };
            candidate.weight = (below / temperature).exp();
        }
        self.keep_top_k();
        self.keep_top_p();
        if self.options.min_p > 0.0 {
            let least = f64::from(self.options.min_p);
            self.candidates.retain(|candidate| candidate.weight >= least);
        }
        let mut left = self.generator.unit() * self.total();
        for candidate in &self.candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Ok(candidate.token);
            }
        }
        Ok(best.token)
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|candidate| candidate.weight).sum()
    }

    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, Candidate::order);
            self.candidates.truncate(k);
            self.candidates.sort_unstable_by(Candidate::order);
        }
    }

    fn keep_top_p(&mut self) {
        if self.options.top_p >= 1.0 {
            return;
        }
        let enough = f64::from(self.options.top_p) * self.total();
        let count = self.candidates.len();
        let mut sorted = 0;
        let mut sum = 0.0;
        // The set is small as a rule: sorting a few more of the most likely each time beats sorting the vocabulary.
        while sorted < count {
            let next = count.min((sorted * 4).max(64));
            if next < count {
                self.candidates[sorted..].select_nth_unstable_by(next - sorted - 1, Candidate::order);
            }
            self.candidates[sorted..next].sort_unstable_by(Candidate::order);
            for at in sorted..next {
                sum += self.candidates[at].weight;
                if sum >= enough {
                    self.candidates.truncate(at + 1);
                    return;
                }
            }
            sorted = next;
        }
    }
}

/// xoshiro256++ (Blackman and Vigna 2019, "Scrambled linear pseudorandom number generators"), seeded through SplitMix64
/// as its authors advise. Written here so that a seed means the same text for ever.
#[derive(Clone, Debug)]
struct Xoshiro([u64; 4]);

impl Xoshiro {
    fn new(seed: u64) -> Xoshiro {
        let mut state = seed;
        Xoshiro(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number from 0 to below 1, of 53 random bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 0.0, -1.0];

    fn sampler(options: Sampling) -> Sampler {
        Sampler::new(options).unwrap()
    }

    /// How often each token is chosen in 20 000 draws.
    fn shares(options: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = sampler(options);
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits).unwrap() as usize] += 1;
        }
        counts.iter().map(|&count| f64::from(count) / 20_000.0).collect()
    }

    fn close(shares: &[f64], weights: &[f64]) {
        let total: f64 = weights.iter().sum();
        for (share, weight) in shares.iter().zip(weights) {
            // Four standard deviations of a share of one half.
            assert!((share - weight / total).abs() < 0.015, "{shares:?} is not {weights:?}");
            assert!(*weight > 0.0 || *share == 0.0, "{shares:?} has what {weights:?} excludes");
        }
    }

    fn random(temperature: f32) -> Sampling {
        Sampling { temperature, seed: 7, ..Sampling::default() }
    }

    fn e(x: f64) -> f64 {
        x.exp()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut greedy = sampler(Sampling::default());
        assert_eq!(greedy.choose(&LOGITS).unwrap(), 1);
        assert_eq!(greedy.choose(&[2.0, 5.0, 5.0]).unwrap(), 1);
        assert_eq!(greedy.choose(&[f32::NAN, -4.0, f32::NAN, -5.0]).unwrap(), 1);
        assert_eq!(greedy.choose(&[0.0, f32::INFINITY]).unwrap(), 1);
    }

    #[test]
    fn temperature_scales_the_logits() {
        close(&shares(random(1.0), &LOGITS), &[e(1.0), e(3.0), e(2.0), e(0.0), e(-1.0)]);
        close(&shares(random(2.0), &LOGITS), &[e(0.5), e(1.5), e(1.0), e(0.0), e(-0.5)]);
        close(&shares(random(1e-30), &LOGITS), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn filters_keep_what_they_say() {
        let top_k = Sampling { top_k: 2, ..random(1.0) };
        close(&shares(top_k, &LOGITS), &[0.0, e(3.0), e(2.0), 0.0, 0.0]);
        // The probabilities are 0.087, 0.644, 0.237, 0.032, 0.012.
        let top_p = |top_p| Sampling { top_p, ..random(1.0) };
        close(&shares(top_p(0.6), &LOGITS), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        close(&shares(top_p(0.7), &LOGITS), &[0.0, e(3.0), e(2.0), 0.0, 0.0]);
        close(&shares(top_p(0.9), &LOGITS), &[e(1.0), e(3.0), e(2.0), 0.0, 0.0]);
        let min_p = |min_p| Sampling { min_p, ..random(1.0) };
        close(&shares(min_p(0.3), &LOGITS), &[0.0, e(3.0), e(2.0), 0.0, 0.0]);
        close(&shares(min_p(0.1), &LOGITS), &[e(1.0), e(3.0), e(2.0), 0.0, 0.0]);
        close(&shares(min_p(1.0), &LOGITS), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn filters_follow_one_another() {
        // Among the two that top-k leaves, 3.0 has 0.73 of the probability, which is enough for this top-p.
        let options = Sampling { top_k: 2, top_p: 0.72, ..random(1.0) };
        close(&shares(options, &LOGITS), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        // Temperature comes first: at 4.0 the five are nearly equal, and top-p 0.72 wants more of them.
        let options = Sampling { top_p: 0.72, ..random(4.0) };
        close(&shares(options, &LOGITS), &[e(0.25), e(0.75), e(0.5), 0.0, 0.0]);
    }

    #[test]
    fn top_p_of_a_large_vocabulary_is_that_of_a_full_sort() {
        let mut generator = Xoshiro::new(3);
        let logits: Vec<f32> = (0..5000).map(|_| (generator.unit() * 4.0) as f32).collect();
        for top_p in [0.001, 0.01, 0.1, 0.5, 0.9, 0.999] {
            let mut sampler = sampler(Sampling { top_p, ..random(1.0) });
            sampler.choose(&logits).unwrap();
            let mut all: Vec<(f64, u32)> = logits.iter().map(|&l| e(f64::from(l))).zip(0..).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let total: f64 = all.iter().map(|(weight, _)| weight).sum();
            let mut sum = 0.0;
            let kept = 1 + all
                .iter()
                .take_while(|(weight, _)| {
                    sum += weight;
                    sum < f64::from(top_p) * total
                })
                .count();
            let tokens: Vec<u32> = sampler.candidates.iter().map(|candidate| candidate.token).collect();
            let expected: Vec<u32> = all[..kept].iter().map(|(_, token)| *token).collect();
            assert_eq!(tokens, expected, "top-p {top_p}");
        }
    }

    #[test]
    fn repetition_is_penalised_on_both_sides_of_zero() {
        let mut sampler = sampler(Sampling { repeat_penalty: 2.0, ..Sampling::default() });
        sampler.saw(&[1]);
        assert_eq!(sampler.choose(&LOGITS).unwrap(), 2); // 3.0 counts 1.5
        sampler.saw(&[2, 0]);
        assert_eq!(sampler.choose(&LOGITS).unwrap(), 1); // 1.5, 1.0 and 0.5
        assert_eq!(sampler.choose(&[-9.0, -1.0, -9.0, -1.5, -9.0]).unwrap(), 3); // -1.0 counts -2.0
        sampler.saw(&[1, 1, 1]);
        assert_eq!(sampler.choose(&[-9.0, 1.0, -9.0, 0.4, -9.0]).unwrap(), 1); // once is enough
    }

    #[test]
    fn what_is_no_number_is_never_chosen() {
        let logits = [f32::NAN, 0.0, f32::NEG_INFINITY, 0.0, f32::NAN];
        let options = Sampling { top_k: 4, top_p: 0.99, min_p: 0.01, ..random(1.0) };
        close(&shares(options, &logits), &[0.0, 0.5, 0.0, 0.5, 0.0]);
        close(&shares(random(1.0), &[f32::INFINITY, 5.0, f32::INFINITY]), &[0.5, 0.0, 0.5]);
        for none in [vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 3], Vec::new()] {
            let error = sampler(random(1.0)).choose(&none).unwrap_err();
            assert!(matches!(error, Error::NoNumbers { vocabulary } if vocabulary == none.len()));
        }
    }

    #[test]
    fn a_seed_means_the_same_numbers_for_ever() {
        // The authors' C code with SplitMix64 seeds gives these.
        let mut generator = Xoshiro([1, 2, 3, 4]);
        let first: [u64; 4] = std::array::from_fn(|_| generator.next());
        assert_eq!(first, [41943041, 58720359, 3588806011781223, 3591011842654386]);
        assert_eq!(Xoshiro::new(0).0[..2], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
        let logits = [0.0; 100];
        let draw = |seed| {
            let mut sampler = sampler(Sampling { temperature: 1.0, seed, ..Sampling::default() });
            std::array::from_fn::<u32, 8, _>(|_| sampler.choose(&logits).unwrap())
        };
        assert_eq!(draw(42), draw(42));
        assert_ne!(draw(42), draw(43));
        assert_eq!(draw(42), [81, 31, 98, 70, 79, 58, 12, 60]);
    }

    #[test]
    fn options_outside_their_range_are_named() {
        let default = Sampling::default;
        let cases = [
            (Sampling { temperature: -1.0, ..default() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..default() }, "temperature"),
            (Sampling { temperature: f32::INFINITY, ..default() }, "temperature"),
            (Sampling { top_p: 0.0, ..default() }, "top-p"),
            (Sampling { top_p: 1.1, ..default() }, "top-p"),
            (Sampling { top_p: f32::NAN, ..default() }, "top-p"),
            (Sampling { min_p: -0.1, ..default() }, "min-p"),
            (Sampling { min_p: 1.5, ..default() }, "min-p"),
            (Sampling { repeat_penalty: 0.0, ..default() }, "repeat-penalty"),
            (Sampling { repeat_penalty: f32::NAN, ..default() }, "repeat-penalty"),
        ];
        for (options, name) in cases {
            let error = Sampler::new(options).unwrap_err().to_string();
            assert!(error.starts_with(&format!("option {name} wants ")), "{error}");
        }
        assert!(default().check().is_ok());
    }
}
