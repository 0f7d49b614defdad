//! The loop language: one kernel as loops over tiles, still plain data.
//!
//! A kernel is a small structured program. Scalars are integers (64 bits: loop counters, offsets, coordinates, ids), floats
//! (32 bits) and masks; each has a form of four lanes (integers of 32 bits there). Whatever is parallel, vectorised,
//! unrolled or streamed is written out: the lowering to machine code adds nothing but registers.

/// Functions of one value and of two, lane by lane, as equations have them. A comparison with what is no number is false
/// (`Ne`: true), and `Min` and `Max` then yield their second operand. An integer divisor below 1 counts as 1.
pub use einfuse_graph::{Binary, Unary};

use crate::format::{Elem, Format, PANEL};

/// How many rows a [`Core`] has at most.
pub const MAX_ROWS: usize = 64;

/// The most tokens of a step, and the most rows of a core, that count as few: such rows wait for what they are multiplied with,
/// and all the tokens together share the positions of a cache among the workers.
pub const FEW: usize = 8;

/// How many panels a [`Core`] has at most.
pub const MAX_PANELS: usize = 2;

/// Rows of a tile, how many steps of a panel are one, and the most rows of a core of vectors. Where the number of rows is known at
/// run time only, the last core may take rows beyond, fewer than these.
pub const GROUP: usize = 16;

/// How many lanes a vector has.
pub const LANES: usize = 4;

/// One kernel. Every worker runs the whole body; a [`Stmt::Parallel`] gives each its share.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The kernel's name, an identifier.
    pub name: String,
    /// The types of the variables that the body names.
    pub vars: Vec<Ty>,
    /// Bytes of private memory that each worker needs.
    pub scratch: usize,
    /// What is done, in order.
    pub body: Vec<Stmt>,
}

/// A variable of a kernel: a position in [`Kernel::vars`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(pub u32);

/// The types of variables and expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    /// A 64-bit integer.
    Int,
    /// A 32-bit float.
    Float,
    /// A truth value.
    Mask,
    /// Four 32-bit integers.
    Ints,
    /// Four 32-bit floats.
    Floats,
    /// Four truth values.
    Masks,
}

/// Where memory begins. Buffers of different kinds do not overlap, nor do those of a kernel that begin at different bytes or
/// behind different slots; pages may be the same.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer {
    /// This many bytes into the step's arena.
    Arena(usize),
    /// This many bytes into the worker's private memory.
    Scratch(usize),
    /// Behind the pointer in this slot of the frame (inputs, constants, weights that all layers share).
    Frame(usize),
    /// Behind the pointer in this slot of the layer's table (the layer's weights).
    Layer(usize),
    /// In a page of a cache: the base of page number `page` of the sequence, plus the bytes that the layer's table holds
    /// in `slot` (where in the page the layer's state lies).
    Page {
        /// The slot of the frame that points to the sequence's array of page addresses.
        table: usize,
        /// The slot of the layer's table with the offset in bytes.
        slot: usize,
        /// The page's number in the sequence.
        page: Box<Expr>,
    },
}

/// A place in memory: an offset in elements from the start of a buffer. `Floats` and `Ints` take four elements from there.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// Where memory begins.
    pub buffer: Buffer,
    /// Elements from there, an `Int`.
    pub offset: Expr,
}

/// What a kernel is told at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arg {
    /// How many tokens this step has.
    Tokens,
    /// How many positions came before.
    Past,
    /// The first token of this step whose output is wanted.
    First,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// An `Int` constant.
    Int(i64),
    /// A `Float` constant.
    Float(f32),
    /// A variable's present value.
    Var(Var),
    /// A run-time argument, an `Int`.
    Arg(Arg),
    /// One element (`lanes` 1) or four neighbours (`lanes` 4). `I32` yields `Int` or `Ints`, the others `Float` or `Floats`.
    Load {
        /// How the elements are stored.
        elem: Elem,
        /// 1 or 4.
        lanes: usize,
        /// From where.
        at: Box<Address>,
    },
    /// A function of one value, lane by lane.
    Unary(Unary, Box<Expr>),
    /// A function of two values of the same type, lane by lane.
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// `then` where the mask holds, else the other; all of them evaluated.
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `a * b + c` of floats, rounded once.
    Fma(Box<Expr>, Box<Expr>, Box<Expr>),
    /// Four equal lanes of an `Int`, `Float` or `Mask`.
    Splat(Box<Expr>),
    /// `[x, x + 1, x + 2, x + 3]` of an `Int`.
    Iota(Box<Expr>),
    /// Four lanes out of four `Float`s.
    Gather(Box<[Expr; 4]>),
    /// The lanes of a `Floats` combined to a `Float`.
    Fold(Fold, Box<Expr>),
}

/// How lanes are combined to one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fold {
    /// `(x0 + x2) + (x1 + x3)`.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

/// How the iterations of a parallel loop are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// Worker `w` of `n` gets the neighbours `count * w / n .. count * (w + 1) / n`.
    Blocks,
    /// Rounds of so many iterations, of which there are whole ones: of each, worker `w` of `n` has the neighbours `turns * w / n ..
    /// turns * (w + 1) / n`, round after round. A worker that has done its share takes the last iterations of another's, so that
    /// none waits for longer than one takes. A kernel has one such loop at most, which is not repeated.
    Balanced(usize),
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)]
pub enum Stmt {
    /// Gives a variable its first value. It is visible to the end of the block.
    Let(Var, Expr),
    /// Gives a variable, defined by a `Let` around or before, another value.
    Set(Var, Expr),
    /// Stores a value (a vector stores its four lanes).
    Store {
        /// How the element is stored.
        elem: Elem,
        /// Where.
        at: Address,
        /// What.
        value: Expr,
    },
    /// `for var in (from..to).step_by(step)`.
    For {
        /// The counter, an `Int`, defined here.
        var: Var,
        /// The first value.
        from: Expr,
        /// The end, exclusive.
        to: Expr,
        /// At least 1.
        step: i64,
        /// What is repeated.
        body: Vec<Stmt>,
    },
    /// A condition.
    If {
        /// A `Mask`.
        mask: Expr,
        /// Done where it holds.
        then: Vec<Stmt>,
        /// Done otherwise.
        otherwise: Vec<Stmt>,
    },
    /// `for var in 0..count`, shared out among the workers; iterations are independent. Not within another one.
    Parallel {
        /// The counter, an `Int`, defined here.
        var: Var,
        /// How many iterations there are.
        count: Expr,
        /// Who gets which.
        share: Share,
        /// One iteration.
        body: Vec<Stmt>,
    },
    /// Four floats as bf16 that are apart in memory.
    Spread(Spread),
    /// A contraction core.
    Core(Core),
    /// A panel for cores of many rows.
    Unpack(Unpack),
    /// A row of floats as the first operand of a core.
    Encode(Encode),
    /// Exponentials of a row, and their sum.
    Exps(Exps),
    /// What the next statements compute, in the model's words, for the reader.
    Note(String),
}

/// Stores four floats as `Bf16`, each of them, or two and two, some way from the one before: the lane `i` goes to
/// `at + i / together * apart + i % together`.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Where the first goes.
    pub at: Address,
    /// How many are neighbours: 1 or 2.
    pub together: usize,
    /// Elements from the first of them to the first of the next, at least `together`.
    pub apart: usize,
    /// The four, `Floats`.
    pub value: Expr,
}

impl Spread {
    /// Where the lanes go, in elements from the first.
    pub fn places(&self) -> [usize; LANES] {
        std::array::from_fn(|lane| lane / self.together * self.apart + lane % self.together)
    }
}

/// The innermost contraction, a leaf with a contract: for `m` in `0..rows` and `n` in `0..panels * PANEL`,
///
/// ```text
/// c[m * c_stride + n] = (accumulate ? c[m * c_stride + n] : 0) + Σ k in 0..depth  a[m, k] * b[n / PANEL][k, n % PANEL]
/// ```
///
/// `c` is `F32` and does not overlap `a` or `b`. How `a` and `b` lie in memory is told by [`Format`]: the formats are equal, or
/// `a` is `F32` and `b` is `Bf16`, or `a` is [`Format::words`] of `b`. `depth` is a multiple of the block. The order of
/// summation is the emitter's, and so is how a product of two `Bf16` treats numbers below the normal ones. Sums of products of
/// whole numbers (codes, words with codes, `I16`) are exact within a block.
#[derive(Clone, Debug, PartialEq)]
pub struct Core {
    /// How many rows of `a` and `c`: 1 to [`MAX_ROWS`].
    pub rows: usize,
    /// How many products are summed, an `Int`.
    pub depth: Expr,
    /// The first operand.
    pub a: Address,
    /// How the first operand is stored.
    pub a_format: Format,
    /// Units from one row of `a` to the next, an `Int`.
    pub a_stride: Expr,
    /// How many panels: 1 to [`MAX_PANELS`].
    pub panels: usize,
    /// The first panel.
    pub b: Address,
    /// How a panel is stored.
    pub b_format: Format,
    /// Units from one panel to the next, an `Int`.
    pub b_stride: Expr,
    /// What to fetch meanwhile, where it does not lie behind the panel.
    pub next: Option<Next>,
    /// The result.
    pub c: Address,
    /// Elements from one row of `c` to the next, an `Int`.
    pub c_stride: Expr,
    /// Whether to add to what `c` holds.
    pub accumulate: bool,
}

/// What is multiplied later: as many bytes from there on as a core has the time to fetch. A hint, which changes no result.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// The first of them.
    pub at: Address,
    /// What the address counts.
    pub elem: Elem,
    /// How many bytes.
    pub bytes: usize,
}

impl Next {
    /// All of a panel that is stored so, with so many rows.
    pub fn panel(at: Address, format: Format, depth: usize) -> Next {
        let elem = format.elem();
        Next { at, elem, bytes: format.panel(depth) * elem.bytes() }
    }
}

impl Core {
    /// What a core of one of the panels does.
    pub fn of_panel(&self, nth: usize) -> Core {
        let b = self.b.clone().plus(self.b_stride.clone() * nth);
        Core { panels: 1, b, c: self.c.clone().plus(PANEL * nth), ..self.clone() }
    }
}

/// Rewrites a panel. One of codes: as [`Format::unpacked`] of its format, which is another, each code becomes the byte that it is
/// multiplied as; as `Bf16` the number that it stands for, rounded to the nearest `F32` and then to the nearest `Bf16`, ties to
/// even. Numbers below the normal ones may become 0. One of `Bf16`: as `I16`, each column of a block as [`Encode`] does with a
/// block of a row, but `largest` becomes [`MOST_OF_PANEL`](crate::format::MOST_OF_PANEL), and the product is not rounded before it
/// is rounded to a whole number.
#[derive(Clone, Debug, PartialEq)]
pub struct Unpack {
    /// How many rows the panel has, whole blocks.
    pub depth: usize,
    /// The panel.
    pub from: Address,
    /// How it is stored.
    pub format: Format,
    /// Where the other is written, which does not overlap `from`.
    pub to: Address,
    /// How that is stored.
    pub into: Format,
}

/// Rewrites a row of `F32` as the row of a [`Core`]'s first operand in another format, or as a part of it.
///
/// As codes: of each block, `largest` is the largest magnitude, but at least [`SMALLEST`](crate::format::SMALLEST); a code is
/// `x * (127 / largest)` rounded to the nearest whole number, ties to even; the scale is `largest * (1 / 127)`. As words the
/// same with [`MOST_WORD`](crate::format::MOST_WORD) for 127, as `I16` with [`MOST_OF_ROW`](crate::format::MOST_OF_ROW). Where a block
/// has what is no number, its scale is none, and its codes are any. As `Bf16`, numbers below the normal ones may become 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Encode {
    /// How many numbers.
    pub depth: usize,
    /// The numbers, one after the other.
    pub from: Address,
    /// Where the row is written, which does not overlap `from`.
    pub to: Address,
    /// The format of the row: not `F32`.
    pub format: Format,
    /// Where these are some blocks of the row, not all of it: which.
    pub part: Option<Part>,
}

/// Some blocks of a row of codes, words or `I16`, as many as there are numbers for.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// How many numbers the whole row has.
    pub of: usize,
    /// The number of the first block.
    pub block: Expr,
}

/// `to[i] = exp(from[i] - shift)` for all `i` in `0..depth`, and `total = Σ i  exp(from[i] - shift)`. The order of the sum is
/// the emitter's.
#[derive(Clone, Debug, PartialEq)]
pub struct Exps {
    /// The sum: a `Float`, defined here.
    pub total: Var,
    /// How many: a multiple of [`PANEL`].
    pub depth: usize,
    /// The numbers, `F32`, one after the other.
    pub from: Address,
    /// A `Float`, no less than any of the numbers.
    pub shift: Expr,
    /// Where the exponentials go: the same place, or one that does not overlap.
    pub to: Address,
    /// How they are stored: `F32` or `Bf16`. Those below `e^-87` may become 0.
    pub format: Format,
}
