//! Any text as a configuration file: taken, or every mistake said; never a panic, never a secret.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tracespool::config::{Environment, Overrides, effective, load};

const SECRET: &str = "s3cret-of-the-environment";

/// In memory where that can be had: the file is written for every input.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a folder").keep()
});

fuzz_target!(|text: &str| {
    // What other files say, and whether a device can be read, is no property of the text.
    if text.contains("file:") || text.contains(SECRET) {
        return;
    }
    let path = FOLDER.join("tracespool.toml");
    std::fs::write(&path, text).expect("written");
    let mut environment = Environment { uid: 1000, directory: "/".into(), ..Environment::default() };
    environment.vars.insert("HOME".into(), "/home/ada".into());
    environment.vars.insert("TOKEN".into(), SECRET.into());
    let shown = match load(&Overrides { config: Some(path), ..Overrides::default() }, &environment) {
        Ok(loaded) => format!("{:?}\n{}", loaded.warnings, effective(&loaded)),
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty(), "a refusal says why");
            mistakes.to_string()
        }
    };
    assert!(!shown.contains(SECRET), "a secret is shown: {shown}");
});
