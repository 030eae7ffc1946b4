//! Unsafe code lives in the folders of system calls and of memory shared with the kernel, and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a file may allow it for itself, below the folder of all crates.
const PLACES: [&str; 2] = ["core/src/sys", "core/src/io"];
const CRATES: [&str; 4] = ["benches", "bindings", "core", "loadgen"];

fn crates() -> PathBuf {
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    core.parent().expect("a crate is in a folder").to_path_buf()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is readable");
    let paths = entries.map(|entry| entry.expect("its entries are readable").path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                vec![path]
            }
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The name of the lint, in an attribute that does anything but forbid unsafe code once more.
fn loosens(line: &str) -> bool {
    let forbids = ["deny(", "forbid("].map(|word| line.contains(&format!("{word}unsafe_code)")));
    line.contains("unsafe_code") && !forbids.contains(&true)
}

/// The workspace denies it, and each file that needs it allows it for itself: whichever attribute that is, it has the
/// lint's name.
#[test]
fn unsafe_code_is_allowed_under_sys_and_io_of_the_core_only() {
    let root = crates();
    let mut allowed = 0;
    for path in sources(&root) {
        let place = path.strip_prefix(&root).expect("it is below the root");
        let text = fs::read_to_string(&path).expect("sources are text");
        if place != Path::new("core/tests/unsafe_code.rs") && text.lines().any(loosens) {
            let is_allowed = PLACES.iter().any(|folder| place.starts_with(folder));
            assert!(is_allowed, "{}", place.display());
            allowed += 1;
        }
    }
    assert!(allowed > 8, "the sources were found");
}

/// A crate that left out the lints of the workspace would need no attribute.
#[test]
fn unsafe_code_is_denied_in_every_crate_by_the_lints_of_the_workspace() {
    let root = crates();
    let mut found: Vec<_> = fs::read_dir(&root)
        .expect("the folder is readable")
        .map(|entry| entry.expect("its entries are readable").path())
        .filter(|path| path.join("Cargo.toml").exists())
        .collect();
    found.sort();
    // A workspace of its own, which never ships, and denies it itself.
    found.retain(|path| !path.ends_with("fuzz"));
    assert_eq!(found, CRATES.map(|name| root.join(name)));
    for path in found {
        let manifest = fs::read_to_string(path.join("Cargo.toml")).expect("a manifest is text");
        assert!(
            manifest.contains("[lints]\nworkspace = true\n"),
            "{}",
            path.display()
        );
    }
    let workspace = fs::read_to_string(root.join("../Cargo.toml")).expect("a manifest is text");
    assert!(workspace.contains("[workspace.lints.rust]\nunsafe_code = \"deny\"\n"));
}
