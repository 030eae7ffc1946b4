//! Fragments (rule 6, fragments): which pieces of a datagram were seen, what was decided for its first one, and
//! which wait for that. And cutting (rule 12.2, frames over the MTU). Nothing is reassembled: each fragment leaves by
//! itself, translated like the first.

mod cut;
mod datagram;
mod fragments;
mod pieces;

pub use cut::cut;
pub use datagram::{Action, Datagram, DatagramKey, Fate, Held};
pub use fragments::Fragments;
pub use pieces::{Misfit, Piece, Pieces};
