//! The migration protocol of shift-verbs as pure state: what was posted and what is proven of it ([`ledger`]), what to do
//! about it ([`policy`]), how the two ends of a connection move together ([`migrate`]), when a path is good again ([`health`]), and how all of that looks in bytes
//! ([`frame`]).
//!
//! This crate owns no pointer, socket, thread, clock or source of randomness: time and identity are inputs, and what has to
//! be done in the world comes out as effects. The shim, the simulation and the property tests drive the same types.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod frame;
pub mod gray;
pub mod health;
pub mod id;
pub mod ledger;
pub mod migrate;
pub mod policy;
