//! The contraction core, in every shape, against the interpreter; and the encoding of rows for it.

mod support;

use einfuse_codegen::format::{Elem, Format, PANEL, ROUND};

use einfuse_codegen::loops::{
    Address, Arg, Buffer, ByteProducts, Core, Cores, Encode, Expr, Exps, Fetch, FetchInto, GROUP, Kernel, MAX_PANELS,
    Memory, Next, Part, Slot, Stmt, Ty, Unpack, Var, interpret, parse,
};
use einfuse_codegen::lower::{Lowering, compile};
use support::{Random, both, bytes, floats, host, run};

fn kernel(stmt: Stmt) -> Kernel {
    Kernel { name: "core".into(), vars: vec![], scratch: 0, body: vec![stmt] }
}

/// The cores that this machine has, the portable ones first.
fn all_cores() -> Vec<Cores> {
    let host = *host().cores();
    let mut all = vec![Cores::PORTABLE];
    if host.bits > 256 {
        all.push(Cores { bits: 256, bf16: false, tiles: false, ..host });
    }
    if host.bits >= 256 && host.bytes != Some(ByteProducts::Avx2) {
        let widths = [256, 512].into_iter().filter(|bits| *bits <= host.bits);
        all.extend(widths.map(|bits| Cores { bits, bytes: Some(ByteProducts::Avx2), ..Cores::PORTABLE }));
    }
    if host.tiles {
        all.push(Cores { tiles: false, ..host });
    }
    #[cfg(target_arch = "x86_64")]
    if host.bits == 512 && !host.bf16 && std::is_x86_feature_detected!("avx512bf16") {
        all.push(Cores { bf16: true, ..host });
    }
    if host.bits > 128 {
        let some = |bits, into, many| Some(Fetch { bits, ahead: [2048, 4096], into, many });
        let others = [
            None,
            some(8, FetchInto::All, true),
            some(32, FetchInto::First, false),
            some(32, FetchInto::Both(512), true),
        ];
        let others = others.into_iter().filter(|fetch| *fetch != host.fetch);
        all.extend(others.map(|fetch| Cores { tiles: false, fetch, ..host }));
    }
    if host.bits > 128 {
        all.push(host);
    }
    all
}

/// The same with those that multiply numbers of 16 bits, of each width, though it has better.
fn all_cores_for(format: Format) -> Vec<Cores> {
    let mut all = all_cores();
    let host = *host().cores();
    if format == Format::I16 && host.bits >= 256 {
        let pairs = Cores { bits: 256, bytes: Some(ByteProducts::Avx2), ..Cores::PORTABLE };
        let narrower = Cores { bits: 256, bf16: false, tiles: false, ..host };
        let wide = Cores { bf16: false, tiles: false, ..host };
        let serve = |cores: &Cores| cores.bits == 256 || cores.bytes == Some(ByteProducts::Avx512Vnni);
        all.extend([pairs, narrower, wide].into_iter().filter(serve).map(|cores| Cores { i16: true, ..cores }));
    }
    all
}

/// What a kernel leaves in memory, as interpreted.
fn expected(kernel: &Kernel, memory: &Memory) -> Memory {
    assert_eq!(parse(&kernel.to_string()).as_ref(), Ok(kernel));
    let mut expected = memory.clone();
    interpret(kernel, &mut expected, 1).unwrap_or_else(|e| panic!("{e:?}"));
    expected
}

/// What it leaves as run with some cores, and the functions that it called, with what they are for.
fn actual(cores: Cores, kernel: &Kernel, memory: &Memory) -> (Memory, Vec<String>) {
    let mut actual = memory.clone();
    let how = Lowering { verify: true, keep_text: true };
    let target = host().clone().with_cores(cores);
    let code = compile(std::slice::from_ref(kernel), &target, &how).unwrap_or_else(|e| panic!("{e}"));
    run(&code, kernel, &mut actual, 1);
    let functions = code.asm(0).unwrap_or_default().lines().filter(|line| line.starts_with("u0:"));
    (actual, functions.map(str::to_owned).collect())
}

/// Whether a machine with these cores has a wider one for the operands, or encodes rows in wider vectors.
fn is_wide(cores: Cores, a: Format) -> bool {
    let multiplies = match a {
        Format::F32 => true,
        Format::Bf16 => cores.bf16,
        Format::Codes(_) => cores.bytes.is_some(),
        Format::Words(_) => cores.bytes == Some(ByteProducts::Avx2),
        Format::I16 => cores.i16,
    };
    cores.bits > 128 && multiplies
}

/// A number's upper half.
fn half(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

fn values(random: &mut Random, count: usize, format: Format) -> Vec<u8> {
    let values: Vec<f32> = (0..count).map(|_| random.float()).collect();
    match format {
        Format::Bf16 => values.iter().copied().flat_map(half).collect(),
        _ => bytes(&values),
    }
}

/// A row as the first operand of a core.
fn row(random: &mut Random, depth: usize, format: Format) -> Vec<u8> {
    if !format.is_coded() {
        return values(random, depth, format);
    }
    encoded(values(random, depth, Format::F32), depth, format)
}

/// The row that so many floats are.
fn encoded(numbers: Vec<u8>, depth: usize, format: Format) -> Vec<u8> {
    let encode = Encode {
        depth,
        from: Address::new(Buffer::Frame(4), 0),
        to: Address::new(Buffer::Frame(5), 0),
        format,
        part: None,
    };
    let frame = [(4, Slot::Bytes(numbers)), (5, Slot::Bytes(vec![0; format.row(depth)]))].into();
    let mut memory = Memory { frame, ..Memory::default() };
    interpret(&kernel(Stmt::Encode(encode)), &mut memory, 1).unwrap_or_else(|e| panic!("{e:?}"));
    let Some(Slot::Bytes(row)) = memory.frame.remove(&5) else { panic!("no row") };
    row
}

fn panel(random: &mut Random, depth: usize, format: Format) -> Vec<u8> {
    if !format.is_coded() {
        return values(random, PANEL * depth, format);
    }
    if format == Format::I16 {
        return unpacked(values(random, PANEL * depth, Format::Bf16), depth, (Format::Bf16, format));
    }
    let mut panel = Vec::new();
    let beside = format.rows(format.block()) - format.values();
    for _ in 0..depth / format.block() {
        panel.extend((0..format.values()).map(|_| (random.float() * 128.0 + 128.0) as u8));
        let parts = format.codes().and_then(|codes| codes.steps).map_or(0, |rows| format.block() / rows * PANEL);
        panel.extend(values(random, (beside - parts) / 2, Format::Bf16));
        // A step of at most 8 goes with any zero.
        panel.extend(
            (0..parts).map(|_| (random.float() * 4.5 + 4.5).min(8.0) as u8 | ((random.float() * 8.0 + 8.0) as u8) << 4),
        );
    }
    panel
}

/// The panel that another is unpacked to.
fn unpacked(panel: Vec<u8>, depth: usize, (format, into): (Format, Format)) -> Vec<u8> {
    let unpack =
        Unpack { depth, from: Address::new(Buffer::Layer(1), 0), format, to: Address::new(Buffer::Arena(0), 0), into };
    let layer = [(1, Slot::Bytes(panel))].into();
    let mut memory = Memory { arena: vec![0; into.panel(depth)], layer, ..Memory::default() };
    interpret(&kernel(Stmt::Unpack(unpack)), &mut memory, 1).unwrap_or_else(|e| panic!("{e:?}"));
    memory.arena
}

struct Case {
    rows: usize,
    panels: usize,
    depth: usize,
    at_run_time: bool,
    formats: (Format, Format),
    accumulate: bool,
}

/// Checks all cores in one shape, which is interpreted once.
fn check(case: &Case) {
    let Case { rows, panels, depth, at_run_time, formats: (a_format, b_format), accumulate } = *case;
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + depth as u64);
    let (a_stride, c_stride) =
        (a_format.row(depth) + 2 * a_format.block() / b_format.block().max(1) + 2, panels * PANEL + 3);
    let b_stride = if panels == 1 { 0 } else { b_format.panel(depth) + 64 };
    let unit = a_format.elem().bytes();
    // A whole panel, or a share of one.
    let ahead = if accumulate { 100 } else { (b_format.panel(depth) * b_format.elem().bytes()).max(1) };
    let core = Core {
        rows,
        depth: if at_run_time { Expr::Arg(Arg::Past) } else { depth.into() },
        a: Address::new(Buffer::Frame(4), 3),
        a_format,
        a_stride: a_stride.into(),
        panels,
        b: Address::new(Buffer::Layer(1), 0),
        b_format,
        b_stride: b_stride.into(),
        // A hint, which changes no result.
        next: (rows % 4 < 2).then(|| Next { at: Address::new(Buffer::Layer(1), 0), elem: Elem::U8, bytes: ahead }),
        c: Address::new(Buffer::Arena(8), 5),
        c_stride: c_stride.into(),
        accumulate,
    };
    let kernel = kernel(Stmt::Core(core));
    let mut a = vec![0; (3 + rows * a_stride) * unit];
    for m in 0..rows {
        let row = row(&mut random, depth, a_format);
        a[(3 + m * a_stride) * unit..][..row.len()].copy_from_slice(&row);
    }
    let mut b = Vec::new();
    for _ in 0..panels {
        b.extend(panel(&mut random, depth, b_format));
        b.resize(b.len().next_multiple_of((b_stride * b_format.elem().bytes()).max(1)), 0);
    }
    let memory = Memory {
        past: depth as i64,
        arena: bytes(&(0..7 + rows * c_stride).map(|_| random.float()).collect::<Vec<_>>()),
        frame: [(4, Slot::Bytes(a))].into(),
        layer: [(1, Slot::Bytes(b))].into(),
        ..Memory::default()
    };
    let expected = expected(&kernel, &memory);
    // Each of `depth` additions of products below `most` rounds by half an ulp of a sum below most * (depth + 1).
    let most = if b_format.is_coded() { 128.0 } else { 1.0 };
    let bound = most * ((depth * (depth + 1)) as f32 * f32::EPSILON / 2.0 + f32::EPSILON);
    let sums = floats(&expected.arena);
    for cores in all_cores_for(b_format) {
        // Cores of more rows are the same, whether few rows fetch ahead or not.
        if rows > 8 && cores.bits == host().cores().bits && cores.fetch != host().cores().fetch {
            continue;
        }
        let (actual, called) = actual(cores, &kernel, &memory);
        // Where no function takes all panels, there may be one for each.
        let serves = |panels| {
            let tiles = rows % GROUP == 0 && cores.tiles_serve(a_format, b_format, depth);
            is_wide(cores, a_format)
                && !at_run_time
                && (rows <= cores.rows_by(a_format, b_format, panels) || tiles && (panels == 1 || !b_format.is_coded()))
        };
        assert_eq!(!called.is_empty(), serves(panels) || serves(1), "{cores:?}: {kernel}");
        let at_once = called.iter().any(|function| function.contains("two panels"));
        assert_eq!(at_once, panels == 2 && serves(2), "{cores:?}: {called:?} of {kernel}");
        for (i, (x, y)) in sums.iter().zip(floats(&actual.arena)).enumerate() {
            assert!((x - y).abs() <= bound, "{cores:?}: {kernel}depth {depth}: float {i} is {y}, not {x}");
        }
        assert!((&expected.frame, &expected.layer) == (&actual.frame, &actual.layer), "{cores:?}: {kernel}");
    }
}

fn all_shapes(formats: (Format, Format)) {
    shapes(formats, &[1, 2, 3, 4, 5, 6, 8, 12, 13, 48, 64], &[0, 1, 2, 3, 6, 8, 17, 32, 34, 48, 64, 96, 192, 576]);
}

fn shapes(formats: (Format, Format), rows: &[usize], depths: &[usize]) {
    let whole = |depth: &&usize| depth.is_multiple_of(formats.1.block());
    for &rows in rows {
        for &depth in depths.iter().filter(whole) {
            for accumulate in [false, true] {
                for at_run_time in [false, true] {
                    if !(at_run_time && formats.1.is_coded()) {
                        let case = Case { rows, panels: 1, depth, at_run_time, formats, accumulate };
                        check(&case);
                        if depth <= 96 {
                            check(&Case { panels: MAX_PANELS, ..case });
                        }
                    }
                }
            }
        }
    }
}

/// A core of three equal rows by a panel, and what it finds in memory.
fn three_rows(
    depth: usize,
    (a_format, row): (Format, Vec<u8>),
    (b_format, panel): (Format, Vec<u8>),
) -> (Kernel, Memory) {
    let core = Core {
        rows: 3,
        depth: depth.into(),
        a: Address::new(Buffer::Frame(4), 0),
        a_format,
        a_stride: row.len().into(),
        panels: 1,
        b: Address::new(Buffer::Layer(1), 0),
        b_format,
        b_stride: 0.into(),
        next: None,
        c: Address::new(Buffer::Arena(0), 0),
        c_stride: PANEL.into(),
        accumulate: false,
    };
    let memory = Memory {
        arena: vec![0; 3 * PANEL * 4],
        frame: [(4, Slot::Bytes(row.repeat(3)))].into(),
        layer: [(1, Slot::Bytes(panel))].into(),
        ..Memory::default()
    };
    (kernel(Stmt::Core(core)), memory)
}

/// Products of the greatest and of the least codes, which add up to the most that sums have to hold.
#[test]
fn sums_have_room_for_the_greatest_products() {
    let coded = Format::ALL.into_iter().filter(|format| format.codes().is_some());
    let both = |format: Format| [Some(format), format.words()].into_iter().flatten().map(move |rows| (rows, format));
    for (rows, format) in coded.flat_map(both) {
        let codes = format.codes().unwrap();
        let depth = 2 * format.block();
        // One times what is one less; of codes in steps eight times the code too, and what is fifteen less.
        let parts: &[u8] = if codes.steps.is_some() { &[0x11, 0x08, 0xf8] } else { &[0x11] };
        let codes_by = [(0xff, 1.0), (0xff, -1.0), (0, 1.0), (0, -1.0)];
        for (part, (byte, number)) in parts.iter().flat_map(|part| codes_by.map(|by| (*part, by))) {
            let mut block = vec![byte; format.values()];
            block.extend(1f32.to_bits().to_le_bytes()[2..].repeat((codes.parts_at() - format.values()) / 2));
            block.resize(format.rows(format.block()), part);
            let mut panel = block.repeat(2);
            panel.resize(format.panel(depth), 0);
            let row = encoded(bytes(&vec![number; depth]), depth, rows);
            let (kernel, memory) = three_rows(depth, (rows, row), (format, panel));
            let expected = floats(&expected(&kernel, &memory).arena);
            for cores in all_cores() {
                let found = floats(&actual(cores, &kernel, &memory).0.arena);
                for (x, y) in expected.iter().zip(&found) {
                    assert!(
                        (x - y).abs() <= x.abs() * 1e-5 + 1e-3,
                        "{cores:?}: codes {byte:#x}, steps {part:#x} of {kernel}: {y}, not {x}"
                    );
                }
            }
        }
    }
}

#[test]
fn f32_by_f32() {
    all_shapes((Format::F32, Format::F32));
}

#[test]
fn f32_by_bf16() {
    all_shapes((Format::F32, Format::Bf16));
}

#[test]
fn bf16_by_bf16() {
    all_shapes((Format::Bf16, Format::Bf16));
}

#[test]
fn codes_by_codes() {
    for format in Format::ALL.into_iter().filter(|format| format.codes().is_some()) {
        shapes((format, format), &[1, 2, 3, 8, 13], &[0, format.block(), 192, 256]);
        if format.codes().is_some_and(|codes| codes.are_bytes()) {
            shapes((format, format), &[16, 48], &[format.block(), 256]);
        }
    }
}

/// The largest sum of a block or part, whatever its codes and a row are: taken from the float or added to it, as whole numbers.
#[test]
fn sums_of_codes_are_the_last_bits_of_a_float() {
    for codes in Format::ALL.into_iter().filter_map(Format::codes) {
        // Sums are taken times the step later.
        let of_code = |code| (0..16).map(move |zero| codes.value(code, zero << 4 | 1).abs());
        let largest = (0..=u8::MAX >> (8 - codes.bits)).flat_map(of_code).max().unwrap();
        let sum = largest * 127 * codes.summed() as i32;
        for sum in [sum, -sum] {
            let (float, bits) = (ROUND + sum as f32, ROUND.to_bits().wrapping_add_signed(sum));
            assert_eq!(float.to_bits(), bits, "{codes:?}");
        }
    }
}

#[test]
fn words_by_bytes() {
    for bytes in Format::ALL {
        let Some(words) = bytes.words() else { continue };
        shapes((words, bytes), &[1, 2, 3, 4, 5, 6, 13], &[0, bytes.block(), 192, 576]);
    }
}

#[test]
fn i16_by_i16() {
    shapes((Format::I16, Format::I16), &[1, 2, 3, 6, 8, 12, 13], &[0, 64, 192, 576]);
}

/// The sums of the greatest products fit, with either sign; a block of zeros has a scale; what is no number stays none.
#[test]
fn blocks_of_i16_hold_any_numbers() {
    for (weight, number) in [(1.0, 1.0), (1.0, -1.0), (-3e38, 1e-3), (1e-25, 7.0), (0.0, 1.0), (f32::NAN, 1.0)] {
        let depth = 2 * Format::I16.block();
        let panel: Vec<u8> = (0..depth * PANEL).flat_map(|_| half(weight)).collect();
        let panel = unpacked(panel, depth, (Format::Bf16, Format::I16));
        let row = encoded(bytes(&vec![number; depth]), depth, Format::I16);
        let (kernel, memory) = three_rows(depth, (Format::I16, row), (Format::I16, panel));
        let weight = f32::from_bits(weight.to_bits() & 0xffff_0000);
        let wanted = f64::from(weight) * f64::from(number) * depth as f64;
        for cores in all_cores_for(Format::I16) {
            for x in floats(&actual(cores, &kernel, &memory).0.arena) {
                let close = (f64::from(x) - wanted).abs() <= wanted.abs() * 1e-5;
                assert!(close || weight.is_nan() && x.is_nan(), "{cores:?}: {weight} by {number}: {x}, not {wanted}");
            }
        }
    }
}

#[test]
fn q4_by_q4() {
    let format = Format::Q4.fitting(64);
    all_shapes((format, format));
}

/// Whether this machine adds products of four bytes at once, in vectors of 128 bits.
fn adds_products_of_bytes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avxvnni")
        || is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[test]
fn products_of_bytes_are_one_instruction_where_there_is_one() {
    for format in Format::ALL.into_iter().filter(|format| format.codes().is_some()) {
        let core = Core {
            rows: 1,
            depth: format.block().into(),
            a: Address::new(Buffer::Frame(4), 0),
            a_format: format,
            a_stride: 0.into(),
            panels: 1,
            b: Address::new(Buffer::Layer(1), 0),
            b_format: format,
            b_stride: 0.into(),
            next: None,
            c: Address::new(Buffer::Arena(0), 0),
            c_stride: 0.into(),
            accumulate: false,
        };
        let target = host().clone().with_cores(Cores::PORTABLE);
        let how = Lowering { verify: true, keep_text: true };
        let code = compile(&[kernel(Stmt::Core(core))], &target, &how).unwrap_or_else(|e| panic!("{e}"));
        let asm = code.asm(0).unwrap_or_default();
        assert_eq!(asm.contains("vpdpbusd"), adds_products_of_bytes(), "{format}: {asm}");
    }
}

#[test]
fn codes_that_tiles_do_not_multiply_fast_as_bytes_are_unpacked_to_bf16() {
    let vectors = Cores { bits: 512, bf16: true, bytes: Some(ByteProducts::Avx512Vnni), ..Cores::PORTABLE };
    let tiles = Cores { tiles: true, ..vectors };
    let named = |name: &str| Format::ALL.into_iter().find(|format| format.to_string() == name).unwrap();
    for (stored, by_tiles, by_vectors) in [
        ("f32", "f32", "f32"),
        ("bf16", "bf16", "bf16"),
        ("q8", "bf16", "q8"),
        ("q4_192", "q8_192", "q8_192"),
        ("q8_32", "bf16", "q8_32"),
        ("q4_min", "bf16", "q4_min"),
        ("iq4", "bf16", "iq4"),
    ] {
        let unpacked = |cores: Cores| cores.unpacked(named(stored), 192).to_string();
        assert_eq!((unpacked(tiles).as_str(), unpacked(vectors).as_str()), (by_tiles, by_vectors), "{stored}");
    }
    // No whole tiles.
    assert_eq!(tiles.unpacked(named("q6_16"), 48), named("q6_16"));
}

/// So much of two panels of bf16 as stays in the first cache, in equal parts of whole tiles; else all of it.
#[test]
fn tiles_take_deep_sums_in_parts() {
    let vectors = Cores { bits: 512, bf16: true, bytes: Some(ByteProducts::Avx512Vnni), ..Cores::PORTABLE };
    let tiles = Cores { tiles: true, ..vectors };
    for (depth, part) in [(64, 64), (576, 576), (1344, 448), (1536, 512), (8192, 512), (1312, 1312), (1500, 1500)] {
        let at_once = |cores: Cores| cores.depth_at_once(Format::Bf16, Format::Bf16, depth);
        assert_eq!((at_once(tiles), at_once(vectors)), (part, depth));
    }
}

#[test]
fn panels_are_unpacked_bit_for_bit() {
    let mut random = Random(7);
    let coded = Format::ALL.into_iter().filter(|format| format.codes().is_some());
    let unpacked = coded.flat_map(|format| [(format, format.unpacked()), (format, Format::Bf16)]);
    let unpacked = unpacked.chain([(Format::Bf16, Format::I16)]);
    for (format, into) in unpacked.filter(|(format, into)| format != into) {
        let block = format.block().max(into.block());
        for depth in [0, block, 3 * block] {
            let (from, to) = (Address::new(Buffer::Layer(1), 64), Address::new(Buffer::Arena(0), 32));
            let kernel = kernel(Stmt::Unpack(Unpack { depth, from, format, to, into }));
            let panel = [vec![0; 64 * format.elem().bytes()], panel(&mut random, depth, format)].concat();
            let memory = Memory {
                arena: vec![0xaa; 64 + into.rows(depth) * into.elem().bytes()],
                layer: [(1, Slot::Bytes(panel))].into(),
                ..Memory::default()
            };
            let expected = expected(&kernel, &memory);
            for cores in all_cores_for(into) {
                let (actual, called) = actual(cores, &kernel, &memory);
                let wide = match into {
                    Format::I16 => is_wide(cores, into),
                    Format::Bf16 => is_wide(cores, format) && cores.bits == 512 && cores.bf16,
                    _ => is_wide(cores, format),
                };
                assert_eq!(!called.is_empty(), wide, "{cores:?}: {kernel}");
                assert!(expected == actual, "{cores:?}: {kernel}");
            }
        }
    }
}

#[test]
fn rows_are_encoded_bit_for_bit() {
    for format in Format::ALL.into_iter().filter(|format| *format != Format::F32) {
        for depth in [2, 6, 32, 64, 96, 256, 576] {
            if depth % format.block() != 0 {
                continue;
            }
            let mut random = Random(depth as u64);
            // A block of zeros, large numbers, and ties.
            let mut numbers: Vec<f32> = (0..depth).map(|_| random.float() * 3e5).collect();
            numbers[0] = 127.0;
            for (i, x) in numbers.iter_mut().enumerate().skip(1).take(31) {
                *x = i as f32 - 0.5;
            }
            if depth > 128 {
                numbers[64..128].fill(0.0);
            }
            let encode = Encode {
                depth,
                from: Address::new(Buffer::Frame(4), 0),
                to: Address::new(Buffer::Arena(4), 2),
                format,
                part: None,
            };
            let kernel = kernel(Stmt::Encode(encode));
            let memory = Memory {
                arena: vec![7; 16 + 2 * format.row(depth)],
                frame: [(4, Slot::Bytes(bytes(&numbers)))].into(),
                ..Memory::default()
            };
            let expected = expected(&kernel, &memory);
            for cores in all_cores_for(format) {
                let (actual, called) = actual(cores, &kernel, &memory);
                let wide = is_wide(cores, format) && depth % PANEL == 0;
                assert_eq!(!called.is_empty(), wide, "{cores:?}: {kernel}");
                assert_eq!(expected, actual, "{cores:?}: {kernel}");
            }
        }
    }
}

/// The blocks of a row, some at a time, are what the whole row is.
#[test]
fn a_row_encoded_in_parts_is_the_row() {
    for format in Format::ALL.into_iter().filter(|format| format.is_coded()) {
        let depth = 2 * format.block().max(PANEL);
        let row = 3 * depth;
        let numbers = values(&mut Random(row as u64), row, Format::F32);
        let whole = encoded(numbers.clone(), row, format);
        let nth = Var(0);
        let (from, to) = (Address::new(Buffer::Frame(4), Expr::from(nth) * depth), Address::new(Buffer::Arena(4), 2));
        let part = Some(Part { of: row, block: Expr::from(nth) * (depth / format.block()) });
        let encode = Stmt::Encode(Encode { depth, from, to, format, part });
        let each = Stmt::For { var: nth, from: 0.into(), to: 3.into(), step: 1, body: vec![encode] };
        let kernel = Kernel { vars: vec![Ty::Int], ..kernel(each) };
        let memory =
            Memory { arena: vec![7; 16 + whole.len()], frame: [(4, Slot::Bytes(numbers))].into(), ..Memory::default() };
        let expected = expected(&kernel, &memory);
        let start = 4 + 2 * format.elem().bytes();
        assert_eq!(expected.arena[start..start + whole.len()], whole, "{format}");
        for cores in all_cores_for(format) {
            let (actual, called) = actual(cores, &kernel, &memory);
            assert_eq!(!called.is_empty(), is_wide(cores, format), "{cores:?}: {kernel}");
            assert_eq!(expected, actual, "{cores:?}: {kernel}");
        }
    }
}

#[test]
fn blocks_of_rows_with_what_is_no_number_have_no_scale() {
    for format in Format::ALL.into_iter().filter(|format| format.is_coded()) {
        let (depth, width) = (2 * format.block().max(PANEL), if format.together() == 2 { 2 } else { 1 });
        for at in [0, 3, format.block() - 1] {
            let mut numbers = vec![1.0f32; depth];
            numbers[at] = f32::NAN;
            let (from, to) = (Address::new(Buffer::Frame(4), 0), Address::new(Buffer::Arena(0), 0));
            let kernel = kernel(Stmt::Encode(Encode { depth, from, to, format, part: None }));
            let memory = Memory {
                arena: vec![0; format.row(depth)],
                frame: [(4, Slot::Bytes(bytes(&numbers)))].into(),
                ..Memory::default()
            };
            let interpreted = expected(&kernel, &memory);
            let found = all_cores_for(format).into_iter().map(|cores| actual(cores, &kernel, &memory).0);
            for memory in found.chain([interpreted]) {
                let scales = floats(&memory.arena[width * depth..][..depth / format.block() * 4]);
                let none: Vec<bool> = scales.iter().map(|scale| scale.is_nan()).collect();
                assert!(none[0] && !none[1..].contains(&true), "{format}, {at}: {scales:?}");
            }
        }
    }
}

#[test]
fn exponentials_and_their_sum() {
    for format in [Format::F32, Format::Bf16] {
        for depth in [16, 48, 64, 80] {
            let mut random = Random(depth as u64);
            let mut numbers: Vec<f32> = (0..depth).map(|_| random.float() * 60.0 - 50.0).collect();
            (numbers[3], numbers[5], numbers[7]) = (f32::NEG_INFINITY, 10.0, -95.0);
            let exps = Exps {
                total: Var(0),
                depth,
                from: Address::new(Buffer::Frame(4), 0),
                shift: Expr::Float(10.0),
                to: Address::new(Buffer::Arena(64), 0),
                format,
            };
            let at = Address::new(Buffer::Arena(0), 0);
            let store = Stmt::Store { elem: Elem::F32, at, value: Expr::Var(Var(0)) };
            let kernel =
                Kernel { name: "exps".into(), vars: vec![Ty::Float], scratch: 0, body: vec![Stmt::Exps(exps), store] };
            let memory = Memory {
                arena: vec![0; 64 + 4 * depth],
                frame: [(4, Slot::Bytes(bytes(&numbers)))].into(),
                ..Memory::default()
            };
            let expected = expected(&kernel, &memory);
            for cores in all_cores() {
                let (actual, called) = actual(cores, &kernel, &memory);
                assert_eq!(!called.is_empty(), is_wide(cores, format), "{cores:?}: {kernel}");
                let [expected, actual] = [&expected, &actual].map(|memory| {
                    let (sum, rest) = memory.arena.split_at(64);
                    let powers = match format {
                        Format::Bf16 => floats(&rest.chunks(2).flat_map(|x| [0, 0, x[0], x[1]]).collect::<Vec<u8>>()),
                        _ => floats(rest),
                    };
                    (floats(sum)[0], powers)
                });
                let close = |x: f32, y: f32, bits: i32| (x - y).abs() <= x * 2f32.powi(-bits) + (-87f32).exp();
                // What is masked weighs nothing.
                assert_eq!((expected.1[3], actual.1[3]), (0.0, 0.0), "{cores:?}: {kernel}");
                assert!(close(expected.0, actual.0, 21), "{cores:?}: {kernel}{} {}", expected.0, actual.0);
                let bits = if format == Format::Bf16 { 7 } else { 22 };
                for (i, (x, y)) in expected.1.iter().zip(&actual.1).enumerate() {
                    assert!(close(*x, *y, bits), "{cores:?}: {kernel}{i} is {y}, not {x}");
                }
            }
        }
    }
}

#[test]
fn a_negative_depth_is_none() {
    let core = Core {
        rows: 2,
        depth: Expr::Arg(Arg::Past),
        a: Address::new(Buffer::Frame(4), 3),
        a_format: Format::F32,
        a_stride: 4.into(),
        panels: 1,
        b: Address::new(Buffer::Layer(1), PANEL),
        b_format: Format::F32,
        b_stride: 0.into(),
        next: None,
        c: Address::new(Buffer::Arena(8), 5),
        c_stride: PANEL.into(),
        accumulate: false,
    };
    let kernel = kernel(Stmt::Core(core));
    let memory = Memory { past: -3, arena: bytes(&[7.0; 40]), ..Memory::default() };
    let memory = Memory {
        frame: [(4, Slot::Bytes(vec![0; 64]))].into(),
        layer: [(1, Slot::Bytes(vec![0; 64]))].into(),
        ..memory
    };
    let (expected, actual) = both(&kernel, &memory, 1).unwrap();
    assert_eq!(expected, actual);
    assert_eq!(floats(&actual.arena)[7..39], [0.0; 32]);
}
