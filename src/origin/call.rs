//! One command at work: what a handler gets and what it hands back.

use larder_protocol::args::Args;

use super::database::Entry;
use super::keyspace::{Keyspace, NewDeadline, Use};
use super::reply::{Failure, Reply};
use super::slab::Place;
use super::value::Value;
use super::{Effect, UnixMillis};

/// What a handler hands back: what was changed, or why nothing was.
pub(super) type Outcome = Result<Option<Effect>, Failure>;

/// A command whose name is known and whose number of arguments is right.
pub(super) struct Call<'a> {
    pub(super) keyspace: &'a mut Keyspace,
    pub(super) db: usize,
    pub(super) args: Args<'a>,
    pub(super) now: UnixMillis,
    pub(super) reply: Reply<'a>,
    /// The command's name as errors give it.
    pub(super) name: &'static str,
}

// === impl Call ===

impl Call<'_> {
    /// Looks a key up in order to change it.
    pub(super) fn find(&mut self, key: &[u8]) -> Option<Place> {
        self.keyspace.find(self.db, key, Use::Touch, self.now)
    }

    /// The same, with the entry itself.
    pub(super) fn find_entry(&mut self, key: &[u8]) -> Option<&Entry> {
        let place = self.find(key)?;
        self.keyspace.entry(self.db, place)
    }

    /// Looks a key up in order to use its value.
    pub(super) fn read(&mut self, key: &[u8]) -> Option<&Entry> {
        self.keyspace.read(self.db, key, Use::Touch, self.now)
    }

    /// Looks a key up without using it.
    pub(super) fn peek(&mut self, key: &[u8]) -> Option<&Entry> {
        self.keyspace.read(self.db, key, Use::Peek, self.now)
    }

    pub(super) fn put(&mut self, key: &[u8], value: Value, deadline: NewDeadline) -> Result<(), Failure> {
        self.keyspace.put(self.db, key, value, deadline, self.now)
    }

    /// The arguments behind the name must come in pairs.
    pub(super) fn expect_pairs(&self) -> Result<(), Failure> {
        if self.args.len().is_multiple_of(2) { Err(Failure::Arity { command: self.name }) } else { Ok(()) }
    }

    /// The key in argument `i` was changed.
    pub(super) fn changed(&self, i: usize) -> Effect {
        self.changed_keys(i, i, 1)
    }

    /// Keys in these arguments were changed.
    pub(super) fn changed_keys(&self, first: usize, last: usize, step: usize) -> Effect {
        Effect::Keys { db: self.db as u32, first, last, step }
    }
}
