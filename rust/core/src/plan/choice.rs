//! What a placement comes to, and which servers it has tried.

use crate::base::Reason;

/// Whether a server takes a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// It has no conflict.
    Free,
    /// The conflict is with a flow that is over: this entry is to be removed.
    Dead(u32),
    /// Not this one.
    Refused(Reason),
}

/// What a placement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// No server is available.
    NoServer,
    /// This one. `dead`: the entry that is to be removed before.
    Server {
        /// Its id.
        server: u32,
        /// An entry's number.
        dead: Option<u32>,
    },
    /// None takes the flow: the first one that was tried, and why it does not.
    Refused(u32, Reason),
}

/// The servers that one placement has tried in vain. Kept from one to the next for its memory alone.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// By server id: the round in which it was tried last.
    rounds: Vec<u32>,
    round: u32,
    pub(super) count: usize,
    pub(super) first: Option<(u32, Reason)>,
    pub(super) dead: Option<u32>,
}

impl Tried {
    pub(super) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.rounds.fill(0);
            self.round = 1;
        }
        (self.count, self.first, self.dead) = (0, None, None);
    }

    pub(super) fn has(&self, server: u32) -> bool {
        self.count > 0 && self.rounds.get(server as usize) == Some(&self.round)
    }

    #[cold]
    pub(super) fn add(&mut self, server: u32, reason: Reason) {
        let at = server as usize;
        self.rounds.resize(self.rounds.len().max(at + 1), 0);
        self.rounds[at] = self.round;
        self.count += 1;
        self.first.get_or_insert((server, reason));
    }
}
