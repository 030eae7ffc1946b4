//! From the dataclasses of `python/lb/model/snapshot.py` to the structs of the data path, by attribute. Errors name
//! class and field.

use std::net::IpAddr;

use flowlb_core::base::{InterfaceId, Mac, Offload};
use flowlb_core::io::Poll;
use flowlb_core::snapshot::{AskFunction, Neighbour, NextHops, Route, Settings, Snapshot};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::callbacks::Asker;

type Object<'py> = Bound<'py, PyAny>;

/// What a Python object is read as.
trait Read: Sized {
    fn read(value: &Object<'_>) -> PyResult<Self>;
}

macro_rules! read_plain {
    ($($kind:ty),*) => {$(
        impl Read for $kind {
            fn read(value: &Object<'_>) -> PyResult<Self> {
                value.extract()
            }
        }
    )*};
}

read_plain!(bool, u8, u16, u32, u64, String, IpAddr);

/// None, or a value.
impl<T: Read> Read for Option<T> {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        if value.is_none() {
            Ok(None)
        } else {
            T::read(value).map(Some)
        }
    }
}

/// A sequence.
impl<T: Read> Read for Vec<T> {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        value.try_iter()?.map(|item| T::read(&item?)).collect()
    }
}

impl<T: Read> Read for Box<T> {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        T::read(value).map(Self::new)
    }
}

impl Read for Mac {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        let bytes = value.cast::<PyBytes>()?.as_bytes();
        bytes.try_into().map_err(|_| {
            PyValueError::new_err(format!("{} bytes, a MAC address has 6", bytes.len()))
        })
    }
}

/// An address with its prefix length: an `IPv4Interface` or `IPv6Interface`.
impl Read for (IpAddr, u8) {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        let network = value.getattr("network")?;
        Ok((field(value, "ip")?, field(&network, "prefixlen")?))
    }
}

impl Read for InterfaceId {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        u32::read(value).map(Self::new)
    }
}

/// A choice, by its word.
macro_rules! read_choices {
    ($($(#[$about:meta])* enum $choice:ident { $($words:tt)* })*) => {$(
        impl Read for flowlb_core::snapshot::$choice {
            fn read(value: &Object<'_>) -> PyResult<Self> {
                one_of(value, Self::WORDS)
            }
        }
    )*};
}

flowlb_core::for_choices!(read_choices);

/// A part of a snapshot, field by field.
macro_rules! read_parts {
    ($(
        $(#[$about:meta])*
        struct $part:ident { $($(#[$meaning:meta])* $field:ident: $kind:ty,)* }
    )*) => {$(
        impl Read for flowlb_core::snapshot::$part {
            fn read(value: &Object<'_>) -> PyResult<Self> {
                Ok(Self { $($field: field(value, stringify!($field))?,)* })
            }
        }
    )*};
}

flowlb_core::for_parts!(read_parts);

/// Read an attribute.
fn field<T: Read>(object: &Object<'_>, name: &str) -> PyResult<T> {
    field_with(object, name, T::read)
}

/// Read an attribute with a converter.
fn field_with<'py, T>(
    object: &Object<'py>,
    name: &str,
    convert: impl Fn(&Object<'py>) -> PyResult<T>,
) -> PyResult<T> {
    convert(&object.getattr(name)?).map_err(|error| in_field(object, name, &error))
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

/// Convert a `lb.model.snapshot.Snapshot`. `asker`: what its ask function is asked through.
pub fn snapshot(value: &Object<'_>, asker: &Asker) -> PyResult<Snapshot> {
    Ok(Snapshot {
        generation: field(value, "generation")?,
        seed: field(value, "seed")?,
        interfaces: field(value, "interfaces")?,
        services: field(value, "services")?,
        servers: field(value, "servers")?,
        settings: Settings::read(value)?,
        timeouts: field(value, "timeouts")?,
        ask: field_with(value, "ask", |function| ask(function, asker))?,
    })
}

fn ask(value: &Object<'_>, asker: &Asker) -> PyResult<Option<AskFunction>> {
    if value.is_none() {
        return Ok(None);
    }
    if !value.is_callable() {
        return Err(PyTypeError::new_err("not callable"));
    }
    asker.function(value.py(), value.clone().unbind()).map(Some)
}

impl Read for Route {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        let (prefix, prefix_len) = field_with(value, "prefix", |network| {
            Ok((
                field(network, "network_address")?,
                field(network, "prefixlen")?,
            ))
        })?;
        Ok(Self {
            prefix,
            prefix_len,
            interface: field(value, "interface")?,
            gateway: field(value, "gateway")?,
            mtu: field(value, "mtu")?,
        })
    }
}

impl Read for Neighbour {
    fn read(value: &Object<'_>) -> PyResult<Self> {
        Ok(Self {
            interface: field(value, "interface")?,
            address: field(value, "address")?,
            mac: field(value, "mac")?,
        })
    }
}

/// Convert a `lb.model.snapshot.NextHops`.
pub fn next_hops(value: &Object<'_>) -> PyResult<NextHops> {
    Ok(NextHops {
        routes: field(value, "routes")?,
        neighbours: field(value, "neighbours")?,
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
