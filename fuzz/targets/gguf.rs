#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    einfuse_runtime::fuzz::gguf(bytes);
});
