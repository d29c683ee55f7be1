//! The commands of the control socket, one method for each group. What they answer is in `docs/control-protocol.md`.

use super::Control;
use super::boot::dom_info;
use super::link::Link;
use super::socket::Follow;
use abi::xenolith::{DomOp, Info, state};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use control::json::Object;
use control::protocol::{self, Command, REPLY_MAX, Request, Target};
use control::report;
use control::rights::Crash;
use control::terminal::INPUT_MAX;
use libxenrt::hypercall;
use libxenrt::{DomId, Errno, clock, log, memory};
use xenstore::Path;

/// A reply line, or why there is none.
type Reply = Result<String, String>;

/// Nodes of `/local/domain/N/stats` that are reported.
const PUBLISHED_MAX: usize = 256;

impl Control {
    /// Carries out a request; answers the reply line.
    pub fn carry_out(&mut self, request: &Request) -> String {
        let id = request.id.as_str();
        let reply = match &request.command {
            Ok(command) => self.command(id, command),
            Err(what) => Err(what.clone()),
        };
        reply.unwrap_or_else(|what| protocol::error(id, &what))
    }

    fn command(&mut self, id: &str, command: &Command) -> Reply {
        match command {
            Command::Ping => Ok(protocol::ok(id, |o| {
                o.number("version", protocol::VERSION).number("time_us", clock::now().as_micros());
            })),
            Command::List => self.list(id),
            Command::Stats => self.stats(id),
            Command::Log { dom, seq, max } => self.log(id, dom, *seq, *max),
            Command::Console { dom, follow, seq } => self.console(id, dom, *follow, *seq),
            Command::Input { dom, text } => self.input(id, dom, text),
            Command::Restart { dom } => self.order_restart(id, dom),
            Command::Crash { dom, crash } => self.crash(id, dom, *crash),
            Command::Create { dom } => self.create_or_destroy(id, dom, true),
            Command::Destroy { dom } => self.create_or_destroy(id, dom, false),
            Command::Shutdown { dom, reboot } => self.shutdown(id, dom, *reboot),
            Command::Kill { dom } => self.kill(id, dom),
            Command::Pause { dom, on } => self.pause(id, dom, *on),
            Command::History { max } => Ok(protocol::ok(id, |o| {
                o.array("history", |a| {
                    for death in self.history.iter().take(*max) {
                        if a.len_bytes() > REPLY_MAX {
                            break;
                        }
                        a.object(|o| report::death(death, o));
                    }
                });
            })),
            Command::XsRead { path } => self.xs_read(id, path),
            Command::XsLs { path } => self.xs_ls(id, path),
            Command::Subscribe { on } => {
                if let Some(socket) = &mut self.socket {
                    socket.subscribed = *on;
                }
                Ok(protocol::ok(id, |o| {
                    o.flag("subscribed", *on);
                }))
            }
            Command::Poweroff { code } => {
                log::info!("power off by order, code {code}");
                self.power_off(*code);
                Ok(protocol::ok(id, |o| {
                    o.number("code", *code);
                }))
            }
        }
    }

    fn all_infos(&self) -> Result<Vec<abi::xenolith::DomInfo>, String> {
        let domids = core::iter::once(DomId::CONTROL).chain(self.links.iter().map(|l| l.domid));
        domids.map(|d| dom_info(d).map_err(|e| format!("DOM_INFO of domain {d}: {e}"))).collect()
    }

    fn list(&self, id: &str) -> Reply {
        let infos = self.all_infos()?;
        Ok(protocol::ok(id, |o| {
            o.array("domains", |a| {
                for info in &infos {
                    a.object(|o| self.snapshot(info).list(o));
                }
            });
        }))
    }

    fn stats(&mut self, id: &str) -> Reply {
        let infos = self.all_infos()?;
        let mut machine = Info::default();
        hypercall::info(&mut machine).map_err(|e| format!("INFO: {e}"))?;
        let published: Vec<_> = infos.iter().map(|info| self.published(info.domid)).collect();
        let total = self.store.total();
        Ok(protocol::ok(id, |o| {
            o.object("system", |o| {
                report::system(&machine, clock::now().as_ns(), o);
                o.number("control_heap_bytes", memory::heap_usage().0 as u64);
                o.number("store_nodes", total.nodes as u64).number("store_bytes", total.bytes as u64);
            });
            o.array("domains", |a| {
                for (info, published) in infos.iter().zip(&published) {
                    let domid = info.domid;
                    let (usage, watches) = (self.store.usage(domid), self.store.watch_count(domid));
                    a.object(|o| {
                        self.snapshot(info).stats(o, usage, watches);
                        o.object("published", |o| put_published(published, o));
                    });
                }
            });
        }))
    }

    /// Relative paths and values below `/local/domain/N/stats`.
    fn published(&mut self, domid: DomId) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut rest = alloc::vec![String::new()];
        let mut visited = 0usize;
        while let Some(relative) = rest.pop().filter(|_| visited < PUBLISHED_MAX) {
            visited += 1;
            let full = format!("/local/domain/{domid}/stats{relative}");
            let Ok(path) = Path::absolute(&full) else { continue };
            let Ok((children, _)) = self.store.run(DomId::CONTROL, |v| v.directory(&path)) else { continue };
            let value = self.store.run(DomId::CONTROL, |v| v.read(&path)).unwrap_or_default();
            if !value.is_empty() {
                let key = relative.strip_prefix('/').unwrap_or_default();
                found.push((String::from(key), String::from_utf8_lossy(&value).into_owned()));
            }
            rest.extend(children.iter().rev().map(|c| format!("{relative}/{c}")));
        }
        found
    }

    /// The number and name behind a target.
    fn target(&self, target: &Target) -> Result<(DomId, String), String> {
        let domid = match target {
            Target::Hypervisor => return Ok((DomId::XEN, String::from("hypervisor"))),
            Target::Id(domid) => *domid,
            Target::Name(name) if name == self.name(DomId::CONTROL) => DomId::CONTROL,
            Target::Name(name) => {
                let link = self.links.iter().find(|l| l.name == *name);
                link.map(|l| l.domid).ok_or_else(|| {
                    let name: String = name.chars().take(64).collect();
                    format!("dom: no domain \"{name}\"")
                })?
            }
        };
        if domid != DomId::CONTROL && !self.links.iter().any(|l| l.domid == domid) {
            return Err(format!("dom: no domain {domid}"));
        }
        Ok((domid, String::from(self.name(domid))))
    }

    /// A target that may be stopped and started: not this domain itself.
    fn victim(&self, target: &Target) -> Result<(DomId, String), String> {
        match self.target(target)? {
            (DomId::CONTROL, name) => Err(format!("dom: {name} is the control domain")),
            found => Ok(found),
        }
    }

    fn log(&mut self, id: &str, target: &Target, seq: u64, max: u32) -> Reply {
        let (domid, name) = self.target(target)?;
        let mut buffer = alloc::vec![0; max as usize];
        let (first, len) = self.console_bytes(domid, seq, &mut buffer).map_err(|e| format!("log of {name}: {e}"))?;
        let bytes = protocol::whole_text(buffer.get(..len).unwrap_or_default(), buffer.len());
        let text = String::from_utf8_lossy(bytes);
        Ok(protocol::ok(id, |o| {
            o.text("dom", &name)
                .number("seq", first)
                .number("next", first.saturating_add(bytes.len() as u64))
                .text("text", &text);
        }))
    }

    fn console(&mut self, id: &str, target: &Target, on: bool, seq: u64) -> Reply {
        let (domid, name) = self.target(target)?;
        if let Some(socket) = &mut self.socket {
            socket.follow.retain(|follow| follow.domid != domid);
            if on {
                socket.follow.push(Follow { domid, name: name.clone(), seq, next: clock::now() });
            }
        }
        Ok(protocol::ok(id, |o| {
            o.text("dom", &name).flag("following", on);
        }))
    }

    fn input(&mut self, id: &str, target: &Target, text: &str) -> Reply {
        let (domid, name) = self.victim(target)?;
        let link = self.links.iter_mut().find(|l| l.domid == domid);
        let terminal =
            link.and_then(Link::terminal).ok_or_else(|| format!("{name} has no console that takes input"))?;
        if !terminal.type_in(text.as_bytes()) {
            return Err(format!("{name} does not read its console; {INPUT_MAX} bytes wait already"));
        }
        Ok(protocol::ok(id, |o| {
            o.text("dom", &name).number("bytes", text.len() as u64);
        }))
    }

    fn order_restart(&mut self, id: &str, target: &Target) -> Reply {
        let (domid, name) = self.victim(target)?;
        self.must_be_there(domid, &name, "restart")?;
        let (outage_us, phases) = self.restart_by_order(domid).map_err(|e| format!("restart of {name}: {e}"))?;
        let restarts = dom_info(domid).map_or(0, |info| info.restarts);
        Ok(protocol::ok(id, |o| {
            o.text("dom", &name).number("restarts", restarts).number("outage_us", outage_us);
            o.object("phases", |o| report::phases(&phases, o));
        }))
    }

    fn crash(&mut self, id: &str, target: &Target, crash: Crash) -> Reply {
        let (domid, name) = self.victim(target)?;
        self.must_run(domid, &name, "crash")?;
        if !self.hears_of_crashes(domid) {
            return Err(format!(
                "crash: {name} does not watch its node control/crash, so it would not follow; only Xenolith's own images do, once they are up: destroy it instead"
            ));
        }
        self.order_crash(domid, crash).map_err(|e| format!("crash of {name}: {e}"))?;
        Ok(protocol::ok(id, |o| {
            o.text("dom", &name).text("how", crash.kind).number("count", crash.count);
        }))
    }

    /// Creates or destroys a guest.
    fn create_or_destroy(&mut self, id: &str, target: &Target, create: bool) -> Reply {
        let (domid, name) = self.victim(target)?;
        if !self.lives_anew(domid) {
            let what = if create { "created" } else { "destroyed" };
            return Err(format!(
                "{name} is a driver domain, which guests depend on: it is made with the machine and not {what}; restart begins it anew, kill stops it"
            ));
        }
        if create {
            self.create(domid)?
        } else {
            self.destroy(domid)?
        }
        self.state_reply(id, domid, &name)
    }

    fn shutdown(&mut self, id: &str, target: &Target, reboot: bool) -> Reply {
        let (domid, name) = self.victim(target)?;
        let what = if reboot { "reboot" } else { "shutdown" };
        self.must_run(domid, &name, what)?;
        self.order_shutdown(domid, reboot).map_err(|e| format!("{what} of {name}: {e}"))?;
        Ok(protocol::ok(id, |o| {
            o.text("dom", &name);
        }))
    }

    /// Only what has memory can be stopped or begun anew.
    fn must_be_there(&self, domid: DomId, name: &str, what: &str) -> Result<(), String> {
        if self.state_of(domid)? == state::DESTROYED {
            return Err(format!("{what}: {name} is not there: {}; make it: create {name}", self.why(domid)));
        }
        Ok(())
    }

    /// A domain that is to do something by itself has to run.
    fn must_run(&self, domid: DomId, name: &str, what: &str) -> Result<(), String> {
        match self.why(domid) {
            why if why.is_empty() => Ok(()),
            why => Err(format!("{what}: {name} is not running: {why}")),
        }
    }

    fn dom_op(
        &self,
        domid: DomId,
        name: &str,
        what: &str,
        op: fn(&mut DomOp) -> hypercall::Result,
    ) -> Result<(), String> {
        let result: Result<u64, Errno> = op(&mut DomOp { domid, ..DomOp::default() });
        result.map(|_| ()).map_err(|e| format!("{what} of {name}: {e}"))
    }

    fn state_reply(&mut self, id: &str, domid: DomId, name: &str) -> Reply {
        self.changed(domid);
        let info = dom_info(domid).map_err(|e| format!("DOM_INFO of {name}: {e}"))?;
        let text = self.supervisor.get(domid).map_or(state::name(info.state), |s| s.state_name(info.state));
        Ok(protocol::ok(id, |o| {
            o.text("dom", name).text("state", text);
        }))
    }

    fn kill(&mut self, id: &str, target: &Target) -> Reply {
        let (domid, name) = self.victim(target)?;
        self.drain_events();
        self.must_be_there(domid, &name, "kill")?;
        self.stop_for_good(domid).map_err(|e| format!("kill of {name}: {e}"))?;
        self.state_reply(id, domid, &name)
    }

    fn pause(&mut self, id: &str, target: &Target, on: bool) -> Reply {
        let (domid, name) = self.victim(target)?;
        if on {
            self.must_run(domid, &name, "pause")?;
            self.dom_op(domid, &name, "pause", hypercall::dom_pause)?;
        } else if self.state_of(domid)? == state::PAUSED {
            self.dom_op(domid, &name, "unpause", hypercall::dom_unpause)?;
        } else {
            return Err(format!("unpause: {name} is not paused"));
        }
        self.supervisor.on_paused(domid, on, clock::now().as_ns());
        self.state_reply(id, domid, &name)
    }

    fn xs_read(&mut self, id: &str, path: &str) -> Reply {
        let failed = |e: xenstore::XsError| format!("{path}: {e}");
        let path = Path::absolute(path).map_err(|e| format!("path: {e}"))?;
        let value = self.store.run(DomId::CONTROL, |v| v.read(&path)).map_err(failed)?;
        let perms = self.store.run(DomId::CONTROL, |v| v.perms(&path)).map_err(failed)?;
        Ok(protocol::ok(id, |o| {
            o.text("path", path.as_str()).text("value", &String::from_utf8_lossy(&value));
            o.text("perms", &perms.to_text(',', false));
        }))
    }

    fn xs_ls(&mut self, id: &str, path: &str) -> Reply {
        let path = Path::absolute(path).map_err(|e| format!("path: {e}"))?;
        let result = self.store.run(DomId::CONTROL, |v| v.directory(&path));
        let (children, _) = result.map_err(|e| format!("{path}: {e}"))?;
        Ok(protocol::ok(id, |o| {
            o.text("path", path.as_str()).array("children", |a| {
                for child in &children {
                    if a.len_bytes() > REPLY_MAX {
                        break;
                    }
                    a.text(child);
                }
            });
        }))
    }
}

fn put_published(published: &[(String, String)], o: &mut Object) {
    for (key, value) in published {
        if o.len_bytes() > REPLY_MAX {
            break;
        }
        o.text(key, value);
    }
}
