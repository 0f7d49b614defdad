//! einfuse
fn main() {}
