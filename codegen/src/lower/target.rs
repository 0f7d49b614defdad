//! What machine code is for: this host, or a named architecture (to look at, not to run).

use std::sync::Arc;

use cranelift::codegen::isa::{self, TargetIsa};
use cranelift::codegen::settings::{self, Configurable};

use super::LowerError;
use crate::format::Format;
use crate::loops::{ByteProducts, Cores, Fetch};

/// The machine that code is generated for.
#[derive(Clone)]
pub struct Target {
    pub(super) isa: Arc<dyn TargetIsa>,
    pub(super) host: bool,
    pub(super) cores: Cores,
}

/// The cores wider than 128 bits that this machine has.
fn host_cores() -> Cores {
    #[cfg(all(target_arch = "x86_64", unix))]
    {
        let has_512 = std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vl");
        if has_512 {
            let has_vnni = std::is_x86_feature_detected!("avx512vnni");
            let bytes = if has_vnni { ByteProducts::Avx512Vnni } else { ByteProducts::Avx2 };
            let bf16 = std::is_x86_feature_detected!("avx512bf16");
            let tiles = bf16 && has_vnni && request_tiles();
            return Cores { bits: 512, bf16, bytes: Some(bytes), tiles, fetch: fetch(512) };
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            let has_vnni = std::is_x86_feature_detected!("avxvnni");
            let bytes = if has_vnni { ByteProducts::AvxVnni } else { ByteProducts::Avx2 };
            return Cores { bits: 256, bytes: Some(bytes), fetch: fetch(256), ..Cores::PORTABLE };
        }
    }
    Cores::PORTABLE
}

/// What was measured to be best: for the processors of AMD, by family, the Zen 3 and the Zen 4 in one, and for those of Intel
/// that have tiles, as which a machine that was not measured is taken.
#[cfg(all(target_arch = "x86_64", unix))]
fn fetch(bits: usize) -> Option<Fetch> {
    let [name, version] = [0, 1].map(std::arch::x86_64::__cpuid);
    let vendor = [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes);
    let of_most = Fetch { bits: 32, ahead: [8192; 2], past: false };
    // The extended family counts from 15 on.
    match (vendor.as_flattened(), 15 + (version.eax >> 20 & 0xff)) {
        (b"AuthenticAMD", 0x17) => Some(Fetch { past: true, ..of_most }),
        (b"AuthenticAMD", 0x19) if bits == 512 => None,
        (b"AuthenticAMD", 0x19) => Some(Fetch { ahead: [2048, 4096], ..of_most }),
        (b"AuthenticAMD", 0x1a) => Some(Fetch { bits: 8, ..of_most }),
        _ => Some(of_most),
    }
}

/// Asks for tiles of bf16 and of bytes: whether this machine has them, and the system lets this process use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn request_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    const BYTES: u32 = 1 << 25;
    const ALL: u32 = BF16 | TILES | BYTES;
    let has = std::arch::x86_64::__cpuid(0).eax >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx & ALL == ALL;
    // Linux saves a thread's tiles once the process has asked for it: ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA, see
    // Documentation/arch/x86/xstate.rst.
    const REQUEST: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers, and changes nothing but what the process may use.
    has && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) fn request_tiles() -> bool {
    false
}

/// Whether a core wider than 128 bits takes operands stored so.
pub(super) fn serve(cores: &Cores, a: Format, b: Format) -> bool {
    let multiplies = match a {
        Format::F32 => a == b || b == Format::Bf16,
        Format::Bf16 => cores.bf16 && a == b,
        Format::Codes(_) => cores.bytes.is_some() && a == b,
        Format::Words(_) => cores.adds_pairs() && (a == b || Some(a) == b.words()),
    };
    cores.bits > 128 && multiplies
}

impl Target {
    /// This machine, with what it offers.
    pub fn host() -> Result<Self, LowerError> {
        let builder = cranelift::native::builder().map_err(|e| LowerError::Target(format!("this machine: {e}")))?;
        let target = Target { cores: host_cores(), ..Self::finish(builder, true)? };
        target.check()?;
        Ok(target)
    }

    /// `x86_64` (with AVX2 and FMA) or `aarch64`.
    pub fn named(name: &str) -> Result<Self, LowerError> {
        let mut builder = match name {
            "x86_64" | "aarch64" => isa::lookup_by_name(name),
            _ => return Err(LowerError::Target(format!("`{name}` is not `x86_64` or `aarch64`"))),
        }
        .map_err(|e| LowerError::Target(format!("`{name}`: {e}")))?;
        if name == "x86_64" {
            for feature in ["sse3", "ssse3", "sse41", "sse42", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt"]
            {
                let enabled = builder.enable(&format!("has_{feature}"));
                enabled.map_err(|e| LowerError::Target(format!("`{name}`: {e}")))?;
            }
        }
        Self::finish(builder, false)
    }

    /// The same with other cores, which the machine must have.
    #[must_use]
    pub fn with_cores(self, cores: Cores) -> Self {
        Target { cores, ..self }
    }

    /// The cores wider than 128 bits.
    pub fn cores(&self) -> &Cores {
        &self.cores
    }

    /// The architecture's name.
    pub fn name(&self) -> String {
        self.isa.triple().architecture.to_string()
    }

    fn finish(builder: isa::Builder, host: bool) -> Result<Self, LowerError> {
        let mut flags = settings::builder();
        // `none`: at `speed`, pure operations sink to their uses, and an unrolled body spills. What is worth doing (value
        // numbering, hoisting) is done while emitting. The verifier runs where a `Lowering` asks for it.
        for (key, value) in [
            ("opt_level", "none"),
            ("is_pic", "false"),
            ("enable_verifier", "false"),
            ("enable_probestack", "false"),
            ("use_colocated_libcalls", "false"),
            ("unwind_info", "false"),
        ] {
            flags.set(key, value).map_err(|e| LowerError::Target(format!("{key}: {e}")))?;
        }
        let isa = builder.finish(settings::Flags::new(flags)).map_err(|e| LowerError::Target(e.to_string()))?;
        Ok(Target { isa, host, cores: Cores::PORTABLE })
    }

    fn check(&self) -> Result<(), LowerError> {
        #[cfg(target_arch = "x86_64")]
        if !(std::is_x86_feature_detected!("fma") && std::is_x86_feature_detected!("avx2")) {
            return Err(LowerError::Target("this CPU lacks AVX2 or FMA".to_string()));
        }
        Ok(())
    }
}
