//! Binding: the sockets of an address, and what to tell when they cannot be had.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use phalanx_shared::config::{Listen, ListenAddress};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::{Bound, Seat};

/// Connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 65_535;

/// Binds one socket of an address; it does not listen yet.
pub(super) fn bind(wanted: &ListenAddress, seat: u8) -> Result<(Seat, Bound), String> {
    let bound = match wanted {
        ListenAddress::Tcp(address) => bind_tcp(*address, seat)?,
        ListenAddress::Unix(path) => bind_unix(path, seat)?,
    };
    let unix = (!bound.is_tcp()).then(|| Rc::clone(&bound.socket));
    Ok((Seat { wanted: wanted.clone(), address: bound.address.clone(), unix, leaving: false }, bound))
}

/// Has a bound socket listen.
pub(super) fn listen(bound: &Bound) -> Result<(), String> {
    SockRef::from(&*bound.socket).listen(BACKLOG).map_err(|error| match (&bound.address, error.kind()) {
        (ListenAddress::Tcp(address), io::ErrorKind::AddrInUse) => in_use(*address),
        (address, _) => format!("listen on {address}: {error}"),
    })
}

fn in_use(address: SocketAddr) -> String {
    format!("bind {address}: the address is in use by another program\n  hint: choose another address to listen on")
}

pub(super) fn bind_tcp(address: SocketAddr, seat: u8) -> Result<Bound, String> {
    let bound = try_bind_tcp(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => in_use(address),
        io::ErrorKind::PermissionDenied => {
            format!("bind {address}: permission denied\n  hint: ports below 1024 need root or CAP_NET_BIND_SERVICE")
        }
        _ => format!("bind {address}: {error}"),
    });
    let (socket, real) = bound?;
    Ok(Bound { seat, socket: Rc::new(socket), address: ListenAddress::Tcp(real) })
}

fn try_bind_tcp(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
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
    let real = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket.into(), real))
}

fn check_nobody_serves(path: &Path) -> Result<(), String> {
    let connect = || -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match connect() {
        // Whoever has no room for one more is there all the same.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(format!("bind unix:{}: another program serves it\n  hint: choose another address", path.display())),
    }
}

fn bind_unix(path: &Path, seat: u8) -> Result<Bound, String> {
    let fail = |error: io::Error| format!("bind unix:{}: {error}", path.display());
    check_nobody_serves(path)?;
    if path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(fail)?;
    }
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // As nginx does: who may reach the directory may connect.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(socket)
    };
    let socket = bind().map_err(fail)?;
    Ok(Bound { seat, socket: Rc::new(socket.into()), address: ListenAddress::Unix(PathBuf::from(path)) })
}

/// How long workers whose master died may take to let go of their addresses.
const ORPHANS_PATIENCE: Duration = Duration::from_secs(2);

/// As [`check_free`], where workers of a master that died, of this pid, may not have let go yet.
pub(crate) fn wait_until_free(listen: &[Listen], left_by: &str) -> Result<(), String> {
    let late = Instant::now() + ORPHANS_PATIENCE;
    loop {
        match check_free(listen) {
            Err(why) if Instant::now() >= late => {
                return Err(format!(
                    "{why}; or end the workers of the service before, whose master (pid {left_by}) died, if they hold it"
                ));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            free => return free,
        }
    }
}

/// Whether somebody who is not ours listens on the addresses: SO_REUSEPORT would let two services of one user share a
/// port without a word.
pub(crate) fn check_free(listen: &[Listen]) -> Result<(), String> {
    for listen in listen {
        let address = match &listen.address {
            ListenAddress::Tcp(address) if address.port() == 0 => continue,
            ListenAddress::Tcp(address) => address,
            ListenAddress::Unix(path) => {
                check_nobody_serves(path)?;
                continue;
            }
        };
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
