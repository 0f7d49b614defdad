//! Places: a layout with the memory that it lies in.

use super::layout::{Dims, Layout, Step};
use crate::format::{Codes, Elem, Format, PANEL};
use crate::loops::{Address, Arg, Buffer, Expr, Unary};

/// Where a tensor's elements are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) memory: Memory,
    pub(crate) elem: Elem,
    pub(crate) layout: Layout,
    /// For each dimension what is taken from a coordinate before the layout sees it.
    pub(crate) origin: Vec<Expr>,
    /// How it is coded, if it is.
    pub(crate) coded: Option<Coded>,
}

/// Where the codes of a tensor are, and their scales.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Coded {
    pub(crate) codes: Codes,
    /// The dimensions along which there are blocks.
    pub(crate) rows: Dims,
    /// For each plane the bytes where the codes have bits.
    pub(crate) planes: Vec<Layout>,
    /// The scales, in scales; minima are [`PANEL`] further on. Coordinates that it does not tell apart share one.
    pub(crate) scales: Layout,
    /// The bytes of steps and zeros, if there are any.
    pub(crate) parts: Option<Layout>,
    /// The layout of the scales that belong to the panels, where the codes have others: these are 1.
    pub(crate) ones: Option<Layout>,
}

/// The kinds of memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Memory {
    /// One stretch.
    Flat(Buffer),
    /// Pages of a cache; the first dimension is the absolute position, of which the layout sees the remainder.
    Paged { table: usize, slot: usize, positions: usize },
}

impl Place {
    pub(crate) fn flat(buffer: Buffer, layout: Layout, dims: usize) -> Place {
        Place { memory: Memory::Flat(buffer), elem: Elem::F32, layout, origin: vec![Expr::Int(0); dims], coded: None }
    }

    /// How elements are stored.
    pub(crate) fn format(&self) -> Format {
        self.coded.as_ref().map_or(Format::of(self.elem), |coded| Format::Codes(coded.codes))
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
        let Some(coded) = &self.coded else { return at.load(self.elem) };
        let within: Vec<Expr> = index.iter().zip(&self.origin).map(|(i, o)| i.clone() - o.clone()).collect();
        let row = coded.rows.coordinate(&within);
        let mut code = Expr::Int(0);
        for (plane, layout) in coded.codes.planes().into_iter().zip(&coded.planes) {
            let byte = self.address_in(layout, index).load(Elem::U8);
            let step = row.clone().div(4).rem(plane.steps());
            let radix = 1i64 << plane.bits;
            // The bits of the step that it is: each before it divides once.
            let rest = (1..plane.steps()).fold(byte.clone(), |rest, nth| {
                let shifted = byte.clone().div(1 << (nth * plane.bits));
                Expr::from(nth - 1).lt(step.clone()).select(shifted, rest)
            });
            let bits = if plane.bits == 8 { rest } else { rest.rem(radix) };
            code = code + bits * (1i64 << plane.shift);
        }
        let value = match (&coded.parts, coded.codes.levels) {
            (Some(parts), _) => {
                let part = self.address_in(parts, index).load(Elem::U8);
                part.clone().rem(16) * (code - part.div(16))
            }
            (None, None) => code - i64::from(coded.codes.offset),
            (None, Some(levels)) => (1..levels.len()).fold(Expr::Int(levels[0].into()), |value, nth| {
                Expr::from(nth - 1).lt(code.clone()).select(Expr::Int(levels[nth].into()), value)
            }),
        };
        let scale = self.address_in(&coded.scales, index);
        let scaled = value.unary(Unary::ToFloat) * scale.clone().load(Elem::Bf16);
        if coded.codes.minimum { scaled + scale.plus(PANEL).load(Elem::Bf16) } else { scaled }
    }

    /// Whether lanes that step so through the dimensions are neighbours in memory.
    pub(crate) fn is_contiguous(&self, steps: &[Step]) -> bool {
        self.is_within_page(steps) && self.layout.is_contiguous(steps)
    }

    /// Where such lanes, stored as bf16, lie apart (see [`Layout::spread`]).
    pub(crate) fn spread(&self, steps: &[Step]) -> Option<(usize, usize)> {
        let can = self.elem == Elem::Bf16 && self.is_within_page(steps);
        if can { self.layout.spread(steps) } else { None }
    }

    fn is_within_page(&self, steps: &[Step]) -> bool {
        let within_page = match self.memory {
            Memory::Flat(_) => true,
            Memory::Paged { .. } => match steps[0] {
                Step::Still => true,
                Step::One { aligned } => aligned && self.origin[0] == Expr::Int(0),
                Step::Other => false,
            },
        };
        within_page && self.coded.is_none()
    }

    /// Whether the first dimension begins with the first token whose output is wanted.
    pub(crate) fn is_from_first(&self) -> bool {
        self.origin.first().is_some_and(|origin| *origin == Expr::from(Arg::First))
    }

    /// Moves the origin of one dimension.
    pub(crate) fn with_origin(mut self, dim: usize, origin: Expr) -> Place {
        self.origin[dim] = origin;
        self
    }
}
