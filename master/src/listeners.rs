//! The listening sockets: one SO_REUSEPORT socket per slot and TCP address; one socket per Unix path, shared by all slots.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use phalanx_shared::config::{Listen, ListenAddress};
use phalanx_shared::sys::rest;
use phalanx_worker::enter::Address;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::upgrade::{self, state};

/// Connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 65_535;

/// A socket of one slot.
#[derive(Clone)]
pub(crate) struct Bound {
    pub(crate) socket: Rc<OwnedFd>,
    pub(crate) address: Address,
}

/// What all slots listen on.
pub(crate) struct Listeners {
    tcp: Vec<SocketAddr>,
    unix: Vec<Bound>,
}

impl Listeners {
    /// Binds the Unix sockets and finds the ports of addresses with port 0; TCP sockets are bound slot by slot.
    pub(crate) fn prepare(listen: &[Listen]) -> Result<(Listeners, Vec<Bound>), String> {
        let mut listeners = Listeners { tcp: Vec::new(), unix: Vec::new() };
        let mut first = Vec::new();
        for listen in listen {
            match &listen.address {
                ListenAddress::Tcp(address) => {
                    let bound = bind_tcp(*address)?;
                    if let Address::Tcp(real) = bound.address {
                        listeners.tcp.push(real);
                    }
                    first.push(bound);
                }
                ListenAddress::Unix(path) => listeners.unix.push(bind_unix(path)?),
            }
        }
        first.extend(listeners.unix.iter().cloned());
        Ok((listeners, first))
    }

    /// Nothing is listened on.
    pub(crate) fn none() -> Listeners {
        Listeners { tcp: Vec::new(), unix: Vec::new() }
    }

    /// What the program before this one listened on.
    pub(crate) fn inherit(state: &[state::Listener]) -> Result<Listeners, String> {
        let mut listeners = Listeners { tcp: Vec::new(), unix: Vec::new() };
        for listener in state {
            match listener {
                state::Listener::Tcp(address) => listeners.tcp.push(*address),
                state::Listener::Unix(path, fd) => {
                    let socket = Rc::new(upgrade::inherited(*fd)?);
                    listeners.unix.push(Bound { socket, address: Address::Unix(path.clone()) });
                }
            }
        }
        Ok(listeners)
    }

    /// What another program goes on with.
    pub(crate) fn state(&self) -> Vec<state::Listener> {
        let tcp = self.tcp.iter().map(|address| state::Listener::Tcp(*address));
        let unix = self.unix.iter().filter_map(|bound| match &bound.address {
            Address::Unix(path) => Some(state::Listener::Unix(path.clone(), bound.as_fd().as_raw_fd())),
            Address::Tcp(_) => None,
        });
        tcp.chain(unix).collect()
    }

    /// A slot's sockets that the program before this one had: TCP sockets by their numbers, and the Unix sockets.
    pub(crate) fn inherit_slot(&self, sockets: &[RawFd]) -> Result<Vec<Bound>, String> {
        if sockets.len() != self.tcp.len() {
            return Err(format!("{} sockets for {} addresses were handed over", sockets.len(), self.tcp.len()));
        }
        let mut bound = Vec::new();
        for (address, number) in self.tcp.iter().zip(sockets) {
            let socket = Rc::new(upgrade::inherited(*number)?);
            bound.push(Bound { socket, address: Address::Tcp(*address) });
        }
        bound.extend(self.unix.iter().cloned());
        Ok(bound)
    }

    /// The sockets of one more slot.
    pub(crate) fn bind_slot(&self) -> Result<Vec<Bound>, String> {
        let mut bound = self.tcp.iter().map(|address| bind_tcp(*address)).collect::<Result<Vec<_>, _>>()?;
        bound.extend(self.unix.iter().cloned());
        Ok(bound)
    }

    /// The addresses with their real ports, as text.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let tcp = self.tcp.iter().map(ToString::to_string);
        tcp.chain(self.unix.iter().map(|bound| text_of(&bound.address))).collect()
    }

    /// Removes the Unix sockets from the file system.
    pub(crate) fn remove(&self) {
        for bound in &self.unix {
            if let Address::Unix(path) = &bound.address {
                let _gone_already = std::fs::remove_file(path);
            }
        }
    }
}

impl Bound {
    /// The socket, for a call.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends new connections to these slots only (`None`: to all), by the sockets of slot 0.
pub(crate) fn steer(first_slot: &[Bound], serving: Option<&[u32]>) -> io::Result<()> {
    for bound in first_slot.iter().filter(|bound| matches!(bound.address, Address::Tcp(_))) {
        match serving {
            Some(slots) => rest::steer_to(&bound.socket, slots)?,
            None => rest::steer_to_all(&bound.socket)?,
        }
    }
    Ok(())
}

fn text_of(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn in_use(address: SocketAddr) -> String {
    format!("bind {address}: the address is in use by another program\n  hint: choose another address to listen on")
}

fn bind_tcp(address: SocketAddr) -> Result<Bound, String> {
    try_bind_tcp(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => in_use(address),
        io::ErrorKind::PermissionDenied => {
            format!("bind {address}: permission denied\n  hint: ports below 1024 need root or CAP_NET_BIND_SERVICE")
        }
        _ => format!("bind {address}: {error}"),
    })
}

fn try_bind_tcp(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit both: no system call a connection for them.
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let real = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok(Bound { socket: Rc::new(socket.into()), address: Address::Tcp(real) })
}

fn bind_unix(path: &Path) -> Result<Bound, String> {
    let fail = |error: io::Error| format!("bind unix:{}: {error}", path.display());
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(format!("bind unix:{}: another program serves it", path.display()));
    }
    if path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(fail)?;
    }
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // As nginx does: who may reach the directory may connect.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let socket = bind().map_err(fail)?;
    Ok(Bound { socket: Rc::new(socket.into()), address: Address::Unix(PathBuf::from(path)) })
}

/// Whether somebody who is not ours listens on the TCP addresses: SO_REUSEPORT would let two services of one user share a
/// port without a word.
pub(crate) fn check_free(listen: &[Listen]) -> Result<(), String> {
    for listen in listen {
        let ListenAddress::Tcp(address) = &listen.address else { continue };
        if address.port() == 0 {
            continue;
        }
        let probe = || -> io::Result<()> {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&(*address).into())?;
            socket.listen(1)
        };
        if let Err(error) = probe()
            && error.kind() == io::ErrorKind::AddrInUse
        {
            return Err(in_use(*address));
        }
    }
    Ok(())
}
