//! Larder: a coherent Redis-protocol cache proxy.

pub mod clients;
pub mod clock;
pub mod config;
pub mod l1;
pub mod metrics;
#[doc(hidden)]
pub mod mutation;
pub mod origin;
pub mod outgoing;
pub mod port;
pub mod server;
pub mod session;
pub mod upstream;
