//! A tournament tree over the servers of a plan: a leaf is a server, an inner node the better one of its two
//! children, so the root is the best of all, and a change plays only the matches on the way from its leaf to the
//! root.

use std::marker::PhantomData;

/// The leaf of no server.
const NONE: u32 = u32::MAX;

/// A server of the plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub server: u32,
    pub weight: u64,
    pub active: u64,
    pub round: u128,
    /// It was looked at in this placement and does not take the flow.
    pub is_passed_over: bool,
}

/// An order of servers. A type, not a function: a publication plays all matches anew, and they are short.
pub(super) trait Order {
    /// Whether one server comes before another.
    fn precedes(one: &Row, other: &Row) -> bool;
}

/// (active + 1) / weight, compared without dividing; equal ones take rounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByLoad;

impl Order for ByLoad {
    #[inline(always)]
    fn precedes(one: &Row, other: &Row) -> bool {
        if one.is_passed_over != other.is_passed_over {
            return other.is_passed_over;
        }
        // Both fit: a table has fewer than 2^32 flows, a weight 32 bits.
        let ours = (one.active + 1) * other.weight;
        let theirs = (other.active + 1) * one.weight;
        ours < theirs || ours == theirs && one.round < other.round
    }
}

/// Those without a flow first, in order of their round.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByRound;

impl Order for ByRound {
    #[inline(always)]
    fn precedes(one: &Row, other: &Row) -> bool {
        let key = |row: &Row| u8::from(row.is_passed_over) << 1 | u8::from(row.active > 0);
        let (ours, theirs) = (key(one), key(other));
        ours < theirs || ours == theirs && one.round < other.round
    }
}

/// `nodes[1]` is the root, the children of node i are 2i and 2i + 1, the leaves are the second half.
#[derive(Clone, Debug)]
pub(super) struct Tournament<O> {
    pub nodes: Vec<u32>,
    /// The inner nodes from here on were played: 1 when all were, and `usize::MAX` before there are leaves.
    pub played_from: usize,
    order: PhantomData<O>,
}

impl<O: Order> Tournament<O> {
    pub const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            played_from: usize::MAX,
            order: PhantomData,
        }
    }

    /// Forget all. The memory stays: fresh pages would cost packets more time than the matches.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.played_from = usize::MAX;
    }

    /// Go on until all matches were played, or no steps are left.
    pub fn play(&mut self, rows: &[Row], steps: &mut usize) {
        if self.played_from == usize::MAX && *steps > 0 {
            self.lay_out(rows.len());
            *steps = 0;
        }
        while self.played_from > 1 && *steps > 0 {
            self.played_from -= 1;
            self.nodes[self.played_from] = self.better(rows, self.played_from);
            *steps -= 1;
        }
    }

    pub fn lay_out(&mut self, rows: usize) {
        let leaves = rows.next_power_of_two();
        self.nodes.resize(leaves, NONE);
        self.nodes.extend(0..rows as u32);
        self.nodes.resize(2 * leaves, NONE);
        self.played_from = leaves;
    }

    /// The better of a node's children; the left one of equals: it comes first in the plan.
    #[inline]
    pub fn better(&self, rows: &[Row], node: usize) -> u32 {
        let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
        if right != NONE && O::precedes(&rows[right as usize], &rows[left as usize]) {
            right
        } else {
            left
        }
    }

    /// Play anew what the server at a position takes part in, of the matches that were played.
    pub fn update(&mut self, rows: &[Row], position: u32) {
        let leaf = self.nodes.len() / 2 + position as usize;
        let mut node = leaf / 2;
        while node >= self.played_from {
            let better = self.better(rows, node);
            if better == self.nodes[node] && better != position {
                // It loses here as before: nothing above has it.
                return;
            }
            self.nodes[node] = better;
            node /= 2;
        }
    }

    pub fn best<'a>(&self, rows: &'a [Row]) -> Option<&'a Row> {
        rows.get(self.nodes[1] as usize)
    }
}
