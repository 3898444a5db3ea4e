//! The only home of unsafe code. One system call or one memory fact a block; what comes out is an owned, safe type.
//! nix and socket2 come before a call of our own: what stands here is what they do not have.
#![allow(unsafe_code)]

pub mod asynchronous;
pub mod careless;
pub mod crash_signal;
pub mod fallback;
pub mod file;
pub mod mark;
pub mod process;
pub mod region;
pub mod rest;
pub mod socket;
pub mod table;
pub mod title;
pub mod uring;
