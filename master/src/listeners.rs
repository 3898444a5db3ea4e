//! The listening sockets: one SO_REUSEPORT socket per slot and TCP address; one socket per Unix path, shared by all slots. Each
//! address has a seat, the same in every slot: its place in the slots' tables, and its name in the records of its connections.

mod bind;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use phalanx_shared::config::{Listen, ListenAddress};
use phalanx_shared::ipc::SlotId;
use phalanx_shared::sys::rest;

pub(crate) use bind::{check_free, wait_until_free};

use crate::upgrade::{self, state};

/// A socket of one slot.
#[derive(Clone)]
pub(crate) struct Bound {
    pub(crate) seat: u8,
    pub(crate) socket: Rc<OwnedFd>,
    /// With the real port.
    pub(crate) address: ListenAddress,
}

/// An address that is listened on.
struct Seat {
    /// As the configuration has it.
    wanted: ListenAddress,
    /// With the real port.
    address: ListenAddress,
    /// The socket of all slots.
    unix: Option<Rc<OwnedFd>>,
    /// No longer in the configuration.
    leaving: bool,
}

/// What all slots listen on.
pub(crate) struct Listeners {
    seats: BTreeMap<u8, Seat>,
}

/// Listeners that a reload brings and takes away: bound, and not listening yet.
pub(crate) struct Change {
    coming: BTreeMap<u8, Seat>,
    /// In the order of the slots, which is that of the sockets in the kernel's groups.
    sockets: BTreeMap<SlotId, Vec<Bound>>,
    leaving: Vec<u8>,
    /// On their way out, and wanted again.
    returning: Vec<u8>,
}

impl Seat {
    /// Whether a configuration that has this address wants this seat: the path of a Unix socket that leaves is gone.
    fn is_for(&self, wanted: &ListenAddress) -> bool {
        self.wanted == *wanted && (self.unix.is_none() || !self.leaving)
    }

    fn remove(&self) {
        if let ListenAddress::Unix(path) = &self.address {
            let _gone_already = std::fs::remove_file(path);
        }
    }

    fn bound(&self, seat: u8) -> Option<Bound> {
        let socket = self.unix.clone()?;
        Some(Bound { seat, socket, address: self.address.clone() })
    }
}

impl Listeners {
    /// Binds the Unix sockets and finds the ports of addresses with port 0; TCP sockets are bound slot by slot. Returns those of
    /// the first slot, which finding the ports has bound.
    pub(crate) fn prepare(listen: &[Listen]) -> Result<(Listeners, Vec<Bound>), String> {
        let mut listeners = Listeners::none();
        let mut first = Vec::new();
        for listen in listen {
            let (seat, bound) = bind::bind(&listen.address, listen.seat)?;
            bind::listen(&bound)?;
            listeners.seats.insert(listen.seat, seat);
            first.push(bound);
        }
        Ok((listeners, first))
    }

    /// Nothing is listened on.
    pub(crate) fn none() -> Listeners {
        Listeners { seats: BTreeMap::new() }
    }

    /// What the program before this one listened on.
    pub(crate) fn inherit(state: &[state::Listener]) -> Result<Listeners, String> {
        let mut listeners = Listeners::none();
        for state::Listener { seat, wanted, address, unix } in state.iter().cloned() {
            let unix = unix.map(upgrade::inherited).transpose()?.map(Rc::new);
            listeners.seats.insert(seat, Seat { wanted, address, unix, leaving: false });
        }
        Ok(listeners)
    }

    /// What another program goes on with.
    pub(crate) fn state(&self) -> Vec<state::Listener> {
        let state = |(seat, it): (&u8, &Seat)| state::Listener {
            seat: *seat,
            wanted: it.wanted.clone(),
            address: it.address.clone(),
            unix: it.unix.as_ref().map(|socket| socket.as_raw_fd()),
        };
        self.seats.iter().map(state).collect()
    }

    /// A slot's sockets that the program before this one had: TCP sockets by seat and number, and the Unix sockets.
    pub(crate) fn inherit_slot(&self, sockets: &[(u8, RawFd)]) -> Result<Vec<Bound>, String> {
        let mut bound = self.shared();
        for (seat, number) in sockets {
            let known = self.seats.get(seat).ok_or_else(|| format!("a socket for seat {seat}, which has no address"));
            let known = upgrade::way_back::or_return(known)?;
            let socket = Rc::new(upgrade::inherited(*number)?);
            bound.push(Bound { seat: *seat, socket, address: known.address.clone() });
        }
        Ok(bound)
    }

    /// The sockets of one more slot.
    pub(crate) fn bind_slot(&self) -> Result<Vec<Bound>, String> {
        let mut all = self.shared();
        for (seat, known) in &self.seats {
            if let (ListenAddress::Tcp(address), false) = (&known.address, known.leaving) {
                let bound = bind::bind_tcp(*address, *seat)?;
                bind::listen(&bound)?;
                all.push(bound);
            }
        }
        Ok(all)
    }

    /// Sockets that all slots have.
    fn shared(&self) -> Vec<Bound> {
        self.seats.iter().filter_map(|(seat, known)| known.bound(*seat)).collect()
    }

    /// Gives each listener of a configuration the seat that its address has already, or one that is neither taken nor named in
    /// the record of any connection. Seats are below `room`.
    ///
    /// # Errors
    /// There are not so many.
    pub(crate) fn assign(
        &self,
        listen: &mut [Listen],
        named: impl FnOnce() -> BTreeSet<u8>,
        room: usize,
    ) -> Result<(), String> {
        let mut taken: BTreeSet<u8> = self.seats.keys().copied().collect();
        let mut unclaimed = taken.clone();
        let mut newcomers = Vec::new();
        for listen in listen.iter_mut() {
            let known = self.seats.iter().find(|(seat, it)| unclaimed.contains(*seat) && it.is_for(&listen.address));
            match known.map(|(seat, _)| *seat) {
                Some(seat) => {
                    unclaimed.remove(&seat);
                    listen.seat = seat;
                }
                None => newcomers.push(listen),
            }
        }
        if newcomers.is_empty() {
            return Ok(());
        }
        let named = named();
        for newcomer in newcomers {
            let free =
                (0..=u8::MAX).find(|seat| usize::from(*seat) < room && !taken.contains(seat) && !named.contains(seat));
            newcomer.seat = free.ok_or_else(|| {
                format!(
                    "{}: the service has no room for so many more addresses while it runs\n  hint: phalanx upgrade makes room, without a lost connection",
                    newcomer.address
                )
            })?;
            taken.insert(newcomer.seat);
        }
        Ok(())
    }

    /// Binds what `listen`, whose seats are assigned, has that is not listened on yet, for these slots. What it has no more is
    /// to leave.
    pub(crate) fn change(&self, listen: &[Listen], slots: &[SlotId]) -> Result<Change, String> {
        let stays = |seat: u8| listen.iter().any(|listen| listen.seat == seat);
        let of = |wanted: bool, leaving: bool| {
            let seats = self.seats.iter().filter(move |(seat, it)| stays(**seat) == wanted && it.leaving == leaving);
            seats.map(|(seat, _)| *seat).collect::<Vec<u8>>()
        };
        let (leaving, returning) = (of(false, false), of(true, true));
        let mut change = Change { coming: BTreeMap::new(), sockets: BTreeMap::new(), leaving, returning };
        self.check_newcomers(listen)?;
        for listen in listen.iter().filter(|listen| !self.seats.contains_key(&listen.seat)) {
            if let Err(why) = bind_for(&mut change, listen, slots) {
                change.forget();
                return Err(why);
            }
        }
        Ok(change)
    }

    /// Whether another program has an address that is not listened on yet.
    pub(crate) fn check_newcomers(&self, listen: &[Listen]) -> Result<(), String> {
        let ports: BTreeSet<u16> = self.seats.values().filter_map(|it| port_of(&it.address)).collect();
        let is_ours = |address: &ListenAddress| match address {
            ListenAddress::Tcp(address) => ports.contains(&address.port()),
            ListenAddress::Unix(_) => true,
        };
        let newcomers: Vec<Listen> = listen.iter().filter(|listen| !is_ours(&listen.address)).cloned().collect();
        check_free(&newcomers)
    }

    /// What came is there to stay.
    pub(crate) fn adopt(&mut self, change: Change) {
        self.seats.extend(change.coming);
        for seat in change.returning {
            self.seats.entry(seat).and_modify(|it| it.leaving = false);
        }
        for seat in change.leaving {
            let Some(leaving) = self.seats.get_mut(&seat) else { continue };
            leaving.leaving = true;
            leaving.remove();
        }
    }

    /// The seats of what leaves.
    pub(crate) fn leaving(&self) -> Vec<u8> {
        self.seats.iter().filter(|(_, it)| it.leaving).map(|(seat, _)| *seat).collect()
    }

    /// Forgets what has left; returns the seats.
    pub(crate) fn dismiss_leaving(&mut self) -> Vec<u8> {
        self.seats.extract_if(.., |_, it| it.leaving).map(|(seat, _)| seat).collect()
    }

    /// The addresses with their real ports, as text.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.seats.values().filter(|it| !it.leaving).map(|it| it.address.to_string()).collect()
    }

    /// Removes the Unix sockets from the file system.
    pub(crate) fn remove(&self) {
        self.seats.values().filter(|it| !it.leaving).for_each(Seat::remove);
    }
}

impl Change {
    /// The sockets that a slot is to have.
    pub(crate) fn of(&self, slot: SlotId) -> &[Bound] {
        self.sockets.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// Has a socket that goes take nobody new in, and one that does not go after all take everybody in again.
    pub(crate) fn apply_to(&self, bound: &Bound) -> io::Result<()> {
        match bound.address {
            ListenAddress::Unix(_) => Ok(()),
            ListenAddress::Tcp(_) if self.leaving.contains(&bound.seat) => rest::refuse_connections(&bound.socket),
            ListenAddress::Tcp(_) if self.returning.contains(&bound.seat) => rest::welcome_connections(&bound.socket),
            ListenAddress::Tcp(_) => Ok(()),
        }
    }

    /// A slot closes: it is to have none of them.
    pub(crate) fn forget_slot(&mut self, slot: SlotId) {
        self.sockets.remove(&slot);
    }

    /// Has all of them listen. A failure leaves some that do: they are to be forgotten.
    pub(crate) fn listen(&self) -> Result<(), String> {
        self.sockets.values().flatten().try_for_each(bind::listen)
    }

    /// Never mind.
    pub(crate) fn forget(self) {
        self.coming.values().for_each(Seat::remove);
        for bound in self.sockets.values().flatten() {
            bound.stop_listening();
        }
    }
}

impl Bound {
    /// The socket, for a call.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.address, ListenAddress::Tcp(_))
    }

    /// Takes it out of service, whoever else still has a copy of it (a child just forked, for instance): a copy that listened
    /// would be handed connections that nobody accepts.
    pub(crate) fn stop_listening(&self) {
        use nix::sys::socket::{Shutdown, shutdown};
        let _stopped_already = shutdown(self.as_fd().as_raw_fd(), Shutdown::Both);
    }
}

/// Binds a listener's sockets, one for each slot.
fn bind_for(change: &mut Change, listen: &Listen, slots: &[SlotId]) -> Result<(), String> {
    let (seat, first) = bind::bind(&listen.address, listen.seat)?;
    let address = seat.address.clone();
    change.coming.insert(listen.seat, seat);
    let mut first = Some(first);
    for slot in slots {
        let bound = match (first.take(), &address) {
            (Some(first), _) => first,
            (None, ListenAddress::Tcp(address)) => bind::bind_tcp(*address, listen.seat)?,
            (None, ListenAddress::Unix(_)) => change.coming[&listen.seat].bound(listen.seat).ok_or("no Unix socket")?,
        };
        change.sockets.entry(*slot).or_default().push(bound);
    }
    Ok(())
}

/// Sends new connections to these slots only (`None`: to all), by the sockets of slot 0.
pub(crate) fn steer(first_slot: &[Bound], serving: Option<&[u32]>) -> io::Result<()> {
    for bound in first_slot.iter().filter(|bound| bound.is_tcp()) {
        match serving {
            Some(slots) => rest::steer_to(&bound.socket, slots)?,
            None => rest::steer_to_all(&bound.socket)?,
        }
    }
    Ok(())
}

/// Our own sockets on a port would look like another program's.
fn port_of(address: &ListenAddress) -> Option<u16> {
    match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::Unix(_) => None,
    }
}
