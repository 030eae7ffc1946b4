//! What became of one frame, as Python sees it: the data path's outcome as it is, turned into Python objects only
//! when asked.

use std::sync::Arc;

use flowlb_core::base::{Direction, InterfaceId, Nanos, Offload, Outcome, Output, Verdict};
use flowlb_core::datapath::DataPath;
use flowlb_core::snapshot::Snapshot;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple, PyType};

type Name = Py<PyString>;

/// Bits of an offload, as in virtio 1.2, 5.1.6.
const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// The names of one generation, by id: made once, shared by all its results. A removed thing keeps the name it had.
#[derive(Default)]
pub struct Names {
    pub interfaces: Vec<Name>,
    pub services: Vec<Option<Name>>,
    pub servers: Vec<Option<Name>>,
    /// `SERVICE/SERVER`, and the protocol of each service: for reports.
    pub paths: Vec<Option<Name>>,
    pub protocols: Vec<Option<Name>>,
}

impl Names {
    /// The names of a snapshot; what it does not name any more is looked up in `before`.
    pub fn new(py: Python<'_>, snapshot: &Snapshot, before: &Self) -> Self {
        let text = |text: &str| PyString::new(py, text).unbind();
        let services: Vec<_> = snapshot.services.iter().map(Option::as_ref).collect();
        let servers: Vec<_> = snapshot.servers.iter().map(Option::as_ref).collect();
        let path = |server: &flowlb_core::snapshot::Server| {
            let service = services
                .get(server.service as usize)
                .copied()
                .flatten()
                .map_or("", |service| &service.name);
            text(&format!("{service}/{}", server.name))
        };
        let protocol = |service: &flowlb_core::snapshot::Service| {
            text(match service.protocol {
                flowlb_core::snapshot::Protocol::Tcp => "tcp",
                flowlb_core::snapshot::Protocol::Udp => "udp",
            })
        };
        Self {
            interfaces: snapshot
                .interfaces
                .iter()
                .map(|interface| text(&interface.name))
                .collect(),
            services: inherit(py, &services, &before.services, |service| {
                text(&service.name)
            }),
            protocols: inherit(py, &services, &before.protocols, protocol),
            servers: inherit(py, &servers, &before.servers, |server| text(&server.name)),
            paths: inherit(py, &servers, &before.paths, path),
        }
    }

    /// The name of an interface; empty when the snapshot that had it is gone.
    pub fn interface(&self, py: Python<'_>, id: InterfaceId) -> Name {
        self.interfaces
            .get(id.index())
            .map_or_else(|| PyString::new(py, "").unbind(), |name| name.clone_ref(py))
    }
}

fn inherit<T>(
    py: Python<'_>,
    items: &[Option<&T>],
    before: &[Option<Name>],
    name: impl Fn(&T) -> Name,
) -> Vec<Option<Name>> {
    let old = |id: usize| {
        before
            .get(id)
            .and_then(|name| Some(name.as_ref()?.clone_ref(py)))
    };
    items
        .iter()
        .enumerate()
        .map(|(id, item)| item.map(&name).or_else(|| old(id)))
        .collect()
}

/// The name of an id that may be absent.
pub fn name_of(py: Python<'_>, names: &[Option<Name>], id: Option<u32>) -> Option<Name> {
    names
        .get(id? as usize)?
        .as_ref()
        .map(|name| name.clone_ref(py))
}

/// What one call of the data path gave, without Python.
pub struct Raw {
    outcome: Outcome,
    /// The frame to send when the outcome has one, else empty.
    frame: Vec<u8>,
    extra: Vec<Output>,
}

impl Raw {
    /// Process one frame.
    pub fn new(
        datapath: &mut DataPath,
        mut frame: Vec<u8>,
        interface: InterfaceId,
        now: Nanos,
        offload: Offload,
    ) -> Self {
        let mut extra = Vec::new();
        let outcome = datapath.process(&mut frame, interface, now, offload, &mut extra);
        frame.truncate(outcome.sent.map_or(0, |sent| sent.len));
        Self {
            outcome,
            frame,
            extra,
        }
    }
}

/// What became of one frame.
#[pyclass(name = "Result", module = "lb._core", frozen)]
pub struct PacketResult {
    raw: Raw,
    names: Arc<Names>,
}

impl PacketResult {
    pub fn new(raw: Raw, names: Arc<Names>) -> Self {
        Self { raw, names }
    }

    /// (interface, frame, offload) of everything to send, in order.
    fn outputs(&self) -> impl Iterator<Item = (InterfaceId, &[u8], Offload)> {
        let sent = self
            .raw
            .outcome
            .sent
            .map(|sent| (sent.interface, &self.raw.frame[..], sent.offload));
        sent.into_iter().chain(
            self.raw
                .extra
                .iter()
                .map(|output| (output.interface, &output.frame[..], output.offload)),
        )
    }
}

#[pymethods]
impl PacketResult {
    #[getter]
    fn verdict<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        match self.raw.outcome.verdict {
            Verdict::Forward => intern!(py, "forward"),
            Verdict::Pass => intern!(py, "pass"),
            Verdict::Drop(_) => intern!(py, "drop"),
            Verdict::Reply(_) => intern!(py, "reply"),
            Verdict::Hold(_) => intern!(py, "hold"),
        }
    }

    #[getter]
    fn reason<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyString>> {
        self.raw
            .outcome
            .verdict
            .reason()
            .map(|reason| PyString::intern(py, reason.name()))
    }

    #[getter]
    fn direction<'py>(&self, py: Python<'py>) -> Option<&Bound<'py, PyString>> {
        self.raw.outcome.direction.map(|direction| match direction {
            Direction::Forward => intern!(py, "forward"),
            Direction::Reply => intern!(py, "reply"),
        })
    }

    #[getter]
    fn service(&self, py: Python<'_>) -> Option<Name> {
        name_of(py, &self.names.services, self.raw.outcome.service)
    }

    #[getter]
    fn server(&self, py: Python<'_>) -> Option<Name> {
        name_of(py, &self.names.servers, self.raw.outcome.server)
    }

    #[getter]
    fn out<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (interface, frame, _) in self.outputs() {
            list.append((self.names.interface(py, interface), PyBytes::new(py, frame)))?;
        }
        Ok(list)
    }

    #[getter]
    fn offloads<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (_, _, offload) in self.outputs() {
            list.append(offload_object(py, offload)?)?;
        }
        Ok(list)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = |name: Option<Name>| match name {
            Some(name) => Ok::<_, PyErr>(name.bind(py).repr()?.to_string()),
            None => Ok("None".to_owned()),
        };
        let out: Vec<_> = self
            .outputs()
            .map(|(interface, frame, _)| {
                format!(
                    "({}, {} bytes)",
                    self.names.interface(py, interface),
                    frame.len()
                )
            })
            .collect();
        Ok(format!(
            "Result(verdict='{}', reason={}, direction={}, service={}, server={}, out=[{}])",
            self.raw.outcome.verdict.name(),
            text(self.reason(py).map(Bound::unbind))?,
            text(self.direction(py).map(|name| name.clone().unbind()))?,
            text(self.service(py))?,
            text(self.server(py))?,
            out.join(", "),
        ))
    }
}

/// A `lb.packet.offload.Offload`, or None when nothing is left to do (`docs/rules.md` rule 1, inputs and outcome).
pub fn offload_object(py: Python<'_>, offload: Offload) -> PyResult<Option<Bound<'_, PyAny>>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if offload.flags & NEEDS_CSUM == 0 && offload.gso_type & !GSO_ECN == 0 {
        return Ok(None);
    }
    let Offload {
        flags,
        gso_type,
        hdr_len,
        gso_size,
        csum_start,
        csum_offset,
    } = offload;
    let fields = (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset);
    CLASS
        .import(py, "lb.packet.offload", "Offload")?
        .call1(fields)
        .map(Some)
}

/// (interface name, frame, offload) of one output.
pub fn output_object<'py>(
    py: Python<'py>,
    names: &Names,
    output: &Output,
) -> PyResult<Bound<'py, PyTuple>> {
    let name = names.interface(py, output.interface);
    (
        name,
        PyBytes::new(py, &output.frame),
        offload_object(py, output.offload)?,
    )
        .into_pyobject(py)
}
