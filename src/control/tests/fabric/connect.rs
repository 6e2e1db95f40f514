//! Connecting queue pairs of the fabric, as two applications do.

use shift_control::datapath::{ConnectionFacts, DeviceId, Event, GroupId, QpLife};
use shift_proto::id::Mtu;

use super::{gid, Incarnation, Process};

fn facts(own: usize, own_life: u32, peer: usize, peer_life: u32) -> ConnectionFacts {
    ConnectionFacts {
        device: DeviceId(0),
        qpn: 0x100 + own_life,
        gid: gid(own, 0),
        netdev: "lo".to_owned(),
        peer_qpn: 0x100 + peer_life,
        peer_gid: gid(peer, 0),
        mtu: Mtu::new(1024).unwrap(),
        group: None,
    }
}

/// Connects a queue pair of `a` with one of `b`, on rail 0; those of each end that has a group receive through it.
pub fn connect_grouped(
    (a, a_life, a_group): (&Process, u32, Option<u32>),
    (b, b_life, b_group): (&Process, u32, Option<u32>),
) {
    let ends = [(a, a_life, a_group, b, b_life), (b, b_life, b_group, a, a_life)];
    for (own, life, group, peer, peer_life) in ends {
        let mut state = own.fabric.lock();
        let late = group.is_some_and(|group| state.homes.get(&(own.host, group)).is_some_and(|(home, _)| *home != 0));
        let qp = state.qps.entry((own.host, QpLife(life))).or_default();
        (qp.peer, qp.group, qp.late) = (Some((peer.host, QpLife(peer_life))), group, late);
        qp.incarnations.insert(0, Incarnation::default());
    }
    for (own, life, group, peer, peer_life) in ends {
        let facts = ConnectionFacts { group: group.map(GroupId), ..facts(own.host, life, peer.host, peer_life) };
        own.events.send(Event::Connected { qp: QpLife(life), facts });
    }
}

/// Connects a queue pair of `a` that has a group to one of a host that has no shim.
pub fn connect_unmet(a: &Process, life: u32, group: u32, peer: usize) {
    {
        let mut state = a.fabric.lock();
        let late = state.homes.get(&(a.host, group)).is_some_and(|(home, _)| *home != 0);
        let qp = state.qps.entry((a.host, QpLife(life))).or_default();
        (qp.group, qp.late) = (Some(group), late);
        qp.incarnations.insert(0, Incarnation::default());
    }
    let facts = ConnectionFacts { group: Some(GroupId(group)), ..facts(a.host, life, peer, 77) };
    a.events.send(Event::Connected { qp: QpLife(life), facts });
}

/// Connects a queue pair of `a` to one of a host on which the test itself speaks.
pub fn connect_to(a: &Process, a_life: u32, peer: usize, peer_life: u32) {
    a.fabric.lock().qps.entry((a.host, QpLife(a_life))).or_default().incarnations.insert(0, Incarnation::default());
    a.events.send(Event::Connected { qp: QpLife(a_life), facts: facts(a.host, a_life, peer, peer_life) });
}

/// Connects a queue pair of `a` with one of `b`, on rail 0.
pub fn connect(a: &Process, a_life: u32, b: &Process, b_life: u32) {
    connect_hosts(a, a.host, a_life, b, b.host, b_life);
}

/// The same with the hosts named, where several processes share one.
pub fn connect_hosts(a: &Process, a_host: usize, a_life: u32, b: &Process, b_host: usize, b_life: u32) {
    connect_with((a, a_host, a_life), (b, b_host, b_life), || ());
}

/// The same; `between` happens when `b` is connected and `a` is not yet.
pub fn connect_with(
    (a, a_host, a_life): (&Process, usize, u32),
    (b, b_host, b_life): (&Process, usize, u32),
    between: impl FnOnce(),
) {
    {
        let mut state = a.fabric.lock();
        for (own, life, peer, peer_life) in [(a.host, a_life, b.host, b_life), (b.host, b_life, a.host, a_life)] {
            let qp = state.qps.entry((own, QpLife(life))).or_default();
            qp.peer = Some((peer, QpLife(peer_life)));
            qp.incarnations.insert(0, Incarnation::default());
        }
    }
    b.events.send(Event::Connected { qp: QpLife(b_life), facts: facts(b_host, b_life, a_host, a_life) });
    between();
    a.events.send(Event::Connected { qp: QpLife(a_life), facts: facts(a_host, a_life, b_host, b_life) });
}
