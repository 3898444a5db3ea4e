//! Processes that workers of the model `process` have started: they outlive their workers, but not their slot.

use phalanx_shared::ledger::{LANES, Ledger};
use phalanx_shared::sys::title;
use phalanx_shared::warn;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Ends those that still serve connections of a slot: nobody looks after them any more.
pub(super) fn end(ledger: &Ledger) {
    let tracks = (0..LANES).flat_map(|lane| ledger.tracks_of(lane));
    let mut ended = 0;
    for pid in tracks.filter(|track| track.child().is_some()).filter_map(|track| Pid::from_raw(track.thread()?)) {
        // The descriptor first: what the title says is said of the process that it means. Another that has the number by now is not
        // titled so.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if title::is_connection(pid.as_raw_nonzero().get()) && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            ended += 1;
        }
    }
    if ended > 0 {
        warn!("{ended} processes that still served connections are ended");
    }
}
