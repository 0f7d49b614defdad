//! Choosing the next token.
//!
//! The order is Hugging Face's: repetition penalty on the logits, then temperature, top-k, top-p, min-p; each sees what the
//! one before left, with its probabilities scaled to a sum of 1.

use std::collections::HashSet;

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

/// Checks that logits say how likely each token is: that none is NaN or inf, and some are more than -inf.
///
/// # Errors
/// Says how many are no numbers.
pub fn check_logits(logits: &[f32]) -> Result<(), Error> {
    let (mut all_fit, mut any_counts) = (true, false);
    for &logit in logits {
        all_fit &= logit < f32::INFINITY;
        any_counts |= logit > f32::NEG_INFINITY;
    }
    if all_fit && any_counts {
        return Ok(());
    }
    let wrong = logits.iter().filter(|logit| !logit.is_finite()).count();
    Err(Error::NoNumbers { wrong, vocabulary: logits.len() })
}

/// `ln Σ e^x` over logits, in f64: how far they are above the logarithms of probabilities.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &logit| max.max(f64::from(logit)));
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

/// Chooses tokens for one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    generator: Xoshiro,
    seen: HashSet<u32>,
    /// Of the whole vocabulary: logits, afterwards probabilities relative to that of the most likely token.
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    weight: f32,
}

impl Sampler {
    /// A sampler for a sequence that is still empty.
    ///
    /// # Errors
    /// If an option is outside its range.
    pub fn new(options: Sampling) -> Result<Sampler, Error> {
        options.check()?;
        let generator = Xoshiro::new(options.seed);
        Ok(Sampler { options, generator, seen: HashSet::new(), weights: Vec::new(), candidates: Vec::new() })
    }

    /// Notes tokens that the sequence has now, for the repetition penalty.
    pub fn saw(&mut self, tokens: &[u32]) {
        self.seen.extend(tokens);
    }

    /// Chooses a token by the logits of the whole vocabulary. NaN and -inf are never chosen.
    ///
    /// # Errors
    /// If there is nothing else.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, Error> {
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        let penalty = self.options.repeat_penalty;
        if penalty != 1.0 {
            for &token in &self.seen {
                if let Some(logit) = self.weights.get_mut(token as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        let Some(best) = likeliest(&self.weights) else {
            return Err(Error::NoNumbers { wrong: logits.len(), vocabulary: logits.len() });
        };
        let temperature = self.options.temperature;
        if temperature == 0.0 {
            return Ok(best);
        }
        let largest = self.weights[best as usize];
        for weight in &mut self.weights {
            // Equal logits, even infinite ones, are equally likely.
            *weight = exp(if *weight == largest { 0.0 } else { (*weight - largest) / temperature });
        }
        self.filter();
        let mut left = self.generator.unit() * total(&self.candidates);
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return Ok(candidate.token);
            }
        }
        Ok(best)
    }

    /// Makes candidates of the tokens that top-k, top-p and min-p leave.
    fn filter(&mut self) {
        let Sampling { top_k, top_p, min_p, .. } = self.options;
        let (by_rank, by_sum) = (top_k > 0 && top_k < self.weights.len(), top_p < 1.0);
        // Only the most likely tokens have to be sorted: those above a weight that a histogram finds.
        let floor = if by_rank {
            Histogram::of(&self.weights).floor(|count, _| count >= top_k)
        } else if by_sum {
            let histogram = Histogram::of(&self.weights);
            let enough = f64::from(top_p) * histogram.sums.iter().sum::<f64>();
            histogram.floor(|_, sum| sum >= enough)
        } else {
            0.0
        };
        let mut enough = f64::from(top_p);
        if by_sum && !by_rank {
            enough *= self.weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
        }
        self.candidates.clear();
        let candidates = self.weights.iter().zip(0..).map(|(&weight, token)| Candidate { token, weight });
        self.candidates.extend(candidates.filter(|candidate| candidate.weight > 0.0 && candidate.weight >= floor));
        if by_rank || by_sum {
            // The more likely first; of equals the smaller token.
            self.candidates.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token)));
        }
        if by_rank {
            self.candidates.truncate(top_k);
            enough *= total(&self.candidates);
        }
        if by_sum {
            let mut sum = 0.0;
            let short = self.candidates.iter().position(|candidate| {
                sum += f64::from(candidate.weight);
                sum >= enough
            });
            self.candidates.truncate(short.map_or(usize::MAX, |last| last + 1));
        }
        self.candidates.retain(|candidate| candidate.weight >= min_p);
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// How many weights there are of each size, and their sum: by the exponent and the first three bits of the fraction.
struct Histogram {
    counts: Vec<usize>,
    sums: Vec<f64>,
}

impl Histogram {
    /// The bits of a weight that its place leaves out.
    const REST: u32 = 20;

    /// Of weights from 0 to 1.
    fn of(weights: &[f32]) -> Histogram {
        let places = (1f32.to_bits() >> Histogram::REST) as usize + 1;
        let mut histogram = Histogram { counts: vec![0; places], sums: vec![0.0; places] };
        for &weight in weights {
            let place = (weight.to_bits() >> Histogram::REST) as usize;
            histogram.counts[place] += 1;
            histogram.sums[place] += f64::from(weight);
        }
        histogram
    }

    /// A weight such that the count and sum of those from there upwards are enough.
    fn floor(&self, enough: impl Fn(usize, f64) -> bool) -> f32 {
        let (mut count, mut sum) = (0, 0.0);
        for place in (0..self.counts.len()).rev() {
            count += self.counts[place];
            sum += self.sums[place];
            if enough(count, sum) {
                return f32::from_bits((place as u32) << Histogram::REST);
            }
        }
        0.0
    }
}

/// `e^x` for `x` from -inf to 0, within 2 units in the last place; 0 below -87, and for NaN. Written here, and without a
/// branch, for the sake of speed, and so that the same seed means the same text on every machine. The polynomial is that of
/// Cephes' `expf`.
fn exp(x: f32) -> f32 {
    // A sum with it has no fraction, and its integer in the last bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    let inside = x > -87.0;
    let x = if inside { x } else { 0.0 };
    let sum = x * std::f32::consts::LOG2_E + ROUND;
    let n = sum - ROUND;
    let r = x - n * (355.0 / 512.0) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let power = f32::from_bits(sum.to_bits().wrapping_add(127) << 23);
    if inside { p * power } else { 0.0 }
}

/// The token with the largest logit, of equals the first; `None` if there is no number above -inf.
pub fn likeliest(logits: &[f32]) -> Option<u32> {
    // Sixteen maxima side by side: the compiler makes vectors of them.
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut largest = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (largest, &logit) in largest.iter_mut().zip(chunk) {
            *largest = if logit > *largest { logit } else { *largest };
        }
    }
    let largest = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let at = logits.iter().position(|&logit| logit == largest).filter(|_| largest > f32::NEG_INFINITY)?;
    u32::try_from(at).ok()
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
        for length in 1..70 {
            for at in 0..length {
                let mut logits = vec![-1.0; length];
                logits[0] = f32::NAN;
                logits[at..].fill(-0.5);
                assert_eq!(greedy.choose(&logits).unwrap() as usize, at);
            }
        }
        for none in [vec![f32::NAN; 40], vec![f32::NEG_INFINITY; 3], Vec::new()] {
            assert!(greedy.choose(&none).is_err());
        }
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
    fn the_exponential_is_within_two_units() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) / 10_000.0;
            if x > -87.0 {
                let exact = f64::from(x).exp();
                let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                worst = worst.max((f64::from(exp(x)) - exact).abs() / unit);
            }
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!([exp(0.0), exp(-0.0), exp(-87.0), exp(f32::NEG_INFINITY), exp(f32::NAN)], [1.0, 1.0, 0.0, 0.0, 0.0]);
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
            assert!(matches!(error, Error::NoNumbers { wrong, .. } if wrong == none.len()));
            assert!(check_logits(&none).is_err());
        }
        let error = check_logits(&[f32::NAN, 0.0, f32::NEG_INFINITY]).unwrap_err().to_string();
        assert!(error.starts_with("2 of 3 logits are NaN or infinite"), "{error}");
        assert!(check_logits(&[f32::INFINITY, 0.0]).is_err());
        assert!(check_logits(&[0.0, f32::NEG_INFINITY]).is_ok());
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
