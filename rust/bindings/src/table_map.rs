//! Flow tables in maps of the kernel, for Python.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{IntoRawFd, RawFd};

use flowlb_core::flow::table::{Table, TableError};
use flowlb_core::sys::bpf;
use pyo3::prelude::*;

use crate::error::{self, Number};

#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "what Python gives is converted into it"
)]
pub fn create_table_map(py: Python<'_>, capacity: Number<u64>, path: CString) -> PyResult<RawFd> {
    let map = Table::create_map(capacity.0).map_err(|failure| match failure {
        TableError::Memory { source, .. } => error::os_error(py, &source),
        other => error::datapath_error(py, &other),
    })?;
    bpf::pin(&map, &path).map_err(|error| error::os_error(py, &error))?;
    Ok(map.into_raw_fd())
}

#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "what Python gives is converted into it"
)]
pub fn open_table_map(py: Python<'_>, path: CString) -> PyResult<RawFd> {
    let map: File = bpf::open_pinned(&path).map_err(|error| error::os_error(py, &error))?;
    Ok(map.into_raw_fd())
}
