//! Link-layer addresses: as bytes, and as one number.

/// A 48-bit link-layer address.
pub type Mac = [u8; 6];

/// A link-layer address in one piece, to be compared and stored by one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MacNumber(u64);

impl MacNumber {
    /// The 48 bits, the first byte lowest.
    const BITS: u64 = (1 << 48) - 1;

    /// From the low 48 bits.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::BITS)
    }

    /// In the low 48 bits.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether this is a multicast or broadcast address.
    #[inline(always)]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }
}

impl From<Mac> for MacNumber {
    #[inline(always)]
    fn from(mac: Mac) -> Self {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&mac);
        Self(u64::from_le_bytes(bytes))
    }
}

impl From<MacNumber> for Mac {
    fn from(number: MacNumber) -> Self {
        let mut mac = [0; 6];
        mac.copy_from_slice(&number.0.to_le_bytes()[..6]);
        mac
    }
}
