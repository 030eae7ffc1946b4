//! The single stages that both backends offer one by one, for benches and for teaching.

use flowlb_core::flow::hash;
use flowlb_core::parse::Headers;
use flowlb_core::wire::checksum as sums;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple, PyTupleMethods};

use crate::error::Number;

/// An address of 4 or 16 bytes as 16: IPv4 as `::ffff:a.b.c.d`.
fn widen(address: &[u8]) -> PyResult<[u8; 16]> {
    const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let mut wide = [0; 16];
    match address.len() {
        4 => {
            wide[..12].copy_from_slice(&V4_MAPPED);
            wide[12..].copy_from_slice(address);
        }
        16 => wide.copy_from_slice(address),
        len => {
            return Err(PyValueError::new_err(format!(
                "an address of {len} bytes: 4 or 16 are allowed"
            )));
        }
    }
    Ok(wide)
}

#[pyfunction]
#[pyo3(signature = (data, initial=Number(0)), text_signature = "(data, initial=0)")]
pub fn checksum(data: &[u8], initial: Number<u64>) -> u16 {
    let Number(initial) = initial;
    // Folded first: the sum of both cannot overflow.
    !sums::fold(u64::from(sums::fold(initial)) + u64::from(sums::sum(data)))
}

#[pyfunction]
pub fn checksum_update(checksum: Number<u16>, old: &[u8], new: &[u8]) -> PyResult<u16> {
    let Number(checksum) = checksum;
    if old.len() != new.len() || old.len() % 2 != 0 {
        let message = format!(
            "{} and {} bytes are not the same whole number of 16-bit words",
            old.len(),
            new.len()
        );
        return Err(PyValueError::new_err(message));
    }
    let words = |bytes: &[u8]| {
        bytes
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect()
    };
    let (old, new): (Vec<u16>, Vec<u16>) = (words(old), words(new));
    let changes: u64 = old
        .iter()
        .zip(&new)
        .map(|(&old, &new)| u64::from(!old) + u64::from(new))
        .sum();
    Ok(!sums::fold(u64::from(!checksum) + changes))
}

#[pyfunction]
pub fn flow_hash(
    seed: Number<u64>,
    client: &[u8],
    vip: &[u8],
    client_port: Number<u16>,
    vip_port: Number<u16>,
    protocol: Number<u8>,
) -> PyResult<u64> {
    Ok(hash::flow_hash(
        seed.0,
        &widen(client)?,
        &widen(vip)?,
        client_port.0,
        vip_port.0,
        protocol.0,
    ))
}

#[pyfunction]
pub fn source_hash(seed: Number<u64>, client: &[u8]) -> PyResult<u64> {
    Ok(hash::source_hash(seed.0, &widen(client)?))
}

#[pyfunction]
pub fn parse<'py>(py: Python<'py>, frame: &[u8]) -> PyResult<Bound<'py, PyTuple>> {
    let headers: Headers = flowlb_core::parse::parse(frame);
    let link = (
        headers.reason.map(flowlb_core::base::Reason::name),
        headers.ethertype,
    )
        .into_pyobject(py)?;
    let vlans = (PyTuple::new(py, headers.vlans)?,).into_pyobject(py)?;
    let offsets =
        (headers.l3_offset, headers.l4_offset, headers.payload_offset).into_pyobject(py)?;
    let addresses = (
        PyBytes::new(py, &headers.source),
        PyBytes::new(py, &headers.destination),
    )
        .into_pyobject(py)?;
    let rest = (
        headers.protocol,
        headers.ttl,
        headers.source_port,
        headers.destination_port,
        headers.tcp_flags,
        headers.fragment_offset,
        headers.more_fragments,
        headers.total_len,
    )
        .into_pyobject(py)?;
    // Longer tuples than 12 have no conversion of their own.
    let parts = [link, vlans, offsets, addresses, rest];
    PyTuple::new(
        py,
        parts
            .iter()
            .flat_map(PyTupleMethods::iter)
            .collect::<Vec<_>>(),
    )
}
