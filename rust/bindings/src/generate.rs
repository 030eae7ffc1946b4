//! The packet generators of measurements, for Python.

use std::os::fd::RawFd;
use std::time::Duration;

use flowlb_loadgen::flood as floods;
use flowlb_loadgen::generator::{self, Generated, GeneratorError, Load};
use flowlb_loadgen::scatter::{self as scatters, Scatter};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error;

fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("seconds: {seconds} is no length of time")))
}

fn answer(py: Python<'_>, sent: Result<Generated, GeneratorError>) -> PyResult<(u64, f64)> {
    sent.map(|sent| (sent.packets, sent.elapsed.as_secs_f64()))
        .map_err(|failure| error::lb_error(py, failure.to_string()))
}

fn check_rate(rate_pps: Option<f64>) -> PyResult<()> {
    if rate_pps.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return Err(PyValueError::new_err("rate_pps: must be more than 0"));
    }
    Ok(())
}

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
    check_rate(rate_pps)?;
    let load = Load {
        template: frame,
        flows,
        packets,
        duration: duration(seconds)?,
        rate: rate_pps,
    };
    let sent = py.detach(|| generator::generate(fd, &load));
    answer(py, sent)
}

#[pyfunction]
pub fn flood(
    py: Python<'_>,
    interface: u32,
    frame: &[u8],
    flows: u16,
    packets: u64,
    seconds: f64,
) -> PyResult<(u64, f64)> {
    let load = Load {
        template: frame,
        flows,
        packets,
        duration: duration(seconds)?,
        rate: None,
    };
    let sent = py.detach(|| floods::flood(interface, &load));
    answer(py, sent)
}

#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "what Python gives is converted into it"
)]
pub fn scatter(
    py: Python<'_>,
    interface: u32,
    frame: &[u8],
    words: Vec<(u16, u16)>,
    seconds: f64,
    rate_pps: f64,
) -> PyResult<(u64, f64)> {
    check_rate(Some(rate_pps))?;
    let load = Scatter {
        template: frame,
        words: &words,
        duration: duration(seconds)?,
        rate: rate_pps,
    };
    let sent = py.detach(|| scatters::scatter(interface, &load));
    answer(py, sent)
}
