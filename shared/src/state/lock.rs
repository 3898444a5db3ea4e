//! A lock in shared memory that survives its holder: who dies with it is found to be dead, and the next one takes it over.
//!
//! The word names the process that holds it, by its number and the time when it began (proc(5), `starttime`), which together no other
//! process of this boot has. Only who waits for longer than a moment looks whether that process still is. There is nothing to repair
//! afterwards: whoever holds it changes things so that each step leaves them sound.
//!
//! A process that executes another program goes on being: one that does so without warning, as the master of a new program does where
//! it would die, has to [`abandon`] what it holds.

use std::hint::spin_loop;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::is_worker;
use crate::sys::mark::Mark;

/// Nobody holds it.
const FREE: u64 = 0;
/// Bits of a process id (PID_MAX_LIMIT of Linux is 2^22).
const PID_BITS: u32 = 22;
/// Looks at a lock that is held before the processor is left to others, and before the holder is looked at.
const SPINS: u32 = 100;
const NAPS: u32 = 10;
/// How long a nap is: whoever wakes up gets the processor soon, whoever yields it has others take their whole turn first.
const NAP: Duration = Duration::from_micros(20);
const PAUSE: Duration = Duration::from_micros(200);

/// Nobody who ever was.
const DEAD: u64 = 1 << PID_BITS | ((1 << PID_BITS) - 1);

/// What the master, which has one thread, holds or waits for. Workers, which may have many, write down nothing: they die.
static HELD: Mark = Mark::new();
/// Who this process is; 0: not asked yet.
static IDENTITY: AtomicU64 = AtomicU64::new(FREE);

/// This process is another one than the one that it was cloned from.
pub(super) fn forget_identity() {
    IDENTITY.store(FREE, Ordering::Relaxed);
    // While there are descriptors to look with.
    let _known_from_now_on = identity();
}

fn identity() -> u64 {
    match IDENTITY.load(Ordering::Relaxed) {
        FREE => {
            let pid = std::process::id();
            let found = look(pid);
            let own = name_of(pid, found.as_ref().map_or(0, |(_, began)| *began));
            if found.is_ok() {
                IDENTITY.store(own, Ordering::Relaxed);
            }
            own
        }
        own => own,
    }
}

fn name_of(pid: u32, began: u64) -> u64 {
    began << PID_BITS | u64::from(pid)
}

/// What this process holds is nobody's from now on: who takes it next takes it from the dead. For a process of one thread, in which
/// none of this crate's code runs any more. Async-signal-safe.
pub fn abandon() {
    if let Some(word) = HELD.get() {
        let own = IDENTITY.load(Ordering::Relaxed);
        let _not_held = word.compare_exchange(own, DEAD, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// State and beginning of a process, by proc(5).
fn look(pid: u32) -> io::Result<(u8, u64)> {
    let bytes = std::fs::read(format!("/proc/{pid}/stat"))?;
    parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse(bytes: &[u8]) -> Option<(u8, u64)> {
    // Behind the name, which may hold anything.
    let behind = bytes.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&bytes[behind..]).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether the process that a word names is no more.
fn is_dead(word: u64) -> bool {
    let pid = (word & ((1 << PID_BITS) - 1)) as u32;
    match look(pid) {
        Ok((b'Z' | b'X', _)) => true,
        // Its holder could not look at itself.
        Ok(_) if word >> PID_BITS == 0 => false,
        Ok((_, began)) => name_of(pid, began) != word,
        // Where processes are hidden (proc(5), hidepid), or no descriptor is left, the kernel still tells whether there is one.
        Err(_) => kill(Pid::from_raw(pid as i32), None) == Err(Errno::ESRCH),
    }
}

/// A lock, by its word.
#[derive(Debug, Clone, Copy)]
pub struct Lock(pub &'static AtomicU64);

/// Held until it is dropped, or its process dies.
#[derive(Debug)]
pub struct Held {
    word: &'static AtomicU64,
    own: u64,
    is_inherited: bool,
    /// What the master held before.
    outer: Option<&'static AtomicU64>,
}

impl Held {
    /// Whether who held it before has died with it.
    pub(super) fn is_inherited(&self) -> bool {
        self.is_inherited
    }
}

impl Lock {
    /// Waits until it is this process's. One of its threads may wait for another; none for itself: that would be for ever.
    pub fn hold(self) -> Held {
        let own = identity();
        let outer = if is_worker() { None } else { HELD.replace(Some(self.0)) };
        let mut is_inherited = false;
        for round in 0_u32.. {
            let found = match self.0.compare_exchange(FREE, own, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => found,
            };
            match round {
                0..SPINS => spin_loop(),
                SPINS..NAPS_END => std::thread::sleep(NAP),
                _ if found != own && is_dead(found) => {
                    if self.0.compare_exchange(found, own, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                        is_inherited = true;
                        break;
                    }
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
        Held { word: self.0, own, is_inherited, outer }
    }
}

const NAPS_END: u32 = SPINS + NAPS;

impl Drop for Held {
    fn drop(&mut self) {
        // Not if it has been scribbled over, or taken from one who was thought to be dead.
        let _of_another = self.word.compare_exchange(self.own, FREE, Ordering::Release, Ordering::Relaxed);
        if !is_worker() {
            HELD.replace(self.outer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time() {
        static WORD: AtomicU64 = AtomicU64::new(FREE);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let add = || {
            for _ in 0..2000 {
                let _held = Lock(&WORD).hold();
                COUNT.store(COUNT.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(add)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((COUNT.load(Ordering::Relaxed), WORD.load(Ordering::Relaxed)), (8000, FREE));
    }

    #[test]
    fn a_process_may_be_called_anything() {
        let stat = [b"7 (a) b\xff) S 1", " 0".repeat(17).as_bytes(), b" 42 0\n"].concat();
        assert_eq!(parse(&stat), Some((b'S', 42)));
    }

    #[test]
    fn the_dead_hold_nothing() {
        // Nobody has that number; one that is another's by now; and one that has ended and was not waited for.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let began = look(child.id()).unwrap().1;
        while look(child.id()).unwrap().0 != b'Z' {
            std::thread::yield_now();
        }
        for dead in [name_of(4_194_300, 7), name_of(1, u64::MAX >> PID_BITS), name_of(child.id(), began)] {
            let word: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(dead)));
            let held = Lock(word).hold();
            assert_eq!(word.load(Ordering::Relaxed), identity());
            drop(held);
            assert_eq!(word.load(Ordering::Relaxed), FREE);
        }
        child.wait().unwrap();
        assert!(!is_dead(identity()) && is_dead(DEAD));
        // One that could not look at itself lives as long as there is a process of its number.
        assert!(!is_dead(name_of(std::process::id(), 0)) && is_dead(name_of(4_194_300, 0)));
    }
}
