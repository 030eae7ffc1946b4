//! Flows: who talks to which server, and how far they have come.
//!
//! [`key`] names one direction of a flow, [`hash`] mixes it, [`table`] finds its entry, which holds what is known of
//! each [`side`]; [`tcp`] moves it from state to state, [`exports`] keeps how flows ended. No clock is read here: the
//! time is an argument.
//! Which server a new flow gets is decided in [`crate::plan`].

pub mod exports;
pub mod hash;
pub mod key;
pub mod measure;
pub mod new_flows;
pub mod shed;
pub mod side;
pub mod state;
pub mod table;
pub mod tcp;
pub mod transition;
