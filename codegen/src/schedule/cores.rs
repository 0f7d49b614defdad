//! Cores for any number of rows.

use super::emit::Emitter;
use super::weights::Panels;
use super::{Context, Mode};
use crate::loops::{Address, Core, Elem, Expr, Format, GROUP, Stmt, Unpack};

/// Covers so many rows with cores, of operands in such formats: as many as there can be of the most rows, then smaller ones for the
/// rest. Where the number is known at run time only, the last core may take rows beyond, fewer than
/// [`Cores::rows`](crate::loops::Cores) of them.
pub(super) fn cover(
    cx: &Context,
    rows: &Expr,
    depth: usize,
    formats: (Format, Format),
    e: &mut Emitter,
    core: impl Fn(usize, Expr) -> Stmt,
) {
    let vectors = cx.cores.rows_by(formats.1);
    let tiles = cx.tiling.core >= GROUP && cx.cores.tiles_serve(formats.0, formats.1, depth);
    let most = if tiles { cx.tiling.core / GROUP * GROUP } else { vectors.min(cx.tiling.core) };
    let Some(rows) = rows.as_int() else {
        let whole = e.int(rows.clone().div(most) * most);
        e.repeat(Expr::Int(0), whole.clone(), most, |e, row| e.push(core(most, row)));
        let left = e.int(rows.clone() - whole.clone());
        // Where tiles serve, they take what is too much for one core of vectors.
        let few = (1..=8).chain([12]).filter(|n| *n <= vectors && !(tiles && *n > 8));
        let of_tiles = (GROUP..most).step_by(GROUP).filter(|_| tiles);
        let sizes: Vec<usize> = few.chain(of_tiles).filter(|n| *n < most).chain([most]).collect();
        e.when(Expr::Int(0).lt(left.clone()), |e| rest(&sizes, &left, &whole, e, &core));
        return;
    };
    let rows = rows as usize;
    let whole = rows / most * most;
    e.repeat(Expr::Int(0), whole.into(), most, |e, row| e.push(core(most, row)));
    let mut from = whole;
    while from < rows {
        let fits = match rows - from {
            // At 128 bits three rows with all columns of a panel have more sums than registers.
            3 if cx.cores.bits == 128 => 2,
            left if left >= GROUP && tiles => left / GROUP * GROUP,
            left => left.min(vectors),
        };
        e.push(core(fits, from.into()));
        from += fits;
    }
}

/// Rows of an operand or of the result: the first, and units from one to the next.
#[derive(Clone)]
pub(super) struct Matrix {
    pub(super) at: Address,
    pub(super) format: Format,
    pub(super) stride: usize,
}

impl Matrix {
    /// Floats.
    pub(super) fn floats(at: Address, stride: usize) -> Matrix {
        Matrix { at, format: Format::F32, stride }
    }

    fn row(&self, row: Expr) -> Address {
        self.at.clone().plus(row * self.stride)
    }
}

/// The products of so many rows with one of the panels of a weight, at `b`. A panel of codes in steps is unpacked once for all cores,
/// where there are more rows than one core takes.
pub(super) fn multiply(
    cx: &Context,
    count: &Expr,
    a: &Matrix,
    panels: &Panels,
    b: &Address,
    c: &Matrix,
    e: &mut Emitter,
) {
    let (depth, format) = (panels.depth, panels.format);
    let products = |(a_format, b_format), b: &Address, e: &mut Emitter| {
        cover(cx, count, depth, (a_format, b_format), e, |rows, row| {
            Stmt::Core(Core {
                rows,
                depth: depth.into(),
                a: a.row(row.clone()),
                a_format,
                a_stride: a.stride.into(),
                b: b.clone(),
                b_format,
                c: c.row(row),
                c_stride: c.stride.into(),
                accumulate: false,
            })
        });
    };
    let unpacked = |e: &mut Emitter| {
        let (before, to) = (e.scratch, format.unpacked());
        let at = Address::new(e.memory(to.panel(depth), Elem::U8), 0);
        e.push(Stmt::Unpack(Unpack { depth, from: b.clone(), format, to: at.clone() }));
        products((to, to), &at, e);
        e.release(before);
    };
    let few = cx.cores.rows_by(format);
    match count.as_int() {
        _ if format == format.unpacked() => products((a.format, format), b, e),
        Some(count) if count <= few as i64 => products((a.format, format), b, e),
        Some(_) => unpacked(e),
        None => {
            let then = e.block(|e| products((a.format, format), b, e));
            let otherwise = e.block(unpacked);
            e.push(Stmt::If { mask: count.clone().lt(few + 1), then, otherwise });
        }
    }
}

/// The smallest core that takes what is left.
fn rest(sizes: &[usize], left: &Expr, from: &Expr, e: &mut Emitter, core: &impl Fn(usize, Expr) -> Stmt) {
    let [fewer @ .., most] = sizes else { return };
    let Some(next) = fewer.last() else { return e.push(core(*most, from.clone())) };
    let then = e.block(|e| e.push(core(*most, from.clone())));
    let otherwise = e.block(|e| rest(fewer, left, from, e, core));
    e.push(Stmt::If { mask: Expr::from(*next).lt(left.clone()), then, otherwise });
}

/// Units from one row to the next, of so many, that keep rows apart in the nearest cache: strides of many lines that are
/// powers of two map them onto each other.
pub(super) fn apart(row: usize, format: Format) -> usize {
    let line = 64 / format.elem().bytes();
    if row.is_multiple_of(32 * line) { row + line } else { row }
}

impl Context<'_> {
    /// The format in which the first operand of a core is best: where a machine multiplies pairs of bf16 at once, many rows
    /// are worth the rounding.
    pub(super) fn multiplied(&self, panel: Format, mode: &Mode) -> Format {
        match panel {
            Format::Bf16 if !self.cores.bf16 || matches!(mode, Mode::One(_)) => Format::F32,
            panel => panel,
        }
    }
}
