//! A packet of a known flow: what it changes there, and on to the other end.

use std::ops::ControlFlow::Continue;

use super::keys::reply_key;
use super::lookup::FlowRef;
use super::state::PathState;
use super::walk::{Departure, DropErrors, Stage, Walk};
use crate::base::{Direction, Event, IngressNeighbour};
use crate::counters::Counters;
use crate::flow::measure::{self, Before, Observed};
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::flow::tcp;
use crate::flow::transition::Transition;
use crate::forwarding::ServerFacts;
use crate::packet::{Meta, Packet};
use crate::wire::segment::Segment;

impl Walk<'_> {
    #[inline(always)]
    pub(super) fn hit(
        &mut self,
        packet: &mut Packet,
        known: &FlowRef,
        direction: Direction,
    ) -> Stage<Departure> {
        let meta = packet.meta;
        let FlowRef {
            number,
            server,
            facts,
            ingress,
            ..
        } = *known;
        self.matched.server = Some(server);
        let any_replies = self.forwarding.any_replies;
        let moves = direction == Direction::Forward && meta.ingress != ingress && !any_replies;
        let may_move = moves && self.may_move_ingress(known, meta);
        let transition = match &meta.transport.segment {
            Some(segment) => self.follow_tcp((number, server), direction, segment)?,
            None => self.follow_udp(known, direction),
        };
        if may_move && transition.is_believed {
            let entry = self.state.table.entry(number);
            entry.set_ingress(meta.ingress);
        }
        self.count(number, direction, meta.ip.total_len() as u32, transition);
        self.translate(packet, direction, (server, facts), Some(ingress))
    }

    /// Let a segment of TCP change what it may, and measure it.
    #[inline(always)]
    fn follow_tcp(
        &mut self,
        (number, server): (u32, u32),
        direction: Direction,
        segment: &Segment,
    ) -> Stage<Transition> {
        let PathState {
            table, counters, ..
        } = &mut *self.state;
        let mut flow = table.flow(number);
        if !tcp::is_plain(&flow, segment) || self.forwarding.any_replies {
            return self.follow_tcp_in_full((number, server), direction, segment);
        }
        let before = Before::of_plain(&flow);
        if !tcp::follow_plain(&mut flow, direction, segment) {
            return Continue(Transition::unbelieved(FlowState::Established));
        }
        let active = counters.active(server);
        if let Some(measures) = counters.measures_mut(server) {
            let observed = Observed {
                direction,
                segment,
                active,
                now: self.now,
            };
            measure::follow_plain(measures, &mut flow, &before, observed);
        }
        Continue(Transition::believed(
            FlowState::Established,
            FlowState::Established,
        ))
    }

    /// The same for a segment that may change the flow's state.
    fn follow_tcp_in_full(
        &mut self,
        (number, server): (u32, u32),
        direction: Direction,
        segment: &Segment,
    ) -> Stage<Transition> {
        let PathState {
            table, counters, ..
        } = &mut *self.state;
        let mut flow = table.flow(number);
        let before = Before::of(&flow);
        let any_replies = self.forwarding.any_replies;
        let transition = if any_replies {
            tcp::follow_any(&mut flow, direction, segment)
        } else {
            tcp::follow(&mut flow, direction, segment).drop_errors()?
        };
        let was_over = transition.from == FlowState::Closing && transition.to == FlowState::Closing;
        if !transition.is_believed || was_over {
            return Continue(transition);
        }
        if transition.becomes_active() {
            counters.flow_active(server);
        }
        if transition.from.is_active() || transition.to.is_active() {
            let observed = Observed {
                direction,
                segment,
                active: counters.active(server),
                now: self.now,
            };
            if any_replies {
                measure_any(counters, server, (&mut flow, before), transition);
            } else {
                measure_in_full(counters, server, (&mut flow, before), observed, transition);
            }
        }
        if transition.closes() {
            counters.event(Event::FlowClosed);
        }
        if transition.becomes_inactive() {
            counters.flow_inactive(server);
        }
        Continue(transition)
    }

    /// What a datagram of a known flow changes. What only its server keeps up ends when the server leaves: its
    /// answers pass, and do not refresh it.
    #[inline(always)]
    fn follow_udp(&mut self, known: &FlowRef, direction: Direction) -> Transition {
        if direction == Direction::Forward {
            return Transition::believed(known.state, known.state);
        }
        if known.facts.moves_udp {
            return Transition::unbelieved(known.state);
        }
        let transition = Transition::believed(known.state, FlowState::Udp);
        if transition.becomes_active() {
            self.state.counters.flow_active(known.server);
        }
        transition
    }

    /// Count a packet on its flow, and refresh that if the packet does.
    #[inline(always)]
    fn count(&mut self, number: u32, direction: Direction, len: u32, transition: Transition) {
        let table = &mut self.state.table;
        let entry = table.entry(number);
        let carries = entry.count_bytes(direction, len);
        if transition.refreshes && !entry.refresh(transition.to, self.now) {
            let timeout_ns = self.forwarding.timeout_ns(transition.to);
            table.touch(number, transition.to, self.now, timeout_ns);
        }
        if carries {
            table.carry_bytes(number, direction);
        }
    }

    /// Whether a client's packet, which comes from another ingress neighbour than those before, may make it the
    /// flow's, if it is believed (rule 8.13, last hop): on the interface that they came to; on another one only if its
    /// numbers are exact, or if the client is routed to there. Nothing vouches for a datagram.
    #[cold]
    #[inline(never)]
    fn may_move_ingress(&mut self, known: &FlowRef, meta: &Meta) -> bool {
        let segment = meta.transport.segment;
        known.ingress.interface() == meta.interface
            || segment.is_some_and(|segment| {
                tcp::is_exact(&self.state.table.flow(known.number), &segment)
            })
            || self.leads_to_client(known, meta)
    }

    /// Whether a client may have come to another interface than the one that is known.
    fn leads_to_client(&self, known: &FlowRef, meta: &Meta) -> bool {
        let heard_before = self
            .forwarding
            .interface(known.ingress.interface())
            .is_some();
        !heard_before
            || self
                .forwarding
                .route(meta.ip.source)
                .is_some_and(|hop| hop.interface == meta.interface)
    }

    /// Count, then rewrite and send. `ingress`: where the client's packets came from, if that is known.
    #[inline(always)]
    pub(super) fn translate(
        &mut self,
        packet: &mut Packet,
        direction: Direction,
        (server, facts): (u32, &ServerFacts),
        ingress: Option<IngressNeighbour>,
    ) -> Stage<Departure> {
        let len = packet.meta.ip.total_len();
        let counters = &mut self.state.counters;
        counters.service_packet(facts.service, direction, len);
        counters.server_packet(server, direction, len);
        if packet.meta.ip.fragment.is_some() {
            self.matched.reply_key = Some(reply_key(packet.meta, direction, facts.endpoint));
        }
        self.send_translated(packet, direction, facts, ingress)
    }
}

/// Note what a segment does to what is measured of a server where its answers may take another way.
fn measure_any(
    counters: &mut Counters,
    server: u32,
    (flow, before): (&mut Flow<'_>, Before),
    transition: Transition,
) {
    if let Some(measures) = counters.measures_mut(server) {
        measure::follow_any(measures, flow, &before, transition);
    }
}

/// Measure a segment that may have changed the flow's state.
#[inline(always)]
fn measure_in_full(
    counters: &mut Counters,
    server: u32,
    (flow, mut before): (&mut Flow<'_>, Before),
    observed: Observed,
    transition: Transition,
) {
    let Some(measures) = counters.measures_mut(server) else {
        return;
    };
    if transition.restarts {
        measure::restart(measures, flow, &mut before);
    }
    measure::follow(measures, flow, &before, observed, transition);
}
