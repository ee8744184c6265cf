//! Larder: a coherent Redis-protocol cache proxy.

pub mod clock;
pub mod upstream;
