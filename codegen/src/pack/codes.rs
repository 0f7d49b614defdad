//! Writing codes: of elements that are in blocks their own, of others the nearest.

use std::array;
use std::ops::Range;

use half::bf16;

use super::{InBlocks, RUN, SCALES, Values};
use crate::format::{Codes, Element, Format, PANEL, ROUND};

/// Stores the rows of a column of a panel in their own blocks. What is there is zero.
pub(super) fn write_codes(
    codes: Codes,
    blocks: &InBlocks<'_>,
    source: usize,
    rows: usize,
    column: usize,
    out: &mut [u8],
) {
    let (format, planes) = (Format::Codes(codes), codes.planes());
    let (mut values, mut scales) = ([0i8; RUN], [[0.0f32; 2]; SCALES]);
    let code_of = code_of(codes);
    let each = blocks.grid.block;
    for first in (0..rows).step_by(RUN) {
        let values = &mut values[..RUN.min(rows - first)];
        let scales = &mut scales[..values.len() / each];
        (blocks.read)(source + first, values, scales);
        let (fours, panel) = (values.as_chunks::<4>().0, &mut out[format.rows(first)..]);
        let blocks = panel.chunks_mut(format.rows(codes.block));
        for (nth, (fours, block)) in fours.chunks(codes.block / 4).zip(blocks).enumerate() {
            for (step, four) in fours.iter().enumerate() {
                let four = u32::from_le_bytes(four.map(|value| code_of[usize::from(value as u8)]));
                for plane in &planes {
                    let (at, shift) = plane.place(4 * step, column);
                    let bits = four >> plane.shift & u32::from_le_bytes([plane.mask(); 4]);
                    for (out, bits) in block[at..].iter_mut().zip((bits << shift).to_le_bytes()) {
                        *out |= bits;
                    }
                }
            }
            let [scale, minimum] = scales[nth * codes.block / each];
            let beside = [scale, minimum].map(bf16::from_f32);
            for (nth, number) in beside.into_iter().take(1 + usize::from(codes.minimum)).enumerate() {
                block[format.values() + (nth * PANEL + column) * 2..][..2].copy_from_slice(&number.to_le_bytes());
            }
        }
    }
}

/// The code of each value, by its byte; of those that have none something.
fn code_of(codes: Codes) -> [u8; 256] {
    array::from_fn(|byte| {
        let value = byte as u8 as i8;
        match codes.levels {
            Some(levels) => levels.iter().position(|level| *level == value).unwrap_or(0) as u8,
            None => (i32::from(value) + codes.offset) as u8,
        }
    })
}

/// Stores a block of a panel as the nearest codes, and its scales. What is there is zero.
pub(super) fn write_block(codes: Codes, rows: &[[f32; PANEL]], out: &mut [u8]) {
    match codes.steps {
        Some(part) => write_steps(codes, part, rows, out),
        None => write_bytes(codes, rows, out),
    }
}

/// A weight whose numbers are to be those that codes say, where the checkpoint has others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) codes: Codes,
    /// Coordinates of the axes along which its blocks are.
    pub(super) size: usize,
    /// Elements from one of them to the next.
    pub(super) stride: usize,
}

impl Made {
    /// Reads neighbours as codes, from the element `at` on.
    pub(super) fn read(&self, values: &Values<'_>, at: usize, out: &mut [Element]) {
        let Made { codes, size, stride } = *self;
        let block = codes.block;
        let mut done = 0;
        while done < out.len() {
            let at = at + done;
            let mut rows = vec![[0.0f32; PANEL]; block];
            let nth = at / stride % size % block;
            // The elements that are there of the blocks that are read: how many, and for each its place in them.
            let (count, place): (usize, &dyn Fn(usize) -> (usize, usize)) = if stride == 1 {
                // Each block is a column.
                let columns = (out.len() - done + nth).div_ceil(block).min(PANEL);
                let mut run = vec![0.0; columns * block];
                values.read(at - nth, &mut run);
                for (i, x) in run.iter().enumerate() {
                    rows[i % block][i / block] = *x;
                }
                (columns * block - nth, &|i| ((nth + i) % block, (nth + i) / block))
            } else {
                let columns = (stride - at % stride).min(PANEL);
                for (k, row) in rows.iter_mut().enumerate() {
                    values.read(at + k * stride - nth * stride, &mut row[..columns]);
                }
                (columns, &|i| (nth, i))
            };
            let mut bytes = vec![0; Format::Codes(codes).rows(block)];
            write_block(codes, &rows, &mut bytes);
            let count = count.min(out.len() - done);
            for (i, out) in out[done..done + count].iter_mut().enumerate() {
                let (k, n) = place(i);
                *out = codes.read(&bytes, k, n);
            }
            done += count;
        }
    }
}

/// The nearest codes of floats, row-major, in blocks along the axes `dims` of these sizes, as one: what becomes of them when they
/// are packed as [`Format::Q8`] or [`Format::Q4`].
pub fn nearest(codes: Codes, floats: &[f32], sizes: &[usize], dims: Range<usize>) -> Vec<Element> {
    let read = |at: usize, out: &mut [f32]| out.copy_from_slice(&floats[at..][..out.len()]);
    let values = Values::Read { elements: floats.len(), read: &read, blocks: None };
    let mut all = vec![Element::default(); floats.len()];
    let (size, stride) = (sizes[dims.clone()].iter().product(), sizes[dims.end..].iter().product());
    Made { codes, size, stride }.read(&values, 0, &mut all);
    all
}

/// The same of bytes: the largest magnitude of each column has the largest code.
fn write_bytes(codes: Codes, rows: &[[f32; PANEL]], out: &mut [u8]) {
    let mut largest = [0.0f32; PANEL];
    for row in rows {
        for (largest, x) in largest.iter_mut().zip(row) {
            *largest = largest.max(x.abs());
        }
    }
    let scales = largest.map(|largest| bf16::from_f32(largest / 127.0));
    write_scales(codes, rows, scales, out);
    let inverse = scales.map(inverse);
    let least = -codes.offset as f32;
    for (step, four) in rows.as_chunks::<4>().0.iter().enumerate() {
        for (k, row) in four.iter().enumerate() {
            for n in 0..PANEL {
                let code = rounded(row[n] * inverse[n]).clamp(least, -least - 1.0) - least;
                out[(step * PANEL + n) * 4 + k] = code as u8;
            }
        }
    }
}

/// Stores the scales of columns. A column with NaN or an infinity, of which no code can tell, has NaN.
fn write_scales(codes: Codes, rows: &[[f32; PANEL]], scales: [bf16; PANEL], out: &mut [u8]) {
    let mut none = [0.0f32; PANEL];
    for row in rows {
        for (none, x) in none.iter_mut().zip(row) {
            *none += x * 0.0;
        }
    }
    let scales = scales.iter().zip(none).map(|(scale, none)| if none == 0.0 { *scale } else { bf16::NAN });
    for (scale, out) in scales.zip(out[Format::Codes(codes).values()..].as_chunks_mut().0) {
        *out = scale.to_le_bytes();
    }
}

/// What numbers are multiplied with in place of a division.
fn inverse(scale: bf16) -> f32 {
    if scale == bf16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

/// The largest code in steps, and the largest step.
const MOST: f32 = 15.0;

/// The largest product of a step with a code less its zero.
const REACH: f32 = 127.0;

/// What is best for a part's columns, each for itself.
#[derive(Clone, Copy)]
struct Best {
    /// The distance of neighbouring codes.
    distance: [f32; PANEL],
    /// The code of 0.
    zero: [f32; PANEL],
}

/// The same of codes in steps. First the best distances of neighbouring codes are found, part by part; then the scale is the
/// least one of which all are multiples by a step, about; then codes and zeros are those that are best with these steps, and the
/// scale the one that is best with these codes.
fn write_steps(codes: Codes, part: usize, rows: &[[f32; PANEL]], out: &mut [u8]) {
    let parts = rows.chunks(part);
    let best: Vec<Best> = parts.clone().map(Best::of).collect();
    let mut scales = [0.0f32; PANEL];
    for best in &best {
        for (scale, (distance, zero)) in scales.iter_mut().zip(best.distance.iter().zip(best.zero)) {
            *scale = scale.max(distance / largest_step(zero));
        }
    }
    let mut fitted = [[0.0f32; PANEL]; 2];
    let mut steps: Vec<[[f32; PANEL]; 2]> = Vec::with_capacity(best.len());
    for (rows, best) in parts.clone().zip(&best) {
        steps.push(best.in_steps(rows, &scales, &mut fitted));
    }
    let [with, squares] = fitted;
    let of_codes: [bf16; PANEL] =
        array::from_fn(|n| bf16::from_f32(if squares[n] > 0.0 { with[n] / squares[n] } else { 0.0 }));
    write_scales(codes, rows, of_codes, out);
    let inverse = of_codes.map(inverse);
    let (plane, parts_at) = (codes.planes()[0], codes.parts_at());
    for (nth, (rows, [steps, zeros])) in parts.zip(&steps).enumerate() {
        for n in 0..PANEL {
            out[parts_at + nth * PANEL + n] = steps[n] as u8 | (zeros[n] as u8) << 4;
        }
        let factors: [f32; PANEL] = array::from_fn(|n| inverse[n] / steps[n].max(1.0));
        for (k, row) in rows.iter().enumerate() {
            for n in 0..PANEL {
                let code = rounded(row[n] * factors[n] + zeros[n]).clamp(0.0, MOST);
                let (at, shift) = plane.place(nth * part + k, n);
                out[at] |= (code as u8) << shift;
            }
        }
    }
}

/// The largest step with which all codes are bytes.
fn largest_step(zero: f32) -> f32 {
    (REACH / zero.max(MOST - zero)).floor().min(MOST)
}

impl Best {
    /// Tries what the numbers, and 0, span, and a little more. Less makes the sum of squared errors smaller, but cuts the ends
    /// off, and a model's perplexity is worse for it.
    fn of(rows: &[[f32; PANEL]]) -> Best {
        const SHARES: [f32; 2] = [1.0, 1.04];
        let (mut least, mut most) = ([0.0f32; PANEL], [0.0f32; PANEL]);
        for row in rows {
            for n in 0..PANEL {
                least[n] = least[n].min(row[n]);
                most[n] = most[n].max(row[n]);
            }
        }
        let mut best = Best { distance: [0.0; PANEL], zero: [0.0; PANEL] };
        let mut explained = [0.0f32; PANEL];
        for share in SHARES {
            let distance: [f32; PANEL] = array::from_fn(|n| share / MOST * (most[n] - least[n]));
            let inverse = distance.map(|distance| if distance > 0.0 { 1.0 / distance } else { 0.0 });
            let down: [f32; PANEL] = array::from_fn(|n| (-least[n] * share * inverse[n]).floor().clamp(0.0, MOST));
            for zero in [down, down.map(|zero| (zero + 1.0).min(MOST))] {
                let fitted = fit(rows, &inverse, &zero);
                for n in 0..PANEL {
                    // The error falls by what the best distance explains.
                    let [with, squares] = [fitted[0][n], fitted[1][n].max(f32::MIN_POSITIVE)];
                    if with * with / squares > explained[n] {
                        explained[n] = with * with / squares;
                        (best.distance[n], best.zero[n]) = (with / squares, zero[n]);
                    }
                }
            }
        }
        best
    }

    /// The step and the zero of each column, with these scales. Adds up what the scale that is best with the codes follows
    /// from.
    fn in_steps(
        &self,
        rows: &[[f32; PANEL]],
        scales: &[f32; PANEL],
        fitted: &mut [[f32; PANEL]; 2],
    ) -> [[f32; PANEL]; 2] {
        let steps: [f32; PANEL] = array::from_fn(|n| {
            let step = if scales[n] > 0.0 { rounded(self.distance[n] / scales[n]) } else { 0.0 };
            step.clamp(1.0, largest_step(self.zero[n]))
        });
        let inverse: [f32; PANEL] =
            array::from_fn(|n| if scales[n] > 0.0 { 1.0 / (steps[n] * scales[n]) } else { 0.0 });
        let mut best = self.zero;
        let mut least = [f32::INFINITY; PANEL];
        let mut of_best = [[0.0f32; PANEL]; 2];
        for by in [0.0, -1.0, 1.0] {
            let zero = self.zero.map(|zero| zero + by);
            let [with, squares] = fit(rows, &inverse, &zero);
            for n in 0..PANEL {
                // The error, but for the sum of the numbers' squares.
                let distance = steps[n] * scales[n];
                let error = distance * (distance * squares[n] - 2.0 * with[n]);
                let can = (0.0..=MOST).contains(&zero[n]) && steps[n] <= largest_step(zero[n]);
                if can && error < least[n] {
                    (least[n], best[n]) = (error, zero[n]);
                    (of_best[0][n], of_best[1][n]) = (with[n] * steps[n], squares[n] * steps[n] * steps[n]);
                }
            }
        }
        for (sum, part) in fitted.as_flattened_mut().iter_mut().zip(of_best.as_flattened()) {
            *sum += part;
        }
        [steps, best]
    }
}

/// Of each column the sum of the products of numbers and their codes, less the zero, and the sum of the codes' squares.
fn fit(rows: &[[f32; PANEL]], inverse: &[f32; PANEL], zero: &[f32; PANEL]) -> [[f32; PANEL]; 2] {
    let (mut with, mut squares) = ([0.0f32; PANEL], [0.0f32; PANEL]);
    for row in rows {
        for n in 0..PANEL {
            let code = rounded(row[n] * inverse[n] + zero[n]).clamp(0.0, MOST) - zero[n];
            with[n] += row[n] * code;
            squares[n] += code * code;
        }
    }
    [with, squares]
}

/// The nearest whole number to a small one, ties to even.
fn rounded(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{E2M1, Grid, IQ4};

    #[test]
    fn what_is_no_number_stays_none() {
        for codes in [Format::Q8, Format::Q4].map(|format| format.codes().unwrap()) {
            for none in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut floats = vec![1.0; 2 * codes.block];
                floats[3] = none;
                let elements = nearest(codes, &floats, &[2, codes.block], 1..2);
                let scales: Vec<bool> = elements.iter().map(|element| element.scale.is_nan()).collect();
                assert!(scales[..codes.block].iter().all(|nan| *nan) && !scales[codes.block..].contains(&true));
            }
        }
    }

    #[test]
    fn blocks_keep_their_values_in_every_format_that_holds_them() {
        let plain = |block, least, most| Grid { block, least, most, minimum: false, levels: None };
        let grids = [
            plain(32, -8, 7),
            plain(32, -16, 15),
            plain(32, -128, 127),
            plain(16, -4, 3),
            plain(16, -32, 31),
            Grid { minimum: true, ..plain(32, 0, 15) },
            Grid { minimum: true, ..plain(32, 0, 31) },
            Grid { minimum: true, ..plain(16, 0, 3) },
            Grid { levels: Some(&IQ4), ..plain(32, -127, 113) },
            Grid { levels: Some(&E2M1), ..plain(32, -12, 12) },
        ];
        for grid in grids {
            let value = |at: usize| match grid.levels {
                Some(levels) => levels[at * 7 % 16],
                None => {
                    (i32::from(grid.least) + at as i32 * 7 % (i32::from(grid.most) - i32::from(grid.least) + 1)) as i8
                }
            };
            // Both are bf16 numbers, so that nothing is rounded.
            let scale = |at: usize| [0.25 * (1 + at / grid.block % 5) as f32, -0.5 * (at / grid.block % 3) as f32];
            let read = |at: usize, values: &mut [i8], scales: &mut [[f32; 2]]| {
                values.iter_mut().enumerate().for_each(|(i, out)| *out = value(at + i));
                scales.iter_mut().enumerate().for_each(|(i, out)| {
                    let [scale, minimum] = scale(at + i * grid.block);
                    *out = [scale, if grid.minimum { minimum } else { 0.0 }];
                });
            };
            let mut holding = 0;
            for codes in Format::ALL.into_iter().filter_map(Format::codes).filter(|codes| codes.holds(&grid)) {
                holding += 1;
                let (format, rows, column) = (Format::Codes(codes), 960, 5);
                let mut panel = vec![0; format.panel(rows)];
                write_codes(codes, &InBlocks { grid, read: &read }, 64, rows, column, &mut panel);
                for k in 0..rows {
                    let block = &panel[format.rows(k)..];
                    let [scale, minimum] = scale(64 + k);
                    let wanted = scale * f32::from(value(64 + k)) + if grid.minimum { minimum } else { 0.0 };
                    let found = codes.number(codes.read(block, k % codes.block, column));
                    assert_eq!(found, f64::from(wanted), "{grid:?} as {format}, {k}");
                }
            }
            assert!(holding > 0, "{grid:?}");
            assert!(Format::holding(&grid).is_some_and(|format| format.bytes() <= 8.5 / 8.0), "{grid:?}");
        }
        assert_eq!(Format::holding(&plain(8, 0, 1)), None);
    }

    #[test]
    fn codes_are_within_half_a_step() {
        for format in [Format::Q8, Format::Q4, Format::Q4.fitting(64)] {
            let rows: Vec<[f32; PANEL]> = (0..format.block())
                .map(|k| {
                    array::from_fn(|n| {
                        if n == 3 { 0.0 } else { (((k * 31 + n * 7) * 37 % 255) as f32 - 127.0) / (n + 1) as f32 }
                    })
                })
                .collect();
            let codes = format.codes().unwrap();
            let mut block = vec![0; format.rows(format.block())];
            write_block(codes, &rows, &mut block);
            let mut squares = [0.0f32; 2];
            for (k, row) in rows.iter().enumerate() {
                for (n, x) in row.iter().enumerate() {
                    let element = codes.read(&block, k, n);
                    let error = codes.number(element) as f32 - x;
                    squares[0] += error * error;
                    squares[1] += x * x;
                    // Only what lies beyond the codes' ends may be farther off.
                    let ends = element.code == 0 || usize::from(element.code) == (1 << codes.bits) - 1;
                    let step = if codes.steps.is_some() { element.part & 15 } else { 1 };
                    let distance = element.scale * f32::from(step);
                    assert!(ends || error.abs() <= distance.abs() * 0.501, "{format}: {x} is off by {error}");
                }
            }
            let relative = (squares[0] / squares[1]).sqrt();
            assert!(relative < if codes.bits == 4 { 0.09 } else { 0.006 }, "{format}: {relative}");
        }
    }
}
