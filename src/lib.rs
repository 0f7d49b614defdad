//! einfuse
