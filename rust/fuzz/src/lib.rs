//! What the fuzz targets do with their input: each a function of bytes that panics when something does not hold.
//!
//! | target | input | what must hold |
//! |---|---|---|
//! | `frame` | one frame, for a data path that has flows of every kind | see [`player`] |
//! | `sequence` | frames of both sides, time, publications, commands | the same, after each step |
//! | `fragments` | pieces of datagrams of flows, in any order and with any gaps | the same |
//! | `icmp` | errors about flows, what they quote damaged | the same |
//! | `snapshot` | any parts of a snapshot, and routes | it compiles, and packets are accounted for |
//! | `image` | damage to a flow table that another process left | no flow is given to another server |
//!
//! Plain Rust on the public interface of the core. `fuzz_targets` give these functions to libFuzzer;
//! `rust/core/tests/fuzz.rs` has them run in the tests. An input means the same each time: nothing outlives a call but
//! what no frame has changed.

mod frames;
mod image;
mod input;
mod parts;
mod player;
mod scene;

use player::{Player, Step};

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("frame", frame),
    ("sequence", sequence),
    ("fragments", fragments),
    ("icmp", icmp),
    ("snapshot", snapshot),
    ("image", image),
];

/// One frame into a data path that has flows of every kind.
pub fn frame(data: &[u8]) {
    player::one_frame(data);
}

/// Anything that befalls a data path, in any order.
pub fn sequence(data: &[u8]) {
    Player::with_flows(24).play(data, &Step::ALL);
}

/// Pieces of datagrams.
pub fn fragments(data: &[u8]) {
    use Step::{Client, Damaged, Piece, Raw, Server, Wait};
    Player::with_flows(24).play(
        data,
        &[Raw, Wait, Piece, Piece, Piece, Client, Server, Damaged],
    );
}

/// Errors about packets of flows.
pub fn icmp(data: &[u8]) {
    use Step::{Client, IcmpError, Publish, Raw, Server, Wait};
    Player::with_flows(24).play(
        data,
        &[
            Raw, Wait, IcmpError, IcmpError, IcmpError, Client, Server, Publish,
        ],
    );
}

/// Any snapshot.
pub fn snapshot(data: &[u8]) {
    parts::any_snapshot(data);
}

/// A damaged flow table.
pub fn image(data: &[u8]) {
    image::damaged(data);
}
