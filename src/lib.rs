//! Larder: a coherent Redis-protocol cache proxy.

pub mod clock;
pub mod config;
pub mod l1;
pub mod metrics;
pub mod outgoing;
pub mod port;
pub mod session;
pub mod server;
pub mod upstream;
