//! Instructions that there are at 512 bits, of AVX-512, and at 256.

use iced_x86::Code;

/// The products of four unsigned bytes with four signed ones, and of two halves with two, added to a word: at 512 bits, and at
/// 256 as AVX-512 and as AVX-VNNI encode them.
pub(super) const BYTES: [Code; 3] = [
    Code::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32,
    Code::EVEX_Vpdpbusd_ymm_k1z_ymm_ymmm256b32,
    Code::VEX_Vpdpbusd_ymm_ymm_ymmm256,
];
pub(super) const HALVES: [Code; 3] = [
    Code::EVEX_Vpdpwssd_zmm_k1z_zmm_zmmm512b32,
    Code::EVEX_Vpdpwssd_ymm_k1z_ymm_ymmm256b32,
    Code::VEX_Vpdpwssd_ymm_ymm_ymmm256,
];

pub(super) const MOVE: [Code; 2] = [Code::EVEX_Vmovups_zmm_k1z_zmmm512, Code::VEX_Vmovups_ymm_ymmm256];
pub(super) const EACH_BYTE: [Code; 2] = [Code::EVEX_Vpmovzxbd_zmm_k1z_xmmm128, Code::VEX_Vpmovzxbd_ymm_xmmm64];
pub(super) const AND: [Code; 2] = [Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpand_ymm_ymm_ymmm256];
pub(super) const ADD: [Code; 2] = [Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpaddd_ymm_ymm_ymmm256];
/// Adds the halves of a word, multiplied.
pub(super) const WORDS: [Code; 2] = [Code::EVEX_Vpmaddwd_zmm_k1z_zmm_zmmm512, Code::VEX_Vpmaddwd_ymm_ymm_ymmm256];
pub(super) const XOR: [Code; 2] = [Code::EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpxor_ymm_ymm_ymmm256];
pub(super) const OR: [Code; 2] = [Code::EVEX_Vpord_zmm_k1z_zmm_zmmm512b32, Code::VEX_Vpor_ymm_ymm_ymmm256];
pub(super) const LEFT: [Code; 2] = [Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, Code::VEX_Vpslld_ymm_ymm_imm8];
pub(super) const RIGHT: [Code; 2] = [Code::EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8, Code::VEX_Vpsrld_ymm_ymm_imm8];
pub(super) const TIMES: [Code; 2] = [Code::EVEX_Vpmullw_zmm_k1z_zmm_zmmm512, Code::VEX_Vpmullw_ymm_ymm_ymmm256];
pub(super) const TO_FLOAT: [Code; 2] = [Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, Code::VEX_Vcvtdq2ps_ymm_ymmm256];
pub(super) const SPREAD: [Code; 2] = [Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32, Code::VEX_Vpbroadcastd_ymm_xmmm32];
pub(super) const MULTIPLY: [Code; 2] = [Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vmulps_ymm_ymm_ymmm256];
pub(super) const MULTIPLY_ADD: [Code; 2] =
    [Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256];
