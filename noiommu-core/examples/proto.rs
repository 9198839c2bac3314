//! Scratch: shapes of lookups.
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Instant;

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
#[repr(align(4096))]
struct Frame([AtomicU64; 512]);
struct T {
    flat: &'static [AtomicU64],
    base: &'static [Frame],
    available: AtomicU64,
    epoch: AtomicU64,
    front: [AtomicU64; 512],
}
const ADDRESS: u64 = ((1 << 52) - 1) & !0xfff;
const LEAF: u64 = 7 << 60 | 1;
impl T {
    #[inline(always)]
    fn frame(&self, n: u64) -> Option<&Frame> {
        if n >= self.available.load(Acquire) {
            None
        } else {
            Some(unsafe { self.base.get_unchecked(n as usize) })
        }
    }
    #[inline(never)]
    #[cold]
    fn slow(&self, i: u64) -> Option<u64> {
        black_box(i);
        None
    }
    // A: L1 entries, natural leaves fast
    #[inline(always)]
    fn a(&self, iova: u64) -> Option<u64> {
        let before = self.epoch.load(Acquire);
        let n = self.front.get((iova >> 30) as usize)?.load(Acquire);
        let e = self.frame(n)?.0[(iova >> 21 & 511) as usize].load(Acquire);
        if e & (1 | 7 << 9) != 1 || self.epoch.load(Acquire) != before {
            return self.slow(iova);
        }
        Some(e & ADDRESS | iova & 0x1f_ffff)
    }
    // B: shadow words: base | 1, and 0 for holes
    #[inline(always)]
    fn b(&self, iova: u64) -> Option<u64> {
        let before = self.epoch.load(Acquire);
        let n = self.front.get((iova >> 30) as usize)?.load(Acquire);
        let e = self.frame(n)?.0[(iova >> 21 & 511) as usize].load(Acquire);
        let x = e.wrapping_sub(LEAF);
        if x & 0xfff != 0 || self.epoch.load(Acquire) != before {
            return self.slow(iova);
        }
        Some(x + (iova & 0x1f_ffff))
    }
    // C: as B, but the frame without a bound
    #[inline(always)]
    fn c(&self, iova: u64) -> Option<u64> {
        let before = self.epoch.load(Acquire);
        let n = self.front.get((iova >> 30) as usize)?.load(Acquire);
        let e = unsafe { self.base.get_unchecked(n as usize) }.0[(iova >> 21 & 511) as usize].load(Acquire);
        let x = e.wrapping_sub(LEAF);
        if x & 0xfff != 0 || self.epoch.load(Acquire) != before {
            return self.slow(iova);
        }
        Some(x + (iova & 0x1f_ffff))
    }
    // D: one flat array of words
    #[inline(always)]
    fn d(&self, iova: u64) -> Option<u64> {
        let e = self.flat.get((iova >> 21) as usize)?.load(Acquire);
        let x = e.wrapping_sub(1);
        if x & 0xfff != 0 {
            return self.slow(iova);
        }
        Some(x + (iova & 0x1f_ffff))
    }
}
fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}
fn time<F: Fn(u64) -> u64>(iovas: &[u64], f: F) -> f64 {
    let t = Instant::now();
    let mut s = 0u64;
    for &i in iovas {
        s = s.wrapping_add(f(black_box(i)));
    }
    black_box(s);
    t.elapsed().as_nanos() as f64 / iovas.len() as f64
}
fn dep<F: Fn(u64) -> u64>(n: usize, span: u64, f: F) -> f64 {
    let t = Instant::now();
    let mut at = 12345u64;
    for _ in 0..n {
        at = (f(at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 13) & span;
    }
    black_box(at);
    t.elapsed().as_nanos() as f64 / n as f64
}
fn main() {
    for gib in [1u64, 16, 64] {
        let mut base = Baseline { top: (0..512).map(|_| None).collect() };
        let frames: Box<[Frame]> = (0..gib + 1).map(|_| Frame([const { AtomicU64::new(0) }; 512])).collect();
        let t: &'static T = Box::leak(Box::new(T {
            flat: Box::leak((0..1usize << 18).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>()),
            base: Box::leak(frames),
            available: AtomicU64::new(gib + 1),
            epoch: AtomicU64::new(0),
            front: [const { AtomicU64::new(0) }; 512],
        }));
        for i in 0..gib * 512 {
            let pa = ((i.wrapping_mul(0x9e37_79b9) & 0xf_ffff) << 21).max(1 << 21);
            let d = base.top[(i >> 9) as usize].get_or_insert_with(|| Box::new([0; 512]));
            d[(i & 511) as usize] = pa | 1;
            t.flat[i as usize].store(pa | 1, Release);
            t.front[(i >> 9) as usize].store((i >> 9) + 1, Release);
            t.base[(i >> 9) as usize + 1].0[(i & 511) as usize].store(pa | LEAF, Release);
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
        let span = (gib << 30) - 1;
        let base: &'static Baseline = Box::leak(Box::new(base));
        let fs: [(&str, fn(&Baseline, &T, u64) -> u64); 4] = [
            ("base", |b, _, i| b.get(i).unwrap_or(0)),
            ("A", |_, t, i| t.a(i).unwrap_or(0)),
            ("B", |_, t, i| t.b(i).unwrap_or(0)),
            ("C", |_, t, i| t.c(i).unwrap_or(0)),
        ];
        let _ = fs;
        let mut r: [[Vec<f64>; 2]; 5] = Default::default();
        for _ in 0..61 {
            r[0][0].push(time(&iovas, |i| base.get(i).unwrap_or(0)));
            r[1][0].push(time(&iovas, |i| t.a(i).unwrap_or(0)));
            r[2][0].push(time(&iovas, |i| t.b(i).unwrap_or(0)));
            r[3][0].push(time(&iovas, |i| t.c(i).unwrap_or(0)));
            r[4][0].push(time(&iovas, |i| t.d(i).unwrap_or(0)));
            r[4][1].push(dep(n, span, |i| t.d(i).unwrap_or(0)));
            r[0][1].push(dep(n, span, |i| base.get(i).unwrap_or(0)));
            r[1][1].push(dep(n, span, |i| t.a(i).unwrap_or(0)));
            r[2][1].push(dep(n, span, |i| t.b(i).unwrap_or(0)));
            r[3][1].push(dep(n, span, |i| t.c(i).unwrap_or(0)));
        }
        let m: Vec<(f64, f64)> = r.into_iter().map(|[a, b]| (median(a), median(b))).collect();
        for (name, (a, b)) in ["base", "A", "B", "C", "D"].iter().zip(&m) {
            println!("{gib} GiB {name}: {a:.2} ({:.2}x) dependent {b:.2} ({:.2}x)", a / m[0].0, b / m[0].1);
        }
    }
}
