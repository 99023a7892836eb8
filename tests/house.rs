//! The code is as its maps say: the core is pure, and only one file names the primitives.
#![cfg(not(feature = "model"))]

use std::fs;
use std::path::{Path, PathBuf};

/// The code of each Rust file below a folder: without comments, and without tests at its end.
fn code_below(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
                found.push((path, lines.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    assert!(found.len() > 5, "{folder} has few files: was it moved?");
    found
}

/// The lines that contain one of the words.
fn lines_with<'a>(code: &'a str, words: &[&str]) -> Vec<&'a str> {
    code.lines().filter(|line| words.iter().any(|word| line.contains(word))).collect()
}

#[test]
fn core_imports_nothing_outside_of_it() {
    for (path, code) in code_below("src/core") {
        let outside: Vec<_> =
            code.lines().filter(|line| line.replace("crate::core::", "").contains("crate::")).collect();
        assert!(outside.is_empty(), "{}: {outside:?}", path.display());
    }
}

#[test]
fn core_neither_blocks_nor_reads_a_clock() {
    let words = ["Mutex", "Condvar", "Atomic", "Instant", "SystemTime", "thread::", "Arc<", "std::sync", "std::fs"];
    for (path, code) in code_below("src/core") {
        let lines = lines_with(&code, &words);
        assert!(lines.is_empty(), "{}: {lines:?}", path.display());
    }
}

#[test]
fn primitives_are_named_in_one_file() {
    let words = ["parking_lot", "crossbeam", "loom::", "shuttle::", "std::sync::Mutex", "std::sync::Condvar"];
    for (path, code) in code_below("src") {
        let lines = lines_with(&code, &words);
        assert!(path.ends_with("src/sync.rs") || lines.is_empty(), "{}: {lines:?}", path.display());
    }
}
