//! From the dataclasses of `python/lb/model/snapshot.py` to the structs of the data path, by attribute. Errors name
//! class and field.

use std::net::IpAddr;

use flowlb_core::base::{InterfaceId, Mac, Offload};
use flowlb_core::io::Poll;
use flowlb_core::snapshot::{
    AskFunction, Interface, Neighbour, NextHops, Plan, Protocol, Route, Selector, Server, Service,
    Settings, Snapshot, Timeouts,
};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::callbacks::Asker;

type Object<'py> = Bound<'py, PyAny>;

/// Read an attribute as `T`.
fn field<'py, T: FromPyObjectOwned<'py>>(object: &Object<'py>, name: &str) -> PyResult<T> {
    object
        .getattr(name)?
        .extract()
        .map_err(|error: T::Error| in_field(object, name, &error.into()))
}

/// Read an attribute with a converter.
fn field_with<'py, T>(
    object: &Object<'py>,
    name: &str,
    convert: impl Fn(&Object<'py>) -> PyResult<T>,
) -> PyResult<T> {
    convert(&object.getattr(name)?).map_err(|error| in_field(object, name, &error))
}

/// Read an attribute that may be None.
fn optional<'py, T>(
    value: &Object<'py>,
    convert: impl Fn(&Object<'py>) -> PyResult<T>,
) -> PyResult<Option<T>> {
    if value.is_none() {
        Ok(None)
    } else {
        convert(value).map(Some)
    }
}

/// Read every item of a sequence.
fn each<'py, T>(
    value: &Object<'py>,
    convert: impl Fn(&Object<'py>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    value.try_iter()?.map(|item| convert(&item?)).collect()
}

/// Say in which field an error was: the class stays, but a number that is out of range is a wrong value.
fn in_field(object: &Object<'_>, name: &str, error: &PyErr) -> PyErr {
    let py = object.py();
    let class = object
        .get_type()
        .name()
        .map(|name| name.to_string())
        .unwrap_or_default();
    let message = format!("{class}.{name}: {}", error.value(py));
    if error.is_instance_of::<PyTypeError>(py) {
        PyTypeError::new_err(message)
    } else if error.is_instance_of::<PyValueError>(py)
        || error.is_instance_of::<PyOverflowError>(py)
    {
        PyValueError::new_err(message)
    } else {
        error.clone_ref(py)
    }
}

/// Choose by a name, or say which names there are.
fn one_of<T: Copy>(value: &Object<'_>, choices: &[(&str, T)]) -> PyResult<T> {
    let name: String = value.extract()?;
    choices
        .iter()
        .find(|(choice, _)| *choice == name)
        .map(|&(_, chosen)| chosen)
        .ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|&(choice, _)| choice).collect();
            PyValueError::new_err(format!("{name:?} is none of {}", names.join(", ")))
        })
}

fn mac(value: &Object<'_>) -> PyResult<Mac> {
    let bytes = value.cast::<PyBytes>()?.as_bytes();
    bytes
        .try_into()
        .map_err(|_| PyValueError::new_err(format!("{} bytes, a MAC address has 6", bytes.len())))
}

fn address(value: &Object<'_>) -> PyResult<IpAddr> {
    value.extract()
}

fn ask(value: &Object<'_>, asker: &Asker) -> PyResult<AskFunction> {
    if !value.is_callable() {
        return Err(PyTypeError::new_err("not callable"));
    }
    asker.function(value.py(), value.clone().unbind())
}

fn plan(value: &Object<'_>) -> PyResult<Plan> {
    const SELECTORS: [(&str, Selector); 7] = [
        ("counter", Selector::Counter),
        ("random", Selector::Random),
        ("hash-source", Selector::HashSource),
        ("hash-flow", Selector::HashFlow),
        ("least", Selector::Least),
        ("two-choices", Selector::TwoChoices),
        ("ask", Selector::Ask),
    ];
    Ok(Plan {
        selector: field_with(value, "selector", |name| one_of(name, &SELECTORS))?,
        slots: field(value, "slots")?,
        scores: field(value, "scores")?,
        fallback: field_with(value, "fallback", |inner| optional(inner, plan))?.map(Box::new),
        deadline_ns: field(value, "deadline_ns")?,
    })
}

fn interface_address(value: &Object<'_>) -> PyResult<(IpAddr, u8)> {
    Ok((
        field(value, "ip")?,
        field_with(value, "network", |network| field(network, "prefixlen"))?,
    ))
}

fn interface(value: &Object<'_>) -> PyResult<Interface> {
    Ok(Interface {
        name: field(value, "name")?,
        mac: field_with(value, "mac", mac)?,
        mtu: field(value, "mtu")?,
        addresses: field_with(value, "addresses", |all| each(all, interface_address))?,
        announce: field(value, "announce")?,
    })
}

fn server(value: &Object<'_>) -> PyResult<Server> {
    Ok(Server {
        name: field(value, "name")?,
        service: field(value, "service")?,
        endpoint: field(value, "endpoint")?,
        address: field(value, "address")?,
        port: field(value, "port")?,
        weight: field(value, "weight")?,
        mac: field_with(value, "mac", |given| optional(given, mac))?,
        moves_udp: field(value, "moves_udp")?,
    })
}

fn service(value: &Object<'_>) -> PyResult<Service> {
    const PROTOCOLS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    const ANSWERS: [(&str, bool); 2] = [("reset", true), ("drop", false)];
    Ok(Service {
        name: field(value, "name")?,
        address: field(value, "address")?,
        port: field(value, "port")?,
        protocol: field_with(value, "protocol", |name| one_of(name, &PROTOCOLS))?,
        plan: field_with(value, "plan", plan)?,
        reset_without_server: field_with(value, "on_no_server", |name| one_of(name, &ANSWERS))?,
        reset_without_flow: field_with(value, "on_no_flow", |name| one_of(name, &ANSWERS))?,
    })
}

fn timeouts(value: &Object<'_>) -> PyResult<Timeouts> {
    Ok(Timeouts {
        half_open_ns: field(value, "half_open_ns")?,
        established_ns: field(value, "established_ns")?,
        closing_ns: field(value, "closing_ns")?,
        udp_ns: field(value, "udp_ns")?,
        idle_floor_ns: field(value, "idle_floor_ns")?,
    })
}

macro_rules! read_settings {
    ($($(#[$meaning:meta])* $name:ident: $kind:ty = $default:expr,)*) => {
        fn settings(value: &Object<'_>) -> PyResult<Settings> {
            Ok(Settings { $($name: field(value, stringify!($name))?,)* })
        }
    };
}

flowlb_core::for_settings!(read_settings);

/// Convert a `lb.model.snapshot.Snapshot`. `asker`: what its ask function is asked through.
pub fn snapshot(value: &Object<'_>, asker: &Asker) -> PyResult<Snapshot> {
    const TRANSIT: [(&str, bool); 2] = [("drop", false), ("forward", true)];
    Ok(Snapshot {
        generation: field(value, "generation")?,
        seed: field(value, "seed")?,
        interfaces: field_with(value, "interfaces", |all| each(all, interface))?,
        services: field_with(value, "services", |all| {
            each(all, |item| optional(item, service))
        })?,
        servers: field_with(value, "servers", |all| {
            each(all, |item| optional(item, server))
        })?,
        forward_transit: field_with(value, "transit", |name| one_of(name, &TRANSIT))?,
        settings: settings(value)?,
        timeouts: field_with(value, "timeouts", timeouts)?,
        ask: field_with(value, "ask", |function| {
            optional(function, |function| ask(function, asker))
        })?,
    })
}

fn route(value: &Object<'_>) -> PyResult<Route> {
    let (prefix, prefix_len) = field_with(value, "prefix", |network| {
        Ok((
            field(network, "network_address")?,
            field(network, "prefixlen")?,
        ))
    })?;
    Ok(Route {
        prefix,
        prefix_len,
        interface: InterfaceId::new(field(value, "interface")?),
        gateway: field_with(value, "gateway", |given| optional(given, address))?,
        mtu: field(value, "mtu")?,
    })
}

fn neighbour(value: &Object<'_>) -> PyResult<Neighbour> {
    Ok(Neighbour {
        interface: InterfaceId::new(field(value, "interface")?),
        address: field(value, "address")?,
        mac: field_with(value, "mac", mac)?,
    })
}

/// Convert a `lb.model.snapshot.NextHops`.
pub fn next_hops(value: &Object<'_>) -> PyResult<NextHops> {
    Ok(NextHops {
        routes: field_with(value, "routes", |all| each(all, route))?,
        neighbours: field_with(value, "neighbours", |all| each(all, neighbour))?,
    })
}

/// Convert a `lb.packet.offload.Offload`, or None.
pub fn offload(value: Option<&Object<'_>>) -> PyResult<Offload> {
    let Some(value) = value else {
        return Ok(Offload::default());
    };
    let (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset) = value.extract()?;
    Ok(Offload {
        flags,
        gso_type,
        hdr_len,
        gso_size,
        csum_start,
        csum_offset,
    })
}

/// What the loop does while nothing comes.
pub fn poll(value: &Object<'_>) -> PyResult<Poll> {
    one_of(
        value,
        &[
            ("adaptive", Poll::Adaptive),
            ("busy", Poll::Busy),
            ("sleep", Poll::Sleep),
        ],
    )
}
