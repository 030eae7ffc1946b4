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

    /// Totals that are not 0, by name.
    pub fn carried(&self) -> impl Iterator<Item = (String, u128)> {
        let frames = [
            ("rx_packets", self.rx.0),
            ("rx_bytes", self.rx.1),
            ("tx_packets", self.tx.0),
            ("tx_bytes", self.tx.1),
        ];
        let events = EVENT_NAMES.into_iter().zip(self.events);
        let plain = frames.into_iter().chain(events);
        plain
            .map(|(name, count)| (name.to_owned(), count))
            .chain(self.verdicts_by_name())
            .filter(|&(_, count)| count > 0)
            .map(|(name, count)| (name, count.into()))
    }

    /// Go on from a total of the process before; a name that is not known is nothing to this version.
    pub fn carry(&mut self, name: &str, count: u128) {
        if let Some(total) = self.total_mut(name) {
            *total = count as u64;
        }
    }

    fn total_mut(&mut self, name: &str) -> Option<&mut u64> {
        match name {
            "rx_packets" => return Some(&mut self.rx.0),
            "rx_bytes" => return Some(&mut self.rx.1),
            "tx_packets" => return Some(&mut self.tx.0),
            "tx_bytes" => return Some(&mut self.tx.1),
            "forward" => return Some(&mut self.forward),
            "pass" => return Some(&mut self.pass),
            _ => {}
        }
        let Some((kind, reason)) = name.split_once('.') else {
            let event = EVENT_NAMES.iter().position(|&event| event == name)?;
            return Some(&mut self.events[event]);
        };
        let reason = Reason::ALL.iter().find(|each| each.name() == reason)?;
        let counts = match kind {
            "drop" => &mut self.drop,
            "reply" => &mut self.reply,
            "hold" => &mut self.hold,
            _ => return None,
        };
        Some(&mut counts[*reason as usize])
    }

    pub(super) fn verdicts_by_name(&self) -> BTreeMap<String, u64> {
        let plain = [("forward", self.forward), ("pass", self.pass)];
        let plain = plain.map(|(kind, count)| (kind.to_owned(), count));
        let kinds = [
            ("drop", &self.drop),
            ("reply", &self.reply),
            ("hold", &self.hold),
        ];
        // Most are 0: they need no name.
        let reasoned = kinds.into_iter().flat_map(|(kind, counts)| {
            let counts = Reason::ALL.iter().zip(counts);
            let counted = counts.filter(|&(_, &count)| count > 0);
            counted.map(move |(reason, &count)| (format!("{kind}.{}", reason.name()), count))
        });
        let plain = plain.into_iter().filter(|&(_, count)| count > 0);
        plain.chain(reasoned).collect()
    }
}
