//! An errand: requests of Larder's own on links, by a task that waits for their replies.
//!
//! An errand has a letter box of its own, so that its replies do not meet a client's. Its requests stand in the order of
//! the link like all others. One that is dropped half-way leaves nothing behind: replies go to a box that nobody opens.

use crate::l1::Cause;
use crate::mutation::{Mutation, is_planted};
use crate::port::{Delivery, Failure, Port, Seq, Taken};
use crate::upstream::link::{Job, Op, OpKind, own_too_long};
use crate::upstream::link_io::LinkHandle;
use crate::upstream::scope::Scope;
use crate::upstream::watch::Watch;
use bytes::{Bytes, BytesMut};
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::Cursor;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};

/// Sends requests and waits for their replies, one batch after the other.
#[derive(Debug, Default)]
pub(crate) struct Errand {
    port: Arc<Port>,
    seq_last: u64,
}

/// What became of a request.
#[derive(Debug)]
enum Outcome {
    Reply(Bytes),
    Failed(Failure),
    /// The link has caught up, or has nothing to catch up with.
    Fenced,
}

// === impl Errand ===

impl Errand {
    /// Drops what `request` names behind its first argument from L1, and sends it as a write. Its reply, unless that is
    /// an error.
    pub(crate) async fn delete(
        &mut self,
        link: &LinkHandle,
        cause: Cause,
        request: &OwnedArgs,
        kind: OpKind,
    ) -> Result<Bytes, Failure> {
        self.call(link, &[(OpKind::Drop(cause), request), (kind, request)]).await
    }

    /// Sends requests as one job; the reply to the last, unless one is an error.
    pub(crate) async fn call(
        &mut self,
        link: &LinkHandle,
        requests: &[(OpKind, &OwnedArgs)],
    ) -> Result<Bytes, Failure> {
        requests.iter().try_for_each(|(_, request)| check(request))?;
        let job = self.job(requests);
        link.submit(job)?;
        let mut last = Bytes::new();
        for outcome in self.outcomes(requests.len()).await {
            match outcome {
                Outcome::Failed(failure) => return Err(failure),
                Outcome::Reply(reply) if reply.starts_with(b"-") => {
                    return Err(Failure::Refused(reply.slice(1..reply.len().saturating_sub(2).max(1))));
                }
                Outcome::Reply(reply) => last = reply,
                Outcome::Fenced => {}
            }
        }
        Ok(last)
    }

    /// Sends requests as one job; the reply to each, an error reply being a failure.
    ///
    /// # Errors
    /// Nothing has been sent: the upstream is down, or too much waits.
    pub(crate) async fn ask_each(
        &mut self,
        link: &LinkHandle,
        requests: &[(OpKind, OwnedArgs)],
    ) -> Result<Vec<Result<Bytes, Failure>>, Failure> {
        requests.iter().try_for_each(|(_, request)| check(request))?;
        let borrowed: Vec<(OpKind, &OwnedArgs)> = requests.iter().map(|(kind, request)| (*kind, request)).collect();
        link.submit(self.job(&borrowed))?;
        let answers = self.outcomes(requests.len()).await.into_iter().map(|outcome| match outcome {
            Outcome::Failed(failure) => Err(failure),
            Outcome::Reply(reply) if matches!(reply.first(), Some(b'-' | b'!')) => {
                Err(Failure::Refused(reply.slice(1..reply.len().saturating_sub(2).max(1))))
            }
            Outcome::Reply(reply) => Ok(reply),
            Outcome::Fenced => Ok(Bytes::new()),
        });
        Ok(answers.collect())
    }

    /// Drops keys from L1, or softens them, as the order `kind` says, in the order of the link: how many were there. `keys`
    /// has a word in front of them.
    ///
    /// # Errors
    /// It was not done in time; it will be.
    pub(crate) async fn drop_keys(
        &mut self,
        link: &LinkHandle,
        kind: OpKind,
        keys: &OwnedArgs,
    ) -> Result<u64, Failure> {
        let reply = self.order(link, kind, keys).await?;
        let dropped = reply.and_then(|reply| Cursor::new(&reply).next_integer());
        Ok(dropped.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }

    /// Empties the partition of a link, in its order.
    ///
    /// # Errors
    /// As [`Errand::drop_keys`].
    pub(crate) async fn drop_all(&mut self, link: &LinkHandle, cause: Cause) -> Result<(), Failure> {
        self.order(link, OpKind::DropAll(cause), &OwnedArgs::default()).await.map(drop)
    }

    /// The reply to an order; `None` if there is no connection, and so nothing that it could be about.
    async fn order(&mut self, link: &LinkHandle, kind: OpKind, request: &OwnedArgs) -> Result<Option<Bytes>, Failure> {
        link.submit_fence(self.job(&[(kind, request)]));
        match self.outcomes(1).await.pop() {
            Some(Outcome::Failed(failure)) => Err(failure),
            Some(Outcome::Reply(reply)) => Ok(Some(reply)),
            Some(Outcome::Fenced) | None => Ok(None),
        }
    }

    /// Returns when all links have caught up with this moment.
    ///
    /// # Errors
    /// One did not in time.
    pub(crate) async fn fence(&mut self, scopes: &[Arc<Scope>]) -> Result<(), Failure> {
        self.fence_links(scopes.iter().map(|scope| &scope.link)).await
    }

    /// As [`Errand::fence`].
    pub(crate) async fn fence_links<'l>(
        &mut self,
        links: impl ExactSizeIterator<Item = &'l Arc<LinkHandle>>,
    ) -> Result<(), Failure> {
        self.fence_as(OpKind::Fence, links).await
    }

    /// As [`Errand::fence`], of links whose partitions are suspended until then.
    pub(crate) async fn fence_and_resume(&mut self, links: &[Arc<LinkHandle>]) -> Result<(), Failure> {
        self.fence_as(OpKind::FenceAndResume, links.iter()).await
    }

    async fn fence_as<'l>(
        &mut self,
        kind: OpKind,
        links: impl ExactSizeIterator<Item = &'l Arc<LinkHandle>>,
    ) -> Result<(), Failure> {
        let count = links.len();
        for link in links {
            link.submit_fence(self.job(&[(kind, &OwnedArgs::default())]));
        }
        let failed = self.outcomes(count).await.into_iter().find_map(|outcome| match outcome {
            Outcome::Failed(failure) => Some(failure),
            _ => None,
        });
        failed.map_or(Ok(()), Err)
    }

    /// Returns when all that follows from what has happened upstream until now is done, as far as keys depend on others.
    ///
    /// # Errors
    /// It was not in time.
    pub(crate) async fn settle(&mut self, watch: &Watch) -> Result<(), Failure> {
        if !watch.is_on() || is_planted(Mutation::CacheUnsettled) {
            return Ok(());
        }
        self.seq_last += 1;
        watch.submit(&self.port, Seq(self.seq_last));
        match self.outcomes(1).await.pop() {
            Some(Outcome::Failed(failure)) => Err(failure),
            _ => Ok(()),
        }
    }

    fn job(&mut self, requests: &[(OpKind, &OwnedArgs)]) -> Job {
        let mut bytes = BytesMut::new();
        let mut op = |(kind, request): &(OpKind, &OwnedArgs)| {
            self.seq_last += 1;
            let start = bytes.len() as u32;
            bytes.extend_from_slice(request.args().bytes());
            Op { seq: Seq(self.seq_last), bytes: start..bytes.len() as u32, kind: *kind }
        };
        let ops = requests.iter().map(&mut op).collect();
        Job { port: self.port.clone(), bytes: bytes.freeze(), ops }
    }

    /// Waits for the last `count` requests; what became of them, in their order.
    async fn outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let first = self.seq_last + 1 - count as u64;
        let mut outcomes: Vec<Option<Outcome>> = (0..count).map(|_| None).collect();
        let mut missing = count;
        let port = self.port.clone();
        poll_fn(|cx| {
            while missing > 0 {
                ready!(port.poll_ready(cx));
                let mut taken = Taken::default();
                port.take(&mut taken);
                for (seq, outcome) in unpack(taken) {
                    let place = seq.0.checked_sub(first).and_then(|at| outcomes.get_mut(at as usize));
                    if let Some(place) = place
                        && place.replace(outcome).is_none()
                    {
                        missing -= 1;
                    }
                }
            }
            Poll::Ready(())
        })
        .await;
        outcomes.into_iter().flatten().collect()
    }
}

/// A name that came from the upstream (SCAN) can be longer than it lets anybody send.
fn check(request: &OwnedArgs) -> Result<(), Failure> {
    own_too_long(request.args()).map_or(Ok(()), |line| Err(Failure::Refused(line.into())))
}

fn unpack(taken: Taken) -> Vec<(Seq, Outcome)> {
    let bytes = Bytes::from(taken.bytes);
    let mut at = 0;
    let mut outcomes = Vec::with_capacity(taken.deliveries.len());
    for delivery in taken.deliveries {
        outcomes.push(match delivery {
            Delivery::Small { seq, len } => {
                at += len;
                (seq, Outcome::Reply(bytes.slice(at - len..at)))
            }
            Delivery::Large(seq, reply) => (seq, Outcome::Reply(reply)),
            Delivery::Failed(seq, failure) => (seq, Outcome::Failed(failure)),
            Delivery::Fenced(seq) => (seq, Outcome::Fenced),
            // No hub knows of this box, nobody redirects to it, and it does not watch.
            Delivery::Message(_) | Delivery::Invalidation(_) | Delivery::Line(_) | Delivery::CatchUp(_) => continue,
        });
    }
    outcomes
}
