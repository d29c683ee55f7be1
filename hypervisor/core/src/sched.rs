//! Who runs next: a run queue per physical CPU; and how long each vCPU has run, waited or slept.
//!
//! Two classes. A driver domain goes first and preempts others, as many wait for it; within a class it is round robin. So that
//! a busy driver domain cannot starve the control domain that would restart it, after [`DRIVER_BURST`] driver slices in a row
//! one of the others, if any waits, gets a slice. Neighbours: `hypervisor/src` owns the loop that picks, enters and decodes;
//! [`crate::timer`] says when; what a vCPU does at the moment is an atomic word there.

use crate::{DomId, VcpuId};
use abi::vcpu::{RunstateInfo, runstate};
use alloc::collections::VecDeque;

/// Slices driver domains may have in a row while others wait.
pub const DRIVER_BURST: u32 = 8;

/// What a vCPU may run while others wait for its CPU, ns.
pub const SLICE_NS: u64 = 5_000_000;

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
    /// It was preempted: it has the rest of its slice as first of its class, or, with none left, is last.
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
    /// With its class, and whether it was made runnable meanwhile.
    current: Option<(VcpuKey, Class, bool)>,
    burst: u32,
    /// Of the one that runs, or ran last.
    slice_end_ns: u64,
    /// Of its slice, who was preempted last has this left. Only others than driver domains are.
    rest: Option<(VcpuKey, u64)>,
}

impl RunQueue {
    /// Nothing runs or waits.
    pub const fn new() -> Self {
        Self { driver: VecDeque::new(), other: VecDeque::new(), current: None, burst: 0, slice_end_ns: 0, rest: None }
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
    pub fn current(&self) -> Option<VcpuKey> {
        self.current.map(|(key, ..)| key)
    }

    /// System time at which the one that runs has to let others have the CPU.
    pub const fn slice_end_ns(&self) -> u64 {
        self.slice_end_ns
    }

    /// Whether any vCPU waits for the CPU: if none does, a slice need not end.
    pub fn contended(&self) -> bool {
        !self.driver.is_empty() || !self.other.is_empty()
    }

    /// A vCPU became runnable. Says whether the CPU has to look again at once: it idles, or runs a less urgent one, or one whose slice
    /// had no end yet, as nobody waited. A vCPU that is queued already is left alone; one that runs goes on, also where its CPU is about to
    /// let go of it.
    #[must_use]
    pub fn wake(&mut self, key: VcpuKey, class: Class) -> bool {
        let runs = self.current.as_mut().filter(|(now, ..)| *now == key).map(|(.., woken)| *woken = true);
        if runs.is_some() || self.queue(class).contains(&key) {
            return false;
        }
        let nobody_waited = !self.contended();
        self.queue(class).push_back(key);
        self.current.is_none() || nobody_waited || class == Class::Driver && self.is_preempted()
    }

    /// Whether one waits that is more urgent than the one that runs.
    pub fn is_preempted(&self) -> bool {
        !self.driver.is_empty() && self.current.is_some_and(|(_, class, _)| class == Class::Other)
    }

    /// Takes the next vCPU to run. The one that ran was [put back](Self::put_back) before, else it goes to the back.
    pub fn pick(&mut self, now_ns: u64) -> Option<VcpuKey> {
        self.put_back(PutBack::Back, now_ns);
        let yield_to_other = self.burst >= DRIVER_BURST && !self.other.is_empty();
        let class = if self.driver.is_empty() || yield_to_other { Class::Other } else { Class::Driver };
        let key = self.queue(class).pop_front()?;
        self.burst = if class == Class::Driver { self.burst.saturating_add(1) } else { 0 };
        self.current = Some((key, class, false));
        let rest = if class == Class::Other { self.rest.take().filter(|(of, _)| *of == key) } else { None };
        self.slice_end_ns = now_ns.saturating_add(rest.map_or(SLICE_NS, |(_, ns)| ns));
        Some(key)
    }

    /// The running vCPU stops running. One that was made runnable since it was picked does not get lost: a restart starts it anew while
    /// this CPU still lets go of its former life.
    pub fn put_back(&mut self, to: PutBack, now_ns: u64) {
        if let Some((key, class, woken)) = self.current.take() {
            match to {
                PutBack::Front if now_ns < self.slice_end_ns => {
                    self.rest = Some((key, self.slice_end_ns.saturating_sub(now_ns)));
                    self.queue(class).push_front(key);
                }
                PutBack::Away if !woken => {}
                _ => self.queue(class).push_back(key),
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
}

/// How long a vCPU has been in which run state (`public/vcpu.h`): what guests call stolen time is the runnable part.
#[derive(Clone, Copy, Debug)]
pub struct RunTimes(RunstateInfo);

impl RunTimes {
    /// A vCPU that has not run yet.
    pub const fn new(now_ns: u64) -> Self {
        Self(RunstateInfo { state: runstate::OFFLINE, pad: 0, state_entry_time: now_ns, time: [0; 4] })
    }

    /// It is in `state` ([`runstate`]) from now on.
    pub fn enter(&mut self, state: u32, now_ns: u64) {
        let info = &mut self.0;
        if let Some(time) = info.time.get_mut(info.state as usize) {
            *time = time.saturating_add(now_ns.saturating_sub(info.state_entry_time));
        }
        info.state = state;
        info.state_entry_time = now_ns;
    }

    /// What a guest is told. As in Xen the present state's time runs up to its entry; the guest adds the rest.
    pub const fn info(&self) -> RunstateInfo {
        self.0
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
        assert_eq!(q.pick(0), Some(key(3)));
        assert!(q.wake(key(4), Class::Other), "the slice of the one that runs must get an end");
        assert!(!q.wake(key(5), Class::Other));
        assert!(!q.is_preempted() && q.wake(key(1), Class::Driver) && q.is_preempted());
        q.put_back(PutBack::Front, 0);
        assert_eq!(q.pick(0), Some(key(1)));
        assert!(!q.wake(key(2), Class::Driver), "drivers do not preempt each other");
        q.put_back(PutBack::Away, 0);
        assert_eq!(q.pick(0), Some(key(2)));
        q.put_back(PutBack::Away, 0);
        assert_eq!(q.pick(0), Some(key(3)), "the preempted one is first of its class");
        assert_eq!(q.pick(0), Some(key(4)));
        assert_eq!(q.pick(0), Some(key(5)));
        assert_eq!(q.pick(0), Some(key(3)), "round robin");
    }

    #[test]
    fn what_is_started_again_while_its_cpu_lets_go_of_it_is_not_lost() {
        let mut q = RunQueue::new();
        let _idle = q.wake(key(1), Class::Driver);
        assert_eq!(q.pick(0), Some(key(1)));
        // The CPU has seen that it is down; another one starts it before this one says so.
        assert!(!q.wake(key(1), Class::Driver));
        q.put_back(PutBack::Away, 0);
        assert_eq!(q.pick(0), Some(key(1)));
        q.put_back(PutBack::Away, 0);
        assert_eq!(q.pick(0), None, "once");
    }

    #[test]
    fn a_spinning_driver_domain_leaves_slices_to_the_others() {
        let mut q = RunQueue::new();
        let _idle = q.wake(key(1), Class::Driver);
        let _idle = q.wake(key(2), Class::Other);
        let ran: Vec<_> = (0..3 * (DRIVER_BURST + 1)).filter_map(|_| q.pick(0)).collect();
        assert_eq!(ran.iter().filter(|k| **k == key(2)).count(), 3);
    }

    #[test]
    fn one_that_is_preempted_again_and_again_does_not_keep_its_class_from_the_cpu() {
        let mut q = RunQueue::new();
        for n in [3, 4] {
            let _look = q.wake(key(n), Class::Other);
        }
        let mut ran = [0; 5];
        // A driver domain that wakes each ms and works as long, while nobody else ever waits for anything.
        for now in (0..100).map(|n| n * 1_000_000) {
            let others = q.pick(now).unwrap();
            ran[usize::from(others.dom.0)] += 1;
            assert!(q.wake(key(1), Class::Driver) && q.is_preempted());
            let now = now + 500_000;
            q.put_back(PutBack::Front, now);
            assert_eq!(q.pick(now), Some(key(1)));
            assert_eq!(q.slice_end_ns(), now + SLICE_NS);
            q.put_back(PutBack::Away, now + 500_000);
        }
        assert_eq!(ran[3..], [50, 50], "half a ms at a time, ten of them a slice");
        assert_eq!(q.pick(0), Some(key(3)));
        assert_eq!(q.slice_end_ns(), SLICE_NS, "a new one");
    }

    #[test]
    fn an_idle_cpu_gets_the_last_of_those_it_may_run() {
        let mut q = RunQueue::new();
        for n in 1..=4 {
            let _look = q.wake(key(n), if n == 4 { Class::Driver } else { Class::Other });
        }
        assert_eq!(q.pick(0), Some(key(4)));
        assert_eq!(q.give_away(|k| k != key(3)), Some((key(2), Class::Other)));
        assert_eq!(q.give_away(|k| k == key(4)), None, "what runs stays");
        q.put_back(PutBack::Away, 0);
        assert_eq!((q.pick(0), q.pick(0)), (Some(key(1)), Some(key(3))), "the order of the rest is kept");
    }

    proptest! {
        #[test]
        fn each_vcpu_is_queued_or_running_at_most_once(ops in prop::collection::vec((0u8..5, 0u16..5), 1..200)) {
            let mut q = RunQueue::new();
            let mut ready = std::collections::BTreeSet::new();
            let mut woken = false;
            for (op, n) in ops {
                let class = if n < 2 { Class::Driver } else { Class::Other };
                match op {
                    0 | 1 => {
                        woken |= q.current() == Some(key(n));
                        let _preempt = q.wake(key(n), class);
                        ready.insert(n);
                    }
                    2 => {
                        woken = false;
                        prop_assert_eq!(q.pick(0).is_none(), ready.is_empty());
                    }
                    3 => {
                        if let Some(k) = q.current().filter(|_| !std::mem::take(&mut woken)) {
                            ready.remove(&k.dom.0);
                        }
                        q.put_back(PutBack::Away, 0);
                    }
                    _ => {
                        woken = false;
                        q.put_back(PutBack::Front, 0);
                    }
                }
                let mut all: Vec<_> = q.driver.iter().chain(&q.other).copied().chain(q.current()).collect();
                all.sort();
                prop_assert_eq!(all, ready.iter().map(|&n| key(n)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn run_times_add_up() {
        let mut t = RunTimes::new(0);
        for (state, now) in [
            (runstate::RUNNABLE, 10),
            (runstate::RUNNING, 15),
            (runstate::BLOCKED, 35),
            (runstate::RUNNABLE, 60),
            (runstate::RUNNING, 61),
        ] {
            t.enter(state, now);
        }
        let expected = RunstateInfo { state: runstate::RUNNING, pad: 0, state_entry_time: 61, time: [20, 6, 25, 10] };
        assert_eq!(t.info(), expected);
    }
}
