//! The data path of flowlb.
pub mod datapath;
pub mod io;
pub mod snapshot;
pub mod verdict;
