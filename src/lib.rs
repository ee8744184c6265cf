//! Larder: a coherent Redis-protocol cache proxy.

pub mod origin;
