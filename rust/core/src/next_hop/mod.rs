//! Where a packet goes next (rule 11, next hop): routes by longest prefix, neighbours, and the packets that wait for
//! one.

mod local_interface;
mod routing;
mod waiting;

pub use local_interface::{LocalInterface, directed_broadcast};
pub use routing::{Hop, Routing};
pub use waiting::{Room, Waited, Waiting};
