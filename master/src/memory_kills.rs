//! Whether the kernel has killed for want of memory: its own counts, of the service's group and of the whole host.

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

/// `oom_kill` of the group's memory.events (cgroup v2) or memory.oom_control (v1); none where neither can be read.
fn of_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    files(&groups).into_iter().find_map(|file| count_in(&fs::read_to_string(file).ok()?))
}

/// Where the count may be: at the path that the kernel tells, or, in a container that sees its own group as the root, there.
fn files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let path = path.trim_end_matches('/');
        if controllers.split(',').any(|controller| controller == "memory") {
            files.push(format!("/sys/fs/cgroup/memory{path}/memory.oom_control"));
            files.push("/sys/fs/cgroup/memory/memory.oom_control".to_owned());
        } else if controllers.is_empty() {
            files.push(format!("/sys/fs/cgroup{path}/memory.events"));
            files.push("/sys/fs/cgroup/memory.events".to_owned());
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
        let v1 = files("9:name=systemd:/\n4:cpu,memory:/svc/x\n0::/\n");
        assert_eq!(v1[0], "/sys/fs/cgroup/memory/svc/x/memory.oom_control");
        assert_eq!(
            files("0::/system.slice/phalanx.service\n")[0],
            "/sys/fs/cgroup/system.slice/phalanx.service/memory.events"
        );
        assert_eq!(count_in("low 0\nhigh 0\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\n"), None);
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
