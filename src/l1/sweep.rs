//! Gives back the memory of emptied partitions, without holding anybody up.
//!
//! What stands under the id of an emptied partition cannot be found any more, so there is no hurry. Few entries are swept
//! at once. Where there are many, a thread of its own walks over the store, entry by entry: it takes a shard's lock for
//! one entry at a time, so that readers and links go on. It ends when nothing is left to be swept; what is emptied
//! meanwhile, it takes along on its next walk.
//!
//! If no thread can be had, the sweep is made in place. Until swept, entries count for the store's size and may be evicted
//! as any other.

use super::{Cause, L1, NOWHERE};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A store with at most so many entries is swept at once.
pub(super) const SWEPT_AT_ONCE_MAX: usize = 4096;

/// Ids whose entries are still to be swept, with the cause that counts for them.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    dead: Vec<(u64, Cause)>,
    /// True while there is a thread for it.
    is_running: bool,
}

// === impl L1 ===

impl L1 {
    /// Gives the memory of all entries under an id back, now or soon.
    pub(super) fn sweep(self: &Arc<Self>, id: u64, cause: Cause) {
        if id == NOWHERE {
            return;
        }
        if self.entries() <= SWEPT_AT_ONCE_MAX {
            self.walk(&[(id, cause)]);
            return;
        }
        let mut state = self.sweeps.lock();
        state.dead.push((id, cause));
        if state.is_running {
            return;
        }
        state.is_running = true;
        drop(state);
        let this = self.clone();
        if let Err(error) = std::thread::Builder::new().name("larder-sweep".into()).spawn(move || this.sweep_all()) {
            tracing::warn!(cause = %error, "no thread to sweep L1: it is swept in place");
            self.sweep_all();
        }
    }

    fn sweep_all(&self) {
        loop {
            let dead = {
                let mut state = self.sweeps.lock();
                state.is_running = !state.dead.is_empty();
                std::mem::take(&mut state.dead)
            };
            if dead.is_empty() {
                return;
            }
            self.walk(&dead);
        }
    }

    fn walk(&self, dead: &[(u64, Cause)]) {
        for slot in self.store.iter() {
            let partition = slot.header().partition;
            let Some((_, cause)) = dead.iter().find(|(id, _)| *id == partition) else { continue };
            self.causes.add(*cause, u64::from(self.remove(partition, slot.key()).is_some()));
        }
    }
}

// === impl Sweeps ===

impl Sweeps {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Variant;
    use super::super::tests::store;
    use super::*;
    use crate::clock::Time;
    use larder_protocol::table::Table;
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_many_is_out_of_reach_at_once_and_swept_soon() {
        let l1 = store(1 << 26);
        let ((p, mut f), (kept, mut g)) = (l1.partition(), l1.partition());
        let get = Variant::bare(Table::builtin().lookup(b"get").unwrap().id);
        let now = Time::from_micros(1);
        let key = |i: usize| format!("key{i}").into_bytes();
        let count = 3 * SWEPT_AT_ONCE_MAX;
        g.fill(b"kept", get, b"_\r\n", Time::MAX, now);
        for round in 1..=3 {
            for i in 0..count {
                f.fill(&key(i), get, b"_\r\n", Time::MAX, now);
            }
            f.empty(Cause::DataChanged);
            assert!((0..count).all(|i| p.read(&key(i), get, || now).is_none()));
            let until = Instant::now() + Duration::from_secs(30);
            while l1.entries() > 1 || l1.removed(Cause::DataChanged) < (round * count) as u64 {
                assert!(Instant::now() < until, "{} entries are left", l1.entries());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(l1.removed(Cause::DataChanged), (3 * count) as u64);
        assert!(kept.read(b"kept", get, || now).is_some());
    }
}
