//! Numbers by name: what one process tells the next, which may be of another version and know more or fewer.

use super::nanos::Nanos;

/// A number that goes by name from one process to the next.
pub trait Word: Copy {
    /// As a plain number.
    fn word(self) -> u128;
    /// From a plain number; of one that is too large, the low bits.
    fn of_word(word: u128) -> Self;
}

impl Word for u64 {
    fn word(self) -> u128 {
        self.into()
    }

    fn of_word(word: u128) -> Self {
        word as Self
    }
}

impl Word for Nanos {
    fn word(self) -> u128 {
        self.get().into()
    }

    fn of_word(word: u128) -> Self {
        Self::new(word as u64)
    }
}

/// Says by which names the fields of a struct go to the next process. It gets `carried`, which tells those that are not
/// 0, and `carry`, which sets one; a name that is not known is nothing to this version.
macro_rules! carried {
    ($type:ident { $($name:literal = $($field:ident).+),+ $(,)? }) => {
        impl $type {
            /// The numbers that the next process goes on from, by name; those that are 0 are left out.
            pub fn carried(&self) -> impl Iterator<Item = (&'static str, u128)> + use<> {
                let all = [$(($name, $crate::base::carried::Word::word(self.$($field).+))),+];
                all.into_iter().filter(|&(_, word)| word > 0)
            }

            /// Go on from a number of the process before.
            pub fn carry(&mut self, name: &str, word: u128) {
                match name {
                    $($name => self.$($field).+ = $crate::base::carried::Word::of_word(word),)+
                    _ => {}
                }
            }
        }
    };
}

pub(crate) use carried;
