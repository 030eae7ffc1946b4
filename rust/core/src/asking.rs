//! First packets of flows that a user's policy is being asked about (rule 8.21, asking a policy): they wait as they
//! came in, and packets of others pass.
//!
//! Only while packets come from sockets: offline the answer is there when the question returns. What is asked has a
//! deadline; without an answer by then the plan's fall-back decides. Pure: time is an argument.

use std::collections::VecDeque;

use crate::base::{InterfaceId, Ip, Nanos, Offload};

/// Packets that may wait for an answer, all flows together. The flow of one more is placed by the fall-back.
const MOST: usize = 64;

/// A flow that is to be placed: its service's id, the client's address and port.
pub type AskedFlow = (u32, Ip, u16);

/// A packet that waits, as it came in.
pub struct AskedPacket {
    ticket: u64,
    flow: AskedFlow,
    due: Nanos,
    /// Whether the answer has come; and what it was, if that was usable text.
    is_answered: bool,
    answer: Option<String>,
    /// The whole frame.
    pub frame: Vec<u8>,
    /// Interface id.
    pub interface: InterfaceId,
    /// What its sender left to the network card.
    pub offload: Offload,
}

/// What is to be done about a flow.
pub enum Step {
    /// Ask. With the number that tells the answer, if the packet may wait for it.
    Ask(Option<u64>),
    /// It was asked, and this is the answer.
    Answered(Option<String>),
    /// Nothing: the packet waits with others of its flow.
    Wait,
}

/// What a packet waits for.
#[derive(Clone, Copy)]
pub struct Wait {
    ticket: u64,
    flow: AskedFlow,
    deadline_ns: u64,
}

/// All that waits.
#[derive(Default)]
pub struct Asking {
    held: VecDeque<AskedPacket>,
    tickets: u64,
    /// The answer for the packet that is being placed.
    answered: Option<(AskedFlow, Option<String>)>,
    may_wait: bool,
    wait: Option<Wait>,
}

impl Asking {
    /// Begin with a packet that looks for a server, and say whether it may wait for an answer.
    pub fn begin(&mut self, may_wait: bool) {
        self.may_wait = may_wait;
        self.wait = None;
    }

    /// What the packet is to wait for, if the selection said so.
    pub fn take_wait(&mut self) -> Option<Wait> {
        self.wait.take()
    }

    /// Whether the selection left the packet waiting.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.wait.is_some()
    }

    /// What to do about a flow.
    pub fn step(&mut self, flow: AskedFlow, deadline_ns: u64) -> Step {
        if let Some((_, answer)) = self.answered.take_if(|(asked, _)| *asked == flow) {
            return Step::Answered(answer);
        }
        if !self.may_wait {
            return Step::Ask(None);
        }
        if self.held.len() >= MOST {
            return Step::Answered(None);
        }
        if let Some(first) = self.held.iter().find(|packet| packet.flow == flow) {
            let ticket = first.ticket;
            self.wait_for(ticket, flow, deadline_ns);
            return Step::Wait;
        }
        self.tickets += 1;
        Step::Ask(Some(self.tickets))
    }

    /// Have the packet wait for the answer with this number.
    pub fn wait_for(&mut self, ticket: u64, flow: AskedFlow, deadline_ns: u64) {
        self.wait = Some(Wait {
            ticket,
            flow,
            deadline_ns,
        });
    }

    /// Keep a packet until the answer comes, or its deadline; of those of one flow, the first one's counts.
    pub fn hold(
        &mut self,
        wait: Wait,
        frame: &[u8],
        interface: InterfaceId,
        offload: Offload,
        now: Nanos,
    ) {
        let first = self.held.iter().find(|packet| packet.ticket == wait.ticket);
        let due = first.map_or(now.plus(wait.deadline_ns), |packet| packet.due);
        self.held.push_back(AskedPacket {
            ticket: wait.ticket,
            flow: wait.flow,
            due,
            is_answered: false,
            answer: None,
            frame: frame.to_vec(),
            interface,
            offload,
        });
    }

    /// Let the packets that wait for this answer go on.
    pub fn answer(&mut self, ticket: u64, answer: Option<&str>) {
        for packet in self
            .held
            .iter_mut()
            .filter(|packet| packet.ticket == ticket)
        {
            packet.is_answered = true;
            packet.answer = answer.map(str::to_owned);
        }
    }

    /// When the next deadline is; `None`: nothing waits. `ZERO`: something may go on already.
    #[must_use]
    pub fn due(&self) -> Option<Nanos> {
        let due = |packet: &AskedPacket| {
            if packet.is_answered {
                Nanos::ZERO
            } else {
                packet.due
            }
        };
        self.held.iter().map(due).min()
    }

    /// Take out the oldest packet that may go on, answered or too late: the next step of its flow has the answer.
    pub fn next(&mut self, now: Nanos) -> Option<AskedPacket> {
        let is_due = |packet: &AskedPacket| packet.is_answered || now.is_past(packet.due);
        let at = self.held.iter().position(is_due)?;
        let mut packet = self.held.remove(at)?;
        self.answered = Some((packet.flow, packet.answer.take()));
        Some(packet)
    }

    /// Forget the answer of the packet that went on: its flow was there already.
    pub fn finish(&mut self) {
        self.answered = None;
    }

    /// Whether the packet that is being placed has waited.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.answered.is_some()
    }

    /// Packets that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
