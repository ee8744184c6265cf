//! Which keys of the embedded store have which tags, and the leases on keys that are not there.
//!
//! A core beside the store: it knows names and whether a key is there only by being told. As upstream, tags are a name's
//! from the moment at which they are given to it until `CACHE SET` replaces them, they are taken off, invalidated, or the
//! key is found to have gone by [`TagIndex::sweep`].
//!
//! Bounds: [`PAIRS_MAX`] pairs of a key and a tag, [`LEASES_MAX`] leases; what is beyond is refused.

use super::UnixMillis;
use super::round::Round;
use foldhash::fast::FixedState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::ops::Bound;

/// Most pairs of a key and a tag, all databases together.
pub const PAIRS_MAX: usize = 4_000_000;
/// Most leases at a time, all databases together, those included that are over and were not asked for since.
pub const LEASES_MAX: usize = 1_000_000;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagLimits {
    /// Pairs of a key and a tag.
    pub pairs_max: usize,
    /// Leases.
    pub leases_max: usize,
}

/// The tags of all databases.
#[derive(Debug, Default)]
pub struct TagIndex {
    limits: TagLimits,
    databases: HashMap<u32, Tagged>,
    pairs: usize,
    leases: usize,
    hasher: FixedState,
    /// Number of the last invalidation.
    version: u64,
    /// Where the sweep goes on.
    round: Round,
}

/// The tags of one database.
#[derive(Debug, Default)]
struct Tagged {
    keys: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
    /// Members by the hash of their names, which is what a cursor is.
    tags: BTreeMap<Vec<u8>, BTreeSet<(u64, Vec<u8>)>>,
    leases: BTreeMap<Vec<u8>, Held>,
    /// The last invalidation of each tag that a lease asks for.
    versions: HashMap<Vec<u8>, u64>,
}

#[derive(Debug)]
struct Held {
    token: String,
    until: UnixMillis,
    versions: Vec<(Vec<u8>, u64)>,
}

/// What became of the wish for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// The token is good from now on.
    Leased,
    /// Somebody else has one, for so many milliseconds.
    Wait(u64),
}

/// There are too many tags or leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagsFull;

// === impl TagLimits ===

impl Default for TagLimits {
    /// [`PAIRS_MAX`], [`LEASES_MAX`].
    fn default() -> Self {
        Self { pairs_max: PAIRS_MAX, leases_max: LEASES_MAX }
    }
}

// === impl TagIndex ===

impl TagIndex {
    /// An index that keeps so much.
    pub fn new(limits: TagLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The tags of a key, in order.
    pub fn tags(&self, db: u32, key: &[u8]) -> Vec<&[u8]> {
        let tags = self.databases.get(&db).and_then(|tagged| tagged.keys.get(key));
        tags.into_iter().flatten().map(Vec::as_slice).collect()
    }

    /// Gives a key these tags and no others. A lease of the key is over.
    pub fn replace<'t>(&mut self, db: u32, key: &[u8], tags: impl Iterator<Item = &'t [u8]>) {
        self.forget(db, key);
        self.end_lease(db, key);
        self.put(db, key, tags);
    }

    /// True if so many pairs more may be had.
    pub fn has_room(&self, pairs: usize) -> bool {
        self.pairs + pairs <= self.limits.pairs_max
    }

    /// Gives a key further tags: how many are new.
    pub fn put<'t>(&mut self, db: u32, key: &[u8], tags: impl Iterator<Item = &'t [u8]>) -> usize {
        let hash = self.hasher.hash_one(key);
        let tagged = self.databases.entry(db).or_default();
        let mut added = 0;
        for tag in tags {
            if tagged.tags.entry(tag.to_vec()).or_default().insert((hash, key.to_vec())) {
                tagged.keys.entry(key.to_vec()).or_default().insert(tag.to_vec());
                added += 1;
            }
        }
        self.pairs += added;
        added
    }

    /// Takes tags off a key: how many it had.
    pub fn take<'t>(&mut self, db: u32, key: &[u8], tags: impl Iterator<Item = &'t [u8]>) -> usize {
        let member = (self.hasher.hash_one(key), key.to_vec());
        let Some(tagged) = self.databases.get_mut(&db) else { return 0 };
        let mut taken = 0;
        for tag in tags {
            let Some(own) = tagged.keys.get_mut(key) else { break };
            if own.remove(tag) {
                taken += 1;
                if own.is_empty() {
                    tagged.keys.remove(key);
                }
                tagged.detach(tag, &member);
            }
        }
        self.pairs -= taken;
        taken
    }

    /// A key has gone: it has no tags.
    pub fn forget(&mut self, db: u32, key: &[u8]) {
        let tags: Vec<Vec<u8>> = self.tags(db, key).into_iter().map(<[u8]>::to_vec).collect();
        self.take(db, key, tags.iter().map(Vec::as_slice));
    }

    /// Keys of a tag from `cursor` on, about `count` of them, and where to go on: 0 is the end.
    pub fn members(&self, db: u32, tag: &[u8], cursor: u64, count: usize) -> (u64, Vec<&[u8]>) {
        let Some(members) = self.databases.get(&db).and_then(|tagged| tagged.tags.get(tag)) else {
            return (0, Vec::new());
        };
        let mut page: Vec<&[u8]> = Vec::new();
        let mut last = 0;
        for (hash, key) in members.range((Bound::Included((cursor, Vec::new())), Bound::Unbounded)) {
            // All keys of one hash are on one page.
            if page.len() >= count && *hash != last {
                return (*hash, page);
            }
            last = *hash;
            page.push(key);
        }
        (0, page)
    }

    /// All tags, each with its number of keys.
    pub fn list(&self, db: u32) -> impl Iterator<Item = (&[u8], usize)> {
        let tags = self.databases.get(&db).into_iter().flat_map(|tagged| &tagged.tags);
        tags.map(|(tag, members)| (tag.as_slice(), members.len()))
    }

    /// Keys that have one or, if `all`, each of the tags. They are forgotten, and leases that name the tags are void.
    pub fn invalidate<'t>(&mut self, db: u32, tags: impl Iterator<Item = &'t [u8]>, all: bool) -> Vec<Vec<u8>> {
        self.version += 1;
        let tagged = self.databases.entry(db).or_default();
        let mut found: Option<BTreeSet<Vec<u8>>> = None;
        for tag in tags {
            if let Some(version) = tagged.versions.get_mut(tag) {
                *version = self.version;
            }
            let members = tagged.tags.get(tag).into_iter().flatten().map(|(_, key)| key.clone());
            found = Some(match found {
                None => members.collect(),
                Some(found) if all => members.filter(|key| found.contains(key)).collect(),
                Some(found) => found.into_iter().chain(members).collect(),
            });
        }
        let keys: Vec<Vec<u8>> = found.into_iter().flatten().collect();
        for key in &keys {
            self.end_lease(db, key);
            self.forget(db, key);
        }
        keys
    }

    /// Asks for a lease of a key that is not there.
    pub fn lease<'t>(
        &mut self,
        db: u32,
        key: &[u8],
        token: &str,
        tags: impl Iterator<Item = &'t [u8]>,
        until: UnixMillis,
        now: UnixMillis,
    ) -> Result<Lease, TagsFull> {
        let tagged = self.databases.entry(db).or_default();
        if let Some(held) = tagged.leases.get(key).filter(|held| held.until > now) {
            return Ok(Lease::Wait(held.until.0 - now.0));
        }
        if self.leases >= self.limits.leases_max {
            return Err(TagsFull);
        }
        let versions = tags.map(|tag| (tag.to_vec(), *tagged.versions.entry(tag.to_vec()).or_default())).collect();
        let held = Held { token: token.to_owned(), until, versions };
        self.leases += usize::from(tagged.leases.insert(key.to_vec(), held).is_none());
        Ok(Lease::Leased)
    }

    /// True if the lease of a key is still good.
    pub fn holds(&self, db: u32, key: &[u8], token: &[u8], now: UnixMillis) -> bool {
        let Some(tagged) = self.databases.get(&db) else { return false };
        tagged.leases.get(key).is_some_and(|held| {
            let same = |(tag, version): &(Vec<u8>, u64)| tagged.versions.get(tag) == Some(version);
            held.token.as_bytes() == token && held.until > now && held.versions.iter().all(same)
        })
    }

    /// True if somebody has a lease of a key.
    pub fn is_leased(&self, db: u32, key: &[u8], now: UnixMillis) -> bool {
        let held = self.databases.get(&db).and_then(|tagged| tagged.leases.get(key));
        held.is_some_and(|held| held.until > now)
    }

    /// The lease of a key, if there is one, is void.
    pub fn end_lease(&mut self, db: u32, key: &[u8]) {
        if let Some(tagged) = self.databases.get_mut(&db) {
            self.leases -= usize::from(tagged.leases.remove(key).is_some());
        }
    }

    /// Looks at up to `budget` keys, going on where it has stopped, and forgets those that are not there. Leases that are
    /// over go all at once.
    pub fn sweep(&mut self, budget: usize, now: UnixMillis, mut exists: impl FnMut(u32, &[u8]) -> bool) {
        for tagged in self.databases.values_mut() {
            tagged.leases.retain(|_, held| held.until > now);
            if tagged.leases.is_empty() {
                tagged.versions.clear();
            }
        }
        self.leases = self.databases.values().map(|tagged| tagged.leases.len()).sum();
        self.databases.retain(|_, tagged| !tagged.is_empty());
        for (db, key) in self.round.advance(&self.databases, |tagged| &tagged.keys, budget) {
            if !exists(db, &key) {
                self.forget(db, &key);
            }
        }
    }

    /// A database, or all of them, has been emptied.
    pub fn flush(&mut self, db: Option<u32>) {
        self.databases.retain(|of, _| db.is_some_and(|db| db != *of));
        self.pairs = self.databases.values().map(Tagged::pairs).sum();
        self.leases = self.databases.values().map(|tagged| tagged.leases.len()).sum();
    }

    /// Two databases have changed places.
    pub fn swap(&mut self, first: u32, second: u32) {
        let (a, b) = (self.databases.remove(&first), self.databases.remove(&second));
        self.databases.extend(a.map(|tagged| (second, tagged)).into_iter().chain(b.map(|tagged| (first, tagged))));
    }

    /// Pairs of a key and a tag.
    pub fn pairs(&self) -> usize {
        self.pairs
    }
}

// === impl Tagged ===

impl Tagged {
    fn detach(&mut self, tag: &[u8], member: &(u64, Vec<u8>)) {
        if let Some(members) = self.tags.get_mut(tag) {
            members.remove(member);
            if members.is_empty() {
                self.tags.remove(tag);
            }
        }
    }

    fn pairs(&self) -> usize {
        self.keys.values().map(BTreeSet::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.leases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1000);

    fn put(index: &mut TagIndex, key: &str, tags: &[&str]) -> usize {
        index.put(0, key.as_bytes(), tags.iter().map(|tag| tag.as_bytes()))
    }

    fn invalidate(index: &mut TagIndex, tags: &[&str], all: bool) -> Vec<String> {
        let keys = index.invalidate(0, tags.iter().map(|tag| tag.as_bytes()), all);
        keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect()
    }

    #[test]
    fn keys_have_tags_and_tags_have_keys() {
        let mut index = TagIndex::default();
        assert_eq!(put(&mut index, "a", &["x", "y", "x"]), 2);
        assert_eq!(put(&mut index, "b", &["x"]), 1);
        assert_eq!(index.tags(0, b"a"), [b"x", b"y"]);
        assert_eq!(index.list(0).collect::<Vec<_>>(), [(&b"x"[..], 2), (b"y", 1)]);
        assert_eq!(index.take(0, b"a", [&b"y"[..], b"nosuch"].into_iter()), 1);
        index.replace(0, b"b", [&b"z"[..]].into_iter());
        assert_eq!(index.list(0).collect::<Vec<_>>(), [(&b"x"[..], 1), (b"z", 1)]);
        assert!(index.tags(1, b"a").is_empty());
        index.swap(0, 1);
        assert_eq!(index.tags(1, b"a"), [b"x"]);
        index.flush(Some(1));
        assert_eq!((index.pairs(), index.databases.len()), (0, 0));
    }

    #[test]
    fn one_tag_or_all_of_them() {
        let mut index = TagIndex::default();
        let fill = |index: &mut TagIndex| {
            put(index, "a", &["x"]);
            put(index, "b", &["x", "y"]);
            put(index, "c", &["y"]);
        };
        fill(&mut index);
        assert_eq!(invalidate(&mut index, &["x", "y"], true), ["b"]);
        assert_eq!(invalidate(&mut index, &["x", "nosuch"], true), [""; 0]);
        fill(&mut index);
        assert_eq!(invalidate(&mut index, &["y", "x"], false), ["a", "b", "c"]);
        assert_eq!(index.pairs(), 0);
    }

    #[test]
    fn pages_show_each_member_once() {
        let mut index = TagIndex::default();
        for n in 0..1000 {
            put(&mut index, &format!("k{n}"), &["t"]);
        }
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let (next, page) = index.members(0, b"t", cursor, 7);
            seen.extend(page.iter().map(|key| key.to_vec()));
            if next == 0 {
                break;
            }
            cursor = next;
        }
        assert_eq!(seen.len(), 1000);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
        assert_eq!(index.members(0, b"nosuch", 0, 10), (0, Vec::new()));
    }

    #[test]
    fn a_lease_is_void_after_an_invalidation() {
        let mut index = TagIndex::default();
        let lease = |index: &mut TagIndex, token: &str| {
            index.lease(0, b"k", token, [&b"t"[..]].into_iter(), UnixMillis(2000), NOW)
        };
        assert_eq!(lease(&mut index, "one"), Ok(Lease::Leased));
        assert_eq!(lease(&mut index, "two"), Ok(Lease::Wait(1000)));
        assert!(index.holds(0, b"k", b"one", NOW) && !index.holds(0, b"k", b"two", NOW));
        assert!(!index.holds(0, b"k", b"one", UnixMillis(2000)));
        invalidate(&mut index, &["other"], false);
        assert!(index.holds(0, b"k", b"one", NOW));
        invalidate(&mut index, &["t"], false);
        assert!(!index.holds(0, b"k", b"one", NOW));
        index.end_lease(0, b"k");
        assert_eq!(lease(&mut index, "two"), Ok(Lease::Leased));
        index.replace(0, b"k", [&b"t"[..]].into_iter());
        assert!(!index.holds(0, b"k", b"two", NOW));
        lease(&mut index, "three").unwrap();
        index.sweep(0, UnixMillis(3000), |_, _| true);
        assert_eq!((index.leases, index.databases[&0].versions.len()), (0, 0));
    }

    #[test]
    fn at_its_bounds_it_takes_no_more_until_something_has_gone() {
        let mut index = TagIndex::new(TagLimits { pairs_max: 3, leases_max: 2 });
        put(&mut index, "a", &["x", "y"]);
        assert!(index.has_room(1) && !index.has_room(2));
        put(&mut index, "b", &["x"]);
        assert!(index.has_room(0) && !index.has_room(1));
        assert_eq!(put(&mut index, "b", &["x"]), 0, "what is there needs no room");
        invalidate(&mut index, &["x"], false);
        assert!(index.has_room(3));
        let lease = |index: &mut TagIndex, db: u32, key: &str, until: u64| {
            index.lease(db, key.as_bytes(), "token", std::iter::empty(), UnixMillis(until), NOW)
        };
        assert_eq!(lease(&mut index, 0, "a", 2000), Ok(Lease::Leased));
        assert_eq!(lease(&mut index, 1, "a", 3000), Ok(Lease::Leased));
        assert_eq!(lease(&mut index, 0, "b", 2000), Err(TagsFull), "all databases count");
        assert_eq!(lease(&mut index, 0, "a", 2000), Ok(Lease::Wait(1000)), "who waits needs no room");
        index.sweep(0, UnixMillis(2000), |_, _| true);
        assert_eq!(lease(&mut index, 0, "b", 4000), Ok(Lease::Leased), "one is over");
        index.end_lease(1, b"a");
        assert_eq!(lease(&mut index, 0, "c", 4000), Ok(Lease::Leased), "one was used");
        assert_eq!(lease(&mut index, 0, "d", 4000), Err(TagsFull));
    }

    #[test]
    fn a_sweep_finds_all_that_has_gone_with_any_budget() {
        for budget in [1, 7, 1000] {
            let mut index = TagIndex::default();
            for n in 0..100 {
                put(&mut index, &format!("k{n:03}"), &["t", "u"]);
                index.put(3, format!("k{n:03}").as_bytes(), [&b"t"[..]].into_iter());
            }
            for _ in 0..400 {
                index.sweep(budget, NOW, |db, key| db == 0 && key.ends_with(b"7"));
            }
            assert_eq!(index.pairs(), 20, "{budget}");
            assert_eq!(index.list(0).collect::<Vec<_>>(), [(&b"t"[..], 10), (b"u", 10)]);
        }
    }
}
