//! The `[master]` table.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Group, User, geteuid};

use super::bounds::CRASH_REPORTS;
use super::entry::Entry;
use super::listen::check_socket_path;
use super::resolved::Master;
use super::table::Table;

pub(super) fn master(mut table: Table<'_>) -> Master {
    let user = table.entry("user").and_then(|entry| user(&entry));
    let own_group = user.as_ref().and_then(|user| own_group(&mut table, user));
    let master = Master {
        pid_file: Some(table.path("pid_file").unwrap_or_else(|| run_dir().join("phalanx.pid"))),
        control_socket: Some(control_socket(&mut table).unwrap_or_else(|| run_dir().join("control.sock"))),
        user: user.map(|user| user.name),
        group: table.entry("group").and_then(|entry| group(&entry)).or(own_group),
        crash_dir: table.path("crash_dir"),
        probation: table.duration("probation", Duration::from_secs(3)),
        crash_reports: table.number("crash_reports", 100, &CRASH_REPORTS),
    };
    table.finish();
    master
}

fn control_socket(table: &mut Table<'_>) -> Option<PathBuf> {
    let entry = table.entry("control_socket")?;
    let written = entry.text("a path")?;
    entry.check(entry.source().path(written).and_then(check_socket_path))
}

fn user(entry: &Entry<'_>) -> Option<User> {
    let name = entry.text("the name of a user")?;
    match User::from_name(name) {
        Ok(Some(user)) => Some(user),
        Ok(None) => {
            entry.refuse(
                format!("there is no user {name:?} on this system"),
                "create the user, or name one from /etc/passwd",
            );
            None
        }
        Err(error) => {
            entry.refuse(format!("cannot look up the user {name:?}: {}", error.desc()), "check /etc/nsswitch.conf");
            None
        }
    }
}

/// The name of the user's own group, for which nothing is needed in the file, unless the system has none.
fn own_group(table: &mut Table<'_>, user: &User) -> Option<String> {
    if table.has("group") {
        return None;
    }
    let group = Group::from_gid(user.gid).ok().flatten();
    if group.is_none() {
        let text = format!("master.user: the group {} of user {:?} has no name on this system", user.gid, user.name);
        table.refuse_key("user", text, "name a group with master.group");
    }
    group.map(|group| group.name)
}

fn group(entry: &Entry<'_>) -> Option<String> {
    let name = entry.text("the name of a group")?;
    match Group::from_name(name) {
        Ok(Some(group)) => Some(group.name),
        Ok(None) => {
            entry.refuse(
                format!("there is no group {name:?} on this system"),
                "create the group, or name one from /etc/group",
            );
            None
        }
        Err(error) => {
            entry.refuse(format!("cannot look up the group {name:?}: {}", error.desc()), "check /etc/nsswitch.conf");
            None
        }
    }
}

/// Where the PID file and the control socket are unless the file says otherwise.
fn run_dir() -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    run_dir_of(geteuid().as_raw(), runtime.as_deref())
}

fn run_dir_of(uid: u32, runtime: Option<&Path>) -> PathBuf {
    match runtime {
        _ if uid == 0 => PathBuf::from("/run/phalanx"),
        Some(runtime) if runtime.is_absolute() => runtime.join("phalanx"),
        _ => PathBuf::from(format!("/tmp/phalanx-{uid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_files_stand_where_their_user_may_write() {
        let runtime = Path::new("/run/user/1000");
        assert_eq!(run_dir_of(0, Some(runtime)), Path::new("/run/phalanx"));
        assert_eq!(run_dir_of(1000, Some(runtime)), Path::new("/run/user/1000/phalanx"));
        assert_eq!(run_dir_of(1000, Some(Path::new("relative"))), Path::new("/tmp/phalanx-1000"));
        assert_eq!(run_dir_of(1000, None), Path::new("/tmp/phalanx-1000"));
    }
}
