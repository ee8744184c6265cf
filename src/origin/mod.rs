//! The embedded store: what Larder serves when it runs without an upstream.
//!
//! A bounded cache of strings with deadlines that answers as redis-server 7.0 does, byte for byte, for the commands
//! that it has; every other one is refused with the way out. It is a core: no I/O, no clock, no randomness. The shell
//! holds one [`Origin`] behind a lock, gives it commands and the time, and calls [`Origin::expire_some`] now and then.
//!
//! | module | what it holds |
//! |---|---|
//! | `call` | a command at work |
//! | `strings`, `keys` | the commands |
//! | `options` | the options of SET, EXPIRE, SCAN, COPY |
//! | `reply` | reply bytes and error texts |
//! | `keyspace` | all databases: modifications, versions, expiry, eviction |
//! | `database` | one database: entries, the ways to find them, accounted bytes |
//! | `slab` | places that entries keep, which SCAN rests on |
//! | `value` | a stored string |
//! | `tags` | which keys have which tags |
//! | `depends` | which keys depend on which |
//! | `round` | going round the keys of all databases |
//! | `extended` | the arithmetic of INCRBYFLOAT |
//!
//! # Invariants
//! - One command, one reply. A refused command has changed nothing, except that keys whose time was over are gone.
//! - After every command the accounted bytes are at most [`OriginLimits::bytes_max`]. What does not fit even into the
//!   empty store is refused (`OOM ...`); otherwise others are evicted (see `keyspace`).
//! - A command costs time in proportion to its arguments and its reply, but for the ones that are about a whole
//!   database: KEYS, FLUSHDB, FLUSHALL.
//! - A key is never found after its deadline, whether it has been removed already or not.
//!
//! # Where it differs from the server
//! - Strings only; no notifications, no persistence, no configuration. `OBJECT HELP` has its own words, and `OBJECT
//!   REFCOUNT` calls every integer below 10,000 shared, which the server does not do after a COPY.
//! - TIME has the resolution of the clock that is passed in: milliseconds.
//! - A name or an option that an error repeats is cut after 128 bytes.
//! - SCAN answers COUNT entries (the server looks at COUNT buckets), in another order, and never one twice.
//! - A reply longer than [`OriginLimits::reply_bytes_max`] is refused; the server has no such limit.
//! - FLUSHDB ASYNC frees the memory at once too.

mod call;
mod database;
mod depends;
mod extended;
mod keys;
mod keyspace;
mod options;
mod reply;
mod round;
mod slab;
mod strings;
mod tags;
mod value;

use larder_protocol::args::Args;

use call::{Call, Outcome};
use keyspace::Keyspace;
use reply::{Failure, Reply};

pub use depends::{DEPENDENCIES_MAX, DependIndex, DependLimits, DependRefusal};
pub use reply::Protocol;
pub use tags::{LEASES_MAX, Lease, PAIRS_MAX, TagIndex, TagLimits, TagsFull};

/// Longest name of a command here (`incrbyfloat`, `pexpiretime`), in bytes.
const NAME_LEN_MAX: usize = 11;

/// A moment: milliseconds since the start of 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

/// What the store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginLimits {
    /// Accounted bytes of all entries together: keys, values and what keeping them costs.
    pub bytes_max: u64,
    /// Databases, numbered from zero: 1 to 1024, other numbers are brought into this range.
    pub databases: u32,
    /// Longest string that APPEND and SETRANGE may make, in bytes.
    pub value_bytes_max: u64,
    /// Longest reply to MGET, KEYS and SCAN, in bytes: checked after each element, so the last one may go beyond it
    /// before the reply is given up. Other replies have one value at most.
    pub reply_bytes_max: u64,
}

/// What a command has changed, named by the arguments of the request.
///
/// Enough to tell other clients what they must forget. Keys may be named that did not change (DEL of several). Keys
/// that expire or are evicted are not named: they show in [`OriginStats`] and in [`Origin::version`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The keys in arguments `first`, `first + step`, ... `last`, in one database.
    Keys {
        /// The database that they are in.
        db: u32,
        /// Argument of the first key (the command's name is argument 0).
        first: usize,
        /// Argument of the last key.
        last: usize,
        /// From key to key.
        step: usize,
    },
    /// The key in argument 1 has gone from one database to another.
    Moved {
        /// Where it was.
        from: u32,
        /// Where it is.
        to: u32,
    },
    /// One database was emptied.
    Flushed {
        /// The database.
        db: u32,
    },
    /// All databases were emptied.
    FlushedAll,
    /// Two databases have changed places.
    Swapped {
        /// One of them.
        first: u32,
        /// The other one.
        second: u32,
    },
}

/// The state of a key: two that are equal mean that nothing has happened to the key in between.
///
/// It changes with every modification, with expiry, eviction, flush and swap. Now and then it also changes for a key
/// that is not there and stays so: a transaction that watches it fails and is tried again, no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    swaps: u64,
    sequence: u64,
}

/// What the store has and what it has done since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginStats {
    /// One for each database, empty ones included.
    pub databases: Vec<DatabaseStats>,
    /// Accounted bytes of all entries.
    pub bytes_used: u64,
    /// The limit on them.
    pub bytes_max: u64,
    /// Keys that were removed to keep the limit.
    pub evicted: u64,
    /// Keys that were removed because their deadline had passed.
    pub expired: u64,
    /// Lookups for reading that found their key.
    pub hits: u64,
    /// Lookups for reading that did not.
    pub misses: u64,
}

/// What one database has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseStats {
    /// Keys, those included whose deadline has passed but which have not been removed yet.
    pub keys: u64,
    /// Keys that have a deadline.
    pub expires: u64,
}

/// The embedded store.
#[derive(Debug)]
pub struct Origin {
    keyspace: Keyspace,
}

/// A command of the embedded store.
#[derive(Clone, Copy)]
struct Command {
    name: &'static str,
    arity: Arity,
    run: fn(&mut Call<'_>) -> Outcome,
}

/// How many arguments a command takes, its name included.
#[derive(Clone, Copy)]
enum Arity {
    Exactly(usize),
    AtLeast(usize),
}

// === impl UnixMillis ===

impl UnixMillis {
    fn to_signed(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

// === impl OriginLimits ===

impl Default for OriginLimits {
    /// 256 MB, 16 databases, strings of 512 MB as in the server, replies of 1 GB.
    fn default() -> Self {
        Self {
            bytes_max: 256 * 1024 * 1024,
            databases: 16,
            value_bytes_max: 512 * 1024 * 1024,
            reply_bytes_max: 1024 * 1024 * 1024,
        }
    }
}

// === impl Origin ===

impl Origin {
    /// An empty store. `seed` decides how keys are hashed and which are drawn for eviction: take it from chance, so
    /// that nobody can choose keys that collide.
    pub fn new(limits: OriginLimits, seed: u64) -> Self {
        Self { keyspace: Keyspace::new(limits, seed) }
    }

    /// Changes the most bytes of all keys and values; evicts what is beyond.
    pub fn resize(&mut self, bytes_max: u64, now: UnixMillis) {
        self.keyspace.resize(bytes_max, now);
    }

    /// True if the store itself executes the command `name`, in either case. The others are refused by
    /// [`Origin::execute`]; those that are about the connection (PING, HELLO, SELECT, MULTI) are the session's.
    pub fn handles(name: &[u8]) -> bool {
        Command::find(name).is_some()
    }

    /// Executes one command on database `db` and appends exactly one reply to `out`.
    pub fn execute(
        &mut self,
        db: u32,
        protocol: Protocol,
        args: Args<'_>,
        now: UnixMillis,
        out: &mut Vec<u8>,
    ) -> Option<Effect> {
        let reply_start = out.len();
        let sequence = self.keyspace.sequence();
        match self.run(db, protocol, args, now, out) {
            Ok(effect) => {
                self.keyspace.shrink(sequence, now);
                effect
            }
            Err(failure) => {
                out.truncate(reply_start);
                Reply::new(out, protocol).error(&failure);
                None
            }
        }
    }

    /// Removes up to `budget` keys whose deadline has passed, and tells how many there were. Takes time in proportion to
    /// that number, not to the number of keys; a full budget means that there may be more.
    pub fn expire_some(&mut self, now: UnixMillis, budget: usize) -> usize {
        self.keyspace.expire_some(now, budget)
    }

    /// From now on, or no longer, the keys that expire or are evicted are noted for [`Origin::take_gone`].
    pub fn note_gone(&mut self, notes: bool) {
        self.keyspace.note_gone(notes);
    }

    /// Keys that have expired or were evicted since the last call, with their databases, if they are noted.
    pub fn take_gone(&mut self) -> Vec<(u32, Vec<u8>)> {
        self.keyspace.take_gone()
    }

    /// The state of a key, for WATCH: take it then, and compare it at EXEC. A database that is not there has no keys.
    pub fn version(&self, db: u32, key: &[u8], now: UnixMillis) -> Version {
        match self.index(db) {
            Ok(db) => self.keyspace.version(db, key, now),
            Err(_) => Version { swaps: 0, sequence: 0 },
        }
    }

    /// True if a key is there. Looking does not use it.
    pub fn holds(&mut self, db: u32, key: &[u8], now: UnixMillis) -> bool {
        let db = self.index(db);
        db.is_ok_and(|db| self.keyspace.find(db, key, keyspace::Use::Peek, now).is_some())
    }

    /// What the store has and what it has done.
    pub fn stats(&self) -> OriginStats {
        self.keyspace.stats()
    }

    fn run(&mut self, db: u32, protocol: Protocol, args: Args<'_>, now: UnixMillis, out: &mut Vec<u8>) -> Outcome {
        let name = args.arg(0);
        let command = Command::find(name).ok_or_else(|| Failure::NeedsUpstream { command: name.to_vec() })?;
        if !command.arity.allows(args.len()) {
            return Err(Failure::Arity { command: command.name });
        }
        let db = self.index(db)?;
        let reply = Reply::new(out, protocol);
        (command.run)(&mut Call { keyspace: &mut self.keyspace, db, args, now, reply, name: command.name })
    }

    fn index(&self, db: u32) -> Result<usize, Failure> {
        let db = db as usize;
        if db < self.keyspace.databases() { Ok(db) } else { Err(Failure::DatabaseIndex) }
    }
}

// === impl Arity ===

impl Arity {
    fn allows(self, len: usize) -> bool {
        match self {
            Self::Exactly(count) => len == count,
            Self::AtLeast(count) => len >= count,
        }
    }
}

// === impl Command ===

impl Command {
    /// Finds a command by its name in either case.
    fn find(name: &[u8]) -> Option<Self> {
        use Arity::{AtLeast, Exactly};
        let mut lower = [0; NAME_LEN_MAX];
        let lower = lower.get_mut(..name.len())?;
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        let (name, arity, run): (&'static str, Arity, fn(&mut Call<'_>) -> Outcome) = match &*lower {
            b"append" => ("append", Exactly(3), strings::append),
            b"copy" => ("copy", AtLeast(3), keys::copy),
            b"dbsize" => ("dbsize", Exactly(1), keys::dbsize),
            b"decr" => ("decr", Exactly(2), strings::decr),
            b"decrby" => ("decrby", Exactly(3), strings::decrby),
            b"del" => ("del", AtLeast(2), keys::del),
            b"exists" => ("exists", AtLeast(2), keys::exists),
            b"expire" => ("expire", AtLeast(3), keys::expire),
            b"expireat" => ("expireat", AtLeast(3), keys::expireat),
            b"expiretime" => ("expiretime", Exactly(2), keys::expiretime),
            b"flushall" => ("flushall", AtLeast(1), keys::flushall),
            b"flushdb" => ("flushdb", AtLeast(1), keys::flushdb),
            b"get" => ("get", Exactly(2), strings::get),
            b"getdel" => ("getdel", Exactly(2), strings::getdel),
            b"getex" => ("getex", AtLeast(2), strings::getex),
            b"getrange" => ("getrange", Exactly(4), strings::getrange),
            b"getset" => ("getset", Exactly(3), strings::getset),
            b"incr" => ("incr", Exactly(2), strings::incr),
            b"incrby" => ("incrby", Exactly(3), strings::incrby),
            b"incrbyfloat" => ("incrbyfloat", Exactly(3), strings::incrbyfloat),
            b"keys" => ("keys", Exactly(2), keys::keys),
            b"mget" => ("mget", AtLeast(2), strings::mget),
            b"move" => ("move", Exactly(3), keys::move_key),
            b"mset" => ("mset", AtLeast(3), strings::mset),
            b"msetnx" => ("msetnx", AtLeast(3), strings::msetnx),
            b"object" => ("object", AtLeast(2), keys::object),
            b"persist" => ("persist", Exactly(2), keys::persist),
            b"pexpire" => ("pexpire", AtLeast(3), keys::pexpire),
            b"pexpireat" => ("pexpireat", AtLeast(3), keys::pexpireat),
            b"pexpiretime" => ("pexpiretime", Exactly(2), keys::pexpiretime),
            b"psetex" => ("psetex", Exactly(4), strings::psetex),
            b"pttl" => ("pttl", Exactly(2), keys::pttl),
            b"randomkey" => ("randomkey", Exactly(1), keys::randomkey),
            b"rename" => ("rename", Exactly(3), keys::rename),
            b"renamenx" => ("renamenx", Exactly(3), keys::renamenx),
            b"scan" => ("scan", AtLeast(2), keys::scan),
            b"set" => ("set", AtLeast(3), strings::set),
            b"setex" => ("setex", Exactly(4), strings::setex),
            b"setnx" => ("setnx", Exactly(3), strings::setnx),
            b"setrange" => ("setrange", Exactly(4), strings::setrange),
            b"strlen" => ("strlen", Exactly(2), strings::strlen),
            b"substr" => ("substr", Exactly(4), strings::getrange),
            b"swapdb" => ("swapdb", Exactly(3), keys::swapdb),
            b"time" => ("time", Exactly(1), keys::time),
            b"touch" => ("touch", AtLeast(2), keys::touch),
            b"ttl" => ("ttl", Exactly(2), keys::ttl),
            b"type" => ("type", Exactly(2), keys::kind),
            b"unlink" => ("unlink", AtLeast(2), keys::del),
            _ => return None,
        };
        Some(Self { name, arity, run })
    }
}

#[cfg(test)]
mod tests;
