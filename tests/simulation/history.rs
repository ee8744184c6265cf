//! What the model server's data was at each version, and whether an answer fits into that.
//!
//! The server counts a version for each atomic change, the moment at which a key expires included. An answer to a read is
//! right for a set of versions; a connection's answers are right together if one version can be chosen for each so that
//! they never decrease. Choosing the least one each time decides that exactly.

use std::collections::HashMap;
use std::rc::Rc;

pub(crate) type Version = u64;
pub(crate) type Value = Option<Rc<[u8]>>;
pub(crate) type Words = Vec<Vec<u8>>;

/// Keys of one database: `k0` to `k3` hold strings that are never written twice, `c0` and `c1` counters.
pub(crate) const KEY_NAMES: [&[u8]; 6] = [b"k0", b"k1", b"k2", b"k3", b"c0", b"c1"];
pub(crate) const KEYS: usize = KEY_NAMES.len();
pub(crate) const STRINGS: usize = 4;
pub(crate) const DATABASES: usize = 2;

/// A key had this value from one version until before another.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) value: Value,
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) from: Version,
}

/// All values that all keys ever had.
pub(crate) struct History {
    slots: Vec<Vec<Span>>,
    pub(crate) now: Version,
    /// For each write, by its bytes: each execution's version and reply.
    executed: HashMap<Vec<u8>, Vec<(Version, Vec<u8>)>>,
}

// === impl History ===

impl History {
    pub(crate) fn new() -> Self {
        let first = Span { value: None, deadline_ms: None, from: 0 };
        Self { slots: vec![vec![first]; DATABASES * KEYS], now: 0, executed: HashMap::new() }
    }

    /// Records what a key holds since the present version.
    pub(crate) fn set(&mut self, slot: usize, value: Value, deadline_ms: Option<u64>) {
        let spans = &mut self.slots[slot];
        let span = Span { value, deadline_ms, from: self.now };
        match spans.last_mut() {
            Some(last) if last.from == self.now => *last = span,
            _ => spans.push(span),
        }
    }

    pub(crate) fn at(&self, slot: usize, version: Version) -> &Span {
        let spans = &self.slots[slot];
        &spans[spans.partition_point(|s| s.from <= version) - 1]
    }

    /// All that a key has held from a version on.
    pub(crate) fn since(&self, slot: usize, version: Version) -> &[Span] {
        let spans = &self.slots[slot];
        &spans[spans.partition_point(|s| s.from <= version) - 1..]
    }

    pub(crate) fn current(&self, slot: usize) -> &Span {
        self.at(slot, self.now)
    }

    pub(crate) fn record(&mut self, request: &[u8], reply: &[u8]) {
        self.executed.entry(request.to_vec()).or_default().push((self.now, reply.to_vec()));
    }

    pub(crate) fn executions(&self, request: &[u8]) -> &[(Version, Vec<u8>)] {
        self.executed.get(request).map_or(&[], |e| &e[..])
    }

    /// The least version from `lower` on at which all is true of `slots` that `fits` asks for.
    pub(crate) fn least(&self, slots: &[usize], lower: Version, fits: impl Fn(Version) -> bool) -> Option<Version> {
        if fits(lower) {
            return Some(lower);
        }
        let spans = slots.iter().flat_map(|slot| &self.slots[*slot]);
        let mut starts: Vec<Version> = spans.map(|s| s.from).filter(|from| *from > lower).collect();
        starts.sort_unstable();
        starts.dedup();
        starts.into_iter().find(|version| fits(*version))
    }
}

/// The index of a key by its name.
pub(crate) fn key_index(name: &[u8]) -> Option<usize> {
    KEY_NAMES.iter().position(|known| *known == name)
}

/// The keys that a request names, by index.
pub(crate) fn keys_of(words: &[Vec<u8>]) -> Vec<usize> {
    let name: &[u8] = &words[0];
    let keys: Vec<&Vec<u8>> = match name {
        b"MGET" | b"EXISTS" | b"DEL" | b"DELNAMED" | b"TOUCH" => words[1..].iter().collect(),
        b"MSET" => words[1..].iter().step_by(2).collect(),
        b"EVAL" => words[3..].iter().step_by(2).collect(),
        b"PUBLISH" | b"PING" | b"FLUSHALL" | b"SELECT" => Vec::new(),
        _ => words[1..2].iter().collect(),
    };
    keys.into_iter().filter_map(|key| key_index(key)).collect()
}

/// The reply to a read (other than PTTL), given what the keys hold.
pub(crate) fn evaluate(words: &[Vec<u8>], resp3: bool, mut value_of: impl FnMut(usize) -> Value) -> Vec<u8> {
    let name: &[u8] = &words[0];
    let keys = keys_of(words);
    let mut reply = Vec::new();
    match name {
        b"GET" => put_bulk(value_of(keys[0]).as_deref(), resp3, &mut reply),
        b"STRLEN" => put_integer(value_of(keys[0]).map_or(0, |v| v.len() as i64), &mut reply),
        b"GETRANGE" => {
            let value = value_of(keys[0]);
            let value = value.as_deref().unwrap_or_default();
            let (from, to): (usize, usize) = (number(&words[2]), number(&words[3]));
            let part = value.get(from..(to + 1).min(value.len()).max(from)).unwrap_or_default();
            put_bulk(Some(part), resp3, &mut reply);
        }
        b"MGET" => {
            reply.extend_from_slice(format!("*{}\r\n", keys.len()).as_bytes());
            for key in keys {
                put_bulk(value_of(key).as_deref(), resp3, &mut reply);
            }
        }
        b"EXISTS" | b"TOUCH" => {
            put_integer(keys.into_iter().filter(|key| value_of(*key).is_some()).count() as i64, &mut reply);
        }
        other => panic!("{} is no read of the model", String::from_utf8_lossy(other)),
    }
    reply
}

pub(crate) fn put_integer(n: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(format!(":{n}\r\n").as_bytes());
}

pub(crate) fn put_bulk(value: Option<&[u8]>, resp3: bool, out: &mut Vec<u8>) {
    match value {
        None => out.extend_from_slice(if resp3 { b"_\r\n" } else { b"$-1\r\n" }),
        Some(value) => {
            out.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }
}

pub(crate) fn number<T: std::str::FromStr>(text: &[u8]) -> T {
    let parsed = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    parsed.unwrap_or_else(|| panic!("{} is no number", String::from_utf8_lossy(text)))
}

/// A request in RESP.
pub(crate) fn encode(words: &[Vec<u8>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        put_bulk(Some(word), true, &mut out);
    }
    out
}

/// For the trace.
pub(crate) fn show(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", " ");
    if text.len() > 120 { format!("{}...", text.chars().take(120).collect::<String>()) } else { text }
}

pub(crate) fn show_words(words: &[Vec<u8>]) -> String {
    show(&words.join(&b' '))
}
