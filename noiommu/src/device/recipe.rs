//! What makes a device quiet by its own registers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Device, Inner, Registers};
use crate::{Error, Result, barrier};

/// The most steps of a recipe.
pub(crate) const MOST_STEPS: usize = 16;

/// A step of a quiet-recipe ([`Device::set_quiet_recipe`]): an access to a register of a memory BAR.
///
/// `bar` is 0 to 5, `offset` a multiple of `width`, and `width` 1, 2, 4 or 8 bytes. Values are as the driver writes them, in the
/// processor's byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuietStep {
    /// Writes a register.
    Write {
        /// The BAR.
        bar: u8,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes of the register.
        width: u8,
        /// What is written.
        value: u64,
    },
    /// Reads a register, clears some bits, sets some, and writes it.
    Update {
        /// The BAR.
        bar: u8,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes of the register.
        width: u8,
        /// Bits that are cleared.
        clear: u64,
        /// Bits that are set, after that.
        set: u64,
    },
    /// Reads a register until the bits of `mask` are those of `value`.
    Wait {
        /// The BAR.
        bar: u8,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes of the register.
        width: u8,
        /// The bits that count.
        mask: u64,
        /// What they shall be.
        value: u64,
        /// How long to wait at most, in steps of a millisecond; at most 65 s. The device is not quiet then.
        timeout: Duration,
    },
}

/// The longest wait of a step.
const LONGEST_WAIT: Duration = Duration::from_secs(65);

impl QuietStep {
    /// BAR, offset and width.
    pub(crate) fn place(&self) -> (u8, u64, u8) {
        match *self {
            Self::Write { bar, offset, width, .. }
            | Self::Update { bar, offset, width, .. }
            | Self::Wait { bar, offset, width, .. } => (bar, offset, width),
        }
    }

    /// Whether it is an aligned access of a width that there is, and waits for what can come, not too long.
    pub(crate) fn is_sound(&self) -> bool {
        let (_, offset, width) = self.place();
        let waits = match *self {
            Self::Wait { mask, value, timeout, .. } => timeout <= LONGEST_WAIT && value & !mask == 0,
            Self::Write { .. } | Self::Update { .. } => true,
        };
        waits && [1, 2, 4, 8].contains(&width) && offset.is_multiple_of(width.into())
    }

    /// Whether it stays within a BAR of so many bytes.
    pub(crate) fn fits(&self, size: u64) -> bool {
        let (_, offset, width) = self.place();
        offset.checked_add(width.into()).is_some_and(|end| end <= size)
    }

    /// Does it, if it [is sound](Self::is_sound) and [fits](Self::fits) these registers; answers whether what it waits for came.
    fn run(&self, registers: &dyn Registers) -> Result<bool> {
        let (_, offset, width) = self.place();
        match *self {
            Self::Write { value, .. } => {
                barrier::doorbell();
                registers.write(offset, width, value)?;
            }
            Self::Update { clear, set, .. } => {
                let value = registers.read(offset, width)? & !clear | set;
                barrier::doorbell();
                registers.write(offset, width, value)?;
            }
            Self::Wait { mask, value, timeout, .. } => {
                let deadline = Instant::now() + timeout;
                while registers.read(offset, width)? & mask != value {
                    if Instant::now() >= deadline {
                        return Ok(false);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Ok(true)
    }
}

/// A recipe that has been checked, with the registers that it needs.
#[derive(Default)]
pub(super) struct Recipe {
    steps: Vec<(QuietStep, Arc<dyn Registers>)>,
}

impl Recipe {
    /// Checks the steps and reaches their registers.
    fn new(device: &Inner, steps: &[QuietStep]) -> Result<Self> {
        if steps.len() > MOST_STEPS {
            return Err(Error::argument(format!(
                "a quiet-recipe of {} steps: at most {MOST_STEPS}",
                steps.len()
            )));
        }
        let step = |step: &QuietStep| {
            let (bar, offset, width) = step.place();
            let bad = |why: &str| {
                Err(Error::argument(format!("a quiet-recipe of {}: {step:?} {why}", device.name())))
            };
            if ![1, 2, 4, 8].contains(&width) || !offset.is_multiple_of(width.into()) {
                return bad("is not an aligned access of 1, 2, 4 or 8 bytes");
            }
            if matches!(step, QuietStep::Wait { timeout, .. } if *timeout > LONGEST_WAIT) {
                return bad("waits for more than 65 s");
            }
            if matches!(step, QuietStep::Wait { mask, value, .. } if value & !mask != 0) {
                return bad("waits for bits that it does not look at");
            }
            let registers = device.checked(device.backend().bar(bar))?;
            if offset.checked_add(width.into()).is_none_or(|end| end > registers.size()) {
                return bad("passes the end of its BAR");
            }
            Ok((*step, registers))
        };
        Ok(Self { steps: steps.iter().map(step).collect::<Result<_>>()? })
    }

    /// Does all steps; answers whether what they wait for came. `None`: there are none.
    pub(super) fn run(&self) -> Result<Option<bool>> {
        let mut came = true;
        for (step, registers) in &self.steps {
            came &= step.run(&**registers)?;
        }
        Ok((!self.steps.is_empty()).then_some(came))
    }
}

impl Device {
    /// Tells how the device is made quiet by its own registers, in place of what was told before; no steps: by nothing.
    ///
    /// Turning bus mastering off does not stop every device: one that has taken commands may go on with what it has begun (an NVMe
    /// controller with reads queued does), and many have no reset. So the recipe is done first, by [`Device::quiesce`] and so by
    /// dropping the device, and by the [guardian](crate::guardian) when the process dies. It shall work in whatever state the
    /// device is, and shall need no DMA.
    ///
    /// # Errors
    /// EINVAL: more than 16 steps, a misaligned access or one past the end of its BAR, a wait of more than 65 s;
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): no such memory BAR; what the provider answers. The recipe of
    /// before stays then.
    pub fn set_quiet_recipe(&self, steps: &[QuietStep]) -> Result<()> {
        self.refuse_forked()?;
        let inner = self.inner();
        let mut state = inner.state();
        let recipe = Recipe::new(inner, steps)?;
        if let Some(ward) = &mut state.ward {
            let mut windows = Vec::new();
            for index in 0..6 {
                if steps.iter().any(|step| step.place().0 == index) {
                    windows.push((index, inner.checked(inner.backend().window(index))?));
                }
            }
            ward.set_recipe(steps, windows)?;
        }
        state.recipe = recipe;
        Ok(())
    }
}
