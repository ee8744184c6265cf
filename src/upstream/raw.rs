//! A connection to the upstream as it is: bytes in, bytes out, replies unchanged.
//!
//! What the pool lends out and what a link is made of. It speaks the protocol that it was set up with (RESP2 or RESP3),
//! finds the ends of replies and nothing more. `is_broken` is honest: once bytes could be misread (an I/O error, bytes
//! that are no reply, a reply that was not read to its end), the connection is never used again.

use super::addresses::Registered;
use super::breaker::{ErrorKind, FailureCause, classify_error};
use crate::outgoing::Outgoing;
use crate::received::Received;
use bytes::{Bytes, BytesMut};
use larder_protocol::args::OwnedArgs;
use larder_protocol::scan::{ReplyError, ReplyLimits, ReplyScanner};
use larder_protocol::shape::Protocol;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Where the upstream listens. The name is resolved anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Who a connection is for the upstream.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// No AUTH is sent.
    Anonymous,
    /// `AUTH password`: the default user, with the form that servers before 6 know.
    Password(Arc<[u8]>),
    /// `AUTH user password`.
    User {
        /// User name.
        name: Arc<[u8]>,
        /// Password. Never printed.
        password: Arc<[u8]>,
    },
}

/// Why a connection could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// No connection within the time allowed.
    #[error("no connection within {0} ms")]
    ConnectTimeout(u128),
    /// The system refuses.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer has closed.
    #[error("closed by the upstream")]
    Closed,
    /// The circuit is open: nothing was tried.
    #[error("the circuit is open")]
    CircuitOpen,
    /// The peer sends what is no reply.
    #[error("{0}")]
    Reply(#[from] BadReply),
    /// The upstream answers the set-up with an error: its line, without the dash.
    #[error("{}", String::from_utf8_lossy(&.0[..LINE_SHOWN_BYTES_MAX.min(.0.len())]))]
    Refused(Bytes),
}

/// What a server never sends.
#[derive(Debug, thiserror::Error)]
pub enum BadReply {
    /// Bytes that are no reply.
    #[error("not a reply: {0}; received {1}")]
    NotOne(ReplyError, Received),
    /// A reply to a command of the set-up that has another type than any server's.
    #[error("{0} was answered with {1}")]
    OtherType(&'static str, Received),
}

/// The connection.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    input: BytesMut,
    /// Bytes of `input` that the scanner has seen; they belong to the frame at hand.
    seen: usize,
    scanner: ReplyScanner,
    /// What is to be written.
    pub outgoing: Outgoing,
    broken: bool,
    /// Replies that are owed by the upstream.
    owed: usize,
    upstream_id: u64,
    address: Registered,
    name: Vec<u8>,
    /// Which generation of its pool's connections it belongs to.
    pub generation: u64,
}

/// A piece of a reply.
#[derive(Debug)]
pub struct Piece {
    /// The bytes.
    pub bytes: Bytes,
    /// The first byte of the reply that they belong to.
    pub kind: u8,
    /// True if the reply ends with them.
    pub ends: bool,
}

/// So much of an error line of the upstream is repeated in lines of Larder's own.
const LINE_SHOWN_BYTES_MAX: usize = 512;
/// After so much silence the system probes the upstream's end.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Bytes that the upstream's end does not acknowledge for so long end the connection.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// A read asks for this much at least.
const READ_BYTES_MIN: usize = 16 * 1024;
/// A read asks for this much at most, however large the reply at hand is.
const READ_BYTES_MAX: usize = 1024 * 1024;

// === impl RawError ===

impl RawError {
    /// What the breaker counts when a connection ends so.
    pub fn cause(&self) -> FailureCause {
        match self {
            Self::Reply(_) => FailureCause::BadProtocol,
            _ => FailureCause::LinkLost,
        }
    }

    /// What the breaker counts when a connection cannot be made for this; `None` if the upstream is there and has made up
    /// its mind about whom it serves, or was not asked.
    pub fn connect_cause(&self) -> Option<FailureCause> {
        match self {
            Self::Refused(line) => match classify_error(line) {
                ErrorKind::Failure(cause) => Some(cause),
                ErrorKind::PassThrough | ErrorKind::Reconnect => None,
            },
            Self::CircuitOpen => None,
            Self::Reply(_) => Some(FailureCause::BadProtocol),
            Self::ConnectTimeout(_) | Self::Io(_) | Self::Closed => Some(FailureCause::Connect),
        }
    }
}

// === impl Endpoint ===

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

// === impl Identity ===

impl Identity {
    /// The name under which the upstream knows the user.
    pub fn name(&self) -> &[u8] {
        match self {
            Self::Anonymous | Self::Password(_) => b"default",
            Self::User { name, .. } => name,
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", String::from_utf8_lossy(self.name()))
    }
}

// === impl RawConnection ===

impl RawConnection {
    /// Connects, within `within`.
    pub async fn connect(endpoint: &Endpoint, within: Duration, limits: ReplyLimits) -> Result<Self, RawError> {
        let connecting = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
        let stream = tokio::time::timeout(within, connecting)
            .await
            .map_err(|_| RawError::ConnectTimeout(within.as_millis()))??;
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE_AFTER))?;
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
        let address = Registered::new(stream.local_addr()?);
        Ok(Self {
            stream,
            input: BytesMut::new(),
            seen: 0,
            scanner: ReplyScanner::new(limits),
            outgoing: Outgoing::default(),
            broken: false,
            owed: 0,
            upstream_id: 0,
            address,
            name: Vec::new(),
            generation: 0,
        })
    }

    /// True if the connection must not be used any more, or is not at rest.
    pub fn is_broken(&self) -> bool {
        self.broken
            || self.owed > 0
            || !self.outgoing.is_empty()
            || !self.input.is_empty()
            || !self.scanner.is_at_boundary()
    }

    /// Marks the connection as not to be used again: its state cannot be undone.
    pub fn condemn(&mut self) {
        self.broken = true;
    }

    /// The upstream's number for this connection, which CLIENT UNBLOCK takes; 0 if it was not asked for or is refused.
    pub fn upstream_id(&self) -> u64 {
        self.upstream_id
    }

    /// The connection is lent to the client at this address from now on, or to none.
    pub fn lease(&self, client: Option<SocketAddr>) {
        self.address.lease(client);
    }

    /// The name that it was given by [`RawConnection::put_name`].
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Gives the connection a name (`CLIENT SETNAME`), whose reply is owed from now on.
    pub fn put_name(&mut self, name: Vec<u8>) {
        self.put_request(OwnedArgs::new([&b"CLIENT"[..], b"SETNAME", &name]).args().bytes());
        self.name = name;
    }

    /// Asks for what [`RawConnection::upstream_id`] returns.
    pub async fn learn_id(&mut self) -> Result<(), RawError> {
        let reply = self.call(["CLIENT", "ID"]).await?;
        let id = larder_protocol::cursor::Cursor::new(&reply).next_integer();
        self.upstream_id = id.and_then(|id| u64::try_from(id).ok()).unwrap_or(0);
        Ok(())
    }

    /// False if the peer has closed, or has sent something that nobody asked for.
    pub fn is_alive(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match socket2::SockRef::from(&self.stream).peek(&mut byte) {
            Ok(0) => false,
            Ok(_) => {
                let upstream = self.stream.peer_addr().ok();
                tracing::warn!(?upstream, "bytes that nothing had asked for, on an idle exclusive connection");
                false
            }
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Puts a request whose reply is owed from now on.
    pub fn put_request(&mut self, request: &[u8]) {
        self.outgoing.put(request);
        self.owed += 1;
    }

    /// As [`RawConnection::put_request`], without copying what is large.
    pub fn put_request_shared(&mut self, request: Bytes) {
        self.outgoing.put_shared(request);
        self.owed += 1;
    }

    /// Replies that are owed.
    pub fn owed(&self) -> usize {
        self.owed
    }

    /// Sends a request and waits for its whole reply; pushes in between are dropped.
    pub async fn call<T: AsRef<[u8]>>(&mut self, args: impl IntoIterator<Item = T>) -> Result<Bytes, RawError> {
        self.call_beside(args, |_| {}).await
    }

    /// As [`RawConnection::call`]; the pieces of pushes in between go to `push`.
    pub async fn call_beside<T: AsRef<[u8]>>(
        &mut self,
        args: impl IntoIterator<Item = T>,
        mut push: impl FnMut(Piece),
    ) -> Result<Bytes, RawError> {
        let request = OwnedArgs::new(args);
        self.put_request(request.args().bytes());
        let mut reply = BytesMut::new();
        loop {
            let piece = self.next_piece().await?;
            if piece.kind == b'>' {
                push(piece);
                continue;
            }
            reply.extend_from_slice(&piece.bytes);
            if piece.ends {
                return Ok(reply.freeze());
            }
        }
    }

    /// The next whole frame, pushes included. What has come of it so far is in `gathered`, so that nothing is lost if the
    /// caller stops waiting.
    pub async fn next_frame(&mut self, gathered: &mut BytesMut) -> Result<Bytes, RawError> {
        loop {
            let piece = self.next_piece().await?;
            gathered.extend_from_slice(&piece.bytes);
            if piece.ends {
                return Ok(gathered.split().freeze());
            }
        }
    }

    /// The next piece; meanwhile what waits is written.
    async fn next_piece(&mut self) -> Result<Piece, RawError> {
        std::future::poll_fn(|cx| {
            // That it cannot be written any more the reading side tells, behind what the peer had said before.
            let _: Poll<Result<(), RawError>> = self.poll_flush(cx);
            self.poll_piece(cx)
        })
        .await
    }

    /// Writes what waits; ready when all is written.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RawError>> {
        loop {
            if self.outgoing.is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.stream.poll_write_ready(cx))?;
            if let Err(e) = self.outgoing.write_to(&self.stream) {
                self.broken = true;
                return Poll::Ready(Err(e.into()));
            }
        }
    }

    /// The next piece of a reply, as it comes: a large reply comes in many pieces, a small one in one.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, RawError>> {
        loop {
            if !self.input.is_empty()
                && let Some(piece) = self.take_piece()?
            {
                return Poll::Ready(Ok(piece));
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Reads more into the buffer.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, RawError>> {
        let wanted = (self.scanner.bytes_needed_min() as usize).clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        self.input.reserve(wanted);
        // This read takes one that does not fill the buffer for the last: there is no other in vain to see that nothing is left.
        let read = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx));
        self.broken |= !matches!(read, Ok(1..));
        match read? {
            0 => Poll::Ready(Err(RawError::Closed)),
            count => Poll::Ready(Ok(count)),
        }
    }

    /// Scans on to the end of the frame at hand: its length, if it is all in the buffer.
    pub fn frame_len(&mut self) -> Result<Option<usize>, RawError> {
        if self.seen == self.input.len() {
            return Ok(None);
        }
        let advance = self.scanner.advance(&self.input[self.seen..]).map_err(|error| self.misread(error))?;
        self.seen += advance.consumed;
        if !advance.complete {
            return Ok(None);
        }
        let len = std::mem::take(&mut self.seen);
        if self.input[0] != b'>' {
            self.owed = self.owed.saturating_sub(1);
        }
        Ok(Some(len))
    }

    /// The received bytes, a frame first if [`RawConnection::frame_len`] has just said so.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// What stands in the buffer is no reply: nothing that follows can be told apart either.
    fn misread(&mut self, error: ReplyError) -> RawError {
        self.broken = true;
        BadReply::NotOne(error, Received::of(&self.input)).into()
    }

    fn take_piece(&mut self) -> Result<Option<Piece>, RawError> {
        let advance = self.scanner.advance(&self.input).map_err(|error| self.misread(error))?;
        let kind = self.scanner.kind();
        if advance.consumed == 0 {
            return Ok(None);
        }
        if advance.complete && kind != b'>' {
            self.owed = self.owed.saturating_sub(1);
        }
        Ok(Some(Piece { bytes: self.input.split_to(advance.consumed).freeze(), kind, ends: advance.complete }))
    }
}

/// The requests that set a connection up as `identity`: `AUTH`, then `HELLO 3` for RESP3, then `SELECT`. Whoever can
/// selects before: a client keeps its database when it authenticates, also as a user that may not call `SELECT`.
/// Errors of the upstream come back word for word.
pub async fn set_up(
    connection: &mut RawConnection,
    identity: &Identity,
    protocol: Protocol,
    database: u32,
) -> Result<Option<Bytes>, RawError> {
    let select = || ["SELECT".to_string(), database.to_string()];
    let mut selected = database == 0;
    if !selected && *identity != Identity::Anonymous {
        selected = &connection.call(select()).await?[..] == b"+OK\r\n";
    }
    match identity {
        Identity::Anonymous => {}
        Identity::Password(password) => drop(of_type(b'+', "AUTH", connection.call([b"AUTH", &password[..]]).await?)?),
        Identity::User { name, password } => {
            drop(of_type(b'+', "AUTH", connection.call([b"AUTH", &name[..], &password[..]]).await?)?);
        }
    }
    let hello = match protocol {
        Protocol::Resp2 => None,
        Protocol::Resp3 => Some(of_type(b'%', "HELLO", connection.call(["HELLO", "3"]).await?)?),
    };
    if !selected {
        of_type(b'+', "SELECT", connection.call(select()).await?)?;
    }
    Ok(hello)
}

/// True if the server says that a script keeps it busy. Whoever cannot be asked within `within` is not.
pub async fn is_busy(endpoint: &Endpoint, identity: &Identity, within: Duration, limits: ReplyLimits) -> bool {
    let asked = async {
        let mut connection = RawConnection::connect(endpoint, within, limits).await?;
        set_up(&mut connection, identity, Protocol::Resp2, 0).await?;
        connection.call(["PING"]).await
    };
    matches!(tokio::time::timeout(within, asked).await, Ok(Ok(reply)) if reply.starts_with(b"-BUSY"))
}

/// The reply to `command`, if it is of the type that every server answers it with.
fn of_type(kind: u8, command: &'static str, reply: Bytes) -> Result<Bytes, RawError> {
    let reply = accepted(reply)?;
    if reply.first() == Some(&kind) {
        Ok(reply)
    } else {
        Err(BadReply::OtherType(command, Received::of(&reply)).into())
    }
}

/// An error reply as an error.
pub fn accepted(reply: Bytes) -> Result<Bytes, RawError> {
    match reply.first() {
        Some(b'-') => {
            let line = reply.slice(1..reply.len().saturating_sub(2).max(1));
            Err(RawError::Refused(line))
        }
        _ => Ok(reply),
    }
}
