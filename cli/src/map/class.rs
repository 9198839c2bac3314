//! Runs told apart by their length, as every picture shows them.

/// How long a run is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// Shorter than 64 KiB: single pages, mostly.
    Scattered,
    /// Shorter than a huge page.
    Short,
    /// One huge page, or some.
    Huge,
    /// 64 MiB and more.
    Long,
}

impl Class {
    /// All of them, the shortest first.
    pub(super) const ALL: [Self; 4] = [Self::Scattered, Self::Short, Self::Huge, Self::Long];

    /// That of a run of so many bytes.
    pub(super) fn of(length: u64) -> Self {
        match length {
            0..0x1_0000 => Self::Scattered,
            0x1_0000..0x20_0000 => Self::Short,
            0x20_0000..0x400_0000 => Self::Huge,
            _ => Self::Long,
        }
    }

    /// What it is, for the legend.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scattered => "under 64 KiB",
            Self::Short => "64 KiB to 2 MiB",
            Self::Huge => "2 MiB to 64 MiB",
            Self::Long => "64 MiB and more",
        }
    }

    /// The same where there is little room.
    pub(super) fn short_name(self) -> &'static str {
        match self {
            Self::Scattered => "<64 KiB",
            Self::Short => "64 KiB+",
            Self::Huge => "2 MiB+",
            Self::Long => "64 MiB+",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_belong_to_the_longer() {
        for (length, class) in [
            (4096, Class::Scattered),
            ((64 << 10) - 1, Class::Scattered),
            (64 << 10, Class::Short),
            (2 << 20, Class::Huge),
            (64 << 20, Class::Long),
            (u64::MAX, Class::Long),
        ] {
            assert_eq!(Class::of(length), class, "{length}");
        }
    }
}
