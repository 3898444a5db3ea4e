//! The log of the processes: one line a write, `time level process: text`, to a descriptor that the master opened.

use std::fmt::{self, Write as _};
use std::os::fd::RawFd;
use std::sync::RwLock;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use crate::config::Level;
use crate::sys::table;

static DESCRIPTOR: AtomicI32 = AtomicI32::new(2);
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static NAME: RwLock<String> = RwLock::new(String::new());

/// Longest line; longer ones are cut, so that one write takes a line whole.
const MAX_LINE: usize = 4000;

/// Logs to `descriptor` from `level` up.
pub fn configure(descriptor: RawFd, level: Level) {
    DESCRIPTOR.store(descriptor, Ordering::Relaxed);
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Names this process in its lines; a process just forked takes another name.
pub fn set_name(name: &str) {
    if let Ok(mut current) = NAME.write() {
        name.clone_into(&mut current);
    }
}

/// Whether lines of `level` are written.
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Writes a line. Errors are ignored: there is nowhere to tell them.
pub fn write(level: Level, text: fmt::Arguments<'_>) {
    if !enabled(level) {
        return;
    }
    let mut line = String::with_capacity(160);
    let word = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let name = NAME.read().map(|name| name.clone()).unwrap_or_default();
    let _infallible = write!(line, "{} {word} {name}[{}]: {text}", timestamp(), std::process::id());
    if line.len() > MAX_LINE {
        let cut = (0..=MAX_LINE).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        line.truncate(cut);
    }
    // A peer's bytes may stand in the text; a line stays a line.
    let mut line = line.replace(['\n', '\r'], " ");
    line.push('\n');
    let _ignored = nix::unistd::write(table::borrow(DESCRIPTOR.load(Ordering::Relaxed)), line.as_bytes());
}

/// UTC to the millisecond, as in RFC 3339.
pub fn timestamp() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day, second) = civil(since.as_secs());
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// A second as RFC 3339 (5.6) writes it: `1994-11-06T08:49:37Z`; its years have four digits, so none is after 9999.
pub fn rfc3339(epoch_seconds: u64) -> String {
    let (year, month, day, second) = civil(epoch_seconds.min(253_402_300_799));
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Date and second of the day in UTC, by the days-to-civil algorithm of the proleptic Gregorian calendar.
pub fn civil(epoch_seconds: u64) -> (u64, u64, u64, u64) {
    let (days, second) = (epoch_seconds / 86_400 + 719_468, epoch_seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day, second)
}

/// Logs an error.
#[macro_export]
macro_rules! error { ($($part:tt)*) => { $crate::log::write($crate::config::Level::Error, format_args!($($part)*)) }; }
/// Logs a warning.
#[macro_export]
macro_rules! warn { ($($part:tt)*) => { $crate::log::write($crate::config::Level::Warn, format_args!($($part)*)) }; }
/// Logs what an operator wants to know.
#[macro_export]
macro_rules! info { ($($part:tt)*) => { $crate::log::write($crate::config::Level::Info, format_args!($($part)*)) }; }
/// Logs what a developer wants to know.
#[macro_export]
macro_rules! debug { ($($part:tt)*) => { $crate::log::write($crate::config::Level::Debug, format_args!($($part)*)) }; }

/// The first line of what a peer has sent, fit for the log: at most 256 bytes of it, none of them a control character.
pub fn first_line(bytes: &[u8]) -> String {
    const MOST: usize = 256;
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or(&[]);
    let line = String::from_utf8_lossy(&line[..line.len().min(MOST)]);
    line.chars().map(|it| if it.is_control() { '.' } else { it }).collect()
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1, 0));
        assert_eq!(civil(951_782_400), (2000, 2, 29, 0));
        assert_eq!(civil(1_795_564_799), (2026, 11, 24, 86_399));
    }
}
