//! What this machine has of which the code generator of the library knows nothing: cores wider than 128 bits, and the
//! instruction sets that they are made of.

#[cfg(all(target_arch = "x86_64", unix))]
pub(crate) use x86::{cores, features};

/// The cores of this machine.
#[cfg(not(all(target_arch = "x86_64", unix)))]
pub(crate) const fn cores() -> crate::loops::Cores {
    crate::loops::Cores::PORTABLE
}

/// Instruction sets that wide cores alone use.
#[cfg(not(all(target_arch = "x86_64", unix)))]
pub(crate) const fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(all(target_arch = "x86_64", unix))]
mod x86 {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::is_x86_feature_detected as has;

    use crate::loops::{ByteProducts, Cores, Fetch, FetchInto};

    pub(crate) fn cores() -> Cores {
        if has!("avx512f") && has!("avx512dq") && has!("avx512bw") && has!("avx512vl") {
            let bytes = if has!("avx512vnni") { ByteProducts::Avx512Vnni } else { ByteProducts::Avx2 };
            let bf16 = has!("avx512bf16");
            let tiles = bf16 && bytes == ByteProducts::Avx512Vnni && request_tiles();
            // On a server of Intel an instruction for pairs takes four times as long as one for floats. And in a cycle it loads three
            // numbers that are spread over vectors, where it loads two vectors.
            let intel = vendor() == INTEL;
            let bf16 = bf16 && (tiles || !intel);
            let i16 = !bf16 && bytes == ByteProducts::Avx512Vnni;
            return Cores { bits: 512, bf16, bytes: Some(bytes), i16, tiles, by_two: !intel, fetch: fetch(512) };
        }
        if has!("avx2") && has!("fma") {
            let bytes = if has!("avxvnni") { ByteProducts::AvxVnni } else { ByteProducts::Avx2 };
            // A Zen 2 begins an instruction for pairs once in a cycle, one for floats twice.
            let i16 = bytes == ByteProducts::AvxVnni || !is_amd(0x17);
            return Cores { bits: 256, bytes: Some(bytes), i16, fetch: fetch(256), ..Cores::PORTABLE };
        }
        Cores::PORTABLE
    }

    pub(crate) fn features() -> Vec<&'static str> {
        let known = [
            ("avx512bf16", has!("avx512bf16")),
            ("avx512vnni", has!("avx512vnni")),
            ("avxvnni", has!("avxvnni")),
            ("amx", request_tiles()),
        ];
        known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }

    const INTEL: [u8; 12] = *b"GenuineIntel";
    const AMD: [u8; 12] = *b"AuthenticAMD";

    /// Who made the processor, as it says.
    fn vendor() -> [u8; 12] {
        let name = __cpuid(0);
        let mut vendor = [0; 12];
        vendor.copy_from_slice([name.ebx, name.edx, name.ecx].map(u32::to_le_bytes).as_flattened());
        vendor
    }

    /// The processor's family. The extended one counts from 15 on.
    fn family() -> u32 {
        15 + (__cpuid(1).eax >> 20 & 0xff)
    }

    fn is_amd(of_family: u32) -> bool {
        vendor() == AMD && family() == of_family
    }

    /// What was measured to be best: for the processors of AMD, by family, the Zen 3 and the Zen 4 in one, and for servers of Intel,
    /// as which a machine that was not measured is taken.
    fn fetch(bits: usize) -> Option<Fetch> {
        let of_most = Fetch { bits: 32, ahead: [8192; 2], into: FetchInto::All, many: false };
        match (&vendor(), family()) {
            (&AMD, 0x17) => Some(Fetch { into: FetchInto::First, ..of_most }),
            (&AMD, 0x19) if bits == 512 => None,
            (&AMD, 0x19) => Some(Fetch { ahead: [2048, 4096], ..of_most }),
            (&AMD, 0x1a) => Some(Fetch { bits: 8, ..of_most }),
            _ => Some(Fetch { into: FetchInto::Both(2048), many: bits == 512, ..of_most }),
        }
    }

    /// Asks for tiles of bf16 and of bytes: whether this machine has them, and the system lets this process use them.
    fn request_tiles() -> bool {
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        const BYTES: u32 = 1 << 25;
        const ALL: u32 = BF16 | TILES | BYTES;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & ALL == ALL && are_allowed()
    }

    /// Linux saves a thread's tiles once the process has asked for it: `ARCH_REQ_XCOMP_PERM` of `XFEATURE_XTILEDATA`, see
    /// Documentation/arch/x86/xstate.rst.
    #[cfg(target_os = "linux")]
    fn are_allowed() -> bool {
        const REQUEST: libc::c_int = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;
        // SAFETY: the call takes two numbers, and changes nothing but what the process may use.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn are_allowed() -> bool {
        false
    }
}
