//! What must hold for any bytes whatever: one module a fuzz target, each with a `check` that panics if it does not.
//!
//! The fuzz targets call these with what libFuzzer makes up; the test `corpus` of `larder-protocol` calls them with the
//! committed corpus, so that every build replays what a fuzzer once found. Nothing here is part of Larder.

#![allow(dead_code, reason = "each fuzz target uses one of the properties")]

pub(crate) mod cache_grammar;
pub(crate) mod command_reply;
mod cuts;
pub(crate) mod glob;
pub(crate) mod reply_scanner;
pub(crate) mod request_scanner;
