//! The store against examples and against a naive model.

use super::*;
use abi::io::xs_wire::MsgType;
use proptest::prelude::*;
use xenstore::Message;

pub const A: DomId = DomId(1);
pub const B: DomId = DomId(2);

pub fn path(p: &str) -> Path {
    Path::absolute(p).unwrap()
}

pub fn ask(store: &mut Store, domid: DomId, kind: MsgType, tx_id: u32, payload: &[u8]) -> Result<Vec<u8>, XsError> {
    let request = Message { kind: kind as u32, req_id: 9, tx_id, payload: payload.to_vec() };
    let reply = store.handle(domid, &request);
    assert_eq!((reply.req_id, reply.tx_id), (9, tx_id));
    if reply.kind == MsgType::Error as u32 {
        return Err(XsError::from_payload(&reply.payload));
    }
    assert_eq!(reply.kind, kind as u32);
    Ok(reply.payload)
}

pub fn store() -> Store {
    let mut store = Store::new(Quota::default());
    store.introduce(A);
    store.introduce(B);
    for (p, perms) in [("/local/domain/1", "n1"), ("/local/domain/2", "n2"), ("/shared", "b0"), ("/public", "r0")] {
        store.preset(&path(p), Perms::parse(perms.as_bytes(), b',').unwrap(), b"").unwrap();
    }
    store
}

pub fn events(store: &mut Store, domid: DomId) -> Vec<(String, String)> {
    core::iter::from_fn(|| store.next_event(domid)).map(|e| (e.path, e.token)).collect()
}

pub fn ev(path: &str, token: &str) -> (String, String) {
    (path.into(), token.into())
}

use alloc::string::String;
use alloc::vec::Vec;

#[test]
fn a_domain_writes_at_home_and_nowhere_else() {
    let mut s = store();
    assert_eq!(ask(&mut s, A, MsgType::Write, 0, b"device/vif/0/state\x001"), Ok(b"OK\0".to_vec()));
    assert_eq!(ask(&mut s, A, MsgType::Read, 0, b"/local/domain/1/device/vif/0/state\0"), Ok(b"1".to_vec()));
    assert_eq!(ask(&mut s, A, MsgType::GetPerms, 0, b"device/vif\0"), Ok(b"n1\0".to_vec()));
    assert_eq!(ask(&mut s, B, MsgType::Read, 0, b"/local/domain/1/device/vif/0/state\0"), Err(XsError::Acces));
    assert_eq!(ask(&mut s, B, MsgType::Write, 0, b"/local/domain/1/x\0"), Err(XsError::Acces));
    assert_eq!(ask(&mut s, B, MsgType::Write, 0, b"/public/x\0"), Err(XsError::Acces));
    assert_eq!(ask(&mut s, B, MsgType::Read, 0, b"/public/x\0"), Err(XsError::NoEnt));
    assert_eq!(ask(&mut s, B, MsgType::Read, 0, b"/local/domain/1/none\0"), Err(XsError::Acces));
    assert_eq!(ask(&mut s, A, MsgType::Directory, 0, b"device/vif\0"), Ok(b"0\0".to_vec()));
}

#[test]
fn what_a_domain_makes_in_anothers_directory_is_its_own() {
    let mut s = store();
    ask(&mut s, A, MsgType::Write, 0, b"/shared/a\0v").unwrap();
    assert_eq!(ask(&mut s, A, MsgType::GetPerms, 0, b"/shared/a\0"), Ok(b"b1\0".to_vec()));
    assert_eq!(ask(&mut s, A, MsgType::SetPerms, 0, b"/shared/a\0n2\0"), Err(XsError::Perm));
    assert_eq!(ask(&mut s, B, MsgType::SetPerms, 0, b"/shared/a\0n2\0"), Err(XsError::Acces));
    assert_eq!(ask(&mut s, A, MsgType::SetPerms, 0, b"/shared/a\0n1\0r2\0"), Ok(b"OK\0".to_vec()));
    assert_eq!(ask(&mut s, B, MsgType::Read, 0, b"/shared/a\0"), Ok(b"v".to_vec()));
    assert_eq!(ask(&mut s, B, MsgType::Write, 0, b"/shared/a\0w"), Err(XsError::Acces));
}

#[test]
fn malformed_requests_are_einval() {
    let mut s = store();
    for (kind, payload) in [
        (MsgType::Read, &b"no-nul"[..]),
        (MsgType::Read, b"a\0b\0"),
        (MsgType::Read, b"/a//b\0"),
        (MsgType::Write, b"no-nul"),
        (MsgType::Watch, b"p\0token-without-nul"),
        (MsgType::SetPerms, b"/shared\0q1\0"),
        (MsgType::TransactionEnd, b"X\0"),
        (MsgType::GetDomainPath, b"-1\0"),
        (MsgType::Rm, b"/\0"),
        (MsgType::DirectoryPart, b"/public\0999\0"),
        (MsgType::Write, b"@special\0x"),
    ] {
        assert_eq!(ask(&mut s, A, kind, 0, payload), Err(XsError::Inval), "{kind:?}");
    }
    assert_eq!(ask(&mut s, A, MsgType::Introduce, 0, b""), Err(XsError::Acces));
    assert_eq!(ask(&mut s, A, MsgType::Read, 77, b"domid\0"), Err(XsError::NoEnt));
    let unknown = Message { kind: 20, req_id: 1, tx_id: 0, payload: Vec::new() };
    assert_eq!(XsError::from_payload(&s.handle(A, &unknown).payload), XsError::NoSys);
}

#[test]
fn transactions_are_seen_by_others_only_when_committed() {
    let mut s = store();
    let tx = s.start_transaction(A).unwrap();
    ask(&mut s, A, MsgType::Write, tx, b"x\x001").unwrap();
    assert_eq!(ask(&mut s, A, MsgType::Read, tx, b"x\0"), Ok(b"1".to_vec()));
    assert_eq!(ask(&mut s, A, MsgType::Read, 0, b"x\0"), Err(XsError::NoEnt));
    ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0").unwrap();
    assert_eq!(ask(&mut s, A, MsgType::Read, 0, b"x\0"), Ok(b"1".to_vec()));
    assert_eq!(ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0"), Err(XsError::NoEnt));
}

#[test]
fn a_conflict_is_eagain_and_changes_nothing() {
    let mut s = store();
    ask(&mut s, A, MsgType::Write, 0, b"x\x001").unwrap();
    let tx = s.start_transaction(A).unwrap();
    ask(&mut s, A, MsgType::Read, tx, b"x\0").unwrap();
    ask(&mut s, A, MsgType::Write, tx, b"y\x00from-x").unwrap();
    ask(&mut s, A, MsgType::Write, 0, b"x\x002").unwrap();
    assert_eq!(ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0"), Err(XsError::Again));
    assert_eq!(ask(&mut s, A, MsgType::Read, 0, b"y\0"), Err(XsError::NoEnt));
}

#[test]
fn a_node_seen_in_two_versions_dooms_the_transaction() {
    let mut s = store();
    let tx = s.start_transaction(A).unwrap();
    assert_eq!(ask(&mut s, A, MsgType::Read, tx, b"x\0"), Err(XsError::NoEnt));
    ask(&mut s, A, MsgType::Write, 0, b"x\x001").unwrap();
    assert_eq!(ask(&mut s, A, MsgType::Read, tx, b"x\0"), Ok(b"1".to_vec()));
    ask(&mut s, A, MsgType::Rm, 0, b"x\0").unwrap();
    assert_eq!(ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0"), Err(XsError::Again));
}

#[test]
fn watches_fire_at_once_for_the_subtree_and_relative() {
    let mut s = store();
    ask(&mut s, A, MsgType::Watch, 0, b"device\0t\0").unwrap();
    assert_eq!(events(&mut s, A), [ev("device", "t")]);
    let path = |p: &str| Path::absolute(p).unwrap();
    assert!(s.is_watched(A, &path("/local/domain/1/device")));
    assert!(!s.is_watched(A, &path("/local/domain/1")) && !s.is_watched(B, &path("/local/domain/1/device")));
    assert_eq!(ask(&mut s, A, MsgType::Watch, 0, b"/local/domain/1/device\0t\0"), Err(XsError::Exist));
    ask(&mut s, A, MsgType::Write, 0, b"device/vif/0\0v").unwrap();
    ask(&mut s, A, MsgType::Write, 0, b"device/vif/0\0w").unwrap();
    ask(&mut s, A, MsgType::Write, 0, b"elsewhere\0v").unwrap();
    assert_eq!(events(&mut s, A), [ev("device/vif/0", "t")]);
    ask(&mut s, A, MsgType::Unwatch, 0, b"device\0t\0").unwrap();
    ask(&mut s, A, MsgType::Write, 0, b"device/vif/0\0v").unwrap();
    assert_eq!(events(&mut s, A), []);
    assert_eq!(ask(&mut s, A, MsgType::Unwatch, 0, b"device\0t\0"), Err(XsError::NoEnt));
}

#[test]
fn a_transactions_watches_fire_at_its_end() {
    let mut s = store();
    s.watch(A, b"d", b"t").unwrap();
    events(&mut s, A);
    let tx = s.start_transaction(A).unwrap();
    ask(&mut s, A, MsgType::Write, tx, b"d/a\0").unwrap();
    ask(&mut s, A, MsgType::Write, tx, b"d/b\0").unwrap();
    assert!(!s.has_events(A));
    ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0").unwrap();
    assert_eq!(events(&mut s, A), [ev("d/a", "t"), ev("d/b", "t")]);
}

#[test]
fn removal_is_heard_above_and_by_watches_of_what_was_removed() {
    let mut s = store();
    ask(&mut s, A, MsgType::Write, 0, b"d/e/f\0v").unwrap();
    s.watch(A, b"", b"x").unwrap_err();
    s.watch(A, b"d", b"above").unwrap();
    s.watch(A, b"d/e/f", b"exact").unwrap();
    s.watch(A, b"d/e/f/g", b"below").unwrap();
    events(&mut s, A);
    ask(&mut s, A, MsgType::Rm, 0, b"d/e\0").unwrap();
    assert_eq!(events(&mut s, A), [ev("d/e", "above"), ev("d/e/f", "exact")]);
    assert_eq!(ask(&mut s, A, MsgType::Rm, 0, b"d/e\0"), Ok(b"OK\0".to_vec()));
    assert_eq!(ask(&mut s, A, MsgType::Rm, 0, b"d/e/f\0"), Err(XsError::NoEnt));
    assert_eq!(ask(&mut s, A, MsgType::Directory, 0, b"d\0"), Ok(Vec::new()));
}

#[test]
fn nobody_hears_of_what_he_may_not_read() {
    let mut s = store();
    s.watch(B, b"/local/domain/1", b"spy").unwrap();
    events(&mut s, B);
    ask(&mut s, A, MsgType::Write, 0, b"secret\0v").unwrap();
    ask(&mut s, A, MsgType::Rm, 0, b"secret\0").unwrap();
    assert_eq!(events(&mut s, B), []);
    s.watch(B, b"@introduceDomain", b"i").unwrap();
    s.watch(DomId(0), b"@introduceDomain", b"i").unwrap();
    s.watch(DomId(0), b"@releaseDomain", b"r").unwrap();
    events(&mut s, B);
    events(&mut s, DomId(0));
    s.introduce(DomId(3));
    s.release(DomId(3));
    assert_eq!(events(&mut s, B), []);
    assert_eq!(events(&mut s, DomId(0)), [ev("@introduceDomain", "i"), ev("@releaseDomain", "r")]);
}

#[test]
fn a_restart_drops_watches_and_transactions_and_keeps_nodes() {
    let mut s = store();
    ask(&mut s, A, MsgType::Write, 0, b"state\x004").unwrap();
    s.watch(A, b"state", b"t").unwrap();
    let tx = s.start_transaction(A).unwrap();
    s.reset_session(A);
    assert_eq!(s.watch_count(A), 0);
    assert!(!s.has_events(A));
    assert_eq!(ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0"), Err(XsError::NoEnt));
    assert_eq!(ask(&mut s, A, MsgType::Read, 0, b"state\0"), Ok(b"4".to_vec()));
}

/// What is charged covers what the heap gives: `live/` has 2.5 MiB of it for all domains.
#[test]
fn a_node_that_changes_again_and_again_is_told_once() {
    let mut s = store();
    s.watch(A, b"d", b"t").unwrap();
    events(&mut s, A);
    let tx = s.start_transaction(A).unwrap();
    for i in 0..5000 {
        let write = std::format!("d/{}\0{i}", ["a", "b"][i % 2]);
        ask(&mut s, A, MsgType::Write, tx, write.as_bytes()).unwrap();
    }
    ask(&mut s, A, MsgType::Rm, tx, b"d/a\0").unwrap();
    ask(&mut s, A, MsgType::TransactionEnd, tx, b"T\0").unwrap();
    assert_eq!(events(&mut s, A), [ev("d/a", "t"), ev("d/b", "t")]);
}

#[test]
fn long_directories_come_in_parts() {
    let mut s = store();
    for i in 0..600 {
        s.preset(&path(&std::format!("/public/name-{i:03}")), Perms::parse(b"r0", b',').unwrap(), b"").unwrap();
    }
    assert_eq!(ask(&mut s, A, MsgType::Directory, 0, b"/public\0"), Err(XsError::TooBig));
    let (mut list, mut generation) = (Vec::new(), None);
    loop {
        let part = std::format!("/public\0{}\0", list.len());
        let reply = ask(&mut s, A, MsgType::DirectoryPart, 0, part.as_bytes()).unwrap();
        let (g, rest) = xenstore::wire::split_first(&reply).unwrap();
        assert_eq!(generation.get_or_insert(g.to_vec()), g);
        if let Some(last) = rest.strip_suffix(b"\0\0") {
            list.extend_from_slice(last);
            break;
        }
        list.extend_from_slice(rest);
    }
    assert_eq!(list.split(|&b| b == 0).count(), 600);
}

// ---- against a model: one map from path to value, transactions replayed when they end ----

#[derive(Clone, Debug)]
enum Op {
    Write(usize, u8),
    Mkdir(usize),
    Rm(usize),
    Read(usize),
    List(usize),
}

const PATHS: [&str; 8] = [
    "/shared/a",
    "/shared/a/b",
    "/shared/a/b/c",
    "/shared/a/x",
    "/shared/b",
    "/shared/b/q",
    "/shared/a-b",
    "/shared/c",
];

type Model = BTreeMap<String, u8>;

/// What a naive store answers: the value, or the names, as text.
fn model_run(model: &mut Model, op: &Op) -> Result<Vec<u8>, XsError> {
    let of = |i: usize| PATHS[i].to_owned();
    let make = |model: &mut Model, p: &str| {
        let mut at = p.len();
        while let Some(i) = p[..at].rfind('/').filter(|&i| i >= "/shared".len()) {
            model.entry(p[..at].to_owned()).or_insert(0);
            at = i;
        }
    };
    match *op {
        Op::Write(i, v) => {
            make(model, PATHS[i]);
            model.insert(of(i), v);
            Ok(b"OK\0".to_vec())
        }
        Op::Mkdir(i) => {
            make(model, PATHS[i]);
            Ok(b"OK\0".to_vec())
        }
        Op::Rm(i) => {
            let parent = path(PATHS[i]).parent().unwrap();
            let has = |p: &str| p == "/shared" || model.contains_key(p);
            if !has(PATHS[i]) && !has(parent.as_str()) {
                return Err(XsError::NoEnt);
            }
            model.retain(|k, _| k != PATHS[i] && !k.starts_with(&std::format!("{}/", PATHS[i])));
            Ok(b"OK\0".to_vec())
        }
        Op::Read(i) => model.get(PATHS[i]).map(|&v| if v == 0 { Vec::new() } else { vec![v] }).ok_or(XsError::NoEnt),
        Op::List(i) => {
            if !model.contains_key(PATHS[i]) {
                return Err(XsError::NoEnt);
            }
            let prefix = std::format!("{}/", PATHS[i]);
            let names = model.keys().filter_map(|k| k.strip_prefix(&prefix)).filter(|n| !n.contains('/'));
            Ok(names.flat_map(|n| n.bytes().chain([0])).collect())
        }
    }
}

fn store_run(store: &mut Store, domid: DomId, tx: u32, op: &Op) -> Result<Vec<u8>, XsError> {
    let nul = |i: usize| [PATHS[i].as_bytes(), b"\0"].concat();
    match *op {
        Op::Write(i, v) => ask(store, domid, MsgType::Write, tx, &[&nul(i)[..], &[v]].concat()),
        Op::Mkdir(i) => ask(store, domid, MsgType::Mkdir, tx, &nul(i)),
        Op::Rm(i) => ask(store, domid, MsgType::Rm, tx, &nul(i)),
        Op::Read(i) => ask(store, domid, MsgType::Read, tx, &nul(i)),
        Op::List(i) => ask(store, domid, MsgType::Directory, tx, &nul(i)),
    }
}

fn op() -> impl Strategy<Value = Op> {
    let p = 0..PATHS.len();
    prop_oneof![
        (p.clone(), 1u8..255).prop_map(|(i, v)| Op::Write(i, v)),
        p.clone().prop_map(Op::Mkdir),
        p.clone().prop_map(Op::Rm),
        p.clone().prop_map(Op::Read),
        p.prop_map(Op::List),
    ]
}

/// Every node hangs in its parent's list, every listed child exists, and the usage is what one would count.
pub fn check_tree(store: &Store) {
    let mut usage: BTreeMap<DomId, Usage> = BTreeMap::new();
    for (p, node) in store.tree.iter() {
        if let Some(parent) = p.parent() {
            assert!(store.tree.get(&parent).unwrap().children.contains(p.name()), "{p} hangs nowhere");
        }
        for child in &node.children {
            assert!(store.tree.get(&path(&std::format!("{p}/{child}").replace("//", "/"))).is_some());
        }
        let sum = usage.entry(node.perms.owner()).or_default();
        *sum = sum.plus(Usage::of_node(p, node.value.len(), &node.perms));
    }
    for (domid, sum) in usage {
        assert_eq!(store.usage(domid), sum);
    }
}

/// A transaction, its operations with their answers, and whether anything was committed since its start.
type Open = (u32, Vec<(Op, Result<Vec<u8>, XsError>)>, bool);

#[derive(Clone, Debug)]
enum Step {
    Direct(bool, Op),
    Start(usize),
    InTx(usize, Op),
    End(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (any::<bool>(), op()).prop_map(|(b, o)| Step::Direct(b, o)),
        1 => (0usize..3).prop_map(Step::Start),
        4 => (0usize..3, op()).prop_map(|(i, o)| Step::InTx(i, o)),
        1 => (0usize..3, any::<bool>()).prop_map(|(i, c)| Step::End(i, c)),
    ]
}

proptest! {
    /// Direct requests answer as the model does. A transaction that commits answers as if all of it had run at its
    /// end; one that has no rival commits.
    #[test]
    fn the_store_is_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let (mut s, mut model) = (store(), Model::new());
        let mut open: [Option<Open>; 3] = Default::default();
        for step in steps {
            match step {
                Step::Direct(by_a, op) => {
                    let got = store_run(&mut s, if by_a { A } else { B }, 0, &op);
                    prop_assert_eq!(got, model_run(&mut model, &op), "{:?}", op);
                    open.iter_mut().flatten().for_each(|t| t.2 = true);
                }
                Step::Start(i) if open[i].is_none() => open[i] = Some((s.start_transaction(A).unwrap(), Vec::new(), false)),
                Step::Start(_) => {}
                Step::InTx(i, op) => if let Some((tx, log, _)) = &mut open[i] {
                    let answer = store_run(&mut s, A, *tx, &op);
                    log.push((op, answer));
                },
                Step::End(i, commit) => if let Some((tx, log, rivals)) = open[i].take() {
                    match s.end_transaction(A, tx, commit) {
                        Ok(()) if commit => {
                            for (op, answer) in log {
                                prop_assert_eq!(answer, model_run(&mut model, &op), "{:?}", op);
                            }
                            open.iter_mut().flatten().for_each(|t| t.2 = true);
                        }
                        Ok(()) => {}
                        Err(e) => {
                            prop_assert_eq!(e, XsError::Again);
                            prop_assert!(commit && rivals);
                        }
                    }
                },
            }
            check_tree(&s);
        }
        for p in PATHS {
            prop_assert_eq!(s.run(DomId(0), |v| v.read(&path(p))).is_ok(), model.contains_key(p));
        }
    }

    #[test]
    fn arbitrary_messages_get_exactly_one_bounded_reply(
        messages in proptest::collection::vec((0u32..25, 0u32..4, proptest::collection::vec(any::<u8>(), 0..60)), 1..40),
    ) {
        let mut s = store();
        for (kind, tx_id, payload) in messages {
            let reply = s.handle(A, &Message { kind, req_id: 3, tx_id, payload });
            prop_assert!(reply.payload.len() <= 4096 && reply.req_id == 3);
            check_tree(&s);
        }
    }
}
