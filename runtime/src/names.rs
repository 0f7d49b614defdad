//! The names of what settings choose from, as the command line spells them.

use std::str::FromStr;

use crate::Error;
use crate::model::{CacheType, Precision, Quant};

macro_rules! names {
    ($type:ident, $option:literal, $wants:literal: $($variant:ident = $name:literal),*) => {
        impl $type {
            /// All of them.
            pub const ALL: &'static [$type] = &[$($type::$variant,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(name: &str) -> Result<$type, Error> {
                let found = $type::ALL.iter().find(|one| one.name() == name);
                found.copied().ok_or_else(|| Error::Option { option: $option, wants: $wants, got: name.to_owned() })
            }
        }
    };
}

names!(Precision, "precision", "stored, f32 or bf16": Stored = "stored", F32 = "f32", Bf16 = "bf16");
names!(CacheType, "cache", "f32, bf16 or q8": F32 = "f32", Bf16 = "bf16", Q8 = "q8");
names!(Quant, "quant", "q8 or q4": Q8 = "q8", Q4 = "q4");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        assert!(Precision::ALL.iter().all(|one| one.name().parse::<Precision>().is_ok_and(|read| read == *one)));
        assert!(CacheType::ALL.iter().all(|one| one.name().parse::<CacheType>().is_ok_and(|read| read == *one)));
        assert!(Quant::ALL.iter().all(|one| one.name().parse::<Quant>().is_ok_and(|read| read == *one)));
        let error = "f8".parse::<CacheType>().unwrap_err().to_string();
        assert_eq!(error, "option cache wants f32, bf16 or q8, got f8");
    }
}
