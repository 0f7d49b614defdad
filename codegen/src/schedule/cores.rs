//! Cores for any number of rows.

use super::emit::Emitter;
use super::weights::Panels;
use super::{Context, Mode};
use crate::format::{Format, PANEL};
use crate::loops::{Address, Core, Expr, FEW, GROUP, Next, Stmt, Unpack};

/// How many rows are multiplied.
pub(super) struct Count {
    pub(super) rows: Expr,
    /// A number that they never exceed, if one is known.
    pub(super) most: Option<usize>,
}

impl Count {
    pub(super) fn of(rows: Expr) -> Count {
        Count { rows, most: None }
    }

    /// The same where there are no more than so many.
    fn within(&self, most: usize) -> Count {
        Count { rows: self.rows.clone(), most: Some(self.most.map_or(most, |known| known.min(most))) }
    }

    /// When they are few.
    pub(super) fn few(&self) -> When {
        match self.most {
            Some(most) if most <= FEW => When::Always,
            _ => no_more(&self.rows, FEW),
        }
    }

    fn is_few(&self) -> bool {
        matches!(self.few(), When::Always)
    }
}

/// Covers so many rows with cores, of operands in such formats, by so many panels: as many as there can be of the most rows, then
/// smaller ones for the rest. Where the number is known at run time only, the last core may take rows beyond, fewer than
/// [`Cores::rows`](crate::loops::Cores) of them.
fn cover(
    cx: &Context,
    count: &Count,
    depth: usize,
    (a, b, panels): (Format, Format, usize),
    e: &mut Emitter,
    core: impl Fn(usize, Expr) -> Stmt,
) {
    let vectors = cx.cores.rows_by(a, b, panels);
    let tiles = cx.tiling.core >= GROUP && cx.cores.tiles_serve(a, b, depth);
    let most = if tiles { cx.tiling.core / GROUP * GROUP } else { vectors.min(cx.tiling.core) };
    let limit = count.most;
    let most = limit.map_or(most, |limit| limit.min(most));
    let rows = &count.rows;
    let Some(rows) = rows.as_int() else {
        let (mut whole, mut left) = (Expr::Int(0), rows.clone());
        if limit != Some(most) {
            whole = e.int(rows.clone().div(most) * most);
            e.repeat(Expr::Int(0), whole.clone(), most, |e, row| e.push(core(most, row)));
            left = e.int(rows.clone() - whole.clone());
        }
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

/// Rows of the first operand: the first of them, and units from one to the next.
#[derive(Clone)]
pub(super) struct Matrix {
    pub(super) at: Address,
    pub(super) format: Format,
    pub(super) stride: usize,
}

impl Matrix {
    pub(super) fn row(&self, row: Expr) -> Address {
        self.at.clone().plus(row * self.stride)
    }

    /// The same without so many elements at the beginning of each row.
    fn from(&self, element: Expr) -> Matrix {
        Matrix { at: self.at.clone().plus(element), ..self.clone() }
    }
}

/// Panels of the second operand.
#[derive(Clone)]
pub(super) struct Panelled {
    pub(super) at: Address,
    pub(super) format: Format,
    pub(super) depth: usize,
    pub(super) count: usize,
    /// How many of the first are wanted, where not all are. Cores that take two at once may take one more.
    pub(super) wanted: Option<Expr>,
    /// Units from one to the next.
    pub(super) apart: usize,
    /// What cores had better fetch meanwhile, if it does not lie behind these: so many bytes for each panel.
    pub(super) next: Option<Next>,
    /// Over how many rows that is spread; else each core fetches all of it.
    pub(super) spread: Option<usize>,
}

impl Panelled {
    fn some(&self, from: Expr, count: usize) -> Panelled {
        let at = self.at.clone().plus(from.clone() * self.apart);
        let next = self.next.clone().map(|next| {
            let at = next.at.plus(from * (next.bytes / next.elem.bytes()));
            Next { at, ..next }
        });
        Panelled { at, count, next, wanted: None, ..*self }
    }

    /// A part of each panel's rows, where all have so many.
    fn part(&self, part: Expr, depth: usize) -> Panelled {
        Panelled { at: self.at.clone().plus(part * self.format.panel(depth)), depth, ..self.clone() }
    }

    /// What a core of so many rows, from one on, fetches, where the depth is done in so many parts and this is one of them.
    fn next(&self, rows: usize, row: &Expr, part: &Expr, parts: usize) -> Option<Next> {
        let next = self.next.clone()?;
        let bytes = next.bytes * self.count;
        let Some(all) = self.spread else { return Some(Next { bytes, ..next }) };
        let each = (bytes / next.elem.bytes()).div_ceil(all * parts);
        let at = next.at.plus((part.clone() * all + row.clone()) * each);
        Some(Next { at, bytes: rows * each * next.elem.bytes(), elem: next.elem })
    }
}

/// Where the products of rows with panels go.
#[derive(Clone)]
pub(super) struct Products {
    pub(super) at: Address,
    /// Elements from row to row.
    pub(super) stride: usize,
    /// Elements from the columns of a panel to those of the next.
    pub(super) apart: usize,
    /// Whether they are added to what is there.
    pub(super) accumulate: bool,
}

impl Products {
    fn of_panel(&self, panel: Expr) -> Products {
        Products { at: self.at.clone().plus(panel * self.apart), ..self.clone() }
    }
}

/// The products of so many rows with panels, as many panels at once as cores are best made for. But where rows are known to be
/// few: these wait for memory, which delivers one panel after the other faster than two side by side.
pub(super) fn products(cx: &Context, rows: &Count, a: &Matrix, b: &Panelled, c: &Products, e: &mut Emitter) {
    let at_once = if rows.is_few() || c.apart != PANEL { 1 } else { cx.cores.panels(a.format, b.format, b.depth) };
    let depth = if rows.is_few() { b.depth } else { cx.cores.depth_at_once(a.format, b.format, b.depth) };
    let parts = b.depth / depth.max(1);
    together(b, at_once, e, |e, panel, count| {
        let (all, c) = (b.some(panel.clone(), count), c.of_panel(panel));
        let part = |e: &mut Emitter, part: Expr, accumulate: bool| {
            let (a, b) = (a.from(part.clone() * depth), all.part(part.clone(), depth));
            cover(cx, rows, depth, (a.format, b.format, count), e, |rows, row| {
                Stmt::Core(Core {
                    rows,
                    depth: depth.into(),
                    a: a.row(row.clone()),
                    a_format: a.format,
                    a_stride: a.stride.into(),
                    panels: count,
                    b: b.at.clone(),
                    b_format: b.format,
                    b_stride: if count > 1 { b.apart.into() } else { 0.into() },
                    next: b.next(rows, &row, &part, parts),
                    c: c.at.clone().plus(row * c.stride),
                    c_stride: c.stride.into(),
                    accumulate,
                })
            });
        };
        part(e, 0.into(), c.accumulate);
        e.repeat(1.into(), parts.into(), 1, |e, nth| part(e, nth, true));
    });
}

/// Goes over panels, some at once: from which, and how many.
fn together(b: &Panelled, at_once: usize, e: &mut Emitter, mut with: impl FnMut(&mut Emitter, Expr, usize)) {
    let whole = b.count / at_once * at_once;
    let wanted = |all: usize| b.wanted.clone().map_or(all.into(), |wanted| wanted.min(all));
    e.repeat(Expr::Int(0), wanted(whole), at_once, |e, panel| with(e, panel, at_once));
    if whole < b.count {
        e.repeat(whole.into(), wanted(b.count), 1, |e, panel| with(e, panel, 1));
    }
}

/// The same with panels of a weight, or of a run, which are unpacked, once for all cores, where rows are not few; `a` are the rows for
/// either, see [`Context::rows_of`].
pub(super) fn multiply(
    cx: &Context,
    (rows, of_step): (&Count, &Expr),
    a: [&Matrix; 2],
    b: &Panelled,
    c: &Products,
    e: &mut Emitter,
) {
    let (depth, format) = (b.depth, b.format);
    // Numbers of 16 bits are multiplied with rows of such alone, whatever else there is: see `Context::formats`.
    let into = match cx.cores.unpacked(format, depth) {
        Format::I16 if a[1].format != Format::I16 => format,
        into => into,
    };
    if into == format {
        return products(cx, rows, a[1], b, c, e);
    }
    let unpacked = |e: &mut Emitter| {
        let a = Matrix { format: beside(a[1].format, into), ..a[1].clone() };
        let (before, apart) = (e.scratch, into.panel(depth));
        let at_once = cx.cores.panels(into, into, depth);
        let at = Address::new(e.memory(at_once * apart, into.elem()), 0);
        together(b, at_once, e, |e, panel, count| {
            let (b, c) = (b.some(panel.clone(), count), c.of_panel(panel));
            let all = Panelled { at: at.clone(), format: into, apart, ..b.clone() };
            e.repeat(Expr::Int(0), count.into(), 1, |e, nth| {
                let (from, to) = (b.some(nth.clone(), 1).at, all.some(nth, 1).at);
                e.push(Stmt::Unpack(Unpack { depth, from, format, to, into }));
            });
            products(cx, rows, &a, &all, &c, e);
        });
        e.release(before);
    };
    let directly = |e: &mut Emitter| {
        products(cx, &rows.within(cx.few(format)), a[0], b, c, e);
    };
    // What each step has made of its rows decides; where it is the same in any case, a block of few rows alone may go directly.
    let decide = if a[0].format == a[1].format { &rows.rows } else { of_step };
    match cx.are_few(decide, format) {
        When::Always => directly(e),
        When::Never => unpacked(e),
        When::If(mask) => {
            let (then, otherwise) = (e.block(directly), e.block(unpacked));
            e.push(Stmt::If { mask, then, otherwise });
        }
    }
}

/// How rows are read beside panels that were unpacked: what is multiplied with codes is with their bytes, too.
pub(super) fn beside(rows: Format, unpacked: Format) -> Format {
    if unpacked.is_coded() { unpacked } else { rows }
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

/// The same of rows that are copied anyway, of whole lines: by an odd number of lines from one to the next, any sixteen are apart.
pub(super) fn odd_lines(row: usize, format: Format) -> usize {
    let line = 64 / format.elem().bytes();
    (row.div_ceil(line) | 1) * line
}

/// When something is so.
pub(super) enum When {
    Always,
    Never,
    If(Expr),
}

/// Whether there are no more rows than so many.
pub(super) fn no_more(rows: &Expr, most: usize) -> When {
    match rows.as_int() {
        Some(rows) if rows <= most as i64 => When::Always,
        Some(_) => When::Never,
        None => When::If(rows.clone().lt(most + 1)),
    }
}

impl Context<'_> {
    /// The format in which the first operand of a core is best: where a machine multiplies pairs of bf16 at once, many rows
    /// are worth the rounding, and where it multiplies words faster than bytes, several are worth their length.
    pub(super) fn multiplied(&self, panel: Format, mode: &Mode) -> Format {
        match panel {
            Format::Bf16 if !self.cores.bf16 || matches!(mode, Mode::One(_)) => Format::F32,
            panel if matches!(mode, Mode::One(_)) => panel,
            panel => self.cores.words_by(panel).unwrap_or(panel),
        }
    }

    /// The same of the rows that a weight is multiplied with: where a step has few, and where it has more, see [`Self::are_few`].
    pub(super) fn rows_of(&self, panels: &Panels, mode: &Mode) -> [Format; 2] {
        self.formats(panels.format, panels.depth, mode)
    }

    /// The same of panels that are stored so.
    pub(super) fn formats(&self, stored: Format, depth: usize, mode: &Mode) -> [Format; 2] {
        let few = self.multiplied(stored, mode);
        match self.cores.unpacked(stored, depth) {
            Format::Codes(_) => [few, few],
            Format::I16 if matches!(mode, Mode::One(_)) => [few, few],
            others => [few, self.multiplied(others, mode)],
        }
    }

    /// How many rows of a step are multiplied with such panels as they are, not unpacked, at most: as many as one core takes, and of
    /// bf16 as many as unpacking takes as long as.
    fn few(&self, format: Format) -> usize {
        const AS_LONG: usize = 12;
        let one = self.cores.rows_by(format, format, 1);
        if format == Format::Bf16 && self.cores.i16 { one.max(AS_LONG) } else { one }
    }

    /// Whether so many rows of a step are multiplied with such panels as they are.
    pub(super) fn are_few(&self, rows: &Expr, format: Format) -> When {
        no_more(rows, self.few(format))
    }

    /// The opposite.
    pub(super) fn are_many(&self, rows: &Expr, format: Format) -> When {
        match self.are_few(rows, format) {
            When::Always => When::Never,
            When::Never => When::Always,
            When::If(_) => When::If(Expr::from(self.few(format)).lt(rows.clone())),
        }
    }
}
