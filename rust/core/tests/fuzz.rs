//! The fuzz targets of `rust/fuzz`, with what was found once and with seeded random input. `make fuzz` has libFuzzer
//! search further.

use std::fs;
use std::path::Path;

use flowlb_core::base::SplitMix64;

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use targets::TARGETS;

/// Bytes up to a length, most of them small numbers: those choose among steps.
fn random_input(random: &mut SplitMix64, most: u64) -> Vec<u8> {
    let len = random.draw() % most;
    (0..len)
        .map(|_| {
            let bits = random.draw();
            (if bits & 256 == 0 { bits } else { bits % 16 }) as u8
        })
        .collect()
}

/// What a fuzzer found once does not come back.
#[test]
fn fuzz_targets_hold_for_all_that_was_found() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions");
    let mut played = 0;
    for (name, target) in TARGETS {
        let Ok(inputs) = fs::read_dir(folder.join(name)) else {
            continue;
        };
        for input in inputs {
            let path = input.expect("the folder is readable").path();
            println!("{}", path.display());
            target(&fs::read(&path).expect("an input is readable"));
            played += 1;
        }
    }
    assert!(played > 0, "there are some in {}", folder.display());
}

#[test]
fn fuzz_targets_hold_for_random_input() {
    for (number, (name, target)) in TARGETS.into_iter().enumerate() {
        let mut random = SplitMix64::new(number as u64);
        for round in 0..300 {
            let input = random_input(&mut random, 400);
            println!("{name}, round {round}");
            target(&input);
        }
    }
}

/// Flows of another process: of 10 000 damaged tables no flow goes to a server it was not with, and none crashes.
#[test]
fn image_with_ten_thousand_corruptions_gives_no_flow_to_another_server() {
    let mut random = SplitMix64::new(11);
    for _ in 0..10_000 {
        targets::image(&random_input(&mut random, 80));
    }
}
