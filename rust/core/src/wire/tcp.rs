//! TCP (RFC 9293): the fixed header. Options are never changed: they pass byte-equal. Of a SYN the window scale is
//! read.

use std::borrow::{Borrow, BorrowMut};

use super::{fields16, view};
use crate::base::SeqNumber;

view!(
    /// The fixed header. Options follow it, up to `header_len`.
    Header, 20
);

/// Offset of the checksum field.
pub const CHECKSUM_AT: usize = 16;

/// Control bits.
#[allow(missing_docs, reason = "the names of RFC 9293")]
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
    /// The six bits that must make sense together; ECE and CWR may be anything.
    pub const ALL_SIX: u8 = 0x3f;
}

fields16!(Header:
    /// Port it comes from.
    source_port set_source_port @ 0;
    /// Port it goes to.
    destination_port set_destination_port @ 2;
    /// Window.
    window set_window @ 14;
    /// Checksum.
    checksum set_checksum @ 16;
    /// Urgent pointer.
    urgent set_urgent @ 18;
);

impl<B: Borrow<[u8; LEN]>> Header<B> {
    /// Sequence number of the first byte.
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> SeqNumber {
        SeqNumber::new(super::get32::<LEN>(&self.0, 4))
    }

    /// Next sequence number expected from the other side.
    #[inline]
    #[must_use]
    pub fn acknowledgement(&self) -> SeqNumber {
        SeqNumber::new(super::get32::<LEN>(&self.0, 8))
    }

    /// Bytes of the header with its options, as claimed: 0 to 60.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.0.borrow()[12] >> 4) * 4
    }

    /// Control bits, all eight.
    #[inline]
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.0.borrow()[13]
    }
}

impl<B: BorrowMut<[u8; LEN]>> Header<B> {
    /// Write every byte of a header without options, data, window or checksum.
    pub fn set_own(
        &mut self,
        ports: (u16, u16),
        sequence: SeqNumber,
        acknowledgement: SeqNumber,
        flags: u8,
    ) {
        self.set_source_port(ports.0);
        self.set_destination_port(ports.1);
        super::set32::<LEN>(&mut self.0, 4, sequence.get());
        super::set32::<LEN>(&mut self.0, 8, acknowledgement.get());
        self.0.borrow_mut()[12] = 5 << 4;
        self.0.borrow_mut()[13] = flags;
        self.set_window(0);
        self.set_checksum(0);
        self.set_urgent(0);
    }
}

/// Whether the control bits are nonsense: SYN with FIN or RST, none at all, or FIN without ACK.
#[inline]
#[must_use]
pub const fn is_nonsense(flags: u8) -> bool {
    let six = flags & flag::ALL_SIX;
    let syn_with = six & flag::SYN != 0 && six & (flag::FIN | flag::RST) != 0;
    let fin_without_ack = six & flag::FIN != 0 && six & flag::ACK == 0;
    syn_with || six == 0 || fin_without_ack
}

/// The shift that a window scale option among these option bytes offers (RFC 7323 2.2), as it stands there. `None`:
/// there is none, or an option before it is malformed.
#[must_use]
pub fn window_scale(mut options: &[u8]) -> Option<u8> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const WINDOW_SCALE: u8 = 3;
    loop {
        let len = match *options {
            [] | [END, ..] => return None,
            [NO_OPERATION, ..] => 1,
            [WINDOW_SCALE, 3, shift, ..] => return Some(shift),
            [_, len, ..] if len >= 2 => usize::from(len),
            _ => return None,
        };
        options = options.get(len..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_scale_table() {
        let cases: [(&[u8], Option<u8>); 9] = [
            (&[], None),
            (&[3, 3, 7], Some(7)),
            (&[2, 4, 5, 0xb4, 1, 3, 3, 14], Some(14)),
            (&[0, 3, 3, 7], None),
            (&[3, 3], None),
            (&[3, 2, 7, 0], None),
            (&[8, 1, 3, 3, 7], None),
            (&[8, 10, 3, 3, 7], None),
            (&[1, 1, 3, 3, 255], Some(255)),
        ];
        for (options, expected) in cases {
            assert_eq!(window_scale(options), expected, "{options:?}");
        }
    }

    #[test]
    fn own_header_written_reads_back() {
        let mut bytes = [0xaau8; LEN];
        Header::new_mut(&mut bytes).unwrap().set_own(
            (1, 2),
            3.into(),
            4.into(),
            flag::RST | flag::ACK,
        );
        let header = Header::new(&bytes).unwrap();
        assert_eq!((header.source_port(), header.destination_port()), (1, 2));
        assert_eq!(
            (header.sequence(), header.acknowledgement()),
            (3.into(), 4.into())
        );
        assert_eq!(
            (
                header.header_len(),
                header.flags(),
                header.window(),
                header.checksum()
            ),
            (20, 0x14, 0, 0)
        );
    }

    /// Rule 7, L4 headers: each combination that no stack sends on purpose.
    #[test]
    fn flags_table() {
        for (flags, expected) in [
            (0x02, false),
            (0x12, false),
            (0x10, false),
            (0x11, false),
            (0x04, false),
            (0x14, false),
            (0x08, false),
            (0x15, false),
            (0x03, true),
            (0x13, true),
            (0x06, true),
            (0x00, true),
            (0xc0, true),
            (0x01, true),
            (0x29, true),
        ] {
            assert_eq!(is_nonsense(flags), expected, "{flags:#04x}");
        }
    }
}
