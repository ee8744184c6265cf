//! Larder: a coherent Redis-protocol cache proxy.

pub mod client;
pub mod clients;
pub mod clock;
pub mod config;
pub mod embedded;
pub mod hub;
pub mod l1;
pub mod metrics;
#[doc(hidden)]
pub mod mutation;
pub mod origin;
pub mod outgoing;
pub mod port;
pub mod report;
pub mod server;
pub mod session;
pub mod upstream;
