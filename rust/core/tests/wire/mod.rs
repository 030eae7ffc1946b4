//! Frames for the tests of flows: an Ethernet header, IPv4, and TCP or UDP.

// Each test takes what it needs.
#![allow(dead_code)]

use flowlb_core::wire::checksum;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// An address and a port.
pub type Socket = ([u8; 4], u16);

/// A segment of TCP, or a datagram: without flags.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub interface: u32,
    pub macs: ([u8; 6], [u8; 6]),
    pub from: Socket,
    pub to: Socket,
    /// Control bits; 0: UDP.
    pub flags: u8,
    /// Sequence number, acknowledgement.
    pub numbers: (u32, u32),
    pub window: u16,
    /// Window scale option.
    pub scale: Option<u8>,
    pub len: usize,
}

impl Wire {
    /// The whole frame; the L4 checksum is 0.
    pub fn frame(&self) -> Vec<u8> {
        let l4 = if self.flags == 0 {
            self.udp()
        } else {
            self.tcp()
        };
        let protocol = if self.flags == 0 { 17 } else { 6 };
        let mut ip = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0].to_vec();
        let total = (20 + l4.len()) as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip.extend_from_slice(&self.from.0);
        ip.extend_from_slice(&self.to.0);
        let sum = checksum::checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&self.macs.1[..], &self.macs.0, &[8, 0], &ip, &l4].concat()
    }

    fn tcp(&self) -> Vec<u8> {
        let mut header = [self.from.1.to_be_bytes(), self.to.1.to_be_bytes()].concat();
        header.extend_from_slice(&self.numbers.0.to_be_bytes());
        header.extend_from_slice(&self.numbers.1.to_be_bytes());
        let option = self.scale.map_or(vec![], |scale| vec![1, 3, 3, scale]);
        let header_len = 20 + option.len();
        header.extend_from_slice(&[(header_len as u8 / 4) << 4, self.flags]);
        header.extend_from_slice(&self.window.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&option);
        header.resize(header_len + self.len, 0);
        header
    }

    fn udp(&self) -> Vec<u8> {
        let len = (8 + self.len) as u16;
        let mut header = [self.from.1, self.to.1, len, 0]
            .map(u16::to_be_bytes)
            .concat();
        header.resize(usize::from(len), 0);
        header
    }
}
