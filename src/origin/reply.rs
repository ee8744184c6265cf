//! Replies of the embedded store: the bytes of each shape in both protocols, and the words of each error.
//!
//! The words are those of redis-server 7.0.15. Only the null differs between the protocols here: strings, integers and
//! arrays look the same in both.

use super::value::Digits;

/// Longest part of a command's name or of an option that an error repeats, in bytes.
const QUOTED_LEN_MAX: usize = 128;

/// The protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    /// RESP2, which every connection starts with.
    #[default]
    Resp2,
    /// RESP3, after `HELLO 3`.
    Resp3,
}

/// Writes replies to the end of a buffer.
pub(super) struct Reply<'o> {
    out: &'o mut Vec<u8>,
    protocol: Protocol,
    /// Where this reply begins in the buffer.
    start: usize,
}

// === impl Reply ===

impl<'o> Reply<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>, protocol: Protocol) -> Self {
        let start = out.len();
        Self { out, protocol, start }
    }

    pub(super) fn ok(&mut self) {
        self.simple(b"OK");
    }

    pub(super) fn simple(&mut self, text: &[u8]) {
        self.line(b'+', text);
    }

    pub(super) fn integer(&mut self, value: i64) {
        self.line(b':', Digits::default().print(value));
    }

    pub(super) fn bulk(&mut self, text: &[u8]) {
        self.line(b'$', Digits::default().print(text.len() as i64));
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }

    pub(super) fn null(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// The head of an array; `len` replies must follow.
    pub(super) fn array(&mut self, len: usize) {
        self.line(b'*', Digits::default().print(len as i64));
    }

    pub(super) fn error(&mut self, failure: &Failure) {
        self.line(b'-', &failure.text());
    }

    /// Refuses to go on with a reply that has become longer than `bytes_max`.
    pub(super) fn expect_within(&self, bytes_max: u64) -> Result<(), Failure> {
        let is_within = (self.out.len() - self.start) as u64 <= bytes_max;
        if is_within { Ok(()) } else { Err(Failure::ReplyTooLong { bytes_max }) }
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }
}

/// Why a command was refused; nothing was changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Arity { command: &'static str },
    DatabaseIndex,
    ExpireConflict,
    ExpireDirectionConflict,
    ExpireTime { command: &'static str },
    FirstDatabaseIndex,
    IncrementOverflow,
    IncrementNotFinite,
    DecrementOverflow,
    IntegerOutOfRange { min: i64, max: i64 },
    InvalidCursor,
    NeedsUpstream { command: Vec<u8> },
    NoFrequency,
    NoSuchKey,
    NotFloat,
    NotInteger,
    OffsetOutOfRange,
    OutOfMemory,
    ReplyTooLong { bytes_max: u64 },
    SameObject,
    SecondDatabaseIndex,
    StringTooLong,
    Syntax,
    UnknownSubcommand { subcommand: Vec<u8> },
    UnsupportedOption { option: Vec<u8> },
}

// === impl Failure ===

impl Failure {
    /// The error line, without the leading `-`: always one line.
    fn text(&self) -> Vec<u8> {
        let fixed = match self {
            Self::Arity { command } => return format!("ERR wrong number of arguments for '{command}' command").into(),
            Self::ExpireTime { command } => return format!("ERR invalid expire time in '{command}' command").into(),
            Self::IntegerOutOfRange { min, max } => {
                return format!("ERR value is out of range, value must between {min} and {max}").into();
            }
            Self::NeedsUpstream { command } => {
                let way_out = "' needs an upstream: start larder with --upstream redis://host:port";
                return quoted("ERR '", &command.to_ascii_uppercase(), way_out);
            }
            Self::ReplyTooLong { bytes_max } => {
                return format!("ERR the reply would be longer than {bytes_max} bytes").into();
            }
            Self::UnknownSubcommand { subcommand } => {
                return quoted("ERR unknown subcommand '", subcommand, "'. Try OBJECT HELP.");
            }
            Self::UnsupportedOption { option } => return quoted("ERR Unsupported option ", option, ""),
            Self::DatabaseIndex => "ERR DB index is out of range",
            Self::ExpireConflict => "ERR NX and XX, GT or LT options at the same time are not compatible",
            Self::ExpireDirectionConflict => "ERR GT and LT options at the same time are not compatible",
            Self::FirstDatabaseIndex => "ERR invalid first DB index",
            Self::IncrementOverflow => "ERR increment or decrement would overflow",
            Self::IncrementNotFinite => "ERR increment would produce NaN or Infinity",
            Self::DecrementOverflow => "ERR decrement would overflow",
            Self::InvalidCursor => "ERR invalid cursor",
            Self::NoFrequency => {
                "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when \
                 switching between policies at runtime LRU and LFU data will take some time to adjust."
            }
            Self::NoSuchKey => "ERR no such key",
            Self::NotFloat => "ERR value is not a valid float",
            Self::NotInteger => "ERR value is not an integer or out of range",
            Self::OffsetOutOfRange => "ERR offset is out of range",
            Self::OutOfMemory => "OOM command not allowed when used memory > 'maxmemory'.",
            Self::SameObject => "ERR source and destination objects are the same",
            Self::SecondDatabaseIndex => "ERR invalid second DB index",
            Self::StringTooLong => "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
            Self::Syntax => "ERR syntax error",
        };
        fixed.into()
    }
}

/// The bytes before the first zero: options, cursors and type names are C strings to the server.
pub(super) fn c_string(written: &[u8]) -> &[u8] {
    written.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// `before`, what the client wrote, `after`: bounded, and with line ends turned into spaces as the server does.
fn quoted(before: &str, written: &[u8], after: &str) -> Vec<u8> {
    let text = c_string(written);
    let shown = &text[..text.len().min(QUOTED_LEN_MAX)];
    let one_line = shown.iter().map(|&byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte });
    before.bytes().chain(one_line).chain(after.bytes()).collect()
}
