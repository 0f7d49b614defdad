//! A graph's weight in a checkpoint.

use einfuse_graph::{FileTensor, Graph, Kind, TensorId};
use half::{bf16, f16};

use super::Checkpoint;
use crate::Error;

/// How a file stores a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of a single.
    Bf16,
    /// IEEE 754 half precision.
    F16,
}

/// A weight of a graph as it lies in a file.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    /// The tensor's name in the file.
    pub name: String,
    /// How each number is stored.
    pub dtype: Dtype,
    /// How many dimensions the file's tensor has; the graph's may be more, as neighbours are merged in files.
    pub rank: usize,
    /// The numbers, little endian, row-major in the axes of the graph's tensor, without alignment.
    pub bytes: &'a [u8],
}

impl Dtype {
    /// The bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }
}

impl Stored<'_> {
    /// The numbers, each exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let pairs = || self.bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.dtype {
            Dtype::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::Bf16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        }
    }
}

impl Checkpoint {
    /// Finds a weight of a graph: the first of its places that the checkpoint has, in this layer (ignored by a weight
    /// that is the same in all).
    ///
    /// The file's dimensions have to be the weight's axes in order, of which each dimension may merge neighbours.
    ///
    /// # Errors
    /// If no place is there, the shape differs, or the numbers are of a kind that cannot be used.
    ///
    /// # Panics
    /// If the tensor is not a weight of this graph.
    pub fn weight(&self, graph: &Graph, tensor: TensorId, layer: Option<usize>) -> Result<Stored<'_>, Error> {
        let Kind::Weight(places) = &graph.tensor(tensor).kind else {
            panic!("`{}` is not a weight", graph.tensor(tensor).name);
        };
        let file_name = |place: &FileTensor| match layer {
            Some(layer) => place.name.replace("{l}", &layer.to_string()),
            None => place.name.clone(),
        };
        let found = places.iter().find_map(|place| {
            let name = file_name(place);
            let file = &self.files[*self.home.get(&name)?];
            let (info, bytes) = file.tensor(&name)?;
            Some((name, place, file, info, bytes))
        });
        let Some((name, place, file, info, bytes)) = found else {
            let names: Vec<String> = places.iter().map(file_name).collect();
            let (weight, place) = (declared(graph, tensor), self.place.clone());
            return Err(Error::MissingWeight { weight, names: names.join(" or "), place });
        };

        let wrong = |problem| Error::Tensor { file: file.name.clone(), tensor: name.clone(), problem };
        let dtype = match info.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::F16 => Dtype::F16,
            other => return Err(wrong(format!("is of dtype {other}; F32, BF16 and F16 can be used"))),
        };
        let (mut shape, mut bytes) = (info.shape.clone(), bytes);
        if let Some(rows) = &place.rows {
            let stored = shape.first().copied().unwrap_or(0);
            if rows.start > rows.end || rows.end > stored {
                let weight = declared(graph, tensor);
                return Err(wrong(format!("has {stored} rows, {weight} wants rows {} to {}", rows.start, rows.end)));
            }
            let row = bytes.len() / stored.max(1);
            bytes = &bytes[rows.start * row..rows.end * row];
            shape[0] = rows.len();
        }
        let axes = axes(graph, tensor);
        let (groups, exact) = group(&axes, &shape);
        if !exact {
            return Err(Error::Shape {
                weight: declared(graph, tensor),
                wants: format!("[{}]", groups.join(", ")),
                file: file.name.clone(),
                has: format!("{shape:?}"),
                tensor: name,
            });
        }
        Ok(Stored { name, dtype, rank: info.shape.len(), bytes })
    }
}

/// A tensor's name and line in the model, as messages say them: `` `wq` (src/llama.rs:24) ``.
pub(crate) fn declared(graph: &Graph, tensor: TensorId) -> String {
    let tensor = graph.tensor(tensor);
    match &tensor.location {
        Some(location) => format!("`{}` ({}:{})", tensor.name, location.file, location.line),
        None => format!("`{}`", tensor.name),
    }
}

fn axes(graph: &Graph, tensor: TensorId) -> Vec<(&str, usize)> {
    let axes = graph.tensor(tensor).axes.iter();
    axes.map(|&axis| (graph.axis(axis).name.as_str(), graph.size(axis).unwrap_or(0))).collect()
}

/// Merges neighbouring axes into as many groups as the file has dimensions, so that as many groups as possible have the
/// dimensions' sizes; says each group (`n·g·c = 576`), and whether all sizes are right.
fn group(axes: &[(&str, usize)], dimensions: &[usize]) -> (Vec<String>, bool) {
    let parts = if (1..=axes.len()).contains(&dimensions.len()) { dimensions.len() } else { axes.len() };
    let mut best: Option<(usize, Vec<usize>)> = None;
    let mut cuts: Vec<usize> = (1..=parts).collect();
    if let Some(last) = cuts.last_mut() {
        *last = axes.len();
    }
    loop {
        let right = sizes(axes, &cuts).zip(dimensions).filter(|(size, dimension)| size == *dimension).count();
        if best.as_ref().is_none_or(|(most, _)| right > *most) {
            best = Some((right, cuts.clone()));
        }
        if !next_cuts(&mut cuts) {
            break;
        }
    }
    let (right, cuts) = best.unwrap_or_default();
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let names = starts.zip(&cuts).map(|(start, &end)| {
        let names: Vec<&str> = axes[start..end].iter().map(|(name, _)| *name).collect();
        names.join("·")
    });
    let groups = names.zip(sizes(axes, &cuts)).map(|(name, size)| format!("{name} = {size}")).collect();
    (groups, right == parts && parts == dimensions.len())
}

/// The size of each group of axes, where a group ends at each cut.
fn sizes(axes: &[(&str, usize)], cuts: &[usize]) -> impl Iterator<Item = usize> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    starts
        .zip(cuts)
        .map(|(start, &end)| axes[start..end].iter().fold(1, |product: usize, (_, size)| product.saturating_mul(*size)))
}

/// The next choice of cuts, the last of which is fixed; false after the last choice.
fn next_cuts(cuts: &mut [usize]) -> bool {
    let Some((&mut end, inner)) = cuts.split_last_mut() else { return false };
    let count = inner.len();
    let Some(at) = (0..count).rev().find(|&i| inner[i] < end - (count - i)) else { return false };
    inner[at] += 1;
    for i in at + 1..count {
        inner[i] = inner[i - 1] + 1;
    }
    true
}
