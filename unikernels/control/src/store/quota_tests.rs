//! What one domain may hold and what its requests may cost, at the limits.

use super::tests::{A, B, ask, check_tree, ev, events, store};
use super::*;
use abi::io::xs_wire::MsgType;
use alloc::vec::Vec;

#[test]
fn quotas_stop_one_domain_and_not_the_other() {
    let quota = Quota { nodes: 20, watches: 3, transactions: 2, ..Quota::default() };
    let mut s = Store { quota, ..store() };
    let write = |s: &mut Store, d, i: usize| ask(s, d, MsgType::Write, 0, std::format!("n{i}\0v").as_bytes());
    let made = (0..30).take_while(|&i| write(&mut s, A, i).is_ok()).count();
    assert_eq!(made, 19); // and its home
    assert_eq!(write(&mut s, A, 0), Ok(b"OK\0".to_vec()));
    assert_eq!(write(&mut s, A, 99), Err(XsError::NoSpc));
    assert!(write(&mut s, B, 0).is_ok());
    let deep = "a/".repeat(40) + "a\0";
    assert_eq!(ask(&mut s, B, MsgType::Mkdir, 0, deep.as_bytes()), Err(XsError::NoSpc));
    assert_eq!(ask(&mut s, B, MsgType::Write, 0, &[b"big\0", &[b'x'; 2049][..]].concat()), Err(XsError::NoSpc));
    (0..3).for_each(|i| s.watch(A, b"w", &[b'a' + i]).unwrap());
    assert_eq!(s.watch(A, b"w", b"z"), Err(XsError::NoSpc));
    s.start_transaction(A).unwrap();
    s.start_transaction(A).unwrap();
    assert_eq!(s.start_transaction(A), Err(XsError::NoSpc));
    assert_eq!(s.usage(A).nodes, 20);
}

#[test]
fn ten_full_transactions_hold_no_more_than_one_may() {
    let mut s = store();
    let mut refused = 0;
    let ids: Vec<_> = (0..10).map(|_| s.start_transaction(A).unwrap()).collect();
    for &tx in &ids {
        for i in 0..600 {
            let read = ask(&mut s, A, MsgType::Read, tx, std::format!("/{i:x}\0").as_bytes());
            refused += usize::from(read == Err(XsError::NoSpc));
        }
        for i in 0..2000 {
            let _ = ask(&mut s, A, MsgType::Write, tx, std::format!("w{i}\0").as_bytes());
        }
    }
    let held = |s: &Store| s.sessions[&A].transactions.values().map(Transaction::held).sum::<usize>();
    assert!(held(&s) <= s.quota.transaction_bytes && refused > 5000, "{} bytes, {refused} refused", held(&s));
    // One that ends gives its room to the others, and the other domain has its own.
    let own = s.start_transaction(B).unwrap();
    assert!(ask(&mut s, B, MsgType::Write, own, b"x\0").is_ok());
    ids[1..].iter().for_each(|&tx| s.end_transaction(A, tx, false).unwrap());
    assert_eq!(ask(&mut s, A, MsgType::Write, ids[0], b"x\0"), Err(XsError::NoSpc));
    s.end_transaction(A, ids[0], false).unwrap();
    let tx = s.start_transaction(A).unwrap();
    assert!(ask(&mut s, A, MsgType::Write, tx, b"x\0").is_ok());
}

#[test]
fn a_path_of_a_thousand_levels_is_refused_before_it_costs_the_heap() {
    let mut s = store();
    let deep = "/a".repeat(1500) + "\0";
    for kind in [MsgType::Read, MsgType::Mkdir, MsgType::Rm] {
        assert_eq!(ask(&mut s, A, kind, 0, deep.as_bytes()), Err(XsError::NoSpc));
    }
    // What a domain may own, it may also remove at once.
    let mut make = |i: usize| ask(&mut s, A, MsgType::Write, 0, std::format!("d/{i}\0").as_bytes()).is_ok();
    assert!((0..).take_while(|&i| make(i)).count() > 800);
    ask(&mut s, A, MsgType::Rm, 0, b"d\0").unwrap();
    assert_eq!(s.usage(A).nodes, 1);
}

#[test]
fn events_that_nobody_fetches_are_bounded_and_still_tell() {
    let mut s = Store { quota: Quota { events: 4, ..Quota::default() }, ..store() };
    s.watch(A, b"d", b"t").unwrap();
    for i in 0..100 {
        ask(&mut s, A, MsgType::Write, 0, std::format!("d/{i}\0v").as_bytes()).unwrap();
    }
    let events = events(&mut s, A);
    assert!(events.len() <= 5, "{events:?}");
    assert!(events.contains(&ev("d", "t")));
}

#[test]
fn many_changes_under_many_watches_cost_no_more_than_the_queue_is_long() {
    let mut s = store();
    for i in 0..128 {
        s.watch(A, b"d", std::format!("{i}").as_bytes()).unwrap();
    }
    let tx = s.start_transaction(A).unwrap();
    let writes = (0..).take_while(|i| ask(&mut s, A, MsgType::Write, tx, std::format!("d/{i}\0").as_bytes()).is_ok());
    assert!(writes.count() > 50);
    ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0").unwrap();
    let searches = s.sessions[&A].watches.searches();
    assert!(searches < 1000, "{searches}");
    // Each watch has its event, and has one again when there is room.
    assert_eq!(events(&mut s, A).len(), 128);
    ask(&mut s, A, MsgType::Write, 0, b"d/0\0").unwrap();
    assert_eq!(events(&mut s, A).len(), 128);
}

#[test]
fn what_a_refused_operation_has_done_is_taken_back() {
    let mut s = store();
    ask(&mut s, A, MsgType::Write, 0, b"d\0").unwrap();
    let write = [b"d/big/er\0", &[b'x'; 2048][..]].concat();
    let mut refused = 0;
    // Wherever on the way it is refused.
    for room in (0..4000).step_by(20) {
        let tx = s.start_transaction(A).unwrap();
        s.quota.transaction_bytes = room;
        let done = ask(&mut s, A, MsgType::Write, tx, &write);
        s.quota = Quota::default();
        if done.is_err() {
            assert_eq!(done, Err(XsError::NoSpc));
            ask(&mut s, A, MsgType::Write, tx, b"d\0v").unwrap();
            ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0").unwrap();
            assert_eq!(ask(&mut s, A, MsgType::Directory, 0, b"d\0"), Ok(Vec::new()));
            check_tree(&s);
            refused += 1;
        } else {
            ask(&mut s, A, MsgType::TransactionEnd, tx, b"F\0").unwrap();
        }
    }
    assert!((100..199).contains(&refused), "{refused}");
}
