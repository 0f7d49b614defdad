//! Packing: from a checkpoint's order of elements into the order in which the kernels read them.

mod codes;

use std::array;
use std::ops::Range;

use einfuse_graph::{Graph, TensorId};
use half::{bf16, f16};

pub use self::codes::nearest;
use self::codes::{Made, write_block, write_codes};
use crate::format::{Codes, Element, Format, Grid, PANEL};
use crate::fuse::Along;
use crate::schedule::weights::{Region, View};

/// How many neighbours in a checkpoint are read at once: long enough to stream, and not a multiple of a page, so that the
/// columns of a panel don't evict each other from the nearest cache.
const RUN: usize = 768;

/// How many rows of a panel are written at once: whole blocks, at most as many as the longest has. Runs have whole ones too.
const ROWS: usize = 256;

/// The most scales of a run.
const SCALES: usize = RUN / 16;

/// The elements of a tensor as a checkpoint stores them: row-major in the tensor's axes, which are in the order in which it is
/// kept; numbers little-endian.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [u8]),
    /// The upper halves of 32-bit floats.
    Bf16(&'a [u8]),
    /// 16-bit floats (IEEE 754 binary16).
    F16(&'a [u8]),
    /// Several parts of as many elements each, one after the other.
    Parts(&'a [Values<'a>]),
    /// Stored in some other way.
    Read {
        /// How many there are.
        elements: usize,
        /// Reads neighbours, from an element on. Faster where they begin and end at multiples of 256, or at a row's ends.
        read: &'a dyn Fn(usize, &mut [f32]),
        /// How the elements are `scale * value + minimum`, if they are.
        blocks: Option<InBlocks<'a>>,
    },
}

/// Elements in blocks along the last axes of a tensor's order.
#[derive(Clone, Copy)]
pub struct InBlocks<'a> {
    /// What the values can be.
    pub grid: Grid,
    /// Reads whole blocks of neighbours, from an element on: the values, and for each block scale and minimum.
    pub read: &'a ReadBlocks<'a>,
}

/// From which element on; the values; scale and minimum of each block.
pub type ReadBlocks<'a> = dyn Fn(usize, &mut [i8], &mut [[f32; 2]]) + 'a;

impl<'a> Values<'a> {
    /// One part, or several of as many elements each.
    pub fn of(parts: &'a [Values<'a>]) -> Values<'a> {
        match parts {
            [one] => *one,
            parts => Values::Parts(parts),
        }
    }
}

impl Values<'_> {
    /// How many elements there are.
    fn len(&self) -> usize {
        match self {
            Values::Parts(parts) => parts.iter().map(Values::len).sum(),
            Values::F32(bytes) => bytes.len() / 4,
            Values::Bf16(bytes) | Values::F16(bytes) => bytes.len() / 2,
            Values::Read { elements, .. } => *elements,
        }
    }

    /// Reads neighbours, from the element `at` on.
    fn read(&self, at: usize, out: &mut [f32]) {
        fn each<const N: usize>(bytes: &[u8], at: usize, out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
            let elements = &bytes.as_chunks::<N>().0[at..at + out.len()];
            for (out, element) in out.iter_mut().zip(elements) {
                *out = convert(*element);
            }
        }
        match self {
            Values::F32(bytes) => each(bytes, at, out, f32::from_le_bytes),
            Values::Bf16(bytes) => each(bytes, at, out, |x| f32::from_bits(u32::from(u16::from_le_bytes(x)) << 16)),
            Values::F16(bytes) => each(bytes, at, out, |x| f16::from_le_bytes(x).to_f32()),
            Values::Parts(parts) => {
                let size = parts.first().map_or(0, Values::len).max(1);
                let (mut at, mut out) = (at, out);
                while !out.is_empty() {
                    let (here, after) = out.split_at_mut((size - at % size).min(out.len()));
                    parts[at / size].read(at % size, here);
                    (at, out) = (at + here.len(), after);
                }
            }
            Values::Read { read, .. } => read(at, out),
        }
    }
}

/// What of a tensor cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Its elements do not fill its axes.
    #[error("`{tensor}` wants {wanted} elements for its axes {axes}, there are {found}")]
    Elements {
        /// The tensor's name.
        tensor: String,
        /// Its axes.
        axes: String,
        /// The number of elements of the axes.
        wanted: usize,
        /// The number that was given.
        found: usize,
    },
    /// It is to be kept in blocks that it does not have.
    #[error("`{tensor}` is to be kept as {format}: its elements are not in blocks that can be")]
    Blocks {
        /// The tensor's name.
        tensor: String,
        /// What it is to be kept as.
        format: String,
    },
}

/// A stretch of the packed weights: one tensor, or several that a kernel reads interleaved.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Which tensors it holds.
    pub tensors: Vec<TensorId>,
    /// The layer whose weights they are; `None` for those that all layers share.
    pub layer: Option<usize>,
    /// Where it begins, in bytes from the start of all packed weights.
    pub offset: usize,
    /// How long it is.
    pub bytes: usize,
    /// The stretch may be packed in parts, cut at multiples of so many bytes.
    pub grain: usize,
    /// How its elements are stored.
    pub storage: Format,
    moves: Vec<Move>,
}

impl Packed {
    pub(crate) fn of(graph: &Graph, region: &Region, layer: Option<usize>, offset: usize) -> Packed {
        let moves: Vec<Move> = region.views.iter().map(|view| Move::of(graph, view, region.storage)).collect();
        let unit = region.storage.elem().bytes();
        let grains: Vec<usize> = moves.iter().map(|m| m.grain(region.storage).unwrap_or(region.len)).collect();
        let alike = grains.windows(2).all(|pair| pair[0] == pair[1]);
        let grain = match region.storage.is_coded() {
            true => region.storage.panel(region.depth),
            false => grains.first().copied().filter(|_| alike).unwrap_or(region.len),
        };
        Packed {
            tensors: region.views.iter().map(|v| v.tensor).collect(),
            layer,
            offset,
            bytes: region.len * unit,
            grain: grain * unit,
            storage: region.storage,
            moves,
        }
    }

    /// Writes a part of the stretch, `out`, which begins `from` bytes after the stretch's start and is zero; begin and end are
    /// at multiples of the grain, or the stretch's end. The tensors' elements are given in the order of `tensors`. bf16
    /// storage rounds to nearest, ties to even.
    ///
    /// Blocks that codes can hold become codes of the same values, their scales and minima rounded as bf16. Of other elements
    /// `Q8` and `Q4` (in blocks of any length) are the nearest.
    ///
    /// # Errors
    /// A tensor with another number of elements than its axes have, or without the blocks that are to be kept.
    pub fn pack(&self, values: &[Values<'_>], from: usize, out: &mut [u8]) -> Result<(), PackError> {
        for (one, values) in self.moves.iter().zip(values) {
            let tensor = one.name.clone();
            if values.len() != one.elements {
                let axes = one.axes.clone();
                return Err(PackError::Elements { tensor, axes, wanted: one.elements, found: values.len() });
            }
            let read = |at: usize, out: &mut [f32]| {
                let Some(made) = one.made else { return values.read(at, out) };
                let mut all = vec![Element::default(); out.len()];
                made.read(values, at, &mut all);
                for (out, element) in out.iter_mut().zip(all) {
                    *out = made.codes.number(element) as f32;
                }
            };
            let of_codes = Values::Read { elements: one.elements, read: &read, blocks: None };
            let values = if one.made.is_some() { &of_codes } else { values };
            let blocks = one.blocks(values, self.storage);
            if blocks.is_none() && self.storage.is_coded() && !self.storage.is_nearest() {
                return Err(PackError::Blocks { tensor, format: self.storage.to_string() });
            }
            let mut part = Part {
                values,
                blocks,
                storage: self.storage,
                first: from / self.storage.elem().bytes(),
                out: &mut *out,
                runs: Box::new([[0.0; RUN]; PANEL]),
            };
            one.walk(&one.loops, one.source, one.base, PANEL, &mut part);
        }
        Ok(())
    }
}

/// The way of a tensor's elements into a stretch: loops around a piece of which the elements' new places are neighbours.
#[derive(Clone, Debug)]
struct Move {
    name: String,
    axes: String,
    /// How many elements the tensor has.
    elements: usize,
    /// Where the first element is in the tensor, and where it goes.
    source: usize,
    base: usize,
    /// Outermost first: the farther apart the places, the farther out.
    loops: Vec<Loop>,
    piece: Piece,
    /// The codes that its numbers are those of, if the numbers themselves are stored.
    made: Option<Made>,
}

/// A dimension of a tensor, or the panels along it.
#[derive(Clone, Debug)]
struct Loop {
    /// Where each coordinate goes; they rise.
    places: Vec<usize>,
    /// Elements from one coordinate to the next in the tensor.
    stride: usize,
    /// The columns of all panels, where it loops over panels.
    columns: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Piece {
    /// Neighbours in the tensor, so many.
    Row(usize),
    /// Rows of a panel, with the strides in the tensor from row to row and from column to column.
    Panel { rows: usize, row_stride: usize, column_stride: usize },
}

impl Piece {
    /// How many places it has.
    fn len(self, storage: Format) -> usize {
        match self {
            Piece::Row(len) => len,
            Piece::Panel { rows, .. } => storage.rows(rows),
        }
    }
}

/// What is written, and from what.
struct Part<'a> {
    values: &'a Values<'a>,
    /// The elements in blocks, where they are to be kept so.
    blocks: Option<(InBlocks<'a>, Codes)>,
    storage: Format,
    /// The place of the first element of `out`.
    first: usize,
    out: &'a mut [u8],
    /// What was read of each column of a panel.
    runs: Box<[[f32; RUN]; PANEL]>,
}

impl Move {
    fn of(graph: &Graph, view: &View, storage: Format) -> Move {
        let tensor = graph.tensor(view.tensor);
        let sizes: Vec<usize> = tensor.axes.iter().map(|&a| graph.fixed_size(a)).collect();
        let strides = view.order.strides(&sizes);
        let dims = Dim::all(graph, view, &sizes, &strides);
        let Pieces { piece, within, panels } = Pieces::of(&dims, storage);
        let looped = dims.iter().enumerate().filter(|(at, dim)| dim.free && !within.contains(at));
        let mut loops: Vec<Loop> = looped.map(|(at, dim)| dim.looped(panels == Some(at))).collect();
        loops.sort_by_key(|l| std::cmp::Reverse(l.reach()));
        Move {
            name: tensor.name.clone(),
            axes: graph.axes_of(view.tensor),
            elements: sizes.iter().product(),
            source: view.along.iter().zip(&strides).map(|(along, stride)| along.first() * stride).sum(),
            base: view.layout.base,
            loops,
            piece,
            made: view.made.map(|blocks| {
                let size = sizes[blocks.dims()].iter().product();
                Made { codes: blocks.codes, size, stride: strides[blocks.dims().end - 1] }
            }),
        }
    }

    /// A tensor's blocks, where they can be kept: in rows of panels that are neighbours in the tensor.
    fn blocks<'a>(&self, values: &Values<'a>, storage: Format) -> Option<(InBlocks<'a>, Codes)> {
        let Values::Read { blocks: Some(blocks), .. } = values else { return None };
        let codes = storage.codes().filter(|codes| codes.holds(&blocks.grid))?;
        matches!(self.piece, Piece::Panel { row_stride: 1, .. }).then_some((*blocks, codes))
    }

    /// All pieces begin at multiples of the elements of one, if they do.
    fn grain(&self, storage: Format) -> Option<usize> {
        let len = self.piece.len(storage);
        let mut places = self.loops.iter().flat_map(|l| &l.places).chain([&self.base]);
        places.all(|place| place.is_multiple_of(len)).then_some(len)
    }

    /// Writes the pieces that the loops lead to and the part has.
    fn walk(&self, loops: &[Loop], source: usize, place: usize, columns: usize, part: &mut Part<'_>) {
        let [outer, inner @ ..] = loops else {
            return part.write(self.piece, source, place, columns);
        };
        let reach = inner.iter().map(Loop::reach).sum::<usize>() + self.piece.len(part.storage);
        let end = part.first + part.places();
        let begin = outer.places.partition_point(|at| place + at + reach <= part.first);
        for (i, at) in outer.places.iter().enumerate().skip(begin).take_while(|(_, at)| place + **at < end) {
            let columns = outer.columns.map_or(columns, |all| PANEL.min(all - i * PANEL));
            self.walk(inner, source + i * outer.stride, place + at, columns, part);
        }
    }
}

/// An axis of a tensor, or the axes whose blocks are kept, as one.
struct Dim {
    /// How many coordinates are taken.
    size: usize,
    /// Elements from one coordinate to the next in the tensor.
    stride: usize,
    /// Where each coordinate goes.
    places: Vec<usize>,
    /// Whether it is not one coordinate alone that is taken.
    free: bool,
    /// Whether its coordinates are the columns of panels.
    columns: bool,
}

impl Dim {
    /// Those of a tensor with such sizes and strides.
    fn all(graph: &Graph, view: &View, sizes: &[usize], strides: &[usize]) -> Vec<Dim> {
        let parts = view.along.iter().zip(sizes);
        let taken: Vec<usize> =
            parts.map(|(along, &all)| along.axis().map_or(all, |axis| graph.fixed_size(axis))).collect();
        let joined = view.coded.as_ref().map_or(0..1, |coded| coded.rows.dims());
        let ends = (1..=sizes.len()).filter(|end| !joined.contains(end) || *end == joined.start);
        let mut start = 0;
        let axes = ends.map(|end| std::mem::replace(&mut start, end)..end);
        let dim = |axes: Range<usize>| {
            let mut index = vec![0; sizes.len()];
            let place = |coordinate| {
                let mut rest = coordinate;
                for axis in axes.clone().rev() {
                    (index[axis], rest) = (rest % taken[axis], rest / taken[axis]);
                }
                view.layout.offset_of(&index) - view.layout.base
            };
            let size = taken[axes.clone()].iter().product();
            let free = !matches!(view.along[axes.start], Along::Fixed(_));
            Dim {
                size,
                stride: strides[axes.end - 1],
                places: (0..size).map(place).collect(),
                free,
                columns: free && view.layout.has_panels(axes.start),
            }
        };
        axes.map(dim).collect()
    }

    /// Whether each coordinate goes to such a place.
    fn goes(&self, to: impl Fn(usize) -> usize) -> bool {
        self.free && self.places.iter().enumerate().all(|(at, &place)| place == to(at))
    }

    /// A loop over its coordinates, or over panels of them.
    fn looped(&self, over_panels: bool) -> Loop {
        let Dim { size, stride, places, .. } = self;
        match over_panels {
            true => Loop {
                places: places.iter().copied().step_by(PANEL).collect(),
                stride: stride * PANEL,
                columns: Some(*size),
            },
            false => Loop { places: places.clone(), stride: *stride, columns: None },
        }
    }
}

/// How a tensor's elements go in pieces.
struct Pieces {
    piece: Piece,
    /// The dimensions that are within a piece.
    within: Range<usize>,
    /// The dimension whose coordinates are the columns of the panels, where pieces are rows of them.
    panels: Option<usize>,
}

impl Pieces {
    fn of(dims: &[Dim], storage: Format) -> Pieces {
        let together = storage.together();
        let plane = storage.codes().and_then(|codes| codes.planes().first().copied());
        let in_panel = |i: usize| match plane {
            Some(plane) => storage.rows(i) + plane.place(i % storage.block(), 0).0,
            None => i / together * together * PANEL + i % together,
        };
        let column = dims.iter().position(|dim| dim.columns);
        let is_row = |at: &usize| column != Some(*at) && dims[*at].size > 1 && dims[*at].goes(in_panel);
        if let Some(column) = column
            && let Some(last) = (0..dims.len()).rev().find(is_row)
        {
            // Dimensions before it go with it where they only count on, in the tensor as in the panel.
            let (mut first, mut rows, stride) = (last, dims[last].size, dims[last].stride);
            while first > 0
                && first - 1 != column
                && rows.is_multiple_of(storage.block())
                && dims[first - 1].stride == rows * stride
                && dims[first - 1].goes(|i| i * storage.rows(rows))
            {
                first -= 1;
                rows *= dims[first].size;
            }
            let piece = Piece::Panel { rows, row_stride: stride, column_stride: dims[column].stride };
            return Pieces { piece, within: first..last + 1, panels: Some(column) };
        }
        match dims.last() {
            Some(last) if last.stride == 1 && last.goes(|i| i) => {
                Pieces { piece: Piece::Row(last.size), within: dims.len() - 1..dims.len(), panels: None }
            }
            _ => Pieces { piece: Piece::Row(1), within: 0..0, panels: None },
        }
    }
}

impl Loop {
    /// The last place.
    fn reach(&self) -> usize {
        self.places.last().copied().unwrap_or(0)
    }
}

impl Part<'_> {
    /// How many elements it has places for.
    fn places(&self) -> usize {
        self.out.len() / self.storage.elem().bytes()
    }

    /// Writes a piece; a panel has so many columns.
    fn write(&mut self, piece: Piece, source: usize, place: usize, columns: usize) {
        let mut block = [[0.0; PANEL]; ROWS];
        let at_once = self.storage.block().next_multiple_of(64);
        match piece {
            Piece::Row(len) => {
                let bytes = self.storage.elem().bytes();
                let out = &mut self.out[(place - self.first) * bytes..][..len * bytes];
                let run = &mut self.runs[0];
                for (nth, out) in out.chunks_mut(RUN * bytes).enumerate() {
                    let run = &mut run[..out.len() / bytes];
                    self.values.read(source + nth * RUN, run);
                    write_row(self.storage, run, out);
                }
            }
            Piece::Panel { column_stride, rows, .. } if let Some((blocks, codes)) = self.blocks => {
                let step = |column: usize| source + column * column_stride;
                let at = place - self.first;
                for column in 0..columns {
                    write_codes(codes, &blocks, step(column), rows, column, &mut self.out[at..]);
                }
            }
            // The tensor has columns as rows: reads along them, and turns blocks around.
            Piece::Panel { row_stride: 1, column_stride, rows } => {
                self.runs[columns..].as_flattened_mut().fill(0.0);
                for first in (0..rows).step_by(RUN) {
                    let read = RUN.min(rows - first);
                    for (column, run) in self.runs[..columns].iter_mut().enumerate() {
                        self.values.read(source + column * column_stride + first, &mut run[..read]);
                    }
                    for from in (0..read).step_by(at_once) {
                        let block = &mut block[..at_once.min(read - from)];
                        turn(&self.runs, from, block);
                        self.write_rows(place + self.storage.rows(first + from), block);
                    }
                }
            }
            Piece::Panel { row_stride, column_stride, rows } => {
                for first in (0..rows).step_by(at_once) {
                    let block = &mut block[..at_once.min(rows - first)];
                    for (row, elements) in block.iter_mut().enumerate() {
                        let source = source + (first + row) * row_stride;
                        match column_stride {
                            1 => self.values.read(source, &mut elements[..columns]),
                            _ => elements[..columns].chunks_mut(1).enumerate().for_each(|(column, element)| {
                                self.values.read(source + column * column_stride, element);
                            }),
                        }
                    }
                    self.write_rows(place + self.storage.rows(first), block);
                }
            }
        }
    }

    /// Writes rows of a panel from a place on; of codes whole blocks.
    fn write_rows(&mut self, place: usize, rows: &[[f32; PANEL]]) {
        let (format, unit) = (self.storage, self.storage.elem().bytes());
        let at = (place - self.first) * unit;
        let Some(codes) = format.codes() else {
            return write_panel(format, rows, &mut self.out[at..][..rows.len() * PANEL * unit]);
        };
        let blocks = self.out[at..].chunks_mut(format.rows(format.block()));
        for (rows, block) in rows.chunks(format.block()).zip(blocks) {
            write_block(codes, rows, block);
        }
    }
}

/// Rows of a panel out of its columns, from row `first` on. In squares of four by four, which stay in registers.
fn turn(columns: &[[f32; RUN]; PANEL], first: usize, rows: &mut [[f32; PANEL]]) {
    const SIDE: usize = 4;
    for (nth, rows) in rows.chunks_mut(SIDE).enumerate() {
        let first = first + nth * SIDE;
        for column in (0..PANEL).step_by(SIDE) {
            let square: [[f32; SIDE]; SIDE] = array::from_fn(|c| array::from_fn(|r| columns[column + c][first + r]));
            for (r, row) in rows.iter_mut().enumerate() {
                for c in 0..SIDE {
                    row[column + c] = square[c][r];
                }
            }
        }
    }
}

/// Stores elements one after the other.
fn write_row(storage: Format, elements: &[f32], out: &mut [u8]) {
    match storage {
        Format::F32 => {
            for (element, out) in elements.iter().zip(out.as_chunks_mut().0) {
                *out = element.to_le_bytes();
            }
        }
        _ => {
            for (element, out) in elements.iter().zip(out.as_chunks_mut().0) {
                *out = bf16::from_f32(*element).to_le_bytes();
            }
        }
    }
}

/// Stores rows of a panel as the cores read them (see [`crate::loops::Core`]).
fn write_panel(storage: Format, rows: &[[f32; PANEL]], out: &mut [u8]) {
    match storage {
        Format::F32 => write_row(storage, rows.as_flattened(), out),
        _ => {
            let pairs = rows.as_chunks::<2>().0;
            for ([first, second], out) in pairs.iter().zip(out.as_chunks_mut::<{ 4 * PANEL }>().0) {
                for ((first, second), out) in first.iter().zip(second).zip(out.as_chunks_mut().0) {
                    let [first, second] = [first, second].map(|x| u32::from(bf16::from_f32(*x).to_bits()));
                    *out = (first | second << 16).to_le_bytes();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use einfuse_graph::Builder;

    use super::*;
    use crate::fuse::Order;
    use crate::schedule::layout::Layout;

    /// A layout in panels: `columns` and `rows` are dimensions, the last of the rows innermost; the others are outermost.
    fn panels(sizes: &[usize], columns: usize, rows: &[usize], storage: Format, base: usize, apart: usize) -> Layout {
        let (mut layout, mut stride) = (Layout { base, terms: Vec::new() }, PANEL);
        for (nth, &dim) in rows.iter().rev().enumerate() {
            match nth {
                0 => layout.push_depth(&dim.into(), storage),
                _ => layout.push(dim, stride),
            }
            stride *= sizes[dim];
        }
        stride *= apart;
        layout.push_panels(columns, stride, storage);
        stride *= sizes[columns].div_ceil(PANEL);
        for dim in (0..sizes.len()).rev().filter(|dim| *dim != columns && !rows.contains(dim)) {
            layout.push(dim, stride);
            stride *= sizes[dim];
        }
        layout
    }

    /// Some numbers with few bits, so that all formats have them.
    fn number(i: usize) -> f32 {
        (i * 37 % 255) as f32 - 127.0
    }

    /// Packs what is `taken` along each axis of tensors of these sizes (all, or so many) into one stretch, as a whole and in
    /// parts, out of each format, and holds every element against its layout. Returns how many parts there are at most.
    fn check(sizes: &[usize], taken: &[Option<Range<usize>>], storage: Format, layouts: &[Layout]) -> usize {
        let mut b = Builder::new("test");
        let axes: Vec<_> = sizes.iter().enumerate().map(|(i, &size)| b.axis(&format!("a{i}"), size)).collect();
        let part = |(i, taken): (usize, &Option<Range<usize>>)| match taken {
            None => Along::Axis { axis: axes[i], from: 0 },
            Some(one) if one.len() == 1 => Along::Fixed(one.start),
            Some(some) => Along::Axis { axis: b.axis(&format!("p{i}"), some.len()), from: some.start },
        };
        let along: Vec<Along> = taken.iter().enumerate().map(part).collect();
        let mut views = Vec::new();
        for (i, layout) in layouts.iter().enumerate() {
            let tensor = b.weight(&format!("w{i}"), &axes, "w");
            let (along, layout) = (along.clone(), layout.clone());
            views.push(View { tensor, along, order: Order::default(), layout, coded: None, made: None });
        }
        let count: usize = sizes.iter().product();
        let numbers = |nth: usize| (0..count).map(move |i| number(i + nth));
        let mut wanted: Vec<(usize, f32)> = Vec::new();
        for (nth, layout) in layouts.iter().enumerate() {
            for (i, number) in numbers(nth).enumerate() {
                let mut rest = i;
                let mut index: Vec<usize> = sizes.iter().rev().map(|&size| (rest % size, rest /= size).0).collect();
                index.reverse();
                let is_in = taken.iter().zip(&index).all(|(taken, at)| taken.as_ref().is_none_or(|t| t.contains(at)));
                let first = |taken: &Option<Range<usize>>| taken.as_ref().map_or(0, |taken| taken.start);
                let index: Vec<usize> =
                    index.iter().zip(taken).map(|(&at, taken)| at.saturating_sub(first(taken))).collect();
                wanted.extend(is_in.then(|| (layout.offset_of(&index), number)));
            }
        }
        let len = wanted.iter().map(|(at, _)| at + 1).max().unwrap_or(0).next_multiple_of(2 * PANEL);
        let region = Region { storage, len, views, depth: 0, layers: [None].into() };
        let packed = Packed::of(b.graph(), &region, None, 0);
        assert!(packed.bytes == len * storage.elem().bytes() && packed.grain > 0);

        let mut expected = vec![0; packed.bytes];
        for (at, number) in wanted {
            let bytes = number.to_le_bytes();
            match storage {
                Format::F32 => expected[at * 4..][..4].copy_from_slice(&bytes),
                _ => expected[at * 2..][..2].copy_from_slice(&bytes[2..]),
            }
        }
        let f32s: Vec<Vec<u8>> = (0..layouts.len()).map(|n| numbers(n).flat_map(f32::to_le_bytes).collect()).collect();
        let bf16s: Vec<Vec<u8>> =
            (0..layouts.len()).map(|n| numbers(n).flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect()).collect();
        let f16s: Vec<Vec<u8>> =
            (0..layouts.len()).map(|n| numbers(n).flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()).collect();
        let readers: Vec<_> = (0..layouts.len())
            .map(|n| move |at: usize, out: &mut [f32]| (at..).zip(out).for_each(|(i, out)| *out = number(i + n)))
            .collect();
        let halves: Vec<[Values<'_>; 2]> = f32s
            .iter()
            .map(|bytes| {
                let half = if count.is_multiple_of(2) { bytes.len() / 2 } else { bytes.len() };
                [Values::F32(&bytes[..half]), Values::F32(&bytes[half..])]
            })
            .collect();
        let sources: [Vec<Values<'_>>; 5] = [
            halves
                .iter()
                .map(|halves| Values::of(if count.is_multiple_of(2) { halves } else { &halves[..1] }))
                .collect(),
            f32s.iter().map(|bytes| Values::F32(bytes)).collect(),
            bf16s.iter().map(|bytes| Values::Bf16(bytes)).collect(),
            f16s.iter().map(|bytes| Values::F16(bytes)).collect(),
            readers.iter().map(|read| Values::Read { elements: count, read, blocks: None }).collect(),
        ];
        for source in sources {
            for size in [packed.bytes, packed.grain, 3 * packed.grain] {
                let mut out = vec![0; packed.bytes];
                for (nth, part) in out.chunks_mut(size).enumerate() {
                    packed.pack(&source, nth * size, part).unwrap();
                }
                assert!(out == expected, "{sizes:?} as {storage:?} in parts of {size}");
            }
        }
        packed.bytes.div_ceil(packed.grain)
    }

    #[test]
    fn every_element_is_where_its_layout_says() {
        for storage in [Format::F32, Format::Bf16] {
            let none = [const { None }; 4];
            let panels = |sizes: &[usize], columns, rows: &[usize]| panels(sizes, columns, rows, storage, 0, 1);
            // Outputs first, as in most files; the last panel not full, blocks and runs neither.
            assert_eq!(check(&[37, 800], &none[..2], storage, &[panels(&[37, 800], 0, &[1])]), 3);
            // Heads outermost; summed over two dimensions; inputs first.
            assert_eq!(check(&[3, 2, 20, 24], &none, storage, &[panels(&[3, 2, 20, 24], 2, &[3])]), 12);
            assert_eq!(check(&[40, 3, 10], &none[..3], storage, &[panels(&[40, 3, 10], 0, &[1, 2])]), 3);
            assert_eq!(check(&[24, 40], &none[..2], storage, &[panels(&[24, 40], 1, &[0])]), 3);
            // Neither rows nor columns are neighbours.
            assert_eq!(check(&[20, 12, 3], &none[..3], storage, &[panels(&[20, 12, 3], 0, &[1])]), 6);
            assert_eq!(check(&[6, 20, 4], &none[..3], storage, &[panels(&[6, 20, 4], 1, &[0, 2])]), 12);
            // One of two.
            let one = [Some(1..2), None, None];
            assert_eq!(check(&[2, 32, 8], &one, storage, &[panels(&[2, 32, 8], 1, &[2])]), 2);
            // Some of the columns; some of the rows, of which those of two dimensions then don't follow each other.
            let some = [None, Some(16..48), None];
            assert_eq!(check(&[2, 50, 8], &some, storage, &[panels(&[2, 32, 8], 1, &[2])]), 4);
            let some = [None, None, Some(3..11)];
            assert_eq!(check(&[2, 20, 12], &some, storage, &[panels(&[2, 20, 8], 1, &[2])]), 4);
            assert_eq!(check(&[20, 2, 12], &some, storage, &[panels(&[20, 2, 8], 0, &[1, 2])]), 4);
            // In rows, and in no order that is known.
            assert_eq!(check(&[5, 800], &none[..2], storage, &[Layout::row_major(&[5, 800])]), 5);
            let mut odd = Layout::default();
            odd.push(0, 2);
            odd.push(1, 64);
            check(&[32, 3], &none[..2], storage, &[odd]);
        }
    }

    #[test]
    fn tensors_of_a_stretch_are_interleaved() {
        for storage in [Format::F32, Format::Bf16] {
            let layout = |nth: usize| panels(&[48, 20], 0, &[1], storage, nth * 20 * PANEL, 2);
            assert_eq!(check(&[48, 20], &[const { None }; 2], storage, &[layout(0), layout(1)]), 6);
        }
    }

    #[test]
    fn tensors_of_another_size_are_named() {
        let mut b = Builder::new("test");
        let axes = [b.axis("f", 16), b.axis("d", 2)];
        let view = View {
            tensor: b.weight("w", &axes, "w"),
            along: axes.map(|axis| Along::Axis { axis, from: 0 }).to_vec(),
            order: Order::default(),
            layout: Layout::row_major(&[16, 2]),
            coded: None,
            made: None,
        };
        let region = Region { storage: Format::F32, len: 32, views: vec![view], depth: 0, layers: [None].into() };
        let error = Packed::of(b.graph(), &region, None, 0).pack(&[Values::Bf16(&[0; 62])], 0, &mut [0; 128]);
        assert_eq!(error.unwrap_err().to_string(), "`w` wants 32 elements for its axes [f, d], there are 31");
    }
}
