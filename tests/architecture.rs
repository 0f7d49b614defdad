//! Holds `docs/architecture.md` true: what each floor imports, what it may not mention, where unsafe code is, and that
//! the paths which the page names exist.

use std::fs;
use std::path::{Path, PathBuf};

/// A floor's folder, its crate as Rust paths name it, and the crates of the project that its code may name.
const FLOORS: &[(&str, &str, &[&str])] = &[
    ("dsl/graph", "einfuse_graph", &[]),
    ("dsl/macros", "einfuse_macros", &[]),
    ("codegen", "einfuse_codegen", &["einfuse_graph"]),
    ("runtime", "einfuse_runtime", &["einfuse_graph", "einfuse_codegen"]),
    ("models", "einfuse_models", &["einfuse_graph", "einfuse_macros"]),
];

/// What `model!` emits names the builder, so that its code has the name in quotation.
const QUOTED: (&str, &str) = ("dsl/macros", "einfuse_graph");

/// Words that name an operator of a model rather than a form of equations.
const OPERATORS: &[&str] = &["attention", "swiglu", "rotary", "rope", "expert", "ffn", "mlp", "transformer"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` (relative to the root) with this extension, relative to the root, sorted.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} has no *.{extension}");
    found
}

/// The file's lines of code, numbered from 1: without comments and the tests at the end, and lower-case.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_lowercase();
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    let tests = file.file_name().is_some_and(|name| name == "tests.rs");
    lines.filter(|_| !tests).enumerate().map(|(i, line)| (i + 1, code(line))).collect()
}

/// A line without what stands in double quotes.
fn unquoted(line: &str) -> String {
    line.split('"').step_by(2).collect()
}

/// What stands in backquotes in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Letters, digits and underscores in a row.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// The project's crates that a manifest depends on, other than for tests.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if section.ends_with("dependencies") && !section.ends_with("dev-dependencies") {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default().replace('-', "_");
            if name.starts_with("einfuse") {
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn floors_depend_only_on_those_below() {
    for (folder, _, allowed) in FLOORS {
        for dependency in dependencies(folder) {
            assert!(allowed.contains(&dependency.as_str()), "{folder}/Cargo.toml depends on {dependency}");
        }
    }
    let facade = dependencies(".");
    for (_, name, _) in FLOORS {
        assert!(facade.iter().any(|d| d == name), "the facade does not depend on {name}");
    }
}

#[test]
fn floors_name_only_those_below() {
    for (folder, own, allowed) in FLOORS {
        for file in files(&format!("{folder}/src"), "rs") {
            for (number, line) in code(&file) {
                for word in words(&line).filter(|w| FLOORS.iter().any(|(_, name, _)| name == w)) {
                    let known = word == *own || allowed.contains(&word) || (*folder, word) == QUOTED;
                    assert!(known, "{}:{number} names {word}", file.display());
                }
            }
        }
    }
}

#[test]
fn only_models_knows_architectures() {
    let mut names: Vec<String> = Vec::new();
    for file in files("models/src", "rs") {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        names.extend(
            words(&text).filter(|w| w.ends_with("ForCausalLM") || w.ends_with("LMHeadModel")).map(str::to_lowercase),
        );
    }
    names.sort();
    names.dedup();
    assert!(names.len() >= 5, "models/src declares only {names:?}");
    let families: Vec<String> =
        names.iter().map(|n| n.trim_end_matches("forcausallm").trim_end_matches("lmheadmodel").to_owned()).collect();
    // the language's own crate has a model's name in the words of its help
    for folder in ["dsl/graph/src", "codegen/src", "runtime/src", "src"] {
        // what a format of files calls the tensors of each is that format's
        let names_of_files = |file: &PathBuf| !file.starts_with("runtime/src/checkpoint/gguf");
        for file in files(folder, "rs").into_iter().filter(names_of_files) {
            for (number, line) in code(&file) {
                for word in words(&line) {
                    let known = names.iter().chain(&families).any(|n| n == word);
                    assert!(!known, "{}:{number} names the architecture {word}", file.display());
                }
            }
        }
    }
}

#[test]
fn codegen_has_no_operators_of_models() {
    for file in files("codegen/src", "rs") {
        for (number, line) in code(&file) {
            for word in words(&line) {
                let part = word.split('_').find(|part| OPERATORS.contains(part));
                assert!(part.is_none(), "{}:{number} speaks of {word}", file.display());
            }
        }
    }
}

#[test]
fn unsafe_code_is_where_the_page_says() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Where unsafe code is")).unwrap();
    let mut allowed: Vec<&str> = quoted(section).filter(|path| path.ends_with(".rs")).collect();
    allowed.sort_unstable();
    let mut found: Vec<String> = Vec::new();
    let floors = FLOORS.iter().map(|(folder, ..)| format!("{folder}/src"));
    for folder in floors.chain(["src", "tests", "examples", "benches"].map(str::to_owned)) {
        for file in files(&folder, "rs") {
            if code(&file).iter().any(|(_, line)| words(&unquoted(line)).any(|word| word == "unsafe")) {
                found.push(file.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert_eq!(found, allowed, "files with unsafe code, and those that the page names");
}

#[test]
fn paths_named_on_the_page_exist() {
    for page in
        ["docs/architecture.md", "docs/add-an-architecture.md", "docs/add-a-fusion-rule.md", "docs/add-a-core.md"]
    {
        let text = fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        let mut paths = 0;
        // what stands in backquotes, and has a slash and neither blanks nor a `<`, is a path
        for path in quoted(&text).filter(|q| q.contains('/') && !q.contains([' ', '<', '{'])) {
            paths += 1;
            assert!(root().join(path).exists(), "{page} names {path}, which does not exist");
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|l| !l.contains("://")) {
            assert!(root().join("docs").join(link).exists(), "{page} links to {link}, which does not exist");
        }
        assert!(paths > 0, "{page} names no path");
    }
}
