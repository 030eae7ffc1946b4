//! The picker: a selector picks a server from the plan's slots; one that cannot take the flow is passed over.

use super::choice::{Choice, Eligibility, Tried};
use super::placement::placement_hash;
use crate::asking::{Asking, Step};
use crate::base::{Event, Ip, SplitMix64};
use crate::counters::Counters;
use crate::forwarding::{ForwardingState, PlanServers};
use crate::snapshot::{Answer, Plan, Protocol, Question, Selector};

/// Slots looked at in order before the plan's servers are gone through one by one, and servers that one placement
/// tries: both bound what a packet can cost.
const MOST_SLOTS: usize = 1024;
const MOST_TRIED: usize = 1024;

/// What a selector may look at and move on.
pub struct Picker<'a> {
    /// Services and servers.
    pub forwarding: &'a ForwardingState,
    /// Active flows, and the event of an ask that failed.
    pub counters: &'a mut Counters,
    /// Random draws.
    pub random: &'a mut SplitMix64,
    /// The service's own `counter`.
    pub rotation: &'a mut u64,
    /// What waits for an answer: see [`Asking::waits`].
    pub asking: &'a mut Asking,
    /// Room to note what was tried.
    pub tried: &'a mut Tried,
    /// Whether a server takes this flow.
    pub eligibility: &'a dyn Fn(u32) -> Eligibility,
    /// The service to place for.
    pub service: u32,
    /// The client's (address, port).
    pub client: (Ip, u16),
}

impl Picker<'_> {
    /// Pick a server that is in the snapshot and takes the flow; or the packet has to wait for an answer
    /// ([`Asking::take_wait`]). `named`: the plan's.
    pub fn select(&mut self, plan: &Plan, named: &PlanServers) -> Choice {
        self.tried.begin();
        if let Some(server) = self.pick(plan, named) {
            let dead = self.tried.dead;
            return Choice::Server { server, dead };
        }
        match self.tried.first {
            Some((server, reason)) => Choice::Refused(server, reason),
            None => Choice::NoServer,
        }
    }

    fn pick(&mut self, plan: &Plan, named: &PlanServers) -> Option<u32> {
        let slots = &plan.slots;
        let count = slots.len() as u64;
        if count == 0 {
            return None;
        }
        let at = |number: u64| (number % count) as usize;
        match plan.selector {
            Selector::Counter => {
                let slot = at(*self.rotation);
                let (server, passed) = self.starting_at(plan, named, slot);
                *self.rotation = self.rotation.wrapping_add(passed + 1);
                server
            }
            Selector::Random => {
                let slot = at(self.random.draw());
                self.starting_at(plan, named, slot).0
            }
            Selector::HashSource | Selector::HashFlow => {
                let hash =
                    placement_hash(self.forwarding, self.service, self.client, plan.selector)?;
                self.starting_at(plan, named, at(hash)).0
            }
            Selector::Least => self.least(),
            Selector::TwoChoices => {
                let first = at(self.random.draw());
                // Another slot, where there is one.
                let step = self.random.draw() % (count - 1).max(1) + 1;
                let second = at(first as u64 + step);
                let better = if self.is_cheaper(plan, second, first) {
                    second
                } else {
                    first
                };
                self.starting_at(plan, named, better).0
            }
            Selector::Ask => self.ask(plan, named),
        }
    }

    /// Whether a server takes the flow. It is noted if the service has it and it does not.
    #[inline]
    fn is_eligible(&mut self, server: u32) -> bool {
        if self.tried.has(server) || self.forwarding.candidate(self.service, server).is_none() {
            return false;
        }
        match (self.eligibility)(server) {
            Eligibility::Free => true,
            Eligibility::Dead(number) => {
                self.tried.dead = Some(number);
                true
            }
            Eligibility::Refused(reason) => {
                self.tried.add(server, reason);
                false
            }
        }
    }

    /// The first server that takes the flow, from a slot on, and how many slots were passed over before its own.
    #[inline]
    fn starting_at(&mut self, plan: &Plan, named: &PlanServers, slot: usize) -> (Option<u32>, u64) {
        let server = plan.slots[slot];
        let untried = self.untried(named);
        if self.is_eligible(server) {
            return (Some(server), 0);
        }
        self.pass_over(plan, named, slot, untried)
    }

    /// The slots after that one in order, going round; beyond `MOST_SLOTS`, the plan's servers in the order of
    /// their first slots.
    #[cold]
    fn pass_over(
        &mut self,
        plan: &Plan,
        named: &PlanServers,
        slot: usize,
        untried: usize,
    ) -> (Option<u32>, u64) {
        let most = MOST_TRIED.min(untried);
        let (before, from) = plan.slots.split_at(slot);
        let following = from.iter().chain(before).take(MOST_SLOTS).enumerate();
        let slots = following
            .skip(1)
            .map(|(passed, server)| (passed as u64, server));
        for (passed, &server) in slots.chain(named.servers.iter().map(|server| (0, server))) {
            if self.tried.count >= most {
                break;
            }
            if self.is_eligible(server) {
                return (Some(server), passed);
            }
        }
        (None, 0)
    }

    /// How many servers have been tried once all of the plan's have.
    fn untried(&self, named: &PlanServers) -> usize {
        if self.tried.count == 0 {
            return named.servers.len();
        }
        let untried = named
            .servers
            .iter()
            .filter(|&&server| !self.tried.has(server));
        self.tried.count + untried.count()
    }

    fn least(&mut self) -> Option<u32> {
        let mut chosen = None;
        while self.tried.count < MOST_TRIED {
            let Some(server) = self.counters.loads.best(self.service) else {
                break;
            };
            if self.is_eligible(server) {
                chosen = Some(server);
                break;
            }
            self.counters.loads.pass_over(server);
        }
        self.counters.loads.restore(self.service);
        if let Some(server) = chosen {
            self.counters.loads.take_round(server);
        }
        chosen
    }

    /// Whether one more flow costs less on a slot than on one that was drawn before it. Of two servers that seem
    /// idle none does where flows may never count, over UDP: as they are drawn they have them by weight.
    fn is_cheaper(&self, plan: &Plan, slot: usize, first: usize) -> bool {
        let active = |slot: usize| self.counters.active(plan.slots[slot]);
        let score = |slot: usize| plan.scores.get(slot).copied().unwrap_or(1);
        let cost = |slot: usize| (u128::from(active(slot)) + 1) * u128::from(score(slot));
        let is_idle = active(slot) + active(first) == 0;
        let service = self.forwarding.service(self.service);
        let is_udp = service.is_some_and(|service| service.protocol == Protocol::Udp);
        !(is_idle && is_udp) && cost(slot) < cost(first)
    }

    /// The server that is answered, else what the fall-back plan picks; where those do not take the flow, the slots
    /// in order.
    fn ask(&mut self, plan: &Plan, named: &PlanServers) -> Option<u32> {
        match self.answer(plan, named) {
            Some(server) if self.is_eligible(server) => return Some(server),
            Some(_) => {}
            None if self.asking.waits() => return None,
            None => self.counters.event(Event::AskFallback),
        }
        let fallback = plan.fallback.as_ref().zip(named.fallback.as_ref());
        if let Some(server) = fallback.and_then(|(plan, named)| self.pick(plan, named)) {
            return Some(server);
        }
        if self.tried.count == 0 {
            return None;
        }
        self.starting_at(plan, named, 0).0
    }

    fn answer(&mut self, plan: &Plan, named: &PlanServers) -> Option<u32> {
        let forwarding = self.forwarding;
        let ask = forwarding.snapshot.ask.as_ref()?;
        let service = forwarding.service(self.service)?;
        let candidates = named.candidates.as_ref()?;
        let flow = (self.service, self.client.0, self.client.1);
        let answer = match self.asking.step(flow, plan.deadline_ns) {
            Step::Wait => return None,
            Step::Answered(answer) => answer?,
            Step::Ask(ticket) => match ask(&Question {
                service: &service.name,
                client: self.client.0.into(),
                client_port: self.client.1,
                candidates: &candidates.names,
                deadline_ns: plan.deadline_ns,
                ticket,
            }) {
                Answer::Given(answer) => answer?,
                Answer::Later => {
                    self.asking
                        .wait_for(ticket.unwrap_or(0), flow, plan.deadline_ns);
                    return None;
                }
            },
        };
        candidates.servers.get(answer.as_str()).copied()
    }
}

#[cfg(test)]
mod tests;
