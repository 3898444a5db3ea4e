//! What a slot stands on, on the master's side: its ledger, its listeners, the line to its keeper, the ends of its lanes.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use phalanx_shared::clients::{Client, Clients};
use phalanx_shared::config::Config;
use phalanx_shared::ipc::channel::{self, Doorbell, MasterEnd};
use phalanx_shared::ipc::keeper::{Cloned, Order};
use phalanx_shared::ipc::{Closing, Incarnation, Said, SlotId, ToWorker, line};
use phalanx_shared::ledger::lane::Wish;
use phalanx_shared::ledger::record::{Owner, Peer};
use phalanx_shared::ledger::{LANES, Ledger};
use phalanx_shared::stats::Snapshot;
use phalanx_shared::sys::process::{self, Born};
use phalanx_shared::sys::socket::cookie;
use phalanx_shared::sys::table::open_descriptors;
use phalanx_shared::warn;
use phalanx_worker::enter::{Former, Inheritance};

use super::ward::Ward;
use super::{Premises, blueprint, put_in_place};
use crate::keeper::{self, Charge};
use crate::listeners::Bound;
use crate::upgrade;
use crate::upgrade::state::{self, Known, State};
use crate::upgrade::way_back;

/// One slot's.
pub(super) struct Ground {
    pub(super) ledger: Ledger,
    pub(super) listeners: Vec<Bound>,
    pub(super) orders: OwnedFd,
    /// Tells this ground from others that the slot had or will have.
    pub(super) number: u32,
    /// Over this line a later table of the slot fetches what is left in this one.
    line: OwnedFd,
    /// What the ledger lives in.
    memory: OwnedFd,
    /// By seat: the table's numbers for listening sockets, and those that wait for other slots'. None of a ground that another
    /// program made.
    seats: Vec<RawFd>,
    assisting: Vec<RawFd>,
    /// The workers' bells of the lanes, of a ground that another program made: it has no `ends` here.
    lane_bells: Vec<OwnedFd>,
    /// Rung by workers that have given connections.
    bell: OwnedFd,
    /// The keeper has hung up: its end is told by its SIGCHLD, there is nothing more to hear.
    pub(super) hung_up: Cell<bool>,
    pub(super) ends: Vec<MasterEnd>,
}

/// What a slot stood on before its keeper died. Its workers give what they have to those of the slot's new ground.
pub(super) struct FormerGround {
    pub(super) slot: SlotId,
    pub(super) ground: Ground,
}

/// What all slots share.
pub(super) struct Common {
    /// Under the same numbers in every keeper's table.
    pub(super) blueprints: Vec<OwnedFd>,
    /// Numbers of log files that were opened again.
    pub(super) log_numbers: Vec<RawFd>,
    pub(super) first_slot: Vec<Bound>,
    /// The reading half is every child's, the writing half the master's alone: it hangs up when the master dies.
    lifeline: (OwnedFd, OwnedFd),
    clients: Clients,
    /// What the table of clients lives in.
    clients_memory: OwnedFd,
    /// Requests that kill workers.
    pub(super) ward: Ward,
    descriptors: usize,
    connections: usize,
}

/// What all processes of the service share, whichever program they are of.
pub(super) struct Shared {
    lifeline: (OwnedFd, OwnedFd),
    clients: (Clients, OwnedFd),
    ward: Ward,
}

impl Common {
    /// The numbers of lifeline and table of clients.
    pub(super) fn shared(&self) -> ((RawFd, RawFd), RawFd) {
        ((self.lifeline.0.as_raw_fd(), self.lifeline.1.as_raw_fd()), self.clients_memory.as_raw_fd())
    }

    pub(super) fn new(premises: &Premises, first_slot: Vec<Bound>, shared: Option<Shared>) -> Common {
        let Shared { lifeline, clients: (clients, clients_memory), ward } =
            shared.map_or_else(fresh, Ok).unwrap_or_else(|why| {
                // Without descriptors at the start there is nothing to supervise with.
                warn!("{why}");
                process::exit_now(1)
            });
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        let descriptors = limit.map_or(1024, |(soft, _)| soft).min(1 << 20) as usize;
        Common {
            blueprints: Vec::new(),
            log_numbers: Vec::new(),
            first_slot,
            lifeline,
            clients,
            clients_memory,
            ward,
            descriptors,
            connections: (premises.config.limits.connections as usize).min(descriptors),
        }
    }

    /// Writes `config` down as blueprint `number`, under the number's own descriptor.
    pub(super) fn publish(&mut self, number: usize, config: &Config) -> io::Result<()> {
        let fresh = blueprint(config)?;
        match self.blueprints.get(number) {
            Some(old) => put_in_place(old, &fresh),
            None => {
                self.blueprints.push(fresh);
                Ok(())
            }
        }
    }

    /// Takes the connections that a ledger has left off those of their clients: no worker is left to do it. Connections that
    /// are lost with their slot would lock their clients out for ever.
    pub(super) fn forget_connections(&self, ledger: &Ledger) {
        for (_, record) in ledger.recorded().filter(|(_, record)| record.is_counted()) {
            if let Peer::Ip(address) = record.peer() {
                self.clients.disconnect(Client::from(address.ip()));
            }
            record.set_counted(false);
        }
    }

    /// A descriptor for each seat: a listener, or what stands there as long as there is none.
    fn seats(&self, listeners: &[Bound], count: usize) -> io::Result<Vec<OwnedFd>> {
        let seated = |seat: usize| listeners.iter().find(|bound| usize::from(bound.seat) == seat);
        let own = |seat| seated(seat).map_or(&self.lifeline.0, |bound| &*bound.socket);
        (0..count).map(|seat| own(seat).try_clone()).collect()
    }

    /// Takes a listener off its seat in a ground's table.
    pub(super) fn vacate_seat(&self, ground: &Ground, seat: u8) {
        // Another slot's may have been lent to it.
        for numbers in [&ground.seats, &ground.assisting] {
            if let Some(number) = numbers.get(usize::from(seat)) {
                ground.install_at(*number, &self.lifeline.0);
            }
        }
    }

    /// Makes a ground for a slot: its ledger, its lanes, its keeper, which is to know nothing of `strangers`. Its workers will fetch what is
    /// left on `formers`.
    pub(super) fn open(
        &self,
        (slot, number): (SlotId, u32),
        listeners: Vec<Bound>,
        premises: &Premises,
        strangers: Vec<Ledger>,
        formers: &[&Ground],
    ) -> Result<(Ground, Pid), String> {
        let fail = |error: io::Error| format!("open slot {}: {error}", slot.0);
        let name = format!("phalanx-ledger-{}", slot.0);
        let (ledger, memory) = Ledger::create(&name, self.descriptors, self.connections).map_err(fail)?;
        let before = open_descriptors().map_err(fail)?;
        let (mut ends, mut lanes) = (Vec::new(), Vec::new());
        for _ in 0..LANES {
            let (master, worker) = channel::pair().map_err(fail)?;
            ends.push(master);
            lanes.push(worker);
        }
        let handover = Doorbell::new().map_err(fail)?;
        let bell = handover.as_fd().try_clone_to_owned().map_err(fail)?;
        let (orders, at_keeper) = line::pair().map_err(fail)?;
        let (line, giving) = line::pair().map_err(fail)?;
        let last = listeners.iter().map(|bound| usize::from(bound.seat) + 1).max().unwrap_or(0);
        let room = last + SPARE_SEATS;
        let (seats, places) =
            self.seats(&listeners, room).and_then(|seats| Ok((seats, self.seats(&[], room)?))).map_err(fail)?;
        let numbers = |descriptors: &[OwnedFd]| descriptors.iter().map(AsRawFd::as_raw_fd).collect::<Vec<RawFd>>();
        let (seat_numbers, assisting) = (numbers(&seats), numbers(&places));
        // ipc-channel tells no descriptor numbers: what has come since `before` is the lanes', the bell's and the lines'.
        let mut keep: Vec<RawFd> = open_descriptors().map_err(fail)?;
        let masters_own = [orders.as_raw_fd(), line.as_raw_fd(), bell.as_raw_fd()];
        keep.retain(|number| !before.contains(number) && !masters_own.contains(number));
        keep.extend(formers.iter().flat_map(|former| [former.line.as_raw_fd(), former.bell.as_raw_fd()]));
        keep.extend(self.blueprints.iter().map(AsRawFd::as_raw_fd));
        keep.extend(premises.logs.access());
        keep.push(self.lifeline.0.as_raw_fd());
        let inheritance = Inheritance {
            slot,
            ledger: ledger.clone(),
            seats: seat_numbers.clone(),
            assisting: assisting.clone(),
            lanes,
            handover,
            giving: giving.as_raw_fd(),
            formers: formers.iter().map(|former| former.as_former()).collect(),
            blueprints: [self.blueprints[0].as_raw_fd(), self.blueprints[1].as_raw_fd()],
            access_log: premises.logs.access(),
            clients: self.clients,
            quarantine: self.ward.table(),
            lifeline: self.lifeline.0.as_raw_fd(),
            infrastructure: Vec::new(),
            application: premises.application.clone(),
        };
        let ground = Ground {
            ledger,
            listeners,
            orders,
            number,
            line,
            memory,
            seats: seat_numbers,
            assisting,
            lane_bells: Vec::new(),
            bell,
            hung_up: Cell::new(false),
            ends,
        };
        let charge = Charge {
            inheritance,
            orders: at_keeper,
            giving,
            seats: seats.into_iter().chain(places).collect(),
            master_ends: Vec::new(),
            keep,
            identity: premises.identity.clone(),
            strangers,
        };
        fork_keeper(charge, ground).map_err(fail)
    }
}

/// Forks; the child becomes the keeper with its share of everything, the parent keeps the ground.
fn fork_keeper(mut charge: Charge, ground: Ground) -> io::Result<(Ground, Pid)> {
    let mask = process::block_signals()?;
    let born = process::fork();
    if let Ok(Born::Child) = born {
        let Ground { ends, listeners, orders, line, memory, bell, .. } = ground;
        // The numbers are the keeper's business now; their owners here must not close them.
        std::mem::forget((listeners, orders, line, memory, bell));
        charge.master_ends = ends;
        keeper::run(charge);
    }
    process::set_signal_mask(&mask)?;
    match born? {
        Born::Parent(pid) => {
            // The workers' ends and the keeper's end of the line are the child's alone from here on.
            drop(charge);
            Ok((ground, pid))
        }
        Born::Child => Err(io::Error::other("the child returned")),
    }
}

impl Ground {
    fn as_former(&self) -> Former {
        let (line, bell) = (self.line.as_raw_fd(), self.bell.as_raw_fd());
        Former { number: self.number, ledger: self.ledger.clone(), line, bell, gone: Cell::new(false) }
    }

    /// Whether connections are on record here.
    pub(super) fn has_connections(&self) -> bool {
        self.ledger
            .recorded()
            .any(|(_, record)| !matches!(record.owner(), Some(Owner::File(_) | Owner::ChildFile { .. })))
    }

    /// Puts its TCP sockets into another ground's table, at the numbers that this has for them. Their seats and cookies.
    pub(super) fn lend_to(&self, other: &Ground) -> Vec<(u8, u64)> {
        let mut cookies = Vec::new();
        for bound in self.listeners.iter().filter(|bound| bound.is_tcp()) {
            let Some(number) = other.assisting.get(usize::from(bound.seat)) else { continue };
            let lent = other.order(&Order::Install { at: *number }, Some(bound.as_fd()));
            match lent.and_then(|()| cookie(bound.as_fd())) {
                Ok(cookie) => cookies.push((bound.seat, cookie)),
                Err(error) => warn!("lend a socket to another slot: {error}"),
            }
        }
        cookies
    }

    /// Its TCP sockets, by seat and number.
    pub(super) fn sockets(&self) -> Vec<(u8, RawFd)> {
        sockets(&self.listeners)
    }

    /// How many seats its table has.
    pub(super) fn room(&self) -> usize {
        self.seats.len()
    }

    /// Puts a listener on its seat in the table.
    pub(super) fn seat(&self, bound: &Bound) {
        if let Some(number) = self.seats.get(usize::from(bound.seat)) {
            self.install_at(*number, &bound.socket);
        }
    }

    /// The seats that records of connections name.
    pub(super) fn named_seats(&self) -> impl Iterator<Item = u8> + '_ {
        self.ledger.recorded().map(|(_, record)| record.listener())
    }

    /// The ground that the program before this one made.
    pub(super) fn inherit(
        number: u32,
        state: &Known,
        bells: &[RawFd],
        listeners: Vec<Bound>,
    ) -> Result<Ground, String> {
        let memory = upgrade::inherited(state.ledger)?;
        let ledger = Ledger::open(&memory, state.descriptors, state.connections)
            .map_err(|error| format!("map the ledger of ground {number}: {error}"));
        // Before anything is dropped that the other program needs, here and below.
        let ledger = way_back::or_return(ledger)?;
        let lane_bells = bells.iter().map(|bell| upgrade::inherited(*bell)).collect::<Result<_, _>>()?;
        Ok(Ground {
            ledger,
            listeners,
            orders: upgrade::inherited(state.orders)?,
            number,
            line: upgrade::inherited(state.line)?,
            memory,
            seats: Vec::new(),
            assisting: Vec::new(),
            lane_bells,
            bell: upgrade::inherited(state.bell)?,
            hung_up: Cell::new(false),
            ends: Vec::new(),
        })
    }

    /// What another program goes on with.
    pub(super) fn state(&self, keeper: Option<Pid>, workers: Vec<state::Worker>) -> state::Ground {
        let own = self.ends.iter().map(|end| end.their_bell().as_raw_fd());
        let known = Known {
            ledger: self.memory.as_raw_fd(),
            descriptors: self.ledger.descriptors(),
            connections: self.ledger.connections(),
            orders: self.orders.as_raw_fd(),
            line: self.line.as_raw_fd(),
            bell: self.bell.as_raw_fd(),
        };
        state::Ground {
            number: self.number,
            known: Some(known),
            lane_bells: own.chain(self.lane_bells.iter().map(AsRawFd::as_raw_fd)).collect(),
            keeper: keeper.map(Pid::as_raw),
            workers,
            unborn: Vec::new(),
        }
    }

    /// Says a word to the worker on `lane`: over its channel or, where another program has made that, by the ledger.
    pub(super) fn tell(&self, lane: usize, said: Said) -> io::Result<()> {
        if let Some(end) = self.ends.get(lane) {
            return end.say(said);
        }
        let wish = match said.word {
            ToWorker::Yield => Wish::Yield,
            ToWorker::Unready => Wish::Unready,
            ToWorker::Drain(Closing::Service) => Wish::Stop,
            ToWorker::Drain(_) => Wish::Drain,
            _ => return Err(io::Error::other("the program that it is of has no such word")),
        };
        self.ledger.lane(lane.min(LANES - 1)).set_wish(Some(wish));
        self.lane_bells.get(lane).iter().for_each(|bell| channel::ring(bell.as_fd()));
        Ok(())
    }

    pub(super) fn order(&self, order: &Order, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        line::send(self.orders.as_fd(), order, descriptor.as_slice())
    }

    /// Puts a descriptor of the master's into the keeper's table, under the same number.
    pub(super) fn install(&self, descriptor: &impl AsFd) {
        self.install_at(descriptor.as_fd().as_raw_fd(), descriptor);
    }

    fn install_at(&self, at: RawFd, descriptor: &impl AsFd) {
        if let Err(error) = self.order(&Order::Install { at }, Some(descriptor.as_fd())) {
            warn!("order a keeper to install a descriptor: {error}");
        }
    }

    /// What the keeper has answered since: an incarnation and its process, or why there is none. Unchecked: workers have the
    /// keeper's end of the line too, and may have said it.
    pub(super) fn births(&self) -> Vec<(Incarnation, Result<Pid, String>)> {
        let mut births = Vec::new();
        loop {
            match line::receive::<Cloned>(self.orders.as_fd(), line::Wait::No) {
                Ok(Some((cloned, _))) => {
                    births.push((cloned.incarnation, cloned.outcome.map(Pid::from_raw)));
                }
                Ok(None) => {
                    self.hung_up.set(true);
                    return births;
                }
                Err(_) => return births,
            }
        }
    }

    /// Whether no process is left that has its table: the other end of the line, which is in the table, is closed then (poll(2)).
    pub(super) fn is_deserted(&self) -> bool {
        let mut orders = [PollFd::new(self.orders.as_fd(), PollFlags::empty())];
        let looked = poll(&mut orders, PollTimeout::ZERO);
        looked.is_ok() && orders[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
    }

    /// Takes the slot's TCP sockets out of service.
    pub(super) fn stop_listening(&self) {
        self.listeners.iter().filter(|bound| bound.is_tcp()).for_each(Bound::stop_listening);
    }
}

/// The TCP sockets among a slot's listeners, by seat and number.
pub(super) fn sockets(listeners: &[Bound]) -> Vec<(u8, RawFd)> {
    let tcp = listeners.iter().filter(|bound| bound.is_tcp());
    tcp.map(|bound| (bound.seat, bound.as_fd().as_raw_fd())).collect()
}

/// Seats that a slot's table has for listeners that a reload brings.
const SPARE_SEATS: usize = 8;
/// Client addresses whose rate is remembered, and as many whose connections are counted.
const CLIENTS: usize = 1 << 16;

/// The lifeline, and the table of the service's clients, whose memory is touched by those who are limited alone.
fn fresh() -> Result<Shared, String> {
    let create = || -> io::Result<Shared> {
        let (read, write) = io::pipe()?;
        let lifeline = (read.into(), write.into());
        Ok(Shared { lifeline, clients: Clients::create(CLIENTS)?, ward: Ward::new()? })
    };
    create().map_err(|error| format!("create the lifeline and the tables that all share: {error}"))
}

/// The lifeline and the table of clients of the program before this one.
pub(super) fn inherit_shared(state: &State) -> Result<Shared, String> {
    let lifeline = (upgrade::inherited(state.lifeline.0)?, upgrade::inherited(state.lifeline.1)?);
    let (Some(clients), Some(ward)) = (state.clients, &state.ward) else {
        return Ok(Shared { lifeline, ..way_back::or_return(fresh())? });
    };
    let memory = upgrade::inherited(clients)?;
    let clients = Clients::open(&memory).map_err(|error| format!("map the table of clients: {error}"));
    let clients = way_back::or_return(clients)?;
    Ok(Shared { lifeline, clients: (clients, memory), ward: Ward::inherit(ward)? })
}

/// Workers of another program, whose ledger is none for this one: all that they can be told is to drain.
pub(super) struct Strangers {
    pub(super) slot: SlotId,
    pub(super) ground: u32,
    bells: Vec<OwnedFd>,
}

impl Strangers {
    pub(super) fn inherit(slot: SlotId, state: &state::Ground) -> Result<Strangers, String> {
        let bells = state.lane_bells.iter().map(|bell| upgrade::inherited(*bell)).collect::<Result<_, _>>()?;
        Ok(Strangers { slot, ground: state.number, bells })
    }

    pub(super) fn have_drained(&self, lane: usize) {
        self.bells.get(lane).iter().for_each(|bell| channel::ring_the_alarm(bell.as_fd()));
    }

    /// What another program goes on with.
    pub(super) fn state(&self, keeper: Option<Pid>, workers: Vec<state::Worker>) -> state::Ground {
        state::Ground {
            number: self.ground,
            known: None,
            lane_bells: self.bells.iter().map(AsRawFd::as_raw_fd).collect(),
            keeper: keeper.map(Pid::as_raw),
            workers,
            unborn: Vec::new(),
        }
    }
}

/// The totals of a slot whose workers are gone.
pub(super) fn final_stats(ledger: &Ledger) -> Snapshot {
    let mut stats = ledger.stats();
    stats.connections = 0;
    stats
}

/// Gives the memory of a ledger back that nobody will look at again.
pub(super) fn give_back(ledger: &Ledger) {
    if let Err(error) = ledger.seal_off() {
        warn!("give back a ledger's memory: {error}");
    }
}
