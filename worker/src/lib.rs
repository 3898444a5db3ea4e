//! The process that serves one slot's traffic: event loop, HTTP, services, rescue.

mod access_log;
mod conn;
mod crash_point;
mod duty;
pub mod enter;
mod event;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod http;
mod in_handler;
mod model;
mod open_file;
mod pool;
pub mod proxy_protocol;
mod rescue;

pub use rescue::giver as give;
pub mod service;
