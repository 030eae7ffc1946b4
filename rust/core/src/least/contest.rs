//! The servers of a service in two orders: by load, and by whose round it is.

use super::tournament::{ByLoad, ByRound, Row, Tournament};

/// The servers of one service.
#[derive(Clone, Debug)]
pub(super) struct Contest {
    pub rows: Vec<Row>,
    pub by_load: Tournament<ByLoad>,
    pub by_round: Tournament<ByRound>,
    pub active: u64,
    pub passed_over: Vec<u32>,
}

impl Contest {
    pub fn new() -> Self {
        Self {
            rows: Vec::new(),
            by_load: Tournament::new(),
            by_round: Tournament::new(),
            active: 0,
            passed_over: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.rows.clear();
        self.by_load.clear();
        self.by_round.clear();
        self.active = 0;
        self.passed_over.clear();
    }

    pub fn push(&mut self, row: Row) {
        self.active += row.active;
        self.rows.push(row);
    }

    /// Play the matches, once all rows are there. Says whether all were played.
    pub fn play(&mut self, steps: &mut usize) -> bool {
        self.by_load.play(&self.rows, steps);
        self.by_round.play(&self.rows, steps);
        self.by_load.played_from.max(self.by_round.played_from) == 1
    }

    pub fn best(&self) -> Option<&Row> {
        if self.active < self.rows.len() as u64 {
            let next = self.by_round.best(&self.rows);
            if let Some(row) = next.filter(|row| row.active == 0 && !row.is_passed_over) {
                return Some(row);
            }
        }
        self.by_load
            .best(&self.rows)
            .filter(|row| !row.is_passed_over)
    }

    pub fn change(&mut self, position: u32, change: impl FnOnce(&mut Row)) {
        let row = &mut self.rows[position as usize];
        let before = row.active;
        change(row);
        self.active = self.active + row.active - before;
        self.by_load.update(&self.rows, position);
        self.by_round.update(&self.rows, position);
    }
}

/// The servers of all plans with `least`.
#[derive(Clone, Debug, Default)]
pub(super) struct Contests {
    /// By service id.
    pub of: Vec<Option<Contest>>,
    /// By server id: service and position there.
    pub seats: Vec<Option<(u32, u32)>>,
}

impl Contests {
    /// Empty, with room for these numbers of ids.
    pub fn make_room(&mut self, services: usize, servers: usize) {
        self.of.resize(services, None);
        self.seats.fill(None);
        self.seats.resize(servers, None);
    }

    pub fn seat_of(&mut self, server: u32) -> Option<(&mut Contest, u32)> {
        let (service, position) = self.seats.get(server as usize).copied().flatten()?;
        let contest = self.of.get_mut(service as usize)?.as_mut()?;
        Some((contest, position))
    }

    pub fn change(&mut self, server: u32, change: impl FnOnce(&mut Row)) {
        if let Some((contest, position)) = self.seat_of(server) {
            contest.change(position, change);
        }
    }

    pub fn round(&self, server: u32) -> Option<u128> {
        let (service, position) = self.seats.get(server as usize).copied().flatten()?;
        let contest = self.of.get(service as usize)?.as_ref()?;
        Some(contest.rows[position as usize].round)
    }
}
