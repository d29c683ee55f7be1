//! One QEMU scenario: `tests/qemu/NAME.toml` boots a system and says what has to happen, what must not, and by when.
//! Silence is failure: without every expected line, step and exit code before the deadline the scenario has failed.

use super::pattern::Pattern;
use super::steps::{self, Step};
use crate::campaign::{blk, lives, power};
use crate::drive::Drives;
use crate::image::{self, Built};
use crate::machine::bare;
use crate::machine::blkcheck::{self, Follow};
use crate::machine::console::{Console, HYPERVISOR, Line};
use crate::machine::{self, Lacks, Machine, Options};
use crate::manifest::{System, names};
use crate::units::Span;
use crate::{cargo, paths};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A scenario as read.
#[derive(Debug)]
pub struct Scenario {
    /// Name of its file.
    pub name: String,
    /// One sentence: what holds if it passes.
    pub about: String,
    /// What is booted.
    pub system: System,
    spec: Spec,
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Spec {
    about: String,
    /// Longest time in all.
    deadline: Span,
    /// A system of images/systems/ …
    system: Option<String>,
    /// … or one of its own, in the same form.
    inline: Option<toml::Table>,
    /// Each is found in some line.
    #[serde(default)]
    expect: Vec<Pattern>,
    /// Found in no line. A panic of the hypervisor always is forbidden, unless expected.
    #[serde(default)]
    forbid: Vec<Pattern>,
    /// The machine ends itself with this code; without it we end it after the last step.
    exit_code: Option<u32>,
    /// What is done meanwhile, in order.
    #[serde(default, rename = "step")]
    steps: Vec<Step>,
    /// Hardware that is missing.
    #[serde(default)]
    lacks: Lacks,
    /// What happens to the bundle before it is booted.
    damage: Option<Damage>,
    /// In the place of steps: kills under the load of every blkcheck.
    kills: Option<Kills>,
    /// In the place of steps: so many power cuts under the writes of blkcheck.
    cuts: Option<u32>,
    /// In the place of steps: so many lives of the Linux guest, with four virtual CPUs.
    lives: Option<u32>,
    /// In the place of it all: `blkbare` with these keys on the first drive, without our hypervisor.
    bare: Option<BTreeMap<String, String>>,
    /// With `bare`: in its report as JSON. Without, it has to pass, and the image is judged on the host.
    #[serde(default)]
    report: Vec<Pattern>,
}

/// A short campaign.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Kills {
    /// How many.
    count: u32,
    /// Over this time.
    within: Span,
    /// Of the network's driver as well, at the same time.
    #[serde(default)]
    network: bool,
}

/// Damage to a bundle.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Damage {
    /// Only the first bytes are left.
    Truncate(usize),
    /// One byte is inverted; negative = from the end of the data.
    Flip(i64),
}

/// Reads all scenarios of a folder whose name contains `filter`.
///
/// # Errors
/// The first that is not sound.
pub fn all(folder: &Path, filter: Option<&str>) -> Result<Vec<Scenario>> {
    let chosen: Vec<String> =
        names(folder).into_iter().filter(|name| filter.is_none_or(|text| name.contains(text))).collect();
    ensure!(filter.is_none() || !chosen.is_empty(), "no scenario is named *{}*", filter.unwrap_or_default());
    chosen
        .iter()
        .map(|name| {
            let path = folder.join(format!("{name}.toml"));
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Scenario::parse(name, &text).with_context(|| format!("scenario {}", path.display()))
        })
        .collect()
}

impl Scenario {
    fn parse(name: &str, text: &str) -> Result<Self> {
        let spec: Spec = toml::from_str(text)?;
        let system = match (&spec.system, &spec.inline) {
            (Some(system), None) => System::load(system)?,
            (None, Some(table)) => {
                System::parse(&toml::to_string(table)?, &format!("tests/qemu/{name}.toml [inline]"))?
            }
            _ => bail!("it needs either `system` or [inline]"),
        };
        ensure!(
            !spec.expect.is_empty()
                || !spec.steps.is_empty()
                || spec.kills.is_some()
                || spec.cuts.is_some()
                || spec.lives.is_some()
                || spec.bare.is_some(),
            "it expects nothing, so it could not fail; give it `expect` or [[step]]"
        );
        ensure!(
            spec.cuts.is_none() || (spec.expect.is_empty() && spec.steps.is_empty() && spec.kills.is_none()),
            "`cuts` boots several machines, so nothing else can be expected of one"
        );
        ensure!(
            spec.forbid.is_empty() || spec.cuts.is_none() && spec.bare.is_none(),
            "`forbid` is not looked at with `cuts` or `bare`"
        );
        ensure!(spec.expect.is_empty() || spec.bare.is_none(), "`bare` has a `report` in the place of `expect`");
        let instead = usize::from(spec.kills.is_some()) + usize::from(spec.lives.is_some());
        ensure!(
            instead == 0 || instead == 1 && spec.steps.is_empty(),
            "`kills` or `lives` takes the place of [[step]]"
        );
        Ok(Self { name: name.to_string(), about: spec.about.clone(), system, spec })
    }

    /// Boots and judges.
    ///
    /// # Errors
    /// What did not hold, with the console's end.
    pub fn run(&self, verbose: bool) -> Result<()> {
        if let Some(cuts) = self.spec.cuts {
            let mut system = self.system.clone();
            power::configure(&mut system);
            return power::run(&system, &format!("test-{}", self.name), cuts, 1, false)?.verdict();
        }
        if let Some(keys) = &self.spec.bare {
            return self.alone(keys, verbose);
        }
        let mut system = self.system.clone();
        if self.spec.kills.is_some() {
            blk::configure(&mut system, 1);
        }
        if self.spec.lives.is_some() {
            lives::configure(&mut system)?;
        }
        let built = self.damaged(image::pack(&system)?)?;
        // What is fetched or made once for all runs is no part of this one's time.
        let drives = Some(Arc::new(Drives::open(&system)?));
        let deadline = Instant::now() + self.spec.deadline.0;
        let options = Options { name: self.name.clone(), public: false, lacks: self.spec.lacks.clone(), drives };
        let show = move |line: &Line| {
            if verbose {
                println!("{}", line.full());
            }
        };
        let mut machine = Machine::start(&system, &built, &options, machine::reserve(0)?, show)?;
        match (self.spec.kills, self.spec.lives) {
            (Some(kills), _) => self.kill(machine, &system, kills),
            (_, Some(lives)) => {
                let console = machine.console.clone();
                let result = lives::run(&mut machine, &system, lives, 1, false).and_then(|report| report.verdict());
                result.map_err(|error| anyhow!("{error:#}; the console's end:\n{}", console.tail(12)))?;
                self.seen(&console)
            }
            _ => self.judge(&mut machine, &system, deadline),
        }
    }

    /// The driver without our hypervisor, on the same drives.
    fn alone(&self, keys: &BTreeMap<String, String>, verbose: bool) -> Result<()> {
        cargo::build_freestanding(&[(bare::PACKAGE, &[])])?;
        let drives = Drives::open(&self.system)?;
        let config: String = keys.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        let iommu = keys.get("iommu").is_some_and(|on| on != "0");
        let mut machine = bare::Bare::start(&self.system, &drives, &paths::executable(bare::PACKAGE), &config, iommu)?;
        let ended = machine.wait_for_end(self.spec.deadline.0);
        if verbose {
            machine.console.since(0).iter().for_each(|line| println!("{}", line.full()));
        }
        ended?;
        let mut follow = Follow::new(HYPERVISOR, 0);
        let vbd = follow.update(&machine.console).vbds.get(&bare::FIRST_DRIVE);
        let vbd = vbd.ok_or_else(|| machine.failure("it reported nothing"))?;
        let report = serde_json::Value::Object(vbd.report.clone()).to_string();
        if let Some(missing) = self.spec.report.iter().find(|pattern| !pattern.found(&report)) {
            return Err(machine.failure(&format!("`{missing}` is not in the report {report}")));
        }
        if self.spec.report.is_empty() {
            ensure!(vbd.faults().is_empty() && vbd.done == Some(true), "{}\n{report}", vbd.faults().join(", "));
            blkcheck::verify_drive(&drives, 0, bare::FIRST_DRIVE, vbd)?;
        }
        Ok(())
    }

    /// A short campaign, and the lines that were seen meanwhile.
    fn kill(&self, machine: Machine, system: &System, kills: Kills) -> Result<()> {
        let plan = blk::Plan {
            kills: kills.count,
            seed: 1,
            seconds: kills.within.0.as_secs_f64(),
            network: kills.network,
            progress: false,
        };
        let console = machine.console.clone();
        let result = blk::run(machine, system, &plan).and_then(|report| report.verdict());
        result.map_err(|error| anyhow!("{error:#}; the console's end:\n{}", console.tail(12)))?;
        self.seen(&console)
    }

    /// Judges all lines of a campaign.
    fn seen(&self, console: &Console) -> Result<()> {
        let lines: Vec<String> = console.since(0).iter().map(Line::full).collect();
        if let Some(missing) = self.spec.expect.iter().find(|p| !lines.iter().any(|l| p.found(l))) {
            bail!("no line has `{missing}`");
        }
        lines.iter().find_map(|line| self.bad(line)).map_or(Ok(()), Err)
    }

    fn judge(&self, machine: &mut Machine, system: &System, deadline: Instant) -> Result<()> {
        let mut state = steps::State::new(system);
        for (number, step) in (1..).zip(&self.spec.steps) {
            let left = deadline.saturating_duration_since(Instant::now());
            state
                .take(machine, step, left)
                .map_err(|error| with_console(machine, &error))
                .with_context(|| format!("step {number} ({step})"))?;
            self.forbidden(machine)?;
        }
        self.wait_for_lines(machine, deadline)?;
        if let Some(code) = self.spec.exit_code {
            let left = deadline.saturating_duration_since(Instant::now());
            let status = machine.wait_for_end(left)?;
            machine.console.settle();
            let got = machine.guest_code(status);
            if got != Some(code) {
                let got = got.map_or_else(|| status.to_string(), |c| c.to_string());
                return Err(machine.failure(&format!("exit code {code} was expected, not {got}")));
            }
        }
        self.forbidden(machine)
    }

    fn wait_for_lines(&self, machine: &mut Machine, deadline: Instant) -> Result<()> {
        loop {
            let known = machine.console.len();
            let lines = machine.console.since(0);
            let missing = self.spec.expect.iter().find(|p| !lines.iter().any(|l| p.found(&l.full())));
            let Some(missing) = missing else { return Ok(()) };
            self.forbidden(machine)?;
            if Instant::now() > deadline {
                return Err(machine.failure(&format!("no line has `{missing}` by the deadline")));
            }
            let more = machine.console.wait(known, Duration::from_millis(50));
            if !more && machine.ended()?.is_some() {
                machine.console.settle();
                if machine.console.len() == known {
                    return Err(machine.failure(&format!("no line has `{missing}`")));
                }
            }
            if crate::signals::stop() {
                bail!("interrupted");
            }
        }
    }

    fn forbidden(&self, machine: &mut Machine) -> Result<()> {
        let bad = machine.console.since(0).iter().find_map(|line| self.bad(&line.full()));
        bad.map_or(Ok(()), |error| Err(machine.failure(&error.to_string())))
    }

    /// What is wrong with a line that nobody may write.
    fn bad(&self, line: &str) -> Option<anyhow::Error> {
        let own_panic = Pattern::new(&format!("({HYPERVISOR}) error: panic"));
        let bad = self.spec.forbid.iter().chain(std::iter::once(&own_panic)).find(|p| p.found(line))?;
        let expected = self.spec.expect.iter().any(|p| p.found(line));
        (!expected).then(|| anyhow!("forbidden (`{bad}`): {line}"))
    }

    fn damaged(&self, built: Built) -> Result<Built> {
        let Some(damage) = self.spec.damage else { return Ok(built) };
        let mut bytes = std::fs::read(&built.bundle)?;
        match damage {
            Damage::Truncate(len) => bytes.truncate(len),
            Damage::Flip(at) => {
                let from_end = at.unsigned_abs() as usize;
                let at = if at < 0 { bytes.len().checked_sub(from_end) } else { Some(from_end) };
                let byte = at.and_then(|at| bytes.get_mut(at)).context("`damage` lies outside of the bundle")?;
                *byte = !*byte;
            }
        }
        std::fs::write(&built.bundle, &bytes)?;
        Ok(built)
    }
}

/// An error with the console's end, if it has none yet.
fn with_console(machine: &mut Machine, error: &anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    if text.contains("console") { anyhow!(text) } else { machine.failure(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::SYSTEM;

    #[test]
    fn every_scenario_in_the_tree_is_sound() {
        let scenarios = all(&crate::paths::root().join("tests/qemu"), None).unwrap();
        assert!(!scenarios.is_empty());
        for scenario in scenarios {
            assert!(scenario.spec.deadline.0 <= Duration::from_secs(300), "{} may take too long", scenario.name);
        }
    }

    #[test]
    fn a_scenario_that_cannot_fail_is_refused() {
        let refuse = |text: &str| format!("{:#}", Scenario::parse("x", text).unwrap_err());
        assert!(refuse("about='a'\ndeadline='1s'\nsystem='hello'").contains("expects nothing"));
        assert!(refuse("about='a'\ndeadline='1s'\nexpect=['b']").contains("either `system`"));
        assert!(refuse("about='a'\ndeadline='1s'\nsystem='hello'\nexpect=['*']").contains("every line"));
        assert!(refuse("about='a'\ndeadline='1s'\nsystem='hello'\nexpects=['b']").contains("`expects`"));
        assert!(refuse("about='a'\ndeadline='1s'\nsystem='power'\ncuts=2\nforbid=['b']").contains("`forbid`"));
        assert!(refuse("about='a'\ndeadline='1s'\nsystem='disk'\nexpect=['b']\n[bare]\nx='1'").contains("`bare`"));
        assert!(refuse("about='a'\ndeadline='1s'\nsystem='hello'\n[[step]]\ndance={}").contains("`dance`"));
    }

    #[test]
    fn a_scenario_may_bring_its_own_system() {
        let inline = SYSTEM.replace("[[domain", "[[inline.domain").replace("[machine]", "[inline.machine]");
        let inline = inline.replace("[[machine", "[[inline.machine").replace("[domain", "[inline.domain");
        let text = format!("about='a'\ndeadline='1s'\nexpect=['b']\n{inline}");
        assert_eq!(Scenario::parse("x", &text).unwrap().system.domains.len(), 3);
        let bad = text.replace("device = \"00:03.0\"", "device = \"00:07.0\"");
        assert!(format!("{:#}", Scenario::parse("x", &bad).unwrap_err()).contains("00:07.0"));
    }
}
