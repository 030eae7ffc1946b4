//! The servers of the selector `least`, in order of load (rule 8.19, selectors): kept up to date as flows come and
//! go, so that a placement and a change each cost the logarithm of their number.
//!
//! Two tournament trees over the servers of a plan: one by load, one by round.
//!
//! The trees of another snapshot are made beside those in use, some steps at a time, and are kept up to date with
//! them until they take their place: a plan of 10 000 servers is as many rows and twice as many matches, for which
//! no packet is to wait.

mod contest;
mod loads;
mod tournament;

pub use loads::{Loads, ROUND};
