//! Faults at random, one after the other, for as long as the run lasts.

use std::time::Duration;

use crate::Run;
use crate::support::{Client, Relay, Rng, Server};

/// What is done to the upstream, or to the way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The relay cuts all connections; new ones are accepted at once.
    Cut,
    /// The relay cuts all connections and refuses new ones for a while.
    Refuse,
    /// Nothing passes for a while, nothing is lost.
    Pause,
    /// Everything is late for a while.
    Slow,
    /// The upstream is stopped in its tracks for a while (SIGSTOP, SIGCONT).
    Stop,
    /// The same for longer than a reply may take.
    StopLong,
    /// The upstream is killed (SIGKILL) and started again with what it had.
    Kill,
    /// The upstream is killed and comes back with nothing.
    KillAndLose,
    /// The upstream closes all connections (CLIENT KILL).
    ClientKill,
    /// The upstream sleeps in a command (DEBUG SLEEP).
    Sleep,
    /// The upstream holds commands back (CLIENT PAUSE).
    ClientPause,
}

const FAULTS: &[Fault] = &[
    Fault::Cut,
    Fault::Cut,
    Fault::Refuse,
    Fault::Pause,
    Fault::Slow,
    Fault::Stop,
    Fault::StopLong,
    Fault::Kill,
    Fault::KillAndLose,
    Fault::ClientKill,
    Fault::ClientKill,
    Fault::Sleep,
    Fault::ClientPause,
];
/// The relay's largest delay when nothing is wrong, and when all is slow.
const DELAY: Duration = Duration::from_millis(1);
const DELAY_SLOW: Duration = Duration::from_millis(40);

/// Who does them.
pub(crate) struct Faults<'a> {
    upstream: &'a mut Server,
    relay: &'a Relay,
    rng: Rng,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(upstream: &'a mut Server, relay: &'a Relay, rng: Rng) -> Self {
        Self { upstream, relay, rng }
    }

    /// Does one after the other until the run ends; then all is well again.
    pub(crate) fn trouble(&mut self, run: &Run) {
        while run.goes_on() {
            self.wait(200, 1200);
            let fault = *self.rng.pick(FAULTS);
            run.tally.note_fault(fault);
            self.cause(run, fault);
        }
    }

    fn cause(&mut self, run: &Run, fault: Fault) {
        match fault {
            Fault::Cut => drop(self.relay.cut()),
            Fault::Refuse => {
                self.relay.refuse();
                self.relay.cut();
                self.wait(10, 400);
                self.relay.allow();
            }
            Fault::Pause => {
                self.relay.pause();
                self.wait(10, 600);
                self.relay.resume();
            }
            Fault::Slow => {
                self.relay.delay(DELAY_SLOW);
                self.wait(200, 1500);
                self.relay.delay(DELAY);
            }
            Fault::Stop | Fault::StopLong => {
                self.upstream.pause();
                if fault == Fault::Stop {
                    self.wait(5, 500)
                } else {
                    self.wait(1800, 3500)
                }
                self.upstream.resume();
            }
            Fault::Kill => {
                self.upstream.kill();
                self.wait(0, 300);
                self.upstream.restart();
            }
            Fault::KillAndLose => {
                let from = run.now();
                self.upstream.kill();
                self.wait(0, 300);
                self.upstream.restart_empty();
                run.losses.lock().expect("no panic while locked").push((from, run.now()));
            }
            Fault::ClientKill => self.tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
            Fault::Sleep => {
                let seconds = format!("0.{:03}", 20 + self.rng.below(900));
                self.tell(&["DEBUG", "SLEEP", &seconds]);
            }
            Fault::ClientPause => {
                let ms = (20 + self.rng.below(800)).to_string();
                let kind = *self.rng.pick(&["ALL", "WRITE"]);
                self.tell(&["CLIENT", "PAUSE", &ms, kind]);
            }
        }
    }

    /// Tells the upstream directly.
    fn tell(&self, command: &[&str]) {
        let reply = self.upstream.client().cmd(command);
        assert_ne!(reply[0], b'-', "{command:?}: {}", reply.escape_ascii());
    }

    fn wait(&mut self, ms_min: u64, ms_max: u64) {
        std::thread::sleep(Duration::from_millis(ms_min + self.rng.below(ms_max - ms_min)));
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The reply, which is no error.
    Answered(crate::support::Value),
    /// It may have been executed or not.
    Unknown,
    /// It was refused before anything was sent.
    Refused,
}

/// A client that connects anew when its connection is closed, and knows whose connection it is.
pub(crate) struct Caller<'a> {
    run: &'a Run,
    set_up: Vec<Vec<String>>,
    protocol: u8,
    client: Option<Client>,
}

impl<'a> Caller<'a> {
    /// Speaks `protocol`; each new connection begins with `set_up`.
    pub(crate) fn new(run: &'a Run, protocol: u8, set_up: &[&[&str]]) -> Self {
        let set_up = set_up.iter().map(|line| line.iter().map(|&word| word.to_owned()).collect()).collect();
        Self { run, set_up, protocol, client: None }
    }

    /// One request, and what became of it.
    pub(crate) fn ask<A: AsRef<[u8]>>(&mut self, request: &[A]) -> Outcome {
        let batch = crate::support::encode(request);
        self.ask_all(&batch, 1).pop().unwrap_or(Outcome::Unknown)
    }

    /// Several requests at once; one outcome for each.
    pub(crate) fn ask_all(&mut self, batch: &[u8], requests: usize) -> Vec<Outcome> {
        if self.connected().is_none() {
            return vec![Outcome::Refused; requests];
        }
        let run = self.run;
        let mut asked = run.tally.stopwatch();
        let mut outcomes = Vec::with_capacity(requests);
        let Some(client) = &mut self.client else { return vec![Outcome::Refused; requests] };
        let mut failed = client.try_send_raw(batch).err();
        while outcomes.len() < requests && failed.is_none() {
            match client.try_reply() {
                Ok(reply) => {
                    run.tally.note_wait(&asked, batch, outcomes.len(), &reply);
                    outcomes.push(run.tally.outcome_of(&reply));
                }
                Err(e) => failed = Some(e),
            }
            asked = run.tally.stopwatch();
        }
        if let Some(error) = failed {
            run.tally.note_closed(&error);
            self.client = None;
            outcomes.resize(requests, Outcome::Unknown);
        }
        outcomes
    }

    /// The connection, if there is one or one can be made and set up.
    pub(crate) fn connected(&mut self) -> Option<&mut Client> {
        if self.client.is_none() {
            self.client = self.connect();
        }
        self.client.as_mut()
    }

    /// Lets the connection go: what is to come over it is not wanted.
    pub(crate) fn hang_up(&mut self) {
        self.client = None;
    }

    /// Set up as it should be, or not at all: it may be refused while the upstream is away.
    fn connect(&mut self) -> Option<Client> {
        let mut client = Client::try_connect(self.run.larder.address()).expect("Larder accepts");
        if self.protocol == 3 {
            let hello = client.try_cmd(&["HELLO", "3"]).ok()?;
            if hello[0] != b'%' {
                return self.not_now(&hello);
            }
        }
        for line in &self.set_up {
            let reply = client.try_cmd(line).ok()?;
            if reply != b"+OK\r\n" {
                return self.not_now(&reply);
            }
        }
        Some(client)
    }

    fn not_now(&self, reply: &[u8]) -> Option<Client> {
        self.run.tally.outcome_of(reply);
        std::thread::sleep(Duration::from_millis(20));
        None
    }
}
