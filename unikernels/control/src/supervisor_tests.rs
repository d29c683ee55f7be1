//! The supervisor over whole lives of domains.

use super::*;
use proptest::prelude::*;

const D: DomId = DomId(2);
const OTHER: DomId = DomId(3);

fn death(domid: DomId, time_ns: u64, why: u32) -> Event {
    let mut event = Event { domid, cause: why, time_ns, ..Event::default() };
    event.text[..4].copy_from_slice(b"oops");
    event
}

fn supervisor(policy: Policy) -> Supervisor {
    let mut s = Supervisor::default();
    s.add(D, policy, 0);
    s.add(OTHER, policy, 0);
    s
}

/// Dies `uptime` after each start until the supervisor gives up or `limit` deaths have passed; the delays.
fn lives(s: &mut Supervisor, uptime: u64, limit: usize) -> (Vec<u64>, bool) {
    let (mut now, mut delays) = (0, Vec::new());
    for _ in 0..limit {
        now += uptime;
        match s.on_event(&death(D, now, cause::CRASH), now).0 {
            Decision::Restart => delays.push(0),
            Decision::BackOff { delay_ns, .. } => {
                assert_eq!(s.due(now + delay_ns - 1), None);
                assert_eq!(s.next_deadline(), Some(now + delay_ns));
                now += delay_ns;
                assert_eq!(s.due(now), Some(D));
                delays.push(delay_ns);
            }
            Decision::GiveUp { .. } => return (delays, true),
            other => panic!("{other:?}"),
        }
        s.on_restarted(D, now);
    }
    (delays, false)
}

#[test]
fn dying_at_every_start_backs_off_and_is_given_up_while_others_live() {
    let mut s = supervisor(Policy { max_restarts: 6, ..Policy::default() });
    let (delays, gave_up) = lives(&mut s, 2 * MS, 100);
    assert_eq!(delays, [0, 0, 0, 100 * MS, 200 * MS, 400 * MS]);
    assert!(gave_up);
    let d = s.get(D).unwrap();
    assert_eq!(d.state_name(state::STOPPED), "gave-up");
    assert_eq!(d.why, "gave up after 7 failures: panic: oops (at 0x0)");
    assert_eq!(s.due(u64::MAX), None);
    assert_eq!(s.get(OTHER).unwrap().standing, Standing::Running { since_ns: 0 });
    assert_eq!(s.on_event(&death(OTHER, 9, cause::CRASH), 9).0, Decision::Restart);
}

#[test]
fn waiting_is_no_stable_time() {
    let policy = Policy { max_restarts: 8, window_ns: 1000 * MS, ..Policy::default() };
    assert!(lives(&mut supervisor(policy), MS, 100).1);
}

#[test]
fn a_stable_time_is_a_new_start() {
    let policy = Policy { max_restarts: 4, window_ns: 100 * MS, ..Policy::default() };
    let (delays, gave_up) = lives(&mut supervisor(policy), 101 * MS, 50);
    assert!(!gave_up && delays.iter().all(|&d| d == 0));
}

#[test]
fn no_wait_is_longer_than_the_longest() {
    let (delays, _) = lives(&mut supervisor(Policy { max_restarts: 100, ..Policy::default() }), 1, 60);
    assert_eq!(delays.iter().max(), Some(&MAX_BACK_OFF_NS));
}

#[test]
fn two_hundred_ordered_crashes_are_not_its_fault() {
    let mut s = supervisor(Policy::default());
    for i in 1..=200 {
        s.order_crash(D);
        assert_eq!(s.on_event(&death(D, i * 1000, cause::WATCHDOG), i * 1000), (Decision::Restart, true));
        s.on_restarted(D, i * 1000);
    }
    assert!(s.get(D).unwrap().failures.is_empty());
}

#[test]
fn shutdown_kill_and_policy_are_left() {
    let mut s = supervisor(Policy { on_failure: OnFailure::Stop, ..Policy::default() });
    assert_eq!(s.on_event(&death(D, 5, cause::CRASH), 5).0, Decision::Leave);
    let mut s = supervisor(Policy::default());
    assert_eq!(s.on_event(&death(D, 5, cause::POWEROFF), 5).0, Decision::Leave);
    s.order_kill(OTHER, true);
    assert_eq!(s.on_event(&death(OTHER, 5, cause::ADMIN), 5), (Decision::Leave, true));
    assert_eq!(s.get(OTHER).unwrap().why, "killed by order");
    s.order_restart(OTHER);
    s.on_restarted(OTHER, 7);
    assert_eq!(s.get(OTHER).unwrap().state_name(state::RUNNING), "running");
}

#[test]
fn what_waits_to_be_started_again_can_be_killed() {
    let mut s = supervisor(Policy::default());
    let mut now = 0;
    while s.on_event(&death(D, now, cause::CRASH), now).0 == Decision::Restart {
        s.on_restarted(D, now);
        now += 1;
    }
    assert!(s.next_deadline().is_some());
    assert!(s.order_kill(D, true));
    assert_eq!((s.due(u64::MAX), s.next_deadline()), (None, None));
    let d = s.get(D).unwrap();
    assert_eq!((d.state_name(state::STOPPED), d.why.as_str()), ("stopped", "killed by order"));
    // It can be begun anew, and then its failures are failures.
    s.order_restart(D);
    s.on_restarted(D, now);
    assert_eq!(s.on_event(&death(D, now + 1, cause::CRASH), now + 1), (Decision::Restart, false));
    assert!(!s.order_kill(D, true));
}

#[test]
fn a_reboot_is_carried_out_whatever_failures_lead_to_but_a_loop_of_them_is_ended() {
    for on_failure in OnFailure::ALL {
        let mut s = supervisor(Policy { on_failure, max_restarts: 5, ..Policy::default() });
        for i in 1..=200 {
            s.order_shutdown(D, true, i);
            s.on_acknowledged(D);
            assert!(s.get(D).unwrap().order.is_some_and(|o| o.acknowledged && o.name() == "reboot"));
            assert_eq!(s.on_event(&death(D, i * 1000, cause::REBOOT), i * 1000), (Decision::Restart, true));
            s.on_restarted(D, i * 1000);
            assert_eq!(s.get(D).unwrap().order, None);
        }
        let mut now = 300_000;
        let mut own = || {
            now += 1;
            let decision = s.on_event(&death(D, now, cause::REBOOT), now).0;
            if let Decision::Restart | Decision::BackOff { .. } = decision {
                s.on_restarted(D, now);
            }
            decision
        };
        assert!((0..3).all(|_| own() == Decision::Restart));
        assert!((0..2).all(|_| matches!(own(), Decision::BackOff { .. })));
        assert_eq!(own(), Decision::GiveUp { failures: 6 });
        assert!(s.get(D).unwrap().why.contains("reboot"));
    }
}

#[test]
fn a_guest_asked_to_switch_off_that_reboots_or_crashes_did_so_by_itself() {
    for (why, decision) in [(cause::REBOOT, Decision::Restart), (cause::CRASH, Decision::Destroy)] {
        let mut s = supervisor(Policy { on_failure: OnFailure::Destroy, ..Policy::default() });
        s.order_shutdown(D, false, 1);
        assert_eq!(s.on_event(&death(D, 5, why), 5), (decision, false));
    }
    let mut s = supervisor(Policy::default());
    s.order_shutdown(D, false, 1);
    assert_eq!(s.on_event(&death(D, 5, cause::POWEROFF), 5), (Decision::Leave, true));
}

#[test]
fn what_is_not_there_neither_dies_nor_waits() {
    let mut s = Supervisor::default();
    s.add_absent(D, Policy::default());
    assert_eq!(s.on_event(&death(D, 5, cause::CRASH), 5), (Decision::Stale, false));
    assert_eq!((s.due(u64::MAX), s.get(D).unwrap().why.as_str()), (None, "not created yet (start = false)"));
    s.on_restarted(D, 7);
    assert_eq!(s.on_event(&death(D, 8, cause::CRASH), 8).0, Decision::Restart);
    s.on_destroyed(D, "destroyed by order".into());
    assert_eq!(s.on_event(&death(D, 9, cause::CRASH), 9).0, Decision::Stale);
}

#[test]
fn an_event_of_an_earlier_instance_is_stale() {
    let mut s = supervisor(Policy::default());
    s.order_restart(D);
    s.on_restarted(D, 100);
    assert_eq!(s.on_event(&death(D, 99, cause::ADMIN), 120).0, Decision::Stale);
    assert_eq!(s.on_event(&death(D, 100, cause::CRASH), 120).0, Decision::Restart);
    assert_eq!(s.on_event(&death(D, 100, cause::CRASH), 120).0, Decision::Stale);
    assert_eq!(s.on_event(&death(DomId(9), 100, cause::CRASH), 120).0, Decision::Leave);
}

#[test]
fn a_restart_that_fails_is_tried_again_and_given_up() {
    let mut s = supervisor(Policy { max_restarts: 5, ..Policy::default() });
    assert_eq!(s.on_event(&death(D, 5, cause::CRASH), 5).0, Decision::Restart);
    let mut now = 5;
    let gave_up = (0..10).any(|_| match s.on_restart_failed(D, "ENOMEM", now) {
        Decision::BackOff { delay_ns, .. } => {
            now += delay_ns;
            assert_eq!(s.due(now), Some(D));
            false
        }
        decision => matches!(decision, Decision::GiveUp { .. }),
    });
    assert!(gave_up && s.get(D).unwrap().why.contains("ENOMEM"));
}

#[test]
fn paused_time_is_not_running_time() {
    let mut s = supervisor(Policy::default());
    s.on_paused(D, true, 10);
    assert_eq!(s.get(D).unwrap().why, "paused by order");
    s.on_paused(D, false, 1000);
    s.on_event(&death(D, 1010, cause::CRASH), 1010);
    assert_eq!(s.get(D).unwrap().ran_ns, 20);
}

#[test]
fn policy_nodes_are_checked() {
    let mut p = Policy::default();
    for (k, v) in [("on-failure", "stop"), ("back-off-ms", "5"), ("max-restarts", "4000000000"), ("window-ms", "7")] {
        p.set(k, v).unwrap();
    }
    assert_eq!(
        p,
        Policy { on_failure: OnFailure::Stop, back_off_ns: 5 * MS, max_restarts: MAX_RESTARTS, window_ns: 7 * MS }
    );
    assert_eq!(p.set("on-failure", "explode"), Err(PolicyError::BadValue));
    assert_eq!(p.set("window-ms", "-1"), Err(PolicyError::BadValue));
    assert_eq!(p.set("window", "1"), Err(PolicyError::UnknownKey));
}

proptest! {
    #[test]
    fn any_sequence_keeps_bounds(steps in proptest::collection::vec((0u8..9, any::<u64>(), 0u32..15), 0..200)) {
        let mut s = supervisor(Policy { max_restarts: 4, ..Policy::default() });
        for (what, time, why) in steps {
            match what {
                0..=2 => { s.on_event(&death(D, time, why), time); }
                3 => s.on_restarted(D, time),
                4 => { s.on_restart_failed(D, "x", time); }
                5 => s.order_crash(D),
                6 => { s.order_kill(D, true); }
                7 => s.on_paused(D, time % 2 == 0, time),
                _ => s.order_restart(D),
            }
            prop_assert!(s.get(D).unwrap().failures.len() <= 5);
            if let Some(at) = s.next_deadline() {
                prop_assert_eq!(s.due(at), Some(D));
            }
        }
    }
}
