//! Huge pages: long contiguous runs, and so short lists for devices.

use super::{Check, Status};
use crate::doctor::facts::Facts;
use crate::ui;

pub(super) fn huge_pages(facts: &Facts) -> Check {
    let why = "reserved huge pages are contiguous memory that is surely there";
    let check = |status, found: String| Check::new("hugepages", why, status, found);
    if facts.huge_pages.is_empty() {
        return check(Status::NotApplicable, "this kernel has none".to_owned());
    }
    let sizes: Vec<String> = facts
        .huge_pages
        .iter()
        .map(|pages| format!("{} of {} free ({})", pages.free, pages.reserved, ui::bytes(pages.kib << 10)))
        .collect();
    let found = sizes.join(", ");
    let free = facts.huge_pages.iter().any(|pages| pages.free > 0);
    if free {
        return check(Status::Ok, found);
    }
    let reserved = facts.huge_pages.iter().find(|pages| pages.kib == 2048).map_or(0, |pages| pages.reserved);
    // 128 MiB more than there are.
    check(Status::Note, found).remedy(format!("sysctl -w vm.nr_hugepages={}", reserved + 64))
}

pub(super) fn thp(facts: &Facts) -> Check {
    let why = "with transparent huge pages, ordinary memory comes in runs of 2 MiB where it can";
    let check = |status, found: &str| Check::new("thp", why, status, found);
    match facts.thp.as_deref() {
        None => check(Status::NotApplicable, "this kernel has none"),
        Some("never") => {
            check(Status::Note, "never").remedy("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
        }
        Some(mode) => check(Status::Ok, mode),
    }
}
