//! RESP for Larder: what stands between bytes and decisions.
//!
//! Nothing here does I/O, reads a clock or draws a random number.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | a borrowed request: argument ranges over the bytes that came |
//! | [`cache`] | the grammar of `CACHE`, Larder's own command |
//! | [`scan`] | finds the ends of requests and replies, bounded and resumable |
//! | [`cursor`] | reads a reply element by element, without a tree |
//! | [`table`] | the command table: one row per command, its keys, its class |
//! | [`shape`] | replies from RESP3 to RESP2 |
//! | [`glob`] | the server's glob patterns |

pub mod args;
pub mod cache;
pub mod cursor;
pub mod glob;
pub mod scan;
pub mod shape;
pub mod table;
