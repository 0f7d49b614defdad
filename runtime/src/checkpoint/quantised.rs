//! Quantised checkpoints in safetensors: tensors beside a weight, in which its scales are, or in place of it.
//!
//! `quantization_config` in config.json says which kind it is. FP8 (`fp8` as DeepSeek and Qwen have it, `fbgemm_fp8`,
//! `compressed-tensors`) keeps a weight's name and adds `_scale_inv` or `_scale`: one for all, some a row, or one a tile.
//! `compressed-tensors` has integers too: of 8 bits under a weight's name, of 4 and 8 in words as `_packed`, with `_shape`, both
//! with `_scale`, `_zero_point` and `_g_idx`; and floats of 4 bits as bytes in `_packed`, with `_scale` and `_global_scale`. GPTQ
//! and AWQ have `qweight`, `qzeros` and `scales` (GPTQ `g_idx` too; AWQ's `gemv_fast` `scaled_zeros`) where the weight would be.
//! MXFP4, GPT-OSS's, has experts' weights as `_blocks` and `_scales`.

mod integers;
mod method;

pub(crate) use method::Method;

use super::numbers::{Blocks, Digits, Groups, Numbers, Packed, Tiles};
use super::safetensors::Tensor;
use super::{Change, Dtype, Found};
use crate::Error;
use integers::{bytes, coded, packed};

/// Finds a weight by the reference implementation's name, however it is stored; `tensor` finds a file's tensors.
pub(super) fn find<'a>(
    method: Option<Method>,
    name: &str,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Option<Found<'a>>, Error> {
    match (tensor(name), method) {
        (Some(found), Some(Method::CompressedTensors { .. })) if found.dtype == safetensors::Dtype::I8 => {
            bytes(name, found, tensor).map(Some)
        }
        (Some(found), method) => plain_or_scaled(method, name, found, tensor).map(Some),
        (None, Some(Method::Int4 { packing, group })) => {
            let Some(stem) = name.strip_suffix(".weight") else { return Ok(None) };
            let Some(codes) = tensor(&format!("{stem}.qweight")) else { return Ok(None) };
            coded(packing, group, stem, codes, tensor).map(Some)
        }
        (None, Some(Method::CompressedTensors { .. })) => {
            let packed_name = format!("{name}_packed");
            let Some(codes) = tensor(&packed_name) else { return Ok(None) };
            match codes.dtype {
                safetensors::Dtype::U8 => fp4(name, packed_name, codes, tensor).map(Some),
                _ => packed(name, packed_name, codes, tensor).map(Some),
            }
        }
        (None, Some(Method::Mxfp4)) => {
            let block_name = format!("{name}_blocks");
            let Some(blocks) = tensor(&block_name) else { return Ok(None) };
            mxfp4(name, block_name, blocks, tensor).map(Some)
        }
        (None, _) => Ok(None),
    }
}

fn plain_or_scaled<'a>(
    method: Option<Method>,
    name: &str,
    found: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let blocks = found.blocks(name)?;
    let (rows, columns) = match found.shape.split_last() {
        Some((&columns, rows)) => (rows.iter().product::<usize>(), columns),
        None => (1, 1),
    };
    let plain = Found {
        file: found.file,
        shape: found.shape.to_vec(),
        numbers: Numbers::Blocks(blocks),
        change: Change::None,
        beside: Vec::new(),
    };
    if !matches!(blocks.dtype, Dtype::F8E4M3 | Dtype::F8E5M2) {
        return Ok(plain);
    }
    let names = [format!("{name}_scale_inv"), format!("{name}_scale")];
    let scale = names.iter().find_map(|name| tensor(name).map(|found| (name, found)));
    let (scale_name, scale) = match (scale, method) {
        (Some(scale), _) => scale,
        (None, None) => return Ok(plain),
        (None, Some(_)) => {
            let problem = format!("has no scale: `{}` or `{}` was expected", names[0], names[1]);
            return Err(found.wrong(name, problem));
        }
    };
    let (scales, divisor) = match scale.powers() {
        Some(powers) => (powers, HALF),
        None => (scale.plain(scale_name)?, 1.0),
    };
    let tiles = match method {
        Some(Method::Fp8 { tile } | Method::CompressedTensors { tile }) => tile,
        _ => None,
    };
    let fits = |[down, across]: [usize; 2]| scale.shape == [rows.div_ceil(down), columns.div_ceil(across)];
    let tile = match (scale.shape, tiles) {
        ([] | [1] | [1, 1], _) => [rows, columns],
        (_, Some(tile)) if found.shape.len() == 2 && fits(tile) => tile,
        ([count] | [count, 1], _) if *count == rows => [1, columns],
        ([count, groups], _) if *count == rows && *groups > 0 && columns.is_multiple_of(*groups) => {
            [1, columns / groups]
        }
        (shape, tile) => {
            let tiles = tile.map(|[down, across]| format!(", one for each {down} × {across}")).unwrap_or_default();
            let problem =
                format!("has the shape {shape:?}; one number, some for each of {rows} rows{tiles} were expected");
            return Err(scale.wrong(scale_name, problem));
        }
    };
    let scales = Tiles { scales, columns: columns.max(1), tile: tile.map(|size| size.max(1)), divisor };
    Ok(Found { numbers: Numbers::Scaled { blocks, scales, first: 0 }, beside: vec![scale_name.clone()], ..plain })
}

/// What is read of a power of two ([`Dtype::F8E8M0`]); of a float of 4 bits it is twice as much ([`Dtype::F4E2M1`]).
const HALF: f32 = 0.5;

/// Floats of 4 bits, two in a byte, with scales for groups of neighbours: powers of two, or floats of 8 bits that are divided by a
/// scale for all.
fn fp4<'a>(
    name: &str,
    packed_name: String,
    codes: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let [scale_name, whole_name] = ["scale", "global_scale"].map(|part| format!("{name}_{part}"));
    let scale = codes.beside(&packed_name, &scale_name, tensor(&scale_name))?;
    let &[outputs, pairs] = codes.shape else {
        let problem = format!("has the shape {:?}; two dimensions were expected", codes.shape);
        return Err(codes.wrong(&packed_name, problem));
    };
    let inputs = pairs.saturating_mul(2);
    let group = match scale.shape {
        &[rows, count] if rows == outputs && count > 0 && inputs.is_multiple_of(count) => (inputs / count).max(1),
        shape => {
            let problem =
                format!("has the shape {shape:?}; some for each of {outputs} rows were expected, for {inputs} inputs");
            return Err(scale.wrong(&scale_name, problem));
        }
    };
    let whole = tensor(&whole_name);
    let of_whole = match whole {
        None => 1.0,
        Some(whole) if whole.shape.iter().product::<usize>() == 1 => whole.plain(&whole_name)?.one(0),
        Some(whole) => {
            let problem = format!("has the shape {:?}; one number was expected", whole.shape);
            return Err(whole.wrong(&whole_name, problem));
        }
    };
    let (scales, twice) = match scale.powers() {
        Some(powers) => (powers, 1.0),
        None => (scale.blocks(&scale_name)?, 1.0 / HALF),
    };
    let scales = Tiles { scales, columns: inputs.max(1), tile: [1, group], divisor: twice * of_whole };
    let blocks = Blocks { dtype: Dtype::F4E2M1, bytes: codes.bytes };
    let mut beside = vec![packed_name, scale_name];
    beside.extend(whole.map(|_| whole_name));
    Ok(Found {
        file: codes.file,
        shape: vec![outputs, inputs],
        numbers: Numbers::Scaled { blocks, scales, first: 0 },
        change: Change::None,
        beside,
    })
}

/// Matrices that have a number of the reference implementation's first dimension in each column.
fn mxfp4<'a>(
    name: &str,
    block_name: String,
    blocks: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let scale_name = format!("{name}_scales");
    let scales = blocks.beside(&block_name, &scale_name, tensor(&scale_name))?;
    let [matrices @ .., outputs, groups, 16] = blocks.shape else {
        let problem = format!("has the shape {:?}; outputs, groups of inputs and 16 bytes were expected", blocks.shape);
        return Err(blocks.wrong(&block_name, problem));
    };
    let expected = &blocks.shape[..blocks.shape.len() - 1];
    if scales.shape != expected {
        let problem = format!("has the shape {:?}; {expected:?} was expected", scales.shape);
        return Err(scales.wrong(&scale_name, problem));
    }
    for (tensor, name) in [(&blocks, &block_name), (&scales, &scale_name)] {
        if tensor.dtype != safetensors::Dtype::U8 {
            return Err(tensor.wrong(name, format!("is of dtype {}; U8 was expected", tensor.dtype)));
        }
    }
    let inputs = groups.saturating_mul(32);
    let scales = Blocks { dtype: Dtype::F8E8M0, bytes: scales.bytes };
    let scales = Tiles { scales, columns: inputs.max(1), tile: [1, 32], divisor: 1.0 };
    let codes = Blocks { dtype: Dtype::F4E2M1, bytes: blocks.bytes };
    Ok(Found {
        file: blocks.file,
        shape: [matrices, &[inputs, *outputs]].concat(),
        numbers: Numbers::Scaled { blocks: codes, scales, first: 0 },
        change: Change::Transposed,
        beside: vec![block_name, scale_name],
    })
}

/// A tensor as far as quantised weights need it.
impl<'a> Tensor<'a> {
    fn wrong(&self, name: &str, problem: String) -> Error {
        Error::Tensor { file: self.file.to_owned(), tensor: name.to_owned(), problem }
    }

    /// The tensor that has to be beside it.
    fn beside(&self, name: &str, other: &str, found: Option<Tensor<'a>>) -> Result<Tensor<'a>, Error> {
        found.ok_or_else(|| self.wrong(name, format!("has no `{other}` beside it, which was expected")))
    }

    /// Its numbers, whatever floats they are.
    fn blocks(&self, name: &str) -> Result<Blocks<'a>, Error> {
        let dtype = match self.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::F8_E4M3 => Dtype::F8E4M3,
            safetensors::Dtype::F8_E5M2 => Dtype::F8E5M2,
            other => return Err(self.wrong(name, format!("is of dtype {other}; {READ} can be used"))),
        };
        Ok(Blocks { dtype, bytes: self.bytes })
    }

    /// Its numbers, of which each is a scale.
    fn plain(&self, name: &str) -> Result<Blocks<'a>, Error> {
        let blocks = self.blocks(name)?;
        match blocks.dtype {
            Dtype::F32 | Dtype::Bf16 | Dtype::F16 => Ok(blocks),
            other => Err(self.wrong(name, format!("is of dtype {}; F32, BF16 or F16 was expected", other.name()))),
        }
    }

    /// Its numbers, if each is an exponent of two: a half of the power.
    fn powers(&self) -> Option<Blocks<'a>> {
        let is = matches!(self.dtype, safetensors::Dtype::U8 | safetensors::Dtype::F8_E8M0);
        is.then_some(Blocks { dtype: Dtype::F8E8M0, bytes: self.bytes })
    }

    fn expect(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        match self.shape == shape {
            true => Ok(()),
            false => Err(self.wrong(name, format!("has the shape {:?}; {shape:?} was expected", self.shape))),
        }
    }

    fn words(&self, name: &str) -> Result<&'a [[u8; 4]], Error> {
        Ok(self.of_dtype(name, safetensors::Dtype::I32)?.as_chunks().0)
    }

    fn of_dtype(&self, name: &str, dtype: safetensors::Dtype) -> Result<&'a [u8], Error> {
        match self.dtype == dtype {
            true => Ok(self.bytes),
            false => Err(self.wrong(name, format!("is of dtype {}; {dtype} was expected", self.dtype))),
        }
    }

    /// Its codes, in words of a dtype.
    fn packed(
        &self,
        name: &str,
        words: safetensors::Dtype,
        bits: usize,
        rows: Digits,
        columns: Digits,
    ) -> Result<Packed<'a>, Error> {
        Ok(Packed { bytes: self.of_dtype(name, words)?, bits, rows, columns, inverted: 0 })
    }

    /// Its bytes, each a number with a sign, as codes that are greater by 128, whose rows and columns are so far apart.
    fn signed(&self, name: &str, row: usize, column: usize) -> Result<Packed<'a>, Error> {
        let packed = self.packed(name, safetensors::Dtype::I8, 8, Digits::of(&[], row), Digits::of(&[], column))?;
        Ok(Packed { inverted: 128, ..packed })
    }

    /// The group of each input, of which there are so many.
    fn groups(&self, name: &str, inputs: usize, count: usize) -> Result<Groups<'a>, Error> {
        self.expect(name, &[inputs])?;
        let groups = self.words(name)?;
        if let Some(at) = groups.iter().position(|group| u32::from_le_bytes(*group) as usize >= count) {
            let group = i32::from_le_bytes(groups[at]);
            return Err(self.wrong(name, format!("has the group {group} for input {at}; there are {count} groups")));
        }
        // As many neighbours in each group as in the first.
        let size = groups.iter().position(|group| *group != [0; 4]).unwrap_or(inputs);
        let of_place = |(input, group): (usize, &[u8; 4])| u32::from_le_bytes(*group) as usize == input / size;
        let in_order = size > 0 && groups.iter().enumerate().all(of_place);
        Ok(if in_order { Groups::Of(size) } else { Groups::Listed(groups) })
    }

    /// Its numbers, of which each is a size.
    fn sizes(&self, name: &str) -> Result<Vec<usize>, Error> {
        let sizes: Option<Vec<usize>> = match self.dtype {
            safetensors::Dtype::I64 => {
                self.bytes.as_chunks().0.iter().map(|n| usize::try_from(i64::from_le_bytes(*n)).ok()).collect()
            }
            safetensors::Dtype::I32 => {
                self.bytes.as_chunks().0.iter().map(|n| usize::try_from(i32::from_le_bytes(*n)).ok()).collect()
            }
            other => return Err(self.wrong(name, format!("is of dtype {other}; I64 or I32 was expected"))),
        };
        sizes.ok_or_else(|| self.wrong(name, "has a negative number; sizes were expected".into()))
    }
}

/// The dtypes of weights in safetensors.
pub(super) const READ: &str = "F32, BF16, F16, F8_E4M3 and F8_E5M2";

#[cfg(test)]
mod tests;
