//! Phalanx: a pre-fork HTTP server whose clients do not notice when a worker dies.
//!
//! A master binds the listening sockets and supervises; a keeper per slot holds the slot's descriptor table; workers, cloned
//! by the keepers, serve. See ARCHITECTURE.md for the picture.

mod chaos;
mod cli;
mod control;
mod daemonize;
mod keeper;
mod listeners;
mod log_files;
mod memory_group;
mod pid_file;
mod privileges;
mod signals;
mod stack;
mod start;
mod status;
mod supervisor;
mod upgrade;
mod verdict;

pub use cli::main;
