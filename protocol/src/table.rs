//! The command table: one row per command and subcommand, found by name.
//!
//! The rows are data, read at development time from live servers by the example `generate_table` and committed as
//! `table/rows.txt`. At run time [`Table::completed`] adds what the upstream's own `COMMAND` knows beyond them.
//! Everything that Larder decides about a command follows from its row: where its keys stand ([`keys`]), what is done
//! with it ([`class`]), and how its reply is turned into RESP2 ([`crate::shape`]).
//!
//! Invariants: ids are dense and never change meaning between a table and the tables completed from it; what is
//! unknown never gets a class that could make a reply stale. Looking up a name takes one hash and usually one
//! comparison, without allocation or locks; tables are immutable and shared by reference.

pub mod class;
pub mod command;
pub mod flags;
mod index;
pub mod keys;
mod own;
pub mod reply;
mod rows;
#[cfg(test)]
mod tests;
mod upstream;

pub use class::{Bypass, Cacheability, Class, PerKey};
pub use command::{Command, CommandId, Origin};
pub use flags::{Categories, Flags, Group, Tips};
pub use keys::{BeginSearch, FindKeys, KeyFlags, KeyKnowledge, KeySpec, Keys};
pub use reply::ReplyError;

use crate::args::Args;
use index::Index;

/// All commands that are known.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Command>,
    index: Index,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub enum Resolved<'a> {
    /// No such command.
    Unknown,
    /// A container that is known, with a subcommand that is not.
    UnknownSubcommand(&'a Command),
    /// This command, or subcommand.
    Known(&'a Command),
}

// === impl Table ===

impl Table {
    /// The rows that are committed with Larder.
    pub fn builtin() -> Self {
        let mut table = Self { rows: Vec::new(), index: Index::default() };
        for mut row in rows::parse(rows::BUILTIN).chain(own::rows()) {
            row.on_upstream = row.group != Group::Larder;
            table.push(row);
        }
        table
    }

    /// This table and what `reply`, the raw reply (RESP3 or RESP2) of an upstream's `COMMAND`, adds to it.
    ///
    /// Rows that only the upstream has are appended, with everything computed from their flags. Rows that both have
    /// take arity, flags, categories, tips and key specifications from the upstream, if it is recent enough (7.0) to
    /// send all of these; otherwise only the arity. Rows that the upstream does not list stay, with
    /// [`Command::on_upstream`] false.
    ///
    /// # Errors
    ///
    /// [`ReplyError`] if `reply` is an error reply, malformed, too large or no list of commands.
    pub fn completed(&self, reply: &[u8]) -> Result<Self, ReplyError> {
        let theirs = upstream::read(reply)?;
        let mut table = self.clone();
        let lists_subcommands = theirs.iter().any(|row| row.command.name.contains('|'));
        for row in &mut table.rows {
            row.on_upstream = row.parent.is_some() && !lists_subcommands;
        }
        for row in theirs {
            let id = table.by_full_name(&row.command.name).map(|known| known.id);
            match id.and_then(|id| table.rows.get_mut(usize::from(id.0))) {
                // Larder's own commands are not the upstream's to redefine.
                Some(known) if known.group == Group::Larder => {}
                Some(known) => known.take_over(row),
                None => table.push(row.command),
            }
        }
        table.drop_orphans();
        Ok(table)
    }

    /// The top-level command with this name, in whatever case.
    #[inline]
    pub fn lookup(&self, name: &[u8]) -> Option<&Command> {
        self.index.find(&self.rows, None, name)
    }

    /// What `args` ask for. A container without a second argument is [`Resolved::Known`] itself.
    #[inline]
    pub fn resolve(&self, args: Args<'_>) -> Resolved<'_> {
        let Some(command) = self.lookup(args.arg(0)) else { return Resolved::Unknown };
        if !command.is_container {
            return Resolved::Known(command);
        }
        let Some(own_name) = args.get(1) else { return Resolved::Known(command) };
        match self.index.find(&self.rows, Some(command.id), own_name) {
            Some(sub) => Resolved::Known(sub),
            None => Resolved::UnknownSubcommand(command),
        }
    }

    /// The command with this index; `None` only for an index of another table.
    pub fn command(&self, id: CommandId) -> Option<&Command> {
        self.rows.get(usize::from(id.0))
    }

    /// Number of rows; ids are below it.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True without any row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All rows, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Command> {
        self.rows.iter()
    }

    /// True if the upstream lists the command or subcommand with this full name; before it has been asked, all are taken to be.
    pub fn is_on_upstream(&self, name: &str) -> bool {
        self.by_full_name(name).is_some_and(|command| command.on_upstream)
    }

    /// The command or subcommand with this full name (`client|list`), in whatever case.
    pub fn by_full_name(&self, name: &str) -> Option<&Command> {
        match name.split_once('|') {
            None => self.lookup(name.as_bytes()),
            Some((container, own)) => {
                let parent = self.lookup(container.as_bytes())?.id;
                self.index.find(&self.rows, Some(parent), own.as_bytes())
            }
        }
    }

    /// Appends a row and indexes it. A subcommand whose container is not there, a name that is there already and a
    /// row too many are left out: a request for it is then one for an unknown command.
    fn push(&mut self, mut row: Command) {
        let Ok(id) = u16::try_from(self.rows.len()) else { return };
        if self.by_full_name(&row.name).is_some() {
            return;
        }
        row.id = CommandId(id);
        if let Some((container, _)) = row.name.split_once('|') {
            let parent = self.lookup(container.as_bytes()).map(|parent| parent.id);
            let Some(parent) = parent else { return };
            if let Some(container) = self.rows.get_mut(usize::from(parent.0)) {
                container.is_container = true;
            }
            row.parent = Some(parent);
        }
        row.derive();
        self.rows.push(row);
        self.index.add(&self.rows);
    }

    /// Before 7.0 the upstream lists no subcommands: they are there if their container is.
    fn drop_orphans(&mut self) {
        let present: Vec<bool> = self.rows.iter().map(|row| row.on_upstream).collect();
        for row in &mut self.rows {
            let parent = row.parent.and_then(|id| present.get(usize::from(id.0)));
            row.on_upstream &= parent.copied().unwrap_or(true);
        }
    }
}

// === impl Command ===

impl Command {
    /// Takes the upstream's word for what may differ between versions, and computes the rest anew.
    fn take_over(&mut self, row: upstream::UpstreamRow) {
        self.on_upstream = true;
        self.arity = row.command.arity;
        if row.is_full {
            self.flags = row.command.flags;
            self.categories = row.command.categories;
            self.tips = row.command.tips;
            self.key_specs = row.command.key_specs;
            (self.first_key, self.last_key, self.step) =
                (row.command.first_key, row.command.last_key, row.command.step);
        }
        self.derive();
    }
}
