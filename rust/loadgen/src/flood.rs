//! Packets faster than a socket can send them: the kernel makes them itself, by a small program that it runs over
//! and over (`BPF_PROG_TEST_RUN` with live frames, Linux 5.18).
//!
//! For measurements only, as [`generator`](crate::generator), whose load it sends: a packet costs about a third of
//! one from a socket, so that the generator is not what limits a packet rate. The program is assembled here. The
//! kernel recycles the pages of frames, with what receivers wrote into them, so it writes the whole frame each
//! time. Needs `CAP_BPF`, `CAP_NET_ADMIN`, and at the other end of a veth NAPI (`ethtool -K DEV gro on`). Left out:
//! pace.

use std::os::fd::AsRawFd;
use std::time::Instant;

use flowlb_core::sys::bpf;

use crate::generator::{Generated, GeneratorError, Load, Template};

/// Frames of the first call, which tells how many the rest of the time is good for. Each call begins and ends with
/// waits of the kernel, tens of milliseconds together, in which nothing is sent: with calls of 32 768 frames that
/// was half of the time.
const FIRST_FRAMES: u32 = 1 << 14;
/// Frames of any call: some seconds' worth, after which the clock is looked at.
const MOST_FRAMES: u32 = 1 << 22;

const PORT_AT: u16 = 34;
const CHECKSUM_AT: u16 = 40;

// Instruction codes of the eBPF instruction set (RFC 9669), and helpers (linux/bpf.h).
const LOAD_WORD: u8 = 0x61;
const LOAD_IMMEDIATE_64: u8 = 0x18;
const STORE_64: u8 = 0x7b;
const STORE_16: u8 = 0x6b;
const STORE_IMMEDIATE_8: u8 = 0x72;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD: u8 = 0x0f;
const ADD_IMMEDIATE: u8 = 0x07;
const AND_IMMEDIATE: u8 = 0x57;
const XOR_IMMEDIATE: u8 = 0xa7;
const MODULO_IMMEDIATE: u8 = 0x97;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP_IF_GREATER: u8 = 0x2d;
const JUMP_IF_NOT_IMMEDIATE: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const RANDOM_U32: u32 = 7;
const REDIRECT: u32 = 23;

/// One instruction: code, destination and source register, offset, immediate.
const fn instruction(code: u8, to: u8, from: u8, offset: u16, immediate: u32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u64) << 16
        | (immediate as u64) << 32
}

/// Send out of an interface of the calling thread's network namespace, as fast as possible; the source port of each
/// frame is drawn at random. `load.rate` is not looked at.
///
/// # Errors
/// The template or the number of flows does not fit, the caller lacks the capabilities, or the kernel the feature.
pub fn flood(ifindex: u32, load: &Load<'_>) -> Result<Generated, GeneratorError> {
    let template = Template::new(load.template, load.flows)?;
    let program = bpf::load_xdp(&assemble(&template, ifindex))?;
    let start = Instant::now();
    let mut sent = 0u64;
    let mut next = FIRST_FRAMES;
    while sent < load.packets && start.elapsed() < load.duration {
        let count = u32::try_from(load.packets - sent).unwrap_or(next).min(next);
        let called = Instant::now();
        bpf::run_xdp_live(program.as_raw_fd(), load.template, count)?;
        sent += u64::from(count);
        let left = load.duration.saturating_sub(start.elapsed());
        let good_for = f64::from(count) * left.as_secs_f64() / called.elapsed().as_secs_f64();
        #[expect(
            clippy::cast_sign_loss,
            reason = "a quotient of positive numbers; what is too large becomes the largest"
        )]
        {
            next = (good_for as u32).clamp(FIRST_FRAMES, MOST_FRAMES);
        }
    }
    Ok(Generated {
        packets: sent,
        elapsed: start.elapsed(),
    })
}

/// The program: write the frame, draw a source port, finish the checksum, redirect.
fn assemble(template: &Template<'_>, ifindex: u32) -> Vec<u64> {
    let frame = template.frame;
    let mut program = vec![
        instruction(LOAD_WORD, 6, 1, 0, 0),
        instruction(LOAD_WORD, 7, 1, 4, 0),
        instruction(MOVE, 2, 6, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, frame.len() as u32),
        0,
    ];
    let bounds_check = program.len() - 1;
    write_frame(&mut program, frame);
    program.extend([
        instruction(CALL, 0, 0, 0, RANDOM_U32),
        instruction(MODULO_IMMEDIATE, 0, 0, 0, u32::from(template.flows)),
        instruction(ADD_IMMEDIATE, 0, 0, 0, u32::from(template.first_port)),
        instruction(MOVE, 3, 0, 0, 0),
        instruction(TO_BIG_ENDIAN, 3, 0, 0, 16),
        instruction(STORE_16, 6, 3, PORT_AT, 0),
        // RFC 1071: one carry at most comes of two 16-bit numbers.
        instruction(ADD_IMMEDIATE, 0, 0, 0, u32::from(template.sum_without_port)),
        instruction(MOVE, 4, 0, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE, 4, 0, 0, 16),
        instruction(AND_IMMEDIATE, 0, 0, 0, 0xffff),
        instruction(ADD, 0, 4, 0, 0),
        instruction(XOR_IMMEDIATE, 0, 0, 0, 0xffff),
        // RFC 768: 0 means "no checksum".
        instruction(JUMP_IF_NOT_IMMEDIATE, 0, 0, 1, 0),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, 0xffff),
        instruction(TO_BIG_ENDIAN, 0, 0, 0, 16),
        instruction(STORE_16, 6, 0, CHECKSUM_AT, 0),
        instruction(MOVE_IMMEDIATE, 1, 0, 0, ifindex),
        instruction(MOVE_IMMEDIATE, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, REDIRECT),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    let over = (program.len() - bounds_check - 1) as u16;
    program[bounds_check] = instruction(JUMP_IF_GREATER, 2, 7, over, 0);
    program.extend([
        instruction(MOVE_IMMEDIATE, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    program
}

/// Write the template over the frame at register 6.
fn write_frame(program: &mut Vec<u64>, frame: &[u8]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_check_jumps_to_the_last_two_instructions() {
        let mut frame = [0u8; 61];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[23] = 17;
        frame[38..40].copy_from_slice(&[0, 26]);
        let template = Template::new(&frame, 10).unwrap();
        let program = assemble(&template, 3);
        let over = (program[4] >> 16) as usize & 0xffff;
        assert_eq!(5 + over, program.len() - 2);
        // 5 before, 7 words of 3, 5 bytes, 20 after, 2 at the end.
        assert_eq!(program.len(), 5 + 21 + 5 + 20 + 2);
    }
}
