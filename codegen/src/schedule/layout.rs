//! Layouts: where the element of a tensor at some coordinates lies.

use std::ops::Range;

use crate::format::{Codes, Elem, Format, PANEL, Plane};

use crate::loops::{Expr, LANES};

/// Neighbouring dimensions that are counted on as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    first: usize,
    /// Of each how many coordinates of the whole one of its is.
    factors: Vec<usize>,
}

impl From<usize> for Dims {
    fn from(dim: usize) -> Dims {
        Dims { first: dim, factors: vec![1] }
    }
}

impl Dims {
    /// Those from `first` on, of these sizes.
    pub(crate) fn of(first: usize, sizes: &[usize]) -> Dims {
        let factors = (1..=sizes.len()).map(|after| sizes[after..].iter().product()).collect();
        Dims { first, factors }
    }

    /// Their positions in the tensor.
    pub(crate) fn dims(&self) -> Range<usize> {
        self.first..self.first + self.factors.len()
    }

    /// Whether there are no others than this one.
    fn are(&self, dim: usize) -> bool {
        self.dims() == (dim..dim + 1)
    }

    /// The coordinate along them.
    pub(crate) fn coordinate(&self, index: &[Expr]) -> Expr {
        let all = self.factors.iter().zip(&index[self.dims()]).map(|(factor, index)| index.clone() * *factor);
        all.reduce(|sum, one| sum + one).unwrap_or(Expr::Int(0))
    }

    /// The same of known coordinates.
    fn coordinate_of(&self, index: &[usize]) -> usize {
        self.factors.iter().zip(&index[self.dims()]).map(|(factor, index)| index * factor).sum()
    }
}

/// One summand of an offset: `stride · ((index / div) mod modulo)`, where `index` is the coordinate along some dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) dims: Dims,
    pub(crate) div: usize,
    pub(crate) modulo: Option<usize>,
    pub(crate) stride: usize,
}

/// Offsets in elements as a sum of terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) base: usize,
    pub(crate) terms: Vec<Term>,
}

/// How the coordinate along one dimension changes from lane to lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Not at all.
    Still,
    /// By one; `aligned` where the first is a multiple of the number of lanes.
    One { aligned: bool },
    /// In some other way.
    Other,
}

impl Layout {
    /// The last dimension is contiguous.
    pub(crate) fn row_major(sizes: &[usize]) -> Layout {
        let mut layout = Layout::default();
        let mut stride = 1;
        for (dim, &size) in sizes.iter().enumerate().rev() {
            layout.push(dim, stride);
            stride *= size;
        }
        layout.terms.reverse();
        layout
    }

    pub(crate) fn push(&mut self, dim: usize, stride: usize) {
        self.terms.push(Term { dims: dim.into(), div: 1, modulo: None, stride });
    }

    /// A dimension in groups of [`PANEL`] neighbours, the columns of a panel, `stride` from group to group (see
    /// [`Format`]).
    pub(crate) fn push_panels(&mut self, dim: usize, stride: usize, format: Format) {
        self.terms.push(Term { dims: dim.into(), div: PANEL, modulo: None, stride });
        self.terms.push(Term { dims: dim.into(), div: 1, modulo: Some(PANEL), stride: format.together() });
    }

    /// The rows of a panel of floats.
    pub(crate) fn push_depth(&mut self, dims: &Dims, format: Format) {
        let together = format.together();
        self.terms.push(Term { dims: dims.clone(), div: together, modulo: None, stride: PANEL * together });
        if together > 1 {
            self.terms.push(Term { dims: dims.clone(), div: 1, modulo: Some(together), stride: 1 });
        }
    }

    /// The rows of a panel of codes, in bytes of a plane of them.
    pub(crate) fn push_plane(&mut self, dims: &Dims, codes: Codes, plane: Plane) {
        let together = Format::Codes(codes).together();
        let (rows, block) = (together * plane.steps(), codes.block);
        let mut push = |div, modulo, stride| self.terms.push(Term { dims: dims.clone(), div, modulo, stride });
        push(block, None, Format::Codes(codes).rows(block));
        if block > rows {
            push(rows, Some(block / rows), PANEL * together);
        }
        push(1, Some(together), 1);
    }

    /// The rows of a panel, as far as they have scales of their own.
    pub(crate) fn push_blocks(&mut self, dims: &Dims, format: Format) {
        let (block, dims) = (format.block(), dims.clone());
        self.terms.push(Term { dims, div: block, modulo: None, stride: format.rows(block) / Elem::Bf16.bytes() });
    }

    /// The same for parts of blocks, of so many rows, in bytes.
    pub(crate) fn push_parts(&mut self, dims: &Dims, format: Format, rows: usize) {
        let block = format.block();
        self.terms.push(Term { dims: dims.clone(), div: block, modulo: None, stride: format.rows(block) });
        self.terms.push(Term { dims: dims.clone(), div: rows, modulo: Some(block / rows), stride: PANEL });
    }

    /// Whether a dimension is the columns of panels.
    pub(crate) fn has_panels(&self, dim: usize) -> bool {
        self.terms.iter().any(|t| t.dims.are(dim) && t.div == 1 && t.modulo == Some(PANEL))
    }

    /// The terms that change along a dimension.
    pub(crate) fn terms_along(&self, dim: usize) -> impl Iterator<Item = &Term> {
        self.terms.iter().filter(move |term| term.dims.dims().contains(&dim))
    }

    /// The offset of the element at these coordinates.
    pub(crate) fn offset(&self, index: &[Expr]) -> Expr {
        self.terms.iter().fold(Expr::Int(self.base as i64), |sum, term| {
            let mut at = term.dims.coordinate(index).div(term.div);
            if let Some(modulo) = term.modulo {
                at = at.rem(modulo);
            }
            sum + at * term.stride
        })
    }

    /// The same for known coordinates.
    pub(crate) fn offset_of(&self, index: &[usize]) -> usize {
        let at = |t: &Term| t.dims.coordinate_of(index) / t.div;
        self.base + self.terms.iter().map(|t| t.modulo.map_or(at(t), |m| at(t) % m) * t.stride).sum::<usize>()
    }

    /// Whether lanes that step so through the dimensions are neighbours in memory.
    pub(crate) fn is_contiguous(&self, steps: &[Step]) -> bool {
        let mut moving = steps.iter().enumerate().filter(|(_, s)| **s != Step::Still);
        let (Some((dim, step)), None) = (moving.next(), moving.next()) else { return false };
        let Step::One { aligned } = *step else { return false };
        let terms: Vec<&Term> = self.terms_along(dim).collect();
        let unit = terms.iter().filter(|t| t.div == 1 && t.stride == 1).count() == 1;
        let plain = terms.len() == 1 && terms[0].modulo.is_none();
        let grouped = |t: &&Term| match t.div {
            1 => t.stride == 1 && t.modulo.is_none_or(|m| m % LANES == 0),
            div => div % LANES == 0,
        };
        unit && terms.iter().all(|t| t.dims.are(dim)) && (plain || (aligned && terms.iter().all(grouped)))
    }

    /// Where four lanes that step so through the dimensions lie apart, each of them or two and two: how many are neighbours, and
    /// how far the next are.
    pub(crate) fn spread(&self, steps: &[Step]) -> Option<(usize, usize)> {
        let mut moving = steps.iter().enumerate().filter(|(_, s)| **s != Step::Still);
        let (Some((dim, Step::One { aligned: true })), None) = (moving.next(), moving.next()) else { return None };
        // What lanes add is the same from wherever four begin.
        let even = |t: &Term| {
            let neighbours = t.modulo.map_or(LANES, |m| m * t.div);
            let all = LANES.is_multiple_of(t.div) || t.div.is_multiple_of(LANES);
            all && (neighbours.is_multiple_of(LANES) || LANES.is_multiple_of(neighbours))
        };
        let place = |lane: usize| {
            let mut index = vec![0; steps.len()];
            index[dim] = lane;
            self.offset_of(&index) - self.base
        };
        let apart = |together: usize| {
            let apart = place(together);
            let placed = |lane: usize| place(lane) == lane / together * apart + lane % together;
            (apart >= together && (0..LANES).all(placed)).then_some((together, apart))
        };
        if self.terms_along(dim).all(|t| t.dims.are(dim) && even(t)) { apart(2).or_else(|| apart(1)) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_interleave_sixteen_columns() {
        let mut layout = Layout::default();
        layout.push_panels(0, 5 * PANEL, Format::F32);
        layout.push(1, PANEL);
        assert_eq!(layout.offset_of(&[0, 0]), 0);
        assert_eq!(layout.offset_of(&[3, 0]), 3);
        assert_eq!(layout.offset_of(&[3, 2]), 35);
        assert_eq!(layout.offset_of(&[17, 0]), 81);
        assert_eq!(layout.offset(&[Expr::Int(17), Expr::Int(4)]), Expr::Int(145));
        let aligned = Step::One { aligned: true };
        assert!(layout.is_contiguous(&[aligned, Step::Still]));
        assert!(!layout.is_contiguous(&[Step::One { aligned: false }, Step::Still]));
        assert!(!layout.is_contiguous(&[Step::Still, aligned]));
    }

    #[test]
    fn bf16_panels_interleave_two_rows() {
        let mut layout = Layout::default();
        layout.push_panels(0, 4 * PANEL, Format::Bf16);
        layout.push_depth(&1.into(), Format::Bf16);
        let order = |column: usize| [0, 1, 2, 3].map(|row| layout.offset_of(&[column, row]));
        assert_eq!(order(0), [0, 1, 32, 33]);
        assert_eq!(order(5), [10, 11, 42, 43]);
        assert_eq!(order(16), [64, 65, 96, 97]);
        let aligned = Step::One { aligned: true };
        assert!(!layout.is_contiguous(&[aligned, Step::Still]));
        assert!(!layout.is_contiguous(&[Step::Still, aligned]));
        assert_eq!(layout.spread(&[aligned, Step::Still]), Some((1, 2)));
        assert_eq!(layout.spread(&[Step::Still, aligned]), Some((2, 32)));
        assert_eq!(layout.spread(&[Step::Still, Step::One { aligned: false }]), None);
        assert_eq!(layout.spread(&[aligned, aligned]), None);
    }

    #[test]
    fn codes_of_half_a_byte_interleave_eight_rows() {
        let mut layout = Layout::default();
        let format = Format::Q4.fitting(64);
        let codes = format.codes().unwrap();
        layout.push_panels(0, format.panel(128), format);
        layout.push_plane(&1.into(), codes, codes.planes()[0]);
        // Row 0 and row 4 share a byte; the next column follows after four bytes.
        let at = |column: usize, row: usize| layout.offset_of(&[column, row]);
        assert_eq!([0, 4, 1, 5, 7, 8].map(|row| at(0, row)), [0, 0, 1, 1, 3, 64]);
        assert_eq!([at(1, 0), at(15, 7)], [4, 63]);
        // Each 64 rows are followed by their scales, of 32 bytes, and their steps, of 32 bytes.
        assert_eq!([at(0, 63), at(0, 64), at(16, 0)], [451, 576, 1152]);
    }

    #[test]
    fn planes_are_where_the_format_says() {
        for format in Format::ALL {
            let Some(codes) = format.codes() else { continue };
            for plane in codes.planes() {
                let mut layout = Layout { base: plane.at, terms: Vec::new() };
                layout.push_panels(0, format.panel(2 * codes.block), format);
                layout.push_plane(&1.into(), codes, plane);
                for (row, column) in (0..2 * codes.block).flat_map(|row| (0..PANEL).map(move |column| (row, column))) {
                    let (byte, _) = plane.place(row % codes.block, column);
                    let block = row / codes.block * format.rows(codes.block);
                    assert_eq!(layout.offset_of(&[column, row]), block + byte, "{format}: {row}, {column}");
                }
            }
        }
    }
}
