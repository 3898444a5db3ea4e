//! The master's side of the control socket: clients, their lines in, their answers out; nothing here blocks.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use phalanx_shared::warn;

use super::{Answer, Command};
use crate::upgrade::{self, state};

/// A client's number, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(pub(crate) u64);

/// Clients at once; one more is turned away.
const MAX_CLIENTS: usize = 64;
/// Bytes of a request line.
const MAX_LINE: usize = 64 * 1024;
/// Bytes that may wait for a client which another program is to go on with.
const MAX_PASSED: usize = 64 * 1024;
/// Bytes that may wait for a client that does not read.
const MAX_UNSENT: usize = 16 * 1024 * 1024;

struct Client {
    /// Shut when the client goes, whoever has it open: a page for another program may yet name its number.
    stream: Rc<UnixStream>,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// Commands not answered yet.
    owed: usize,
    /// It is told what happens, for as long as it stays.
    listens: bool,
    /// It has said all it will say; it may still wait for answers.
    finished: bool,
    gone: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _gone_already = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// The socket and its clients.
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    clients: BTreeMap<ClientId, Client>,
    next: u64,
}

impl Server {
    /// Binds `path`, mode 0600. A socket that nobody answers on is replaced; one that somebody answers on is an error.
    pub(crate) fn bind(path: &Path) -> Result<Server, String> {
        if let Ok(stream) = UnixStream::connect(path) {
            let holder = getsockopt(&stream, PeerCredentials).map_or(0, |peer| peer.pid());
            return Err(format!(
                "already running: pid {holder} answers on the control socket {}\n  hint: phalanx stop, or choose another master.control_socket",
                path.display()
            ));
        }
        crate::pid_file::make_parent(path)?;
        if path.symlink_metadata().is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())) {
            let _replaced_below = std::fs::remove_file(path);
        }
        let fail = |error: io::Error| format!("bind the control socket {}: {error}", path.display());
        // No client can connect before the mode is set: the socket does not listen on a wider mode than the mask gives.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        nix::sys::stat::umask(before);
        let listener = bound.map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Server { listener, path: path.to_owned(), clients: BTreeMap::new(), next: 1 })
    }

    /// The socket and the clients that the program before this one had.
    pub(crate) fn inherit(path: &Path, state: &state::Control) -> Result<Server, String> {
        let listener = UnixListener::from(upgrade::inherited(state.listener)?);
        let mut clients = BTreeMap::new();
        for client in &state.clients {
            // One that has gone since this was written is none.
            let Ok(stream) = upgrade::inherited(client.stream) else { continue };
            let stream = Rc::new(UnixStream::from(stream));
            let state::Client { received, unsent, owed, listens, finished, .. } = client.clone();
            clients
                .insert(ClientId(client.id), Client { stream, received, unsent, owed, listens, finished, gone: false });
        }
        Ok(Server { listener, path: path.to_owned(), clients, next: state.next })
    }

    /// Tells the clients that there are from those that there were.
    pub(crate) fn clients_known(&self) -> Vec<(ClientId, [usize; 3], [bool; 2])> {
        let clients = self.clients.iter().filter(|(_, client)| !client.gone);
        let known = |it: &Client| ([it.owed, it.received.len(), it.unsent.len()], [it.listens, it.finished]);
        clients.map(|(id, client)| (*id, known(client).0, known(client).1)).collect()
    }

    /// Those of the clients.
    pub(crate) fn streams(&self) -> Vec<Rc<UnixStream>> {
        self.clients.values().map(|client| Rc::clone(&client.stream)).collect()
    }

    /// What another program goes on with.
    pub(crate) fn state(&self) -> state::Control {
        // Who does not read its answers is not worth a program's start.
        let clients = self.clients.iter().filter(|(_, client)| !client.gone && client.unsent.len() <= MAX_PASSED);
        let clients = clients.map(|(id, client)| state::Client {
            id: id.0,
            stream: client.stream.as_raw_fd(),
            received: client.received.clone(),
            unsent: client.unsent.clone(),
            owed: client.owed,
            listens: client.listens,
            finished: client.finished,
        });
        state::Control { listener: self.listener.as_raw_fd(), clients: clients.collect(), next: self.next }
    }

    /// What to poll, and for what.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        // One that only waits for its answer is not asked: a hang-up is told whether asked for or not, again and again.
        let polled = self.clients.values().filter(|client| !client.interest().is_empty());
        let clients = polled.map(|client| (client.stream.as_fd(), client.interest()));
        std::iter::once((self.listener.as_fd(), PollFlags::POLLIN)).chain(clients)
    }

    /// Moves what can be moved and returns the commands that are complete.
    pub(crate) fn turn(&mut self) -> Vec<(ClientId, Command)> {
        self.accept();
        let mut commands = Vec::new();
        for (&id, client) in &mut self.clients {
            client.receive();
            while let Some(line) = client.take_line() {
                match serde_json::from_slice(&line) {
                    Ok(command) => {
                        client.owed += 1;
                        commands.push((id, command));
                    }
                    Err(error) => client.send(&Answer::refused(format!("this is no command: {error}"))),
                }
            }
            client.flush();
        }
        self.clients.retain(|_, client| !client.is_over());
        commands
    }

    /// Answers a client, if it is still there.
    pub(crate) fn answer(&mut self, id: ClientId, answer: &Answer) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.owed = client.owed.saturating_sub(1);
        client.send(answer);
        client.flush();
        // Who has said all it will say and has all its answers is not polled any more: nothing else would end it.
        if client.is_over() {
            self.clients.remove(&id);
        }
    }

    /// A client is to be told what happens, in place of an answer.
    pub(crate) fn listen(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.owed = client.owed.saturating_sub(1);
            client.listens = true;
        }
    }

    /// Whether anybody is.
    pub(crate) fn has_listeners(&self) -> bool {
        self.clients.values().any(|client| client.listens)
    }

    /// Tells them. Who does not read is dropped when too much waits for it.
    pub(crate) fn tell_listeners(&mut self, what: &impl serde::Serialize) {
        for client in self.clients.values_mut().filter(|client| client.listens) {
            client.send(what);
            client.flush();
        }
        self.clients.retain(|_, client| !client.is_over());
    }

    /// Removes the socket from the file system; before the last answer, so that who has it finds nothing left.
    pub(crate) fn remove(&self) {
        let _gone_already = std::fs::remove_file(&self.path);
    }

    fn accept(&mut self) {
        // Bounded by the backlog of the listener.
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS || !allowed(&stream) || stream.set_nonblocking(true).is_err() {
                warn!("a client of the control socket was turned away");
                continue;
            }
            let client = Client {
                stream: Rc::new(stream),
                received: Vec::new(),
                unsent: Vec::new(),
                owed: 0,
                listens: false,
                finished: false,
                gone: false,
            };
            self.clients.insert(ClientId(self.next), client);
            self.next += 1;
        }
    }
}

/// Root and the user whom the master runs as may command it.
fn allowed(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

impl Client {
    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.finished);
        flags.set(PollFlags::POLLOUT, !self.unsent.is_empty());
        flags
    }

    fn is_over(&self) -> bool {
        // Who listens may have said all it will say; that it has gone shows when it is told something.
        self.gone || self.finished && self.owed == 0 && self.unsent.is_empty() && !self.listens
    }

    fn receive(&mut self) {
        let mut bytes = [0; 4096];
        while !self.finished && self.received.len() < MAX_LINE {
            match (&*self.stream).read(&mut bytes) {
                Ok(0) => {
                    self.finished = true;
                    return;
                }
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        if self.received.len() >= MAX_LINE && !self.received.contains(&b'\n') {
            self.gone = true;
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.received.iter().position(|&byte| byte == b'\n')?;
        let mut line: Vec<u8> = self.received.drain(..=end).collect();
        line.pop();
        Some(line)
    }

    fn send(&mut self, answer: &impl serde::Serialize) {
        if let Ok(text) = serde_json::to_vec(answer) {
            self.unsent.extend_from_slice(&text);
            self.unsent.push(b'\n');
        }
        self.gone |= self.unsent.len() > MAX_UNSENT;
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match (&*self.stream).write(&self.unsent) {
                Ok(count) if count > 0 => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.gone = true;
                    return;
                }
            }
        }
    }
}
