//! One cell of the matrix: a device from its opening to its closing. Nothing in here knows who provides the device.

use anyhow::{Context as _, Result, ensure};
use noiommu::{Context, Device, Error, ErrorKind, InterruptKind, Interrupts};
use serde_json::json;

use super::driver::{Driver, PATIENCE, Written};
use crate::witness::Witness;

/// How often an interrupt is waited for: the second one comes only if the first was taken and let go in the right way.
const ROUNDS: u32 = 2;

/// What became of the steps, told one by one, a line of JSON each: whoever listens knows how far a program came that crashes.
pub(super) struct Steps;

impl Steps {
    fn done(&mut self, step: &str, how: &str) {
        println!("{}", json!({"step": step, "done": how}));
    }

    fn transferred(&mut self, written: &Written) {
        let hex: String = written.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{}", json!({"step": "dma", "done": written.what, "bytes": hex}));
    }

    fn impossible(&mut self, step: &str, why: &str) {
        println!("{}", json!({"step": step, "impossible": why}));
    }

    fn failed(&mut self, step: &str, why: &anyhow::Error) {
        println!("{}", json!({"step": step, "failed": format!("{why:#}")}));
    }
}

/// Runs a cell. The first step that fails is its last.
pub(super) fn run<D: Driver>(address: &str, steps: &mut Steps) {
    let mut step = "open";
    if let Err(error) = attempt::<D>(address, steps, &mut step) {
        steps.failed(step, &error);
    }
}

fn attempt<D: Driver>(address: &str, steps: &mut Steps, step: &mut &'static str) -> Result<()> {
    let context = Context::new()?;
    let ioas = context.ioas()?;
    let device = context.open(address)?;
    let provider = device.provider();
    steps.done(step, provider.name());

    *step = "bar";
    let bar = (0..6).find_map(|index| device.bar(index).ok()).context("it has no memory BAR")?;
    steps.done(step, &format!("{bar:?}"));
    drop(bar);

    *step = "write-combining";
    match combining(&device)? {
        Ok(bars) => steps.done(step, &bars),
        Err(why) => steps.impossible(step, &why),
    }

    *step = "interrupt";
    let enabled = enable(&device)?;

    *step = "identity";
    let mut driver = D::start(device, &ioas, enabled.as_ref().ok().map(Interrupts::kind))?;
    let (vendor, model) = driver.device().id()?;
    let says = driver.identity()?;
    steps.done(step, &format!("{vendor:04x}:{model:04x}, {says}"));

    *step = "dma";
    let written = driver.transfer()?;
    if !provider.is_confined() {
        // Without an IOMMU a device is given physical addresses: the host, too, finds the bytes there.
        let mut witness = Witness::connect(driver.device().name())?;
        witness.expect(written.address, &written.bytes[..written.bytes.len().min(64)])?;
        witness.done(0)?;
    }
    steps.transferred(&written);

    *step = "interrupt";
    match enabled {
        Ok(interrupts) => {
            take(&mut driver, &interrupts)?;
            steps.done(step, &format!("{} came", interrupts.kind().name()));
        }
        Err(why) => steps.impossible(step, &why),
    }

    // While it is running, which shows most.
    *step = "reset";
    match driver.device().reset() {
        Ok(_) => {
            ensure!(driver.is_fresh()?, "it is not as after a reset");
            steps.done(step, "reset");
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => steps.impossible(step, error.cause()),
        Err(error) => return Err(error.into()),
    }

    *step = "close";
    driver.stop()?;
    let quiet = driver.device().quiesce()?;
    drop(driver);
    steps.done(step, if quiet.bus_master_off { "bus mastering off" } else { "bus mastering on" });
    Ok(())
}

/// Reads the first register of each BAR that can be mapped for combined writes both ways; else the reason of the last why there
/// is none.
fn combining(device: &Device) -> Result<Result<String, String>> {
    let (mut bars, mut reason) = (Vec::new(), String::new());
    for index in 0..6 {
        let Ok(plain) = device.bar(index) else { continue };
        match device.bar_write_combining(index) {
            Ok(combined) => {
                ensure!(combined.size() == plain.size(), "{combined:?} is not as large as {plain:?}");
                ensure!(combined.read_u32(0)? == plain.read_u32(0)?, "{combined:?} reads otherwise");
                bars.push(format!("{combined:?}"));
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => error.cause().clone_into(&mut reason),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if bars.is_empty() { Err(reason) } else { Ok(bars.join(", ")) })
}

/// Enables the first interrupt of the best kind that device and provider have; else the reasons why there is none.
fn enable(device: &Device) -> Result<Result<Interrupts, String>, Error> {
    let mut reasons = Vec::new();
    for kind in InterruptKind::ALL {
        match device.enable_interrupts(kind, 1) {
            Ok(interrupts) => return Ok(Ok(interrupts)),
            Err(error) if error.kind() == ErrorKind::Unsupported => reasons.push(error.cause().to_owned()),
            Err(error) => return Err(error),
        }
    }
    Ok(Err(reasons.join("; ")))
}

/// Has the device interrupt, and waits for it.
fn take<D: Driver>(driver: &mut D, interrupts: &Interrupts) -> Result<()> {
    let interrupt = interrupts.first().context("no interrupt was enabled")?;
    // A line is held back until its reason is gone.
    let release = || if interrupt.kind() == InterruptKind::Intx { interrupt.unmask() } else { Ok(()) };
    // What was signalled so far was polled for.
    while interrupt.try_wait()?.is_some() {
        release()?;
    }
    for round in 1..=ROUNDS {
        driver.fire()?;
        let came = interrupt.wait(Some(PATIENCE))?;
        ensure!(came.is_some(), "interrupt {round} did not come");
        driver.acknowledge()?;
        release()?;
    }
    ensure!(interrupt.try_wait()?.is_none(), "an interrupt that nobody asked for");
    Ok(())
}
