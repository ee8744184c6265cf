//! RESP for Larder: what stands between bytes and decisions.
//!
//! Nothing here does I/O, reads a clock or draws a random number.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | a borrowed request: argument ranges over the bytes that came |
//! | [`scan`] | finds the ends of requests and replies, bounded and resumable |
//! | [`cursor`] | reads a reply element by element, without a tree |

pub mod args;
pub mod cursor;
pub mod scan;
