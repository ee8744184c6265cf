//! The model server: string keys in two databases, tracking in the default mode and by OPTIN, expiry that lags, eviction.
//!
//! What was measured on real servers and holds here: every read command tracks the keys that it names, missing ones too (with
//! OPTIN only the one behind CLIENT CACHING YES; what was tracked before a switch stays so); a
//! modification sends one push to each connection that tracks the key, whatever its database, and untracks it; a push to
//! another connection stands in that connection's output at the moment of the modification, one to the own connection
//! behind the reply; a key that has expired is deleted, and pushed, when somebody looks at it or the server comes round to
//! it; FLUSHALL sends a null push to every tracking connection.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use larder_protocol::cursor::Cursor;

use crate::history::{
    DATABASES, History, KEY_NAMES, KEYS, Value, Words, evaluate, key_index, keys_of, number, put_bulk, show,
};
use crate::trace;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnId(pub(crate) usize);

/// Who holds the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Link(usize),
    Client(usize),
    /// Nobody any more: what is under way to the server may still arrive.
    Gone,
}

/// A connection, with the bytes that are under way.
pub(crate) struct Conn {
    pub(crate) owner: Owner,
    database: usize,
    resp3: bool,
    tracks: bool,
    /// It tracks only what CLIENT CACHING YES asks for.
    opts_in: bool,
    /// The next command's keys have been asked for.
    has_opted: bool,
    /// False once the server has closed it.
    pub(crate) is_open: bool,
    /// Bytes on their way to the server, and those that have arrived and are no whole request yet.
    pub(crate) up: BytesMut,
    input: BytesMut,
    /// Bytes on their way from the server.
    pub(crate) down: BytesMut,
    own_pushes: Vec<usize>,
    own_null_push: bool,
}

#[derive(Clone)]
struct Stored {
    value: Rc<[u8]>,
    deadline_ms: Option<u64>,
}

pub(crate) struct Server {
    pub(crate) history: History,
    stored: Vec<Option<Stored>>,
    /// For each key name, whoever has read it: the table does not know databases.
    tracking: Vec<BTreeSet<ConnId>>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) now_ms: u64,
    pub(crate) refuses: Refuses,
}

/// Which parts of CLIENT the links' users may not call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refuses {
    pub(crate) tracking: bool,
    pub(crate) caching: bool,
}

/// The connection of direct writers: it tracks nothing and nobody reads what it is answered.
const DIRECT: [ConnId; DATABASES] = [ConnId(0), ConnId(1)];

// === impl Server ===

impl Server {
    pub(crate) fn new() -> Self {
        let mut server = Self {
            history: History::new(),
            stored: vec![None; DATABASES * KEYS],
            tracking: vec![BTreeSet::new(); KEYS],
            conns: Vec::new(),
            now_ms: 0,
            refuses: Refuses::default(),
        };
        for database in 0..DATABASES {
            server.connect(Owner::Gone, database, true, false);
        }
        server
    }

    pub(crate) fn connect(&mut self, owner: Owner, database: usize, resp3: bool, tracks: bool) -> ConnId {
        self.conns.push(Conn {
            owner,
            database,
            resp3,
            tracks,
            opts_in: false,
            has_opted: false,
            is_open: true,
            up: BytesMut::new(),
            input: BytesMut::new(),
            down: BytesMut::new(),
            own_pushes: Vec::new(),
            own_null_push: false,
        });
        ConnId(self.conns.len() - 1)
    }

    /// The server closes a connection: what it has sent may still arrive, what it has not read is lost.
    pub(crate) fn close(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.0];
        conn.is_open = false;
        conn.up.clear();
        conn.input.clear();
        for trackers in &mut self.tracking {
            trackers.remove(&id);
        }
    }

    /// `len` bytes arrive; whole requests are executed.
    pub(crate) fn arrive(&mut self, id: ConnId, len: usize) {
        let conn = &mut self.conns[id.0];
        let bytes = conn.up.split_to(len);
        if !conn.is_open {
            return;
        }
        conn.input.extend_from_slice(&bytes);
        while let Some((words, len)) = parse(&self.conns[id.0].input) {
            let request = self.conns[id.0].input.split_to(len);
            self.execute(id, &words, &request);
        }
    }

    /// Somebody writes without Larder.
    pub(crate) fn execute_directly(&mut self, database: usize, words: &Words) {
        let id = DIRECT[database];
        self.execute(id, words, &crate::history::encode(words));
        self.conns[id.0].down.clear();
    }

    fn execute(&mut self, id: ConnId, words: &Words, request: &[u8]) {
        let (database, resp3) = (self.conns[id.0].database, self.conns[id.0].resp3);
        let name: &[u8] = &words[0];
        let reply = match name {
            b"PING" => b"+PONG\r\n".to_vec(),
            b"CLIENT" => self.client(id, words),
            b"PTTL" => self.pttl(id, database * KEYS, key_index(&words[1])),
            b"GET" | b"MGET" | b"EXISTS" | b"STRLEN" | b"GETRANGE" | b"TOUCH" => {
                evaluate(words, resp3, |key| self.look(id, database * KEYS + key).map(|s| s.value))
            }
            _ => {
                let reply = self.write(id, database, words);
                self.history.record(request, &reply);
                reply
            }
        };
        trace!("  server v{} conn {}: {} -> {}", self.history.now, id.0, show(request), show(&reply));
        let conn = &mut self.conns[id.0];
        let has_opted = if name == b"CLIENT" { false } else { std::mem::take(&mut conn.has_opted) };
        if conn.tracks
            && (has_opted || !conn.opts_in)
            && matches!(name, b"PTTL" | b"GET" | b"MGET" | b"EXISTS" | b"STRLEN" | b"GETRANGE" | b"TOUCH")
        {
            for key in keys_of(words) {
                self.tracking[key].insert(id);
            }
        }
        let conn = &mut self.conns[id.0];
        conn.down.extend_from_slice(&reply);
        for key in std::mem::take(&mut conn.own_pushes) {
            conn.down.extend_from_slice(&push_of(key));
        }
        if std::mem::take(&mut conn.own_null_push) {
            conn.down.extend_from_slice(NULL_PUSH);
        }
    }

    fn client(&mut self, id: ConnId, words: &Words) -> Vec<u8> {
        let conn = &mut self.conns[id.0];
        let option: &[u8] = words.get(3).map_or(b"", |word| word);
        let agreed = match (&words[1][..], option) {
            (b"TRACKING", b"" | b"OPTIN") if !self.refuses.tracking => {
                conn.opts_in = option == b"OPTIN";
                true
            }
            (b"CACHING", _) if conn.opts_in && !self.refuses.caching => {
                conn.has_opted = true;
                true
            }
            _ => false,
        };
        if agreed { b"+OK\r\n".to_vec() } else { b"-NOPERM not this\r\n".to_vec() }
    }

    fn pttl(&mut self, id: ConnId, base: usize, key: Option<usize>) -> Vec<u8> {
        let stored = key.and_then(|key| self.look(id, base + key));
        let ms = match stored {
            None => -2,
            Some(Stored { deadline_ms: None, .. }) => -1,
            Some(Stored { deadline_ms: Some(deadline), .. }) => (deadline - self.now_ms) as i64,
        };
        format!(":{ms}\r\n").into_bytes()
    }

    fn write(&mut self, id: ConnId, database: usize, words: &Words) -> Vec<u8> {
        let base = database * KEYS;
        let name: &[u8] = &words[0];
        match name {
            b"SET" => {
                let deadline = words.get(4).map(|ms| self.now_ms + number::<u64>(ms));
                self.history.now += 1;
                self.put(id, base + key_of(&words[1]), words[2].as_slice().into(), deadline);
                b"+OK\r\n".to_vec()
            }
            b"EVAL" if words[1] == b"delete" => self.delete(id, base, &keys_of(words)).0,
            b"MSET" | b"EVAL" => {
                self.history.now += 1;
                let pairs = if name == b"MSET" { &words[1..] } else { &words[3..] };
                for pair in pairs.chunks_exact(2) {
                    self.put(id, base + key_of(&pair[0]), pair[1].as_slice().into(), None);
                }
                b"+OK\r\n".to_vec()
            }
            b"INCR" => {
                let slot = base + key_of(&words[1]);
                let old = self.look(id, slot);
                let n: i64 = old.as_ref().map_or(0, |s| number(&s.value)) + 1;
                self.history.now += 1;
                self.put(id, slot, n.to_string().into_bytes().into(), old.and_then(|s| s.deadline_ms));
                format!(":{n}\r\n").into_bytes()
            }
            b"PEXPIRE" => {
                let slot = base + key_of(&words[1]);
                let Some(old) = self.look(id, slot) else { return b":0\r\n".to_vec() };
                self.history.now += 1;
                self.put(id, slot, old.value, Some(self.now_ms + number::<u64>(&words[2])));
                b":1\r\n".to_vec()
            }
            b"DEL" => self.delete(id, base, &keys_of(words)).0,
            b"DELNAMED" => {
                let (count, deleted) = self.delete(id, base, &keys_of(words));
                let mut reply = [&b"*2\r\n"[..], &count].concat();
                reply.extend_from_slice(format!("*{}\r\n", deleted.len()).as_bytes());
                deleted.iter().for_each(|slot| put_bulk(Some(KEY_NAMES[slot - base]), true, &mut reply));
                reply
            }
            b"PUBLISH" => b":0\r\n".to_vec(),
            b"FLUSHALL" => {
                self.flush(id);
                b"+OK\r\n".to_vec()
            }
            other => panic!("{} is unknown to the model", String::from_utf8_lossy(other)),
        }
    }

    fn put(&mut self, by: ConnId, slot: usize, value: Rc<[u8]>, deadline_ms: Option<u64>) {
        self.history.set(slot, Some(value.clone()), deadline_ms);
        self.stored[slot] = Some(Stored { value, deadline_ms });
        self.invalidate(by, slot % KEYS);
    }

    fn delete(&mut self, by: ConnId, base: usize, keys: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut there: Vec<usize> = keys.iter().map(|key| base + key).filter(|s| self.look(by, *s).is_some()).collect();
        there.sort_unstable();
        there.dedup();
        self.history.now += u64::from(!there.is_empty());
        for slot in &there {
            self.history.set(*slot, None, None);
            self.stored[*slot] = None;
            self.invalidate(by, slot % KEYS);
        }
        (format!(":{}\r\n", there.len()).into_bytes(), there)
    }

    fn flush(&mut self, by: ConnId) {
        self.history.now += 1;
        for slot in 0..DATABASES * KEYS {
            self.history.set(slot, None, None);
            self.stored[slot] = None;
        }
        self.tracking.iter_mut().for_each(BTreeSet::clear);
        for (i, conn) in self.conns.iter_mut().enumerate().filter(|(_, c)| c.tracks && c.is_open) {
            if by == ConnId(i) {
                conn.own_null_push = true;
            } else {
                conn.down.extend_from_slice(NULL_PUSH);
            }
        }
    }

    /// What a key holds; one that has expired is deleted on sight.
    fn look(&mut self, by: ConnId, slot: usize) -> Option<Stored> {
        let stored = self.stored[slot].clone()?;
        if stored.deadline_ms.is_some_and(|deadline| self.now_ms > deadline) {
            self.stored[slot] = None;
            self.invalidate(by, slot % KEYS);
            return None;
        }
        Some(stored)
    }

    fn invalidate(&mut self, by: ConnId, key: usize) {
        for id in std::mem::take(&mut self.tracking[key]) {
            let conn = &mut self.conns[id.0];
            if id == by {
                conn.own_pushes.push(key);
            } else {
                conn.down.extend_from_slice(&push_of(key));
            }
        }
    }

    /// Time goes on: each expiry is a version of its own.
    pub(crate) fn advance_to(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let expired = |slot: &usize| {
            let span = self.history.current(*slot);
            span.value.is_some() && span.deadline_ms.is_some_and(|deadline| now_ms > deadline)
        };
        let mut dead: Vec<usize> = (0..DATABASES * KEYS).filter(expired).collect();
        dead.sort_by_key(|slot| self.history.current(*slot).deadline_ms);
        for slot in dead {
            self.history.now += 1;
            self.history.set(slot, None, None);
            trace!("  server v{}: slot {slot} has expired", self.history.now);
        }
    }

    /// The server comes round to a key: deletes it if it has expired.
    pub(crate) fn come_round(&mut self, slot: usize) {
        self.look(DIRECT[0], slot);
    }

    /// The server is short of memory.
    pub(crate) fn evict(&mut self, slot: usize) {
        if self.look(DIRECT[0], slot).is_some() {
            self.history.now += 1;
            self.history.set(slot, None, None);
            self.stored[slot] = None;
            trace!("  server v{}: slot {slot} is evicted", self.history.now);
            self.invalidate(DIRECT[0], slot % KEYS);
        }
    }

    /// The tracking table is full: a key is pushed though it has not changed.
    pub(crate) fn untrack(&mut self, key: usize) {
        self.invalidate(DIRECT[0], key);
    }

    pub(crate) fn value(&self, slot: usize) -> Value {
        self.history.current(slot).value.clone()
    }
}

const NULL_PUSH: &[u8] = b">2\r\n$10\r\ninvalidate\r\n_\r\n";

fn push_of(key: usize) -> Vec<u8> {
    let name = KEY_NAMES[key];
    let mut push = format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n", name.len()).into_bytes();
    push.extend_from_slice(name);
    push.extend_from_slice(b"\r\n");
    push
}

fn key_of(name: &[u8]) -> usize {
    key_index(name).unwrap_or_else(|| panic!("no key {}", String::from_utf8_lossy(name)))
}

/// The first request in `input`, if it is whole, and its length.
fn parse(input: &BytesMut) -> Option<(Words, usize)> {
    let mut cursor = Cursor::new(input);
    let count = cursor.next_count()?;
    let words = (0..count).map(|_| cursor.next_bytes().map(<[u8]>::to_vec)).collect::<Option<Words>>()?;
    let len = Cursor::new(input).next_frame()?.len();
    Some((words, len))
}

/// Takes one whole frame from the front of `bytes`.
pub(crate) fn take_frame(bytes: &mut BytesMut) -> Option<Vec<u8>> {
    let frame = Cursor::new(bytes).next_frame()?.to_vec();
    bytes.advance(frame.len());
    Some(frame)
}
