//! The engine and attachment of `python/lb/backends/base.py`: owns the data path, or the packet loop that owns it
//! while it runs.
//!
//! Offline, a call takes the data path out of its cell for as long as it lasts, so that a call from within an `ask`
//! policy or from a second thread meets an error instead of a dead lock. While the loop runs, its thread runs the
//! calls, and the GIL is released meanwhile: an `ask` on that thread needs it.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowlb_core::base::{InterfaceId, Ip, Nanos, Offload};
use flowlb_core::datapath::{
    Carried, DataPath as Core, FlowPage, FlowQuery, FlowReset, FlowSearch, Numbers, Reading,
    RowCopy, RowLoad,
};
use flowlb_core::flow::exports::FlowExports;
use flowlb_core::flow::state::FlowState;
use flowlb_core::flow::table::{Translation, row_layout};
use flowlb_core::forwarding::ForwardingState;
use flowlb_core::io::{Interface, IoCounters, IoReport, LoopError, LoopOptions, Poll, Worker};
use flowlb_core::snapshot::{NextHops, Snapshot};
use flowlb_core::sys::process::{self, require_open};
use flowlb_core::sys::socket::require_socket;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::callbacks::Asker;
use crate::error::Number;
use crate::result::{Names, PacketResult, Raw, output_object};
use crate::{convert, error, report};

/// Places of the flow table whose rows one call returns: 1.6 MiB at most.
const COPY_PLACES: u32 = 1 << 14;

/// Frames that the loop's thread is given at once.
const BATCH: usize = 32;

/// Who has the data path.
enum Mode {
    Offline(Box<Core>),
    /// A call, or a stop, has it just now.
    Busy,
    Running(Arc<Worker>),
}

/// A data path in Rust.
#[pyclass(module = "lb._core", frozen)]
pub struct DataPath {
    mode: Mutex<Mode>,
    names: Mutex<Arc<Names>>,
    asker: Asker,
    io: Arc<IoCounters>,
    /// Held while a forwarding is compiled and swapped: what it is compiled of must not change meanwhile. Never
    /// waited for with the GIL.
    publishing: Mutex<()>,
}

/// `lb.backends.base.Carried`: numbers by name, per service and server by id.
#[derive(FromPyObject, IntoPyObject)]
struct CarriedNumbers {
    #[pyo3(item)]
    totals: Numbers,
    #[pyo3(item)]
    services: Vec<Numbers>,
    #[pyo3(item)]
    servers: Vec<Numbers>,
    #[pyo3(item)]
    io: Numbers,
}

/// What belonged to a server id: service, endpoint, and whether they are of UDP; then service, server and endpoint now.
type ServerIds = ((u32, u32, bool), (u32, u32, u32));

fn translation(((service, endpoint, is_udp), today): ServerIds) -> Translation {
    Translation {
        then: (service, endpoint),
        is_udp,
        today,
    }
}

/// A file of our own for a descriptor that the caller keeps.
fn file(py: Python<'_>, fd: RawFd) -> PyResult<File> {
    process::duplicate(fd).map_err(|error| error::os_error(py, &error))
}

/// What is behind these locks is whole at any time; a panic takes nothing from that.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the data path back, also when a call unwinds.
struct Taken<'a> {
    mode: &'a Mutex<Mode>,
    core: Option<Box<Core>>,
}

impl Taken<'_> {
    fn core(&mut self) -> &mut Core {
        self.core.as_mut().expect("only drop takes it away")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            *lock(self.mode) = Mode::Offline(core);
        }
    }
}

/// What a call may do with the data path.
enum Access<'a> {
    Offline(Taken<'a>),
    Running(Arc<Worker>),
}

impl DataPath {
    fn names(&self) -> Arc<Names> {
        Arc::clone(&lock(&self.names))
    }

    /// Give the data path to a packet loop on a thread of its own.
    fn run(
        &self,
        py: Python<'_>,
        interfaces: Vec<Interface>,
        options: LoopOptions,
    ) -> PyResult<()> {
        let mut mode = lock(&self.mode);
        let core = match std::mem::replace(&mut *mode, Mode::Busy) {
            Mode::Offline(core) => core,
            other => {
                *mode = other;
                return Err(busy(py));
            }
        };
        let started = self
            .asker
            .go_live(|| Worker::start(core, interfaces, options).map(Arc::new));
        match started {
            Ok(worker) => {
                *mode = Mode::Running(worker);
                Ok(())
            }
            Err((core, failure)) => {
                *mode = Mode::Offline(core);
                Err(not_started(py, &failure))
            }
        }
    }

    /// Take the data path back from a loop, which `end` ends; does nothing when there is none.
    fn end_loop<T: Default + Send>(
        &self,
        py: Python<'_>,
        end: impl FnOnce(&Worker) -> Option<(Box<Core>, Result<(), LoopError>, T)> + Send,
    ) -> PyResult<T> {
        let worker = {
            let mut mode = lock(&self.mode);
            let Mode::Running(worker) = &*mode else {
                return Ok(T::default());
            };
            let worker = Arc::clone(worker);
            *mode = Mode::Busy;
            worker
        };
        let Some((core, ended, left)) = py.detach(|| end(&worker)) else {
            return Err(error::lb_error(
                py,
                "the packet loop took the data path with it",
            ));
        };
        self.asker.end_live();
        *lock(&self.mode) = Mode::Offline(core);
        ended
            .map(|()| left)
            .map_err(|failure| error::loop_error(py, &failure))
    }

    /// Find out who has the data path, and take it when it is free.
    fn access(&self, py: Python<'_>) -> PyResult<Access<'_>> {
        let mut mode = lock(&self.mode);
        match std::mem::replace(&mut *mode, Mode::Busy) {
            Mode::Offline(core) => Ok(Access::Offline(Taken {
                mode: &self.mode,
                core: Some(core),
            })),
            Mode::Busy => Err(busy(py)),
            Mode::Running(worker) => {
                *mode = Mode::Running(Arc::clone(&worker));
                Ok(Access::Running(worker))
            }
        }
    }

    /// Run something on the data path, wherever it is.
    fn with<T: Send + 'static>(
        &self,
        py: Python<'_>,
        action: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> PyResult<T> {
        match self.access(py)? {
            Access::Offline(mut taken) => Ok(action(taken.core())),
            Access::Running(worker) => call(py, &worker, action),
        }
    }

    /// Run something in slices, until one says that it was the last: while the loop runs, packets pass in between,
    /// and `between` is done on this thread, before each slice.
    fn in_slices<T: Send + 'static>(
        &self,
        py: Python<'_>,
        mut job: T,
        between: impl Fn(&mut T) + Send,
        slice: impl Fn(&mut T, &mut Core) -> bool + Copy + Send + 'static,
    ) -> PyResult<T> {
        match self.access(py)? {
            Access::Offline(mut taken) => {
                between(&mut job);
                while !slice(&mut job, taken.core()) {
                    between(&mut job);
                }
                Ok(job)
            }
            Access::Running(worker) => {
                let slices = move || loop {
                    between(&mut job);
                    let is_last;
                    (job, is_last) = worker.call(move |core| {
                        let is_last = slice(&mut job, core);
                        (job, is_last)
                    })?;
                    if is_last {
                        return Ok(job);
                    }
                };
                py.detach(slices)
                    .map_err(|error| error::loop_error(py, &error))
            }
        }
    }

    /// Compile a forwarding and swap to it. While the loop runs, its thread only makes room and swaps; the old
    /// forwarding is dropped on this one.
    fn compile(&self, py: Python<'_>, source: Source) -> PyResult<()> {
        match self.access(py)? {
            Access::Offline(mut taken) => {
                match source {
                    Source::Snapshot(snapshot) => taken.core().publish(snapshot),
                    Source::NextHops(next_hops) => taken.core().set_next_hops(next_hops),
                }
                Ok(())
            }
            Access::Running(worker) => py
                .detach(|| {
                    let _alone = lock(&self.publishing);
                    swap_state(&worker, source)
                })
                .map_err(|error| error::loop_error(py, &error)),
        }
    }

    /// The flows that a search finds: how many, and its page of them.
    fn search(&self, py: Python<'_>, search: FlowSearch) -> PyResult<(usize, FlowPage)> {
        let search = self.in_slices(py, search, FlowSearch::settle, |search, core| {
            core.look(search)
        })?;
        Ok(py.detach(|| search.page()))
    }

    /// How many flows fit a query, and its page of them.
    fn list<'py>(
        &self,
        py: Python<'py>,
        query: FlowQuery,
        now_ns: u64,
    ) -> PyResult<(usize, Bound<'py, PyList>)> {
        let (total, page) = self.search(py, FlowSearch::new(query, Nanos::new(now_ns)))?;
        let page = self.in_slices(py, page, |_| (), |page, core| core.read_rows(page))?;
        let rows = report::flows(py, &page.into_rows(), &self.names())?;
        Ok((total, rows))
    }

    /// The counters, with what was measured where that is asked for.
    fn read(&self, py: Python<'_>, measures: bool) -> PyResult<Reading> {
        let reading = self.with(py, move |core| core.reading(measures))?;
        self.in_slices(py, reading, Reading::settle, |reading, core| {
            core.copy_some(reading)
        })
    }
}

fn swap_state(worker: &Worker, source: Source) -> Result<(), LoopError> {
    let (snapshot, next_hops) = worker.call(|core| core.sources())?;
    let mut forwarding = Box::new(match source {
        Source::Snapshot(snapshot) => ForwardingState::new(snapshot, next_hops),
        Source::NextHops(next_hops) => ForwardingState::new(snapshot, next_hops),
    });
    let (services, servers) = (
        forwarding.snapshot.services.len(),
        forwarding.snapshot.servers.len(),
    );
    while !worker.call(move |core| core.make_room(services, servers))? {}
    let mut is_ready = false;
    while !is_ready {
        (forwarding, is_ready) = worker.call(move |core| {
            let is_ready = core.prepare(&forwarding);
            (forwarding, is_ready)
        })?;
    }
    let before = worker.call(move |core| core.swap(forwarding))?;
    drop(before);
    Ok(())
}

/// What a forwarding is compiled of: a new snapshot with the next hops there are, or the other way round.
enum Source {
    Snapshot(Snapshot),
    NextHops(NextHops),
}

/// Let the loop's thread run something.
fn call<T: Send + 'static>(
    py: Python<'_>,
    worker: &Worker,
    action: impl FnOnce(&mut Core) -> T + Send + 'static,
) -> PyResult<T> {
    py.detach(|| worker.call(action))
        .map_err(|error| error::loop_error(py, &error))
}

/// The interfaces of a loop, in order of their ids: a socket each, and for some one that sends directly.
/// `lb.backends.base.AttachedInterface`.
#[derive(FromPyObject)]
struct AttachedInterface {
    name: String,
    sockets: Vec<RawFd>,
    direct: Option<RawFd>,
    ring: Option<usize>,
}

impl AttachedInterface {
    /// Refuse what is not one socket: one data path is one worker.
    fn check(&self) -> PyResult<()> {
        if self.sockets.len() == 1 {
            return Ok(());
        }
        let (name, count) = (&self.name, self.sockets.len());
        Err(PyValueError::new_err(format!(
            "{name}: {count} sockets for one worker"
        )))
    }
}

fn loop_interfaces(attached: &[AttachedInterface]) -> io::Result<Vec<Interface>> {
    let with_af_xdp = |(id, each): (usize, &AttachedInterface)| {
        let interface = Interface::adopt(each.sockets[0], each.ring);
        let Some(xdp_socket) = each.direct else {
            return Ok(interface);
        };
        interface.with_af_xdp(xdp_socket).map_err(|error| {
            let reason = format!("frames cannot be sent directly from interface {id}: {error}");
            io::Error::new(error.kind(), reason)
        })
    };
    attached.iter().enumerate().map(with_af_xdp).collect()
}

fn not_started(py: Python<'_>, failure: &io::Error) -> PyErr {
    error::lb_error(py, format!("the packet loop could not start: {failure}"))
}

fn busy(py: Python<'_>) -> PyErr {
    error::lb_error(
        py,
        "the data path is in use: it was called by a second thread, or from within an `ask` policy",
    )
}

#[pymethods]
impl DataPath {
    #[new]
    #[pyo3(
        signature = (capacity, hash_key, seed, first_round=Number(0), table_fd=None),
        text_signature = "(capacity, hash_key, seed, first_round=0, table_fd=None)"
    )]
    fn new(
        py: Python<'_>,
        capacity: Number<u64>,
        hash_key: &[u8],
        seed: Number<u64>,
        first_round: Number<u64>,
        table_fd: Option<RawFd>,
    ) -> PyResult<Self> {
        let hash_key = hash_key.try_into().map_err(|_| {
            PyValueError::new_err(format!("hash_key: {} bytes, 16 are needed", hash_key.len()))
        })?;
        let made = match table_fd {
            None => Core::new(capacity.0, hash_key, seed.0),
            Some(fd) => Core::in_file(capacity.0, hash_key, seed.0, &file(py, fd)?),
        };
        let mut core = made.map_err(|error| error::datapath_error(py, &error))?;
        core.start_rounds_at(first_round.0);
        Ok(Self {
            mode: Mutex::new(Mode::Offline(Box::new(core))),
            names: Mutex::default(),
            asker: Asker::default(),
            io: Arc::default(),
            publishing: Mutex::default(),
        })
    }

    fn keep_flows(
        &self,
        py: Python<'_>,
        table_fd: RawFd,
        servers: Vec<Option<ServerIds>>,
        interfaces: Vec<Option<u32>>,
        now_ns: Number<u64>,
    ) -> PyResult<(u64, u64)> {
        let file = file(py, table_fd)?;
        let Access::Offline(mut taken) = self.access(py)? else {
            return Err(error::lb_error(py, "flows are kept before packets come"));
        };
        let translate = move |server: u32| servers.get(server as usize)?.map(translation);
        let interface =
            move |id: InterfaceId| interfaces.get(id.get() as usize)?.map(InterfaceId::new);
        let kept = taken
            .core()
            .keep_flows(&file, translate, interface, Nanos::new(now_ns.0))
            .map_err(|error| error::datapath_error(py, &error))?;
        Ok((kept.flows, kept.dropped))
    }

    fn carried(&self, py: Python<'_>) -> PyResult<CarriedNumbers> {
        let Carried {
            totals,
            services,
            servers,
        } = self.with(py, |core| core.carried())?;
        Ok(CarriedNumbers {
            totals,
            services,
            servers,
            io: self
                .io
                .report()
                .carried()
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
        })
    }

    fn carry(
        &self,
        py: Python<'_>,
        carried: CarriedNumbers,
        services: Vec<Option<u32>>,
        servers: Vec<Option<u32>>,
    ) -> PyResult<()> {
        let mut io = IoReport::default();
        for (name, count) in &carried.io {
            io.carry(name, *count);
        }
        self.io.carry(&io);
        let carried = Carried {
            totals: carried.totals,
            services: carried.services,
            servers: carried.servers,
        };
        self.with(py, move |core| {
            let now = |ids: &[Option<u32>], id: u32| *ids.get(id as usize)?;
            core.carry(&carried, |id| now(&services, id), |id| now(&servers, id));
        })
    }

    #[expect(clippy::unused_self, reason = "a method of the contract")]
    fn flow_layout(&self) -> String {
        row_layout()
    }

    fn copy_flows<'py>(
        &self,
        py: Python<'py>,
        place: Number<u32>,
        now_ns: Number<u64>,
    ) -> PyResult<(Bound<'py, PyBytes>, Option<u32>)> {
        let copy = RowCopy::new(place.0, COPY_PLACES, Nanos::new(now_ns.0));
        let copy = self.in_slices(py, copy, RowCopy::settle, |copy, core| {
            core.copy_some_rows(copy)
        })?;
        let (rows, next) = copy.into_rows();
        Ok((PyBytes::new(py, &rows), next))
    }

    fn load_flows(
        &self,
        py: Python<'_>,
        rows: &[u8],
        servers: Vec<Option<ServerIds>>,
        interfaces: Vec<Option<u32>>,
        now_ns: Number<u64>,
    ) -> PyResult<(u64, u64)> {
        let servers = servers
            .into_iter()
            .map(|ids| ids.map(translation))
            .collect();
        let interfaces = interfaces
            .into_iter()
            .map(|id| id.map(InterfaceId::new))
            .collect();
        let load = py
            .detach(|| RowLoad::new(rows, servers, interfaces, Nanos::new(now_ns.0)))
            .map_err(|error| error::datapath_error(py, &error))?;
        let load = self.in_slices(py, load, |_| (), |load, core| core.keep_some_rows(load))?;
        let kept = load.kept();
        Ok((kept.flows, kept.dropped))
    }

    fn publish(&self, py: Python<'_>, snapshot: &Bound<'_, PyAny>) -> PyResult<()> {
        let snapshot = convert::snapshot(snapshot, &self.asker)?;
        let names = Arc::new(Names::new(py, &snapshot, &self.names()));
        self.compile(py, Source::Snapshot(snapshot))?;
        *lock(&self.names) = names;
        Ok(())
    }

    fn set_next_hops(&self, py: Python<'_>, next_hops: &Bound<'_, PyAny>) -> PyResult<()> {
        let next_hops = convert::next_hops(next_hops)?;
        self.compile(py, Source::NextHops(next_hops))
    }

    #[pyo3(signature = (frame, interface, now_ns, offload=None))]
    fn process(
        &self,
        py: Python<'_>,
        frame: &[u8],
        interface: u32,
        now_ns: u64,
        offload: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PacketResult> {
        let names = self.names();
        let offload = convert::offload(offload)?;
        let frame = frame.to_vec();
        let raw = self.with(py, move |core| {
            Raw::new(
                core,
                frame,
                InterfaceId::new(interface),
                Nanos::new(now_ns),
                offload,
            )
        })?;
        Ok(PacketResult::new(raw, names))
    }

    fn process_many<'py>(
        &self,
        py: Python<'py>,
        frames: &Bound<'py, PyAny>,
        interface: u32,
        now_ns: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let names = self.names();
        let process = move |core: &mut Core, frame| {
            Raw::new(
                core,
                frame,
                InterfaceId::new(interface),
                Nanos::new(now_ns),
                Offload::default(),
            )
        };
        let list = PyList::empty(py);
        let add = |raw| list.append(Bound::new(py, PacketResult::new(raw, Arc::clone(&names)))?);
        match self.access(py)? {
            // One result at a time: a long list of intermediate ones would push the frames out of the cache.
            Access::Offline(mut taken) => {
                each_frame(frames, |frame| add(process(taken.core(), frame)))?;
            }
            Access::Running(worker) => {
                let mut copies = Vec::with_capacity(frames.len().unwrap_or_default());
                each_frame(frames, |frame| {
                    copies.push(frame);
                    Ok(())
                })?;
                // A batch at a time: frames from the sockets pass in between.
                let mut copies = copies.into_iter();
                loop {
                    let batch: Vec<_> = copies.by_ref().take(BATCH).collect();
                    if batch.is_empty() {
                        break;
                    }
                    let all = move |core: &mut Core| -> Vec<Raw> {
                        batch
                            .into_iter()
                            .map(|frame| process(core, frame))
                            .collect()
                    };
                    call(py, &worker, all)?.into_iter().try_for_each(add)?;
                }
            }
        }
        Ok(list)
    }

    fn tick<'py>(&self, py: Python<'py>, now_ns: u64) -> PyResult<Bound<'py, PyList>> {
        let outputs = self.with(py, move |core| {
            let mut outputs = Vec::new();
            core.tick(Nanos::new(now_ns), &mut outputs);
            outputs
        })?;
        let names = self.names();
        let list = PyList::empty(py);
        for output in &outputs {
            list.append(output_object(py, &names, output)?)?;
        }
        Ok(list)
    }

    fn reset_flows(
        &self,
        py: Python<'_>,
        server: Option<Number<u32>>,
        limit: Number<usize>,
        now_ns: u64,
    ) -> PyResult<usize> {
        let server = server.map(|id| id.0);
        let search = FlowReset::search(server, limit.0, Nanos::new(now_ns));
        let (_, page) = self.search(py, search)?;
        let reset = FlowReset::new(server, page);
        let reset = self.in_slices(py, reset, |_| (), |reset, core| core.reset_some(reset))?;
        Ok(reset.removed())
    }

    fn active_flows(&self, py: Python<'_>, servers: Vec<u32>) -> PyResult<Vec<u64>> {
        self.with(py, move |core| core.active_flows(&servers))
    }

    fn retire_servers(&self, py: Python<'_>, servers: Vec<u32>) -> PyResult<Vec<u32>> {
        self.with(py, move |core| core.retire_servers(&servers))
    }

    fn retire_services(&self, py: Python<'_>, services: Vec<u32>) -> PyResult<Vec<u32>> {
        self.with(py, move |core| core.retire_services(&services))
    }

    fn flows<'py>(&self, py: Python<'py>, now_ns: u64) -> PyResult<Bound<'py, PyList>> {
        Ok(self.list(py, FlowQuery::all(), now_ns)?.1)
    }

    #[pyo3(signature = (now_ns, offset, limit, client=None, servers=None, state=None))]
    #[expect(clippy::too_many_arguments, reason = "each is an argument in Python")]
    fn find_flows<'py>(
        &self,
        py: Python<'py>,
        now_ns: u64,
        offset: Number<usize>,
        limit: Number<usize>,
        client: Option<IpAddr>,
        servers: Option<Vec<u32>>,
        state: Option<&str>,
    ) -> PyResult<(usize, Bound<'py, PyList>)> {
        let query = FlowQuery {
            client: client.map(Ip::from),
            servers,
            state: state.map(flow_state).transpose()?,
            offset: offset.0,
            limit: limit.0,
        };
        self.list(py, query, now_ns)
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let reading = self.read(py, false)?;
        let counters = py.detach(|| reading.report());
        report::counters(
            py,
            &counters,
            &self.names(),
            self.io.report(),
            &self.io.loop_report(),
        )
    }

    fn memory(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let sum = ((0, 0), Some(0));
        let (sum, _) = self.in_slices(
            py,
            sum,
            |_| (),
            |(total, at), core| {
                let (part, next) = core.memory_part(at.unwrap_or(0));
                *total = (total.0 + part.0, total.1 + part.1);
                *at = next;
                next.is_none()
            },
        )?;
        Ok(sum)
    }

    fn take_unresolved(&self, py: Python<'_>) -> PyResult<Vec<(u32, IpAddr)>> {
        let hops = self.with(py, Core::take_unresolved)?.into_iter();
        Ok(hops
            .map(|(interface, address)| (interface.get(), address))
            .collect())
    }

    fn peek<'py>(
        &self,
        py: Python<'py>,
        service: u32,
        client: IpAddr,
        client_port: u16,
        now_ns: u64,
    ) -> PyResult<(Option<Bound<'py, PyAny>>, u64)> {
        let (flow, round) = self.with(py, move |core| {
            core.peek(service, client, client_port, Nanos::new(now_ns))
        })?;
        let found = report::flows(py, flow.as_slice(), &self.names())?;
        Ok((found.iter().next(), round))
    }

    fn measurements<'py>(&self, py: Python<'py>, now_ns: u64) -> PyResult<Bound<'py, PyDict>> {
        let reading = self.read(py, true)?;
        let measured = py.detach(|| reading.measurements(Nanos::new(now_ns)));
        report::measurements(py, &measured, &self.names())
    }

    fn keep_flow_exports(&self, py: Python<'_>, most: Number<usize>) -> PyResult<()> {
        let capacity = self.with(py, |core| core.capacity())?;
        let room = if most.0 == 0 { 0 } else { capacity };
        let room = py.detach(|| FlowExports::room(room));
        let unused = self.with(py, move |core| core.keep_flow_exports(most.0, room))?;
        py.detach(|| drop(unused));
        Ok(())
    }

    fn take_flow_exports<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyList>, u64)> {
        let (ends, missed) = self.with(py, Core::take_flow_exports)?;
        Ok((report::flow_exports(py, &ends, &self.names())?, missed))
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "PyO3 cannot lend a slice of a list"
    )]
    #[pyo3(
        signature = (interfaces, notify_fd, poll=None),
        text_signature = "($self, interfaces, notify_fd, poll=None)"
    )]
    fn attach(
        &self,
        py: Python<'_>,
        interfaces: Vec<AttachedInterface>,
        notify_fd: RawFd,
        poll: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let poll = poll.map_or(Ok(Poll::default()), convert::poll)?;
        interfaces.iter().try_for_each(AttachedInterface::check)?;
        interfaces
            .iter()
            .try_for_each(|interface| require_socket(interface.sockets[0]))
            .and_then(|()| require_open(notify_fd))
            .map_err(|failure| error::os_error(py, &failure))?;
        // Without the GIL: zeroing gigabytes takes its time. Other calls find the data path in use meanwhile.
        match self.access(py)? {
            Access::Offline(mut taken) => py
                .detach(|| taken.core().populate())
                .map_err(|failure| error::datapath_error(py, &failure))?,
            Access::Running(_) => return Err(error::lb_error(py, "the packet loop runs already")),
        }
        let interfaces =
            loop_interfaces(&interfaces).map_err(|failure| not_started(py, &failure))?;
        let options = LoopOptions {
            notify_fd,
            poll,
            counters: Arc::clone(&self.io),
        };
        self.run(py, interfaces, options)
    }

    fn detach(&self, py: Python<'_>) -> PyResult<()> {
        self.end_loop(py, |worker| {
            worker.stop().map(|(core, ended)| (core, ended, ()))
        })
    }

    fn leave(&self, py: Python<'_>) -> PyResult<Vec<Option<usize>>> {
        self.end_loop(py, Worker::leave)
    }
}

impl Drop for DataPath {
    /// Join a loop that was not stopped, without the GIL: an `ask` on its thread may be waiting for it.
    fn drop(&mut self) {
        let mode = std::mem::replace(&mut *lock(&self.mode), Mode::Busy);
        if let Mode::Running(worker) = mode {
            Python::try_attach(|py| py.detach(|| worker.stop()));
        }
    }
}

/// The state that a flow is listed with.
fn flow_state(name: &str) -> PyResult<FlowState> {
    let found = FlowState::ALL
        .into_iter()
        .find(|state| state.name() == name);
    found.ok_or_else(|| PyValueError::new_err(format!("state: {name:?} is none of a flow")))
}

/// Copy each frame of any sequence of bytes.
fn each_frame(
    frames: &Bound<'_, PyAny>,
    mut action: impl FnMut(Vec<u8>) -> PyResult<()>,
) -> PyResult<()> {
    for (index, frame) in frames.try_iter()?.enumerate() {
        let frame = frame?;
        let Ok(bytes) = frame.cast::<PyBytes>() else {
            let class = frame.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "frames[{index}]: bytes are needed, not {class}"
            )));
        };
        action(bytes.as_bytes().to_vec())?;
    }
    Ok(())
}
