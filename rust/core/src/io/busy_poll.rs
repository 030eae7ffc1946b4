//! When a loop that found nothing looks again at once, and when it sleeps.
//!
//! Sleeping and being woken costs more than a packet: in a virtual machine the core is given up and must be called
//! back. A packet is often followed by another within microseconds (a handshake, a request and its answer), so it
//! pays to keep looking for a little while. Where that was in vain several times in a row, it is left until a sleep
//! turns out to have been short. Where others want the core (the loop was interrupted between two looks), it is
//! left for longer: they need the time, and a sleeper is woken before them. Giving way between looks
//! (`sched_yield`) is no cure: Linux 6.18 puts who does so behind the others for milliseconds, and thousands of
//! frames found no room meanwhile. Pure: time is an argument.

use crate::base::Nanos;

/// How long a look is kept up after the last frame. Most answers of a server on the same network come within it.
const LOOK_NS: u64 = 100_000;
/// Looks in vain, one after the other, before it is left.
const MOST_MISSES: u32 = 8;
/// Two looks lie closer together when no other thread wants the core.
const PAUSE_NS: u64 = 20_000;
/// How long polling stops when another does.
const HOLD_NS: u64 = 100_000_000;

/// What the configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// Look for a while where it pays.
    #[default]
    Adaptive,
    /// Never sleep.
    Busy,
    /// Sleep at once.
    Sleep,
}

/// Decides it.
#[derive(Debug)]
pub struct BusyPoll {
    poll: Poll,
    /// When the last frame was found.
    found: Nanos,
    /// Since then, looking and not sleeping.
    is_looking: bool,
    misses: u32,
    /// Until then others want the core.
    held_until: Nanos,
}

impl BusyPoll {
    /// Start without a frame.
    #[must_use]
    pub fn new(poll: Poll) -> Self {
        Self {
            poll,
            found: Nanos::ZERO,
            is_looking: false,
            misses: 0,
            held_until: Nanos::ZERO,
        }
    }

    /// Frames were found.
    pub fn found(&mut self, now: Nanos) {
        let was_short = self.idle_ns(now) < LOOK_NS;
        // Found while looking, or after a sleep that looking would have spared.
        if self.is_looking || was_short {
            self.misses = 0;
        }
        self.found = now;
        self.is_looking = self.misses < MOST_MISSES && now.is_past(self.held_until);
    }

    /// How long nothing was found.
    #[must_use]
    pub fn idle_ns(&self, now: Nanos) -> u64 {
        now.since(self.found)
    }

    /// Between two looks it paused.
    pub fn paused(&mut self, from: Nanos, until: Nanos) {
        if until.since(from) > PAUSE_NS {
            self.is_looking = false;
            self.held_until = until.plus(HOLD_NS);
        }
    }

    /// Nothing was found: whether to look again instead of sleeping.
    pub fn keeps_polling(&mut self, now: Nanos) -> bool {
        match self.poll {
            Poll::Busy => return true,
            Poll::Sleep => return false,
            Poll::Adaptive => {}
        }
        if self.is_looking && self.idle_ns(now) >= LOOK_NS {
            self.is_looking = false;
            self.misses += 1;
        }
        self.is_looking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    fn at(ns: u64) -> Nanos {
        Nanos::new(ns)
    }

    /// Frames every `gap_ns`: how long each was looked for.
    fn looked_ns(busy_poll: &mut BusyPoll, start_ns: u64, gap_ns: u64, frames: u64) -> Vec<u64> {
        (0..frames)
            .map(|number| {
                let came = at(start_ns + number * gap_ns);
                busy_poll.found(came);
                (0..gap_ns)
                    .step_by(1000)
                    .take_while(|&after| busy_poll.keeps_polling(came.plus(after)))
                    .count() as u64
                    * 1000
            })
            .collect()
    }

    #[test]
    fn adaptive_looks_until_the_next_frame_while_frames_are_close() {
        let mut busy_poll = BusyPoll::new(Poll::Adaptive);
        assert_eq!(
            looked_ns(&mut busy_poll, MILLISECOND, 50_000, 100),
            [50_000; 100]
        );
    }

    #[test]
    fn adaptive_leaves_it_after_misses_in_a_row_and_begins_again_with_a_short_gap() {
        let mut busy_poll = BusyPoll::new(Poll::Adaptive);
        let looked = looked_ns(&mut busy_poll, MILLISECOND, MILLISECOND, 20);
        assert_eq!(looked[..8], [LOOK_NS; 8]);
        assert_eq!(looked[8..], [0; 12]);
        let looked = looked_ns(&mut busy_poll, 21 * MILLISECOND, 50_000, 3);
        assert_eq!(looked, [0, 50_000, 50_000]);
    }

    #[test]
    fn adaptive_without_frames_never_looks() {
        assert!(!BusyPoll::new(Poll::Adaptive).keeps_polling(at(MILLISECOND)));
    }

    #[test]
    fn adaptive_leaves_it_for_a_while_when_others_want_the_core() {
        let mut busy_poll = BusyPoll::new(Poll::Adaptive);
        busy_poll.found(at(MILLISECOND));
        busy_poll.paused(at(MILLISECOND), at(MILLISECOND + PAUSE_NS));
        assert!(busy_poll.keeps_polling(at(MILLISECOND + PAUSE_NS)));
        busy_poll.paused(at(MILLISECOND), at(4 * MILLISECOND));
        assert!(!busy_poll.keeps_polling(at(4 * MILLISECOND)));
        assert_eq!(
            looked_ns(&mut busy_poll, 5 * MILLISECOND, 50_000, 3),
            [0; 3]
        );
        let looked = looked_ns(&mut busy_poll, 104 * MILLISECOND, 50_000, 3);
        assert_eq!(looked, [50_000; 3]);
    }

    #[test]
    fn sleep_never_looks_and_busy_always() {
        for (poll, looks) in [(Poll::Sleep, false), (Poll::Busy, true)] {
            let mut busy_poll = BusyPoll::new(poll);
            busy_poll.found(at(MILLISECOND));
            assert_eq!(busy_poll.keeps_polling(at(MILLISECOND + 1)), looks);
            assert_eq!(busy_poll.keeps_polling(at(1000 * MILLISECOND)), looks);
        }
    }
}
