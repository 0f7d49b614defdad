//! Writing codes: of elements that are in blocks their own, of others the nearest.

use std::array;

use half::bf16;

use super::{Blocks, RUN, SCALES};
use crate::loops::{Codes, Format, PANEL};

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

    fn number_at(block: &[u8], at: usize) -> f32 {
        bf16::from_le_bytes([block[at], block[at + 1]]).to_f32()
    }

    /// A code of a block, and what it says.
    fn decoded(codes: Codes, block: &[u8], k: usize, n: usize) -> (u8, f32) {
        let mut code = 0;
        for plane in codes.planes() {
            let (at, shift) = plane.place(k, n);
            code |= (block[at] >> shift & plane.mask()) << plane.shift;
        }
        let at = Format::Codes(codes).values() + 2 * n;
        let minimum = if codes.minimum { number_at(block, at + 2 * PANEL) } else { 0.0 };
        (code, number_at(block, at) * codes.value(code) as f32 + minimum)
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
                write_codes(codes, &Blocks { grid, read: &read }, 64, rows, column, &mut panel);
                for k in 0..rows {
                    let block = &panel[format.rows(k)..];
                    let [scale, minimum] = scale(64 + k);
                    let wanted = scale * f32::from(value(64 + k)) + if grid.minimum { minimum } else { 0.0 };
                    assert_eq!(decoded(codes, block, k % codes.block, column).1, wanted, "{grid:?} as {format}, {k}");
                }
            }
            assert!(holding > 0, "{grid:?}");
            assert!(Format::holding(&grid).is_some_and(|format| format.bytes() <= 8.5 / 8.0), "{grid:?}");
        }
        assert_eq!(Format::holding(&plain(8, 0, 1)), None);
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
                    let code = decoded(codes, &block, k, n);
                    let error = code.1 - x;
                    squares[0] += error * error;
                    squares[1] += x * x;
                    // Only what lies beyond the codes' ends may be farther off.
                    let ends = code.0 == 0 || i32::from(code.0) == 2 * codes.offset - 1;
                    let scale = number_at(&block, format.values() + 2 * n);
                    assert!(ends || error.abs() <= scale.abs() * 0.501, "{format}: {x} is off by {error}");
                }
            }
            let relative = (squares[0] / squares[1]).sqrt();
            assert!(relative < if format == Format::Q4 { 0.09 } else { 0.006 }, "{format}: {relative}");
        }
    }
}
