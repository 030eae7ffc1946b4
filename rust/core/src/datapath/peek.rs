//! What would become of a client's next packet, for `lb explain`.

use std::net::IpAddr;

use super::engine::DataPath;
use super::flows::{FlowInfo, flow_info};
use crate::base::{Ip, Nanos};
use crate::flow::key::{Key, KeySide};
use crate::pipeline::is_living;
use crate::snapshot::{Plan, Selector};

impl DataPath {
    /// What there is to know before a packet of a client comes to a service: its flow, if it has a living one, and
    /// the service's next round. Changes nothing.
    #[must_use]
    pub fn peek(
        &self,
        service: u32,
        client: IpAddr,
        client_port: u16,
        now: Nanos,
    ) -> (Option<FlowInfo>, u64) {
        let table = &self.state.table;
        let key = Key {
            client: Ip::from(client),
            client_port,
            side: KeySide::Service(service),
        };
        let flow = table
            .find(&key)
            .filter(|&number| is_living(&self.forwarding, table.entry(number), now));
        let flow = flow.map(|number| flow_info(table, number, now));
        (flow, self.next_round(service))
    }

    /// The number of a service's next round; where it places by `least`, the first slot of the server that is next.
    fn next_round(&self, service: u32) -> u64 {
        let slots = self
            .forwarding
            .service(service)
            .and_then(|service| least_slots(&service.plan));
        let next = self.state.counters.loads.best(service);
        let slot = slots
            .zip(next)
            .and_then(|(slots, server)| slots.iter().position(|&slot| slot == server));
        let round = self.state.rotation.get(service as usize).copied();
        slot.map_or_else(|| round.unwrap_or(self.first_round), |slot| slot as u64)
    }
}

/// The slots of the plan that places by `least`: the plan itself, or the fall-back of one that asks.
fn least_slots(plan: &Plan) -> Option<&[u32]> {
    match plan.selector {
        Selector::Least => Some(&plan.slots),
        Selector::Ask => least_slots(plan.fallback.as_ref()?),
        _ => None,
    }
}
