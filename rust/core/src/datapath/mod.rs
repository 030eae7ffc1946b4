//! The data path as its callers see it: [`DataPath`], in several files.
//!
//! `engine` holds its state and takes packets, which `batch` brings through the pipeline, and time; `publish` swaps
//! what packets are forwarded by; `keep` takes over the flows of another process, `carry` its counters and rounds;
//! `flows`, `peek` and `report` tell the control side what there is.

mod batch;
mod carry;
mod engine;
mod flows;
mod keep;
mod peek;
mod publish;
mod report;

pub use batch::Sink;
pub use carry::{Carried, Numbers};
pub use engine::DataPath;
pub use flows::{FlowInfo, FlowPage, FlowQuery, FlowReset, FlowSearch};
pub use keep::{RowCopy, RowLoad};
pub use report::Reading;
