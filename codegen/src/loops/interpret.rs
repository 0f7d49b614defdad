//! Runs a kernel statement by statement: what its machine code is compared with.

use std::collections::BTreeMap;

use einfuse_graph::erf;
use half::bf16;

use crate::format::{
    BYTE_OFFSET, Codes, Elem, Element, Format, MOST_OF_PANEL, MOST_OF_ROW, MOST_WORD, PANEL, ROUND, SMALLEST,
};

use super::{
    Address, Arg, Binary, Buffer, Core, Encode, Expr, Exps, Fold, Invalid, Kernel, LANES, Share, Stmt, Unary, Unpack,
    Var, verify,
};

/// What a kernel is called with, as plain data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// How many tokens this step has.
    pub tokens: i64,
    /// How many positions came before.
    pub past: i64,
    /// The first token whose output is wanted.
    pub first: i64,
    /// The step's arena.
    pub arena: Vec<u8>,
    /// What the frame's slots point to.
    pub frame: BTreeMap<usize, Slot>,
    /// What the layer's slots point to or hold.
    pub layer: BTreeMap<usize, Slot>,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Slot {
    /// A pointer to bytes.
    Bytes(Vec<u8>),
    /// A pointer to an array of pointers to pages.
    Pages(Vec<Vec<u8>>),
    /// A number of bytes.
    Offset(usize),
}

/// Why a kernel could not be run to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The kernel is not well formed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// An access outside of the memory that the kernel was given.
    #[error("kernel `{kernel}`: {message}")]
    Access {
        /// The kernel's name.
        kernel: String,
        /// The access.
        message: String,
    },
}

/// Runs a kernel, one worker after the other.
pub fn interpret(kernel: &Kernel, memory: &mut Memory, workers: usize) -> Result<(), Fault> {
    verify(kernel)?;
    for worker in 0..workers {
        let mut machine = Machine {
            memory,
            scratch: vec![0; kernel.scratch],
            vars: vec![Value::Int(0); kernel.vars.len()],
            worker: worker as i64,
            workers: workers as i64,
        };
        let ran = machine.block(&kernel.body);
        ran.map_err(|message| Fault::Access { kernel: kernel.name.clone(), message })?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Int(i64),
    Float(f32),
    Mask(bool),
    Ints([i32; LANES]),
    Floats([f32; LANES]),
    Masks([bool; LANES]),
}

struct Machine<'m> {
    memory: &'m mut Memory,
    scratch: Vec<u8>,
    vars: Vec<Value>,
    worker: i64,
    workers: i64,
}

type Ran<T> = Result<T, String>;

impl Machine<'_> {
    fn block(&mut self, body: &[Stmt]) -> Ran<()> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Ran<()> {
        match stmt {
            Stmt::Let(var, value) | Stmt::Set(var, value) => {
                let value = self.expr(value)?;
                self.set(*var, value);
                Ok(())
            }
            Stmt::Store { elem, at, value } => {
                let bytes: Vec<u8> = match self.expr(value)? {
                    Value::Float(x) if *elem == Elem::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                    Value::Floats(x) if *elem == Elem::Bf16 => {
                        x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
                    }
                    Value::Float(x) if *elem == Elem::U8 => vec![byte(x)],
                    Value::Floats(x) if *elem == Elem::U8 => x.map(byte).to_vec(),
                    Value::Float(x) => x.to_le_bytes().to_vec(),
                    Value::Floats(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    Value::Int(x) => (x as i32).to_le_bytes().to_vec(),
                    Value::Ints(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    other => return Err(format!("a store of {other:?}")),
                };
                let offset = self.int(&at.offset)?;
                self.memory_at(at, offset, elem.bytes() as i64, bytes.len())?.copy_from_slice(&bytes);
                Ok(())
            }
            Stmt::Spread(spread) => {
                let Value::Floats(values) = self.expr(&spread.value)? else { return Err("no floats".to_string()) };
                let offset = self.int(&spread.at.offset)?;
                for (value, place) in values.into_iter().zip(spread.places()) {
                    let bytes = bf16::from_f32(value).to_le_bytes();
                    self.memory_at(&spread.at, offset.wrapping_add(place as i64), 2, 2)?.copy_from_slice(&bytes);
                }
                Ok(())
            }
            Stmt::For { var, from, to, step, body } => {
                let (from, to) = (self.int(from)?, self.int(to)?);
                self.repeat(*var, from, to, *step, body)
            }
            Stmt::If { mask, then, otherwise } => {
                let Value::Mask(holds) = self.expr(mask)? else { return Err("a condition of lanes".to_string()) };
                self.block(if holds { then } else { otherwise })
            }
            Stmt::Parallel { var, count, share, body } => {
                let count = self.int(count)?;
                let (worker, workers) = (self.worker, self.workers);
                match share {
                    Share::Blocks => {
                        let start = |worker| count.wrapping_mul(worker).wrapping_div(workers);
                        self.repeat(*var, start(worker), start(worker + 1), 1, body)
                    }
                    Share::Balanced(turns) => {
                        let turns = *turns as i64;
                        let start = |worker| turns * worker / workers;
                        (0..count / turns).try_for_each(|round| {
                            let at = |worker| round * turns + start(worker);
                            self.repeat(*var, at(worker), at(worker + 1), 1, body)
                        })
                    }
                }
            }
            Stmt::Core(core) => (0..core.panels).try_for_each(|nth| self.core(&core.of_panel(nth))),
            Stmt::Unpack(unpack) => self.unpack(unpack),
            Stmt::Encode(encode) => self.encode(encode),
            Stmt::Exps(exps) => self.exps(exps),
            Stmt::Note(_) => Ok(()),
        }
    }

    fn set(&mut self, var: Var, value: Value) {
        self.vars[var.0 as usize] = value;
    }

    fn repeat(&mut self, var: Var, from: i64, to: i64, step: i64, body: &[Stmt]) -> Ran<()> {
        let mut at = from;
        while at < to {
            self.set(var, Value::Int(at));
            self.block(body)?;
            let Some(next) = at.checked_add(step) else { break };
            at = next;
        }
        Ok(())
    }

    /// A core of one panel.
    fn core(&mut self, core: &Core) -> Ran<()> {
        let depth = self.int(&core.depth)?.max(0);
        let (a_stride, c_stride) = (self.int(&core.a_stride)?, self.int(&core.c_stride)?);
        let (a, b, c) = (self.int(&core.a.offset)?, self.int(&core.b.offset)?, self.int(&core.c.offset)?);
        let format = core.b_format;
        for m in 0..core.rows as i64 {
            let a = a.wrapping_add(m.wrapping_mul(a_stride));
            for n in 0..PANEL as i64 {
                // In f64: the order of summation is the emitter's, so the result is the one that all are close to.
                let mut sum = 0.0;
                for k in 0..depth {
                    sum += if let Format::Words(block) = core.a_format {
                        self.word_of_row(core, a, k, depth, block)? * self.decoded(&core.b, format, b, k, n)?
                    } else if format == Format::I16 {
                        self.number_of_row(core, a, k, depth)? * self.number_of_panel(&core.b, b, k, n)?
                    } else if format.is_coded() {
                        self.decoded_row(core, a, k, depth)? * self.decoded(&core.b, format, b, k, n)?
                    } else {
                        let x = self.float_at(&core.a, a.wrapping_add(k), core.a_format.elem())?;
                        let together = format.together() as i64;
                        let at = (k / together * PANEL as i64 + n) * together + k % together;
                        let y = self.float_at(&core.b, b.wrapping_add(at), format.elem())?;
                        f64::from(x) * f64::from(y)
                    };
                }
                let at = c.wrapping_add(m.wrapping_mul(c_stride)).wrapping_add(n);
                if core.accumulate {
                    sum += f64::from(self.float_at(&core.c, at, Elem::F32)?);
                }
                self.memory_at(&core.c, at, 4, 4)?.copy_from_slice(&(sum as f32).to_le_bytes());
            }
        }
        Ok(())
    }

    /// An element of a row of numbers of 16 bits that begins at byte `a`.
    fn number_of_row(&mut self, core: &Core, a: i64, k: i64, depth: i64) -> Ran<f64> {
        let number = self.half_at(&core.a, a.wrapping_add(2 * k))? as i16;
        let scale = a.wrapping_add(2 * depth + k / Format::I16.block() as i64 * 4);
        let scale = f32::from_bits(word(self.memory_at(&core.a, scale, 1, 4)?));
        Ok(f64::from(scale) * f64::from(number))
    }

    /// The same of a panel that begins at byte `b`.
    fn number_of_panel(&mut self, panel: &Address, b: i64, k: i64, n: i64) -> Ran<f64> {
        let (k, n) = (k as usize, n as usize);
        let block = b.wrapping_add(Format::I16.rows(k / Format::I16.block() * Format::I16.block()) as i64);
        let at = 2 * in_pairs(k % Format::I16.block(), n);
        let number = self.half_at(panel, block.wrapping_add(at as i64))? as i16;
        let scale = block.wrapping_add((Format::I16.values() + 4 * n) as i64);
        let scale = f32::from_bits(word(self.memory_at(panel, scale, 1, 4)?));
        Ok(f64::from(scale) * f64::from(number))
    }

    /// An element of a panel of codes that begins at byte `b`.
    fn decoded(&mut self, panel: &Address, format: Format, b: i64, k: i64, n: i64) -> Ran<f64> {
        let (codes, element) = self.element(panel, format, b, k, n)?;
        Ok(codes.number(element))
    }

    /// The same in codes.
    fn element(&mut self, panel: &Address, format: Format, b: i64, k: i64, n: i64) -> Ran<(Codes, Element)> {
        let Some(codes) = format.codes() else { return Err(format!("a panel of {format} has no codes")) };
        let length = codes.block as i64;
        let block = b.wrapping_add(k / length * format.rows(codes.block) as i64);
        let bytes = self.memory_at(panel, block, 1, format.rows(codes.block))?;
        Ok((codes, codes.read(bytes, (k % length) as usize, n as usize)))
    }

    /// An element of a row of words that begins at byte `a`. The sums are checked.
    fn word_of_row(&mut self, core: &Core, a: i64, k: i64, depth: i64, block: usize) -> Ran<f64> {
        let length = block as i64;
        let mut sum = 0i32;
        for at in k / length * length..(k / length + 1) * length {
            sum += i32::from(self.half_at(&core.a, a.wrapping_add(2 * at))? as i16);
        }
        let number = self.half_at(&core.a, a.wrapping_add(2 * in_fours(k)))? as i16;
        let scales = a.wrapping_add(2 * depth);
        let scale = f32::from_bits(word(self.memory_at(&core.a, scales.wrapping_add(k / length * 4), 1, 4)?));
        let sums = scales.wrapping_add(depth / length * 4);
        let stored = word(self.memory_at(&core.a, sums.wrapping_add(k / length * 4), 1, 4)?) as i32;
        let wanted = sum * -BYTE_OFFSET;
        if stored != wanted {
            return Err(format!("a row of words has the sum {stored} for words that sum to {sum}, not {wanted}"));
        }
        Ok(f64::from(scale) * f64::from(number))
    }

    /// 16 bits at an offset in bytes.
    fn half_at(&mut self, at: &Address, offset: i64) -> Ran<u16> {
        let bytes = self.memory_at(at, offset, 1, 2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn unpack(&mut self, unpack: &Unpack) -> Ran<()> {
        let Unpack { depth, from, format, to, into: unpacked } = unpack;
        let (b, start) = (self.int(&from.offset)?, self.int(&to.offset)?);
        if *unpacked == Format::I16 {
            return self.unpack_to_i16(*depth, (from, b), (to, start));
        }
        if *unpacked == Format::Bf16 {
            for (k, n) in (0..*depth).flat_map(|k| (0..PANEL).map(move |n| (k, n))) {
                let (of, element) = self.element(from, *format, b, k as i64, n as i64)?;
                let value = of.value(element.code, element.part) as f32;
                let number = bf16::from_f32(element.scale.mul_add(value, element.minimum));
                let at = start.wrapping_add(in_pairs(k, n) as i64);
                self.memory_at(to, at, 2, 2)?.copy_from_slice(&number.to_le_bytes());
            }
            return Ok(());
        }
        let Some(codes) = unpacked.codes() else { return Err(format!("{unpacked} has no codes")) };
        for k in 0..*depth as i64 {
            let block = start.wrapping_add((k as usize / codes.block * unpacked.rows(codes.block)) as i64);
            for (n, plane) in (0..PANEL).flat_map(|n| codes.planes().into_iter().map(move |plane| (n, plane))) {
                let (of, element) = self.element(from, *format, b, k, n as i64)?;
                let (at, _) = plane.place(k as usize % codes.block, n);
                let byte = (of.value(element.code, element.part) + codes.offset) as u8;
                self.memory_at(to, block.wrapping_add(at as i64), 1, 1)?[0] = byte;
                let at = block.wrapping_add((unpacked.values() + 2 * n) as i64);
                self.memory_at(to, at, 1, 2)?.copy_from_slice(&bf16::from_f32(element.scale).to_le_bytes());
            }
        }
        Ok(())
    }

    fn unpack_to_i16(&mut self, depth: usize, (from, b): (&Address, i64), (to, start): (&Address, i64)) -> Ran<()> {
        let (format, length) = (Format::I16, Format::I16.block());
        for (block, n) in (0..depth / length).flat_map(|block| (0..PANEL).map(move |n| (block, n))) {
            let first = b.wrapping_add((block * length * PANEL) as i64);
            let numbers: Vec<f32> = (0..length)
                .map(|k| self.float_at(from, first.wrapping_add(in_pairs(k, n) as i64), Elem::Bf16))
                .collect::<Ran<_>>()?;
            let (largest, factor) = largest_of(&numbers, MOST_OF_PANEL);
            let first = start.wrapping_add(format.rows(block * length) as i64);
            for (k, x) in numbers.iter().enumerate() {
                let number = (x.mul_add(factor, ROUND) - ROUND) as i16;
                let at = first.wrapping_add(2 * in_pairs(k, n) as i64);
                self.memory_at(to, at, 1, 2)?.copy_from_slice(&number.to_le_bytes());
            }
            let scale = largest * (1.0 / MOST_OF_PANEL);
            let at = first.wrapping_add((format.values() + 4 * n) as i64);
            self.memory_at(to, at, 1, 4)?.copy_from_slice(&scale.to_le_bytes());
        }
        Ok(())
    }

    /// An element of a row of codes that begins at byte `a`. The sums are checked: they are part of the row.
    fn decoded_row(&mut self, core: &Core, a: i64, k: i64, depth: i64) -> Ran<f64> {
        let block = core.b_format.block() as i64;
        let code = self.memory_at(&core.a, a.wrapping_add(k), 1, 1)?[0] as i8;
        let at = a.wrapping_add(depth + k / block * 4);
        let scale = f32::from_bits(word(self.memory_at(&core.a, at, 1, 4)?));
        let Some(of) = core.b_format.codes() else { return Err("a row of no codes".to_string()) };
        let summed = of.summed() as i64;
        let codes = self.memory_at(&core.a, a.wrapping_add(k / summed * summed), 1, summed as usize)?;
        let sum: i32 = codes.iter().map(|code| i32::from(*code as i8)).sum();
        let at = a.wrapping_add(of.sums_of_row(depth as usize) as i64 + k / summed * 4);
        let stored = word(self.memory_at(&core.a, at, 1, 4)?);
        let wanted = sum_of_row(of, sum, scale);
        if stored != wanted {
            return Err(format!("a row of codes has the sum {stored:#x} for codes that sum to {sum}, not {wanted:#x}"));
        }
        Ok(f64::from(scale) * f64::from(code))
    }

    fn exps(&mut self, exps: &Exps) -> Ran<()> {
        let Exps { total, depth, from, shift, to, format } = exps;
        let Value::Float(shift) = self.expr(shift)? else { return Err("a shift that is no float".to_string()) };
        let (at, start) = (self.int(&from.offset)?, self.int(&to.offset)?);
        let mut sum = 0.0;
        for i in 0..*depth as i64 {
            let x = self.float_at(from, at.wrapping_add(i), Elem::F32)?;
            let power = float_unary(Unary::Exp, x - shift);
            sum += f64::from(power);
            let bytes = match format {
                Format::Bf16 => bf16::from_f32(power).to_le_bytes().to_vec(),
                _ => power.to_le_bytes().to_vec(),
            };
            let size = format.elem().bytes() as i64;
            self.memory_at(to, start.wrapping_add(i), size, bytes.len())?.copy_from_slice(&bytes);
        }
        self.set(*total, Value::Float(sum as f32));
        Ok(())
    }

    fn encode(&mut self, encode: &Encode) -> Ran<()> {
        let Encode { depth, from, to, format, part } = encode;
        let (at, start) = (self.int(&from.offset)?, self.int(&to.offset)?);
        let row: Vec<f32> =
            (0..*depth as i64).map(|k| self.float_at(from, at.wrapping_add(k), Elem::F32)).collect::<Ran<_>>()?;
        let blocks = depth / format.block();
        // Codes, scales, sums: what belongs to a block is in stretches, of which a whole row has one after the other.
        let stretches: Vec<Vec<u8>> = if *format == Format::Bf16 {
            vec![row.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()]
        } else if let Format::Words(block) = *format {
            let (mut words, mut scales, mut sums) = (Vec::new(), Vec::new(), Vec::new());
            for block in row.chunks(block) {
                let (largest, factor) = largest_of(block, MOST_WORD);
                let block: Vec<i16> = block.iter().map(|x| (x * factor).round_ties_even() as i16).collect();
                words.extend((0..block.len()).flat_map(|at| block[in_fours(at as i64) as usize].to_le_bytes()));
                scales.extend((largest * (1.0 / MOST_WORD)).to_le_bytes());
                let sum: i32 = block.iter().map(|word| i32::from(*word)).sum();
                sums.extend((sum * -BYTE_OFFSET).to_le_bytes());
            }
            vec![words, scales, sums]
        } else if *format == Format::I16 {
            let (mut numbers, mut scales) = (Vec::new(), Vec::new());
            for block in row.chunks(format.block()) {
                let (largest, factor) = largest_of(block, MOST_OF_ROW);
                numbers.extend(block.iter().flat_map(|x| ((x * factor).round_ties_even() as i16).to_le_bytes()));
                scales.extend((largest * (1.0 / MOST_OF_ROW)).to_le_bytes());
            }
            vec![numbers, scales]
        } else {
            let Some(of) = format.codes() else { return Err(format!("a row is encoded as {format}")) };
            let unpacked = format.unpacked().codes().unwrap_or(of);
            let (mut codes, mut scales, mut sums, mut of_parts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for block in row.chunks(format.block()) {
                let (largest, factor) = largest_of(block, 127.0);
                let block: Vec<i8> = block.iter().map(|x| (x * factor).round_ties_even() as i8).collect();
                codes.extend(block.iter().map(|code| *code as u8));
                let scale = largest * (1.0 / 127.0);
                scales.extend(scale.to_le_bytes());
                let sum = |codes: &[i8]| codes.iter().map(|code| i32::from(*code)).sum();
                sums.extend(sum_of_row(unpacked, sum(&block), scale).to_le_bytes());
                for part in block.chunks(of.summed()).filter(|_| of.steps.is_some()) {
                    of_parts.extend(sum_of_row(of, sum(part), scale).to_le_bytes());
                }
            }
            vec![codes, scales, sums, of_parts]
        };
        let (of, first) = match part {
            None => (blocks, 0),
            Some(part) => (part.of / format.block(), self.int(&part.block)?),
        };
        let is_part = first >= 0 && (first as usize).checked_add(blocks).is_some_and(|end| end <= of);
        if !is_part {
            return Err(format!("blocks {first} and on, {blocks} of them, are encoded of a row of {of}"));
        }
        let size = format.elem().bytes();
        let mut before = 0;
        for bytes in stretches {
            let of_block = bytes.len() / blocks.max(1);
            let at = start.wrapping_add(((before + first as usize * of_block) / size) as i64);
            self.memory_at(to, at, size as i64, bytes.len())?.copy_from_slice(&bytes);
            before += of * of_block;
        }
        Ok(())
    }

    fn float_at(&mut self, at: &Address, offset: i64, elem: Elem) -> Ran<f32> {
        Ok(match elem {
            Elem::Bf16 => {
                let bytes = self.memory_at(at, offset, 2, 2)?;
                f32::from_bits(u32::from_le_bytes([0, 0, bytes[0], bytes[1]]))
            }
            _ => f32::from_bits(word(self.memory_at(at, offset, 4, 4)?)),
        })
    }

    /// `bytes` bytes at an offset in elements of `size`.
    fn memory_at(&mut self, at: &Address, offset: i64, size: i64, bytes: usize) -> Ran<&mut [u8]> {
        let outside = || format!("an access {offset} elements into {}, which is not there", at.buffer);
        let page = match &at.buffer {
            Buffer::Page { page, .. } => usize::try_from(self.int(page)?).ok(),
            _ => None,
        };
        let memory = &mut *self.memory;
        let (base, start) = match &at.buffer {
            Buffer::Arena(start) => (Some(&mut memory.arena), *start),
            Buffer::Scratch(start) => (Some(&mut self.scratch), *start),
            Buffer::Frame(slot) => (pointed(memory.frame.get_mut(slot)), 0),
            Buffer::Layer(slot) => (pointed(memory.layer.get_mut(slot)), 0),
            Buffer::Page { table, slot, .. } => {
                let start = match memory.layer.get(slot) {
                    Some(Slot::Offset(bytes)) => *bytes,
                    _ => return Err(outside()),
                };
                match memory.frame.get_mut(table) {
                    Some(Slot::Pages(pages)) => (page.and_then(|page| pages.get_mut(page)), start),
                    _ => return Err(outside()),
                }
            }
        };
        let start = offset.checked_mul(size).and_then(|bytes| bytes.checked_add(start as i64));
        let start = start.and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        base.zip(range).and_then(|(base, range)| base.get_mut(range)).ok_or_else(outside)
    }

    fn int(&mut self, expr: &Expr) -> Ran<i64> {
        match self.expr(expr)? {
            Value::Int(x) => Ok(x),
            other => Err(format!("{other:?} is not an integer")),
        }
    }

    fn expr(&mut self, expr: &Expr) -> Ran<Value> {
        Ok(match expr {
            Expr::Int(x) => Value::Int(*x),
            Expr::Float(x) => Value::Float(*x),
            Expr::Var(var) => self.vars[var.0 as usize],
            Expr::Arg(Arg::Tokens) => Value::Int(self.memory.tokens),
            Expr::Arg(Arg::Past) => Value::Int(self.memory.past),
            Expr::Arg(Arg::First) => Value::Int(self.memory.first),
            Expr::Load { elem, lanes, at } => self.load(*elem, *lanes, at)?,
            Expr::Unary(function, x) => match self.expr(x)? {
                Value::Int(x) => match function {
                    Unary::ToFloat => Value::Float(x as f32),
                    _ => Value::Int(x.wrapping_neg()),
                },
                Value::Float(x) => Value::Float(float_unary(*function, x)),
                Value::Mask(x) => Value::Mask(!x),
                Value::Ints(x) => match function {
                    Unary::ToFloat => Value::Floats(x.map(|x| x as f32)),
                    _ => Value::Ints(x.map(i32::wrapping_neg)),
                },
                Value::Floats(x) => Value::Floats(x.map(|x| float_unary(*function, x))),
                Value::Masks(x) => Value::Masks(x.map(|x| !x)),
            },
            Expr::Binary(function, a, b) => binary(*function, self.expr(a)?, self.expr(b)?)?,
            Expr::Select(mask, a, b) => match (self.expr(mask)?, self.expr(a)?, self.expr(b)?) {
                (Value::Mask(mask), a, b) => [b, a][usize::from(mask)],
                (Value::Masks(m), Value::Ints(a), Value::Ints(b)) => Value::Ints(select(m, a, b)),
                (Value::Masks(m), Value::Floats(a), Value::Floats(b)) => Value::Floats(select(m, a, b)),
                (Value::Masks(m), Value::Masks(a), Value::Masks(b)) => Value::Masks(select(m, a, b)),
                other => return Err(format!("a select of {other:?}")),
            },
            Expr::Fma(a, b, c) => match (self.expr(a)?, self.expr(b)?, self.expr(c)?) {
                (Value::Float(a), Value::Float(b), Value::Float(c)) => Value::Float(a.mul_add(b, c)),
                (Value::Floats(a), Value::Floats(b), Value::Floats(c)) => {
                    Value::Floats(std::array::from_fn(|i| a[i].mul_add(b[i], c[i])))
                }
                other => return Err(format!("an fma of {other:?}")),
            },
            Expr::Splat(x) => match self.expr(x)? {
                Value::Int(x) => Value::Ints([x as i32; LANES]),
                Value::Float(x) => Value::Floats([x; LANES]),
                Value::Mask(x) => Value::Masks([x; LANES]),
                other => return Err(format!("a splat of {other:?}")),
            },
            Expr::Iota(x) => {
                let x = self.int(x)?;
                Value::Ints(std::array::from_fn(|i| (x as i32).wrapping_add(i as i32)))
            }
            Expr::Gather(parts) => {
                let mut lanes = [0.0; LANES];
                for (lane, part) in lanes.iter_mut().zip(parts.iter()) {
                    if let Value::Float(x) = self.expr(part)? {
                        *lane = x;
                    }
                }
                Value::Floats(lanes)
            }
            Expr::Fold(fold, x) => {
                let Value::Floats([a, b, c, d]) = self.expr(x)? else { return Err("a fold of no floats".to_string()) };
                let combine = |a: f32, b: f32| match fold {
                    Fold::Sum => a + b,
                    Fold::Max => float_binary(Binary::Max, a, b),
                    Fold::Min => float_binary(Binary::Min, a, b),
                };
                Value::Float(combine(combine(a, c), combine(b, d)))
            }
        })
    }

    fn load(&mut self, elem: Elem, lanes: usize, at: &Address) -> Ran<Value> {
        let offset = self.int(&at.offset)?;
        let size = elem.bytes() as i64;
        let bytes = self.memory_at(at, offset, size, lanes * size as usize)?;
        let bits: Vec<u32> = bytes
            .chunks(size as usize)
            .map(|bytes| match bytes {
                [byte] => u32::from(*byte),
                [a, b] => u32::from_le_bytes([0, 0, *a, *b]),
                bytes => word(bytes),
            })
            .collect();
        Ok(match (elem, bits.as_slice()) {
            (Elem::I32 | Elem::U8, [x]) => Value::Int(i64::from(*x as i32)),
            (_, [x]) => Value::Float(f32::from_bits(*x)),
            (Elem::I32, x) => Value::Ints(std::array::from_fn(|i| x[i] as i32)),
            (_, x) => Value::Floats(std::array::from_fn(|i| f32::from_bits(x[i]))),
        })
    }
}

/// What a row of codes has of the sum of some of its codes (see [`Format`]), as bits.
fn sum_of_row(codes: Codes, sum: i32, scale: f32) -> u32 {
    match codes.minimum {
        true => (scale * sum as f32).to_bits(),
        false => (codes.summed_from() - codes.summed_as() * sum) as u32,
    }
}

/// The largest magnitude of a block of a row, and what each number is taken times before it is rounded, where that becomes `most`.
fn largest_of(block: &[f32], most: f32) -> (f32, f32) {
    // What is no number stays none.
    let larger = |largest: f32, x: &f32| if x.abs() <= largest || largest.is_nan() { largest } else { x.abs() };
    let largest = block.iter().fold(SMALLEST, larger);
    (largest, most / largest)
}

/// Where an element of a panel is whose neighbours lie in pairs.
fn in_pairs(k: usize, n: usize) -> usize {
    (k / 2 * PANEL + n) * 2 + k % 2
}

/// Where a word of a row is, and which is there: of each four the second and the third change places.
fn in_fours(k: i64) -> i64 {
    k / 4 * 4 + [0, 2, 1, 3][k as usize % 4]
}

/// The nearest of the whole numbers that a byte holds.
fn byte(x: f32) -> u8 {
    x.round_ties_even() as u8
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn pointed(slot: Option<&mut Slot>) -> Option<&mut Vec<u8>> {
    match slot {
        Some(Slot::Bytes(bytes)) => Some(bytes),
        _ => None,
    }
}

fn select<T: Copy>(mask: [bool; LANES], a: [T; LANES], b: [T; LANES]) -> [T; LANES] {
    std::array::from_fn(|i| if mask[i] { a[i] } else { b[i] })
}

fn float_unary(function: Unary, x: f32) -> f32 {
    let f = |f: fn(f64) -> f64| f(f64::from(x)) as f32;
    match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => f(f64::exp),
        Unary::Log => f(f64::ln),
        Unary::Sin => f(f64::sin),
        Unary::Cos => f(f64::cos),
        Unary::Tanh => f(f64::tanh),
        Unary::Erf => f(erf),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Not | Unary::ToFloat => x,
    }
}

fn binary(function: Binary, a: Value, b: Value) -> Ran<Value> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => match super::fold(function, a, b) {
            Some(x) => Value::Int(x),
            None => Value::Mask(compare(function, a, b)),
        },
        (Value::Float(a), Value::Float(b)) if function.compares() => Value::Mask(compare(function, a, b)),
        (Value::Float(a), Value::Float(b)) => Value::Float(float_binary(function, a, b)),
        (Value::Mask(a), Value::Mask(b)) => Value::Mask(if function == Binary::And { a && b } else { a || b }),
        (Value::Ints(a), Value::Ints(b)) if function.compares() => {
            Value::Masks(std::array::from_fn(|i| compare(function, a[i], b[i])))
        }
        (Value::Ints(a), Value::Ints(b)) => Value::Ints(std::array::from_fn(|i| {
            super::fold(function, i64::from(a[i]), i64::from(b[i])).unwrap_or_default() as i32
        })),
        (Value::Floats(a), Value::Floats(b)) if function.compares() => {
            Value::Masks(std::array::from_fn(|i| compare(function, a[i], b[i])))
        }
        (Value::Floats(a), Value::Floats(b)) => {
            Value::Floats(std::array::from_fn(|i| float_binary(function, a[i], b[i])))
        }
        (Value::Masks(a), Value::Masks(b)) => {
            Value::Masks(std::array::from_fn(|i| if function == Binary::And { a[i] && b[i] } else { a[i] || b[i] }))
        }
        (a, b) => return Err(format!("{function} of {a:?} and {b:?}")),
    })
}

fn compare<T: PartialOrd>(function: Binary, a: T, b: T) -> bool {
    match function {
        Binary::Lt => a < b,
        Binary::Le => a <= b,
        Binary::Gt => a > b,
        Binary::Ge => a >= b,
        Binary::Eq => a == b,
        _ => a != b,
    }
}

fn float_binary(function: Binary, a: f32, b: f32) -> f32 {
    match function {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => f64::from(a).powf(f64::from(b)) as f32,
        Binary::Min if a < b => a,
        Binary::Max if a > b => a,
        _ => b,
    }
}
