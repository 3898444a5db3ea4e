//! The control group that bounds the service's memory: how much it may have, and whether the kernel has killed for want of it (by its
//! own counts, of the group and of the whole host).

use std::fs;

use crate::verdict::OutOfMemory;

/// The counts as they were when last looked at.
pub(crate) struct MemoryKills {
    group: Option<u64>,
    host: Option<u64>,
}

impl MemoryKills {
    pub(crate) fn now() -> MemoryKills {
        MemoryKills { group: of_group(), host: count_in(&fs::read_to_string("/proc/vmstat").unwrap_or_default()) }
    }

    /// Whether there was one since the last call. A process that got a SIGKILL meanwhile was probably it.
    pub(crate) fn look(&mut self) -> Option<OutOfMemory> {
        std::mem::replace(self, MemoryKills::now()).until(self)
    }

    fn until(&self, later: &MemoryKills) -> Option<OutOfMemory> {
        let grown = |before: Option<u64>, now: Option<u64>| before.zip(now).is_some_and(|(before, now)| now > before);
        if grown(self.group, later.group) {
            return Some(OutOfMemory::Certain);
        }
        grown(self.host, later.host).then_some(OutOfMemory::Probable)
    }
}

/// Bytes that the service may have in all, by the limits of its group and of those above it (cgroups(7)); none: no limit is known.
pub(crate) fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let read = |file: String| limit_in(&fs::read_to_string(file).ok()?);
    files(&groups, "memory.limit_in_bytes", "memory.max").into_iter().filter_map(read).min()
}

fn limit_in(text: &str) -> Option<u64> {
    /// What version 1 says for "unlimited" is somewhere above.
    const NO_LIMIT: u64 = 1 << 60;
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

/// `oom_kill` of the group's memory.events (cgroup v2) or memory.oom_control (v1); none where neither can be read.
fn of_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let files = files(&groups, "memory.oom_control", "memory.events");
    files.into_iter().find_map(|file| count_in(&fs::read_to_string(file).ok()?))
}

/// Where a file of the group may be, by its names in version 1 and 2: at the path that the kernel tells, then in the groups above it;
/// in a container that sees its own group as the root, that is there.
fn files(groups: &str, version_1: &str, version_2: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", version_2),
            controllers if controllers.split(',').any(|it| it == "memory") => ("/sys/fs/cgroup/memory", version_1),
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{path}/{name}"));
            let Some((above, _)) = path.rsplit_once('/') else { break };
            path = above;
        }
    }
    files
}

fn count_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_either_version_of_groups() {
        let find = |groups| files(groups, "old", "new");
        let of_version_1 = find("9:name=systemd:/\n4:cpu,memory:/svc/x\n0::/\n");
        let above = ["/sys/fs/cgroup/memory/svc/x/old", "/sys/fs/cgroup/memory/svc/old", "/sys/fs/cgroup/memory/old"];
        assert_eq!(of_version_1[..3], above);
        assert_eq!(find("0::/system.slice/phalanx.service\n")[0], "/sys/fs/cgroup/system.slice/phalanx.service/new");
        assert_eq!(count_in("low 0\nhigh 0\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn a_limit_is_a_number_of_bytes_or_none() {
        assert_eq!(limit_in("536870912\n"), Some(512 << 20));
        assert_eq!(limit_in("max\n"), None);
        assert_eq!(limit_in("9223372036854771712\n"), None);
    }

    #[test]
    fn a_kill_in_the_group_is_certain_and_one_elsewhere_is_probable() {
        let kills = |group, host| MemoryKills { group, host };
        let before = kills(Some(1), Some(5));
        assert_eq!(before.until(&kills(Some(1), Some(5))), None);
        assert_eq!(before.until(&kills(Some(2), Some(6))), Some(OutOfMemory::Certain));
        assert_eq!(before.until(&kills(Some(1), Some(6))), Some(OutOfMemory::Probable));
        assert_eq!(before.until(&kills(None, None)), None);
        assert_eq!(kills(None, Some(5)).until(&kills(Some(9), Some(5))), None, "a group not seen before tells nothing");
    }
}
