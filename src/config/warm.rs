//! `[warm]`: the file of names, and what is warmed again and again, as they are written.

use super::WarmSchedule;
use super::value::quote;
use crate::cache::warm::{SCHEDULES_MAX, Subject};
use bytes::Bytes;
use larder_protocol::cache::insight::SHOWN_MAX;
use larder_protocol::cache::warm::{EVERY_SECONDS_MAX, NAME_BYTES_MAX};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// A path; nothing for none.
pub(super) fn parse_file(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "" => Ok(None),
        path if path.ends_with('/') || path.contains('\0') => {
            Err("expected the path of a file, or \"\" for none".to_owned())
        }
        path => Ok(Some(PathBuf::from(path))),
    }
}

/// The path, as it is written.
pub(super) fn show_file(file: &Option<PathBuf>) -> String {
    file.as_ref().map(|file| file.display().to_string()).unwrap_or_default()
}

/// A list of tables, each with `name`, `every_seconds`, and one of `keys`, `pattern`, `tags`, `hot` and `snapshot`.
pub(super) fn parse_schedules(value: &toml::Value) -> Result<Vec<WarmSchedule>, String> {
    let expected = || {
        format!(
            "expected a list of at most {SCHEDULES_MAX} tables such as [[warm.schedule]] name = \"fronts\" \
             every_seconds = 60 pattern = \"front:*\", each with a name of its own of at most {NAME_BYTES_MAX} bytes, \
             1 to {EVERY_SECONDS_MAX} seconds, and one of keys = [\"a\", \"b\"], pattern = \"front:*\", \
             tags = [\"news\"], hot = 100 (1 to {SHOWN_MAX}) and snapshot = \"file\""
        )
    };
    let list = value.as_array().filter(|list| list.len() <= SCHEDULES_MAX).ok_or_else(expected)?;
    let schedules: Vec<WarmSchedule> =
        list.iter().map(|value| parse_schedule(value).ok_or_else(expected)).collect::<Result<_, _>>()?;
    let names: BTreeSet<&str> = schedules.iter().map(|schedule| &schedule.name[..]).collect();
    if names.len() == schedules.len() { Ok(schedules) } else { Err(expected()) }
}

/// The list, as it is written on one line.
pub(super) fn schedules_to_toml(schedules: &[WarmSchedule]) -> String {
    let entry = |schedule: &WarmSchedule| {
        let text = |bytes: &Bytes| quote(&String::from_utf8_lossy(bytes));
        let list = |names: &[Bytes]| names.iter().map(text).collect::<Vec<_>>().join(", ");
        let subject = match &schedule.subject {
            Subject::Keys(keys) => format!("keys = [{}]", list(keys)),
            Subject::Tags(tags) => format!("tags = [{}]", list(tags)),
            Subject::Pattern(glob) => format!("pattern = {}", text(glob)),
            Subject::Hot(max) => format!("hot = {max}"),
            Subject::Snapshot(name) => format!("snapshot = {}", quote(name)),
        };
        let (name, seconds) = (quote(&schedule.name), schedule.every.as_secs());
        format!("{{ name = {name}, every_seconds = {seconds}, {subject} }}")
    };
    format!("[{}]", schedules.iter().map(entry).collect::<Vec<_>>().join(", "))
}

fn parse_schedule(value: &toml::Value) -> Option<WarmSchedule> {
    let table = value.as_table().filter(|table| table.len() == 3)?;
    let name = table.get("name")?.as_str()?;
    let name = Some(name).filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX)?.to_owned();
    let within = |value: &toml::Value, max: u64| {
        value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| (1..=max).contains(n))
    };
    let every = Duration::from_secs(within(table.get("every_seconds")?, EVERY_SECONDS_MAX)?);
    let text = |value: &toml::Value| value.as_str().map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let texts = |value: &toml::Value| {
        let texts: Option<Vec<Bytes>> = value.as_array()?.iter().map(text).collect();
        texts.filter(|texts| !texts.is_empty())
    };
    let (kind, value) = table.iter().find(|(kind, _)| !matches!(&kind[..], "name" | "every_seconds"))?;
    let subject = match &kind[..] {
        "keys" => Subject::Keys(texts(value)?),
        "tags" => Subject::Tags(texts(value)?),
        "pattern" => Subject::Pattern(text(value)?),
        "hot" => Subject::Hot(within(value, SHOWN_MAX as u64)? as usize),
        "snapshot" => Subject::snapshot(value.as_str()?.as_bytes())?,
        _ => return None,
    };
    Some(WarmSchedule { name, every, subject })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<WarmSchedule>, String> {
        let table: toml::Table = format!("s = {text}").parse().unwrap();
        parse_schedules(&table["s"])
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = r#"[{ name = "a", every_seconds = 60, keys = ["x", "y"] }, { name = "b", every_seconds = 1, pattern = "f:*" }, { name = "c", every_seconds = 2592000, hot = 1000 }, { name = "d", every_seconds = 5, snapshot = "hot" }, { name = "e", every_seconds = 5, tags = ["news", "x y"] }]"#;
        assert_eq!(schedules_to_toml(&parsed(all).unwrap()), all);
        assert_eq!(parsed("[]"), Ok(Vec::new()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "1",
            "[1]",
            "[{ name = 'a', every_seconds = 60 }]",
            "[{ name = 'a', every_seconds = 0, hot = 1 }]",
            "[{ name = 'a', every_seconds = 2592001, hot = 1 }]",
            "[{ name = '', every_seconds = 1, hot = 1 }]",
            "[{ name = 'a', every_seconds = 1, hot = 1001 }]",
            "[{ name = 'a', every_seconds = 1, keys = [] }]",
            "[{ name = 'a', every_seconds = 1, tags = [] }]",
            "[{ name = 'a', every_seconds = 1, tags = 'news' }]",
            "[{ name = 'a', every_seconds = 1, hot = 1, pattern = 'x' }]",
            "[{ name = 'a', every_seconds = 1, cold = 1 }]",
            "[{ name = 'a', every_seconds = 1, snapshot = '../hot' }]",
            "[{ name = 'a', every_seconds = 1, hot = 1 }, { name = 'a', every_seconds = 2, hot = 1 }]",
        ] {
            assert!(parsed(text).unwrap_err().starts_with("expected a list"), "{text}");
        }
    }
}
