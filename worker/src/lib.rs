//! The process that serves one slot's traffic: event loop, HTTP, services, rescue.

mod access_log;
#[doc(hidden)]
pub mod answer;
pub mod app;
mod children;
mod conn;
mod crash_point;
mod duty;
pub mod enter;
mod event;
mod event_loop;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod http;
mod in_handler;
mod isolator;
mod lock;
mod main_loop;
mod model;
pub use model::KNOWN as MODELS;
mod nudge;
mod open_file;
mod pool;
pub mod proxy_protocol;
mod rescue;

pub use rescue::giver as give;
pub mod service;
mod solo;
mod tasks;
mod watch;
