//! Replies from RESP3 to RESP2.

/// The version of the protocol that a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RESP2: what a connection speaks until it says `HELLO 3`.
    #[default]
    Resp2,
    /// RESP3.
    Resp3,
}

/// How the replies of a command are turned into RESP2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShapeRule {
    /// By the frame alone.
    Generic,
    /// Not known.
    Unknown,
}

impl ShapeRule {
    /// The rule of a built-in command.
    pub fn of(_name: &str) -> Self {
        Self::Generic
    }
}
#[derive(Clone, Copy, Debug)]
pub struct Shape;
pub fn shape_of(_c: &crate::table::Command, _a: crate::args::Args<'_>) -> Shape { Shape }
pub fn to_resp2(_s: Shape, frame: &[u8], out: &mut Vec<u8>) -> Result<(), ()> { if frame.starts_with(b"_") { out.extend_from_slice(b"$-1\r\n") } else {out.extend_from_slice(frame)} Ok(()) }
pub fn same_in_both(f: &[u8]) -> bool { matches!(f.first(), Some(b'$' | b'+' | b'-' | b':')) }
