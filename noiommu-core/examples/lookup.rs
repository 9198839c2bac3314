//! Scratch: lookups against the baseline.
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use noiommu_core::table::format::Access;
use noiommu_core::table::{Frame, IndexWord, Table, TableMemory, TableWriter};
use noiommu_core::{Errno, Iova, IovaRange, PhysAddr};

struct Arena {
    base: &'static [Frame],
    available: AtomicU64,
    index: &'static [IndexWord],
}
impl Arena {
    fn new(frames: usize) -> Self {
        let base: Box<[Frame]> = (0..frames).map(|_| Frame::new()).collect();
        Self { base: Box::leak(base), available: AtomicU64::new(0), index: Box::leak((0..1 << 18).map(|_| IndexWord::new()).collect::<Box<[_]>>()) }
    }
}
impl TableMemory for Arena {
    #[inline]
    fn frame(&self, number: u64) -> Option<&Frame> {
        if number >= self.available.load(Ordering::Acquire) {
            return None;
        }
        Some(unsafe { self.base.get_unchecked(number as usize) })
    }
    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        if frames > self.base.len() as u64 {
            return Err(Errno::ENOMEM);
        }
        self.available.store(self.base.len() as u64, Ordering::Release);
        Ok(self.base.len() as u64)
    }
    #[inline]
    fn index(&self) -> &[IndexWord] { self.index }
}

struct Baseline {
    top: Vec<Option<Box<[u64; 512]>>>,
}
impl Baseline {
    #[inline(always)]
    fn get(&self, iova: u64) -> Option<u64> {
        let dir = self.top.get((iova >> 30) as usize)?.as_ref()?;
        let e = dir[(iova >> 21 & 511) as usize];
        if e == 0 { None } else { Some((e & !1) + (iova & 0x1f_ffff)) }
    }
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn main() {
    for gib in [1u64, 16, 64] {
        let leaves = gib * 512;
        let table = Table::new(Arena::new(256));
        let mut base = Baseline { top: (0..512).map(|_| None).collect() };
        let table: &'static Table<Arena> = Box::leak(Box::new(table));
        let mut writer = TableWriter::new(table).unwrap();
        for i in 0..leaves {
            let pa = (i.wrapping_mul(0x9e37_79b9) & 0xf_ffff) << 21;
            let iova = i << 21;
            writer.map(Iova(iova), PhysAddr(pa), 1 << 21, Access::READ_WRITE, false).unwrap();
            let d = base.top[(iova >> 30) as usize].get_or_insert_with(|| Box::new([0; 512]));
            d[(iova >> 21 & 511) as usize] = pa | 1;
        }
        let n = 1 << 16;
        let mut x = 88172645463325252u64;
        let iovas: Vec<u64> = (0..n)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x % (gib << 30)
            })
            .collect();
        for (name, which) in [("lookup", 0), ("run1", 1)] {
            let (mut a, mut b) = (vec![], vec![]);
            for _ in 0..41 {
                let t = Instant::now();
                let mut s = 0u64;
                for &i in &iovas {
                    s = s.wrapping_add(base.get(black_box(i)).unwrap_or(0));
                }
                black_box(s);
                a.push(t.elapsed().as_nanos() as f64 / n as f64);
                let t = Instant::now();
                let mut s = 0u64;
                if which == 0 {
                    for &i in &iovas {
                        s = s.wrapping_add(table.address(Iova(black_box(i))).map_or(0, |t| t.0));
                    }
                } else {
                    for &i in &iovas {
                        s = s.wrapping_add(table.run(Iova(black_box(i)), 1).map_or(0, |t| t.address.0));
                    }
                }
                black_box(s);
                b.push(t.elapsed().as_nanos() as f64 / n as f64);
            }
            let (a, b) = (median(a), median(b));
            // dependent
            let (mut c, mut d) = (vec![], vec![]);
            let span = (gib << 30) - 1;
            for _ in 0..41 {
                let t = Instant::now();
                let mut at = 12345u64;
                for _ in 0..n {
                    at = (base.get(at).unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 13) & span;
                }
                black_box(at);
                c.push(t.elapsed().as_nanos() as f64 / n as f64);
                let t = Instant::now();
                let mut at = 12345u64;
                for _ in 0..n {
                    at = (table.address(Iova(at)).map_or(0, |t| t.0)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        >> 13)
                        & span;
                }
                black_box(at);
                d.push(t.elapsed().as_nanos() as f64 / n as f64);
            }
            let (c, d) = (median(c), median(d));
            println!(
                "{gib} GiB {name}: base {a:.2} ours {b:.2} = {:.2}x; dependent base {c:.2} ours {d:.2} = {:.2}x",
                b / a,
                d / c
            );
        }
        let _ = IovaRange::ALL;
    }
}
