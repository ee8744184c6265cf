//! What fuzzing has found, replayed: every input of `fuzz/corpus` against the properties of its fuzz target.
//!
//! The targets themselves need libFuzzer and a nightly compiler (`fuzz/README.md`); the properties do not.

#[path = "../../fuzz/properties/mod.rs"]
mod properties;

use std::fs;
use std::path::Path;

/// Fewer inputs than this are no corpus: the directory is missing, or somebody has emptied it.
const INPUTS_MIN: usize = 9;

macro_rules! replays {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target), properties::$target::check);
        }
    )*};
}

replays! { cache_grammar command_reply glob reply_scanner request_scanner }

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|e| panic!("{}: {e}", corpus.display()))
        .map(|entry| entry.expect("an entry of the corpus").path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= INPUTS_MIN, "{} inputs in {}", inputs.len(), corpus.display());
    for input in inputs {
        // Shown if the test fails.
        println!("{}", input.display());
        check(&fs::read(&input).expect("reading an input"));
    }
}
