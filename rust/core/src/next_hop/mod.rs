//! Where a packet goes next (rule 11, next hop): routes by longest prefix, neighbours, and the packets that wait for
//! one.

mod interface;
mod routing;
mod waiting;

pub use interface::{Interface, directed_broadcast};
pub use routing::{Hop, Routing};
pub use waiting::{Room, Waited, Waiting};
