//! Exponentials of a row: as [`super::super::math::exp`], with the exponent put in at once.

use iced_x86::{Code, IcedError, Instruction, Register};

use super::super::math::{EXP, MINUS_LN_2};
use super::{A, B, Writer};
use crate::format::{Format, PANEL, ROUND};

/// Vectors at once.
const MOST: usize = 4;

/// Below it `e^x` counts as 0: some machines take a hundred cycles for a number below the normal ones.
const LEAST_EXPONENT: f32 = -87.0;

const SHIFT: Register = Register::ZMM31;
const LEAST: Register = Register::ZMM30;
const LOG2_E: Register = Register::ZMM29;
/// The parts of `-ln 2`.
const LN_2: [Register; 2] = [Register::ZMM28, Register::ZMM27];
const ONE: Register = Register::ZMM26;
/// Sums of each of the vectors.
const TOTAL: Register = Register::ZMM20;

fn coefficient(i: usize) -> Register {
    Register::ZMM14 + i as u32
}

fn total(i: usize) -> Register {
    TOTAL + i as u32
}

/// Writes the code: `f(from, to, shift)` returns the sum.
pub(super) fn write(w: &mut Writer, depth: usize, format: Format) -> Result<(), IcedError> {
    if !w.wide {
        return narrow(w, depth);
    }
    w.push(Instruction::with2(Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32, SHIFT, Register::XMM0))?;
    for (register, number) in [
        (LEAST, LEAST_EXPONENT),
        (LOG2_E, std::f32::consts::LOG2_E),
        (LN_2[0], MINUS_LN_2[0]),
        (LN_2[1], MINUS_LN_2[1]),
        (ONE, 1.0),
    ] {
        w.constant(register, number.to_bits())?;
    }
    for (i, number) in EXP.iter().enumerate() {
        w.constant(coefficient(i), number.to_bits())?;
    }
    let vectors = depth / PANEL;
    let each = (1..=MOST).rev().find(|n| vectors.is_multiple_of(*n)).unwrap_or(1);
    for i in 0..each {
        w.zero(total(i))?;
    }
    w.times(vectors / each, |w| some(w, each, format))?;
    for i in 0..each {
        w.push(Instruction::with2(Code::EVEX_Vmovaps_zmm_k1z_zmmm512, Register::ZMM8 + i as u32, total(i)))?;
    }
    let sum = w.fold(
        each,
        [
            Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er,
            Code::VEX_Vaddps_ymm_ymm_ymmm256,
            Code::VEX_Vaddps_xmm_xmm_xmmm128,
        ],
    )?;
    w.push(Instruction::with2(Code::VEX_Vmovaps_xmm_xmmm128, Register::XMM0, sum))
}

/// Some vectors, step by step side by side.
fn some(w: &mut Writer, vectors: usize, format: Format) -> Result<(), IcedError> {
    let bytes = PANEL * format.elem().bytes();
    let x = |i: usize| Register::ZMM0 + i as u32;
    let n = |i: usize| Register::ZMM4 + i as u32;
    let has_power = |i: usize| Register::K1 + i as u32;
    let p = |i: usize| Register::ZMM8 + i as u32;
    let mut each = |f: &mut dyn FnMut(&mut Writer, usize) -> Result<(), IcedError>| -> Result<(), IcedError> {
        (0..vectors).try_for_each(|i| f(w, i))
    };
    each(&mut |w, i| {
        let from = w.at(A, i * 4 * PANEL);
        w.push(Instruction::with2(Code::EVEX_Vmovups_zmm_k1z_zmmm512, x(i), from))
    })?;
    let three = |code: Code, to: Register, a: Register, b: Register| Instruction::with3(code, to, a, b);
    each(&mut |w, i| w.push(three(Code::EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er, x(i), x(i), SHIFT)))?;
    // Not less than the least, so that what is no number passes through.
    let not_less = 5;
    each(&mut |w, i| {
        let compare = Code::EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae;
        w.push(Instruction::with4(compare, has_power(i), x(i), LEAST, not_less))
    })?;
    // The second operand is what is left where one is no number.
    each(&mut |w, i| w.push(three(Code::EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae, x(i), LEAST, x(i))))?;
    let multiply = Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er;
    let add = Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er;
    let horner = Code::EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er;
    // x = n ln 2 + r
    each(&mut |w, i| w.push(three(multiply, n(i), x(i), LOG2_E)))?;
    each(&mut |w, i| w.push(Instruction::with3(Code::EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae, n(i), n(i), 0)))?;
    for part in LN_2 {
        each(&mut |w, i| w.push(three(add, x(i), n(i), part)))?;
    }
    each(&mut |w, i| w.push(Instruction::with2(Code::EVEX_Vmovaps_zmm_k1z_zmmm512, p(i), coefficient(0))))?;
    for c in 1..EXP.len() {
        each(&mut |w, i| w.push(three(horner, p(i), x(i), coefficient(c))))?;
    }
    // 1 + r + r² p
    each(&mut |w, i| w.push(three(multiply, p(i), p(i), x(i))))?;
    each(&mut |w, i| w.push(three(horner, p(i), x(i), x(i))))?;
    let plus = Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er;
    each(&mut |w, i| w.push(three(plus, p(i), p(i), ONE)))?;
    each(&mut |w, i| {
        let mut scale = three(Code::EVEX_Vscalefps_zmm_k1z_zmm_zmmm512b32_er, p(i), p(i), n(i))?;
        scale.set_op_mask(has_power(i));
        scale.set_zeroing_masking(true);
        w.push(Ok(scale))
    })?;
    each(&mut |w, i| w.push(three(plus, total(i), total(i), p(i))))?;
    each(&mut |w, i| {
        let to = w.at(B, i * bytes);
        if format != Format::Bf16 {
            return w.push(Instruction::with2(Code::EVEX_Vmovups_zmmm512_k1z_zmm, to, p(i)));
        }
        let half = Register::YMM0 + i as u32;
        w.push(Instruction::with2(Code::EVEX_Vcvtneps2bf16_ymm_k1z_zmmm512b32, half, p(i)))?;
        w.push(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, to, half))
    })?;
    w.advance(A, vectors * 4 * PANEL)?;
    w.advance(B, vectors * bytes)
}

/// The same to floats, at 256 bits, where there are too few registers for the constants: these lie where the stack ends.
fn narrow(w: &mut Writer, depth: usize) -> Result<(), IcedError> {
    const LEAST: usize = 0;
    const GREATEST: usize = 1;
    const LOG2_E: usize = 2;
    const MAGIC: usize = 3;
    const LN_2: usize = 4;
    const ONE: usize = 6;
    const COEFFICIENTS: usize = 7;
    let mut words = [0; 16];
    for (word, number) in words.iter_mut().zip(
        [LEAST_EXPONENT, 88.0, std::f32::consts::LOG2_E, ROUND].into_iter().chain(MINUS_LN_2).chain([1.0]).chain(EXP),
    ) {
        *word = f32::to_bits(number);
    }
    w.words(words)?;
    let (number, shift) = (Register::YMM15, Register::YMM14);
    let [x, n, p, mask] = [0, 2, 4, 6].map(|from| move |i: usize| Register::YMM0 + from + i as u32);
    let total = |i: usize| Register::YMM8 + i as u32;
    w.push(Instruction::with2(Code::VEX_Vbroadcastss_ymm_xmm, shift, Register::XMM0))?;
    let vectors = depth / LANES;
    let each = if vectors.is_multiple_of(2) { 2 } else { 1 };
    (0..each).try_for_each(|i| w.zero(total(i)))?;
    let three = |code: Code, to: Register, a: Register, b: Register| Instruction::with3(code, to, a, b);
    let [subtract, add, multiply] =
        [Code::VEX_Vsubps_ymm_ymm_ymmm256, Code::VEX_Vaddps_ymm_ymm_ymmm256, Code::VEX_Vmulps_ymm_ymm_ymmm256];
    let [horner, add_product] = [Code::VEX_Vfmadd213ps_ymm_ymm_ymmm256, Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256];
    // Some instruction of each vector, with a constant.
    let with = |w: &mut Writer, nth: usize, f: &dyn Fn(usize) -> Result<Instruction, IcedError>| {
        let from = w.word_below(nth);
        w.push(Instruction::with2(Code::VEX_Vbroadcastss_ymm_m32, number, from))?;
        (0..each).try_for_each(|i| w.push(f(i)))
    };
    let each_of =
        |w: &mut Writer, f: &dyn Fn(usize) -> Result<Instruction, IcedError>| (0..each).try_for_each(|i| w.push(f(i)));
    w.times(vectors / each, |w| {
        for i in 0..each {
            let from = w.at(A, i * 4 * LANES);
            w.push(Instruction::with2(Code::VEX_Vmovups_ymm_ymmm256, x(i), from))?;
        }
        each_of(w, &|i| three(subtract, x(i), x(i), shift))?;
        // Not less than the least, so that what is no number passes through, as the second operand then is what is left.
        let not_less = 5;
        with(w, LEAST, &|i| {
            Instruction::with4(Code::VEX_Vcmpps_ymm_ymm_ymmm256_imm8, mask(i), x(i), number, not_less)
        })?;
        each_of(w, &|i| three(Code::VEX_Vmaxps_ymm_ymm_ymmm256, x(i), number, x(i)))?;
        with(w, GREATEST, &|i| three(Code::VEX_Vminps_ymm_ymm_ymmm256, x(i), number, x(i)))?;
        // x = n ln 2 + r; n is in the lowest bits of `p` until its turn.
        with(w, LOG2_E, &|i| three(multiply, n(i), x(i), number))?;
        with(w, MAGIC, &|i| three(add, p(i), n(i), number))?;
        each_of(w, &|i| three(subtract, n(i), p(i), number))?;
        (0..2).try_for_each(|part| with(w, LN_2 + part, &|i| three(add_product, x(i), n(i), number)))?;
        each_of(w, &|i| Instruction::with3(Code::VEX_Vpslld_ymm_ymm_imm8, n(i), p(i), 23))?;
        with(w, ONE, &|i| three(Code::VEX_Vpaddd_ymm_ymm_ymmm256, n(i), n(i), number))?;
        with(w, COEFFICIENTS, &|i| Instruction::with2(Code::VEX_Vmovaps_ymm_ymmm256, p(i), number))?;
        (1..EXP.len()).try_for_each(|c| with(w, COEFFICIENTS + c, &|i| three(horner, p(i), x(i), number)))?;
        // 1 + r + r² p, times 2^n
        each_of(w, &|i| three(multiply, p(i), p(i), x(i)))?;
        each_of(w, &|i| three(horner, p(i), x(i), x(i)))?;
        with(w, ONE, &|i| three(add, p(i), p(i), number))?;
        each_of(w, &|i| three(multiply, p(i), p(i), n(i)))?;
        each_of(w, &|i| three(Code::VEX_Vandps_ymm_ymm_ymmm256, p(i), p(i), mask(i)))?;
        each_of(w, &|i| three(add, total(i), total(i), p(i)))?;
        for i in 0..each {
            let to = w.at(B, i * 4 * LANES);
            w.push(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, to, p(i)))?;
        }
        w.advance(A, each * 4 * LANES)?;
        w.advance(B, each * 4 * LANES)
    })?;
    let sum = w.fold(each, [Code::INVALID, add, Code::VEX_Vaddps_xmm_xmm_xmmm128])?;
    w.push(Instruction::with2(Code::VEX_Vmovaps_xmm_xmmm128, Register::XMM0, sum))
}

/// Floats of a vector of 256 bits.
const LANES: usize = 8;
