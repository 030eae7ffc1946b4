//! Placing a new flow: a selector picks a server from the plan's slots (rule 8.19, selectors).

mod choice;
mod picker;
mod placement;

pub use choice::{Choice, Eligibility, Tried};
pub use picker::Picker;
pub use placement::hashed;
