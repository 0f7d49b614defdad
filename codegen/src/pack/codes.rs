//! Writing codes: of elements that are in blocks their own, of others the nearest.

use std::array;

use half::bf16;

use super::{Blocks, RUN, SCALES, Values};
use crate::loops::{Codes, Element, Format, PANEL};

/// Stores the rows of a column of a panel in their own blocks. What is there is zero.
pub(super) fn write_codes(
    codes: Codes,
    blocks: &Blocks<'_>,
    source: usize,
    rows: usize,
    column: usize,
    out: &mut [u8],
) {
    let (format, planes) = (Format::Codes(codes), codes.planes());
    let (mut values, mut scales) = ([0i8; RUN], [[0.0f32; 2]; SCALES]);
    let base = codes.base(&blocks.grid);
    let code_of = code_of(codes, base);
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
            let scale = bf16::from_f32(scale);
            let minimum = minimum + base as f32 * scale.to_f32();
            let beside = [scale, bf16::from_f32(minimum)];
            for (nth, number) in beside.into_iter().take(1 + usize::from(codes.minimum)).enumerate() {
                block[format.values() + (nth * PANEL + column) * 2..][..2].copy_from_slice(&number.to_le_bytes());
            }
        }
    }
}

/// The code of each value, by its byte; of those that have none something.
fn code_of(codes: Codes, base: i32) -> [u8; 256] {
    array::from_fn(|byte| {
        let value = byte as u8 as i8;
        match codes.levels {
            Some(levels) => levels.iter().position(|level| *level == value).unwrap_or(0) as u8,
            None => (i32::from(value) - base) as u8,
        }
    })
}

/// Stores a block of a panel as the nearest codes, and its scales. What is there is zero.
pub(super) fn write_block(codes: Codes, rows: &[[f32; PANEL]], out: &mut [u8]) {
    let best = if codes.bits == 4 { scale_of_few_codes(rows) } else { scale_of_many_codes(rows) };
    let best = best.map(bf16::from_f32);
    let scales = &mut out[Format::Codes(codes).values()..];
    for (scale, out) in best.iter().zip(scales.as_chunks_mut().0) {
        *out = scale.to_le_bytes();
    }
    let inverse = best.map(|scale| if scale == bf16::ZERO { 0.0 } else { 1.0 / scale.to_f32() });
    let least = -codes.offset as f32;
    let planes = codes.planes();
    for (k, row) in rows.iter().enumerate() {
        for (n, (x, inverse)) in row.iter().zip(&inverse).enumerate() {
            let code = (rounded(x * inverse).clamp(least, -least - 1.0) - least) as u8;
            for plane in &planes {
                let (at, shift) = plane.place(k, n);
                out[at] |= (code >> plane.shift & plane.mask()) << shift;
            }
        }
    }
}

/// A weight whose numbers are to be those that codes say, where the checkpoint has others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) codes: Codes,
    /// Coordinates of the axis along which its blocks are.
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

/// The nearest codes of floats, row-major, in blocks along the axis `dim` of these sizes: what becomes of them when they are
/// packed as [`Format::Q8`] or [`Format::Q4`].
pub fn nearest(codes: Codes, floats: &[f32], sizes: &[usize], dim: usize) -> Vec<Element> {
    let read = |at: usize, out: &mut [f32]| out.copy_from_slice(&floats[at..][..out.len()]);
    let values = Values::Read { elements: floats.len(), read: &read, blocks: None };
    let mut all = vec![Element::default(); floats.len()];
    Made { codes, size: sizes[dim], stride: sizes[dim + 1..].iter().product() }.read(&values, 0, &mut all);
    all
}

/// The nearest whole number to a small one, ties to even.
fn rounded(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The largest magnitude of each column has the largest code.
fn scale_of_many_codes(rows: &[[f32; PANEL]]) -> [f32; PANEL] {
    let mut largest = [0.0f32; PANEL];
    for row in rows {
        for (largest, x) in largest.iter_mut().zip(row) {
            *largest = largest.max(x.abs());
        }
    }
    largest.map(|largest| largest / 127.0)
}

/// The scale with the least sum of squared errors, of those that give the largest magnitude some code near the ends, each
/// with the scale that is best for the codes that follow.
fn scale_of_few_codes(rows: &[[f32; PANEL]]) -> [f32; PANEL] {
    const ENDS: [f32; 8] = [-8.5, -8.0, -7.5, -7.0, -6.5, 7.0, 7.5, 6.5];
    let mut extreme = [0.0f32; PANEL];
    for row in rows {
        for (extreme, x) in extreme.iter_mut().zip(row) {
            *extreme = if x.abs() > extreme.abs() { *x } else { *extreme };
        }
    }
    let (mut best, mut least) = ([0.0f32; PANEL], [0.0f32; PANEL]);
    for end in ENDS {
        let inverse = extreme.map(|x| if x == 0.0 { 0.0 } else { end / x });
        let (mut with, mut squares) = ([0.0f32; PANEL], [0.0f32; PANEL]);
        for row in rows {
            for n in 0..PANEL {
                let code = rounded(row[n] * inverse[n]).clamp(-8.0, 7.0);
                with[n] += row[n] * code;
                squares[n] += code * code;
            }
        }
        for n in 0..PANEL {
            // The error falls by what the best scale explains.
            let explained = with[n] * with[n] / squares[n].max(f32::MIN_POSITIVE);
            if explained > least[n] {
                (least[n], best[n]) = (explained, with[n] / squares[n]);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{E2M1, Grid, IQ4};

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
                write_codes(codes, &Blocks { grid, read: &read }, 64, rows, column, &mut panel);
                for k in 0..rows {
                    let block = &panel[format.rows(k)..];
                    let [scale, minimum] = scale(64 + k);
                    let wanted = scale * f32::from(value(64 + k)) + if grid.minimum { minimum } else { 0.0 };
                    let found = codes.number(codes.read(block, k % codes.block, column));
                    assert_eq!(found, f64::from(wanted), "{grid:?} as {format}, {k}");
                }
            }
            assert!(holding > 0, "{grid:?}");
            assert!(Format::holding(&[grid]).is_some_and(|format| format.bytes() <= 8.5 / 8.0), "{grid:?}");
        }
        let mixed = Format::holding(&[Grid { minimum: true, ..plain(32, 0, 15) }, plain(16, -32, 31)]);
        assert_eq!(mixed.map(|format| format.to_string()).as_deref(), Some("q6_16_min"));
        assert_eq!(Format::holding(&[plain(8, 0, 1)]), None);
    }

    #[test]
    fn codes_are_within_half_a_step() {
        for format in [Format::Q8, Format::Q4] {
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
                    let ends = element.code == 0 || i32::from(element.code) == 2 * codes.offset - 1;
                    assert!(ends || error.abs() <= element.scale.abs() * 0.501, "{format}: {x} is off by {error}");
                }
            }
            let relative = (squares[0] / squares[1]).sqrt();
            assert!(relative < if format == Format::Q4 { 0.09 } else { 0.006 }, "{format}: {relative}");
        }
    }
}
