//! How a worker turns events into answers. Each model is one file.

pub mod reactor;
