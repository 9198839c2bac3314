//! What the steps of a sequence say.

use std::fmt::Write as _;

use super::generator::{B, Draft, F, Kind, PAGE, SPARE};

impl Draft {
    // Files.

    pub(super) fn open(&mut self) {
        let name = ["i", "j"].into_iter().find(|name| !self.iommufds.contains(name));
        if let Some(name) = name {
            self.say(format!("open /dev/iommu {name}"));
            if name == "i" {
                self.iommufds.insert(0, name);
            } else {
                self.iommufds.push(name);
            }
        }
    }

    pub(super) fn dup(&mut self) {
        if self.iommufds.first() == Some(&"i") && !self.iommufds.contains(&"k") {
            self.say("dup i k");
            self.iommufds.insert(1, "k");
        }
    }

    pub(super) fn close(&mut self) {
        match self.random.below(4) {
            0 if self.queues > 0 => {
                self.say(format!("close q{}", self.queues));
                self.queues -= 1;
            }
            1 | 2 => {
                let which = self.random.below(2) as usize;
                if let Some(device) = self.devices.get_mut(which).filter(|device| device.open) {
                    (device.open, device.attached) = (false, None);
                    let bound = device.bound.take();
                    let step = format!("close {}", device.name);
                    self.say(step);
                    if let Some((id, _)) = bound {
                        self.forget_object(id);
                    }
                }
            }
            // The first one last, and seldom.
            _ => {
                let last = self.iommufds.len().saturating_sub(1);
                if (last > 0 || self.random.percent(20)) && !self.iommufds.is_empty() {
                    let name = self.iommufds.remove(last);
                    self.say(format!("close {name}"));
                    if self.iommufds.is_empty() {
                        self.objects.clear();
                        self.areas.clear();
                    }
                }
            }
        }
    }

    // Devices.

    /// Opens it, binds it, or does something to it that is wrong now.
    pub(super) fn device(&mut self, which: usize) {
        let iommufd = self.iommufd();
        let Some(device) = self.devices.get_mut(which) else { return };
        let (role, name) = (device.role, device.name);
        if !device.open {
            device.open = true;
            self.say(format!("open cdev:{role} {name}"));
            if self.random.percent(15) {
                return;
            }
        } else if device.bound.is_some() && self.random.percent(80) {
            return self.device_call(name);
        }
        let iommufd = if self.random.percent(3) { "d" } else { iommufd };
        let iommufd = if iommufd == "d" && !self.devices[0].open { "-1" } else { iommufd };
        let flags = if self.random.percent(2) { " flags=1" } else { "" };
        let (distortion, before) = (self.device_distortion(), self.devices[which].bound);
        self.say(format!("VFIO_DEVICE_BIND_IOMMUFD {name} iommufd={iommufd}{flags}{distortion}"));
        if before.is_none() && flags.is_empty() && distortion.is_empty() && ["i", "k"].contains(&iommufd) {
            let id = self.new_object(Kind::Device);
            self.devices[which].bound = Some((id, iommufd));
        }
    }

    pub(super) fn device_distortion(&mut self) -> String {
        self.distortion().replace(" size=", " argsz=")
    }

    /// A call that leads to little.
    pub(super) fn device_call(&mut self, name: &str) {
        let pasid = self.random.one(&[0, 0, 1, u64::from(u32::MAX)]).unwrap_or(0);
        let to = self.page_table();
        let (distortion, flag) = (self.device_distortion(), u64::from(!self.random.percent(10)));
        let step = match self.random.below(4) {
            0 | 1 => format!(
                "VFIO_DEVICE_ATTACH_IOMMUFD_PT {name} pt_id={to} pasid={pasid} flags={flag}{distortion}"
            ),
            2 => format!("VFIO_DEVICE_DETACH_IOMMUFD_PT {name} pasid={pasid} flags={flag}{distortion}"),
            _ => format!("VFIO_DEVICE_GET_INFO {name}"),
        };
        self.say(step);
    }

    pub(super) fn attach(&mut self, which: usize) {
        let to = self.page_table();
        let distortion = self.device_distortion();
        let flags = if self.random.percent(1) { " flags=2" } else { "" };
        let Some(device) = self.devices.get(which).filter(|device| device.open) else { return };
        let (name, before) = (device.name, device.attached);
        let can = device.bound.is_some() && flags.is_empty() && distortion.is_empty();
        self.say(format!("VFIO_DEVICE_ATTACH_IOMMUFD_PT {name} pt_id={to}{flags}{distortion}"));
        let kind = self.objects.get((to as usize).wrapping_sub(1)).copied().flatten();
        if can && kind == Some(Kind::Ioas) {
            // There is a new HWPT, unless the other device has made it.
            if !self.devices.iter().any(|device| device.attached.is_some()) {
                let hwpt = self.new_object(Kind::Hwpt);
                self.devices[which].attached = Some(hwpt);
            } else if let Some(before) = before {
                self.devices[which].attached = Some(before);
            }
        }
    }

    pub(super) fn detach(&mut self) {
        let which = self.random.below(2) as usize;
        let distortion = self.device_distortion();
        if let Some(device) = self.devices.get_mut(which).filter(|device| device.open) {
            let (name, attached) = (device.name, device.attached.take());
            self.say(format!("VFIO_DEVICE_DETACH_IOMMUFD_PT {name}{distortion}"));
            if let Some(hwpt) = attached {
                self.forget_object(hwpt);
            }
        }
    }

    // The calls of /dev/iommu.

    pub(super) fn ioas_alloc(&mut self) {
        let before = self.steps.len();
        self.call("IOMMU_IOAS_ALLOC", "");
        if self.steps.get(before).is_some_and(|step| step.ends_with([' ', 'i', 'k'])) {
            self.new_object(Kind::Ioas);
        }
    }

    pub(super) fn destroy(&mut self) {
        let kind = self.random.one(&[Kind::Ioas, Kind::Hwpt, Kind::Hwpt, Kind::Device, Kind::Queue]);
        let id = self.id(kind.unwrap_or(Kind::Ioas));
        self.call("IOMMU_DESTROY", &format!("id={id}"));
        // An IOAS in use stays; about those with nothing in them the guess is right.
        if !self.areas.iter().any(|(ioas, ..)| *ioas == id) && self.random.percent(50) {
            self.forget_object(id);
        }
    }

    pub(super) fn map(&mut self) {
        let (flags, ioas, length) = (self.flags(), self.id(Kind::Ioas), self.length());
        let (iova, address) = (self.iova(), self.address());
        let fields =
            format!("ioas_id={ioas} flags={flags} user_va={address} iova={iova:#x} length={length:#x}");
        self.call("IOMMU_IOAS_MAP", &fields);
        self.guess_area(ioas, flags, iova, length);
    }

    pub(super) fn map_file(&mut self) {
        let (flags, ioas, length) = (self.flags(), self.id(Kind::Ioas), self.length());
        let iova = self.iova();
        let start = if self.random.percent(85) { self.random.below(F) * PAGE } else { self.length() };
        // Never a descriptor of the uAPI itself: the file would hold itself open, and nobody could close it.
        let fd = if self.random.percent(97) { "f" } else { "-1" };
        let fields = format!(
            "ioas_id={ioas} flags={flags} fd={fd} start={start:#x} iova={iova:#x} length={length:#x}"
        );
        self.call("IOMMU_IOAS_MAP_FILE", &fields);
        self.guess_area(ioas, flags, iova, length);
    }

    /// Notes what may be mapped now.
    pub(super) fn guess_area(&mut self, ioas: u64, flags: &str, iova: u64, length: u64) {
        let likely = flags.contains(['R', 'W']) && !flags.contains('8') && (1..1 << 20).contains(&length);
        if likely && self.objects.get((ioas as usize).wrapping_sub(1)) == Some(&Some(Kind::Ioas)) {
            // Automatic ones go to the lowest place.
            let iova = if flags.contains("FIXED") { iova } else { PAGE };
            self.areas.push((ioas, iova, length));
        }
    }

    pub(super) fn copy(&mut self) {
        let (from, source, length) = self.somewhere();
        let (flags, to, iova) = (self.flags(), self.id(Kind::Ioas), self.iova());
        let fields = format!(
            "dst_ioas_id={to} src_ioas_id={from} flags={flags} src_iova={source:#x} length={length:#x} dst_iova={iova:#x}"
        );
        self.call("IOMMU_IOAS_COPY", &fields);
        self.guess_area(to, flags, iova, length);
    }

    pub(super) fn unmap(&mut self) {
        let (ioas, mut iova, mut length) = self.somewhere();
        if self.random.percent(10) {
            (iova, length) = (0, u64::MAX);
        }
        self.call("IOMMU_IOAS_UNMAP", &format!("ioas_id={ioas} iova={iova:#x} length={length:#x}"));
        if self.random.percent(50) {
            self.areas.retain(|area| *area != (ioas, iova, length));
        }
    }

    pub(super) fn get_pa(&mut self) {
        let (ioas, mut iova, mut length) = self.somewhere();
        if self.random.percent(30) {
            iova = iova.wrapping_add(self.random.below(PAGE));
        }
        if self.random.percent(50) {
            length = self.random.one(&[1, PAGE, 8 * PAGE, 1 << 40, u64::MAX, 0]).unwrap_or(PAGE);
        }
        let flags = if self.random.percent(1) { " flags=1" } else { "" };
        self.call(
            "IOMMU_IOAS_NOIOMMU_GET_PA",
            &format!("ioas_id={ioas} iova={iova:#x} length={length:#x}{flags}"),
        );
    }

    pub(super) fn iova_ranges(&mut self) {
        let (ioas, count) = (self.id(Kind::Ioas), self.random.below(3));
        self.say("ranges r 0..0 0..0");
        let array = if self.random.percent(95) { "r" } else { "0" };
        self.call(
            "IOMMU_IOAS_IOVA_RANGES",
            &format!("ioas_id={ioas} num_iovas={count} allowed_iovas={array}"),
        );
        self.say("show-ranges r 2");
    }

    pub(super) fn allow_iovas(&mut self) {
        let (ioas, count) = (self.id(Kind::Ioas), self.random.below(4));
        let mut ranges = String::new();
        for _ in 0..count {
            let start = match self.random.percent(70) {
                true => 0x1_0000 + self.random.below(32) * PAGE,
                false => self.iova(),
            };
            let length = match self.random.percent(80) {
                true => (1 + self.random.below(8)) * PAGE,
                false => self.length(),
            };
            let _ = write!(ranges, " {start:#x}..{:#x}", start.wrapping_add(length).wrapping_sub(1));
        }
        self.say(format!("ranges r{ranges}"));
        let array = if self.random.percent(95) { "r" } else { "0" };
        self.call(
            "IOMMU_IOAS_ALLOW_IOVAS",
            &format!("ioas_id={ioas} num_iovas={count} allowed_iovas={array}"),
        );
    }

    pub(super) fn option(&mut self) {
        let option = self.random.word(&["HUGE_PAGES", "HUGE_PAGES", "HUGE_PAGES", "RLIMIT_MODE", "2"]);
        let object = match option == "RLIMIT_MODE" && self.random.percent(90) {
            true => 0,
            false => self.id(Kind::Ioas),
        };
        let operation = self.random.word(&["OPTION_SET", "OPTION_SET", "OPTION_GET", "2"]);
        let large = u64::from(!self.small_pages || option == "RLIMIT_MODE");
        let value = self.random.one(&[large, large, 1, 1, 2, u64::MAX]).unwrap_or(0);
        let fields = format!("option_id={option} op={operation} object_id={object} val64={value}");
        self.call("IOMMU_OPTION", &fields);
    }

    pub(super) fn vfio_ioas(&mut self) {
        let (ioas, operation) = (
            self.id(Kind::Ioas),
            self.random.word(&["IOAS_SET", "IOAS_SET", "IOAS_SET", "IOAS_GET", "IOAS_CLEAR", "3"]),
        );
        self.call("IOMMU_VFIO_IOAS", &format!("op={operation} ioas_id={ioas}"));
        match operation {
            "IOAS_SET" => self.compat = true,
            "IOAS_CLEAR" => self.compat = false,
            _ => {}
        }
    }

    pub(super) fn hwpt_alloc(&mut self) {
        let (device, ioas, queue) = (self.id(Kind::Device), self.page_table(), self.id(Kind::Queue));
        let flags =
            self.random.word(&["0", "0", "0", "FAULT_ID_VALID", "NEST_PARENT", "DIRTY_TRACKING", "16"]);
        let data = if self.random.percent(5) { " data_len=8" } else { "" };
        let before = self.steps.len();
        self.call(
            "IOMMU_HWPT_ALLOC",
            &format!("dev_id={device} pt_id={ioas} flags={flags} fault_id={queue}{data}"),
        );
        if flags == "0" && self.steps.get(before).is_some_and(|step| !step.contains(['@'])) {
            self.new_object(Kind::Hwpt);
        }
    }

    pub(super) fn queue_alloc(&mut self) {
        let (fd, name) = (self.iommufd(), self.queues + 1);
        let distortion = self.distortion();
        self.say(format!("IOMMU_FAULT_QUEUE_ALLOC {fd}{distortion} -> out_fault_fd=fd q{name}"));
        if distortion.is_empty() && fd != "-1" {
            self.queues = name;
            self.new_object(Kind::Queue);
        }
    }

    /// Calls that mean something with an IOMMU alone.
    pub(super) fn refused(&mut self) {
        let (device, hwpt, number) = (self.id(Kind::Device), self.page_table(), self.random.below(3));
        let (iova, length) = (self.iova(), self.length());
        let (name, fields) = match self.random.below(8) {
            0 => ("IOMMU_GET_HW_INFO", format!("dev_id={device} flags={number}")),
            1 => ("IOMMU_HWPT_SET_DIRTY_TRACKING", format!("hwpt_id={hwpt} flags={number}")),
            2 => (
                "IOMMU_HWPT_GET_DIRTY_BITMAP",
                format!("hwpt_id={hwpt} flags={number} iova={iova:#x} length={length:#x} page_size=4096"),
            ),
            3 => (
                "IOMMU_HWPT_INVALIDATE",
                format!("hwpt_id={hwpt} entry_num={number} entry_len={}", number * 8),
            ),
            4 => ("IOMMU_VIOMMU_ALLOC", format!("dev_id={device} hwpt_id={hwpt} type={number}")),
            5 => ("IOMMU_VDEVICE_ALLOC", format!("viommu_id={hwpt} dev_id={device}")),
            6 => ("IOMMU_VEVENTQ_ALLOC", format!("viommu_id={hwpt} type={number} veventq_depth={number}")),
            _ => ("IOMMU_HW_QUEUE_ALLOC", format!("viommu_id={hwpt} type={number} length={length:#x}")),
        };
        self.call(name, &fields);
    }

    /// The calls of a VFIO container, which work on the IOAS that IOMMU_VFIO_IOAS has set.
    pub(super) fn container(&mut self) {
        let fd = self.iommufd();
        if self.random.percent(if self.compat { 10 } else { 80 }) {
            return self.vfio_ioas();
        }
        let (iova, length, address) = (self.iova(), self.length(), self.address());
        match self.random.below(10) {
            0 => self.say(format!("VFIO_GET_API_VERSION {fd}")),
            1 => {
                let extension = self.random.below(12);
                self.say(format!("VFIO_CHECK_EXTENSION {fd} {extension}"));
            }
            2 | 3 => {
                let type1 = if self.small_pages { "TYPE1" } else { "TYPE1V2" };
                let kind = self.random.word(&[type1, type1, "TYPE1V2", "NOIOMMU", "2", "0x100000001"]);
                self.say(format!("VFIO_SET_IOMMU {fd} {kind}"));
            }
            4..=6 => {
                let flags = self.random.word(&[
                    "DMA_READ|DMA_WRITE",
                    "DMA_READ|DMA_WRITE",
                    "DMA_READ",
                    "DMA_WRITE",
                    "4",
                ]);
                let fields = format!("flags={flags} vaddr={address} iova={iova:#x} size={length:#x}");
                self.call("VFIO_IOMMU_MAP_DMA", &fields);
                let ioas = self.id(Kind::Ioas);
                self.guess_area(ioas, "FIXED|R|W", iova, length);
            }
            7 | 8 => {
                let (_, iova, length) = self.somewhere();
                let (flags, iova, length) = match self.random.below(10) {
                    0 => ("UNMAP_ALL", 0, 0),
                    1 => (self.random.word(&["UNMAP_ALL", "1", "4"]), iova, length),
                    _ => ("0", iova, length),
                };
                self.call("VFIO_IOMMU_UNMAP_DMA", &format!("flags={flags} iova={iova:#x} size={length:#x}"));
            }
            _ => {
                let room = self.random.below(16) * 8;
                self.say(format!("VFIO_IOMMU_GET_INFO {fd} @room={room}"));
            }
        }
    }

    /// A page goes, or another one comes in its place.
    pub(super) fn page(&mut self) {
        let page = self.random.below(B);
        if self.moved.contains(&page) {
            return;
        }
        self.moved.push(page);
        self.say(format!("move b+{:#x} p+{:#x} 1", page * PAGE, page * PAGE));
        if self.spares < SPARE && self.random.percent(70) {
            self.say(format!("move b+{:#x} b+{:#x} 1", (B + self.spares) * PAGE, page * PAGE));
            self.spares += 1;
        }
    }

    /// Any number, of a call that is not there, or that is there with another direction or size.
    pub(super) fn raw(&mut self) {
        let fd = self.iommufd();
        let number = match self.random.below(3) {
            0 => 0x3b60 + self.random.below(64),
            1 => {
                0x3b80
                    + self.random.below(24)
                    + self.random.one(&[1 << 30, 8 << 16, 1 << 8, 1 << 31]).unwrap_or(0)
            }
            _ => self.random.below(1 << 32),
        };
        // Calls that there are have words of their own.
        if (0x3b64..=0x3b95).contains(&number) {
            return;
        }
        self.say(format!("ioctl {fd} {number:#x} zeros"));
    }
}
