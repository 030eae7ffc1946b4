//! Rows out of a table, and into one: while packets come, some at a time. They are read as an image is
//! ([`super::image`]): nothing is believed that was not checked.

use std::ops::Range;

use super::Table;
use super::entry::FlowCold;
use super::flow::Flow;
use super::kept::{Row, Translation};
use super::rows::{Rows, is_opening};
use crate::base::{InterfaceId, Nanos};

impl Table {
    /// Append rows of the flows in some places that are worth storing; say which place is after the last one of the
    /// table.
    pub fn copy_rows(&self, places: Range<u32>, now: Nanos, into: &mut Vec<u8>) -> u32 {
        let (numbers, end) = self.numbers_in(places);
        for number in numbers {
            let (mut entry, cold, rare) = (
                self.entry(number).load(),
                self.cold(number).load(),
                self.rare(number).load(),
            );
            if is_opening(entry.state()) {
                continue;
            }
            entry.last_seen = Nanos::new(now.since(entry.last_seen));
            let cold = FlowCold {
                previous: 0,
                following: 0,
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
        let end = (rows.next + count).min(rows.all.len());
        for row in &mut rows.all[rows.next..end] {
            if is_opening(row.entry.state()) || row.entry.client_port == 0 {
                rows.kept.dropped += 1;
            } else if let Some(number) = self.take_over(row, now, translate, interface) {
                self.link(number, row.entry.state());
                rows.kept.flows += 1;
                note(row.entry.service, row.entry.server, &self.flow(number));
            } else {
                rows.kept.dropped += 1;
            }
        }
        rows.next = end;
        self.due = Nanos::ZERO;
        end == rows.all.len()
    }
}

#[cfg(test)]
mod tests;
