//! Flows as rows of bytes, for a file that another process reads later, after a reboot, too: what such bytes mean.
//!
//! A row is an entry with its other parts, and instead of the time of its last packet the time since: clocks begin
//! anew with each boot. What may have changed since they were written is loosened: the numbers of both sides of a
//! connection. [`super::stored`] gets rows out of a table and into it.

use super::entry::mark;
use super::header::VERSION;
use super::kept::{Kept, Row};
use crate::base::Nanos;
use crate::flow::side::TcpSide;
use crate::flow::state::{FlowState, Phase};

/// Bytes of a row.
pub const ROW_BYTES: usize = size_of::<Row>();

/// What tells rows of one layout from those of another: the version of the table, bytes, byte order.
#[must_use]
pub fn row_layout() -> String {
    let order = if cfg!(target_endian = "little") {
        "little"
    } else {
        "big"
    };
    format!("{VERSION} {ROW_BYTES} {order}")
}

/// Rows that are being read back.
pub struct Rows {
    pub(super) all: Vec<Row>,
    pub(super) next: usize,
    pub(super) kept: Kept,
}

impl Rows {
    /// Those in some bytes, in order of their last use. `None`: they do not end with a row.
    #[must_use]
    pub fn parse(bytes: &[u8], now: Nanos) -> Option<Self> {
        if bytes.len() % ROW_BYTES != 0 {
            return None;
        }
        let stored = bytes
            .chunks_exact(ROW_BYTES)
            .map(bytemuck::pod_read_unaligned);
        let mut all: Vec<Row> = stored.map(|row| restored(row, now)).collect();
        all.sort_by_key(|row| row.entry.linked_at());
        Some(Self {
            all,
            next: 0,
            kept: Kept::default(),
        })
    }

    /// What became of them so far.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.kept
    }
}

/// Whether a connection is being opened: it is not worth storing, for its client asks again.
pub(super) fn is_opening(state: FlowState) -> bool {
    matches!(state, FlowState::SynSent | FlowState::SynReceived)
}

/// A row as an entry of now.
fn restored(mut row: Row, now: Nanos) -> Row {
    let age = row.entry.last_seen.get();
    // A machine may have been up for less time than that.
    row.entry.last_seen = Nanos::new(now.get().saturating_sub(age).max(1));
    row.entry.measured = if row.entry.state().is_active() {
        Phase::Fresh as u32
    } else {
        Phase::Over as u32
    };
    if row.entry.state() == FlowState::Established {
        loosen(&mut row);
    }
    row
}

/// Let the numbers of a connection have moved on since: what each side has acknowledged stays known, with the largest
/// window around it, as for a flow that was picked up. Its next segments tell the rest.
fn loosen(row: &mut Row) {
    row.entry.marks &= !(mark::SND_NXT | mark::SND_NXT << 1);
    for side in &mut row.cold.sides {
        *side = TcpSide {
            rcv_nxt: side.rcv_nxt,
            ..TcpSide::default()
        };
    }
}
