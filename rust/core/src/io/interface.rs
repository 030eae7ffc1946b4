//! An interface as the loop has it: its packet socket, its receive ring when it could have one, and its
//! `AF_XDP` socket when it is given one.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use super::af_xdp::XdpSender;
use super::counters::{IoCounters, add_one};
use super::ring::RxRing;

/// A packet socket, with its receive ring when it could have one.
pub struct Interface {
    pub(super) fd: RawFd,
    pub(super) ring: Option<RxRing>,
    /// For frames with nothing left to do, where they may pass by queue disciplines.
    pub(super) af_xdp: Option<XdpSender>,
}

impl Interface {
    /// Use a socket. One that can have no ring (no packet socket, no memory) is read by system calls.
    #[must_use]
    pub fn new(fd: RawFd) -> Self {
        Self {
            fd,
            ring: RxRing::new(fd).ok(),
            af_xdp: None,
        }
    }

    /// Use a socket of another process that has stopped, and go on reading its ring at this place. Without one that can
    /// be had: as [`Self::new`].
    #[must_use]
    pub fn adopt(fd: RawFd, ring: Option<usize>) -> Self {
        match ring.map(|head| RxRing::adopt(fd, head)) {
            Some(Ok(ring)) => Self {
                fd,
                ring: Some(ring),
                af_xdp: None,
            },
            _ => Self::new(fd),
        }
    }

    /// Take an adopted ring from the socket at the end ([`RxRing::own`]).
    pub fn own(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.own();
        }
    }

    /// Leave the socket's ring to the next process. Returns where that one is to go on reading, if there is one.
    pub fn leave(&mut self) -> Option<usize> {
        self.ring.take().map(RxRing::leave)
    }

    /// The same, with frames that are finished handed straight to the driver by a fresh `AF_XDP` socket.
    ///
    /// # Errors
    /// As [`XdpSender::new`].
    pub fn with_af_xdp(mut self, xdp_socket: RawFd) -> io::Result<Self> {
        self.af_xdp = Some(XdpSender::new(xdp_socket, self.fd)?);
        Ok(self)
    }

    /// Whether a frame waits. Without a ring only a receive can tell.
    #[must_use]
    pub fn may_be_ready(&self) -> bool {
        self.ring.as_ref().is_none_or(RxRing::is_ready)
    }

    /// Whether frames come faster than they are processed. Without a ring nothing tells.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.ring.as_ref().is_some_and(RxRing::is_crowded)
    }

    /// Give the ring up when it has stopped: frames come by system calls from now on. Have frames sent that the
    /// driver did not take. To be called now and then.
    pub fn watch(&mut self, counters: &IoCounters) {
        if let Some(sender) = &mut self.af_xdp {
            sender.resume();
        }
        let Some(ring) = &mut self.ring else { return };
        let (drops, has_stopped) = ring.watch();
        counters.rx_dropped.fetch_add(drops, Ordering::Relaxed);
        if has_stopped {
            add_one(&counters.rx_errors);
            self.ring = None;
        }
    }
}
