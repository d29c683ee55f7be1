//! The control domain's line (COM2): requests with their replies, and the events in between. Its one client is here; `ctl`
//! and others share it through the socket of [`serve`]. The protocol is `docs/control-protocol.md`.

use super::events::{Events, is_console};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for a reply.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where a guest's memory is cleared and filled first, up to gigabytes of it on an emulated CPU.
const LONG: Duration = Duration::from_secs(120);
/// Events that wait for a client to read them.
const QUEUE: usize = 256;

/// A client that gets all events.
struct Follower {
    queue: SyncSender<Value>,
    client: UnixStream,
}

impl Follower {
    /// False if it is one no more. Of a console it may miss something, as it sees from the numbers; where it has no room for another
    /// event (it was stopped by Ctrl-Z), it is cut off.
    fn tell(&self, event: &Value) -> bool {
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(event)) if is_console(&event) => true,
            Err(_) => {
                let _ = self.client.shutdown(Shutdown::Both);
                false
            }
        }
    }
}

#[derive(Default)]
struct State {
    waiting: HashMap<String, Sender<Value>>,
    events: Events,
    followers: Vec<Follower>,
    /// How many of us look at each domain's console; control is told to follow it for the first and to end with the last.
    consoles: HashMap<String, usize>,
    ended: bool,
}

struct Inner {
    line: Mutex<UnixStream>,
    state: Mutex<State>,
    arrived: Condvar,
    next: AtomicU64,
}

/// The line; clones share it.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Takes the line and reads it in a thread of its own.
    ///
    /// # Errors
    /// When the stream or the thread cannot be had.
    pub fn start(line: UnixStream) -> Result<Self> {
        line.set_write_timeout(Some(PATIENCE))?;
        let reader = BufReader::new(line.try_clone()?);
        let control = Self(Arc::new(Inner {
            line: Mutex::new(line),
            state: Mutex::default(),
            arrived: Condvar::new(),
            next: AtomicU64::new(1),
        }));
        let shared = control.clone();
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || shared.read(reader))
            .context("control thread")?;
        Ok(control)
    }

    fn read(&self, reader: BufReader<UnixStream>) {
        for line in reader.split(b'\n') {
            let Ok(line) = line else { break };
            // What is no JSON is noise on a serial line (a half line at a start); a reply lost by it runs into its deadline.
            let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
            let mut state = lock(&self.0.state);
            if value.get("event").is_some() {
                state.followers.retain(|follower| follower.tell(&value));
                state.events.push(Instant::now(), value);
            } else if let Some(waiter) = state.waiting.remove(&key(value.get("id"))) {
                let _ = waiter.send(value);
            }
            self.0.arrived.notify_all();
        }
        let mut state = lock(&self.0.state);
        state.ended = true;
        state.waiting.clear();
        state.followers.clear();
        self.0.arrived.notify_all();
    }

    fn exchange(&self, id: Option<&Value>, line: &str, patience: Duration) -> Result<Value> {
        let (sender, receiver) = channel();
        {
            let mut state = lock(&self.0.state);
            if state.ended {
                bail!("the control line is closed");
            }
            state.waiting.insert(key(id), sender);
        }
        {
            let mut stream = lock(&self.0.line);
            stream.write_all(format!("{line}\n").as_bytes()).context("the control line does not take requests")?;
        }
        receiver.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!(
                "control gave no answer to {line} within {} s; it may still do it: cargo xtask ctl list",
                patience.as_secs()
            ),
            RecvTimeoutError::Disconnected => anyhow!("the control line was closed before an answer to {line} came"),
        })
    }

    /// Sends a request given as an object without `id`; returns the whole reply.
    ///
    /// # Errors
    /// No answer.
    pub fn forward(&self, mut request: serde_json::Map<String, Value>) -> Result<Value> {
        let id = Value::from(self.0.next.fetch_add(1, Ordering::Relaxed));
        request.insert("id".into(), id.clone());
        let patience = patience(&request);
        self.exchange(Some(&id), &Value::Object(request).to_string(), patience)
    }

    /// Sends a line as it is, however malformed; the reply to it has no id.
    ///
    /// # Errors
    /// No answer.
    pub fn raw(&self, line: &str) -> Result<Value> {
        self.exchange(None, line, PATIENCE)
    }

    /// Sends a request and returns what is behind `ok`.
    ///
    /// # Errors
    /// No answer, or control's own error.
    pub fn request(&self, request: &Value) -> Result<Value> {
        let object = request.as_object().cloned().unwrap_or_default();
        let reply = self.forward(object)?;
        match (reply.get("ok"), reply.get("error").and_then(Value::as_str)) {
            (Some(ok), _) => Ok(ok.clone()),
            (_, Some(error)) => bail!("control refuses {request}: {error}"),
            _ => bail!("control answers {request} by {reply}"),
        }
    }

    /// A request without keys.
    ///
    /// # Errors
    /// As [`Control::request`].
    pub fn ask(&self, cmd: &str) -> Result<Value> {
        self.request(&json!({ "cmd": cmd }))
    }

    /// The other end is gone.
    pub fn closed(&self) -> bool {
        lock(&self.0.state).ended
    }

    /// Number of events so far.
    pub fn event_count(&self) -> usize {
        lock(&self.0.state).events.count()
    }

    /// Of all events so far for which `is` has an answer.
    pub fn all_of<T>(&self, is: impl Fn(&Value) -> Option<T>) -> Vec<T> {
        lock(&self.0.state).events.from(0).filter_map(|(_, _, event)| is(event)).collect()
    }

    /// Of the last event for which `is` has an answer.
    pub fn last_of<T>(&self, is: impl Fn(&Value) -> Option<T>) -> Option<T> {
        lock(&self.0.state).events.from(0).rev().find_map(|(_, _, event)| is(event))
    }

    /// The number of the first event from number `from` on that `matches`, of those so far.
    pub fn position(&self, from: usize, matches: impl Fn(&Value) -> bool) -> Option<usize> {
        lock(&self.0.state).events.from(from).find(|(_, _, event)| matches(event)).map(|(number, ..)| *number)
    }

    /// Waits for an event from number `from` on that `matches`; none when the time is up or the line closed.
    pub fn event(&self, from: usize, patience: Duration, matches: impl Fn(&Value) -> bool) -> Option<(Instant, Value)> {
        self.find(from, patience, matches).map(|(_, at, event)| (at, event))
    }

    /// Waits for the first event from number `seen` on that is still there, and moves `seen` behind it.
    pub fn next(&self, seen: &mut usize, patience: Duration) -> Option<Value> {
        let (number, _, event) = self.find(*seen, patience, |_| true)?;
        *seen = number + 1;
        Some(event)
    }

    fn find(
        &self,
        from: usize,
        patience: Duration,
        matches: impl Fn(&Value) -> bool,
    ) -> Option<(usize, Instant, Value)> {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.0.state);
        let mut seen = from;
        loop {
            if let Some(event) = state.events.from(seen).find(|(_, _, event)| matches(event)) {
                return Some(event.clone());
            }
            seen = state.events.count();
            let left = deadline.checked_duration_since(Instant::now()).filter(|_| !state.ended)?;
            state = self.0.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has control follow a domain's console from byte `from` on, until the value is dropped; console events come to all.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn follow_console(&self, domain: &str, from: u64) -> Result<Following> {
        let ok = self.request(&json!({ "cmd": "console", "dom": domain, "seq": from }))?;
        let domain = ok["dom"].as_str().unwrap_or(domain).to_string();
        *lock(&self.0.state).consoles.entry(domain.clone()).or_default() += 1;
        Ok(Following { control: self.clone(), domain })
    }

    /// Serves the line to many clients on a socket, each in threads of its own, until the process ends.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn serve(&self, listener: UnixListener) -> Result<()> {
        let control = self.clone();
        std::thread::Builder::new()
            .name("ctl-server".into())
            .spawn(move || {
                for client in listener.incoming() {
                    let Ok(client) = client else { break };
                    let control = control.clone();
                    // A client that cannot be served is one that sees its connection closed.
                    let _ =
                        std::thread::Builder::new().name("ctl-client".into()).spawn(move || control.attend(&client));
                }
            })
            .context("ctl thread")?;
        Ok(())
    }

    /// Serves one client to its end; what it followed, it follows no more.
    fn attend(&self, client: &UnixStream) -> Option<()> {
        let mut following: Vec<Following> = Vec::new();
        let writer = Arc::new(Mutex::new(client.try_clone().ok()?));
        let mut follows = false;
        for line in BufReader::new(client).lines() {
            let line = line.ok()?;
            if line.trim().is_empty() {
                continue;
            }
            let reply = match serde_json::from_str::<Value>(&line) {
                Ok(Value::Object(mut request)) => {
                    let id = request.remove("id").unwrap_or(Value::Null);
                    if !follows && matches!(request.get("cmd").and_then(Value::as_str), Some("subscribe" | "console")) {
                        follows = true;
                        let (queue, events) = sync_channel(QUEUE);
                        lock(&self.0.state).followers.push(Follower { queue, client: client.try_clone().ok()? });
                        let writer = Arc::clone(&writer);
                        std::thread::spawn(move || {
                            while let Ok(event) = events.recv() {
                                if writeln!(lock(&writer), "{event}").is_err() {
                                    break;
                                }
                            }
                        });
                    }
                    let mut reply = self
                        .serve_one(request, &mut following)
                        .unwrap_or_else(|e| json!({ "error": format!("{e:#}") }));
                    reply["id"] = id;
                    reply
                }
                Ok(_) => json!({ "id": null, "error": "a request is an object" }),
                Err(error) => json!({ "id": null, "error": error.to_string() }),
            };
            writeln!(lock(&writer), "{reply}").ok()?;
        }
        Some(())
    }
}

impl Control {
    /// A request of a client. Its consoles are counted, as others may look at the same.
    fn serve_one(&self, request: serde_json::Map<String, Value>, following: &mut Vec<Following>) -> Result<Value> {
        if request.get("cmd").and_then(Value::as_str) != Some("console") {
            return self.forward(request);
        }
        if request.get("follow") == Some(&Value::Bool(false)) {
            let ended = |f: &Following| request.get("dom").and_then(Value::as_str).is_none_or(|dom| f.domain == dom);
            following.retain(|f| !ended(f));
            return Ok(json!({ "ok": { "dom": request.get("dom"), "following": false } }));
        }
        let reply = self.forward(request)?;
        if let Some(domain) = reply["ok"]["dom"].as_str().filter(|dom| following.iter().all(|f| f.domain != *dom)) {
            *lock(&self.0.state).consoles.entry(domain.to_string()).or_default() += 1;
            following.push(Following { control: self.clone(), domain: domain.to_string() });
        }
        Ok(reply)
    }
}

/// A console that is followed.
pub struct Following {
    control: Control,
    domain: String,
}

impl Following {
    /// The domain's name.
    pub fn domain(&self) -> &str {
        &self.domain
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut state = lock(&self.control.0.state);
        let count = state.consoles.entry(self.domain.clone()).or_default();
        *count = count.saturating_sub(1);
        let last = *count == 0 && !state.ended;
        drop(state);
        if last {
            // Where that fails, the line is gone and with it what was followed.
            let _ = self.control.request(&json!({ "cmd": "console", "dom": self.domain, "follow": false }));
        }
    }
}

fn patience(request: &serde_json::Map<String, Value>) -> Duration {
    let long = matches!(request.get("cmd").and_then(Value::as_str), Some("create" | "restart"));
    if long { LONG } else { PATIENCE }
}

fn key(id: Option<&Value>) -> String {
    id.map_or_else(|| "null".to_string(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control domain that echoes `cmd` as `ok`, tells an event before each reply, and refuses `bad`.
    fn domain(stream: UnixStream) {
        let mut writer = stream.try_clone().unwrap();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let reply = match serde_json::from_str::<Value>(&line) {
                Ok(request) if request["cmd"] == "bad" => json!({ "id": request["id"], "error": "no" }),
                Ok(request) => json!({ "id": request["id"], "ok": request["cmd"] }),
                Err(error) => json!({ "id": null, "error": error.to_string() }),
            };
            writeln!(writer, "noise\n{{\"event\":\"tick\"}}\n{reply}").unwrap();
        }
    }

    fn line() -> Control {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || domain(theirs));
        Control::start(ours).unwrap()
    }

    #[test]
    fn replies_errors_and_events_find_their_way() {
        let control = line();
        assert_eq!(control.ask("list").unwrap(), "list");
        assert!(control.ask("bad").unwrap_err().to_string().contains("no"));
        assert!(control.raw("{x").unwrap()["error"].is_string());
        assert_eq!(control.event_count(), 3);
        assert!(control.event(1, Duration::from_secs(5), |e| e["event"] == "tick").is_some());
        assert!(control.event(0, Duration::from_millis(1), |e| e["event"] == "other").is_none());
    }

    #[test]
    fn clients_of_the_socket_keep_their_own_ids_and_get_events_if_they_follow() {
        let control = line();
        let path = std::env::temp_dir().join(format!("xenolith-ctl-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        control.serve(UnixListener::bind(&path).unwrap()).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        let mut say = |text: &str| {
            client.write_all(text.as_bytes()).unwrap();
            client.write_all(b"\n").unwrap();
        };
        let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
        say(r#"{"id":"mine","cmd":"list"}"#);
        assert_eq!(next(), json!({ "id": "mine", "ok": "list" }));
        say("[1]");
        assert_eq!(next()["error"], "a request is an object");
        say(r#"{"id":7,"cmd":"subscribe"}"#);
        let (a, b) = (next(), next());
        assert!([&a, &b].iter().any(|v| v["event"] == "tick") && [&a, &b].iter().any(|v| v["id"] == 7), "{a} {b}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn filling_a_guest_has_more_time_and_a_closed_line_is_no_late_answer() {
        let of = |request: Value| patience(request.as_object().unwrap());
        assert_eq!(of(json!({ "cmd": "create", "dom": "linux" })), LONG);
        assert_eq!((of(json!({ "cmd": "list" })), of(json!({ "cmd": 1 }))), (PATIENCE, PATIENCE));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let control = Control::start(ours).unwrap();
        std::thread::spawn(move || std::io::Read::read(&mut theirs, &mut [0; 64]));
        let error = control.ask("poweroff").unwrap_err().to_string();
        assert!(error.contains("closed") && !error.contains("within"), "{error}");
    }

    #[test]
    fn a_client_that_does_not_read_costs_no_more_than_its_queue() {
        let (queue, events) = sync_channel(1);
        let (client, other) = UnixStream::pair().unwrap();
        let follower = Follower { queue, client };
        let console = json!({ "event": "console", "text": "y" });
        assert!(follower.tell(&console) && follower.tell(&console), "the second is dropped");
        assert_eq!(events.try_iter().count(), 1);
        assert!(follower.tell(&json!({ "event": "died" })));
        assert!(!follower.tell(&json!({ "event": "restarted" })), "it must not miss this one");
        assert_eq!(std::io::Read::read(&mut &other, &mut [0]).unwrap(), 0, "so it is cut off");
    }
}
