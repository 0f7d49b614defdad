//! Model architectures, each declared in the language
