//! Where errors cross: those of the crates below become the exceptions of `lb.errors`, so that both backends raise the same types.

use flowlb_core::datapath::DataPathError;
use flowlb_core::io::LoopError;
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

pub fn datapath_error(py: Python<'_>, error: &DataPathError) -> PyErr {
    let name = match error {
        DataPathError::Capacity(_) => "LbError",
        DataPathError::Memory { .. } => "BackendError",
    };
    raise(py, name, error.to_string())
}

pub fn loop_error(py: Python<'_>, error: &LoopError) -> PyErr {
    lb_error(py, error.to_string())
}
