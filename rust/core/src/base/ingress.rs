//! Where a flow's client is, as its packets say.

use super::interface::InterfaceId;
use super::mac::MacNumber;

/// An interface's id that means "no ingress neighbour known".
const NO_INTERFACE: u64 = 0xffff;
const MAC_BITS: u32 = 48;

/// Where a packet came from: its source MAC, and the interface it came in by, whose id is no interface's where
/// nothing is known. One number, so that one comparison says whether two packets came the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressNeighbour(u64);

impl IngressNeighbour {
    /// Nothing known.
    pub const NONE: Self = Self(NO_INTERFACE << MAC_BITS);

    /// An interface, and no MAC yet.
    #[inline(always)]
    #[must_use]
    pub fn on(interface: InterfaceId) -> Self {
        Self(u64::from(interface.get()).min(NO_INTERFACE) << MAC_BITS)
    }

    /// The same interface, with a MAC where there was none.
    #[inline(always)]
    #[must_use]
    pub const fn with_mac(self, mac: MacNumber) -> Self {
        Self(self.0 | mac.bits())
    }

    /// What [`Self::bits`] gave.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The MAC in the low 48 bits, the interface in those above.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The interface's id.
    #[inline(always)]
    #[must_use]
    pub const fn interface(self) -> InterfaceId {
        InterfaceId::new((self.0 >> MAC_BITS) as u32)
    }

    /// The source MAC.
    #[inline(always)]
    #[must_use]
    pub const fn mac(self) -> MacNumber {
        MacNumber::from_bits(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingress_neighbour_gives_back_its_interface_and_mac() {
        let mac = MacNumber::from([2, 0, 0, 0, 0, 0x21]);
        let hop = IngressNeighbour::on(InterfaceId::new(7)).with_mac(mac);
        assert_eq!((hop.interface(), hop.mac()), (InterfaceId::new(7), mac));
        assert_eq!(IngressNeighbour::from_bits(hop.bits()), hop);
        assert_eq!(
            IngressNeighbour::on(InterfaceId::new(u32::MAX)),
            IngressNeighbour::NONE
        );
    }
}
