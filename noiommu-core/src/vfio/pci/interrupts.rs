//! Interrupts: how many there are, and what they signal.

use noiommu_uapi::vfio::device::*;
use noiommu_uapi::vfio::pci::*;

use super::config::{CAPABILITY_MSI, CAPABILITY_MSIX, COMMAND, COMMAND_LINE_MASKED, PIN, read_register};
use super::{Backend, Messages, PciDevice};
use crate::vfio::argument;
use crate::{Errno, TryVec, UserMemory};

/// In the status register, as the upper half of the 4 bytes from the command on: the line is asserted.
const LINE_ASSERTED: u32 = 1 << 19;

/// Which interrupt of a device is enabled: one of the line, MSI and MSI-X.
pub(super) enum Active<B: Backend> {
    None,
    Line {
        event: Option<B::Event>,
        /// What unmasks the line.
        unmask: Option<(u64, B::Watch)>,
    },
    Messages {
        kind: Messages,
        /// Vectors enabled at first.
        allocated: u32,
        /// What each signals.
        events: TryVec<Option<B::Event>>,
    },
}

/// What follows the structure of a call for interrupts.
enum Data {
    None,
    Bools(TryVec<u8>),
    Descriptors(TryVec<i32>),
}

impl Data {
    /// Whether it says yes for one vector.
    fn says(&self, index: usize) -> bool {
        match self {
            Self::None => true,
            Self::Bools(bools) => bools.get(index).is_some_and(|&bool| bool != 0),
            Self::Descriptors(_) => false,
        }
    }
}

impl<B: Backend> PciDevice<B> {
    /// Vectors of an interrupt. The capabilities are asked anew, as the device may be reset meanwhile.
    fn interrupt_count(&self, index: u32) -> Result<u32, Errno> {
        let vectors = |kind, capability, to_count: fn(u32) -> u32| match self.config.find(capability) {
            Some(start) if self.backend.has_messages(kind) => {
                Ok(to_count(read_register(&self.backend, start.wrapping_add(2), 2)?))
            }
            _ => Ok(0),
        };
        match index {
            VFIO_PCI_INTX_IRQ_INDEX => Ok(u32::from(self.config.image(PIN, 1) != 0)),
            VFIO_PCI_MSI_IRQ_INDEX => vectors(Messages::Msi, CAPABILITY_MSI, |flags| {
                1u32.wrapping_shl((flags & 0xe).wrapping_shr(1))
            }),
            VFIO_PCI_MSIX_IRQ_INDEX => {
                vectors(Messages::Msix, CAPABILITY_MSIX, |flags| (flags & 0x7ff).wrapping_add(1))
            }
            VFIO_PCI_ERR_IRQ_INDEX | VFIO_PCI_REQ_IRQ_INDEX => Ok(1),
            _ => Ok(0),
        }
    }

    pub(super) fn get_irq_info(&self, user: &dyn UserMemory, argument: u64) -> Result<i64, Errno> {
        let mut info: VfioIrqInfo = argument::read(user, argument, 16)?;
        if info.argsz < 16 || info.index >= VFIO_PCI_NUM_IRQS {
            return Err(Errno::EINVAL);
        }
        info.count = self.interrupt_count(info.index)?;
        info.flags = VFIO_IRQ_INFO_EVENTFD
            | match info.index {
                VFIO_PCI_INTX_IRQ_INDEX => VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
                VFIO_PCI_MSIX_IRQ_INDEX if self.has_dynamic_vectors() => 0,
                _ => VFIO_IRQ_INFO_NORESIZE,
            };
        argument::write(user, argument, &info, 16)?;
        Ok(0)
    }

    fn has_dynamic_vectors(&self) -> bool {
        self.backend.has_dynamic_vectors() && self.config.find(CAPABILITY_MSIX).is_some()
    }

    pub(super) fn set_irqs(&mut self, user: &dyn UserMemory, argument: u64) -> Result<i64, Errno> {
        /// Bytes of the structure.
        const FIXED: u32 = 20;
        let set: VfioIrqSet = argument::read(user, argument, FIXED as usize)?;
        let vectors = self.interrupt_count(set.index)?;
        let known = VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK;
        if set.argsz < FIXED
            || set.index >= VFIO_PCI_NUM_IRQS
            || set.count >= u32::MAX.wrapping_sub(set.start)
            || set.flags & !known != 0
            || set.start >= vectors
            || set.start.wrapping_add(set.count) > vectors
        {
            return Err(Errno::EINVAL);
        }
        let room = u64::from(set.argsz.wrapping_sub(FIXED));
        let at = argument.wrapping_add(FIXED.into());
        let data = match set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK {
            VFIO_IRQ_SET_DATA_NONE => Data::None,
            VFIO_IRQ_SET_DATA_BOOL => Data::Bools(elements(user, at, room, set.count, u8::from_ne_bytes)?),
            VFIO_IRQ_SET_DATA_EVENTFD => {
                Data::Descriptors(elements(user, at, room, set.count, i32::from_ne_bytes)?)
            }
            _ => return Err(Errno::EINVAL),
        };
        let (start, count) = (set.start, set.count);
        match (set.index, set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) {
            (VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_MASK) => self.mask(start, count, &data),
            (VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_UNMASK) => self.unmask(start, count, &data),
            (VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER) => self.set_line(start, count, &data),
            (VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER) => {
                self.set_messages(Messages::Msi, start, count, &data)
            }
            (VFIO_PCI_MSIX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER) => {
                self.set_messages(Messages::Msix, start, count, &data)
            }
            (VFIO_PCI_ERR_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER) => {
                set_single(&self.backend, &mut self.error_event, count, &data)
            }
            (VFIO_PCI_REQ_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER) => {
                set_single(&self.backend, &mut self.request_event, count, &data)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    /// Ends what is enabled.
    pub(super) fn disable_interrupts(&mut self) {
        match core::mem::replace(&mut self.interrupt, Active::None) {
            Active::None => {}
            Active::Line { .. } => self.backend.line_disconnect(),
            Active::Messages { kind, events, .. } => {
                for (vector, event) in (0..).zip(events.iter()) {
                    if event.is_some() {
                        let _ = self.backend.messages_connect(kind, vector, None);
                    }
                }
                self.backend.messages_disable(kind);
            }
        }
    }

    /// The bit in the device's command register that keeps the line quiet.
    fn mask_device(&self, masked: bool) -> Result<(), Errno> {
        if !self.line_maskable {
            return Ok(());
        }
        let command = self.backend.config_read(COMMAND, 2)? as u16;
        let wanted = if masked { command | COMMAND_LINE_MASKED } else { command & !COMMAND_LINE_MASKED };
        if wanted != command {
            self.backend.config_write(COMMAND, 2, wanted.into())?;
        }
        Ok(())
    }

    /// The caller's own bit in the command register: the device's follows it.
    pub(super) fn caller_masks_line(&mut self, masked: bool) -> Result<(), Errno> {
        if masked == self.line_off {
            return Ok(());
        }
        self.line_off = masked;
        if masked { self.mask_device(true) } else { self.unmask_line() }
    }

    fn unmask_line(&self) -> Result<(), Errno> {
        if !matches!(self.interrupt, Active::Line { .. }) {
            return self.mask_device(false);
        }
        if self.line_off {
            return Ok(());
        }
        let state = self.backend.config_read(COMMAND, 4)?;
        if state & u32::from(COMMAND_LINE_MASKED) == 0 {
            return Ok(());
        }
        if state & LINE_ASSERTED != 0 {
            // It would come at once: signalled instead, and left masked.
            self.signal_line();
            return Ok(());
        }
        self.mask_device(false)
    }

    fn signal_line(&self) {
        if let Active::Line { event: Some(event), .. } = &self.interrupt
            && !self.line_off
        {
            self.backend.signal(event);
        }
    }

    fn mask(&mut self, start: u32, count: u32, data: &Data) -> Result<i64, Errno> {
        if !matches!(self.interrupt, Active::Line { .. }) || (start, count) != (0, 1) {
            return Err(Errno::EINVAL);
        }
        if let Data::Descriptors(_) = data {
            return Err(Errno::ENOTTY);
        }
        if data.says(0) {
            self.mask_device(true)?;
        }
        Ok(0)
    }

    fn unmask(&mut self, start: u32, count: u32, data: &Data) -> Result<i64, Errno> {
        let token = self.next_token;
        let Active::Line { unmask, .. } = &mut self.interrupt else { return Err(Errno::EINVAL) };
        if (start, count) != (0, 1) {
            return Err(Errno::EINVAL);
        }
        if let Data::Descriptors(descriptors) = data {
            match descriptors.first() {
                Some(&descriptor) if descriptor >= 0 => {
                    let watch = self.backend.watch(descriptor, token)?;
                    if unmask.is_some() {
                        return Err(Errno::EBUSY);
                    }
                    self.next_token = token.wrapping_add(1);
                    *unmask = Some((token, watch));
                }
                _ => *unmask = None,
            }
        } else if data.says(0) {
            self.unmask_line()?;
        }
        Ok(0)
    }

    /// An eventfd that was given for unmasking was signalled.
    pub(super) fn unmask_watched(&mut self, token: u64) -> bool {
        let Active::Line { unmask: Some((own, _)), .. } = &self.interrupt else { return false };
        if *own != token {
            return false;
        }
        let _ = self.unmask_line();
        true
    }

    fn set_line(&mut self, start: u32, count: u32, data: &Data) -> Result<i64, Errno> {
        let enabled = matches!(self.interrupt, Active::Line { .. });
        if enabled && count == 0 && matches!(data, Data::None) {
            self.disable_interrupts();
            return Ok(0);
        }
        if !(enabled || matches!(self.interrupt, Active::None)) || (start, count) != (0, 1) {
            return Err(Errno::EINVAL);
        }
        if let Data::Descriptors(descriptors) = data {
            let new = match descriptors.first() {
                Some(&descriptor) if descriptor >= 0 => Some(self.backend.event(descriptor)?),
                _ => None,
            };
            // Masked until it is connected: nothing comes too early.
            if !enabled {
                self.mask_device(true)?;
            }
            self.backend.line_connect(new.as_ref())?;
            if !enabled {
                self.mask_device(self.line_off)?;
            }
            match &mut self.interrupt {
                Active::Line { event, .. } => *event = new,
                other => *other = Active::Line { event: new, unmask: None },
            }
            return Ok(0);
        }
        if !enabled {
            return Err(Errno::EINVAL);
        }
        if data.says(0) {
            self.signal_line();
        }
        Ok(0)
    }

    fn set_messages(&mut self, kind: Messages, start: u32, count: u32, data: &Data) -> Result<i64, Errno> {
        let enabled = matches!(&self.interrupt, Active::Messages { kind: now, .. } if *now == kind);
        if enabled && count == 0 && matches!(data, Data::None) {
            self.disable_interrupts();
            return Ok(0);
        }
        if !(enabled || matches!(self.interrupt, Active::None)) {
            return Err(Errno::EINVAL);
        }
        if let Data::Descriptors(descriptors) = data {
            if enabled {
                return self.set_vectors(start, descriptors);
            }
            let wanted = start.wrapping_add(count);
            let granted = self.backend.messages_enable(kind, wanted)?;
            if granted < wanted {
                // Answered, so that the caller asks for fewer.
                return Ok(granted.into());
            }
            if kind == Messages::Msi {
                self.msi_vectors_log2 = wanted.next_power_of_two().trailing_zeros() as u8;
            }
            self.interrupt = Active::Messages { kind, allocated: wanted, events: TryVec::new() };
            return self.set_vectors(start, descriptors).inspect_err(|_| self.disable_interrupts());
        }
        let Active::Messages { events, .. } = &self.interrupt else { return Err(Errno::EINVAL) };
        if !enabled {
            return Err(Errno::EINVAL);
        }
        for index in 0..count as usize {
            if data.says(index)
                && let Some(Some(event)) = events.get(index.wrapping_add(start as usize))
            {
                self.backend.signal(event);
            }
        }
        Ok(0)
    }

    /// Sets what a run of vectors signals. When one of them fails, those before it signal nothing any more.
    fn set_vectors(&mut self, start: u32, descriptors: &[i32]) -> Result<i64, Errno> {
        for (vector, &descriptor) in (start..).zip(descriptors) {
            if let Err(error) = self.set_vector(vector, descriptor) {
                for vector in start..=vector {
                    let _ = self.set_vector(vector, -1);
                }
                return Err(error);
            }
        }
        Ok(0)
    }

    fn set_vector(&mut self, vector: u32, descriptor: i32) -> Result<(), Errno> {
        let dynamic = self.has_dynamic_vectors();
        let Active::Messages { kind, allocated, events } = &mut self.interrupt else {
            return Err(Errno::EINVAL);
        };
        let index = vector as usize;
        if let Some(place) = events.get_mut(index)
            && place.take().is_some()
        {
            self.backend.messages_connect(*kind, vector, None)?;
        }
        if descriptor < 0 {
            return Ok(());
        }
        if vector >= *allocated && !(dynamic && *kind == Messages::Msix) {
            return Err(Errno::EINVAL);
        }
        while events.len() <= index {
            events.try_push(None)?;
        }
        let event = self.backend.event(descriptor)?;
        self.backend.messages_connect(*kind, vector, Some(&event))?;
        if let Some(place) = events.get_mut(index) {
            *place = Some(event);
        }
        Ok(())
    }
}

/// An interrupt that is none of the device's: only kept, and signalled for a test.
fn set_single<B: Backend>(
    backend: &B,
    event: &mut Option<B::Event>,
    count: u32,
    data: &Data,
) -> Result<i64, Errno> {
    match data {
        Data::None => {
            let held = event.as_ref().ok_or(Errno::EINVAL)?;
            if count != 0 {
                backend.signal(held);
            } else {
                *event = None;
            }
        }
        _ if count == 0 => return Err(Errno::EINVAL),
        Data::Bools(_) => {
            if data.says(0)
                && let Some(event) = event
            {
                backend.signal(event);
            }
        }
        Data::Descriptors(descriptors) => match descriptors.first() {
            Some(-1) => *event = None,
            Some(&descriptor) if descriptor >= 0 => *event = Some(backend.event(descriptor)?),
            _ => return Err(Errno::EINVAL),
        },
    }
    Ok(0)
}

/// Reads `count` elements of `N` bytes; `room` bytes are there by what the caller said.
fn elements<T, const N: usize>(
    user: &dyn UserMemory,
    address: u64,
    room: u64,
    count: u32,
    element: fn([u8; N]) -> T,
) -> Result<TryVec<T>, Errno> {
    if room < u64::from(count).wrapping_mul(N as u64) {
        return Err(Errno::EINVAL);
    }
    let mut elements = TryVec::new();
    elements.try_reserve(count as usize)?;
    for index in 0..u64::from(count) {
        let mut bytes = [0; N];
        user.read(address.wrapping_add(index.wrapping_mul(N as u64)), &mut bytes)?;
        elements.try_push(element(bytes))?;
    }
    Ok(elements)
}
