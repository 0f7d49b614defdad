//! Weights that are integers with scales: those of GPTQ and AWQ, of 4 bits, and of compressed-tensors, of 4 and 8.

use super::method::Packing;
use crate::Error;
use crate::checkpoint::numbers::{Blocks, Codes, Digits, Groups, Numbers, Packed, Zeros};
use crate::checkpoint::safetensors::Tensor;
use crate::checkpoint::{Change, Found};

/// How a matrix of integers lies in its tensors.
struct Layout {
    outputs: usize,
    inputs: usize,
    /// So many inputs have their words together.
    together: usize,
    /// What the words are, and where in them the code of an output and an input is.
    words: safetensors::Dtype,
    rows: Digits,
    columns: Digits,
    /// How many groups have scales, of which nothing may be in the last ones.
    groups: usize,
    may_have_more: bool,
    /// Whether scales and zeros come output by output, or group by group.
    by_output: bool,
    /// Where the zero of an output and a group is, and how much greater it is; `None` where zeros are scaled already.
    zeros: Option<(Digits, Digits, i16)>,
}

impl Packing {
    /// The layout that the shapes of codes, scales and zeros make.
    fn layout(self, [down, across]: [usize; 2], scales: &[usize], zeros: &[usize]) -> Layout {
        let neighbours = Digits::of(&[], 1);
        let by_group = |outputs, inputs, rows, columns, zeros| Layout {
            outputs,
            inputs,
            together: 1,
            words: safetensors::Dtype::I32,
            rows,
            columns,
            groups: scales.first().copied().unwrap_or(0),
            may_have_more: false,
            by_output: false,
            zeros,
        };
        match self {
            Packing::Gptq { more } => {
                let columns = Digits::of(&[(8, 1)], across.saturating_mul(8));
                let zeros = (neighbours, Digits::of(&[], across), more);
                by_group(across, down.saturating_mul(8), Digits::of(&[], 8), columns, Some(zeros))
            }
            Packing::AwqGemm => {
                // Of eight outputs those of even number come first.
                let outputs = across.saturating_mul(8);
                let (rows, columns) = (Digits::of(&[(2, 4), (4, 1)], 8), Digits::of(&[], outputs));
                by_group(outputs, down, rows, columns, Some((rows, columns, 0)))
            }
            Packing::AwqGemv => {
                let (inputs, groups) = (across.saturating_mul(8), zeros.last().copied().unwrap_or(0).saturating_mul(8));
                let zeros = (Digits::of(&[], groups), neighbours, 0);
                let layout = by_group(down, inputs, Digits::of(&[], inputs), neighbours, Some(zeros));
                Layout { groups, may_have_more: true, by_output: true, ..layout }
            }
            Packing::AwqGemvFast => {
                // Words of four outputs are together, for 64 inputs at a time.
                let columns = Digits::of(&[(2, 4), (4, 8), (4, 1), (2, 32)], 256);
                let rows = Digits::of(&[(4, 64)], across.saturating_mul(4));
                let layout = by_group(down.saturating_mul(4), across, rows, columns, None);
                Layout { together: 64, words: safetensors::Dtype::I16, may_have_more: true, ..layout }
            }
        }
    }
}

/// Integers of GPTQ and AWQ, of which this is the name of all tensors up to the last dot.
pub(super) fn coded<'a>(
    packing: Packing,
    group: Option<usize>,
    stem: &str,
    codes: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let zero_part = if packing == Packing::AwqGemvFast { "scaled_zeros" } else { "qzeros" };
    let [code_name, zero_name, scale_name, index_name] =
        ["qweight", zero_part, "scales", "g_idx"].map(|part| format!("{stem}.{part}"));
    let beside = |name: &str| codes.beside(&code_name, name, tensor(name));
    let (zeros, scales) = (beside(&zero_name)?, beside(&scale_name)?);
    let &[down, across] = codes.shape else {
        let problem = format!("has the shape {:?}; two dimensions were expected", codes.shape);
        return Err(codes.wrong(&code_name, problem));
    };
    let layout = packing.layout([down, across], scales.shape, zeros.shape);
    let Layout { outputs, inputs, groups: count, .. } = layout;
    let (of_scales, apart, of_zeros) = match layout.by_output {
        true => ([outputs, count], [count, 1], [outputs, count / 8]),
        false => ([count, outputs], [1, outputs], [count, outputs / 8]),
    };
    scales.expect(&scale_name, &of_scales)?;
    zeros.expect(&zero_name, if layout.zeros.is_some() { &of_zeros } else { &of_scales })?;
    if !outputs.is_multiple_of(8) || !inputs.is_multiple_of(layout.together) || inputs == 0 || outputs == 0 {
        let multiples = if layout.together > 1 { "multiples of 8 and 64" } else { "multiples of 8" };
        let problem = format!("has {outputs} outputs for {inputs} inputs; {multiples} were expected");
        return Err(codes.wrong(&code_name, problem));
    }
    let index = tensor(&index_name).filter(|_| matches!(packing, Packing::Gptq { .. }));
    let groups = match index {
        Some(index) => index.groups(&index_name, inputs, count)?,
        None => {
            let size = group.unwrap_or(inputs);
            let expected = inputs.div_ceil(size);
            if expected > count || expected < count && !layout.may_have_more {
                let problem = format!("has {count} groups; {inputs} inputs in groups of {size} are expected");
                return Err(scales.wrong(&scale_name, problem));
            }
            Groups::Of(size)
        }
    };
    let matrix = Codes {
        inputs,
        codes: codes.packed(&code_name, layout.words, 4, layout.rows, layout.columns)?,
        zeros: match layout.zeros {
            Some((rows, columns, more)) => {
                Zeros::of(zeros.packed(&zero_name, safetensors::Dtype::I32, 4, rows, columns)?, more)
            }
            None => Zeros::Scaled(zeros.plain(&zero_name)?),
        },
        scales: scales.plain(&scale_name)?,
        apart,
        groups,
    };
    let used = [code_name, zero_name, scale_name].into_iter().chain(index.map(|_| index_name));
    Ok(matrix.found(codes.file, vec![outputs, inputs], used.collect()))
}

/// Integers of compressed-tensors that are bytes, each a number of its own.
pub(super) fn bytes<'a>(
    name: &str,
    codes: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
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
pub(super) fn packed<'a>(
    name: &str,
    packed_name: String,
    codes: Tensor<'a>,
    tensor: impl Fn(&str) -> Option<Tensor<'a>>,
) -> Result<Found<'a>, Error> {
    let shape_name = format!("{name}_shape");
    let shape = codes.beside(&packed_name, &shape_name, tensor(&shape_name))?;
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
        let scale = codes.beside(code_name, &scale_name, tensor(&scale_name))?;
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
