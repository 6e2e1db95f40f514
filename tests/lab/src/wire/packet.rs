//! What the wire can read in a frame: RoCEv2 over IPv4 and IPv6, and the rest by ethertype and protocol only.
//!
//! Total and allocation-free: any bytes give a [`Packet`]. Layouts: IEEE 802.3, RFC 791, RFC 8200, IBTA annex A17 (RoCEv2), IBA 9.2 (BTH).

/// UDP port of RoCEv2.
pub const ROCE_PORT: u16 = 4791;

/// Opcodes of the reliable connected service (IBA 9.2.2).
pub mod opcode {
    /// Last packet that requests something; responses are above.
    pub const SEND_FIRST: u8 = 0x00;
    /// One-packet SEND.
    pub const SEND_ONLY: u8 = 0x04;
    /// First packet of a WRITE.
    pub const WRITE_FIRST: u8 = 0x06;
    /// One-packet WRITE.
    pub const WRITE_ONLY: u8 = 0x0a;
    /// One-packet WRITE with immediate data.
    pub const WRITE_ONLY_IMM: u8 = 0x0b;
    /// READ request.
    pub const READ_REQUEST: u8 = 0x0c;
    /// First packet of a READ response.
    pub const READ_RESPONSE_FIRST: u8 = 0x0d;
    /// One-packet READ response.
    pub const READ_RESPONSE_ONLY: u8 = 0x10;
    /// ACK or NAK.
    pub const ACK: u8 = 0x11;
    /// Response to an atomic.
    pub const ATOMIC_ACK: u8 = 0x12;
    /// Compare and swap.
    pub const COMPARE_SWAP: u8 = 0x13;
    /// Fetch and add.
    pub const FETCH_ADD: u8 = 0x14;

    /// All packets of SENDs, with and without immediate data.
    pub const SENDS: [u8; 6] = [SEND_FIRST, 0x01, 0x02, 0x03, SEND_ONLY, 0x05];
    /// First packets of messages of several, of SENDs, WRITEs and READ responses.
    pub const FIRSTS: [u8; 3] = [SEND_FIRST, WRITE_FIRST, READ_RESPONSE_FIRST];
    /// What is between first and last packets.
    pub const MIDDLES: [u8; 3] = [0x01, 0x07, 0x0e];
    /// Last packets of messages of several, with and without immediate data.
    pub const LASTS: [u8; 5] = [0x02, 0x03, 0x08, 0x09, 0x0f];
    /// All of a READ response.
    pub const READ_RESPONSES: [u8; 4] = [READ_RESPONSE_FIRST, 0x0e, 0x0f, READ_RESPONSE_ONLY];
    /// All that a responder sends: READ responses, ACKs, atomic ACKs.
    pub const RESPONSES: [u8; 6] = [0x0d, 0x0e, 0x0f, 0x10, ACK, ATOMIC_ACK];
    /// All that a requester sends.
    pub const REQUESTS: [u8; 15] =
        [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, READ_REQUEST, COMPARE_SWAP, FETCH_ADD];
}

/// Base transport header of a RoCEv2 packet, with the fields behind it that a trace is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bth {
    /// Opcode; 0x00 to 0x1f are the reliable connected service.
    pub opcode: u8,
    /// Destination queue pair.
    pub qpn: u32,
    /// Packet sequence number, 24 bits.
    pub psn: u32,
    /// The requester asks for an ACK.
    pub ack_requested: bool,
    /// AETH of a response: syndrome (8 bits) and message sequence number (24 bits); else 0.
    pub aeth: u32,
}

impl Bth {
    /// A response of the reliable connected service.
    pub fn is_response(&self) -> bool {
        opcode::RESPONSES.contains(&self.opcode)
    }

    /// A NAK that says "receiver not ready" (IBA 9.7.5.2.8: syndrome 001 and the timer).
    pub fn is_receiver_not_ready(&self) -> bool {
        self.opcode == opcode::ACK && self.aeth >> 29 == 1
    }

    /// A NAK after which the responder's queue pair is in error (IBA 9.9.3: invalid request, remote access, remote operation; syndrome 011 and a code
    /// other than 0, which asks for a packet that is missing).
    pub fn is_refusal(&self) -> bool {
        self.opcode == opcode::ACK && self.aeth >> 29 == 3 && self.aeth >> 24 & 0x1f != 0
    }
}

/// What the wire knows of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packet {
    /// Ethertype (0 if the frame is too short).
    pub ethertype: u16,
    /// IP protocol or IPv6 next header; 0 if not IP.
    pub protocol: u8,
    /// RoCEv2 header, if it is one.
    pub roce: Option<Bth>,
    /// Source and target port, if it is TCP.
    pub tcp: Option<(u16, u16)>,
    /// Offset of the first byte behind the BTH; 0 if not RoCE.
    pub payload_at: usize,
}

/// Reads what there is to read in `frame`.
pub fn parse(frame: &[u8]) -> Packet {
    let Some(ethertype) = be16(frame, 12) else {
        return Packet::default();
    };
    let (protocol, transport_at) = match ethertype {
        0x0800 => match frame.get(14) {
            Some(first) => (byte(frame, 23), 14 + usize::from(first & 0x0f) * 4),
            None => (0, 0),
        },
        0x86dd => (byte(frame, 20), 14 + 40),
        _ => (0, 0),
    };
    let mut packet = Packet { ethertype, protocol, roce: None, tcp: None, payload_at: 0 };
    if protocol == 6 {
        packet.tcp = be16(frame, transport_at).zip(be16(frame, transport_at + 2));
    }
    if protocol == 17 && be16(frame, transport_at + 2) == Some(ROCE_PORT) {
        packet.roce = parse_bth(frame, transport_at + 8);
        packet.payload_at = packet.roce.map_or(0, |_| transport_at + 8 + 12);
    }
    packet
}

fn parse_bth(frame: &[u8], at: usize) -> Option<Bth> {
    let header = frame.get(at..at + 12)?;
    let opcode = byte(header, 0);
    let aeth = if matches!(opcode, 0x0d | 0x0f | 0x10 | 0x11 | 0x12) { be32(frame, at + 12).unwrap_or(0) } else { 0 };
    Some(Bth {
        opcode,
        qpn: be32(header, 4)? & 0x00ff_ffff,
        psn: be32(header, 8)? & 0x00ff_ffff,
        ack_requested: byte(header, 8) & 0x80 != 0,
        aeth,
    })
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// Big-endian 32 bits at `at`.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// Frames for tests, here so that every test of the wire builds them the same way.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    fn bth(opcode: u8, qpn: u32, psn: u32) -> Vec<u8> {
        let mut bytes = vec![opcode, 0, 0xff, 0xff];
        bytes.extend(qpn.to_be_bytes());
        bytes.extend((psn | 0x8000_0000).to_be_bytes());
        bytes
    }

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, 0x00];
        bytes.extend(ROCE_PORT.to_be_bytes());
        bytes.extend(((payload.len() + 8) as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(payload);
        bytes
    }

    pub(crate) fn roce4(opcode: u8, qpn: u32, psn: u32, data: &[u8]) -> Vec<u8> {
        let mut payload = bth(opcode, qpn, psn);
        payload.extend(data);
        let mut frame = vec![2; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 1, 1, 10, 77, 1, 2]);
        frame.extend(udp(&payload));
        frame
    }

    pub(crate) fn roce6(opcode: u8, qpn: u32, psn: u32) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 17, 64]);
        frame.extend([0xfe; 32]);
        frame.extend(udp(&bth(opcode, qpn, psn)));
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn roce_is_read_over_both_ip_versions() {
        for frame in
            [sample::roce4(0x11, 0x12_3456, 0xff_fffe, &[0x60, 0, 0, 9]), sample::roce6(0x0a, 0x12_3456, 0xff_fffe)]
        {
            let bth = parse(&frame).roce.unwrap();
            assert_eq!((bth.qpn, bth.psn, bth.ack_requested), (0x12_3456, 0xff_fffe, true));
        }
        let ack = parse(&sample::roce4(0x11, 1, 2, &[0x60, 0, 0, 9])).roce.unwrap();
        assert_eq!(ack.aeth, 0x6000_0009);
        assert!(ack.is_response());
    }

    #[test]
    fn another_udp_port_is_not_roce() {
        let mut frame = sample::roce4(0x11, 1, 2, &[]);
        frame[36] ^= 1;
        let packet = parse(&frame);
        assert_eq!((packet.ethertype, packet.protocol, packet.roce), (0x0800, 17, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }

        #[test]
        fn a_truncated_packet_is_never_misread(cut in 0usize..54) {
            let frame = sample::roce4(0x0a, 7, 9, &[]);
            prop_assert!(parse(&frame[..cut.min(frame.len() - 1)]).roce.is_none());
        }
    }
}
