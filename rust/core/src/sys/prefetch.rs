//! Fetching memory into the cache before it is needed, so that the misses of a batch of packets overlap.
#![allow(unsafe_code, reason = "prefetch is an intrinsic")]

/// Ask for the cache line that a value starts in. Does nothing on other processors than `x86_64`.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing into the program and cannot fault; the address is that of a live value
        // besides.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
