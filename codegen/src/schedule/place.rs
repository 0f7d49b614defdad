//! Places: a layout with the memory that it lies in.

use super::layout::{Layout, Step};
use crate::loops::{Address, Buffer, Elem, Expr, Format, Unary};

/// Where a tensor's elements are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) memory: Memory,
    pub(crate) elem: Elem,
    pub(crate) layout: Layout,
    /// For each dimension what is taken from a coordinate before the layout sees it.
    pub(crate) origin: Vec<Expr>,
    /// How it is coded, if it is.
    pub(crate) codes: Option<Codes>,
}

/// Codes, and where their scales are.
#[derive(Clone, Debug)]
pub(crate) struct Codes {
    pub(crate) format: Format,
    /// Of a scale the layout, in scales. Coordinates that it does not tell apart share one.
    pub(crate) scales: Layout,
    /// The layout of the scales that belong to the panels, where the codes have others: these are 1.
    pub(crate) ones: Option<Layout>,
}

/// The kinds of memory.
#[derive(Clone, Debug)]
pub(crate) enum Memory {
    /// One stretch.
    Flat(Buffer),
    /// Pages of a cache; the first dimension is the absolute position, of which the layout sees the remainder.
    Paged { table: usize, slot: usize, positions: usize },
}

impl Place {
    pub(crate) fn flat(buffer: Buffer, layout: Layout, dims: usize) -> Place {
        Place { memory: Memory::Flat(buffer), elem: Elem::F32, layout, origin: vec![Expr::Int(0); dims], codes: None }
    }

    /// How elements are stored.
    pub(crate) fn format(&self) -> Format {
        self.codes.as_ref().map_or(Format::of(self.elem), |codes| codes.format)
    }

    /// The address of the element at these coordinates.
    pub(crate) fn address(&self, index: &[Expr]) -> Address {
        self.address_in(&self.layout, index)
    }

    /// The address at these coordinates in a layout of the same memory.
    pub(crate) fn address_in(&self, layout: &Layout, index: &[Expr]) -> Address {
        let index: Vec<Expr> = index.iter().zip(&self.origin).map(|(i, o)| i.clone() - o.clone()).collect();
        match &self.memory {
            Memory::Flat(buffer) => Address { buffer: buffer.clone(), offset: layout.offset(&index) },
            Memory::Paged { table, slot, positions } => {
                let page = Box::new(index[0].clone().div(*positions));
                let mut within = index;
                within[0] = within[0].clone().rem(*positions);
                let buffer = Buffer::Page { table: *table, slot: *slot, page };
                Address { buffer, offset: layout.offset(&within) }
            }
        }
    }

    /// An element.
    pub(crate) fn load(&self, index: &[Expr]) -> Expr {
        let at = self.address(index);
        let Some(Codes { format, scales, .. }) = &self.codes else { return at.load(self.elem) };
        let scale = self.address_in(scales, index).load(Elem::Bf16);
        let code = match format.in_unit() {
            1 => at.load(self.elem),
            in_unit => {
                let byte = Address { buffer: at.buffer, offset: at.offset.clone().div(in_unit) }.load(self.elem);
                let upper = Expr::from(0).lt(at.offset.rem(in_unit));
                let radix = 1 << format.bits();
                upper.select(byte.clone().div(radix), byte.rem(radix))
            }
        };
        (code - i64::from(format.offset())).unary(Unary::ToFloat) * scale
    }

    /// Whether lanes that step so through the dimensions are neighbours in memory.
    pub(crate) fn is_contiguous(&self, steps: &[Step]) -> bool {
        if self.codes.is_some() {
            return false;
        }
        let within_page = match self.memory {
            Memory::Flat(_) => true,
            Memory::Paged { .. } => match steps[0] {
                Step::Still => true,
                Step::One { aligned } => aligned && self.origin[0] == Expr::Int(0),
                Step::Other => false,
            },
        };
        within_page && self.layout.is_contiguous(steps)
    }

    /// Moves the origin of one dimension.
    pub(crate) fn with_origin(mut self, dim: usize, origin: Expr) -> Place {
        self.origin[dim] = origin;
        self
    }
}
