//! The names of the hot keys, saved at a clean stop and warmed at the next start.
//!
//! ```text
//!   larder-snapshot 1 <count>\n        then for each key, hottest first:
//!   <database> <bytes>\n<key>\n
//! ```
//!
//! Names only, no values, and only of clients that neither authenticate nor name another user: their user is the one of
//! the upstream's URL, so no password has to be kept. First come the keys that were used most of late, then those of L1 by
//! their hits.
//!
//! How it fails: a file that is missing, broken or foreign is a line of the log, never a failed start. The file is replaced
//! as a whole or not at all, and stays as it is where there is nothing to save.

use super::{Subject, Warmer, refused};
use crate::cache::jobs::Job;
use crate::port::Failure;
use crate::server::{Backend, Shared};
use crate::upstream::errand::Errand;
use crate::upstream::scope::Upstream;
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::time::timeout;

/// The first word of the file, and the version of its format.
const HEAD: &[u8] = b"larder-snapshot 1 ";
/// Longer names are not saved, in bytes.
const KEY_BYTES_MAX: usize = 4096;
/// A longer file is refused, and none is written, in bytes.
const FILE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Keys among which the order of databases does not matter: each has a link of its own.
const WINDOW_KEYS: usize = 512;

/// A key whose name was saved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SavedKey {
    pub(super) database: u32,
    pub(super) key: Bytes,
}

/// Why there are no names.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    /// The system's word.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// More than [`FILE_BYTES_MAX`].
    #[error("it is longer than {FILE_BYTES_MAX} bytes")]
    TooLong,
    /// It does not begin as a snapshot does.
    #[error("it is not a snapshot of Larder's, or of another version")]
    Foreign,
    /// It goes on as no snapshot does, from this byte on.
    #[error("it is broken at byte {0}")]
    Broken(usize),
}

/// Warms what was saved at the last stop, for at most `warm.start_ms_max`.
pub(crate) async fn warm_at_start(shared: &Arc<Shared>) {
    let (Some(file), Backend::Upstream(upstream)) = (&shared.config.warm.snapshot_file, &shared.backend) else {
        return;
    };
    let shown = file.display();
    let saved = match load(file) {
        Ok(saved) => saved,
        Err(SnapshotError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => {
            return tracing::info!(file = %shown, "nothing is warmed: no names of keys were saved");
        }
        Err(error) => {
            return tracing::warn!(file = %shown, cause = %error, "nothing is warmed: the file cannot be used");
        }
    };
    let running = match shared.jobs.begin("warm-start", file.as_os_str().as_encoded_bytes(), shared.clock) {
        Ok(running) => running,
        Err(error) => return tracing::warn!(cause = %error, "nothing is warmed"),
    };
    let (began, max) = (shared.clock.now(), shared.config.warm.start_ms_max);
    let result = timeout(max, warm_saved(shared, upstream, saved, &running)).await;
    let result = result.unwrap_or_else(|_| Err(refused("ERR larder: the time for it is over (warm.start_ms_max)")));
    let took_ms = shared.clock.now().saturating_since(began).as_millis() as u64;
    match &result {
        Ok(()) => tracing::info!(keys = running.done(), took_ms, "L1 is warm"),
        Err(error) => tracing::warn!(keys = running.done(), took_ms, cause = %error, "L1 is not as warm as it was"),
    }
    running.end(result.as_ref().err());
}

/// Saves the names of the hot keys, if that is wanted. Looks at the whole store, and writes a file: not for a task that
/// others wait for.
pub(crate) fn save(shared: &Shared) {
    let (Some(file), Backend::Upstream(upstream)) = (&shared.config.warm.snapshot_file, &shared.backend) else {
        return;
    };
    let keys = hot_keys(shared, upstream, shared.settings().warm.snapshot_keys_max);
    let shown = file.display();
    if keys.is_empty() {
        return tracing::info!(file = %shown, "no key was hot: the names that were saved before are kept");
    }
    match replace(file, &encode(&keys)) {
        Ok(()) => tracing::info!(file = %shown, keys = keys.len(), "the names of the hot keys are saved"),
        Err(error) => tracing::warn!(file = %shown, cause = %error, "the names of the hot keys cannot be saved"),
    }
}

// === impl Warmer ===

impl Warmer {
    /// The keys of the caller's database in a snapshot that lies where `warm.snapshot_file` does.
    pub(super) async fn keys_saved(&self, name: &str) -> Result<Vec<Bytes>, Failure> {
        let Some(file) = &self.shared.config.warm.snapshot_file else {
            return Err(refused("ERR larder: warm.snapshot_file, which says where snapshots are, is not set"));
        };
        let file = file.with_file_name(name);
        let loaded = tokio::task::spawn_blocking(move || load(&file)).await;
        let saved = match loaded {
            Ok(Ok(saved)) => saved,
            Ok(Err(error)) => {
                let line = format!("ERR larder: the snapshot cannot be used: {error}");
                return Err(Failure::Refused(line.into()));
            }
            Err(_) => return Err(super::stopping()),
        };
        let database = self.scope.database;
        Ok(saved.into_iter().filter(|saved| saved.database == database).map(|saved| saved.key).collect())
    }
}

// === impl Subject ===

impl Subject {
    /// The snapshot of this name. `None` if that is no plain name of a file: nothing outside the directory can be named.
    pub fn snapshot(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
        is_plain.then(|| Self::Snapshot(name.to_owned()))
    }
}

/// Warms keys of several databases. What fails in one is counted, and the others are warmed all the same.
async fn warm_saved(
    shared: &Arc<Shared>,
    upstream: &Arc<Upstream>,
    mut saved: Vec<SavedKey>,
    job: &Job,
) -> Result<(), Failure> {
    job.expect_more(saved.len() as u64);
    let mut result = Ok(());
    for window in saved.chunks_mut(WINDOW_KEYS) {
        window.sort_by_key(|saved| saved.database);
        for of_one in window.chunk_by(|a, b| a.database == b.database) {
            let Some(database) = of_one.first().map(|saved| saved.database) else { continue };
            let keys: Vec<Bytes> = of_one.iter().map(|saved| saved.key.clone()).collect();
            let warmed = match upstream.scope(upstream.default_identity(), database) {
                Ok(scope) => {
                    let warmer = Warmer { shared: shared.clone(), upstream: upstream.clone(), scope };
                    warmer.read_all(&mut Errand::default(), &keys, job).await
                }
                Err(error) => Err(Failure::Refused(error.to_string().into())),
            };
            result = result.and(warmed);
        }
    }
    result
}

/// The names to save, hottest first.
fn hot_keys(shared: &Shared, upstream: &Upstream, max: usize) -> Vec<SavedKey> {
    let now = shared.clock.now();
    let (mut recent, mut held) = (Vec::new(), Vec::new());
    for scope in upstream.scopes().iter().filter(|scope| scope.identity == *upstream.default_identity()) {
        let (database, partition) = (scope.database, scope.link.partition());
        let saved = |key: Vec<u8>| SavedKey { database, key: key.into() };
        let (hot, _) = shared.insight.hot(partition.scope(), max, now);
        recent.extend(hot.into_iter().map(|hot| (hot.rate, saved(hot.key))));
        held.extend(partition.hottest(max).into_iter().map(|(hits, key)| (f64::from(hits), saved(key))));
    }
    let most_first = |a: &(f64, SavedKey), b: &(f64, SavedKey)| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
    recent.sort_by(most_first);
    held.sort_by(most_first);
    let mut seen = HashSet::new();
    let all = recent.into_iter().chain(held).map(|(_, saved)| saved);
    all.filter(|saved| saved.key.len() <= KEY_BYTES_MAX && seen.insert(saved.clone())).take(max).collect()
}

fn encode(keys: &[SavedKey]) -> Vec<u8> {
    let mut out = [HEAD, format!("{}\n", keys.len()).as_bytes()].concat();
    for SavedKey { database, key } in keys {
        out.extend_from_slice(format!("{database} {}\n", key.len()).as_bytes());
        out.extend_from_slice(key);
        out.push(b'\n');
    }
    out
}

fn decode(file: &Bytes) -> Result<Vec<SavedKey>, SnapshotError> {
    let mut at = HEAD.len();
    if !file.starts_with(HEAD) {
        return Err(SnapshotError::Foreign);
    }
    let count = take_number(file, &mut at, b'\n').ok_or(SnapshotError::Broken(at))?;
    let mut keys = Vec::new();
    for _ in 0..count {
        let begin = at;
        keys.push(take_key(file, &mut at).ok_or(SnapshotError::Broken(begin))?);
    }
    if at == file.len() { Ok(keys) } else { Err(SnapshotError::Broken(at)) }
}

fn take_key(file: &Bytes, at: &mut usize) -> Option<SavedKey> {
    let database = u32::try_from(take_number(file, at, b' ')?).ok()?;
    let len = usize::try_from(take_number(file, at, b'\n')?).ok().filter(|len| *len <= KEY_BYTES_MAX)?;
    let end = *at + len;
    if file.get(end) != Some(&b'\n') {
        return None;
    }
    let key = file.slice(*at..end);
    *at = end + 1;
    Some(SavedKey { database, key })
}

/// Digits up to `end`, which is taken, too.
fn take_number(file: &[u8], at: &mut usize, end: u8) -> Option<u64> {
    let rest = file.get(*at..)?;
    let len = rest.iter().take(20).position(|byte| *byte == end)?;
    let digits = std::str::from_utf8(&rest[..len]).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    *at += len + 1;
    digits.parse().ok()
}

fn load(file: &Path) -> Result<Vec<SavedKey>, SnapshotError> {
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(SnapshotError::TooLong);
    }
    decode(&Bytes::from(bytes))
}

/// Writes a file of its own beside `file`, that only this user can read, and puts it in its place.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    let mut name = OsString::from(file);
    name.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(name);
    let written = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, file));
    if written.is_err() {
        // What went wrong is told already.
        drop(fs::remove_file(&beside));
    }
    written
}

fn write_new(file: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<SavedKey> {
        let saved = |database, key: &[u8]| SavedKey { database, key: Bytes::copy_from_slice(key) };
        vec![saved(0, b"k"), saved(15, b"with\nline and \xff"), saved(0, b"")]
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let file = Bytes::from(encode(&some()));
        assert_eq!(decode(&file).unwrap(), some());
        assert_eq!(decode(&Bytes::from(encode(&[]))).unwrap(), []);
    }

    #[test]
    fn every_cut_and_every_tail_is_noticed() {
        let file = Bytes::from(encode(&some()));
        for len in 0..file.len() {
            assert!(decode(&file.slice(..len)).is_err(), "{len}");
        }
        let longer = Bytes::from([&file[..], b"x"].concat());
        assert!(matches!(decode(&longer), Err(SnapshotError::Broken(at)) if at == file.len()));
        let foreign = [&b"REDIS0011"[..], b"", b"larder-snapshot 2 0\n", b"larder-snapshot 1 99999999999999999999\n"];
        for text in foreign {
            assert!(decode(&Bytes::from_static(text)).is_err());
        }
        assert!(decode(&Bytes::from_static(b"larder-snapshot 1 18446744073709551615\n0 1\nk\n")).is_err());
    }

    #[test]
    fn only_plain_names_are_names_of_snapshots() {
        assert_eq!(Subject::snapshot(b"a.snapshot"), Some(Subject::Snapshot("a.snapshot".into())));
        for name in [&b""[..], b".", b"..", b"../x", b"/etc/passwd", b"a\0", b"\xff"] {
            assert_eq!(Subject::snapshot(name), None);
        }
    }
}
