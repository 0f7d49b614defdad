//! Quantised checkpoints in safetensors: tensors beside a weight, in which its scales are, or in place of it.
//!
//! `quantization_config` in config.json says which kind it is. FP8 (`fp8` as DeepSeek and Qwen have it, `fbgemm_fp8`,
//! `compressed-tensors`) keeps a weight's name and adds `_scale_inv` or `_scale`: one for all, some a row, or one a tile.
//! `compressed-tensors` has integers too: of 8 bits under a weight's name, of 4 and 8 in words as `_packed`, with `_shape`, both
//! with `_scale`, `_zero_point` and `_g_idx`; and floats of 4 bits as bytes in `_packed`, with `_scale` and `_global_scale`. GPTQ
//! and AWQ have `qweight`, `qzeros` and `scales` (GPTQ `g_idx` too; AWQ's `gemv_fast` `scaled_zeros`) where the weight would be.
//! MXFP4, GPT-OSS's, has experts' weights as `_blocks` and `_scales`.

use serde_json::Value;

use super::numbers::{Blocks, Codes, Digits, Groups, Numbers, Packed, Tiles, Zeros};
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
    /// GPTQ's and AWQ's integers of 4 bits.
    Int4 {
        packing: Packing,
        /// How many inputs share a scale; all if `None`.
        group: Option<usize>,
    },
    /// Floats or integers, of 4 or 8 bits, whichever a weight's tensors are.
    CompressedTensors {
        /// Rows and columns of the tiles of floats, if they have some.
        tile: Option<[usize; 2]>,
    },
    /// 4-bit floats with a power of two for 32 of them.
    Mxfp4,
}

/// Which eight numbers of four bits are one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// GPTQ's: eight inputs; eight outputs' zeros.
    Gptq {
        /// By how much the zeros are greater than stored: 1 in files of version 1.
        more: i16,
    },
    /// AWQ's `gemm`: eight outputs, those of even number in the lower half; their zeros alike.
    AwqGemm,
    /// AWQ's `gemv`: eight inputs; eight groups' zeros.
    AwqGemv,
    /// AWQ's `gemv_fast`: four inputs, each eight from the next, in words of 16 bits; zeros that are scaled already.
    AwqGemvFast,
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
                let packing = match version.to_ascii_lowercase().as_str() {
                    "gemm" => Packing::AwqGemm,
                    "gemv" => Packing::AwqGemv,
                    "gemv_fast" => Packing::AwqGemvFast,
                    _ => return settings.wrong("version", version, "gemm, gemv and gemv_fast can be read"),
                };
                settings.int4(packing, "bits", "group_size")?
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
        // Types of weights, and of how many bits.
        const FLOAT: (&str, &[u64]) = ("float", &[8]);
        const FLOAT4: (&str, &[u64]) = ("float", &[4]);
        const BYTES: (&str, &[u64]) = ("int", &[8]);
        const WORDS: (&str, &[u64]) = ("int", &[4, 8]);
        let format = self.text("format", None)?;
        let kinds: &[(&str, &[u64])] = match format {
            "float-quantized" | "mxfp8-quantized" => &[FLOAT],
            "nvfp4-pack-quantized" | "mxfp4-pack-quantized" => &[FLOAT4],
            "int-quantized" => &[BYTES],
            "pack-quantized" => &[WORDS],
            "naive-quantized" => &[FLOAT, BYTES],
            "mixed-precision" => &[FLOAT4, FLOAT, WORDS],
            _ => {
                let known = "float-quantized, mxfp8-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized, int-quantized, \
                             pack-quantized, naive-quantized and mixed-precision";
                return self.wrong("format", format, &format!("{known} can be read"));
            }
        };
        let has = |of: &Value, key: &str| of.get(key).and_then(Value::as_object).is_some_and(|of| !of.is_empty());
        if self.value("transform_config").is_some_and(|transforms| has(transforms, "config_groups")) {
            return Err(self.error("transform_config", "has transforms of activations, which cannot be applied"));
        }
        let groups = self.value("config_groups").and_then(Value::as_object);
        let mut tile = None;
        for (name, group) in groups.into_iter().flatten() {
            let weights = group.get("weights").filter(|weights| !weights.is_null());
            let of = |key: &str| weights.and_then(|weights| weights.get(key));
            let key = format!("config_groups.{name}.weights");
            let (kind, bits) = (of("type").and_then(Value::as_str), of("num_bits").and_then(Value::as_u64));
            let fits =
                |(known, sizes): &(&str, &[u64])| kind == Some(*known) && bits.is_some_and(|n| sizes.contains(&n));
            if !kinds.iter().any(fits) {
                let known = kinds.iter().map(|(kind, sizes)| {
                    let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
                    format!("{kind} and `num_bits` {}", sizes.join(" or "))
                });
                let known = known.collect::<Vec<_>>().join(", or ");
                return Err(self.error(&key, &format!("wants `type` {known}, which is what can be read")));
            }
            tile = match weights {
                Some(weights) => self.tile(weights, "block_structure")?.or(tile),
                None => tile,
            };
        }
        Ok(Method::CompressedTensors { tile })
    }
}

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

fn coded<'a>(
    packing: Packing,
    group: Option<usize>,
    stem: &str,
    codes: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let zero_part = if packing == Packing::AwqGemvFast { "scaled_zeros" } else { "qzeros" };
    let [code_name, zero_name, scale_name, index_name] =
        ["qweight", zero_part, "scales", "g_idx"].map(|part| format!("{stem}.{part}"));
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
        Packing::AwqGemm => (down, across.saturating_mul(8)),
        Packing::AwqGemv => (across.saturating_mul(8), down),
        Packing::AwqGemvFast => (across, down.saturating_mul(4)),
    };
    // Behind the groups that there are, both kinds of `gemv` may have some that nothing is in.
    let (count, may_have_more) = match packing {
        Packing::AwqGemv => (zeros.shape.last().copied().unwrap_or(0).saturating_mul(8), true),
        Packing::AwqGemvFast => (scales.shape.first().copied().unwrap_or(0), true),
        Packing::Gptq { .. } | Packing::AwqGemm => (scales.shape.first().copied().unwrap_or(0), false),
    };
    let (of_scales, of_zeros) = match packing {
        Packing::AwqGemv => ([outputs, count], [outputs, count / 8]),
        Packing::AwqGemvFast => ([count, outputs], [count, outputs]),
        Packing::Gptq { .. } | Packing::AwqGemm => ([count, outputs], [count, outputs / 8]),
    };
    scales.expect(&scale_name, &of_scales)?;
    zeros.expect(&zero_name, &of_zeros)?;
    let (together, multiples) = match packing {
        Packing::AwqGemvFast => (64, "multiples of 8 and 64"),
        Packing::Gptq { .. } | Packing::AwqGemm | Packing::AwqGemv => (1, "multiples of 8"),
    };
    if !outputs.is_multiple_of(8) || !inputs.is_multiple_of(together) || inputs == 0 || outputs == 0 {
        let problem = format!("has {outputs} outputs for {inputs} inputs; {multiples} were expected");
        return Err(codes.wrong(&code_name, problem));
    }
    let index = match packing {
        Packing::Gptq { .. } => tensor(&index_name),
        Packing::AwqGemm | Packing::AwqGemv | Packing::AwqGemvFast => None,
    };
    let groups = match index {
        Some(index) => index.groups(&index_name, inputs, count)?,
        None => {
            let size = group.unwrap_or(inputs);
            let expected = inputs.div_ceil(size);
            if expected > count || expected < count && !may_have_more {
                let problem = format!("has {count} groups; {inputs} inputs in groups of {size} are expected");
                return Err(scales.wrong(&scale_name, problem));
            }
            Groups::Of(size)
        }
    };
    let mut used = vec![code_name.clone(), zero_name.clone(), scale_name.clone()];
    used.extend(index.map(|_| index_name));
    let neighbours = Digits::of(&[], 1);
    let (rows, columns, of_words) = match packing {
        Packing::Gptq { .. } => (Digits::of(&[], 8), Digits::of(&[(8, 1)], 8 * outputs), safetensors::Dtype::I32),
        // Of eight outputs those of even number come first.
        Packing::AwqGemm => (Digits::of(&[(2, 4), (4, 1)], 8), Digits::of(&[], outputs), safetensors::Dtype::I32),
        Packing::AwqGemv => (Digits::of(&[], inputs), neighbours, safetensors::Dtype::I32),
        // Words of four outputs are together, for 64 inputs at a time.
        Packing::AwqGemvFast => {
            let columns = Digits::of(&[(2, 4), (4, 8), (4, 1), (2, 32)], 256);
            (Digits::of(&[(4, 64)], 4 * inputs), columns, safetensors::Dtype::I16)
        }
    };
    let packed_zeros = |rows, columns, more| {
        let zeros = zeros.packed(&zero_name, safetensors::Dtype::I32, 4, rows, columns)?;
        Ok::<_, Error>(Zeros::of(zeros, more))
    };
    let matrix = Codes {
        inputs,
        codes: codes.packed(&code_name, of_words, 4, rows, columns)?,
        zeros: match packing {
            Packing::Gptq { more } => packed_zeros(neighbours, Digits::of(&[], outputs), more)?,
            Packing::AwqGemm => packed_zeros(rows, columns, 0)?,
            Packing::AwqGemv => packed_zeros(Digits::of(&[], count), neighbours, 0)?,
            Packing::AwqGemvFast => Zeros::Scaled(zeros.plain(&zero_name)?),
        },
        scales: scales.plain(&scale_name)?,
        apart: if packing == Packing::AwqGemv { [count, 1] } else { [1, outputs] },
        groups,
    };
    Ok(matrix.found(codes.file, vec![outputs, inputs], used))
}

/// Integers of compressed-tensors that are bytes, each a number of its own.
fn bytes<'a>(name: &str, codes: Tensor<'a>, tensor: impl Fn(&str) -> Option<Tensor<'a>>) -> Result<Found<'a>, Error> {
    let (outputs, inputs) = match codes.shape.split_last() {
        Some((&inputs, outputs)) => (outputs.iter().product::<usize>(), inputs),
        None => (1, 1),
    };
    let beside = Beside::of(name, name, [outputs, inputs], &codes, tensor)?;
    let matrix = beside.codes(codes.signed(name, inputs, 1)?, 128)?;
    Ok(matrix.found(codes.file, codes.shape.to_vec(), beside.used))
}

/// The bits of a word.
const WORD: usize = 32;

/// Integers of compressed-tensors in words of as many inputs as there is room for.
fn packed<'a>(
    name: &str,
    packed_name: String,
    codes: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let shape_name = format!("{name}_shape");
    let shape = tensor(&shape_name)
        .ok_or_else(|| codes.wrong(&packed_name, format!("has no `{shape_name}` beside it, which was expected")))?;
    let &[outputs, inputs] = &shape.sizes(&shape_name)?[..] else {
        let problem = format!("has the shape {:?}; numbers of outputs and inputs were expected", shape.shape);
        return Err(shape.wrong(&shape_name, problem));
    };
    let bits = match codes.shape {
        [rows, words] if *rows == outputs && *words == inputs.div_ceil(8) => 4,
        [rows, words] if *rows == outputs && *words == inputs.div_ceil(4) => 8,
        shape => {
            let expected = [8, 4].map(|each| [outputs, inputs.div_ceil(each)]);
            let problem = format!(
                "has the shape {shape:?}; {:?} was expected for 4 bits, {:?} for 8, by `{shape_name}`",
                expected[0], expected[1]
            );
            return Err(codes.wrong(&packed_name, problem));
        }
    };
    let mut beside = Beside::of(name, &packed_name, [outputs, inputs], &codes, tensor)?;
    let (each, more) = (WORD / bits, 1 << (bits - 1));
    let rows = Digits::of(&[], inputs.next_multiple_of(each));
    let words = codes.packed(&packed_name, safetensors::Dtype::I32, bits, rows, Digits::of(&[], 1))?;
    let matrix = beside.codes(words, more)?;
    beside.used.extend([packed_name, shape_name]);
    Ok(matrix.found(codes.file, vec![outputs, inputs], beside.used))
}

/// What compressed-tensors has beside a matrix of integers.
struct Beside<'a> {
    /// Outputs and inputs of the matrix.
    size: [usize; 2],
    scales: Blocks<'a>,
    /// How many groups each output has a scale for, and how far apart the scales of two outputs are, and of two groups.
    count: usize,
    apart: [usize; 2],
    zeros: Option<(String, Tensor<'a>)>,
    groups: Groups<'a>,
    /// The names.
    used: Vec<String>,
}

impl<'a> Beside<'a> {
    fn of(
        name: &str,
        code_name: &str,
        size: [usize; 2],
        codes: &Tensor<'a>,
        tensor: impl Fn(&str) -> Option<Tensor<'a>>,
    ) -> Result<Beside<'a>, Error> {
        let [outputs, inputs] = size;
        let [scale_name, zero_name, index_name] = ["scale", "zero_point", "g_idx"].map(|part| format!("{name}_{part}"));
        let scale = tensor(&scale_name)
            .ok_or_else(|| codes.wrong(code_name, format!("has no `{scale_name}` beside it, which was expected")))?;
        let (count, apart) = match scale.shape {
            [] | [1] | [1, 1] => (1, [0, 0]),
            [count] if *count == outputs => (1, [1, 0]),
            [rows, count] if *rows == outputs && *count > 0 => (*count, [*count, 1]),
            shape => {
                let problem =
                    format!("has the shape {shape:?}; one number, or some for each of {outputs} rows were expected");
                return Err(scale.wrong(&scale_name, problem));
            }
        };
        let mut used = vec![scale_name.clone()];
        let index = tensor(&index_name);
        used.extend(index.map(|_| index_name.clone()));
        // A list that nobody filled in is of -1.
        let listed = |index: &Tensor<'a>| index.bytes.as_chunks().0.iter().all(|group| *group != (-1i32).to_le_bytes());
        let groups = match index.filter(listed) {
            Some(index) => index.groups(&index_name, inputs, count)?,
            None if inputs.is_multiple_of(count) => Groups::Of((inputs / count).max(1)),
            None => {
                let problem =
                    format!("has {count} groups for {inputs} inputs; a number that divides them was expected");
                return Err(scale.wrong(&scale_name, problem));
            }
        };
        let zeros = tensor(&zero_name).map(|zeros| (zero_name.clone(), zeros));
        used.extend(zeros.iter().map(|_| zero_name.clone()));
        Ok(Beside { size, scales: scale.plain(&scale_name)?, count, apart, zeros, groups, used })
    }

    /// The matrix of these codes, which are greater by `more` than what they stand for. Zeros are packed by output as codes are by
    /// input, or bytes.
    fn codes(&self, codes: Packed<'a>, more: i16) -> Result<Codes<'a>, Error> {
        let [outputs, inputs] = self.size;
        let zeros = match &self.zeros {
            None => Zeros::Same(more),
            Some((name, zeros)) if zeros.dtype == safetensors::Dtype::I8 => {
                if zeros.shape.iter().product::<usize>() != self.scales.len() {
                    let problem = format!("has the shape {:?}; as many as scales were expected", zeros.shape);
                    return Err(zeros.wrong(name, problem));
                }
                Zeros::of(zeros.signed(name, self.apart[0], self.apart[1])?, more - 128)
            }
            Some((name, zeros)) => {
                let each = WORD / codes.bits;
                zeros.expect(name, &[outputs.div_ceil(each), self.count])?;
                let (rows, columns) =
                    (Digits::of(&[(each as u8, 1)], each.saturating_mul(self.count)), Digits::of(&[], each));
                Zeros::of(zeros.packed(name, safetensors::Dtype::I32, codes.bits, rows, columns)?, 0)
            }
        };
        let (scales, apart, groups) = (self.scales, self.apart, self.groups);
        Ok(Codes { inputs, codes, zeros, scales, apart, groups })
    }
}

impl<'a> Codes<'a> {
    /// All of the matrix, as what was found.
    fn found(self, file: &'a str, shape: Vec<usize>, beside: Vec<String>) -> Found<'a> {
        let numbers = Numbers::Coded { codes: self, first: 0, len: shape.iter().product() };
        Found { file, shape, numbers, change: Change::None, beside }
    }
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
    let scale = tensor(&scale_name)
        .ok_or_else(|| codes.wrong(&packed_name, format!("has no `{scale_name}` beside it, which was expected")))?;
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
