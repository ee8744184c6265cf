//! A client that hides nothing: requests as bytes, replies as the raw bytes of one frame.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::frame::{Scan, Value};

/// How much is read from the socket at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Consumed bytes are dropped from the buffer once there are so many of them.
const CONSUMED_BYTES_MAX: usize = 1024 * 1024;

/// One connection. Any wait is ended by a panic (or an error, in the `try_` functions) after 30 s.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    consumed: usize,
    pushes: VecDeque<Vec<u8>>,
}

impl Client {
    /// A new connection, which speaks RESP2.
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|e| panic!("connecting to {address}: {e}"))
    }

    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let guard = Duration::from_secs(30);
        let stream = TcpStream::connect_timeout(&address, guard)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(guard))?;
        stream.set_write_timeout(Some(guard))?;
        Ok(Self { stream, buffer: Vec::new(), consumed: 0, pushes: VecDeque::new() })
    }

    /// A new connection, switched to RESP3.
    #[track_caller]
    pub(crate) fn resp3(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        let hello = client.cmd(&["HELLO", "3"]);
        assert_eq!(hello.first(), Some(&b'%'), "HELLO 3: {}", hello.escape_ascii());
        client
    }

    /// A new connection in protocol 2 or 3.
    #[track_caller]
    pub(crate) fn speaking(protocol: u8, address: SocketAddr) -> Self {
        if protocol == 3 { Self::resp3(address) } else { Self::connect(address) }
    }

    /// Sends one command.
    #[track_caller]
    pub(crate) fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        self.send_raw(&encode(args));
    }

    #[track_caller]
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap_or_else(|e| panic!("sending: {e}"));
    }

    pub(crate) fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame of whatever kind, raw.
    #[track_caller]
    pub(crate) fn frame(&mut self) -> Vec<u8> {
        self.try_frame().unwrap_or_else(|e| panic!("waiting for a frame: {e}"))
    }

    pub(crate) fn try_frame(&mut self) -> io::Result<Vec<u8>> {
        let mut scan = Scan::new();
        loop {
            let unread = &self.buffer[self.consumed..];
            let end = scan.end(unread).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
            if let Some(end) = end {
                let frame = unread[..end].to_vec();
                self.consume(end);
                return Ok(frame);
            }
            self.fill()?;
        }
    }

    /// The next frame that is not a push. Pushes met on the way are kept for [`Client::push`].
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Vec<u8> {
        self.try_reply().unwrap_or_else(|e| panic!("waiting for a reply: {e}"))
    }

    pub(crate) fn try_reply(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let frame = self.try_frame()?;
            if frame[0] != b'>' {
                return Ok(frame);
            }
            self.pushes.push_back(frame);
        }
    }

    /// The next push, one that was met before or one that is still to come.
    #[track_caller]
    pub(crate) fn push(&mut self) -> Vec<u8> {
        if let Some(push) = self.pushes.pop_front() {
            return push;
        }
        let frame = self.frame();
        assert_eq!(frame[0], b'>', "a push was expected, not {}", frame.escape_ascii());
        frame
    }

    /// Whether a push was met while replies were read.
    pub(crate) fn has_push(&self) -> bool {
        !self.pushes.is_empty()
    }

    /// Sends one command and returns its reply, raw.
    #[track_caller]
    pub(crate) fn cmd<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Vec<u8> {
        self.send(args);
        self.reply()
    }

    pub(crate) fn try_cmd<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Vec<u8>> {
        self.try_send_raw(&encode(args))?;
        self.try_reply()
    }

    /// Sends one command and returns its reply, parsed.
    #[track_caller]
    pub(crate) fn value<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Value {
        Value::parse(&self.cmd(args))
    }

    /// [`Client::cmd`] for a command whose arguments hold no space: `client.run("SET k v")`.
    #[track_caller]
    pub(crate) fn run(&mut self, line: &str) -> Vec<u8> {
        self.cmd(&words(line))
    }

    /// [`Client::value`] for a command whose arguments hold no space.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> Value {
        self.value(&words(line))
    }

    /// Sends one command and expects `+OK`.
    #[track_caller]
    pub(crate) fn ok<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        let reply = self.cmd(args);
        assert_eq!(reply, b"+OK\r\n", "not OK: {}", reply.escape_ascii());
    }

    /// Sends all of `requests` at once while it reads the `replies` replies to them: a pipeline longer than all
    /// socket buffers cannot lock up.
    #[track_caller]
    pub(crate) fn pipeline(&mut self, requests: &[u8], replies: usize) -> Vec<Vec<u8>> {
        self.try_pipeline(requests, replies).unwrap_or_else(|e| panic!("in a pipeline of {replies}: {e}"))
    }

    pub(crate) fn try_pipeline(&mut self, requests: &[u8], replies: usize) -> io::Result<Vec<Vec<u8>>> {
        if requests.len() < CHUNK_BYTES {
            self.try_send_raw(requests)?;
            return (0..replies).map(|_| self.try_reply()).collect();
        }
        let mut writer = self.stream.try_clone()?;
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || writer.write_all(requests));
            let read = (0..replies).map(|_| self.try_reply()).collect();
            sending.join().map_err(|_| io::Error::other("the sending thread died"))??;
            read
        })
    }

    /// The bytes that come until the peer closes (an RST counts as closing).
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("the peer did not close the connection"),
                Err(_) => return self.buffer.split_off(self.consumed),
            }
        }
    }

    /// Tells the peer that nothing more will be sent, and still reads.
    pub(crate) fn finish_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("shutting down the sending side");
    }

    /// Changes how long a read may wait.
    pub(crate) fn read_timeout(&mut self, timeout: Duration) {
        self.stream.set_read_timeout(Some(timeout)).expect("setting a time limit");
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket has an address")
    }

    fn consume(&mut self, bytes: usize) {
        self.consumed += bytes;
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
            self.consumed = 0;
        } else if self.consumed > CONSUMED_BYTES_MAX {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + CHUNK_BYTES, 0);
        let read = self.stream.read(&mut self.buffer[filled..]);
        self.buffer.truncate(filled + read.as_ref().map_or(0, |n| *n));
        match read {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the peer closed the connection")),
            Ok(_) => Ok(()),
            // The machine, or the process, stood still for a while.
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// The arguments in a line without quotes.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// One command as an array of bulk strings.
pub(crate) fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
