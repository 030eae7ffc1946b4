//! Memory that another walker may read and change meanwhile, such as the kernel's program: numbers that are read and
//! written whole, in no order with others ("relaxed"), for the same instructions as plain ones.
//!
//! A struct of such numbers that fills a cache line can be laid over one. Threads of ours take turns: a line is not
//! `Sync`.
#![allow(unsafe_code, reason = "a line is looked at as a struct")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::lanes::LANES;

/// A cache line's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line([u64; 8]);

/// A cache line that others may change meanwhile.
#[repr(C, align(64))]
pub struct SharedLine(UnsafeCell<Line>);

/// What a shared line can be looked at as.
///
/// # Safety
/// Made of [`Cell32`], [`Cell64`] and [`Index`] alone, without padding.
pub unsafe trait Cells: Sized {}

impl SharedLine {
    /// Look at it as a struct of its size.
    #[inline(always)]
    pub fn view<T: Cells>(&self) -> &T {
        const {
            assert!(size_of::<T>() == size_of::<Line>() && align_of::<T>() <= align_of::<Line>());
        }
        // SAFETY: size and alignment fit, every bit pattern is a value of cells, and they may change by any reference.
        unsafe { &*self.0.get().cast() }
    }

    /// Its value, eight bytes at a time.
    #[must_use]
    pub fn load(&self) -> Line {
        Line(self.view::<[Cell64; 8]>().each_ref().map(Cell64::get))
    }

    /// Give it another value, likewise.
    pub fn store(&self, value: Line) {
        for (cell, word) in self.view::<[Cell64; 8]>().iter().zip(value.0) {
            cell.set(word);
        }
    }
}

macro_rules! cell {
    ($(#[$about:meta])* $name:ident, $atomic:ident, $number:ident) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub struct $name($atomic);

        impl $name {
            /// One that is shared with nobody yet.
            #[must_use]
            pub const fn new(value: $number) -> Self {
                Self($atomic::new(value))
            }

            /// What it holds.
            #[inline(always)]
            #[must_use]
            pub fn get(&self) -> $number {
                self.0.load(Ordering::Relaxed)
            }

            /// Have it hold something else.
            #[inline(always)]
            pub fn set(&self, value: $number) {
                self.0.store(value, Ordering::Relaxed);
            }
        }

        // SAFETY: it is an atomic number.
        unsafe impl Cells for $name {}
    };
}

cell!(
    /// A number of 32 bits.
    Cell32, AtomicU32, u32
);
cell!(
    /// A number of 64 bits.
    Cell64, AtomicU64, u64
);

// SAFETY: cells side by side have no padding.
unsafe impl<T: Cells, const N: usize> Cells for [T; N] {}

/// Numbers that only the memory's owner writes, and others read: so they are read by vector instructions.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Index([Cell32; LANES]);

// SAFETY: cells side by side have no padding.
unsafe impl Cells for Index {}

impl Index {
    /// All of them.
    #[inline(always)]
    #[must_use]
    pub fn all(&self) -> [u32; LANES] {
        // SAFETY: a cell is laid out as its number. Nobody else writes here, and no other thread has the line.
        unsafe { *std::ptr::from_ref(&self.0).cast() }
    }

    /// One of them. `None`: there is no such lane.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, lane: usize) -> Option<u32> {
        self.0.get(lane).map(Cell32::get)
    }

    /// Change one.
    #[inline(always)]
    pub fn set(&self, lane: usize, value: u32) {
        self.0[lane].set(value);
    }
}

/// Define a struct of cells, in the order given, which can be laid over shared memory.
macro_rules! cells {
    ($(#[$about:meta])* $seen:vis struct $name:ident {
        $($(#[$more:meta])* $access:vis $field:ident: $kind:ty,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        #[repr(C)]
        $seen struct $name { $($(#[$more])* $access $field: $kind,)* }

        const _: () = {
            const fn are_cells<T: $crate::sys::cells::Cells>() -> usize {
                size_of::<T>()
            }
            let mut bytes = 0;
            $($(#[$more])* { bytes += are_cells::<$kind>(); })*
            assert!(bytes == size_of::<$name>(), "it has padding");
        };

        // SAFETY: each field is made of cells, and there is no padding between them: both asserted above.
        #[allow(unsafe_code, reason = "what it promises is asserted")]
        unsafe impl $crate::sys::cells::Cells for $name {}
    };
}
pub(crate) use cells;

#[cfg(test)]
mod tests {
    use super::*;

    cells! {
        struct Halves {
            wide: [Cell64; 4],
            narrow: Index,
        }
    }

    #[test]
    fn view_of_a_line_reads_and_writes_its_bytes() {
        let line = SharedLine(UnsafeCell::new(bytemuck::Zeroable::zeroed()));
        line.view::<Halves>().wide[1].set(7);
        line.view::<Halves>().narrow.set(7, 9);
        let words = line.view::<[Cell32; 16]>();
        let found: Vec<u32> = words.iter().map(Cell32::get).collect();
        let low = usize::from(cfg!(target_endian = "big"));
        assert_eq!((found[2 + low], found[15]), (7, 9));
        assert_eq!(found.iter().filter(|&&word| word != 0).count(), 2);
        assert_eq!(line.view::<Halves>().narrow.all()[7], 9);
    }
}
