//! What is kept of datagrams in pieces, and what goes when there is no room.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::packet::Meta;

const ACTION: Action = Action::Transit;
const FIRST: Piece = Piece {
    start: 0,
    end: 8,
    last: false,
};

fn key(source: u128, identification: u32) -> DatagramKey {
    DatagramKey {
        source: Ip::from_bits(source),
        destination: Ip::from_bits(1),
        identification,
        protocol: 17,
    }
}

/// Hold a fragment with a frame of `bytes` bytes as its datagram's next piece: whether it was held, and how many
/// others were given up.
fn hold(fragments: &mut Fragments, key: &DatagramKey, bytes: usize, now: u64) -> (bool, usize) {
    let seen = fragments
        .get(key)
        .map_or(0, |entry| entry.pieces.known.len()) as u32;
    let (fits, given_up) = fragments.make_room(key, bytes);
    if !fits {
        return (false, given_up);
    }
    let held = Held {
        frame: vec![0; bytes],
        meta: Meta::EMPTY,
    };
    let next = Piece {
        start: seen * 8 + 8,
        end: seen * 8 + 16,
        last: false,
    };
    (
        true,
        given_up + fragments.hold(key, next, held, Nanos::new(now)),
    )
}

/// Rule 6, fragments: refused datagrams take no room: neither that of datagrams that pass nor that of those that wait.
#[test]
fn refuse_any_number_leaves_room() {
    let mut fragments = Fragments::default();
    for number in 0..MOST_DATAGRAMS as u32 {
        let source = u128::from(number % 64);
        assert_eq!(
            hold(&mut fragments, &key(source, number), 100, 0),
            (true, 0)
        );
    }
    for number in 0..5000 {
        assert_eq!(fragments.refuse(&key(7, 10_000 + number), Nanos::ZERO), 0);
    }
    assert_eq!(fragments.held(), MOST_DATAGRAMS);
    assert_eq!(fragments.refused.len(), MOST_REFUSED);
    let is_refused = |number: u32| {
        let entry = fragments.get(&key(7, 10_000 + number));
        entry.map(|entry| entry.fate) == Some(Fate::Refused)
    };
    assert!(is_refused(4999) && !is_refused(0));
}

/// Rule 22.1, bounded pauses: what expires together leaves the tables at once, and its memory in parts.
#[test]
fn free_given_up_fragments_in_parts() {
    let mut fragments = Fragments::default();
    for number in 0..20 {
        hold(&mut fragments, &key(7, number % 4), 100, 0);
    }
    let expired: usize = std::iter::from_fn(|| fragments.expire(Nanos::new(LIFETIME_NS))).sum();
    assert_eq!((expired, fragments.held()), (20, 0));
    let left = |fragments: &Fragments| -> usize { fragments.given_up.iter().map(Vec::len).sum() };
    for expected in [13, 6, 0] {
        assert!(fragments.has_given_up() && !fragments.is_empty());
        fragments.free(7);
        assert_eq!(expected, left(&fragments));
    }
    assert!(fragments.is_empty());
}

/// Rule 6, fragments: when full the oldest goes; a source with an eighth loses its own oldest.
#[test]
fn hold_full_oldest_goes() {
    let mut fragments = Fragments::default();
    for number in 0..MOST_DATAGRAMS as u32 {
        hold(&mut fragments, &key(u128::from(number % 8), number), 100, 0);
    }
    assert_eq!(hold(&mut fragments, &key(3, 9000), 100, 0), (true, 1));
    assert!(fragments.get(&key(0, 0)).is_some() && fragments.get(&key(3, 3)).is_none());
    assert_eq!(hold(&mut fragments, &key(99, 9001), 100, 0), (true, 1));
    assert!(fragments.get(&key(0, 0)).is_none());
}

/// Rule 6, fragments: of one datagram alone an eighth of the bytes is held, and no more.
#[test]
fn hold_own_share_full_drops_the_fragment() {
    let mut fragments = Fragments::default();
    let most = MOST_HELD_BYTES / SHARES / 60_000;
    for _ in 0..most {
        assert_eq!(hold(&mut fragments, &key(1, 1), 60_000, 0), (true, 0));
    }
    assert_eq!(hold(&mut fragments, &key(1, 1), 60_000, 0), (false, 0));
    assert_eq!(hold(&mut fragments, &key(1, 2), 60_000, 0), (true, most));
    assert!(fragments.get(&key(1, 1)).is_none());
}

/// What is counted beside the datagrams is what they have.
fn check_accounts(fragments: &Fragments) -> Result<(), TestCaseError> {
    let mut shares: BTreeMap<Ip, (usize, usize)> = BTreeMap::new();
    let (mut alive, mut waiting) = (Vec::new(), Vec::new());
    for (key, datagram) in &fragments.datagrams {
        prop_assert_eq!(datagram.fate == Fate::Unknown, !datagram.held.is_empty());
        if datagram.fate == Fate::Refused {
            continue;
        }
        let share = shares.entry(key.source).or_default();
        *share = (share.0 + 1, share.1 + datagram.held_bytes);
        alive.push((datagram.sequence, *key));
        if datagram.fate == Fate::Unknown {
            waiting.push((datagram.sequence, *key));
        }
    }
    for (order, mut expected) in [(&fragments.alive, alive), (&fragments.waiting, waiting)] {
        expected.sort_unstable();
        prop_assert_eq!(
            order.by_age.clone().into_iter().collect::<Vec<_>>(),
            expected.clone()
        );
        let by_source: BTreeSet<_> = expected.iter().map(|(at, key)| (key.source, *at)).collect();
        prop_assert_eq!(&order.by_source, &by_source);
    }
    let refused = fragments
        .datagrams
        .values()
        .filter(|one| one.fate == Fate::Refused)
        .count();
    prop_assert_eq!(refused, fragments.refused.len());
    prop_assert!(refused <= MOST_REFUSED && fragments.alive.by_age.len() <= MOST_DATAGRAMS);
    prop_assert_eq!(
        fragments.held_bytes,
        shares.values().map(|share| share.1).sum::<usize>()
    );
    prop_assert!(fragments.held_bytes <= MOST_HELD_BYTES);
    for (source, share) in shares {
        let counted = fragments.shares.get(&source).copied().unwrap_or_default();
        prop_assert_eq!((counted.datagrams, counted.held_bytes), share);
        prop_assert!(share.0 <= MOST_DATAGRAMS / SHARES && share.1 <= MOST_HELD_BYTES / SHARES);
    }
    Ok(())
}

/// Small enough to meet the limit of entries, or large enough to meet that of bytes.
fn arrival_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 1usize..100, 1 => 1usize..60_000]
}

proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Rule 6, fragments: whatever comes in whatever order, bounds hold, also those of each source, and every held
        /// fragment is accounted for once.
        #[test]
        fn fragments_any_arrivals_stay_within_bounds(
arrivals in proptest::collection::vec((0u8..20, 0u128..12, 0u32..3000, arrival_bytes(), 0u64..30), 1500..2500),
        ) {
            let mut fragments = Fragments::default();
            let (mut now, mut entered, mut left) = (0, 0, 0);
            for (at, (what, source, identification, bytes, pause)) in arrivals.into_iter().enumerate() {
                now += pause * 1_000_000;
                while let Some(given_up) = fragments.expire(Nanos::new(now)) {
                    left += given_up;
                }
                let key = key(source, identification);
                let fate = fragments.get(&key).map_or(Fate::Unknown, |entry| entry.fate);
                match what {
                    _ if fate == Fate::Refused => {}
                    0 => left += fragments.refuse(&key, Nanos::new(now)),
                    1 | 2 if fate == Fate::Unknown => {
                        let (held, given_up) = fragments.decide(&key, FIRST, ACTION, Nanos::new(now));
                        left += held.len() + given_up;
                    }
                    _ if fate == Fate::Unknown => {
                        let (held, given_up) = hold(&mut fragments, &key, bytes, now);
                        entered += usize::from(held);
                        left += given_up;
                    }
                    _ => {}
                }
                if at % 50 == 0 {
                    check_accounts(&fragments)?;
                }
                prop_assert_eq!(entered, left + fragments.held());
            }
            check_accounts(&fragments)?;
            while let Some(given_up) = fragments.expire(Nanos::new(now + LIFETIME_NS)) {
                left += given_up;
            }
            fragments.free(usize::MAX);
            prop_assert!(fragments.is_empty() && fragments.shares.is_empty());
            prop_assert_eq!(entered, left);
        }

        /// Rule 6, fragments: while one source floods, datagrams of others wait for their first fragment and get it.
        #[test]
        fn fragments_flood_of_one_source_leaves_others(
            flood in proptest::collection::vec((0u8..3, any::<u32>(), 1usize..60_000), 1500..3000),
        ) {
            let mut fragments = Fragments::default();
            for source in 0..7 {
                hold(&mut fragments, &key(source, 1), 1400, 0);
            }
            for (what, identification, bytes) in flood {
                let key = key(100, identification);
                if fragments.get(&key).is_some() {
                    continue;
                }
                match what {
                    0 => drop(fragments.refuse(&key, Nanos::ZERO)),
                    1 => drop(fragments.decide(&key, FIRST, ACTION, Nanos::ZERO)),
                    _ => drop(hold(&mut fragments, &key, bytes, 0)),
                }
            }
            for source in 0..7 {
                prop_assert_eq!(fragments.decide(&key(source, 1), FIRST, ACTION, Nanos::ZERO).0.len(), 1);
            }
        }
    }
