//! Frames as they cross the border of the data path: in, rewritten in place, and out.

use super::interface::InterfaceId;
use super::offload::Offload;
use super::verdict::{Direction, Verdict};

/// The frame that came in, rewritten in place, is to be sent: its first `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Interface id.
    pub interface: InterfaceId,
    /// Bytes of the frame.
    pub len: usize,
    /// What the kernel still has to do.
    pub offload: Offload,
}

/// A frame of its own to send: answers, fragments, frames that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Interface id.
    pub interface: InterfaceId,
    /// A whole Ethernet frame.
    pub frame: Vec<u8>,
    /// What the kernel still has to do.
    pub offload: Offload,
}

/// A frame that came in, with what its sender left to the network card.
#[derive(Debug, Default)]
pub struct Frame<'a> {
    /// Rewritten in place.
    pub bytes: &'a mut [u8],
    /// What is left to do.
    pub offload: Offload,
}

/// What became of one frame. When `sent` is set it goes out before the outputs appended by the same call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "docs/rules.md rule 1, inputs and outcome, defines each"
)]
pub struct Outcome {
    pub verdict: Verdict,
    pub direction: Option<Direction>,
    pub service: Option<u32>,
    pub server: Option<u32>,
    pub sent: Option<Sent>,
}
