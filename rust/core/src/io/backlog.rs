//! Messages that wait for a socket which is full, in order: what comes beyond is dropped, as by any router.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use super::counters::{IoCounters, add_one};
use crate::sys::socket::{self, MAX_MESSAGES};

/// What may wait for a full socket, per interface, beside what its buffer and the interface's queue hold (4 MiB and
/// more): enough for what comes until the loop tries again, little enough to be copied while other interfaces wait.
/// A router drops what comes beyond.
pub(super) const BACKLOG_FRAMES: usize = 1024;

pub(super) const BACKLOG_BYTES: usize = 1 << 20;

/// Messages that wait for a socket which is full, in order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pub messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backlog {
    /// Keep a message, or count it as dropped when there is no room.
    pub fn push(&mut self, (header, frame): (&[u8], &[u8]), counters: &IoCounters) {
        let bytes = self.bytes + header.len() + frame.len();
        if self.messages.len() >= BACKLOG_FRAMES || bytes > BACKLOG_BYTES {
            return add_one(&counters.tx_dropped);
        }
        self.bytes = bytes;
        self.messages.push_back([header, frame].concat());
    }

    /// Send from its front, for one system call at most, but for frames that are refused. Says whether it is empty.
    pub fn drain(&mut self, fd: RawFd, counters: &IoCounters) -> bool {
        let (first, _) = self.messages.as_slices();
        let chunk = &first[..first.len().min(MAX_MESSAGES)];
        let done = send_all(fd, chunk, |message| (&message[..], &[][..]), counters);
        for message in self.messages.drain(..done) {
            self.bytes -= message.len();
        }
        self.messages.is_empty()
    }
}

/// Send a queue in order, without waiting. Returns how many are done with; the socket is full at the next one. A
/// frame that the kernel refuses is skipped; one that finds the interface's queue full is dropped there, as it is
/// for any router.
pub(super) fn send_all<'a, T>(
    fd: RawFd,
    queue: &'a [T],
    pieces: impl Fn(&'a T) -> (&'a [u8], &'a [u8]),
    counters: &IoCounters,
) -> usize {
    let mut done = 0;
    while done < queue.len() {
        let chunk = &queue[done..queue.len().min(done + MAX_MESSAGES)];
        let error = match socket::send(fd, chunk.iter().map(&pieces)) {
            Ok(count) => {
                done += count;
                continue;
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => break,
            Some(libc::ENOBUFS) => {
                add_one(&counters.tx_dropped);
                done += 1;
            }
            _ => {
                add_one(&counters.tx_errors);
                done += 1;
            }
        }
    }
    done
}
