//! The stack of a thread that lives: looked at from outside, as a debugger does (ptrace(2)), so that no code runs in the process for
//! it. Of its system calls only those return early, with EINTR, that do so after any stop: epoll_wait(2) and a few others
//! (signal(7), "Interruption of system calls and library functions by stop signals"). For a child of the master's: what it cannot
//! detach from when it ends, the kernel lets go.

use std::io::IoSliceMut;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use object::{Object, ObjectSection, ObjectSegment};
use phalanx_shared::sys::rest::parent;

/// How long the thread may take to stop.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of the stack that are looked at.
const MOST: usize = 256 * 1024;
const PAGE: usize = 4096;
const MAX_FRAMES: usize = 64;
const MAX_MODULES: usize = 256;
/// Of all modules together.
const MAX_MODULE_BYTES: u64 = 1 << 30;

#[cfg(target_arch = "x86_64")]
type Machine = (framehop::x86_64::UnwinderX86_64<Vec<u8>>, framehop::x86_64::CacheX86_64);
#[cfg(target_arch = "aarch64")]
type Machine = (framehop::aarch64::UnwinderAarch64<Vec<u8>>, framehop::aarch64::CacheAarch64);

/// Where a thread was, at one instant.
struct Sample {
    registers: libc::user_regs_struct,
    /// Of the stack's top.
    address: u64,
    stack: Vec<u8>,
}

/// The addresses of the functions that `thread` of `process` is in, the innermost first. The thread goes on as it was.
///
/// Errors: it is no thread of the process; who may not trace it (ptrace(2), "Ptrace access mode checking"), or another does; a
/// thread that does not stop in time.
pub(crate) fn of_thread(process: Pid, thread: Pid) -> Result<Vec<u64>, String> {
    let sample = sample(process, thread).map_err(|error| format!("look at thread {thread}: {error}"))?;
    let (mut unwinder, mut cache): Machine = Default::default();
    for module in modules(process)? {
        unwinder.add_module(module);
    }
    let mut read = |address: u64| {
        let from = usize::try_from(address.checked_sub(sample.address).ok_or(())?).map_err(|_| ())?;
        let word = sample.stack.get(from..from.checked_add(8).ok_or(())?).ok_or(())?;
        Ok(u64::from_le_bytes(word.try_into().map_err(|_| ())?))
    };
    let (at, registers) = machine_registers(&sample.registers);
    let mut frames = unwinder.iter_frames(at, registers, &mut cache, &mut read);
    let mut addresses = Vec::new();
    while let Ok(Some(frame)) = frames.next() {
        addresses.push(match frame {
            FrameAddress::InstructionPointer(address) => address.wrapping_add(1),
            FrameAddress::ReturnAddress(address) => address.into(),
        });
        if addresses.len() == MAX_FRAMES {
            break;
        }
    }
    Ok(addresses)
}

fn sample(process: Pid, thread: Pid) -> nix::Result<Sample> {
    // A worker may name any: it is looked at if it is a thread of a sibling of ours.
    let check = || {
        let is_thread = std::path::Path::new(&format!("/proc/{process}/task/{thread}")).exists();
        let is_of_sibling = is_thread && parent(process) == Some(nix::unistd::getppid());
        is_of_sibling.then_some(()).ok_or(Errno::ESRCH)
    };
    check()?;
    ptrace::seize(thread, ptrace::Options::empty())?;
    // Its number is nobody else's from here on.
    check()?;
    ptrace::interrupt(thread)?;
    let late = Instant::now() + PATIENCE;
    let stopped = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    let signal = loop {
        match waitpid(thread, Some(stopped))? {
            WaitStatus::StillAlive if Instant::now() >= late => return Err(Errno::ETIMEDOUT),
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(1)),
            // On its way to it, and not to be lost.
            WaitStatus::Stopped(_, signal) => break Some(signal),
            WaitStatus::PtraceEvent(..) => break None,
            _ => return Err(Errno::ESRCH),
        }
    };
    let taken = ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(thread).map(|registers| {
        let address = registers_sp(&registers);
        Sample { registers, address, stack: read(thread, address) }
    });
    if ptrace::detach(thread, signal).is_err() {
        // Killed meanwhile: its parent hears of it when its tracer has.
        while waitpid(thread, Some(stopped)) == Ok(WaitStatus::StillAlive) && Instant::now() < late {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    taken
}

/// What can be read from `address` on; page by page, so that the end of the stack ends it.
fn read(thread: Pid, address: u64) -> Vec<u8> {
    let mut bytes = vec![0; MOST];
    let mut from = address as usize;
    let mut remote = Vec::new();
    while remote.iter().map(|part: &RemoteIoVec| part.len).sum::<usize>() < MOST - PAGE {
        let len = PAGE - from % PAGE;
        remote.push(RemoteIoVec { base: from, len });
        from = from.wrapping_add(len);
    }
    let count = process_vm_readv(thread, &mut [IoSliceMut::new(&mut bytes)], &remote).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

#[cfg(target_arch = "x86_64")]
fn registers_sp(registers: &libc::user_regs_struct) -> u64 {
    registers.rsp
}

#[cfg(target_arch = "x86_64")]
fn machine_registers(registers: &libc::user_regs_struct) -> (u64, framehop::x86_64::UnwindRegsX86_64) {
    let at = registers.rip;
    (at, framehop::x86_64::UnwindRegsX86_64::new(at, registers.rsp, registers.rbp))
}

#[cfg(target_arch = "aarch64")]
fn registers_sp(registers: &libc::user_regs_struct) -> u64 {
    registers.sp
}

#[cfg(target_arch = "aarch64")]
fn machine_registers(registers: &libc::user_regs_struct) -> (u64, framehop::aarch64::UnwindRegsAarch64) {
    let (frame, link) = (registers.regs[29], registers.regs[30]);
    (registers.pc, framehop::aarch64::UnwindRegsAarch64::new(link, registers.sp, frame))
}

/// A file mapped into the process.
struct Mapped {
    path: PathBuf,
    range: Range<u64>,
    /// Where its first byte is mapped.
    start: u64,
    executable: bool,
}

/// What tells how to walk the stack: the unwind tables of every program and library that is mapped.
fn modules(process: Pid) -> Result<Vec<Module<Vec<u8>>>, String> {
    let maps = format!("/proc/{process}/maps");
    let text = std::fs::read_to_string(&maps).map_err(|error| format!("{maps}: {error}"))?;
    let mut mapped: Vec<Mapped> = Vec::new();
    for line in text.lines() {
        let Some((range, executable, offset, path)) = parse(line) else { continue };
        match mapped.last_mut().filter(|last| last.path.as_os_str() == path) {
            Some(last) => {
                last.range.end = range.end;
                last.executable |= executable;
            }
            None if offset == 0 => mapped.push(Mapped { path: path.into(), start: range.start, range, executable }),
            None => {}
        }
    }
    let code = mapped.into_iter().filter(|mapped| mapped.executable).take(MAX_MODULES);
    let mut left = MAX_MODULE_BYTES;
    Ok(code.filter_map(|mapped| module(process, mapped, &mut left)).collect())
}

/// proc_pid_maps(5): `address perms offset dev inode pathname`; none without a file.
fn parse(line: &str) -> Option<(Range<u64>, bool, u64, &str)> {
    let path = &line[line.find('/')?..];
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let executable = fields.next()?.contains('x');
    let offset = number(fields.next()?)?;
    Some((number(from)?..number(to)?, executable, offset, path))
}

fn module(process: Pid, mapped: Mapped, left: &mut u64) -> Option<Module<Vec<u8>>> {
    // The program's file may have been replaced since.
    let program = format!("/proc/{process}/exe");
    let is_program = std::fs::read_link(&program).is_ok_and(|path| path == mapped.path);
    let path = if is_program { program.into() } else { mapped.path.clone() };
    // The worker decides what it maps: a file, and no endless one.
    let known = std::fs::metadata(&path).ok().filter(|it| it.is_file())?;
    *left = left.checked_sub(known.len())?;
    let bytes = std::fs::read(path).ok()?;
    let file = object::File::parse(&*bytes).ok()?;
    let first = file.segments().find(|segment| segment.file_range().0 == 0)?;
    let section = |name: &str| {
        let section = file.section_by_name(name)?;
        let range = section.address()..section.address() + section.size();
        Some((range, section.uncompressed_data().ok()?.into_owned()))
    };
    let (frames, index) = (section(".eh_frame"), section(".eh_frame_hdr"));
    let text = file.section_by_name(".text").map(|text| text.address()..text.address() + text.size());
    let sections = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: text,
        eh_frame_svma: frames.as_ref().map(|(range, _)| range.clone()),
        eh_frame: frames.map(|(_, bytes)| bytes),
        eh_frame_hdr_svma: index.as_ref().map(|(range, _)| range.clone()),
        eh_frame_hdr: index.map(|(_, bytes)| bytes),
        ..Default::default()
    };
    let base = mapped.start.checked_sub(first.address())?;
    Some(Module::new(mapped.path.display().to_string(), mapped.range, base, sections))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f1c-7f2c r-xp 00001000 fe:01 42                         /usr/lib/a library.so";
        assert_eq!(parse(line), Some((0x7f1c..0x7f2c, true, 0x1000, "/usr/lib/a library.so")));
        for line in ["7f1c-7f2c rw-p 00000000 00:00 0 [stack]", "", "/", "x-y r 0 /a"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
