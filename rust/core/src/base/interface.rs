//! Ids of interfaces.

/// The id of an interface: its place among those of the snapshot, and of the loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct InterfaceId(u32);

impl InterfaceId {
    /// The interface at a place.
    #[inline(always)]
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The ids of the first `count` interfaces.
    pub fn first(count: usize) -> impl Iterator<Item = Self> {
        (0..count as u32).map(Self)
    }

    /// The number, for what is stored and told outside.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Its place in a list of all interfaces.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<u32> for InterfaceId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}
