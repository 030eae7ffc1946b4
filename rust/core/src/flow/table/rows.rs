//! Flows as rows of bytes, for a file that another process reads later, after a reboot, too.
//!
//! A row is an entry with its other parts, and instead of the time of its last packet the time since: clocks begin
//! anew with each boot. Rows are read back as an image is ([`super::image`]): nothing is believed that was not checked.
//! What may have changed since they were written is loosened: the numbers of both sides of a connection.

use super::Table;
use super::entry::{Entry, FlowCold, FlowRare, mark};
use super::header::{NONE, VERSION};
use super::image::linked_at;
use super::kept::{Kept, Translation};
use crate::base::{InterfaceId, Nanos};
use crate::flow::side::TcpSide;
use crate::flow::state::{FlowState, Phase};
use crate::flow::table::Flow;

/// One entry with its other parts. In stored bytes `last_seen` is how long ago that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Row {
    pub entry: Entry,
    pub cold: FlowCold,
    pub rare: FlowRare,
}

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
    rows: Vec<Row>,
    next: usize,
    kept: Kept,
}

impl Rows {
    /// Those in some bytes, in order of their last use. `None`: they do not end with a row.
    #[must_use]
    pub fn parse(bytes: &[u8], now: Nanos) -> Option<Self> {
        if !bytes.len().is_multiple_of(ROW_BYTES) {
            return None;
        }
        let stored = bytes
            .chunks_exact(ROW_BYTES)
            .map(bytemuck::pod_read_unaligned);
        let mut rows: Vec<Row> = stored.map(|row| restored(row, now)).collect();
        rows.sort_by_key(|row| linked_at(&row.entry));
        Some(Self {
            rows,
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

impl Table {
    /// Append rows of the flows in some places that are worth storing; say which place is after the last one of the
    /// table. A connection that is being opened is not: its client asks again.
    pub fn copy_rows(&self, places: std::ops::Range<u32>, now: Nanos, into: &mut Vec<u8>) -> u32 {
        let (numbers, end) = self.numbers_in(places);
        for number in numbers {
            let (mut entry, cold, rare) =
                (*self.entry(number), *self.cold(number), *self.rare(number));
            if is_opening(entry.state()) {
                continue;
            }
            entry.last_seen = Nanos::new(now.since(entry.last_seen));
            let cold = FlowCold {
                previous: NONE,
                following: NONE,
                ..cold
            };
            into.extend_from_slice(bytemuck::bytes_of(&Row { entry, cold, rare }));
        }
        end
    }

    /// Store up to `count` more of some rows; say whether these were the last ones. What is in the table already
    /// stays as it is. Arguments: as [`Self::keep_from`]'s; packets may come meanwhile.
    pub fn keep_rows(
        &mut self,
        rows: &mut Rows,
        count: usize,
        translate: &impl Fn(u32) -> Option<Translation>,
        interface: &impl Fn(InterfaceId) -> Option<InterfaceId>,
        now: Nanos,
        mut note: impl FnMut(u32, u32, &Flow<'_>),
    ) -> bool {
        let end = (rows.next + count).min(rows.rows.len());
        for row in &mut rows.rows[rows.next..end] {
            if is_opening(row.entry.state()) || row.entry.client_port == 0 {
                rows.kept.dropped += 1;
            } else if let Some(number) = self.take_over(row, now, translate, interface) {
                self.link(number, row.entry.state());
                rows.kept.flows += 1;
                note(row.entry.service, row.entry.server, &self.flow_mut(number));
            } else {
                rows.kept.dropped += 1;
            }
        }
        rows.next = end;
        self.due = Nanos::ZERO;
        end == rows.rows.len()
    }
}

fn is_opening(state: FlowState) -> bool {
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

#[cfg(test)]
mod tests;
