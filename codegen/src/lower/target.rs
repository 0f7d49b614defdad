//! What machine code is for: this host, or a named architecture (to look at, not to run).

use std::sync::Arc;

use cranelift::codegen::isa::{self, TargetIsa};
use cranelift::codegen::settings::{self, Configurable};

use super::{LowerError, host};
use crate::format::Format;
use crate::loops::Cores;

/// The machine that code is generated for.
#[derive(Clone)]
pub struct Target {
    pub(super) isa: Arc<dyn TargetIsa>,
    pub(super) host: bool,
    pub(super) cores: Cores,
}

/// Whether a core wider than 128 bits takes operands stored so.
pub(super) fn serve(cores: &Cores, a: Format, b: Format) -> bool {
    let multiplies = match a {
        Format::F32 => a == b || b == Format::Bf16,
        Format::Bf16 => cores.bf16 && a == b,
        Format::Codes(_) => cores.bytes.is_some() && a == b,
        Format::I16 => cores.i16 && a == b,
        Format::Words(_) => cores.adds_pairs() && (a == b || Some(a) == b.words()),
    };
    cores.bits > 128 && multiplies
}

impl Target {
    /// This machine, with what it offers.
    pub fn host() -> Result<Self, LowerError> {
        let builder = cranelift::native::builder().map_err(|e| LowerError::Target(format!("this machine: {e}")))?;
        let target = Target { cores: host::cores(), ..Self::finish(builder, true)? };
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
