//! Rule 8.10, believed segments, and rule 8.13, last hop: a sender off the path who knows the addresses and ports of a
//! conversation, but none of its numbers, changes nothing about it.
//!
//! Each conversation is at some point of its life when an adversary sends any sequence of segments into it: in the
//! client's name, from another interface and another MAC, in the server's name from where no server is and from
//! where the servers are, and straight to the server. The server may answer the SYNs among them as one with SYN
//! cookies does. Its numbers are drawn without a look at the conversation's. Afterwards the flow's state, server
//! and idle time are what they were, its replies leave where they left before, and what the two ends send next
//! passes to where it went before, in the service's name.
//!
//! One thing is left out: who speaks for both sides may play a handshake of its own, in which each side
//! acknowledges the other's SYN. It looks like any other.
//!
//! A guess may find room in both windows, the larger they are the more often: such a one may move the idle timer
//! and the ingress neighbour. But it ends nothing, it keeps no true end from being seen, and what it says makes no
//! number that the next guess can use: one that acknowledges what was not sent says nothing. These are drawn with a
//! look at the numbers, so that all of them fit.
//!
//! `FLOWLB_CONVERSATIONS`: how many; 100 000 by default.

use std::net::{IpAddr, Ipv4Addr};

use flowlb_core::base::{InterfaceId, Nanos, Offload, Output, SplitMix64, Verdict};
use flowlb_core::datapath::DataPath;
use flowlb_core::snapshot::{
    Interface, Neighbour, NextHops, Plan, Protocol, Refusal, Route, Selector, Server, Service,
    Settings, Snapshot, Timeouts, Transit,
};

mod wire;

use wire::{ACK, FIN, PSH, RST, SYN, Wire};

const SECOND: u64 = 1_000_000_000;
const OURS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 7];
const ADVERSARY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0x66];
const CLIENT: [u8; 4] = [203, 0, 113, 7];
const VIP: [u8; 4] = [198, 18, 1, 100];
const SERVERS: [[u8; 4]; 2] = [[10, 0, 0, 11], [10, 0, 0, 12]];
const VIP_PORT: u16 = 80;
const SERVER_PORT: u16 = 8080;

fn server_mac(address: [u8; 4]) -> [u8; 6] {
    [2, 0, 0, 0, 2, address[3]]
}

fn snapshot(selector: Selector, transit: Transit) -> Snapshot {
    let interface = |number: usize| Interface {
        name: format!("eth{number}"),
        mac: OURS[number],
        mtu: 1500,
        addresses: vec![(IpAddr::from([10, number as u8, 0, 1]), 24)],
        announce: false,
    };
    let plan = Plan {
        selector,
        slots: vec![0, 1],
        scores: vec![],
        fallback: None,
        deadline_ns: 0,
    };
    let service = Service {
        name: "web".into(),
        address: IpAddr::from(VIP),
        port: VIP_PORT,
        protocol: Protocol::Tcp,
        plan,
        on_no_server: Refusal::Reset,
        on_no_flow: Refusal::Drop,
        new_flow_limit: None,
    };
    let server = |id: u32| Server {
        name: format!("s{id}"),
        service: 0,
        endpoint: id,
        address: IpAddr::from(SERVERS[id as usize]),
        port: SERVER_PORT,
        weight: 1,
        mac: None,
        moves_udp: false,
    };
    Snapshot {
        generation: 1,
        seed: 1,
        interfaces: (0..3).map(interface).collect(),
        services: vec![Some(service)],
        servers: vec![Some(server(0)), Some(server(1))],
        settings: Settings {
            transit,
            icmp_rate: 1000,
            ..Settings::default()
        },
        timeouts: Timeouts {
            half_open_ns: 30 * SECOND,
            established_ns: 7440 * SECOND,
            closing_ns: 120 * SECOND,
            udp_ns: 300 * SECOND,
            idle_floor_ns: 60 * SECOND,
        },
        ask: None,
    }
}

fn next_hops() -> NextHops {
    let route = |prefix: [u8; 4], prefix_len, interface| Route {
        prefix: IpAddr::from(prefix),
        prefix_len,
        interface: InterfaceId::new(interface),
        gateway: None,
        mtu: None,
    };
    let neighbour = |address: [u8; 4]| Neighbour {
        interface: InterfaceId::new(1),
        address: IpAddr::from(address),
        mac: server_mac(address),
    };
    let client = Neighbour {
        interface: InterfaceId::new(0),
        address: IpAddr::from(CLIENT),
        mac: CLIENT_MAC,
    };
    let [first, second] = SERVERS.map(neighbour);
    NextHops {
        routes: vec![route([10, 0, 0, 0], 24, 1), route([0; 4], 0, 0)],
        neighbours: vec![first, second, client],
    }
}

/// What was sent: the interface, the destination's MAC and address, the source's address.
type Way = (u32, [u8; 6], [u8; 4], [u8; 4]);

/// What the window fields of the client and the server say, always.
const WINDOWS: [u16; 2] = [64240, 65160];

struct Conversation {
    path: DataPath,
    /// Whether its servers are chosen by a hash, so that flows are picked up.
    is_hashed: bool,
    /// Whether what is sent straight to a server is routed on.
    is_routed: bool,
    random: SplitMix64,
    now: u64,
    port: u16,
    /// What each side sends next: the client, the server.
    next: [u32; 2],
    server: [u8; 4],
    /// What both SYNs offer.
    scale: Option<u8>,
    /// The shift that windows have at most.
    shift: u8,
}

impl Conversation {
    fn client(&self, flags: u8, len: usize) -> Wire {
        Wire {
            interface: 0,
            macs: (CLIENT_MAC, OURS[0]),
            from: (CLIENT, self.port),
            to: (VIP, VIP_PORT),
            flags,
            numbers: (self.next[0], self.next[1]),
            window: WINDOWS[0],
            scale: self.scale.filter(|_| flags & SYN != 0),
            len,
        }
    }

    fn server(&self, flags: u8, len: usize) -> Wire {
        Wire {
            interface: 1,
            macs: (server_mac(self.server), OURS[1]),
            from: (self.server, SERVER_PORT),
            to: (CLIENT, self.port),
            flags,
            numbers: (self.next[1], self.next[0]),
            window: WINDOWS[1],
            scale: self.scale.filter(|_| flags & SYN != 0),
            len,
        }
    }

    /// Send a segment through; where it leaves.
    fn pass(&mut self, wire: &Wire) -> (Verdict, Option<Way>) {
        let mut frame = wire.frame();
        let mut extra: Vec<Output> = Vec::new();
        let path = &mut self.path;
        let outcome = path.process(
            &mut frame,
            InterfaceId::new(wire.interface),
            Nanos::new(self.now),
            Offload::default(),
            &mut extra,
        );
        let way = outcome.sent.map(|sent| {
            let mac = frame[..6].try_into().expect("six bytes");
            let address = |at: usize| frame[at..at + 4].try_into().expect("four bytes");
            (sent.interface.get(), mac, address(30), address(26))
        });
        (outcome.verdict, way)
    }

    fn segment(&self, from_client: bool, flags: u8, len: usize) -> Wire {
        if from_client {
            self.client(flags, len)
        } else {
            self.server(flags, len)
        }
    }

    fn say(&mut self, from_client: bool, flags: u8, len: usize) -> Way {
        let wire = self.segment(from_client, flags, len);
        let way = self.pass(&wire).1.expect("the ends' own segments pass");
        assert!(from_client || way.3 == VIP, "no server is seen");
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let side = usize::from(!from_client);
        self.next[side] = self.next[side].wrapping_add(len as u32 + control);
        way
    }

    /// Draw a number below a bound.
    fn draw(&mut self, bound: u64) -> u64 {
        self.random.draw() % bound
    }

    /// The segments of a handshake, from one of them on.
    fn shake_hands(&mut self, from: usize) {
        let steps = [(true, SYN), (false, SYN | ACK), (true, ACK)];
        for &(from_client, flags) in &steps[from..] {
            self.shake(from_client, flags);
        }
    }

    fn shake(&mut self, from_client: bool, flags: u8) {
        let way = self.say(from_client, flags, 0);
        if from_client {
            self.server = way.2;
        } else {
            assert_eq!((way.0, way.1), (0, CLIENT_MAC), "the client learns");
        }
    }

    /// Attack amid the handshake: it goes on as if nothing had been.
    fn check_handshake(&mut self) {
        self.draw_numbers();
        self.shake(true, SYN);
        let server = self.server;
        let heard = self.draw(2) as usize;
        if heard > 0 {
            self.shake(false, SYN | ACK);
        }
        self.now += self.draw(10 * SECOND);
        let before = self.seen();
        let sent = self.attack();
        assert_eq!(self.seen(), before, "after {sent:#?}");
        if heard == 0 {
            self.shake(false, SYN | ACK);
        }
        // The server has answered the client's own SYN first.
        self.answer_by_cookies(&sent);
        self.shake(true, ACK);
        assert_eq!(self.server, server, "after {sent:#?}");
        assert_eq!(self.seen().0, "established", "after {sent:#?}");
        // No forged SYN has widened a window.
        self.now += SECOND;
        let before = self.seen();
        let beyond = self.reach(0) + 2;
        let [number, other] = self.next;
        let wire = Wire {
            numbers: (number, other.wrapping_add(beyond)),
            ..self.client(ACK, 0)
        };
        self.pass(&wire);
        assert_eq!(self.seen(), before, "after {sent:#?}");
    }

    fn draw_numbers(&mut self) {
        self.next = [self.random.draw() as u32, self.random.draw() as u32];
        self.scale = (self.draw(3) > 0).then(|| self.draw(15) as u8);
        self.shift = self.scale.unwrap_or(0);
    }

    /// Bytes that the window of a side has at most: the client's, the server's.
    fn reach(&self, side: usize) -> u32 {
        u32::from(WINDOWS[side]) << self.shift
    }

    /// From before us: the first segment that we see is one from the middle.
    fn pick_up(&mut self) {
        self.shift = 14;
        let guesses = [self.random.draw() as u32];
        for server in SERVERS {
            self.server = server;
            self.attack_straight(&guesses, true);
        }
        let from_client = self.draw(2) == 0;
        let len = self.draw(1400) as usize;
        if from_client {
            self.server = self.say(true, ACK | PSH, len).2;
            self.say(false, ACK | PSH, len);
            self.say(true, ACK, 0);
            return;
        }
        let is_chosen = |this: &mut Self, server| {
            this.server = server;
            let wire = this.server(ACK | PSH, 0);
            let way = this.pass(&wire).1;
            assert!(way.is_none_or(|way| way.3 == VIP), "no server is seen");
            way.is_some()
        };
        assert!(SERVERS.iter().any(|&server| is_chosen(self, server)));
        self.say(true, ACK | PSH, len);
        self.say(false, ACK, 0);
    }

    /// From the handshake, or from before us, to some point in the middle. Says which side has finished: whether it
    /// is the client.
    fn begin(&mut self) -> Option<bool> {
        self.draw_numbers();
        if self.is_hashed && self.draw(2) == 0 {
            self.pick_up();
        } else {
            self.shake_hands(0);
        }
        for _ in 0..self.draw(6) {
            self.now += self.draw(SECOND);
            let (from_client, len) = (self.draw(2) == 0, self.draw(1400) as usize);
            self.say(from_client, ACK | PSH, len);
            self.say(!from_client, ACK, 0);
        }
        let finished = (self.draw(4) == 0).then(|| self.draw(2) == 0);
        if let Some(from_client) = finished {
            self.say(from_client, FIN | ACK, 0);
            self.say(!from_client, ACK, 0);
        }
        finished
    }

    /// State, server, idle time.
    fn seen(&self) -> (&'static str, u32, u64) {
        let client = IpAddr::from(CLIENT);
        let flow = self.path.peek(0, client, self.port, Nanos::new(self.now)).0;
        let flow = flow.expect("the flow is there");
        (flow.state, flow.server, flow.idle_ns)
    }

    /// A segment of the adversary. `guesses`: numbers that it sticks to.
    fn forge(&mut self, guesses: &[u32]) -> Wire {
        const FLAGS: [u8; 12] = [
            ACK,
            ACK | PSH,
            RST,
            RST | ACK,
            SYN,
            SYN | ACK,
            FIN | ACK,
            FIN | PSH | ACK,
            PSH,
            ACK | 0x20,
            SYN | 0xc0,
            RST | PSH,
        ];
        let number = |this: &mut Self| {
            let guess = guesses[this.draw(guesses.len() as u64) as usize];
            guess.wrapping_add([0, 1, 1460, u32::MAX][this.draw(4) as usize])
        };
        let numbers = (number(self), number(self));
        let flags = FLAGS[self.draw(FLAGS.len() as u64) as usize];
        let len = [0, 0, 1, 1400][self.draw(4) as usize];
        let as_server = self.draw(4) == 0;
        let base = self.segment(!as_server, flags, len);
        // The second is the servers' own.
        let first = u64::from(as_server);
        let interface = (first + self.draw(3 - first)) as u32;
        let scale = (flags & SYN != 0 && self.draw(2) == 0).then(|| self.draw(16) as u8);
        Wire {
            interface,
            macs: (ADVERSARY_MAC, OURS[interface as usize]),
            numbers,
            window: self.random.draw() as u16,
            scale,
            ..base
        }
    }

    /// Whether both numbers of a segment find room in the windows, where all that was sent is acknowledged.
    fn is_lucky(&self, wire: &Wire) -> bool {
        let side = usize::from(wire.from.1 == SERVER_PORT);
        let fits = |number: u32, base, reach| {
            let offset = number.wrapping_sub(base);
            offset.min(offset.wrapping_neg()) <= reach + 1
        };
        fits(wire.numbers.0, self.next[side], self.reach(1 - side))
            && fits(wire.numbers.1, self.next[1 - side], self.reach(side))
    }

    /// Whether a segment answers a SYN of the adversary in the other side's name: before the server has spoken one
    /// is enough to open, later two.
    fn plays_both(&self, wire: &Wire, sent: &[Wire]) -> bool {
        let answers = |syn: &Wire| {
            let offset = wire.numbers.1.wrapping_sub(syn.numbers.0).wrapping_sub(1);
            syn.flags & SYN != 0 && syn.from.1 != wire.from.1 && offset <= syn.len as u32
        };
        let by_server = wire.from.1 == SERVER_PORT;
        let opens = !by_server || self.seen().0 == "syn-sent" && wire.flags & RST == 0;
        opens && wire.flags & ACK != 0 && sent.iter().any(answers)
    }

    fn attack(&mut self) -> Vec<Wire> {
        let mut guesses = vec![0, 1 << 31];
        guesses.extend((0..3).map(|_| self.random.draw() as u32));
        let mut sent = Vec::new();
        for _ in 0..=self.draw(8) {
            let wire = self.forge(&guesses);
            if !self.is_lucky(&wire) && !self.plays_both(&wire, &sent) {
                self.pass(&wire);
                sent.push(wire);
            }
        }
        self.attack_straight(&guesses, true);
        sent
    }

    /// Segments of the adversary in the client's name straight to the server, with or without SYNs.
    fn attack_straight(&mut self, guesses: &[u32], opens: bool) {
        for _ in 0..self.draw(3) * u64::from(self.is_routed) {
            let wire = self.forge(guesses);
            let as_client = wire.from.1 != SERVER_PORT;
            let straight = Wire {
                to: (self.server, SERVER_PORT),
                ..wire
            };
            if as_client && (opens || wire.flags & (SYN | ACK) != SYN) {
                self.pass(&straight);
            }
        }
    }

    /// Let the server answer the SYNs in the client's name among these, each by a number of its own.
    fn answer_by_cookies(&mut self, sent: &[Wire]) {
        for syn in sent {
            if syn.from.1 == SERVER_PORT || syn.flags & (SYN | ACK) != SYN {
                continue;
            }
            let acknowledged = syn.numbers.0.wrapping_add(1);
            let wire = Wire {
                numbers: (self.random.draw() as u32, acknowledged),
                ..self.server(SYN | ACK, 0)
            };
            let way = self.pass(&wire).1;
            assert!(way.is_some_and(|way| way.3 == VIP), "it is handed on");
        }
    }

    /// Check that an attack changes nothing.
    fn check(&mut self) {
        let back = self.say(false, ACK, 0);
        let there = self.say(true, ACK, 0);
        self.now += self.draw(60 * SECOND);
        let before = self.seen();
        let sent = self.attack();
        self.answer_by_cookies(&sent);
        let more = self.attack();
        assert_eq!(self.seen(), before, "after {sent:#?} {more:#?}");
        assert_eq!(self.say(false, ACK, 0), back, "after {sent:#?}");
        assert_eq!(self.say(true, ACK, 0), there, "after {sent:#?}");
        assert_eq!(self.seen().2, 0, "the ends are still believed");
    }

    /// A segment in the name of a side whose numbers find room, but are not its own: nothing is outstanding.
    fn forge_near(&mut self, from_client: bool) -> Wire {
        const FLAGS: [u8; 5] = [ACK, ACK | PSH, FIN | ACK, FIN | PSH | ACK, RST];
        let side = usize::from(!from_client);
        let (flags, len) = (FLAGS[self.draw(5) as usize], self.draw(1400) as usize);
        let near = |this: &mut Self, base: u32, reach: u32| {
            let offset = 1 + this.draw(u64::from(reach)) as u32;
            base.wrapping_add(if this.draw(2) == 0 {
                offset
            } else {
                offset.wrapping_neg()
            })
        };
        let sequence = near(self, self.next[side], self.reach(1 - side));
        let number = near(self, self.next[1 - side], self.reach(side));
        let exact = self.next[1 - side];
        let number = if self.draw(2) == 0 { exact } else { number };
        Wire {
            numbers: (sequence, number),
            window: self.random.draw() as u16,
            ..self.segment(from_client, flags, len)
        }
    }

    /// Check that guesses that find room close nothing, with resets at all numbers that they had.
    fn check_room(&mut self) {
        let finished = self.begin();
        self.say(false, ACK, 0);
        self.say(true, ACK, 0);
        let before = self.seen();
        let as_client = self.draw(2) == 0;
        let own = self.next[usize::from(!as_client)];
        let mut sent = Vec::new();
        for _ in 0..=self.draw(6) {
            let wire = self.forge_near(as_client);
            self.pass(&wire);
            let (sequence, number) = wire.numbers;
            let control = u32::from(wire.flags & FIN != 0);
            for at in [
                sequence,
                sequence.wrapping_add(wire.len as u32 + control),
                number,
            ] {
                let reset = Wire {
                    numbers: (at, number),
                    ..self.segment(as_client, RST | ACK, 0)
                };
                // What the adversary does not know.
                if at != own {
                    self.pass(&reset);
                }
            }
            sent.push(wire);
        }
        if finished != Some(as_client) {
            let again = finished.is_some();
            self.say(!as_client, if again { ACK } else { FIN | ACK }, 0);
            self.say(!as_client, ACK, 0);
        }
        let after = self.seen();
        assert_eq!(
            (after.0, after.1),
            ("established", before.1),
            "after {sent:#?}"
        );
    }

    /// Check that guesses that fit, each of which begins where the one before would have led, lead nowhere: both
    /// ends are believed still.
    fn check_chain(&mut self) {
        let finished = self.begin();
        self.say(false, ACK, 0);
        self.say(true, ACK, 0);
        let as_client = self.draw(2) == 0;
        let side = usize::from(!as_client);
        let (mut sequence, mut number) = (self.next[side], self.next[1 - side]);
        for _ in 0..=self.draw(12) {
            let reaches = (self.reach(1 - side), self.reach(side));
            let steps = [0, 1, reaches.0 / 2, reaches.0 - 1500];
            sequence = sequence.wrapping_add(steps[self.draw(4) as usize]);
            let steps = [0, 1, reaches.1 / 2, reaches.1];
            number = number.wrapping_add(steps[self.draw(4) as usize]);
            let len = self.draw(1400) as usize;
            let wire = Wire {
                numbers: (sequence, number),
                window: 0,
                ..self.segment(as_client, ACK, len)
            };
            self.pass(&wire);
        }
        self.now += SECOND;
        for from_client in [true, false] {
            let len = if finished == Some(from_client) {
                0
            } else {
                700
            };
            self.now += SECOND;
            self.say(from_client, ACK, len);
            let after = self.seen();
            assert_eq!(
                (after.0, after.2),
                ("established", 0),
                "client: {as_client}"
            );
        }
        // What was sent is acknowledged: an abort is exact there.
        self.say(true, ACK, 0);
        self.say(finished == Some(false), RST, 0);
        assert_eq!(self.seen().0, "closing", "client: {as_client}");
    }

    /// Check that a side that aborts right behind what it has sent ends the flow.
    fn check_abort(&mut self) {
        let finished = self.begin();
        let sent = self.attack();
        let from_client = finished.map_or(self.draw(2) == 0, |client| !client);
        for _ in 0..self.draw(6) {
            let len = self.draw(1400) as usize;
            self.say(from_client, ACK | PSH, len);
        }
        assert_eq!(self.seen().0, "established", "after {sent:#?}");
        let flags = [RST, RST | ACK][self.draw(2) as usize];
        self.say(from_client, flags, 0);
        assert_eq!(self.seen().0, "closing", "after {sent:#?}");
    }

    /// Forge FINs in the name of a side, behind `least` and beyond `most`.
    fn forge_fins(&mut self, from_client: bool, least: u32, most: u32) {
        let side = usize::from(!from_client);
        for _ in 0..self.draw(4) {
            let offset = self.draw(u64::from(self.reach(1 - side)) - 20_000) as u32;
            let sequence = if self.draw(2) == 0 {
                most.wrapping_add(offset)
            } else {
                least.wrapping_sub(offset)
            };
            let wire = Wire {
                numbers: (sequence, self.next[1 - side]),
                ..self.segment(from_client, FIN | ACK, 0)
            };
            self.pass(&wire);
        }
    }

    /// Check that forged FINs count nothing, and keep the true one from counting nowhere.
    fn check_fins(&mut self) {
        let finished = self.begin();
        let from_client = finished.map_or(self.draw(2) == 0, |client| !client);
        let begins = self.next[usize::from(!from_client)];
        let lens = [0; 4].map(|_| self.draw(1400) as usize);
        let total = lens.iter().sum::<usize>() as u32;
        let (least, most) = (begins.wrapping_sub(2), begins.wrapping_add(total + 1));
        for len in lens {
            self.forge_fins(from_client, least, most);
            self.say(from_client, ACK | PSH, len);
            if self.draw(2) == 0 {
                self.say(!from_client, ACK, 0);
            }
        }
        assert_eq!(self.seen().0, "established");
        self.say(from_client, FIN | ACK, 0);
        self.forge_fins(from_client, least, most);
        self.say(!from_client, ACK, 0);
        if finished.is_none() {
            assert_eq!(self.seen().0, "established");
            self.say(!from_client, FIN | ACK, 0);
        }
        assert_eq!(self.seen().0, "closing");
        // The last segments still pass, under way or sent again.
        let guesses = [self.random.draw() as u32];
        self.attack_straight(&guesses, false);
        self.next = self.next.map(|next| next.wrapping_sub(1));
        for from_client in [false, true] {
            self.say(from_client, FIN | ACK, 0);
            self.say(!from_client, ACK, 0);
        }
    }
}

#[test]
fn adversary_without_numbers_changes_nothing() {
    let asked = std::env::var("FLOWLB_CONVERSATIONS");
    let count: u64 = asked.map_or(100_000, |text| text.parse().expect("a number"));
    let mut path = DataPath::new(1024, [7; 16], 1).expect("a small table");
    path.publish(snapshot(Selector::Counter, Transit::Drop));
    path.set_next_hops(next_hops());
    let mut conversation = Conversation {
        path,
        is_hashed: false,
        is_routed: false,
        random: SplitMix64::new(0x00ad_7e25_a217),
        now: SECOND,
        port: 0,
        next: [0; 2],
        server: Ipv4Addr::UNSPECIFIED.octets(),
        scale: None,
        shift: 0,
    };
    for number in 0..count {
        // Another policy now and then: none of them is asked where a flow is known.
        if number % 256 == 0 {
            let mut path = DataPath::new(1024, [7; 16], 1).expect("a small table");
            let selectors = [Selector::Counter, Selector::HashFlow, Selector::Least];
            let selector = selectors[(number / 256 % 3) as usize];
            let is_routed = number / 256 / 3 % 2 == 1;
            let transit = if is_routed {
                Transit::Forward
            } else {
                Transit::Drop
            };
            path.publish(snapshot(selector, transit));
            path.set_next_hops(next_hops());
            conversation.path = path;
            conversation.is_hashed = selector == Selector::HashFlow;
            conversation.is_routed = is_routed;
        }
        conversation.port = 1024 + number as u16 % 32768;
        match number % 8 {
            0 | 1 => conversation.check_handshake(),
            2 | 3 => {
                conversation.begin();
                conversation.check();
            }
            4 => conversation.check_room(),
            5 => conversation.check_abort(),
            6 => conversation.check_chain(),
            _ => conversation.check_fins(),
        }
    }
}
