//! Which keys of the embedded store depend on which.
//!
//! A core beside the store: it knows names only. What a key depends on is its name's, until it goes by a change of what it
//! depends on, is released, or is found to have gone by [`DependIndex::sweep`].
//!
//! Bounds: those of [`DependLimits`].

use super::round::Round;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Most dependencies, all databases together.
pub const DEPENDENCIES_MAX: usize = 1_000_000;

/// How much may be tied together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DependLimits {
    /// Keys that one key may depend on.
    pub sources_max: usize,
    /// Keys that may depend on one key.
    pub dependents_max: usize,
    /// Links of the longest chain.
    pub depth_max: usize,
    /// Keys that are looked at to find it.
    pub looked_max: usize,
    /// Dependencies, all databases together.
    pub dependencies_max: usize,
}

/// Why a dependency cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DependRefusal {
    /// A key would depend on itself.
    Itself,
    /// `sources_max`
    Sources,
    /// `dependents_max`
    Dependents,
    /// `depth_max`
    Depth,
    /// `looked_max`
    Connected,
    /// `dependencies_max`
    Full,
}

/// The dependencies of all databases.
#[derive(Debug, Default)]
pub struct DependIndex {
    databases: HashMap<u32, Depends>,
    count: usize,
    /// Where the sweep goes on.
    round: Round,
}

type Names = BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>;

/// The dependencies of one database, from both ends.
#[derive(Debug, Default)]
struct Depends {
    sources: Names,
    dependents: Names,
}

// === impl DependIndex ===

impl DependIndex {
    /// True if no key depends on another.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Dependencies, all databases together.
    pub fn len(&self) -> usize {
        self.count
    }

    /// What a key depends on, in order.
    pub fn sources(&self, db: u32, key: &[u8]) -> Vec<&[u8]> {
        let sources = self.databases.get(&db).and_then(|depends| depends.sources.get(key));
        sources.into_iter().flatten().map(Vec::as_slice).collect()
    }

    /// Lets a key depend on others: on how many it did not before.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn depend<'k>(
        &mut self,
        db: u32,
        key: &[u8],
        sources: impl Iterator<Item = &'k [u8]>,
        limits: DependLimits,
    ) -> Result<usize, DependRefusal> {
        let depends = self.databases.entry(db).or_default();
        let known = depends.sources.get(key);
        let fresh: BTreeSet<Vec<u8>> =
            sources.filter(|source| known.is_none_or(|known| !known.contains(*source))).map(<[u8]>::to_vec).collect();
        depends.check(key, &fresh, limits)?;
        if self.count + fresh.len() > limits.dependencies_max {
            return Err(DependRefusal::Full);
        }
        let added = fresh.len();
        for source in fresh {
            depends.dependents.entry(source.clone()).or_default().insert(key.to_vec());
            depends.sources.entry(key.to_vec()).or_default().insert(source);
        }
        self.count += added;
        Ok(added)
    }

    /// Lets a key depend on one of `sources`, or on any without them, no more: on how many it did.
    pub fn release<'k>(&mut self, db: u32, key: &[u8], sources: Option<impl Iterator<Item = &'k [u8]>>) -> usize {
        let Some(depends) = self.databases.get_mut(&db) else { return 0 };
        let named: Vec<Vec<u8>> = match sources {
            Some(sources) => sources.map(<[u8]>::to_vec).collect(),
            None => depends.sources.get(key).into_iter().flatten().cloned().collect(),
        };
        let released = named.iter().filter(|source| depends.release(key, source)).count();
        self.count -= released;
        released
    }

    /// Some keys have changed: what depends on them, and on that, and so on. What goes depends on nothing any more; those
    /// that have changed do not go.
    pub fn take_out(&mut self, db: u32, changed: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let origins: BTreeSet<&[u8]> = changed.iter().map(Vec::as_slice).collect();
        let mut queue: VecDeque<Vec<u8>> = changed.iter().cloned().collect();
        let mut gone = Vec::new();
        while let Some(source) = queue.pop_front() {
            let dependents = self.databases.get(&db).and_then(|depends| depends.dependents.get(&source));
            let following: Vec<Vec<u8>> = dependents.into_iter().flatten().cloned().collect();
            for key in following.into_iter().filter(|key| !origins.contains(key.as_slice())) {
                self.release(db, &key, None::<std::iter::Empty<&[u8]>>);
                gone.push(key.clone());
                queue.push_back(key);
            }
        }
        gone
    }

    /// Looks at up to `budget` keys, going on where it has stopped, and forgets what those depended on that are not there.
    pub fn sweep(&mut self, budget: usize, mut exists: impl FnMut(u32, &[u8]) -> bool) {
        self.databases.retain(|_, depends| !depends.sources.is_empty());
        for (db, key) in self.round.advance(&self.databases, |depends| &depends.sources, budget) {
            if !exists(db, &key) {
                self.release(db, &key, None::<std::iter::Empty<&[u8]>>);
            }
        }
    }

    /// A database, or all of them, has been emptied.
    pub fn flush(&mut self, db: Option<u32>) {
        self.databases.retain(|of, _| db.is_some_and(|db| db != *of));
        self.count = self.databases.values().map(Depends::count).sum();
    }

    /// Two databases have changed places.
    pub fn swap(&mut self, first: u32, second: u32) {
        let (a, b) = (self.databases.remove(&first), self.databases.remove(&second));
        self.databases.extend(a.map(|depends| (second, depends)).into_iter().chain(b.map(|depends| (first, depends))));
    }
}

// === impl Depends ===

impl Depends {
    fn check(&self, key: &[u8], fresh: &BTreeSet<Vec<u8>>, limits: DependLimits) -> Result<(), DependRefusal> {
        if fresh.contains(key) {
            return Err(DependRefusal::Itself);
        }
        let size = |names: &Names, name: &[u8]| names.get(name).map_or(0, BTreeSet::len);
        if fresh.iter().any(|source| size(&self.dependents, source) >= limits.dependents_max) {
            return Err(DependRefusal::Dependents);
        }
        if size(&self.sources, key) + fresh.len() > limits.sources_max {
            return Err(DependRefusal::Sources);
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let mut looked = 0;
        let above = levels(&self.sources, fresh.iter().map(Vec::as_slice), limits, &mut looked)?;
        let below = levels(&self.dependents, std::iter::once(key), limits, &mut looked)?;
        if above + 1 + below > limits.depth_max { Err(DependRefusal::Depth) } else { Ok(()) }
    }

    /// True if the key did depend on it.
    fn release(&mut self, key: &[u8], source: &[u8]) -> bool {
        let did = remove(&mut self.sources, key, source);
        remove(&mut self.dependents, source, key);
        did
    }

    fn count(&self) -> usize {
        self.sources.values().map(BTreeSet::len).sum()
    }
}

/// Removes a name from a set; a set that is empty then goes.
fn remove(names: &mut Names, of: &[u8], name: &[u8]) -> bool {
    let Some(set) = names.get_mut(of) else { return false };
    let did = set.remove(name);
    if set.is_empty() {
        names.remove(of);
    }
    did
}

/// How many levels of keys follow the first ones.
fn levels<'n>(
    names: &'n Names,
    first: impl Iterator<Item = &'n [u8]>,
    limits: DependLimits,
    looked: &mut usize,
) -> Result<usize, DependRefusal> {
    let mut level: Vec<&[u8]> = first.collect();
    let mut seen: BTreeSet<&[u8]> = level.iter().copied().collect();
    for depth in 0..=limits.depth_max {
        let mut following = Vec::new();
        for next in level.iter().filter_map(|name| names.get(*name)).flatten() {
            if seen.insert(next) {
                *looked += 1;
                following.push(next.as_slice());
            }
        }
        if *looked > limits.looked_max {
            return Err(DependRefusal::Connected);
        }
        if following.is_empty() {
            return Ok(depth);
        }
        level = following;
    }
    Err(DependRefusal::Depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DependLimits =
        DependLimits { sources_max: 3, dependents_max: 4, depth_max: 3, looked_max: 10, dependencies_max: 1000 };

    fn depend(index: &mut DependIndex, key: &str, sources: &[&str]) -> Result<usize, DependRefusal> {
        index.depend(0, key.as_bytes(), sources.iter().map(|source| source.as_bytes()), LIMITS)
    }

    fn take_out(index: &mut DependIndex, changed: &[&str]) -> Vec<String> {
        let changed: Vec<Vec<u8>> = changed.iter().map(|key| key.as_bytes().to_vec()).collect();
        let mut gone: Vec<String> =
            index.take_out(0, &changed).into_iter().map(|key| String::from_utf8(key).unwrap()).collect();
        gone.sort_unstable();
        gone
    }

    #[test]
    fn chains_diamonds_and_cycles_go() {
        let mut index = DependIndex::default();
        assert_eq!(depend(&mut index, "b", &["a", "a"]), Ok(1));
        assert_eq!(depend(&mut index, "b", &["a", "z"]), Ok(1));
        depend(&mut index, "c", &["a"]).unwrap();
        depend(&mut index, "d", &["b", "c"]).unwrap();
        assert_eq!(index.sources(0, b"d"), [b"b", b"c"]);
        assert_eq!(take_out(&mut index, &["other"]), [""; 0]);
        assert_eq!(take_out(&mut index, &["a"]), ["b", "c", "d"]);
        assert!(index.is_empty() && index.databases[&0].dependents.is_empty());
        depend(&mut index, "x", &["y"]).unwrap();
        depend(&mut index, "y", &["x"]).unwrap();
        assert_eq!(take_out(&mut index, &["x"]), ["y"], "who has changed stays");
        assert_eq!(index.sources(0, b"x"), [b"y"]);
        assert_eq!(take_out(&mut index, &["y"]), ["x"]);
        assert!(index.is_empty());
    }

    #[test]
    fn bounds_are_kept() {
        let mut index = DependIndex::default();
        assert_eq!(depend(&mut index, "a", &["a"]), Err(DependRefusal::Itself));
        assert_eq!(depend(&mut index, "a", &["1", "2", "3", "4"]), Err(DependRefusal::Sources));
        for key in ["a", "b", "c", "d"] {
            depend(&mut index, key, &["s"]).unwrap();
        }
        assert_eq!(depend(&mut index, "e", &["s"]), Err(DependRefusal::Dependents));
        assert_eq!(depend(&mut index, "a", &["s"]), Ok(0), "what is there already is no more");
        depend(&mut index, "e", &["d"]).unwrap();
        depend(&mut index, "f", &["e"]).unwrap();
        assert_eq!(depend(&mut index, "g", &["f"]), Err(DependRefusal::Depth));
        assert_eq!(depend(&mut index, "s", &["r"]), Err(DependRefusal::Depth), "it is counted at both ends");
        for n in 0..3 {
            depend(&mut index, &format!("u{n}"), &["t"]).unwrap();
            for m in 0..3 {
                depend(&mut index, &format!("v{n}{m}"), &[&format!("u{n}")]).unwrap();
            }
        }
        assert_eq!(depend(&mut index, "t", &["q"]), Err(DependRefusal::Connected));
        let full = DependLimits { dependencies_max: index.len() + 1, ..LIMITS };
        let two = [&b"q1"[..], b"q2"];
        assert_eq!(index.depend(0, b"w", two.into_iter(), full), Err(DependRefusal::Full));
        assert_eq!(index.depend(9, b"w", two[..1].iter().copied(), full), Ok(1));
        assert_eq!(index.depend(0, b"w", two[..1].iter().copied(), full), Err(DependRefusal::Full));
    }

    #[test]
    fn what_has_gone_is_swept_with_any_budget() {
        for budget in [1, 7, 1000] {
            let mut index = DependIndex::default();
            for n in 0..50 {
                depend(&mut index, &format!("k{n:02}"), &[&format!("s{n}"), "x"][..1]).unwrap();
                index
                    .depend(
                        3,
                        format!("k{n:02}").as_bytes(),
                        [&b"s"[..]].into_iter(),
                        DependLimits { dependents_max: 99, ..LIMITS },
                    )
                    .unwrap();
            }
            for _ in 0..200 {
                index.sweep(budget, |db, key| db == 0 && key.ends_with(b"7"));
            }
            assert_eq!((index.len(), index.databases[&0].dependents.len()), (5, 5), "{budget}");
            index.swap(0, 1);
            assert_eq!(index.sources(1, b"k07"), [b"s7"]);
            index.flush(Some(1));
            assert!(index.is_empty());
        }
    }
}
