//! The keeper: holds a slot's descriptor table, clones the next worker when the master says so, and sends connections to a
//! later table of the slot when that asks. Nothing else: it has no thread, serves nothing, and all signals but SIGKILL pass it
//! by.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use phalanx_shared::ipc::SlotId;
use phalanx_shared::ipc::channel::MasterEnd;
use phalanx_shared::ipc::keeper::{Birth, Cloned, Order};
use phalanx_shared::ipc::line::{Wait, receive, send};
use phalanx_shared::ledger::Ledger;
use phalanx_shared::sys::process::{self, Born};
use phalanx_shared::sys::{table, title};
use phalanx_shared::{error, log, warn};
use phalanx_worker::enter::{Former, Inheritance, enter};
use phalanx_worker::give;

use crate::privileges::Identity;

/// What the child that becomes a keeper has to know.
pub(crate) struct Charge {
    pub(crate) inheritance: Inheritance,
    pub(crate) orders: OwnedFd,
    /// The end of the fetching line that the inheritance names.
    pub(crate) giving: OwnedFd,
    /// What stands at the numbers for other slots' sockets until there is one.
    pub(crate) seats: Vec<OwnedFd>,
    /// The master's ends of the lanes: closed here.
    pub(crate) master_ends: Vec<MasterEnd>,
    /// Numbers to keep open besides 0, 1 and 2.
    pub(crate) keep: Vec<i32>,
    pub(crate) identity: Identity,
    /// Ledgers of other slots: a wild store in a worker of this one must not reach them.
    pub(crate) strangers: Vec<Ledger>,
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

fn settle_in(charge: Charge) -> io::Result<(Box<Inheritance>, OwnedFd)> {
    let Charge { mut inheritance, orders, giving, seats, master_ends, keep, identity, strangers } = charge;
    std::mem::forget((giving, seats));
    for ledger in &strangers {
        ledger.seal_off()?;
    }
    process::reset_dispositions(&[])?;
    table::close_all_but(&keep)?;
    drop(master_ends);
    identity.assume()?;
    inheritance.infrastructure = table::open_descriptors()?;
    Ok((Box::new(inheritance), orders))
}

/// With `PHALANX_KEEPER=slow` a keeper tells late whom it has cloned: the worker may be dead by then. Without the feature
/// `crash-points` it never waits.
fn hesitate() {
    #[cfg(feature = "crash-points")]
    if std::env::var("PHALANX_KEEPER").is_ok_and(|keeper| keeper == "slow") {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Until the master hangs up.
fn obey(slot: SlotId, inheritance: &'static Inheritance, orders: &OwnedFd) {
    let mut later_table = true;
    loop {
        match wait(orders, inheritance, &mut later_table) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => return error!("keeper {}: wait: {error}", slot.0),
        }
        match receive::<Order>(orders.as_fd(), Wait::No) {
            Ok(Some((Order::Clone(birth), descriptors))) => {
                let outcome = match install_blueprint(inheritance, &birth, descriptors.into_iter().next())
                    .and_then(|()| process::clone_sharing_files())
                {
                    Ok(Born::Child) => enter(inheritance, &birth),
                    Ok(Born::Parent(pid)) => Ok(pid.as_raw()),
                    Err(error) => Err(format!("clone a worker: {error}")),
                };
                hesitate();
                let answer = Cloned { incarnation: birth.incarnation, outcome };
                if let Err(error) = send(orders.as_fd(), &answer, &[]) {
                    warn!("keeper {}: tell the master: {error}", slot.0);
                }
            }
            Ok(Some((Order::Answer(incarnation), _))) => {
                let answer = Cloned { incarnation, outcome: Err("nothing is cloned".to_owned()) };
                if let Err(error) = send(orders.as_fd(), &answer, &[]) {
                    warn!("keeper {}: tell the master: {error}", slot.0);
                }
            }
            Ok(Some((Order::Install { at }, descriptors))) => {
                for descriptor in descriptors {
                    if let Err(error) = process::install(descriptor.as_fd(), at) {
                        warn!("keeper {}: install descriptor {at}: {error}", slot.0);
                    }
                }
            }
            Ok(Some((Order::Forget { former }, _))) => {
                inheritance.formers.iter().filter(|known| known.number == former).for_each(Former::forget);
            }
            Ok(None) => return,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return error!("keeper {}: hear the master: {error}", slot.0),
        }
    }
}

/// Sleeps until there is an order: true. What a later table of the slot asks is answered meanwhile, as long as there can be one.
fn wait(orders: &OwnedFd, inheritance: &Inheritance, later_table: &mut bool) -> io::Result<bool> {
    let read = PollFlags::POLLIN;
    let giving = table::borrow(inheritance.giving);
    let mut polled = [PollFd::new(orders.as_fd(), read), PollFd::new(giving, read)];
    let count = if *later_table { 2 } else { 1 };
    match poll(&mut polled[..count], PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let [orders, asked] = polled.map(|polled| polled.revents().unwrap_or(PollFlags::empty()));
    if asked.contains(read) {
        give::answer_fetches(inheritance);
    }
    *later_table &= !asked.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
    Ok(!orders.is_empty())
}

/// Puts the configuration that the next worker boots from where it looks for it. The descriptor that brought it is closed
/// before the worker is cloned.
fn install_blueprint(inheritance: &Inheritance, birth: &Birth, blueprint: Option<OwnedFd>) -> io::Result<()> {
    let blueprint = blueprint.ok_or_else(|| io::Error::other("no blueprint came with the order"))?;
    let number = inheritance.blueprints.get(birth.blueprint).ok_or(io::ErrorKind::InvalidInput)?;
    process::install(blueprint.as_fd(), *number)
}
