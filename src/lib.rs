//! Larder: a coherent Redis-protocol cache proxy.
//!
//! It answers reads from its own memory (L1) and sends everything else to the server behind it.
//!
//! # The path of a request
//!
//! ```text
//!   client's socket                                                              the upstream
//!        |  ^                                                                         ^
//!        v  |                       link::LinkHandle (queue)                          |
//!   client (scan, classify) ------> upstream::link  ---- one ordered stream ----------|
//!        |  |  ^       misses,      the reader: fill or remove in L1, then reply      |
//!        |  |  |       writes          |        |                                     |
//!        |  |  |                       v        v                                     |
//!        |  |  '--- port <--------- replies    l1 <-- session looks here for hits     |
//!        |  |        ^                                                                |
//!        |  |        '------------- hub: messages, behind a fence on the link --------|
//!        |  |                                                                         |
//!        |  '- client::tunnel: MULTI, scripts, blocking, large -- upstream::pool -----'
//!        |        replies wait for a fence on the link
//!        '---- no upstream: embedded -> origin
//! ```
//!
//! A read that L1 holds is answered in the pass over the bytes that brought it. Anything else takes a slot in the
//! client's [`session`]; slots leave in order. Only the task that reads a link's stream changes that link's part of L1,
//! in the order of the stream. What comes by another way is told to a client only when that stream has caught up with
//! it (a *fence*: a PING that was sent after the news had come has been answered). Why this makes answers coherent, step
//! by step, is in `ARCHITECTURE.md`.
//!
//! # Where things are
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | the configuration, checked once |
//! | [`server`] | what all clients share; worker threads, listeners, start and stop |
//! | [`client`] | one client's connection: socket, requests, and what is handled apart from the link |
//! | [`session`] | CORE: which reads L1 answers, which go down the link, in which order replies leave |
//! | [`port`] | a client's letter box, where other tasks leave replies and messages |
//! | [`buffered`] | how much waits in the process altogether, and what happens at the bound |
//! | [`outgoing`] | bytes on their way to a socket |
//! | [`clients`] | who is connected |
//! | [`monitors`] | MONITOR: who watches, and what a line says |
//! | [`pause`] | CORE: CLIENT PAUSE: who is held, until when, who goes on first |
//! | [`received`] | what peers send that they should not: how the log shows it |
//! | [`l1`] | the cache, in partitions: one a (user, database) pair |
//! | [`upstream`] | links, pools, the breaker, scopes: everything between Larder and its server |
//! | [`hub`] | subscriptions, one upstream for all clients of a user |
//! | [`redirect`] | invalidations that a client's tracking redirects to another client |
//! | [`embedded`] | serving without an upstream |
//! | [`origin`] | CORE: the embedded store |
//! | [`policy`] | what the operator lays down for keys by pattern |
//! | [`insight`] | what is seen of the keys from samples; latencies; recommendations |
//! | [`metrics`], [`report`] | counters; what INFO says of Larder |
//! | [`live`] | settings that can change at run time |
//! | [`clock`] | time as a number, and the one reader of the clock |
//! | [`mutation`] | bugs that can be planted in the cores, to show that the simulation finds them |
//!
//! Bytes, commands and reply shapes are the crate [`larder_protocol`]'s. CORE marks a state machine without I/O, clock
//! or randomness: time and seeds are arguments, so that a simulation can run it. Imports point downwards: `server`,
//! `client`, `session`, then `l1` and `upstream`, then `larder_protocol`; only [`server::Shared`], what all clients
//! share, is used from below it (`client`, `embedded`, `report`).

pub mod buffered;
pub mod cache;
pub mod client;
pub mod clients;
pub mod clock;
pub mod config;
pub mod embedded;
pub mod hub;
pub mod insight;
pub mod l1;
pub mod live;
pub mod metrics;
pub mod monitors;
#[doc(hidden)]
pub mod mutation;
pub mod origin;
pub mod outgoing;
pub mod pause;
pub mod policy;
pub mod port;
pub mod received;
pub mod redirect;
pub mod report;
pub mod server;
pub mod session;
pub mod upstream;
mod workers;
