//! More than one standby of queue pairs that receive through one shared receive queue: all of them go to the same one, whichever it is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::time::Duration;

use fabric::{eventually, stays, Mesh, Talk, SRQ};

fn three_rails(net: u8) -> Mesh {
    Mesh::of(net, 3).with_standbys(&[[1, 2].as_slice(); 3])
}

#[test]
fn three_rails_die_in_turn_and_all_that_receive_together_go_on_together() {
    let mesh = Mesh::of(160, 3).with_standbys(&[[1, 2, 3].as_slice(); 3]);
    let mut talk = Talk::new(&mesh);
    let mut rails = vec![0];
    for _ in 0..3 {
        talk.go_on();
        let rail = *rails.last().unwrap();
        mesh.die(rail);
        let next = talk.until_all_have_left(rail);
        assert!(!rails.contains(&next), "rail {next} is dead: {rails:?}");
        rails.push(next);
    }
    talk.ends_well();
}

#[test]
fn with_the_first_standby_dead_as_well_all_go_to_the_second() {
    let mesh = three_rails(161);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    mesh.fabric.set_rail(1, false);
    mesh.die(0);
    assert_eq!(talk.until_all_have_left(0), 2);
    talk.ends_well();
}

#[test]
fn a_standby_that_is_dead_for_one_of_them_is_none_for_all() {
    let mesh = three_rails(162);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    // Hosts are numbered from 1 on; the pair in fault does not know of it.
    mesh.fabric.lock().dead_ports.insert((3, 1));
    mesh.die(0);
    assert_eq!(talk.until_all_have_left(0), 2);
    talk.ends_well();
}

#[test]
fn a_standby_that_dies_in_the_middle_of_the_move_is_left_for_the_next_one() {
    let mesh = three_rails(163);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    mesh.fabric.lock().slow_fence = Some((1, Duration::from_millis(150)));
    mesh.die(0);
    let mut to = 0;
    eventually("the move is under way", || {
        to = mesh.rails().find(|rail| *rail != 0).unwrap_or(0);
        to != 0
    });
    mesh.fabric.set_rail(to, false);
    let [(host, life), _] = mesh.pairs[0];
    eventually("that path is noticed, or never taken", || {
        let is_there = mesh.hosts[host].qp(life, |q| q.is_running() && q.rail() == to);
        if is_there {
            mesh.hosts[host].fail(life);
        }
        is_there || mesh.rails().any(|rail| rail == 3 - to)
    });
    talk.until_all_have_left(to);
    assert!(mesh.rails().all(|rail| rail == 3 - to));
    talk.ends_well();
}

#[test]
fn numbers_of_paths_mean_other_standbys_to_others_and_all_take_the_same_rail() {
    let mesh = Mesh::of(164, 4).with_standbys(&[&[1, 2], &[2, 1], &[2, 1], &[1, 2]]);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    mesh.die(0);
    let first = talk.until_all_have_left(0);
    mesh.die(first);
    assert_eq!(talk.until_all_have_left(first), 3 - first);
    talk.ends_well();
}

#[test]
fn a_standby_that_one_of_them_does_not_have_is_none_for_all() {
    let mesh = Mesh::of(165, 3).with_standbys(&[&[1, 2], &[1, 2], &[2]]);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    mesh.die(0);
    assert_eq!(talk.until_all_have_left(0), 2);
    talk.ends_well();
}

#[test]
fn with_no_standby_in_common_nobody_is_masked() {
    let mut mesh = Mesh::of(166, 3);
    for (host, rails) in [(1, vec![1, 2]), (2, vec![1]), (3, vec![2])] {
        mesh.fabric.lock().standbys.insert(host, rails);
    }
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.connect((0, SRQ), (2, None));
    let nobody_is = || mesh.ends().all(|(host, life)| !mesh.hosts[host].is_armed(life));
    eventually("nobody is armed", nobody_is);
    stays("nobody is armed", 1000, nobody_is);
}

#[test]
fn the_first_rail_is_a_standby_of_those_that_have_left_it_once_it_is_back() {
    let mesh = three_rails(168);
    let mut talk = Talk::new(&mesh);
    talk.go_on();
    mesh.die(0);
    let first = talk.until_all_have_left(0);
    mesh.fabric.set_rail(0, true);
    mesh.fabric.set_rail(3 - first, false);
    mesh.die(first);
    assert_eq!(talk.until_all_have_left(first), 0);
    talk.ends_well();
}
