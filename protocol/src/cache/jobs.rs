//! `CACHE JOBS`, `CACHE JOB` and `CACHE CANCEL`: work that takes a while, seen and ended.

use super::{Access, CacheCommand, CacheError, Subcommand};
use crate::args::Args;
use crate::scan::strict_i64;

/// A request about jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobsCommand {
    /// `JOBS`
    List,
    /// `JOB id`
    Show(u64),
    /// `CANCEL id`
    Cancel(u64),
}

pub(super) const CANCEL: Subcommand = Subcommand {
    name: "cancel",
    arity: 3,
    syntax: "<id>",
    help: &["Ask a job to end. What it has done until then stays done."],
    since: "0.1.0",
    complexity: "O(1)",
    keys: "-",
    access: Access::Administers,
};
pub(super) const JOB: Subcommand = Subcommand {
    name: "job",
    arity: 3,
    syntax: "<id>",
    help: &["Show one job; null if it is not known."],
    since: "0.1.0",
    complexity: "O(1)",
    keys: "-",
    access: Access::Shows,
};
pub(super) const JOBS: Subcommand = Subcommand {
    name: "jobs",
    arity: 2,
    syntax: "",
    help: &["Show the jobs that run, and the last that have ended."],
    since: "0.1.0",
    complexity: "O(N) where N is the number of jobs",
    keys: "-",
    access: Access::Shows,
};

/// `JOBS | JOB id | CANCEL id`, whose number of arguments is right.
pub(super) fn parse<'a>(name: &str, args: Args<'a>) -> Result<CacheCommand<'a>, CacheError> {
    let command = match name {
        "jobs" => JobsCommand::List,
        "job" => JobsCommand::Show(parse_id(args)?),
        _ => JobsCommand::Cancel(parse_id(args)?),
    };
    Ok(CacheCommand::Jobs(command))
}

fn parse_id(args: Args<'_>) -> Result<u64, CacheError> {
    let id = strict_i64(args.arg(2)).and_then(|id| u64::try_from(id).ok());
    id.ok_or(CacheError::NotInteger)
}
