//! Everything between Larder and its upstream server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`link`] | CORE of the ordered link: fills and invalidations in the order of one stream |
//! | [`link_io`] | the shell around it: connection, reconnects, batches |
//! | [`pool`] | exclusive connections for what holds state: the only file that names bb8 |
//! | [`raw`] | a connection as it is: bytes in, bytes out |
//! | [`scope`] | (user, database) pairs: a link, a partition and pools each |
//! | [`node`] | one server: where it is, whether it is well, what it understands |
//! | [`breaker`] | CORE of the circuit breaker of one node |
//! | [`admission`] | CORE of the choice which misses are worth a fill |
//! | [`peers`] | other Larders of the same upstream |
//! | [`watch`] | whether keys depend on others, and who waits for what follows from a change |
//! | [`feed`] | who wants to hear of invalidations |
//! | `errand` | requests of Larder's own on links |
//! | [`backoff`] | how long to wait before the next connect attempt |

pub mod addresses;
pub mod admission;
pub mod backoff;
pub mod breaker;
pub(crate) mod errand;
pub mod feed;
pub mod link;
pub mod link_io;
pub mod node;
pub mod peers;
pub mod pool;
pub mod raw;
pub mod scope;
pub mod watch;
