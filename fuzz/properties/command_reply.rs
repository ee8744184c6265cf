//! Replies that are read as values: the cursor on any bytes, and the table completed from any COMMAND reply.

use std::sync::LazyLock;

use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::Cursor;
use larder_protocol::table::reply::Node;
use larder_protocol::table::{Cacheability, Class, Group, Origin, Table};

use super::cache_grammar::check_request;

static TABLE: LazyLock<Table> = LazyLock::new(Table::builtin);
/// Words that a request for each new command is made of: what key specifications look for, and numbers.
const WORDS: [&[u8]; 6] = [b"1", b"KEYS", b"2", b"streams", b"k", b""];

pub(crate) fn check(input: &[u8]) {
    check_cursor(input);
    let Ok(node) = Node::read(input) else {
        assert!(TABLE.completed(input).is_err(), "a table out of no reply");
        return;
    };
    assert!(count(&node) <= input.len(), "more values than bytes");
    let Ok(table) = TABLE.completed(input) else { return };
    assert!(table.len() >= TABLE.len());
    for (known, row) in TABLE.iter().zip(table.iter()) {
        assert_eq!((known.id, &known.name), (row.id, &row.name), "an id has changed its meaning");
        let is_own = known.group == Group::Larder;
        assert!(!is_own || known.class == row.class, "the upstream has redefined {}", known.name);
    }
    for row in table.iter().skip(TABLE.len()) {
        assert_eq!(row.origin, Origin::Upstream);
        let cached = matches!(row.class, Class::Read(Cacheability::Single | Cacheability::PerKey(_)));
        assert!(!cached, "{} is cached, though nobody has tested it", row.name);
    }
    // Rows that the upstream has filled in, and their key specifications, meet requests.
    for row in table.iter().filter(|row| row.origin == Origin::Upstream).take(8) {
        for len in 0..=WORDS.len() {
            let args = OwnedArgs::new(row.name.as_bytes().split(|&b| b == b'|').chain(WORDS[..len].iter().copied()));
            check_request(&table, args.args());
        }
    }
}

/// All ways to read on, each to the end; none reads past it.
fn check_cursor(input: &[u8]) {
    let mut frames = Cursor::new(input);
    let mut read = 0;
    while let Some(frame) = frames.next_frame() {
        assert!(!frame.is_empty(), "a frame of no bytes");
        read += frame.len();
    }
    assert!(read <= input.len());
    assert!(Cursor::new(input).count() <= input.len());
    let mut cursor = Cursor::new(input);
    for _ in 0..4 {
        let _ = (cursor.next_count(), cursor.next_bytes(), cursor.next_integer());
    }
}

fn count(node: &Node<'_>) -> usize {
    1 + node.items().iter().map(count).sum::<usize>()
}
