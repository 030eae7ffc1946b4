//! Entries as tables of each version have them: what a new version reads of a table that an old one left.
//!
//! A layout that was ever released stays here as it was, with the fields' meaning today. To change `Entry`: count
//! [`super::header::VERSION`] up, keep the old struct here, and say in [`entry_reader`] how it becomes one of today.
//! What is beside an entry (`FlowCold`, `FlowRare`) and where the parts are is as in version 4, the first. The feature
//! `next-layout` makes such a change, so that tests show that it works.

use super::arena::Line;
use super::entry::Entry;
use crate::base::Nanos;

/// Version 4.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct EntryV4 {
    client: [u64; 2],
    client_port: u16,
    state: u8,
    marks: u8,
    service: u32,
    server: u32,
    endpoint: u32,
    last_seen: u64,
    lag: u32,
    bytes: [u32; 2],
    measured: u32,
    ingress: u64,
}

impl From<EntryV4> for Entry {
    fn from(then: EntryV4) -> Self {
        Self {
            client: then.client,
            client_port: then.client_port,
            state: then.state,
            marks: then.marks,
            service: then.service,
            server: then.server,
            endpoint: then.endpoint,
            last_seen: Nanos::new(then.last_seen),
            lag: then.lag,
            bytes: then.bytes,
            measured: then.measured,
            ingress: then.ingress,
        }
    }
}

/// What makes an entry of today of one of a version. `None`: that version is not known.
pub(super) fn entry_reader(version: u32) -> Option<fn(Line) -> Entry> {
    match version {
        4 => Some(|line| bytemuck::cast::<Line, EntryV4>(line).into()),
        #[cfg(feature = "next-layout")]
        super::header::VERSION => Some(bytemuck::cast),
        _ => None,
    }
}

/// An entry as version 4 had it.
#[cfg(test)]
pub(super) fn as_version_4(entry: &Entry) -> Line {
    bytemuck::cast(EntryV4 {
        client: entry.client,
        client_port: entry.client_port,
        state: entry.state,
        marks: entry.marks,
        service: entry.service,
        server: entry.server,
        endpoint: entry.endpoint,
        last_seen: entry.last_seen.get(),
        lag: entry.lag,
        bytes: entry.bytes,
        measured: entry.measured,
        ingress: entry.ingress,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ip;
    use crate::flow::state::FlowState;
    use crate::flow::table::header::VERSION;

    /// An entry of version 4 with another value in each field, as bytes that do not change.
    fn old() -> Line {
        bytemuck::cast(EntryV4 {
            client: Ip::from_bits(0x0a09_0807_0605_0403_0201_0a09_0807_0605).halves(),
            client_port: 0x4001,
            state: FlowState::Established as u8,
            marks: 0x55,
            service: 11,
            server: 22,
            endpoint: 33,
            last_seen: 44,
            lag: 55,
            bytes: [66, 77],
            measured: 88,
            ingress: 99,
        })
    }

    #[test]
    fn an_entry_of_version_4_means_today_what_it_meant() {
        let entry = entry_reader(4).unwrap()(old());
        assert_eq!(
            entry.client(),
            Ip::from_bits(0x0a09_0807_0605_0403_0201_0a09_0807_0605)
        );
        assert_eq!(entry.state(), FlowState::Established);
        assert_eq!(
            (
                entry.client_port,
                entry.service,
                entry.server,
                entry.endpoint
            ),
            (0x4001, 11, 22, 33)
        );
        assert_eq!((entry.last_seen, entry.lag), (Nanos::new(44), 55));
        assert_eq!(
            (entry.marks, entry.bytes, entry.measured, entry.ingress),
            (0x55, [66, 77], 88, 99)
        );
    }

    /// Else `VERSION` must count up, and the layout of before be kept above.
    #[test]
    fn an_entry_of_today_is_laid_out_as_its_version_says() {
        let entry = entry_reader(4).unwrap()(old());
        let line: Line = bytemuck::cast(entry);
        assert_eq!(
            VERSION == 4,
            bytemuck::bytes_of(&line) == bytemuck::bytes_of(&old())
        );
        assert_eq!(entry_reader(VERSION).unwrap()(line), entry);
    }

    #[test]
    fn a_version_that_is_not_known_is_not_read() {
        assert!(entry_reader(3).is_none());
        assert!(entry_reader(VERSION + 1).is_none());
    }
}
