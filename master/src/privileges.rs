//! Whom keepers and workers run as: root is dropped for good.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, geteuid, initgroups, setgid, setgroups, setresgid, setresuid};
use phalanx_shared::config::Master;
use phalanx_shared::sys::rest::set_no_new_privileges;

/// Whom to become, looked up before the first fork.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    user: Option<(CString, Uid)>,
    group: Option<Gid>,
}

impl Identity {
    /// Looks the configured user and group up. An error when the master is not root and would have to be.
    pub(crate) fn of(master: &Master) -> Result<Identity, String> {
        let user = match &master.user {
            None => None,
            Some(name) => {
                let user = User::from_name(name).ok().flatten().ok_or(format!("no user `{name}`"))?;
                let c_name = CString::new(name.as_str()).map_err(|_| format!("no user `{name}`"))?;
                Some((c_name, user.uid, user.gid))
            }
        };
        let group = match &master.group {
            None => user.as_ref().map(|user| user.2),
            Some(name) => Some(Group::from_name(name).ok().flatten().ok_or(format!("no group `{name}`"))?.gid),
        };
        let identity = Identity { user: user.map(|(name, uid, _)| (name, uid)), group };
        let own = (geteuid(), nix::unistd::getegid());
        let change = identity.user.as_ref().is_some_and(|(_, uid)| *uid != own.0)
            || identity.group.is_some_and(|gid| gid != own.1);
        if change && !own.0.is_root() {
            return Err("only root can run workers as another user or group\n  hint: start as root, or remove master.user and master.group".into());
        }
        Ok(identity)
    }

    /// Becomes it, in this process and for good: uid, gid, supplementary groups; no new privileges by exec either.
    pub(crate) fn assume(&self) -> io::Result<()> {
        if geteuid().is_root() {
            match (&self.user, self.group) {
                (Some((name, _)), Some(gid)) => initgroups(name, gid)?,
                (None, Some(_)) => setgroups(&[])?,
                _ => {}
            }
            if let Some(gid) = self.group {
                setgid(gid)?;
                setresgid(gid, gid, gid)?;
            }
            if let Some((_, uid)) = self.user {
                setresuid(uid, uid, uid)?;
            }
        }
        set_no_new_privileges()
    }
}
