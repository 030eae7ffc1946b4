//! Floods from random sources, at a pace: the kernel makes the frames, as for [`flood`](crate::flood), and draws
//! words of each anew, such as its source address and port; IPv4 and L4 checksums are right.
//!
//! The pace is kept by the program itself: a frame that comes too early is not sent. So the thread is busy all the
//! time; give it a low priority. For tests and measurements only. Left out: IPv6, IPv4 options.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use flowlb_core::sys::bpf;
use flowlb_core::wire::checksum;

use crate::generator::{Generated, GeneratorError};
use crate::program::{
    self, ADD, ADD_IMMEDIATE, AND_IMMEDIATE, CALL, JUMP_IF_NOT_IMMEDIATE, JUMP_IF_NOT_LESS,
    LOAD_64, LOAD_IMMEDIATE_64, MAP_VALUE, MOVE, MOVE_IMMEDIATE, OR_IMMEDIATE, RANDOM_U32,
    SHIFT_RIGHT_IMMEDIATE, STORE_16, STORE_64, TIME_NS, TO_BIG_ENDIAN, XOR_IMMEDIATE, instruction,
};

/// After this time the clock is looked at. Most frames of a call come too early to be sent; what they cost depends on
/// what else the core does.
const LONGEST_CALL: Duration = Duration::from_millis(500);
/// How far the pace may be behind, and catch up: longer pauses are lost, so that no burst follows them.
const SLACK_NS: u32 = 1_000_000;
const SECOND_NS: f64 = 1e9;

const IP_AT: usize = 14;
const FRAGMENT_AT: usize = 20;
const PROTOCOL_AT: usize = 23;
const IP_CHECKSUM_AT: usize = 24;
const ADDRESSES: std::ops::Range<usize> = 26..34;
const L4_AT: usize = 34;
const FRAME_LEN: std::ops::RangeInclusive<usize> = 42..=1514;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Scatter<'a> {
    /// An Ethernet frame with IPv4 without options; checksums are made anew.
    pub template: &'a [u8],
    /// Words of 16 bits that are drawn for each frame: where, and which of their bits. The others are the template's.
    pub words: &'a [(u16, u16)],
    /// Time at most.
    pub duration: Duration,
    /// Frames per second.
    pub rate: f64,
}

/// Send out of an interface of the calling thread's network namespace. Returns the frames that were sent.
///
/// # Errors
/// The template or a word does not fit, the caller lacks the capabilities, or the kernel the feature.
pub fn scatter(ifindex: u32, load: &Scatter<'_>) -> Result<Generated, GeneratorError> {
    let frame = Frame::new(load)?;
    let pace = bpf::create_two_words()?;
    #[expect(
        clippy::cast_sign_loss,
        reason = "a quotient of positive numbers; what is too large becomes the largest"
    )]
    let interval_ns = (SECOND_NS / load.rate) as u32;
    let program = frame.assemble(ifindex, pace.as_raw_fd(), interval_ns);
    let loaded = bpf::load_xdp(&program)?;
    let ran = program::run(
        loaded.as_raw_fd(),
        load.template,
        (u64::MAX, load.duration),
        (u32::MAX, LONGEST_CALL),
    )?;
    let [_, packets] = bpf::read_two_words(&pace)?;
    Ok(Generated { packets, ..ran })
}

/// A checksum of the frame.
struct Sum {
    /// Where it is.
    at: usize,
    /// Whether 0 means "none" (RFC 768).
    zero_is_none: bool,
    /// The sum of all that is not drawn.
    rest: u32,
    register: u8,
}

/// A checked template, what is drawn set to 0.
struct Frame<'a> {
    bytes: Vec<u8>,
    words: &'a [(u16, u16)],
    ip: Sum,
    l4: Option<Sum>,
}

impl<'a> Frame<'a> {
    fn new(load: &Scatter<'a>) -> Result<Self, GeneratorError> {
        let mut bytes = load.template.to_vec();
        let wrong = || GeneratorError::Scattered(load.template.len());
        if !FRAME_LEN.contains(&bytes.len()) || bytes[12..15] != [8, 0, 0x45] {
            return Err(wrong());
        }
        let checksum_at = l4_checksum_at(&bytes).filter(|at| at + 2 <= bytes.len());
        for at in [Some(IP_CHECKSUM_AT), checksum_at].into_iter().flatten() {
            bytes[at..at + 2].fill(0);
        }
        for &(at, mask) in load.words {
            let at = usize::from(at);
            let drawn = [Some(IP_CHECKSUM_AT), checksum_at].contains(&Some(at));
            if at % 2 == 1 || at < IP_AT || at + 2 > bytes.len() || drawn {
                return Err(wrong());
            }
            let kept = u16::from_be_bytes([bytes[at], bytes[at + 1]]) & !mask;
            bytes[at..at + 2].copy_from_slice(&kept.to_be_bytes());
        }
        let ip = Sum {
            at: IP_CHECKSUM_AT,
            zero_is_none: false,
            rest: u32::from(checksum::sum(&bytes[IP_AT..L4_AT])),
            register: 8,
        };
        let protocol = bytes[PROTOCOL_AT];
        let l4 = checksum_at.map(|at| Sum {
            at,
            zero_is_none: protocol == UDP,
            rest: u32::from(checksum::sum(&bytes[L4_AT..]))
                + if has_pseudo_header(protocol) {
                    u32::from(checksum::sum(&bytes[ADDRESSES]))
                        + u32::from(protocol)
                        + (bytes.len() - L4_AT) as u32
                } else {
                    0
                },
            register: 9,
        });
        Ok(Self {
            bytes,
            words: load.words,
            ip,
            l4,
        })
    }

    /// The program: wait for its time, write the frame, draw the words, finish the checksums, redirect.
    fn assemble(&self, ifindex: u32, pace: RawFd, interval_ns: u32) -> Vec<u64> {
        let mut program = Vec::new();
        program::find_frame(&mut program);
        let too_short = program::check_length(&mut program, self.bytes.len());
        let too_early = keep_pace(&mut program, pace, interval_ns);
        program::write_frame(&mut program, &self.bytes);
        let sums = || [Some(&self.ip), self.l4.as_ref()].into_iter().flatten();
        for sum in sums() {
            program.push(instruction(MOVE_IMMEDIATE, sum.register, 0, 0, sum.rest));
        }
        for &(at, mask) in self.words {
            self.draw(&mut program, usize::from(at), mask);
        }
        for sum in sums() {
            finish(&mut program, sum);
        }
        program::send(
            &mut program,
            ifindex,
            &[(too_short, 2, 7), (too_early, 2, 0)],
        );
        program
    }

    /// Draw a word, and add it to the sums that it belongs to.
    fn draw(&self, program: &mut Vec<u64>, at: usize, mask: u16) {
        let kept = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        program.extend([
            instruction(CALL, 0, 0, 0, RANDOM_U32),
            instruction(AND_IMMEDIATE, 0, 0, 0, u32::from(mask)),
        ]);
        let protocol = self.bytes[PROTOCOL_AT];
        let is_of_l4 = at >= L4_AT || ADDRESSES.contains(&at) && has_pseudo_header(protocol);
        // The bits that are kept are in the sum already.
        for (sum, covers) in [(Some(&self.ip), at < L4_AT), (self.l4.as_ref(), is_of_l4)] {
            if let Some(sum) = sum.filter(|_| covers) {
                program.push(instruction(ADD, sum.register, 0, 0, 0));
            }
        }
        program.extend([
            instruction(OR_IMMEDIATE, 0, 0, 0, u32::from(kept)),
            instruction(TO_BIG_ENDIAN, 0, 0, 0, 16),
            instruction(STORE_16, 6, 0, at as u16, 0),
        ]);
    }
}

fn has_pseudo_header(protocol: u8) -> bool {
    protocol != ICMP
}

/// Where the L4 checksum is; a fragment's cannot be right, and is left as it is.
fn l4_checksum_at(frame: &[u8]) -> Option<usize> {
    const MORE_AND_OFFSET: u16 = 0x3fff;
    let fragment = u16::from_be_bytes([frame[FRAGMENT_AT], frame[FRAGMENT_AT + 1]]);
    if fragment & MORE_AND_OFFSET != 0 {
        return None;
    }
    match frame[PROTOCOL_AT] {
        ICMP => Some(L4_AT + 2),
        TCP => Some(L4_AT + 16),
        UDP => Some(L4_AT + 6),
        _ => None,
    }
}

/// Compare the time with when the next frame is due, which the map's first value says; the second counts frames.
/// Returns the jump of one that comes too early.
fn keep_pace(program: &mut Vec<u64>, pace: RawFd, interval_ns: u32) -> usize {
    program.extend([
        instruction(LOAD_IMMEDIATE_64, 8, MAP_VALUE, 0, pace.unsigned_abs()),
        instruction(0, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, TIME_NS),
        instruction(LOAD_64, 2, 8, 0, 0),
    ]);
    let too_early = program::reserve_jump(program);
    program.extend([
        instruction(ADD_IMMEDIATE, 0, 0, 0, SLACK_NS.wrapping_neg()),
        instruction(JUMP_IF_NOT_LESS, 2, 0, 1, 0),
        instruction(MOVE, 2, 0, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, interval_ns),
        instruction(STORE_64, 8, 2, 0, 0),
        instruction(LOAD_64, 2, 8, 8, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, 1),
        instruction(STORE_64, 8, 2, 8, 0),
    ]);
    too_early
}

/// Fold a sum and write it (RFC 1071).
fn finish(program: &mut Vec<u64>, sum: &Sum) {
    let register = sum.register;
    for _ in 0..2 {
        program.extend([
            instruction(MOVE, 4, register, 0, 0),
            instruction(SHIFT_RIGHT_IMMEDIATE, 4, 0, 0, 16),
            instruction(AND_IMMEDIATE, register, 0, 0, 0xffff),
            instruction(ADD, register, 4, 0, 0),
        ]);
    }
    program.push(instruction(XOR_IMMEDIATE, register, 0, 0, 0xffff));
    if sum.zero_is_none {
        program.extend([
            instruction(JUMP_IF_NOT_IMMEDIATE, register, 0, 1, 0),
            instruction(MOVE_IMMEDIATE, register, 0, 0, 0xffff),
        ]);
    }
    program.extend([
        instruction(TO_BIG_ENDIAN, register, 0, 0, 16),
        instruction(STORE_16, 6, register, sum.at as u16, 0),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(protocol: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![0u8; len];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[17] = (len - IP_AT) as u8;
        frame[PROTOCOL_AT] = protocol;
        frame[26..34].copy_from_slice(&[10, 0, 0, 0, 198, 18, 1, 100]);
        frame
    }

    fn load<'a>(template: &'a [u8], words: &'a [(u16, u16)]) -> Scatter<'a> {
        Scatter {
            template,
            words,
            duration: Duration::ZERO,
            rate: 1.0,
        }
    }

    #[test]
    fn checksums_are_where_each_protocol_has_them() {
        for (protocol, at) in [(ICMP, 36), (TCP, 50), (UDP, 40)] {
            let template = template(protocol, 60);
            let frame = Frame::new(&load(&template, &[(26, 0xff)])).unwrap();
            assert_eq!(frame.l4.map(|sum| sum.at), Some(at));
        }
        let mut fragment = template(UDP, 60);
        fragment[FRAGMENT_AT] = 0x20;
        assert!(Frame::new(&load(&fragment, &[])).unwrap().l4.is_none());
    }

    #[test]
    fn words_that_are_no_words_of_the_packet_are_refused() {
        let template = template(UDP, 60);
        for at in [12, 15, 24, 40, 60] {
            assert!(matches!(
                Frame::new(&load(&template, &[(at, 0xffff)])),
                Err(GeneratorError::Scattered(60))
            ));
        }
        assert!(Frame::new(&load(&template[..41], &[])).is_err());
    }

    #[test]
    fn jumps_of_frames_not_sent_lead_to_the_last_two_instructions() {
        let template = template(TCP, 54);
        let words = [(26, 0x00ff), (28, 0xffff), (34, 0xffff)];
        let program = Frame::new(&load(&template, &words))
            .unwrap()
            .assemble(3, 4, 1000);
        let targets: Vec<usize> = program
            .iter()
            .enumerate()
            .filter(|(_, word)| **word as u8 == program::JUMP_IF_GREATER)
            .map(|(place, word)| place + 1 + ((word >> 16) as usize & 0xffff))
            .collect();
        assert_eq!(targets, [program.len() - 2; 2]);
    }
}
