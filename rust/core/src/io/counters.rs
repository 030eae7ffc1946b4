//! What the loop counts of itself: written by its thread, read by any.

use std::sync::atomic::{AtomicU64, Ordering};

use super::pauses::{Histogram, HistogramReport};
use crate::base::carried;

/// What went wrong between the wire and the data path. Written by the loop, read by any thread.
#[derive(Debug, Default)]
pub struct IoCounters {
    pub(super) rx_truncated: AtomicU64,
    pub(super) rx_errors: AtomicU64,
    pub(super) rx_dropped: AtomicU64,
    pub(super) tx_dropped: AtomicU64,
    pub(super) tx_errors: AtomicU64,
    /// How long the loop looked away from its sockets, whatever the cause.
    pub(super) pauses: Histogram,
    /// The part of that in which it ran commands of the control side, of the rounds that had any.
    pub(super) control: Histogram,
}

/// How long the loop looked away from its sockets, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopReport {
    /// Each round.
    pub pauses: HistogramReport,
    /// Commands of the control side, per round that had any.
    pub control: HistogramReport,
}

/// What went wrong, of [`IoCounters`], at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoReport {
    /// Frames larger than the buffer: not forwarded.
    pub rx_truncated: u64,
    /// Failed receives: the interface went down, or a frame came whose offload cannot be told (with it a ring ends
    /// too).
    pub rx_errors: u64,
    /// Frames that found no room before they were read, as far as the loop asked the kernel for them.
    pub rx_dropped: u64,
    /// Frames for which the interface had no room: its queue, or the socket and what may wait for it.
    pub tx_dropped: u64,
    /// Frames that the kernel refused.
    pub tx_errors: u64,
}

carried!(IoReport {
    "rx_truncated" = rx_truncated,
    "rx_errors" = rx_errors,
    "rx_dropped" = rx_dropped,
    "tx_dropped" = tx_dropped,
    "tx_errors" = tx_errors,
});

impl IoCounters {
    /// Read all of them.
    #[must_use]
    pub fn report(&self) -> IoReport {
        IoReport {
            rx_truncated: self.rx_truncated.load(Ordering::Relaxed),
            rx_errors: self.rx_errors.load(Ordering::Relaxed),
            rx_dropped: self.rx_dropped.load(Ordering::Relaxed),
            tx_dropped: self.tx_dropped.load(Ordering::Relaxed),
            tx_errors: self.tx_errors.load(Ordering::Relaxed),
        }
    }

    /// Go on from what the process before had counted.
    pub fn carry(&self, before: &IoReport) {
        let pairs = [
            (&self.rx_truncated, before.rx_truncated),
            (&self.rx_errors, before.rx_errors),
            (&self.rx_dropped, before.rx_dropped),
            (&self.tx_dropped, before.tx_dropped),
            (&self.tx_errors, before.tx_errors),
        ];
        for (counter, count) in pairs {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Read how long the loop looked away.
    #[must_use]
    pub fn loop_report(&self) -> LoopReport {
        LoopReport {
            pauses: self.pauses.report(),
            control: self.control.report(),
        }
    }
}

/// Count one.
pub(super) fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
