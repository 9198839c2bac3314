//! A random sequence of calls, in the language of the cases.
//!
//! Blind choice would end in ENOENT nearly always. So the generator guesses what its calls have led to (which id is what, where
//! something may be mapped) and chooses after that most of the time. The guesses need not be right.

use super::random::Random;

/// Pages of the buffers `b` (each alone in physical memory) and `c` (four in a row, over and over) and of the file `f`.
pub(super) const B: u64 = 16;
/// Pages of `b` behind those, which come in the place of others.
pub(super) const SPARE: u64 = 8;
pub(super) const C: u64 = 16;
pub(super) const F: u64 = 8;

pub(super) const PAGE: u64 = 4096;

/// What an object is thought to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Ioas,
    Hwpt,
    Device,
    Queue,
}

/// A device: its role, its descriptor's name, and what is thought of it.
pub(super) struct Device {
    pub(super) role: &'static str,
    pub(super) name: &'static str,
    pub(super) open: bool,
    /// Its id and the iommufd it is bound to.
    pub(super) bound: Option<(u64, &'static str)>,
    /// The HWPT it is attached to.
    pub(super) attached: Option<u64>,
}

/// A sequence while it comes to be.
pub(super) struct Draft {
    pub(super) random: Random,
    pub(super) steps: Vec<String>,
    /// Open descriptors of /dev/iommu: the first context under one or two names, then another context.
    pub(super) iommufds: Vec<&'static str>,
    /// Objects of the first context; the id is the place counted from 1.
    pub(super) objects: Vec<Option<Kind>>,
    /// IOAS, IOVA and length of what may be mapped.
    pub(super) areas: Vec<(u64, u64, u64)>,
    pub(super) devices: [Device; 2],
    /// Descriptors of fault queues.
    pub(super) queues: u64,
    /// Whether there may be an IOAS for the container calls.
    pub(super) compat: bool,
    /// Whether leaves of one page may be asked for. If so, no area of several pages reaches the end of the space.
    pub(super) small_pages: bool,
    /// Pages of `b` that are elsewhere, and spare ones that are used.
    pub(super) moved: Vec<u64>,
    pub(super) spares: u64,
    /// How often each of [`STEPS`] is in this sequence.
    pub(super) weights: Vec<u64>,
}

/// The steps of sequence `index` of a seed.
pub(super) fn sequence(seed: u64, index: u64) -> Vec<String> {
    let device = |role, name| Device { role, name, open: false, bound: None, attached: None };
    let mut draft = Draft {
        random: Random::new(seed, index),
        steps: Vec::new(),
        iommufds: Vec::new(),
        objects: Vec::new(),
        areas: Vec::new(),
        devices: [device("edu", "d"), device("edu2", "e")],
        queues: 0,
        compat: false,
        small_pages: false,
        moved: Vec::new(),
        spares: 0,
        weights: Vec::new(),
    };
    draft.small_pages = draft.random.percent(50);
    // Some kinds of steps are left out of a sequence and some are in it more often, so that it gets further with the rest.
    for (weight, _) in STEPS {
        let factor = draft.random.one(&[0, 1, 1, 1, 1, 5]).unwrap_or(1);
        draft.weights.push(weight * factor);
    }
    draft.begin();
    let more = 10 + draft.random.below(31);
    let end = draft.steps.len() + more as usize;
    while draft.steps.len() < end {
        draft.step();
    }
    draft.steps
}

impl Draft {
    pub(super) fn say(&mut self, step: impl Into<String>) {
        self.steps.push(step.into());
    }

    /// What most sequences begin with.
    pub(super) fn begin(&mut self) {
        self.open();
        if self.random.percent(10) {
            self.option();
        }
        self.ioas_alloc();
        if self.random.percent(75) {
            self.device(0);
            if self.random.percent(80) {
                self.attach(0);
            }
        }
        if self.random.percent(8) {
            self.say("IOMMU_VFIO_IOAS i op=IOAS_SET ioas_id=1");
            self.compat = true;
            if self.small_pages {
                self.say("VFIO_SET_IOMMU i TYPE1");
            }
        }
    }

    pub(super) fn step(&mut self) {
        // Without a descriptor, or anything mapped, most calls lead nowhere.
        if self.iommufds.is_empty() && self.random.percent(50) {
            self.open();
            return self.ioas_alloc();
        }
        if self.areas.is_empty() && self.random.percent(40) {
            return self.map();
        }
        let total = self.weights.iter().sum();
        let mut at = self.random.below(total);
        for (weight, (_, make)) in self.weights.iter().zip(STEPS) {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return make(self),
            }
        }
    }

    // Names and numbers.

    pub(super) fn iommufd(&mut self) -> &'static str {
        match self.iommufds.as_slice() {
            [] => "-1",
            open if self.random.percent(92) => open[0],
            open => {
                let open = open.to_vec();
                self.random.word(&open)
            }
        }
    }

    /// The id of an object that is thought to be of that kind; seldom any other number.
    pub(super) fn id(&mut self, kind: Kind) -> u64 {
        let of_kind: Vec<u64> =
            (1..).zip(&self.objects).filter(|(_, object)| **object == Some(kind)).map(|(id, _)| id).collect();
        match self.random.one(&of_kind) {
            // The first one is used most.
            Some(_) if self.random.percent(40) => of_kind.first().copied().unwrap_or(0),
            Some(id) if self.random.percent(90) => id,
            _ if self.random.percent(5) => self.random.one(&[u64::from(u32::MAX), 1 << 31, 77]).unwrap_or(0),
            _ => self.random.below(8),
        }
    }

    /// An IOAS, or sometimes an HWPT.
    pub(super) fn page_table(&mut self) -> u64 {
        let kind = if self.random.percent(20) { Kind::Hwpt } else { Kind::Ioas };
        self.id(kind)
    }

    pub(super) fn new_object(&mut self, kind: Kind) -> u64 {
        let free = self.objects.iter().position(Option::is_none).unwrap_or(self.objects.len());
        match self.objects.get_mut(free) {
            Some(object) => *object = Some(kind),
            None => self.objects.push(Some(kind)),
        }
        free as u64 + 1
    }

    pub(super) fn forget_object(&mut self, id: u64) {
        if let Some(object) = (id as usize).checked_sub(1).and_then(|at| self.objects.get_mut(at)) {
            *object = None;
        }
    }

    pub(super) fn iova(&mut self) -> u64 {
        match self.random.below(200) {
            0..2 => 0,
            2..5 => u64::MAX - PAGE + 1,
            5..6 if !self.small_pages => u64::MAX - 2 * PAGE + 1,
            6..7 => u64::MAX,
            7..10 => 0x1_0000 + self.random.below(16 * PAGE),
            10..12 => {
                0x1_0000 + self.random.below(16) * PAGE + self.random.one(&[1, 0x800, 0xfff]).unwrap_or(0)
            }
            12..14 => 0x20_0000,
            14..17 => 0x80_0000_0000_u64.wrapping_sub(self.random.below(4) * PAGE),
            17..18 => 1 << 63,
            18..19 => PAGE,
            _ => 0x1_0000 + self.random.below(16) * PAGE,
        }
    }

    pub(super) fn length(&mut self) -> u64 {
        match self.random.below(200) {
            0..2 => 0,
            2..4 => u64::MAX,
            4..5 => u64::MAX - PAGE + 1,
            5..6 => 1 << 63,
            6..7 => 2 << 20,
            7..9 => self.random.below(3 * PAGE),
            9..11 => (1 + self.random.below(4)) * PAGE + 1,
            11..60 => PAGE,
            _ => (1 + self.random.below(8)) * PAGE,
        }
    }

    pub(super) fn address(&mut self) -> String {
        let (buffer, pages) = if self.random.percent(60) { ("b", B) } else { ("c", C) };
        let page = self.random.below(pages) * PAGE;
        match self.random.below(200) {
            0..2 => "0".to_owned(),
            2..4 => format!("b+{:#x}", (B + SPARE) * PAGE + page),
            4..5 => format!("{:#x}", u64::MAX - self.random.below(3 * PAGE)),
            5..6 => "0xffff800000000000".to_owned(),
            6..9 => format!("{buffer}+{:#x}", page + self.random.below(PAGE)),
            9..11 => format!("{buffer}+{:#x}", page + 0x800),
            _ => format!("{buffer}+{page:#x}"),
        }
    }

    pub(super) fn flags(&mut self) -> &'static str {
        match self.random.below(100) {
            0..7 => self.random.word(&["FIXED", "0", "W", "FIXED|R|W|8", "0x80000007", "W|8"]),
            7..12 => "FIXED|W",
            12..20 => "FIXED|R",
            20..23 => "R",
            23..40 => "R|W",
            _ => "FIXED|R|W",
        }
    }

    /// Where something may be mapped, or anywhere: IOAS, IOVA, length.
    pub(super) fn somewhere(&mut self) -> (u64, u64, u64) {
        let (mut ioas, mut iova, mut length) = match self.random.one(&self.areas) {
            Some(area) if self.random.percent(93) => area,
            _ => (self.id(Kind::Ioas), self.iova(), self.length()),
        };
        if self.random.percent(20) {
            // A part of it, or more than it.
            iova = iova.wrapping_add(self.random.below(3) * PAGE);
            length = (1 + self.random.below(4)) * PAGE;
        }
        if self.random.percent(4) {
            length = self.length();
        }
        if self.random.percent(4) {
            ioas = self.id(Kind::Ioas);
        }
        (ioas, iova, length)
    }

    /// What is wrong with the way a structure is handed over, once in a while.
    pub(super) fn distortion(&mut self) -> String {
        if !self.random.percent(4) {
            return String::new();
        }
        match self.random.below(9) {
            0 => format!(" size={}", self.random.below(64)),
            1 => format!(" size={} @at={}:1", 64 + self.random.below(64), 48 + self.random.below(16)),
            2 => format!(" size={}", 48 + self.random.below(4096)),
            3 => " @arg=null".to_owned(),
            4 => " @arg=bad".to_owned(),
            5 | 6 => " @arg=ro".to_owned(),
            7 => " @arg=none".to_owned(),
            _ => format!(" @short={}", self.random.below(48)),
        }
    }

    /// A call with a structure on an iommufd.
    pub(super) fn call(&mut self, name: &str, fields: &str) {
        let fd = self.iommufd();
        let (mut distortion, mut reserved) = (self.distortion(), "");
        if name.starts_with("VFIO_") {
            // Their size has another name, and no tail.
            distortion = distortion.replace(" size=", " argsz=");
        } else if RESERVED.contains(&name) && self.random.percent(1) {
            reserved = " __reserved=1";
        }
        let space = if fields.is_empty() { "" } else { " " };
        self.say(format!("{name} {fd}{space}{fields}{reserved}{distortion}"));
    }
}

/// Adds a step, or some that belong together, or none.
type Make = fn(&mut Draft);

/// What a step can be, and how often it is, compared to the others.
const STEPS: &[(u64, Make)] = &[
    (20, Draft::open),
    (15, Draft::dup),
    (25, Draft::close),
    (50, |draft| draft.device(0)),
    (30, |draft| draft.device(1)),
    (50, |draft| draft.attach(0)),
    (20, |draft| draft.attach(1)),
    (30, Draft::detach),
    (40, Draft::ioas_alloc),
    (45, Draft::destroy),
    (175, Draft::map),
    (40, Draft::map_file),
    (110, Draft::copy),
    (85, Draft::unmap),
    (100, Draft::get_pa),
    (15, Draft::iova_ranges),
    (20, Draft::allow_iovas),
    (20, Draft::option),
    (20, Draft::vfio_ioas),
    (20, Draft::hwpt_alloc),
    (10, Draft::queue_alloc),
    (5, |draft| draft.call("IOMMU_IOAS_CHANGE_PROCESS", "")),
    (15, Draft::refused),
    (30, Draft::container),
    (15, Draft::page),
    (5, Draft::raw),
];

/// Calls whose structure has a field of that name.
const RESERVED: &[&str] = &[
    "IOMMU_IOAS_ALLOW_IOVAS",
    "IOMMU_IOAS_IOVA_RANGES",
    "IOMMU_IOAS_MAP",
    "IOMMU_IOAS_NOIOMMU_GET_PA",
    "IOMMU_IOAS_CHANGE_PROCESS",
    "IOMMU_OPTION",
    "IOMMU_VFIO_IOAS",
    "IOMMU_HWPT_ALLOC",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_for_ever() {
        let all: Vec<String> = (0..200).flat_map(|index| sequence(1, index)).collect();
        assert_eq!(all, (0..200).flat_map(|index| sequence(1, index)).collect::<Vec<_>>());
        assert_ne!(all, (0..200).flat_map(|index| sequence(2, index)).collect::<Vec<_>>());
    }

    /// Every step can be read, and all calls of the set occur.
    #[test]
    fn steps_are_steps() {
        let mut names = std::collections::BTreeSet::new();
        for index in 0..2000 {
            let steps = sequence(7, index);
            let text = format!("case x\n  {}\n", steps.join("\n  "));
            let blocks = crate::parse::parse(&text).unwrap();
            assert_eq!(blocks[0].steps.len(), steps.len());
            names.extend(steps.iter().filter_map(|step| step.split(' ').next().map(str::to_owned)));
        }
        for call in noiommu_uapi::CALLS {
            if call.file == noiommu_uapi::CallFile::Iommufd {
                assert!(names.contains(call.name), "{} never occurs", call.name);
            }
        }
    }
}
