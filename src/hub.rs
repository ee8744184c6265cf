//! stub
#![allow(missing_docs, clippy::all)]
use crate::clients::Client; use crate::port::Failure; use crate::upstream::{node::Node, raw::Identity, scope::Scope}; use std::sync::Arc; use std::collections::BTreeSet; use bytes::Bytes;
#[derive(Clone,Copy,PartialEq,Eq,Debug)] pub enum Kind { Channel, Pattern, Shard }
#[derive(Debug,Default)] pub struct Subscriptions { s: BTreeSet<Bytes> }
impl Subscriptions { pub fn count(&self)->usize{self.s.len()} pub fn count_of(&self,_k:Kind)->usize{0} pub fn names(&self,_k:Kind)->impl Iterator<Item=&Bytes>{self.s.iter()} pub fn contains(&self,_k:Kind,_n:&[u8])->bool{false} pub fn insert(&mut self,_k:Kind,_n:&[u8])->bool{false} pub fn remove(&mut self,_k:Kind,_n:&[u8])->bool{false} }
#[derive(Default)] pub struct HubSettings { pub connect_max: std::time::Duration, pub replies: larder_protocol::scan::ReplyLimits, pub x: u8 }
pub struct Hub;
impl Hub { pub fn new(_:Arc<Node>,_:Identity,_:HubSettings,_:tokio::runtime::Handle)->Arc<Self>{Arc::new(Hub)} pub async fn subscribe(self:&Arc<Self>,_:&Arc<Client>,_:&Arc<Scope>,_:Kind,_:&[u8])->Result<(),Failure>{Ok(())} pub fn unsubscribe(&self,_:&Client,_:Kind,_:&[u8]){} pub fn leave(&self,_:&Client,_:&mut Subscriptions){} pub fn moved(&self,_:&Arc<Client>,_:&Arc<Scope>){} }
