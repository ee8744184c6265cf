//! Larder: a coherent Redis-protocol cache proxy.

pub mod config;
pub mod server;
