//! The TCP or UDP header: rule 7, L4 headers.

use super::ip::IpHeader;
use crate::base::Reason;
use crate::wire::segment::{MOST_SCALE, NO_SCALE, Segment};
use crate::wire::{protocol, tcp, udp};

/// A TCP or UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Port it comes from.
    pub source_port: u16,
    /// Port it goes to.
    pub destination_port: u16,
    /// Offset of the data.
    pub payload: usize,
    /// What the TCP state machine reads; `None` for UDP.
    pub segment: Option<Segment>,
}

impl Transport {
    /// Nothing read yet.
    pub const EMPTY: Self = Self {
        source_port: 0,
        destination_port: 0,
        payload: 0,
        segment: None,
    };
}

/// Read the TCP or UDP header of a whole packet or a first fragment (rule 7, L4 headers) into `transport`. `false` for
/// other protocols and later fragments. `partial`: the checksum is still to be finished.
///
/// # Errors
/// `L4Truncated`, `TcpDataOffset`, `TcpFlags`, `UdpLength`, `UdpChecksumZero`, `PortZero`.
#[inline(always)]
pub fn transport(
    frame: &[u8],
    ip: &IpHeader,
    partial: bool,
    transport: &mut Transport,
) -> Result<bool, Reason> {
    if ip.is_later_fragment() {
        return Ok(false);
    }
    // The headers before it were found to fit.
    let Some(bytes) = frame.get(ip.l4..ip.end) else {
        return Ok(false);
    };
    match ip.protocol {
        protocol::TCP => transport_tcp(bytes, ip, transport)?,
        protocol::UDP => transport_udp(bytes, ip, partial, transport)?,
        _ => return Ok(false),
    }
    if transport.source_port == 0 || transport.destination_port == 0 {
        return Err(Reason::PortZero);
    }
    Ok(true)
}

#[inline(always)]
fn transport_tcp(bytes: &[u8], ip: &IpHeader, transport: &mut Transport) -> Result<(), Reason> {
    let header = tcp::Header::new(bytes).ok_or(Reason::L4Truncated)?;
    let header_len = header.header_len();
    if header_len < tcp::LEN || header_len > bytes.len() {
        return Err(Reason::TcpDataOffset);
    }
    let flags = header.flags();
    if tcp::is_nonsense(flags) {
        return Err(Reason::TcpFlags);
    }
    let payload_len = bytes.len() - header_len;
    let scale = if flags & tcp::flag::SYN == 0 {
        NO_SCALE
    } else {
        tcp::window_scale(&bytes[tcp::LEN..header_len])
            .map_or(NO_SCALE, |shift| shift.min(MOST_SCALE))
    };
    *transport = Transport {
        source_port: header.source_port(),
        destination_port: header.destination_port(),
        payload: ip.l4 + header_len,
        segment: Some(
            Segment::new(
                header.sequence(),
                header.acknowledgement(),
                flags,
                payload_len,
            )
            .with_window(header.window(), scale),
        ),
    };
    Ok(())
}

#[inline(always)]
fn transport_udp(
    bytes: &[u8],
    ip: &IpHeader,
    partial: bool,
    transport: &mut Transport,
) -> Result<(), Reason> {
    let header = udp::Header::new(bytes).ok_or(Reason::L4Truncated)?;
    let length = usize::from(header.length());
    if length < udp::LEN || (ip.fragment.is_none() && length > bytes.len()) {
        return Err(Reason::UdpLength);
    }
    if !ip.v4 && !partial && header.checksum() == 0 {
        return Err(Reason::UdpChecksumZero);
    }
    *transport = Transport {
        source_port: header.source_port(),
        destination_port: header.destination_port(),
        payload: ip.l4 + udp::LEN,
        segment: None,
    };
    Ok(())
}
