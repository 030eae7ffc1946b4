//! `lb._core`: the `PyO3` border. Conversion and GIL handling only: every decision about a packet is in
//! `flowlb-core`.
//!
//! [`convert`] reads the control side's dataclasses, [`datapath`] owns the data path (or the loop that owns it),
//! [`result`] and [`report`] are what comes back, [`callbacks`] how the loop asks a user's policy, [`primitives`] the
//! single stages, [`generate`] the load of measurements. Signatures and docstrings for Python are in
//! `python/lb/_core.pyi`.

mod callbacks;
mod convert;
mod datapath;
mod error;
mod generate;
mod primitives;
mod report;
mod result;
mod table_map;

use pyo3::prelude::*;

/// The data path in Rust.
#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::callbacks::CallbackChannel;
    #[pymodule_export]
    use crate::datapath::DataPath;
    #[pymodule_export]
    use crate::generate::{flood, generate, scatter};
    #[pymodule_export]
    use crate::primitives::{checksum, checksum_update, flow_hash, parse, source_hash};
    #[pymodule_export]
    use crate::result::PacketResult;
    #[pymodule_export]
    use crate::table_map::{create_table_map, open_table_map};

    /// Benches say what they ran.
    #[pymodule_export]
    const BUILD_PROFILE: &str = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
