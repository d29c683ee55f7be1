//! Who runs next: a run queue per physical CPU and the running state of each vCPU.
//!
//! Two classes. A driver domain goes first and preempts others, as many wait for it; within a class it is round robin. So that
//! a busy driver domain cannot starve the control domain that would restart it, after [`DRIVER_BURST`] driver slices in a row
//! one of the others, if any waits, gets a slice. Neighbours: `hypervisor/src` owns the loop that picks, enters and decodes;
//! [`crate::timer`] says when; [`crate::watchdog`] counts the time the state machine here calls runnable.

use crate::{DomId, EvtchnPort, VcpuId};
use alloc::collections::VecDeque;

/// Slices driver domains may have in a row while others wait.
pub const DRIVER_BURST: u32 = 8;

/// A vCPU among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuKey {
    /// Its domain.
    pub dom: DomId,
    /// Its number there.
    pub vcpu: VcpuId,
}

/// How urgent a vCPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Of a driver domain.
    Driver,
    /// Of any other.
    Other,
}

/// Where the vCPU that stops running goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutBack {
    /// It was preempted: it has slice left, so it is first of its class.
    Front,
    /// Its slice is over, or it yielded: last of its class.
    Back,
    /// It waits, is paused or stopped.
    Away,
}

/// The runnable vCPUs of one CPU.
#[derive(Debug, Default)]
pub struct RunQueue {
    driver: VecDeque<VcpuKey>,
    other: VecDeque<VcpuKey>,
    current: Option<(VcpuKey, Class)>,
    burst: u32,
}

impl RunQueue {
    /// Nothing runs or waits.
    #[must_use]
    pub const fn new() -> Self {
        Self { driver: VecDeque::new(), other: VecDeque::new(), current: None, burst: 0 }
    }

    /// Makes room for `vcpus`, so that no later operation allocates.
    pub fn reserve(&mut self, vcpus: usize) {
        self.driver.reserve(vcpus);
        self.other.reserve(vcpus);
    }

    fn queue(&mut self, class: Class) -> &mut VecDeque<VcpuKey> {
        match class {
            Class::Driver => &mut self.driver,
            Class::Other => &mut self.other,
        }
    }

    /// The vCPU that runs.
    #[must_use]
    pub fn current(&self) -> Option<VcpuKey> {
        self.current.map(|(key, _)| key)
    }

    /// Whether any vCPU waits for the CPU: if none does, a slice need not end.
    #[must_use]
    pub fn contended(&self) -> bool {
        !self.driver.is_empty() || !self.other.is_empty()
    }

    /// A vCPU became runnable. Says whether the CPU has to look again at once: it idles, or runs a less urgent one. A vCPU
    /// that is queued or running already is left alone.
    #[must_use]
    pub fn wake(&mut self, key: VcpuKey, class: Class) -> bool {
        if self.current() == Some(key) || self.queue(class).contains(&key) {
            return false;
        }
        self.queue(class).push_back(key);
        match self.current {
            None => true,
            Some((_, running)) => running == Class::Other && class == Class::Driver,
        }
    }

    /// Takes the next vCPU to run. The one that ran was [put back](Self::put_back) before, else it goes to the back.
    pub fn pick(&mut self) -> Option<VcpuKey> {
        self.put_back(PutBack::Back);
        let yield_to_other = self.burst >= DRIVER_BURST && !self.other.is_empty();
        let class = if self.driver.is_empty() || yield_to_other { Class::Other } else { Class::Driver };
        let key = self.queue(class).pop_front()?;
        self.burst = if class == Class::Driver { self.burst.saturating_add(1) } else { 0 };
        self.current = Some((key, class));
        Some(key)
    }

    /// The running vCPU stops running.
    pub fn put_back(&mut self, to: PutBack) {
        if let Some((key, class)) = self.current.take() {
            match to {
                PutBack::Front => self.queue(class).push_front(key),
                PutBack::Back => self.queue(class).push_back(key),
                PutBack::Away => {}
            }
        }
    }

    /// Gives a waiting vCPU that may run elsewhere to a CPU that idles: the one that would wait longest here.
    pub fn give_away(&mut self, may: impl Fn(VcpuKey) -> bool) -> Option<(VcpuKey, Class)> {
        for class in [Class::Other, Class::Driver] {
            let queue = self.queue(class);
            if let Some(at) = queue.iter().rposition(|&key| may(key)) {
                return queue.remove(at).map(|key| (key, class));
            }
        }
        None
    }

    /// A waiting vCPU is paused or stopped. The running one is not touched: says whether it is this one, which the CPU then
    /// has to put [`PutBack::Away`].
    pub fn remove(&mut self, key: VcpuKey) -> bool {
        self.driver.retain(|k| *k != key);
        self.other.retain(|k| *k != key);
        self.current() == Some(key)
    }
}

/// What a vCPU does. The numbers are those of `RUNSTATE_*` where there is one (a poll is "blocked").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On a CPU.
    Running,
    /// Waits for a CPU.
    Runnable,
    /// Waits for an event.
    Blocked,
    /// Waits for an event on these ports, even if masked.
    Polling(PollSet),
    /// Not brought up.
    Offline,
}

/// The ports of a poll. As in Xen, a poll of several is woken by any event of the domain; the guest looks anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollSet {
    /// This one.
    One(EvtchnPort),
    /// Several.
    Any,
    /// None: only the deadline, or an upcall.
    Nothing,
}

/// The running state of one vCPU with Xen's run-state times.
#[derive(Clone, Copy, Debug)]
pub struct RunState {
    state: State,
    paused: bool,
    since_ns: u64,
    times_ns: [u64; 4],
}

/// `vcpu_runstate_info.state`.
mod runstate {
    pub const RUNNING: u32 = 0;
    pub const RUNNABLE: u32 = 1;
    pub const BLOCKED: u32 = 2;
    pub const OFFLINE: u32 = 3;
}

impl RunState {
    /// A vCPU that has not been brought up.
    #[must_use]
    pub const fn offline(now_ns: u64) -> Self {
        Self { state: State::Offline, paused: false, since_ns: now_ns, times_ns: [0; 4] }
    }

    /// What it does.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }
    /// Paused by someone.
    #[must_use]
    pub const fn paused(&self) -> bool {
        self.paused
    }
    /// May be given a CPU.
    #[must_use]
    pub fn runnable(&self) -> bool {
        self.state == State::Runnable && !self.paused
    }
    /// Running, or waiting only for a CPU: what the fine watchdog counts.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.state == State::Running || self.runnable()
    }

    fn enter(&mut self, state: State, now_ns: u64) {
        let spent = now_ns.saturating_sub(self.since_ns);
        let was = self.runstate() as usize;
        if let Some(t) = self.times_ns.get_mut(was) {
            *t = t.saturating_add(spent);
        }
        self.since_ns = now_ns;
        self.state = state;
    }

    /// `vcpu_runstate_info.state`; a paused vCPU that could run counts as offline.
    #[must_use]
    pub const fn runstate(&self) -> u32 {
        match self.state {
            State::Running => runstate::RUNNING,
            State::Runnable if self.paused => runstate::OFFLINE,
            State::Runnable => runstate::RUNNABLE,
            State::Blocked | State::Polling(_) => runstate::BLOCKED,
            State::Offline => runstate::OFFLINE,
        }
    }

    /// `vcpu_runstate_info.state_entry_time`.
    #[must_use]
    pub const fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// `vcpu_runstate_info.time`, up to now: running, runnable, blocked, offline.
    #[must_use]
    pub fn times_ns(&self, now_ns: u64) -> [u64; 4] {
        let mut copy = *self;
        copy.enter(self.state, now_ns);
        copy.times_ns
    }

    /// `VCPUOP_up`. Says whether it is to be queued.
    #[must_use]
    pub fn up(&mut self, now_ns: u64) -> bool {
        if self.state == State::Offline {
            self.enter(State::Runnable, now_ns);
        }
        self.runnable()
    }
    /// `VCPUOP_down`, or the domain stops.
    pub fn down(&mut self, now_ns: u64) {
        self.enter(State::Offline, now_ns);
    }
    /// It was picked.
    pub fn run(&mut self, now_ns: u64) {
        if self.runnable() {
            self.enter(State::Running, now_ns);
        }
    }
    /// It is off its CPU, and would go on.
    pub fn preempt(&mut self, now_ns: u64) {
        if self.state == State::Running {
            self.enter(State::Runnable, now_ns);
        }
    }
    /// It waits for an event. The caller has looked, after it unmasked upcalls, that none is pending.
    pub fn block(&mut self, now_ns: u64) {
        if self.state == State::Running {
            self.enter(State::Blocked, now_ns);
        }
    }
    /// It waits for one of some ports. The caller looks again afterwards whether one is pending, and wakes it if so.
    pub fn poll(&mut self, ports: PollSet, now_ns: u64) {
        if self.state == State::Running {
            self.enter(State::Polling(ports), now_ns);
        }
    }

    /// An upcall is pending for it, or its deadline passed. Says whether it is to be queued.
    #[must_use]
    pub fn wake(&mut self, now_ns: u64) -> bool {
        let waits = matches!(self.state, State::Blocked | State::Polling(_));
        if waits {
            self.enter(State::Runnable, now_ns);
        }
        waits && !self.paused
    }

    /// A port of its domain became pending, masked or not. Says whether it is to be queued.
    #[must_use]
    pub fn polled(&mut self, port: EvtchnPort, now_ns: u64) -> bool {
        match self.state {
            State::Polling(PollSet::Any) => self.wake(now_ns),
            State::Polling(PollSet::One(p)) if p == port => self.wake(now_ns),
            _ => false,
        }
    }

    /// It must not run until [`Self::unpause`]; one that runs is told to leave its CPU by the caller.
    pub fn pause(&mut self, now_ns: u64) {
        self.enter(self.state, now_ns);
        self.paused = true;
    }
    /// Says whether it is to be queued.
    #[must_use]
    pub fn unpause(&mut self, now_ns: u64) -> bool {
        self.enter(self.state, now_ns);
        self.paused = false;
        self.runnable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u16) -> VcpuKey {
        VcpuKey { dom: DomId(n), vcpu: VcpuId(0) }
    }

    #[test]
    fn a_driver_domain_preempts_others_and_goes_first() {
        let mut q = RunQueue::new();
        assert!(q.wake(key(3), Class::Other), "an idle CPU looks at once");
        assert_eq!(q.pick(), Some(key(3)));
        assert!(!q.wake(key(4), Class::Other));
        assert!(q.wake(key(1), Class::Driver));
        q.put_back(PutBack::Front);
        assert_eq!(q.pick(), Some(key(1)));
        assert!(!q.wake(key(2), Class::Driver), "drivers do not preempt each other");
        q.put_back(PutBack::Away);
        assert_eq!(q.pick(), Some(key(2)));
        q.put_back(PutBack::Away);
        assert_eq!(q.pick(), Some(key(3)), "the preempted one is first of its class");
        assert_eq!(q.pick(), Some(key(4)));
        assert_eq!(q.pick(), Some(key(3)), "round robin");
    }

    #[test]
    fn a_spinning_driver_domain_leaves_slices_to_the_others() {
        let mut q = RunQueue::new();
        let _idle = q.wake(key(1), Class::Driver);
        let _idle = q.wake(key(2), Class::Other);
        let ran: Vec<_> = (0..3 * (DRIVER_BURST + 1)).filter_map(|_| q.pick()).collect();
        assert_eq!(ran.iter().filter(|k| **k == key(2)).count(), 3);
    }

    #[test]
    fn an_idle_cpu_gets_the_last_of_those_it_may_run() {
        let mut q = RunQueue::new();
        for n in 1..=4 {
            let _look = q.wake(key(n), if n == 4 { Class::Driver } else { Class::Other });
        }
        assert_eq!(q.pick(), Some(key(4)));
        assert_eq!(q.give_away(|k| k != key(3)), Some((key(2), Class::Other)));
        assert_eq!(q.give_away(|k| k == key(4)), None, "what runs stays");
        q.put_back(PutBack::Away);
        assert_eq!((q.pick(), q.pick()), (Some(key(1)), Some(key(3))), "the order of the rest is kept");
    }

    #[test]
    fn removing_the_running_vcpu_is_the_running_cpus_business() {
        let mut q = RunQueue::new();
        let _idle = q.wake(key(1), Class::Other);
        let _idle = q.wake(key(2), Class::Other);
        assert_eq!(q.pick(), Some(key(1)));
        assert!(q.remove(key(1)));
        assert!(!q.remove(key(2)));
        q.put_back(PutBack::Away);
        assert_eq!(q.pick(), None);
    }

    proptest! {
        #[test]
        fn each_vcpu_is_queued_or_running_at_most_once(ops in prop::collection::vec((0u8..6, 0u16..5), 1..200)) {
            let mut q = RunQueue::new();
            let mut ready = std::collections::BTreeSet::new();
            for (op, n) in ops {
                let class = if n < 2 { Class::Driver } else { Class::Other };
                match op {
                    0 | 1 => {
                        let _preempt = q.wake(key(n), class);
                        ready.insert(n);
                    }
                    2 => prop_assert_eq!(q.pick().is_none(), ready.is_empty()),
                    3 => {
                        if let Some(k) = q.current() {
                            ready.remove(&k.dom.0);
                        }
                        q.put_back(PutBack::Away);
                    }
                    4 => q.put_back(PutBack::Front),
                    _ => {
                        if !q.remove(key(n)) {
                            ready.remove(&n);
                        }
                    }
                }
                let mut all: Vec<_> = q.driver.iter().chain(&q.other).copied().chain(q.current()).collect();
                all.sort();
                prop_assert_eq!(all, ready.iter().map(|&n| key(n)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn times_add_up_and_a_paused_vcpu_is_queued_by_nobody() {
        let mut v = RunState::offline(0);
        assert!(v.up(10));
        v.run(15);
        v.block(35);
        v.pause(40);
        assert!(!v.wake(50), "paused");
        assert!(!v.runnable() && !v.busy());
        assert!(v.unpause(60));
        assert_eq!(v.times_ns(70), [20, 15, 15, 20]);
        assert_eq!((v.runstate(), v.since_ns()), (1, 60));
    }

    #[test]
    fn a_poll_is_woken_by_its_port_or_an_upcall_only() {
        let mut v = RunState::offline(0);
        assert!(v.up(0));
        for (set, port, woken) in
            [(PollSet::One(EvtchnPort(3)), 4, false), (PollSet::Any, 4, true), (PollSet::Nothing, 4, false)]
        {
            v.run(0);
            v.poll(set, 0);
            assert_eq!(v.polled(EvtchnPort(port), 0), woken);
            assert_eq!(v.wake(0), !woken);
        }
        v.run(0);
        v.block(0);
        assert!(!v.polled(EvtchnPort(3), 0), "a masked port does not wake a blocked vCPU");
    }
}
