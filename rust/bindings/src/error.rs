//! Where errors cross: those of the crates below become the exceptions of `lb.errors`, so that both backends raise
//! the same types.

use std::io;

use flowlb_core::flow::table::TableError;
use flowlb_core::io::LoopError;
use pyo3::exceptions::{PyOSError, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyType;

/// The exception `lb.errors.NAME` with this message.
fn raise(py: Python<'_>, name: &str, message: String) -> PyErr {
    let class = py
        .import("lb.errors")
        .and_then(|module| module.getattr(name))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match class {
        Ok(class) => PyErr::from_type(class, (message,)),
        Err(error) => error,
    }
}

pub fn lb_error(py: Python<'_>, message: impl Into<String>) -> PyErr {
    raise(py, "LbError", message.into())
}

pub fn datapath_error(py: Python<'_>, error: &TableError) -> PyErr {
    let name = match error {
        TableError::Capacity(_) | TableError::Image(_) => "LbError",
        TableError::Read(source) => return os_error(py, source),
        TableError::Memory { .. } => "BackendError",
    };
    raise(py, name, error.to_string())
}

pub fn loop_error(py: Python<'_>, error: &LoopError) -> PyErr {
    lb_error(py, error.to_string())
}

/// An error of the kernel as Python raises it: with its number, as the class that belongs to it.
pub fn os_error(py: Python<'_>, error: &io::Error) -> PyErr {
    let text = || {
        let number = error.raw_os_error()?;
        let text = py.import("os").ok()?.call_method1("strerror", (number,));
        Some((number, text.ok()?.extract::<String>().ok()?))
    };
    match text() {
        Some(arguments) => PyOSError::new_err(arguments),
        None => PyOSError::new_err(error.to_string()),
    }
}

/// A number that Python gives. One that does not fit is a wrong value: `ValueError`, where `PyO3` alone would say
/// `OverflowError`.
#[derive(Clone, Copy)]
pub struct Number<T>(pub T);

impl<'a, 'py, T> FromPyObject<'a, 'py> for Number<T>
where
    T: FromPyObject<'a, 'py, Error = PyErr>,
{
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        value.extract().map(Self).map_err(|error| {
            if !error.is_instance_of::<PyOverflowError>(value.py()) {
                return error;
            }
            let bits = size_of::<T>() * 8;
            let value = &*value;
            PyValueError::new_err(format!("{value} does not fit into {bits} unsigned bits"))
        })
    }
}
