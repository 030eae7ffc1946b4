//! Counters and flows as Python sees them: plain dicts and named tuples (`docs/rules.md` rule 13, counters).

use std::net::IpAddr;

use flowlb_core::base::Nanos;
use flowlb_core::counters::{CounterReport, Measured, Traffic};
use flowlb_core::datapath::FlowInfo;
use flowlb_core::flow::exports::FlowExport;
use flowlb_core::io::pauses::{BOUNDS_NS, HistogramReport};
use flowlb_core::io::{IoReport, LoopReport};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyDict, PyList, PyString, PyType};

use crate::result::{Names, name_of};

/// All counters by name.
pub fn counters<'py>(
    py: Python<'py>,
    report: &CounterReport,
    names: &Names,
    io: IoReport,
    of_loop: &LoopReport,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("rx_packets", report.rx_packets)?;
    dict.set_item("rx_bytes", report.rx_bytes)?;
    dict.set_item("tx_packets", report.tx_packets)?;
    dict.set_item("tx_bytes", report.tx_bytes)?;
    dict.set_item("verdicts", report.verdicts.iter().into_py_dict(py)?)?;
    dict.set_item("events", report.events.iter().copied().into_py_dict(py)?)?;
    let table = [
        ("entries", report.table.entries),
        ("capacity", report.table.capacity),
    ];
    dict.set_item("table", table.into_py_dict(py)?)?;
    dict.set_item(
        "services",
        traffic_by_name(py, &report.services, &names.services)?,
    )?;
    dict.set_item(
        "servers",
        traffic_by_name(py, &report.servers, &names.paths)?,
    )?;
    dict.set_item("io", io_counters(py, io)?)?;
    let pauses = [
        ("pauses", histogram(py, &of_loop.pauses)?),
        ("control", histogram(py, &of_loop.control)?),
    ];
    dict.set_item("loop", pauses.into_py_dict(py)?)?;
    Ok(dict)
}

/// A histogram by name: values per bucket, by the bucket's upper bound in nanoseconds.
fn histogram<'py>(py: Python<'py>, report: &HistogramReport) -> PyResult<Bound<'py, PyDict>> {
    let buckets = PyDict::new(py);
    let names = BOUNDS_NS.iter().map(ToString::to_string);
    for (name, count) in names.chain(["inf".to_owned()]).zip(report.buckets) {
        buckets.set_item(name, count)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("buckets", buckets)?;
    dict.set_item("sum_ns", report.sum_ns)?;
    dict.set_item("max_ns", report.max_ns)?;
    Ok(dict)
}

fn io_counters(py: Python<'_>, io: IoReport) -> PyResult<Bound<'_, PyDict>> {
    let pairs = [
        ("rx_truncated", io.rx_truncated),
        ("rx_errors", io.rx_errors),
        ("rx_dropped", io.rx_dropped),
        ("tx_dropped", io.tx_dropped),
        ("tx_errors", io.tx_errors),
    ];
    pairs.into_py_dict(py)
}

fn traffic_by_name<'py>(
    py: Python<'py>,
    all: &[Option<Traffic>],
    names: &[Option<Py<PyString>>],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (traffic, name) in all.iter().zip(names) {
        if let (Some(traffic), Some(name)) = (traffic, name) {
            dict.set_item(name, traffic_counters(py, traffic)?)?;
        }
    }
    Ok(dict)
}

fn traffic_counters<'py>(py: Python<'py>, traffic: &Traffic) -> PyResult<Bound<'py, PyDict>> {
    let pairs = [
        ("flows_created", traffic.flows_created),
        ("flows_active", traffic.flows_active),
        ("packets_forward", traffic.packets_forward),
        ("packets_reply", traffic.packets_reply),
        ("bytes_forward", traffic.bytes_forward),
        ("bytes_reply", traffic.bytes_reply),
    ];
    pairs.into_py_dict(py)
}

/// What is known of each server, by service and server name (`docs/rules.md` rule 16, measurements).
pub fn measurements<'py>(
    py: Python<'py>,
    all: &[Option<Measured>],
    names: &Names,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (measured, name) in all.iter().zip(&names.servers) {
        let (Some(measured), Some(name)) = (measured, name) else {
            continue;
        };
        let service = name_of(py, &names.services, Some(measured.service));
        let of_service = match dict.get_item(&service)? {
            Some(found) => found.cast_into::<PyDict>()?,
            None => PyDict::new(py),
        };
        of_service.set_item(name, measures(py, measured)?)?;
        dict.set_item(service, of_service)?;
    }
    Ok(dict)
}

fn measures<'py>(py: Python<'py>, measured: &Measured) -> PyResult<Bound<'py, PyDict>> {
    let Measured {
        traffic,
        measures,
        stalled_ns,
        ..
    } = measured;
    let pairs = [
        ("flows_created", traffic.flows_created),
        ("flows_active", traffic.flows_active),
        ("bytes_reply", traffic.bytes_reply),
        ("connects", measures.connect.count),
        ("connect_ns", measures.connect.sum_ns),
        ("connect_peak_ns", measures.connect.peak_ns),
        ("first_bytes", measures.first_byte.count),
        ("first_byte_ns", measures.first_byte.sum_ns),
        ("first_byte_peak_ns", measures.first_byte.peak_ns),
        ("syn_retransmitted", measures.syn_retransmitted),
        ("retransmitted", measures.retransmitted),
        ("refused", measures.refused),
        ("unanswered", measures.unanswered),
        ("failed", measures.failed),
        ("requests", measures.requests),
        ("requests_active", measures.requests_active),
        ("answer_ns", measures.answer_ns),
        ("waiting_flows", measures.waiting_flows),
        ("stalled_ns", *stalled_ns),
        ("in_flight_bytes", measures.in_flight_bytes),
    ];
    pairs.into_py_dict(py)
}

/// A list of `lb.backends.base.Flow`.
pub fn flows<'py>(
    py: Python<'py>,
    flows: &[FlowInfo],
    names: &Names,
) -> PyResult<Bound<'py, PyList>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(py, "lb.backends.base", "Flow")?;
    let list = PyList::empty(py);
    for flow in flows {
        #[expect(
            clippy::cast_precision_loss,
            reason = "2^53 ns are 104 days; no flow is idle that long"
        )]
        let idle_s = flow.idle_ns as f64 / 1e9;
        list.append(class.call1((
            flow.client.to_string(),
            flow.client_port,
            name_of(py, &names.services, Some(flow.service)),
            name_of(py, &names.servers, Some(flow.server)),
            name_of(py, &names.protocols, Some(flow.service)),
            flow.state,
            idle_s,
            flow.bytes_forward,
            flow.bytes_reply,
        ))?)?;
    }
    Ok(list)
}

/// A list of `lb.backends.base.FlowRecord`.
pub fn flow_exports<'py>(
    py: Python<'py>,
    ends: &[FlowExport],
    names: &Names,
) -> PyResult<Bound<'py, PyList>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(py, "lb.backends.base", "FlowRecord")?;
    let list = PyList::empty(py);
    for end in ends {
        list.append(class.call1((
            IpAddr::from(end.client).to_string(),
            end.client_port,
            name_of(py, &names.services, Some(end.service)),
            name_of(py, &names.servers, Some(end.server)),
            name_of(py, &names.protocols, Some(end.service)),
            end.ended,
            end.began.map(Nanos::get),
            end.last_seen.get(),
            end.bytes_forward,
            end.bytes_reply,
        ))?)?;
    }
    Ok(list)
}
