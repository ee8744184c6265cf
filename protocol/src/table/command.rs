//! One row of the table: what Larder knows of one command or subcommand.
//!
//! A row is data (name, arity, flags, keys, tips) plus what follows from it: the [`Class`] and the [`ShapeRule`],
//! computed once when the table is built. Asking a row about a request allocates nothing.

use std::borrow::Cow;

use super::class::{self, Bypass, Cacheability, Class, Refinement};
use super::flags::{Categories, Flags, Group, Tips};
use super::keys::{self, KeyFlags, KeyKnowledge, KeyRule, KeySpec, Keys};
use crate::args::Args;
use crate::shape::{Protocol, ShapeRule};

/// Dense index of a command in its [`Table`](super::Table). Built-in commands keep their index in every table that
/// is [completed](super::Table::completed) from the built-in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u16);

/// Where a row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Committed with Larder: its class and reply shape have been tested.
    Builtin,
    /// Learnt from the upstream's `COMMAND`: its reply shape is unknown and it is never cached.
    Upstream,
}

/// One command, or one subcommand of a container.
#[derive(Clone, Debug)]
pub struct Command {
    /// Index in its table.
    pub id: CommandId,
    /// Full name in lower case; subcommands as `client|list`.
    pub name: Cow<'static, str>,
    /// Number of arguments, the name (and the subcommand's name) included; negative: at least that many.
    pub arity: i16,
    /// What the server says of it.
    pub flags: Flags,
    /// Its ACL categories.
    pub categories: Categories,
    /// Its tips.
    pub tips: Tips,
    /// Legacy index of the first key; 0: none.
    pub first_key: i16,
    /// Legacy index of the last key; negative: counted from the end.
    pub last_key: i16,
    /// Legacy distance from key to key.
    pub step: i16,
    /// Key specifications.
    pub key_specs: Cow<'static, [KeySpec]>,
    /// Part of the documentation that it stands in.
    pub group: Group,
    /// Version of the server that introduced it; empty if unknown.
    pub since: Cow<'static, str>,
    /// The container that it is a subcommand of.
    pub parent: Option<CommandId>,
    /// True if it has subcommands.
    pub is_container: bool,
    /// Where the row comes from.
    pub origin: Origin,
    /// False if the upstream's `COMMAND` does not list it; true until the upstream has been asked.
    pub on_upstream: bool,
    /// How its replies are turned into RESP2.
    pub shape: ShapeRule,
    /// What Larder does with it in general; [`Command::classify`] decides for one request.
    pub class: Class,
    pub(super) refinement: Refinement,
    pub(super) key_rule: KeyRule,
    /// The index of its only key, where arguments cannot change that; 0: not so.
    pub(super) single_key: u16,
}

// === impl Command ===

impl Command {
    /// The name without the container's: `list` of `client|list`.
    pub fn own_name(&self) -> &str {
        match self.parent {
            None => &self.name,
            Some(_) => self.name.split_once('|').map_or(&*self.name, |(_, own)| own),
        }
    }

    /// True if `argc` arguments, the name included, are as many as the command takes.
    pub fn accepts(&self, argc: usize) -> bool {
        let wanted = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { argc >= wanted } else { argc == wanted }
    }

    /// The argument indexes of the keys of `args`, in the order of `COMMAND GETKEYS`.
    pub fn keys<'a>(&'a self, args: Args<'a>) -> Keys<'a> {
        self.keys_without(args, KeyFlags::empty())
    }

    /// The first of [`Command::keys`].
    #[inline]
    pub fn first_key_at(&self, args: Args<'_>) -> Option<usize> {
        match usize::from(self.single_key) {
            0 => self.keys(args).next(),
            single => (single < args.len()).then_some(single),
        }
    }

    /// The argument that holds the one key, where that is the same for every request: the only one of [`Command::keys`], if the
    /// request has so many arguments.
    #[inline]
    pub fn single_key_at(&self) -> Option<usize> {
        (self.single_key > 0).then_some(usize::from(self.single_key))
    }

    /// Like [`Command::keys`], without the keys that the command only reads (the sources of `ZUNIONSTORE`, say).
    pub fn written_keys<'a>(&'a self, args: Args<'a>) -> Keys<'a> {
        self.keys_without(args, KeyFlags::RO)
    }

    /// How much [`Command::keys`] tells of `args`.
    pub fn key_knowledge(&self, args: Args<'_>) -> KeyKnowledge {
        if self.single_key > 0 {
            let there = usize::from(self.single_key) < args.len();
            return if there { KeyKnowledge::Complete } else { KeyKnowledge::Incomplete };
        }
        // A row learnt from the upstream with movable keys may find them by code of its own.
        if self.origin == Origin::Upstream && self.flags.contains(Flags::MOVABLE_KEYS) {
            return KeyKnowledge::Incomplete;
        }
        keys::knowledge(self.key_rule, &self.key_specs, args, self.flags.contains(Flags::NO_MANDATORY_KEYS))
    }

    /// What Larder does with this request of a client that speaks `protocol`.
    ///
    /// A request with a wrong number of arguments is not looked at here ([`Command::accepts`]); it gets a class on
    /// which the server's error is passed on.
    #[inline]
    pub fn classify(&self, args: Args<'_>, protocol: Protocol) -> Class {
        if self.shape == ShapeRule::Unknown && protocol == Protocol::Resp2 && self.class.is_shared() {
            return Class::Exclusive;
        }
        if self.refinement == Refinement::Fixed {
            let there = usize::from(self.single_key) < args.len();
            return if there { self.class } else { Class::Exclusive };
        }
        self.refined(args)
    }

    /// True if a request of it with one argument is a read of that one key, whatever the argument and the client's protocol,
    /// that L1 may answer.
    #[inline]
    pub fn reads_its_argument(&self) -> bool {
        self.class == Class::Read(Cacheability::Single)
            && self.refinement == Refinement::Fixed
            && self.single_key == 1
            && self.shape != ShapeRule::Unknown
    }

    /// True if this request may wait at the server for other clients: `BLPOP` always, `XREAD` with `BLOCK`.
    pub fn blocks(&self, args: Args<'_>) -> bool {
        match (self.class, self.refinement) {
            (_, Refinement::BlockOption) => class::has_block_option(args),
            (class, _) => class == Class::Blocking,
        }
    }

    /// True if it is the upstream's to answer, and the upstream does not list it: it words the error.
    #[inline]
    pub fn is_foreign(&self) -> bool {
        !self.on_upstream && self.group != Group::Larder
    }

    /// True if the reply shows fields of hashes. On servers that have field TTLs (those whose `COMMAND` lists
    /// `HPEXPIRE`) a field may vanish without a push, so such a reply must not be cached unless it is known that
    /// the key has none.
    pub fn reads_hash_fields(&self) -> bool {
        self.group == Group::Hash && self.flags.contains(Flags::READONLY)
    }

    /// Computes what follows from the other columns. Called once the row is filled in.
    pub(super) fn derive(&mut self) {
        self.key_rule = class::key_rule(&self.name);
        let single = match (self.key_rule, &*self.key_specs) {
            (KeyRule::Specs, [spec]) if !spec.flags.intersects(KeyFlags::NOT_KEY | KeyFlags::INCOMPLETE) => {
                spec.single_index()
            }
            _ => None,
        };
        let movable = self.origin == Origin::Upstream && self.flags.contains(Flags::MOVABLE_KEYS);
        self.single_key = single.filter(|_| !movable).unwrap_or(0);
        self.shape = match self.origin {
            Origin::Builtin => ShapeRule::of(&self.name),
            Origin::Upstream => ShapeRule::Unknown,
        };
        (self.class, self.refinement) = class::classify(self);
    }

    fn keys_without<'a>(&'a self, args: Args<'a>, skipped: KeyFlags) -> Keys<'a> {
        let single = usize::from(self.single_key);
        match single {
            0 => Keys::new(self.key_rule, &self.key_specs, args, skipped),
            _ if single >= args.len() || self.key_specs.iter().any(|spec| spec.flags.intersects(skipped)) => {
                Keys::none(args)
            }
            _ => Keys::single(args, single),
        }
    }

    fn refined(&self, args: Args<'_>) -> Class {
        match self.refinement {
            Refinement::Fixed => self.class,
            Refinement::BlockOption if class::has_block_option(args) => Class::Blocking,
            Refinement::DbOption if class::has_db_option(args) => Class::Exclusive,
            _ if self.key_knowledge(args) != KeyKnowledge::Complete => Class::Exclusive,
            Refinement::KeyCount if self.keys(args).nth(1).is_some() => {
                Class::Read(Cacheability::No(Bypass::SeveralKeys))
            }
            Refinement::BlockOption if self.flags.contains(Flags::READONLY) => {
                Class::Read(Cacheability::No(Bypass::MayWait))
            }
            Refinement::BlockOption | Refinement::DbOption => Class::Write,
            Refinement::KeyCount | Refinement::Knowledge => self.class,
        }
    }
}
