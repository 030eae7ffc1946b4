//! Fragments (rule 6, behaviour 19): which pieces of a datagram were seen, what was decided for its first one, and which wait for that. And cutting (rule
//! 12.2): a packet that is too long for its way, made into fragments (RFC 791 3.2).
//!
//! Nothing is reassembled: each fragment leaves by itself, translated like the first. Everything is bounded: entries, ranges, held bytes, time.

use std::collections::BTreeMap;

use crate::flow::Key;
use crate::packet::Meta;
use crate::verdict::Direction;
use crate::wire::{checksum, ipv4};

const MOST_DATAGRAMS: usize = 1024;
const MOST_RANGES: usize = 64;
const MOST_HELD_BYTES: usize = 4 << 20;
const LIFETIME_NS: u64 = 30_000_000_000;

/// What makes fragments belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatagramKey {
    /// Source address.
    pub source: u128,
    /// Destination address.
    pub destination: u128,
    /// Identification.
    pub identification: u32,
    /// L4 protocol.
    pub protocol: u8,
}

/// What was decided for the first fragment, and holds for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Route it on unchanged.
    Transit,
    /// Translate it as its flow.
    Translate {
        /// Which way the flow goes.
        direction: Direction,
        /// Service id.
        service: u32,
        /// Server id.
        server: u32,
        /// Finds the flow's last hop.
        reply_key: Key,
    },
}

/// What is known about a datagram's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The first fragment has not come.
    Unknown,
    /// It was forwarded.
    Decided(Action),
    /// It was not, or the fragments overlap.
    Refused,
}

/// A fragment that waits for the first.
pub struct Held {
    /// The frame as it came.
    pub frame: Vec<u8>,
    /// What was parsed from it.
    pub meta: Meta,
}

/// Why a range cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// With a known range, or with the known end.
    Overlap,
    /// More than 64 ranges.
    TooMany,
}

/// Which bytes of a datagram were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Disjoint, sorted, neighbours merged.
    known: Vec<(u32, u32)>,
    end: Option<u32>,
}

impl Ranges {
    /// The ranges with [start, end) added; `last`: no fragment follows.
    ///
    /// # Errors
    /// `Overlap`, `TooMany`.
    pub fn with(&self, start: u32, end: u32, last: bool) -> Result<Self, Misfit> {
        let overlaps = self
            .known
            .iter()
            .any(|&(from, to)| start < to && from < end);
        let beyond_end = self
            .end
            .is_some_and(|known| end > known || (last && end != known));
        let data_beyond = last && self.known.last().is_some_and(|&(_, to)| to > end);
        if overlaps || beyond_end || data_beyond {
            return Err(Misfit::Overlap);
        }
        let mut known = self.known.clone();
        let at = known.partition_point(|&(from, _)| from < start);
        known.insert(at, (start, end));
        known.dedup_by(|next, before| {
            let adjoins = before.1 == next.0;
            if adjoins {
                before.1 = next.1;
            }
            adjoins
        });
        if known.len() > MOST_RANGES {
            return Err(Misfit::TooMany);
        }
        Ok(Self {
            known,
            end: if last { Some(end) } else { self.end },
        })
    }

    /// Whether every byte was seen.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.end.is_some_and(|end| self.known == [(0, end)])
    }
}

/// One datagram in pieces.
pub struct Datagram {
    created: u64,
    sequence: u64,
    /// Bytes seen.
    pub ranges: Ranges,
    /// What is decided.
    pub fate: Fate,
    held: Vec<Held>,
}

/// All datagrams in pieces.
#[derive(Default)]
pub struct Fragments {
    datagrams: BTreeMap<DatagramKey, Datagram>,
    by_age: BTreeMap<u64, DatagramKey>,
    sequence: u64,
    held_bytes: usize,
}

impl Fragments {
    /// Find or make the entry of a datagram; `None` when there are too many.
    pub fn open(&mut self, key: DatagramKey, now: u64) -> Option<&mut Datagram> {
        if !self.datagrams.contains_key(&key) {
            if self.datagrams.len() >= MOST_DATAGRAMS {
                return None;
            }
            self.sequence += 1;
            self.by_age.insert(self.sequence, key);
            let ranges = Ranges::default();
            let sequence = self.sequence;
            self.datagrams.insert(
                key,
                Datagram {
                    created: now,
                    sequence,
                    ranges,
                    fate: Fate::Unknown,
                    held: Vec::new(),
                },
            );
        }
        self.datagrams.get_mut(&key)
    }

    /// The entry of a datagram.
    pub fn get_mut(&mut self, key: &DatagramKey) -> Option<&mut Datagram> {
        self.datagrams.get_mut(key)
    }

    /// Whether a frame of that many bytes may still be held.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.held_bytes + bytes <= MOST_HELD_BYTES
    }

    /// Hold a fragment until its first one comes.
    pub fn hold(&mut self, key: &DatagramKey, held: Held) {
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return;
        };
        self.held_bytes += held.frame.len();
        datagram.held.push(held);
    }

    /// Decide a datagram's fate, and take the fragments that waited for it.
    pub fn decide(&mut self, key: &DatagramKey, fate: Fate) -> Vec<Held> {
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return Vec::new();
        };
        datagram.fate = fate;
        let held = std::mem::take(&mut datagram.held);
        self.held_bytes -= held.iter().map(|held| held.frame.len()).sum::<usize>();
        held
    }

    /// Forget a datagram that was forwarded and is complete.
    pub fn close_if_complete(&mut self, key: &DatagramKey) {
        let is_done =
            |entry: &Datagram| matches!(entry.fate, Fate::Decided(_)) && entry.ranges.is_complete();
        if self.datagrams.get(key).is_some_and(is_done) {
            self.remove(key);
        }
    }

    /// Forget the oldest datagram if its time is over: how many fragments were held for it.
    pub fn expire(&mut self, now: u64) -> Option<usize> {
        let (_, &key) = self.by_age.first_key_value()?;
        let created = self.datagrams.get(&key)?.created;
        (now.saturating_sub(created) >= LIFETIME_NS).then(|| self.remove(&key))
    }

    /// Whether no datagram is known.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Fragments held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.datagrams
            .values()
            .map(|datagram| datagram.held.len())
            .sum()
    }

    fn remove(&mut self, key: &DatagramKey) -> usize {
        let Some(datagram) = self.datagrams.remove(key) else {
            return 0;
        };
        self.by_age.remove(&datagram.sequence);
        self.held_bytes -= datagram
            .held
            .iter()
            .map(|held| held.frame.len())
            .sum::<usize>();
        datagram.held.len()
    }
}

/// Cut an IPv4 packet into fragments of at most `mtu` bytes. It must be longer than that, without DF, and `mtu` leave room for its header and 8 bytes.
#[must_use]
pub fn cut(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let Some(header) = ipv4::Header::new(packet) else {
        return Vec::new();
    };
    let header_len = header.header_len();
    let flags_offset = header.flags_offset();
    let (Some(first_header), Some(mut data)) = (packet.get(..header_len), packet.get(header_len..))
    else {
        return Vec::new();
    };
    let mut later_header = packet[..ipv4::LEN].to_vec();
    later_header.extend(ipv4::copied_options(&packet[ipv4::LEN..header_len]));
    let mut pieces = Vec::new();
    let mut offset = flags_offset & ipv4::OFFSET_MASK;
    while !data.is_empty() {
        let header = if pieces.is_empty() {
            first_header
        } else {
            &later_header
        };
        let room = mtu.saturating_sub(header.len());
        let len = if data.len() <= room {
            data.len()
        } else {
            (room & !7).max(8)
        };
        let (piece, rest) = data.split_at(len.min(data.len()));
        let more = if rest.is_empty() {
            flags_offset & ipv4::MORE_FRAGMENTS
        } else {
            ipv4::MORE_FRAGMENTS
        };
        let word = flags_offset & ipv4::RESERVED | more | offset & ipv4::OFFSET_MASK;
        pieces.push(fragment(header, piece, word));
        offset = offset.wrapping_add((len / 8) as u16);
        data = rest;
    }
    pieces
}

fn fragment(header: &[u8], data: &[u8], flags_offset: u16) -> Vec<u8> {
    let mut packet = [header, data].concat();
    let total_len = packet.len() as u16;
    packet[0] = 0x40 | (header.len() / 4) as u8;
    if let Some(mut view) = ipv4::Header::new_mut(&mut packet) {
        view.set_total_len(total_len);
        view.set_flags_offset(flags_offset);
        view.set_checksum(0);
    }
    let sum = checksum::checksum(&packet[..header.len()]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::map_v4;
    use proptest::prelude::*;

    fn ranges(pieces: &[(u32, u32, bool)]) -> Result<Ranges, Misfit> {
        pieces
            .iter()
            .try_fold(Ranges::default(), |ranges, &(start, end, last)| {
                ranges.with(start, end, last)
            })
    }

    /// behaviour 19: overlapping fragments, data beyond the end, and two ends are refused.
    #[test]
    fn ranges_table() {
        let complete =
            |pieces: &[(u32, u32, bool)]| ranges(pieces).map(|ranges| ranges.is_complete());
        assert_eq!(complete(&[(0, 8, false), (8, 20, true)]), Ok(true));
        assert_eq!(
            complete(&[(16, 20, true), (0, 8, false), (8, 16, false)]),
            Ok(true)
        );
        assert_eq!(complete(&[(0, 8, false), (16, 20, true)]), Ok(false));
        assert_eq!(complete(&[(0, 8, false)]), Ok(false));
        assert_eq!(
            complete(&[(0, 8, false), (0, 8, false)]),
            Err(Misfit::Overlap)
        );
        assert_eq!(
            complete(&[(0, 24, false), (16, 32, false)]),
            Err(Misfit::Overlap)
        );
        assert_eq!(
            complete(&[(8, 16, false), (0, 24, false)]),
            Err(Misfit::Overlap)
        );
        assert_eq!(
            complete(&[(8, 20, true), (24, 32, false)]),
            Err(Misfit::Overlap)
        );
        assert_eq!(
            complete(&[(8, 20, true), (20, 24, true)]),
            Err(Misfit::Overlap)
        );
        assert_eq!(
            complete(&[(24, 32, false), (8, 20, true)]),
            Err(Misfit::Overlap)
        );
    }

    #[test]
    fn ranges_more_than_64_are_too_many() {
        let apart: Vec<_> = (0..64).map(|n| (n * 16, n * 16 + 8, false)).collect();
        let full = ranges(&apart).unwrap();
        assert_eq!(full.with(64 * 16, 64 * 16 + 8, false), Err(Misfit::TooMany));
        assert!(
            full.with(8, 16, false).is_ok(),
            "a fragment that fills a gap still fits"
        );
    }

    fn packet(options: &[u8], flags_offset: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        ipv4::Header::new_mut(&mut packet)
            .unwrap()
            .set_own(0, 0, 17, map_v4(1), map_v4(2));
        packet.extend(options);
        fragment(&packet, data, flags_offset)
    }

    /// behaviour 21: the copied option travels with every fragment, the other with the first only.
    #[test]
    fn cut_with_options_repeats_copied_only() {
        let options = [7, 3, 4, 0x94, 4, 0, 0, 0];
        let pieces = cut(&packet(&options, 0, &[5; 60]), 52);
        let lens: Vec<_> = pieces.iter().map(|piece| (piece[0], piece.len())).collect();
        assert_eq!(lens, [(0x47, 52), (0x46, 48), (0x46, 36)]);
        assert_eq!(pieces[1][20..24], [0x94, 4, 0, 0]);
    }

    proptest! {
        /// Put together again, the pieces are the packet; each fits, has a right checksum, and all but the last have data in units of 8.
        #[test]
        fn cut_any_packet_joins_back(data in proptest::collection::vec(any::<u8>(), 100..400), mtu in 28usize..110, more: bool, offset in 0u16..100) {
            let flags_offset = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
            let pieces = cut(&packet(&[], flags_offset, &data), mtu);
            let mut at = usize::from(offset) * 8;
            let mut joined = Vec::new();
            for (number, piece) in pieces.iter().enumerate() {
                let header = ipv4::Header::new(piece).unwrap();
                let last = number + 1 == pieces.len();
                prop_assert!(piece.len() <= mtu && (last || (piece.len() - 20) % 8 == 0));
                prop_assert_eq!(checksum::sum(&piece[..20]), 0xffff);
                prop_assert_eq!(usize::from(header.flags_offset() & ipv4::OFFSET_MASK) * 8, at);
                prop_assert_eq!(header.flags_offset() & ipv4::MORE_FRAGMENTS != 0, more || !last);
                joined.extend_from_slice(&piece[20..]);
                at += piece.len() - 20;
            }
            prop_assert_eq!(joined, data);
        }
    }
}
