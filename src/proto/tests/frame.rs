//! The bytes of wire version 1: what goes in comes out, and whatever comes in, nothing breaks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use shift_proto::frame::{
    split_prefixed, ArmConfirm, Frame, FrameError, Handshake, Hello, Key, KeyState, Offer, Opening, PathOffer,
    PathPair, Probe, ProbeStep, QpAddress, SlotOffer, StandbyOffer, Versions, MAX_ADDRESSES, MAX_FRAME, MAX_REPORTS,
    MAX_VERSION, OPENING, WIRE_VERSION,
};
use shift_proto::id::{EndpointId, Epoch, Mtu, PathId, ProcessId, Psn, Tuple, MAX_PATHS, MAX_STANDBYS};
use shift_proto::ledger::{IncarnationReport, Proof};
use shift_proto::migrate::{Call, Cause, Word};

fn endpoint() -> impl Strategy<Value = EndpointId> {
    any::<(u64, u32, u8)>().prop_map(|(process, life, side)| EndpointId { process: ProcessId(process), life, side })
}

fn tuple() -> impl Strategy<Value = Tuple> {
    (any::<u32>(), endpoint(), any::<u32>(), any::<u8>()).prop_map(|(epoch, owner, attempt, target)| Tuple {
        epoch: Epoch(epoch),
        owner,
        attempt,
        target: PathId(target),
    })
}

fn psn() -> impl Strategy<Value = Psn> {
    any::<u32>().prop_map(Psn::new)
}

fn mtu() -> impl Strategy<Value = Mtu> {
    prop::sample::select(vec![256, 512, 1024, 2048, 4096]).prop_map(|bytes| Mtu::new(bytes).unwrap())
}

fn report() -> impl Strategy<Value = IncarnationReport> {
    let proof = prop_oneof![Just(Proof::None), Just(Proof::Count), psn().prop_map(Proof::Psn)];
    (any::<u32>(), any::<u8>(), proof, any::<u64>(), any::<bool>()).prop_map(
        |(epoch, path, proof, receives, fenced)| IncarnationReport {
            epoch: Epoch(epoch),
            path: PathId(path),
            proof,
            receives,
            fenced,
        },
    )
}

fn cause() -> impl Strategy<Value = Cause> {
    prop::sample::select(Cause::ALL)
}

fn word() -> impl Strategy<Value = Word> {
    prop::sample::select(vec![Word::Come, Word::Present, Word::Dismissed])
}

fn handshake() -> impl Strategy<Value = Handshake> {
    let reports = vec(report(), 0..=MAX_REPORTS);
    prop_oneof![
        (tuple(), cause()).prop_map(|(tuple, cause)| Handshake::Claim { tuple, cause }),
        tuple().prop_map(|tuple| Handshake::Accept { tuple }),
        tuple().prop_map(|tuple| Handshake::Refuse { tuple }),
        tuple().prop_map(|tuple| Handshake::Wait { tuple }),
        tuple().prop_map(|tuple| Handshake::Commit { tuple }),
        tuple().prop_map(|tuple| Handshake::Cancel { tuple }),
        (tuple(), any::<bool>(), reports).prop_map(|(tuple, fenced, reports)| Handshake::Report {
            tuple,
            fenced,
            reports
        }),
        tuple().prop_map(|tuple| Handshake::Ready { tuple }),
        (tuple(), any::<bool>()).prop_map(|(tuple, seen)| Handshake::Confirm { tuple, seen }),
        any::<u32>().prop_map(|epoch| Handshake::Dead { epoch: Epoch(epoch) }),
        tuple().prop_map(|tuple| Handshake::Surface { tuple }),
        Just(Handshake::Gone),
        (any::<(u64, u64, u8)>(), word()).prop_map(|((leader, number, target), word)| Handshake::Muster {
            call: Call { leader: ProcessId(leader), number },
            target: PathId(target),
            word,
        }),
    ]
}

fn address() -> impl Strategy<Value = QpAddress> {
    any::<([u8; 16], u32)>().prop_map(|(gid, qpn)| QpAddress { gid, qpn })
}

fn path_offer() -> impl Strategy<Value = PathOffer> {
    (address(), mtu(), psn()).prop_map(|(address, mtu, psn_base)| PathOffer { address, mtu, psn_base })
}

fn key() -> impl Strategy<Value = Key> {
    any::<(u16, u32, u32)>().prop_map(|(device, rkey, generation)| Key { device, rkey, generation })
}

fn hello() -> impl Strategy<Value = Hello> {
    let v4 = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
    let v6 = any::<([u8; 16], u16)>().prop_map(SocketAddr::from);
    let addresses = vec(prop_oneof![v4, v6], 0..=MAX_ADDRESSES);
    (any::<(u64, [u8; 16])>(), addresses, "[ -~]{0,60}").prop_map(|((process, token), addresses, version)| Hello {
        process: ProcessId(process),
        token,
        addresses,
        version,
    })
}

fn offer() -> impl Strategy<Value = Offer> {
    let slot = (0..MAX_STANDBYS as u8, path_offer()).prop_map(|(slot, end)| SlotOffer { slot, end });
    let slots = 0..MAX_STANDBYS as u8;
    let pair = (1..MAX_PATHS as u8, slots.clone(), slots);
    let paths = vec(pair.prop_map(|(path, own, peer)| PathPair { path: PathId(path), own, peer }), 0..=MAX_PATHS);
    let standbys = (any::<u32>(), vec(slot, 1..=MAX_STANDBYS), paths, any::<bool>());
    let standby = (standbys, mtu(), psn(), any::<u32>()).prop_map(
        |((revision, standbys, paths, is_first_gone), primary_mtu, primary_psn_base, access)| StandbyOffer {
            revision,
            standbys,
            paths,
            is_first_gone,
            primary_mtu,
            primary_psn_base,
            access,
        },
    );
    (endpoint(), any::<u16>(), address(), address(), option::of(standby))
        .prop_map(|(from, device, own, peer, standby)| Offer { from, device, own, peer, standby })
}

fn key_state() -> impl Strategy<Value = KeyState> {
    prop_oneof![
        Just(KeyState::Absent),
        Just(KeyState::Unprotected),
        any::<(u32, u32)>().prop_map(|(generation, standby_rkey)| KeyState::Known { generation, standby_rkey }),
    ]
}

fn probe() -> impl Strategy<Value = Probe> {
    let step = prop::sample::select(vec![ProbeStep::Offer, ProbeStep::Accept, ProbeStep::Refuse, ProbeStep::Close]);
    (any::<(u64, u32, [u8; 16])>(), step, path_offer()).prop_map(|((pair, generation, peer_gid), step, own)| Probe {
        pair,
        generation,
        step,
        own,
        peer_gid,
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        hello().prop_map(Frame::Hello),
        address().prop_map(Frame::Ask),
        (address(), any::<Option<u16>>()).prop_map(|(address, port)| Frame::Owner { address, port }),
        offer().prop_map(Frame::Offer),
        (endpoint(), endpoint(), any::<u8>(), any::<bool>())
            .prop_map(|(from, to, path, armed)| Frame::ArmConfirm(ArmConfirm { from, to, path: PathId(path), armed })),
        (key(), any::<u32>()).prop_map(|(key, standby_rkey)| Frame::KeyAdd { key, standby_rkey }),
        key().prop_map(Frame::KeyDel),
        key().prop_map(Frame::KeyDelAck),
        any::<(u16, u32)>().prop_map(|(device, rkey)| Frame::KeyAsk { device, rkey }),
        (any::<(u16, u32)>(), key_state()).prop_map(|((device, rkey), state)| Frame::KeyAnswer { device, rkey, state }),
        probe().prop_map(Frame::Probe),
        any::<u64>().prop_map(|stamp| Frame::Ping { stamp }),
        any::<u64>().prop_map(|stamp| Frame::Pong { stamp }),
        Just(Frame::Goodbye),
        (any::<u64>(), endpoint(), endpoint(), handshake()).prop_map(|(number, to, from, msg)| Frame::Migration {
            number,
            to,
            from,
            msg
        }),
    ]
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_encoded_decodes_to_the_same(frame in frame()) {
        prop_assert_eq!(Frame::decode(&bytes_of(&frame)), Ok(frame));
    }

    #[test]
    fn a_frame_cut_off_anywhere_is_short_and_one_with_more_behind_it_is_refused(frame in frame(), at in any::<prop::sample::Index>()) {
        let mut bytes = bytes_of(&frame);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert_eq!(Frame::decode(cut), Err(FrameError::Short));
        bytes.push(0);
        prop_assert_eq!(Frame::decode(&bytes), Err(FrameError::Trailing));
    }

    #[test]
    fn any_bytes_decode_to_a_frame_or_an_error(mut bytes in vec(any::<u8>(), 0..400), kind in 0..20_u8, honest in any::<bool>()) {
        if let (true, [version, second, ..]) = (honest, bytes.as_mut_slice()) {
            (*version, *second) = (WIRE_VERSION, kind);
        }
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(bytes_of(&frame), bytes, "one frame has one encoding");
        }
    }

    #[test]
    fn a_frame_with_one_byte_changed_decodes_to_another_frame_or_an_error(frame in frame(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = bytes_of(&frame);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(decoded) = Frame::decode(&bytes) {
            prop_assert_eq!(bytes_of(&decoded), bytes);
        }
    }

    #[test]
    fn a_stream_in_any_pieces_gives_the_frames_that_went_in(frames in vec(frame(), 1..6), piece in 1..70_usize) {
        let mut stream = Vec::new();
        frames.iter().for_each(|frame| frame.encode_prefixed(&mut stream).unwrap());
        let (mut arrived, mut out) = (Vec::new(), Vec::new());
        for piece in stream.chunks(piece) {
            arrived.extend_from_slice(piece);
            while let Some((bytes, used)) = split_prefixed(&arrived, MAX_FRAME).unwrap() {
                out.push(Frame::decode(bytes).unwrap());
                arrived.drain(..used);
            }
        }
        prop_assert_eq!(out, frames);
        prop_assert!(arrived.is_empty());
    }
}

#[test]
fn another_version_and_an_unknown_kind_are_named() {
    assert_eq!(Frame::decode(&[2, 14]), Err(FrameError::Version(2)));
    assert_eq!(Frame::decode(&[1, 99]), Err(FrameError::Kind(99)));
    assert_eq!(Frame::decode(&[1, 14]), Ok(Frame::Goodbye));
    assert_eq!(Frame::decode(&[]), Err(FrameError::Short));
    assert!(FrameError::Version(2).to_string().contains("version 2"));
}

#[test]
fn lengths_beyond_their_bounds_are_refused_before_anything_is_made_of_them() {
    assert_eq!(split_prefixed(&u32::MAX.to_le_bytes(), MAX_FRAME), Err(FrameError::TooLong));
    assert_eq!(split_prefixed(&(MAX_FRAME as u32 + 1).to_le_bytes(), MAX_FRAME), Err(FrameError::TooLong));
    assert_eq!(split_prefixed(&(MAX_FRAME as u32).to_le_bytes(), MAX_FRAME), Ok(None));
    assert_eq!(split_prefixed(&[1, 0, 0], MAX_FRAME), Ok(None));
    assert_eq!(Frame::decode(&vec![1; MAX_FRAME + 1]), Err(FrameError::TooLong));
    let mut bytes = bytes_of(&Frame::Hello(empty_hello()));
    let count = bytes.len() - 4;
    bytes[count] = 0xff;
    assert_eq!(Frame::decode(&bytes), Err(FrameError::TooMany));
}

#[test]
fn the_longest_frame_of_each_list_is_shorter_than_a_frame_may_be() {
    let address = SocketAddr::from(([0; 16], 1));
    let hello = Hello { addresses: vec![address; MAX_ADDRESSES], version: "x".repeat(MAX_VERSION), ..empty_hello() };
    let mut standby = first_offer(0);
    standby.standbys = vec![standby.standbys[0]; MAX_STANDBYS];
    standby.paths = vec![PathPair { path: PathId(1), own: 0, peer: 0 }; MAX_PATHS];
    let me = EndpointId { process: ProcessId(1), life: 1, side: 0 };
    let tuple = Tuple { epoch: Epoch(1), owner: me, attempt: 1, target: PathId(1) };
    let proof = Proof::Psn(Psn::new(0));
    let report = IncarnationReport { epoch: Epoch(0), path: PathId(0), proof, receives: 0, fenced: true };
    let msg = Handshake::Report { tuple, fenced: true, reports: vec![report; MAX_REPORTS] };
    let migration = Frame::Migration { number: 1, to: me, from: me, msg };
    for frame in [Frame::Hello(hello), offer_of(Some(standby)), migration] {
        let length = bytes_of(&frame).len();
        assert!(length < MAX_FRAME / 2, "{length} bytes: {frame:?}");
        assert_eq!(Frame::decode(&bytes_of(&frame)), Ok(frame));
    }
}

#[test]
fn a_frame_of_just_the_longest_length_is_read() {
    let mut bytes = vec![0; MAX_FRAME];
    [bytes[0], bytes[1]] = [WIRE_VERSION, 14];
    assert_eq!(Frame::decode(&bytes), Err(FrameError::Trailing));
}

#[test]
fn slots_and_paths_beyond_their_bounds_are_refused_by_name() {
    let slots = MAX_STANDBYS as u8;
    let pair = |path: usize, own, peer| PathPair { path: PathId(path as u8), own, peer };
    let refused = |slot, pair| {
        let mut offer = first_offer(slot);
        offer.paths.push(pair);
        Frame::decode(&bytes_of(&offer_of(Some(offer)))).err()
    };
    assert_eq!(refused(slots - 1, pair(MAX_PATHS - 1, slots - 1, slots - 1)), None);
    assert_eq!(refused(0, pair(1, 0, 0)), None);
    assert_eq!(refused(slots, pair(1, 0, 0)), Some(FrameError::Value("slot")));
    assert_eq!(refused(0, pair(1, slots, 0)), Some(FrameError::Value("slot")));
    assert_eq!(refused(0, pair(1, 0, slots)), Some(FrameError::Value("slot")));
    assert_eq!(refused(0, pair(0, 0, 0)), Some(FrameError::Value("path")), "the first path is nobody's standby");
    assert_eq!(refused(0, pair(MAX_PATHS, 0, 0)), Some(FrameError::Value("path")));
}

#[test]
fn only_a_later_offer_may_be_without_a_standby() {
    let decoded = |offer: StandbyOffer| Frame::decode(&bytes_of(&offer_of(Some(offer)))).err();
    assert_eq!(decoded(first_offer(0)), None);
    assert_eq!(decoded(StandbyOffer { revision: 1, ..first_offer(0) }), None);
    assert_eq!(decoded(StandbyOffer { revision: 1, standbys: Vec::new(), ..first_offer(0) }), None);
    let nothing = StandbyOffer { standbys: Vec::new(), ..first_offer(0) };
    assert_eq!(decoded(nothing), Some(FrameError::Value("standbys")));
}

const NOBODY: QpAddress = QpAddress { gid: [0; 16], qpn: 0 };

fn first_offer(slot: u8) -> StandbyOffer {
    let end = PathOffer { address: NOBODY, mtu: Mtu::MIN, psn_base: Psn::new(0) };
    StandbyOffer {
        revision: 0,
        standbys: vec![SlotOffer { slot, end }],
        paths: Vec::new(),
        is_first_gone: false,
        primary_mtu: Mtu::MIN,
        primary_psn_base: Psn::new(0),
        access: 0,
    }
}

fn offer_of(standby: Option<StandbyOffer>) -> Frame {
    let from = EndpointId { process: ProcessId(1), life: 1, side: 0 };
    Frame::Offer(Offer { from, device: 0, own: NOBODY, peer: NOBODY, standby })
}

fn empty_hello() -> Hello {
    Hello { process: ProcessId(1), token: [0; 16], addresses: Vec::new(), version: String::new() }
}

#[test]
fn lists_beyond_their_bounds_are_not_sent_and_leave_the_buffer_as_it_was() {
    let mut out = vec![7];
    let long = Frame::Hello(Hello { version: "x".repeat(MAX_VERSION + 1), ..empty_hello() });
    assert_eq!(long.encode(&mut out), Err(FrameError::TooMany));
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let many = Frame::Hello(Hello { addresses: vec![address; MAX_ADDRESSES + 1], ..empty_hello() });
    assert_eq!(many.encode_prefixed(&mut out), Err(FrameError::TooMany));
    let me = EndpointId { process: ProcessId(1), life: 1, side: 0 };
    let tuple = Tuple { epoch: Epoch(1), owner: me, attempt: 1, target: PathId(1) };
    let report = IncarnationReport { epoch: Epoch(0), path: PathId(0), proof: Proof::None, receives: 0, fenced: true };
    let msg = Handshake::Report { tuple, fenced: true, reports: vec![report; MAX_REPORTS + 1] };
    assert_eq!(Frame::Migration { number: 1, to: me, from: me, msg }.encode(&mut out), Err(FrameError::TooMany));
    assert_eq!(out, [7]);
}

#[test]
fn the_bytes_of_version_1_do_not_change() {
    let me = EndpointId { process: ProcessId(0x0102_0304_0506_0708), life: 9, side: 1 };
    let tuple = Tuple { epoch: Epoch(2), owner: me, attempt: 3, target: PathId(1) };
    let msg = Handshake::Claim { tuple, cause: Cause::Stalled };
    let end = [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 1];
    let expected =
        [&[1, 15, 7, 0, 0, 0, 0, 0, 0, 0][..], &end, &end, &[1, 2, 0, 0, 0], &end, &[3, 0, 0, 0, 1, 3]].concat();
    assert_eq!(bytes_of(&Frame::Migration { number: 7, to: me, from: me, msg }), expected);
    assert!(Cause::ALL.iter().map(|cause| *cause as u8).eq(1..=10));
}

fn versions() -> impl Strategy<Value = Versions> {
    any::<(u8, u8)>().prop_map(|(a, b)| Versions { oldest: a.min(b), newest: a.max(b) })
}

proptest! {
    #[test]
    fn an_opening_is_read_as_it_was_said_and_no_byte_early(versions in versions(), keys in any::<(bool, bool)>(), nonce in any::<[u8; 16]>(), cut in 0..OPENING) {
        let opening = Opening { versions, keyed: keys.0, two_keys: keys.1, nonce };
        let bytes = opening.encode();
        prop_assert_eq!(Opening::decode(&bytes), Ok(Some(opening)));
        prop_assert_eq!(Opening::decode(&bytes[..cut]), Ok(None));
    }

    #[test]
    fn any_bytes_are_an_opening_or_an_error(mut bytes in vec(any::<u8>(), 0..64), honest in any::<bool>()) {
        if honest {
            bytes.iter_mut().zip(b"shift-v\0").for_each(|(byte, wanted)| *byte = *wanted);
        }
        if let Ok(Some(opening)) = Opening::decode(&bytes) {
            prop_assert_eq!(&opening.encode()[..8], &bytes[..8]);
            prop_assert!(opening.versions.oldest <= opening.versions.newest);
        }
    }

    #[test]
    fn the_newest_version_that_both_speak_is_agreed(a in versions(), b in versions()) {
        let both = (0..=255_u8).filter(|v| [a, b].iter().all(|s| (s.oldest..=s.newest).contains(v))).max();
        prop_assert_eq!(a.agreed(b), both);
        prop_assert_eq!(b.agreed(a), both);
    }
}

#[test]
fn the_bytes_of_an_opening_do_not_change() {
    let opening = Opening {
        versions: Versions { oldest: 1, newest: 2 },
        keyed: true,
        two_keys: false,
        nonce: *b"0123456789abcdef",
    };
    assert_eq!(opening.encode(), *b"shift-v\0\x01\x02\x01\x000123456789abcdef");
}

#[test]
fn an_opening_of_no_version_is_none_and_one_of_a_single_version_is_told_so() {
    let decoded = |oldest, newest| {
        let opening = Opening { versions: Versions { oldest, newest }, keyed: false, two_keys: false, nonce: [0; 16] };
        Opening::decode(&opening.encode()).map(|opening| opening.unwrap().versions.to_string())
    };
    assert_eq!(decoded(2, 1), Err(FrameError::Value("opening")));
    assert_eq!(decoded(2, 2).unwrap(), "wire version 2");
    assert_eq!(decoded(2, 3).unwrap(), "wire versions 2 to 3");
}
