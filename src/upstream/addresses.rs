//! Whose connection is it? The server names connections by their address: in the lines of MONITOR that is Larder's own end.
//!
//! One register for the process, because addresses are the process's: each [`super::raw::RawConnection`] enters itself. One
//! that is lent to a client says so ([`Registered::lease`]); what the server tells of it is told of that client.
//!
//! An address is remembered for a while after its connection has ended: what the server tells of it may still be on its way.
//! Bound: [`ENDED_MAX`] ended ones beside those that are open. What this cannot see through is a relay between Larder and the
//! server that connects anew: behind one, Larder's connections look like anybody's.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Ended connections whose address is remembered.
const ENDED_MAX: usize = 4096;

static REGISTER: LazyLock<Mutex<Register>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Register {
    entries: HashMap<SocketAddr, Entry>,
    ended: VecDeque<(SocketAddr, u64)>,
    next_number: u64,
}

#[derive(Debug)]
struct Entry {
    /// Tells an address from the same one used before.
    number: u64,
    /// The client that the connection is lent to.
    client: Option<SocketAddr>,
}

/// An address in use: dropped with its connection.
#[derive(Debug)]
pub struct Registered {
    address: SocketAddr,
    number: u64,
}

/// Who is behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Not Larder.
    Stranger,
    /// Larder, for itself or for many.
    Larder,
    /// A client of Larder.
    Client(SocketAddr),
}

// === impl Registered ===

impl Registered {
    /// Enters the local address of a connection.
    pub fn new(address: SocketAddr) -> Self {
        let mut register = lock();
        let number = register.next_number;
        register.next_number += 1;
        register.entries.insert(address, Entry { number, client: None });
        Self { address, number }
    }

    /// The connection is lent to this client from now on, or to none.
    pub fn lease(&self, client: Option<SocketAddr>) {
        if let Some(entry) = lock().entries.get_mut(&self.address).filter(|entry| entry.number == self.number) {
            entry.client = client;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut register = lock();
        register.ended.push_back((self.address, self.number));
        if register.ended.len() > ENDED_MAX
            && let Some((address, number)) = register.ended.pop_front()
            && register.entries.get(&address).is_some_and(|entry| entry.number == number)
        {
            register.entries.remove(&address);
        }
    }
}

/// Who is behind this address.
pub fn owner(address: SocketAddr) -> Owner {
    match lock().entries.get(&address) {
        None => Owner::Stranger,
        Some(Entry { client: None, .. }) => Owner::Larder,
        Some(Entry { client: Some(client), .. }) => Owner::Client(*client),
    }
}

fn lock() -> MutexGuard<'static, Register> {
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        // A network for documentation: no test connects from there.
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn tells_whose_connection_it_is_and_was() {
        assert_eq!(owner(address(1)), Owner::Stranger);
        let first = Registered::new(address(1));
        assert_eq!(owner(address(1)), Owner::Larder);
        first.lease(Some(address(2)));
        assert_eq!(owner(address(1)), Owner::Client(address(2)));
        drop(first);
        assert_eq!(owner(address(1)), Owner::Client(address(2)), "its last lines may be on their way");
        let again = Registered::new(address(1));
        assert_eq!(owner(address(1)), Owner::Larder, "the address is used again");
        for port in 0..=ENDED_MAX as u16 {
            drop(Registered::new(SocketAddr::from(([192, 0, 2, 2], port))));
        }
        assert_eq!(owner(SocketAddr::from(([192, 0, 2, 2], 0))), Owner::Stranger, "the oldest is forgotten");
        assert_eq!(owner(address(1)), Owner::Larder, "an open one is not");
        drop(again);
    }
}
