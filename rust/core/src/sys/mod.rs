//! What the processor and the kernel are asked for, each behind a safe function: memory, vector instructions,
//! prefetching, system calls.
//!
//! With [`crate::io`], which shares memory with the kernel, the only place with `unsafe`.

pub mod bpf;
pub mod cells;
mod check;
pub mod lanes;
pub mod mapping;
pub mod memory;
pub mod prefetch;
pub mod process;
pub mod socket;
pub mod xdp;
