//! Interrupts of the device: by its line, or by a message.

use noiommu::Result;

use crate::Edu;
use crate::registers::{INTERRUPT_ACKNOWLEDGE, INTERRUPT_RAISE, INTERRUPT_STATUS};

impl Edu {
    /// Has the device raise an interrupt for these reasons, bits of its interrupt status.
    ///
    /// # Errors
    /// What the kit answers.
    pub fn raise(&self, reasons: u32) -> Result<()> {
        self.registers.set(INTERRUPT_RAISE, reasons)
    }

    /// Takes the reasons why the device interrupts, and with them the interrupt: its line falls.
    ///
    /// # Errors
    /// What the kit answers.
    pub fn acknowledge(&self) -> Result<u32> {
        let reasons = self.registers.get(INTERRUPT_STATUS)?;
        self.registers.set(INTERRUPT_ACKNOWLEDGE, reasons)?;
        Ok(reasons)
    }
}
