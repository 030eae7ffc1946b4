//! UDP (RFC 768). A checksum of 0 means none: a computed 0 is sent as 0xFFFF, and a 0 that came stays 0 (IPv4; IPv6
//! forbids it).

use super::{fields16, view};

view!(
    /// The whole header.
    Header, 8
);

/// Offset of the checksum field.
pub const CHECKSUM_AT: usize = 6;

fields16!(Header:
    /// Port it comes from.
    source_port set_source_port @ 0;
    /// Port it goes to.
    destination_port set_destination_port @ 2;
    /// Bytes of header and data.
    length set_length @ 4;
    /// Checksum, 0 for none.
    checksum set_checksum @ 6;
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_written_reads_back() {
        let mut bytes = [0u8; LEN];
        let mut header = Header::new_mut(&mut bytes).unwrap();
        header.set_source_port(1);
        header.set_destination_port(2);
        header.set_length(3);
        header.set_checksum(4);
        let header = Header::new(&bytes).unwrap();
        assert_eq!(
            (
                header.source_port(),
                header.destination_port(),
                header.length(),
                header.checksum()
            ),
            (1, 2, 3, 4)
        );
        assert!(Header::new(&bytes[1..]).is_none());
    }
}
