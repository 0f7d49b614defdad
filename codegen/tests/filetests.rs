//! Runs the files under `filetests/loops`: a kernel as text, then sections with what is expected of it.
//!
//! A section begins with a line of `----` and its kind:
//! - `error`: why the text is refused;
//! - `run`: what the kernel changes in memory, by the interpreter and by machine code alike, for one worker and for three;
//! - `clif x86_64`, `asm x86_64`, `clif aarch64`, `asm aarch64`: its code.
//!
//! `BLESS=1` writes what is found into the files.

mod support;

use std::fmt::Write;

use einfuse_codegen::loops::{Kernel, Memory, Slot, parse, verify};
use einfuse_codegen::lower::{Target, compile_text};
use support::both;

#[test]
fn loops() {
    support::filetests("loops", sections);
}

/// What belongs into the sections of a file.
fn sections(source: &str, kinds: &[&str]) -> Result<Vec<String>, String> {
    let kernel = parse(source).map_err(|e| e.to_string()).and_then(|kernel| {
        verify(&kernel).map_err(|e| e.to_string())?;
        Ok(kernel)
    });
    if kinds == ["error"] {
        return Ok(vec![kernel.err().ok_or("is accepted")?]);
    }
    let kernel = kernel?;
    let again = parse(&kernel.to_string()).map_err(|e| format!("the printed text: {e}"))?;
    if again != kernel {
        return Err(format!("the printed text reads differently:\n{kernel}"));
    }
    // Whatever else is asked, it compiles for each.
    let texts = ["x86_64", "aarch64"].map(|name| {
        let target = Target::named(name).map_err(|e| e.to_string())?;
        Ok((name, compile_text(&kernel, &target).map_err(|e| e.to_string())?))
    });
    let texts = texts.into_iter().collect::<Result<Vec<_>, String>>()?;
    let section = |kind: &&str| match kind.split_once(' ') {
        None if *kind == "run" => run(&kernel),
        Some((form @ ("clif" | "asm"), name)) => {
            let text = texts.iter().find(|(known, _)| *known == name).ok_or(format!("no target `{name}`"))?;
            Ok(if form == "clif" { text.1.0.clone() } else { text.1.1.clone() })
        }
        _ => Err(format!("no section is `{kind}`")),
    };
    kinds.iter().map(section).collect()
}

/// What a kernel changes.
fn run(kernel: &Kernel) -> Result<String, String> {
    let memory = memory();
    let (expected, actual) = both(kernel, &memory, 1).map_err(|e| e.to_string())?;
    let (shared, actual_shared) = both(kernel, &memory, 3).map_err(|e| e.to_string())?;
    for other in [&actual, &shared, &actual_shared] {
        if changes(&memory, other) != changes(&memory, &expected) {
            let (other, expected) = (changes(&memory, other), changes(&memory, &expected));
            return Err(format!("interpreted:\n{expected}otherwise:\n{other}"));
        }
    }
    Ok(changes(&memory, &expected))
}

fn memory() -> Memory {
    let floats = |n: i32, step: f32| (0..n).flat_map(|i| ((i - n / 4) as f32 * step).to_le_bytes()).collect::<Vec<_>>();
    let bf16 = (0..512).flat_map(|i| ((((i - 100) as f32 * 0.5).to_bits() >> 16) as u16).to_le_bytes()).collect();
    let ints = (0..64).flat_map(|i| (i * 7 % 40 - 5i32).to_le_bytes()).collect();
    let pages = vec![floats(64, 1.0), floats(64, 2.0), floats(64, 3.0)];
    Memory {
        tokens: 3,
        past: 5,
        first: 1,
        arena: floats(256, 0.5),
        frame: [(4, Slot::Bytes(floats(256, 0.25))), (5, Slot::Bytes(ints)), (6, Slot::Pages(pages))].into(),
        layer: [(0, Slot::Bytes(floats(256, 0.125))), (1, Slot::Offset(16)), (2, Slot::Bytes(bf16))].into(),
    }
}

fn changes(before: &Memory, after: &Memory) -> String {
    let mut text = String::new();
    let mut compare = |name: &str, a: &[u8], b: &[u8]| {
        for (i, (a, b)) in a.chunks(4).zip(b.chunks(4)).enumerate() {
            if a != b {
                let bits = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                // Integers are small here, and floats are not.
                let small = (bits as i32).unsigned_abs() < 1 << 20;
                let value = if small { format!("{}", bits as i32) } else { format!("{:?}", f32::from_bits(bits)) };
                writeln!(text, "{name}[{i}] = {value}").expect("memory");
            }
        }
    };
    compare("arena", &before.arena, &after.arena);
    for (name, before, after) in [("frame", &before.frame, &after.frame), ("layer", &before.layer, &after.layer)] {
        for ((slot, a), b) in before.iter().zip(after.values()) {
            match (a, b) {
                (Slot::Bytes(a), Slot::Bytes(b)) => compare(&format!("{name}({slot})"), a, b),
                (Slot::Pages(a), Slot::Pages(b)) => {
                    for (page, (a, b)) in a.iter().zip(b).enumerate() {
                        compare(&format!("{name}({slot}) page {page}"), a, b);
                    }
                }
                _ => {}
            }
        }
    }
    text
}
