//! Programs of eBPF instructions, assembled here: what the generators that the kernel runs have in common.

use crate::generator::{Generated, GeneratorError};
use std::time::{Duration, Instant};

use flowlb_core::sys::bpf;
use std::os::fd::RawFd;

/// Frames of the first call, which tells how many the rest of the time is good for. Each call begins and ends with
/// waits of the kernel, tens of milliseconds together, in which nothing is sent: with calls of 32 768 frames that
/// was half of the time.
const FIRST_FRAMES: u32 = 1 << 14;

// Instruction codes of the eBPF instruction set (RFC 9669), and helpers (linux/bpf.h).
pub const LOAD_WORD: u8 = 0x61;
pub const LOAD_64: u8 = 0x79;
pub const LOAD_IMMEDIATE_64: u8 = 0x18;
pub const STORE_64: u8 = 0x7b;
pub const STORE_16: u8 = 0x6b;
pub const STORE_IMMEDIATE_8: u8 = 0x72;
pub const MOVE: u8 = 0xbf;
pub const MOVE_IMMEDIATE: u8 = 0xb7;
pub const ADD: u8 = 0x0f;
pub const ADD_IMMEDIATE: u8 = 0x07;
pub const AND_IMMEDIATE: u8 = 0x57;
pub const OR_IMMEDIATE: u8 = 0x47;
pub const XOR_IMMEDIATE: u8 = 0xa7;
pub const MODULO_IMMEDIATE: u8 = 0x97;
pub const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
pub const TO_BIG_ENDIAN: u8 = 0xdc;
pub const JUMP_IF_GREATER: u8 = 0x2d;
pub const JUMP_IF_NOT_LESS: u8 = 0x3d;
pub const JUMP_IF_NOT_IMMEDIATE: u8 = 0x55;
pub const CALL: u8 = 0x85;
pub const EXIT: u8 = 0x95;
pub const TIME_NS: u32 = 5;
pub const RANDOM_U32: u32 = 7;
pub const REDIRECT: u32 = 23;
/// The source register of a 64-bit immediate that is the address of a map's first value.
pub const MAP_VALUE: u8 = 2;
/// The answer to an XDP frame that is not sent.
const XDP_DROP: u32 = 1;

/// One instruction: code, destination and source register, offset, immediate.
pub const fn instruction(code: u8, to: u8, from: u8, offset: u16, immediate: u32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u64) << 16
        | (immediate as u64) << 32
}

/// Begin: the frame is at register 6 from now on, its end at register 7.
pub fn find_frame(program: &mut Vec<u64>) {
    program.extend([
        instruction(LOAD_WORD, 6, 1, 0, 0),
        instruction(LOAD_WORD, 7, 1, 4, 0),
    ]);
}

/// Leave room for the jump of a frame that is not sent; returns where.
pub fn reserve_jump(program: &mut Vec<u64>) -> usize {
    program.push(0);
    program.len() - 1
}

/// Check that a frame of this length is there; returns the jump of one that is not.
pub fn check_length(program: &mut Vec<u64>, len: usize) -> usize {
    program.extend([
        instruction(MOVE, 2, 6, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, len as u32),
    ]);
    reserve_jump(program)
}

/// Write a template over the frame at register 6.
pub fn write_frame(program: &mut Vec<u64>, frame: &[u8]) {
    let mut at = 0;
    let mut words = frame.chunks_exact(8);
    for word in &mut words {
        let half = |from: usize| {
            u32::from_ne_bytes([word[from], word[from + 1], word[from + 2], word[from + 3]])
        };
        let (low, high) = if cfg!(target_endian = "little") {
            (half(0), half(4))
        } else {
            (half(4), half(0))
        };
        program.extend([
            instruction(LOAD_IMMEDIATE_64, 2, 0, 0, low),
            instruction(0, 0, 0, 0, high),
            instruction(STORE_64, 6, 2, at, 0),
        ]);
        at += 8;
    }
    for &byte in words.remainder() {
        program.push(instruction(STORE_IMMEDIATE_8, 6, 0, at, u32::from(byte)));
        at += 1;
    }
}

/// End: redirect the frame to an interface. What jumps to `skip` is dropped: (place, registers to compare).
pub fn send(program: &mut Vec<u64>, ifindex: u32, skip: &[(usize, u8, u8)]) {
    program.extend([
        instruction(MOVE_IMMEDIATE, 1, 0, 0, ifindex),
        instruction(MOVE_IMMEDIATE, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, REDIRECT),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    for &(place, greater, than) in skip {
        let over = (program.len() - place - 1) as u16;
        program[place] = instruction(JUMP_IF_GREATER, greater, than, over, 0);
    }
    program.extend([
        instruction(MOVE_IMMEDIATE, 0, 0, 0, XDP_DROP),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
}

/// Have a program run on frames again and again, for a time, in calls of at most `most` frames that take `longest`
/// if they take what those of the last call did.
///
/// # Errors
/// As [`bpf::run_xdp_live`].
pub fn run(
    program: RawFd,
    template: &[u8],
    (packets, duration): (u64, Duration),
    (most, longest): (u32, Duration),
) -> Result<Generated, GeneratorError> {
    let start = Instant::now();
    let mut sent = 0u64;
    let mut next = FIRST_FRAMES;
    while sent < packets && start.elapsed() < duration {
        let count = u32::try_from(packets - sent).unwrap_or(next).min(next);
        let called = Instant::now();
        bpf::run_xdp_live(program, template, count)?;
        sent += u64::from(count);
        let left = duration.saturating_sub(start.elapsed()).min(longest);
        let good_for = f64::from(count) * left.as_secs_f64() / called.elapsed().as_secs_f64();
        #[expect(
            clippy::cast_sign_loss,
            reason = "a quotient of positive numbers; what is too large becomes the largest"
        )]
        {
            next = (good_for as u32).clamp(FIRST_FRAMES, most);
        }
    }
    Ok(Generated {
        packets: sent,
        elapsed: start.elapsed(),
    })
}
