//! Blocking pops and messages while faults come.
//!
//! Even workers are a producer and a consumer of one list, odd ones a publisher and a subscriber of one channel.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use crate::Run;
use crate::faults::{Caller, Outcome};
use crate::support::{Rng, Value, encode};

/// How long a subscriber waits for a message before it looks whether the run goes on.
const PATIENCE: Duration = Duration::from_millis(300);

/// Numbers that were sent and of which nobody knows what became. Such a one may take effect late, behind later ones: what
/// a stopped server has not read of a connection that was given up is still in its socket.
type Unknown = Mutex<HashSet<u64>>;

/// One of the pairs, until the run ends.
pub(crate) fn work(run: &Run, id: u64, mut rng: Rng) {
    let consumer_rng = rng.fork();
    let unknown = &Unknown::default();
    std::thread::scope(|scope| {
        if id.is_multiple_of(2) {
            scope.spawn(move || pop(run, id, consumer_rng, unknown));
            push(run, id, &mut rng, unknown);
        } else {
            scope.spawn(move || hear(run, id, unknown));
            publish(run, id, &mut rng, unknown);
        }
    });
}

/// Puts tokens into the list, each once; one of unknown fate is not tried again.
fn push(run: &Run, id: u64, rng: &mut Rng, unknown: &Unknown) {
    let mut caller = Caller::new(run, 2, &[]);
    let mut token = 0_u64;
    while run.goes_on() {
        token += 1;
        if let Outcome::Unknown = caller.ask(&["RPUSH", &format!("list{id}"), &token.to_string()]) {
            unknown.lock().expect("no panic while locked").insert(token);
        }
        std::thread::sleep(Duration::from_millis(rng.below(20)));
    }
}

/// Takes them: none twice, and in their order.
fn pop(run: &Run, id: u64, mut rng: Rng, unknown: &Unknown) {
    let mut caller = Caller::new(run, 3, &[]);
    let (list, mut last) = (format!("list{id}"), 0);
    let mut taken = HashSet::new();
    while run.goes_on() {
        let outcome = if rng.one_in(4) { caller.ask(&["LPOP", &list]) } else { caller.ask(&["BLPOP", &list, "0.3"]) };
        let token = match outcome {
            Outcome::Answered(Value::Null) | Outcome::Unknown | Outcome::Refused => continue,
            Outcome::Answered(Value::Bulk(token)) => token,
            Outcome::Answered(Value::Array(items))
                if items.len() == 2 && items[0] == Value::Bulk(list.clone().into_bytes()) =>
            {
                items[1].bytes().to_vec()
            }
            Outcome::Answered(other) => {
                run.tally.note_wrong(format!("a pop of {list} has got {other:?}"));
                continue;
            }
        };
        let token: u64 = String::from_utf8_lossy(&token).parse().unwrap_or(0);
        let late = token <= last && !unknown.lock().expect("no panic while locked").contains(&token);
        if !taken.insert(token) || late || token == 0 {
            run.tally.note_wrong(format!("{list}: {token} was taken after {last}"));
        }
        last = last.max(token);
        run.tally.note_verified("tokens popped, once and in order");
    }
}

fn publish(run: &Run, id: u64, rng: &mut Rng, unknown: &Unknown) {
    let mut caller = Caller::new(run, 2, &[]);
    let mut n = 0_u64;
    while run.goes_on() {
        n += 1;
        if let Outcome::Unknown = caller.ask(&["PUBLISH", &format!("channel{id}"), &n.to_string()]) {
            unknown.lock().expect("no panic while locked").insert(n);
        }
        std::thread::sleep(Duration::from_millis(rng.below(20)));
    }
}

/// Subscribes, and again when the connection is closed: messages are of the channel and their numbers only grow.
fn hear(run: &Run, id: u64, unknown: &Unknown) {
    let (channel, mut last) = (format!("channel{id}"), 0);
    let mut heard = HashSet::new();
    let mut caller = Caller::new(run, 2 + u8::try_from(id % 4 / 2).expect("0 or 1"), &[]);
    let mut subscribed = false;
    while run.goes_on() {
        let Some(client) = caller.connected() else { continue };
        if !subscribed {
            client.read_timeout(crate::WAIT_MAX);
            let sent = client.try_send_raw(&encode(&["SUBSCRIBE", &channel]));
            match sent.and_then(|()| client.try_frame()) {
                Ok(frame) if matches!(frame[0], b'*' | b'>') => subscribed = true,
                Ok(frame) => drop(run.tally.outcome_of(&frame)),
                Err(_) => caller.hang_up(),
            }
            continue;
        }
        client.read_timeout(PATIENCE);
        match client.try_frame() {
            Ok(frame) => {
                let message = Value::parse(&frame);
                let items = message.items();
                let n = items.last().and_then(|n| u64::try_from(n.int()).ok()).unwrap_or(0);
                let late = n <= last && !unknown.lock().expect("no panic while locked").contains(&n);
                let is_own = items.len() == 3 && items[0].text() == "message" && items[1].text() == channel;
                if !is_own || !heard.insert(n) || late {
                    run.tally.note_wrong(format!("{channel} has heard {message:?} after {last}"));
                }
                last = last.max(n);
                run.tally.note_verified("messages, in order and none twice");
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => {
                caller.hang_up();
                subscribed = false;
            }
        }
    }
}
