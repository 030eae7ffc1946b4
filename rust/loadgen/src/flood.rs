//! Packets faster than a socket can send them: the kernel makes them itself, by a small program that it runs over
//! and over (`BPF_PROG_TEST_RUN` with live frames, Linux 5.18).
//!
//! For measurements only, as [`generator`](crate::generator), whose load it sends: a packet costs about a third of
//! one from a socket, so that the generator is not what limits a packet rate. The program is assembled here. The
//! kernel recycles the pages of frames, with what receivers wrote into them, so it writes the whole frame each
//! time. Needs `CAP_BPF`, `CAP_NET_ADMIN`, and at the other end of a veth NAPI (`ethtool -K DEV gro on`). Left out:
//! pace.

use std::os::fd::AsRawFd;

use flowlb_core::sys::bpf;

use crate::generator::{Generated, GeneratorError, Load, Template};
use crate::program::{
    self, ADD, ADD_IMMEDIATE, AND_IMMEDIATE, CALL, JUMP_IF_NOT_IMMEDIATE, MODULO_IMMEDIATE, MOVE,
    MOVE_IMMEDIATE, RANDOM_U32, SHIFT_RIGHT_IMMEDIATE, STORE_16, TO_BIG_ENDIAN, XOR_IMMEDIATE,
    instruction,
};

/// Frames of any call: some seconds' worth, after which the clock is looked at.
const MOST_FRAMES: u32 = 1 << 22;

const PORT_AT: u16 = 34;
const CHECKSUM_AT: u16 = 40;

/// Send out of an interface of the calling thread's network namespace, as fast as possible; the source port of each
/// frame is drawn at random. `load.rate` is not looked at.
///
/// # Errors
/// The template or the number of flows does not fit, the caller lacks the capabilities, or the kernel the feature.
pub fn flood(ifindex: u32, load: &Load<'_>) -> Result<Generated, GeneratorError> {
    let template = Template::new(load.template, load.flows)?;
    let loaded = bpf::load_xdp(&assemble(&template, ifindex))?;
    program::run(
        loaded.as_raw_fd(),
        load.template,
        (load.packets, load.duration),
        (MOST_FRAMES, load.duration),
    )
}

/// The program: write the frame, draw a source port, finish the checksum, redirect.
fn assemble(template: &Template<'_>, ifindex: u32) -> Vec<u64> {
    let frame = template.frame;
    let mut program = Vec::new();
    program::find_frame(&mut program);
    let too_short = program::check_length(&mut program, frame.len());
    program::write_frame(&mut program, frame);
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
    ]);
    program::send(&mut program, ifindex, &[(too_short, 2, 7)]);
    program
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
