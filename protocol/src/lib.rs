//! RESP for Larder: what stands between bytes and decisions.
//!
//! Nothing here does I/O, reads a clock or draws a random number.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | a borrowed request: argument ranges over the bytes that came |
//! | [`glob`] | glob patterns of keys, channels and settings |

pub mod args;
pub mod glob;
