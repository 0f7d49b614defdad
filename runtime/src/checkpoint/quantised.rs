//! Quantised checkpoints in safetensors: tensors beside a weight, in which its scales are, or in place of it.
//!
//! `quantization_config` in config.json says which kind it is. FP8 (`fp8` as DeepSeek and Qwen have it, `fbgemm_fp8`,
//! `compressed-tensors`) keeps a weight's name and adds `_scale_inv` or `_scale`: one for all, one a row, or one a tile. GPTQ and
//! AWQ have `qweight`, `qzeros` and `scales` (GPTQ `g_idx` too) where the weight would be. MXFP4, GPT-OSS's, has experts' weights
//! as `_blocks` and `_scales`.

use serde_json::Value;

use super::numbers::{Blocks, Codes, Groups, Numbers, Packing, Tiles};
use super::safetensors::Tensor;
use super::{Change, Dtype, Found, Json};
use crate::Error;

/// How the weights of a checkpoint are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// 8-bit floats with scales, where tiles of so many rows and columns have one.
    Fp8 {
        /// Rows and columns, if they are tiles.
        tile: Option<[usize; 2]>,
    },
    /// 4-bit integers.
    Int4 {
        packing: Packing,
        /// How many inputs share a scale; all if `None`.
        group: Option<usize>,
    },
    /// 4-bit floats with a power of two for 32 of them.
    Mxfp4,
}

/// The key of config.json.
const CONFIG: &str = "quantization_config";

/// What can be read.
const METHODS: &str = "fp8, fbgemm_fp8, compressed-tensors, gptq, awq and mxfp4 can be read";

impl Method {
    /// What config.json says; `None` if nothing is quantised.
    pub(super) fn of(config: &Json) -> Result<Option<Method>, Error> {
        let Some(settings) = config.object.get(CONFIG).filter(|settings| !settings.is_null()) else { return Ok(None) };
        let settings = Settings { config, settings };
        let method = settings.text("quant_method", None)?;
        Ok(Some(match method {
            "fp8" => Method::Fp8 { tile: settings.tile(settings.settings, "weight_block_size")? },
            "fbgemm_fp8" => Method::Fp8 { tile: None },
            "compressed-tensors" => settings.compressed_tensors()?,
            "gptq" => {
                let format = settings.text("checkpoint_format", Some("gptq"))?;
                let more = match format {
                    "gptq" => 1,
                    "gptq_v2" => 0,
                    _ => return settings.wrong("checkpoint_format", format, "gptq and gptq_v2 can be read"),
                };
                settings.int4(Packing::Gptq { more }, "bits", "group_size")?
            }
            "awq" => {
                let version = settings.text("version", Some("gemm"))?;
                if !version.eq_ignore_ascii_case("gemm") {
                    return settings.wrong("version", version, "gemm can be read");
                }
                settings.int4(Packing::Awq, "bits", "group_size")?
            }
            "mxfp4" => Method::Mxfp4,
            other => return settings.wrong("quant_method", other, METHODS),
        }))
    }
}

/// `quantization_config`.
struct Settings<'a> {
    config: &'a Json,
    settings: &'a Value,
}

impl<'a> Settings<'a> {
    fn error(&self, key: &str, problem: &str) -> Error {
        self.config.wrong(&format!("{CONFIG}.{key}"), problem)
    }

    fn wrong<T>(&self, key: &str, is: &str, known: &str) -> Result<T, Error> {
        Err(self.error(key, &format!("is `{is}`; {known}")))
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.settings.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str, default: Option<&'static str>) -> Result<&'a str, Error> {
        match self.value(key) {
            Some(value) => value.as_str().ok_or_else(|| self.error(key, &format!("wants a string, not {value}"))),
            None => default.ok_or_else(|| self.error(key, "is missing")),
        }
    }

    /// Rows and columns, if there is such a key.
    fn tile(&self, of: &Value, key: &str) -> Result<Option<[usize; 2]>, Error> {
        let Some(value) = of.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let sizes = value.as_array().map(Vec::as_slice);
        let size = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|&size| size > 0);
        match sizes {
            Some([rows, columns]) => size(rows).zip(size(columns)).map(|(rows, columns)| [rows, columns]),
            _ => None,
        }
        .map(Some)
        .ok_or_else(|| self.error(key, &format!("wants two numbers of at least 1, not {value}")))
    }

    fn int4(&self, packing: Packing, bits: &str, group: &str) -> Result<Method, Error> {
        match self.value(bits) {
            Some(value) if value.as_u64() == Some(4) => {}
            Some(value) => return self.wrong(bits, &value.to_string(), "4 can be read"),
            None => return Err(self.error(bits, "is missing")),
        }
        let group = match self.value(group) {
            Some(value) if value.as_i64() == Some(-1) => None,
            Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0) {
                Some(size) => Some(size),
                None => return Err(self.error(group, &format!("wants a number of at least 1, or -1, not {value}"))),
            },
            None => return Err(self.error(group, "is missing")),
        };
        Ok(Method::Int4 { packing, group })
    }

    fn compressed_tensors(&self) -> Result<Method, Error> {
        let format = self.text("format", None)?;
        if !matches!(format, "float-quantized" | "naive-quantized") {
            return self.wrong("format", format, "float-quantized and naive-quantized can be read");
        }
        let groups = self.value("config_groups").and_then(Value::as_object);
        let mut tile = None;
        for (name, group) in groups.into_iter().flatten() {
            let weights = group.get("weights").filter(|weights| !weights.is_null());
            let of = |key: &str| weights.and_then(|weights| weights.get(key));
            let key = format!("config_groups.{name}.weights");
            let (kind, bits) = (of("type"), of("num_bits"));
            if !kind.is_some_and(|kind| kind == "float") || !bits.is_some_and(|bits| bits == 8) {
                return Err(self.error(&key, "wants `type` float and `num_bits` 8, which is what can be read"));
            }
            tile = match weights {
                Some(weights) => self.tile(weights, "block_structure")?.or(tile),
                None => tile,
            };
        }
        Ok(Method::Fp8 { tile })
    }
}

/// Finds a weight by the reference implementation's name, however it is stored; `tensor` finds a file's tensors.
pub(super) fn find<'a>(
    method: Option<Method>,
    name: &str,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Option<Found<'a>>, Error> {
    match (tensor(name), method) {
        (Some(found), method) => plain_or_scaled(method, name, found, tensor).map(Some),
        (None, Some(Method::Int4 { packing, group })) => {
            let Some(stem) = name.strip_suffix(".weight") else { return Ok(None) };
            let Some(codes) = tensor(&format!("{stem}.qweight")) else { return Ok(None) };
            coded(packing, group, stem, codes, tensor).map(Some)
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
    let scales = scale.plain(scale_name)?;
    let tiles = match method {
        Some(Method::Fp8 { tile: Some(tile) }) => Some(tile),
        _ => None,
    };
    let fits = |[down, across]: [usize; 2]| scale.shape == [rows.div_ceil(down), columns.div_ceil(across)];
    let tile = match (scale.shape, tiles) {
        ([] | [1] | [1, 1], _) => [rows, columns],
        (_, Some(tile)) if found.shape.len() == 2 && fits(tile) => tile,
        ([count] | [count, 1], _) if *count == rows => [1, columns],
        (shape, tile) => {
            let tiles = tile.map(|[down, across]| format!(", one for each {down} × {across}")).unwrap_or_default();
            let problem =
                format!("has the shape {shape:?}; one number, one for each of {rows} rows{tiles} were expected");
            return Err(scale.wrong(scale_name, problem));
        }
    };
    let scales = Tiles { scales, columns: columns.max(1), tile: tile.map(|size| size.max(1)) };
    Ok(Found { numbers: Numbers::Scaled { blocks, scales, first: 0 }, beside: vec![scale_name.clone()], ..plain })
}

fn coded<'a>(
    packing: Packing,
    group: Option<usize>,
    stem: &str,
    codes: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let [code_name, zero_name, scale_name, index_name] =
        ["qweight", "qzeros", "scales", "g_idx"].map(|part| format!("{stem}.{part}"));
    let beside = |name: &str| {
        tensor(name).ok_or_else(|| codes.wrong(&code_name, format!("has no `{name}` beside it, which was expected")))
    };
    let (zeros, scales) = (beside(&zero_name)?, beside(&scale_name)?);
    let &[down, across] = codes.shape else {
        let problem = format!("has the shape {:?}; two dimensions were expected", codes.shape);
        return Err(codes.wrong(&code_name, problem));
    };
    let (inputs, outputs) = match packing {
        Packing::Gptq { .. } => (down.saturating_mul(8), across),
        Packing::Awq => (down, across.saturating_mul(8)),
    };
    let count = scales.shape.first().copied().unwrap_or(0);
    let expect = |tensor: &Tensor<'a>, name: &str, shape: &[usize]| match tensor.shape == shape {
        true => Ok(()),
        false => Err(tensor.wrong(name, format!("has the shape {:?}; {shape:?} was expected", tensor.shape))),
    };
    expect(&scales, &scale_name, &[count, outputs])?;
    expect(&zeros, &zero_name, &[count, outputs / 8])?;
    if !outputs.is_multiple_of(8) || inputs == 0 || outputs == 0 {
        let problem = format!("has {outputs} outputs for {inputs} inputs; multiples of 8 were expected");
        return Err(codes.wrong(&code_name, problem));
    }
    let index = match packing {
        Packing::Gptq { .. } => tensor(&index_name),
        Packing::Awq => None,
    };
    let groups = match index {
        Some(index) => {
            expect(&index, &index_name, &[inputs])?;
            let groups = index.words(&index_name)?;
            if let Some(at) = groups.iter().position(|group| u32::from_le_bytes(*group) as usize >= count) {
                let group = i32::from_le_bytes(groups[at]);
                let problem = format!("has the group {group} for input {at}; there are {count} groups");
                return Err(index.wrong(&index_name, problem));
            }
            Groups::Listed(groups)
        }
        None => {
            let size = group.unwrap_or(inputs);
            if inputs.div_ceil(size) != count {
                let problem = format!("has {count} groups; {inputs} inputs in groups of {size} are expected");
                return Err(scales.wrong(&scale_name, problem));
            }
            Groups::Of(size)
        }
    };
    let mut used = vec![code_name.clone(), zero_name.clone(), scale_name.clone()];
    used.extend(index.map(|_| index_name));
    let matrix = Codes {
        packing,
        outputs,
        inputs,
        codes: codes.words(&code_name)?,
        zeros: zeros.words(&zero_name)?,
        scales: scales.plain(&scale_name)?,
        groups,
    };
    Ok(Found {
        file: codes.file,
        shape: vec![outputs, inputs],
        numbers: Numbers::Coded { codes: matrix, first: 0, len: outputs * inputs },
        change: Change::None,
        beside: used,
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
    let scales = tensor(&scale_name)
        .ok_or_else(|| blocks.wrong(&block_name, format!("has no `{scale_name}` beside it, which was expected")))?;
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
    let scales = Tiles { scales, columns: inputs.max(1), tile: [1, 32] };
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

    fn words(&self, name: &str) -> Result<&'a [[u8; 4]], Error> {
        match self.dtype {
            safetensors::Dtype::I32 => Ok(self.bytes.as_chunks().0),
            other => Err(self.wrong(name, format!("is of dtype {other}; I32 was expected"))),
        }
    }
}

/// The dtypes of weights in safetensors.
pub(super) const READ: &str = "F32, BF16, F16, F8_E4M3 and F8_E5M2";

#[cfg(test)]
mod tests;
