//! What may be taken over from another process, and what must not be.

use super::*;
use crate::base::{Ip, MacNumber};
use crate::flow::table::layouts::as_version_4;
use crate::sys::cells::SharedLine;
use proptest::prelude::*;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

pub const NOW: Nanos = Nanos::new(10_000_000_000);
pub const KEY: [u8; 16] = [7; 16];
/// Services, and servers per service, of the process before: ids as it gave them.
const SERVICES: u32 = 3;
const SERVERS: u32 = 4;

/// A file that goes with the test.
struct Scratch(PathBuf, File);

impl Scratch {
    fn new(name: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("flowlb-image-{}-{name}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true);
        Ok(Self(path.clone(), file.open(&path)?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn ingress(interface: u32) -> IngressNeighbour {
    IngressNeighbour::on(InterfaceId::new(interface)).with_mac(MacNumber::from_bits(0xaa))
}

/// Flow `n`: server `n` mod 12 of its service, a state of its own, seen at second `n` mod 9.
pub fn entry(n: u32) -> Entry {
    let server = n % (SERVICES * SERVERS);
    let service = server / SERVERS;
    let states = [FlowState::Established, FlowState::Udp, FlowState::SynSent];
    let seen = Nanos::new(u64::from(n % 9 + 1) * 1_000_000_000);
    let mut entry = Entry::new(
        Ip::from_bits(u128::from(n) + 1),
        n as u16 + 1,
        (service, server, 100 + server),
        states[service as usize],
        seen,
    );
    entry.set_ingress(ingress(service % 2));
    entry
}

/// Today every id is another: 50 more for services, 60 for servers, 70 for endpoints. Server 11 is gone.
pub fn translate(server: u32) -> Option<Translation> {
    let service = server / SERVERS;
    (server < SERVICES * SERVERS - 1).then_some(Translation {
        then: (service, 100 + server),
        is_udp: service == 1,
        today: (service + 50, server + 60, 100 + server + 70),
    })
}

/// Interface 0 is interface 5 today, and interface 1 is gone.
pub fn interface(id: InterfaceId) -> Option<InterfaceId> {
    (id == InterfaceId::new(0)).then_some(InterfaceId::new(5))
}

/// A table in a file with `count` flows, as a process left it. Miri maps no file: there it is written.
fn left(file: &File, count: u32) {
    let table = if cfg!(miri) {
        Table::new(64, KEY)
    } else {
        Table::in_file(64, KEY, file)
    };
    let mut table = table.unwrap();
    for n in 0..count {
        let number = table.insert(entry(n), 30);
        let _ = table
            .entry(number)
            .count_bytes(crate::base::Direction::Reply, n);
    }
    if cfg!(miri) {
        let lines: Vec<Line> = table.arena.lines().iter().map(SharedLine::load).collect();
        file.write_all_at(bytemuck::cast_slice(&lines), 0).unwrap();
    }
}

fn taken(file: &File, capacity: u64) -> Result<(Table, Kept), TableError> {
    let mut table = Table::new(capacity, [9; 16])?;
    let kept = table.keep_from(file, translate, interface, NOW, |_, _, _| {})?;
    Ok((table, kept))
}

/// Where the kernel lets this user make one.
#[test]
#[cfg_attr(miri, ignore = "it maps a map of the kernel")]
fn flows_in_a_map_of_the_kernel_are_kept_as_those_in_a_file() {
    let Ok(map) = Table::create_map(64) else {
        return;
    };
    let scratch = Scratch::new("map").unwrap();
    left(&scratch.1, 40);
    left(&map, 40);
    let ((in_file, file), (in_map, kept)) =
        (taken(&scratch.1, 64).unwrap(), taken(&map, 64).unwrap());
    assert_eq!(kept, file);
    let entries = |table: &Table| -> Vec<_> {
        let all = table.numbers().map(|number| table.entry(number).load());
        all.collect()
    };
    assert_eq!(entries(&in_map), entries(&in_file));
    assert_ne!(kept.flows, 0);
    assert!(
        Table::in_file(65, KEY, &map).is_err(),
        "it has another size"
    );
}

#[test]
fn flows_are_found_by_their_new_ids_in_the_order_of_their_last_use() {
    let scratch = Scratch::new("kept").unwrap();
    left(&scratch.1, 40);
    let (table, kept) = taken(&scratch.1, 1000).unwrap();
    let gone = (0..40).filter(|n| n % 12 == 11).count() as u64;
    assert_eq!((kept.flows, kept.dropped), (40 - gone, gone));
    assert_eq!(table.len(), kept.flows);
    for n in (0..40).filter(|n| n % 12 != 11) {
        let mut expected = entry(n).with_bytes(crate::base::Direction::Reply, n);
        let server = n % 12;
        (expected.service, expected.server, expected.endpoint) =
            (server / SERVERS + 50, server + 60, 100 + server + 70);
        let known = (server / SERVERS).is_multiple_of(2);
        expected.set_ingress(if known {
            ingress(5)
        } else {
            IngressNeighbour::NONE
        });
        let number = table.find(&expected.forward_key()).unwrap();
        assert_eq!(table.find(&expected.reply_key()), Some(number));
        assert_eq!(table.entry(number).load(), expected);
    }
    for state in FlowState::ALL {
        let mut last = Nanos::ZERO;
        let mut at = table.head(state);
        while let Some(number) = at {
            assert!(last <= table.entry(number).last_seen());
            last = table.entry(number).last_seen();
            at = super::super::present(table.cold(number).following.get());
        }
    }
}

#[test]
fn a_table_of_version_4_is_read_as_that_version_left_it() {
    let (scratch, old) = (
        Scratch::new("today").unwrap(),
        Scratch::new("version-4").unwrap(),
    );
    left(&scratch.1, 40);
    let mut bytes = std::fs::read(&scratch.0).unwrap();
    bytes[8..12].copy_from_slice(&4u32.to_ne_bytes());
    let at = Sizes::of(64).unwrap().entries_at * size_of::<Line>();
    for place in bytes[at..].chunks_exact_mut(size_of::<Line>()).take(64) {
        let entry: Entry = bytemuck::pod_read_unaligned(place);
        place.copy_from_slice(bytemuck::bytes_of(&as_version_4(&entry)));
    }
    old.1.write_all_at(&bytes, 0).unwrap();
    let (expected, kept) = taken(&scratch.1, 64).unwrap();
    let (table, of_old) = taken(&old.1, 64).unwrap();
    assert_eq!(of_old, kept);
    for n in (0..40).filter(|n| n % 12 != 11) {
        let mut entry = entry(n);
        let server = n % 12;
        (entry.service, entry.server, entry.endpoint) =
            (server / SERVERS + 50, server + 60, 100 + server + 70);
        let number = table.find(&entry.forward_key()).unwrap();
        let known = expected.find(&entry.forward_key()).unwrap();
        assert_eq!(table.entry(number).load(), expected.entry(known).load());
    }
}

#[test]
#[cfg_attr(miri, ignore = "it maps a file")]
fn a_table_that_was_taken_over_can_be_taken_over_again_and_loses_nothing_by_removal() {
    let (first, second) = (
        Scratch::new("again-first").unwrap(),
        Scratch::new("again-second").unwrap(),
    );
    left(&first.1, 30);
    let mut table = Table::in_file(64, KEY, &second.1).unwrap();
    let same = |server: u32| {
        translate(server).map(|known| Translation {
            today: (known.then.0, server, known.then.1),
            ..known
        })
    };
    let kept = table
        .keep_from(&first.1, same, interface, NOW, |_, _, _| {})
        .unwrap();
    let number = table.find(&entry(0).forward_key()).unwrap();
    table.remove(number);
    drop(table);
    let (_, again) = taken(&second.1, 64).unwrap();
    assert_eq!(again.flows, kept.flows - 1);
}

#[test]
fn flows_beyond_the_capacity_are_dropped_and_counted() {
    let scratch = Scratch::new("small").unwrap();
    left(&scratch.1, 40);
    let (table, kept) = taken(&scratch.1, 5).unwrap();
    assert!(table.is_full());
    assert_eq!((kept.flows, kept.flows + kept.dropped), (5, 40));
}

/// Which flow an entry is of is told twice: by the entry, and by the index. The damaged one is dropped, not the one
/// whose key it has.
#[test]
#[cfg_attr(miri, ignore = "it maps a file")]
fn an_entry_with_the_port_of_another_flow_is_dropped() {
    let scratch = Scratch::new("port").unwrap();
    let mut table = Table::in_file(64, KEY, &scratch.1).unwrap();
    let first = table.insert(entry(0), 30);
    let second = Entry {
        client_port: 2,
        server: 1,
        endpoint: 101,
        ..entry(0)
    };
    table.insert(second, 30);
    table.entry(first).store(&Entry {
        client_port: 2,
        ..table.entry(first).load()
    });
    drop(table);
    let (table, kept) = taken(&scratch.1, 64).unwrap();
    assert_eq!((kept.flows, kept.dropped), (1, 1));
    let number = table.numbers().next().unwrap();
    assert_eq!(table.entry(number).server(), second.server + 60);
}

#[test]
fn what_is_no_table_of_this_layout_is_refused() {
    let whole = Scratch::new("whole").unwrap();
    left(&whole.1, 3);
    let bytes = std::fs::read(&whole.0).unwrap();
    let header = |at: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let table = [
        (Vec::new(), "it is shorter than a header"),
        (bytes[..100].to_vec(), "it is shorter than a header"),
        (header(0, b"x"), "it is no flow table"),
        (header(8, &[99]), "its layout is that of another version"),
        (header(20, &[65]), "its sizes do not fit its capacity"),
        (header(40, &[0; 8]), "its capacity is none that a table has"),
        (header(40, &[65]), "its sizes do not fit its capacity"),
        (
            bytes[..bytes.len() - 64].to_vec(),
            "its sizes do not fit its capacity",
        ),
        (header(80, &[65]), "it has more entries than room"),
    ];
    for (number, (content, message)) in table.iter().enumerate() {
        let scratch = Scratch::new(&format!("refused-{number}")).unwrap();
        scratch.1.write_all_at(content, 0).unwrap();
        let refused = taken(&scratch.1, 64).err().expect(message);
        assert_eq!(refused.to_string(), *message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever bytes are damaged: nothing panics, and no client's flow is given to a server it was not with.
    #[test]
    fn a_damaged_table_gives_no_flow_to_another_server(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)
    ) {
        let scratch = Scratch::new("damaged").unwrap();
        left(&scratch.1, 64);
        let mut bytes = std::fs::read(&scratch.0).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        scratch.1.write_all_at(&bytes, 0).unwrap();
        if let Ok((mut table, _)) = taken(&scratch.1, 64) {
            let all: Vec<u32> = table.numbers().collect();
            prop_assert_eq!(all.len() as u64, table.len());
            for number in all {
                let found = table.entry(number);
                let was = (0..64).map(entry).find(|each| {
                    (each.client(), each.client_port) == (found.client(), found.client_port())
                });
                prop_assert_eq!(Some(found.server()), was.map(|was| was.server + 60));
                table.remove(number);
            }
            prop_assert!(table.is_empty());
        }
    }
}
