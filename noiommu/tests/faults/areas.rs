//! 100,000 areas.

use noiommu::{Context, Contiguity, DmaBuffer, Mapping, PinChoice, Usage};

use crate::alone::alone;
use crate::counts::{Counts, pinned};
use crate::life::can_pin;

const AREAS: usize = 100_000;

#[test]
fn a_hundred_thousand_areas() {
    alone(concat!(module_path!(), "::a_hundred_thousand_areas"), || {
        let real = can_pin(PinChoice::Best);
        let context = if real { Context::new().unwrap() } else { Context::simulated() };
        let ioas = context.ioas().unwrap();
        let device = context.sim_edu().unwrap();
        device.attach(&ioas).unwrap();
        drop(ioas.map(DmaBuffer::new(4096, Contiguity::Pages).unwrap()).unwrap());
        let before = Counts::now();
        let mut mappings = Vec::with_capacity(AREAS);
        for number in 0..AREAS {
            let buffer = DmaBuffer::new(4096, Contiguity::Pages).unwrap();
            buffer.store_u64(8, number as u64).unwrap();
            mappings.push((ioas.map(buffer).unwrap(), number));
        }
        assert_eq!(ioas.usage().areas, AREAS);
        let counted = matches!(context.pin_kind(), Ok(noiommu::PinKind::IoUring));
        assert!(!counted || pinned() == before.pinned + 4 * AREAS as u64);
        let look = |(mapping, number): &(Mapping, usize)| {
            let found = ioas.lookup(mapping.iova(), u64::MAX).unwrap();
            let view = mapping.for_device(&device).unwrap();
            assert_eq!(view.segments().next().unwrap().address.bits(), found.address.0, "{number}");
            assert_eq!(found.length, 4096, "a run into the next area");
            assert_eq!(mapping.buffer().unwrap().load_u64(8).unwrap(), *number as u64);
            assert!(matches!(mapping.moved_pages(), Ok(None | Some(0))), "{number}");
        };
        mappings.iter().for_each(look);
        // In an order of no kind; what is left is looked at now and then.
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        while !mappings.is_empty() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let (mapping, _) = mappings.swap_remove(random as usize % mappings.len());
            let iova = mapping.iova();
            drop(mapping);
            assert_eq!(ioas.lookup(iova, 1), None);
            if mappings.len().is_multiple_of(997) {
                mappings.iter().step_by(101).for_each(look);
            }
        }
        assert_eq!(ioas.usage(), Usage { areas: 0, table_frames: 0 });
        let after = Counts::now();
        // Rings stay for the next mappings, the table's memory too.
        assert_eq!((after.pinned, ioas.quarantined()), (before.pinned, 0));
        drop((device, ioas, context));
        println!(
            "{AREAS} areas mapped, looked up and unmapped, {}",
            if real { "pinned" } else { "simulated" }
        );
    });
}
