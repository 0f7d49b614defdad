//! Attention with linear biases (Press et al., 2021): each head lowers its scores with the distance, by a slope of its own.

/// The slopes of `heads` heads: 2^(-8/n), 2^(-16/n), … for the largest power of two n that is no more than `heads`, and for
/// the others every second slope of 2n heads.
pub(crate) fn slopes(heads: usize) -> Vec<f32> {
    let power = 1 << heads.max(1).ilog2();
    let slope = |number: usize, of: usize| (-8.0 * number as f64 / of as f64).exp2() as f32;
    let first = (1..=power).map(|i| slope(i, power));
    let rest = (0..heads - power.min(heads)).map(|i| slope(2 * i + 1, 2 * power));
    first.take(heads).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::slopes;

    #[test]
    fn powers_of_two_and_what_is_between() {
        assert_eq!(slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
    }
}
