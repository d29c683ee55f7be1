//! `cargo xtask ctl`: speaks to the control domain of the machine that runs, in tables for people or JSON for programs.
//!
//! [`lives`] waits for what guests are asked to do.
mod lives;

use crate::machine::attach;
use crate::machine::control::Control;
use crate::machine::crash::KINDS;
use crate::machine::protocol::{AllStats, Death, Domain};
use crate::terminal::Terminal;
use crate::units::Span;
use crate::{machine, table};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `ctl`.
#[derive(clap::Args)]
pub struct Args {
    /// Print control's answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The domains: state, restarts, last outage, and why one does not run
    List,
    /// Counters of the machine and of each domain
    Stats,
    /// What a domain or the hypervisor wrote
    Log {
        /// Domain, or `hypervisor`
        #[arg(default_value = "hypervisor")]
        domain: String,
    },
    /// Follow a domain's console; on a terminal, what is typed goes to it until Ctrl-]
    Console {
        /// Domain
        domain: String,
    },
    /// Restart a domain in place
    Restart {
        /// Domain
        domain: String,
    },
    /// Crash a domain
    Crash {
        /// Domain
        domain: String,
        /// In which way
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
        how: String,
        /// After this many more of its crash points
        #[arg(long, default_value_t = 0)]
        count: u32,
    },
    /// Create a guest of the system's manifest that is not there, or whose life is over
    Create {
        /// Domain
        domain: String,
    },
    /// Ask a domain to switch itself off, and wait until it has
    Shutdown {
        /// Domain
        domain: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Ask a domain to reboot, and wait until it has begun anew
    Reboot {
        /// Domain
        domain: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// End a guest, whatever it does, and take its memory; `create` begins it anew
    Destroy {
        /// Domain
        domain: String,
    },
    /// Stop a domain for good (until `restart`)
    Kill {
        /// Domain
        domain: String,
    },
    /// Stop a domain's virtual CPUs
    Pause {
        /// Domain
        domain: String,
    },
    /// Let them go on
    Unpause {
        /// Domain
        domain: String,
    },
    /// The last deaths and what became of them
    History {
        /// How many
        #[arg(long, default_value_t = 64)]
        max: u32,
    },
    /// Read xenstore: a node's value, or its children where the path ends in `/`
    Xs {
        /// Path
        path: String,
    },
    /// End the machine
    Poweroff,
    /// Send a request as it is (JSON) and print the answer
    Raw {
        /// The request
        request: String,
    },
}

/// How long to wait for a domain.
#[derive(clap::Args)]
struct Wait {
    /// Give up waiting after this time; the domain may still follow
    #[arg(long, default_value = "60s", value_parser = str::parse::<Span>)]
    timeout: Span,
    /// Give the order and do not wait
    #[arg(long)]
    no_wait: bool,
}

/// The command.
///
/// # Errors
/// No machine runs, or control's own error.
pub fn run(args: &Args) -> Result<ExitCode> {
    let card = machine::card()?;
    let socket = card["socket"].as_str().context("running.json names no socket")?;
    let stream = UnixStream::connect(socket).with_context(|| {
        format!("no machine answers at {socket}; it seems to have ended, start one: cargo xtask run")
    })?;
    let control = Control::start(stream)?;
    let request = request(&args.command)?;
    if let Command::Console { domain } = &args.command {
        return follow(&control, domain, args.json);
    }
    let ok = match &args.command {
        Command::Log { domain } if args.json => {
            // One answer with all pages.
            let (mut all, mut text) = (Value::Null, String::new());
            log(&control, domain, |page| {
                text += page["text"].as_str().unwrap_or_default();
                let first = all.get("seq").unwrap_or(&page["seq"]).clone();
                all = page;
                all["seq"] = first;
            })?;
            all["text"] = text.into();
            all
        }
        Command::Log { domain } => {
            log(&control, domain, |page| print!("{}", page["text"].as_str().unwrap_or_default()))?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Shutdown { domain, wait } => lives::shutdown(&control, domain, false, wait.patience())?,
        Command::Reboot { domain, wait } => lives::shutdown(&control, domain, true, wait.patience())?,
        _ => control.request(&request)?,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&ok)?);
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", describe(&args.command, ok)?);
    Ok(ExitCode::SUCCESS)
}

impl Wait {
    fn patience(&self) -> Option<Duration> {
        (!self.no_wait).then_some(self.timeout.0)
    }
}

fn request(command: &Command) -> Result<Value> {
    Ok(match command {
        Command::List => json!({ "cmd": "list" }),
        Command::Stats => json!({ "cmd": "stats" }),
        Command::Log { domain } => json!({ "cmd": "log", "dom": domain }),
        Command::Console { domain } => json!({ "cmd": "console", "dom": domain }),
        Command::Restart { domain } => json!({ "cmd": "restart", "dom": domain }),
        Command::Crash { domain, how, count } => json!({ "cmd": "crash", "dom": domain, "how": how, "count": count }),
        Command::Create { domain } => json!({ "cmd": "create", "dom": domain }),
        Command::Destroy { domain } => json!({ "cmd": "destroy", "dom": domain }),
        Command::Shutdown { domain, .. } => json!({ "cmd": "shutdown", "dom": domain }),
        Command::Reboot { domain, .. } => json!({ "cmd": "reboot", "dom": domain }),
        Command::Kill { domain } => json!({ "cmd": "kill", "dom": domain }),
        Command::Pause { domain } => json!({ "cmd": "pause", "dom": domain }),
        Command::Unpause { domain } => json!({ "cmd": "unpause", "dom": domain }),
        Command::History { max } => json!({ "cmd": "history", "max": max }),
        Command::Xs { path } => match path.strip_suffix('/') {
            Some("") => json!({ "cmd": "xs-ls", "path": "/" }),
            Some(folder) => json!({ "cmd": "xs-ls", "path": folder }),
            None => json!({ "cmd": "xs-read", "path": path }),
        },
        Command::Poweroff => json!({ "cmd": "poweroff" }),
        Command::Raw { request } => serde_json::from_str(request).context("the request is no JSON")?,
    })
}

fn describe(command: &Command, ok: Value) -> Result<String> {
    Ok(match command {
        Command::List => {
            list(&serde_json::from_value::<Vec<Domain>>(ok["domains"].clone()).context("answer to `list`")?)
        }
        Command::Stats => stats(&serde_json::from_value(ok).context("answer to `stats`")?),
        Command::History { .. } => {
            history(&serde_json::from_value::<Vec<Death>>(ok["history"].clone()).context("answer to `history`")?)
        }
        Command::Xs { .. } => match (ok["value"].as_str(), ok["children"].as_array()) {
            (Some(value), _) => format!("{value}\n"),
            (_, Some(children)) => children.iter().filter_map(Value::as_str).map(|c| format!("{c}\n")).collect(),
            _ => format!("{ok}\n"),
        },
        Command::Restart { domain } => {
            format!("{domain} restarted (number {}), stopped for {}\n", ok["restarts"], ms(ok["outage_us"].as_u64()))
        }
        Command::Crash { domain, how, .. } => format!("{domain} was told to crash by {how}\n"),
        Command::Create { domain } => format!("{domain} created; its console: cargo xtask ctl console {domain}\n"),
        Command::Destroy { domain } => format!("{domain} destroyed; its memory is free\n"),
        Command::Pause { domain } => format!("{domain} paused; let it go on: cargo xtask ctl unpause {domain}\n"),
        Command::Unpause { domain } => format!("{domain} runs again\n"),
        Command::Kill { domain } => format!("{domain} killed\n"),
        Command::Shutdown { domain, wait } | Command::Reboot { domain, wait } if wait.no_wait => {
            format!("{domain} was asked\n")
        }
        Command::Shutdown { domain, .. } => format!("{domain} has switched itself off\n"),
        Command::Reboot { domain, .. } => format!("{domain} has begun anew (restart number {})\n", ok["restarts"]),
        _ => format!("{}\n", serde_json::to_string_pretty(&ok)?),
    })
}

/// The table of domains.
///
/// # Errors
/// No answer of control.
pub fn domains(control: &Control) -> Result<String> {
    let ok = control.ask("list")?;
    Ok(list(&serde_json::from_value::<Vec<Domain>>(ok["domains"].clone()).context("answer to `list`")?))
}

fn ms(us: Option<u64>) -> String {
    us.map_or_else(|| "–".to_string(), |us| format!("{:.1} ms", us as f64 / 1000.0))
}

fn list(domains: &[Domain]) -> String {
    let rows: Vec<Vec<String>> = domains
        .iter()
        .map(|d| {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let why = match &d.order {
                Some(order) => order.told(),
                None if d.state == "running" => text(&d.last_detail),
                None => text(&d.why),
            };
            vec![
                d.id.to_string(),
                d.name.clone(),
                d.kind.clone(),
                d.state.clone(),
                d.restarts.to_string(),
                if d.restarts == 0 && d.state == "running" { String::new() } else { d.last_cause.clone() },
                ms(d.last_outage_us),
                ms(d.last_serving_us),
                format!("{} KiB", d.memory_kib),
                why,
            ]
        })
        .collect();
    table::format(&["id", "domain", "kind", "state", "restarts", "cause", "stopped", "serving", "memory", "why"], &rows)
}

/// Virtual disks, from what their backends publish; empty where there is none.
fn vbds(all: &AllStats) -> String {
    let mut rows = Vec::new();
    for backend in &all.domains {
        for (key, value) in backend.published.iter().filter_map(|(k, v)| Some((k.strip_prefix("vbd/")?, v.as_str()?))) {
            let (frontend, device) = key.split_once('/').unwrap_or((key, ""));
            let guest = all.domains.iter().find(|d| d.id.to_string() == frontend);
            let frontend = guest.map_or(frontend, |d| d.name.as_str());
            let word = |name: &str| value.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            let counter = |name| word(name).unwrap_or("–").to_string();
            let kib =
                |name| word(name).and_then(|n| n.parse::<u64>().ok()).map_or("–".into(), |n| (n >> 10).to_string());
            rows.push(vec![
                backend.name.clone(),
                frontend.to_string(),
                device.to_string(),
                counter("depth"),
                counter("max_depth"),
                kib("read_bytes"),
                kib("written_bytes"),
                counter("flushes"),
                counter("errors"),
                backend.restarts.to_string(),
                counter("replayed"),
            ]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let head = [
        "backend",
        "guest",
        "vbd",
        "depth",
        "most",
        "read KiB",
        "written KiB",
        "flushes",
        "errors",
        "restarts",
        "replayed",
    ];
    format!("\n{}", table::format(&head, &rows))
}

fn stats(all: &AllStats) -> String {
    let system = &all.system;
    let mut out = format!(
        "{} CPUs, {} of {} KiB free, hypervisor heap {} KiB, control heap {} KiB, {} store nodes, up {:.1} s\n\n",
        system.cpus,
        system.free_kib,
        system.total_kib,
        system.hypervisor_heap_bytes >> 10,
        system.control_heap_bytes >> 10,
        system.store_nodes,
        system.time_us as f64 / 1e6
    );
    let rows: Vec<Vec<String>> = all
        .domains
        .iter()
        .map(|d| {
            let numbers = [
                d.restarts,
                d.memory_kib,
                d.peak_kib,
                d.cpu_us / 1000,
                d.world_switches,
                d.hypercalls,
                d.events,
                d.grant_copies,
                d.grant_copy_bytes >> 10,
                d.grant_maps,
            ];
            std::iter::once(d.name.clone()).chain(numbers.iter().map(u64::to_string)).collect()
        })
        .collect();
    out.push_str(&table::format(
        &[
            "domain",
            "restarts",
            "KiB",
            "peak KiB",
            "CPU ms",
            "switches",
            "hypercalls",
            "events",
            "copies",
            "copied KiB",
            "maps",
        ],
        &rows,
    ));
    out.push_str(&vbds(all));
    for domain in all.domains.iter().filter(|d| !d.published.is_empty()) {
        out.push_str(&format!("\n{} publishes:\n", domain.name));
        for (key, value) in &domain.published {
            out.push_str(&format!("  {key} = {}\n", value.as_str().map_or_else(|| value.to_string(), str::to_string)));
        }
    }
    out
}

fn history(deaths: &[Death]) -> String {
    let rows: Vec<Vec<String>> = deaths
        .iter()
        .map(|d| {
            vec![
                format!("{:.3} s", d.time_us as f64 / 1e6),
                d.dom.clone(),
                d.cause.clone(),
                if d.ordered { "ordered".into() } else { "failure".into() },
                d.action.clone(),
                ms(d.outage_us),
                ms(d.serving_us),
                d.detail.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table::format(&["at", "domain", "cause", "by", "action", "stopped", "serving", "detail"], &rows)
}

/// Reads a log from its begin to its end, page by page.
fn log(control: &Control, domain: &str, mut page: impl FnMut(Value)) -> Result<()> {
    let mut seq = 0;
    loop {
        let ok = control.request(&json!({ "cmd": "log", "dom": domain, "seq": seq, "max": 8192 }))?;
        let next = ok["next"].as_u64().unwrap_or(seq);
        let last = next <= seq || ok["seq"].as_u64() == Some(next);
        page(ok);
        if last {
            return Ok(());
        }
        seq = next;
    }
}

fn follow(control: &Control, domain: &str, json: bool) -> Result<ExitCode> {
    if json {
        let following = control.follow_console(domain, 0)?;
        let mut seen = 0;
        while !crate::signals::stop() && !control.closed() {
            let event = control.next(&mut seen, Duration::from_millis(200));
            if let Some(event) = event.filter(|event| event["dom"] == following.domain())
                && !crate::terminal::print(format_args!("{event}\n"))
            {
                break;
            }
        }
        return ended(control, domain);
    }
    let terminal = Terminal::raw();
    if terminal.is_some() {
        eprint!("console of {domain}; Ctrl-] leaves it, everything else goes to the guest\r\n");
    }
    // So that it is told when the guest stops or begins anew.
    control.ask("subscribe")?;
    let end = attach::attach(control, domain, terminal.as_ref(), &mut 0, false)?;
    drop(terminal);
    if end == attach::End::Detached {
        eprintln!("\nleft the console of {domain}");
        return Ok(ExitCode::SUCCESS);
    }
    ended(control, domain)
}

/// What an end that the user did not ask for at the keyboard comes to: a signal, the machine's end, or that nobody reads any more.
fn ended(control: &Control, domain: &str) -> Result<ExitCode> {
    match crate::signals::code() {
        Some(code) => Ok(code),
        None if control.closed() => bail!("the machine has ended, and the console of {domain} with it"),
        None => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_why_a_domain_does_not_run() {
        let reply = r#"[{"id":1,"name":"netback","kind":"driver","state":"gave-up","restarts":3,"last_cause":"panic",
            "last_detail":"x","last_outage_us":2100,"last_serving_us":null,"memory_kib":4096,"peak_kib":4300,
            "on_failure":"restart","why":"gave up after 10 failures: panicked at main.rs"}]"#;
        let table = list(&serde_json::from_str::<Vec<Domain>>(reply).unwrap());
        for part in ["netback", "gave-up", "2.1 ms", "–", "gave up after 10 failures: panicked at main.rs"] {
            assert!(table.contains(part), "`{part}` is missing in\n{table}");
        }
    }

    #[test]
    fn a_path_that_ends_in_a_slash_lists_its_children() {
        let ask = |path: &str| request(&Command::Xs { path: path.into() }).unwrap();
        assert_eq!(ask("/local/"), json!({ "cmd": "xs-ls", "path": "/local" }));
        assert_eq!(ask("/"), json!({ "cmd": "xs-ls", "path": "/" }));
        assert_eq!(ask("/local"), json!({ "cmd": "xs-read", "path": "/local" }));
    }
}
