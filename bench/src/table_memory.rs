//! What page tables take of memory.

use std::ptr::NonNull;

use noiommu::{Context, PhysAddr};

use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::{Group, Settings};

const PAGE: usize = 4096;
const GIB: usize = 1 << 30;

const DENSE: Subject = Subject::marked(
    "memory/4k",
    "Table memory for a scattered 4 KiB page, 4 GiB of them mapped one behind the other.",
    Unit::Bytes,
    Mark::AtMost(8.1),
);

const CONTIGUOUS: Subject = Subject::marked(
    "memory/1g",
    "Tables beyond the top for 1 GiB of contiguous memory, mapped wherever there is room.",
    Unit::Count,
    Mark::AtMost(1.0),
);

/// Memory of page tables.
pub(crate) const MEMORY: Group =
    Group { name: "memory", what: "What page tables take", subjects: || vec![DENSE, CONTIGUOUS], run };

fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    for (subject, measure) in [(DENSE, dense as fn() -> noiommu::Result<Row>), (CONTIGUOUS, contiguous)] {
        if settings.wants(&subject.name) {
            sink(measure().unwrap_or_else(|error| subject.not_measured(error.to_string())));
        }
    }
}

fn dense() -> noiommu::Result<Row> {
    let length = 4 * GIB;
    // No two neighbours, and no page aligned to more than a page by chance: all end with an odd frame number.
    let context = Context::with_frames(|address, length| {
        let place = |page: u64| PhysAddr(((page.wrapping_mul(0x9e37_79b9) & 0xff_ffff_ffff) | 1) << 12);
        let pages = (address / PAGE) as u64..((address + length) / PAGE) as u64;
        pages.map(|page| (place(page), PAGE as u64)).collect()
    });
    let tables = tables(&context, length, length)?;
    let pages = (length / PAGE) as f64;
    Ok(DENSE
        .row((tables * PAGE as u64) as f64 / pages, 0.0)
        .part_in("in all", (tables * PAGE as u64) as f64, Unit::Bytes)
        .part_in("pages", pages, Unit::Count))
}

fn contiguous() -> noiommu::Result<Row> {
    let mut row = CONTIGUOUS.row(0.0, 0.0);
    let mut most = 0;
    // At an address of its own size, as a reserved huge page of 1 GiB is; and at one of 2 MiB, as 512 transparent ones may be.
    for (label, aligned) in [("at a multiple of 1 GiB", GIB), ("of 2 MiB", 2 << 20)] {
        let context = Context::with_frames(|address, length| {
            vec![(PhysAddr((address + (64 << 30)) as u64), length as u64)]
        });
        let beyond = tables(&context, 4 * GIB + aligned % GIB, GIB)?.saturating_sub(1);
        row = row.part_in(label, beyond as f64, Unit::Count);
        most = most.max(beyond);
    }
    row.figure = Ok(crate::row::Figure { value: most as f64, spread: 0.0 });
    Ok(row)
}

/// The tables that memory takes which is not there.
fn tables(context: &Context, address: usize, length: usize) -> noiommu::Result<u64> {
    let ioas = context.ioas()?;
    let start = NonNull::new(address as *mut u8).ok_or_else(|| noiommu::Error::bad_argument("page 0"))?;
    // SAFETY: nothing looks at the memory behind an address of such a context.
    let _mapping = unsafe { ioas.map_borrowed(start, length)? };
    Ok(ioas.usage().table_frames)
}
