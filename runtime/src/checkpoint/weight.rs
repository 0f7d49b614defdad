//! A graph's weight in a checkpoint.

use std::ops::Range;

use einfuse_codegen::Order;
use einfuse_codegen::format::Grid;
use einfuse_graph::{FileTensor, Graph, Kind, TensorId};

use super::{Checkpoint, Found, Numbers};
use crate::Error;

/// A weight of a graph as it lies in a file.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    /// The tensor's name in the file, or, where its architecture gives it another, the reference implementation's. Several
    /// of equal shape where a weight's first axis has a file tensor for each coordinate.
    pub names: Vec<String>,
    /// Other tensors of the file, with scales or the like.
    pub beside: Vec<String>,
    /// How many dimensions a file's tensor has; the graph's may be more, as neighbours are merged in files.
    pub rank: usize,
    /// The numbers of each file tensor, one after the other: row-major in the axes of the graph's tensor, in their order there,
    /// but for `change`.
    pub parts: Vec<Numbers<'a>>,
    /// What makes the numbers of a file tensor the graph's.
    pub change: Change,
    /// In which order the graph's axes are there.
    pub order: Order,
    /// Their sizes.
    sizes: Vec<usize>,
    /// Rows in a file tensor: all dimensions but the last, whose numbers are neighbours.
    rows: usize,
}

/// How a tensor of a file differs from the reference implementation's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// It does not.
    #[default]
    None,
    /// The rows are in another order: the two of each rotary pair are neighbours, and not half a head apart.
    Pairs {
        /// How many heads the rows are.
        heads: usize,
    },
    /// The rows are in another order: all queries, all keys, all values, where the reference implementation has the queries of
    /// a key, the key and the value after one another.
    Fused {
        /// How many heads of keys there are.
        groups: usize,
        /// How many heads of queries share one.
        queries: usize,
    },
    /// Rows and columns are exchanged, the last two dimensions of several matrices.
    Transposed,
    /// Each number is greater by one.
    PlusOne,
}

impl Change {
    /// Which row of a file tensor, of so many, is a row of the reference implementation's, but for the order of dimensions.
    fn row(self, rows: usize, row: usize) -> usize {
        match self {
            Change::Pairs { heads } => {
                let head = rows / heads;
                let (first, within) = (row / head * head, row % head);
                first + within % (head / 2) * 2 + within / (head / 2)
            }
            Change::Fused { groups, queries } => {
                let size = rows / (groups * (queries + 2));
                let (group, part, within) = (row / size / (queries + 2), row / size % (queries + 2), row % size);
                let head = match part {
                    part if part < queries => group * queries + part,
                    part => groups * part + group,
                };
                head * size + within
            }
            Change::None | Change::Transposed | Change::PlusOne => row,
        }
    }
}

impl Stored<'_> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Numbers::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bits they take in the file, but for scales in other tensors.
    pub fn bits(&self) -> f64 {
        self.parts.iter().map(|part| part.len() as f64 * part.bits()).sum()
    }

    /// The numbers, row-major in the axes of the graph's tensor, each exactly (less one where the file adds one).
    pub fn to_f32(&self) -> Vec<f32> {
        let mut stored = vec![0.0; self.len()];
        self.read(0, &mut stored);
        if self.order == Order::default() {
            return stored;
        }
        let strides = self.order.strides(&self.sizes);
        let place = |at: usize| {
            let dims = self.sizes.iter().zip(&strides).rev();
            dims.fold((at, 0), |(rest, place), (size, stride)| (rest / size, place + rest % size * stride)).1
        };
        (0..stored.len()).map(|at| stored[place(at)]).collect()
    }

    /// Reads some of the numbers, from the number `at` on, row-major in the axes of the graph's tensor as the file has them in
    /// order.
    ///
    /// # Panics
    /// If there are fewer than are wanted.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        self.each_row(at, out.len(), |part, from, done| part.read(from, &mut out[done]));
        if self.change == Change::PlusOne {
            out.iter_mut().for_each(|number| *number -= 1.0);
        }
    }

    /// What the blocks along the rows hold, if all numbers are in such blocks, and not changed but in their order.
    pub fn grid(&self) -> Option<Grid> {
        let grid = self.parts.first().filter(|_| self.change != Change::PlusOne)?.grid();
        let columns = self.len().checked_div(self.rows * self.parts.len()).unwrap_or(0);
        let whole = |grid: &Grid| columns.is_multiple_of(grid.block);
        grid.filter(whole).filter(|_| self.parts.iter().all(|part| part.grid() == grid))
    }

    /// Reads whole blocks of the grid, from the number `at` on: the values, and of each block scale and minimum.
    ///
    /// # Panics
    /// If there are fewer than `values` wants.
    pub fn read_blocks(&self, at: usize, values: &mut [i8], scales: &mut [[f32; 2]]) {
        let Some(each) = self.grid().map(|grid| grid.block) else { return };
        self.each_row(at, values.len(), |part, from, done| {
            let blocks = done.start / each..done.end / each;
            part.read_blocks(from, &mut values[done], &mut scales[blocks]);
        });
    }

    /// Walks through so many numbers from `at` on, row by row: the part that they are in, where they are there, and which of
    /// those wanted they are.
    fn each_row(&self, at: usize, count: usize, mut read: impl FnMut(&Numbers<'_>, usize, Range<usize>)) {
        let columns = self.len().checked_div(self.rows * self.parts.len()).unwrap_or(0);
        let mut done = 0;
        while done < count {
            let (row, column) = ((at + done) / columns, (at + done) % columns);
            let some = (columns - column).min(count - done);
            let from = self.change.row(self.rows, row % self.rows) * columns + column;
            read(&self.parts[row / self.rows], from, done..done + some);
            done += some;
        }
    }
}

impl Checkpoint {
    /// Finds a weight of a graph: the first of its places that the checkpoint has, in this layer (ignored by a weight
    /// that is the same in all).
    ///
    /// The file's dimensions have to be the weight's axes in order (but the first, where each of its coordinates has a file
    /// tensor), of which each dimension may merge neighbours.
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
        let axes = axes(graph, tensor);
        let coordinates = axes.first().map_or(1, |(_, size)| *size);
        let file_names = |place: &FileTensor| place.names(layer, coordinates);
        let missing = |names: Vec<String>| {
            let (weight, place) = (declared(graph, tensor), self.place.clone());
            Error::MissingWeight { weight, names: names.join(" or "), place }
        };
        let mut found = None;
        for place in places {
            let names = file_names(place);
            let first = names.first().map_or(Ok(None), |name| self.find(name))?;
            if first.is_some() {
                found = Some((names, place));
                break;
            }
        }
        let Some((names, place)) = found else {
            return Err(missing(places.iter().filter_map(|place| file_names(place).into_iter().next()).collect()));
        };
        let mut stored: Option<Stored<'_>> = None;
        for name in names {
            let found = self.find(&name)?.ok_or_else(|| missing(vec![name.clone()]))?;
            let file = found.file;
            let part = file_tensor(graph, tensor, &axes, place, name, found)?;
            match &mut stored {
                None => stored = Some(part),
                Some(all)
                    if (all.change, all.rows, all.rank, all.order)
                        == (part.change, part.rows, part.rank, part.order) =>
                {
                    all.names.extend(part.names);
                    all.beside.extend(part.beside);
                    all.parts.extend(part.parts);
                }
                Some(all) => {
                    let problem =
                        format!("is not stored as `{}` is, which comes before it in one weight", all.names[0]);
                    let tensor = part.names.into_iter().next().unwrap_or_default();
                    return Err(Error::Tensor { file: file.to_owned(), tensor, problem });
                }
            }
        }
        stored.ok_or_else(|| missing(Vec::new()))
    }
}

/// A tensor of a file as (a part of) a weight over these axes.
fn file_tensor<'a>(
    graph: &Graph,
    tensor: TensorId,
    all_axes: &[(&str, usize)],
    place: &FileTensor,
    name: String,
    found: Found<'a>,
) -> Result<Stored<'a>, Error> {
    let wrong = |problem| Error::Tensor { file: found.file.to_owned(), tensor: name.clone(), problem };
    let (mut shape, rank, mut change) = (found.shape.clone(), found.shape.len(), found.change);
    let outer = usize::from(place.is_stacked() || place.each);
    let (stack, axes) = all_axes.split_at(outer);
    let stretches = if place.each { stack.iter().map(|(_, size)| size).product() } else { 1 };
    let mut parts = Vec::new();
    if let Some(rows) = &place.rows {
        let stored = shape.first().copied().unwrap_or(0);
        let (start, end) = (rows.start, rows.end);
        let wants = || match stretches {
            1 => format!("{} wants rows {start} to {end}", declared(graph, tensor)),
            _ => format!("{} wants rows {start} to {end} of each of {stretches} parts", declared(graph, tensor)),
        };
        let stretch = stored / stretches;
        if start > end || end > stretch || !stored.is_multiple_of(stretches) {
            return Err(wrong(format!("has {stored} rows, {}", wants())));
        }
        let row = found.numbers.len() / stored.max(1);
        let mut turned = Vec::new();
        for first in (0..stretches).map(|nth| nth * stretch) {
            // The rows have to be neighbours in the file too.
            let at = |nth: usize| change.row(stored, first + nth);
            let begin = if start < end { at(start) } else { 0 };
            let together = (start..end).all(|nth| at(nth) == begin + nth - start) && change != Change::Transposed;
            match found.numbers.some(begin * row..(begin + rows.len()) * row).filter(|_| together) {
                Some((some, is_turned)) => {
                    parts.push(some);
                    turned.push(is_turned);
                }
                None => return Err(wrong(format!("is not stored row by row; {}", wants()))),
            }
        }
        if matches!(change, Change::Pairs { .. } | Change::Fused { .. }) {
            change = Change::None;
        }
        match turned.contains(&true) {
            true if turned.contains(&false) => {
                return Err(wrong(format!("is partly stored column by column; {}", wants())));
            }
            true => change = Change::Transposed,
            false => {}
        }
        shape[0] = rows.len();
    } else {
        parts.push(found.numbers);
    }
    let (groups, cuts, exact) = group(axes, &shape);
    if !exact {
        return Err(Error::Shape {
            weight: declared(graph, tensor),
            wants: format!("[{}]", groups.join(", ")),
            file: found.file.to_owned(),
            has: format!("{shape:?}"),
            tensor: name,
        });
    }
    let mut order = Order::default();
    if let (Change::Transposed, [.., start, end, _]) = (change, &[&[0], &cuts[..]].concat()[..]) {
        order = Order::with_last(outer + start..outer + end);
        let last = shape.len() - 1;
        shape.swap(last - 1, last);
    }
    let rows = match change {
        // Of a bias, each number is a row.
        Change::Pairs { .. } | Change::Fused { .. } if rank == 1 => shape[0],
        _ => shape[..shape.len().saturating_sub(1)].iter().product(),
    };
    let sizes = all_axes.iter().map(|(_, size)| *size).collect();
    Ok(Stored { names: vec![name], beside: found.beside, rank, parts, change, order, sizes, rows })
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
/// dimensions' sizes; says each group (`n·g·c = 576`), where it ends, and whether all sizes are right.
fn group(axes: &[(&str, usize)], dimensions: &[usize]) -> (Vec<String>, Vec<usize>, bool) {
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
    (groups, cuts, right == parts && parts == dimensions.len())
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
