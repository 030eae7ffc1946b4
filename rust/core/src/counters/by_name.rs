//! From arrays to names: made only when they are asked for.

use std::collections::BTreeMap;

use super::Counters;
use super::report::CounterReport;
use crate::base::{EVENT_NAMES, Reason};
use crate::snapshot::Snapshot;

impl Counters {
    /// All counters by name, those of services and servers that a snapshot has.
    #[must_use]
    pub fn report(&self, snapshot: &Snapshot) -> CounterReport {
        let mut services: Vec<_> = (0..snapshot.services.len())
            .map(|id| {
                snapshot.services[id]
                    .as_ref()
                    .map(|_| self.services.get(id).copied().unwrap_or_default())
            })
            .collect();
        let servers: Vec<_> = (0..snapshot.servers.len())
            .map(|id| {
                snapshot.servers[id]
                    .as_ref()
                    .map(|_| self.servers.get(id).copied().unwrap_or_default())
            })
            .collect();
        for (server, traffic) in snapshot
            .servers
            .iter()
            .flatten()
            .zip(servers.iter().flatten())
        {
            if let Some(Some(service)) = services.get_mut(server.service as usize) {
                service.flows_active += traffic.flows_active;
            }
        }
        CounterReport {
            rx_packets: self.rx.0,
            rx_bytes: self.rx.1,
            tx_packets: self.tx.0,
            tx_bytes: self.tx.1,
            verdicts: self.verdicts_by_name(),
            events: EVENT_NAMES.into_iter().zip(self.events).collect(),
            services,
            servers,
            ..CounterReport::default()
        }
    }

    pub(super) fn verdicts_by_name(&self) -> BTreeMap<String, u64> {
        let plain = [
            ("forward".to_owned(), self.forward),
            ("pass".to_owned(), self.pass),
        ];
        let kinds = [
            ("drop", &self.drop),
            ("reply", &self.reply),
            ("hold", &self.hold),
        ];
        let reasoned = kinds.into_iter().flat_map(|(kind, counts)| {
            Reason::ALL
                .iter()
                .map(move |&reason| (format!("{kind}.{}", reason.name()), counts[reason as usize]))
        });
        plain
            .into_iter()
            .chain(reasoned)
            .filter(|&(_, count)| count > 0)
            .collect()
    }
}
