//! Where weights lie in panels: their elements, or the planes and scales of their codes.

use einfuse_graph::{AxisId, Graph};

use super::layout::{Dims, Layout};
use super::place::Coded;
use super::weights::Units;
use crate::format::{Codes, Elem, Format, PANEL, Plane};
use crate::fuse::Along;

/// How far apart parts of a region are.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub(super) base: usize,
    pub(super) panel: usize,
    pub(super) unit: usize,
}

/// What of panels a layout is of.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Floats,
    Plane(Plane),
    Scales,
    /// Steps and zeros, of so many rows each.
    Parts(usize),
}

/// A weight in panels.
pub(super) struct Stored<'a> {
    /// Where along each of its axes it is. What is chosen has panels of its own for each coordinate.
    pub(super) along: &'a [Along],
    /// The rows of a panel.
    pub(super) depth: &'a [AxisId],
    /// How many of its last axes are counted on as one, along which neighbours lie together: more than one in blocks only.
    pub(super) together: usize,
}

impl Stored<'_> {
    /// The dimension that has an axis' coordinates.
    fn dim(&self, axis: AxisId) -> Option<usize> {
        self.along.iter().position(|along| along.axis() == Some(axis))
    }

    /// The axes of the depth: those that are each one of its own, and those that are one.
    fn rows_of_panel(&self) -> (&[AxisId], &[AxisId]) {
        self.depth.split_at(self.depth.len().saturating_sub(self.together))
    }

    /// The dimensions of the last.
    fn joined(&self, graph: &Graph) -> Dims {
        let (_, axes) = self.rows_of_panel();
        let sizes: Vec<usize> = axes.iter().map(|&axis| graph.fixed_size(axis)).collect();
        Dims::of(axes.first().and_then(|&axis| self.dim(axis)).unwrap_or(0), &sizes)
    }
}

/// Where the codes of a weight are.
pub(super) fn coded(graph: &Graph, stored: &Stored, units: &Units, strides: &Strides, codes: Codes) -> Coded {
    let format = Format::Codes(codes);
    let planes = codes.planes().into_iter().map(|plane| {
        let strides = Strides { base: strides.base + plane.at, ..*strides };
        layout(graph, stored, units, &strides, format, Part::Plane(plane))
    });
    let planes = planes.collect();
    let parts = codes.steps.map(|rows| {
        let strides = Strides { base: strides.base + codes.parts_at(), ..*strides };
        layout(graph, stored, units, &strides, format, Part::Parts(rows))
    });
    let half = |bytes: usize| bytes / Elem::Bf16.bytes();
    let strides =
        Strides { base: half(strides.base + format.values()), panel: half(strides.panel), unit: half(strides.unit) };
    let scales = layout(graph, stored, units, &strides, format, Part::Scales);
    Coded { codes, rows: stored.joined(graph), planes, scales, parts, ones: None }
}

/// The layout of a weight in panels: choice, unit, panel within the unit, depth, column.
pub(super) fn layout(
    graph: &Graph,
    stored: &Stored,
    units: &Units,
    strides: &Strides,
    format: Format,
    part: Part,
) -> Layout {
    let dim = |a: AxisId| stored.dim(a);
    let size = |a: AxisId| graph.fixed_size(a);
    let mut out = Layout { base: strides.base, terms: Vec::new() };
    let (outer, inner) = stored.rows_of_panel();
    let last = stored.joined(graph);
    match (part, format) {
        (Part::Scales, _) => out.push_blocks(&last, format),
        (Part::Parts(rows), _) => out.push_parts(&last, format, rows),
        (Part::Plane(plane), Format::Codes(codes)) => out.push_plane(&last, codes, plane),
        _ => out.push_depth(&last, format),
    }
    let mut rows = inner.iter().map(|&a| size(a)).product();
    for &a in outer.iter().rev() {
        if let Some(dim) = dim(a) {
            match part {
                Part::Scales => out.push(dim, format.rows(rows) / Elem::Bf16.bytes()),
                _ => out.push(dim, format.rows(rows)),
            }
        }
        rows *= size(a);
    }
    let lane_panels = units.lane_size.div_ceil(PANEL);
    let lane_stride = if units.lane_whole { strides.panel } else { strides.unit };
    if let Some(dim) = dim(units.lane) {
        let format = if matches!(part, Part::Scales | Part::Parts(_)) { Format::F32 } else { format };
        out.push_panels(dim, lane_stride, format);
    }
    let mut stride = strides.panel;
    if units.lane_whole {
        stride *= lane_panels;
    }
    for &a in units.whole.iter().rev() {
        if let Some(dim) = dim(a) {
            out.push(dim, stride);
        }
        stride *= size(a);
    }
    let mut stride = strides.unit;
    for &(a, count) in units.digits.iter().rev() {
        if let (Some(dim), false) = (dim(a), a == units.lane) {
            out.push(dim, stride);
        }
        stride *= count;
    }
    if let Some(dim) = stored.along.iter().position(|along| matches!(along, Along::Chosen(_))) {
        out.push(dim, stride);
    }
    out
}
