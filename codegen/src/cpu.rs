//! The processor: its name and features, by which measurements of schedules are told apart, and its caches.

use cranelift::codegen::settings::{self, Flags};

use crate::lower::{LowerError, host};

/// A processor, as far as schedules depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// What it calls itself; the architecture's name where it doesn't.
    pub name: String,
    /// The instruction sets beyond the architecture's first that it has, sorted.
    pub features: Vec<String>,
    /// Its caches.
    pub caches: Caches,
}

/// Bytes of the caches that one core has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// The nearest, of data.
    pub first: usize,
    /// The one behind it.
    pub second: usize,
}

impl Cpu {
    /// The one that this runs on.
    ///
    /// # Errors
    /// If no code can be generated for it.
    pub fn host() -> Result<Cpu, LowerError> {
        let target = |e: &dyn std::fmt::Display| LowerError::Target(format!("this machine: {e}"));
        let builder = cranelift::native::builder().map_err(|e| target(&e))?;
        let isa = builder.finish(Flags::new(settings::builder())).map_err(|e| target(&e))?;
        let mut features: Vec<String> =
            isa.isa_flags().iter().filter(|f| f.as_bool() == Some(true)).map(|f| f.name.to_owned()).collect();
        features.extend(host::features().into_iter().map(str::to_owned));
        features.sort();
        let name = brand().unwrap_or_else(|| isa.triple().architecture.to_string());
        Ok(Cpu { name, features, caches: Caches::host() })
    }
}

/// What the processor calls itself.
#[cfg(target_arch = "x86_64")]
fn brand() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    const FIRST: u32 = 0x8000_0002;
    const LAST: u32 = 0x8000_0004;
    if __cpuid(0x8000_0000).eax < LAST {
        return None;
    }
    let words = (FIRST..=LAST).map(__cpuid).flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx]);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
    let name = String::from_utf8(bytes).ok()?.trim().to_owned();
    let family = __cpuid(1).eax;
    // Several generations may share a name.
    (!name.is_empty()).then(|| format!("{name} ({family:x})"))
}

#[cfg(not(target_arch = "x86_64"))]
fn brand() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let parts: Vec<String> =
        ["model name", "CPU implementer", "CPU part", "CPU variant"].into_iter().filter_map(value).collect();
    (!parts.is_empty()).then(|| parts.join(" "))
}

impl Caches {
    /// Where nobody tells: what most processors have at least.
    const USUAL: Caches = Caches { first: 32 << 10, second: 512 << 10 };

    /// This machine's, where Linux tells.
    fn host() -> Caches {
        let read = |index: usize, what: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}");
            std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        };
        let size = |level: &str| {
            let index = (0..8).find(|&index| {
                read(index, "level").as_deref() == Some(level)
                    && read(index, "type").is_some_and(|kind| kind != "Instruction")
            })?;
            let text = read(index, "size")?;
            let (number, unit) = match text.strip_suffix('K') {
                Some(number) => (number, 1 << 10),
                None => (text.strip_suffix('M')?, 1 << 20),
            };
            number.parse::<usize>().ok()?.checked_mul(unit).filter(|&bytes| bytes > 0)
        };
        Caches { first: size("1").unwrap_or(Self::USUAL.first), second: size("2").unwrap_or(Self::USUAL.second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_it_runs_on() {
        let cpu = Cpu::host().unwrap();
        assert!(!cpu.name.is_empty() && !cpu.name.contains('\0'), "{cpu:?}");
        assert!(
            cpu.features.is_sorted() && cpu.caches.first >= 4096 && cpu.caches.second >= cpu.caches.first,
            "{cpu:?}"
        );
        assert_eq!(Cpu::host().unwrap(), cpu);
    }
}
