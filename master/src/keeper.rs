//! The keeper: holds a slot's descriptor table and clones the next worker when the master says so. Nothing else: it has no
//! thread, serves nothing, and all signals but SIGKILL pass it by.

use std::os::fd::{AsFd, OwnedFd};

use phalanx_shared::ipc::SlotId;
use phalanx_shared::ipc::channel::MasterEnd;
use phalanx_shared::ipc::keeper::{Cloned, Order, Wait, receive, send};
use phalanx_shared::sys::process::{self, Born};
use phalanx_shared::sys::{table, title};
use phalanx_shared::{error, log, warn};
use phalanx_worker::enter::{Inheritance, enter};

use crate::privileges::Identity;

/// What the child that becomes a keeper has to know.
pub(crate) struct Charge {
    pub(crate) inheritance: Inheritance,
    pub(crate) orders: OwnedFd,
    /// The master's ends of the lanes: closed here.
    pub(crate) master_ends: Vec<MasterEnd>,
    /// Numbers to keep open besides 0, 1 and 2.
    pub(crate) keep: Vec<i32>,
    pub(crate) identity: Identity,
}

/// Runs the keeper in the process just forked, with every signal blocked; does not return. Nothing of the master's memory is
/// ever dropped here: its descriptors are closed by number.
pub(crate) fn run(charge: Charge) -> ! {
    let slot = charge.inheritance.slot;
    log::set_name(&format!("keeper {}", slot.0));
    title::set(&format!("phalanx: keeper {}", slot.0));
    let (inheritance, orders) = match settle_in(charge) {
        Ok(settled) => settled,
        Err(error) => {
            error!("cannot become a keeper: {error}");
            process::exit_now(1)
        }
    };
    obey(slot, Box::leak(inheritance), &orders);
    process::exit_now(0)
}

fn settle_in(charge: Charge) -> std::io::Result<(Box<Inheritance>, OwnedFd)> {
    let Charge { mut inheritance, orders, master_ends, keep, identity } = charge;
    process::reset_dispositions(&[])?;
    table::close_all_but(&keep)?;
    drop(master_ends);
    identity.assume()?;
    inheritance.infrastructure = table::open_descriptors()?;
    Ok((Box::new(inheritance), orders))
}

/// Until the master hangs up.
fn obey(slot: SlotId, inheritance: &'static Inheritance, orders: &OwnedFd) {
    loop {
        match receive::<Order>(orders.as_fd(), Wait::Yes) {
            Ok(Some((Order::Clone(birth), _))) => {
                let outcome = match process::clone_sharing_files() {
                    Ok(Born::Child) => enter(inheritance, &birth),
                    Ok(Born::Parent(pid)) => Ok(pid.as_raw()),
                    Err(error) => Err(format!("clone a worker: {error}")),
                };
                let answer = Cloned { incarnation: birth.incarnation, outcome };
                if let Err(error) = send(orders.as_fd(), &answer, None) {
                    warn!("keeper {}: tell the master: {error}", slot.0);
                }
            }
            Ok(Some((Order::Install { at }, Some(descriptor)))) => {
                if let Err(error) = process::install(descriptor.as_fd(), at) {
                    warn!("keeper {}: install descriptor {at}: {error}", slot.0);
                }
            }
            Ok(Some((Order::Install { .. }, None))) => {}
            Ok(None) => return,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return error!("keeper {}: hear the master: {error}", slot.0),
        }
    }
}
