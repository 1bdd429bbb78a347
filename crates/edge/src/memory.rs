//! Memory that the daemon does not need while nothing happens.
//!
//! Most of what a process of this size occupies is its own program text, and much of that runs once: command line,
//! configuration, provisioning, certificates. The kernel maps what surrounds each page that was touched, so after the start
//! nearly all of it is counted to the daemon, and is hard to take back when memory becomes scarce.

use std::ffi::c_void;
use std::time::Duration;

use rustix::mm::{Advice, madvise};
use tokio::time::Instant;

/// Most heaps of the C library's allocator. Left alone it makes one for each of a dozen threads, and each keeps what a burst
/// has freed.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: i32 = 2;

/// Sets up the allocator; to be called before any thread is started.
pub(crate) fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` changes a number inside the allocator, and there is one thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}

/// How long after the start most of what a start needs has run.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// How often freed memory is given back.
const EVERY: Duration = Duration::from_secs(60);
/// Of so many times, program text is unmapped once.
const UNMAP_EACH: u32 = 60;

/// Says when memory is to be given back, and does it.
pub(crate) struct Thrift {
    next: Instant,
    done: u32,
}

impl Thrift {
    /// From the start of the daemon.
    pub(crate) fn start() -> Self {
        Thrift {
            next: Instant::now() + SETTLED_AFTER,
            done: 0,
        }
    }

    /// Until it is time. May be dropped and asked again.
    pub(crate) async fn due(&self) {
        tokio::time::sleep_until(self.next).await;
    }

    pub(crate) fn carry_out(&mut self) {
        trim_heap();
        if self.done.is_multiple_of(UNMAP_EACH) {
            unmap_program();
        }
        self.done = self.done.wrapping_add(1);
        self.next = Instant::now() + EVERY;
    }
}

/// Gives back to the system what was freed, after a drain for example: the allocator would keep it for the next burst.
fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes the allocator's own locks, and touches nothing that is allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the program's text. What is needed is mapped again when it is next touched, from the page cache as
/// long as the kernel keeps it there, without reading the disk. Nothing happens where the system does not tell the mappings.
pub(crate) fn unmap_program() {
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in program_mappings(&maps, &program.to_string_lossy()) {
        // SAFETY: `MADV_DONTNEED` drops the pages of the range. It is a private mapping of a file that cannot be written to,
        // so each page is read from that file again with the same content: no memory changes for whoever looks at it.
        let _ = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
    }
}

/// Address and length of the mappings of the program file that are executable: text, which nothing ever writes to. Constants
/// are left out, for some of them are relocated when the program is loaded.
fn program_mappings(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let mapping = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let access = words.next()?;
        let path = words.nth(3)?;
        if access != "r-xp" || path != program {
            return None;
        }
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (address(start)?, address(end)?);
        Some((start, end.checked_sub(start)?))
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_the_program_is_found() {
        let maps = "\
            55bbaa071000-55bbaa244000 r--p 00000000 fe:00 123 /usr/bin/holdfast-edge\n\
            55bbaa244000-55bbaa826000 r-xp 001d3000 fe:00 123 /usr/bin/holdfast-edge\n\
            55bbaa826000-55bbaa852000 r--p 007b5000 fe:00 123 /usr/bin/holdfast-edge\n\
            55bbaa852000-55bbaa854000 rw-p 007e1000 fe:00 123 /usr/bin/holdfast-edge\n\
            7f0000000000-7f0000001000 r-xp 00000000 fe:00 9 /usr/lib/libc.so.6\n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n\
            nonsense\n";
        assert_eq!(
            program_mappings(maps, "/usr/bin/holdfast-edge"),
            [(0x55bb_aa24_4000, 0x5e_2000)]
        );
        assert!(program_mappings("", "/usr/bin/holdfast-edge").is_empty());
    }

    #[test]
    fn the_program_runs_on() {
        let before = program_mappings(
            &std::fs::read_to_string("/proc/self/maps").unwrap(),
            &std::env::current_exe().unwrap().to_string_lossy(),
        );
        assert!(!before.is_empty());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..50 {
                        unmap_program();
                        assert_eq!(format!("{:?}", "a\tb"), "\"a\\tb\"");
                    }
                })
            })
            .collect();
        assert!(threads.into_iter().all(|thread| thread.join().is_ok()));
    }
}
