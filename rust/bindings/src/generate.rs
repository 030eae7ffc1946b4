//! The packet generator of measurements, for Python.

use std::os::fd::RawFd;
use std::time::Duration;

use flowlb_core::io::generator::{self, Load};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error;

#[pyfunction]
#[pyo3(signature = (fd, frame, flows, packets, seconds, rate_pps=None))]
pub fn generate(
    py: Python<'_>,
    fd: RawFd,
    frame: &[u8],
    flows: u16,
    packets: u64,
    seconds: f64,
    rate_pps: Option<f64>,
) -> PyResult<(u64, f64)> {
    let duration = Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("seconds: {seconds} is no length of time")))?;
    if rate_pps.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return Err(PyValueError::new_err("rate_pps: must be more than 0"));
    }
    let load = Load {
        template: frame,
        flows,
        packets,
        duration,
        rate: rate_pps,
    };
    py.detach(|| generator::generate(fd, &load))
        .map(|sent| (sent.packets, sent.elapsed.as_secs_f64()))
        .map_err(|failure| error::lb_error(py, failure.to_string()))
}
