//! The scripts that keep the index of tags, and how they are run.
//!
//! A script is loaded once, run by its digest, and sent whole where the server has forgotten it (a restart, `SCRIPT
//! FLUSH`). Scripts run on the link of the caller's scope, so with the caller's rights and in the order of the link.
//! Their replies are the scripts' own: nothing that a client has sent can stand in one as a line end (a client's bytes are
//! bulk strings), which is why they, unlike clients' scripts, may use the link.

use crate::port::Failure;
use crate::upstream::errand::Errand;
use crate::upstream::link::OpKind;
use crate::upstream::link_io::LinkHandle;
use bytes::Bytes;
use larder_protocol::args::OwnedArgs;
use larder_protocol::cursor::Cursor;
use std::sync::OnceLock;

/// A script.
#[derive(Debug)]
pub(in crate::cache) struct Script {
    body: &'static str,
    digest: OnceLock<Bytes>,
}

macro_rules! script {
    ($name:literal) => {
        Script { body: concat!(include_str!("prelude.lua"), include_str!($name)), digest: OnceLock::new() }
    };
}

pub(in crate::cache) static DEPEND: Script = script!("../depend/depend.lua");
pub(in crate::cache) static RIGHTS: Script = script!("../depend/rights.lua");
pub(in crate::cache) static TAKEOUT: Script = script!("../depend/takeout.lua");
pub(in crate::cache) static UNDEPEND: Script = script!("../depend/undepend.lua");
pub(super) static ASIDE: Script = script!("aside.lua");
pub(super) static LEASE: Script = script!("lease.lua");
pub(super) static MEMBERS: Script = script!("members.lua");
pub(super) static SET: Script = script!("set.lua");
pub(super) static STEP: Script = script!("step.lua");
pub(super) static SWEEP: Script = script!("sweep.lua");
pub(super) static TAG: Script = script!("tag.lua");
pub(super) static UNTAG: Script = script!("untag.lua");

// === impl Script ===

impl Script {
    /// The script itself, for a connection that is no link.
    pub(in crate::cache) fn body(&self) -> &'static str {
        self.body
    }

    /// Runs the script; its reply.
    pub(in crate::cache) async fn run(
        &self,
        errand: &mut Errand,
        link: &LinkHandle,
        kind: OpKind,
        key: Option<&[u8]>,
        args: &[&[u8]],
    ) -> Result<Bytes, Failure> {
        let call = |command: &str, script: &[u8]| {
            let count: &[u8] = if key.is_some() { b"1" } else { b"0" };
            let head = [command.as_bytes(), script, count].into_iter();
            OwnedArgs::new(head.chain(key).chain(args.iter().copied()))
        };
        if let Some(digest) = self.digest(errand, link).await {
            match errand.call(link, &[(kind, &call("EVALSHA", &digest))]).await {
                Err(Failure::Refused(line)) if line.starts_with(b"NOSCRIPT") => {}
                done => return done,
            }
        }
        errand.call(link, &[(kind, &call("EVAL", self.body.as_bytes()))]).await
    }

    /// The script's digest, as the server computes it; the same for every server. `None` if it may not be asked for.
    async fn digest(&self, errand: &mut Errand, link: &LinkHandle) -> Option<Bytes> {
        if let Some(digest) = self.digest.get() {
            return Some(digest.clone());
        }
        let request = OwnedArgs::new(["SCRIPT", "LOAD", self.body]);
        let reply = errand.call(link, &[(OpKind::Effect, &request)]).await.ok()?;
        let digest = Bytes::copy_from_slice(Cursor::new(&reply).next_bytes()?);
        Some(self.digest.get_or_init(|| digest).clone())
    }
}
