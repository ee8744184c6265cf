//! `larder ping`: a sign of life of a running Larder, for health checks. Blocking, bounded in time and bytes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use larder::config::HostPort;

/// Longest wait for each of: a connection to one address, a write, a read.
const STEP_WAIT_MAX: Duration = Duration::from_secs(2);

/// Longest reply that is read, in bytes.
const REPLY_BYTES_MAX: u64 = 1024;

/// Why there was no sign of life.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PingError {
    /// No connection, or it was lost, or it was too slow.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The name stands for no address.
    #[error("the name has no address")]
    NoAddress,
    /// Something answered, but not with a sign of life.
    #[error("unexpected answer {0:?}")]
    Answer(String),
}

/// Sends PING, after AUTH if there is a password. Any answer that only a live server gives is a sign of life: `+PONG`,
/// or `-NOAUTH` if it wants a password first. Returns the answer.
pub(crate) fn ping(address: &HostPort, password: Option<&str>) -> Result<String, PingError> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(STEP_WAIT_MAX))?;
    stream.set_write_timeout(Some(STEP_WAIT_MAX))?;
    let mut replies = BufReader::new(stream.try_clone()?.take(REPLY_BYTES_MAX));
    if let Some(password) = password {
        let request = format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len());
        stream.write_all(request.as_bytes())?;
        match read_line(&mut replies)? {
            line if line == "+OK" => {}
            line => return Err(PingError::Answer(line)),
        }
    }
    stream.write_all(b"*1\r\n$4\r\nPING\r\n")?;
    match read_line(&mut replies)? {
        line if line == "+PONG" || line.starts_with("-NOAUTH ") => Ok(line),
        line => Err(PingError::Answer(line)),
    }
}

/// The first of the name's addresses that accepts a connection.
fn connect(address: &HostPort) -> Result<TcpStream, PingError> {
    let mut refused = PingError::NoAddress;
    for candidate in address.as_pair().to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, STEP_WAIT_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = PingError::Io(error),
        }
    }
    Err(refused)
}

fn read_line(replies: &mut impl BufRead) -> Result<String, PingError> {
    let mut line = Vec::new();
    replies.read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line);
    match line.strip_suffix("\r\n") {
        Some(whole) => Ok(whole.to_owned()),
        None if line.is_empty() => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        None => Err(PingError::Answer(line.into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Pings a server that gives these answers, one to each request; returns the outcome and what the server got.
    fn ping_one_that_answers(answers: &'static [&'static str], password: Option<&str>) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = HostPort::new("127.0.0.1", listener.local_addr().unwrap().port());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = String::new();
            let mut buffer = [0; 256];
            for answer in answers {
                let count = stream.read(&mut buffer).unwrap();
                got.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            got
        });
        let outcome = ping(&address, password).unwrap_or_else(|error| error.to_string());
        (outcome, server.join().unwrap())
    }

    #[test]
    fn pong_and_noauth_are_signs_of_life() {
        let request = "*1\r\n$4\r\nPING\r\n";
        for (answer, outcome) in
            [(&["+PONG\r\n"], "+PONG"), (&["-NOAUTH Authentication required.\r\n"], "-NOAUTH Authentication required.")]
        {
            assert_eq!(ping_one_that_answers(answer, None), (outcome.to_owned(), request.to_owned()));
        }
    }

    #[test]
    fn password_is_sent_before_the_ping() {
        let (outcome, got) = ping_one_that_answers(&["+OK\r\n", "+PONG\r\n"], Some("pä$$"));
        assert_eq!(outcome, "+PONG");
        assert!(got.starts_with("*2\r\n$4\r\nAUTH\r\n$5\r\npä$$\r\n"), "{got:?}");
        let (outcome, _) = ping_one_that_answers(&["-WRONGPASS no\r\n"], Some("x"));
        assert_eq!(outcome, "unexpected answer \"-WRONGPASS no\"");
    }

    #[test]
    fn anything_else_is_no_sign_of_life() {
        for (answer, outcome) in [
            (&["HTTP/1.1 400 Bad Request\r\n"], "unexpected answer \"HTTP/1.1 400 Bad Request\""),
            (&["+PON"], "unexpected answer \"+PON\""),
            (&[""], "unexpected end of file"),
        ] {
            assert_eq!(ping_one_that_answers(answer, None).0, outcome);
        }
        let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ping(&HostPort::new("127.0.0.1", unused.port()), None), Err(PingError::Io(_))));
    }
}
