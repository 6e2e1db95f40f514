//! The bytes of wire version 1: version, kind, then the fields in order, little-endian, lists behind their count.
//!
//! Kinds and field orders are the wire format: they never change within a version, new kinds get new numbers.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    ArmConfirm, Frame, FrameError, Hello, Key, KeyState, Offer, PathOffer, PathPair, Probe, ProbeStep, QpAddress,
    SlotOffer, StandbyOffer, MAX_ADDRESSES, MAX_FRAME, MAX_VERSION, WIRE_VERSION,
};
use crate::id::{EndpointId, Mtu, PathId, ProcessId, Psn, MAX_PATHS, MAX_STANDBYS};

const HELLO: u8 = 1;
const ASK: u8 = 2;
const OWNER: u8 = 3;
const OFFER: u8 = 4;
const ARM_CONFIRM: u8 = 5;
const KEY_ADD: u8 = 6;
const KEY_DEL: u8 = 7;
const KEY_DEL_ACK: u8 = 8;
const KEY_ASK: u8 = 9;
const KEY_ANSWER: u8 = 10;
const PROBE: u8 = 11;
const PING: u8 = 12;
const PONG: u8 = 13;
const GOODBYE: u8 = 14;
const MIGRATION: u8 = 15;

/// What keeps to the bounds of its lists is far shorter than [`MAX_FRAME`].
pub(super) fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let mut writer = Writer { bytes: Vec::new() };
    writer.u8(WIRE_VERSION);
    writer.u8(kind(frame));
    writer.frame(frame)?;
    out.append(&mut writer.bytes);
    Ok(())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    if bytes.len() > MAX_FRAME {
        return Err(FrameError::TooLong);
    }
    let mut reader = Reader { rest: bytes };
    let version = reader.u8()?;
    if version != WIRE_VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = reader.u8()?;
    let frame = reader.frame(kind)?;
    if reader.rest.is_empty() {
        Ok(frame)
    } else {
        Err(FrameError::Trailing)
    }
}

const fn kind(frame: &Frame) -> u8 {
    match frame {
        Frame::Hello(_) => HELLO,
        Frame::Ask(_) => ASK,
        Frame::Owner { .. } => OWNER,
        Frame::Offer(_) => OFFER,
        Frame::ArmConfirm(_) => ARM_CONFIRM,
        Frame::KeyAdd { .. } => KEY_ADD,
        Frame::KeyDel(_) => KEY_DEL,
        Frame::KeyDelAck(_) => KEY_DEL_ACK,
        Frame::KeyAsk { .. } => KEY_ASK,
        Frame::KeyAnswer { .. } => KEY_ANSWER,
        Frame::Probe(_) => PROBE,
        Frame::Ping { .. } => PING,
        Frame::Pong { .. } => PONG,
        Frame::Goodbye => GOODBYE,
        Frame::Migration { .. } => MIGRATION,
    }
}

/// Appends fields.
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(super) fn endpoint(&mut self, id: EndpointId) {
        self.u64(id.process.0);
        self.u32(id.life);
        self.u8(id.side);
    }

    pub(super) fn psn(&mut self, psn: Psn) {
        self.u32(psn.value());
    }

    /// The count of a list.
    pub(super) fn count(&mut self, length: usize, bound: usize) -> Result<(), FrameError> {
        if length > bound {
            return Err(FrameError::TooMany);
        }
        let length = u16::try_from(length).map_err(|_| FrameError::TooMany)?;
        self.u16(length);
        Ok(())
    }

    fn address(&mut self, address: QpAddress) {
        self.bytes.extend_from_slice(&address.gid);
        self.u32(address.qpn);
    }

    fn path_offer(&mut self, offer: PathOffer) {
        self.address(offer.address);
        self.u32(offer.mtu.bytes());
        self.psn(offer.psn_base);
    }

    fn key(&mut self, key: Key) {
        self.u16(key.device);
        self.u32(key.rkey);
        self.u32(key.generation);
    }

    fn socket(&mut self, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => {
                self.u8(4);
                self.bytes.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.u8(6);
                self.bytes.extend_from_slice(&ip.octets());
            }
        }
        self.u16(address.port());
    }

    fn hello(&mut self, hello: &Hello) -> Result<(), FrameError> {
        self.u64(hello.process.0);
        self.bytes.extend_from_slice(&hello.token);
        self.count(hello.addresses.len(), MAX_ADDRESSES)?;
        for address in &hello.addresses {
            self.socket(*address);
        }
        self.count(hello.version.len(), MAX_VERSION)?;
        self.bytes.extend_from_slice(hello.version.as_bytes());
        Ok(())
    }

    fn offer(&mut self, offer: &Offer) -> Result<(), FrameError> {
        self.endpoint(offer.from);
        self.u16(offer.device);
        self.address(offer.own);
        self.address(offer.peer);
        self.flag(offer.standby.is_some());
        if let Some(standby) = &offer.standby {
            self.u32(standby.revision);
            self.count(standby.standbys.len(), MAX_STANDBYS)?;
            for slot in &standby.standbys {
                self.u8(slot.slot);
                self.path_offer(slot.end);
            }
            self.count(standby.paths.len(), MAX_PATHS)?;
            for pair in &standby.paths {
                [pair.path.0, pair.own, pair.peer].into_iter().for_each(|number| self.u8(number));
            }
            self.flag(standby.is_first_gone);
            self.u32(standby.primary_mtu.bytes());
            self.psn(standby.primary_psn_base);
            self.u32(standby.access);
        }
        Ok(())
    }

    fn arm_confirm(&mut self, confirm: ArmConfirm) {
        self.endpoint(confirm.from);
        self.endpoint(confirm.to);
        self.u8(confirm.path.0);
        self.flag(confirm.armed);
    }

    fn key_answer(&mut self, device: u16, rkey: u32, state: KeyState) {
        self.u16(device);
        self.u32(rkey);
        match state {
            KeyState::Absent => self.u8(0),
            KeyState::Unprotected => self.u8(1),
            KeyState::Known { generation, standby_rkey } => {
                self.u8(2);
                self.u32(generation);
                self.u32(standby_rkey);
            }
        }
    }

    fn probe(&mut self, probe: &Probe) {
        self.u64(probe.pair);
        self.u32(probe.generation);
        self.u8(match probe.step {
            ProbeStep::Offer => 0,
            ProbeStep::Accept => 1,
            ProbeStep::Refuse => 2,
            ProbeStep::Close => 3,
        });
        self.path_offer(probe.own);
        self.bytes.extend_from_slice(&probe.peer_gid);
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), FrameError> {
        match frame {
            Frame::Hello(hello) => self.hello(hello)?,
            Frame::Ask(address) => self.address(*address),
            Frame::Owner { address, port } => {
                self.address(*address);
                self.flag(port.is_some());
                self.u16(port.unwrap_or(0));
            }
            Frame::Offer(offer) => self.offer(offer)?,
            Frame::ArmConfirm(confirm) => self.arm_confirm(*confirm),
            Frame::KeyAdd { key, standby_rkey } => {
                self.key(*key);
                self.u32(*standby_rkey);
            }
            Frame::KeyDel(key) | Frame::KeyDelAck(key) => self.key(*key),
            Frame::KeyAsk { device, rkey } => {
                self.u16(*device);
                self.u32(*rkey);
            }
            Frame::KeyAnswer { device, rkey, state } => self.key_answer(*device, *rkey, *state),
            Frame::Probe(probe) => self.probe(probe),
            Frame::Ping { stamp } | Frame::Pong { stamp } => self.u64(*stamp),
            Frame::Goodbye => {}
            Frame::Migration { number, to, from, msg } => {
                self.u64(*number);
                self.endpoint(*to);
                self.endpoint(*from);
                self.handshake(msg)?;
            }
        }
        Ok(())
    }
}

/// Takes fields off the front.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(*field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, FrameError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Value(name)),
        }
    }

    pub(super) fn endpoint(&mut self) -> Result<EndpointId, FrameError> {
        Ok(EndpointId { process: ProcessId(self.u64()?), life: self.u32()?, side: self.u8()? })
    }

    pub(super) fn psn(&mut self) -> Result<Psn, FrameError> {
        let value = self.u32()?;
        let psn = Psn::new(value);
        if psn.value() == value {
            Ok(psn)
        } else {
            Err(FrameError::Value("psn"))
        }
    }

    /// The count of a list, checked before anything is made of it.
    pub(super) fn count(&mut self, bound: usize) -> Result<usize, FrameError> {
        let count = usize::from(self.u16()?);
        if count > bound {
            return Err(FrameError::TooMany);
        }
        Ok(count)
    }

    fn mtu(&mut self) -> Result<Mtu, FrameError> {
        Mtu::new(self.u32()?).ok_or(FrameError::Value("mtu"))
    }

    fn address(&mut self) -> Result<QpAddress, FrameError> {
        Ok(QpAddress { gid: self.array()?, qpn: self.u32()? })
    }

    fn path_offer(&mut self) -> Result<PathOffer, FrameError> {
        Ok(PathOffer { address: self.address()?, mtu: self.mtu()?, psn_base: self.psn()? })
    }

    fn key(&mut self) -> Result<Key, FrameError> {
        Ok(Key { device: self.u16()?, rkey: self.u32()?, generation: self.u32()? })
    }

    fn socket(&mut self) -> Result<SocketAddr, FrameError> {
        let ip = match self.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(FrameError::Value("address family")),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    fn hello(&mut self) -> Result<Hello, FrameError> {
        let process = ProcessId(self.u64()?);
        let token = self.array()?;
        let count = self.count(MAX_ADDRESSES)?;
        let addresses = (0..count).map(|_| self.socket()).collect::<Result<_, _>>()?;
        let length = self.count(MAX_VERSION)?;
        let (text, rest) = self.rest.split_at_checked(length).ok_or(FrameError::Short)?;
        self.rest = rest;
        let version = core::str::from_utf8(text).map_err(|_| FrameError::Value("version"))?;
        Ok(Hello { process, token, addresses, version: String::from(version) })
    }

    fn offer(&mut self) -> Result<Offer, FrameError> {
        let from = self.endpoint()?;
        let device = self.u16()?;
        let (own, peer) = (self.address()?, self.address()?);
        let standby = if self.flag("standby")? { Some(self.standby_offer()?) } else { None };
        Ok(Offer { from, device, own, peer, standby })
    }

    fn slot(&mut self) -> Result<u8, FrameError> {
        let slot = self.u8()?;
        (usize::from(slot) < MAX_STANDBYS).then_some(slot).ok_or(FrameError::Value("slot"))
    }

    fn slot_offer(&mut self) -> Result<SlotOffer, FrameError> {
        Ok(SlotOffer { slot: self.slot()?, end: self.path_offer()? })
    }

    fn path_pair(&mut self) -> Result<PathPair, FrameError> {
        let path = self.u8()?;
        if !(1..MAX_PATHS).contains(&usize::from(path)) {
            return Err(FrameError::Value("path"));
        }
        Ok(PathPair { path: PathId(path), own: self.slot()?, peer: self.slot()? })
    }

    fn standby_offer(&mut self) -> Result<StandbyOffer, FrameError> {
        let revision = self.u32()?;
        let count = self.count(MAX_STANDBYS)?;
        let standbys = (0..count).map(|_| self.slot_offer()).collect::<Result<Vec<_>, _>>()?;
        if standbys.is_empty() && revision == 0 {
            return Err(FrameError::Value("standbys"));
        }
        let count = self.count(MAX_PATHS)?;
        let paths = (0..count).map(|_| self.path_pair()).collect::<Result<Vec<_>, _>>()?;
        let is_first_gone = self.flag("first gone")?;
        let (primary_mtu, primary_psn_base, access) = (self.mtu()?, self.psn()?, self.u32()?);
        Ok(StandbyOffer { revision, standbys, paths, is_first_gone, primary_mtu, primary_psn_base, access })
    }

    fn arm_confirm(&mut self) -> Result<ArmConfirm, FrameError> {
        let (from, to) = (self.endpoint()?, self.endpoint()?);
        Ok(ArmConfirm { from, to, path: PathId(self.u8()?), armed: self.flag("armed")? })
    }

    fn owner(&mut self) -> Result<Frame, FrameError> {
        let address = self.address()?;
        let known = self.flag("port")?;
        match (known, self.u16()?) {
            (true, port) => Ok(Frame::Owner { address, port: Some(port) }),
            (false, 0) => Ok(Frame::Owner { address, port: None }),
            (false, _) => Err(FrameError::Value("port")),
        }
    }

    fn key_state(&mut self) -> Result<KeyState, FrameError> {
        match self.u8()? {
            0 => Ok(KeyState::Absent),
            1 => Ok(KeyState::Unprotected),
            2 => Ok(KeyState::Known { generation: self.u32()?, standby_rkey: self.u32()? }),
            _ => Err(FrameError::Value("key state")),
        }
    }

    fn probe(&mut self) -> Result<Probe, FrameError> {
        let (pair, generation) = (self.u64()?, self.u32()?);
        let step = match self.u8()? {
            0 => ProbeStep::Offer,
            1 => ProbeStep::Accept,
            2 => ProbeStep::Refuse,
            3 => ProbeStep::Close,
            _ => return Err(FrameError::Value("probe step")),
        };
        Ok(Probe { pair, generation, step, own: self.path_offer()?, peer_gid: self.array()? })
    }

    fn frame(&mut self, kind: u8) -> Result<Frame, FrameError> {
        Ok(match kind {
            HELLO => Frame::Hello(self.hello()?),
            ASK => Frame::Ask(self.address()?),
            OWNER => self.owner()?,
            OFFER => Frame::Offer(self.offer()?),
            ARM_CONFIRM => Frame::ArmConfirm(self.arm_confirm()?),
            KEY_ADD => Frame::KeyAdd { key: self.key()?, standby_rkey: self.u32()? },
            KEY_DEL => Frame::KeyDel(self.key()?),
            KEY_DEL_ACK => Frame::KeyDelAck(self.key()?),
            KEY_ASK => Frame::KeyAsk { device: self.u16()?, rkey: self.u32()? },
            KEY_ANSWER => Frame::KeyAnswer { device: self.u16()?, rkey: self.u32()?, state: self.key_state()? },
            PROBE => Frame::Probe(self.probe()?),
            PING => Frame::Ping { stamp: self.u64()? },
            PONG => Frame::Pong { stamp: self.u64()? },
            GOODBYE => Frame::Goodbye,
            MIGRATION => Frame::Migration {
                number: self.u64()?,
                to: self.endpoint()?,
                from: self.endpoint()?,
                msg: self.handshake()?,
            },
            unknown => return Err(FrameError::Kind(unknown)),
        })
    }
}
