//! What config.json says of how weights are quantised.

use serde_json::Value;

use crate::Error;
use crate::checkpoint::Json;

/// How the weights of a checkpoint are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
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
pub(crate) enum Packing {
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
    pub(crate) fn of(config: &Json) -> Result<Option<Method>, Error> {
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
                settings.int4(Packing::Gptq { more })?
            }
            "awq" => {
                let version = settings.text("version", Some("gemm"))?;
                let packing = match version.to_ascii_lowercase().as_str() {
                    "gemm" => Packing::AwqGemm,
                    "gemv" => Packing::AwqGemv,
                    "gemv_fast" => Packing::AwqGemvFast,
                    _ => return settings.wrong("version", version, "gemm, gemv and gemv_fast can be read"),
                };
                settings.int4(packing)?
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

    fn int4(&self, packing: Packing) -> Result<Method, Error> {
        let (bits, group) = ("bits", "group_size");
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
