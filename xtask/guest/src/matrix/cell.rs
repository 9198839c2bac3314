//! One cell of the matrix: a device from its opening to its closing. Nothing in here knows who provides the device.

use anyhow::Result;
use noiommu::{Context, Device};
use serde_json::json;

use super::driver::{Driver, Signal, Written};
use crate::witness::Witness;

/// What became of the steps, told one by one, a line of JSON each: whoever listens knows how far a program came that crashes.
#[derive(Default)]
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
    let size = device.bar(0).or_else(|_| device.bar(4))?.size();
    steps.done(step, &format!("{size} bytes"));

    *step = "identity";
    let signal = Signal::Polled;
    let mut driver = D::start(device, &ioas, signal)?;
    let (vendor, model) = driver.device().id()?;
    let says = driver.identity()?;
    steps.done(step, &format!("{vendor:04x}:{model:04x}, {says}"));

    *step = "dma";
    let written = driver.transfer()?;
    if !provider.is_confined() {
        // Without an IOMMU a device is given physical addresses: the host, too, finds the bytes there.
        let mut witness = Witness::connect(&device_name(driver.device()))?;
        witness.expect(written.address, &written.bytes[..written.bytes.len().min(64)])?;
        witness.done(0)?;
    }
    steps.transferred(&written);

    *step = "interrupt";
    steps.impossible(step, "sysfs not yet");

    *step = "reset";
    driver.stop()?;
    steps.impossible(step, "no reset yet");

    *step = "close";
    let quiet = driver.device().quiesce()?;
    drop(driver);
    steps.done(step, if quiet.bus_master_off { "bus mastering off" } else { "bus mastering on" });
    Ok(())
}

fn device_name(device: &Device) -> String {
    device.name().replace(' ', "-")
}
