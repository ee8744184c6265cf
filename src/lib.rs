//! Larder: a coherent Redis-protocol cache proxy.
