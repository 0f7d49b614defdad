//! What the macro refuses, and how it says it: one file per kind of mistake, with the expected text.

#[test]
fn mistakes_are_reported_on_their_tokens() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
