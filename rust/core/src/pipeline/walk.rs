//! One packet's walk: what the stages share.

use std::ops::ControlFlow;

use super::state::PathState;
use crate::base::{Direction, InterfaceId, Nanos, Offload, Output, Reason, Sent, Verdict};
use crate::flow::key::Key;
use crate::forwarding::ForwardingState;
use crate::packet::Meta;

/// What a stage gives: something to go on with, or the verdict that ends the walk. Being answered, held or left to
/// the host is no error, so this is no `Result`.
pub(crate) type Stage<T> = ControlFlow<Verdict, T>;

/// Go on with what there is, or end the walk by a drop.
pub(crate) trait OrDrop<T> {
    /// Drop for this reason where there is nothing.
    fn or_drop(self, reason: Reason) -> Stage<T>;
}

impl<T> OrDrop<T> for Option<T> {
    #[inline(always)]
    fn or_drop(self, reason: Reason) -> Stage<T> {
        match self {
            Some(value) => ControlFlow::Continue(value),
            None => ControlFlow::Break(reason.into()),
        }
    }
}

/// Go on with what was read, or end the walk by a drop.
pub(crate) trait DropErrors<T> {
    /// Drop for the reason of the error.
    fn drop_errors(self) -> Stage<T>;
}

impl<T> DropErrors<T> for Result<T, Reason> {
    #[inline(always)]
    fn drop_errors(self) -> Stage<T> {
        match self {
            Ok(value) => ControlFlow::Continue(value),
            Err(reason) => ControlFlow::Break(reason.into()),
        }
    }
}

/// How a forwarded packet leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Departure {
    /// As it is, rewritten in place.
    Whole {
        /// Interface id.
        interface: InterfaceId,
        /// Bytes of data per segment, for a GSO frame.
        gso_size: u16,
    },
    /// In frames of its own.
    Pieces,
}

impl Departure {
    pub fn sent(self, meta: &Meta) -> Option<Sent> {
        let Departure::Whole {
            interface,
            gso_size,
        } = self
        else {
            return None;
        };
        let offload = Offload {
            gso_size,
            ..meta.offload
        };
        Some(Sent {
            interface,
            len: meta.ip.end,
            offload,
        })
    }
}

/// The flow a packet was matched to, as far as it is known: the outcome tells it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Match {
    pub direction: Option<Direction>,
    pub service: Option<u32>,
    pub server: Option<u32>,
    /// Finds the flow again, for later fragments.
    pub reply_key: Option<Key>,
}

/// One packet's walk: what it may read, what it may change, where frames of our own go, and the time.
pub(crate) struct Walk<'a> {
    pub forwarding: &'a ForwardingState,
    pub state: &'a mut PathState,
    pub extra: &'a mut Vec<Output>,
    pub now: Nanos,
    pub matched: Match,
}

impl<'a> Walk<'a> {
    /// Begin, with no flow matched yet.
    #[inline(always)]
    pub fn new(
        forwarding: &'a ForwardingState,
        state: &'a mut PathState,
        extra: &'a mut Vec<Output>,
        now: Nanos,
    ) -> Self {
        Self {
            forwarding,
            state,
            extra,
            now,
            matched: Match::default(),
        }
    }
}
