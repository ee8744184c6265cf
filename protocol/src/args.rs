//! A request as it stands in the bytes that came: argument ranges, nothing copied.
//!
//! The scanner writes [`ArgRange`]s into a vector that is reused from request to request; [`Args`] joins them
//! with the bytes again. Ranges are 32 bits wide: a request is bounded far below 4 GiB by the scanner's limits.

/// Where one argument stands, relative to the first byte of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgRange {
    /// Offset of the argument's first byte from the start of the request.
    pub start: u32,
    /// Length in bytes; zero is a valid argument.
    pub len: u32,
}

/// The arguments of one request, command name first, borrowed from the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    bytes: &'a [u8],
    ranges: &'a [ArgRange],
}

// === impl Args ===

impl<'a> Args<'a> {
    /// Joins the bytes of a request with its argument ranges.
    pub fn new(bytes: &'a [u8], ranges: &'a [ArgRange]) -> Self {
        Self { bytes, ranges }
    }

    /// Number of arguments, the command name included.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// True for a request without any argument (never produced by the scanner).
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Argument `i`, or `None` past the end.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        let r = self.ranges.get(i)?;
        self.bytes.get(r.start as usize..r.start as usize + r.len as usize)
    }

    /// Argument `i`, or an empty slice past the end: for code that has checked the arity already.
    pub fn arg(&self, i: usize) -> &'a [u8] {
        self.get(i).unwrap_or_default()
    }

    /// All arguments in order, the command name first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let this = *self;
        (0..self.ranges.len()).map(move |i| this.arg(i))
    }

    /// The bytes of the request as they came.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The ranges that [`Args::new`] was given.
    pub fn ranges(&self) -> &'a [ArgRange] {
        self.ranges
    }
}

/// Owned arguments: for tests and for commands that Larder makes up itself.
#[derive(Clone, Debug, Default)]
pub struct OwnedArgs {
    bytes: Vec<u8>,
    ranges: Vec<ArgRange>,
}

// === impl OwnedArgs ===

impl OwnedArgs {
    /// Encodes `parts` as a RESP array of bulk strings and remembers where each argument stands.
    pub fn new<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> Self {
        let parts: Vec<T> = parts.into_iter().collect();
        let mut out = Self::default();
        out.bytes.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
        for part in &parts {
            let part = part.as_ref();
            out.bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            out.ranges.push(ArgRange { start: out.bytes.len() as u32, len: part.len() as u32 });
            out.bytes.extend_from_slice(part);
            out.bytes.extend_from_slice(b"\r\n");
        }
        out
    }

    /// The borrowed view.
    pub fn args(&self) -> Args<'_> {
        Args::new(&self.bytes, &self.ranges)
    }
}
