//! The table against a naive model: a flat list of open ports, no indices.

use super::*;
use proptest::prelude::*;

const LIMIT: u32 = 6;
const DOMS: u16 = 3;
const VCPUS: u32 = 2;

impl Ports {
    fn live(&self) -> impl Iterator<Item = (EvtchnPort, Channel)> + '_ {
        let ports = (0u32..).zip(&self.ports);
        ports.filter(|(_, p)| p.channel != Channel::Closed).map(|(n, p)| (EvtchnPort(n), p.channel))
    }
}

impl EvtchnTable {
    /// What a port is ([`Channel::Closed`] where there is none).
    fn channel(&self, dom: DomId, port: EvtchnPort) -> Channel {
        self.of(dom).and_then(|d| d.get(port)).map_or(Channel::Closed, |p| p.channel)
    }

    /// Checks that both ends of each channel name each other and that the interrupt maps are exact.
    fn check(&self) -> Result<(), (DomId, EvtchnPort)> {
        for (&dom, d) in &self.domains {
            let bound = d.live().filter(|(_, c)| matches!(c, Channel::Virq(_) | Channel::Pirq(_))).count();
            if bound != d.virqs.len().saturating_add(d.pirqs.len()) || d.ports.len() > d.limit as usize {
                return Err((dom, EvtchnPort(0)));
            }
            for (port, channel) in d.live() {
                let right = match channel {
                    Channel::Interdomain(remote, peer) => self.channel(remote, peer) == Channel::Interdomain(dom, port),
                    Channel::Virq(virq) => d.virqs.iter().any(|(&(v, _), &p)| v == virq && p == port),
                    Channel::Pirq(pirq) => d.pirqs.get(&pirq) == Some(&port),
                    _ => port.0 != 0,
                };
                if !right {
                    return Err((dom, port));
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(u16, u16),
    Bind(u16, u16, u32),
    Virq(u16, u32, u32),
    Pirq(u16, u32),
    Ipi(u16, u32),
    Close(u16, u32),
    Send(u16, u32),
    BindVcpu(u16, u32, u32),
    CloseAll(u16),
}

fn op() -> impl Strategy<Value = Op> {
    let dom = || 0..DOMS + 1;
    let port = || 0..LIMIT + 2;
    prop_oneof![
        3 => (dom(), dom()).prop_map(|(a, b)| Op::Alloc(a, b)),
        6 => (dom(), dom(), port()).prop_map(|(a, b, p)| Op::Bind(a, b, p)),
        1 => (dom(), 0..4u32, 0..3u32).prop_map(|(d, v, c)| Op::Virq(d, v, c)),
        1 => (dom(), 0..3u32).prop_map(|(d, v)| Op::Pirq(d, v)),
        1 => (dom(), 0..3u32).prop_map(|(d, v)| Op::Ipi(d, v)),
        3 => (dom(), port()).prop_map(|(d, p)| Op::Close(d, p)),
        2 => (dom(), port()).prop_map(|(d, p)| Op::Send(d, p)),
        1 => (dom(), port(), 0..3u32).prop_map(|(d, p, v)| Op::BindVcpu(d, p, v)),
        1 => dom().prop_map(Op::CloseAll),
    ]
}

/// One open port of the model: domain, number, channel, vCPU.
type Entry = (u16, u32, Channel, u32);

#[derive(Default)]
struct Model(Vec<Entry>);

impl Model {
    fn find(&self, d: u16, p: u32) -> Option<usize> {
        self.0.iter().position(|e| (e.0, e.1) == (d, p))
    }
    fn open(&mut self, d: u16, channel: Channel, vcpu: u32) -> Option<i64> {
        let port = (1..=LIMIT).find(|&p| d < DOMS && self.find(d, p).is_none())?;
        self.0.push((d, port, channel, vcpu));
        Some(port.into())
    }
    fn close(&mut self, d: u16, p: u32) -> Option<i64> {
        let (.., channel, _) = self.0.swap_remove(self.find(d, p)?);
        if let Channel::Interdomain(remote, port) = channel {
            let peer = self.find(remote.0, port.0).unwrap();
            self.0[peer].2 = Channel::Unbound(DomId(d));
        }
        Some(0)
    }
    /// The port made, the vCPU told (+100), or 0; `None` for a refusal.
    fn apply(&mut self, op: &Op) -> Option<i64> {
        match *op {
            Op::Alloc(d, r) => self.open(d, Channel::Unbound(DomId(r)), 0),
            Op::Bind(d, r, p) => {
                let peer = self.find(r, p).filter(|&i| self.0[i].2 == Channel::Unbound(DomId(d)))?;
                let port = self.open(d, Channel::Interdomain(DomId(r), EvtchnPort(p)), 0)?;
                self.0[peer].2 = Channel::Interdomain(DomId(d), EvtchnPort(port as u32));
                Some(port)
            }
            Op::Virq(d, v, c) => {
                let taken = self.0.iter().any(|e| e.0 == d && e.2 == Channel::Virq(v) && (v > 1 || e.3 == c));
                if taken || c >= VCPUS || (v > 1 && c > 0) {
                    return None;
                }
                self.open(d, Channel::Virq(v), c)
            }
            Op::Pirq(d, q) => {
                if self.0.iter().any(|e| e.0 == d && e.2 == Channel::Pirq(q)) {
                    return None;
                }
                self.open(d, Channel::Pirq(q), 0)
            }
            Op::Ipi(d, c) => {
                if c < VCPUS {
                    self.open(d, Channel::Ipi, c)
                } else {
                    None
                }
            }
            Op::Close(d, p) => self.close(d, p),
            Op::Send(d, p) => match self.0[self.find(d, p)?].2 {
                Channel::Interdomain(remote, port) => Some(100 + i64::from(self.0[self.find(remote.0, port.0)?].3)),
                Channel::Ipi => Some(100 + i64::from(self.0[self.find(d, p)?].3)),
                Channel::Unbound(_) => Some(0),
                _ => None,
            },
            Op::BindVcpu(d, p, v) => {
                let i = self.find(d, p).filter(|_| v < VCPUS)?;
                if matches!(self.0[i].2, Channel::Ipi | Channel::Virq(0 | 1)) {
                    return None;
                }
                self.0[i].3 = v;
                Some(0)
            }
            Op::CloseAll(d) => {
                for p in 1..=LIMIT {
                    self.close(d, p);
                }
                Some(0)
            }
        }
    }
}

fn apply(t: &mut EvtchnTable, op: &Op) -> Option<i64> {
    let port = |p: EvtchnPort| i64::from(p.0);
    match *op {
        Op::Alloc(d, r) => t.alloc_unbound(DomId(d), DomId(r)).ok().map(port),
        Op::Bind(d, r, p) => t.bind_interdomain(DomId(d), DomId(r), EvtchnPort(p)).ok().map(|(p, n)| {
            assert_eq!(n, Notify { dom: DomId(d), port: p, vcpu: 0 });
            port(p)
        }),
        Op::Virq(d, v, c) => t.bind_virq(DomId(d), v, c).ok().map(port),
        Op::Pirq(d, q) => t.bind_pirq(DomId(d), q).ok().map(port),
        Op::Ipi(d, c) => t.bind_ipi(DomId(d), c).ok().map(port),
        Op::Close(d, p) => t.close(DomId(d), EvtchnPort(p)).ok().map(|_| 0),
        Op::Send(d, p) => t.send(DomId(d), EvtchnPort(p)).ok().map(|n| n.map_or(0, |n| 100 + i64::from(n.vcpu))),
        Op::BindVcpu(d, p, v) => t.bind_vcpu(DomId(d), EvtchnPort(p), v).ok().map(|()| 0),
        Op::CloseAll(d) => {
            t.close_all(DomId(d));
            Some(0)
        }
    }
}

fn table() -> EvtchnTable {
    let mut t = EvtchnTable::new();
    for d in 0..DOMS {
        t.add_domain(DomId(d), VCPUS, LIMIT);
    }
    t
}

proptest! {
    #[test]
    fn table_agrees_with_the_model(ops in prop::collection::vec(op(), 1..150)) {
        let (mut t, mut model) = (table(), Model::default());
        for op in &ops {
            prop_assert_eq!(apply(&mut t, op), model.apply(op), "{:?}", op);
            prop_assert_eq!(t.check(), Ok(()));
            for d in 0..DOMS {
                for p in 0..LIMIT + 2 {
                    let expected = model.find(d, p).map_or(Channel::Closed, |i| model.0[i].2);
                    prop_assert_eq!(t.channel(DomId(d), EvtchnPort(p)), expected);
                }
            }
        }
    }
}

const A: DomId = DomId(0);
const B: DomId = DomId(1);

#[test]
fn a_restarted_domain_binds_the_same_peer_port_again() {
    let mut t = table();
    let front = t.alloc_unbound(A, B).unwrap();
    let (back, _) = t.bind_interdomain(B, A, front).unwrap();
    t.bind_vcpu(A, front, 1).unwrap();
    assert_eq!(t.send(B, back), Ok(Some(Notify { dom: A, port: front, vcpu: 1 })));
    t.close_all(B);
    assert_eq!(t.send(A, front), Ok(None), "the frontend's kick is dropped, not refused");
    assert_eq!(t.status(A, front).map(|s| (s.status, s.u0, s.vcpu)), Ok((status::UNBOUND, 1, 1)));
    assert_eq!(t.bind_interdomain(DomId(2), A, front), Err(EvtchnError::BadRemote(A, front)));
    let (again, notify) = t.bind_interdomain(B, A, front).unwrap();
    assert_eq!(notify, Notify { dom: B, port: again, vcpu: 0 });
    assert_eq!(t.send(A, front), Ok(Some(Notify { dom: B, port: again, vcpu: 0 })));
}

#[test]
fn limits_and_refusals_have_their_errno() {
    let mut t = table();
    for _ in 0..LIMIT {
        t.bind_ipi(A, 0).unwrap();
    }
    let errno = |e: EvtchnError| Errno::from(e);
    assert_eq!(t.bind_ipi(A, 0).map_err(errno), Err(Errno::ENOSPC));
    assert_eq!(t.bind_ipi(B, 9).map_err(errno), Err(Errno::ENOENT));
    assert_eq!(t.bind_virq(B, NR_VIRQS, 0).map_err(errno), Err(Errno::EINVAL));
    assert_eq!(t.close(B, EvtchnPort(u32::MAX)).map_err(errno), Err(Errno::EINVAL));
    assert_eq!(t.bind_interdomain(B, DomId(99), EvtchnPort(1)).map_err(errno), Err(Errno::ESRCH));
    assert_eq!(t.status(A, EvtchnPort(LIMIT + 1)).map_err(errno), Err(Errno::EINVAL));
    t.bind_pirq(B, 7).unwrap();
    assert_eq!(t.bind_pirq(B, 7).map_err(errno), Err(Errno::EEXIST));
}

#[test]
fn a_virq_notifies_the_vcpu_it_was_bound_on() {
    let mut t = table();
    let timer = t.bind_virq(A, 0, 1).unwrap();
    assert_eq!(t.virq(A, 0, 1), Some(Notify { dom: A, port: timer, vcpu: 1 }));
    assert_eq!(t.virq(A, 0, 0), None);
    let exc = t.bind_virq(A, abi::evtchn::VIRQ_DOM_EXC, 0).unwrap();
    t.bind_vcpu(A, exc, 1).unwrap();
    assert_eq!(t.virq(A, abi::evtchn::VIRQ_DOM_EXC, 0), Some(Notify { dom: A, port: exc, vcpu: 1 }));
    t.close(A, exc).unwrap();
    t.close(A, timer).unwrap();
    assert_eq!((t.virq(A, 0, 1), t.channel(A, timer)), (None, Channel::Closed));
}
