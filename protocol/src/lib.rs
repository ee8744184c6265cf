//! RESP for Larder: what stands between bytes and decisions.
//!
//! Nothing here does I/O, reads a clock or draws a random number.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | a borrowed request: argument ranges over the bytes that came |
//! | [`table`] | the command table: one row per command, its keys, its class |
//! | [`shape`] | replies from RESP3 to RESP2 |

pub mod args;
pub mod shape;
pub mod table;
