//! A packet generator for measurements: one UDP frame, many source ports, as fast as one thread can send or at a
//! given pace.
//!
//! It stands before the packet walk, on another host. Every frame is made before the clock starts, with a right
//! checksum (RFC 768), so that sending is all that is timed. Bounded in count and in time. Left out: replies,
//! latency, protocols other than UDP over IPv4.

use std::io;
use std::os::fd::RawFd;
use std::thread;
use std::time::{Duration, Instant};

use flowlb_core::io::vnet_hdr::OFFLOAD_HEADER_LEN;
use flowlb_core::sys::process;
use flowlb_core::sys::socket::{self, MAX_MESSAGES};
use flowlb_core::wire::checksum;
use thiserror::Error;

const PORT_AT: usize = 34;
const UDP_AT: usize = 34;
const CHECKSUM_AT: usize = 40;
const ADDRESSES: std::ops::Range<usize> = 26..34;
const FRAME_LEN: std::ops::RangeInclusive<usize> = 42..=1514;
const UDP: u8 = 17;
const NO_OFFLOAD: [u8; OFFLOAD_HEADER_LEN] = [0; OFFLOAD_HEADER_LEN];
/// How long to wait for a full socket before looking at the clock again.
const FULL_WAIT_MS: i32 = 10;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// An Ethernet frame with IPv4 (no options) and UDP. Its source port is the first one; its checksum is made anew.
    pub template: &'a [u8],
    /// Flows: source ports, used in turn.
    pub flows: u16,
    /// Frames at most.
    pub packets: u64,
    /// Time at most.
    pub duration: Duration,
    /// Frames per second; `None`: as many as possible.
    pub rate: Option<f64>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Generated {
    /// Frames that the kernel took.
    pub packets: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

/// Why nothing, or not everything, was sent.
#[derive(Debug, Error)]
pub enum GeneratorError {
    /// The template is no frame to make flows of.
    #[error("the template is no UDP frame over IPv4 without options: {0} bytes")]
    Template(usize),
    /// The frame to scatter, or a word of it, does not fit.
    #[error(
        "no IPv4 frame without options, or a word to draw is no 16-bit word of its packet or is a checksum: {0} bytes"
    )]
    Scattered(usize),
    /// Source ports end at 65535.
    #[error("{flows} flows from source port {first} on: 1 to {most} are possible")]
    Flows {
        /// Asked for.
        flows: u16,
        /// The template's source port.
        first: u16,
        /// What fits.
        most: u32,
    },
    /// The socket failed.
    #[error("sending failed: {0}")]
    Send(#[from] io::Error),
}

/// Send through a packet socket with `PACKET_VNET_HDR` that is bound to an interface.
///
/// # Errors
/// The template or the number of flows does not fit, or the socket fails. A full socket is waited for.
pub fn generate(fd: RawFd, load: &Load<'_>) -> Result<Generated, GeneratorError> {
    let frames = Template::new(load.template, load.flows)?.frames();
    let start = Instant::now();
    let mut sent = 0u64;
    let mut next = 0;
    while sent < load.packets && start.elapsed() < load.duration {
        if let Some(early) = early(load.rate, sent, start.elapsed()) {
            thread::sleep(early.min(load.duration));
            continue;
        }
        let left = usize::try_from(load.packets - sent).unwrap_or(MAX_MESSAGES);
        let batch = &frames[next..frames.len().min(next + MAX_MESSAGES.min(left))];
        let count = send(fd, batch)?;
        sent += count as u64;
        next = (next + count) % frames.len();
    }
    Ok(Generated {
        packets: sent,
        elapsed: start.elapsed(),
    })
}

/// How much too early the next frame would be.
fn early(rate: Option<f64>, sent: u64, elapsed: Duration) -> Option<Duration> {
    #[expect(clippy::cast_precision_loss, reason = "2^52 frames are never reached")]
    let due = Duration::from_secs_f64(sent as f64 / rate?);
    due.checked_sub(elapsed).filter(|early| !early.is_zero())
}

/// Send a batch; 0 when the socket stayed full.
fn send(fd: RawFd, batch: &[Vec<u8>]) -> io::Result<usize> {
    match socket::send(fd, batch.iter().map(|frame| (&NO_OFFLOAD[..], &frame[..]))) {
        Err(error) if is_full(&error) => {
            let mut poll = [libc::pollfd {
                fd,
                events: libc::POLLOUT,
                revents: 0,
            }];
            process::poll(&mut poll, FULL_WAIT_MS)?;
            Ok(0)
        }
        other => other,
    }
}

/// `ENOBUFS` is what a full queue of the interface gives.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// A checked template.
pub(crate) struct Template<'a> {
    /// The frame.
    pub frame: &'a [u8],
    /// Source ports to use.
    pub flows: u16,
    /// The first of them.
    pub first_port: u16,
    /// The sum of what the UDP checksum covers, but for the source port and the checksum itself.
    pub sum_without_port: u16,
}

impl<'a> Template<'a> {
    /// Check that a template is UDP over IPv4, and that the ports suffice.
    pub fn new(frame: &'a [u8], flows: u16) -> Result<Self, GeneratorError> {
        if !FRAME_LEN.contains(&frame.len()) || frame[12..15] != [8, 0, 0x45] || frame[23] != UDP {
            return Err(GeneratorError::Template(frame.len()));
        }
        let datagram_len = usize::from(u16::from_be_bytes([frame[38], frame[39]]));
        if datagram_len < 8 || UDP_AT + datagram_len > frame.len() {
            return Err(GeneratorError::Template(frame.len()));
        }
        let first_port = u16::from_be_bytes([frame[PORT_AT], frame[PORT_AT + 1]]);
        let most = u32::from(u16::MAX - first_port) + 1;
        if flows == 0 || u32::from(flows) > most {
            return Err(GeneratorError::Flows {
                flows,
                first: first_port,
                most,
            });
        }
        let parts = [
            &frame[ADDRESSES],
            &frame[UDP_AT + 2..CHECKSUM_AT],
            &frame[CHECKSUM_AT + 2..UDP_AT + datagram_len],
        ];
        let sum: u64 = parts
            .map(|part| u64::from(checksum::sum(part)))
            .iter()
            .sum();
        Ok(Self {
            frame,
            flows,
            first_port,
            sum_without_port: checksum::fold(sum + u64::from(UDP) + datagram_len as u64),
        })
    }

    /// One frame per flow.
    fn frames(&self) -> Vec<Vec<u8>> {
        (0..self.flows)
            .map(|flow| self.frame_from(self.first_port + flow))
            .collect()
    }

    fn frame_from(&self, port: u16) -> Vec<u8> {
        // RFC 768: 0 means "no checksum", so a sum of 0 is sent as its other form.
        let value = match !checksum::fold(u64::from(self.sum_without_port) + u64::from(port)) {
            0 => 0xffff,
            value => value,
        };
        let mut frame = self.frame.to_vec();
        frame[PORT_AT..PORT_AT + 2].copy_from_slice(&port.to_be_bytes());
        frame[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&value.to_be_bytes());
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of 60 bytes from 198.18.1.21:1024 to 198.18.1.100:9876.
    fn template() -> Vec<u8> {
        let mut frame = vec![0u8; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[17] = 46;
        frame[22] = 64;
        frame[23] = 17;
        frame[26..34].copy_from_slice(&[198, 18, 1, 21, 198, 18, 1, 100]);
        frame[34..40].copy_from_slice(&[4, 0, 0x26, 0x94, 0, 26]);
        frame
    }

    #[test]
    fn frames_have_ports_in_turn_and_right_checksums() {
        let template = template();
        let made = Template::new(&template, 3).unwrap().frames();
        for (flow, frame) in made.iter().enumerate() {
            assert_eq!(&frame[34..36], &(1024 + flow as u16).to_be_bytes());
            let parts = [&frame[26..34], &frame[34..60]].map(|part| u64::from(checksum::sum(part)));
            assert_eq!(checksum::fold(parts[0] + parts[1] + 17 + 26), 0xffff);
        }
    }

    #[test]
    fn frames_of_something_else_are_refused() {
        let mut tcp = template();
        tcp[23] = 6;
        let mut long = template();
        long[39] = 27;
        let huge = [template(), vec![0; 1455]].concat();
        for wrong in [tcp, long, huge, template()[..41].to_vec()] {
            assert!(matches!(
                Template::new(&wrong, 1),
                Err(GeneratorError::Template(_))
            ));
        }
    }

    #[test]
    fn flows_beyond_the_last_port_are_refused() {
        assert!(Template::new(&template(), 64512).is_ok());
        for flows in [0, 64513] {
            let template = template();
            let refused = Template::new(&template, flows);
            assert!(matches!(
                refused,
                Err(GeneratorError::Flows { most: 64512, .. })
            ));
        }
    }

    #[test]
    fn a_pace_tells_how_early_it_is() {
        assert_eq!(early(None, 100, Duration::ZERO), None);
        let early_by = early(Some(100.0), 50, Duration::from_millis(400));
        assert_eq!(early_by, Some(Duration::from_millis(100)));
        assert_eq!(early(Some(100.0), 50, Duration::from_millis(600)), None);
    }
}
