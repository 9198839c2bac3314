//! Calls failing while devices are looked for, bound, opened and given back, on a made-up machine.

use noiommu::binding::{self, Options};
use noiommu::{Context, Contiguity, DmaBuffer, ErrorKind, PinChoice, Provider, pci};

use crate::calls::{failures, honest_failures};
use crate::life::{Early, can_pin};
use crate::machine::{self, CONFINED, FREE, USED};
use crate::supervisor::undisturbed;
use crate::syscalls::check;
use crate::turns::{Scenario, in_turn};

const SYSFS: fn() -> Options =
    || Options { provider: Some(Provider::Sysfs), force: false, together: Vec::new() };

#[test]
fn every_call_of_looking_around_fails_in_turn() {
    const NAME: &str = concat!(module_path!(), "::every_call_of_looking_around_fails_in_turn");
    in_turn(NAME, Scenario { plan: honest_failures, ready: machine::enter, run: look, check });
}

#[test]
fn every_call_of_binding_fails_in_turn() {
    const NAME: &str = concat!(module_path!(), "::every_call_of_binding_fails_in_turn");
    in_turn(NAME, Scenario { plan: honest_failures, ready: machine::enter, run: bind, check });
}

#[test]
fn every_call_of_a_device_in_sysfs_fails_in_turn() {
    const NAME: &str = concat!(module_path!(), "::every_call_of_a_device_in_sysfs_fails_in_turn");
    let ready = || can_pin(PinChoice::Best) && machine::enter();
    in_turn(NAME, Scenario { plan: failures, ready, run: drive, check });
}

/// Looks which devices there are, and what could be done with them.
///
/// # Panics
/// Where a device in use could be taken, or one behind an IOMMU got without it.
fn look() -> Result<(), Early> {
    for device in pci::devices()? {
        assert!(device.address != CONFINED || device.iommu.is_real(), "an IOMMU was overlooked");
    }
    match binding::plan(USED, &SYSFS()) {
        Ok(plan) => panic!("a mounted disk would be taken: {plan:?}"),
        Err(error) if error.kind() == ErrorKind::Busy => {}
        Err(error) => return Err(error.into()),
    }
    match binding::plan(CONFINED, &SYSFS()) {
        Ok(plan) => panic!("a device behind an IOMMU would be driven without: {plan:?}"),
        Err(error) if error.kind() == ErrorKind::HasIommu => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Takes a device and gives it back.
///
/// # Panics
/// Where it is left half bound.
fn bind() -> Result<(), Early> {
    undisturbed(|| machine::reset(FREE));
    let bound = binding::bind(FREE, &SYSFS());
    undisturbed(|| {
        let only = machine::driver_override(FREE);
        match &bound {
            Ok(bound) => assert_eq!((bound.provider, &*only), (Provider::Sysfs, "noiommu")),
            // As it was; or, where even that failed, with a memory of it.
            Err(error) => {
                let remembered = binding::bound().unwrap().contains(&FREE.to_owned());
                assert!(only.is_empty() || remembered, "{only:?} stays, and nobody knows: {error:?}");
            }
        }
    });
    let unbound = binding::unbind(FREE);
    undisturbed(|| {
        if unbound.is_ok() && bound.is_ok() {
            assert_eq!(machine::driver_override(FREE), "");
        }
        // Whatever has failed: done once more, it is as it was.
        let again = binding::unbind(FREE);
        assert!(bound.is_err() || unbound.is_ok() || again.is_ok(), "{unbound:?}, {again:?}");
        assert_eq!(machine::driver_override(FREE), "", "{bound:?}, {unbound:?}, {again:?}");
        assert_eq!(binding::bound().unwrap(), Vec::<String>::new());
    });
    bound?;
    unbound?;
    Ok(())
}

/// Opens a device through its files, gives it memory, and lets it go.
///
/// # Panics
/// Where it can be opened though it must not be, or stays claimed, enabled or mastering.
fn drive() -> Result<(), Early> {
    undisturbed(|| machine::reset(FREE));
    let context = Context::new()?;
    // One would be under supervision, too, and outlive the supervisor.
    context.waive_guardian();
    for (address, why) in [(USED, ErrorKind::Busy), (CONFINED, ErrorKind::HasIommu)] {
        match context.open_with(address, Provider::Sysfs) {
            Ok(device) => panic!("{device:?} could be opened"),
            Err(error) if error.kind() == why => {}
            Err(error) => return Err(error.into()),
        }
    }
    let device = context.open_with(FREE, Provider::Sysfs)?;
    let ioas = context.ioas()?;
    device.attach(&ioas)?;
    let mapping = ioas.map(DmaBuffer::new(8192, Contiguity::Pages)?)?;
    assert_eq!(mapping.for_device(&device)?.len(), 8192);
    let registers = device.bar(0)?;
    registers.write_u32(0x10, 0x1234_5678)?;
    assert_eq!(registers.read_u32(0x10)?, 0x1234_5678);
    device.config_write(0x3c, &[7])?;
    assert_eq!(device.id()?, (0x1234, 0x11e8));
    device.quiesce()?;
    drop((registers, device));
    undisturbed(|| {
        assert_eq!(machine::command(FREE) & 4, 0, "it masters the bus");
    });
    Ok(())
}
