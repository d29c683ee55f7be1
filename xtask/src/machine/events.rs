//! Events of the control line, each with its number from the first on; a bounded part of them is kept.

use serde_json::Value;
use std::collections::VecDeque;
use std::time::Instant;

/// What guests write on their consoles is as much as they like, so little of it is kept: whoever follows reads at once.
const CONSOLES: usize = 256;
/// Of all others: more than the deaths and restarts of any campaign.
const OTHERS: usize = 1 << 16;

/// A number, when it came, and what.
pub type Event = (usize, Instant, Value);

/// What is kept.
#[derive(Default)]
pub struct Events {
    kept: VecDeque<Event>,
    /// Of consoles, among them.
    consoles: usize,
    count: usize,
}

/// Whether an event tells what a guest wrote.
pub fn is_console(event: &Value) -> bool {
    event["event"] == "console"
}

impl Events {
    /// One more; the oldest of its sort goes where there are too many.
    pub fn push(&mut self, at: Instant, event: Value) {
        let console = is_console(&event);
        self.consoles += usize::from(console);
        self.kept.push_back((self.count, at, event));
        self.count += 1;
        let (of_sort, most) =
            if console { (self.consoles, CONSOLES) } else { (self.kept.len() - self.consoles, OTHERS) };
        if of_sort > most
            && let Some(oldest) = self.kept.iter().position(|(_, _, event)| is_console(event) == console)
        {
            self.kept.remove(oldest);
            self.consoles -= usize::from(console);
        }
    }

    /// So many came; the next one gets this number.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those from number `from` on that are still there.
    pub fn from(&self, from: usize) -> impl DoubleEndedIterator<Item = &Event> {
        self.kept.range(self.kept.partition_point(|(number, ..)| *number < from)..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_guest_writes_pushes_out_its_own_and_no_others() {
        let mut events = Events::default();
        events.push(Instant::now(), json!({ "event": "died" }));
        for number in 0..CONSOLES + 10 {
            events.push(Instant::now(), json!({ "event": "console", "seq": number }));
        }
        events.push(Instant::now(), json!({ "event": "restarted" }));
        assert_eq!(events.count(), CONSOLES + 12);
        let kept: Vec<_> = events.from(0).collect();
        assert_eq!(kept.len(), CONSOLES + 2);
        assert_eq!((kept[0].0, &kept[0].2["event"]), (0, &json!("died")));
        assert_eq!(
            (kept[1].0, &kept[1].2["seq"]),
            (11, &json!(10)),
            "the oldest are gone, the others keep their numbers"
        );
        assert_eq!(events.from(CONSOLES + 11).next().unwrap().2["event"], "restarted");
        assert_eq!(events.from(3).next().unwrap().0, 11);
        assert!(events.from(events.count()).next().is_none());
        for _ in 0..=OTHERS {
            events.push(Instant::now(), json!({ "event": "died" }));
        }
        assert_eq!(events.from(0).count(), CONSOLES + OTHERS);
    }
}
