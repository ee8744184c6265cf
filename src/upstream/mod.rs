//! Everything between Larder and its upstream server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`backoff`] | how long to wait before the next connect attempt |
//! | [`breaker`] | the circuit breaker of one upstream node |

pub mod backoff;
pub mod breaker;
