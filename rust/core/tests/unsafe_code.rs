//! Unsafe code lives in the folders of system calls and of memory shared with the kernel, and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};

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
        .collect()
}

/// The crate denies it, and each file that needs it allows it for itself.
#[test]
fn unsafe_code_is_allowed_under_sys_and_io_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut allowed = 0;
    for path in sources(&root) {
        let text = fs::read_to_string(&path).expect("sources are text");
        if text.contains("allow(unsafe_code") || text.contains("expect(unsafe_code") {
            let place = path.strip_prefix(&root).expect("it is below the root");
            let folder = place.components().next().expect("it has a name");
            assert!(
                ["sys", "io"]
                    .map(AsRef::as_ref)
                    .contains(&folder.as_os_str()),
                "{}",
                place.display()
            );
            allowed += 1;
        }
    }
    assert!(allowed > 0, "the sources were found");
}
