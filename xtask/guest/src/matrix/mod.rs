//! The matrix: one cell for each device, in every kernel the same, whoever provides the device. And refusals.
//!
//! `noiommu-guest matrix [PROVIDER...]` goes through all devices, once for each word: `auto`, or a provider that is asked
//! for. It leaves one line of JSON for each cell in [`CELLS`]; what has to be in there, the host knows.

mod cell;
pub(crate) mod driver;
mod e1000e;
mod edu;
mod nvme;
mod refusals;
mod virtio;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use noiommu::optin;
use serde_json::{Value, json};

use self::driver::{Driver, PATIENCE};
use crate::stock_edu::DEVICES;

/// Where the cells go, a line of JSON each.
const CELLS: &str = "/output/cells";

/// The provider that a program is to use, if not the best.
const PROVIDER: &str = "NOIOMMU_PROVIDER";

/// A column: its name, the ids of the device, and what drives it.
struct Kind {
    name: &'static str,
    id: (u16, u16),
    run: fn(&str, &mut cell::Steps),
}

const KINDS: [Kind; 5] = [
    Kind::of::<edu::Teacher>("edu"),
    Kind::of::<nvme::Nvme>("nvme"),
    Kind::of::<e1000e::E1000e>("e1000e"),
    Kind::of::<virtio::Block>("virtio-blk"),
    Kind::of::<virtio::Net>("virtio-net"),
];

impl Kind {
    const fn of<D: Driver>(name: &'static str) -> Self {
        Self { name, id: D::ID, run: cell::run::<D> }
    }

    fn find(name: &str) -> Result<&'static Self> {
        KINDS
            .iter()
            .find(|kind| kind.name == name)
            .with_context(|| format!("no kind of device is called {name}"))
    }

    /// The addresses of the devices of this kind, in order.
    fn addresses(&self) -> Result<Vec<String>> {
        addresses(self.id)
    }

    /// The first of them.
    fn address(&self) -> Result<String> {
        let first = self.addresses()?.into_iter().next();
        first.with_context(|| format!("no {} in this machine", self.name))
    }
}

/// The addresses of the devices with a vendor and device id, in order.
pub(crate) fn addresses(wanted: (u16, u16)) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(DEVICES).context(DEVICES)? {
        let path = entry?.path();
        let id = |file| {
            let text = fs::read_to_string(path.join(file)).unwrap_or_default();
            u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or_default()
        };
        if (id("vendor"), id("device")) == wanted {
            found.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Runs what the words ask for.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["cell", kind, address] => {
            // In a process of its own, so that a crash of it is that cell's.
            let mut steps = cell::Steps;
            (Kind::find(kind)?.run)(address, &mut steps);
            Ok(())
        }
        ["refusals"] => refusals::run(),
        ["leaving", address] => refusals::leaving(address),
        ["unprivileged", address] => refusals::unprivileged(address),
        _ => all(&words),
    }
}

fn all(providers: &[&str]) -> Result<()> {
    optin::enable()?;
    let mut cells = File::create(CELLS).context(CELLS)?;
    for provider in providers {
        for kind in &KINDS {
            let record = one(kind, provider)?;
            println!("{record}");
            writeln!(cells, "{record}").context(CELLS)?;
        }
    }
    Ok(())
}

/// One cell: the device is taken from its driver, driven, and given back.
fn one(kind: &Kind, provider: &str) -> Result<Value> {
    let address = kind.address()?;
    let before = State::of(&address)?;
    bind(&address, provider)?;
    let mut program = Command::new("/proc/self/exe");
    program.args(["matrix", "cell", kind.name, &address]).stdout(Stdio::piped());
    if provider != "auto" {
        program.env(PROVIDER, provider);
    }
    let ran = program.output().context("running a cell")?;
    unbind(&address)?;
    let after = State::of(&address)?;

    let text = String::from_utf8_lossy(&ran.stdout);
    let mut steps: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("a cell says {line:?}")))
        .collect::<Result<_>>()?;
    if !ran.status.success() {
        steps.push(json!({"step": "end", "failed": format!("the program ended with {}", ran.status)}));
    }
    steps.push(match before.restored(&after) {
        Ok(()) => json!({"step": "back", "done": before.driver}),
        Err(error) => json!({"step": "back", "failed": format!("{error:#}")}),
    });
    Ok(json!({"kind": kind.name, "asked": provider, "driver": before.driver, "steps": steps}))
}

/// What a device is like from outside.
#[derive(PartialEq, Eq, Debug)]
struct State {
    driver: String,
    driver_override: String,
    bus_master: bool,
}

impl State {
    fn of(address: &str) -> Result<Self> {
        let directory = Path::new(DEVICES).join(address);
        // A driver may start its device after it was bound to it: NVMe does.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = Self::now(&directory)?;
            if state.driver == "none" || state.bus_master || Instant::now() > deadline {
                return Ok(state);
            }
            sleep(Duration::from_millis(5));
        }
    }

    fn now(directory: &Path) -> Result<Self> {
        let driver = fs::read_link(directory.join("driver")).ok();
        let driver =
            driver.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let config = fs::read(directory.join("config")).context("config space")?;
        Ok(Self {
            driver: driver.unwrap_or_else(|| "none".to_owned()),
            driver_override: fs::read_to_string(directory.join("driver_override"))?.trim().to_owned(),
            bus_master: config.get(4).context("no config space")? & 4 != 0,
        })
    }

    /// Whether it is again as it was. Without a driver it must not master the bus, whatever was before.
    fn restored(&self, after: &Self) -> Result<()> {
        ensure!(self.driver == after.driver, "its driver is {}, not {}", after.driver, self.driver);
        ensure!(self.driver_override == after.driver_override, "its override is {}", after.driver_override);
        let wanted = self.bus_master && self.driver != "none";
        ensure!(
            wanted == after.bus_master,
            "bus mastering is {}",
            if after.bus_master { "on" } else { "off" }
        );
        Ok(())
    }
}

/// Takes a device from its driver, as a person would.
pub(crate) fn bind(address: &str, provider: &str) -> Result<()> {
    let mut program = Command::new("noiommu");
    program.args(["bind", address]);
    if provider != "auto" {
        program.args(["--provider", provider]);
    }
    run_quietly(&mut program)
}

/// Gives it back.
pub(crate) fn unbind(address: &str) -> Result<()> {
    run_quietly(Command::new("noiommu").args(["unbind", address]))
}

fn run_quietly(program: &mut Command) -> Result<()> {
    let ran = program.output().with_context(|| format!("{program:?}"))?;
    ensure!(ran.status.success(), "{program:?}: {}", String::from_utf8_lossy(&ran.stderr).trim());
    Ok(())
}
