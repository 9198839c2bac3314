//! What the engine should do, said in the simplest way: maps and loops over pages, no sharing, no table, no tree. Written from
//! the rules, not from the engine.

mod calls;
mod container;
mod space;

use std::collections::BTreeMap;

use noiommu_core::Errno;
use noiommu_core::ObjectKind;
use noiommu_core::platform::Caller;
use noiommu_core::table::format::Access;

use crate::world::{Backing, PAGE, Pages};

pub(crate) use self::calls::Expected;
pub(crate) use self::space::{Area, Ioas};

/// What is around a call.
pub(crate) struct Setting<'a> {
    pub(crate) pages: &'a Pages,
    pub(crate) caller: Caller,
    /// Whether there are descriptors left.
    pub(crate) descriptors: bool,
}

/// An object.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Ioas(Ioas),
    Hwpt { ioas: u32, automatic: bool, faults: Option<u32> },
    Device { attached: Option<u32>, by_pasid: bool },
    Queue { open: bool },
}

/// Memory that one MAP named.
#[derive(Clone, Debug)]
struct Named {
    /// From the page on that holds the address.
    backing: Backing,
    writable: bool,
    /// The small pages that are pinned, by offset: where they were when they were pinned.
    pinned: BTreeMap<u64, u64>,
}

/// A part of such memory: its number, the first byte's offset, bytes.
type Slice = (usize, u64, u64);

/// A context as it should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) objects: BTreeMap<u32, Object>,
    /// All memory that was ever named; the number is the place.
    named: Vec<Named>,
    compat: Option<u32>,
    /// A no-IOMMU group uses this as its container.
    group: bool,
    charges_process: bool,
}

impl Model {
    /// Adds an object under the lowest free id.
    fn add(&mut self, object: Object) -> u32 {
        let id = (1..).find(|id| !self.objects.contains_key(id)).expect("ids are plenty");
        self.objects.insert(id, object);
        id
    }

    pub(crate) fn kind(&self, id: u32) -> Option<ObjectKind> {
        self.objects.get(&id).map(|object| match object {
            Object::Ioas(_) => ObjectKind::Ioas,
            Object::Hwpt { .. } => ObjectKind::Hwpt,
            Object::Device { .. } => ObjectKind::Device,
            Object::Queue { .. } => ObjectKind::FaultQueue,
        })
    }

    /// All IOASes.
    pub(crate) fn ioases(&self) -> impl Iterator<Item = (u32, &Ioas)> {
        self.objects.iter().filter_map(|(id, object)| match object {
            Object::Ioas(ioas) => Some((*id, ioas)),
            _ => None,
        })
    }

    fn ioas(&self, id: u32) -> Result<&Ioas, Errno> {
        match self.objects.get(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    fn ioas_mut(&mut self, id: u32) -> Result<&mut Ioas, Errno> {
        match self.objects.get_mut(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn has_domain(&self, ioas: u32) -> bool {
        self.objects.values().any(|object| matches!(object, Object::Hwpt { ioas: on, .. } if *on == ioas))
    }

    fn alignment(&self, id: u32) -> Result<u64, Errno> {
        Ok(if self.ioas(id)?.small_pages || self.has_domain(id) { PAGE } else { 1 })
    }

    pub(crate) fn bind(&mut self) -> u32 {
        self.add(Object::Device { attached: None, by_pasid: false })
    }

    pub(crate) fn unbind(&mut self, device: u32) -> Result<(), Errno> {
        let Some(Object::Device { by_pasid, .. }) = self.objects.get(&device) else {
            return Err(Errno::ENOENT);
        };
        let by_pasid = *by_pasid;
        self.detach(device, by_pasid)?;
        self.objects.remove(&device);
        Ok(())
    }

    pub(crate) fn attach(
        &mut self,
        setting: &Setting<'_>,
        device: u32,
        to: u32,
        pasid: Option<u32>,
    ) -> Result<u32, Errno> {
        let Some(Object::Device { attached: before, by_pasid }) = self.objects.get(&device).cloned() else {
            return Err(Errno::ENOENT);
        };
        if pasid.is_some_and(|pasid| pasid > i32::MAX as u32) {
            return Err(Errno::ENOSPC);
        }
        let hwpt = match self.objects.get(&to).ok_or(Errno::ENOENT)? {
            Object::Ioas(_) => self.automatic(to),
            Object::Hwpt { .. } => Some(to),
            _ => return Err(Errno::EINVAL),
        };
        if pasid.is_some_and(|pasid| pasid != 0) {
            return Err(Errno::EINVAL);
        }
        if before.is_some() && by_pasid != pasid.is_some() {
            return Err(Errno::EBUSY);
        }
        let hwpt = match hwpt {
            Some(hwpt) => hwpt,
            None => self.add_hwpt(setting, to, true)?,
        };
        let after = Object::Device { attached: Some(hwpt), by_pasid: pasid.is_some() };
        self.objects.insert(device, after);
        self.leave(before.filter(|before| *before != hwpt));
        Ok(hwpt)
    }

    pub(crate) fn detach(&mut self, device: u32, with_pasid: bool) -> Result<(), Errno> {
        match self.objects.get_mut(&device) {
            Some(Object::Device { attached, by_pasid }) if *by_pasid == with_pasid => {
                let before = attached.take();
                self.leave(before);
                Ok(())
            }
            Some(Object::Device { .. }) => Ok(()),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn queue_closed(&mut self, queue: u32) {
        if let Some(Object::Queue { open }) = self.objects.get_mut(&queue) {
            *open = false;
        }
    }

    pub(crate) fn set_group(&mut self) -> Result<(), Errno> {
        if self.compat.is_some() {
            return Err(Errno::EINVAL);
        }
        self.group = true;
        Ok(())
    }

    /// Whether there is an IOAS for the container calls.
    pub(crate) fn has_compat(&self) -> bool {
        self.compat.is_some()
    }

    /// The first few small pages of every area, as the world counts them.
    pub(crate) fn small_pages(&self) -> Vec<u8> {
        let areas = self.ioases().flat_map(|(_, ioas)| &ioas.areas);
        let pages = areas.flat_map(|(first, area)| {
            let bytes = (area.last - first).min(8 * PAGE);
            let named = self.named[area.named].backing;
            (0..=bytes)
                .step_by(PAGE as usize)
                .filter_map(move |offset| Pages::index(named.at(area.start + offset)))
        });
        pages.filter_map(|page| u8::try_from(page).ok()).collect()
    }

    fn automatic(&self, ioas: u32) -> Option<u32> {
        self.objects.iter().find_map(|(id, object)| match object {
            Object::Hwpt { ioas: on, automatic: true, .. } if *on == ioas => Some(*id),
            _ => None,
        })
    }

    /// A page table on an IOAS; the first one pins everything.
    fn add_hwpt(&mut self, setting: &Setting<'_>, ioas: u32, automatic: bool) -> Result<u32, Errno> {
        if !self.has_domain(ioas) {
            self.pin_all(setting.pages, ioas)?;
        }
        Ok(self.add(Object::Hwpt { ioas, automatic, faults: None }))
    }

    /// An automatic HWPT that no device is attached to is gone.
    fn leave(&mut self, hwpt: Option<u32>) {
        let Some(hwpt) = hwpt else { return };
        let used = self.users(hwpt) > 0;
        if !used && matches!(self.objects.get(&hwpt), Some(Object::Hwpt { automatic: true, .. })) {
            self.objects.remove(&hwpt);
            self.settle();
        }
    }

    /// Devices attached to an HWPT.
    fn users(&self, hwpt: u32) -> usize {
        let on =
            |object: &&Object| matches!(object, Object::Device { attached: Some(on), .. } if *on == hwpt);
        self.objects.values().filter(on).count()
    }

    fn destroy(&mut self, id: u32) -> Result<(), Errno> {
        let busy = match self.objects.get(&id).ok_or(Errno::ENOENT)? {
            Object::Device { .. } => true,
            Object::Ioas(_) => self.has_domain(id),
            Object::Hwpt { .. } => self.users(id) > 0,
            Object::Queue { open } => {
                let uses =
                    |object: &Object| matches!(object, Object::Hwpt { faults, .. } if *faults == Some(id));
                *open || self.objects.values().any(uses)
            }
        };
        if busy {
            return Err(Errno::EBUSY);
        }
        self.objects.remove(&id);
        if self.compat == Some(id) {
            self.compat = None;
        }
        self.settle();
        Ok(())
    }

    /// Pages that no area of an IOAS with a domain covers are pinned no longer.
    fn settle(&mut self) {
        let mut covered = vec![Vec::new(); self.named.len()];
        for (id, ioas) in self.ioases() {
            if self.has_domain(id) {
                for (first, area) in &ioas.areas {
                    covered[area.named].push((area.start, area.start + (area.last - first)));
                }
            }
        }
        for (named, ranges) in self.named.iter_mut().zip(covered) {
            named.pinned.retain(|page, _| ranges.iter().any(|(start, last)| start <= page && page <= last));
        }
    }

    /// Bytes of small pages that are pinned, each memory's own.
    pub(crate) fn pinned(&self) -> u64 {
        self.named.iter().map(|named| named.pinned.len() as u64 * PAGE).sum()
    }

    /// Where an offset of some pinned memory is, and the bytes in one piece from there on.
    fn place(&self, pages: &Pages, named: usize, offset: u64) -> (u64, u64) {
        let (page, within) = (offset / PAGE * PAGE, offset % PAGE);
        let named = &self.named[named];
        let (place, bytes) = match named.pinned.get(&page) {
            Some(place) => (*place, PAGE),
            // Nothing happens to large memory.
            None => pages.place(named.backing.at(page), false).expect("covered, hence pinned"),
        };
        (place + within, bytes - within)
    }

    /// NOIOMMU_GET_PA.
    pub(crate) fn get_pa(
        &self,
        setting: &Setting<'_>,
        id: u32,
        iova: u64,
        limit: u64,
    ) -> Result<(u64, u64), Errno> {
        if !setting.caller.raw_io {
            return Err(Errno::EPERM);
        }
        if limit == 0 {
            return Err(Errno::EINVAL);
        }
        if iova == u64::MAX {
            return Err(Errno::EOVERFLOW);
        }
        let (first, area) = self.ioas(id)?.at(iova).ok_or(Errno::ENOENT)?;
        if !self.has_domain(id) {
            return Err(Errno::EOPNOTSUPP);
        }
        let (offset, rest) = (area.start + (iova - first), area.last - iova + 1);
        let (place, mut length) = self.place(setting.pages, area.named, offset);
        while length < rest.min(limit) {
            let (next, bytes) = self.place(setting.pages, area.named, offset + length);
            if next != place + length {
                break;
            }
            length += bytes;
        }
        Ok((place, length.min(rest).min(limit)))
    }
}

/// What MAP, MAP_FILE and COPY ask for.
struct Wanted {
    length: u64,
    /// The fixed IOVA.
    iova: Option<u64>,
    access: Access,
}
