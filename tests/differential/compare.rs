//! When two replies to the same command count as equal: byte for byte, but for what no two servers agree on.

use crate::support::Value;

/// How replies to a command are compared, and why not byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Exact,
    /// The order comes from hash tables whose seed is each process's own: all aggregates are sorted first.
    Unordered,
    /// As [`Rule::Unordered`], in pairs that stay together.
    UnorderedPairs,
    /// As [`Rule::Unordered`]; and the reply through Larder has CACHE in it, which the server does not know.
    WithCache,
    /// The content is chance, a time, an identity or a size: kinds and numbers of elements must be the same.
    Shape,
    /// A time that runs while the command is on its way: integers may differ by so much.
    Near(i64),
}

/// Commands with another rule than [`Rule::Exact`], each for its reason.
const RULES: &[(&str, Rule)] = &[
    // Order of hash tables.
    ("SMEMBERS", Rule::Unordered),
    ("SINTER", Rule::Unordered),
    ("SUNION", Rule::Unordered),
    ("SDIFF", Rule::Unordered),
    ("SSCAN", Rule::Unordered),
    ("HKEYS", Rule::Unordered),
    ("HVALS", Rule::Unordered),
    ("HSCAN", Rule::Unordered),
    ("ZSCAN", Rule::Unordered),
    ("KEYS", Rule::Unordered),
    ("SCAN", Rule::Unordered),
    ("HGETALL", Rule::UnorderedPairs),
    // Chance.
    ("RANDOMKEY", Rule::Shape),
    ("SRANDMEMBER", Rule::Shape),
    ("HRANDFIELD", Rule::Shape),
    ("ZRANDMEMBER", Rule::Shape),
    ("SPOP", Rule::Shape),
    // Clocks.
    ("TIME", Rule::Shape),
    ("LASTSAVE", Rule::Shape),
    ("OBJECT IDLETIME", Rule::Shape),
    ("XPENDING", Rule::Shape),
    ("XINFO CONSUMERS", Rule::Shape),
    ("TTL", Rule::Near(2)),
    ("EXPIRETIME", Rule::Near(2)),
    ("PTTL", Rule::Near(2000)),
    ("PEXPIRETIME", Rule::Near(2000)),
    ("HTTL", Rule::Near(2)),
    ("HPTTL", Rule::Near(2000)),
    // Identities of the connection and of the process.
    ("HELLO", Rule::Shape),
    ("CLIENT ID", Rule::Shape),
    // Sizes that hang on an allocator and on the state of a hash table; a payload that holds a set in its order.
    ("MEMORY USAGE", Rule::Shape),
    ("DUMP", Rule::Shape),
    // Larder lists its own command among the server's.
    ("COMMAND", Rule::WithCache),
    ("ACL CAT", Rule::Unordered),
];

/// The rule for a command.
pub(crate) fn rule(args: &[Vec<u8>]) -> Rule {
    let word = |n: usize| args.get(n).map(|arg| String::from_utf8_lossy(arg).to_uppercase()).unwrap_or_default();
    let (name, both) = (word(0), format!("{} {}", word(0), word(1)));
    // Without names of commands it lists all of them.
    if name == "COMMAND" && args.len() > 2 {
        return Rule::Exact;
    }
    // Summaries have no times; a listing with idle times has a range.
    if name == "XPENDING" && args.len() <= 3 {
        return Rule::Exact;
    }
    RULES.iter().find(|(of, _)| *of == name || *of == both).map_or(Rule::Exact, |(_, rule)| *rule)
}

/// Whether both replies are the same by the rule.
pub(crate) fn same(rule: Rule, direct: &[u8], through: &[u8]) -> bool {
    if direct == through {
        return true;
    }
    if rule == Rule::Exact || direct[0] == b'-' || through[0] == b'-' {
        return false;
    }
    if null_arrays(direct) != null_arrays(through) {
        return false;
    }
    let (direct, through) = (Value::parse(direct), Value::parse(through));
    match rule {
        Rule::Exact => false,
        Rule::Unordered => sorted(direct) == sorted(through),
        Rule::WithCache => sorted(direct) == sorted(without_cache(through)),
        Rule::UnorderedPairs => pairs(&direct) == pairs(&through) && kind(&direct) == kind(&through),
        Rule::Shape => shape(&direct) == shape(&through),
        Rule::Near(difference_max) => near(&direct, &through, difference_max),
    }
}

/// RESP2 has two nulls, which look the same once they are parsed.
fn null_arrays(reply: &[u8]) -> usize {
    reply.windows(5).filter(|window| window == b"*-1\r\n").count()
}

fn sorted(value: Value) -> Value {
    let sort = |items: Vec<Value>| {
        let mut items: Vec<Value> = items.into_iter().map(sorted).collect();
        items.sort();
        items
    };
    match value {
        Value::Array(items) => Value::Array(sort(items)),
        Value::Set(items) => Value::Set(sort(items)),
        Value::Map(items) => Value::Map(sort(items)),
        other => other,
    }
}

/// What a reply to COMMAND says of CACHE taken out: names, rows that begin with the name, a name and its documentation.
fn without_cache(value: Value) -> Value {
    let is_own = |value: &Value| matches!(value, Value::Bulk(name) if name == b"cache" || name.starts_with(b"cache|"));
    let is_row = |value: &Value| matches!(value, Value::Array(row) if row.first().is_some_and(is_own));
    let strip = |items: Vec<Value>| {
        let mut left = Vec::new();
        let mut items = items.into_iter().peekable();
        while let Some(item) = items.next() {
            if is_own(&item) {
                // In a list the next name follows, in documentation what is said of this one.
                items.next_if(|next| matches!(next, Value::Map(_) | Value::Array(_)));
            } else if !is_row(&item) {
                left.push(item);
            }
        }
        left
    };
    match value {
        Value::Int(count) => Value::Int(count - 1),
        Value::Array(items) => Value::Array(strip(items)),
        Value::Map(items) => Value::Map(strip(items)),
        other => other,
    }
}

fn pairs(value: &Value) -> Vec<Vec<Value>> {
    let mut pairs: Vec<Vec<Value>> = match value {
        Value::Array(items) | Value::Map(items) => items.chunks(2).map(<[Value]>::to_vec).collect(),
        other => vec![vec![other.clone()]],
    };
    pairs.sort();
    pairs
}

/// The kind of a value, without its content.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Simple(_) => "simple",
        Value::Error(_) => "error",
        Value::Int(_) => "integer",
        Value::Bulk(_) => "bulk",
        Value::Null => "null",
        Value::Double(_) => "double",
        Value::Bool(_) => "boolean",
        Value::Big(_) => "big number",
        Value::Verbatim(_) => "verbatim",
        Value::Array(_) => "array",
        Value::Set(_) => "set",
        Value::Push(_) => "push",
        Value::Map(_) => "map",
    }
}

fn shape(value: &Value) -> String {
    match value {
        Value::Array(items) | Value::Set(items) | Value::Push(items) | Value::Map(items) => {
            let inner: Vec<String> = items.iter().map(shape).collect();
            format!("{}({})", kind(value), inner.join(","))
        }
        other => kind(other).to_owned(),
    }
}

fn near(direct: &Value, through: &Value, difference_max: i64) -> bool {
    match (direct, through) {
        // Negative numbers are not times but words.
        (Value::Int(a), Value::Int(b)) => a == b || (*a >= 0 && *b >= 0 && (a - b).abs() <= difference_max),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b, difference_max))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::{Rule, rule, same};

    fn args(line: &str) -> Vec<Vec<u8>> {
        line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
    }

    #[test]
    fn rules_are_found_in_any_case() {
        assert_eq!(rule(&args("smembers x")), Rule::Unordered);
        assert_eq!(rule(&args("Object idletime x")), Rule::Shape);
        assert_eq!(rule(&args("OBJECT ENCODING x")), Rule::Exact);
        assert_eq!(rule(&args("GET x")), Rule::Exact);
    }

    #[test]
    fn a_rule_forgives_only_what_it_names() {
        let (ab, ba, ac) = (b"*2\r\n+a\r\n+b\r\n", b"*2\r\n+b\r\n+a\r\n", b"*2\r\n+a\r\n+c\r\n");
        assert!(!same(Rule::Exact, ab, ba));
        assert!(same(Rule::Unordered, ab, ba));
        assert!(!same(Rule::Unordered, ab, ac));
        assert!(!same(Rule::Unordered, ab, b"~2\r\n+a\r\n+b\r\n"), "a set is no array");
        assert!(!same(Rule::UnorderedPairs, ab, ba));
        assert!(same(Rule::Shape, ab, ac));
        assert!(!same(Rule::Shape, ab, b"*1\r\n+a\r\n"));
        assert!(!same(Rule::Shape, b"$-1\r\n", b"*-1\r\n"), "RESP2 has two nulls");
        assert!(same(Rule::WithCache, b":5\r\n", b":6\r\n") && !same(Rule::WithCache, b":5\r\n", b":7\r\n"));
        let listed = b"*3\r\n$1\r\na\r\n$5\r\ncache\r\n$10\r\ncache|info\r\n";
        assert!(same(Rule::WithCache, b"*1\r\n$1\r\na\r\n", listed) && !same(Rule::WithCache, ab, listed));
        let docs = b"%2\r\n$1\r\na\r\n%0\r\n$5\r\ncache\r\n%0\r\n";
        assert!(same(Rule::WithCache, b"%1\r\n$1\r\na\r\n%0\r\n", docs));
        assert!(same(Rule::Near(2), b":5\r\n", b":6\r\n"));
        assert!(!same(Rule::Near(2), b":-1\r\n", b":0\r\n"));
        assert!(!same(Rule::Shape, b"-ERR a\r\n", b"-ERR b\r\n"), "errors are compared to the letter");
    }
}
