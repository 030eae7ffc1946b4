//! From a frame to what its headers say, one layer at a time: rule 3, Ethernet and VLAN; rule 5, IP headers; rule 6.5,
//! tiny fragments; rule 7, L4 headers, as far as they need neither snapshot nor state.
//!
//! Each function reads one layer and gives the reason when it is malformed. The pipeline calls them with its own
//! tests in between; [`parse`] calls them in a row, for benches and for teaching. They write what they find where
//! it stays, and are inlined: a returned struct would be copied by its caller right after it was written, with
//! loads of other widths than the stores before them, and wait for these. Everything found here fits the frame:
//! later stages follow offsets without checking them again, except where the frame itself says otherwise.

mod headers;
mod inner;
mod ip;
mod l2;
mod transport;

pub use headers::{Headers, parse};
pub use inner::{InnerPacket, inner_destination, inner_packet};
pub use ip::{Fragment, IpHeader, inner_headers, ip, plain_ipv4, tiny_fragment};
pub use l2::{L2Header, l2};
pub use transport::{Transport, transport};
