//! Thousands of clients of one test: one such test at a time, as far as the system lets a process have files.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files that are wanted: those of a crowd, and many for the other tests of this process.
const FILES: u64 = 24_000;
/// Files that a crowd leaves to them.
const FILES_OF_OTHERS: u64 = 1_000;
/// Fewer clients are none worth a test.
const CLIENTS_MIN: u64 = 3_000;

/// Leave to open many connections, for as long as it is held.
pub(crate) struct Crowd {
    clients: u64,
    _alone: MutexGuard<'static, ()>,
}

// === impl Crowd ===

impl Crowd {
    /// Waits for other crowds to end; raises the number of files that this process, and those that it starts, may have.
    #[track_caller]
    pub(crate) fn of_at_most(clients: u64) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let files = open_files(FILES);
        let clients = files.saturating_sub(FILES_OF_OTHERS).min(clients);
        assert!(clients >= CLIENTS_MIN, "this machine lets a process have too few files for the test: {files}");
        Self { clients, _alone }
    }

    /// How many clients there may be.
    pub(crate) fn clients(&self) -> usize {
        self.clients as usize
    }
}

/// Raises the number of files that this process may have open; how many it is then.
fn open_files(wanted: u64) -> u64 {
    let id = std::process::id().to_string();
    // Only up to the hard limit, if this is not the superuser.
    for limits in [format!("--nofile={wanted}:{wanted}"), format!("--nofile={wanted}:")] {
        let raised = Command::new("prlimit").args(["--pid", &id, &limits]).status();
        if raised.is_ok_and(|status| status.success()) {
            break;
        }
    }
    let limits = std::fs::read_to_string("/proc/self/limits").expect("the limits of a process");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(u64::MAX)
}
