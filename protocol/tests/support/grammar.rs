//! Invocations made up from the grammar that a server documents (`COMMAND DOCS`).

use larder_protocol::table::reply::Node;

use super::{Connection, Random};

/// The documented arguments of every command and subcommand of a server.
pub(crate) struct Grammar {
    commands: Vec<(String, Vec<Argument>)>,
}

/// One documented argument.
#[derive(Debug)]
pub(crate) struct Argument {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) token: Option<String>,
    optional: bool,
    multiple: bool,
    multiple_token: bool,
    inner: Vec<Argument>,
}

/// Makes up the value of an argument.
pub(crate) type Value<'v> = dyn FnMut(&Argument, &mut Random) -> Vec<u8> + 'v;

/// Most repetitions of an argument that may stand several times.
const REPEATS_MAX: usize = 3;

// === impl Grammar ===

impl Grammar {
    pub(crate) fn read(server: &mut Connection) -> Self {
        let reply = server.must(&["COMMAND", "DOCS"]);
        let docs = Node::read(&reply).expect("well-formed documentation");
        let mut commands = Vec::new();
        for pair in docs.items().chunks_exact(2) {
            commands.push((text(&pair[0]), arguments(&pair[1])));
            for sub in pair[1].field("subcommands").map(Node::items).unwrap_or_default().chunks_exact(2) {
                commands.push((text(&sub[0]), arguments(&sub[1])));
            }
        }
        commands.sort_by(|a, b| a.0.cmp(&b.0));
        Self { commands }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().map(|(name, _)| &**name)
    }

    /// An invocation of `name`, its values made up by `value`.
    pub(crate) fn invocation(&self, name: &str, random: &mut Random, value: &mut Value<'_>) -> Vec<Vec<u8>> {
        let mut out: Vec<Vec<u8>> = name.split('|').map(|part| part.as_bytes().to_vec()).collect();
        if let Some((_, arguments)) = self.commands.iter().find(|(known, _)| known == name) {
            generate_all(arguments, random, value, &mut out);
        }
        out
    }
}

fn arguments(doc: &Node<'_>) -> Vec<Argument> {
    doc.field("arguments").map(Node::items).unwrap_or_default().iter().map(argument).collect()
}

fn argument(node: &Node<'_>) -> Argument {
    let flags: Vec<String> = node.field("flags").map(Node::items).unwrap_or_default().iter().map(text).collect();
    let has = |flag: &str| flags.iter().any(|known| known == flag);
    Argument {
        name: node.field("name").map(text).unwrap_or_default(),
        kind: node.field("type").map(text).unwrap_or_default(),
        token: node.field("token").map(text).map(|token| if token == "\"\"" { String::new() } else { token }),
        optional: has("optional"),
        multiple: has("multiple"),
        multiple_token: has("multiple_token"),
        inner: arguments(node),
    }
}

fn generate_all(arguments: &[Argument], random: &mut Random, value: &mut Value<'_>, out: &mut Vec<Vec<u8>>) {
    let mut announced = None;
    let mut keys = 0;
    for (i, argument) in arguments.iter().enumerate() {
        // A count of what the next argument repeats: `numkeys`, `numfields`.
        if argument.kind == "integer"
            && argument.name.starts_with("num")
            && arguments.get(i + 1).is_some_and(|a| a.multiple)
        {
            let least = usize::from(!arguments[i + 1].optional);
            let count = least + random.below(REPEATS_MAX);
            if let Some(token) = &argument.token {
                out.push(token.clone().into_bytes());
            }
            out.push(count.to_string().into_bytes());
            announced = Some(count);
            continue;
        }
        let repeats = match announced.take() {
            Some(count) => count,
            // `STREAMS key... id...`: as many of one as of the other.
            None if argument.multiple && argument.name.eq_ignore_ascii_case("id") && keys > 0 => keys,
            None if argument.optional && random.below(2) == 0 => 0,
            None if argument.multiple => 1 + random.below(REPEATS_MAX),
            None => 1,
        };
        if argument.kind == "key" {
            keys = repeats;
        }
        for n in 0..repeats {
            if let Some(token) = &argument.token
                && (n == 0 || argument.multiple_token)
            {
                out.push(token.clone().into_bytes());
            }
            match &*argument.kind {
                "pure-token" => {}
                "oneof" if !argument.inner.is_empty() => {
                    let chosen = random.below(argument.inner.len());
                    generate_all(&argument.inner[chosen..=chosen], random, value, out);
                }
                "block" => generate_all(&argument.inner, random, value, out),
                _ => out.push(value(argument, random)),
            }
        }
    }
}

fn text(node: &Node<'_>) -> String {
    String::from_utf8_lossy(node.text().unwrap_or_default()).into_owned()
}
