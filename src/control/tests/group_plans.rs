//! Planned moves of queue pairs that share their receives: back to the first path, and off a rail that is drained, with all that are connected, or not at all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use fabric::{eventually, stays, Kind, Mesh, Process, Talk, SRQ};
use serial_test::serial;

fn fail_over(mesh: &Mesh) {
    mesh.fabric.set_rail(0, false);
    let [(_, _), (peer, life)] = mesh.pairs[0];
    mesh.hosts[peer].fail(life);
    eventually("all have moved", || mesh.are_all_on(1));
    mesh.fabric.set_rail(0, true);
}

/// All hosts connected with all others, some of them twice.
fn woven(net: u8) -> Mesh {
    let mut mesh = Mesh::planned(net, 4);
    for (a, b) in [(0, 1), (0, 2), (1, 2), (2, 3), (0, 1)] {
        mesh.connect((a, SRQ), (b, SRQ));
    }
    mesh.is_armed();
    mesh
}

#[test]
#[serial]
fn groups_go_back_to_their_first_path_again_and_again_and_lose_nothing() {
    let mesh = woven(150);
    let mut talk = Talk::new(&mesh);
    for _ in 0..2 {
        talk.go_on();
        fail_over(&mesh);
        talk.until_all_are_on(0);
        mesh.is_armed();
    }
    talk.ends_well();
    assert!(mesh.all(|host, life| host.qp(life, |q| q.reposts == 4)), "there and back, twice");
}

#[test]
#[serial]
fn a_drained_rail_is_left_by_all_that_are_connected_and_gone_back_to_when_it_may_be() {
    let mesh = woven(151);
    let mut talk = Talk::new(&mesh);
    for host in [3, 0] {
        talk.go_on();
        mesh.drain(host, "fake0", true);
        talk.until_all_are_on(1);
        stays("off the drained rail", 1000, || {
            talk.go_on();
            mesh.have_all_left(0)
        });
        mesh.drain(host, "fake0", false);
        talk.until_all_are_on(0);
        mesh.is_armed();
    }
    talk.ends_well();
}

#[test]
#[serial]
fn who_shares_its_receives_with_nobody_is_moved_with_its_peers_group_and_leads_it_where_it_must_not_stay() {
    let mut mesh = Mesh::planned(152, 3);
    mesh.connect((0, SRQ), (1, None));
    mesh.connect((0, SRQ), (2, None));
    mesh.connect((0, SRQ), (2, None));
    mesh.is_armed();
    let mut talk = Talk::new(&mesh);
    for host in [0, 1] {
        mesh.drain(host, "fake0", true);
        talk.until_all_are_on(1);
        mesh.drain(host, "fake0", false);
        talk.until_all_are_on(0);
        mesh.is_armed();
    }
    fail_over(&mesh);
    talk.until_all_are_on(0);
    talk.ends_well();
}

#[test]
#[serial]
fn sends_of_one_far_away_that_do_not_end_put_the_move_of_all_off_and_nothing_else() {
    let mesh = woven(153);
    fail_over(&mesh);
    // The last pair's second host is two groups away from the first.
    mesh.fabric.lock().acks_lost[1] = true;
    let [_, (far, life)] = mesh.pairs[3];
    mesh.hosts[far].post(life, 0, Kind::Send);
    stays("where they are", 3000, || mesh.have_all_left(0));
    mesh.fabric.lock().acks_lost[1] = false;
    eventually("all are back", || mesh.are_all_on(0));
    eventually("all is delivered", || mesh.all(Process::is_done));
    let [(near, life), _] = mesh.pairs[3];
    assert_eq!(mesh.hosts[near].received(life), [0]);
}

#[test]
#[serial]
fn one_that_cannot_go_keeps_all_where_they_are_and_posting() {
    let mesh = woven(154);
    fail_over(&mesh);
    // Hosts are numbered from 1 on.
    mesh.fabric.lock().dead_ports.insert((4, 0));
    let mut talk = Talk::new(&mesh);
    stays("where they are", 2500, || {
        talk.go_on();
        mesh.have_all_left(0)
    });
    eventually("what was posted is delivered", || mesh.all(Process::is_done));
    mesh.fabric.lock().dead_ports.clear();
    talk.until_all_are_on(0);
    talk.ends_well();
}

#[test]
#[serial]
fn a_rail_that_dies_in_the_middle_of_a_move_is_a_fault_like_any_other() {
    let mesh = woven(155);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    eventually("all is delivered", || mesh.all(Process::is_done));
    mesh.fabric.lock().slow_fence = Some((2, std::time::Duration::from_millis(200)));
    mesh.drain(0, "fake0", true);
    eventually("the move is under way", || !mesh.hosts[1].qp(1, fabric::Qp::is_running));
    mesh.fabric.set_rail(0, false);
    talk.until_all_are_on(1);
    talk.ends_well();
}

#[test]
#[serial]
fn what_was_drained_for_long_is_used_again_when_it_may_be() {
    let mesh = woven(157);
    let mut talk = Talk::new(&mesh);
    let is_nobody = || mesh.ends().all(|(host, life)| !mesh.hosts[host].is_armed(life));
    mesh.drain(0, "fake1", true);
    eventually("nobody is armed", is_nobody);
    // Longer than a queue pair is waited for.
    stays("nobody is armed", 4000, is_nobody);
    mesh.drain(0, "fake1", false);
    mesh.is_armed();
    mesh.drain(3, "fake0", true);
    talk.until_all_are_on(1);
    stays("off the drained rail", 4000, || {
        talk.go_on();
        mesh.have_all_left(0)
    });
    mesh.drain(3, "fake0", false);
    talk.until_all_are_on(0);
    talk.ends_well();
}

#[test]
#[serial]
fn a_drained_standby_is_left_by_plan_for_another_one() {
    let mesh = Mesh::planned(156, 3).with_standbys(&[&[1, 2], &[2, 1], &[1, 2]]);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    mesh.die(0);
    let first = talk.until_all_have_left(0);
    let name = format!("fake{first}");
    mesh.drain(0, &name, true);
    assert_eq!(talk.until_all_have_left(first), 3 - first);
    stays("off the drained rail", 1000, || {
        talk.go_on();
        mesh.rails().all(|rail| rail == 3 - first)
    });
    mesh.fabric.set_rail(0, true);
    talk.until_all_are_on(0);
    talk.ends_well();
}
